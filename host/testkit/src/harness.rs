//! A job under test: rows go in by hand, time moves by hand, and what came out is looked at.
//!
//! The whole job runs on the engine, stepped in one thread in an order from a seed: the same test gives the same
//! result every time. Event time moves with the rows, by the job's own watermark; [`Harness::end`] ends the input, which
//! fires everything. Processing time moves only by [`Harness::set_clock`].

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use serde_json::Value;
use tidemill::Flow;
use tidemill_connector_builtin::{Collect, Collected};
use tidemill_core::connector::{
    Boundedness, Discovery, ReaderPoll, Sink, Source, SourceContext, SourceReader, Split, SplitEnumerator, SplitId,
};
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::{Epoch, NodeId, Port};
use tidemill_core::plan::{NodeKind, Plan};
use tidemill_core::time::{Clock, Timestamp};
use tidemill_core::user::UserCodeFactory;
use tidemill_core::{Batch, Error, Result};
use tidemill_dataflow::{JobSettings, JobSpec, Stepper};
use tidemill_state::MemoryBackend;

use crate::NativeCode;

/// The order in which slices are stepped, the same in every test.
const SEED: u64 = 0x7DE3;

/// A job under test.
pub struct Harness {
    stepper: Stepper,
    inputs: HashMap<String, (SchemaRef, Arc<Input>)>,
    outputs: HashMap<String, Output>,
    clock: Arc<HandClock>,
}

struct Output {
    schema: SchemaRef,
    rows: Arc<Collected>,
    taken: usize,
}

impl Harness {
    /// The job, run natively.
    pub fn new(name: &str, job: impl Fn(&mut Flow) + Send + Sync + 'static) -> Result<Self> {
        let code = NativeCode::new(job);
        Self::with_code(code.plan(name)?, Arc::new(code))
    }

    /// A job by its plan and whatever runs its code: a component in the sandbox, for example.
    pub fn with_code(plan: Plan, user_code: Arc<dyn UserCodeFactory>) -> Result<Self> {
        let graph = JobGraph::from_plan(plan)?;
        let clock = Arc::new(HandClock::default());
        let (mut inputs, mut outputs) = (HashMap::new(), HashMap::new());
        let (mut sources, mut sinks) = (HashMap::new(), HashMap::new());
        for (id, node) in graph.iter() {
            match &node.kind {
                NodeKind::Source { binding, .. } => {
                    let input = Arc::new(Input::default());
                    let schema = graph.schema(id, Port(0))?;
                    let source: Arc<dyn Source> = Arc::new(HandSource { schema: schema.clone(), input: input.clone() });
                    sources.insert(binding.clone(), source);
                    inputs.insert(binding.clone(), (schema, input));
                }
                NodeKind::Sink { binding } => {
                    let from = node.inputs.first().ok_or_else(|| Error::internal("a sink without input"))?;
                    let schema = graph.schema(NodeId(from.node), Port(from.port))?;
                    let (sink, rows): (Arc<dyn Sink>, _) = Collect::sink();
                    sinks.insert(binding.clone(), sink);
                    outputs.insert(binding.clone(), Output { schema, rows, taken: 0 });
                }
                _ => {}
            }
        }
        let spec = JobSpec {
            name: graph.name().to_owned(),
            graph,
            sources,
            sinks,
            dead_letters: None,
            user_code,
            state: Arc::new(MemoryBackend::default()),
            clock: clock.clone(),
            settings: JobSettings::default(),
        };
        Ok(Self { stepper: Stepper::new(spec, SEED)?, inputs, outputs, clock })
    }

    /// Feeds rows to a source, as JSON objects (times as milliseconds or ISO 8601), and runs until nothing is left to do.
    pub fn push(&mut self, source: &str, rows: &[Value]) -> Result<()> {
        let (schema, input) = self.inputs.get(source).ok_or_else(|| unknown("source", source, self.inputs.keys()))?;
        let failed = |e| Error::invalid(format!("a row for source '{source}' does not fit its columns: {e}"));
        let mut decoder = arrow_json::ReaderBuilder::new(schema.clone()).build_decoder().map_err(failed)?;
        decoder.serialize(rows).map_err(failed)?;
        if let Some(batch) = decoder.flush().map_err(failed)? {
            let batch = Batch::new(batch.num_rows(), batch.columns().to_vec(), None)?;
            input.queue.lock().unwrap_or_else(PoisonError::into_inner).batches.push_back(batch);
        }
        self.step()
    }

