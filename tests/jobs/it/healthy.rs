//! A job that goes on beside the evil ones, in the same sandbox and of the same component: a filter, then a running count
//! per key, on two slots. Its sink knows each row that must come, in order per key.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::Int64Type;
use tidemill_connector_builtin::Collect;
use tidemill_core::connector::{
    Boundedness, Committable, Guarantee, ReaderPoll, Sink, SinkCommitter, SinkContext, SinkWriter, Source,
    SourceContext, SourceReader, Split, SplitEnumerator, SplitId, Waker,
};
use tidemill_core::ids::Epoch;
use tidemill_core::plan::{
    DataType, Exchange, Field, Input, Node, NodeKind, Origin, Output, OutputField, PLAN_VERSION, Plan, State,
};
use tidemill_core::time::SystemClock;
use tidemill_core::{Batch, Result};
use tidemill_dataflow::{Ending, JobHandle};
use tidemill_wasm::{Component, WasmCode};

use crate::support::{Splits, job};

const SPLITS: u32 = 2;
const BATCH_ROWS: i64 = 1_000;
/// Keys of one split; split and key of a row follow from its key column.
const KEYS: i64 = 50;

/// The job, running.
pub struct Healthy {
    handle: JobHandle,
    work: Arc<Work>,
    granted: u64,
}

/// What there is to do, and what was done.
#[derive(Default)]
struct Work {
    /// Batches per split up to now.
    batches: AtomicU64,
    ended: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
    right: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Healthy {
    pub fn start(component: &Component) -> Self {
        let work = Arc::<Work>::default();
        let code = Arc::new(WasmCode::new(component.clone(), vec![("do".into(), "good".into())]));
        let mut spec = job("healthy", plan(), code, Arc::new(Granted(work.clone()))).spec;
        spec.sinks.insert("out".to_owned(), Arc::new(Checking(work.clone())));
        spec.clock = Arc::new(SystemClock);
        spec.settings.parallelism = 2;
        Self { handle: tidemill_dataflow::run(spec).unwrap(), work, granted: 0 }
    }

    /// Gives it more to do.
    pub fn grant(&mut self, batches: u64) {
        self.granted += batches;
        self.work.batches.store(self.granted, Ordering::SeqCst);
        self.work.wake();
    }

    /// Waits until it has done all that it was given, and checks it.
    pub fn check(&self, beside: &str) {
        // One row of two is let through, of each of the splits.
        let expected = self.granted * BATCH_ROWS as u64 / 2 * u64::from(SPLITS);
        while self.work.right.load(Ordering::SeqCst) < expected && !self.handle.is_finished() {
            assert!(self.work.wrong.lock().unwrap().is_empty(), "{beside}: {:?}", self.work.wrong.lock().unwrap());
            std::thread::yield_now();
        }
        assert!(!self.handle.is_finished(), "the healthy job ended beside {beside}");
        assert_eq!(self.work.right.load(Ordering::SeqCst), expected, "rows of the healthy job beside {beside}");
    }

    pub fn end(self) {
        self.check("the end");
        self.work.ended.store(true, Ordering::SeqCst);
        self.work.wake();
        assert_eq!(self.handle.wait().unwrap().ending, Ending::Finished);
        assert!(self.work.wrong.lock().unwrap().is_empty(), "{:?}", self.work.wrong.lock().unwrap());
    }
}

impl Work {
    fn wake(&self) {
        self.wakers.lock().unwrap().iter().for_each(Waker::wake);
    }
}

fn plan() -> Plan {
    let field = |name: &str, origin| OutputField { field: Field::new(name, DataType::Int64, false), origin };
    let copied = |name: &str, column| field(name, Origin::Input { input: 0, column });
    let output = |fields| vec![Output { name: "main".into(), fields }];
    let input = |node, exchange, reads| vec![Input { node, port: 0, exchange, reads }];
    let node = |uid: &str, inputs, outputs, kind| Node {
        uid: uid.into(),
        name: uid.into(),
        parallelism: None,
        inputs,
        outputs,
        kind,
    };
    let read = output(vec![field("key", Origin::New), field("id", Origin::New)]);
    let even = output(vec![copied("key", 0), copied("id", 1)]);
    let counted = output(vec![copied("key", 0), copied("id", 1), field("n", Origin::New)]);
    let states = vec![State::value("count", DataType::Int64)];
    let nodes = vec![
        node("in", vec![], read, NodeKind::Source { binding: "in".into(), event_time: None }),
        node("even", input(0, Exchange::Forward, vec![1]), even, NodeKind::Transform { reads_timestamps: false }),
        node(
            "count",
            input(1, Exchange::Hash(vec![0]), vec![0]),
            counted,
            NodeKind::Process { reads_timestamps: false, states },
        ),
        node("to out", input(2, Exchange::Forward, vec![]), vec![], NodeKind::Sink { binding: "out".into() }),
    ];
    Plan { version: PLAN_VERSION, name: "healthy".into(), nodes }
}

/// Batches as they are granted.
struct Granted(Arc<Work>);

impl Source for Granted {
    fn boundedness(&self) -> Boundedness {
        Boundedness::Bounded
    }

