//! The contract of sources and sinks.
//!
//! A source is divided into splits (a file, a partition, a range). One *enumerator* per source finds splits, also new
//! ones while the job runs; a *reader* per subtask reads those it is given. Readers are commanded and never block: all
//! waiting is in threads or tasks of the connector, which wake the slot through a [`Waker`].
//!
//! A sink writes, and at each checkpoint turns what it wrote into *committables*: bytes that are stored with the
//! checkpoint and that any process can commit, again and again, after any crash.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use crate::Batch;
use crate::error::Result;
use crate::ids::{Epoch, SubtaskId};
use crate::memory::JobMemory;
use crate::metrics::TaskMetrics;
use crate::operator::DeadLetter;
use crate::time::{Clock, Timestamp};

/// Wakes the slot that waits for this connector. Cheap; may be called from any thread, too often, or too late.
#[derive(Clone)]
pub struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// From what wakes.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(wake))
    }

    /// Wakes.
    pub fn wake(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

/// Names a split; unique among those of its source that are not read to their end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SplitId(pub String);

/// A part of a source that one reader reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Its name.
    pub id: SplitId,
    /// What and from where to read, in the connector's own encoding. A reader's snapshot gives splits whose
    /// description starts where it stopped.
    pub description: Vec<u8>,
}

/// Whether a source ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundedness {
    /// Yes.
    Bounded,
    /// No: it runs until the job is stopped.
    Unbounded,
}

/// A configured source: what a connector makes of the options in the manifest.
pub trait Source: Send + Sync {
    /// Whether it ends.
    fn boundedness(&self) -> Boundedness;

    /// The one enumerator of the job. `parallelism` is how many readers there will be.
    fn enumerator(&self, parallelism: u32) -> Result<Box<dyn SplitEnumerator>>;

    /// A reader for one subtask.
    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>>;

    /// How much there is to read in all, for a progress bar, where that is known: the sum of what the readers count
    /// as [`ReaderPoll::Batch`]'s `progress`.
    fn total(&self) -> Option<u64> {
        None
    }
}

/// What a reader is given.
#[derive(Clone)]
pub struct SourceContext {
    /// Who it is.
    pub subtask: SubtaskId,
    /// The columns to produce, and only those, in this order.
    pub schema: SchemaRef,
    /// Rows per batch to aim at.
    pub batch_rows: usize,
    /// For when a poll answered `Pending`.
    pub waker: Waker,
    /// Processing time.
    pub clock: Arc<dyn Clock>,
    /// Where it counts.
    pub metrics: Arc<TaskMetrics>,
    /// Where its buffers are counted, as [`crate::memory::Owner::Connectors`].
    pub memory: Arc<JobMemory>,
}

/// Finds splits. Called off the slot threads; may block.
pub trait SplitEnumerator: Send {
    /// Splits not reported before, and when to ask again. The enumerator alone remembers for good what it reported, so what that
    /// costs is its to bound. A name that it reports again is passed over while its split may be unfinished, and is a new split
    /// afterwards.
    fn discover(&mut self) -> Result<Discovery>;

    /// Which splits were reported, for a checkpoint, in the connector's own encoding.
    fn snapshot(&self) -> Result<Vec<u8>>;

    /// Goes on from a snapshot: its splits are not reported again.
    fn restore(&mut self, snapshot: &[u8]) -> Result<()>;
}

/// What an enumerator found.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// New splits.
    pub splits: Vec<Split>,
    /// When to ask again, in milliseconds; `None`: there will be no more.
    pub again_after_ms: Option<u64>,
}

/// Reads splits, a batch at a time, when told to.
pub trait SourceReader: Send {
    /// More to read.
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()>;

    /// No splits will be added any more.
    fn no_more_splits(&mut self);

    /// The next batch, of one split. Does not block.
    fn poll(&mut self) -> Result<ReaderPoll>;

    /// Every unfinished split as it is after the last polled batch, for this checkpoint.
    fn snapshot(&mut self, epoch: Epoch) -> Result<Vec<Split>>;

    /// The checkpoint for which an earlier `snapshot` was taken is complete, and so are those before it: brokers may be
    /// told. Not every checkpoint is completed.
    fn checkpoint_completed(&mut self, _epoch: Epoch) -> Result<()> {
        Ok(())
    }
}

