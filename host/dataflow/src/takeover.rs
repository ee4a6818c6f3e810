//! What the master of a job has to know to take over slots that run and whose master is gone.
//!
//! Slots hold what they told their master until a checkpoint keeps it, and say it again to the next one (prepared
//! committables, that they ended); it hears that as it hears everything. Two things it has to know before: which splits
//! the readers were given, since the newest checkpoint may not know of them, and the newest barrier that was sent, since
//! perhaps not every reader was sent it, and a task that waits for its other half would wait for ever.

use std::collections::{HashMap, HashSet};

use tidemill_core::connector::SplitId;
use tidemill_core::ids::{Epoch, NodeId};

use crate::element::Barrier;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Takeover {
    /// By source node: splits that its readers were given since the newest checkpoint, or before.
    pub known: HashMap<NodeId, HashSet<SplitId>>,
    /// The newest barrier that any reader was sent.
    pub barrier: Option<Barrier>,
}

impl Takeover {
    /// The checkpoint up to which epochs are used up.
    pub fn passed(&self) -> Epoch {
        self.barrier.map_or(Epoch(0), |barrier| barrier.epoch)
    }
}
