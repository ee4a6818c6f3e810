//! The contract of snapshots: what a checkpoint keeps of an operator subtask's keyed state, and where it is written.
//!
//! Taking a snapshot has two parts. On the slot, between two batches, [`KeyedState::snapshot`](crate::state::KeyedState)
//! *freezes* the state, at a cost that grows with what changed and not with what there is. Off the slot, the frozen
//! state is *written* to files, which are immutable and may be shared by many checkpoints; the answer is a
//! [`StateHandle`], which the checkpoint's manifest keeps.
//!
//! Invariant: a file is checked by its checksum wherever it is read.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ids::{KeyGroup, MaxParallelism, SubtaskIndex};
use crate::keys::KeyCodec;

/// A range of key groups, both ends inclusive: what a subtask owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyGroupRange {
    /// The first.
    pub first: u16,
    /// The last; not below the first.
    pub last: u16,
}

impl KeyGroupRange {
    /// All groups of a job.
    pub fn all(max_parallelism: MaxParallelism) -> Self {
        Self { first: 0, last: max_parallelism.get() - 1 }
    }

    /// What a subtask owns (see [`MaxParallelism::subtask_of`]). `None` where it owns nothing, since there are more
    /// subtasks than key groups.
    pub fn of(max_parallelism: MaxParallelism, subtask: SubtaskIndex, parallelism: u32) -> Option<Self> {
        let owned = |group: &u16| max_parallelism.subtask_of(KeyGroup(*group), parallelism) == subtask;
        let mut groups = (0..max_parallelism.get()).filter(owned);
        let first = groups.next()?;
        Some(Self { first, last: groups.next_back().unwrap_or(first) })
    }

    /// Whether it has this group.
    pub fn contains(&self, group: KeyGroup) -> bool {
        (self.first..=self.last).contains(&group.0)
    }

    /// Whether some group is in both.
    pub fn overlaps(&self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for KeyGroupRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key groups {} to {}", self.first, self.last)
    }
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRef {
    /// Below the folder of the job's checkpoints; `/` between folders.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// XXH3 (128 bits, hexadecimal) of its content.
    pub checksum: String,
}

/// Where snapshots are written, and read from. Off the slots; every call may block.
pub trait SnapshotFiles: Send + Sync {
    /// Writes a new file. `name` is a hint for people (`[a-z0-9.-]`); the path is unique whatever it is.
    fn write(&self, name: &str, content: Vec<u8>) -> Result<FileRef>;

    /// As `write`, with the content of a local file, which is not changed meanwhile.
    fn write_file(&self, name: &str, content: &Path) -> Result<FileRef>;

    /// Reads a file. A missing file, another length or checksum: an error that names the file.
    fn read(&self, file: &FileRef) -> Result<Vec<u8>>;

    /// As `read`, into a new local file.
    fn read_to(&self, file: &FileRef, to: &Path) -> Result<()>;
}

/// What a checkpoint keeps of the keyed state of one operator subtask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateHandle {
    /// How the files are to be read: [`StateHandle::PORTABLE`], or the name of the backend that wrote them.
    pub format: String,
    /// Whose keys are in it.
    pub key_groups: KeyGroupRange,
    /// In the order of writing: what is in a later file replaces what is in an earlier one.
    pub files: Vec<FileRef>,
}

impl StateHandle {
    /// The one format that every backend reads, and that needs no job to be read (`docs/state-format.md`).
    pub const PORTABLE: &'static str = "portable-1";
}

/// What a snapshot has to contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// For a checkpoint: as the backend likes; files of earlier checkpoints may be referred to again.
    Incremental,
    /// For a savepoint: everything, in the portable format, in files of its own.
    Portable,
}

/// Frozen state that is not written yet.
pub trait StateSnapshot: Send {
    /// Writes it. Off the slot, in the order of freezing; may block. After an error (or if it is dropped without this
    /// call) the next snapshot of the same state refers to none of its files.
    fn write(self: Box<Self>, files: &dyn SnapshotFiles) -> Result<StateHandle>;
}

/// A frozen state that has no key.
pub struct UnkeyedSnapshot {
    /// Its name.
    pub name: String,
    /// Of an operator list: how many items it has. `None`: it is a broadcast state.
    pub items: Option<u64>,
    /// What is in it.
    pub state: Box<dyn StateSnapshot>,
}

/// What a keyed state is opened with.
pub struct StateSpec {
    /// Encodes the operator's keys.
    pub codec: KeyCodec,
    /// Names the operator across versions of the job, for messages.
    pub operator: String,
    /// Which keys it will be asked for.
    pub key_groups: KeyGroupRange,
    /// How many key groups there are.
    pub max_parallelism: MaxParallelism,
    /// What to start from.
    pub restored: Option<RestoredState>,
}

/// Snapshots to start from.
#[derive(Clone)]
pub struct RestoredState {
    /// Of all subtasks that had any of the keys. Keys of other subtasks in them are left out.
    pub handles: Vec<StateHandle>,
    /// Where the files are.
    pub files: Arc<dyn SnapshotFiles>,
    /// How many key groups there were: where it is another number than now, the handles' ranges mean nothing.
    pub max_parallelism: MaxParallelism,
    /// Whether state that the operator does not declare (any more) is dropped instead of refused.
    pub allow_non_restored: bool,
}

impl StateSpec {
    /// Empty state for all keys.
    pub fn empty(codec: KeyCodec) -> Self {
        let max_parallelism = MaxParallelism::DEFAULT;
        Self {
            codec,
            operator: String::new(),
            key_groups: KeyGroupRange::all(max_parallelism),
            max_parallelism,
            restored: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_group_has_one_owner() {
        for (groups, parallelism) in [(128, 1), (128, 3), (128, 128), (4, 7), (1, 1), (32_768, 5)] {
            let max = MaxParallelism::new(groups).unwrap();
            let ranges = (0..parallelism).map(|s| KeyGroupRange::of(max, SubtaskIndex(s), parallelism));
            let ranges: Vec<_> = ranges.flatten().collect();
            for group in 0..groups {
                let owners = ranges.iter().filter(|r| r.contains(KeyGroup(group))).count();
                assert_eq!(owners, 1, "group {group} of {groups} at {parallelism}");
            }
        }
    }
}