/// The answer of a poll.
#[derive(Debug)]
pub enum ReaderPoll {
    /// Rows of one split. `rejected` are records which could not be read, if the options say to set them aside.
    Batch {
        /// Whose.
        split: SplitId,
        /// The columns of the context's schema; no timestamps.
        batch: Batch,
        /// Records that could not be read.
        rejected: Vec<DeadLetter>,
        /// How much of [`Source::total`] this is.
        progress: u64,
    },
    /// This split ended.
    SplitFinished(SplitId),
    /// Nothing yet: the waker will be called, or it is worth asking again at a time.
    Pending(Option<Timestamp>),
    /// All splits ended and there are no more.
    Finished,
}

/// What a sink can promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guarantee {
    /// After a failure, rows may be missing.
    AtMostOnce,
    /// After a failure, rows may be there twice.
    AtLeastOnce,
    /// Each row is there once, whatever fails.
    ExactlyOnce,
}

/// Bytes by which any process can make visible what a sink wrote up to a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committable(pub Vec<u8>);

/// A configured sink: what a connector makes of the options in the manifest.
pub trait Sink: Send + Sync {
    /// What it can promise with these options.
    fn guarantee(&self) -> Guarantee;

    /// An attempt at the job begins: once, before its writers are made, and after everything was committed that belongs to
    /// the checkpoint from which it goes on. The place to deal with the output of another run, and with what earlier
    /// attempts at this job left behind.
    fn begin(&self, _attempt: &Attempt<'_>) -> Result<()> {
        Ok(())
    }

    /// A writer for one subtask.
    fn writer(&self, context: SinkContext) -> Result<Box<dyn SinkWriter>>;

    /// The one committer of the job.
    fn committer(&self) -> Result<Box<dyn SinkCommitter>>;
}

/// An attempt at running a job.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The job.
    pub job: &'a str,
    /// Grows with each attempt; 0 for a job without checkpoints.
    pub number: u64,
    /// Whether it goes on with what the attempts before wrote.
    pub goes_on: bool,
}

/// What a writer is given.
#[derive(Clone)]
pub struct SinkContext {
    /// Who it is.
    pub subtask: SubtaskId,
    /// The columns of the batches that arrive.
    pub schema: SchemaRef,
    /// Processing time.
    pub clock: Arc<dyn Clock>,
    /// For when a write answered `Full`.
    pub waker: Waker,
    /// Where it counts.
    pub metrics: Arc<TaskMetrics>,
    /// Where its buffers are counted, as [`crate::memory::Owner::Connectors`].
    pub memory: Arc<JobMemory>,
    /// Which attempt at running the job this is: it grows with each. What an earlier attempt left behind and the
    /// checkpoint does not name is garbage.
    pub attempt: u64,
    /// What writers of this sink answered to [`SinkWriter::snapshot`] in the checkpoint from which the job goes on.
    pub restored: Vec<Vec<u8>>,
}

/// Whether a writer has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum SinkReady {
    /// Write on.
    Ready,
    /// What was written is kept, but no more now: the waker will be called.
    Full,
}

/// Writes the rows of one subtask.
pub trait SinkWriter: Send {
    /// Whether there is room. Called before each `write`.
    fn ready(&mut self) -> Result<SinkReady> {
        Ok(SinkReady::Ready)
    }

    /// Takes a batch. Does not block for long: what blocks is done by threads or tasks of the connector.
    fn write(&mut self, batch: &Batch) -> Result<()>;

    /// Everything written up to now is durable when this returns, and becomes visible when the committables are
    /// committed. May block (it is part of a checkpoint), and may come while `ready` says that there is no room: an
    /// unaligned checkpoint does not wait for that. At the end of the input it is called once more.
    fn prepare(&mut self, epoch: Epoch) -> Result<Vec<Committable>>;

    /// What a writer of a later attempt must know to go on after the `prepare` just done, in the connector's own
    /// encoding: what was written and is neither visible nor in the committables. `None`: nothing.
    fn snapshot(&mut self) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

/// Makes visible what was prepared. Called off the slot threads; may block.
pub trait SinkCommitter: Send {
    /// Commits; committing again what was committed is no error and changes nothing.
    fn commit(&mut self, committables: &[Committable]) -> Result<()>;
}
