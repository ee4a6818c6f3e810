//! Local recovery: copies of the files of checkpoints on the disk of the process whose slots wrote them, so that slots that
//! begin again there need not fetch them from the store.
//!
//! Invariant: nothing depends on a copy. The store has every file before it is copied, a copy is checked when it is read
//! just as what comes from the store is, and one that is missing, damaged or was never made costs a read from the store.
//! They are bounded in bytes, and gone with their process: its successor has another name, so no slot is sent back to it
//! for their sake.
//!
//! What takes long is handed to a [`Copier`], which a thread of its own runs: a checkpoint does not wait for its copy.

mod copier;
mod files;
mod needed;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tidemill_core::error::{Error, Result};
use tidemill_core::scratch::{Folder, Home};
use tidemill_core::snapshot::FileRef;

use crate::checksum;
use crate::garbage::Written;
use crate::manifest::Manifest;
use crate::owner::FILES;

use self::copier::{Content, Task, copy_new};
use self::needed::Needed;

pub use self::copier::Copier;
pub(crate) use self::files::LocalFiles;
pub use self::files::{Reads, restoring};

/// What waits in memory to be copied. More than that is not copied: a disk that is slower than the store is of no use.
const QUEUED_BYTES: u64 = 64 << 20;

/// The copies of one process.
pub struct LocalCopies {
    home: Home,
    limit_bytes: u64,
    state: Mutex<State>,
    copier: Sender<Task>,
}

#[derive(Default)]
struct State {
    /// By their ids in the cluster.
    jobs: BTreeMap<String, JobFiles>,
    /// Of all copies, also those that are being made.
    bytes: u64,
    /// Of contents in memory that are to be copied.
    queued_bytes: u64,
    attempts: u64,
    /// Whether the latest copy could not be made: it is said once.
    fails: bool,
}

/// Of a job.
struct JobFiles {
    folder: Folder,
    /// The latest that began here.
    attempt: u64,
    /// Whether that may still be running.
    runs: Weak<()>,
    needed: Needed,
    /// By the names that they have in the store.
    files: BTreeMap<String, Held>,
}

#[derive(Clone, Copy)]
struct Held {
    bytes: u64,
    /// Not yet, while it is being made.
    is_there: bool,
}

/// The copies of a job, for one attempt at it. What another one says that is late is not heard.
#[derive(Clone)]
pub struct JobCopies {
    all: Arc<LocalCopies>,
    job: Arc<str>,
    attempt: u64,
    _runs: Arc<()>,
}

impl LocalCopies {
    /// None yet, below a folder that processes of one machine may share. An error: files can't be made there.
    pub fn open(path: &Path, limit_bytes: u64) -> Result<(Arc<Self>, Copier)> {
        let home = Home::claim(path).map_err(|e| {
            Error::invalid(format!("local copies of checkpoints can't be kept in '{}': {e}", path.display()))
                .mend("Give --local-recovery-folder a folder in which files may be made, or --local-recovery never.")
        })?;
        let (copier, tasks) = mpsc::channel();
        let all = Arc::new(Self { home, limit_bytes, state: Mutex::default(), copier });
        Ok((all, Copier::new(tasks)))
    }

    /// An attempt at a job begins here, from this checkpoint of its own: of what was copied of the job, what that names
    /// stays. An error: nothing of it can be copied.
    pub fn begin(self: &Arc<Self>, job: &str, restored: Option<&Manifest>) -> Result<JobCopies> {
        let names = restored.into_iter().flat_map(Manifest::files).filter_map(name_of).map(str::to_owned);
        let needed = Needed::new(restored.map_or(0, |manifest| manifest.epoch), names.collect());
        let runs = Arc::new(());
        let mut state = self.lock();
        state.attempts += 1;
        let attempt = state.attempts;
        match state.jobs.get_mut(job) {
            Some(files) => (files.attempt, files.runs, files.needed) = (attempt, Arc::downgrade(&runs), needed),
            None => {
                let making = |e: io::Error| Error::internal(format!("a folder for local copies of checkpoints: {e}"));
                let (folder, files) = (self.home.folder().map_err(making)?, BTreeMap::new());
                let files = JobFiles { folder, attempt, runs: Arc::downgrade(&runs), needed, files };
                state.jobs.insert(job.to_owned(), files);
            }
        }
        let unneeded = state.remove(job, |needed, name| needed.restored(name));
        drop(state);
        self.tell(Task::Remove(unneeded));
        Ok(JobCopies { all: self.clone(), job: job.into(), attempt, _runs: runs })
    }

