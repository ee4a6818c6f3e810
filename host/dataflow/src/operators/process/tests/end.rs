//! Code without a key, with an operator list: rows that fail, and the end of the input.

use tidemill_core::plan::{Redistribution, StateKind};
use tidemill_core::user::{CollectionChange, CollectionUpdate};

use super::*;

/// Source, a process function without a key, sink.
fn unkeyed_graph() -> JobGraph {
    let field = |name: &str| plan::OutputField { field: plan::Field::new(name, INT, false), origin: plan::Origin::New };
    let output = || plan::Output { name: "main".into(), fields: vec![field("n")] };
    let input = |node| plan::Input { node, port: 0, exchange: plan::Exchange::Forward, reads: vec![0] };
    let kind = StateKind::OperatorList { redistribution: Redistribution::Split };
    let states = vec![plan::State { kind, ..plan::State::value("held", INT) }];
    let node = |uid: &str, inputs, outputs, kind| plan::Node {
        uid: uid.into(),
        name: uid.into(),
        parallelism: None,
        inputs,
        outputs,
        kind,
    };
    let nodes = vec![
        node("in", vec![], vec![output()], NodeKind::Source { binding: "in".into(), event_time: None }),
        node("p", vec![input(0)], vec![output()], NodeKind::Process { reads_timestamps: false, states }),
        node("out", vec![input(1)], vec![], NodeKind::Sink { binding: "out".into() }),
    ];
    JobGraph::from_plan(plan::Plan { version: plan::PLAN_VERSION, name: "test".into(), nodes }).unwrap()
}

/// A row that is refused after it was appended; one after which the end is.
const REFUSED: i64 = 13;
const END_REFUSED: i64 = 14;

/// Holds everything to the end, and then forwards it or emits it anew.
struct Holder {
    forwards: bool,
    ends: Arc<Mutex<Vec<i64>>>,
}

fn change(rows: usize, change: CollectionChange) -> CollectionUpdate {
    CollectionUpdate { state: 0, keys: vec![0; rows].into(), change }
}

impl UserCode for Holder {
    fn transform(&mut self, _: CallClock, _: u32, _: &Batch, _: &mut Effects) -> Result<(), UserFailure> {
        Err(UserFailure::Fatal("not a transform".into()))
    }

    fn process(
        &mut self,
        _: CallClock,
        _: u32,
        batch: &Batch,
        keys: &KeySet<'_>,
        effects: &mut Effects,
    ) -> Result<(), UserFailure> {
        assert_eq!((keys.keys, keys.key_of_row.len()), (0, 0));
        let items = ints(batch, 0);
        let refused = items.iter().zip(0..).filter(|(n, _)| **n == REFUSED);
        let refused: Vec<_> = refused.map(|(_, row)| (row, "refused".to_owned())).collect();
        let appended = CollectionChange::Append(Arc::new(Int64Array::from(items)));
        effects.collections.push(change(batch.rows(), appended));
        if refused.is_empty() { Ok(()) } else { Err(UserFailure::Rows(refused)) }
    }

    /// What is left in the list shows that the host empties it.
    fn on_timers(&mut self, _: CallClock, timers: &DueTimers<'_>, effects: &mut Effects) -> Result<(), UserFailure> {
        assert_eq!((timers.domain, timers.key_columns.len(), timers.keys.keys), (TimeDomain::Event, 0, 0));
        self.ends.lock().unwrap().extend_from_slice(timers.timestamps);
        let reader = timers.keys.collections.as_ref().unwrap();
        let items = reader.read(0, &[0], usize::MAX).unwrap().unwrap().as_list::<i32>().value(0);
        let rows = items.len();
        if items.as_primitive::<Int64Type>().values().contains(&END_REFUSED) {
            return Err(UserFailure::Trap("unreachable".into()));
        }
        let rows = match self.forwards {
            true => EmittedRows::Of(vec![0; rows].into()),
            // As the sandbox has it: of the timer.
            false => EmittedRows::New { rows, timestamps: Some(vec![timers.timestamps[0]; rows].into()) },
        };
        effects.emissions.push(Emission { port: Port(0), rows, columns: vec![items] });
        Ok(())
    }

    fn accumulate(&mut self, _: u32, _: &[u32], _: &Batch, a: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        Ok(a.clone())
    }

    fn merge(&mut self, _: u32, left: &ArrayRef, _: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        Ok(left.clone())
    }

    fn finish(&mut self, _: u32, a: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        Ok(a.clone())
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}

/// Rows with their timestamps, and letters.
#[derive(Default)]
struct Emitted {
    rows: Vec<(i64, Option<i64>)>,
    letters: Vec<String>,
}

impl Output for Emitted {
    fn emit(&mut self, _: Port, batch: Batch) -> Result<()> {
        let time = |row: usize| batch.timestamps().map(|times| times[row]);
        self.rows.extend(ints(&batch, 0).into_iter().enumerate().map(|(row, n)| (n, time(row))));
        Ok(())
    }

