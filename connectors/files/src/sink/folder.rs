//! Part files in a local folder.
//!
//! A file is written under a hidden name that no other attempt can have; `prepare` names hidden and final name in a
//! committable; `commit` renames. All files lie hidden in the sink's own folder, also those of partitions, so that an
//! attempt finds what earlier ones left behind in one place; a partition's folder is made when its first file is committed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidemill_core::connector::{Attempt, Committable, SinkCommitter};
use tidemill_core::error::{Error, Result};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::Epoch;

use super::place::{Place, attempt_of, attempt_prefix, committable, read};
use super::{Existing, PREFIX, is_part, is_partition, outside};
use crate::find::io_error;

/// Bytes per write: large enough that the system call is a small part of it.
const WRITE_BYTES: usize = 256 << 10;
/// Bytes per write where there are partitions: each open file has so many in memory.
const PARTITION_WRITE_BYTES: usize = 32 << 10;
/// Hidden names that are tried: each crashed attempt may have left some behind.
const MAX_HIDDEN: u64 = 1_000_000;

/// Deals with the part files of another run.
pub(super) fn start_anew(root: &Path, existing: Existing) -> Result<()> {
    let parts = part_files(root)?;
    match (existing, parts.first()) {
        (Existing::Fail, Some(part)) => Err(existing_error(&part.display().to_string())),
        (Existing::Delete, _) => parts.iter().try_for_each(|part| delete(part)),
        _ => Ok(()),
    }
}

/// The error of a place that has part files already.
pub(super) fn existing_error(part: &str) -> Error {
    Error::invalid(format!("'path': there are part files already, such as '{part}'"))
        .mend("name another folder, or say what to do about them: existing = \"keep\" or existing = \"delete\"")
}

/// Deletes what earlier attempts at this job wrote and never committed.
pub(super) fn clean_up(root: &Path, attempt: &Attempt<'_>) -> Result<()> {
    let failed = |e: io::Error| io_error("listing", root, &e);
    for entry in fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let earlier = hidden_by(attempt.job, &entry.file_name().to_string_lossy());
        if earlier.is_some_and(|number| number < attempt.number) {
            delete(&entry.path())?;
            Failpoint::SinkDeleted.reach();
        }
    }
    Ok(())
}

/// How the hidden files of a job's attempt begin.
pub(super) fn hidden_prefix(job: &str, attempt: u64) -> String {
    format!(".{}", attempt_prefix(job, attempt))
}

/// Which attempt at this job wrote a hidden file, if one did.
fn hidden_by(job: &str, name: &str) -> Option<u64> {
    attempt_of(job, name.strip_prefix('.')?)
}

/// The visible part files in a folder, and in the folders of partitions in it.
pub(super) fn part_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut parts = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = |e: io::Error| io_error("listing", &folder, &e);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if is_part(&name) {
                parts.push(entry.path());
            } else if is_partition(&name) && entry.file_type().map_err(failed)?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    parts.sort();
    Ok(parts)
}

/// Deletes a file, if it is still there: another process whose job is being taken over deletes its own as it ends.
fn delete(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("deleting", path, &e)),
        _ => Ok(()),
    }
}

/// The folder, for the writer of one subtask.
pub(super) struct Folder {
    pub(super) root: PathBuf,
    /// How its hidden names begin; no other attempt, node or subtask has the same.
    pub(super) hidden_prefix: String,
    pub(super) subtask: u32,
    pub(super) extension: &'static str,
    /// Number of the next hidden name.
    hidden: u64,
}

/// A file with a hidden name. Dropped before it is prepared, it is deleted.
pub(super) struct HiddenFile {
    path: PathBuf,
    name: String,
    /// `None`: closed, since there may be any number of such files until the next checkpoint.
    file: Option<File>,
    bytes: u64,
    /// Where it will be visible, within the sink's folder.
    folder: String,
    prepared: bool,
}

impl Folder {
    pub(super) fn new(root: PathBuf, hidden_prefix: String, subtask: u32, extension: &'static str) -> Self {
        Self { root, hidden_prefix, subtask, extension, hidden: 0 }
    }

