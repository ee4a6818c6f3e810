//! The sink: part files that are hidden until the checkpoint that covers them is complete.
//!
//! A thread encodes and writes. A file is written under a hidden name that no other attempt can have; `prepare` closes
//! and syncs it, and names hidden and final name in a committable; `commit` renames. Invariant: under a final name there
//! is only ever a whole file of a complete checkpoint, and a final name is never given twice.
//!
//! What an attempt wrote and nobody committed stays behind hidden after a hard crash; readers ignore it, and the next
//! attempt at the job deletes it.

mod partitions;
mod parts;
mod rolling;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use serde::{Deserialize, Serialize};
use tidemill_connector_kit::format::{EncodeFormat, Encoder};
use tidemill_connector_kit::{ByteSize, Key, OptionSpec, Setup};
use tidemill_core::connector::{Attempt, Committable, Guarantee, Sink, SinkCommitter, SinkContext, SinkWriter};
use tidemill_core::error::{Error, Result};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::SubtaskId;
use tidemill_core::keys::hash_row;

use self::partitions::Partitions;
use self::rolling::Rolling;
use crate::find::io_error;

const PATH: Key<PathBuf> =
    Key::new("path", "The folder for the part files, made if it is not there; relative to the manifest's folder.")
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
        EXISTING.spec(),
        BUFFER_BYTES.spec(),
    ];
    own.into_iter().chain(EncodeFormat::options()).collect()
}

pub(crate) fn sink(setup: Setup) -> Result<Arc<dyn Sink>> {
    let options = &setup.options;
    let folder = setup.base.join(options.need(&PATH)?);
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
    let sink = FilesSink {
        folder,
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
    fs::create_dir_all(&sink.folder).map_err(|e| options.place(io_error("making the folder", &sink.folder, &e)))?;
    Ok(Arc::new(sink))
}

/// What is done about part files of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Existing {
    Fail,
    Keep,
    Delete,
}

/// The visible part files in a folder, and in the folders of partitions in it.
fn part_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut parts = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = |e: io::Error| io_error("listing", &folder, &e);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(PREFIX) && !name.contains('=') {
                parts.push(entry.path());
            } else if is_partition(&name) && entry.file_type().map_err(failed)?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    parts.sort();
    Ok(parts)
}

/// Whether a name is that of a partition's folder.
fn is_partition(name: &str) -> bool {
    name.contains('=') && !name.starts_with('.')
}

struct FilesSink {
    folder: PathBuf,
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

    /// Deals with the part files of another run.
    fn start_anew(&self) -> Result<()> {
        let parts = part_files(&self.folder)?;
        match (self.existing, parts.first()) {
            (Existing::Fail, Some(part)) => {
                let message = format!("'path': there are part files already, such as '{}'", part.display());
                Err(Error::invalid(message).mend(
                    "name another folder, or say what to do about them: existing = \"keep\" or existing = \"delete\"",
                ))
            }
            (Existing::Delete, _) => parts.iter().try_for_each(|part| delete(part)),
            _ => Ok(()),
        }
    }

    /// Deletes what earlier attempts at this job wrote and never committed.
    fn clean_up(&self, attempt: &Attempt<'_>) -> Result<()> {
        let failed = |e: io::Error| io_error("listing", &self.folder, &e);
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let earlier = hidden_by(attempt.job, &entry.file_name().to_string_lossy());
            if earlier.is_some_and(|number| number < attempt.number) {
                delete(&entry.path())?;
                Failpoint::SinkDeleted.reach();
            }
        }
        Ok(())
    }
}

/// How the hidden files of a job's attempt begin. Jobs that share a folder leave each other's alone.
fn hidden_prefix(job: &str, attempt: u64) -> String {
    format!(".{PREFIX}{:016x}-{attempt}-", hash_row(job.as_bytes()))
}

/// Which attempt at this job wrote a hidden file, if one did.
fn hidden_by(job: &str, name: &str) -> Option<u64> {
    let rest = name.strip_prefix(&format!(".{PREFIX}{:016x}-", hash_row(job.as_bytes())))?;
    rest.split_once('-')?.0.parse().ok()
}

/// Deletes a file, if it is still there: another process whose job is being taken over deletes its own as it ends.
fn delete(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("deleting", path, &e)),
        _ => Ok(()),
    }
}

impl Sink for FilesSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn begin(&self, attempt: &Attempt<'_>) -> Result<()> {
        let begun = if attempt.goes_on { Ok(()) } else { self.start_anew() };
        begun.and_then(|()| self.clean_up(attempt)).map_err(|e| e.prefixed(&self.owner))
    }

    fn writer(&self, context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        let SubtaskId { job, node, index, .. } = &context.subtask;
        let (partitions, encoder) = self.shape(&context.schema)?;
        let settings = parts::Settings {
            folder: self.folder.clone(),
            hidden_prefix: format!("{}{}-{}-", hidden_prefix(job, context.attempt), node.0, index.0),
            subtask: index.0,
            extension: self.format.extension(),
            rolling: self.rolling,
            partitions,
            max_open_files: self.max_open_files,
        };
        Ok(Box::new(writer::FilesWriter::start(settings, self.buffer_bytes, encoder, context.waker, context.clock)?))
    }

    fn committer(&self) -> Result<Box<dyn SinkCommitter>> {
        Ok(Box::new(FilesCommitter { folder: self.folder.clone() }))
    }
}

/// The files of one `prepare`: the hidden name, in the sink's folder, and the final name, in it or in the folder of a
/// partition, with `/` between folders.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prepared {
    files: Vec<(String, String)>,
}

