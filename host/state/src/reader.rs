//! Reading snapshots without their job: what parts there are, and their rows, the changes of a chain merged.
//!
//! Rows come bucket by bucket, so that a state larger than memory can be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use tidemill_core::ids::MaxParallelism;
use tidemill_core::snapshot::{FileRef, KeyGroupRange, SnapshotFiles, StateHandle};
use tidemill_core::{Error, Result};

use crate::format::{PartKind, PortableFile, batches, codec_of, divided, last_access_of};
use crate::memory::frozen::{About, no_time};
use crate::memory::parts::{Parts, Placed};

/// About so many bytes of files are merged at once.
const MERGED_BYTES: u64 = 32 << 20;

/// Part of an operator's state.
#[derive(Clone, Debug)]
pub struct PartInfo {
    /// What it is.
    pub kind: PartKind,
    /// Its name in the operator; timers have none.
    pub name: String,
    /// Of its rows: `namespace` (of timers: `time`), the key's columns, of logs `timestamp`, then the values.
    pub schema: SchemaRef,
    /// How many of the columns are the key's: those from the second on.
    pub keys: usize,
    /// Entries that were written, including those that later ones replace or remove; without changes since the base, the
    /// number of rows.
    pub written: u64,
}

impl PartInfo {
    /// The column that has the times of a value's last accesses, if it expires, and how long it lives, in milliseconds.
    pub fn last_accesses(&self, value: &str) -> Option<(usize, i64)> {
        let columns = self.schema.fields().iter().enumerate();
        let mut of_value = columns.filter_map(|(at, field)| Some((at, last_access_of(field)?)));
        of_value.find(|(_, last)| last.of == value).map(|(at, last)| (at, last.ttl_ms))
    }
}

/// Reads the state of one operator.
pub struct StateReader {
    files: Arc<dyn SnapshotFiles>,
    operator: String,
    max_parallelism: MaxParallelism,
    handles: Vec<Vec<Source>>,
    ranges: Vec<KeyGroupRange>,
    parts: BTreeMap<(PartKind, String), PartInfo>,
}

struct Source {
    file: FileRef,
    key_groups: KeyGroupRange,
}

impl StateReader {
    /// Of the handles of all subtasks of an operator in one checkpoint. Reads every file once, to check it and see what it
    /// is about.
    pub fn open(handles: &[StateHandle], files: Arc<dyn SnapshotFiles>) -> Result<Self> {
        let mut reader = Self {
            files,
            operator: String::new(),
            max_parallelism: MaxParallelism::DEFAULT,
            handles: Vec::new(),
            ranges: Vec::new(),
            parts: BTreeMap::new(),
        };
        for handle in handles {
            if handle.format != StateHandle::PORTABLE {
                return Err(Error::invalid(format!(
                    "state in the format '{}' is read by its backend only",
                    handle.format
                ))
                .mend("Make a savepoint of the job and read that."));
            }
            let mut sources = Vec::with_capacity(handle.files.len());
            for file in &handle.files {
                sources.push(reader.look_at(file)?);
            }
            reader.handles.push(sources);
            reader.ranges.push(handle.key_groups);
        }
        Ok(reader)
    }

    /// Whose state it is.
    pub fn operator(&self) -> &str {
        &self.operator
    }

    /// By how many key groups it is divided.
    pub fn max_parallelism(&self) -> MaxParallelism {
        self.max_parallelism
    }

    /// What there is.
    pub fn parts(&self) -> impl Iterator<Item = &PartInfo> {
        self.parts.values()
    }

    /// Hands over all rows of a part, or those of some keys (given as the key's columns), in batches.
    pub fn rows(
        &self,
        kind: PartKind,
        name: &str,
        keys: Option<&[ArrayRef]>,
        visit: &mut dyn FnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let part = self.parts.get(&(kind, name.to_owned())).ok_or_else(|| {
            let known: Vec<_> = self.parts.keys().map(|(kind, name)| format!("{kind:?} '{name}'")).collect();
            Error::invalid(format!(
                "the state of operator '{}' has no {kind:?} '{name}'; it has {}",
                self.operator,
                known.join(", ")
            ))
        })?;
        let only = keys.map(|columns| {
            let rows = columns.first().map_or(1, |column| column.len());
            codec_of(part.keys, &part.schema)?.encode(rows, columns)
        });
        let only = only.transpose()?;
        for (sources, range) in self.handles.iter().zip(&self.ranges) {
            let bytes: u64 = sources.iter().map(|source| source.file.bytes).sum();
            let buckets = (bytes / MERGED_BYTES + 1).min(u64::from(u16::MAX)) as u16;
            for key_groups in divided(*range, buckets) {
                let has = |hash: &u64| key_groups.contains(self.max_parallelism.key_group(*hash));
                if only.as_ref().is_some_and(|keys| !keys.hashes.iter().any(has)) {
                    continue;
                }
                let codec = codec_of(part.keys, &part.schema)?;
                // What is there is shown, with its last access, even if it is over.
                let (operator, max_parallelism, now) = (self.operator.clone(), self.max_parallelism, no_time());
                let mut merged = Parts::new(Arc::new(About { operator, codec, key_groups, max_parallelism, now }));
                merged.only = Some((kind, name.to_owned()));
                for source in sources.iter().filter(|source| source.key_groups.overlaps(key_groups)) {
                    let file = PortableFile::parse(&source.file.path, self.files.read(&source.file)?)?;
                    merged.apply(&Placed { file: &file, growth: 0.0, more: false })?;
                }
                batches(&merged.freeze(), kind, name, only.as_ref(), visit)?;
            }
        }
        Ok(())
    }

    fn look_at(&mut self, file: &FileRef) -> Result<Source> {
        let read = PortableFile::parse(&file.path, self.files.read(file)?)?;
        let footer = &read.footer;
        let max_parallelism = MaxParallelism::new(footer.max_parallelism);
        let max_parallelism = max_parallelism.ok_or_else(|| read.wrong("has an impossible number of key groups"))?;
        if !self.parts.is_empty() && max_parallelism != self.max_parallelism {
            return Err(read.wrong("counts other key groups than the files before it"));
        }
        self.max_parallelism = max_parallelism;
        self.operator.clone_from(&footer.operator);
        for part in &footer.parts {
            let schema = read.schema(part)?;
            let (kind, name, keys) = (part.kind, part.name.clone(), footer.keys);
            let info = PartInfo { kind, name: name.clone(), schema, keys, written: 0 };
            let info = self.parts.entry((kind, name)).or_insert(info);
            info.written += part.blocks.iter().map(|block| block.rows).sum::<u64>();
        }
        Ok(Source { file: file.clone(), key_groups: footer.key_groups })
    }
}
