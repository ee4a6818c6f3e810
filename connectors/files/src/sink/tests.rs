//! The sink as a job uses it: options, attempts, writers by a clock held in hand, checkpoints, commits.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tempfile::TempDir;
use tidemill_connector_kit::conformance::{self, HandClock};
use tidemill_connector_kit::{Binding, Registry};
use tidemill_core::Batch;
use tidemill_core::connector::{Attempt, Committable, Sink, SinkContext, SinkWriter};
use tidemill_core::error::Result;
use tidemill_core::ids::Epoch;

/// A folder, the sink that writes into it, and the clock of its writers.
struct Bench {
    folder: TempDir,
    schema: SchemaRef,
    clock: Arc<HandClock>,
}

impl Bench {
    fn new(fields: Vec<Field>) -> Self {
        let schema = Arc::new(Schema::new(fields));
        Self { folder: tempfile::tempdir().unwrap(), schema, clock: Arc::default() }
    }

    fn numbers() -> Self {
        Self::new(vec![Field::new("n", DataType::Int64, false)])
    }

    fn try_sink(&self, options: &str) -> Result<Arc<dyn Sink>> {
        let mut registry = Registry::new();
        crate::register(&mut registry);
        let options = format!("path = 'out'\n{options}").parse().unwrap();
        let binding = Binding { name: "out", schema: &self.schema, options: &options, base: self.folder.path() };
        registry.sink("files", binding)
    }

    fn sink(&self, options: &str) -> Arc<dyn Sink> {
        self.try_sink(options).unwrap()
    }

    fn writer(&self, sink: &Arc<dyn Sink>, attempt: u64) -> Box<dyn SinkWriter> {
        sink.begin(&Attempt { job: "test", number: attempt, goes_on: attempt > 1 }).unwrap();
        let context = conformance::sink_context(self.schema.clone());
        sink.writer(SinkContext { clock: self.clock.clone(), attempt, ..context }).unwrap()
    }

    /// Hands rows over at a time.
    fn write(&self, writer: &mut Box<dyn SinkWriter>, at_ms: i64, columns: Vec<ArrayRef>) {
        self.clock.set(at_ms);
        let rows = columns.first().map_or(0, |c| c.len());
        writer.write(&Batch::new(rows, columns, None).unwrap()).unwrap();
    }

    fn number(&self, writer: &mut Box<dyn SinkWriter>, at_ms: i64, n: i64) {
        self.write(writer, at_ms, vec![Arc::new(Int64Array::from(vec![n]))]);
    }

    /// The files that a reader sees, by their path in the sink's folder, with what is in them.
    fn visible(&self) -> BTreeMap<String, String> {
        let (visible, _) = self.files();
        visible
    }

    fn hidden(&self) -> Vec<String> {
        let (_, hidden) = self.files();
        hidden.into_keys().collect()
    }

    fn files(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let root = self.folder.path().join("out");
        let mut all = Vec::new();
        list(&root, &mut all);
        let read = |path: &Path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        };
        all.iter().map(|path| read(path)).partition(|(name, _)| !name.starts_with('.'))
    }
}

fn list(folder: &Path, all: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { list(&path, all) } else { all.push(path) }
    }
}

fn commit(sink: &Arc<dyn Sink>, committables: &[Committable]) {
    sink.committer().unwrap().commit(committables).unwrap();
}

fn texts(files: &BTreeMap<String, String>) -> Vec<&str> {
    files.values().map(String::as_str).collect()
}

const ROW: [&str; 10] = [
    "{\"n\":0}\n",
    "{\"n\":1}\n",
    "{\"n\":2}\n",
    "{\"n\":3}\n",
    "{\"n\":4}\n",
    "{\"n\":5}\n",
    "{\"n\":6}\n",
    "{\"n\":7}\n",
    "{\"n\":8}\n",
    "{\"n\":9}\n",
];

