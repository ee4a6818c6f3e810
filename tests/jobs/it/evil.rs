//! Evil components as whole jobs, one after the other, with a healthy job of the same process beside them. Each ends in a
//! message that names the job, the operator and the mend, or, where a dead-letter sink is bound and rows can be made
//! responsible, in dead letters; the healthy job's output is right to the row.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMillisecondArray};
use tidemill_core::plan::{
    Aggregate, AggregateFunction, DataType, EventTime, Exchange, Field, Input, Node, NodeKind, Origin, Output,
    OutputField, PLAN_VERSION, Plan, State, Windows,
};
use tidemill_core::time::SystemClock;
use tidemill_wasm::{Component, WasmCode};
use wasm_encoder::{
    Component as ComponentBuilder, ComponentExportKind, ComponentExportSection, ComponentImportSection,
    ComponentInstanceSection, ComponentTypeRef, ComponentTypeSection, InstanceType,
};

use crate::guests::{EVIL, EVIL_MODULE, HASTY, SANDBOX};
use crate::healthy::Healthy;
use crate::support::{Given, Job, job};

static COMPONENT: LazyLock<Component> = LazyLock::new(|| SANDBOX.load("evil.wasm", &EVIL).unwrap());
static HASTY_COMPONENT: LazyLock<Component> = LazyLock::new(|| HASTY.load("evil.wasm", &EVIL).unwrap());

/// Batches (per split) that the healthy job is given beside each evil one: some tens of milliseconds of work.
const BESIDE: u64 = 40;
/// Rows of an evil job.
const ROWS: i64 = 4;

/// What runs the deed.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A transform with a new integer, a new text, or no new column.
    Ints,
    Texts,
    Bare,
    /// A process function with a state, and event-time timers.
    Keyed,
    /// Tumbling windows with a user's aggregator.
    Window,
    /// Sliding ones, whose panes are merged.
    Sliding,
}

/// How it must end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    /// So many dead letters; without a sink for them the job fails at the first.
    Letters(usize),
    /// The job fails, whether or not there is a sink for dead letters.
    Fails,
}
use Ends::{Fails, Letters};

const ALL: Ends = Letters(ROWS as usize);

