//! The contract of an operator: a state machine that takes elements and hands on batches, and never waits.
//!
//! An operator subtask is driven by the slice of its slot (`tidemill-dataflow`): elements stand in a queue before it,
//! one call takes one. What it emits goes into the queues of those after it, which are run first; so a call that has
//! much to emit stops when [`Output::is_full`] says so, answers [`Progress::More`], and goes on in `resume` once there
//! is room. Until it answers `Done` it gets nothing else.

use std::sync::Arc;

use crate::Batch;
use crate::error::Result;
use crate::ids::{InputIndex, MaxParallelism, Port, SubtaskId};
use crate::memory::JobMemory;
use crate::metrics::TaskMetrics;
use crate::snapshot::{SnapshotKind, StateSnapshot, UnkeyedSnapshot};
use crate::time::{Clock, Timestamp, Watermark};

/// Whether a call finished what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Yes.
    Done,
    /// No: call `resume` when there is room for more output.
    More,
}

/// Where an operator's rows go.
pub trait Output {
    /// Hands on a batch; its columns are those of the port's fields (after pruning). Empty batches are dropped.
    fn emit(&mut self, port: Port, batch: Batch) -> Result<()>;

    /// Whether the operator should stop emitting soon. Never forces: what is emitted is kept.
    fn is_full(&self) -> bool;

    /// Sets rows aside that can't be processed.
    fn dead_letter(&mut self, letter: DeadLetter) -> Result<()>;
}

/// Rows that were set aside, with the reason.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Why; without place, which the subtask that sets it aside knows.
    pub reason: String,
    /// The record: as text where it came from outside and could not be read, else as JSON of the columns.
    pub record: String,
    /// Event time in milliseconds UTC, if it had one.
    pub timestamp: Option<Timestamp>,
}

/// What an operator is given once, when its subtask is made.
#[derive(Clone)]
pub struct OperatorContext {
    /// Who it is.
    pub subtask: SubtaskId,
    /// How many key groups the job has.
    pub max_parallelism: MaxParallelism,
    /// Rows per batch to aim at.
    pub batch_rows: usize,
    /// Processing time.
    pub clock: Arc<dyn Clock>,
    /// Where it counts.
    pub metrics: Arc<TaskMetrics>,
    /// Where what it keeps beside the state backend is counted, as [`crate::memory::Owner::State`].
    pub memory: Arc<JobMemory>,
}

/// One operator subtask.
///
/// Life: made by its factory; then any sequence of the calls below, one at a time, on one thread; then dropped.
/// No call blocks.
pub trait Operator: Send {
    /// Takes a batch of an input.
    fn process(&mut self, input: InputIndex, batch: Batch, out: &mut dyn Output) -> Result<Progress>;

    /// The operator's watermark (the minimum over its inputs) rose. Fires what is due. The driver hands the watermark
    /// on to those after it when this (and its `resume`s) is done. [`Watermark::MAX`] says that the input ended.
    fn on_watermark(&mut self, watermark: Watermark, out: &mut dyn Output) -> Result<Progress>;

    /// Goes on with the call that answered [`Progress::More`]. It is called as soon as there is room for output; if the
    /// last call emitted nothing and there is a `next_timer`, not before that time (that is how an operator waits).
    fn resume(&mut self, _out: &mut dyn Output) -> Result<Progress> {
        Ok(Progress::Done)
    }

    /// When it wants `on_processing_time` next, if at all.
    fn next_timer(&self) -> Option<Timestamp> {
        None
    }

    /// Processing time reached what `next_timer` asked for.
    fn on_processing_time(&mut self, _now: Timestamp, _out: &mut dyn Output) -> Result<Progress> {
        Ok(Progress::Done)
    }

    /// Freezes its keyed state, at a barrier: never between an answer of [`Progress::More`] and its `resume`s. Whether it
    /// has any. Whatever else it needs, it makes again from the keyed state and the watermark.
    fn freeze(&mut self, _kind: SnapshotKind) -> Result<bool> {
        Ok(false)
    }

    /// Copies a bounded part of the keyed state that it froze last. `Some`: the snapshot, once all is copied. Until then it
    /// is called again and again, between any other calls.
    fn copy_frozen(&mut self) -> Result<Option<Box<dyn StateSnapshot>>> {
        Ok(None)
    }

    /// Makes a snapshot of its states without a key, at a barrier as `freeze`.
    fn snapshot_unkeyed(&mut self, _kind: SnapshotKind) -> Result<Vec<UnkeyedSnapshot>> {
        Ok(Vec::new())
    }

    /// The last call, after the end of the input (not after a failure).
    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}