    fn is_full(&self) -> bool {
        false
    }

    fn dead_letter(&mut self, letter: DeadLetter) -> Result<()> {
        self.letters.push(letter.reason);
        Ok(())
    }
}

struct Held {
    operator: Box<dyn Operator>,
    out: Emitted,
    ends: Arc<Mutex<Vec<i64>>>,
}

impl Held {
    fn new(forwards: bool) -> Self {
        let graph = unkeyed_graph();
        let ends = Arc::<Mutex<Vec<i64>>>::default();
        let (id, index) = (NodeId(1), SubtaskIndex(0));
        let subtask = SubtaskId { job: "test".into(), node: id, operator: "p".into(), index, parallelism: 1 };
        let context = OperatorContext {
            subtask,
            max_parallelism: MaxParallelism::DEFAULT,
            batch_rows: 10,
            clock: Arc::new(HandClock::default()),
            metrics: Arc::default(),
            memory: tidemill_core::memory::JobMemory::unlimited(),
        };
        let operator = super::super::build(Build {
            graph: &graph,
            id,
            context,
            begin: Begin::fresh(MaxParallelism::DEFAULT),
            backend: &MemoryBackend::new(),
            user: Some(Box::new(Holder { forwards, ends: Arc::clone(&ends) })),
        });
        Self { operator: operator.unwrap(), out: Emitted::default(), ends }
    }

    fn push(&mut self, rows: &[i64], times: Option<&[i64]>) {
        let column: ArrayRef = Arc::new(Int64Array::from(rows.to_vec()));
        let batch = Batch::new(rows.len(), vec![column], times.map(|times| times.to_vec().into())).unwrap();
        assert_eq!(self.operator.process(InputIndex(0), batch, &mut self.out).unwrap(), Progress::Done);
    }

    fn watermark(&mut self, watermark: i64) {
        assert_eq!(self.operator.on_watermark(Watermark(watermark), &mut self.out).unwrap(), Progress::Done);
    }

    fn items(&mut self) -> Option<u64> {
        let frozen = self.operator.snapshot_unkeyed(SnapshotKind::Portable).unwrap();
        assert_eq!((frozen.len(), frozen[0].name.as_str()), (1, "held"));
        frozen[0].items
    }
}

#[test]
fn the_end_is_told_once_and_leaves_nothing() {
    for forwards in [true, false] {
        let mut held = Held::new(forwards);
        held.push(&[1, 2], Some(&[50, 40]));
        held.watermark(45);
        assert_eq!((held.out.rows.len(), held.items()), (0, Some(2)));
        held.watermark(i64::MAX);
        assert_eq!(held.out.rows, [(1, Some(50)), (2, Some(50))], "not late, and not before any row");
        assert_eq!(held.items(), Some(0));
        held.watermark(i64::MAX);
        assert_eq!((held.out.rows.len(), held.ends.lock().unwrap().as_slice()), (2, &[50][..]));
    }
    let mut held = Held::new(true);
    held.push(&[1], Some(&[50]));
    held.watermark(99);
    held.watermark(i64::MAX);
    assert_eq!(held.out.rows, [(1, Some(100))]);
}

#[test]
fn without_event_time_the_end_has_none() {
    for forwards in [true, false] {
        let mut held = Held::new(forwards);
        held.push(&[1, 2], None);
        held.watermark(i64::MAX);
        assert_eq!(held.out.rows, [(1, None), (2, None)]);
        assert_eq!(held.ends.lock().unwrap().as_slice(), [i64::MAX]);
    }
}

#[test]
fn an_end_with_empty_lists_is_not_told() {
    let mut held = Held::new(true);
    held.watermark(i64::MAX);
    assert!(held.out.rows.is_empty() && held.ends.lock().unwrap().is_empty());
}

#[test]
fn a_row_without_a_key_that_fails_is_set_aside_and_not_in_the_list() {
    let mut held = Held::new(true);
    held.push(&[1, REFUSED, 2], None);
    assert_eq!((held.items(), held.out.letters.as_slice()), (Some(2), &["refused".to_owned()][..]));
    held.watermark(i64::MAX);
    assert_eq!(held.out.rows, [(1, None), (2, None)]);
}

#[test]
fn an_end_that_fails_is_set_aside_too() {
    let mut held = Held::new(true);
    held.push(&[END_REFUSED], None);
    held.watermark(i64::MAX);
    assert_eq!((held.out.letters.len(), held.out.rows.len()), (1, 0));
    assert!(held.out.letters[0].starts_with("the end of the input: "), "{:?}", held.out.letters);
}
