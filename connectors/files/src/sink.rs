//! The sink: part files that are hidden until the checkpoint that covers them is complete, in a local folder or in a
//! bucket of an object store.
//!
//! A thread encodes and writes; `prepare` makes what was written durable, still hidden, and says in a committable how it
//! is made visible; `commit` does so. Invariant: under a final name there is only ever a whole file of a complete
//! checkpoint, and a final name is never given twice.
//!
//! What an attempt wrote and nobody committed stays behind hidden after a hard crash; readers ignore it, and the next
//! attempt at the job deletes it. In the order in which rows come to them:

mod bucket;
#[cfg(test)]
mod bucket_tests;
mod folder;
mod partitions;
mod parts;
mod place;
mod rolling;
#[cfg(test)]
mod tests;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use tidemill_blobs::S3;
use tidemill_connector_kit::format::{EncodeFormat, Encoder};
use tidemill_connector_kit::{Buffers, ByteSize, Key, OptionSpec, Setup};
use tidemill_core::connector::{Attempt, Guarantee, Sink, SinkCommitter, SinkContext, SinkWriter};
use tidemill_core::error::{Error, Result};
use tidemill_core::ids::SubtaskId;
use tidemill_core::nonce::nonce;

use self::bucket::{Bucket, BucketCommitter, MAX_PARTS, MIN_PART_BYTES};
use self::folder::{Folder, FolderCommitter};
use self::partitions::Partitions;
use self::parts::PartFiles;
use self::rolling::Rolling;
use self::writer::FilesWriter;
use crate::find::io_error;

const PATH: Key<PathBuf> = Key::new(
    "path",
    "The folder for the part files, made if it is not there, relative to the manifest's folder; or \
     `s3://BUCKET/PREFIX`, with the credentials, region and endpoint that the process has for checkpoints too.",
)
.required();
const ROLL_BYTES: Key<ByteSize> = Key::new("roll-bytes", "A part file is closed when it has this size.").or("128 MiB");
const ROLL_AFTER: Key<Duration> = Key::new(
    "roll-after",
    "A part file is closed so long after its first row came; without it, at the next checkpoint at the latest.",
);
const ROLL_IDLE: Key<Duration> =
    Key::new("roll-idle", "A part file is closed when no row has come for so long; without it, idle files stay open.");
const PARTITION_BY: Key<Vec<String>> = Key::new(
    "partition-by",
    "Columns by which rows go into folders, `column=value/`, one in another in this order; null is \
     `__HIVE_DEFAULT_PARTITION__`.",
)
.or("[]");
const KEEP_PARTITION_COLUMNS: Key<bool> = Key::new(
    "keep-partition-columns",
    "Whether the columns that name folders are in the files too; readers of such folders expect that they are not.",
)
.or("false");
const MAX_OPEN_FILES: Key<u64> = Key::new(
    "max-open-files",
    "How many part files each slot has open at once; where there are more folders, the one used least recently is closed.",
)
.or("64");
const UPLOAD_PART_BYTES: Key<ByteSize> = Key::new(
    "upload-part-bytes",
    "In a bucket: how much of a file is gathered in memory before it is sent, for each open file; at least 5 MiB, which \
     is what stores demand.",
)
.or("5 MiB");
const EXISTING: Key<String> = Key::new(
    "existing",
    "What to do about part files of an earlier run: refuse to start, write beside them, or delete them.",
)
.or("fail")
.one_of(&["fail", "keep", "delete"]);
const BUFFER_BYTES: Key<ByteSize> =
    Key::new("buffer-bytes", "What each slot may hand over before it is written.").or("16 MiB");

/// Part files begin so.
const PREFIX: &str = "part-";

