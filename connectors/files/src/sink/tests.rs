//! The sink as a job uses it: options, attempts, writers by a clock held in hand, checkpoints, commits.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tempfile::TempDir;
use tidemill_connector_kit::conformance::{self, HandClock, exactly_once};
use tidemill_connector_kit::{Binding, Registry};
use tidemill_core::Batch;
use tidemill_core::connector::{Attempt, Committable, Sink, SinkContext, SinkWriter};
use tidemill_core::error::Result;
use tidemill_core::ids::Epoch;
use tidemill_core::memory::{Owner, ProcessMemory};

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

fn partitioned() -> Bench {
    Bench::new(vec![
        Field::new("n", DataType::Int64, false),
        Field::new("country", DataType::Utf8View, true),
        Field::new("new", DataType::Boolean, false),
    ])
}

fn columns(numbers: &[i64], countries: &[Option<&str>]) -> Vec<ArrayRef> {
    vec![
        Arc::new(Int64Array::from(numbers.to_vec())),
        Arc::new(StringViewArray::from(countries.to_vec())),
        Arc::new(arrow::array::BooleanArray::from(vec![true; numbers.len()])),
    ]
}

const BY: &str = "partition-by = ['new', 'country']\nmax-open-files = 2\n";

#[test]
fn rows_go_into_the_folders_of_their_values_when_they_are_committed() {
    let bench = partitioned();
    let sink = bench.sink(BY);
    let mut writer = bench.writer(&sink, 1);
    bench.write(&mut writer, 0, columns(&[1, 2, 3, 4], &[Some("ch"), None, Some("../../x"), Some("ch")]));
    bench.write(&mut writer, 0, columns(&[5], &[Some("ch")]));
    let prepared = writer.prepare(Epoch(7)).unwrap();
    assert!(bench.visible().is_empty());
    assert!(!bench.folder.path().join("out/new=true").exists(), "not even a folder");
    commit(&sink, &prepared);
    commit(&sink, &prepared);
    let visible = bench.visible();
    let mut rows: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, text) in &visible {
        let (folder, file) = name.rsplit_once('/').unwrap();
        assert!(file.starts_with("part-0-7-"), "{file}");
        rows.entry(folder).or_default().extend(text.lines());
    }
    rows.values_mut().for_each(|rows| rows.sort());
    let expected = [
        ("new=true/country=%2E.%2F..%2Fx", vec!["{\"n\":3}"]),
        ("new=true/country=__HIVE_DEFAULT_PARTITION__", vec!["{\"n\":2}"]),
        ("new=true/country=ch", vec!["{\"n\":1}", "{\"n\":4}", "{\"n\":5}"]),
    ];
    assert_eq!(rows, BTreeMap::from(expected));
    assert!(bench.hidden().is_empty());
    assert_eq!(fs::read_dir(bench.folder.path()).unwrap().count(), 1, "nothing beside the sink's folder");
}

#[test]
fn what_a_dead_attempt_wrote_for_partitions_is_committed_or_goes() {
    let bench = partitioned();
    let sink = bench.sink(BY);
    let mut died = bench.writer(&sink, 1);
    let countries = [Some("a"), Some("b"), Some("c"), Some("d")];
    bench.write(&mut died, 0, columns(&[1, 2, 3, 4], &countries));
    let prepared = died.prepare(Epoch(1)).unwrap();
    bench.write(&mut died, 0, columns(&[5, 6, 7, 8], &countries));
    assert_eq!(died.prepare(Epoch(2)).unwrap().len(), 1);
    std::mem::forget(died);
    assert_eq!(bench.hidden().len(), 8);
    // The process that commits died when it had made half of them visible.
    let mut half: super::folder::Prepared = super::folder::Prepared::from_committable(&prepared[0]).unwrap();
    half.files.truncate(2);
    commit(&sink, &[half.committable().unwrap()]);
    assert_eq!(bench.visible().len(), 2);
    commit(&sink, &prepared);
    bench.writer(&sink, 2);
    let visible = bench.visible();
    assert_eq!(texts(&visible), ["{\"n\":1}\n", "{\"n\":2}\n", "{\"n\":3}\n", "{\"n\":4}\n"]);
    assert!(bench.hidden().is_empty());
}

#[test]
fn part_files_of_an_earlier_run_are_found_in_partitions_too() {
    let bench = partitioned();
    let sink = bench.sink(BY);
    let mut writer = bench.writer(&sink, 1);
    bench.write(&mut writer, 0, columns(&[1], &[Some("a")]));
    commit(&sink, &writer.prepare(Epoch(1)).unwrap());
    let name = "new=true/country=a/part-0-1-0.jsonl";
    assert_eq!(bench.visible().into_keys().collect::<Vec<_>>(), [name]);
    let start = |existing: &str| {
        let sink = bench.sink(&format!("{BY}existing = '{existing}'"));
        sink.begin(&Attempt { job: "test", number: 2, goes_on: false }).map(|()| sink)
    };
    let error = start("fail").err().unwrap().to_string();
    assert!(error.contains(name), "{error}");
    // Kept: the same epoch once more gets another name.
    let sink = start("keep").unwrap();
    let context = conformance::sink_context(bench.schema.clone());
    let mut writer = sink.writer(SinkContext { attempt: 2, ..context }).unwrap();
    bench.write(&mut writer, 0, columns(&[2], &[Some("a")]));
    commit(&sink, &writer.prepare(Epoch(1)).unwrap());
    assert_eq!(texts(&bench.visible()), ["{\"n\":1}\n", "{\"n\":2}\n"]);
    let other = bench.folder.path().join("out/new=true/country=a/mine.txt");
    fs::write(&other, "mine").unwrap();
    start("delete").unwrap();
    assert_eq!(texts(&bench.visible()), ["mine"], "only part files");
}

