//! What breaks below a job: a full disk, a store that became read-only, files of checkpoints deleted or damaged. Each
//! must end in an error that names the file and the mend, and after mending nothing may be lost or there twice.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::check;
use crate::jobs::{Job, Partitions, Settings};
use crate::process::{Binary, LOOK_EVERY, Process, Start};

const JOB: Job = Job::Keyed;
const SETTINGS: Settings = Settings {
    records: 12_000,
    interval_ms: 40,
    batch_rows: 100,
    retained: 3,
    roll_bytes: 1 << 20,
    roll_after_ms: None,
    roll_idle_ms: None,
    partitions: Partitions::None,
    aligned_timeout_ms: None,
};
/// How often a moment between two checkpoints is tried to be hit.
const ATTEMPTS: u32 = 20;
/// Of the small disk: enough for the checkpoints and the output, little to fill.
const DISK: &str = "16m";
/// Nothing here takes so long.
const LIMIT: Duration = Duration::from_secs(60);

/// A case: what is done to a trial's folder.
type Case = fn(&mut Trial<'_>) -> Result<()>;

const CASES: &[(&str, Case)] = &[
    ("a finished job is gone on with", finished),
    ("a file of the newest checkpoint is deleted", deleted),
    ("a file of the newest checkpoint is truncated", truncated),
    ("a file of the newest checkpoint is changed", changed),
    ("the newest manifest is truncated", manifest_truncated),
    ("the newest manifest is deleted", manifest_deleted),
    ("the disk of the checkpoints is full", full_store),
    ("the disk of the output is full", full_output),
    ("the store becomes read-only", read_only),
];

/// Runs all cases; how many failed.
pub fn run(binary: &Binary, component: &Path, set: &[String]) -> Result<usize> {
    let mut failed = 0;
    for (name, case) in CASES {
        let folder = tempfile::Builder::new().prefix("tidemill-faults-").tempdir()?;
        let mut trial = Trial::new(binary, component, folder.path(), set)?;
        match case(&mut trial) {
            Ok(()) if trial.skipped => eprintln!("skipped: {name}: mounting a small disk is not allowed here"),
            Ok(()) => eprintln!("ok: {name}"),
            Err(error) => {
                failed += 1;
                eprintln!("FAILED: {name}: {error:#}");
            }
        }
    }
    Ok(failed)
}

struct Trial<'a> {
    binary: &'a Binary,
    folder: &'a Path,
    manifest: PathBuf,
    set: &'a [String],
    processes: u32,
    mounted: Option<PathBuf>,
    skipped: bool,
}

impl<'a> Trial<'a> {
    fn new(binary: &'a Binary, component: &Path, folder: &'a Path, set: &'a [String]) -> Result<Self> {
        let manifest = folder.join("tidemill.toml");
        fs::write(&manifest, JOB.manifest(folder, component, &SETTINGS))?;
        Ok(Self { binary, folder, manifest, set, processes: 0, mounted: None, skipped: false })
    }

    fn start(&mut self, from: Option<&str>) -> Result<Process> {
        self.processes += 1;
        let said = self.folder.join(format!("process-{}.txt", self.processes));
        let start = Start { from: from.map(str::to_owned), parallelism: 2, set: self.set.to_vec(), ..Start::default() };
        self.binary.run(&self.manifest, &start, said)
    }

    /// Runs the job until it has completed some checkpoints, and kills it.
    fn interrupted(&mut self) -> Result<()> {
        let mut process = self.start(None)?;
        self.await_checkpoints(&mut process)?;
        process.kill().map(|_| ())
    }

