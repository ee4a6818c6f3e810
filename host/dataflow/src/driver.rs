//! Runs a job in production: a thread per slot, one that writes what tasks froze, and one for the job's *master*, who
//! finds splits, takes checkpoints and commits.
//!
//! The two halves meet in few places, so that they may be in different processes: the master says things through
//! [`Signals`] and the mailboxes of source readers, and hears [`SlotEvent`]s. In one process, these are shared memory
//! ([`run`]); else whoever carries them over stands in for the other half on each side ([`Slots`], [`Master`]).
//!
//! Both halves are stepped: they have no threads of their own but those that this module gives them.
//!
//! A slot thread steps its slice and parks when there is nothing to do; queues and connectors wake it. The first error
//! of any thread (a panic is one) stops all. When every slice has finished, the master commits what the sinks prepared;
//! only then do the sources hear of it.

mod master;
mod slots;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tidemill_core::connector::Waker;
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::{Epoch, NodeId, SubtaskId};
use tidemill_core::time::{Clock, Timestamp};
use tidemill_core::{Error, ErrorKind, Result};

pub use self::master::Master;
pub use self::slots::{RunningSlots, Slot, SlotStep, SlotWriter, Slots};
use crate::coordinate::{CheckpointAnswer, CheckpointFigures, Checkpoints, SavepointRequest, recover};
use crate::job::{Ending, JobReport, JobSpec, TaskStatus};
use crate::physical::PhysicalPlan;
use crate::replay;
use crate::restore::{RestoredJob, Start};
use crate::signals::Signals;
use crate::slice::{Committers, begin_sinks, committers, tasks};
use crate::snapshot::{TaskEvent, Written};
use crate::splits::Mailbox;
use crate::takeover::Takeover;

/// No sleep is longer: a wake-up that a connector forgot costs this, not the job.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// What a slot thread's stack must hold: the frames of the sandbox's guest are on it too.
const STACK_BYTES: usize = 8 << 20;

/// Where the readers of a job's sources get their news, by source node and subtask.
pub type Readers = BTreeMap<(NodeId, u32), Arc<Mailbox>>;

/// Starts a job without checkpoints. What can be known to be wrong before the first row is an error here.
pub fn run(spec: JobSpec) -> Result<JobHandle> {
    run_with(spec, None, false)
}

/// As `run`, with checkpoints: goes on from what their owner restored, if it did. `allow_non_restored`: state that the
/// job does not have (any more) is dropped instead of refused.
pub fn run_with(spec: JobSpec, mut checkpoints: Option<Checkpoints>, allow_non_restored: bool) -> Result<JobHandle> {
    let prologue = Prologue::of(&spec, checkpoints.as_mut(), allow_non_restored)?;
    let Prologue { plan, start, tasks, .. } = &prologue;
    let all: Vec<u32> = (0..plan.slots()).collect();
    let writer = checkpoints.as_ref().map(|checkpoints| checkpoints.owner.writer());
    let nobody = |_| Waker::new(|| ());
    let slots = Slots::open(&spec, plan, tasks, start, &all, &nobody, writer)?;
    let (readers, signals) = (slots.readers().clone(), slots.signals().clone());
    let (say, inbox) = mpsc::channel();
    let slots_say = say.clone();
    // If nobody listens any more, the job has ended; who asked something sees that its question was dropped.
    let hear = move |event| _ = say.send(event);
    let master = Master::new(&spec, prologue, &readers, signals.clone(), checkpoints, hear)?;
    let running = slots.start(move |event| _ = slots_say.send(MasterEvent::Slot(event)))?;
    master.start(&spec, inbox, move || running.join()).inspect_err(|_| signals.cancel())
}

/// A job about to run. Nothing runs yet, but what earlier attempts left half done is done.
pub struct Prologue {
    /// What is to be built.
    pub plan: PhysicalPlan,
    /// What it goes on from.
    pub start: Start,
    /// Every subtask, by node and index.
    pub tasks: Vec<TaskStatus>,
    pub(crate) committers: Committers,
    /// What slots know that run already. `None`: they are about to.
    pub takeover: Option<Takeover>,
}

impl Prologue {
    /// Refuses what can't run, commits what the checkpoint before left, and tells the sinks that an attempt begins.
    pub fn of(spec: &JobSpec, checkpoints: Option<&mut Checkpoints>, allow_non_restored: bool) -> Result<Self> {
        let start = Start::of(checkpoints.as_ref().map(|c| &c.owner), allow_non_restored);
        let plan = PhysicalPlan::new(&spec.graph, &spec.settings)?;
        start.check(plan.graph())?;
        replay::check(&start, &plan, spec.settings.max_parallelism)?;
        let mut committers = committers(spec)?;
        recover(&mut committers, checkpoints)?;
        begin_sinks(spec, &start)?;
        Failpoint::SinksBegun.reach();
        let tasks = tasks(&spec.name, &plan);
        Ok(Self { plan, start, tasks, committers, takeover: None })
    }