/// Deed, what does it, how it ends, and what the message says.
const DEEDS: &[(&str, Kind, Ends, &[&str])] = &[
    // Running away.
    ("loop", Kind::Ints, ALL, &["longer than 100 ms", "raise limits.call-time", "evil::anywhere (evil.wasm"]),
    ("memory", Kind::Ints, ALL, &["out of memory", "limits.memory is 67108864"]),
    ("recurse", Kind::Ints, ALL, &["recursed", "limits.stack_bytes"]),
    ("huge-emit", Kind::Ints, ALL, &["more than 8388608 bytes", "raise limits.transfer"]),
    ("emit-forever", Kind::Ints, ALL, &["raise limits.transfer"]),
    ("billion-rows", Kind::Bare, ALL, &["rows in one call", "limits.emitted-rows"]),
    // Lies about what is emitted.
    ("row-lie-long", Kind::Ints, ALL, &["column 'n': its values have 8 bytes; 1001 values need 8008"]),
    ("row-lie-short", Kind::Ints, ALL, &["column 'n': its values have 8 bytes; 0 values need 0"]),
    ("index", Kind::Bare, ALL, &["port 'main': its rows name 1, but there are only 1"]),
    ("index-max", Kind::Bare, ALL, &["its rows name 4294967295"]),
    ("port", Kind::Ints, ALL, &["port 7 of a node with 1 (main)"]),
    ("no-columns", Kind::Ints, ALL, &["0 columns where 1 are expected (for n)"]),
    ("offsets-fall", Kind::Texts, ALL, &["its offsets fall from 3 to 1"]),
    ("offsets-start", Kind::Texts, ALL, &["its first offset is 1, not 0"]),
    ("offsets-negative", Kind::Texts, ALL, &["its offsets fall from 0 to -1"]),
    ("offsets-beyond", Kind::Texts, ALL, &["its last offset is 400, but there are 4 bytes"]),
    ("utf8", Kind::Texts, ALL, &["value 1 is not UTF-8"]),
    ("utf8-split", Kind::Texts, ALL, &["starts inside a character"]),
    ("put", Kind::Ints, ALL, &["only calls of keyed have keys"]),
    // Lies about rows that fail, and a truth.
    ("rows-range", Kind::Ints, ALL, &["fails for row 1 of a call with 1 rows"]),
    ("rows-none", Kind::Ints, ALL, &["fails for single rows, but names none"]),
    ("odd", Kind::Bare, Letters(2), &["is odd"]),
    // State and timers.
    ("state", Kind::Keyed, ALL, &["state 9 of a node that declares 1"]),
    ("key", Kind::Keyed, ALL, &["state 'count': its keys name 1"]),
    ("values", Kind::Keyed, ALL, &["state 'count': column 'count': its values have 1 bytes"]),
    ("timer-key", Kind::Keyed, ALL, &["state.set-timers: its keys name 1"]),
    ("put-forever", Kind::Keyed, ALL, &["raise limits.transfer"]),
    // Aggregators.
    ("accumulate:silent", Kind::Window, ALL, &["returned without emitting"]),
    ("accumulate:fewer", Kind::Window, ALL, &["0 results for 1 groups"]),
    ("accumulate:loop", Kind::Window, ALL, &["longer than 100 ms"]),
    ("merge:none", Kind::Sliding, Fails, &["failed in 'merge'", "it is declared without nulls"]),
    ("finish:twice", Kind::Window, Fails, &["failed in 'finish'", "answers once"]),
    // A trap in each export that works on records.
    ("process:trap", Kind::Ints, ALL, &["trapped", "unreachable", "evil::anywhere"]),
    ("process:wild", Kind::Ints, ALL, &["out of bounds memory access"]),
    ("process:panic", Kind::Ints, ALL, &["it said: panicked at", "the sky is falling"]),
    ("keyed:trap", Kind::Keyed, ALL, &["unreachable"]),
    ("on-timers:trap", Kind::Keyed, ALL, &["an event-time timer: ", "unreachable"]),
    ("accumulate:trap", Kind::Window, ALL, &["unreachable"]),
    ("merge:trap", Kind::Sliding, Fails, &["failed in 'merge'", "unreachable", "mend: "]),
    ("finish:trap", Kind::Window, Fails, &["failed in 'finish'", "unreachable", "mend: "]),
    // In `open` no row is to blame; nor in what says that it will never succeed.
    ("open:trap", Kind::Ints, Fails, &["open", "unreachable"]),
    ("open:loop", Kind::Ints, Fails, &["open", "raise limits.call-time"]),
    ("open:memory", Kind::Ints, Fails, &["open", "limits.memory"]),
    ("open:fatal", Kind::Ints, Fails, &["open", "it will not open"]),
    ("fatal", Kind::Ints, Fails, &["never"]),
];

fn output(fields: Vec<OutputField>) -> Vec<Output> {
    vec![Output { name: "main".into(), fields }]
}

fn field(name: &str, data_type: DataType, nullable: bool, origin: Origin) -> OutputField {
    OutputField { field: Field::new(name, data_type, nullable), origin }
}

fn node(uid: &str, inputs: Vec<Input>, outputs: Vec<Output>, kind: NodeKind) -> Node {
    Node { uid: uid.into(), name: uid.into(), parallelism: None, inputs, outputs, kind }
}

fn window(windows: Windows) -> NodeKind {
    let function = AggregateFunction::User { accumulator: DataType::Int64, output: DataType::Int64 };
    let aggregates = vec![Aggregate { name: "sum".into(), function }];
    NodeKind::Window { windows, allowed_lateness_ms: 0, late_port: None, aggregates }
}

