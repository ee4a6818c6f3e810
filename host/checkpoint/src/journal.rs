//! The log where it is kept: appends an entry, whatever happens to the answers, and reads entries back.

use std::sync::Arc;

use tidemill_core::error::{Error, ErrorKind, Result};

use crate::blobs::{BlobError, Blobs, PutNew, at_path, read_all};
use crate::log::{self, Before, Entry, Event, Stored};
use crate::manifest::{Manifest, ManifestKind};
use crate::sealed::Damage;
use tidemill_core::nonce::Nonces;

const LOG: &str = "log";
const COMMITTED: &str = "committed";

/// How often an append is tried while answers are lost. Each of them was repeated already by what keeps the bytes.
const APPEND_ATTEMPTS: u32 = 4;

/// The log of a job.
pub(crate) struct Journal {
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) job: String,
    pub(crate) nonces: Nonces,
}

/// The answer of an append.
pub(crate) enum Append {
    /// The number is ours.
    Won(Stored),
    /// It is another's.
    Lost(Stored),
    /// The log has moved on so far that the number was deleted already.
    Passed,
    /// Not written, and it will not be.
    Failed(Error),
    /// Perhaps written: nobody answers.
    InDoubt(Error),
}

impl Journal {
    /// Writes an entry after the one with `entry.previous`. At most one of all writers of a number wins.
    pub(crate) fn append(&self, entry: &Entry) -> Append {
        let path = entry_path(entry.number);
        let content = match entry.encode() {
            Ok(content) => content,
            Err(e) => return Append::Failed(Error::internal(format!("encoding '{path}': {e}"))),
        };
        let mut doubt = None;
        for _ in 0..APPEND_ATTEMPTS {
            match self.blobs.put_new(&path, &content) {
                Ok(PutNew::Done) => return self.confirm(entry, &content),
                Ok(PutNew::Exists) => {}
                Err(e) if !e.in_doubt && doubt.is_none() => return Append::Failed(e.into()),
                Err(e) => doubt = Some(e),
            }
            // The answer may have been lost and the request repeated; then what exists is our own.
            match read_all(&*self.blobs, &path) {
                Ok(Some(found)) if found == content => return self.confirm(entry, &content),
                Ok(Some(found)) => {
                    return match log::decode(entry.number, &found) {
                        Ok(stored) => Append::Lost(stored),
                        Err(damage) => Append::InDoubt(self.damaged(entry.number, &damage)),
                    };
                }
                // Not there (yet): the same bytes again. If both arrive, the later one finds the earlier.
                Ok(None) => {}
                Err(e) => doubt = Some(BlobError { in_doubt: true, ..e }),
            }
        }
        Append::InDoubt(doubt.map_or_else(
            || Error::new(ErrorKind::Retry, format!("'{}' can be neither written nor read", self.whole(&path))),
            Error::from,
        ))
    }

    /// A number is also free when it was deleted. Entries are deleted oldest first, so the one before it is gone then,
    /// or is not the one that its writer knows.
    fn confirm(&self, entry: &Entry, content: &[u8]) -> Append {
        let won = match log::decode(entry.number, content) {
            Ok(stored) => Append::Won(stored),
            Err(damage) => return Append::InDoubt(self.damaged(entry.number, &damage)),
        };
        let before = match (&entry.previous, entry.number.checked_sub(1)) {
            (Some(_), Some(before)) => self.content(before),
            _ => return self.confirm_first(won),
        };
        match before {
            Ok(Some(found)) if Some(crate::checksum::of(&found)) == entry.previous => won,
            Ok(_) => {
                let _ = self.delete(entry.number);
                Append::Passed
            }
            Err(e) => Append::InDoubt(e),
        }
    }

    /// The first entry has none before it, so the one after it tells: it must not be there, or follow from this one.
    fn confirm_first(&self, won: Append) -> Append {
        let Append::Won(first) = &won else { return won };
        let follows = self.numbers().and_then(|numbers| match numbers.last() {
            Some(newest) if *newest > 1 => {
                let second = self.entry(2)?;
                Ok(second.is_some_and(|second| second.entry.previous.as_ref() == Some(&first.checksum)))
            }
            _ => Ok(true),
        });
        match follows {
            Ok(true) => won,
            Ok(false) => {
                let _ = self.delete(1);
                Append::Passed
            }
            Err(e) => Append::InDoubt(e),
        }
    }

