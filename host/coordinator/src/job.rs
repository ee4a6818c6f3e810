//! A job in the cluster: attempt after attempt, from its submission to its end, on a thread of its own.

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemill_checkpoint::restart::{Restart, Restarts};
use tidemill_checkpoint::{Begun, Start, Store};
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_dataflow::driver::{Master, Prologue};
use tidemill_dataflow::{Checkpoints, Ending, JobControl, JobHandle, SavepointRequest, TaskStatus};
use tidemill_job::{JobDefinition, Manifest, checkpoint_settings, spec};

use crate::execution::Execution;
use crate::storage::{Accepted, Kept};
use crate::view::{AttemptView, CheckpointsView, ExceptionView, JobState, JobView, SubtaskView, VertexView};
use crate::{Coordinator, lock, now_ms};

/// How often a job that runs is looked at. Its end is noticed so late.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often a job that waits for slots looks, if nobody wakes it.
const SLOTS_EVERY: Duration = Duration::from_millis(200);
/// How many failures are shown.
const EXCEPTIONS: usize = 20;

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

/// See the module.
pub struct Job {
    coordinator: Arc<Coordinator>,
    accepted: Accepted,
    now: Mutex<Now>,
    changed: Condvar,
}

struct Now {
    /// Without what is taken from the attempt that runs.
    view: JobView,
    wish: Wish,
    /// Whether an attempt has begun. What follows goes on from the newest checkpoint, however the attempt before ended:
    /// also one that came to its very end, of which nobody was told.
    begun: bool,
    /// How many slots are wanted.
    parallelism: u32,
    control: Option<JobControl>,
    execution: Option<Arc<Execution>>,
    tasks: Vec<TaskStatus>,
}

impl Job {
    /// A new one, accepted.
    pub fn submit(coordinator: Arc<Coordinator>, submission: Submission) -> Result<Arc<Self>> {
        let Submission { definition, parallelism, from, allow_non_restored } = submission;
        let accepted =
            Accepted { id: String::new(), definition, parallelism, from, allow_non_restored, submitted_ms: now_ms() };
        let accepted = coordinator.storage.keep_job(accepted)?;
        let start = accepted.from.clone();
        let job = Self::new(coordinator, accepted, None)?;
        job.clone().run_from(start)?;
        Ok(job)
    }

    /// One that was accepted by a coordinator before this one.
    pub fn again(coordinator: Arc<Coordinator>, kept: Kept) -> Result<Arc<Self>> {
        let Kept { accepted, begun, end } = kept;
        let over = end.is_some();
        let start = accepted.from.clone();
        let job = Self::new(coordinator, accepted, end)?;
        lock(&job.now).begun = begun;
        if !over {
            job.clone().run_from(start)?;
        }
        Ok(job)
    }

    fn new(coordinator: Arc<Coordinator>, accepted: Accepted, end: Option<JobView>) -> Result<Arc<Self>> {
        let view = end.map_or_else(|| accepted_view(&accepted), Ok)?;
        let parallelism = view.parallelism;
        let (wish, begun, control, execution, tasks) = Default::default();
        let now = Mutex::new(Now { view, wish, begun, parallelism, control, execution, tasks });
        Ok(Arc::new(Self { coordinator, accepted, now, changed: Condvar::new() }))
    }

    /// Names it in the cluster.
    pub fn id(&self) -> &str {
        &self.accepted.id
    }

    /// Its component's SHA-256.
    pub fn artifact(&self) -> &str {
        &self.accepted.definition.artifact
    }

    /// Whether it came to its end.
    pub fn is_over(&self) -> bool {
        lock(&self.now).view.state.is_final()
    }

    /// What there is to show of it.
    pub fn view(&self) -> JobView {
        let now = lock(&self.now);
        let mut view = now.view.clone();
        if !now.tasks.is_empty() {
            view.vertices = vertices(&now.tasks, now.execution.as_deref());
        }
        view
    }

