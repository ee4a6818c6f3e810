//! What the coordinator shows of itself: the shapes of the management API.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a job is in its life. The names are those of Flink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobState {
    /// Accepted; it waits for slots, or is being deployed.
    Created,
    /// All its slots run.
    Running,
    /// Something failed; what still runs is being cancelled.
    Failing,
    /// It waits until it is started again.
    Restarting,
    /// The user cancelled it.
    Cancelling,
    /// It was cancelled. Final.
    Canceled,
    /// It came to its end, or was stopped. Final.
    Finished,
    /// It failed for good. Final.
    Failed,
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_uppercase())
    }
}

impl JobState {
    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Canceled | Self::Finished | Self::Failed)
    }
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// Names it in the cluster.
    pub id: String,
    /// Its own name.
    pub name: String,
    /// Where it is in its life.
    pub state: JobState,
    /// Why it is there, if there is something to say: what it waits for, why it failed.
    pub reason: Option<String>,
    /// The component's SHA-256.
    pub artifact: String,
    /// How many slots it has.
    pub parallelism: u32,
    /// When it was accepted, in milliseconds since 1970.
    pub submitted_ms: i64,
    /// When it ended, likewise.
    pub ended_ms: Option<i64>,
    /// How often it was started again after a failure.
    pub restarts: u64,
    /// The attempt that runs, or that ran last.
    #[serde(default)]
    pub attempt: Option<AttemptView>,
    /// Its latest failures, the newest last.
    pub exceptions: Vec<ExceptionView>,
    /// Its operators, while it runs and of its last attempt.
    pub vertices: Vec<VertexView>,
    /// Its checkpoints, if it takes any.
    pub checkpoints: Option<CheckpointsView>,
    /// The savepoint with which it was stopped.
    pub savepoint: Option<String>,
}

/// When an attempt at a job came how far, in milliseconds since 1970. 0: not yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptView {
    /// It began: it looks for slots.
    pub began_ms: i64,
    /// It owns the job's checkpoints, and its workers are told what to run.
    pub deploying_ms: i64,
    /// All of them have made their slots and read their state.
    pub ready_ms: i64,
}

/// A failure of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExceptionView {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// What failed.
    pub text: String,
}

/// An operator of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VertexView {
    /// Its uid.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// What kind of operator.
    pub kind: String,
    /// Its subtasks, by index.
    pub subtasks: Vec<SubtaskView>,
}

/// A subtask of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubtaskView {
    /// The worker on which it runs.
    pub worker: Option<String>,
    /// Rows that it was given.
    pub records_in: u64,
    /// Rows that it gave on.
    pub records_out: u64,
    /// Its watermark, in milliseconds since 1970, if it has one.
    pub watermark: Option<i64>,
}

/// The checkpoints of the attempt at a job that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointsView {
    /// How many are complete.
    pub completed: u64,
    /// How many were given up.
    pub failed: u64,
    /// Why the latest one was given up.
    pub failure: Option<String>,
    /// The number of the newest complete one.
    pub newest: Option<u64>,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// What its files have together.
    pub bytes: u64,
    /// How many of these bytes were written for it.
    pub new_bytes: u64,
}

/// A component that was uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactView {
    /// Its SHA-256, in hexadecimal.
    pub id: String,
    /// The name of its job; not in lists.
    pub job: Option<String>,
    /// Its size.
    pub bytes: u64,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Names its process.
    pub id: String,
    /// Where other workers reach it.
    pub address: String,
    /// How many slots it offers.
    pub slots: u32,
    /// How many of them nothing runs in.
    pub free_slots: u32,
    /// What it may use.
    pub memory_bytes: u64,
    /// What its process has in memory.
    pub resident_bytes: u64,
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// The version of Tidemill.
    pub version: String,
    /// Workers that are there.
    pub workers: u64,
    /// Their slots.
    pub slots: u64,
    /// Slots in which nothing runs.
    pub free_slots: u64,
    /// Jobs that run.
    pub jobs_running: u64,
    /// All jobs that are known.
    pub jobs: u64,
}