    /// Of a job whose slots run without a master: commits what the newest checkpoint left. What those slots know is to
    /// be found out before a master is made of it.
    pub fn of_running(spec: &JobSpec, checkpoints: Option<&mut Checkpoints>) -> Result<Self> {
        let start = Start::of(checkpoints.as_ref().map(|c| &c.owner), true);
        let plan = PhysicalPlan::new(&spec.graph, &spec.settings)?;
        let mut committers = committers(spec)?;
        recover(&mut committers, checkpoints)?;
        let tasks = tasks(&spec.name, &plan);
        Ok(Self { plan, start, tasks, committers, takeover: Some(Takeover::default()) })
    }
}

/// What slots tell the master.
#[derive(Debug)]
pub enum SlotEvent {
    /// A slot's tasks have something to say; what is to be written was taken out.
    Tasks(Vec<TaskEvent>),
    /// What a task froze is written, or could not be.
    Written {
        /// Whose.
        subtask: Arc<SubtaskId>,
        /// For which checkpoint.
        epoch: Epoch,
        /// What was written.
        outcome: Result<Written>,
    },
    /// A slot came to its end.
    Finished(u32),
    /// A slot came to its end by an error.
    Failed(u32, Error),
    /// A slot came to its end after a cancellation.
    Gone(u32),
    /// Something that slots need is gone, as a way to others. They go on until they are cancelled.
    Trouble(Error),
}

/// A job that runs. Dropping it does not stop the job.
pub struct JobHandle {
    job: String,
    tasks: Vec<TaskStatus>,
    restored: Option<RestoredJob>,
    figures: Option<Figures>,
    control: JobControl,
    join: JoinHandle<Result<Ending>>,
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
        self.figures.as_ref().map(|figures| lock(figures).clone())
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
        let ending = self.join.join().map_err(|panic| panicked("the job's thread", &*panic))??;
        Ok(JobReport { job: self.job, ending, tasks: self.tasks })
    }
}

/// Ends a job before its input does.
#[derive(Clone)]
pub struct JobControl {
    signals: Arc<Signals>,
    hear: Arc<dyn Fn(MasterEvent) + Send + Sync>,
    takes_checkpoints: bool,
}

impl JobControl {
    /// Sources stop where they are; what was read is processed, written and committed. Event-time windows and timers
    /// that are still open do not fire: their input has not ended. With checkpoints, the job can be gone on with from
    /// there. Without, what is open is lost; therefore, if the job keeps state, its sources are not told that what they
    /// read is done.
    pub fn stop(&self) {
        match self.takes_checkpoints {
            true => (self.hear)(MasterEvent::Stop(None)),
            false => self.signals.stop(),
        }
    }

    /// As `stop`, with a savepoint.
    pub fn stop_with_savepoint(&self, request: SavepointRequest) {
        (self.hear)(MasterEvent::Stop(Some(request)));
    }

    /// Takes a checkpoint before the next one is due. `answer` is told its number.
    pub fn checkpoint(&self, answer: CheckpointAnswer) {
        (self.hear)(MasterEvent::Checkpoint(answer));
    }

    /// Takes a savepoint while the job goes on.
    pub fn savepoint(&self, request: SavepointRequest) {
        (self.hear)(MasterEvent::Savepoint(request));
    }

    /// Stops at once; nothing more is written, and nothing committed.
    pub fn cancel(&self) {
        self.signals.cancel();
    }

    /// Whether it was cancelled (an error cancels too).
    pub fn is_cancelled(&self) -> bool {
        self.signals.is_cancelled()
    }
}

/// What the master of a job hears.
pub enum MasterEvent {
    /// A slot says something.
    Slot(SlotEvent),
    /// The user wants the job to stop.
    Stop(Option<SavepointRequest>),
    /// The user wants a checkpoint now.
    Checkpoint(CheckpointAnswer),
    /// The user wants a savepoint.
    Savepoint(SavepointRequest),
}

/// Figures of checkpoints, as they are shown to others than the master.
type Figures = Arc<Mutex<CheckpointFigures>>;

fn sleep(clock: &dyn Clock, until: Timestamp) -> Duration {
    let ms = until.0.saturating_sub(clock.now().0).max(0);
    Duration::from_millis(ms.unsigned_abs()).min(LONGEST_SLEEP)
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
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
