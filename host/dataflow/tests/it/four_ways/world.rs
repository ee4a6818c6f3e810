//! What is outside of a job and outlives its processes: the clock, splits, the store of checkpoints, a sink's output.
//!
//! Everything that a process does to it passes an *edge*, before it takes effect and after. At one edge the process may
//! die: from then on the world does not answer it any more.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Int64Array, TimestampMillisecondArray};
use arrow::util::display::array_value_to_string;
use tidemill_checkpoint::blobs::{BlobError, BlobWriter, Blobs, Listed, Memory, PutNew, Trouble};
use tidemill_core::connector::*;
use tidemill_core::error::ErrorKind;
use tidemill_core::ids::Epoch;
use tidemill_core::operator::DeadLetter;
use tidemill_core::time::Timestamp;
use tidemill_core::{Batch, Error, Result};

use crate::support::ManualClock;

/// Key, event time, value.
pub type Row = (i64, Option<i64>, i64);

/// What happens to a split: its polls, in order.
#[derive(Clone, Debug)]
pub enum Poll {
    Rows(Vec<Row>),
    /// Nothing until the clock reaches it.
    Until(i64),
    /// Nothing for so long, for the reader that comes to it.
    Pause(i64),
    /// A record that can't be read.
    Rejected(i64),
}

/// The splits of a source, each with the discovery (0, 1, ...) that finds it.
pub type Splits = Vec<(u64, Vec<Poll>)>;

/// Things that a process does to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Claims an entry of the log.
    Claim,
    /// Marks a checkpoint as committed.
    Mark,
    /// Writes a file of a checkpoint.
    File,
    /// Deletes something.
    Delete,
    /// Prepares output.
    Prepare,
    /// Commits one committable.
    Commit,
}

impl Act {
    pub const ALL: [Self; 6] = [Self::Claim, Self::Mark, Self::File, Self::Delete, Self::Prepare, Self::Commit];
}

/// When the world stops to answer the process, or does not do one thing.
#[derive(Default)]
struct Fate {
    /// Dies at the n-th edge of this act.
    dies: Option<(Act, u64)>,
    /// The n-th file can't be written.
    declines: Option<u64>,
    dead: bool,
}

#[derive(Default)]
pub struct World {
    pub clock: Arc<ManualClock>,
    pub store: Memory,
    /// No sink takes anything.
    pub full: AtomicBool,
    fate: Mutex<Fate>,
    output: Mutex<Output>,
}

#[derive(Default)]
struct Output {
    next: u64,
    /// Durable, not visible.
    hidden: BTreeMap<u64, Vec<String>>,
    visible: BTreeMap<u64, Vec<String>>,
}

impl World {
    /// A new process, which dies so, if at all.
    pub fn revive(&self, dies: Option<(Act, u64)>, declines: Option<u64>) {
        *self.fate.lock().unwrap() = Fate { dies, declines, dead: false };
    }

    pub fn is_dead(&self) -> bool {
        self.fate.lock().unwrap().dead
    }

    /// What is visible: each row with its number.
    pub fn output(&self) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for row in self.output.lock().unwrap().visible.values().flatten() {
            *counts.entry(row.clone()).or_default() += 1;
        }
        counts
    }

    /// An edge; whether the process is dead behind it.
    fn edge(&self, act: Act) -> bool {
        let mut fate = self.fate.lock().unwrap();
        if let Some((at, left)) = &mut fate.dies
            && *at == act
        {
            *left = left.saturating_sub(1);
            fate.dead |= fate.dies.is_some_and(|(_, left)| left == 0);
        }
        fate.dead
    }

    /// Does something unless the process is dead before; its answer unless it is dead behind it.
    fn act<T>(&self, act: Act, what: impl FnOnce() -> Result<T>) -> Result<T> {
        let dead = || Error::new(ErrorKind::Retry, "the process is dead");
        if self.edge(act) {
            return Err(dead());
        }
        let answer = what();
        if self.edge(act) { Err(dead()) } else { answer }
    }
}

/// The world's store, as a process sees it.
pub struct Store(pub Arc<World>);

impl Store {
    fn dead(in_doubt: bool) -> BlobError {
        BlobError { trouble: Trouble::Unavailable, in_doubt, message: "the process is dead".to_owned() }
    }

    fn alive(&self) -> Result<(), BlobError> {
        if self.0.is_dead() { Err(Self::dead(true)) } else { Ok(()) }
    }
}

impl Blobs for Store {
    fn location(&self) -> &str {
        "memory"
    }

    fn put_new(&self, path: &str, content: &[u8]) -> Result<PutNew, BlobError> {
        let act = match path.split_once('/') {
            Some(("log", _)) => Act::Claim,
            Some(("committed", _)) => Act::Mark,
            _ => return self.0.store.put_new(path, content),
        };
        if self.0.edge(act) {
            return Err(Self::dead(false));
        }
        let answer = self.0.store.put_new(path, content);
        if self.0.edge(act) { Err(Self::dead(true)) } else { answer }
    }

