//! An attempt at a job that owns it until another begins: claims checkpoints, and deletes what is not needed any more.
//!
//! Invariants: what an owner claimed is claimed for good, and once it is fenced it claims nothing more. A checkpoint is
//! not claimed before the one before it is committed: recovery looks at the newest one only.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemill_core::error::{Error, ErrorKind, Result};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::Epoch;
use tidemill_core::snapshot::{FileRef, SnapshotFiles};

use crate::files::Files;
use crate::garbage::{Inventory, Written, garbage};
use crate::journal::{Append, Journal};
use crate::local::{JobCopies, LocalFiles};
use crate::log::{Entry, Event, Origin, Stored};
use crate::manifest::{Manifest, ManifestKind};

/// The folder of snapshots, below the job's.
pub(crate) const FILES: &str = "files";

/// What an attempt goes on from.
#[derive(Clone)]
pub struct Restored {
    /// Which checkpoint or savepoint it is.
    pub origin: Origin,
    /// What it keeps.
    pub manifest: Manifest,
    /// Whether what its sinks prepared is known to be committed. If not, it has to be committed (again) and marked
    /// before anything runs.
    pub committed: bool,
    /// Where its files are read.
    pub files: Arc<dyn SnapshotFiles>,
}

/// An attempt at a job. One at a time owns it: whoever began last.
pub struct Owner {
    journal: Arc<Journal>,
    generation: u64,
    restored: Option<Restored>,
    /// Its own last entry.
    last: Stored,
    /// Files that the next manifest may name again: those of the newest checkpoint that is not a savepoint.
    kept: BTreeSet<String>,
    /// When that one was written.
    newest: Option<Written>,
    /// The checkpoint that has to be committed before another is claimed.
    uncommitted: Option<u64>,
    standing: Standing,
}

/// Where the snapshots of one attempt at a job are written, by any process that takes part in it. Clones are the same
/// writer.
#[derive(Clone)]
pub struct SnapshotWriter {
    journal: Arc<Journal>,
    generation: Arc<AtomicU64>,
    copies: Option<JobCopies>,
}

impl SnapshotWriter {
    pub(crate) fn new(journal: Arc<Journal>, generation: u64) -> Self {
        Self { journal, generation: Arc::new(AtomicU64::new(generation)), copies: None }
    }

    /// It also keeps copies, on the local disk, of what is written.
    pub fn keeping(self, copies: Option<JobCopies>) -> Self {
        Self { copies, ..self }
    }

    /// What runs is taken over by the attempt of this generation: what is frozen from now on is written in its name.
    pub fn taken_over(&self, generation: u64) {
        self.generation.store(generation, Ordering::Release);
    }

    /// Those of an epoch.
    pub fn files(&self, epoch: Epoch) -> Arc<dyn SnapshotFiles> {
        let written = Written { generation: self.generation.load(Ordering::Acquire), epoch: epoch.0 };
        let nonces = Arc::clone(&self.journal.nonces);
        let names = move |hint: &str| Ok(format!("{FILES}/{}", written.file_name(hint, &nonces())));
        let files = Arc::new(Files { blobs: Arc::clone(&self.journal.blobs), names: Box::new(names) });
        match &self.copies {
            Some(copies) => Arc::new(LocalFiles { store: files, copies: Some(copies.clone()), reads: Arc::default() }),
            None => files,
        }
    }

    /// Of a task, by node and index, what a checkpoint keeps is written: in these files, of which some may be of earlier
    /// checkpoints.
    pub fn written<'a>(&self, task: (u32, u32), epoch: Epoch, files: impl Iterator<Item = &'a FileRef>) {
        if let Some(copies) = &self.copies {
            copies.written(task, epoch.0, files);
        }
    }

    /// A checkpoint is complete.
    pub fn completed(&self, epoch: u64) {
        self.copies.iter().for_each(|copies| copies.completed(epoch));
    }
}

enum Standing {
    Owns,
    /// By a generation, if it is known which.
    Fenced(Option<u64>),
    /// A claim may have been won or not.
    InDoubt(Error),
}

/// The answer of a claim.
#[derive(Debug)]
#[must_use]
pub enum Claim {
    /// The checkpoint is complete, with this number: commit what the sinks prepared, and mark it.
    Won(u64),
    /// Another attempt owns the job, of this generation if that is known. Stop at once; commit nothing.
    Fenced {
        /// The other's generation.
        by: Option<u64>,
    },
    /// Whether the checkpoint is complete is not known, because the store does not answer. Stop, commit nothing and
    /// begin again: the log will tell.
    InDoubt(Error),
}

