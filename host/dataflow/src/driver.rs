//! Runs a job in production: a thread per slot, one for the job that finds splits, takes checkpoints and commits, and one
//! that writes what tasks froze.
//!
//! A slot thread steps its slice and parks when there is nothing to do; queues and connectors wake it. The first error
//! of any thread (a panic is one) stops all. When every slice has finished, the job's thread commits what the sinks
//! prepared; only then do the sources hear of it.

mod job;
mod slot;

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use tidemill_core::connector::Waker;
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::Epoch;
use tidemill_core::time::{Clock, Timestamp};
use tidemill_core::{Error, ErrorKind, Result};

use self::job::JobThread;
use self::slot::{Slot, SlotThread};
use crate::collect::{Collector, TaskId, Written};
use crate::coordinate::{CheckpointFigures, Checkpoints, Coordinator, SavepointRequest, recover};
use crate::job::{Ending, JobReport, JobSpec, TaskStatus};
use crate::physical::PhysicalPlan;
use crate::replay;
use crate::restore::{RestoredJob, Start};
use crate::slice::{Assembly, Slice, StopSignal, begin_sinks, committers};
use crate::snapshot::TaskEvent;

/// No sleep is longer: a wake-up that a connector forgot costs this, not the job.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// What a slot thread's stack must hold: the frames of the sandbox's guest are on it too.
const STACK_BYTES: usize = 8 << 20;

/// Starts a job without checkpoints. What can be known to be wrong before the first row is an error here.
pub fn run(spec: JobSpec) -> Result<JobHandle> {
    run_with(spec, None, false)
}

/// As `run`, with checkpoints: goes on from what their owner restored, if it did. `allow_non_restored`: state that the
/// job does not have (any more) is dropped instead of refused.
pub fn run_with(spec: JobSpec, mut checkpoints: Option<Checkpoints>, allow_non_restored: bool) -> Result<JobHandle> {
    let start = Start::of(checkpoints.as_ref().map(|c| &c.owner), allow_non_restored);
    let plan = PhysicalPlan::new(&spec.graph, &spec.settings)?;
    start.check(plan.graph())?;
    replay::check(&start, &plan, spec.settings.max_parallelism)?;
    let mut committers = committers(&spec)?;
    recover(&mut committers, checkpoints.as_mut())?;
    begin_sinks(&spec, &start)?;
    Failpoint::SinksBegun.reach();
    let sleepers: Vec<Arc<Sleeper>> = (0..plan.slots()).map(|_| Arc::default()).collect();
    let wakers: Vec<Waker> = sleepers.iter().map(|s| waker(s.clone())).collect();
    let Assembly { slices, enumerations, tasks, stop, overtakes } = Assembly::new(&spec, &plan, &wakers, &start)?;
    let letters = slices.iter().map(Slice::letters_task).collect();
    let collector = Collector::new(&spec.name, spec.settings.max_parallelism, &tasks, letters);
    let coordinator = Coordinator::new(spec.clock.clone(), enumerations, committers, collector, overtakes, checkpoints);
    let (events, inbox) = mpsc::channel();
    let figures = coordinator.figures().cloned().map(|figures| Arc::new(Mutex::new(figures)));
    let control = JobControl {
        stop,
        cancelled: Arc::default(),
        sleepers: sleepers.clone().into(),
        events: events.clone(),
        takes_checkpoints: coordinator.takes_checkpoints(),
    };
    let mut slots = Vec::new();
    for (slot, (slice, sleeper)) in slices.into_iter().zip(sleepers).enumerate() {
        let (verdicts, verdict) = mpsc::channel();
        let thread = SlotThread {
            slot,
            slice,
            sleeper,
            clock: spec.clock.clone(),
            cancelled: control.cancelled.clone(),
            events: events.clone(),
            verdict,
        };
        let spawned = spawn(format!("{}-slot-{slot}", spec.name), move || thread.run());
        match spawned {
            Ok(join) => slots.push(Slot { verdicts, join }),
            Err(error) => {
                control.cancel();
                return Err(error);
            }
        }
    }
    let job = JobThread::new(&spec, control.clone(), coordinator, slots.len(), events, figures.clone())
        .inspect_err(|_| control.cancel())?;
    let join = spawn(format!("{}-job", spec.name), move || job.run(&inbox, slots)).inspect_err(|_| control.cancel())?;
    Ok(JobHandle { job: spec.name, tasks, restored: start.from, figures, control, join })
}

/// A job that runs. Dropping it does not stop the job.
pub struct JobHandle {
    job: String,
    tasks: Vec<TaskStatus>,
    restored: Option<RestoredJob>,
    figures: Option<Arc<Mutex<CheckpointFigures>>>,
    control: JobControl,
    /// Whether the job was stopped by a checkpoint.
    join: JoinHandle<Result<bool>>,
}

