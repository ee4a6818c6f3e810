//! What can happen, and when it does.

use std::cmp::Ordering;
use std::sync::Arc;

use tidemill_worker::deployment::{Deployments, Opening};

use crate::network::{ConnectionId, ProcessId, Side};
use crate::worker::Dial;

/// What can happen.
pub enum Event {
    /// Something arrives at an end of a connection.
    Arrive(ConnectionId, Side),
    /// Nothing came through a connection for long: the process at this end looks whether it gives it up.
    Silence(ConnectionId, Side),
    /// Another coordinator is started, if there is none.
    StartCoordinator,
    /// The masters of a coordinator's jobs are stepped.
    StepMasters(ProcessId, i64),
    /// A worker is started on a machine, if there is none.
    StartWorker(u32),
    /// A worker connects to the coordinator.
    Attend(ProcessId),
    /// A worker says that it is there.
    Beat(ProcessId, ConnectionId),
    /// A worker makes slots ready.
    Open(ProcessId, Arc<Deployments>, Box<Opening>),
    /// A slot of a worker is stepped.
    StepSlot(ProcessId, u64, i64),
    /// A worker writes what slots froze.
    Write(ProcessId, u64),
    /// A worker connects to another one.
    Dial(ProcessId, Dial),
    /// The user of a job does something.
    User(usize),
    /// Something goes wrong.
    Fault,
    /// Nothing goes wrong any more.
    Calm,
    /// A process that should be gone already is ended.
    End(ProcessId),
}

impl Event {
    /// Who does it, where that is one process.
    pub fn process(&self) -> Option<ProcessId> {
        match self {
            Self::StepMasters(process, _)
            | Self::Attend(process)
            | Self::Beat(process, _)
            | Self::Open(process, ..)
            | Self::StepSlot(process, ..)
            | Self::Write(process, _)
            | Self::Dial(process, ..) => Some(*process),
            _ => None,
        }
    }
}

/// Of events at the same time, chance takes one.
pub struct Scheduled {
    /// When, and then by chance.
    pub order: (i64, u64, u64),
    /// What.
    pub event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order)
    }
}
