//! A cluster of real processes on this machine, for measuring what only a cluster has: submitting, recovering, what is
//! between processes, many jobs.
//!
//! Output is watched where it comes out: jobs `print`, and each worker's standard output is read line by line.

pub mod many;
pub mod recovery;
pub mod shuffle;
pub mod submit;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::blocking::{Client, RequestBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemill_checkpoint::Start;
use tidemill_coordinator::Submission;
use tidemill_coordinator::view::{ArtifactView, JobState, JobView, WorkerView};
use tidemill_job::JobDefinition;

use crate::measure::quantile;

/// Nothing that is measured takes so long but what hangs.
const HANGS: Duration = Duration::from_secs(120);
/// Between two looks at something that is not measured by them.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A line that a worker printed.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was read.
    pub at: SystemTime,
    /// What it says.
    pub text: String,
}

/// See the module. Its processes end with it.
pub struct Cluster {
    folder: PathBuf,
    binary: PathBuf,
    listen: String,
    rest: String,
    client: Client,
    coordinator: Child,
    workers: Vec<Child>,
    lines: Receiver<Line>,
    say: Sender<Line>,
}

impl Cluster {
    /// One whose workers have these numbers of slots; everything is kept below `folder`.
    ///
    /// # Errors
    /// When a process does not start, or the workers do not register.
    pub fn start(folder: &Path, slots: &[u32]) -> Result<Self> {
        let binary = std::env::current_exe()?.with_file_name("tidemill");
        ensure!(
            binary.is_file(),
            "there is no `tidemill` beside this program: cargo build --release --workspace --bins"
        );
        let (listen, rest) = (free_address()?, free_address()?);
        let coordinator = coordinator(&binary, folder, &listen, &rest)?;
        // That there is one already is fine.
        _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().timeout(HANGS).build()?;
        let (say, lines) = mpsc::channel();
        let (folder, workers) = (folder.to_owned(), Vec::new());
        let mut cluster = Self { folder, binary, listen, rest, client, coordinator, workers, lines, say };
        for slots in slots {
            cluster.add_worker(*slots)?;
        }
        cluster.until(|cluster| Ok(cluster.workers().is_ok_and(|there| there.len() >= slots.len())))?;
        Ok(cluster)
    }

    /// Starts another worker.
    ///
    /// # Errors
    /// When it does not start.
    pub fn add_worker(&mut self, slots: u32) -> Result<()> {
        let said = self.folder.join(format!("worker-{}.txt", self.workers.len()));
        let mut command = Command::new(&self.binary);
        command.args(["worker", "--slots", &slots.to_string(), "--coordinator", &self.listen]);
        let mut worker = quiet(&mut command, &said)?.stdout(Stdio::piped()).spawn().context("cannot start a worker")?;
        let stdout = worker.stdout.take().context("a worker's output")?;
        let say = self.say.clone();
        thread::spawn(move || read(stdout, &say));
        self.workers.push(worker);
        Ok(())
    }

