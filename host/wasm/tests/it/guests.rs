//! Builds guests and opens them as operators of any shape: one place that knows the crate's API.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{Field as ArrowField, Int64Type};
use tidemill_core::ids::{NodeId, SubtaskId, SubtaskIndex};
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::time::{Timestamp, Watermark};
use tidemill_core::user::{CallClock, Effects, ReadCollections, UserCode, UserCodeFactory, UserFailure};
use tidemill_core::{Batch, Error};
use tidemill_plan::{
    Aggregate, AggregateFunction, DataType, Exchange, Field, Input, Node, NodeKind, Origin, Output, OutputField,
    Redistribution, State, StateKind, Windows,
};
use tidemill_wasm::{Component, Limits, Sandbox, SandboxSettings, WasmCode, componentize};

/// The core module of `tests/guests/evil`, built once per run.
pub static EVIL_MODULE: LazyLock<Vec<u8>> = LazyLock::new(|| build("evil"));
/// As a component.
pub static EVIL: LazyLock<Vec<u8>> = LazyLock::new(|| componentize(&EVIL_MODULE).unwrap());
/// One sandbox for all tests: what one guest does must not harm the others.
pub static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| sandbox(limits()));
static COMPONENT: LazyLock<Component> = LazyLock::new(|| SANDBOX.load("evil.wasm", &EVIL).unwrap());
/// Another for the deeds that only time ends; in the first, a busy machine must not end what something else should.
pub static HASTY: LazyLock<Sandbox> = LazyLock::new(|| sandbox(Limits { call_ms: 200, ..limits() }));
static HASTY_COMPONENT: LazyLock<Component> = LazyLock::new(|| HASTY.load("evil.wasm", &EVIL).unwrap());

/// Small, so that the evil ones meet them soon.
pub fn limits() -> Limits {
    Limits { memory_bytes: 64 << 20, call_ms: 60_000, transfer_bytes: 8 << 20, ..Limits::default() }
}

pub fn sandbox(limits: Limits) -> Sandbox {
    Sandbox::new(SandboxSettings { limits, cache: None }).unwrap()
}

fn build(name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target =
        std::env::var_os("TIDEMILL_GUEST_TARGET_DIR").map_or_else(|| root.join("target/guests"), PathBuf::from);
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--target", "wasm32-unknown-unknown", "--target-dir"])
        .arg(&target)
        .current_dir(root.join("tests/guests").join(name))
        .env("RUSTFLAGS", "-C target-feature=+simd128")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status();
    assert!(status.unwrap().success(), "the guest does not build; scripts/setup installs what it needs");
    std::fs::read(target.join("wasm32-unknown-unknown/release").join(format!("{name}.wasm"))).unwrap()
}

/// The evil module with another deed of `plan`.
pub fn with_plan(deed: &str) -> Vec<u8> {
    let mark = b"the deed of plan:";
    let mut module = EVIL_MODULE.clone();
    let at = module.windows(mark.len()).position(|w| w == mark).unwrap() + mark.len();
    module[at..at + 15].copy_from_slice(format!("{deed:<15}").as_bytes());
    componentize(&module).unwrap()
}

/// The evil guest as it was built for version 0.1.0 of the contract.
pub fn of_0_1_0() -> Vec<u8> {
    let (new, old) = (b"@0.1.1", b"@0.1.0");
    let mut module = EVIL_MODULE.clone();
    let names: Vec<usize> = (0..module.len() - new.len()).filter(|&at| module[at..].starts_with(new)).collect();
    assert!(!names.is_empty(), "the contract has another version now");
    names.into_iter().for_each(|at| module[at..at + new.len()].copy_from_slice(old));
    componentize(&module).unwrap()
}

pub fn field(name: &str, data_type: DataType, nullable: bool) -> Field {
    Field { name: name.into(), data_type, nullable }
}

pub fn new(name: &str, data_type: DataType) -> OutputField {
    OutputField { field: field(name, data_type, false), origin: Origin::New }
}

pub fn inherited(name: &str, data_type: DataType) -> OutputField {
    OutputField { field: field(name, data_type, false), origin: Origin::Input { input: 0, column: 0 } }
}

fn node(kind: NodeKind, fields: Vec<OutputField>) -> Node {
    Node {
        uid: "deed".into(),
        name: "deed".into(),
        parallelism: None,
        inputs: vec![Input { node: 0, port: 0, exchange: Exchange::Forward, reads: vec![0] }],
        outputs: vec![Output { name: "main".into(), fields }],
        kind,
    }
}

pub fn transform(fields: Vec<OutputField>) -> Node {
    node(NodeKind::Transform { reads_timestamps: false }, fields)
}