    /// The same, while the newest checkpoint is known to be committed: only one of which that is known is missed.
    fn interrupted_between_checkpoints(&mut self) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let mut process = self.start(None)?;
            self.await_checkpoints(&mut process)?;
            let begin = Instant::now();
            while !self.newest_is_committed()? {
                ensure!(begin.elapsed() < LIMIT, "no checkpoint is committed");
                thread::sleep(LOOK_EVERY);
            }
            process.kill()?;
            if self.newest_is_committed()? {
                return Ok(());
            }
        }
        bail!("the job was never between two checkpoints")
    }

    fn newest_is_committed(&self) -> Result<bool> {
        let newest = self.newest("log")?;
        let number = newest.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        let number = number.with_context(|| format!("{} has no number", newest.display()))?;
        Ok(self.store().join("committed").join(number.to_string()).exists())
    }

    fn await_checkpoints(&mut self, process: &mut Process) -> Result<()> {
        let begin = Instant::now();
        let marked = || fs::read_dir(self.store().join("committed")).map_or(0, Iterator::count);
        while marked() < SETTINGS.retained as usize {
            if let Some(status) = process.ended()? {
                bail!("the job ended too early ({status}): {}", process.said());
            }
            ensure!(begin.elapsed() < LIMIT, "the job completes no checkpoint");
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn store(&self) -> PathBuf {
        self.folder.join("checkpoints/audit-keyed")
    }

    /// The newest file of a folder of the store, by its name.
    fn newest(&self, folder: &str) -> Result<PathBuf> {
        let folder = self.store().join(folder);
        let paths = fs::read_dir(&folder).with_context(|| folder.display().to_string())?.flatten().map(|e| e.path());
        paths.filter(|path| !hidden(path)).max().context("the folder is empty")
    }

    /// A file that the newest checkpoint names.
    fn named_file(&self) -> Result<PathBuf> {
        let mut entries: Vec<PathBuf> = fs::read_dir(self.store().join("log"))?.flatten().map(|e| e.path()).collect();
        entries.sort();
        for entry in entries.iter().rev() {
            let text = fs::read_to_string(entry)?;
            let names = text.match_indices("files/g").filter_map(|(at, _)| text.get(at..)?.split('"').next());
            if let Some(name) = names.map(|name| self.store().join(name)).find(|path| path.exists()) {
                return Ok(name);
            }
        }
        bail!("no checkpoint names a file")
    }

    /// The process must end with an error that says all of these.
    fn refused(&mut self, mut process: Process, words: &[&str]) -> Result<()> {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = process.ended()? {
                break status;
            }
            ensure!(begin.elapsed() < LIMIT, "it goes on as if nothing were wrong");
            thread::sleep(LOOK_EVERY);
        };
        let said = process.said();
        ensure!(!status.success(), "it ended well: {said}");
        for word in words {
            ensure!(said.contains(word), "it does not say '{word}': {said}");
        }
        ensure!(!said.contains("panicked"), "it panicked: {said}");
        Ok(())
    }

    /// After mending: runs to the end, and everything must be there once.
    fn exact(&mut self) -> Result<()> {
        let mut process = self.start(None)?;
        self.exact_of(&mut process)
    }

    fn exact_of(&mut self, process: &mut Process) -> Result<()> {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = process.ended()? {
                break status;
            }
            ensure!(begin.elapsed() < LIMIT, "it does not come to its end");
            thread::sleep(LOOK_EVERY);
        };
        ensure!(status.success(), "after mending: {}", process.said());
        let difference = check::compare(&JOB.expected(SETTINGS.records), &check::found(JOB, self.folder)?);
        let check::Difference { lost, duplicated, wrong, examples } = &difference;
        ensure!(
            lost + duplicated + wrong == 0,
            "after mending: {lost} lost, {duplicated} duplicated, {wrong} wrong: {}",
            examples.join("; ")
        );
        Ok(())
    }

    /// Makes a folder a small disk of its own. False: that is not allowed here.
    fn mount(&mut self, folder: PathBuf) -> Result<bool> {
        fs::create_dir_all(&folder)?;
        let options = format!("size={DISK}");
        let mounted = mount(&["-t", "tmpfs", "-o", &options, "tidemill-test"], &folder);
        self.skipped = !mounted;
        self.mounted = mounted.then_some(folder);
        Ok(mounted)
    }

    fn remount(&self, how: &str) -> Result<()> {
        let folder = self.mounted.as_ref().context("nothing is mounted")?;
        ensure!(mount(&["-o", &format!("remount,{how}")], folder), "remounting {how} failed");
        Ok(())
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if let Some(folder) = &self.mounted {
            _ = Command::new("umount").arg("--lazy").arg(folder).status();
        }
    }
}

