//! Where the part files of one subtask go: what a folder and a bucket have in common.
//!
//! Life of a part: created for its first row, written a piece at a time, closed, and named by the next `prepare`, after
//! which it belongs to the committable. A part that is dropped before is of no use to anyone, and goes.

use tidemill_core::connector::Committable;
use tidemill_core::error::Result;
use tidemill_core::ids::Epoch;

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