    /// A job is over.
    pub fn forget(&self, job: &str) {
        let forgotten = self.lock().forget(job);
        forgotten.into_iter().for_each(|folder| self.tell(Task::RemoveAll(folder)));
    }

    /// The process is about to end: nobody may come to do what a copier is told.
    pub fn end(&self) {
        let jobs = std::mem::take(&mut *self.lock()).jobs;
        drop(jobs);
    }

    /// The jobs of which there are copies.
    pub fn jobs(&self) -> Vec<String> {
        self.lock().jobs.keys().cloned().collect()
    }

    /// What all copies have together.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// If nobody hears it, the process is about to end.
    fn tell(&self, task: Task) {
        _ = self.copier.send(task);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets copies of a job that are not wanted: their paths.
    fn remove(&mut self, job: &str, wanted: impl Fn(&Needed, &str) -> bool) -> Vec<PathBuf> {
        let Some(of) = self.jobs.get_mut(job) else { return Vec::new() };
        let (needed, folder) = (&of.needed, of.folder.path());
        let mut removed = Vec::new();
        of.files.retain(|name, held| {
            let stays = wanted(needed, name);
            if !stays {
                self.bytes = self.bytes.saturating_sub(held.bytes);
                removed.push(folder.join(name));
            }
            stays
        });
        removed
    }

    /// The folder of what there was.
    fn forget(&mut self, job: &str) -> Option<Folder> {
        let of = self.jobs.remove(job)?;
        self.bytes = self.bytes.saturating_sub(of.files.values().map(|held| held.bytes).sum());
        Some(of.folder)
    }

    /// A job that does not run here now.
    fn idle(&self) -> Option<String> {
        let idle = self.jobs.iter().filter(|(_, of)| of.runs.strong_count() == 0 && !of.files.is_empty());
        idle.min_by_key(|(_, of)| of.attempt).map(|(job, _)| job.clone())
    }
}

impl JobCopies {
    /// Whether so many bytes may be copied that are in memory.
    fn has_room(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        bytes <= self.all.limit_bytes && self.all.lock().queued_bytes.saturating_add(bytes) <= QUEUED_BYTES
    }

    /// Copies what was written to the store, or read from there. Returns before that is done.
    fn keep(&self, file: &FileRef, content: Vec<u8>) {
        let Some((name, path)) = self.reserve(file) else { return };
        let mut state = self.all.lock();
        if state.queued_bytes.saturating_add(file.bytes) > QUEUED_BYTES {
            drop(state);
            return self.drop_copy(&name);
        }
        state.queued_bytes += file.bytes;
        drop(state);
        self.all.tell(Task::Copy { of: self.clone(), name, path, content: Content::Bytes(content) });
    }

    /// The same of a local file that does not change any more: a hard link, where that is possible.
    fn keep_file(&self, file: &FileRef, content: &Path) {
        let Some((name, path)) = self.reserve(file) else { return };
        if fs::hard_link(content, &path).is_ok() {
            return self.made(&name, &path, Ok(()));
        }
        match File::open(content) {
            Ok(content) => self.all.tell(Task::Copy { of: self.clone(), name, path, content: Content::File(content) }),
            Err(_) => self.drop_copy(&name),
        }
    }

    /// A file as it is in the store, if there is a sound copy.
    fn read(&self, file: &FileRef) -> Option<Vec<u8>> {
        let (name, path) = self.find(file)?;
        let content = match fs::metadata(&path) {
            Ok(found) if found.len() == file.bytes => fs::read(&path).ok(),
            _ => None,
        };
        let sound = content.filter(|content| checksum::of(content) == file.checksum);
        if sound.is_none() {
            self.damaged(name, &path);
        }
        sound
    }

    /// The same, into a new local file: a hard link to the copy, where that is possible. Whether there was a sound copy.
    fn read_to(&self, file: &FileRef, to: &Path) -> bool {
        let Some((name, path)) = self.find(file) else { return false };
        if fs::hard_link(&path, to).or_else(|_| copy_new(&mut File::open(&path)?, to)).is_err() {
            // Where it is the other file that can't be made, the read from the store says so.
            if !path.exists() {
                self.damaged(name, &path);
            }
            return false;
        }
        let sound = is_sound(to, file).unwrap_or(false);
        if !sound {
            _ = fs::remove_file(to);
            self.damaged(name, &path);
        }
        sound
    }