/// Files that are deleted with one request, where the store can.
const DELETED_AT_ONCE: usize = 100;

/// What garbage collection deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Log entries.
    pub entries: usize,
    /// Files.
    pub files: usize,
}

impl Owner {
    /// After its `begin` was won. `last` is that entry.
    pub(crate) fn new(journal: Arc<Journal>, last: Stored, restored: Option<Restored>) -> Self {
        let own = restored.as_ref().and_then(|restored| match restored.origin {
            Origin::Checkpoint(number) => Some((number, restored)),
            Origin::Savepoint(_) => None,
        });
        Self {
            generation: last.entry.generation,
            kept: own.map(|(_, restored)| paths(&restored.manifest)).unwrap_or_default(),
            newest: own.map(|(_, restored)| Written::from(&restored.manifest)),
            uncommitted: own.filter(|(_, restored)| !restored.committed).map(|(number, _)| number),
            standing: Standing::Owns,
            journal,
            restored,
            last,
        }
    }

    /// Which attempt it is.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What it goes on from.
    pub fn restored(&self) -> Option<&Restored> {
        self.restored.as_ref()
    }

    /// Whether what an attempt of this generation runs may go on in the name of this one: no other was in between, and
    /// the newest entry is not a savepoint, whose files are no base for what comes after it.
    pub fn may_take_over(&self, generation: u64) -> bool {
        let savepoint = self.restored.as_ref().is_some_and(|restored| {
            matches!(restored.origin, Origin::Checkpoint(_)) && restored.manifest.kind == ManifestKind::Savepoint
        });
        self.generation == generation + 1 && !savepoint
    }

    /// The checkpoint that has to be committed (and marked) before the next one is claimed.
    pub fn uncommitted(&self) -> Option<u64> {
        self.uncommitted
    }

    /// Where the snapshots of this attempt are written.
    pub fn writer(&self) -> SnapshotWriter {
        SnapshotWriter::new(Arc::clone(&self.journal), self.generation)
    }

    /// Where the snapshots of an epoch are written.
    pub fn files(&self, epoch: Epoch) -> Arc<dyn SnapshotFiles> {
        self.writer().files(epoch)
    }

    /// Makes a checkpoint complete, after everything it names was written. An error: it is not complete and will not
    /// be, but the attempt may go on.
    pub fn claim(&mut self, manifest: Manifest) -> Result<Claim> {
        if let Some(answer) = self.may_not_claim() {
            return Ok(answer);
        }
        self.check(&manifest)?;
        // Its files are its own: the next checkpoint goes on from the one before.
        let savepoint = manifest.kind == ManifestKind::Savepoint;
        let (kept, newest, uncommitted) =
            (paths(&manifest), Written::from(&manifest), !manifest.committables.is_empty());
        let in_flight = manifest.in_flight_bytes() > 0;
        Failpoint::ClaimDue.reach();
        let claim = self.append(Event::Checkpoint(manifest))?;
        if let Claim::Won(number) = claim {
            if in_flight {
                Failpoint::InFlightClaimed.reach();
            }
            Failpoint::ClaimWon.reach();
            if !savepoint {
                self.kept = kept;
                self.newest = Some(newest);
            }
            self.uncommitted = uncommitted.then_some(number);
        }
        Ok(claim)
    }

    /// Ends the job, after it was stopped with a checkpoint and the savepoint of that was written. Only an attempt that
    /// owns the job can: so nobody goes on with it of whom it was said that it is over.
    pub fn saved(&mut self, savepoint: &str, now_ms: i64) -> Result<Claim> {
        if let Some(answer) = self.may_not_claim() {
            return Ok(answer);
        }
        self.check_committed()?;
        let from = self.last.entry.head();
        self.append(Event::Saved { from, savepoint: savepoint.to_owned(), at_ms: now_ms })
    }

    /// Gives the job up: started again, it starts anew.
    pub fn cancel(&mut self, now_ms: i64) -> Result<Claim> {
        if let Some(answer) = self.may_not_claim() {
            return Ok(answer);
        }
        self.check_committed()?;
        let from = self.last.entry.head();
        self.append(Event::Cancelled { from, at_ms: now_ms })
    }

