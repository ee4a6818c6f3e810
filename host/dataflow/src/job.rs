//! A job as it is handed to the engine, and what is known of it while it runs.

use std::collections::HashMap;
use std::sync::Arc;

use tidemill_core::connector::{Sink, Source};
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::{MaxParallelism, SubtaskId};
use tidemill_core::memory::JobMemory;
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::state::StateBackend;
use tidemill_core::time::Clock;
use tidemill_core::user::UserCodeFactory;

/// Everything that a job needs to run.
#[derive(Clone)]
pub struct JobSpec {
    /// Its name.
    pub name: String,
    /// What it does, checked. It is pruned when it starts.
    pub graph: JobGraph,
    /// A connector for each source binding of the graph.
    pub sources: HashMap<String, Arc<dyn Source>>,
    /// A connector for each sink binding of the graph.
    pub sinks: HashMap<String, Arc<dyn Sink>>,
    /// Where rows go that can't be processed. `None`: the first such row fails the job.
    pub dead_letters: Option<Arc<dyn Sink>>,
    /// Runs the user's code.
    pub user_code: Arc<dyn UserCodeFactory>,
    /// Keeps keyed state.
    pub state: Arc<dyn StateBackend>,
    /// Where its memory is counted.
    pub memory: Arc<JobMemory>,
    /// Processing time.
    pub clock: Arc<dyn Clock>,
    /// How it runs.
    pub settings: JobSettings,
}

/// How a job runs.
#[derive(Clone, Debug)]
pub struct JobSettings {
    /// Slots, and the parallelism of every node that names none.
    pub parallelism: u32,
    /// Key groups.
    pub max_parallelism: MaxParallelism,
    /// Rows per batch to aim at.
    pub batch_rows: usize,
    /// Bound of each queue between two slots.
    pub exchange_bytes: usize,
}

impl Default for JobSettings {
    fn default() -> Self {
        Self {
            parallelism: 1,
            max_parallelism: MaxParallelism::DEFAULT,
            // Large enough that a crossing's fixed cost is 0.1 ns per row, small enough that a batch stays in cache.
            batch_rows: 4_096,
            // Several batches of wide rows: enough to keep the receiver busy while the sender is scheduled out.
            exchange_bytes: 4 << 20,
        }
    }
}

/// One operator subtask of a running job: who it is, and its counters, which go on counting.
#[derive(Clone, Debug)]
pub struct TaskStatus {
    /// Who.
    pub subtask: Arc<SubtaskId>,
    /// The node's uid.
    pub uid: String,
    /// What kind of operator, in a word.
    pub kind: &'static str,
    /// Its counters and watermark.
    pub metrics: Arc<TaskMetrics>,
}

/// How a job came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All input was read, and everything fired.
    Finished,
    /// It was stopped: what was read is processed and committed; open windows and timers did not fire.
    Stopped,
    /// It was cancelled: nothing was committed.
    Cancelled,
}

/// What is left to say about a job that ended without an error.
#[derive(Clone, Debug)]
pub struct JobReport {
    /// The job.
    pub job: String,
    /// How it ended.
    pub ending: Ending,
    /// Every subtask, by node and index.
    pub tasks: Vec<TaskStatus>,
}
