//! Ids, each a type of its own, so that one can't be passed for another.

use std::fmt;

macro_rules! index_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u32);

        impl $name {
            /// For looking things up in vectors.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

index_id!(
    /// A node of the job graph: its index in the plan.
    NodeId,
    "node "
);
index_id!(
    /// An output port of a node. 0 is the main output.
    Port,
    "port "
);
index_id!(
    /// An input of a node.
    InputIndex,
    "input "
);
index_id!(
    /// A subtask of a node, below its parallelism.
    SubtaskIndex,
    "subtask "
);

/// A checkpoint's number, from 1, growing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// What never moves apart: all keys whose hash falls into one of `MaxParallelism` ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyGroup(pub u16);

/// The number of key groups of a job, and so the bound of its parallelism. 1 to 32,768.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxParallelism(u16);

impl MaxParallelism {
    /// What Flink gives small jobs; enough for 128 slots, and a key group of 100,000 keys is 800 keys.
    pub const DEFAULT: Self = Self(128);

    /// `None` where `groups` is 0 or above 32,768.
    pub fn new(groups: u16) -> Option<Self> {
        (1..=32_768).contains(&groups).then_some(Self(groups))
    }

    /// The number of key groups.
    pub fn get(self) -> u16 {
        self.0
    }

    /// The key group of a key's hash: its upper 32 bits, scaled. The lower bits stay free for hash tables.
    pub fn key_group(self, hash: u64) -> KeyGroup {
        KeyGroup((((hash >> 32) * u64::from(self.0)) >> 32) as u16)
    }

    /// The subtask that owns a key group (as in Flink: ranges of groups).
    pub fn subtask_of(self, group: KeyGroup, parallelism: u32) -> SubtaskIndex {
        SubtaskIndex(u32::from(group.0) * parallelism / u32::from(self.0))
    }
}

/// Which subtask of what: part of every message about a running job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubtaskId {
    /// The job's name.
    pub job: String,
    /// The node's index in the plan.
    pub node: NodeId,
    /// The node's name.
    pub operator: String,
    /// Which of its subtasks.
    pub index: SubtaskIndex,
    /// Of how many.
    pub parallelism: u32,
}

impl fmt::Display for SubtaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job '{}', operator '{}' ({}/{})", self.job, self.operator, self.index.0 + 1, self.parallelism)
    }
}
