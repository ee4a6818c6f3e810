//! Processes that outlive the command that started them, and are known again by later ones: by pid, the time at which the
//! system started it, and the boot at which that was. A pid alone may be somebody else's by now.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How long a process may take to end by itself. Then it is killed: what matters of it is in the storage anyway.
const GRACE: Duration = Duration::from_secs(10);
/// How the variables begin from which processes take settings.
const OURS: [&str; 3] = ["TIDEMILL_COORDINATOR_", "TIDEMILL_WORKER_", "TIDEMILL_TLS_"];
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How much of a log is shown of a process that ended.
const LAST_LINES: usize = 10;

/// A process that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Of the process in its cluster.
    pub name: String,
    pub pid: i32,
    /// In the system's ticks since it booted.
    started: u64,
    /// Names the system's boot.
    boot: String,
    pub log: PathBuf,
}

impl Running {
    /// Whether it still runs: the very process that was started.
    pub fn runs(&self) -> bool {
        boot().is_ok_and(|boot| boot == self.boot) && started(self.pid) == Some(self.started)
    }

    fn signal(&self, signal: Signal) {
        if self.runs() {
            // If it can't be told it has ended.
            _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// A process that this one started.
pub struct Child {
    pub running: Running,
    process: std::process::Child,
}

impl Child {
    /// An error with its last words, if it does not.
    pub fn still_runs(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.process.try_wait()? else { return Ok(()) };
        let text = fs::read(&self.running.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LAST_LINES)).map(|line| format!("\n  | {line}"));
        let (name, log) = (&self.running.name, self.running.log.display());
        bail!("the process {name} ended ({status}); the end of {log}:{}", last.collect::<String>())
    }
}

/// Starts this binary with other words. It has no terminal: Ctrl-C and the end of the shell do not reach it.
pub fn spawn(name: &str, words: &[&str], folder: &Path) -> anyhow::Result<Child> {
    let log = folder.join(format!("{name}.log"));
    let file = OpenOptions::new().create(true).append(true).open(&log);
    let file = file.with_context(|| format!("{} can't be written", log.display()))?;
    let same = |file: &File| file.try_clone().map(Stdio::from);
    let mut command = Command::new(std::env::current_exe().context("where this program lies is not known")?);
    command.args(words).current_dir(folder).process_group(0);
    // What is said here is all that counts.
    for (variable, _) in std::env::vars_os() {
        if OURS.iter().any(|ours| variable.as_encoded_bytes().starts_with(ours.as_bytes())) {
            command.env_remove(variable);
        }
    }
    command.stdin(Stdio::null()).stdout(same(&file)?).stderr(same(&file)?);
    let process = command.spawn().with_context(|| format!("the process {name} can't be started"))?;
    let pid = i32::try_from(process.id())?;
    // It is not waited for until this command looks at it, so its pid is its own even if it has ended.
    let started = started_raw(pid).with_context(|| format!("the process {name} is not to be found"))?;
    let running = Running { name: name.to_owned(), pid, started, boot: boot()?, log };
    Ok(Child { running, process })
}

/// Ends processes together: asks, waits, and kills who is still there.
pub fn end(processes: &[Running]) {
    processes.iter().for_each(|of| of.signal(Signal::SIGTERM));
    let begin = Instant::now();
    while processes.iter().any(Running::runs) && begin.elapsed() < GRACE {
        std::thread::sleep(LOOK_EVERY);
    }
    processes.iter().for_each(|of| of.signal(Signal::SIGKILL));
    while processes.iter().any(Running::runs) && begin.elapsed() < GRACE * 2 {
        std::thread::sleep(LOOK_EVERY);
    }
}

fn boot() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).with_context(|| format!("{path} can't be read"))?.trim().to_owned())
}

/// When the system started a process that runs, in its ticks since it booted. `None`: there is none, or it has ended and
/// only nobody has asked how.
fn started(pid: i32) -> Option<u64> {
    match stat(pid)?.0 {
        'Z' | 'X' => None,
        _ => started_raw(pid),
    }
}

fn started_raw(pid: i32) -> Option<u64> {
    stat(pid).map(|(_, started)| started)
}

/// The state of a process and when it was started: the fields 3 and 22 of its line (proc_pid_stat(5)). The name before
/// them may hold anything, also blanks and parentheses.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_again_and_another_is_not_taken_for_it() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let this = Running {
            name: "this".to_owned(),
            pid,
            started: started(pid).unwrap(),
            boot: boot().unwrap(),
            log: PathBuf::new(),
        };
        assert!(this.runs());
        assert!(!Running { started: this.started + 1, ..this.clone() }.runs(), "one that had the pid before");
        assert!(!Running { boot: "another".to_owned(), ..this }.runs(), "one of another boot");
    }

    #[test]
    fn a_process_that_ended_does_not_run() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let (begin, state) = (Instant::now(), |pid| stat(pid).map(|(state, _)| state));
        // Ended, and not waited for yet.
        while state(pid) != Some('Z') && begin.elapsed() < GRACE {
            std::thread::sleep(LOOK_EVERY);
        }
        assert_eq!(started(pid), None);
        child.wait().unwrap();
        assert_eq!(started(pid), None);
    }
}