    /// Notes that everything that the sinks prepared for a checkpoint is committed.
    pub fn mark_committed(&mut self, number: u64) -> Result<()> {
        self.journal.mark_committed(number)?;
        if self.uncommitted == Some(number) {
            self.uncommitted = None;
        }
        Ok(())
    }

    /// Deletes what none of the newest `retained` checkpoints needs (at least one is retained). An error leaves
    /// everything that is needed; the next call goes on.
    pub fn collect_garbage(&self, retained: usize) -> Result<Collected> {
        let journal = &*self.journal;
        let log = journal.numbers()?;
        let number = self.last.entry.number;
        let owns = matches!(self.standing, Standing::Owns) && log.last() == Some(&number);
        if !owns || self.uncommitted.is_some() {
            return Ok(Collected::default());
        }
        // The files first: those of a checkpoint that is claimed meanwhile are not in the list.
        let files = journal.blobs.list(FILES)?.into_iter().map(|listed| listed.name).collect();
        let inventory = Inventory { log, committed: journal.marked()?, files };
        let retained = journal.lineage(number, retained.max(1), false)?;
        let garbage = garbage(&inventory, &retained, FILES);
        for number in &garbage.log {
            journal.delete(*number)?;
            Failpoint::EntryDeleted.reach();
        }
        for number in &garbage.committed {
            journal.unmark(*number)?;
            Failpoint::MarkerDeleted.reach();
        }
        let files: Vec<String> = garbage.files.iter().map(|name| format!("{FILES}/{name}")).collect();
        for some in files.chunks(DELETED_AT_ONCE) {
            journal.blobs.delete_all(some)?;
            Failpoint::FileDeleted.reach();
        }
        Ok(Collected { entries: garbage.log.len(), files: garbage.files.len() })
    }

    fn may_not_claim(&self) -> Option<Claim> {
        match &self.standing {
            Standing::Owns => None,
            Standing::Fenced(by) => Some(Claim::Fenced { by: *by }),
            Standing::InDoubt(error) => Some(Claim::InDoubt(error.clone())),
        }
    }

    fn append(&mut self, event: Event) -> Result<Claim> {
        let number = self.last.entry.number + 1;
        let entry = Entry {
            number,
            generation: self.generation,
            previous: Some(self.last.checksum.clone()),
            nonce: (self.journal.nonces)(),
            event,
        };
        let claim = match self.journal.append(&entry) {
            Append::Won(stored) => {
                self.last = stored;
                return Ok(Claim::Won(number));
            }
            Append::Failed(error) => return Err(error),
            Append::Lost(other) => Standing::Fenced(Some(other.entry.generation)),
            Append::Passed => Standing::Fenced(None),
            Append::InDoubt(error) => Standing::InDoubt(error),
        };
        self.standing = claim;
        self.may_not_claim().ok_or_else(|| Error::internal("a lost claim left the job owned"))
    }

    /// What a manifest must be, checked where it is written.
    fn check(&self, manifest: &Manifest) -> Result<()> {
        let wrong = |what: String| Err(Error::internal(format!("job '{}': a checkpoint {what}", self.journal.job)));
        self.check_committed()?;
        let written = Written::from(manifest);
        if manifest.job != self.journal.job || manifest.generation != self.generation {
            return wrong(format!("of job '{}', generation {}, is claimed", manifest.job, manifest.generation));
        }
        if self.newest.is_some_and(|newest| written <= newest) {
            return wrong(format!("of epoch {} is claimed after one of a later epoch", manifest.epoch));
        }
        for file in manifest.files() {
            let name = file.path.strip_prefix(FILES).and_then(|path| path.strip_prefix('/'));
            let Some(at) = name.and_then(Written::of_file) else {
                return wrong(format!("names '{}', which is not a file of the job", file.path));
            };
            // What the newest checkpoint does not keep and what is older than it may be deleted at any time.
            let may_be_garbage = self.newest.is_some_and(|newest| at < newest) && !self.kept.contains(&file.path);
            if may_be_garbage || at > written {
                return wrong(format!("names '{}', which the one before it did not keep", file.path));
            }
        }
        Ok(())
    }

    fn check_committed(&self) -> Result<()> {
        let Some(number) = self.uncommitted else { return Ok(()) };
        let message = format!("job '{}': checkpoint {number} is not committed yet", self.journal.job);
        Err(Error::new(ErrorKind::Internal, message))
    }
}

fn paths(manifest: &Manifest) -> BTreeSet<String> {
    manifest.files().map(|file| file.path.clone()).collect()
}
