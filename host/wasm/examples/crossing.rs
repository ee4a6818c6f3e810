//! What the boundary costs: `cargo run --release -p tidemill-wasm --example crossing -- path/to/evil.wasm`.
//!
//! The guest is `tests/guests/evil` (a core module, as cargo builds it); it does plain things without an SDK, so what is
//! measured is the crossing and a loop. Nanoseconds per row, the best of several runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, StringViewArray};
use tidemill_core::Batch;
use tidemill_core::ids::{NodeId, SubtaskId, SubtaskIndex};
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::time::{Timestamp, Watermark};
use tidemill_core::user::{CallClock, Effects, KeySet, UserCode, UserCodeFactory};
use tidemill_plan::{DataType, Field, Node, NodeKind, Origin, Output, OutputField, State};
use tidemill_wasm::{Sandbox, SandboxSettings, WasmCode, componentize};

const ROWS: usize = 4_096;
const CLOCK: CallClock = CallClock { watermark: Watermark(0), processing_time: Timestamp(0) };

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Done {
    let path = std::env::args().nth(1).ok_or("give the path of evil.wasm")?;
    let component = componentize(&std::fs::read(path)?)?;
    let cache = std::env::temp_dir().join(format!("tidemill-crossing-{}", std::process::id()));
    let settings = SandboxSettings { cache: Some(cache.clone()), ..SandboxSettings::default() };

    let (compile, _) = timed(|| Sandbox::new(settings.clone())?.load("evil.wasm", &component))?;
    let (engine, sandbox) = timed(|| Sandbox::new(settings.clone()))?;
    let (cached, loaded) = timed(|| sandbox.load("evil.wasm", &component))?;
    println!("compile {compile:?}, start an engine {engine:?}, load from the cache {cached:?}: {:?}", loaded.sizes());
    std::fs::remove_dir_all(cache)?;
    let (plan, _) = timed(|| loaded.plan())?;
    let factory = |deed: &str| WasmCode::new(loaded.clone(), vec![("do".into(), deed.into())]);
    let (open, _) = timed(|| open(&factory("good"), &transform(None)))?;
    println!("plan {plan:?}, open an instance {open:?}");

    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS as i64));
    let texts: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..ROWS).map(|i| format!("word{}", i % 1_000))));
    let double = Some(("euro", DataType::Float64));
    let number = Some(("n", DataType::Int64));
    let text = Some(("word", DataType::Utf8));
    for (what, deed, made, column) in [
        ("empty call, one column", "nothing", None, &numbers),
        ("filter an i64, forward half", "good", None, &numbers),
        ("i64 in, i64 out, untouched", "echo", number, &numbers),
        ("i64 in, f64 out", "euro", double, &numbers),
        ("text in", "nothing", None, &texts),
        ("text in, text out", "echo", text, &texts),
    ] {
        let mut code = open_code(&factory(deed), &transform(made))?;
        let batch = Batch::new(ROWS, vec![Arc::clone(column)], None)?;
        report(what, ROWS, |effects| code.transform(CLOCK, 0, &batch, effects));
    }
    let empty = Batch::new(0, vec![numbers.slice(0, 0)], None)?;
    let mut code = open_code(&factory("nothing"), &transform(None))?;
    report("empty call, no row (ns per call)", 1, |effects| code.transform(CLOCK, 0, &empty, effects));

    let mut code = open_code(&factory("good"), &process())?;
    let batch = Batch::new(ROWS, vec![Arc::clone(&numbers)], None)?;
    for distinct in [100, 1_000, 4_096] {
        let key_of_row: Vec<u32> = (0..ROWS as u32).map(|row| row % distinct).collect();
        let states: [ArrayRef; 1] = [numbers.slice(0, distinct as usize)];
        let keys = KeySet { keys: distinct as usize, key_of_row: &key_of_row, states: &states, collections: None };
        let what = format!("running count, {distinct} keys in a batch");
        report(&what, ROWS, |effects| code.process(CLOCK, 0, &batch, &keys, effects));
    }
    Ok(())
}

fn timed<T, E: Into<Box<dyn std::error::Error>>>(work: impl FnOnce() -> Result<T, E>) -> Done<(Duration, T)> {
    let start = Instant::now();
    let made = work().map_err(Into::into)?;
    Ok((start.elapsed(), made))
}

fn report<E: std::fmt::Debug>(what: &str, rows: usize, mut call: impl FnMut(&mut Effects) -> Result<(), E>) {
    const CALLS: u32 = 500;
    let mut best = f64::MAX;
    let mut effects = Effects::default();
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..CALLS {
            effects.clear();
            if let Err(error) = call(&mut effects) {
                println!("{what}: {error:?}");
                return;
            }
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(CALLS) / rows as f64);
    }
    println!("{what:<40} {best:8.2} ns");
}

fn open(code: &WasmCode, node: &Node) -> tidemill_core::Result<Box<dyn UserCode>> {
    let subtask = SubtaskId {
        job: "crossing".into(),
        node: NodeId(1),
        operator: node.name.clone(),
        index: SubtaskIndex(0),
        parallelism: 1,
    };
    code.open(&subtask, node, &Arc::new(TaskMetrics::default()))
}

fn open_code(code: &WasmCode, node: &Node) -> Done<Box<dyn UserCode>> {
    Ok(open(code, node)?)
}

fn node(kind: NodeKind, made: Option<(&str, DataType)>) -> Node {
    let made =
        made.map(|(name, data_type)| OutputField { field: Field::new(name, data_type, false), origin: Origin::New });
    let outputs = vec![Output { name: "main".into(), fields: made.into_iter().collect() }];
    Node { uid: "op".into(), name: "op".into(), parallelism: None, inputs: vec![], outputs, kind }
}

fn transform(made: Option<(&str, DataType)>) -> Node {
    node(NodeKind::Transform { reads_timestamps: false }, made)
}

fn process() -> Node {
    let states = vec![State::value("count", DataType::Int64)];
    node(NodeKind::Process { reads_timestamps: false, states }, Some(("n", DataType::Int64)))
}
