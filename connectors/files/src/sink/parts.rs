//! The part files of one subtask: which are open, what goes into them, when they are closed.
//!
//! All lie hidden in the sink's own folder, also those of partitions, so that an attempt finds what earlier ones left
//! behind in one place; a partition's folder is made when its first file is committed. Invariant: no more files are open
//! than the settings allow.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::mem;
use std::path::{Path, PathBuf};

use tidemill_connector_kit::format::Encoder;
use tidemill_core::Batch;
use tidemill_core::error::{Error, Result};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::Epoch;

use super::partitions::Partitions;
use super::rolling::Rolling;
use super::{PREFIX, Prepared};
use crate::find::io_error;

/// Bytes per write: large enough that the system call is a small part of it.
const WRITE_BYTES: usize = 256 << 10;
/// Bytes per write where there are partitions: each open file has so many in memory.
const PARTITION_WRITE_BYTES: usize = 32 << 10;
/// Hidden names that are tried: each crashed attempt may have left some behind.
const MAX_HIDDEN: u64 = 1_000_000;

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) folder: PathBuf,
    /// How its hidden names begin; no other attempt, node or subtask has the same.
    pub(super) hidden_prefix: String,
    pub(super) subtask: u32,
    pub(super) extension: &'static str,
    pub(super) rolling: Rolling,
    pub(super) partitions: Option<Partitions>,
    pub(super) max_open_files: usize,
}

pub(super) struct PartFiles {
    settings: Settings,
    encoder: Encoder,
    /// By folder; without partitions, one with an empty name.
    open: BTreeMap<String, Open>,
    /// Files that are complete and synced, since the last `prepare`.
    closed: Vec<Closed>,
    /// Number of the next hidden name.
    hidden: u64,
    /// Grows with each use of a file, so that the one used least recently is known.
    uses: u64,
}

struct Open {
    name: String,
    file: File,
    /// Encoded and not yet written.
    text: Vec<u8>,
    /// Written.
    bytes: u64,
    /// When its first and its last rows came.
    first_ms: i64,
    last_ms: i64,
    used: u64,
}

struct Closed {
    name: String,
    /// Where it will be visible, within the sink's folder.
    folder: String,
}

impl PartFiles {
    pub(super) fn new(settings: Settings, encoder: Encoder) -> Self {
        Self { settings, encoder, open: BTreeMap::new(), closed: Vec::new(), hidden: 0, uses: 0 }
    }

    /// Whether time may close a file although nothing happens.
    pub(super) fn waits_for_time(&self) -> bool {
        self.settings.rolling.goes_by_time() && !self.open.is_empty()
    }

    /// Closes what is due.
    pub(super) fn roll(&mut self, now_ms: i64) -> Result<()> {
        if !self.settings.rolling.goes_by_time() {
            return Ok(());
        }
        let rolling = self.settings.rolling;
        let is_due = |open: &Open| rolling.due(open.first_ms, open.last_ms).is_some_and(|due| now_ms >= due);
        let due: Vec<String> = self.open.iter().filter(|(_, o)| is_due(o)).map(|(folder, _)| folder.clone()).collect();
        due.iter().try_for_each(|folder| self.close(folder))
    }

    /// Writes rows that came at this time.
    pub(super) fn write(&mut self, batch: &Batch, now_ms: i64) -> Result<()> {
        self.roll(now_ms)?;
        if batch.is_empty() {
            return Ok(());
        }
        match &self.settings.partitions {
            None => self.write_into("", batch, now_ms),
            Some(partitions) => {
                let divided = partitions.divide(batch)?;
                divided.iter().try_for_each(|(folder, rows)| self.write_into(folder, rows, now_ms))
            }
        }
    }

    fn write_into(&mut self, folder: &str, batch: &Batch, now_ms: i64) -> Result<()> {
        if !self.open.contains_key(folder) {
            self.make_room()?;
            let open = self.create(now_ms)?;
            self.open.insert(folder.to_owned(), open);
        }
        let Some(open) = self.open.get_mut(folder) else { return Err(Error::internal("an open file is not there")) };
        self.encoder.encode(batch, &mut open.text)?;
        self.uses += 1;
        (open.last_ms, open.used) = (now_ms, self.uses);
        let write_bytes = if self.settings.partitions.is_some() { PARTITION_WRITE_BYTES } else { WRITE_BYTES };
        if open.text.len() >= write_bytes {
            open.flush(&self.settings.folder)?;
        }
        if open.bytes + open.text.len() as u64 >= self.settings.rolling.bytes {
            self.close(folder)?;
        }
        Ok(())
    }