    /// Sets processing time, in milliseconds since 1970-01-01 UTC, and runs what is due.
    pub fn set_clock(&mut self, ms: i64) -> Result<()> {
        self.clock.0.store(ms, Ordering::Relaxed);
        self.step()
    }

    /// Ends all inputs: every window and event-time timer fires.
    pub fn end(&mut self) -> Result<()> {
        for (_, input) in self.inputs.values() {
            input.queue.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        }
        self.step()
    }

    /// The rows that a sink received since the last call, as JSON objects.
    pub fn rows(&mut self, sink: &str) -> Result<Vec<Value>> {
        let names: Vec<String> = self.outputs.keys().cloned().collect();
        let output = self.outputs.get_mut(sink).ok_or_else(|| unknown("sink", sink, names.iter()))?;
        let mut writer = arrow_json::ArrayWriter::new(Vec::new());
        let batches = output.rows.batches();
        for batch in batches.iter().skip(output.taken) {
            writer.write(&RecordBatch::try_new(output.schema.clone(), batch.columns().to_vec())?)?;
        }
        output.taken = batches.len();
        writer.finish()?;
        let text = writer.into_inner();
        if text.is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_slice(&text).map_err(|e| Error::internal(e.to_string()))
    }

    fn step(&mut self) -> Result<()> {
        self.stepper.step_until_idle().map(drop)
    }
}

fn unknown<'a>(what: &str, name: &str, there: impl Iterator<Item = &'a String>) -> Error {
    let there: Vec<&str> = there.map(String::as_str).collect();
    Error::invalid(format!("the job has no {what} '{name}'")).mend(format!("there is: {}", there.join(", ")))
}

/// A clock that stands still until it is set.
#[derive(Debug, Default)]
struct HandClock(AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// What was pushed and not read yet.
#[derive(Default)]
struct Input {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    ended: bool,
}

struct HandSource {
    schema: SchemaRef,
    input: Arc<Input>,
}

impl Source for HandSource {
    fn boundedness(&self) -> Boundedness {
        Boundedness::Bounded
    }

    fn enumerator(&self, _parallelism: u32) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(OneSplit { found: false }))
    }

    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>> {
        let wanted = context.schema.fields().iter().map(|f| self.schema.index_of(f.name()));
        let columns = wanted.collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Box::new(HandReader { columns, input: self.input.clone(), split: None, open: true }))
    }
}

struct OneSplit {
    found: bool,
}

impl SplitEnumerator for OneSplit {
    fn discover(&mut self) -> Result<Discovery> {
        let split = Split { id: SplitId("all".to_owned()), description: Vec::new() };
        let splits = if std::mem::replace(&mut self.found, true) { Vec::new() } else { vec![split] };
        Ok(Discovery { splits, again_after_ms: None })
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(vec![u8::from(self.found)])
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.found = snapshot == [1];
        Ok(())
    }
}

struct HandReader {
    columns: Vec<usize>,
    input: Arc<Input>,
    split: Option<SplitId>,
    open: bool,
}

impl SourceReader for HandReader {
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()> {
        self.split = splits.into_iter().next().map(|s| s.id).or(self.split.take());
        Ok(())
    }

    fn no_more_splits(&mut self) {
        self.open = false;
    }

    fn poll(&mut self) -> Result<ReaderPoll> {
        let Some(split) = self.split.clone() else {
            return Ok(if self.open { ReaderPoll::Pending(None) } else { ReaderPoll::Finished });
        };
        let mut queue = self.input.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(batch) = queue.batches.pop_front() {
            return Ok(ReaderPoll::Batch {
                split,
                batch: batch.project(&self.columns)?,
                rejected: Vec::new(),
                progress: 0,
            });
        }
        if queue.ended {
            self.split = None;
            return Ok(ReaderPoll::SplitFinished(split));
        }
        Ok(ReaderPoll::Pending(None))
    }

    fn snapshot(&mut self, _epoch: Epoch) -> Result<Vec<Split>> {
        Ok(self.split.iter().map(|id| Split { id: id.clone(), description: Vec::new() }).collect())
    }
}