    fn enumerator(&self, _parallelism: u32) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(Splits(SPLITS)))
    }

    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>> {
        self.0.wakers.lock().unwrap().push(context.waker);
        Ok(Box::new(GrantedReader { work: self.0.clone(), splits: vec![] }))
    }
}

struct GrantedReader {
    work: Arc<Work>,
    /// Each with the batches that it gave.
    splits: Vec<(Split, u64)>,
}

impl SourceReader for GrantedReader {
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()> {
        self.splits.extend(splits.into_iter().map(|split| (split, 0)));
        Ok(())
    }

    fn no_more_splits(&mut self) {}

    fn poll(&mut self) -> Result<ReaderPoll> {
        let ended = self.work.ended.load(Ordering::SeqCst);
        let granted = self.work.batches.load(Ordering::SeqCst);
        let Some((split, given)) = self.splits.iter_mut().find(|(_, given)| *given < granted) else {
            return Ok(if ended { ReaderPoll::Finished } else { ReaderPoll::Pending(None) });
        };
        let number = i64::from(u32::from_le_bytes(split.description.clone().try_into().unwrap()));
        let first = *given as i64 * BATCH_ROWS;
        *given += 1;
        let ids = first..first + BATCH_ROWS;
        let keys = ids.clone().map(|id| i64::from(SPLITS) * (id / 2 % KEYS) + number);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int64Array::from_iter_values(keys)), Arc::new(Int64Array::from_iter_values(ids))];
        let batch = Batch::new(BATCH_ROWS as usize, columns, None)?;
        Ok(ReaderPoll::Batch { split: SplitId(split.id.0.clone()), batch, rejected: vec![], progress: 0 })
    }

    fn snapshot(&mut self, _epoch: Epoch) -> Result<Vec<Split>> {
        Ok(Vec::new())
    }
}

/// Checks each row as it comes.
struct Checking(Arc<Work>);

impl Sink for Checking {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn writer(&self, _context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(CheckingWriter { work: self.0.clone(), last: HashMap::new() }))
    }

    fn committer(&self) -> Result<Box<dyn SinkCommitter>> {
        Collect::sink().0.committer()
    }
}

struct CheckingWriter {
    work: Arc<Work>,
    /// Per key, the last count.
    last: HashMap<i64, i64>,
}

impl SinkWriter for CheckingWriter {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        let ints = |column: usize| batch.column(column).unwrap().as_primitive::<Int64Type>().values();
        let mut right = 0;
        for ((&key, &id), &n) in ints(0).iter().zip(ints(1)).zip(ints(2)) {
            let last = self.last.entry(key).or_default();
            let expected = (*last + 1, 2 * (key / i64::from(SPLITS)) + 2 * KEYS * *last);
            *last += 1;
            if (n, id) == expected {
                right += 1;
            } else {
                let wrong = format!("key {key}: count and id are {:?}, not {expected:?}", (n, id));
                self.work.wrong.lock().unwrap().push(wrong);
            }
        }
        self.work.right.fetch_add(right, Ordering::SeqCst);
        Ok(())
    }

    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<Committable>> {
        Ok(Vec::new())
    }
}
