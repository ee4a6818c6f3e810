//! A join on its own: a plan of two sources, the join and a sink, and an output that collects.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::{InputIndex, MaxParallelism, NodeId, Port, SubtaskId, SubtaskIndex};
use tidemill_core::memory::JobMemory;
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::operator::{DeadLetter, Operator, OperatorContext, Output, Progress};
use tidemill_core::plan::{
    DataType, Exchange, Field, Input, Node, NodeKind, Origin, Output as Port_, OutputField, PLAN_VERSION, Plan,
};
use tidemill_core::time::{SystemClock, Watermark};
use tidemill_core::{Batch, Result};
use tidemill_state::MemoryBackend;

use crate::operators::join::build;
use crate::operators::{Begin, Build};

/// Fields of one input, and which of them are its key.
pub(super) struct Side {
    pub(super) fields: Vec<Field>,
    pub(super) key: Vec<u32>,
}

pub(super) fn int(name: &str) -> Field {
    Field::new(name, DataType::Int64, false)
}

/// A join under test.
pub(super) struct Join {
    pub(super) operator: Box<dyn Operator>,
    pub(super) metrics: Arc<TaskMetrics>,
    pub(super) out: Collected,
}

/// What came out.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) batches: Vec<Batch>,
    pub(super) letters: Vec<DeadLetter>,
    /// Full after so many batches of one call; 0: never.
    pub(super) room: usize,
    /// Batches of the call.
    pub(super) in_call: usize,
    /// Counts instead of keeping.
    pub(super) discard: bool,
    pub(super) rows: usize,
}

impl Output for Collected {
    fn emit(&mut self, port: Port, batch: Batch) -> Result<()> {
        assert_eq!(port, Port(0));
        assert!(!batch.is_empty());
        self.rows += batch.rows();
        self.in_call += 1;
        if !self.discard {
            self.batches.push(batch);
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.room > 0 && self.in_call >= self.room
    }

    fn dead_letter(&mut self, letter: DeadLetter) -> Result<()> {
        self.letters.push(letter);
        Ok(())
    }
}

impl Join {
    /// Joins with these output columns, each (input, column).
    pub(super) fn new(kind: NodeKind, left: Side, right: Side, output: &[(u32, u32)], batch_rows: usize) -> Self {
        Self::within(JobMemory::unlimited(), kind, left, right, output, batch_rows)
    }

    /// The same, with its caches counted there.
    pub(super) fn within(
        memory: Arc<JobMemory>,
        kind: NodeKind,
        left: Side,
        right: Side,
        output: &[(u32, u32)],
        batch_rows: usize,
    ) -> Self {
        let graph = graph(kind, left, right, output);
        let metrics = Arc::new(TaskMetrics::default());
        let context = OperatorContext {
            subtask: SubtaskId {
                job: "test".into(),
                node: NodeId(2),
                operator: "pairs".into(),
                index: SubtaskIndex(0),
                parallelism: 1,
            },
            max_parallelism: MaxParallelism::DEFAULT,
            batch_rows,
            clock: Arc::new(SystemClock),
            metrics: Arc::clone(&metrics),
            memory,
        };
        let backend = MemoryBackend::new();
        let begin = Begin::fresh(MaxParallelism::DEFAULT);
        let operator =
            build(Build { graph: &graph, id: NodeId(2), context, backend: &backend, begin, user: None }).unwrap();
        Self { operator, metrics, out: Collected::default() }
    }

    pub(super) fn rows(&mut self, input: u32, batch: Batch) {
        self.out.in_call = 0;
        let progress = self.operator.process(InputIndex(input), batch, &mut self.out).unwrap();
        self.finish(progress);
    }

    pub(super) fn watermark(&mut self, watermark: i64) {
        self.out.in_call = 0;
        let progress = self.operator.on_watermark(Watermark(watermark), &mut self.out).unwrap();
        self.finish(progress);
    }

    fn finish(&mut self, mut progress: Progress) {
        while progress == Progress::More {
            self.out.in_call = 0;
            progress = self.operator.resume(&mut self.out).unwrap();
        }
    }
}

fn graph(kind: NodeKind, left: Side, right: Side, output: &[(u32, u32)]) -> JobGraph {
    let source = |name: &str, fields: &[Field]| Node {
        uid: name.into(),
        name: name.into(),
        parallelism: None,
        inputs: vec![],
        outputs: vec![port(fields.iter().map(|f| (f.clone(), Origin::New)))],
        kind: NodeKind::Source { binding: name.into(), event_time: None },
    };
    let fields = [&left.fields, &right.fields];
    let paired = output.iter().enumerate().map(|(i, &(input, column))| {
        let field = &fields[input as usize][column as usize];
        let field = Field { name: format!("{i}"), ..field.clone() };
        (field, Origin::Input { input, column })
    });
    let input = |node: u32, exchange| Input { node, port: 0, exchange, reads: vec![] };
    let nodes = vec![
        source("left", &left.fields),
        source("right", &right.fields),
        Node {
            uid: "pairs".into(),
            name: "pairs".into(),
            parallelism: None,
            inputs: vec![input(0, Exchange::Hash(left.key)), input(1, Exchange::Hash(right.key))],
            outputs: vec![port(paired)],
            kind,
        },
        Node {
            uid: "out".into(),
            name: "out".into(),
            parallelism: None,
            inputs: vec![input(2, Exchange::Forward)],
            outputs: vec![],
            kind: NodeKind::Sink { binding: "out".into() },
        },
    ];
    // Not pruned, so that a join meets columns which it has no use for.
    JobGraph::from_plan(Plan { version: PLAN_VERSION, name: "test".into(), nodes }).unwrap()
}

fn port(fields: impl Iterator<Item = (Field, Origin)>) -> Port_ {
    Port_ { name: "main".into(), fields: fields.map(|(field, origin)| OutputField { field, origin }).collect() }
}

/// The values of a column as text, null as "-".
pub(super) fn texts(column: &ArrayRef) -> Vec<String> {
    let value = |row: usize| match column.data_type() {
        _ if column.is_null(row) => "-".to_owned(),
        arrow::datatypes::DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        arrow::datatypes::DataType::Timestamp(..) => {
            column.as_primitive::<TimestampMillisecondType>().value(row).to_string()
        }
        _ => column.as_string_view().value(row).to_owned(),
    };
    (0..column.len()).map(value).collect()
}

/// The benchmark's hash, here for making input.
pub(super) fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Numbers from a seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// From 0 up to `below`.
    pub(super) fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        (mix(self.0 ^ 0xABCD) >> 16) % below.max(1)
    }
}
