//! What survives the coordinator: artifacts, the definitions of jobs, what users wanted of them since, and how they ended.
//! Everything is written once.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidemill_blobs::{self as blobs, Blobs, PutNew};
use tidemill_checkpoint::Start;
use tidemill_core::nonce::Nonces;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_job::JobDefinition;
use tidemill_job::definition::{ARTIFACTS, artifact_path, digest};

use crate::view::{ArtifactView, JobView};

const JOBS: &str = "jobs";
/// Is there as long as the storage is.
const MARK: &str = "cluster";
const WISH: &str = ".wish-";

/// A job as it was accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Accepted {
    pub id: String,
    pub definition: JobDefinition,
    pub parallelism: Option<u32>,
    pub from: Start,
    pub allow_non_restored: bool,
    pub submitted_ms: i64,
}

/// A job that was found.
pub struct Kept {
    pub accepted: Accepted,
    /// Whether an attempt has begun.
    pub begun: bool,
    /// What was wanted of it since, the oldest first.
    pub wishes: Vec<KeptWish>,
    /// How it ended, if it did.
    pub end: Option<JobView>,
}

/// What a user wants of a job that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptWish {
    Cancel,
    Stop,
    /// So many slots.
    Parallelism(u32),
}

pub struct Storage {
    location: String,
    blobs: Arc<dyn Blobs>,
}

impl Storage {
    pub fn new(location: &str, blobs: Arc<dyn Blobs>) -> Self {
        Self { location: location.to_owned(), blobs }
    }

    /// Leaves the mark by which it is known to be there. What can't be written to is no storage.
    pub fn mark(&self) -> Result<()> {
        match self.blobs.put_new(MARK, &[])? {
            PutNew::Done | PutNew::Exists => Ok(()),
        }
    }

    /// Whether it is there and answers.
    pub fn answers(&self) -> Result<()> {
        let gone = || Error::new(ErrorKind::Retry, format!("{} is not there any more", self.location));
        self.blobs.open(MARK)?.map(drop).ok_or_else(gone)
    }

    pub fn location(&self) -> &str {
        &self.location
    }

    pub fn keep_artifact(&self, id: &str, bytes: &[u8]) -> Result<()> {
        // That it is there already is as well: its name says what it holds.
        match self.blobs.put_new(&artifact_path(id)?, bytes)? {
            PutNew::Done | PutNew::Exists => Ok(()),
        }
    }

    pub fn artifacts(&self) -> Result<Vec<ArtifactView>> {
        let listed = self.blobs.list(ARTIFACTS)?;
        let named = listed.iter().filter_map(|blob| Some((blob.name.strip_suffix(".wasm")?, blob.bytes)));
        Ok(named.map(|(id, bytes)| ArtifactView { id: id.to_owned(), job: None, bytes }).collect())
    }

    /// Also what names none is not there.
    pub fn has_artifact(&self, id: &str) -> Result<bool> {
        let Ok(path) = artifact_path(id) else { return Ok(false) };
        Ok(self.blobs.open(&path)?.is_some())
    }

    pub fn delete_artifact(&self, id: &str) -> Result<()> {
        Ok(self.blobs.delete(&artifact_path(id)?)?)
    }

    /// Keeps a job under an id that no other job has, which it completes.
    pub fn keep_job(&self, mut accepted: Accepted, nonces: &Nonces) -> Result<Accepted> {
        for _ in 0..16 {
            accepted.id = job_id(&accepted, &nonces());
            let content = json(&accepted)?;
            match self.blobs.put_new(&format!("{JOBS}/{}.job", accepted.id), &content)? {
                PutNew::Done => return Ok(accepted),
                PutNew::Exists => {}
            }
        }
        Err(Error::internal("no free id for a job was found"))
    }

    /// Keeps that an attempt has begun: from now on the job's own checkpoints say where it goes on.
    pub fn keep_begun(&self, id: &str) -> Result<()> {
        match self.blobs.put_new(&format!("{JOBS}/{id}.begun"), &[])? {
            PutNew::Done | PutNew::Exists => Ok(()),
        }
    }

    /// Whether an attempt has begun, as far as is kept.
    pub fn has_begun(&self, id: &str) -> Result<bool> {
        Ok(self.blobs.open(&format!("{JOBS}/{id}.begun"))?.is_some())
    }

    /// Keeps what a user wants of a job.
    pub fn keep_wish(&self, id: &str, wish: KeptWish) -> Result<()> {
        let content = json(&wish)?;
        let first = wishes_of(id, &self.names()?).len();
        for number in first..first + 16 {
            match self.blobs.put_new(&format!("{JOBS}/{id}{WISH}{number:06}"), &content)? {
                PutNew::Done => return Ok(()),
                PutNew::Exists => {}
            }
        }
        Err(Error::new(ErrorKind::Retry, format!("what is wanted of the job {id} changes all the time")))
    }

    /// Keeps how a job ended. Who comes second does not count.
    pub fn keep_end(&self, end: &JobView) -> Result<()> {
        match self.blobs.put_new(&format!("{JOBS}/{}.end", end.id), &json(end)?)? {
            PutNew::Done | PutNew::Exists => Ok(()),
        }
    }

    /// How a job ended, if it did.
    pub fn end(&self, id: &str) -> Result<Option<JobView>> {
        self.read(&format!("{JOBS}/{id}.end"))
    }

    pub fn jobs(&self) -> Result<Vec<Kept>> {
        let names = self.names()?;
        let mut kept = Vec::new();
        for id in names.iter().filter_map(|name| name.strip_suffix(".job")) {
            let Some(accepted) = self.read(&format!("{JOBS}/{id}.job"))? else { continue };
            let begun = names.iter().any(|name| name.strip_suffix(".begun") == Some(id));
            let mut wishes = Vec::new();
            for wish in wishes_of(id, &names) {
                wishes.extend(self.read::<KeptWish>(&format!("{JOBS}/{wish}"))?);
            }
            kept.push(Kept { accepted, begun, wishes, end: self.end(id)? });
        }
        Ok(kept)
    }

    fn names(&self) -> Result<Vec<String>> {
        Ok(self.blobs.list(JOBS)?.into_iter().map(|blob| blob.name).collect())
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, path: &str) -> Result<Option<T>> {
        let Some(content) = blobs::read_all(&*self.blobs, path)? else { return Ok(None) };
        let read = serde_json::from_slice(&content).map_err(|e| {
            let whole = blobs::at_path(&self.location, path);
            Error::invalid(format!("{whole} can't be read: {e}"))
                .mend("Move it away to start without this job; its checkpoints stay where they are.")
        });
        read.map(Some)
    }
}

/// The names of what was wanted of a job, the oldest first.
fn wishes_of<'a>(id: &str, names: &'a [String]) -> Vec<&'a str> {
    let is_one = |name: &&str| name.strip_prefix(id).is_some_and(|rest| rest.starts_with(WISH));
    let mut wishes: Vec<&str> = names.iter().map(String::as_str).filter(is_one).collect();
    wishes.sort_unstable();
    wishes
}

/// In the order of submission.
fn job_id(accepted: &Accepted, nonce: &str) -> String {
    let text = format!("{accepted:?} {nonce}");
    let digest = digest(text.as_bytes());
    format!("{:012x}{}", accepted.submitted_ms, digest.get(..8).unwrap_or_default())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| Error::internal(format!("what is to be kept: {e}")))
}