    /// The numbers of all entries, ascending.
    pub(crate) fn numbers(&self) -> Result<Vec<u64>> {
        let mut numbers: Vec<u64> = self.blobs.list(LOG)?.iter().filter_map(|l| log::number(&l.name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The entry with this number. `None`: there is none.
    pub(crate) fn entry(&self, number: u64) -> Result<Option<Stored>> {
        let Some(content) = self.content(number)? else { return Ok(None) };
        log::decode(number, &content).map(Some).map_err(|damage| self.damaged(number, &damage))
    }

    /// The checksum of an entry, readable or not.
    pub(crate) fn checksum(&self, number: u64) -> Result<Option<String>> {
        Ok(self.content(number)?.map(|content| crate::checksum::of(&content)))
    }

    fn content(&self, number: u64) -> Result<Option<Vec<u8>>> {
        Ok(read_all(&*self.blobs, &entry_path(number))?)
    }

    /// The checkpoint with this number.
    pub(crate) fn manifest(&self, number: u64) -> Result<Manifest> {
        match self.entry(number)?.map(|stored| stored.entry.event) {
            Some(Event::Checkpoint(manifest)) => Ok(manifest),
            Some(_) => Err(self.no_checkpoint(number, "that number is something else")),
            None => Err(self.no_checkpoint(number, "there is none, or not any more")),
        }
    }

    /// The checkpoints that led to an entry, newest first, up to `limit` without counting savepoints. Ends early where one can't be read, if
    /// `lenient`.
    pub(crate) fn lineage(&self, from: u64, limit: usize, lenient: bool) -> Result<Vec<(u64, Manifest)>> {
        let mut found = Vec::new();
        let mut next = Some(Before::Jump(from));
        let mut counted = 0;
        while let Some(step) = next.filter(|_| counted < limit) {
            let (number, checksum) = match step {
                Before::Entry(number, checksum) => (number, Some(checksum)),
                Before::Jump(number) => (number, None),
                Before::Nothing => break,
            };
            let stored = match self.entry(number) {
                Ok(Some(stored)) if checksum.is_none_or(|checksum| checksum == stored.checksum) => stored,
                Ok(_) => break,
                Err(_) if lenient => break,
                Err(e) => return Err(e),
            };
            next = Some(log::before(&stored.entry));
            if let Event::Checkpoint(manifest) = stored.entry.event {
                counted += usize::from(manifest.kind != ManifestKind::Savepoint);
                found.push((number, manifest));
            }
        }
        Ok(found)
    }

    pub(crate) fn delete(&self, number: u64) -> Result<()> {
        Ok(self.blobs.delete(&entry_path(number))?)
    }

    /// Whether everything that a checkpoint's sinks prepared is known to be committed.
    pub(crate) fn is_committed(&self, number: u64) -> Result<bool> {
        Ok(self.blobs.open(&committed_path(number))?.is_some())
    }

    /// Notes that it is. Noting it again is no error.
    pub(crate) fn mark_committed(&self, number: u64) -> Result<()> {
        match self.blobs.put_new(&committed_path(number), b"") {
            Ok(PutNew::Done | PutNew::Exists) => Ok(()),
            Err(e) if e.in_doubt && self.is_committed(number)? => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The numbers of all committed markers.
    pub(crate) fn marked(&self) -> Result<Vec<u64>> {
        Ok(self.blobs.list(COMMITTED)?.iter().filter_map(|listed| listed.name.parse().ok()).collect())
    }

    pub(crate) fn unmark(&self, number: u64) -> Result<()> {
        Ok(self.blobs.delete(&committed_path(number))?)
    }

    fn damaged(&self, number: u64, damage: &Damage) -> Error {
        let mend = match damage {
            Damage::Newer(_) => "use the newer version of Tidemill",
            _ => "start from an older checkpoint or a savepoint, or anew",
        };
        Error::invalid(format!("'{}' can't be read: {damage}", self.whole(&entry_path(number)))).mend(mend)
    }

    /// The error of an entry that was deleted by someone else: going on from the one before would do again what the
    /// sinks have committed for it.
    pub(crate) fn gone(&self, number: u64) -> Error {
        let (entry, marker) = (self.whole(&entry_path(number)), self.whole(&committed_path(number)));
        Error::invalid(format!("'{entry}' is gone, although '{marker}' says that this checkpoint was committed"))
            .mend("put the file back")
    }

    fn no_checkpoint(&self, number: u64, why: &str) -> Error {
        Error::invalid(format!("job '{}' has no checkpoint {number} in '{}': {why}", self.job, self.blobs.location()))
            .mend("list the checkpoints and choose one of them")
    }

    fn whole(&self, path: &str) -> String {
        at_path(self.blobs.location(), path)
    }
}

fn entry_path(number: u64) -> String {
    format!("{LOG}/{}", log::name(number))
}

fn committed_path(number: u64) -> String {
    format!("{COMMITTED}/{number}")
}
