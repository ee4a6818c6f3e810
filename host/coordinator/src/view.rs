//! What the coordinator shows of itself: the shapes of the management API.

use std::fmt;

use serde::{Deserialize, Serialize};
use tidemill_core::log::Level;
use tidemill_core::metrics::TaskMetrics;
use tidemill_rpc::proto;
use utoipa::ToSchema;

/// Where a job is in its life. The names are those of Flink, which has none for the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
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
    /// A coordinator before this one had it, and this one can't go on with it. Nothing that is kept of it is changed: one that
    /// can does.
    FailedToRecover,
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FailedToRecover => f.write_str("FAILED_TO_RECOVER"),
            other => f.write_str(&format!("{other:?}").to_uppercase()),
        }
    }
}

impl JobState {
    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Canceled | Self::Finished | Self::Failed)
    }
}

impl JobView {
    /// Whether it has no slots yet and wants some.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.state, JobState::Created | JobState::Restarting) && self.reason.is_some()
    }
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// When an attempt at a job came how far, in milliseconds since 1970 (0: not yet), and what it read for that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    /// It began: it looks for slots.
    pub began_ms: i64,
    /// It owns the job's checkpoints, and its workers are told what to run.
    pub deploying_ms: i64,
    /// All of them have made their slots and read their state.
    pub ready_ms: i64,
    /// What they read of the checkpoint's files, in bytes.
    #[serde(default)]
    pub restored_bytes: u64,
    /// How much of that from copies on their own disks, instead of the store.
    #[serde(default)]
    pub restored_local_bytes: u64,
}

/// A failure of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExceptionView {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// What failed.
    pub text: String,
}

/// An operator of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubtaskView {
    /// The worker on which it runs.
    pub worker: Option<String>,
    /// Rows that it was given.
    pub records_in: u64,
    /// Rows that it gave on.
    pub records_out: u64,
    /// Its watermark, in milliseconds since 1970, if it has one.
    pub watermark: Option<i64>,
    /// What else it counted.
    #[serde(default)]
    pub counters: SubtaskCounters,
}

/// What a subtask counted since its attempt began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SubtaskCounters {
    /// Batches that came in.
    pub batches_in: u64,
    /// Bytes of the rows that came in, as they are in memory.
    pub bytes_in: u64,
    /// Bytes of the rows that went out, likewise.
    pub bytes_out: u64,
    /// Milliseconds for which its slot stood still since receivers of its rows were full.
    pub backpressured_ms: u64,
    /// Rows that came too late for every window.
    pub records_late: u64,
    /// Rows that were set aside.
    pub records_dead_lettered: u64,
    /// Malformed records that were skipped.
    pub records_skipped: u64,
    /// Calls into the sandbox.
    pub crossings: u64,
    /// Bytes copied into and out of the sandbox.
    pub bytes_copied: u64,
    /// Calls of user code that were repeated after a failure.
    pub retries: u64,
    /// Log messages of user code that exceeded the bound.
    pub logs_dropped: u64,
    /// Entries, rows and timers held in state, now.
    pub state_entries: u64,
    /// Bytes of state in memory, now.
    pub state_bytes: u64,
}

impl SubtaskCounters {
    /// As they are now.
    pub fn of(metrics: &TaskMetrics) -> Self {
        Self {
            batches_in: metrics.batches_in.get(),
            bytes_in: metrics.bytes_in.get(),
            bytes_out: metrics.bytes_out.get(),
            backpressured_ms: metrics.backpressured_ms.get(),
            records_late: metrics.records_late.get(),
            records_dead_lettered: metrics.records_dead_lettered.get(),
            records_skipped: metrics.records_skipped.get(),
            crossings: metrics.crossings.get(),
            bytes_copied: metrics.bytes_copied.get(),
            retries: metrics.retries.get(),
            logs_dropped: metrics.logs_dropped.get(),
            state_entries: metrics.state_entries.get(),
            state_bytes: metrics.state_bytes.get(),
        }
    }
}

/// The checkpoints of the attempt at a job that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactView {
    /// Its SHA-256, in hexadecimal.
    pub id: String,
    /// The name of its job; not in lists.
    pub job: Option<String>,
    /// Its size.
    pub bytes: u64,
}

/// What a component is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactDetail {
    /// Its SHA-256, in hexadecimal.
    pub id: String,
    /// Its size.
    pub bytes: u64,
    /// The size of its machine code and data.
    pub compiled_bytes: u64,
    /// The version of the contract between components and this host.
    pub contract: String,
    /// What it needs of its host.
    pub imports: Vec<ExternView>,
    /// What it offers to its host.
    pub exports: Vec<ExternView>,
    /// Its operators.
    pub plan: PlanView,
}

/// Something that a component imports or exports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExternView {
    /// Like `tidemill:job/output@0.1.1`.
    pub name: String,
    /// The functions in it.
    pub functions: Vec<String>,
}

/// The plan of a job: its operators, without the columns that nobody reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    /// Of the plan document's shapes.
    pub version: u32,
    /// The job's name.
    pub name: String,
    /// Its operators, each after those that it reads from; in the shapes of the plan document.
    #[schema(value_type = Vec<Object>)]
    pub nodes: Vec<serde_json::Value>,
}

