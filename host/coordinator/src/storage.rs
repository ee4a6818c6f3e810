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
/// So often it is tried again to find out whether something was put.
const DOUBTS: usize = 4;
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
            if self.put_in_doubt(&format!("{JOBS}/{}.job", accepted.id), &content)? {
                return Ok(accepted);
            }
        }
        Err(Error::internal("no free id for a job was found"))
    }

    /// Puts what nobody else puts, and tries again where it is not known whether it is there: who is told that it is not
    /// puts it under another name. Whether it is there; false: something else is.
    fn put_in_doubt(&self, path: &str, content: &[u8]) -> Result<bool> {
        let mut doubt = None;
        for _ in 0..DOUBTS {
            let put = self.blobs.put_new(path, content).and_then(|put| match put {
                PutNew::Done => Ok(true),
                PutNew::Exists => Ok(blobs::read_all(&*self.blobs, path)?.as_deref() == Some(content)),
            });
            match put {
                Ok(is_there) => return Ok(is_there),
                Err(error) if !error.in_doubt && doubt.is_none() => return Err(error.into()),
                Err(error) => doubt = Some(error),
            }
        }
        Err(doubt.map_or_else(|| Error::internal("nothing was put"), Error::from))
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tidemill_blobs::{BlobError, BlobWriter, Listed, Memory, Trouble};

    use super::*;

    /// Does what it is asked, and loses the answers of the first requests to put something.
    struct Doubtful(Memory, AtomicUsize);

    impl Blobs for Doubtful {
        fn location(&self) -> &str {
            "/doubtful"
        }

        fn put_new(&self, path: &str, content: &[u8]) -> Result<PutNew, BlobError> {
            let put = self.0.put_new(path, content)?;
            let left = self.1.load(Ordering::Relaxed);
            self.1.store(left.saturating_sub(1), Ordering::Relaxed);
            if left == 0 {
                return Ok(put);
            }
            Err(BlobError { trouble: Trouble::Unavailable, in_doubt: true, message: "the answer was lost".to_owned() })
        }

        fn create(&self, path: &str) -> Result<Box<dyn BlobWriter>, BlobError> {
            self.0.create(path)
        }

        fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send>>, BlobError> {
            self.0.open(path)
        }

        fn list(&self, folder: &str) -> Result<Vec<Listed>, BlobError> {
            self.0.list(folder)
        }

        fn delete(&self, path: &str) -> Result<(), BlobError> {
            self.0.delete(path)
        }
    }

    fn accepted() -> Accepted {
        let (artifact, manifest, set) = Default::default();
        let (manifest_name, folder) = (PathBuf::from("tidemill.toml"), PathBuf::from("/"));
        let definition = JobDefinition { artifact, manifest, manifest_name, folder, set };
        let (parallelism, from) = Default::default();
        Accepted { id: String::new(), definition, parallelism, from, allow_non_restored: false, submitted_ms: 1 }
    }

    /// It was answered with an error, and ran with the next coordinator beside the one that was submitted in its place.
    #[test]
    fn a_job_whose_acceptance_is_in_doubt_is_not_kept_twice() {
        let number = AtomicUsize::new(0);
        let nonces: Nonces = Arc::new(move || number.fetch_add(1, Ordering::Relaxed).to_string());
        for lost in 0..DOUBTS {
            let storage = Storage::new("/", Arc::new(Doubtful(Memory::default(), AtomicUsize::new(lost))));
            let kept = storage.keep_job(accepted(), &nonces).unwrap();
            let found: Vec<String> = storage.jobs().unwrap().into_iter().map(|kept| kept.accepted.id).collect();
            assert_eq!(found, [kept.id]);
        }
    }

    #[test]
    fn an_id_that_another_job_has_is_not_taken() {
        let storage = Storage::new("/", Arc::new(Memory::default()));
        let number = AtomicUsize::new(0);
        let nonces: Nonces = Arc::new(move || (number.fetch_add(1, Ordering::Relaxed) / 2).to_string());
        let first = storage.keep_job(accepted(), &nonces).unwrap();
        let other = Accepted { allow_non_restored: true, ..accepted() };
        let path = format!("{JOBS}/{}.job", first.id);
        assert!(!storage.put_in_doubt(&path, &json(&other).unwrap()).unwrap());
        assert!(storage.put_in_doubt(&path, &blobs::read_all(&*storage.blobs, &path).unwrap().unwrap()).unwrap());
    }
}
