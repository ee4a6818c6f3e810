//! Runs a job in production: a thread per slot, and one for the job that finds splits and commits.
//!
//! A slot thread steps its slice and parks when there is nothing to do; queues and connectors wake it. The first error
//! of any thread (a panic is one) stops all. When every slice has finished, the job's thread commits what the sinks
//! prepared; only then do the sources hear of it.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use tidemill_core::connector::{SinkCommitter, Waker};
use tidemill_core::time::{Clock, Timestamp};
use tidemill_core::{Error, ErrorKind, Result};

use crate::commit::commit;
use crate::job::{Ending, JobReport, JobSpec, TaskStatus};
use crate::physical::PhysicalPlan;
use crate::slice::{Assembly, CommitTarget, Prepared, Slice, Step, StopSignal};
use crate::splits::Enumeration;

/// No sleep is longer: a wake-up that a connector forgot costs this, not the job.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// What a slot thread's stack must hold: the frames of the sandbox's guest are on it too.
const STACK_BYTES: usize = 8 << 20;

/// Starts a job. What can be known to be wrong before the first row is an error here.
pub fn run(spec: JobSpec) -> Result<JobHandle> {
    let plan = PhysicalPlan::new(&spec.graph, &spec.settings)?;
    let sleepers: Vec<Arc<Sleeper>> = (0..plan.slots()).map(|_| Arc::default()).collect();
    let wakers: Vec<Waker> = sleepers.iter().map(|s| waker(s.clone())).collect();
    let Assembly { slices, enumerations, committers, tasks, stop } = Assembly::new(&spec, &plan, &wakers)?;
    let control = JobControl { stop, cancelled: Arc::default(), sleepers: sleepers.clone().into() };
    let (events, inbox) = mpsc::channel();
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
    let job = JobThread {
        clock: spec.clock.clone(),
        control: control.clone(),
        enumerations,
        committers,
        running: slots.len(),
        prepared: Vec::new(),
        error: None,
    };
    let join = spawn(format!("{}-job", spec.name), move || job.run(&inbox, slots)).inspect_err(|_| control.cancel())?;
    Ok(JobHandle { job: spec.name, tasks, control, join })
}

/// A job that runs. Dropping it does not stop the job.
pub struct JobHandle {
    job: String,
    tasks: Vec<TaskStatus>,
    control: JobControl,
    join: JoinHandle<Result<()>>,
}

impl JobHandle {
    /// Every subtask with its counters, by node and index.
    pub fn tasks(&self) -> &[TaskStatus] {
        &self.tasks
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
        self.join.join().map_err(|panic| panicked("the job's thread", &*panic))??;
        let ending = match (self.control.is_cancelled(), self.control.stop.is_stopping()) {
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
}

impl JobControl {
    /// Sources stop where they are; what was read is processed, written and committed. Event-time windows and timers
    /// that are still open do not fire: their input has not ended. Their content is lost until there are savepoints;
    /// therefore, if the job keeps state, its sources are not told that what they read is done.
    pub fn stop(&self) {
        self.stop.stop();
        self.wake();
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
    Finished(Vec<Prepared>),
    Failed(Error),
    /// After a cancellation.
    Gone,
}

struct Slot {
    /// Told whether everything is committed.
    verdicts: Sender<bool>,
    join: JoinHandle<()>,
}

struct SlotThread {
    slot: usize,
    slice: Slice,
    sleeper: Arc<Sleeper>,
    clock: Arc<dyn Clock>,
    cancelled: Arc<AtomicBool>,
    events: Sender<Event>,
    verdict: Receiver<bool>,
}

impl SlotThread {
    fn run(mut self) {
        _ = self.sleeper.0.set(thread::current());
        let outcome = catch_unwind(AssertUnwindSafe(|| self.step_to_the_end()))
            .unwrap_or_else(|panic| Err(panicked(&format!("slot {}", self.slot), &*panic)));
        let event = match outcome {
            Ok(true) => Event::Finished(self.slice.take_prepared()),
            Ok(false) => Event::Gone,
            Err(error) => Event::Failed(error),
        };
        let finished = matches!(event, Event::Finished(_));
        // If nobody listens any more, the job has ended.
        _ = self.events.send(event);
        if finished && self.verdict.recv().unwrap_or(false) {
            let told = catch_unwind(AssertUnwindSafe(|| self.slice.committed()))
                .unwrap_or_else(|panic| Err(panicked(&format!("slot {}", self.slot), &*panic)));
            if let Err(error) = told {
                _ = self.events.send(Event::Failed(error));
            }
        }
    }

    /// Whether it came to its end (and was not cancelled).
    fn step_to_the_end(&mut self) -> Result<bool> {
        loop {
            if self.cancelled.load(Ordering::Acquire) {
                return Ok(false);
            }
            match self.slice.step()? {
                Step::Progress => {}
                Step::Finished => return Ok(true),
                Step::Blocked | Step::IdleUntil(None) => thread::park_timeout(LONGEST_SLEEP),
                Step::IdleUntil(Some(at)) => thread::park_timeout(sleep(&*self.clock, at)),
            }
        }
    }
}

struct JobThread {
    clock: Arc<dyn Clock>,
    control: JobControl,
    enumerations: Vec<Enumeration>,
    committers: BTreeMap<CommitTarget, Box<dyn SinkCommitter>>,
    running: usize,
    prepared: Vec<Prepared>,
    error: Option<Error>,
}

impl JobThread {
    fn run(mut self, inbox: &Receiver<Event>, slots: Vec<Slot>) -> Result<()> {
        while self.running > 0 {
            let wait = self.discover();
            match inbox.recv_timeout(wait) {
                Ok(event) => self.note(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let committed = self.error.is_none() && !self.control.is_cancelled() && {
            let prepared = std::mem::take(&mut self.prepared);
            let result = catch_unwind(AssertUnwindSafe(|| commit(&mut self.committers, prepared)));
            self.keep(result.unwrap_or_else(|panic| Err(panicked("committing", &*panic))))
        };
        for slot in slots {
            _ = slot.verdicts.send(committed);
            if let Err(panic) = slot.join.join() {
                self.keep(Err(panicked("a slot", &*panic)));
            }
        }
        while let Ok(event) = inbox.try_recv() {
            self.note(event);
        }
        self.error.map_or(Ok(()), Err)
    }

    fn note(&mut self, event: Event) {
        self.running = self.running.saturating_sub(1);
        match event {
            Event::Finished(prepared) => self.prepared.extend(prepared),
            Event::Failed(error) => _ = self.keep(Err(error)),
            Event::Gone => {}
        }
    }

    /// Keeps the first error and stops everything; whether there was none.
    fn keep(&mut self, result: Result<()>) -> bool {
        let Err(error) = result else { return true };
        self.error.get_or_insert(error);
        self.control.cancel();
        false
    }

    /// Looks for splits where it is time to; how long nothing is due.
    fn discover(&mut self) -> Duration {
        let mut enumerations = std::mem::take(&mut self.enumerations);
        for enumeration in &mut enumerations {
            let now = self.clock.now();
            if enumeration.due().is_some_and(|due| due <= now) {
                let result = catch_unwind(AssertUnwindSafe(|| enumeration.discover(now)));
                self.keep(result.unwrap_or_else(|panic| Err(panicked("looking for splits", &*panic))));
            }
        }
        let due = enumerations.iter().filter_map(Enumeration::due).min();
        self.enumerations = if self.error.is_none() { enumerations } else { Vec::new() };
        due.map_or(LONGEST_SLEEP, |due| sleep(&*self.clock, due))
    }
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