impl JobHandle {
    /// Every subtask with its counters, by node and index.
    pub fn tasks(&self) -> &[TaskStatus] {
        &self.tasks
    }

    /// What the job went on from.
    pub fn restored(&self) -> Option<&RestoredJob> {
        self.restored.as_ref()
    }

    /// Figures of its checkpoints, if it takes any.
    pub fn checkpoints(&self) -> Option<CheckpointFigures> {
        self.figures.as_ref().map(|figures| figures.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Stops the job from anywhere.
    pub fn control(&self) -> JobControl {
        self.control.clone()
    }

    /// See [`JobControl::stop`].
    pub fn stop(&self) {
        self.control.stop();
    }

    /// See [`JobControl::cancel`].
    pub fn cancel(&self) {
        self.control.cancel();
    }

    /// Whether it came to its end, well or not: `wait` will not wait.
    pub fn is_finished(&self) -> bool {
        self.join.is_finished()
    }

    /// Waits for the end. The first error of any subtask.
    pub fn wait(self) -> Result<JobReport> {
        let stopped = self.join.join().map_err(|panic| panicked("the job's thread", &*panic))??;
        let ending = match (self.control.is_cancelled(), stopped || self.control.stop.is_stopping()) {
            (true, _) => Ending::Cancelled,
            (false, true) => Ending::Stopped,
            (false, false) => Ending::Finished,
        };
        Ok(JobReport { job: self.job, ending, tasks: self.tasks })
    }
}

/// Ends a job before its input does.
#[derive(Clone)]
pub struct JobControl {
    stop: Arc<StopSignal>,
    cancelled: Arc<AtomicBool>,
    sleepers: Arc<[Arc<Sleeper>]>,
    events: Sender<Event>,
    takes_checkpoints: bool,
}

impl JobControl {
    /// Sources stop where they are; what was read is processed, written and committed. Event-time windows and timers
    /// that are still open do not fire: their input has not ended. With checkpoints, the job can be gone on with from
    /// there. Without, what is open is lost; therefore, if the job keeps state, its sources are not told that what they
    /// read is done.
    pub fn stop(&self) {
        if self.takes_checkpoints {
            self.say(Event::Stop(None));
        } else {
            self.stop.stop();
            self.wake();
        }
    }

    /// As `stop`, with a savepoint.
    pub fn stop_with_savepoint(&self, request: SavepointRequest) {
        self.say(Event::Stop(Some(request)));
    }

    /// Takes a savepoint while the job goes on.
    pub fn savepoint(&self, request: SavepointRequest) {
        self.say(Event::Savepoint(request));
    }

    /// Stops at once; nothing more is written, and nothing committed.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether it was cancelled (an error cancels too).
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// If nobody listens any more, the job has ended; who asked sees that its question was dropped.
    fn say(&self, event: Event) {
        _ = self.events.send(event);
    }

    fn wake(&self) {
        self.sleepers.iter().for_each(|sleeper| sleeper.wake());
    }
}

/// A slot's thread, once it runs. Waking it before is not needed: it begins with a step.
#[derive(Debug, Default)]
struct Sleeper(OnceLock<Thread>);

impl Sleeper {
    fn wake(&self) {
        // A token that is left while the thread runs makes its next park return: no wake-up is lost.
        self.0.get().into_iter().for_each(Thread::unpark);
    }
}

fn waker(sleeper: Arc<Sleeper>) -> Waker {
    Waker::new(move || sleeper.wake())
}

enum Event {
    /// A slot's tasks have something to say.
    Tasks(Vec<TaskEvent>),
    /// What a task froze is written.
    Written { task: TaskId, epoch: Epoch, outcome: Result<Written> },
    /// A slot came to its end.
    Finished,
    /// A slot came to its end by an error.
    Failed(Error),
    /// A slot came to its end after a cancellation.
    Gone,
    /// The user wants the job to stop.
    Stop(Option<SavepointRequest>),
    /// The user wants a savepoint.
    Savepoint(SavepointRequest),
}

fn sleep(clock: &dyn Clock, until: Timestamp) -> Duration {
    let ms = until.0.saturating_sub(clock.now().0).max(0);
    Duration::from_millis(ms.unsigned_abs()).min(LONGEST_SLEEP)
}

fn spawn<T: Send + 'static>(name: String, run: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let builder = thread::Builder::new().name(name.replace('\0', "")).stack_size(STACK_BYTES);
    builder.spawn(run).map_err(|e| Error::new(ErrorKind::Limit, format!("no thread could be started: {e}")))
}

fn panicked(who: &str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    Error::internal(format!("{who} panicked: {text}"))
}
