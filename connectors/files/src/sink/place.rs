//! Where the part files of one subtask go: what a folder and a bucket have in common.
//!
//! Life of a part: created for its first row, written a piece at a time, closed, and named by the next `prepare`, after
//! which it belongs to the committable. A part that is dropped before is of no use to anyone, and goes.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemill_core::connector::Committable;
use tidemill_core::error::{Error, Result};
use tidemill_core::ids::Epoch;
use tidemill_core::keys::hash_row;

use super::PREFIX;

/// Makes the parts of one subtask. Its calls may block: they come from a thread of the sink's own.
pub(super) trait Place: Send + 'static {
    /// A part file in the making.
    type Part: Send;

    /// How many bytes of text are gathered before they are written. `many`: for each of many open files.
    fn piece_bytes(&self, many: bool) -> usize;

    /// A new part, of a partition's folder; without partitions that is empty.
    fn create(&mut self, folder: &str) -> Result<Self::Part>;

    /// Writes the next piece, at least [`Place::piece_bytes`] long, or part of it; what is left is written later.
    fn write(&mut self, part: &mut Self::Part, text: &mut Vec<u8>) -> Result<()>;

    /// How many bytes were written.
    fn written(part: &Self::Part) -> u64;

    /// Writes what is left; nothing comes after it.
    fn close(&mut self, part: &mut Self::Part, text: Vec<u8>) -> Result<()>;

    /// Closed parts are durable when this returns, and the committable makes them visible. `None`: there are none.
    fn prepare(&mut self, epoch: Epoch, parts: Vec<Self::Part>) -> Result<Option<Committable>>;
}

/// How the names begin that an attempt at a job gives before anything is committed. Jobs that share a place leave each
/// other's alone.
pub(super) fn attempt_prefix(job: &str, attempt: u64) -> String {
    format!("{}{attempt}-", job_prefix(job))
}

/// Which attempt at this job gives such a name, if one does.
pub(super) fn attempt_of(job: &str, name: &str) -> Option<u64> {
    name.strip_prefix(&job_prefix(job))?.split_once('-')?.0.parse().ok()
}

fn job_prefix(job: &str) -> String {
    format!("{PREFIX}{:016x}-", hash_row(job.as_bytes()))
}

/// What a `prepare` came to, as it goes into a checkpoint.
pub(super) fn committable(prepared: &impl Serialize) -> Result<Committable> {
    serde_json::to_vec(prepared).map(Committable).map_err(|e| Error::internal(e.to_string()))
}

/// And back; `of`: what the sink writes to.
pub(super) fn read<T: DeserializeOwned>(committable: &Committable, of: &str) -> Result<T> {
    serde_json::from_slice(&committable.0)
        .map_err(|e| Error::invalid(format!("a committable of the files sink is damaged, or not of {of}: {e}")))
}