/// A checkpoint that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointView {
    /// Names it among the checkpoints of the job.
    pub number: u64,
    /// Which barrier it was taken at.
    pub epoch: u64,
    /// Which attempt at the job took it.
    pub attempt: u64,
    /// What it was taken for.
    pub kind: CheckpointKind,
    /// When, in milliseconds since 1970.
    pub taken_ms: i64,
    /// Whether what its sinks prepared is known to be committed.
    pub committed: bool,
    /// What its files have together.
    pub bytes: u64,
    /// How much of that was on its way between subtasks.
    pub in_flight_bytes: u64,
    /// What it keeps of each operator.
    pub operators: Vec<OperatorCheckpointView>,
}

/// What a checkpoint was taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CheckpointKind {
    /// To go on from after a failure.
    Checkpoint,
    /// For whoever asked for it.
    Savepoint,
    /// The last one of a job that was stopped.
    Stopped,
    /// The last one of a job whose input has ended.
    Finished,
}

/// What a checkpoint keeps of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperatorCheckpointView {
    /// Its uid.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// What it keeps of each subtask.
    pub subtasks: Vec<SubtaskCheckpointView>,
}

/// What a checkpoint keeps of a subtask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubtaskCheckpointView {
    /// Which.
    pub index: u32,
    /// What the files of its state have.
    pub bytes: u64,
    /// How many splits it had that were not at their end.
    pub splits: u64,
    /// How much was on its way to it.
    pub in_flight_bytes: u64,
    /// Its watermark, in milliseconds since 1970, if it had one.
    pub watermark: Option<i64>,
}

/// What was logged of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogsView {
    /// The entries, the oldest first.
    pub entries: Vec<LogEntryView>,
    /// What to give as `after` for those that follow.
    pub next: u64,
    /// How many there were after `after` that are not kept any more.
    pub missed: u64,
    /// How many were never kept, as far as this coordinator knows: the job logged too much.
    pub dropped: u64,
    /// How many left the memory of this coordinator before they were in the storage: it was too slow, or failed.
    #[serde(default)]
    pub not_stored: u64,
    /// Why what the storage has of it is not here, if that could not be read.
    #[serde(default)]
    pub incomplete: Option<String>,
    /// Whether the job is over: nothing more will come, but what follows here.
    pub over: bool,
}

/// Something that was logged of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntryView {
    /// Grows from entry to entry of a job.
    pub sequence: u64,
    /// When, in milliseconds since 1970, by the clock of who logged it.
    pub at_ms: i64,
    /// How much it matters.
    pub level: LogLevel,
    /// The job's id.
    pub job: String,
    /// The operator's number in the plan, if it is of an operator and not of the engine.
    pub node: Option<u32>,
    /// The operator's name.
    pub operator: Option<String>,
    /// Which of its subtasks.
    pub subtask: Option<u32>,
    /// The worker that logged it.
    pub worker: Option<String>,
    /// What it says; without control characters but line feeds and tabs.
    pub message: String,
}

/// How much an entry matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogLevel {
    /// For whoever looks for a fault.
    Debug,
    /// Something happened, and all is well.
    Info,
    /// Something is not as it should be, and the job goes on.
    Warn,
    /// Something failed.
    Error,
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Debug => Self::Debug,
            Level::Info => Self::Info,
            Level::Warn => Self::Warn,
            Level::Error => Self::Error,
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_uppercase())
    }
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerView {
    /// Names its process.
    pub id: String,
    /// Where other workers reach it.
    pub address: String,
    /// How many slots it offers.
    pub slots: u32,
    /// How many of them nothing runs in.
    pub free_slots: u32,
    /// What jobs may hold there.
    pub memory_bytes: u64,
    /// What its process has in memory.
    pub resident_bytes: u64,
    /// What jobs hold there, by owner.
    #[serde(default)]
    pub held: HeldView,
}

/// What jobs hold of a worker's memory, in bytes: what its account counts, and `memory_bytes` bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldView {
    /// Memories and tables of user code.
    pub guests_bytes: u64,
    /// Compiled components, each once, however many jobs run it.
    #[serde(default)]
    pub code_bytes: u64,
    /// State that is in memory, the caches of state on disk, and what windows and joins keep beside their state.
    pub state_bytes: u64,
    /// Rows in queues between slots, and those that a checkpoint took from there and is writing.
    pub exchange_bytes: u64,
    /// What sources and sinks have read ahead and have not written yet.
    pub connectors_bytes: u64,
}

impl HeldView {
    /// All.
    pub fn total(&self) -> u64 {
        let Self { guests_bytes, code_bytes, state_bytes, exchange_bytes, connectors_bytes } = *self;
        let all = [guests_bytes, code_bytes, state_bytes, exchange_bytes, connectors_bytes];
        all.into_iter().fold(0, u64::saturating_add)
    }
}

impl From<proto::Memory> for HeldView {
    fn from(said: proto::Memory) -> Self {
        Self {
            guests_bytes: said.guests,
            code_bytes: said.code,
            state_bytes: said.state,
            exchange_bytes: said.exchange,
            connectors_bytes: said.connectors,
        }
    }
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Overview {
    /// The version of Tidemill.
    pub version: String,
    /// Workers that are there.
    pub workers: u64,
    /// Their slots.
    pub slots: u64,
    /// Slots in which nothing runs.
    pub free_slots: u64,
    /// How many of these are kept for jobs that are started again.
    #[serde(default)]
    pub standby_slots: u64,
    /// Jobs that run.
    pub jobs_running: u64,
    /// All jobs that are known.
    pub jobs: u64,
}