    /// Ends it at once; nothing more is written or committed.
    pub fn cancel(&self) -> Result<()> {
        let mut now = self.unless_over("cancelled")?;
        now.wish = Wish::Cancel;
        now.view.state = JobState::Cancelling;
        if let Some(control) = &now.control {
            control.cancel();
        }
        drop(now);
        self.changed.notify_all();
        self.coordinator.workers.wake();
        Ok(())
    }

    /// Ends it with everything that it read processed and committed; with a savepoint, if a location is given. Blocks
    /// until the savepoint is there, and gives its location.
    pub fn stop(&self, savepoint: Option<String>) -> Result<Option<String>> {
        let mut now = self.unless_over("stopped")?;
        let control = running(&now, "stopped")?;
        now.wish = Wish::Stop;
        drop(now);
        let Some(location) = savepoint else {
            control.stop();
            return Ok(None);
        };
        let taken = ask(|answer| control.stop_with_savepoint(SavepointRequest { location, answer }));
        let mut now = lock(&self.now);
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

    /// Takes a savepoint while it runs. Blocks until it is there, and gives its location.
    pub fn savepoint(&self, location: String) -> Result<String> {
        let control = running(&*self.unless_over("saved")?, "saved")?;
        ask(|answer| control.savepoint(SavepointRequest { location, answer }))
    }

    /// Gives it another number of slots: it is stopped with a checkpoint, and goes on from there.
    pub fn rescale(&self, parallelism: u32) -> Result<()> {
        let manifest = self.accepted.definition.manifest(Some(parallelism))?;
        let mut now = self.unless_over("rescaled")?;
        if manifest.checkpoints.is_none() {
            return Err(Error::invalid(format!("the job {} takes no checkpoints, so it can't be rescaled", self.id()))
                .mend("Give its manifest a [checkpoints] section with a location."));
        }
        if now.wish != Wish::Run {
            return Err(Error::invalid(format!("the job {} is being stopped", self.id())));
        }
        let changes = std::mem::replace(&mut now.parallelism, parallelism) != parallelism;
        if let (Some(control), true) = (&now.control, changes) {
            control.stop();
        }
        Ok(())
    }

    /// Waits until it is over, or for so long.
    pub fn wait(&self, longest: Duration) -> JobView {
        let now = lock(&self.now);
        let waiting = |now: &mut Now| !now.view.state.is_final();
        drop(self.changed.wait_timeout_while(now, longest, waiting).unwrap_or_else(PoisonError::into_inner));
        self.view()
    }

    fn unless_over(&self, what: &str) -> Result<std::sync::MutexGuard<'_, Now>> {
        let now = lock(&self.now);
        if now.view.state.is_final() {
            let message = format!("the job {} is over, it can't be {what}", self.id());
            return Err(Error::invalid(message).mend("`tidemill list` shows which jobs run."));
        }
        Ok(now)
    }

    fn run_from(self: Arc<Self>, start: Start) -> Result<()> {
        let name = format!("job-{}", self.id());
        let run = move || {
            let ended = self.run(start);
            self.end(ended);
        };
        let spawned = thread::Builder::new().name(name).spawn(run);
        spawned.map(drop).map_err(|e| Error::new(ErrorKind::Limit, format!("no thread could be started: {e}")))
    }

