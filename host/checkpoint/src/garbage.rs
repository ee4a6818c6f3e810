//! What of a job's folder may be deleted. Pure: names in, names out.
//!
//! Invariant: nothing that a retained checkpoint refers to is garbage, and nothing that a checkpoint in the making may
//! refer to. Such a one refers to files that the newest checkpoint keeps, and to files that are newer than it; therefore
//! only files *before* the newest checkpoint, by generation and epoch, are ever garbage. A savepoint's files are its own,
//! so it is not the newest checkpoint in this sense: what comes after it goes on from the checkpoint before it.

use std::collections::BTreeSet;

use crate::manifest::{Manifest, ManifestKind};

/// A file's place in time: the attempt that wrote it, and for which epoch. Ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Written {
    /// The attempt.
    pub generation: u64,
    /// The epoch.
    pub epoch: u64,
}

impl Written {
    /// The name of a new file: `hint` is for people, `nonce` makes it unique.
    pub fn file_name(self, hint: &str, nonce: &str) -> String {
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let hint: String = hint.chars().take(HINT_CHARS).map(|c| if allowed(c) { c } else { '-' }).collect();
        format!("g{}-e{:06}-{hint}-{nonce}", self.generation, self.epoch)
    }

    /// When a file of this name was written. `None`: the name is not one of ours.
    pub fn of_file(name: &str) -> Option<Self> {
        let (generation, rest) = name.strip_prefix('g')?.split_once("-e")?;
        let (epoch, _) = rest.split_once('-')?;
        Some(Self { generation: generation.parse().ok()?, epoch: epoch.parse().ok()? })
    }
}

/// Enough to recognise an operator; file systems end at 255 bytes.
const HINT_CHARS: usize = 64;

impl From<&Manifest> for Written {
    fn from(manifest: &Manifest) -> Self {
        Self { generation: manifest.generation, epoch: manifest.epoch }
    }
}

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Numbers of log entries.
    pub log: Vec<u64>,
    /// Numbers of committed markers.
    pub committed: Vec<u64>,
    /// Names of files.
    pub files: Vec<String>,
}

/// What is to be deleted, in this order, stopping at the first failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Numbers of log entries, oldest first: the entry before another must be gone before it, or its writer would not
    /// find out that it sleeps. And before any file, so that no entry is left whose files are gone.
    pub log: Vec<u64>,
    /// Numbers of committed markers, of deleted entries.
    pub committed: Vec<u64>,
    /// Names of files.
    pub files: Vec<String>,
}

/// What is garbage when these checkpoints are retained, by number, newest first. Without any but savepoints, nothing is.
pub fn garbage(inventory: &Inventory, retained: &[(u64, Manifest)], folder: &str) -> Garbage {
    let newest =
        retained.iter().map(|(_, manifest)| manifest).find(|manifest| manifest.kind != ManifestKind::Savepoint);
    let (Some(newest), Some((oldest, _))) = (newest.map(Written::from), retained.last()) else {
        return Garbage::default();
    };
    let named = retained.iter().flat_map(|(_, manifest)| manifest.files());
    let named: BTreeSet<&str> = named.filter_map(|file| file.path.strip_prefix(folder)?.strip_prefix('/')).collect();
    let unneeded = |name: &&String| {
        !named.contains(name.as_str()) && Written::of_file(name).is_some_and(|written| written < newest)
    };
    let older = |numbers: &[u64]| {
        let older: BTreeSet<u64> = numbers.iter().copied().filter(|number| number < oldest).collect();
        older.into_iter().collect()
    };
    Garbage {
        log: older(&inventory.log),
        committed: older(&inventory.committed),
        files: inventory.files.iter().filter(unneeded).cloned().collect(),
    }
}