    fn create(&self, path: &str) -> Result<Box<dyn BlobWriter>, BlobError> {
        self.alive()?;
        Ok(Box::new(Writer { world: self.0.clone(), inner: self.0.store.create(path)? }))
    }

    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send>>, BlobError> {
        self.alive()?;
        self.0.store.open(path)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, BlobError> {
        self.alive()?;
        self.0.store.list(folder)
    }

    fn delete(&self, path: &str) -> Result<(), BlobError> {
        if self.0.edge(Act::Delete) {
            return Err(Self::dead(false));
        }
        self.0.store.delete(path)
    }
}

struct Writer {
    world: Arc<World>,
    inner: Box<dyn BlobWriter>,
}

impl Write for Writer {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.inner.write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl BlobWriter for Writer {
    fn finish(self: Box<Self>) -> Result<(), BlobError> {
        if self.world.edge(Act::File) {
            return Err(Store::dead(false));
        }
        let left = self.world.fate.lock().unwrap().declines.as_mut().map(|left| {
            *left = left.saturating_sub(1);
            *left
        });
        if left == Some(0) {
            self.world.fate.lock().unwrap().declines = None;
            return Err(BlobError { trouble: Trouble::Full, in_doubt: false, message: "no room just now".to_owned() });
        }
        self.inner.finish()
    }
}

/// A source over splits.
pub struct Input {
    pub splits: Arc<Splits>,
    pub bounded: bool,
}

impl Source for Input {
    fn boundedness(&self) -> Boundedness {
        if self.bounded { Boundedness::Bounded } else { Boundedness::Unbounded }
    }

    fn enumerator(&self, _parallelism: u32) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(Enumerator { splits: self.splits.clone(), bounded: self.bounded, round: 0 }))
    }

    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>> {
        let (queue, snapshots) = Default::default();
        Ok(Box::new(Reader { splits: self.splits.clone(), context, queue, snapshots, more: true }))
    }
}

struct Enumerator {
    splits: Arc<Splits>,
    bounded: bool,
    round: u64,
}

impl SplitEnumerator for Enumerator {
    fn discover(&mut self) -> Result<Discovery> {
        let round = self.round;
        self.round += 1;
        let found = self.splits.iter().enumerate().filter(|(_, (found, _))| *found == round);
        let splits = found.map(|(split, _)| Reading { split, next: 0, pause_over: None }.to_split()).collect();
        let later = self.splits.iter().any(|(found, _)| *found > round);
        Ok(Discovery { splits, again_after_ms: (later || !self.bounded).then_some(70) })
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(self.round.to_le_bytes().to_vec())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.round = u64::from_le_bytes(snapshot.try_into().unwrap());
        Ok(())
    }
}

/// A split and its next poll.
#[derive(Clone, Copy)]
struct Reading {
    split: usize,
    next: usize,
    /// When the pause is over in which it is.
    pause_over: Option<i64>,
}

impl Reading {
    fn to_split(self) -> Split {
        let description = [self.split as u64, self.next as u64].map(u64::to_le_bytes).concat();
        Split { id: self.id(), description }
    }

    fn from_split(split: &Split) -> Self {
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap()) as usize;
        Self { split: number(&split.description[..8]), next: number(&split.description[8..]), pause_over: None }
    }

    fn id(self) -> SplitId {
        SplitId(format!("s{}", self.split))
    }
}

struct Reader {
    splits: Arc<Splits>,
    context: SourceContext,
    queue: VecDeque<Reading>,
    snapshots: Vec<Epoch>,
    more: bool,
}

impl SourceReader for Reader {
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()> {
        for reading in splits.iter().map(Reading::from_split) {
            assert!(self.queue.iter().all(|known| known.split != reading.split), "split {} twice", reading.split);
            self.queue.push_back(reading);
        }
        Ok(())
    }

    fn no_more_splits(&mut self) {
        self.more = false;
    }

    /// Splits in turn.
    fn poll(&mut self) -> Result<ReaderPoll> {
        let (now, mut until) = (self.context.clock.now().0, None);
        for _ in 0..self.queue.len() {
            let mut reading = self.queue.pop_front().unwrap();
            let polls = &self.splits[reading.split].1;
            if let Some(Poll::Pause(ms)) = polls.get(reading.next) {
                let over = *reading.pause_over.get_or_insert(now + ms);
                if over > now {
                    until = until.into_iter().chain([Timestamp(over)]).min();
                    self.queue.push_back(reading);
                    continue;
                }
                reading = Reading { next: reading.next + 1, pause_over: None, ..reading };
            }
            while let Some(Poll::Until(at)) = polls.get(reading.next)
                && *at <= now
            {
                reading.next += 1;
            }
            match polls.get(reading.next) {
                None => return Ok(ReaderPoll::SplitFinished(reading.id())),
                Some(Poll::Until(at)) => {
                    until = until.into_iter().chain([Timestamp(*at)]).min();
                    self.queue.push_back(reading);
                }
                Some(poll) => {
                    reading.next += 1;
                    self.queue.push_back(reading);
                    let (rows, rejected) = match poll {
                        Poll::Rows(rows) => (rows.as_slice(), vec![]),
                        Poll::Rejected(record) => (&[][..], vec![rejected(*record)]),
                        Poll::Until(_) | Poll::Pause(_) => unreachable!(),
                    };
                    let batch = self.batch(rows);
                    return Ok(ReaderPoll::Batch { split: reading.id(), batch, rejected, progress: rows.len() as u64 });
                }
            }
        }
        Ok(if self.queue.is_empty() && !self.more { ReaderPoll::Finished } else { ReaderPoll::Pending(until) })
    }

