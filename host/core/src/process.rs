//! What a process gives the execution of a job that it runs, beside threads.

use std::fmt;
use std::sync::Arc;

use crate::log::{NoLog, TaskLog};
use crate::memory::JobMemory;

/// See the module. Clones are the same surroundings.
#[derive(Clone)]
pub struct Surroundings {
    /// Where its memory is counted, and bounded.
    pub memory: Arc<JobMemory>,
    /// Where its tasks log.
    pub log: Arc<dyn TaskLog>,
}

impl Default for Surroundings {
    /// Of a process that is the job's alone.
    fn default() -> Self {
        Self { memory: JobMemory::unlimited(), log: Arc::new(NoLog) }
    }
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").field("memory", &self.memory).finish_non_exhaustive()
    }
}
