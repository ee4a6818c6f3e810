//! The manifest of a checkpoint: an immutable JSON document that names everything from which a job can go on.
//!
//! Invariant: whatever a manifest names was written before the manifest.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tidemill_core::snapshot::{FileRef, StateHandle};

/// The version of manifests that are written.
pub const MANIFEST_VERSION: u32 = 1;

/// A checkpoint or savepoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// The job's name.
    pub job: String,
    /// What it was taken for.
    pub kind: ManifestKind,
    /// Which barrier it was taken at, growing within an attempt at the job.
    pub epoch: u64,
    /// Which attempt at the job took it.
    pub generation: u64,
    /// When, in milliseconds UTC.
    pub created_ms: i64,
    /// The job's number of key groups.
    pub max_parallelism: u16,
    /// What is kept of each operator, sources and sinks among them.
    pub operators: Vec<OperatorState>,
    /// What the sinks prepared and what is to be committed now that the checkpoint is claimed.
    pub committables: Vec<TargetCommittables>,
}

impl Manifest {
    /// The files it names.
    pub fn files(&self) -> impl Iterator<Item = &FileRef> {
        self.subtasks().flat_map(|subtask| {
            let broadcast = subtask.broadcast.iter().map(|broadcast| &broadcast.state);
            let lists = subtask.lists.iter().map(|list| &list.state);
            let state = subtask.state.iter().chain(broadcast).chain(lists).flat_map(|state| &state.files);
            state.chain(subtask.in_flight.iter().map(|in_flight| &in_flight.file))
        })
    }

    /// The files it names, to name others instead.
    pub fn files_mut(&mut self) -> impl Iterator<Item = &mut FileRef> {
        let subtasks = self.operators.iter_mut().flat_map(|operator| &mut operator.subtasks);
        subtasks.flat_map(|subtask| {
            let broadcast = subtask.broadcast.iter_mut().map(|broadcast| &mut broadcast.state);
            let lists = subtask.lists.iter_mut().map(|list| &mut list.state);
            let state = subtask.state.iter_mut().chain(broadcast).chain(lists).flat_map(|state| &mut state.files);
            state.chain(subtask.in_flight.iter_mut().map(|in_flight| &mut in_flight.file))
        })
    }

    /// Bytes of the files that keep what was in flight. None: it was taken aligned, or nothing was.
    pub fn in_flight_bytes(&self) -> u64 {
        self.subtasks().filter_map(|subtask| subtask.in_flight.as_ref()).map(|in_flight| in_flight.file.bytes).sum()
    }

    /// Bytes of the files it names, each counted once.
    pub fn bytes(&self) -> u64 {
        self.files().collect::<BTreeSet<_>>().into_iter().map(|file| file.bytes).sum()
    }

    fn subtasks(&self) -> impl Iterator<Item = &SubtaskState> {
        self.operators.iter().flat_map(|operator| &operator.subtasks)
    }
}

impl OperatorState {
    /// Which of the subtasks that there were hands its broadcast states to this subtask: its own, or at another parallelism
    /// one by its number. `None`: there are no broadcast states.
    pub fn broadcast_of(&self, subtask: u32) -> Option<&SubtaskState> {
        let has = |s: &&SubtaskState| !s.broadcast.is_empty();
        let by_number = |s: &&SubtaskState| s.index == subtask % self.parallelism.max(1);
        // One that had ended keeps none.
        self.subtasks.iter().filter(has).find(by_number).or_else(|| self.subtasks.iter().find(has))
    }

    /// The operator lists of this name of the subtasks that have one, in their order.
    pub fn lists_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a SubtaskState, &'a ListState)> {
        let of = move |s: &'a SubtaskState| s.lists.iter().find(|list| list.name == name).map(|list| (s, list));
        self.subtasks.iter().filter_map(of)
    }

    /// The names of its operator lists, in their order.
    pub fn list_names(&self) -> BTreeSet<&str> {
        self.subtasks.iter().flat_map(|s| &s.lists).map(|list| list.name.as_str()).collect()
    }

    /// Whether it keeps anything that its job would miss.
    pub fn keeps_state(&self) -> bool {
        let keeps = |s: &SubtaskState| s.state.is_some() || !s.broadcast.is_empty() || !s.lists.is_empty();
        self.enumerator.is_some() || self.subtasks.iter().any(keeps)
    }
}

impl ManifestKind {
    /// Whether the job ended with it.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Stopped | Self::Finished)
    }
}

/// What a checkpoint was taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManifestKind {
    /// To go on from after a failure.
    Checkpoint,
    /// For its owner, who keeps it as long as he likes. Its files are its own.
    Savepoint,
    /// The last one: the job was stopped, and goes on from here if it is started again.
    Stopped,
    /// The last one: the input has ended.
    Finished,
}

/// What is kept of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorState {
    /// The uid of its node in the plan: by it, state finds its operator again.
    pub uid: String,
    /// Its name, for people.
    pub name: String,
    /// How many subtasks it had.
    pub parallelism: u32,
    /// Sources: which splits were found, in the connector's encoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enumerator: Option<Bytes>,
    /// Sources: splits that readers were given and which are not among them. There are some where a master took the job
    /// over and had not found again all that the one before it had found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<String>,
    /// Per subtask.
    pub subtasks: Vec<SubtaskState>,
}

/// What is kept of a subtask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubtaskState {
    /// Which.
    pub index: u32,
    /// Its watermark in milliseconds UTC.
    pub watermark: i64,
    /// Its keyed state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateHandle>,
    /// Its broadcast states: what it had is what every subtask had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broadcast: Vec<BroadcastState>,
    /// Its operator lists, which are its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lists: Vec<ListState>,
    /// Sources: the splits that are not at their end, as they are to be read on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub splits: Vec<SplitState>,
    /// Sinks: what the writer needs to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink: Option<Bytes>,
    /// What had been sent to it and what it had not taken, if the barrier overtook anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<InFlightState>,
}

/// What is kept of a broadcast state: all of its entries, whatever their key groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BroadcastState {
    /// Its name.
    pub name: String,
    /// Its entries.
    pub state: StateHandle,
}

/// What is kept of a subtask's operator list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListState {
    /// Its name.
    pub name: String,
    /// How many items it has: by that it is known who gets which, before anything is read.
    pub items: u64,
    /// The items, by their places.
    pub state: StateHandle,
}

/// What is kept of a state without a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum UnkeyedState {
    /// Of an operator list.
    List(ListState),
    /// Of a broadcast state.
    Broadcast(BroadcastState),
}

/// What is kept of the channels to a subtask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InFlightState {
    /// What was in them, channel by channel in the order of `channels`.
    pub file: FileRef,
    /// Those in which something was.
    pub channels: Vec<ChannelState>,
}

/// A channel: from a subtask of one operator to an input of a subtask of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelState {
    /// Which input.
    pub input: u32,
    /// The uid of the node that sent.
    pub from: String,
    /// By which of its ports.
    pub port: u32,
    /// Which of its subtasks.
    pub sender: u32,
    /// How many rows are in the file.
    pub rows: u64,
}

/// What is kept of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitState {
    /// Its name.
    pub id: String,
    /// What is left of it, in the connector's encoding.
    pub description: Bytes,
    /// Its watermark in milliseconds UTC.
    pub watermark: i64,
}

/// What one sink prepared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetCommittables {
    /// Who commits it: the sink's binding, or `None` for the dead-letter sink.
    pub sink: Option<String>,
    /// The committables of all its subtasks.
    pub committables: Vec<Bytes>,
}

/// Bytes, in Base64 where they are text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}