fn mount(arguments: &[&str], folder: &Path) -> bool {
    let mut command = Command::new("mount");
    command.args(arguments).arg(folder).stderr(std::process::Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn finished(trial: &mut Trial<'_>) -> Result<()> {
    trial.exact()?;
    let mut process = trial.start(Some("latest"))?;
    trial.exact_of(&mut process)?;
    // Nothing says that it is meant to go on: it would start anew, and finds what is there.
    let process = trial.start(None)?;
    trial.refused(process, &["there are part files already", "existing"])
}

/// Damages a file, wants the error, puts the file back and goes on.
fn damaged(trial: &mut Trial<'_>, path: &Path, damage: impl Fn(&Path) -> Result<()>, words: &[&str]) -> Result<()> {
    let whole = fs::read(path)?;
    damage(path)?;
    let process = trial.start(None)?;
    let file = name(path);
    let words: Vec<&str> = words.iter().copied().chain([file.as_str(), "mend:"]).collect();
    trial.refused(process, &words)?;
    fs::write(path, whole)?;
    trial.exact()
}

fn deleted(trial: &mut Trial<'_>) -> Result<()> {
    trial.interrupted()?;
    let path = trial.named_file()?;
    damaged(trial, &path, |path| Ok(fs::remove_file(path)?), &["it is not there"])
}

fn halve(path: &Path) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    Ok(file.set_len(file.metadata()?.len() / 2)?)
}

fn truncated(trial: &mut Trial<'_>) -> Result<()> {
    trial.interrupted()?;
    let path = trial.named_file()?;
    damaged(trial, &path, halve, &["bytes long instead of"])
}

fn changed(trial: &mut Trial<'_>) -> Result<()> {
    trial.interrupted()?;
    let path = trial.named_file()?;
    let flip = |path: &Path| {
        let mut content = fs::read(path)?;
        content.last_mut().into_iter().for_each(|byte| *byte ^= 1);
        Ok(fs::write(path, content)?)
    };
    damaged(trial, &path, flip, &["checksum"])
}

fn manifest_truncated(trial: &mut Trial<'_>) -> Result<()> {
    trial.interrupted()?;
    let path = trial.newest("log")?;
    damaged(trial, &path, halve, &["can't be read"])
}

fn manifest_deleted(trial: &mut Trial<'_>) -> Result<()> {
    trial.interrupted_between_checkpoints()?;
    let path = trial.newest("log")?;
    damaged(trial, &path, |path| Ok(fs::remove_file(path)?), &["is gone"])
}

/// Writes a file until the disk has not one byte left.
fn fill(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path)?;
    for size in [1 << 20, 1 << 12, 1] {
        let piece = vec![0_u8; size];
        while file.write_all(&piece).is_ok() {}
    }
    Ok(())
}

/// Fills the disk below a running job, wants the error, makes room and goes on.
fn full(trial: &mut Trial<'_>, disk: &Path) -> Result<()> {
    let mut process = trial.start(None)?;
    trial.await_checkpoints(&mut process)?;
    let ballast = disk.join("ballast");
    fill(&ballast)?;
    trial.refused(process, &["No space left on device", "mend:"])?;
    fs::remove_file(&ballast)?;
    trial.exact()
}

fn full_store(trial: &mut Trial<'_>) -> Result<()> {
    let disk = trial.folder.join("checkpoints");
    if trial.mount(disk.clone())? { full(trial, &disk) } else { Ok(()) }
}

fn full_output(trial: &mut Trial<'_>) -> Result<()> {
    let disk = trial.folder.join("pass");
    if trial.mount(disk.clone())? { full(trial, &disk) } else { Ok(()) }
}

fn read_only(trial: &mut Trial<'_>) -> Result<()> {
    let disk = trial.folder.join("checkpoints");
    if !trial.mount(disk)? {
        return Ok(());
    }
    let mut process = trial.start(None)?;
    trial.await_checkpoints(&mut process)?;
    // Refused while a file is being written; then again.
    let begin = Instant::now();
    while trial.remount("ro").is_err() {
        ensure!(begin.elapsed() < LIMIT, "the disk can't be made read-only");
    }
    trial.refused(process, &["Read-only file system", "mend:"])?;
    let process = trial.start(None)?;
    trial.refused(process, &["Read-only file system", "mend:"])?;
    trial.remount("rw")?;
    trial.exact()
}
