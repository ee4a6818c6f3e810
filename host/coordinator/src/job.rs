//! A job in the cluster, as others see it: what is shown of it, and what the user wants of it. Its master, on a thread of
//! its own, does the rest.

mod attempt;
mod master;
mod offer;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemill_checkpoint::Start;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_dataflow::driver::MasterEvent;
use tidemill_dataflow::{CheckpointFigures, JobControl, SavepointRequest, TaskStatus};
use tidemill_job::{JobDefinition, Manifest};
use tidemill_rpc::proto::Running;

use crate::execution::{Execution, ExecutionEvent};
use crate::lock;
use crate::logs::{JobLog, LogFilter};
use crate::storage::{Accepted, KeptWish, Storage};
use crate::view::{CheckpointsView, JobState, JobView, LogsView, SubtaskCounters, SubtaskView, VertexView};
use crate::workers::Worker;

pub use master::{Due, JobMaster};

/// A job that is to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// What it is.
    #[serde(flatten)]
    pub definition: JobDefinition,
    /// How many slots, instead of what the manifest says.
    #[serde(default)]
    pub parallelism: Option<u32>,
    /// From where it starts.
    #[serde(default)]
    pub from: Start,
    /// Drops state of operators that the job does not have (any more).
    #[serde(default)]
    pub allow_non_restored: bool,
}

/// What the user wants of a job that was submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wish {
    #[default]
    Run,
    Stop,
    Cancel,
}

/// What the master of a job hears.
pub(crate) enum JobEvent {
    /// The user wants something else, or there may be slots: look.
    Look,
    /// Something is said of an execution.
    Execution(u64, ExecutionEvent),
    /// Something is said to the master of an execution.
    Master(u64, MasterEvent),
    /// A worker runs slots of it since before this coordinator.
    Offered(Arc<Worker>, Running),
}

/// See the module.
pub struct Job {
    storage: Arc<Storage>,
    accepted: Accepted,
    shared: Mutex<Shared>,
    /// It came to its end.
    changed: Condvar,
    /// To its master.
    tell: Sender<JobEvent>,
    log: JobLog,
}

/// What others than the master see, and what they want.
struct Shared {
    /// Without what is taken from the attempt that runs.
    view: JobView,
    wish: Wish,
    /// How many slots are wanted.
    parallelism: u32,
    control: Option<JobControl>,
    execution: Option<Arc<Execution>>,
    tasks: Vec<TaskStatus>,
}

impl Job {
    /// One that was accepted, and what its master is to hear. `end`: how it ended, if it did.
    fn new(
        storage: Arc<Storage>,
        accepted: Accepted,
        end: Option<JobView>,
        now_ms: i64,
    ) -> Result<(Arc<Self>, Receiver<JobEvent>)> {
        let view = end.map_or_else(|| accepted_view(&accepted), Ok)?;
        let parallelism = view.parallelism;
        let (wish, control, execution, tasks) = Default::default();
        let shared = Mutex::new(Shared { view, wish, parallelism, control, execution, tasks });
        let (tell, inbox) = mpsc::channel();
        let (changed, log) = (Condvar::new(), JobLog::new(now_ms));
        Ok((Arc::new(Self { storage, accepted, shared, changed, tell, log }), inbox))
    }

    /// One that came to its end.
    pub(crate) fn ended(storage: Arc<Storage>, accepted: Accepted, end: JobView, now_ms: i64) -> Result<Arc<Self>> {
        Self::new(storage, accepted, Some(end), now_ms).map(|(job, _)| job)
    }

    /// What was wanted of it before, by a coordinator that is gone.
    fn wished(&self, wishes: &[KeptWish]) {
        let mut now = lock(&self.shared);
        for wish in wishes {
            match wish {
                KeptWish::Cancel => now.wish = Wish::Cancel,
                KeptWish::Stop if now.wish == Wish::Run => now.wish = Wish::Stop,
                KeptWish::Stop => {}
                KeptWish::Parallelism(parallelism) => now.parallelism = *parallelism,
            }
        }
    }

    /// Names it in the cluster.
    pub fn id(&self) -> &str {
        &self.accepted.id
    }

    /// Its component's SHA-256.
    pub fn artifact(&self) -> &str {
        &self.accepted.definition.artifact
    }

    /// What was submitted.
    pub fn definition(&self) -> &JobDefinition {
        &self.accepted.definition
    }

    /// Whether it is called so, and keeps its checkpoints there.
    pub(crate) fn keeps_checkpoints(&self, name: &str, location: &str) -> bool {
        let checkpoints = || self.accepted.definition.manifest(None).ok()?.checkpoints;
        lock(&self.shared).view.name == name && checkpoints().is_some_and(|of| of.location == location)
    }