    fn snapshot(&mut self, epoch: Epoch) -> Result<Vec<Split>> {
        self.snapshots.push(epoch);
        Ok(self.queue.iter().map(|reading| reading.to_split()).collect())
    }

    fn checkpoint_completed(&mut self, epoch: Epoch) -> Result<()> {
        assert!(self.snapshots.contains(&epoch), "checkpoint {} completed without a snapshot", epoch.0);
        Ok(())
    }
}

impl Reader {
    /// The columns that are asked for.
    fn batch(&self, rows: &[Row]) -> Batch {
        let column = |name: &str| -> ArrayRef {
            match name {
                "k" => Arc::new(rows.iter().map(|r| Some(r.0)).collect::<Int64Array>()),
                "t" => Arc::new(rows.iter().map(|r| r.1).collect::<TimestampMillisecondArray>()),
                _ => Arc::new(rows.iter().map(|r| Some(r.2)).collect::<Int64Array>()),
            }
        };
        let columns = self.context.schema.fields().iter().map(|field| column(field.name())).collect();
        Batch::new(rows.len(), columns, None).unwrap()
    }
}

fn rejected(record: i64) -> DeadLetter {
    DeadLetter { reason: "it is no record".to_owned(), record: format!("record {record}"), timestamp: None }
}

/// A sink into the world's output. Rows are kept as text, behind the sink's name.
pub struct Sinking {
    pub world: Arc<World>,
    pub name: String,
}

impl Sink for Sinking {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    /// What earlier attempts left behind is garbage: everything that belongs to the checkpoint is committed by now.
    fn begin(&self, _attempt: &Attempt<'_>) -> Result<()> {
        self.world.output.lock().unwrap().hidden.clear();
        Ok(())
    }

    fn writer(&self, context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        let (world, name) = (self.world.clone(), self.name.clone());
        Ok(Box::new(SinkWriting { world, name, context, rows: Vec::new() }))
    }

    fn committer(&self) -> Result<Box<dyn SinkCommitter>> {
        Ok(Box::new(Committing(self.world.clone())))
    }
}

struct SinkWriting {
    world: Arc<World>,
    name: String,
    context: SinkContext,
    rows: Vec<String>,
}

impl SinkWriter for SinkWriting {
    fn ready(&mut self) -> Result<SinkReady> {
        Ok(if self.world.full.load(Ordering::SeqCst) { SinkReady::Full } else { SinkReady::Ready })
    }

    fn write(&mut self, batch: &Batch) -> Result<()> {
        let names: Vec<_> = self.context.schema.fields().iter().map(|field| field.name().clone()).collect();
        for row in 0..batch.rows() {
            // Which subtask set a letter aside depends on the parallelism.
            let columns = batch.columns().iter().zip(&names).filter(|(_, name)| *name != "subtask");
            let values = columns.map(|(column, _)| array_value_to_string(column, row).unwrap());
            self.rows.push(format!("{}|{}", self.name, values.collect::<Vec<_>>().join("|")));
        }
        Ok(())
    }

    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<Committable>> {
        // Two files, so that a crash may come between them.
        let second = self.rows.split_off(self.rows.len() / 2);
        let files = [std::mem::take(&mut self.rows), second].into_iter().filter(|file| !file.is_empty());
        files.map(|file| self.world.act(Act::Prepare, || Ok(self.hide(file)))).collect()
    }
}

impl SinkWriting {
    fn hide(&self, file: Vec<String>) -> Committable {
        let mut output = self.world.output.lock().unwrap();
        output.next += 1;
        let id = output.next;
        output.hidden.insert(id, file);
        Committable(id.to_le_bytes().to_vec())
    }
}

struct Committing(Arc<World>);

impl SinkCommitter for Committing {
    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        for Committable(id) in committables {
            let id = u64::from_le_bytes(id.clone().try_into().unwrap());
            self.0.act(Act::Commit, || {
                let mut output = self.0.output.lock().unwrap();
                if !output.visible.contains_key(&id) {
                    let file = output.hidden.remove(&id).expect("what is committed was prepared and not deleted");
                    output.visible.insert(id, file);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
