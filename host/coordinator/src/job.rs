//! A job in the cluster, as others see it: what is shown of it, and what the user wants of it. Its master, on a thread of
//! its own, does the rest.

mod attempt;
mod master;
mod offer;
mod recover;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
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
use crate::logs::archive;
use crate::logs::{JobLog, LogFilter, Recent};
use crate::storage::{Accepted, KeptWish, Storage};
use crate::view::{CheckpointsView, JobState, JobView, LogsView, SubtaskCounters, SubtaskView, VertexView};
use crate::workers::Worker;

pub use master::{Due, JobMaster};
pub(crate) use recover::recover;

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
    id: String,
    /// As what it was accepted; why that can't be read.
    accepted: Result<Accepted>,
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
    /// A savepoint is being taken, with which it is to be stopped.
    saving: Option<Saving>,
    /// It was taken, so nothing of the job may go on.
    saved: bool,
    control: Option<JobControl>,
    execution: Option<Arc<Execution>>,
    tasks: Vec<TaskStatus>,
}

/// A savepoint with which a job is to be stopped: the master has to know what became of it before the user does.
struct Saving {
    taken: Receiver<Result<String>>,
    tell: Sender<Result<String>>,
}

/// The answer to a request that takes long. It may come at any time; there is one in any case.
pub struct Asked<T> {
    what: &'static str,
    answered: Receiver<Result<T>>,
}

impl<T> Asked<T> {
    fn new(what: &'static str) -> (Sender<Result<T>>, Self) {
        let (answer, answered) = mpsc::channel();
        (answer, Self { what, answered })
    }

    /// Blocks until it is there.
    pub fn wait(self) -> Result<T> {
        self.answered.recv().unwrap_or_else(|_| Err(ended(self.what)))
    }

    /// It, if it is there. Once.
    pub fn poll(&self) -> Option<Result<T>> {
        match self.answered.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(ended(self.what))),
        }
    }
}

impl Job {
    /// One that is shown so at first, and what its master is to hear.
    fn new(
        storage: Arc<Storage>,
        accepted: Result<Accepted>,
        view: JobView,
        log: JobLog,
    ) -> (Arc<Self>, Receiver<JobEvent>) {
        let (id, parallelism) = (view.id.clone(), view.parallelism);
        let (wish, saving, saved, control, execution, tasks) = Default::default();
        let shared = Mutex::new(Shared { view, wish, parallelism, saving, saved, control, execution, tasks });
        let (tell, inbox) = mpsc::channel();
        let changed = Condvar::new();
        (Arc::new(Self { storage, id, accepted, shared, changed, tell, log }), inbox)
    }

    /// One that has no master here: it came to its end, or can't be gone on with.
    pub(crate) fn without_master(
        storage: Arc<Storage>,
        accepted: Result<Accepted>,
        view: JobView,
        now_ms: i64,
    ) -> Arc<Self> {
        Self::new(storage, accepted, view, JobLog::new(now_ms, true)).0
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
        &self.id
    }

    fn accepted(&self) -> Result<&Accepted> {
        self.accepted.as_ref().map_err(Clone::clone)
    }

    /// What was submitted. An error: that can't be read.
    pub fn definition(&self) -> Result<&JobDefinition> {
        self.accepted().map(|accepted| &accepted.definition)
    }