    /// What was logged of it.
    pub fn log(&self) -> &JobLog {
        &self.log
    }

    /// Which entries of its log are those of a task, as [`LogFilter::of_task`] says.
    pub fn log_filter(&self, task: &str) -> Result<LogFilter> {
        LogFilter::of_task(task, &self.view().vertices)
    }

    /// What was logged of it, as [`JobLog::read`] says.
    pub fn logs(&self, after: Option<u64>, limit: usize, filter: &LogFilter) -> LogsView {
        // First: what was logged before the end is there then.
        let over = self.is_over();
        LogsView { over, ..self.log.read(self.id(), after, limit, filter) }
    }

    /// Whether it came to its end.
    pub fn is_over(&self) -> bool {
        lock(&self.shared).view.state.is_final()
    }

    /// What there is to show of it, without its operators.
    pub fn summary(&self) -> JobView {
        JobView { vertices: Vec::new(), ..lock(&self.shared).view.clone() }
    }

    /// What there is to show of it.
    pub fn view(&self) -> JobView {
        let now = lock(&self.shared);
        let mut view = now.view.clone();
        if !now.tasks.is_empty() {
            view.vertices = vertices(&now.tasks, now.execution.as_deref());
        }
        view
    }

    /// Ends it at once; nothing more is written or committed.
    pub fn cancel(&self) -> Result<()> {
        drop(self.unless_over("cancelled")?);
        if let Err(error) = self.storage.keep_wish(self.id(), KeptWish::Cancel) {
            tracing::warn!("that the job {} is cancelled could not be kept: {error}", self.id());
        }
        let mut now = self.unless_over("cancelled")?;
        now.wish = Wish::Cancel;
        now.view.state = JobState::Cancelling;
        if let Some(control) = &now.control {
            control.cancel();
        }
        drop(now);
        self.tell(JobEvent::Look);
        Ok(())
    }

    /// Ends it with everything that it read processed and committed; with a savepoint, if a location is given. Blocks
    /// until the savepoint is there, and gives its location.
    pub fn stop(&self, savepoint: Option<String>) -> Result<Option<String>> {
        self.check_runs("stopped")?;
        if savepoint.is_none() {
            self.storage.keep_wish(self.id(), KeptWish::Stop)?;
        }
        let mut now = self.unless_over("stopped")?;
        let control = running(&now, "stopped")?;
        now.wish = Wish::Stop;
        drop(now);
        let Some(location) = savepoint else {
            control.stop();
            return Ok(None);
        };
        let taken = ask("savepoint", |answer| control.stop_with_savepoint(SavepointRequest { location, answer }));
        let mut now = lock(&self.shared);
        match taken {
            Ok(location) => {
                now.view.savepoint = Some(location.clone());
                Ok(Some(location))
            }
            Err(error) => {
                if now.wish == Wish::Stop {
                    now.wish = Wish::Run;
                }
                Err(error)
            }
        }
    }

    /// Takes a checkpoint before the next one is due. Blocks until it is complete, and gives its number.
    pub fn checkpoint(&self) -> Result<u64> {
        let what = "told to take a checkpoint";
        self.check_checkpoints(what)?;
        let control = running(&*self.unless_over(what)?, what)?;
        ask("checkpoint", |answer| control.checkpoint(answer))
    }

    /// Takes a savepoint while it runs. Blocks until it is there, and gives its location.
    pub fn savepoint(&self, location: String) -> Result<String> {
        let control = running(&*self.unless_over("saved")?, "saved")?;
        ask("savepoint", |answer| control.savepoint(SavepointRequest { location, answer }))
    }

    /// Gives it another number of slots: it is stopped with a checkpoint, and goes on from there.
    pub fn rescale(&self, parallelism: u32) -> Result<()> {
        let manifest = self.accepted.definition.manifest(Some(parallelism))?;
        let now = self.unless_over("rescaled")?;
        self.has_checkpoints(&manifest, "rescaled")?;
        if now.wish != Wish::Run {
            return Err(Error::invalid(format!("the job {} is being stopped", self.id())));
        }
        drop(now);
        self.storage.keep_wish(self.id(), KeptWish::Parallelism(parallelism))?;
        let mut now = self.unless_over("rescaled")?;
        let changes = std::mem::replace(&mut now.parallelism, parallelism) != parallelism;
        if let (Some(control), true) = (&now.control, changes) {
            control.stop();
        }
        drop(now);
        self.tell(JobEvent::Look);
        Ok(())
    }

    /// A worker runs slots of it since before this coordinator.
    pub(crate) fn offer(&self, worker: Arc<Worker>, running: Running) {
        self.tell(JobEvent::Offered(worker, running));
    }

