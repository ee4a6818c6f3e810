//! What the parts of a job begin with: nothing, or what a checkpoint kept of them.
//!
//! Operators find their state by the uid of their node, whatever their parallelism was: keyed state by key groups,
//! broadcast state whole, operator lists as the node declares them, splits (at another parallelism) and what sinks keep in
//! turn. At the same parallelism, a keyed subtask has its own watermark again; else an operator's watermark is the smallest
//! of its subtasks', and those that had ended do not count.

use std::fmt;
use std::sync::Arc;

use tidemill_checkpoint::Owner;
use tidemill_checkpoint::manifest::{Manifest, OperatorState};
use tidemill_core::connector::{Split, SplitId};
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::{Epoch, MaxParallelism, SubtaskIndex};
use tidemill_core::snapshot::{KeyGroupRange, RestoredState, SnapshotFiles, StateHandle};
use tidemill_core::time::Watermark;
use tidemill_core::{Error, Result};

use crate::operators::{Begin, RestoredList, RestoredPiece};

/// The uid under which a checkpoint keeps what belongs to the dead-letter sink. No node can have it.
pub const DEAD_LETTERS_UID: &str = "$dead-letters";

/// From where a job starts.
#[derive(Clone, Default)]
pub struct Start {
    /// Which attempt at the job this is.
    pub attempt: u64,
    /// The epoch of what it goes on from; the next one is one more.
    pub epoch: u64,
    /// What to go on from; `None`: from nothing.
    pub from: Option<RestoredJob>,
}

/// A checkpoint or savepoint to go on from.
#[derive(Clone)]
pub struct RestoredJob {
    /// What is in it.
    pub manifest: Arc<Manifest>,
    /// Where its files are.
    pub files: Arc<dyn SnapshotFiles>,
    /// Whether state of operators that the job does not have (any more) is dropped instead of refused.
    pub allow_non_restored: bool,
}

impl fmt::Debug for RestoredJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checkpoint {} of job '{}'", self.manifest.epoch, self.manifest.job)
    }
}

impl Start {
    /// What the owner of a job's checkpoints restored.
    pub fn of(owner: Option<&Owner>, allow_non_restored: bool) -> Self {
        let Some(owner) = owner else { return Self::default() };
        let from = owner.restored().map(|restored| RestoredJob {
            manifest: Arc::new(restored.manifest.clone()),
            files: restored.files.clone(),
            allow_non_restored,
        });
        let epoch = from.as_ref().map_or(0, |from| from.manifest.epoch);
        Self { attempt: owner.generation(), epoch, from }
    }