pub(crate) fn options() -> Vec<OptionSpec> {
    let own = [
        PATH.spec(),
        ROLL_BYTES.spec(),
        ROLL_AFTER.spec(),
        ROLL_IDLE.spec(),
        PARTITION_BY.spec(),
        KEEP_PARTITION_COLUMNS.spec(),
        MAX_OPEN_FILES.spec(),
        UPLOAD_PART_BYTES.spec(),
        EXISTING.spec(),
        BUFFER_BYTES.spec(),
    ];
    own.into_iter().chain(EncodeFormat::options()).collect()
}

pub(crate) fn sink(setup: Setup) -> Result<Arc<dyn Sink>> {
    made(setup, &S3::open)
}

/// The sink, with buckets opened so.
fn made(setup: Setup, open: &dyn Fn(&str) -> Result<S3>) -> Result<Arc<dyn Sink>> {
    let options = &setup.options;
    let format = EncodeFormat::from_options(options)?;
    let partition_by = options.need(&PARTITION_BY)?;
    let keep_columns = options.need(&KEEP_PARTITION_COLUMNS)?;
    if keep_columns && partition_by.is_empty() {
        return Err(options.error(&KEEP_PARTITION_COLUMNS, "there is no partition-by").mend("remove it, or partition"));
    }
    let max_open_files = usize::try_from(options.need(&MAX_OPEN_FILES)?).unwrap_or(usize::MAX).max(1);
    let existing = match options.need(&EXISTING)?.as_str() {
        "delete" => Existing::Delete,
        "keep" => Existing::Keep,
        _ => Existing::Fail,
    };
    let ms =
        |key| Ok::<_, Error>(options.get(key)?.map(|d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)));
    let rolling = Rolling {
        bytes: options.need(&ROLL_BYTES)?.0.max(1),
        after_ms: ms(&ROLL_AFTER)?.map(|ms| ms.max(1)),
        idle_ms: ms(&ROLL_IDLE)?.map(|ms| ms.max(1)),
    };
    let buffer_bytes = options.need(&BUFFER_BYTES)?.as_usize();
    let owner = options.owner().to_owned();
    let target = target(&setup, rolling, open)?;
    let sink = FilesSink {
        target,
        format,
        existing,
        rolling,
        partition_by,
        keep_columns,
        max_open_files,
        buffer_bytes,
        owner,
    };
    sink.shape(&setup.schema).map_err(|e| options.place(e))?;
    if let Target::Folder(folder) = &sink.target {
        fs::create_dir_all(folder).map_err(|e| options.place(io_error("making the folder", folder, &e)))?;
    }
    Ok(Arc::new(sink))
}

/// Where the part files go.
fn target(setup: &Setup, rolling: Rolling, open: &dyn Fn(&str) -> Result<S3>) -> Result<Target> {
    let options = &setup.options;
    let path = options.need(&PATH)?;
    let Some(url) = path.to_str().filter(|path| path.contains("://")) else {
        if options.is_given(&UPLOAD_PART_BYTES) {
            return Err(options.error(&UPLOAD_PART_BYTES, "a local folder has no uploads").mend("remove it"));
        }
        return Ok(Target::Folder(setup.base.join(path)));
    };
    if !url.starts_with("s3://") && !url.starts_with("s3a://") {
        let error = options.error(&PATH, format!("nothing can be written to '{url}'"));
        return Err(error.mend("name a folder, or s3://BUCKET/PREFIX"));
    }
    let part_bytes = options.need(&UPLOAD_PART_BYTES)?.0;
    if part_bytes < MIN_PART_BYTES {
        return Err(options.error(&UPLOAD_PART_BYTES, "stores refuse parts below 5 MiB").mend("make it larger"));
    }
    if rolling.bytes / part_bytes >= MAX_PARTS {
        let error = options.error(&ROLL_BYTES, format!("stores refuse objects of more than {MAX_PARTS} parts"));
        return Err(error.mend("make it smaller, or upload-part-bytes larger"));
    }
    let s3 = open(url).map_err(|e| options.place(e))?;
    Ok(Target::Bucket { s3, part_bytes: usize::try_from(part_bytes).unwrap_or(usize::MAX) })
}

