//! The checkpoints of one job: begins attempts at it, lists and loads what there is.
//!
//! ```text
//! <location>/<job>/log/00000000000000000017.json   the log: attempts and checkpoints, in the order of their numbers
//!                  files/g3-e000012-...            what checkpoints refer to
//!                  committed/17                    all that the sinks prepared for checkpoint 17 is committed
//! ```

use std::sync::Arc;

use tidemill_core::error::{Error, ErrorKind, Result};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::snapshot::{FileRef, SnapshotFiles};

use crate::blobs::{self, BlobError, Blobs, Places, PutNew, Trouble};
use crate::files::{self, Files};
use crate::journal::{Append, Journal};
use crate::log::{self, Entry, Event, Origin, Resume, Start, Stored};
use crate::manifest::Manifest;
use crate::owner::{Owner, Restored, SnapshotWriter};
use crate::savepoint::{self, Savepoint};
use tidemill_core::nonce::{Nonces, random_nonces};

/// How often a begin is tried when another attempt is faster. Each time, that one has progressed.
const BEGIN_ATTEMPTS: u32 = 32;

/// The checkpoints of one job. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    journal: Arc<Journal>,
    /// Where savepoints are.
    places: Places,
}

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number in the log.
    pub number: u64,
    /// What it keeps.
    pub manifest: Manifest,
    /// Whether what its sinks prepared is known to be committed.
    pub committed: bool,
}

/// The answer of a begin.
pub enum Begun {
    /// Run the job.
    Run(Box<Owner>),
    /// The attempt before ended the job with this checkpoint, but perhaps did not commit it: commit it, mark it
    /// ([`Store::mark_committed`]). There is nothing to run.
    Commit(Checkpoint),
    /// The attempt before stopped the job with the savepoint there. There is nothing to run.
    Over(String),
}

impl Store {
    /// The checkpoints of a job below a location: a folder, or a URL. Nothing is read or written yet.
    pub fn open(location: &str, job: &str) -> Result<Self> {
        Ok(Self::with(blobs::at(&Self::place(location, job))?, job, random_nonces()))
    }

    /// Where those of a job are, below a location.
    pub fn place(location: &str, job: &str) -> String {
        blobs::at_path(location, &folder_name(job))
    }

    /// Those at a place made for the job.
    pub fn with(blobs: Arc<dyn Blobs>, job: &str, nonces: Nonces) -> Self {
        Self { journal: Arc::new(Journal { blobs, job: job.to_owned(), nonces }), places: Arc::new(blobs::at) }
    }

    /// The same, with savepoints where this finds them.
    pub fn with_places(self, places: Places) -> Self {
        Self { places, ..self }
    }

    /// Begins an attempt at the job. Every attempt before is fenced from then on.
    ///
    /// In this order: the store is tried; the newest entry is read; what to go on from is read; the next number is
    /// claimed. If it is another's, everything again: an attempt that was about to die may have completed a checkpoint.
    pub fn begin(&self, start: &Start, now_ms: i64) -> Result<Begun> {
        self.begin_as(|| Ok(start.clone()), now_ms)
    }

    /// The same, where others may begin the job too, and what to start from follows from whether they did. It is asked
    /// again when the newest entry was read: who answers by something that others write after they began and before they
    /// run can't be late, since what they do after that takes the number.
    pub fn begin_as(&self, start: impl Fn() -> Result<Start>, now_ms: i64) -> Result<Begun> {
        self.probe()?;
        Failpoint::BeginProbed.reach();
        for _ in 0..BEGIN_ATTEMPTS {
            let newest = self.newest(&start()?)?;
            let entry = newest.as_ref().and_then(|newest| newest.stored.as_ref());
            let committed = self.ended_and_committed(entry)?;
            let from = match log::resume(&start()?, entry.map(|stored| &stored.entry), committed) {
                Resume::Commit(number) => return self.load(number).map(Begun::Commit),
                Resume::Over(savepoint) => return Ok(Begun::Over(savepoint)),
                Resume::Run(from) => from,
            };
            let restored = from.clone().map(|origin| self.restore(origin)).transpose()?;
            let begin = Entry {
                number: newest.as_ref().map_or(0, |newest| newest.number) + 1,
                generation: newest.as_ref().map_or(0, |newest| newest.generation) + 1,
                previous: newest.map(|newest| newest.checksum),
                nonce: (self.journal.nonces)(),
                event: Event::Begin { from, at_ms: now_ms },
            };
            match self.journal.append(&begin) {
                Append::Won(stored) => return self.own(stored, restored).map(|owner| Begun::Run(Box::new(owner))),
                Append::Lost(_) | Append::Passed => {}
                Append::Failed(error) | Append::InDoubt(error) => return Err(self.named(error)),
            }
        }
        let message = format!("job '{}': others begin it all the time", self.journal.job);
        Err(Error::new(ErrorKind::Retry, message).mend("see that only one process runs the job"))
    }

