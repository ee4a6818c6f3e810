//! What survives the coordinator: artifacts, the definitions of jobs, what users wanted of them since, how they ended,
//! operations ([`crate::operations`]) and logs ([`crate::logs`]).
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
/// Of a job that was taken off the list.
const OFF: &str = ".off";

/// A job as it was accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    pub id: String,
    pub definition: JobDefinition,
    pub parallelism: Option<u32>,
    pub from: Start,
    pub allow_non_restored: bool,
    pub submitted_ms: i64,
}

/// A job that was found. An error says what can't be read of it, and why.
pub struct Found {
    pub id: String,
    pub accepted: Result<Accepted>,
    /// Whether an attempt has begun.
    pub begun: bool,
    /// What was wanted of it since, the oldest first.
    pub wishes: Result<Vec<KeptWish>>,
    /// How it ended, if it did.
    pub end: Result<Option<JobView>>,
}

/// A job that was found and did not end.
pub struct Kept {
    pub accepted: Accepted,
    /// Whether an attempt has begun.
    pub begun: bool,
    /// What was wanted of it since, the oldest first.
    pub wishes: Vec<KeptWish>,
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
        self.keep_bytes(&artifact_path(id)?, bytes)
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

    /// Keeps something under a name that nothing has. False: something else has it.
    pub fn keep_new(&self, path: &str, value: &impl Serialize) -> Result<bool> {
        self.put_in_doubt(path, &json(value)?)
    }

    /// Keeps bytes under a name that says what they are: that it is there already is as well.
    pub fn keep_bytes(&self, path: &str, content: &[u8]) -> Result<()> {
        match self.blobs.put_new(path, content)? {
            PutNew::Done | PutNew::Exists => Ok(()),
        }
    }

    /// Bytes that were kept. `None`: there are none.
    pub fn bytes(&self, path: &str) -> Result<Option<Vec<u8>>> {
        Ok(blobs::read_all(&*self.blobs, path)?)
    }

    /// The names in a folder, with the sizes of what they name.
    pub fn sizes(&self, folder: &str) -> Result<Vec<(String, u64)>> {
        Ok(self.blobs.list(folder)?.into_iter().map(|blob| (blob.name, blob.bytes)).collect())
    }

    /// The names in a folder.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        Ok(self.blobs.list(folder)?.into_iter().map(|blob| blob.name).collect())
    }

    /// That something is not there is no error.
    pub fn delete_all(&self, paths: &[String]) -> Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        Ok(self.blobs.delete_all(paths)?)
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

    /// Takes a job off the list, which is not to be gone on with. All that is kept of it stays.
    pub fn take_off(&self, id: &str) -> Result<()> {
        match self.blobs.put_new(&format!("{JOBS}/{id}{OFF}"), &[])? {
            PutNew::Done | PutNew::Exists => Ok(()),
        }
    }

    /// The jobs on the list. What can't be read of one is said there, and keeps nobody from the others; an error here may
    /// pass.
    pub fn jobs(&self) -> Result<Vec<Found>> {
        let names = self.names()?;
        let has = |id: &str, what: &str| names.iter().any(|name| name.strip_suffix(what) == Some(id));
        let mut found = Vec::new();
        for id in names.iter().filter_map(|name| name.strip_suffix(".job")).filter(|id| !has(id, OFF)) {
            let accepted = match self.read(&self.job_path(id)) {
                Ok(Some(accepted)) => Ok(accepted),
                // It was deleted meanwhile.
                Ok(None) => continue,
                Err(error) => Err(unless_passing(error)?),
            };
            let read = |wish: &str| self.read::<KeptWish>(&format!("{JOBS}/{wish}")).transpose();
            let wishes = wishes_of(id, &names).into_iter().filter_map(read).collect();
            let (wishes, end) = (settled(wishes)?, settled(self.end(id))?);
            found.push(Found { id: id.to_owned(), accepted, begun: has(id, ".begun"), wishes, end });
        }
        Ok(found)
    }

    /// What people call the file in which a job is kept.
    pub fn file_of(&self, id: &str) -> String {
        blobs::at_path(&self.location, &self.job_path(id))
    }

    fn job_path(&self, id: &str) -> String {
        format!("{JOBS}/{id}.job")
    }

    fn names(&self) -> Result<Vec<String>> {
        self.list(JOBS)
    }

    /// Something that was kept. `None`: there is none.
    pub fn read<T: for<'a> Deserialize<'a>>(&self, path: &str) -> Result<Option<T>> {
        let Some(content) = blobs::read_all(&*self.blobs, path)? else { return Ok(None) };
        let read = serde_json::from_slice(&content).map_err(|e| {
            let whole = blobs::at_path(&self.location, path);
            Error::invalid(format!("{whole} can't be read: it is damaged, or of another version of Tidemill: {e}"))
                .mend("Put the file back as it was written, or start a coordinator of that version.")
        });
        read.map(Some)
    }
}

/// What is wrong with what is kept; an error: with the store, now.
fn unless_passing(error: Error) -> Result<Error> {
    if error.kind() == ErrorKind::Invalid { Ok(error) } else { Err(error) }
}

fn settled<T>(read: Result<T>) -> Result<Result<T>> {
    match read {
        Ok(read) => Ok(Ok(read)),
        Err(error) => unless_passing(error).map(Err),
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
            let found: Vec<String> = storage.jobs().unwrap().into_iter().map(|found| found.id).collect();
            assert_eq!(found, [kept.id]);
        }
    }

    /// One of them kept the coordinator from starting.
    #[test]
    fn what_can_not_be_read_of_a_job_is_its_own_trouble() {
        let storage = Storage::new("/here", Arc::new(Memory::default()));
        let put = |path: &str, content: &str| storage.blobs.put_new(path, content.as_bytes()).unwrap();
        let accepted = String::from_utf8(json(&Accepted { id: "a".to_owned(), ..accepted() }).unwrap()).unwrap();
        let newer = accepted.replacen('{', "{\"priority\": 7,", 1);
        let (good, half) = (accepted.as_str(), &accepted[..9]);
        for (id, job) in [("damaged", half), ("end", good), ("good", good), ("newer", &newer), ("wish", good)] {
            _ = put(&format!("jobs/{id}.job"), job);
        }
        _ = put("jobs/wish.wish-000000", "\"pause\"");
        _ = put("jobs/end.end", "{}");
        let found = storage.jobs().unwrap();
        let wrong = |of: &Found| {
            let errors = [of.accepted.as_ref().err(), of.wishes.as_ref().err(), of.end.as_ref().err()];
            (of.id.clone(), errors.into_iter().flatten().map(Error::text).collect::<String>())
        };
        let wrong: Vec<(String, String)> = found.iter().map(wrong).collect();
        for ((id, text), words) in wrong.iter().zip([
            ["/here/jobs/damaged.job can't be read", "EOF"],
            ["/here/jobs/end.end can't be read", "missing field"],
            ["", ""],
            ["/here/jobs/newer.job can't be read", "`priority`"],
            ["/here/jobs/wish.wish-000000 can't be read", "`pause`"],
        ]) {
            assert_eq!(text.is_empty(), id == "good", "{id}: {text}");
            assert!(words.iter().all(|words| text.contains(words)), "{id}: {text}");
        }
        storage.take_off("damaged").unwrap();
        storage.take_off("damaged").unwrap();
        assert_eq!(storage.jobs().unwrap().len(), 4);
        assert_eq!(blobs::read_all(&*storage.blobs, "jobs/damaged.job").unwrap().unwrap(), half.as_bytes());
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
