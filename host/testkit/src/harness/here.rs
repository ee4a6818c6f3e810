//! A job under test in this process, on the engine, stepped on the caller's thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use serde_json::Value;
use tidemill_connector_builtin::{Collect, Collected};
use tidemill_core::connector::{Sink, Source};
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::{NodeId, Port};
use tidemill_core::plan::{NodeKind, Plan};
use tidemill_core::time::Watermark;
use tidemill_core::user::UserCodeFactory;
use tidemill_core::{Batch, Error, Result};
use tidemill_dataflow::{JobSettings, JobSpec, Stepper};
use tidemill_state::MemoryBackend;

use super::Ask;
use super::input::{HandClock, HandSource, Input};

/// The order in which slices are stepped, the same in every test.
const SEED: u64 = 0x7DE3;

/// A job in this process.
pub(super) struct Here {
    stepper: Stepper,
    inputs: HashMap<String, (SchemaRef, Arc<Input>)>,
    outputs: HashMap<String, Output>,
    letters: Option<Output>,
    clock: Arc<HandClock>,
}

struct Output {
    schema: SchemaRef,
    rows: Arc<Collected>,
    taken: usize,
}

impl Here {
    /// A job by its plan and what runs its code. `letters`: whether rows that can't be processed are set aside.
    pub(super) fn new(plan: Plan, user_code: Arc<dyn UserCodeFactory>, letters: bool) -> Result<Self> {
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
                    let (sink, output) = output(graph.schema(NodeId(from.node), Port(from.port))?);
                    sinks.insert(binding.clone(), sink);
                    outputs.insert(binding.clone(), output);
                }
                _ => {}
            }
        }
        let (dead_letters, letters) = letters.then(|| output(tidemill_dataflow::letters::schema())).unzip();
        let spec = JobSpec {
            name: graph.name().to_owned(),
            graph,
            sources,
            sinks,
            dead_letters,
            user_code,
            state: Arc::new(MemoryBackend::default()),
            memory: tidemill_core::memory::JobMemory::unlimited(),
            clock: clock.clone(),
            settings: JobSettings::default(),
        };
        Ok(Self { stepper: Stepper::new(spec, SEED)?, inputs, outputs, letters, clock })
    }

    /// Does what is asked; the rows that were asked for.
    pub(super) fn answer(&mut self, ask: Ask<'_>) -> Result<Vec<Value>> {
        match ask {
            Ask::Push { source, rows } => self.push(&source, &rows)?,
            Ask::Clock { ms } => self.clock.0.store(ms, Ordering::Relaxed),
            Ask::Watermark { ms } => self.raise_watermark(ms)?,
            Ask::End => self.inputs.values().for_each(|(_, input)| input.end()),
            Ask::Rows { sink } => {
                let there = list(self.outputs.keys());
                return self.outputs.get_mut(&*sink).ok_or_else(|| unknown("sink", &sink, &there))?.take();
            }
            Ask::DeadLetters => {
                let letters = self.letters.as_mut().ok_or_else(|| {
                    Error::invalid("this test sets no rows aside").mend("Make the harness `.with_dead_letters()`.")
                })?;
                return letters.take();
            }
        }
        self.stepper.step_until_idle()?;
        Ok(Vec::new())
    }

    fn push(&mut self, source: &str, rows: &[Value]) -> Result<()> {
        let there = list(self.inputs.keys());
        let (schema, input) = self.inputs.get(source).ok_or_else(|| unknown("source", source, &there))?;
        let failed = |e| Error::invalid(format!("a row for source '{source}' does not fit its columns: {e}"));
        let mut decoder = arrow_json::ReaderBuilder::new(schema.clone()).build_decoder().map_err(failed)?;
        decoder.serialize(rows).map_err(failed)?;
        if let Some(batch) = decoder.flush().map_err(failed)? {
            input.push(Batch::new(batch.num_rows(), batch.columns().to_vec(), None)?);
        }
        Ok(())
    }

    fn raise_watermark(&mut self, ms: i64) -> Result<()> {
        // Sources learn of their splits in their first steps, and a split that is not known can't be raised.
        self.stepper.step_until_idle()?;
        if self.stepper.raise_watermark(Watermark(ms.min(Watermark::MAX.0 - 1)))? {
            return Ok(());
        }
        let why = if self.stepper.finished() { "its input ended" } else { "no stream has a .watermark(...)" };
        Err(Error::invalid(format!("the job has no event time to move: {why}")))
    }
}

fn output(schema: SchemaRef) -> (Arc<dyn Sink>, Output) {
    let (sink, rows) = Collect::sink();
    (sink, Output { schema, rows, taken: 0 })
}

impl Output {
    /// The rows since the last call.
    fn take(&mut self) -> Result<Vec<Value>> {
        let mut writer = arrow_json::ArrayWriter::new(Vec::new());
        let batches = self.rows.batches();
        for batch in batches.iter().skip(self.taken) {
            writer.write(&RecordBatch::try_new(self.schema.clone(), batch.columns().to_vec())?)?;
        }
        self.taken = batches.len();
        writer.finish()?;
        let text = writer.into_inner();
        if text.is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_slice(&text).map_err(|e| Error::internal(e.to_string()))
    }
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let mut names: Vec<&str> = names.map(String::as_str).collect();
    names.sort_unstable();
    names.join(", ")
}

fn unknown(what: &str, name: &str, there: &str) -> Error {
    Error::invalid(format!("the job has no {what} '{name}'")).mend(format!("There is: {there}."))
}