/// Source, the operator `deed`, sink.
fn plan(kind: Kind) -> Plan {
    let new = |name: &str, data_type| field(name, data_type, false, Origin::New);
    let event_time = Some(EventTime { column: 1, out_of_orderness_ms: 0, idle_after_ms: None });
    let read = output(vec![new("id", DataType::Int64), new("t", DataType::Timestamp)]);
    let transform = NodeKind::Transform { reads_timestamps: false };
    let states = vec![State::value("count", DataType::Int64)];
    let result = vec![field("sum", DataType::Int64, false, Origin::Aggregate(0))];
    let (exchange, fields, kind) = match kind {
        Kind::Ints => (Exchange::Forward, vec![new("n", DataType::Int64)], transform),
        Kind::Texts => (Exchange::Forward, vec![new("s", DataType::Utf8)], transform),
        Kind::Bare => {
            let copied = field("id", DataType::Int64, false, Origin::Input { input: 0, column: 0 });
            (Exchange::Forward, vec![copied], transform)
        }
        Kind::Keyed => {
            let kind = NodeKind::Process { reads_timestamps: false, states };
            (Exchange::Hash(vec![0]), vec![new("n", DataType::Int64)], kind)
        }
        Kind::Window => (Exchange::Hash(vec![0]), result, window(Windows::Tumbling { size_ms: 1_000, offset_ms: 0 })),
        Kind::Sliding => {
            let windows = Windows::Sliding { size_ms: 1_000, slide_ms: 10, offset_ms: 0 };
            (Exchange::Hash(vec![]), result, window(windows))
        }
    };
    let input = |node, exchange, reads| vec![Input { node, port: 0, exchange, reads }];
    let nodes = vec![
        node("in", vec![], read, NodeKind::Source { binding: "in".into(), event_time }),
        node("deed", input(0, exchange, vec![0]), output(fields), kind),
        node("to out", input(1, Exchange::Forward, vec![]), vec![], NodeKind::Sink { binding: "out".into() }),
    ];
    Plan { version: PLAN_VERSION, name: "evil".into(), nodes }
}

/// A job whose operator does it, on rows that are 10 ms apart.
fn evil(deed: &str, kind: Kind, letters: bool) -> Job {
    let component = if deed.contains("loop") { &HASTY_COMPONENT } else { &COMPONENT };
    let code = WasmCode::new((*component).clone(), vec![("do".into(), deed.into())]);
    let ids = Int64Array::from_iter_values(1..=ROWS);
    let times = TimestampMillisecondArray::from_iter_values((1..=ROWS).map(|id| id * 10));
    let columns: [(&str, ArrayRef); 2] = [("id", Arc::new(ids)), ("t", Arc::new(times))];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let mut job = job("evil", plan(kind), Arc::new(code), Arc::new(Given(vec![rows])));
    job.spec.clock = Arc::new(SystemClock);
    if !letters {
        job.spec.dead_letters = None;
    }
    job
}

/// The error with which a job ends, if it does.
fn run(job: &Job) -> Option<String> {
    let ended = tidemill_dataflow::run(job.spec.clone()).and_then(|handle| handle.wait());
    ended.err().map(|error| error.to_string())
}

#[track_caller]
fn contains(deed: &str, message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{deed}: '{part}' is missing in:\n{message}");
    }
}

fn check(deed: &str, kind: Kind, ends: Ends, expected: &[&str]) {
    for with_letters in [false, true] {
        let job = evil(deed, kind, with_letters);
        match (run(&job), ends) {
            (Some(error), Letters(_)) if !with_letters => {
                contains(deed, &error, expected);
                contains(
                    deed,
                    &error,
                    &["job 'evil', operator 'deed' (1/1), ", "record: {\"id\":", "bind [dead-letter]"],
                );
                assert!(job.outputs["out"].batches().is_empty(), "{deed}: output of a failed job");
            }
            (Some(error), Fails) => {
                contains(deed, &error, expected);
                contains(deed, &error, &["job 'evil', operator 'deed' (1/1)"]);
                assert!(job.letters.batches().is_empty(), "{deed}: dead letters where no row is to blame");
            }
            (None, Letters(count)) if with_letters => {
                let letters = job.letters();
                assert_eq!(letters.len(), count, "{deed}: {letters:?}");
                for letter in letters {
                    contains(deed, &letter.reason, expected);
                    assert_eq!(letter.operator, "deed");
                    assert!(letter.record.starts_with("{\"id\":"), "{letter:?}");
                }
                if !deed.starts_with("on-timers:") {
                    assert_eq!(job.outputs["out"].rows(), ROWS as usize - count, "{deed}: rows that came out");
                }
            }
            (ended, _) => panic!("{deed}, with a sink for dead letters: {with_letters}: ended with {ended:?}"),
        }
    }
}

