//! The part files of one subtask: which are open, what goes into them, when they are closed.
//!
//! Invariant: no more files are open than the settings allow.

use std::collections::BTreeMap;
use std::mem;

use tidemill_connector_kit::format::Encoder;
use tidemill_core::Batch;
use tidemill_core::connector::Committable;
use tidemill_core::error::{Error, Result};
use tidemill_core::ids::Epoch;
use tidemill_core::memory::Account;

use super::partitions::Partitions;
use super::place::Place;
use super::rolling::Rolling;

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) rolling: Rolling,
    pub(super) partitions: Option<Partitions>,
    pub(super) max_open_files: usize,
}

pub(super) struct PartFiles<P: Place> {
    place: P,
    settings: Settings,
    encoder: Encoder,
    /// By folder; without partitions, one with an empty name.
    open: BTreeMap<String, Open<P::Part>>,
    /// Files that are complete, since the last `prepare`.
    closed: Vec<P::Part>,
    /// Grows with each use of a file, so that the one used least recently is known.
    uses: u64,
    /// What the open files have gathered, in bytes, and where that is counted.
    gathered: usize,
    memory: Account,
}

struct Open<Part> {
    part: Part,
    /// Encoded and not yet written.
    text: Vec<u8>,
    /// When its first and its last rows came.
    first_ms: i64,
    last_ms: i64,
    used: u64,
}

impl<P: Place> PartFiles<P> {
    pub(super) fn new(place: P, settings: Settings, encoder: Encoder, memory: Account) -> Self {
        let (open, closed) = Default::default();
        Self { place, settings, encoder, open, closed, uses: 0, gathered: 0, memory }
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
        let is_due = |open: &Open<P::Part>| rolling.due(open.first_ms, open.last_ms).is_some_and(|due| now_ms >= due);
        let due: Vec<String> = self.open.iter().filter(|(_, o)| is_due(o)).map(|(folder, _)| folder.clone()).collect();
        due.iter().try_for_each(|folder| self.close(folder))?;
        self.memory.hold(self.gathered)
    }

    /// Writes rows that came at this time.
    pub(super) fn write(&mut self, batch: &Batch, now_ms: i64) -> Result<()> {
        self.roll(now_ms)?;
        if batch.is_empty() {
            return Ok(());
        }
        match &self.settings.partitions {
            None => self.write_into("", batch, now_ms)?,
            Some(partitions) => {
                let divided = partitions.divide(batch)?;
                divided.iter().try_for_each(|(folder, rows)| self.write_into(folder, rows, now_ms))?;
            }
        }
        self.memory.hold(self.gathered)
    }

    fn write_into(&mut self, folder: &str, batch: &Batch, now_ms: i64) -> Result<()> {
        if !self.open.contains_key(folder) {
            self.make_room()?;
            let open = self.create(folder, now_ms)?;
            self.gathered += open.text.capacity();
            self.open.insert(folder.to_owned(), open);
        }
        let Some(open) = self.open.get_mut(folder) else { return Err(Error::internal("an open file is not there")) };
        let before = open.text.capacity();
        self.encoder.encode(batch, &mut open.text)?;
        self.uses += 1;
        (open.last_ms, open.used) = (now_ms, self.uses);
        if open.text.len() >= self.place.piece_bytes(self.settings.partitions.is_some()) {
            self.place.write(&mut open.part, &mut open.text)?;
        }
        self.gathered = self.gathered + open.text.capacity() - before;
        if P::written(&open.part) + open.text.len() as u64 >= self.settings.rolling.bytes {
            self.close(folder)?;
        }
        Ok(())
    }

    /// Closes everything that is open; the committable has all files since the last time.
    pub(super) fn prepare(&mut self, epoch: Epoch) -> Result<Option<Committable>> {
        while let Some(folder) = self.open.keys().next().cloned() {
            self.close(&folder)?;
        }
        self.memory.hold(self.gathered)?;
        self.place.prepare(epoch, mem::take(&mut self.closed))
    }

