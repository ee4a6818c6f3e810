//! The sink on a real object store.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tidemill_blobs::{Blobs as _, S3};
use tidemill_connector_kit::conformance::{self, exactly_once};
use tidemill_connector_kit::{Options, Setup};
use tidemill_core::Batch;
use tidemill_core::connector::{Attempt, Sink, SinkContext, SinkWriter};
use tidemill_core::error::{ErrorKind, Result};
use tidemill_core::ids::Epoch;
use tidemill_test_servers::S3Server;

use super::bucket::Sent;
use super::tests::numbers;
use super::{made, options};

/// A server, and a sink into one of its buckets.
struct Bench {
    server: S3Server,
    schema: SchemaRef,
}

impl Bench {
    fn new(schema: SchemaRef) -> Self {
        Self { server: S3Server::start("bucket"), schema }
    }

    fn s3(&self, url: &str) -> Result<S3> {
        S3::with_settings(url, self.server.environment())
    }

    fn try_sink(&self, typed: &str) -> Result<Arc<dyn Sink>> {
        let table = format!("path = 's3://bucket/in/out'\n{typed}").parse().unwrap();
        let options = Options::parse("sink 'out' (connector 'files')", &options(), &table)?;
        let setup = Setup { schema: self.schema.clone(), options, base: "/nowhere".into() };
        made(setup, &|url| self.s3(url))
    }

    fn sink(&self, typed: &str) -> Arc<dyn Sink> {
        self.try_sink(typed).unwrap()
    }

    fn writer(&self, sink: &Arc<dyn Sink>, attempt: u64, goes_on: bool) -> Box<dyn SinkWriter> {
        sink.begin(&Attempt { job: "test", number: attempt, goes_on }).unwrap();
        let context = conformance::sink_context(self.schema.clone());
        sink.writer(SinkContext { attempt, ..context }).unwrap()
    }

    /// The objects below the sink's folder, by their path in it.
    fn visible(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let root = self.server.folder("bucket").join("in/out");
        list(&root, &root, &mut all);
        all
    }

    /// The sink's folder.
    fn out(&self) -> S3 {
        self.s3("s3://bucket/in/out").unwrap()
    }
}