#[test]
fn an_evil_job_ends_with_a_clear_message_and_its_neighbour_does_not_notice() {
    let mut healthy = Healthy::start(&COMPONENT);
    for (deed, kind, ends, expected) in DEEDS {
        healthy.grant(BESIDE);
        check(deed, *kind, *ends, expected);
        healthy.check(deed);
    }
    for (what, bytes, expected) in not_jobs() {
        healthy.grant(BESIDE);
        let loaded = SANDBOX.load("evil.wasm", &bytes).and_then(|component| component.plan());
        let error = loaded.err().unwrap_or_else(|| panic!("{what}: it has a plan")).to_string();
        contains(&what, &error, &["evil.wasm", expected, "mend: "]);
        healthy.check(&what);
    }
    healthy.end();
}

/// What fails when an operator is closed fails the job, though all its records were processed: it may be the last thing
/// that the code does of what it must.
#[test]
fn what_fails_in_close_fails_the_job() {
    for (deed, expected) in [
        ("close:trap", "unreachable"),
        ("close:loop", "raise limits.call-time"),
        ("close:fatal", "it will not close"),
        ("close:emit", "there is nothing to emit in this call"),
    ] {
        for kind in [Kind::Bare, Kind::Keyed, Kind::Window] {
            let job = evil(deed, kind, true);
            let error = run(&job).unwrap_or_else(|| panic!("{deed} of {kind:?}: the job ended well"));
            contains(
                deed,
                &error,
                &["job 'evil', operator 'deed' (1/1), closing: ", expected, "mend: Correct the code"],
            );
            assert!(job.letters.batches().is_empty(), "{deed}: dead letters where no row is to blame");
        }
    }
}

/// Components that never become a job: what is wrong, the bytes, what the message says.
fn not_jobs() -> Vec<(String, Vec<u8>, &'static str)> {
    let mut all = Vec::new();
    for deed in ["trap", "memory", "recurse"] {
        all.push((format!("plan: {deed}"), with_plan(deed), "can't be asked for its plan"));
    }
    for length in (8..EVIL.len()).step_by(EVIL.len() / 7) {
        all.push((format!("truncated to {length} bytes"), EVIL[..length].to_vec(), ""));
    }
    for import in ["wasi:http/types@0.2.0", "acme:secrets/vault@1.0.0"] {
        all.push((format!("imports {import}"), importing(import), "which a job must not have"));
    }
    all.push(("a core module".into(), EVIL_MODULE.clone(), "is a core WebAssembly module"));
    all
}

/// The evil component with another deed of `plan`.
fn with_plan(deed: &str) -> Vec<u8> {
    let mark = b"the deed of plan:";
    let mut module = EVIL_MODULE.clone();
    let at = module.windows(mark.len()).position(|w| w == mark).unwrap() + mark.len();
    module[at..at + 15].copy_from_slice(format!("{deed:<15}").as_bytes());
    tidemill_wasm::componentize(&module).unwrap()
}

/// A component with an import, that says it is a job.
fn importing(name: &str) -> Vec<u8> {
    let mut component = ComponentBuilder::new();
    let mut types = ComponentTypeSection::new();
    types.instance(&InstanceType::new());
    component.section(&types);
    let mut imports = ComponentImportSection::new();
    imports.import(name, ComponentTypeRef::Instance(0));
    component.section(&imports);
    let mut instances = ComponentInstanceSection::new();
    instances.export_items([] as [(&str, ComponentExportKind, u32); 0]);
    component.section(&instances);
    let mut exports = ComponentExportSection::new();
    exports.export("tidemill:job/lifecycle@0.1.0", ComponentExportKind::Instance, 1, None);
    component.section(&exports);
    component.finish()
}
