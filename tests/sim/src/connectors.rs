//! The connectors of the simulated jobs: a source whose splits come to light one after the other, and a sink that writes in
//! transactions. Both belong to a process, and fail when chance wants it.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{FieldRef, Int64Type};
use tidemill_connector_kit::{Connector, Key, OptionSpec, Setup};
use tidemill_core::connector::{
    Boundedness, Committable, Discovery, Guarantee, ReaderPoll, Sink, SinkCommitter, SinkContext, SinkReady,
    SinkWriter, Source, SourceContext, SourceReader, Split, SplitEnumerator, SplitId,
};
use tidemill_core::ids::Epoch;
use tidemill_core::time::Timestamp;
use tidemill_core::{Batch, Error, ErrorKind, Result};

use crate::outside::{Counted, Outside, Record, Target};
use crate::sabotage::Sabotage;
use crate::world::Machine;

const JOB: Key<u64> = Key::new("job", "Which of the jobs it is.").required();
const SINK: Key<String> = Key::new("sink", "Which of its sinks it is.").required();

/// The connector of both sides, in a process.
#[derive(Clone)]
pub struct Simulated {
    /// Of the process.
    pub machine: Arc<Machine>,
    /// What there is outside for each job.
    pub jobs: Arc<Vec<Arc<Outside>>>,
}

/// A source or a sink of a job.
#[derive(Clone)]
struct Place {
    machine: Arc<Machine>,
    outside: Arc<Outside>,
    /// Which sink; of a source empty.
    sink: String,
}

impl Simulated {
    fn place(&self, job: u64, sink: String) -> Result<Arc<Place>> {
        let outside = usize::try_from(job).ok().and_then(|job| self.jobs.get(job)).cloned();
        let outside = outside.ok_or_else(|| Error::invalid(format!("there is no job {job}")))?;
        Ok(Arc::new(Place { machine: self.machine.clone(), outside, sink }))
    }
}

impl Place {
    fn target(&self) -> Result<&Target> {
        self.outside.target(&self.sink).ok_or_else(|| Error::invalid(format!("there is no sink '{}'", self.sink)))
    }

    /// Whether the outside answers this process now.
    fn answers(&self, kind: &'static str, chance: u64) -> Result<()> {
        let world = &self.machine.world;
        if !self.machine.is_alive() {
            return Err(Error::new(ErrorKind::Retry, "the process is dead"));
        }
        if world.goes_wrong(kind, chance) {
            world.note(&format!("{}: {kind}", self.machine.name));
            return Err(Error::new(ErrorKind::Retry, format!("simulated: {kind}")));
        }
        Ok(())
    }
}

impl Connector for Simulated {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn doc(&self) -> &'static str {
        "What the simulation reads and writes."
    }

    fn source_options(&self) -> Option<Vec<OptionSpec>> {
        Some(vec![JOB.spec()])
    }

    fn sink_options(&self) -> Option<Vec<OptionSpec>> {
        Some(vec![JOB.spec(), SINK.spec()])
    }

    fn source(&self, setup: Setup) -> Result<Arc<dyn Source>> {
        Ok(self.place(setup.options.need(&JOB)?, String::new())?)
    }

    fn sink(&self, setup: Setup) -> Result<Arc<dyn Sink>> {
        Ok(self.place(setup.options.need(&JOB)?, setup.options.need(&SINK)?)?)
    }
}

impl Source for Place {
    fn boundedness(&self) -> Boundedness {
        Boundedness::Bounded
    }

    fn enumerator(&self, _parallelism: u32) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(Enumerator { of: self.clone(), found: 0 }))
    }

    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(Reader { of: self.clone(), context, splits: Vec::new(), more: true }))
    }
}

struct Enumerator {
    of: Place,
    found: u32,
}

impl SplitEnumerator for Enumerator {
    fn discover(&mut self) -> Result<Discovery> {
        self.of.answers("discovery_fails", 5)?;
        let (before, mut dice) = (self.found, self.of.machine.world.dice());
        self.found = self.of.outside.splits().min(before + u32::try_from(dice.between(0, 3)).unwrap_or(0)).max(before);
        let split = |n: u32| Split { id: SplitId(format!("split-{n}")), description: description(n, 0) };
        let again_after_ms =
            (self.found < self.of.outside.input.splits).then(|| dice.between(50, 1_500).unsigned_abs());
        Ok(Discovery { splits: (before..self.found).map(split).collect(), again_after_ms })
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(self.found.to_le_bytes().to_vec())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.found = numbers(snapshot).0;
        if self.of.machine.world.sabotage == Some(Sabotage::ForgetSplit) {
            self.found = self.of.outside.input.splits.min(self.found + 1);
        }
        Ok(())
    }
}

struct Reader {
    of: Place,
    context: SourceContext,
    /// Which, and the next record of each.
    splits: Vec<(u32, u32)>,
    more: bool,
}

impl SourceReader for Reader {
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()> {
        self.splits.extend(splits.iter().map(|split| numbers(&split.description)));
        Ok(())
    }

