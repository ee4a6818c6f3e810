//! The master's thread: carries out what the coordinator decides, and notes what the slots say.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidemill_core::ids::Epoch;
use tidemill_core::time::Clock;
use tidemill_core::{Error, Result};

use super::{Event, JobControl, JobHandle, LONGEST_SLEEP, Prologue, Readers, SlotEvent, panicked, sleep, spawn};
use crate::collect::Collector;
use crate::coordinate::{CheckpointFigures, Checkpoints, Coordinator};
use crate::job::{JobSpec, TaskStatus};
use crate::restore::RestoredJob;
use crate::signals::Signals;
use crate::slice::{enumerations, letters_tasks};
use crate::takeover::Takeover;

/// The half of a job that is there once, whatever its slots are and wherever.
pub struct Master {
    job: String,
    tasks: Vec<TaskStatus>,
    restored: Option<RestoredJob>,
    slots: u32,
    clock: Arc<dyn Clock>,
    control: JobControl,
    coordinator: Coordinator,
    inbox: Receiver<Event>,
}

impl Master {
    /// Before anything runs. It speaks to the slots through `readers` and `signals`.
    pub fn new(
        spec: &JobSpec,
        prologue: Prologue,
        readers: &Readers,
        signals: Arc<Signals>,
        checkpoints: Option<Checkpoints>,
    ) -> Result<Self> {
        let Prologue { plan, start, tasks, committers, takeover } = prologue;
        let passed = takeover.as_ref().map_or(Epoch(0), Takeover::passed);
        let enumerations = enumerations(spec, &plan, &start, readers, takeover.as_ref())?;
        let letters = letters_tasks(&spec.name, &plan);
        let collector = Collector::new(&spec.name, spec.settings.max_parallelism, &tasks, letters);
        let clock = spec.clock.clone();
        let coordinator =
            Coordinator::new(clock.clone(), enumerations, committers, collector, signals.clone(), checkpoints, passed);
        let (events, inbox) = mpsc::channel();
        let control = JobControl { signals, events, takes_checkpoints: coordinator.takes_checkpoints() };
        let (slots, restored) = (plan.slots(), start.from);
        Ok(Self { job: spec.name.clone(), tasks, restored, slots, clock, control, coordinator, inbox })
    }

    /// Where the slots say what happens. If nobody listens any more, the job has ended.
    pub fn events(&self) -> impl Fn(SlotEvent) + Clone + Send + 'static {
        let events: Sender<Event> = self.control.events.clone();
        move |event| _ = events.send(Event::Slot(event))
    }

    /// Goes to work. `join` waits until all slots are gone, and gives the errors that they had at the very end.
    pub fn start(self, join: impl FnOnce() -> Vec<Error> + Send + 'static) -> Result<JobHandle> {
        let Self { job, tasks, restored, slots, clock, control, coordinator, inbox } = self;
        let figures = coordinator.figures().cloned().map(|figures| Arc::new(Mutex::new(figures)));
        let thread = MasterThread {
            clock,
            control: control.clone(),
            coordinator,
            running: slots,
            figures: figures.clone(),
            error: None,
        };
        let join = spawn(format!("{job}-master"), move || thread.run(&inbox, join))?;
        Ok(JobHandle { job, tasks, restored, figures, control, join })
    }
}

struct MasterThread {
    clock: Arc<dyn Clock>,
    control: JobControl,
    coordinator: Coordinator,
    running: u32,
    figures: Option<Arc<Mutex<CheckpointFigures>>>,
    error: Option<Error>,
}

impl MasterThread {
    /// Until the end of the job; whether a checkpoint stopped it.
    fn run(mut self, inbox: &Receiver<Event>, join: impl FnOnce() -> Vec<Error>) -> Result<bool> {
        while self.running > 0 || (self.is_well() && !self.coordinator.is_finished()) {
            let wait = self.tick();
            match inbox.recv_timeout(wait) {
                Ok(event) => self.note(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let mut stopped = false;
        let committed = self.is_well() && {
            let ended = self.guarded("committing", Coordinator::finish);
            stopped = ended == Some(true);
            ended.is_some()
        };
        self.control.signals.judge(committed);
        for error in join() {
            self.fail(error);
        }
        self.error.map_or(Ok(stopped), Err)
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Slot(event) => self.note_slot(event),
            Event::Stop(request) => _ = self.guarded("stopping", |c| c.stop(request)),
            Event::Savepoint(request) => _ = self.guarded("taking a savepoint", |c| c.savepoint(request)),
        }
        self.show_figures();
    }

    fn note_slot(&mut self, event: SlotEvent) {
        match event {
            SlotEvent::Tasks(news) => {
                for news in news {
                    if !self.is_well() {
                        return;
                    }
                    self.guarded("taking a checkpoint", |c| c.note(news));
                }
            }
            SlotEvent::Written { subtask, epoch, outcome } => {
                self.guarded("taking a checkpoint", |c| c.written(&subtask, epoch, outcome));
            }
            SlotEvent::Finished(_) | SlotEvent::Gone(_) => self.running = self.running.saturating_sub(1),
            SlotEvent::Trouble(error) => self.fail(error),
            SlotEvent::Failed(_, error) => {
                self.running = self.running.saturating_sub(1);
                self.fail(error);
            }
        }
    }

    /// Does what is due; how long nothing is.
    fn tick(&mut self) -> Duration {
        if !self.is_well() {
            return LONGEST_SLEEP;
        }
        let due = self.guarded("looking for splits or taking a checkpoint", Coordinator::tick);
        self.show_figures();
        due.flatten().map_or(LONGEST_SLEEP, |due| sleep(&*self.clock, due))
    }

    fn show_figures(&self) {
        if let Some((shown, figures)) = self.figures.as_ref().zip(self.coordinator.figures()) {
            let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            if *shown != *figures {
                shown.clone_from(figures);
            }
        }
    }

    /// Whether nothing has failed and nobody cancelled.
    fn is_well(&self) -> bool {
        self.error.is_none() && !self.control.is_cancelled()
    }

    /// Calls the coordinator; an error or a panic fails the job.
    fn guarded<T>(&mut self, phase: &str, call: impl FnOnce(&mut Coordinator) -> Result<T>) -> Option<T> {
        let result = catch_unwind(AssertUnwindSafe(|| call(&mut self.coordinator)));
        let result = result.unwrap_or_else(|panic| Err(panicked(phase, &*panic)));
        result.map_err(|error| self.fail(error)).ok()
    }

    /// Keeps the first error and stops everything.
    fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
        self.control.cancel();
    }
}
