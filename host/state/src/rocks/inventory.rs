//! What is in a database: parts, and how many entries each of their namespaces has.
//!
//! It is kept beside a native checkpoint, since a restored state has to know which namespaces there are and whether a key
//! can be on disk at all, and counting would be reading everything.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidemill_core::state::ValueSpec;
use tidemill_core::{Error, Result};

use crate::format::{Layout, PartKind, PortableFile, values_of, write_files};
use crate::memory::frozen::{About, FrozenPart, FrozenState, PartAbout};

/// The parts of an operator's state.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub(super) parts: BTreeMap<(PartKind, String), Stored>,
}

/// A part.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) values: Vec<ValueSpec>,
    /// Of timers one, 0.
    pub(super) namespaces: BTreeMap<i64, Count>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Count {
    /// Of a table or timers: entries. Of a log: pieces.
    pub(super) entries: u64,
    /// Of a log.
    #[serde(default)]
    pub(super) rows: u64,
}

/// The file that a native checkpoint begins with.
pub(super) struct Meta {
    /// A snapshot without entries in the portable format: the operator, its keys, its parts and their values.
    pub(super) shape: PortableFile,
    pub(super) inventory: Inventory,
    /// What the files after this one are called in the database's folder.
    pub(super) names: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    names: Vec<String>,
    /// In the order of the shape's parts: namespaces and their counts.
    counts: Vec<Vec<(i64, Count)>>,
}

impl Meta {
    pub(super) fn encode(about: &Arc<About>, inventory: &Inventory, names: Vec<String>) -> Result<Vec<u8>> {
        let fixed = about.codec.is_fixed();
        let part = |((kind, name), stored): (&(PartKind, String), &Stored)| {
            let about = PartAbout { kind: *kind, name: name.clone(), values: stored.values.clone() };
            (about, FrozenPart::new(fixed))
        };
        let parts = inventory.parts.iter().map(part).collect();
        let frozen = FrozenState { about: Arc::clone(about), whole: true, parts };
        let mut shape = Vec::new();
        write_files(&frozen, Layout { file_bytes: usize::MAX, buckets: 1, savepoint: false }, |bytes, _| {
            shape = bytes;
            Ok(())
        })?;
        let counts = |stored: &Stored| stored.namespaces.iter().map(|(ns, count)| (*ns, *count)).collect();
        let document = Document { names, counts: inventory.parts.values().map(counts).collect() };
        let document = serde_json::to_vec(&document).map_err(|e| Error::internal(e.to_string()))?;
        let mut bytes = (shape.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut shape);
        bytes.extend(document);
        Ok(bytes)
    }

    /// `path` is for messages.
    pub(super) fn decode(path: &str, bytes: &[u8]) -> Result<Self> {
        let wrong = |what: String| {
            Error::invalid(format!("the snapshot file '{path}' {what}"))
                .mend("Restore from another checkpoint, or with the version of Tidemill that wrote this one.")
        };
        let cut = || wrong("does not describe a local database".into());
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(cut)?;
        let (shape, rest) = rest.split_at_checked(u64::from_le_bytes(*length) as usize).ok_or_else(cut)?;
        let document: Document = serde_json::from_slice(rest).map_err(|e| wrong(format!("can't be read: {e}")))?;
        let shape = PortableFile::parse(path, shape.to_vec())?;
        if shape.footer.parts.len() != document.counts.len() {
            return Err(wrong("disagrees with itself about its parts".into()));
        }
        let mut inventory = Inventory::default();
        for (part, counts) in shape.footer.parts.iter().zip(document.counts) {
            let values = values_of(part.kind, shape.footer.keys, &*shape.schema(part)?);
            let stored = Stored { values, namespaces: counts.into_iter().collect() };
            inventory.parts.insert((part.kind, part.name.clone()), stored);
        }
        // These become names of local files.
        let plain = |name: &String| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)) && name != ".."
        };
        // Without its entry point a database would be taken for a new one.
        let names = document.names.is_empty() || document.names.iter().any(|name| name == "CURRENT");
        if !names || !document.names.iter().all(plain) {
            return Err(wrong("names files that a database does not have".into()));
        }
        Ok(Self { shape, inventory, names: document.names })
    }
}

impl Inventory {
    /// Counts what is added by writing this.
    pub(super) fn add(&mut self, frozen: &FrozenState) {
        for (about, part) in &frozen.parts {
            let stored = self.parts.entry((about.kind, about.name.clone())).or_default();
            stored.values.clone_from(&about.values);
            for &(lead, n) in &part.put.runs {
                let timers = matches!(about.kind, PartKind::EventTimers | PartKind::ProcessingTimers);
                let count = stored.namespaces.entry(if timers { 0 } else { lead }).or_default();
                if about.kind == PartKind::Log {
                    (count.entries, count.rows) = (count.entries + 1, count.rows + n as u64);
                } else {
                    count.entries += n as u64;
                }
            }
        }
    }
}