impl Prepared {
    fn committable(&self) -> Result<Committable> {
        serde_json::to_vec(self).map(Committable).map_err(|e| Error::internal(e.to_string()))
    }

    fn from_committable(committable: &Committable) -> Result<Self> {
        let prepared: Self = serde_json::from_slice(&committable.0)
            .map_err(|e| Error::invalid(format!("a committable of the files sink is damaged: {e}")))?;
        let plain = |name: &str| !name.contains('/') && Path::new(name).file_name().is_some_and(|n| n == name);
        let within = |name: &str| match name.rsplit_once('/') {
            None => plain(name),
            Some((folders, file)) => plain(file) && folders.split('/').all(|f| plain(f) && is_partition(f)),
        };
        for (hidden, name) in &prepared.files {
            if let Some(bad) = (!plain(hidden)).then_some(hidden).or((!within(name)).then_some(name)) {
                let message = format!("a committable of the files sink names '{bad}', outside its folder");
                return Err(Error::invalid(message));
            }
        }
        Ok(prepared)
    }
}

struct FilesCommitter {
    folder: PathBuf,
}

impl SinkCommitter for FilesCommitter {
    /// For each file: if the hidden one is there, rename it; if only the final one is there, it was committed before.
    /// Then the folders are synced, so that the names survive a crash of the machine.
    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        let mut folders = BTreeSet::new();
        for committable in committables {
            for (hidden, name) in Prepared::from_committable(committable)?.files {
                let name = self.folder.join(name);
                show(&self.folder.join(hidden), &name)?;
                let inner = name.ancestors().skip(1).take_while(|f| *f != self.folder);
                for folder in inner {
                    if !folders.insert(folder.to_owned()) {
                        break;
                    }
                }
            }
        }
        folders.iter().try_for_each(|folder| sync_folder(folder))?;
        sync_folder(&self.folder)
    }
}

/// Makes a file visible, unless it is already. Another process may be doing the same at this moment: one that took the
/// job over, or the one from which it was taken.
fn show(hidden: &Path, name: &Path) -> Result<()> {
    match (exists(hidden)?, exists(name)?) {
        (true, false) => {
            make_folder(name)?;
            match fs::rename(hidden, name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && exists(name)? => Ok(()),
                Err(e) => Err(io_error("renaming", hidden, &e)),
                Ok(()) => {
                    Failpoint::CommitRenamed.reach();
                    Ok(())
                }
            }
        }
        (false, true) => Ok(()),
        // Between the two questions.
        (true, true) if !exists(hidden)? => Ok(()),
        (true, true) => Err(Error::invalid(format!(
            "'{}' was written by someone else while this job ran; its own rows are in '{}'",
            name.display(),
            hidden.display()
        ))
        .mend("move the file away and commit again; give each job a folder of its own")),
        (false, false) => Err(Error::invalid(format!(
            "the rows of a checkpoint are lost: there is neither '{}' nor '{}'",
            hidden.display(),
            name.display()
        ))
        .mend("do not delete hidden files of a running job; restart it from an earlier checkpoint")),
    }
}

/// Makes the folder of a partition, if it is not there.
fn make_folder(name: &Path) -> Result<()> {
    let Some(folder) = name.parent() else { return Ok(()) };
    fs::create_dir_all(folder).map_err(|e| io_error("making the folder", folder, &e))
}

fn exists(path: &Path) -> Result<bool> {
    fs::exists(path).map_err(|e| io_error("looking for", path, &e))
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| io_error("syncing the folder", folder, &e))
}

#[cfg(test)]
mod races {
    use super::*;

    fn sink(folder: &Path) -> FilesSink {
        FilesSink {
            folder: folder.to_owned(),
            format: EncodeFormat::json(),
            existing: Existing::Fail,
            rolling: Rolling { bytes: 1, after_ms: None, idle_ms: None },
            partition_by: Vec::new(),
            keep_columns: false,
            max_open_files: 1,
            buffer_bytes: 1,
            owner: "sink 'out'".to_owned(),
        }
    }

    /// Of two processes at one job, the first commits a checkpoint from which the second goes on, which commits it too.
    #[test]
    fn two_processes_may_commit_the_same_checkpoint_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let names = |n: u32| (format!(".part-{round}-{n}.unfinished"), format!("part-{round}-{n}.jsonl"));
            let files: Vec<(String, String)> = (0..100).map(names).collect();
            files.iter().for_each(|(hidden, _)| fs::write(folder.path().join(hidden), "{}\n").unwrap());
            let prepared = Prepared { files }.committable().unwrap();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    let mut committer = sink(folder.path()).committer().unwrap();
                    let prepared = prepared.clone();
                    scope.spawn(move || committer.commit(&[prepared]).unwrap());
                }
            });
        }
        assert_eq!(part_files(folder.path()).unwrap().len(), 2_000);
    }

    /// A process whose job was taken over deletes what it had in the making, while the other one cleans up.
    #[test]
    fn what_somebody_else_deletes_need_not_be_cleaned_up() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let names = (0..100).map(|n| format!("{}{round}-{n}.unfinished", hidden_prefix("job", 1)));
            let paths: Vec<PathBuf> = names.map(|name| folder.path().join(name)).collect();
            paths.iter().for_each(|path| fs::write(path, "{}\n").unwrap());
            std::thread::scope(|scope| {
                scope.spawn(|| paths.iter().rev().for_each(|path| _ = fs::remove_file(path)));
                sink(folder.path()).begin(&Attempt { job: "job", number: 2, goes_on: true }).unwrap();
            });
        }
    }
}