    /// A task's state of a checkpoint is written: to these files.
    pub(crate) fn written<'a>(&self, task: (u32, u32), epoch: u64, files: impl Iterator<Item = &'a FileRef>) {
        let names = files.filter_map(name_of).map(str::to_owned).collect();
        let mut state = self.all.lock();
        let of = state.jobs.get_mut(&*self.job).filter(|of| of.attempt == self.attempt);
        if let Some(of) = of {
            of.needed.written(task, epoch, names);
        }
    }

    /// A checkpoint is complete: what it and later ones don't need is dropped.
    pub(crate) fn completed(&self, epoch: u64) {
        let mut state = self.all.lock();
        let Some(of) = state.jobs.get_mut(&*self.job).filter(|of| of.attempt == self.attempt) else { return };
        of.needed.completed(epoch);
        let unneeded = state.remove(&self.job, |needed, name| {
            Written::of_file(name).is_some_and(|written| needed.wants(name, written.epoch))
        });
        drop(state);
        self.all.tell(Task::Remove(unneeded));
    }

    /// Room for a copy: its name and where it is to be.
    fn reserve(&self, file: &FileRef) -> Option<(String, PathBuf)> {
        let name = name_of(file)?;
        let mut state = self.all.lock();
        let of = state.jobs.get(&*self.job).filter(|of| of.attempt == self.attempt)?;
        if of.files.contains_key(name) || file.bytes > self.all.limit_bytes {
            return None;
        }
        let path = of.folder.path().join(name);
        while state.bytes.saturating_add(file.bytes) > self.all.limit_bytes {
            // What runs here comes before what does not, which has moved to other workers or is about to begin again.
            let idle = state.idle()?;
            let forgotten = state.forget(&idle);
            forgotten.into_iter().for_each(|folder| self.all.tell(Task::RemoveAll(folder)));
        }
        state.bytes += file.bytes;
        let held = Held { bytes: file.bytes, is_there: false };
        state.jobs.get_mut(&*self.job)?.files.insert(name.to_owned(), held);
        Some((name.to_owned(), path))
    }

    /// Where the copy of a file is.
    fn find<'a>(&self, file: &'a FileRef) -> Option<(&'a str, PathBuf)> {
        let name = name_of(file)?;
        let state = self.all.lock();
        let of = state.jobs.get(&*self.job)?;
        of.files.get(name).filter(|held| held.is_there)?;
        Some((name, of.folder.path().join(name)))
    }

    /// So many bytes do not wait in memory any more.
    fn unqueued(&self, bytes: u64) {
        let mut state = self.all.lock();
        state.queued_bytes = state.queued_bytes.saturating_sub(bytes);
    }

    /// A copy was made, or could not be.
    fn made(&self, name: &str, path: &Path, made: io::Result<()>) {
        let mut state = self.all.lock();
        let held = state.jobs.get_mut(&*self.job).and_then(|of| of.files.get_mut(name));
        match (made, held) {
            (Ok(()), Some(held)) => {
                held.is_there = true;
                state.fails = false;
            }
            // It was not wanted any more.
            (Ok(()), None) => {
                drop(state);
                _ = fs::remove_file(path);
            }
            (Err(_), None) => {}
            (Err(error), Some(_)) => {
                let is_known = std::mem::replace(&mut state.fails, true);
                drop(state);
                self.drop_copy(name);
                if !is_known {
                    let path = path.display();
                    tracing::warn!("the local copy '{path}' can't be made: {error}; a restart reads the store");
                }
            }
        }
    }

    fn damaged(&self, name: &str, path: &Path) {
        tracing::warn!("the local copy '{}' is not what was written; the store is read instead", path.display());
        self.drop_copy(name);
        _ = fs::remove_file(path);
    }

    fn drop_copy(&self, name: &str) {
        let mut state = self.all.lock();
        let dropped = state.jobs.get_mut(&*self.job).and_then(|of| of.files.remove(name));
        state.bytes = state.bytes.saturating_sub(dropped.map_or(0, |held| held.bytes));
    }
}

/// The name of a checkpoint's file in the folder of files. `None`: it is a savepoint's.
fn name_of(file: &FileRef) -> Option<&str> {
    let name = file.path.strip_prefix(FILES)?.strip_prefix('/')?;
    (Written::of_file(name).is_some() && !name.contains('/')).then_some(name)
}

fn is_sound(path: &Path, file: &FileRef) -> io::Result<bool> {
    let mut content = File::open(path)?;
    if content.metadata()?.len() != file.bytes {
        return Ok(false);
    }
    let mut running = checksum::Running::default();
    crate::files::pass(&mut content, |piece| {
        running.update(piece);
        Ok(())
    })?;
    Ok(running.finish() == file.checksum)
}