    /// A final name that no file has: names of an earlier run that was told to keep its files are passed over.
    fn final_name(&self, epoch: Epoch, folder: &str, number: &mut u64) -> String {
        loop {
            let file = format!("{PREFIX}{}-{}-{number}.{}", self.subtask, epoch.0, self.extension);
            let name = if folder.is_empty() { file } else { format!("{folder}/{file}") };
            *number += 1;
            if !self.root.join(&name).exists() {
                return name;
            }
        }
    }
}

impl Place for Folder {
    type Part = HiddenFile;

    fn piece_bytes(&self, many: bool) -> usize {
        if many { PARTITION_WRITE_BYTES } else { WRITE_BYTES }
    }

    /// `create_new` sees to it that no other attempt has the name.
    fn create(&mut self, folder: &str) -> Result<HiddenFile> {
        loop {
            let name = format!("{}{}.unfinished", self.hidden_prefix, self.hidden);
            self.hidden += 1;
            let path = self.root.join(&name);
            match File::create_new(&path) {
                Ok(file) => {
                    Failpoint::PartCreated.reach();
                    let (file, folder) = (Some(file), folder.to_owned());
                    return Ok(HiddenFile { path, name, file, bytes: 0, folder, prepared: false });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.hidden < MAX_HIDDEN => {}
                Err(e) => return Err(io_error("creating", &path, &e)),
            }
        }
    }

    fn write(&mut self, part: &mut HiddenFile, text: &mut Vec<u8>) -> Result<()> {
        part.open()?.write_all(text).map_err(|e| io_error("writing", &part.path, &e))?;
        Failpoint::PartWritten.reach();
        part.bytes += text.len() as u64;
        text.clear();
        Ok(())
    }

    fn written(part: &HiddenFile) -> u64 {
        part.bytes
    }

    fn close(&mut self, part: &mut HiddenFile, mut text: Vec<u8>) -> Result<()> {
        self.write(part, &mut text)?;
        Failpoint::PartUnsynced.reach();
        part.open()?.sync_all().map_err(|e| io_error("syncing", &part.path, &e))?;
        part.file = None;
        Failpoint::PartSynced.reach();
        Ok(())
    }

    fn prepare(&mut self, epoch: Epoch, parts: Vec<HiddenFile>) -> Result<Option<Committable>> {
        let mut number = 0;
        let mut files = Vec::new();
        for mut part in parts {
            part.prepared = true;
            files.push((part.name.clone(), self.final_name(epoch, &part.folder, &mut number)));
        }
        Failpoint::PartPrepared.reach();
        if files.is_empty() { Ok(None) } else { Prepared { files }.committable().map(Some) }
    }
}

impl HiddenFile {
    fn open(&mut self) -> Result<&mut File> {
        self.file.as_mut().ok_or_else(|| Error::internal("a part file is written to after it was closed"))
    }
}

impl Drop for HiddenFile {
    fn drop(&mut self) {
        if !self.prepared {
            // If it can't be deleted it stays hidden, and does no harm.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The files of one `prepare`: the hidden name, in the sink's folder, and the final name, in it or in the folder of a
/// partition, with `/` between folders.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Prepared {
    pub(super) files: Vec<(String, String)>,
}

impl Prepared {
    pub(super) fn committable(&self) -> Result<Committable> {
        committable(self)
    }

    pub(super) fn from_committable(committable: &Committable) -> Result<Self> {
        let prepared: Self = read(committable, "a local folder")?;
        let plain = |name: &str| !name.contains('/') && !outside(name);
        for (hidden, name) in &prepared.files {
            if let Some(bad) = (!plain(hidden)).then_some(hidden).or(outside(name).then_some(name)) {
                let message = format!("a committable of the files sink names '{bad}', outside its folder");
                return Err(Error::invalid(message));
            }
        }
        Ok(prepared)
    }
}

pub(super) struct FolderCommitter {
    pub(super) root: PathBuf,
}

impl SinkCommitter for FolderCommitter {
    /// For each file: if the hidden one is there, rename it; if only the final one is there, it was committed before.
    /// Then the folders are synced, so that the names survive a crash of the machine.
    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        let mut folders = BTreeSet::new();
        for committable in committables {
            for (hidden, name) in Prepared::from_committable(committable)?.files {
                let name = self.root.join(name);
                show(&self.root.join(hidden), &name)?;
                let inner = name.ancestors().skip(1).take_while(|f| *f != self.root);
                for folder in inner {
                    if !folders.insert(folder.to_owned()) {
                        break;
                    }
                }
            }
        }
        folders.iter().try_for_each(|folder| sync_folder(folder))?;
        sync_folder(&self.root)
    }
}

/// Makes a file visible, unless it is already. Another process may be doing the same at this moment: one that took the
/// job over, or the one from which it was taken.
fn show(hidden: &Path, name: &Path) -> Result<()> {
    match (exists(hidden)?, exists(name)?) {
        (true, false) => {
            make_folder(name)?;
            match fs::rename(hidden, name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && exists(name)? => Ok(()),
                Err(e) => Err(io_error("renaming", hidden, &e)),
                Ok(()) => {
                    Failpoint::CommitRenamed.reach();
                    Ok(())
                }
            }
        }
        (false, true) => Ok(()),
        // Between the two questions.
        (true, true) if !exists(hidden)? => Ok(()),
        (true, true) => Err(Error::invalid(format!(
            "'{}' was written by someone else while this job ran; its own rows are in '{}'",
            name.display(),
            hidden.display()
        ))
        .mend("move the file away and commit again; give each job a folder of its own")),
        (false, false) => Err(Error::invalid(format!(
            "the rows of a checkpoint are lost: there is neither '{}' nor '{}'",
            hidden.display(),
            name.display()
        ))
        .mend("do not delete hidden files of a running job; restart it from an earlier checkpoint")),
    }
}

/// Makes the folder of a partition, if it is not there.
fn make_folder(name: &Path) -> Result<()> {
    let Some(folder) = name.parent() else { return Ok(()) };
    fs::create_dir_all(folder).map_err(|e| io_error("making the folder", folder, &e))
}

fn exists(path: &Path) -> Result<bool> {
    fs::exists(path).map_err(|e| io_error("looking for", path, &e))
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| io_error("syncing the folder", folder, &e))
}

#[cfg(test)]
mod races {
    use super::*;