/// Where the part files go.
enum Target {
    Folder(PathBuf),
    Bucket { s3: S3, part_bytes: usize },
}

/// What is done about part files of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Existing {
    Fail,
    Keep,
    Delete,
}

/// Whether a name is that of a visible part file.
fn is_part(name: &str) -> bool {
    name.starts_with(PREFIX) && !name.contains('=')
}

/// Whether a name is that of a partition's folder.
fn is_partition(name: &str) -> bool {
    name.contains('=') && !name.starts_with('.')
}

/// Whether a file of this name, with `/` between folders, is not in the sink's folder or in the folder of a partition.
fn outside(name: &str) -> bool {
    let plain = |name: &str| Path::new(name).file_name().is_some_and(|n| n == name);
    match name.rsplit_once('/') {
        None => !plain(name),
        Some((folders, file)) => !plain(file) || !folders.split('/').all(|f| plain(f) && is_partition(f)),
    }
}

struct FilesSink {
    target: Target,
    format: EncodeFormat,
    existing: Existing,
    rolling: Rolling,
    partition_by: Vec<String>,
    keep_columns: bool,
    max_open_files: usize,
    buffer_bytes: usize,
    owner: String,
}

impl FilesSink {
    /// How rows of these columns go into folders, and what of them into files.
    fn shape(&self, schema: &SchemaRef) -> Result<(Option<Partitions>, Encoder)> {
        if self.partition_by.is_empty() {
            return Ok((None, self.format.encoder(schema)?));
        }
        let partitions = Partitions::new(schema, &self.partition_by, self.keep_columns)?;
        let encoder = self.format.encoder(partitions.schema())?;
        Ok((Some(partitions), encoder))
    }

    fn begin(&self, attempt: &Attempt<'_>) -> Result<()> {
        match &self.target {
            Target::Folder(root) => {
                if !attempt.goes_on {
                    folder::start_anew(root, self.existing)?;
                }
                folder::clean_up(root, attempt)
            }
            Target::Bucket { s3, .. } => {
                if !attempt.goes_on {
                    bucket::start_anew(s3, self.existing)?;
                }
                bucket::clean_up(s3, attempt)
            }
        }
    }
}

impl Sink for FilesSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn begin(&self, attempt: &Attempt<'_>) -> Result<()> {
        self.begin(attempt).map_err(|e| e.prefixed(&self.owner))
    }

    fn writer(&self, context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        let buffers = Buffers::from(&context);
        let SinkContext { subtask: SubtaskId { job, node, index, .. }, attempt: number, clock, waker, .. } = context;
        let (partitions, encoder) = self.shape(&context.schema)?;
        let settings = parts::Settings { rolling: self.rolling, partitions, max_open_files: self.max_open_files };
        let (extension, buffer_bytes) = (self.format.extension(), self.buffer_bytes);
        let writer = match &self.target {
            Target::Folder(root) => {
                let hidden_prefix = format!("{}{}-{}-", folder::hidden_prefix(&job, number), node.0, index.0);
                let place = Folder::new(root.clone(), hidden_prefix, index.0, extension);
                let files = PartFiles::new(place, settings, encoder, buffers.account());
                FilesWriter::start(files, index.0, buffer_bytes, waker, clock, buffers)
            }
            Target::Bucket { s3, part_bytes } => {
                let prefix = bucket::writer_prefix(&job, number, index.0, &nonce());
                let place = Bucket::new(s3, *part_bytes, prefix, extension, buffers.clone());
                let files = PartFiles::new(place, settings, encoder, buffers.account());
                FilesWriter::start(files, index.0, buffer_bytes, waker, clock, buffers)
            }
        };
        Ok(Box::new(writer?))
    }

    fn committer(&self) -> Result<Box<dyn SinkCommitter>> {
        Ok(match &self.target {
            Target::Folder(root) => Box::new(FolderCommitter { root: root.clone() }),
            Target::Bucket { s3, .. } => Box::new(BucketCommitter { s3: s3.clone() }),
        })
    }
}