    /// The epoch that every task has passed.
    pub fn passed(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// Refuses what can't be gone on from with this job, before anything runs.
    pub fn check(&self, graph: &JobGraph) -> Result<()> {
        let Some(RestoredJob { manifest, allow_non_restored, .. }) = &self.from else { return Ok(()) };
        MaxParallelism::new(manifest.max_parallelism).ok_or_else(|| {
            Error::invalid(format!("checkpoint {} names {} key groups", manifest.epoch, manifest.max_parallelism))
        })?;
        let is_gone =
            |state: &&OperatorState| state.keeps_state() && !graph.nodes().iter().any(|node| node.uid == state.uid);
        let gone: Vec<String> =
            manifest.operators.iter().filter(is_gone).map(|o| format!("'{}' (uid '{}')", o.name, o.uid)).collect();
        if gone.is_empty() || *allow_non_restored {
            return Ok(());
        }
        let message = format!("{self:?} keeps state of operators that the job does not have: {}", gone.join(", "));
        Err(Error::invalid(message).mend(
            "Give the operators their old uids, or drop that state with --allow-non-restored (as Flink calls it too).",
        ))
    }

    /// What an operator subtask begins with.
    pub fn operator(&self, uid: &str, subtask: SubtaskIndex, parallelism: u32, groups: MaxParallelism) -> Begin {
        let key_groups = KeyGroupRange::of(groups, subtask, parallelism);
        let watermark = self.operator_watermark(uid, subtask, parallelism, groups);
        let mut begin = Begin { watermark, ..Begin::fresh(groups) };
        begin.key_groups = key_groups.unwrap_or(begin.key_groups);
        let (Some(from), Some(state)) = (&self.from, self.state(uid)) else { return begin };
        let max_parallelism = MaxParallelism::new(from.manifest.max_parallelism).unwrap_or(groups);
        let ours =
            |range: &KeyGroupRange| key_groups.is_some_and(|own| max_parallelism != groups || range.overlaps(own));
        let handles = state.subtasks.iter().filter_map(|s| s.state.clone()).filter(|h| ours(&h.key_groups)).collect();
        let restored = |handles| RestoredState {
            handles,
            files: from.files.clone(),
            max_parallelism,
            allow_non_restored: from.allow_non_restored,
        };
        begin.restored = Some(restored(handles));
        let broadcast = state.broadcast_of(subtask.0).into_iter().flat_map(|s| &s.broadcast);
        begin.broadcast = broadcast.map(|b| (b.name.clone(), restored(vec![b.state.clone()]))).collect();
        begin.lists = lists(state, subtask.0, parallelism, restored);
        begin
    }

    /// The watermark of an operator's subtask: its own, where it keeps state and goes on with the keys that it had. What has
    /// fired by that watermark must not fire again.
    pub fn operator_watermark(
        &self,
        uid: &str,
        subtask: SubtaskIndex,
        parallelism: u32,
        groups: MaxParallelism,
    ) -> Watermark {
        let same_groups = self.from.as_ref().is_some_and(|from| from.manifest.max_parallelism == groups.get());
        let state = self.state(uid).filter(|state| same_groups && state.parallelism == parallelism);
        let own = state.and_then(|state| state.subtasks.iter().find(|s| s.index == subtask.0 && s.state.is_some()));
        own.map_or_else(|| self.watermark(uid), |own| Watermark(own.watermark))
    }

    /// The watermark of an operator.
    pub fn watermark(&self, uid: &str) -> Watermark {
        let all = self.state(uid).into_iter().flat_map(|state| &state.subtasks).map(|s| Watermark(s.watermark));
        let running = all.clone().filter(|w| *w < Watermark::MAX).min();
        running.or_else(|| all.min()).unwrap_or(Watermark::MIN)
    }

    /// The splits that a source's subtask reads on, each with its watermark. `None`: the source is new.
    pub fn splits(&self, uid: &str, subtask: SubtaskIndex, parallelism: u32) -> Option<Vec<(Split, Watermark)>> {
        let state = self.state(uid)?;
        let all = state.subtasks.iter().flat_map(|s| s.splits.iter().map(|split| (s.index, split)));
        // As many subtasks as before read the splits that they had: of what is in flight from one of them, the watermarks
        // are those of its splits.
        let own = all.enumerate().filter(|(at, (index, _))| match state.parallelism == parallelism {
            true => *index == subtask.0,
            false => *at as u32 % parallelism.max(1) == subtask.0,
        });
        let split =
            |id: &str, description: &[u8]| Split { id: SplitId(id.to_owned()), description: description.to_vec() };
        Some(own.map(|(_, (_, s))| (split(&s.id, &s.description.0), Watermark(s.watermark))).collect())
    }

    /// Which splits a source had found.
    pub fn enumerator(&self, uid: &str) -> Option<&[u8]> {
        self.state(uid)?.enumerator.as_ref().map(|bytes| bytes.0.as_slice())
    }

    /// Splits that a source's readers were given and that are not among those.
    pub fn given(&self, uid: &str) -> impl Iterator<Item = SplitId> {
        self.state(uid).into_iter().flat_map(|state| &state.given).map(|id| SplitId(id.clone()))
    }

    /// What a sink's subtask must know of the writers before it.
    pub fn sink(&self, uid: &str, subtask: SubtaskIndex, parallelism: u32) -> Vec<Vec<u8>> {
        let all = self.state(uid).into_iter().flat_map(|state| &state.subtasks).filter_map(|s| s.sink.as_ref());
        let own = all.enumerate().filter(|(at, _)| *at as u32 % parallelism.max(1) == subtask.0);
        own.map(|(_, bytes)| bytes.0.clone()).collect()
    }

    fn state(&self, uid: &str) -> Option<&OperatorState> {
        self.from.as_ref()?.manifest.operators.iter().find(|operator| operator.uid == uid)
    }
}

/// Of each operator list: the subtask's own, or at another parallelism those of all subtasks, to be redistributed.
fn lists(
    state: &OperatorState,
    subtask: u32,
    parallelism: u32,
    restored: impl Fn(Vec<StateHandle>) -> RestoredState,
) -> Vec<RestoredList> {
    let own_alone = state.parallelism == parallelism;
    let list = |name: &str| {
        let of = state.lists_of(name).filter(|(s, _)| !own_alone || s.index == subtask);
        let pieces = of.map(|(_, list)| RestoredPiece { items: list.items, from: restored(vec![list.state.clone()]) });
        RestoredList { name: name.to_owned(), own: own_alone, pieces: pieces.collect() }
    };
    state.list_names().into_iter().map(list).collect()
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.from {
            Some(from) => write!(f, "{from:?}"),
            None => f.write_str("nothing"),
        }
    }
}
