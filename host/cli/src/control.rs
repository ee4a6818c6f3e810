//! How another process of this machine asks something of a running job: a Unix socket in a folder that only its user can
//! enter, a JSON line each way. The cluster's REST API is the way over a network; this one needs no port and no token.
//!
//! A socket is named after the manifest that the job was started from, so one manifest runs once at a time.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tidemill_core::keys::hash_row;
use tidemill_dataflow::{JobControl, SavepointRequest};

/// No question is longer: a location and some words.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// A question has to arrive at once; its answer may take as long as a savepoint does.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process that is being killed may take to vanish.
const GRACE: Duration = Duration::from_secs(1);

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Take a savepoint and go on.
    Savepoint { location: String },
    /// Stop cleanly, maybe with a savepoint.
    Stop { savepoint: Option<String> },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Done(String),
    Failed(String),
}

/// The job of which is asked: of the attempt that runs now, if one does.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<Option<JobControl>>>);

impl Running {
    /// An attempt runs (`Some`) or has ended.
    pub fn set(&self, control: Option<JobControl>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = control;
    }

    fn get(&self) -> Option<JobControl> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The listening end. Nobody can ask any more when it is dropped.
pub struct Server {
    path: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // If it can't be removed, the next server finds that nobody listens there and replaces it.
        _ = fs::remove_file(&self.path);
    }
}

/// Listens for the job of a manifest.
pub fn listen(manifest: &Path, running: Running) -> anyhow::Result<Server> {
    let path = socket(manifest)?;
    let runs = || UnixStream::connect(&path).is_ok();
    // A process that was just killed may still be about to vanish.
    let begin = Instant::now();
    while runs() && begin.elapsed() < GRACE {
        thread::sleep(GRACE / 20);
    }
    if runs() {
        bail!("{} runs already, in another process\n  mend: Stop that one first: `tidemill stop`.", manifest.display());
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).with_context(|| path.display().to_string()),
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("listening at {}", path.display()))?;
    thread::Builder::new().name("control".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            // Who breaks off does not need an answer.
            _ = stream.map_err(anyhow::Error::from).and_then(|stream| serve(&stream, &running));
        }
    })?;
    Ok(Server { path })
}

/// Asks the job of a manifest; what it answers.
pub fn ask(manifest: &Path, request: &Request) -> anyhow::Result<String> {
    let path = socket(manifest)?;
    let mut stream = UnixStream::connect(&path).map_err(|_| {
        anyhow::anyhow!(
            "no job runs from {} on this machine\n  mend: Name the project of a job that runs: --project FOLDER.",
            manifest.display()
        )
    })?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match serde_json::from_str(&answer) {
        Ok(Reply::Done(said)) => Ok(said),
        Ok(Reply::Failed(why)) => bail!("{why}"),
        Err(_) => bail!("the job ended before it answered"),
    }
}

fn serve(stream: &UnixStream, running: &Running) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(QUESTION_TIMEOUT))?;
    let mut line = String::new();
    std::io::Read::take(BufReader::new(stream), MAX_LINE_BYTES).read_line(&mut line)?;
    let reply =
        serde_json::from_str(&line).map_err(anyhow::Error::from).and_then(|request| carry_out(request, running));
    let reply = reply.map_or_else(|why| Reply::Failed(format!("{why:#}")), Reply::Done);
    let mut line = serde_json::to_string(&reply)?;
    line.push('\n');
    let mut stream = stream;
    stream.write_all(line.as_bytes())?;
    Ok(())
}

fn carry_out(request: Request, running: &Running) -> anyhow::Result<String> {
    let begin = Instant::now();
    let job = loop {
        match running.get() {
            Some(job) => break job,
            None if begin.elapsed() > QUESTION_TIMEOUT => bail!("the job is being started again; ask later"),
            None => thread::sleep(GRACE / 20),
        }
    };
    let (answer, answered) = mpsc::channel();
    match request {
        Request::Savepoint { location } => job.savepoint(SavepointRequest { location, answer }),
        Request::Stop { savepoint: Some(location) } => job.stop_with_savepoint(SavepointRequest { location, answer }),
        Request::Stop { savepoint: None } => {
            job.stop();
            return Ok("the job finishes what it has read".to_owned());
        }
    }
    let location = answered.recv().context("the job ended without it")??;
    Ok(format!("in {location}; go on from it with `tidemill run --from {location}`"))
}

/// The socket of a manifest's job.
fn socket(manifest: &Path) -> anyhow::Result<PathBuf> {
    let full = fs::canonicalize(manifest).with_context(|| format!("there is no {}", manifest.display()))?;
    let name = format!("{:016x}.sock", hash_row(full.as_os_str().as_encoded_bytes()));
    Ok(folder()?.join(name))
}

/// A folder of this user's own.
fn folder() -> anyhow::Result<PathBuf> {
    let uid = fs::metadata("/proc/self")?.uid();
    let folder = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) => PathBuf::from(runtime).join("tidemill"),
        None => std::env::temp_dir().join(format!("tidemill-{uid}")),
    };
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e).with_context(|| folder.display().to_string()),
        _ => {}
    }
    let found = fs::symlink_metadata(&folder)?;
    if !found.is_dir() || found.uid() != uid || found.mode() & 0o077 != 0 {
        bail!("{} is not a folder that only this user can enter\n  mend: Remove it.", folder.display());
    }
    Ok(folder)
}