#[test]
fn a_file_is_rolled_when_it_is_old() {
    let bench = Bench::numbers();
    let sink = bench.sink("roll-after = '10 s'");
    let mut writer = bench.writer(&sink, 1);
    for (at_ms, n) in [(1_000, 0), (6_000, 1), (10_999, 2), (11_000, 3), (20_999, 4), (50_000, 5)] {
        bench.number(&mut writer, at_ms, n);
    }
    let prepared = writer.prepare(Epoch(1)).unwrap();
    assert!(bench.visible().is_empty(), "nothing before the commit");
    commit(&sink, &prepared);
    let expected = [[ROW[0], ROW[1], ROW[2]].concat(), [ROW[3], ROW[4]].concat(), ROW[5].to_owned()];
    let visible = bench.visible();
    assert_eq!(texts(&visible), expected);
    assert_eq!(visible.keys().collect::<Vec<_>>(), ["part-0-1-0.jsonl", "part-0-1-1.jsonl", "part-0-1-2.jsonl"]);
}

#[test]
fn a_file_is_rolled_when_no_row_came_for_a_while() {
    let bench = Bench::numbers();
    let sink = bench.sink("roll-idle = '5 s'");
    let mut writer = bench.writer(&sink, 1);
    for (at_ms, n) in [(0, 0), (4_000, 1), (8_000, 2), (13_000, 3), (17_999, 4)] {
        bench.number(&mut writer, at_ms, n);
    }
    commit(&sink, &writer.prepare(Epoch(1)).unwrap());
    assert_eq!(texts(&bench.visible()), [[ROW[0], ROW[1], ROW[2]].concat(), [ROW[3], ROW[4]].concat()]);
}

#[test]
fn a_file_is_rolled_by_its_size_and_without_rules_only_at_a_checkpoint() {
    for (options, expected) in [
        ("roll-bytes = 16", vec![[ROW[0], ROW[1]].concat(), [ROW[2], ROW[3]].concat(), ROW[4].to_owned()]),
        ("", vec![ROW[..5].concat()]),
    ] {
        let bench = Bench::numbers();
        let sink = bench.sink(options);
        let mut writer = bench.writer(&sink, 1);
        (0..5).for_each(|n| bench.number(&mut writer, n * 1_000_000_000, n));
        commit(&sink, &writer.prepare(Epoch(1)).unwrap());
        assert_eq!(texts(&bench.visible()), expected, "{options}");
    }
}

/// The clock is set back by an hour: files become no older than they are.
#[test]
fn a_clock_that_is_set_back_rolls_nothing() {
    let bench = Bench::numbers();
    let sink = bench.sink("roll-after = '10 s'\nroll-idle = '10 s'");
    let mut writer = bench.writer(&sink, 1);
    bench.number(&mut writer, 3_600_000, 0);
    bench.number(&mut writer, 0, 1);
    commit(&sink, &writer.prepare(Epoch(1)).unwrap());
    assert_eq!(texts(&bench.visible()), [[ROW[0], ROW[1]].concat()]);
}

/// Several files rolled before a checkpoint that is committed by another process; several rolled after it, by an attempt
/// that died: those go.
#[test]
fn what_was_rolled_before_a_checkpoint_is_recovered_with_it_and_nothing_else() {
    let bench = Bench::numbers();
    let options = "roll-after = '1 s'";
    let sink = bench.sink(options);
    let mut died = bench.writer(&sink, 1);
    (0..3).for_each(|n| bench.number(&mut died, n * 1_000, n));
    let prepared = died.prepare(Epoch(1)).unwrap();
    (3..6).for_each(|n| bench.number(&mut died, n * 1_000, n));
    let lost = died.prepare(Epoch(2)).unwrap();
    assert_eq!(lost.len(), 1);
    // It died without its destructor: what it prepared stays, and what it had in the making as well.
    bench.number(&mut died, 6_000, 6);
    bench.number(&mut died, 7_000, 7);
    // Two files for the first rows after the last checkpoint: wait until its thread has got so far.
    while bench.hidden().len() < 8 {
        std::thread::yield_now();
    }
    assert!(bench.visible().is_empty());
    std::mem::forget(died);

    let sink = bench.sink(options);
    commit(&sink, &prepared);
    commit(&sink, &prepared);
    let mut writer = bench.writer(&sink, 2);
    assert_eq!(texts(&bench.visible()), &ROW[..3]);
    assert!(bench.hidden().is_empty(), "{:?}", bench.hidden());
    (3..6).for_each(|n| bench.number(&mut writer, n * 1_000, n));
    commit(&sink, &writer.prepare(Epoch(2)).unwrap());
    commit(&sink, &prepared);
    assert_eq!(texts(&bench.visible()), &ROW[..6]);
    assert!(bench.hidden().is_empty());
}
