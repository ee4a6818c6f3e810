//! What the tasks of a slice say to whoever takes the checkpoints: what they froze at a barrier, and that they ended.
//!
//! A task is an operator subtask. The dead letters of a slot are a task too, the last one of their slice to pass.
//!
//! What is frozen is written where the slot is: [`TaskEvent::take_unwritten`] parts it from the rest, which is small and
//! may go to another process.

use std::fmt;
use std::sync::Arc;

use tidemill_checkpoint::manifest::{BroadcastState, InFlightState, ListState, UnkeyedState};
use tidemill_core::Result;
use tidemill_core::connector::Split;
use tidemill_core::ids::{Epoch, SubtaskId};
use tidemill_core::snapshot::{FileRef, SnapshotFiles, StateHandle, StateSnapshot, UnkeyedSnapshot};
use tidemill_core::time::Watermark;

use crate::in_flight::{self, Overtaken};
use crate::slice::Prepared;

/// News of a task.
#[derive(Debug)]
pub enum TaskEvent {
    /// It passed a barrier.
    Passed(TaskSnapshot),
    /// It is at its end: it will pass no barrier any more.
    Ended {
        /// Who.
        subtask: Arc<SubtaskId>,
        /// The checkpoint after the last one whose barrier it passed.
        epoch: Epoch,
        /// What it wrote since that barrier.
        prepared: Option<Prepared>,
    },
}

/// What a task froze at a barrier.
pub struct TaskSnapshot {
    /// Who.
    pub subtask: Arc<SubtaskId>,
    /// At which barrier.
    pub epoch: Epoch,
    /// Its watermark.
    pub watermark: Watermark,
    /// Sources: what is left to read, each split with its watermark.
    pub splits: Vec<(Split, Watermark)>,
    /// Sinks: what a later writer must know.
    pub sink: Option<Vec<u8>>,
    /// Sinks: what it wrote since the barrier before.
    pub prepared: Option<Prepared>,
    /// What has to be written to files.
    pub frozen: Frozen,
}

/// What a task froze that belongs into files.
#[derive(Default)]
pub enum Frozen {
    /// Nothing.
    #[default]
    Nothing,
    /// This, and its keyed state if it has any, which may still have to be copied.
    Here {
        /// Its states without a key.
        unkeyed: Vec<UnkeyedSnapshot>,
        /// What the barrier overtook on its channels.
        in_flight: Overtaken,
    },
    /// Something that was taken to be written; the task is told of when it is.
    Taken,
}

impl Frozen {
    /// Whether there is nothing to be written.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

/// What a task froze and what has to be written.
pub struct Unwritten {
    /// Whose.
    pub subtask: Arc<SubtaskId>,
    /// For which checkpoint.
    pub epoch: Epoch,
    /// Its keyed state, if it has any.
    pub keyed: Option<Box<dyn StateSnapshot>>,
    unkeyed: Vec<UnkeyedSnapshot>,
    in_flight: Overtaken,
}

/// What was written of it.
#[derive(Debug)]
pub struct Written {
    /// Its keyed state.
    pub state: Option<StateHandle>,
    /// Its states without a key: broadcast states and operator lists. (It is called as in the message in which it travels.)
    pub broadcast: Vec<UnkeyedState>,
    /// What was in flight to it.
    pub in_flight: Option<InFlightState>,
}

impl Written {
    /// All files that it names.
    pub fn files(&self) -> impl Iterator<Item = &FileRef> {
        let unkeyed = self.broadcast.iter().map(|unkeyed| match unkeyed {
            UnkeyedState::Broadcast(of) => &of.state,
            UnkeyedState::List(of) => &of.state,
        });
        let states = self.state.iter().chain(unkeyed).flat_map(|state| &state.files);
        states.chain(self.in_flight.iter().map(|in_flight| &in_flight.file))
    }
}

impl Unwritten {
    /// Writes it; may block.
    pub fn write(self, files: &dyn SnapshotFiles) -> Result<Written> {
        let in_flight = in_flight::write(self.in_flight, files)?;
        let state = self.keyed.map(|keyed| keyed.write(files)).transpose()?;
        let unkeyed = self.unkeyed.into_iter().map(|UnkeyedSnapshot { name, items, state }| {
            let state = state.write(files)?;
            Ok(match items {
                Some(items) => UnkeyedState::List(ListState { name, items, state }),
                None => UnkeyedState::Broadcast(BroadcastState { name, state }),
            })
        });
        Ok(Written { state, broadcast: unkeyed.collect::<Result<_>>()?, in_flight })
    }
}

impl TaskEvent {
    /// Takes out what has to be written, but for its keyed state.
    pub fn take_unwritten(&mut self) -> Option<Unwritten> {
        let Self::Passed(snapshot) = self else { return None };
        if !matches!(snapshot.frozen, Frozen::Here { .. }) {
            return None;
        }
        let Frozen::Here { unkeyed, in_flight } = std::mem::replace(&mut snapshot.frozen, Frozen::Taken) else {
            return None;
        };
        Some(Unwritten { subtask: snapshot.subtask.clone(), epoch: snapshot.epoch, keyed: None, unkeyed, in_flight })
    }
}

impl TaskSnapshot {
    /// Of a task that keeps nothing but its watermark.
    pub fn new(subtask: Arc<SubtaskId>, epoch: Epoch, watermark: Watermark) -> Self {
        let (splits, frozen) = Default::default();
        Self { subtask, epoch, watermark, splits, sink: None, prepared: None, frozen }
    }

    /// Adds states without a key, if there are any. `keyed`: whether there is keyed state.
    pub fn freeze(&mut self, keyed: bool, others: Vec<UnkeyedSnapshot>) {
        if !keyed && others.is_empty() {
            return;
        }
        match &mut self.frozen {
            Frozen::Here { unkeyed, .. } => *unkeyed = others,
            frozen => *frozen = Frozen::Here { unkeyed: others, in_flight: Overtaken::default() },
        }
    }

    /// Adds what was in flight, if anything was.
    pub fn freeze_in_flight(&mut self, contents: Overtaken) {
        if contents.is_empty() {
            return;
        }
        match &mut self.frozen {
            Frozen::Here { in_flight, .. } => *in_flight = contents,
            frozen => *frozen = Frozen::Here { unkeyed: Vec::new(), in_flight: contents },
        }
    }
}

impl fmt::Debug for TaskSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at checkpoint {}", self.subtask, self.epoch.0)
    }
}