    /// Of two processes at one job, the first commits a checkpoint from which the second goes on, which commits it too.
    #[test]
    fn two_processes_may_commit_the_same_checkpoint_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let names = |n: u32| (format!(".part-{round}-{n}.unfinished"), format!("part-{round}-{n}.jsonl"));
            let files: Vec<(String, String)> = (0..100).map(names).collect();
            files.iter().for_each(|(hidden, _)| fs::write(folder.path().join(hidden), "{}\n").unwrap());
            let prepared = Prepared { files }.committable().unwrap();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    let mut committer = FolderCommitter { root: folder.path().to_owned() };
                    let prepared = prepared.clone();
                    scope.spawn(move || committer.commit(&[prepared]).unwrap());
                }
            });
        }
        assert_eq!(part_files(folder.path()).unwrap().len(), 2_000);
    }

    /// A process whose job was taken over deletes what it had in the making, while the other one cleans up.
    #[test]
    fn what_somebody_else_deletes_need_not_be_cleaned_up() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let names = (0..100).map(|n| format!("{}{round}-{n}.unfinished", hidden_prefix("job", 1)));
            let paths: Vec<PathBuf> = names.map(|name| folder.path().join(name)).collect();
            paths.iter().for_each(|path| fs::write(path, "{}\n").unwrap());
            std::thread::scope(|scope| {
                scope.spawn(|| paths.iter().rev().for_each(|path| _ = fs::remove_file(path)));
                clean_up(folder.path(), &Attempt { job: "job", number: 2, goes_on: true }).unwrap();
            });
        }
    }
}