    fn run(self: &Arc<Self>, start: Start) -> Result<Ending> {
        let manifest = self.accepted.definition.manifest(self.accepted.parallelism)?;
        let mut restarts = Restarts::new(manifest.restart.clone(), now_ms().unsigned_abs());
        loop {
            let (parallelism, begun) = {
                let now = lock(&self.now);
                (now.parallelism, now.begun)
            };
            let outcome = self.attempt(if begun { &Start::GoOn } else { &start }, parallelism);
            let mut now = lock(&self.now);
            now.control = None;
            let execution = now.execution.take();
            drop(now);
            if let Some(execution) = execution {
                lock(&self.coordinator.executions).remove(&execution.id);
                self.coordinator.workers.give_back(&execution.slots);
            }
            let wish = lock(&self.now).wish;
            match outcome {
                // It was stopped to be rescaled.
                Ok(Ending::Stopped) if wish == Wish::Run => {
                    self.set(JobState::Restarting, Some("it is being rescaled".to_owned()));
                }
                Ok(ending) => return Ok(ending),
                Err(_) if wish == Wish::Cancel => return Ok(Ending::Cancelled),
                Err(error) => {
                    let wait = self.failed(&mut restarts, &manifest, error)?;
                    let now = lock(&self.now);
                    let waiting = |now: &mut Now| now.wish != Wish::Cancel;
                    let waited = self.changed.wait_timeout_while(now, wait, waiting);
                    drop(waited.unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }

    /// How long to wait after a failure. The error, if it was the last one.
    fn failed(&self, restarts: &mut Restarts, manifest: &Manifest, error: Error) -> Result<Duration> {
        let text = error.to_string();
        let mut now = lock(&self.now);
        now.view.exceptions.push(ExceptionView { at_ms: now_ms(), text: text.clone() });
        let over = now.view.exceptions.len().saturating_sub(EXCEPTIONS);
        now.view.exceptions.drain(..over);
        drop(now);
        // Only what may pass by itself is worth another try; and what was done is known from checkpoints alone.
        let may_pass = matches!(error.kind(), ErrorKind::Retry | ErrorKind::Internal);
        if !may_pass || manifest.checkpoints.is_none() {
            return Err(error);
        }
        match restarts.failed(now_ms().unsigned_abs(), &text) {
            Restart::After(ms) => {
                self.set(JobState::Restarting, Some(text));
                lock(&self.now).view.restarts += 1;
                Ok(Duration::from_millis(ms))
            }
            Restart::GiveUp(_) => Err(error),
        }
    }

    /// Deploys the job and stays with it until the attempt is over.
    fn attempt(self: &Arc<Self>, start: &Start, parallelism: u32) -> Result<Ending> {
        let (definition, coordinator) = (&self.accepted.definition, &self.coordinator);
        let manifest = definition.manifest(Some(parallelism))?;
        lock(&self.now).view.attempt = Some(AttemptView { began_ms: now_ms(), ..AttemptView::default() });
        let spec = spec(
            &manifest,
            &coordinator.registry,
            coordinator.components.get(&definition.artifact, &manifest.limits)?,
        )?;
        let name = spec.name.clone();
        let Some(slots) = self.slots(parallelism, name.clone()) else { return Ok(Ending::Cancelled) };
        let given_back = GivesBack { coordinator, slots: Some(slots) };
        let mut checkpoints = None;
        if let Some(settings) = &manifest.checkpoints {
            let store = Store::open(&settings.location, &spec.name)?;
            let begun = store.begin(start, now_ms())?;
            coordinator.storage.keep_begun(self.id())?;
            lock(&self.now).begun = true;
            let owner = match begun {
                Begun::Run(owner) => *owner,
                Begun::Commit(checkpoint) => {
                    tidemill_dataflow::commit_ended(&spec, &store, &checkpoint)?;
                    return Ok(Ending::Finished);
                }
            };
            let (settings, retained) = (checkpoint_settings(settings), settings.retained);
            checkpoints = Some(Checkpoints { store, owner, settings, retained });
        }
        let allow = self.accepted.allow_non_restored;
        let prologue = Prologue::of(&spec, checkpoints.as_mut(), allow)?;
        let Some(slots) = given_back.keep() else { return Err(Error::internal("slots were given back twice")) };
        let execution = Arc::new(Execution::new(coordinator.new_execution(), &name, &prologue, slots));
        lock(&coordinator.executions).insert(execution.id, execution.clone());
        // Who left before that was not heard of by the execution.
        for worker in execution.slots.iter().filter(|worker| !coordinator.workers.has(&worker.id)) {
            execution.gone(&worker.id, "it left");
        }
        let mut now = lock(&self.now);
        now.execution = Some(execution.clone());
        now.tasks = prologue.tasks.clone();
        now.view.attempt.iter_mut().for_each(|attempt| attempt.deploying_ms = now_ms());
        drop(now);
        execution.open(definition, checkpoints.as_ref().map(|checkpoints| &checkpoints.owner), allow)?;
        lock(&self.now).view.attempt.iter_mut().for_each(|attempt| attempt.ready_ms = now_ms());
        let signals = execution.signals.clone();
        let master = Master::new(&spec, prologue, &execution.readers, signals.clone(), checkpoints)
            .inspect_err(|_| signals.cancel())?;
        execution.start(master.events());
        let joining = execution.clone();
        let handle = master.start(move || joining.join()).inspect_err(|_| signals.cancel())?;
        self.watch(handle)
    }

    /// Slots for the job, when they are there. `None`: it was cancelled meanwhile.
    fn slots(&self, parallelism: u32, name: String) -> Option<Vec<Arc<crate::workers::Worker>>> {
        let mut now = lock(&self.now);
        now.view.name = name;
        now.view.parallelism = parallelism;
        drop(now);
        loop {
            if lock(&self.now).wish == Wish::Cancel {
                return None;
            }
            match self.coordinator.workers.take(parallelism) {
                Ok(slots) => return Some(slots),
                Err(missing) => {
                    let mut now = lock(&self.now);
                    if now.view.state != JobState::Cancelling {
                        now.view.reason = Some(missing.to_string());
                    }
                }
            }
            self.coordinator.workers.wait(SLOTS_EVERY);
        }
    }

    fn watch(&self, handle: JobHandle) -> Result<Ending> {
        let mut now = lock(&self.now);
        now.control = Some(handle.control());
        match now.wish {
            Wish::Cancel => handle.cancel(),
            Wish::Stop => handle.stop(),
            Wish::Run => {
                now.view.state = JobState::Running;
                now.view.reason = None;
            }
        }
        while !handle.is_finished() {
            now.view.checkpoints = handle.checkpoints().map(checkpoints_view);
            if handle.control().is_cancelled() && now.view.state == JobState::Running {
                now.view.state = JobState::Failing;
            }
            now = self.changed.wait_timeout(now, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        now.view.checkpoints = handle.checkpoints().map(checkpoints_view);
        drop(now);
        Ok(handle.wait()?.ending)
    }

    fn end(&self, ended: Result<Ending>) {
        let (state, reason) = match ended {
            Ok(Ending::Finished | Ending::Stopped) => (JobState::Finished, None),
            Ok(Ending::Cancelled) => (JobState::Canceled, None),
            Err(error) => (JobState::Failed, Some(error.text())),
        };
        let mut end = self.view();
        (end.state, end.reason, end.ended_ms) = (state, reason.clone(), Some(now_ms()));
        if let Err(error) = self.coordinator.storage.keep_end(&end) {
            tracing::warn!("how the job {} ended could not be kept: {error}", self.id());
        }
        lock(&self.now).view = end;
        self.changed.notify_all();
    }

    fn set(&self, state: JobState, reason: Option<String>) {
        let mut now = lock(&self.now);
        if now.view.state != JobState::Cancelling {
            (now.view.state, now.view.reason) = (state, reason);
        }
    }
}

/// Slots that are given back unless they come to be used.
struct GivesBack<'a> {
    coordinator: &'a Coordinator,
    slots: Option<Vec<Arc<crate::workers::Worker>>>,
}

impl GivesBack<'_> {
    fn keep(mut self) -> Option<Vec<Arc<crate::workers::Worker>>> {
        self.slots.take()
    }
}

impl Drop for GivesBack<'_> {
    fn drop(&mut self) {
        self.slots.take().into_iter().for_each(|slots| self.coordinator.workers.give_back(&slots));
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

fn running(now: &Now, what: &str) -> Result<JobControl> {
    now.control.clone().ok_or_else(|| {
        let (id, state) = (&now.view.id, now.view.state);
        Error::invalid(format!("the job {id} does not run now ({state}), it can't be {what}"))
            .mend("Try again when it runs, or cancel it.")
    })
}

fn ask(say: impl FnOnce(mpsc::Sender<Result<String>>)) -> Result<String> {
    let (answer, answered) = mpsc::channel();
    say(answer);
    answered
        .recv()
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Retry, "the job ended before the savepoint was there")))
}

fn checkpoints_view(of: tidemill_dataflow::CheckpointFigures) -> CheckpointsView {
    CheckpointsView {
        completed: of.completed,
        failed: of.failed,
        failure: of.failure,
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
