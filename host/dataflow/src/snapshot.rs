//! What the tasks of a slice say to whoever takes the checkpoints: what they froze at a barrier, and that they ended.
//!
//! A task is an operator subtask. The dead letters of a slot are a task too, the last one of their slice to pass.

use std::fmt;
use std::sync::Arc;

use tidemill_core::connector::Split;
use tidemill_core::ids::{Epoch, SubtaskId};
use tidemill_core::snapshot::StateSnapshot;
use tidemill_core::time::Watermark;

use crate::in_flight::ChannelContent;
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
    /// Its keyed state, not written yet.
    pub keyed: Option<Box<dyn StateSnapshot>>,
    /// Sources: what is left to read, each split with its watermark.
    pub splits: Vec<(Split, Watermark)>,
    /// Sinks: what a later writer must know.
    pub sink: Option<Vec<u8>>,
    /// Sinks: what it wrote since the barrier before.
    pub prepared: Option<Prepared>,
    /// What the barrier overtook on its channels.
    pub in_flight: Vec<ChannelContent>,
}

impl TaskSnapshot {
    /// Of a task that keeps nothing but its watermark.
    pub fn new(subtask: Arc<SubtaskId>, epoch: Epoch, watermark: Watermark) -> Self {
        let (splits, in_flight) = Default::default();
        Self { subtask, epoch, watermark, keyed: None, splits, sink: None, prepared: None, in_flight }
    }
}

impl fmt::Debug for TaskSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at checkpoint {}", self.subtask, self.epoch.0)
    }
}
