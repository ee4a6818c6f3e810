//! The run folder of a local cluster, and what is written there of it.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::processes::Running;
use super::{private_folder, state_folder};
use crate::args::LocalArgs;

const RECORD: &str = "cluster.json";
const LOCK: &str = "lock";

/// A cluster as it was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Where workers register.
    pub listen: SocketAddr,
    /// Where the API is.
    pub rest: SocketAddr,
    pub storage: String,
    /// Of each worker.
    pub slots: u32,
    /// Of each worker.
    pub memory: String,
    pub coordinator: Option<Running>,
    pub workers: Vec<Running>,
}

impl Record {
    /// All processes, the coordinator first.
    pub fn processes(&self) -> impl Iterator<Item = &Running> {
        self.coordinator.iter().chain(&self.workers)
    }

    pub fn api(&self) -> String {
        format!("http://{}", self.rest)
    }

    /// For one more worker: the first that no worker has.
    pub fn free_name(&self) -> String {
        let mut names = (1..).map(|number: u32| format!("worker-{number}"));
        names.find(|name| self.workers.iter().all(|of| of.name != *name)).unwrap_or_default()
    }
}

/// A run folder, entered: until this is dropped no other command works in it.
pub struct RunFolder {
    path: PathBuf,
    _lock: File,
}

impl RunFolder {
    pub fn enter(args: &LocalArgs) -> anyhow::Result<Self> {
        let path = match &args.folder {
            Some(folder) => std::path::absolute(folder)?,
            None => state_folder()?.join("cluster"),
        };
        private_folder(&path)?;
        let lock = path.join(LOCK);
        let lock = File::create(&lock).with_context(|| format!("{} can't be written", lock.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!("another `tidemill cluster` works in {}\n  mend: Wait until it is done.", path.display())
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("{} can't be locked", path.display())),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was started from here, if anything was.
    pub fn read(&self) -> anyhow::Result<Option<Record>> {
        let path = self.path.join(RECORD);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("{} can't be read", path.display())),
        };
        let read = serde_json::from_slice(&text).with_context(|| {
            format!("{} is damaged\n  mend: End the processes by hand, and delete it.", path.display())
        })?;
        Ok(Some(read))
    }

    /// Replaces it in one step.
    pub fn write(&self, record: &Record) -> anyhow::Result<()> {
        let (fresh, path) = (self.path.join("cluster.json.new"), self.path.join(RECORD));
        let written = fs::write(&fresh, serde_json::to_vec_pretty(record)?).and_then(|()| fs::rename(&fresh, &path));
        written.with_context(|| format!("{} can't be written", path.display()))
    }
}