    /// Closes the file used least recently, if no more may be open.
    fn make_room(&mut self) -> Result<()> {
        if self.open.len() < self.settings.max_open_files {
            return Ok(());
        }
        let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(folder, _)| folder.clone());
        oldest.map_or(Ok(()), |folder| self.close(&folder))
    }

    fn create(&mut self, folder: &str, now_ms: i64) -> Result<Open<P::Part>> {
        let part = self.place.create(folder)?;
        let mut text = Vec::new();
        self.encoder.header(&mut text);
        Ok(Open { part, text, first_ms: now_ms, last_ms: now_ms, used: 0 })
    }

    fn close(&mut self, folder: &str) -> Result<()> {
        if let Some(mut open) = self.open.remove(folder) {
            self.gathered -= open.text.capacity();
            self.place.close(&mut open.part, open.text)?;
            self.closed.push(open.part);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};
    use arrow::datatypes::{DataType, Field, Schema};
    use tidemill_connector_kit::format::EncodeFormat;
    use tidemill_core::memory::{JobMemory, Owner, ProcessMemory};

    use super::super::folder::{Folder, Prepared};
    use super::*;

    fn parts(folder: &Path, rolling: Rolling, max_open_files: usize) -> PartFiles<Folder> {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let place = Folder::new(folder.to_owned(), ".part-".to_owned(), 0, "jsonl");
        let partitions = Some(Partitions::new(&schema, &["n".to_owned()], true).unwrap());
        let settings = Settings { rolling, partitions, max_open_files };
        let memory = Account::new(&JobMemory::unlimited(), Owner::Connectors);
        PartFiles::new(place, settings, EncodeFormat::json().encoder(&schema).unwrap(), memory)
    }

    fn rows(numbers: &[i64]) -> Batch {
        let column: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
        Batch::new(numbers.len(), vec![column], None).unwrap()
    }

    fn prepare(parts: &mut PartFiles<Folder>) -> Vec<(String, String)> {
        Prepared::from_committable(&parts.prepare(Epoch(1)).unwrap().unwrap()).unwrap().files
    }

    fn open(parts: &PartFiles<Folder>) -> Vec<&str> {
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
        assert_eq!(prepare(&mut parts).len(), 2);
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
        let files = prepare(&mut parts);
        let read = |n: i64| -> String {
            let here = files.iter().filter(|(_, name)| name.starts_with(&format!("n={n}/")));
            here.map(|(hidden, _)| fs::read_to_string(folder.path().join(hidden)).unwrap()).collect()
        };
        assert_eq!([1, 2, 3, 4, 5].map(|n| read(n).lines().count()), [3, 2, 2, 1, 1]);
    }

    /// Each closed file kept its descriptor until the next checkpoint, so that a job with many folders ran out of them.
    #[test]
    fn a_closed_file_takes_no_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = parts(folder.path(), NEVER, 2);
        parts.write(&rows(&(0..50).collect::<Vec<_>>()), 0).unwrap();
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
        let ours = targets.filter(|target| target.starts_with(folder.path().canonicalize().unwrap())).count();
        assert_eq!((ours, parts.closed.len()), (2, 48));
        assert_eq!(prepare(&mut parts).len(), 50);
    }

    #[test]
    fn what_open_files_have_gathered_is_counted_while_they_are_open() {
        let folder = tempfile::tempdir().unwrap();
        let process = ProcessMemory::unlimited();
        let mut parts = parts(folder.path(), NEVER, 2);
        parts.memory = Account::new(&process.job("a"), Owner::Connectors);
        let held = || process.held().of(Owner::Connectors);
        parts.write(&rows(&[1]), 0).unwrap();
        let one = held();
        parts.write(&rows(&[1, 2, 3]), 0).unwrap();
        let gathered: usize = parts.open.values().map(|open| open.text.capacity()).sum();
        assert!(one > 0 && held() == gathered as u64, "{one} {gathered} {}", held());
        parts.prepare(Epoch(1)).unwrap();
        assert_eq!(held(), 0);
    }
}