    /// Closes everything that is open, and gives all files since the last time their names.
    pub(super) fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        while let Some(folder) = self.open.keys().next().cloned() {
            self.close(&folder)?;
        }
        let mut files = Vec::new();
        let mut number = 0;
        for Closed { name: hidden, folder } in mem::take(&mut self.closed) {
            // Names of an earlier run that was told to keep its files are passed over.
            let name = loop {
                let Settings { subtask, extension, folder: root, .. } = &self.settings;
                let file = format!("{PREFIX}{subtask}-{}-{number}.{extension}", epoch.0);
                let name = if folder.is_empty() { file } else { format!("{folder}/{file}") };
                number += 1;
                if !root.join(&name).exists() {
                    break name;
                }
            };
            files.push((hidden, name));
        }
        Failpoint::PartPrepared.reach();
        Ok(Prepared { files })
    }

    /// Closes the file used least recently, if no more may be open.
    fn make_room(&mut self) -> Result<()> {
        if self.open.len() < self.settings.max_open_files {
            return Ok(());
        }
        let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(folder, _)| folder.clone());
        oldest.map_or(Ok(()), |folder| self.close(&folder))
    }

    /// A new hidden file. `create_new` sees to it that no other attempt has it.
    fn create(&mut self, now_ms: i64) -> Result<Open> {
        loop {
            let name = format!("{}{}.unfinished", self.settings.hidden_prefix, self.hidden);
            self.hidden += 1;
            let path = self.settings.folder.join(&name);
            match File::create_new(&path) {
                Ok(file) => {
                    Failpoint::PartCreated.reach();
                    let mut text = Vec::new();
                    self.encoder.header(&mut text);
                    return Ok(Open { name, file, text, bytes: 0, first_ms: now_ms, last_ms: now_ms, used: 0 });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.hidden < MAX_HIDDEN => {}
                Err(e) => return Err(io_error("creating", &path, &e)),
            }
        }
    }

    fn close(&mut self, folder: &str) -> Result<()> {
        let root = &self.settings.folder;
        if let Some(open) = self.open.get_mut(folder) {
            open.flush(root)?;
            Failpoint::PartUnsynced.reach();
            open.file.sync_all().map_err(|e| io_error("syncing", &root.join(&open.name), &e))?;
            Failpoint::PartSynced.reach();
        }
        if let Some((folder, open)) = self.open.remove_entry(folder) {
            self.closed.push(Closed { name: open.name, folder });
        }
        Ok(())
    }
}

impl Open {
    fn flush(&mut self, root: &Path) -> Result<()> {
        self.file.write_all(&self.text).map_err(|e| io_error("writing", &root.join(&self.name), &e))?;
        Failpoint::PartWritten.reach();
        self.bytes += self.text.len() as u64;
        self.text.clear();
        Ok(())
    }
}

impl Drop for PartFiles {
    /// What was never prepared is of no use to anyone.
    fn drop(&mut self) {
        let open = mem::take(&mut self.open).into_values().map(|open| open.name);
        for name in self.closed.drain(..).map(|closed| closed.name).chain(open) {
            // If it can't be deleted it stays hidden, and does no harm.
            let _ = fs::remove_file(self.settings.folder.join(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};
    use arrow::datatypes::{DataType, Field, Schema};
    use tidemill_connector_kit::format::EncodeFormat;

    use super::*;

    fn parts(folder: &Path, rolling: Rolling, max_open_files: usize) -> PartFiles {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let settings = Settings {
            folder: folder.to_owned(),
            hidden_prefix: ".part-".to_owned(),
            subtask: 0,
            extension: "jsonl",
            rolling,
            partitions: Some(Partitions::new(&schema, &["n".to_owned()], true).unwrap()),
            max_open_files,
        };
        PartFiles::new(settings, EncodeFormat::json().encoder(&schema).unwrap())
    }

    fn rows(numbers: &[i64]) -> Batch {
        let column: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
        Batch::new(numbers.len(), vec![column], None).unwrap()
    }

    fn open(parts: &PartFiles) -> Vec<&str> {
        parts.open.keys().map(String::as_str).collect()
    }

    const NEVER: Rolling = Rolling { bytes: u64::MAX, after_ms: None, idle_ms: None };

    /// No row comes any more: the thread looks at the clock, and each file is closed by its own times.
    #[test]
    fn time_closes_files_also_where_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = parts(folder.path(), Rolling { after_ms: Some(100), idle_ms: Some(30), ..NEVER }, 8);
        assert!(!parts.waits_for_time());
        parts.write(&rows(&[1, 2]), 0).unwrap();
        assert!(parts.waits_for_time());
        for now_ms in [20, 40, 60, 80, 99] {
            parts.write(&rows(&[1]), now_ms).unwrap();
        }
        assert_eq!(open(&parts), ["n=1"]);
        parts.roll(99).unwrap();
        assert_eq!(open(&parts), ["n=1"]);
        parts.roll(100).unwrap();
        assert!(open(&parts).is_empty() && !parts.waits_for_time());
        assert_eq!(parts.prepare(Epoch(1)).unwrap().files.len(), 2);
    }

    #[test]
    fn the_file_used_least_recently_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = parts(folder.path(), NEVER, 2);
        parts.write(&rows(&[1]), 0).unwrap();
        parts.write(&rows(&[2]), 0).unwrap();
        parts.write(&rows(&[1]), 0).unwrap();
        parts.write(&rows(&[3]), 0).unwrap();
        assert_eq!(open(&parts), ["n=1", "n=3"]);
        // More folders in one batch than files may be open.
        parts.write(&rows(&[1, 2, 3, 4, 5]), 0).unwrap();
        assert_eq!(open(&parts).len(), 2);
        let files = parts.prepare(Epoch(1)).unwrap().files;
        let read = |n: i64| -> String {
            let here = files.iter().filter(|(_, name)| name.starts_with(&format!("n={n}/")));
            here.map(|(hidden, _)| fs::read_to_string(folder.path().join(hidden)).unwrap()).collect()
        };
        assert_eq!([1, 2, 3, 4, 5].map(|n| read(n).lines().count()), [3, 2, 2, 1, 1]);
    }
}