    /// SIGKILLs a worker by its place.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_worker(&mut self, at: usize) -> Result<()> {
        let worker = self.workers.get_mut(at).context("a worker")?;
        worker.kill()?;
        worker.wait()?;
        Ok(())
    }

    /// The place of the worker with this id, which has its process's number in it.
    pub fn worker(&self, id: &str) -> Option<usize> {
        self.workers.iter().position(|worker| id.starts_with(&format!("worker-{}-", worker.id())))
    }

    /// SIGKILLs the coordinator.
    ///
    /// # Errors
    /// When that fails.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        self.coordinator.kill()?;
        self.coordinator.wait()?;
        Ok(())
    }

    /// Starts the coordinator again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn revive_coordinator(&mut self) -> Result<()> {
        self.coordinator = coordinator(&self.binary, &self.folder, &self.listen, &self.rest)?;
        Ok(())
    }

    /// The next line that a worker prints.
    ///
    /// # Errors
    /// When none comes.
    pub fn line(&self) -> Result<Line> {
        self.lines.recv_timeout(HANGS).context("no worker prints anything")
    }

    /// The lines that were printed and not asked for.
    pub fn lines(&self) -> impl Iterator<Item = Line> {
        self.lines.try_iter()
    }

    /// All workers that are there.
    ///
    /// # Errors
    /// When the API does not answer.
    pub fn workers(&self) -> Result<Vec<WorkerView>> {
        answer(self.get("workers"))
    }

    /// A job.
    ///
    /// # Errors
    /// When the API does not answer.
    pub fn job(&self, id: &str) -> Result<JobView> {
        answer(self.get(&format!("jobs/{id}")))
    }

    /// Uploads a component.
    ///
    /// # Errors
    /// When it is refused.
    pub fn upload(&self, component: Vec<u8>) -> Result<ArtifactView> {
        answer(self.post("artifacts").body(component))
    }

    /// Submits a job of a component that was uploaded.
    ///
    /// # Errors
    /// When it is refused.
    pub fn submit(&self, artifact: &str, manifest: &str) -> Result<JobView> {
        let definition = JobDefinition {
            artifact: artifact.to_owned(),
            manifest: manifest.to_owned(),
            manifest_name: PathBuf::from("tidemill.toml"),
            folder: std::path::absolute(&self.folder)?,
            set: Vec::new(),
        };
        let submission = Submission { definition, parallelism: None, from: Start::Anew, allow_non_restored: false };
        answer(self.post("jobs").json(&submission))
    }

    /// Cancels a job, and waits until it is over.
    ///
    /// # Errors
    /// When that is refused, or it does not end.
    pub fn cancel(&self, id: &str) -> Result<()> {
        let _: JobView = answer(self.post(&format!("jobs/{id}/cancel")))?;
        self.until(|cluster| Ok(cluster.job(id)?.state == JobState::Canceled))
    }

    /// Waits until a job is over.
    ///
    /// # Errors
    /// When it fails, or does not end.
    pub fn finish(&self, id: &str) -> Result<JobView> {
        self.until(|cluster| Ok(cluster.job(id)?.state.is_final()))?;
        let job = self.job(id)?;
        ensure!(job.state == JobState::Finished, "the job ended {}: {:?}", job.state, job.reason);
        Ok(job)
    }

    /// Waits until something is so.
    ///
    /// # Errors
    /// When that can't be found out, or does not come.
    pub fn until(&self, is: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        while !is(self)? {
            if begin.elapsed() > HANGS {
                bail!("nothing happens any more; what the processes said is in {}", self.folder.display());
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Asks for something.
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("http://{}/api/v1/{path}", self.rest))
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("http://{}/api/v1/{path}", self.rest))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.workers.iter_mut().chain([&mut self.coordinator]) {
            // Who can't be killed has ended.
            _ = process.kill();
            _ = process.wait();
        }
    }
}

/// The answer to a request.
///
/// # Errors
/// When there is none, or it is a refusal: with its text.
pub fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T> {
    let response = request.send()?;
    let status = response.status();
    if !status.is_success() {
        bail!("the cluster answered {status}: {}", response.text()?);
    }
    Ok(response.json()?)
}

/// Of some durations, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// Half are shorter.
    pub median_ms: f64,
    /// Nine of ten are shorter.
    pub p90_ms: f64,
    /// None is longer.
    pub max_ms: f64,
}

impl Spread {
    /// Of these.
    pub fn of(mut ms: Vec<f64>) -> Self {
        let mut at = |share| quantile(&mut ms, share);
        Self { median_ms: at(0.5), p90_ms: at(0.9), max_ms: at(1.0) }
    }
}

/// Milliseconds since 1970.
pub fn unix_ms(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}

fn coordinator(binary: &Path, folder: &Path, listen: &str, rest: &str) -> Result<Child> {
    let mut command = Command::new(binary);
    command.args(["coordinator", "--listen", listen, "--rest", rest, "--storage"]).arg(folder.join("storage"));
    let command = quiet(&mut command, &folder.join("coordinator.txt"))?;
    command.stdout(Stdio::null()).spawn().context("cannot start the coordinator")
}

/// What it says goes to a file.
fn quiet<'a>(command: &'a mut Command, said: &Path) -> Result<&'a mut Command> {
    let said = File::options().create(true).append(true).open(said).with_context(|| said.display().to_string())?;
    let cache = fs::canonicalize(std::env::temp_dir())?.join("tidemill-bench-cache");
    Ok(command.env("TIDEMILL_CACHE", cache).stdin(Stdio::null()).stderr(said))
}

fn read(stdout: ChildStdout, say: &Sender<Line>) {
    for text in BufReader::new(stdout).lines().map_while(Result::ok) {
        if say.send(Line { at: SystemTime::now(), text }).is_err() {
            return;
        }
    }
}

/// An address that is free now.
fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