fn list(root: &Path, folder: &Path, all: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(root, &path, all);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            all.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

fn rows(numbers: &[i64]) -> Batch {
    let column: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
    Batch::new(numbers.len(), vec![column], None).unwrap()
}

impl exactly_once::Outside for Bench {
    fn sink(&self) -> Arc<dyn Sink> {
        self.sink("")
    }

    fn visible(&self) -> Vec<i64> {
        numbers(self.visible().values())
    }
}

#[test]
fn each_row_is_there_once_whatever_fails() {
    exactly_once::exactly_once(|| Bench::new(exactly_once::schema()));
}

#[test]
fn a_file_of_many_parts_arrives_whole_and_in_order() {
    let bench = Bench::new(exactly_once::schema());
    let sink = bench.sink("");
    let mut writer = bench.writer(&sink, 1, false);
    let all: Vec<i64> = (0..1_500_000).map(|n| n * 1_000_003).collect();
    all.chunks(100_000).for_each(|some| writer.write(&rows(some)).unwrap());
    let prepared = writer.prepare(Epoch(1)).unwrap();
    let sent = Sent::from_committable(&prepared[0]).unwrap();
    assert!(sent.uploads.len() == 1 && sent.uploads[0].parts.len() > 4, "{} parts", sent.uploads[0].parts.len());
    sink.committer().unwrap().commit(&prepared).unwrap();
    assert!(numbers(bench.visible().values()) == all);
}

/// What the processes before have begun goes when the next attempt begins; what other jobs have begun stays, and so does
/// what was begun meanwhile.
#[test]
fn uploads_of_dead_attempts_are_aborted_and_no_others() {
    let bench = Bench::new(exactly_once::schema());
    let sink = bench.sink("roll-bytes = 1");
    let unfinished = || {
        let found = bench.out().unfinished().unwrap();
        found.iter().filter(|u| u.path.starts_with("part-")).count()
    };
    let mut other = {
        sink.begin(&Attempt { job: "another", number: 1, goes_on: false }).unwrap();
        let context = conformance::sink_context(bench.schema.clone());
        let mut subtask = context.subtask.clone();
        subtask.job = "another".to_owned();
        sink.writer(SinkContext { subtask, ..context }).unwrap()
    };
    other.write(&rows(&[0])).unwrap();
    let others = other.prepare(Epoch(1)).unwrap();
    let mut died = bench.writer(&sink, 1, false);
    for n in 1..4 {
        died.write(&rows(&[n])).unwrap();
    }
    assert_eq!(died.prepare(Epoch(1)).unwrap().len(), 1);
    std::mem::forget(died);
    assert_eq!(unfinished(), 4);
    let mut writer = bench.writer(&sink, 2, true);
    assert_eq!(unfinished(), 1);
    writer.write(&rows(&[5])).unwrap();
    let prepared = writer.prepare(Epoch(1)).unwrap();
    sink.begin(&Attempt { job: "test", number: 2, goes_on: true }).unwrap();
    sink.committer().unwrap().commit(&[others, prepared].concat()).unwrap();
    assert_eq!(numbers(bench.visible().values()).len(), 2);
    assert_eq!(unfinished(), 0);
}

/// A bucket's rule, or somebody, has aborted an upload that a complete checkpoint names.
#[test]
fn an_upload_that_is_gone_is_a_loss_that_stops_the_job_and_names_the_key() {
    let bench = Bench::new(exactly_once::schema());
    let sink = bench.sink("");
    let mut writer = bench.writer(&sink, 1, false);
    writer.write(&rows(&[1])).unwrap();
    let prepared = writer.prepare(Epoch(1)).unwrap();
    let upload = Sent::from_committable(&prepared[0]).unwrap().uploads.remove(0);
    bench.out().abort(&upload.path, &upload.id).unwrap();
    let commit = || sink.committer().unwrap().commit(&prepared).unwrap_err();
    let error = commit();
    assert_eq!(error.kind(), ErrorKind::Invalid, "it can't pass by itself");
    let text = error.to_string();
    assert!(text.contains(&format!("s3://bucket/in/out/{}", upload.path)), "{text}");
    assert!(text.contains("lost") && text.contains("AbortIncompleteMultipartUpload"), "{text}");
    // Someone else's object is not taken for it.
    let _ = bench.out().put_new(&upload.path, b"not these rows").unwrap();
    let text = commit().to_string();
    assert!(text.contains("14 bytes which someone else wrote"), "{text}");
}

#[test]
fn rows_go_into_the_folders_of_their_values_and_part_files_of_an_earlier_run_are_found_there() {
    let fields = vec![Field::new("n", DataType::Int64, false), Field::new("k", DataType::Utf8View, true)];
    let bench = Bench::new(Arc::new(Schema::new(fields)));
    let by = "partition-by = 'k'\n";
    let sink = bench.sink(by);
    let mut writer = bench.writer(&sink, 1, false);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, 2, 3])),
        Arc::new(StringViewArray::from(vec![Some("../x"), None, Some("Zürich")])),
    ];
    writer.write(&Batch::new(3, columns, None).unwrap()).unwrap();
    let prepared = writer.prepare(Epoch(1)).unwrap();
    assert!(bench.visible().is_empty());
    sink.committer().unwrap().commit(&prepared).unwrap();
    let visible = bench.visible();
    let found: Vec<(&str, &str)> = visible.iter().map(|(n, text)| (n.rsplit_once('/').unwrap().0, &**text)).collect();
    let expected =
        [("k=%2E.%2Fx", "{\"n\":1}\n"), ("k=Zürich", "{\"n\":3}\n"), ("k=__HIVE_DEFAULT_PARTITION__", "{\"n\":2}\n")];
    assert_eq!(found, expected);
    let again = |existing: &str| {
        let sink = bench.sink(&format!("{by}existing = '{existing}'"));
        sink.begin(&Attempt { job: "test", number: 2, goes_on: false })
    };
    let error = again("fail").unwrap_err().to_string();
    assert!(error.contains("s3://bucket/in/out/k=%2E.%2Fx/part-"), "{error}");
    let _ = bench.out().put_new("k=Zürich/mine.txt", b"mine").unwrap();
    again("keep").unwrap();
    assert_eq!(bench.visible().len(), 4);
    again("delete").unwrap();
    assert_eq!(bench.visible().into_keys().collect::<Vec<_>>(), ["k=Zürich/mine.txt"]);
}

#[test]
fn wrong_options_are_refused_before_the_job_runs() {
    let bench = Bench::new(exactly_once::schema());
    let message = |typed: &str| bench.try_sink(typed).err().unwrap().to_string();
    assert!(message("upload-part-bytes = '1 MiB'").contains("5 MiB"));
    assert!(message("roll-bytes = '1 TiB'").contains("10000 parts"));
    assert!(bench.try_sink("roll-bytes = '1 TiB'\nupload-part-bytes = '200 MiB'").is_ok());
}

/// A committable comes from a disk: it can't lead out of the folder.
#[test]
fn a_damaged_committable_names_nothing_elsewhere() {
    let bench = Bench::new(exactly_once::schema());
    let sink = bench.sink("");
    let mut writer = bench.writer(&sink, 1, false);
    writer.write(&rows(&[1])).unwrap();
    let mut sent = Sent::from_committable(&writer.prepare(Epoch(1)).unwrap()[0]).unwrap();
    sent.uploads[0].path = "../elsewhere".to_owned();
    let error = sink.committer().unwrap().commit(&[sent.committable().unwrap()]).unwrap_err().to_string();
    assert!(error.contains("outside its folder"), "{error}");
}
