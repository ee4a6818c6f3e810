//! Collects what the tasks of a job froze at a barrier into the manifest of a checkpoint.
//!
//! Bookkeeping only: whether and when a checkpoint is taken, claimed and committed is decided elsewhere
//! (`tidemill-checkpoint::protocol`), and files are written elsewhere too.
//!
//! Invariant: what a sink prepared up to a barrier is handed out once, with the first checkpoint at or after that
//! barrier which is claimed, however many checkpoints in between were given up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tidemill_checkpoint::manifest::{
    Bytes, MANIFEST_VERSION, Manifest, ManifestKind, OperatorState, SplitState, SubtaskState, TargetCommittables,
    UnkeyedState,
};
use tidemill_core::connector::SplitId;
use tidemill_core::ids::{Epoch, MaxParallelism, NodeId, SubtaskId};
use tidemill_core::time::Watermark;
use tidemill_core::{Error, Result};

use crate::job::TaskStatus;
use crate::restore::DEAD_LETTERS_UID;
use crate::slice::{CommitTarget, Prepared};
use crate::snapshot::{TaskEvent, TaskSnapshot, Written};
use crate::splits::Found;

/// A task: its place among all tasks of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub usize);

/// What an event came to.
pub enum Noted {
    /// The task has nothing more to do for this checkpoint.
    Acknowledged(TaskId, Epoch),
    /// The task will acknowledge nothing more.
    Ended(TaskId),
    /// Nothing yet.
    Nothing,
}

/// See the module.
pub struct Collector {
    job: String,
    max_parallelism: MaxParallelism,
    tasks: Vec<Task>,
    by_subtask: HashMap<Arc<SubtaskId>, TaskId>,
    /// Of the latest checkpoint that was begun.
    epoch: Epoch,
    enumerators: HashMap<NodeId, Found>,
    /// What was prepared and not handed out, by the checkpoint to which it belongs.
    unclaimed: BTreeMap<Epoch, Vec<Prepared>>,
}

struct Task {
    subtask: Arc<SubtaskId>,
    uid: String,
    /// For the latest checkpoint.
    state: Option<SubtaskState>,
    /// Snapshots that it froze and that are not written yet.
    unwritten: u32,
    ended: bool,
}

impl Collector {
    /// For the tasks of a job: its operator subtasks, and the dead letters of each slot.
    pub fn new(job: &str, max_parallelism: MaxParallelism, tasks: &[TaskStatus], letters: Vec<Arc<SubtaskId>>) -> Self {
        let operators = tasks.iter().map(|task| (task.subtask.clone(), task.uid.clone()));
        let letters = letters.into_iter().map(|subtask| (subtask, DEAD_LETTERS_UID.to_owned()));
        let tasks = operators.chain(letters).map(|(subtask, uid)| Task {
            subtask,
            uid,
            state: None,
            unwritten: 0,
            ended: false,
        });
        let tasks: Vec<Task> = tasks.collect();
        let by_subtask = tasks.iter().enumerate().map(|(at, task)| (task.subtask.clone(), TaskId(at))).collect();
        let (enumerators, unclaimed) = Default::default();
        Self { job: job.to_owned(), max_parallelism, tasks, by_subtask, epoch: Epoch(0), enumerators, unclaimed }
    }

    /// How many tasks there are.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Who a task is.
    pub fn subtask(&self, task: TaskId) -> Option<&Arc<SubtaskId>> {
        self.tasks.get(task.0).map(|task| &task.subtask)
    }

    /// A checkpoint begins; what each source had found when the barrier was sent.
    pub fn begin(&mut self, epoch: Epoch, enumerators: HashMap<NodeId, Found>) {
        self.epoch = epoch;
        self.enumerators = enumerators;
        self.tasks.iter_mut().for_each(|task| task.state = None);
    }

    /// Takes note of what a task says.
    pub fn note(&mut self, event: TaskEvent) -> Result<Noted> {
        match event {
            TaskEvent::Passed(snapshot) => self.passed(snapshot),
            TaskEvent::Ended { subtask, epoch, prepared } => {
                let id = self.task(&subtask)?;
                self.keep(epoch, prepared);
                let Some(task) = self.tasks.get_mut(id.0) else { return Ok(Noted::Nothing) };
                task.ended = true;
                Ok(if task.unwritten == 0 { Noted::Ended(id) } else { Noted::Nothing })
            }
        }
    }

    /// What a task froze is written, or could not be. Whether the task has ended meanwhile and has nothing left to
    /// write: only then its end may be told, since its state counts for the checkpoints before.
    pub fn written(&mut self, task: TaskId, epoch: Epoch, written: Option<Written>) -> bool {
        let Some(task) = self.tasks.get_mut(task.0) else { return false };
        if let Some(state) = task.state.as_mut().filter(|_| epoch == self.epoch)
            && let Some(written) = written
        {
            (state.state, state.in_flight) = (written.state, written.in_flight);
            (state.broadcast, state.lists) = Default::default();
            for unkeyed in written.broadcast {
                match unkeyed {
                    UnkeyedState::Broadcast(broadcast) => state.broadcast.push(broadcast),
                    UnkeyedState::List(list) => state.lists.push(list),
                }
            }
        }
        task.unwritten = task.unwritten.saturating_sub(1);
        task.ended && task.unwritten == 0
    }

