//! Jobs on rows in memory: a source that has them, sinks that collect, a clock held in the hand.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMillisecondType};
use tidemill_connector_builtin::{Collect, Collected};
use tidemill_core::connector::{
    Boundedness, Discovery, ReaderPoll, Sink, Source, SourceContext, SourceReader, Split, SplitEnumerator, SplitId,
};
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::Epoch;
use tidemill_core::keys::hash_fixed;
use tidemill_core::plan::{NodeKind, Plan};
use tidemill_core::time::{Clock, Timestamp};
use tidemill_core::user::UserCodeFactory;
use tidemill_core::{Batch, Result};
use tidemill_dataflow::{JobSettings, JobSpec, Stepper};
use tidemill_state::MemoryBackend;

/// Draws from a seed.
pub struct Random(AtomicU64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(hash_fixed(seed)))
    }

    pub fn below(&self, n: u64) -> u64 {
        hash_fixed(self.0.fetch_add(1, Ordering::Relaxed)) % n
    }

    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Default)]
pub struct HandClock(pub AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

/// One split, whose batches are these.
#[derive(Clone)]
pub struct Given(pub Vec<RecordBatch>);

impl Source for Given {
    fn boundedness(&self) -> Boundedness {
        Boundedness::Bounded
    }

    fn enumerator(&self, _parallelism: u32) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(Splits(1)))
    }

    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(GivenReader { batches: self.0.clone(), schema: context.schema, split: None, more: true }))
    }
}

/// So many splits, found at once.
pub struct Splits(pub u32);

impl SplitEnumerator for Splits {
    fn discover(&mut self) -> Result<Discovery> {
        let split = |n: u32| Split { id: SplitId(n.to_string()), description: n.to_le_bytes().to_vec() };
        Ok(Discovery { splits: (0..self.0).map(split).collect(), again_after_ms: None })
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _snapshot: &[u8]) -> Result<()> {
        Ok(())
    }
}

struct GivenReader {
    batches: Vec<RecordBatch>,
    /// The columns that are wanted.
    schema: SchemaRef,
    split: Option<SplitId>,
    more: bool,
}

impl SourceReader for GivenReader {
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()> {
        self.split = splits.into_iter().next().map(|s| s.id);
        Ok(())
    }

    fn no_more_splits(&mut self) {
        self.more = false;
    }

    fn poll(&mut self) -> Result<ReaderPoll> {
        let Some(split) = self.split.clone() else {
            return Ok(if self.more { ReaderPoll::Pending(None) } else { ReaderPoll::Finished });
        };
        if self.batches.is_empty() {
            self.split = None;
            return Ok(ReaderPoll::SplitFinished(split));
        }
        let given = self.batches.remove(0);
        let column = |name: &str| given.column_by_name(name).unwrap().clone();
        let columns = self.schema.fields().iter().map(|f| column(f.name())).collect();
        let batch = Batch::new(given.num_rows(), columns, None)?;
        Ok(ReaderPoll::Batch { split, batch, rejected: vec![], progress: 0 })
    }

    fn snapshot(&mut self, _epoch: Epoch) -> Result<Vec<Split>> {
        Ok(Vec::new())
    }
}

/// A job, and where its rows go.
pub struct Job {
    pub spec: JobSpec,
    pub clock: Arc<HandClock>,
    pub outputs: HashMap<String, Arc<Collected>>,
    pub letters: Arc<Collected>,
}

/// A job with `source` for each of its sources.
pub fn job(name: &str, plan: Plan, user_code: Arc<dyn UserCodeFactory>, source: Arc<dyn Source>) -> Job {
    let graph = JobGraph::from_plan(plan).unwrap();
    let clock = Arc::<HandClock>::default();
    let (mut sources, mut sinks, mut outputs) = (HashMap::new(), HashMap::new(), HashMap::new());
    for node in graph.nodes() {
        match &node.kind {
            NodeKind::Source { binding, .. } => _ = sources.insert(binding.clone(), source.clone()),
            NodeKind::Sink { binding } => {
                let (sink, collected): (Arc<dyn Sink>, _) = Collect::sink();
                sinks.insert(binding.clone(), sink);
                outputs.insert(binding.clone(), collected);
            }
            _ => {}
        }
    }
    let (dead_letters, letters): (Arc<dyn Sink>, _) = Collect::sink();
    let spec = JobSpec {
        name: name.to_owned(),
        graph,
        sources,
        sinks,
        dead_letters: Some(dead_letters),
        user_code,
        state: Arc::new(MemoryBackend::default()),
        memory: tidemill_core::memory::JobMemory::unlimited(),
        clock: clock.clone(),
        settings: JobSettings::default(),
    };
    Job { spec, clock, outputs, letters }
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Letter {
    pub operator: String,
    pub reason: String,
    pub record: String,
    pub event_time: Option<i64>,
}

impl Job {
    /// Steps to the end, in an order from the seed; time moves when nothing else does.
    pub fn step_to_end(&self, seed: u64) -> Result<()> {
        let mut stepper = Stepper::new(self.spec.clone(), seed)?;
        while let Some(at) = stepper.step_until_idle()? {
            self.clock.0.fetch_max(at.0, Ordering::SeqCst);
        }
        assert!(stepper.finished(), "it stands still");
        Ok(())
    }

    /// The rows of the sink `out`, whose columns are integers, times or truth values, sorted.
    pub fn sorted(&self) -> Vec<Vec<i64>> {
        let mut rows = Vec::new();
        for batch in self.outputs["out"].batches() {
            rows.extend((0..batch.rows()).map(|row| batch.columns().iter().map(|c| int(c, row)).collect::<Vec<_>>()));
        }
        rows.sort_unstable();
        rows
    }

    /// The dead letters, sorted.
    pub fn letters(&self) -> Vec<Letter> {
        let mut letters = Vec::new();
        for batch in self.letters.batches() {
            let text = |column: usize, row| batch.column(column).unwrap().as_string_view().value(row).to_owned();
            let times = batch.column(5).unwrap().as_primitive::<TimestampMillisecondType>().clone();
            letters.extend((0..batch.rows()).map(|row| Letter {
                operator: text(1, row),
                reason: text(3, row),
                record: text(4, row),
                event_time: times.iter().nth(row).flatten(),
            }));
        }
        letters.sort();
        letters
    }
}

fn int(column: &arrow::array::ArrayRef, row: usize) -> i64 {
    if let Some(ints) = column.as_primitive_opt::<Int64Type>() {
        return ints.value(row);
    }
    match column.as_boolean_opt() {
        Some(truths) => truths.value(row).into(),
        None => column.as_primitive::<TimestampMillisecondType>().value(row),
    }
}