    /// The generation of the newest attempt. `None`: there was none.
    pub fn newest_generation(&self) -> Result<Option<u64>> {
        Ok(self.newest(&Start::GoOn)?.map(|newest| newest.generation))
    }

    /// The checkpoints that the newest one follows from, newest first.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        let Some(newest) = self.journal.numbers()?.last().copied() else { return Ok(Vec::new()) };
        let lineage = self.journal.lineage(newest, usize::MAX, false)?;
        lineage.into_iter().map(|(number, manifest)| self.checkpoint(number, manifest)).collect()
    }

    /// A checkpoint by its number.
    pub fn load(&self, number: u64) -> Result<Checkpoint> {
        self.checkpoint(number, self.journal.manifest(number)?)
    }

    /// Where the files of checkpoints are read.
    pub fn files(&self) -> Arc<dyn SnapshotFiles> {
        Arc::new(Files::read_only(Arc::clone(&self.journal.blobs), "a checkpoint that is complete"))
    }

    /// Where the files are read of what an attempt goes on from.
    pub fn files_of(&self, origin: &Origin) -> Result<Arc<dyn SnapshotFiles>> {
        match origin {
            Origin::Checkpoint(_) => Ok(self.files()),
            Origin::Savepoint(location) => self.savepoint(location).map(|savepoint| savepoint.files),
        }
    }

    /// Whether they are elsewhere, where reading takes longer than from the local disk.
    pub fn is_remote(&self) -> bool {
        self.blobs().is_remote()
    }

    /// Where the snapshots of an attempt are written.
    pub fn writer(&self, generation: u64) -> SnapshotWriter {
        SnapshotWriter::new(Arc::clone(&self.journal), generation)
    }

    /// Notes that everything that the sinks prepared for a checkpoint is committed.
    pub fn mark_committed(&self, number: u64) -> Result<()> {
        self.journal.mark_committed(number)
    }

    /// Reads a checkpoint and all its files, and says what is wrong with it.
    pub fn verify(&self, number: u64) -> Result<()> {
        let manifest = self.journal.manifest(number)?;
        manifest.files().try_for_each(|file| files::verify(&*self.journal.blobs, file))
    }

    /// The newest checkpoint before `number` of which every file is as it was written. Reads them all.
    pub fn newest_usable_before(&self, number: u64) -> Result<Option<u64>> {
        let older = self.journal.numbers()?.into_iter().rev().filter(|older| *older < number);
        Ok(older.into_iter().find(|older| self.verify(*older).is_ok()))
    }

    /// Adds to the error of an unusable checkpoint which older one is usable.
    pub fn with_usable_before(&self, number: u64, error: Error) -> Error {
        match self.newest_usable_before(number) {
            Ok(Some(older)) => error.mend(format!(
                "put the file back, or start from checkpoint {older}, the newest one that is whole: what sinks wrote since \
                 is then written again"
            )),
            _ => error.mend("put the file back, or start from a savepoint or anew: no older checkpoint is whole"),
        }
    }

    pub(crate) fn blobs(&self) -> &dyn Blobs {
        &*self.journal.blobs
    }

    /// The place of a savepoint.
    pub(crate) fn place_of(&self, location: &str) -> Result<Arc<dyn Blobs>> {
        (self.places)(location)
    }

    fn savepoint(&self, location: &str) -> Result<Savepoint> {
        savepoint::read_at(location, self.place_of(location)?)
    }

    fn checkpoint(&self, number: u64, manifest: Manifest) -> Result<Checkpoint> {
        let committed = manifest.committables.is_empty() || self.journal.is_committed(number)?;
        Ok(Checkpoint { number, manifest, committed })
    }

    /// Tries what everything rests on: of two puts of the same name, the second loses.
    fn probe(&self) -> Result<()> {
        let blobs = self.blobs();
        let path = format!("probe/{}", (self.journal.nonces)());
        let answers = (blobs.put_new(&path, b"1"), blobs.put_new(&path, b"2"));
        let _ = blobs.delete(&path);
        match answers {
            (Err(error), _) | (_, Err(error)) => Err(self.named(error.into())),
            (_, Ok(PutNew::Exists)) => Ok(()),
            (_, Ok(PutNew::Done)) => {
                let message = format!("'{}' lets a second writer replace what a first one wrote", blobs.location());
                let error = BlobError { trouble: Trouble::Unfit, in_doubt: false, message };
                Err(self.named(error.into()))
            }
        }
    }

    fn newest(&self, start: &Start) -> Result<Option<Newest>> {
        // The markers first: an entry is there before its marker, and when it is deleted there are newer entries.
        let marked = self.journal.marked()?.into_iter().max();
        let numbers = self.journal.numbers()?;
        if !matches!(start, Start::Anew | Start::At(_))
            && let Some(gone) = marked.filter(|marked| numbers.last().is_none_or(|newest| newest < marked))
        {
            return Err(self.named(self.journal.gone(gone)));
        }
        let Some(number) = numbers.last().copied() else { return Ok(None) };
        let error = match self.journal.entry(number) {
            Ok(Some(stored)) => {
                let (generation, checksum) = (stored.entry.generation, stored.checksum.clone());
                return Ok(Some(Newest { number, generation, checksum, stored: Some(stored) }));
            }
            // Deleted since it was listed, so others have come further.
            Ok(None) => return self.newest(start),
            Err(error) => error,
        };
        if !matches!(start, Start::Anew | Start::At(_)) || error.kind() == ErrorKind::Retry {
            return Err(self.with_usable_before(number, self.named(error)));
        }
        let Some(checksum) = self.journal.checksum(number)? else { return self.newest(start) };
        // It can't be read, and need not be: each entry is of the generation before or of the next one.
        let readable = numbers.iter().rev().find_map(|n| Some((*n, self.journal.entry(*n).ok()??)));
        let generation = readable.map_or(number, |(n, stored)| stored.entry.generation + (number - n));
        Ok(Some(Newest { number, generation, checksum, stored: None }))
    }

    fn ended_and_committed(&self, newest: Option<&Stored>) -> Result<bool> {
        match newest.map(|stored| (&stored.entry.event, stored.entry.number)) {
            Some((Event::Checkpoint(manifest), number)) => {
                Ok(manifest.committables.is_empty() || self.journal.is_committed(number)?)
            }
            _ => Ok(false),
        }
    }

    fn restore(&self, origin: Origin) -> Result<Restored> {
        match &origin {
            Origin::Savepoint(location) => {
                let savepoint = self.savepoint(location)?;
                Ok(Restored { origin, manifest: savepoint.manifest, committed: true, files: savepoint.files })
            }
            Origin::Checkpoint(number) => {
                let loaded = self.load(*number);
                let Checkpoint { manifest, committed, .. } =
                    loaded.map_err(|error| self.with_usable_before(*number, error))?;
                Ok(Restored { origin, manifest, committed, files: self.files() })
            }
        }
    }

    /// The owner after its begin was won. What it goes on from must still be there: while another attempt went on, it
    /// may have been deleted.
    fn own(&self, begin: Stored, restored: Option<Restored>) -> Result<Owner> {
        Failpoint::BeginLogged.reach();
        if let Some(Origin::Checkpoint(number)) = restored.as_ref().map(|restored| &restored.origin) {
            self.journal.manifest(*number)?;
        }
        Ok(Owner::new(Arc::clone(&self.journal), begin, restored))
    }

    fn named(&self, error: Error) -> Error {
        error.prefixed(&format!("job '{}', the store of its checkpoints", self.journal.job))
    }
}

/// The newest entry of the log.
struct Newest {
    number: u64,
    generation: u64,
    checksum: String,
    /// `None`: it can't be read.
    stored: Option<Stored>,
}

/// Copies a checkpoint's files elsewhere; see [`savepoint`].
pub(crate) fn copy_files(
    store: &Store,
    manifest: &mut Manifest,
    to: &dyn Blobs,
    mut path: impl FnMut(&FileRef) -> String,
) -> Result<()> {
    manifest.files_mut().try_for_each(|file| {
        *file = files::copy(store.blobs(), file, to, path(file))?;
        Failpoint::SavepointCopied.reach();
        Ok(())
    })
}

/// A job's name as the name of a folder, and two jobs never the same.
fn folder_name(job: &str) -> String {
    let plain = |i: usize, b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || (b == b'.' && i > 0);
    let encoded = job.bytes().enumerate().map(|(i, b)| match plain(i, b) {
        true => char::from(b).to_string(),
        false => format!("%{b:02X}"),
    });
    encoded.collect()
}