    /// The manifest of the latest checkpoint, when every task has acknowledged it or ended.
    pub fn manifest(&self, kind: ManifestKind, generation: u64, created_ms: i64) -> Manifest {
        Manifest {
            version: MANIFEST_VERSION,
            job: self.job.clone(),
            kind,
            epoch: self.epoch.0,
            generation,
            created_ms,
            max_parallelism: self.max_parallelism.get(),
            operators: self.operators(),
            committables: self.committables(),
        }
    }

    /// The splits of a source that were not at their end at the barrier of the latest checkpoint.
    pub fn unfinished(&self, source: NodeId) -> impl Iterator<Item = SplitId> {
        let states = self.tasks.iter().filter(move |task| task.subtask.node == source).filter_map(|t| t.state.as_ref());
        states.flat_map(|state| &state.splits).map(|split| SplitId(split.id.clone()))
    }

    /// The latest checkpoint is claimed: what is to be committed now.
    pub fn claimed(&mut self) -> Vec<Prepared> {
        let later = self.unclaimed.split_off(&Epoch(self.epoch.0 + 1));
        std::mem::replace(&mut self.unclaimed, later).into_values().flatten().collect()
    }

    fn passed(&mut self, snapshot: TaskSnapshot) -> Result<Noted> {
        let TaskSnapshot { subtask, epoch, watermark, splits, sink, prepared, frozen } = snapshot;
        let task = self.task(&subtask)?;
        self.keep(epoch, prepared);
        if epoch == self.epoch
            && let Some(task) = self.tasks.get_mut(task.0)
        {
            let splits = splits.into_iter().map(|(split, watermark)| SplitState {
                id: split.id.0,
                description: Bytes(split.description),
                watermark: watermark.0,
            });
            task.state = Some(SubtaskState {
                index: subtask.index.0,
                watermark: watermark.0,
                state: None,
                broadcast: Vec::new(),
                lists: Vec::new(),
                splits: splits.collect(),
                sink: sink.map(Bytes),
                in_flight: None,
            });
        }
        if frozen.is_nothing() {
            return Ok(Noted::Acknowledged(task, epoch));
        }
        self.tasks.get_mut(task.0).into_iter().for_each(|task| task.unwritten += 1);
        Ok(Noted::Nothing)
    }

    fn keep(&mut self, epoch: Epoch, prepared: Option<Prepared>) {
        if let Some(prepared) = prepared.filter(|prepared| !prepared.committables.is_empty()) {
            self.unclaimed.entry(epoch).or_default().push(prepared);
        }
    }

    /// The place of a task.
    pub fn task(&self, subtask: &SubtaskId) -> Result<TaskId> {
        let task = self.by_subtask.get(subtask).copied();
        task.ok_or_else(|| Error::internal(format!("news of {subtask}, which is no task of this job")))
    }

    fn operators(&self) -> Vec<OperatorState> {
        let mut operators: BTreeMap<NodeId, OperatorState> = BTreeMap::new();
        for Task { subtask, uid, state, ended, .. } in &self.tasks {
            let operator = operators.entry(subtask.node).or_insert_with(|| OperatorState {
                uid: uid.clone(),
                name: subtask.operator.clone(),
                parallelism: subtask.parallelism,
                enumerator: self.enumerators.get(&subtask.node).map(|found| Bytes(found.snapshot.clone())),
                given: self.enumerators.get(&subtask.node).map(|found| found.given.clone()).unwrap_or_default(),
                subtasks: Vec::new(),
            });
            // Only who ended has none: its input is at its end, and so is everything that it kept.
            let at_end = || SubtaskState {
                index: subtask.index.0,
                watermark: Watermark::MAX.0,
                state: None,
                broadcast: Vec::new(),
                lists: Vec::new(),
                splits: Vec::new(),
                sink: None,
                in_flight: None,
            };
            debug_assert!(state.is_some() || *ended, "{subtask} neither acknowledged nor ended");
            operator.subtasks.push(state.clone().unwrap_or_else(at_end));
        }
        operators.into_values().collect()
    }

    fn committables(&self) -> Vec<TargetCommittables> {
        let mut by_target: BTreeMap<&CommitTarget, Vec<Bytes>> = BTreeMap::new();
        for prepared in self.unclaimed.range(..=self.epoch).flat_map(|(_, prepared)| prepared) {
            let bytes = prepared.committables.iter().map(|committable| Bytes(committable.0.clone()));
            by_target.entry(&prepared.target).or_default().extend(bytes);
        }
        let target = |(target, committables): (&CommitTarget, Vec<Bytes>)| TargetCommittables {
            sink: match target {
                CommitTarget::Sink(binding) => Some(binding.clone()),
                CommitTarget::DeadLetters => None,
            },
            committables,
        };
        by_target.into_iter().map(target).collect()
    }
}