#[test]
fn a_row_that_makes_no_folder_fails_the_job_and_not_a_commit() {
    let bench = partitioned();
    let sink = bench.sink(BY);
    let mut writer = bench.writer(&sink, 1);
    bench.write(&mut writer, 0, columns(&[1], &[Some(&"x".repeat(300))]));
    let error = writer.prepare(Epoch(1)).unwrap_err().to_string();
    assert!(error.contains("column 'country'"), "{error}");
}

/// A committable comes from a disk: it can't lead out of the folder.
#[test]
fn a_damaged_committable_names_nothing_elsewhere() {
    let bench = partitioned();
    let sink = bench.sink(BY);
    let bad = [
        (".h", "../part-0"),
        (".h", "a=1/../../part-0"),
        (".h", "/a=1/part-0"),
        (".h", "a=1//part-0"),
        (".h", "a/part-0"),
        (".h", "a=1/.."),
        ("../h", "part-0"),
        ("a=1/h", "part-0"),
        ("", "part-0"),
    ];
    for (hidden, name) in bad {
        let prepared = super::folder::Prepared { files: vec![(hidden.to_owned(), name.to_owned())] };
        let error = sink.committer().unwrap().commit(&[prepared.committable().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("outside its folder"), "{hidden} {name}: {error}");
    }
}

#[test]
fn wrong_options_are_refused_before_the_job_runs() {
    let bench = partitioned();
    let message = |options: &str| bench.try_sink(options).err().unwrap().to_string();
    let text = message("partition-by = ['contry']");
    assert!(text.contains("sink 'out'") && text.contains("did you mean 'country'?"), "{text}");
    assert!(message("keep-partition-columns = true").contains("no partition-by"));
    assert!(message("partition-by = ['n', 'country', 'new']").contains("no column is left"));
    // Fields of CSV are those that are left, so lines of one text are possible too.
    let bench =
        Bench::new(vec![Field::new("text", DataType::Utf8View, false), Field::new("k", DataType::Int64, false)]);
    bench.sink("partition-by = 'k'\nformat = 'lines'");
    assert!(bench.try_sink("format = 'lines'").is_err());
}

/// A folder, as the conformance tests see it.
struct InFolder(Bench);

impl exactly_once::Outside for InFolder {
    fn sink(&self) -> Arc<dyn Sink> {
        self.0.sink("")
    }

    fn visible(&self) -> Vec<i64> {
        numbers(self.0.visible().values())
    }
}

/// The numbers in JSON lines.
pub(super) fn numbers<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<i64> {
    let number = |line: &str| line.strip_prefix("{\"n\":")?.strip_suffix('}')?.parse().ok();
    texts.flat_map(|text| text.lines()).map(|line| number(line).unwrap()).collect()
}

#[test]
fn each_row_is_there_once_whatever_fails() {
    exactly_once::exactly_once(|| InFolder(Bench::numbers()));
}

#[test]
fn what_is_handed_over_and_gathered_is_counted_until_it_is_written() {
    let bench = Bench::numbers();
    let sink = bench.sink("");
    let writer = |process: &Arc<ProcessMemory>| {
        sink.begin(&Attempt { job: "test", number: 1, goes_on: true }).unwrap();
        let context = conformance::sink_context(bench.schema.clone());
        sink.writer(SinkContext { memory: process.job("a"), ..context }).unwrap()
    };
    let process = ProcessMemory::new(Some(1 << 20));
    let mut ours = writer(&process);
    (0..3).for_each(|n| bench.number(&mut ours, 0, n));
    // The rows, or what they were encoded to: too little to be written to the file.
    assert!(process.held().of(Owner::Connectors) > 0);
    let prepared = ours.prepare(Epoch(1)).unwrap();
    assert_eq!(process.held().of(Owner::Connectors), 0);
    commit(&sink, &prepared);

    let rows: ArrayRef = Arc::new(Int64Array::from(vec![1; 1_000]));
    let refused = writer(&ProcessMemory::new(Some(1_000))).write(&Batch::new(1_000, vec![rows], None).unwrap());
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), tidemill_core::ErrorKind::Limit);
    assert!(refused.to_string().contains("job 'a' holds 7.8 KiB (connectors 7.8 KiB)"), "{refused}");
}
