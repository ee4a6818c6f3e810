//! Processes of the real binary.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tidemill_core::failpoint::{Failpoint, VARIABLE};

/// How often it is looked whether something happened.
pub const LOOK_EVERY: Duration = Duration::from_millis(4);

/// Where the binary is, and what its processes share.
#[derive(Clone, Debug)]
pub struct Binary {
    path: PathBuf,
    cache: PathBuf,
    /// What processes find in their environment beside ours.
    pub environment: Vec<(String, String)>,
    /// The network namespace that they are started in, if not in ours.
    namespace: Option<String>,
}

/// How a process is started.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// `--from`.
    pub from: Option<String>,
    /// `--parallelism`.
    pub parallelism: u64,
    /// `--set`.
    pub set: Vec<String>,
    /// The failpoint that is armed, and at which time it kills.
    pub failpoint: Option<(Failpoint, u64)>,
}

impl Binary {
    /// The one beside this program.
    pub fn find(cache: PathBuf) -> Result<Self> {
        let own = std::env::current_exe()?;
        let folder = own.parent().context("this program lies nowhere")?;
        // A test's program lies one folder further down.
        let candidates = [Some(folder), folder.parent()].into_iter().flatten().map(|f| f.join("tidemill"));
        let path = candidates.into_iter().find(|path| path.is_file());
        let path =
            path.context("there is no `tidemill` beside this program: cargo build --release --workspace --bins")?;
        Ok(Self { path, cache, environment: Vec::new(), namespace: None })
    }

    /// The same, in a network namespace.
    pub fn within(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    fn command(&self) -> Command {
        let mut command = match &self.namespace {
            // It becomes the program, with the same pid.
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.path);
                command
            }
            None => Command::new(&self.path),
        };
        command.env("TIDEMILL_CACHE", &self.cache).env_remove(VARIABLE).env("TIDEMILL_LOG", "warn");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Runs a job; what it says goes to the file `said`.
    pub fn run(&self, manifest: &Path, start: &Start, said: PathBuf) -> Result<Process> {
        let mut command = self.command();
        command.args(["run", "--format", "quiet", "--color", "never", "--manifest"]).arg(manifest);
        command.args(["--parallelism", &start.parallelism.to_string()]);
        command.args(start.from.iter().flat_map(|from| ["--from", from]));
        command.args(start.set.iter().flat_map(|set| ["--set", set]));
        if let Some((failpoint, times)) = start.failpoint {
            command.env(VARIABLE, format!("{}:{times}", failpoint.name()));
        }
        Process::spawn(command, said)
    }

    /// Runs a process of a cluster; what it says goes to the file `said`.
    pub fn serve(&self, words: &[&str], failpoint: Option<(Failpoint, u64)>, said: PathBuf) -> Result<Process> {
        let mut command = self.command();
        command.args(words);
        if let Some((failpoint, times)) = failpoint {
            command.env(VARIABLE, format!("{}:{times}", failpoint.name()));
        }
        Process::spawn(command, said)
    }

    /// What a command answers.
    pub fn output(&self, words: &[&str]) -> Result<Output> {
        Ok(self.command().args(words).stdout(Stdio::piped()).output()?)
    }

    /// Asks something of a running job: `stop`, or `savepoint`.
    pub fn ask(&self, words: &[&str], manifest: &Path, said: PathBuf) -> Result<Process> {
        let mut command = self.command();
        command.args(words).arg("--project").arg(manifest);
        Process::spawn(command, said)
    }
}

/// A process; killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    said: PathBuf,
    ended: Option<ExitStatus>,
    killed: bool,
}

impl Process {
    fn spawn(mut command: Command, said: PathBuf) -> Result<Self> {
        command.stderr(File::create(&said).with_context(|| said.display().to_string())?);
        let child = command.spawn().context("cannot start tidemill")?;
        Ok(Self { child, said, ended: None, killed: false })
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if let Some(ended) = self.ended()? {
            return Ok(ended);
        }
        self.child.kill()?;
        self.killed = true;
        let ended = self.child.wait()?;
        self.ended = Some(ended);
        Ok(ended)
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let ended = match self.ended()? {
            Some(ended) => ended,
            None => self.child.wait()?,
        };
        self.ended = Some(ended);
        Ok(ended)
    }

    /// SIGSTOP: it stands still, its connections with it, until [`Process::go_on`].
    pub fn stand_still(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        match kill(pid, signal) {
            // It has ended, and nobody asked yet how.
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether it was we who killed it.
    pub fn was_killed_by_us(&self) -> bool {
        self.killed
    }

    /// What it said on stderr.
    pub fn said(&self) -> String {
        fs::read(&self.said).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // If it can't be killed it has ended.
        _ = self.kill();
    }
}

/// Whether it died of SIGKILL.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::SIGKILL as i32)
}