    /// Whether it is called so, and keeps its checkpoints there.
    pub(crate) fn keeps_checkpoints(&self, name: &str, location: &str) -> bool {
        let checkpoints = || self.definition().ok()?.manifest(None).ok()?.checkpoints;
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

    /// What was logged of it, as [`JobLog::read`] says, with what the storage has; may block for that.
    pub fn logs(&self, after: Option<u64>, limit: usize, filter: &LogFilter) -> LogsView {
        // First: what was logged before the end is there then.
        let over = self.is_over();
        let Recent { view, older } = self.log.read(self.id(), after, limit, filter);
        let view = LogsView { over, ..view };
        let Some((after, below)) = older else { return view };
        let left = limit.saturating_sub(view.entries.len());
        let found = match after {
            None => archive::newest(&self.storage, self.id(), below, left, filter),
            Some(after) => archive::between(&self.storage, self.id(), (after, below), limit, filter),
        };
        match found {
            Ok(found) => view.after(after, found, limit),
            Err(error) => LogsView { incomplete: Some(error.text()), ..view },
        }
    }

    /// Whether it came to its end.
    pub fn is_over(&self) -> bool {
        lock(&self.shared).view.state.is_final()
    }

    /// Whether it is gone on with: it has a master here.
    pub(crate) fn goes_on(&self) -> bool {
        let state = lock(&self.shared).view.state;
        !state.is_final() && state != JobState::FailedToRecover
    }

    /// It can't be gone on with here. False: it is cancelled.
    fn not_recovered(&self, why: &Error) -> bool {
        let mut now = lock(&self.shared);
        if now.wish == Wish::Cancel {
            return false;
        }
        now.view.state = JobState::FailedToRecover;
        now.view.reason = Some(recover::reason(&self.id, why));
        true
    }

    /// How many slots it is to have, whatever becomes of this coordinator.
    pub fn wanted_parallelism(&self) -> u32 {
        lock(&self.shared).parallelism
    }

    /// Whether it is to be stopped, likewise.
    pub fn is_stopping(&self) -> bool {
        lock(&self.shared).wish == Wish::Stop
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

    /// Ends it at once; nothing more is written or committed. An error: it is ended, but that could not be kept, so a
    /// coordinator that comes after this one would go on with it.
    ///
    /// One that can't be gone on with here is taken off the list instead; what is kept of it stays.
    pub fn cancel(&self) -> Result<()> {
        if self.unless_over("cancelled")?.view.state == JobState::FailedToRecover {
            return self.take_off();
        }
        let kept = self.storage.keep_wish(self.id(), KeptWish::Cancel);
        let mut now = self.unless_over("cancelled")?;
        now.wish = Wish::Cancel;
        now.view.state = JobState::Cancelling;
        if let Some(control) = &now.control {
            control.cancel();
        }
        drop(now);
        self.tell(JobEvent::Look);
        kept.map_err(|error| {
            let why = format!("the job {} is being cancelled, but that could not be kept: {error}", self.id());
            Error::new(error.kind(), why).mend("Cancel it again.")
        })
    }

    fn take_off(&self) -> Result<()> {
        self.storage.take_off(&self.id)?;
        let mut now = lock(&self.shared);
        now.view.state = JobState::Canceled;
        now.view.reason = Some(format!(
            "it is off the list, and no coordinator goes on with it; its checkpoints, and {}, stay where they are",
            self.storage.file_of(&self.id)
        ));
        drop(now);
        self.changed.notify_all();
        Ok(())
    }

    /// Ends it with everything that it read processed and committed. That is kept: whatever becomes of this coordinator,
    /// it is stopped.
    pub fn stop(&self) -> Result<()> {
        self.check_runs("stopped")?;
        self.storage.keep_wish(self.id(), KeptWish::Stop)?;
        let mut now = self.unless_over("stopped")?;
        if now.wish == Wish::Run {
            now.wish = Wish::Stop;
        }
        // Where none runs now, the next one is stopped as soon as it does.
        if let Some(control) = &now.control {
            control.stop();
        }
        Ok(())
    }

    /// The same with a savepoint; its location is the answer. Without one the job goes on.
    pub fn stop_with_savepoint(&self, location: String) -> Result<Asked<String>> {
        let mut now = self.unless_over("stopped")?;
        self.check_goes_on(&now)?;
        let control = running(&now, "stopped")?;
        if now.parallelism != now.view.parallelism {
            return Err(Error::invalid(format!("the job {} is being rescaled, it can't be stopped", self.id()))
                .mend("Try again when it runs again, or cancel it."));
        }
        let (answer, taken) = mpsc::channel();
        control.stop_with_savepoint(SavepointRequest { location, answer });
        let (tell, asked) = Asked::new("savepoint");
        now.saving = Some(Saving { taken, tell });
        Ok(asked)
    }

    /// Takes a checkpoint before the next one is due. Its number is the answer.
    pub fn checkpoint(&self) -> Result<Asked<u64>> {
        let what = "told to take a checkpoint";
        self.check_checkpoints(what)?;
        let control = running(&*self.unless_over(what)?, what)?;
        let (answer, asked) = Asked::new("checkpoint");
        control.checkpoint(answer);
        Ok(asked)
    }

    /// Takes a savepoint while it runs. Its location is the answer.
    pub fn savepoint(&self, location: String) -> Result<Asked<String>> {
        let control = running(&*self.unless_over("saved")?, "saved")?;
        let (answer, asked) = Asked::new("savepoint");
        control.savepoint(SavepointRequest { location, answer });
        Ok(asked)
    }

    /// Gives it another number of slots: it is stopped with a checkpoint, and goes on from there.
    pub fn rescale(&self, parallelism: u32) -> Result<()> {
        let manifest = self.definition()?.manifest(Some(parallelism))?;
        let now = self.unless_over("rescaled")?;
        if now.view.state == JobState::FailedToRecover {
            running(&now, "rescaled")?;
        }
        self.has_checkpoints(&manifest, "rescaled")?;
        self.check_goes_on(&now)?;
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
        self.has_checkpoints(&self.definition()?.manifest(None)?, what)
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

    /// Whether nobody wants its end; an error says so.
    fn check_goes_on(&self, now: &Shared) -> Result<()> {
        match now.wish == Wish::Run && now.saving.is_none() && !now.saved {
            true => Ok(()),
            false => Err(Error::invalid(format!("the job {} is being stopped", self.id()))),
        }
    }

    /// Hears what became of the savepoint with which it was to be stopped. Without one it goes on.
    fn hear_saved(&self) {
        let mut now = lock(&self.shared);
        let Some(taken) = now.saving.as_ref().map(|saving| saving.taken.try_recv()) else { return };
        let taken = match taken {
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => Err(ended("savepoint")),
            Ok(taken) => taken,
        };
        if let Ok(location) = &taken {
            now.view.savepoint = Some(location.clone());
            now.saved = true;
        }
        if let Some(Saving { tell, .. }) = now.saving.take() {
            // Who does not wait for the answer does not need it.
            _ = tell.send(taken);
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

fn ended(what: &str) -> Error {
    Error::new(ErrorKind::Retry, format!("the job ended, or began again, before the {what} was there"))
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
