//! The sink: part files that are hidden until the checkpoint that covers them is complete.
//!
//! A thread encodes and writes. A file is written under a hidden name that no other attempt can have; `prepare` closes
//! and syncs it, and names hidden and final name in a committable; `commit` renames. Invariant: under a final name there
//! is only ever a whole file of a complete checkpoint, and a final name is never given twice.
//!
//! What an attempt wrote and nobody committed stays behind hidden after a hard crash; readers ignore it, and the next
//! attempt at the job deletes it.

mod writer;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidemill_connector_kit::format::EncodeFormat;
use tidemill_connector_kit::{ByteSize, Key, OptionSpec, Setup};
use tidemill_core::connector::{Attempt, Committable, Guarantee, Sink, SinkCommitter, SinkContext, SinkWriter};
use tidemill_core::error::{Error, Result};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::SubtaskId;
use tidemill_core::keys::hash_row;

use crate::find::io_error;

const PATH: Key<PathBuf> =
    Key::new("path", "The folder for the part files, made if it is not there; relative to the manifest's folder.")
        .required();
const ROLL_BYTES: Key<ByteSize> = Key::new("roll-bytes", "A part file is closed when it has this size.").or("128 MiB");
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
    let own = [PATH.spec(), ROLL_BYTES.spec(), EXISTING.spec(), BUFFER_BYTES.spec()];
    own.into_iter().chain(EncodeFormat::options()).collect()
}

pub(crate) fn sink(setup: Setup) -> Result<Arc<dyn Sink>> {
    let options = &setup.options;
    let folder = setup.base.join(options.need(&PATH)?);
    let format = EncodeFormat::from_options(options)?;
    format.encoder(&setup.schema).map_err(|e| options.place(e))?;
    fs::create_dir_all(&folder).map_err(|e| options.place(io_error("making the folder", &folder, &e)))?;
    let existing = match options.need(&EXISTING)?.as_str() {
        "delete" => Existing::Delete,
        "keep" => Existing::Keep,
        _ => Existing::Fail,
    };
    let roll_bytes = options.need(&ROLL_BYTES)?.0.max(1);
    let buffer_bytes = options.need(&BUFFER_BYTES)?.as_usize();
    let owner = options.owner().to_owned();
    Ok(Arc::new(FilesSink { folder, format, existing, roll_bytes, buffer_bytes, owner }))
}

/// What is done about part files of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Existing {
    Fail,
    Keep,
    Delete,
}

fn part_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: io::Error| io_error("listing", folder, &e);
    let mut parts = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            parts.push(entry.path());
        }
    }
    parts.sort();
    Ok(parts)
}

struct FilesSink {
    folder: PathBuf,
    format: EncodeFormat,
    existing: Existing,
    roll_bytes: u64,
    buffer_bytes: usize,
    owner: String,
}

impl FilesSink {
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

fn delete(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|e| io_error("deleting", path, &e))
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
        let settings = writer::Settings {
            folder: self.folder.clone(),
            hidden_prefix: format!("{}{}-{}-", hidden_prefix(job, context.attempt), node.0, index.0),
            subtask: index.0,
            extension: self.format.extension(),
            roll_bytes: self.roll_bytes,
            buffer_bytes: self.buffer_bytes,
        };
        let encoder = self.format.encoder(&context.schema)?;
        Ok(Box::new(writer::FilesWriter::start(settings, encoder, context.waker)?))
    }

    fn committer(&self) -> Result<Box<dyn SinkCommitter>> {
        Ok(Box::new(FilesCommitter { folder: self.folder.clone() }))
    }
}

/// The files of one `prepare`: hidden name and final name, both within the sink's folder.
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
        let plain = |name: &str| Path::new(name).file_name().is_some_and(|n| n == name);
        if let Some(name) = prepared.files.iter().flat_map(|(hidden, name)| [hidden, name]).find(|n| !plain(n)) {
            return Err(Error::invalid(format!("a committable of the files sink names '{name}', outside its folder")));
        }
        Ok(prepared)
    }
}

struct FilesCommitter {
    folder: PathBuf,
}

impl SinkCommitter for FilesCommitter {
    /// For each file: if the hidden one is there, rename it; if only the final one is there, it was committed before.
    /// Then the folder is synced, so that the names survive a crash of the machine.
    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        for committable in committables {
            for (hidden, name) in Prepared::from_committable(committable)?.files {
                let (hidden, name) = (self.folder.join(hidden), self.folder.join(name));
                match (exists(&hidden)?, exists(&name)?) {
                    (true, false) => {
                        fs::rename(&hidden, &name).map_err(|e| io_error("renaming", &hidden, &e))?;
                        Failpoint::CommitRenamed.reach();
                    }
                    (false, true) => {}
                    (true, true) => {
                        return Err(Error::invalid(format!(
                            "'{}' was written by someone else while this job ran; its own rows are in '{}'",
                            name.display(),
                            hidden.display()
                        ))
                        .mend("move the file away and commit again; give each job a folder of its own"));
                    }
                    (false, false) => {
                        return Err(Error::invalid(format!(
                            "the rows of a checkpoint are lost: there is neither '{}' nor '{}'",
                            hidden.display(),
                            name.display()
                        ))
                        .mend("do not delete hidden files of a running job; restart it from an earlier checkpoint"));
                    }
                }
            }
        }
        sync_folder(&self.folder)
    }
}

fn exists(path: &Path) -> Result<bool> {
    fs::exists(path).map_err(|e| io_error("looking for", path, &e))
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| io_error("syncing the folder", folder, &e))
}