    /// Waits until it is over, or for so long.
    pub fn wait(&self, longest: Duration) -> JobView {
        let now = lock(&self.shared);
        let waiting = |shared: &mut Shared| !shared.view.state.is_final();
        drop(self.changed.wait_timeout_while(now, longest, waiting).unwrap_or_else(PoisonError::into_inner));
        self.view()
    }

    /// Whether it takes checkpoints; an error says that without any it can't be `what`.
    pub fn check_checkpoints(&self, what: &str) -> Result<()> {
        self.has_checkpoints(&self.accepted.definition.manifest(None)?, what)
    }

    /// Whether it runs; an error says that as it is it can't be `what`.
    pub fn check_runs(&self, what: &str) -> Result<()> {
        running(&*self.unless_over(what)?, what).map(drop)
    }

    fn has_checkpoints(&self, manifest: &Manifest, what: &str) -> Result<()> {
        match manifest.checkpoints {
            Some(_) => Ok(()),
            None => Err(Error::invalid(format!("the job {} takes no checkpoints, so it can't be {what}", self.id()))
                .mend("Give its manifest a [checkpoints] section with a location.")),
        }
    }

    fn unless_over(&self, what: &str) -> Result<MutexGuard<'_, Shared>> {
        let now = lock(&self.shared);
        if now.view.state.is_final() {
            let message = format!("the job {} is over, it can't be {what}", self.id());
            return Err(Error::invalid(message).mend("`tidemill list` shows which jobs run."));
        }
        Ok(now)
    }

    /// If nobody listens any more, the job is over.
    fn tell(&self, event: JobEvent) {
        _ = self.tell.send(event);
    }
}

/// Of a job that was accepted, before anything else is known of it.
fn accepted_view(accepted: &Accepted) -> Result<JobView> {
    let manifest = accepted.definition.manifest(accepted.parallelism)?;
    Ok(JobView {
        id: accepted.id.clone(),
        name: manifest.job.name.unwrap_or_default(),
        state: JobState::Created,
        reason: None,
        artifact: accepted.definition.artifact.clone(),
        parallelism: manifest.job.parallelism,
        submitted_ms: accepted.submitted_ms,
        ended_ms: None,
        restarts: 0,
        attempt: None,
        exceptions: Vec::new(),
        vertices: Vec::new(),
        checkpoints: None,
        savepoint: None,
    })
}

fn running(now: &Shared, what: &str) -> Result<JobControl> {
    let control = now.control.clone().filter(|_| now.view.state == JobState::Running);
    control.ok_or_else(|| {
        let (id, state) = (&now.view.id, now.view.state);
        Error::invalid(format!("the job {id} does not run now ({state}), it can't be {what}"))
            .mend("Try again when it runs, or cancel it.")
    })
}

fn ask<T>(what: &str, say: impl FnOnce(mpsc::Sender<Result<T>>)) -> Result<T> {
    let (answer, answered) = mpsc::channel();
    say(answer);
    let ended = || Error::new(ErrorKind::Retry, format!("the job ended, or began again, before the {what} was there"));
    answered.recv().unwrap_or_else(|_| Err(ended()))
}

fn checkpoints_view(of: &CheckpointFigures) -> CheckpointsView {
    CheckpointsView {
        completed: of.completed,
        failed: of.failed,
        failure: of.failure.clone(),
        newest: of.newest,
        duration_ms: of.duration_ms,
        bytes: of.bytes,
        new_bytes: of.new_bytes,
    }
}

fn vertices(tasks: &[TaskStatus], execution: Option<&Execution>) -> Vec<VertexView> {
    let mut vertices: Vec<VertexView> = Vec::new();
    for task in tasks {
        let worker = execution.and_then(|of| of.slots.get(task.subtask.index.0 as usize));
        let watermark = task.metrics.watermark.load(Ordering::Relaxed);
        let subtask = SubtaskView {
            worker: worker.map(|worker| worker.id.clone()),
            records_in: task.metrics.records_in.get(),
            records_out: task.metrics.records_out.get(),
            watermark: Some(watermark).filter(|ms| *ms != i64::MIN && *ms != i64::MAX),
            counters: SubtaskCounters::of(&task.metrics),
        };
        match vertices.last_mut().filter(|vertex| vertex.uid == task.uid) {
            Some(vertex) => vertex.subtasks.push(subtask),
            None => vertices.push(VertexView {
                uid: task.uid.clone(),
                name: task.subtask.operator.clone(),
                kind: task.kind.to_owned(),
                subtasks: vec![subtask],
            }),
        }
    }
    vertices
}