/// With one state, an int64.
pub fn process(fields: Vec<OutputField>) -> Node {
    let states = vec![State::value("count", DataType::Int64)];
    node(NodeKind::Process { reads_timestamps: false, states }, fields)
}

/// With a value, a list and a map of int64s.
pub fn collecting(fields: Vec<OutputField>) -> Node {
    let of = |name: &str, kind| State { kind, ..State::value(name, DataType::Int64) };
    let map = StateKind::Map { key: DataType::Int64 };
    let states = vec![State::value("count", DataType::Int64), of("items", StateKind::List), of("entries", map)];
    node(NodeKind::Process { reads_timestamps: false, states }, fields)
}

/// The same with a broadcast state in the place of the map.
pub fn sharing(fields: Vec<OutputField>) -> Node {
    let mut node = collecting(fields);
    if let NodeKind::Process { states, .. } = &mut node.kind {
        states[2].kind = StateKind::Broadcast { key: DataType::Int64 };
    }
    node
}

/// The same with an operator list in the place of the list.
pub fn listing(fields: Vec<OutputField>) -> Node {
    let mut node = collecting(fields);
    if let NodeKind::Process { states, .. } = &mut node.kind {
        states[1].kind = StateKind::OperatorList { redistribution: Redistribution::Split };
    }
    node
}

/// Of each key the list of its number and one more, and the map of 7 to 70.
pub struct Collections;

/// What one key of a read takes, and one entry.
pub const READ_BYTES: usize = 20;

impl ReadCollections for Collections {
    fn read(&self, state: usize, keys: &[u32], limit: usize) -> Result<Option<ArrayRef>, Error> {
        assert_eq!(state, 1);
        if keys.len() * READ_BYTES > limit {
            return Ok(None);
        }
        let items = ids(&keys.iter().flat_map(|&k| [i64::from(k), i64::from(k) + 1]).collect::<Vec<_>>());
        let field = Arc::new(ArrowField::new("item", items.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths(keys.iter().map(|_| 2));
        Ok(Some(Arc::new(ListArray::new(field, offsets, items, None))))
    }

    fn get(&self, state: usize, keys: &[u32], map_keys: &ArrayRef, limit: usize) -> Result<Option<ArrayRef>, Error> {
        assert_eq!((state, keys.len()), (2, map_keys.len()));
        let values = map_keys.as_primitive::<Int64Type>().iter().map(|k| (k == Some(7)).then_some(70));
        Ok((keys.len() * READ_BYTES <= limit).then(|| Arc::new(values.collect::<Int64Array>()) as _))
    }
}

/// With one user aggregator over int64s.
pub fn window() -> Node {
    let function = AggregateFunction::User { accumulator: DataType::Int64, output: DataType::Int64 };
    let kind = NodeKind::Window {
        windows: Windows::Tumbling { size_ms: 1, offset_ms: 0 },
        allowed_lateness_ms: 0,
        late_port: None,
        aggregates: vec![Aggregate { name: "sum".into(), function }],
    };
    node(kind, vec![])
}

pub fn subtask() -> SubtaskId {
    SubtaskId { job: "evil".into(), node: NodeId(1), operator: "deed".into(), index: SubtaskIndex(0), parallelism: 1 }
}

/// An instance that does `deed` in each call.
pub fn try_open(deed: &str, node: &Node) -> Result<(Box<dyn UserCode>, Arc<TaskMetrics>), Error> {
    let metrics = Arc::new(TaskMetrics::default());
    let component = if deed.contains("loop") { &HASTY_COMPONENT } else { &COMPONENT };
    let code = WasmCode::new((*component).clone(), vec![("do".into(), deed.into())]);
    Ok((code.open(&subtask(), node, &metrics)?, metrics))
}

pub fn open(deed: &str, node: &Node) -> Box<dyn UserCode> {
    try_open(deed, node).unwrap().0
}

pub const CLOCK: CallClock = CallClock { watermark: Watermark(5), processing_time: Timestamp(7) };

pub fn ids(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

pub fn batch(columns: Vec<ArrayRef>) -> Batch {
    Batch::new(columns[0].len(), columns, None).unwrap()
}

/// One call of a transform with these rows.
pub fn call(code: &mut dyn UserCode, batch: &Batch) -> Result<Effects, UserFailure> {
    let mut effects = Effects::default();
    code.transform(CLOCK, 0, batch, &mut effects).map(|()| effects)
}

/// A healthy operator in the same process still does what it should.
pub fn check_neighbour(good: &mut dyn UserCode) {
    use tidemill_core::user::EmittedRows;
    let effects = call(good, &batch(vec![ids(&[1, 2, 3, 4])])).unwrap();
    let EmittedRows::Of(rows) = &effects.emissions[0].rows else { panic!("{effects:?}") };
    assert_eq!(rows[..], [1, 3]);
}