    fn no_more_splits(&mut self) {
        self.more = false;
    }

    fn poll(&mut self) -> Result<ReaderPoll> {
        if self.splits.is_empty() {
            return Ok(if self.more { ReaderPoll::Pending(None) } else { ReaderPoll::Finished });
        }
        self.of.answers("reading_fails", 1)?;
        let mut dice = self.of.machine.world.dice();
        if dice.permille(700) {
            let until = self.context.clock.now().0 + dice.between(1, 200);
            return Ok(ReaderPoll::Pending(Some(Timestamp(until))));
        }
        let wanted = u32::try_from(dice.between(1, 9)).unwrap_or(1);
        drop(dice);
        self.splits.rotate_left(1);
        let Some((split, at)) = self.splits.last_mut() else { return Ok(ReaderPoll::Pending(None)) };
        let id = SplitId(format!("split-{split}"));
        let end = self.of.outside.input.records.min(at.saturating_add(wanted));
        if *at >= end {
            self.splits.pop();
            return Ok(ReaderPoll::SplitFinished(id));
        }
        let records: Vec<_> = (*at..end).map(|at| self.of.outside.input.record(*split, at)).collect();
        *at = end;
        let column = |field: &FieldRef| -> Result<ArrayRef> {
            let of = |record: &Record| match field.name().as_str() {
                "id" => record.id,
                "key" => record.key,
                _ => record.time,
            };
            let numbers = Int64Array::from_iter_values(records.iter().map(of));
            cast(&numbers, field.data_type()).map_err(|e| Error::internal(e.to_string()))
        };
        let columns = self.context.schema.fields().iter().map(column).collect::<Result<_>>()?;
        let batch = Batch::new(records.len(), columns, None)?;
        Ok(ReaderPoll::Batch { split: id, batch, rejected: Vec::new(), progress: 0 })
    }

    fn snapshot(&mut self, _epoch: Epoch) -> Result<Vec<Split>> {
        let split =
            |(n, at): &(u32, u32)| Split { id: SplitId(format!("split-{n}")), description: description(*n, *at) };
        Ok(self.splits.iter().map(split).collect())
    }
}

fn description(split: u32, at: u32) -> Vec<u8> {
    [split.to_le_bytes(), at.to_le_bytes()].concat()
}

/// The first two numbers.
fn numbers(bytes: &[u8]) -> (u32, u32) {
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    };
    (number(0), number(4))
}

impl Sink for Place {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn writer(&self, context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(Writer { of: self.clone(), context, rows: Vec::new() }))
    }

    fn committer(&self) -> Result<Box<dyn SinkCommitter>> {
        Ok(Box::new(Committer(self.clone())))
    }
}

struct Writer {
    of: Place,
    context: SinkContext,
    rows: Vec<Counted>,
}

impl SinkWriter for Writer {
    fn ready(&mut self) -> Result<SinkReady> {
        let full = self.of.machine.world.goes_wrong("sink_full", 20);
        Ok(if full { SinkReady::Full } else { SinkReady::Ready })
    }

    fn write(&mut self, batch: &Batch) -> Result<()> {
        let column = |name: &str| {
            let at = self.context.schema.index_of(name)?;
            Ok::<_, Error>(batch.column(at)?.as_primitive::<Int64Type>().values().clone())
        };
        let (ids, keys, counts) = (column("id")?, column("key")?, column("count")?);
        let rows = ids.iter().zip(keys.iter()).zip(counts.iter());
        self.rows.extend(rows.map(|((id, key), count)| Counted { id: *id, key: *key, count: *count }));
        Ok(())
    }

    fn prepare(&mut self, epoch: Epoch) -> Result<Vec<Committable>> {
        if self.rows.is_empty() {
            return Ok(Vec::new());
        }
        self.of.answers("preparing_fails", 3)?;
        let (attempt, slot) = (self.context.attempt, self.context.subtask.index);
        let name = format!("{attempt}-{slot}-{}-{}", epoch.0, self.of.machine.nonce());
        self.of.target()?.prepare(&name, std::mem::take(&mut self.rows));
        if self.of.machine.world.sabotage == Some(Sabotage::CommitBeforeClaim) {
            self.of.target()?.commit(&name);
        }
        Ok(vec![Committable(name.into_bytes())])
    }
}

struct Committer(Place);

impl SinkCommitter for Committer {
    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        let world = &self.0.machine.world;
        for committable in committables {
            self.0.answers("committing_fails", 10)?;
            if world.goes_wrong("death_at_commit", 3) {
                self.0.machine.kill();
                return Err(Error::new(ErrorKind::Retry, "the process is dead"));
            }
            let name = String::from_utf8_lossy(&committable.0);
            world.note(&format!("{} commits {name}", self.0.machine.name));
            if !self.0.target()?.commit(&name) {
                return Err(Error::internal(format!("{name} is to be committed, and was never prepared")));
            }
            self.0.answers("committing_fails_after", 5)?;
        }
        Ok(())
    }
}
