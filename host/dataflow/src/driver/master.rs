//! The master of a job: carries out what the coordinator decides, and notes what the slots say.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};

use tidemill_core::ids::Epoch;
use tidemill_core::time::Timestamp;
use tidemill_core::{Error, Result};

use super::{Figures, JobControl, JobHandle, LONGEST_SLEEP, MasterEvent, Prologue, Readers, SlotEvent};
use super::{lock, panicked, sleep, spawn};
use crate::collect::Collector;
use crate::coordinate::{CheckpointFigures, Checkpoints, Coordinator};
use crate::job::{Ending, JobSpec, TaskStatus};
use crate::restore::RestoredJob;
use crate::signals::Signals;
use crate::slice::{enumerations, letters_tasks};
use crate::takeover::Takeover;

/// The half of a job that is there once, whatever its slots are and wherever.
///
/// It has neither a thread nor a queue of its own. Whoever drives it hands over what it is to hear ([`Master::note`]) and
/// calls [`Master::tick`] when something is due, until [`Master::is_over`]; then [`Master::conclude`]; and when nothing
/// runs any more, [`Master::end`]. Calls may block on the store and on connectors.
pub struct Master {
    job: String,
    tasks: Vec<TaskStatus>,
    restored: Option<RestoredJob>,
    control: JobControl,
    coordinator: Coordinator,
    /// Slots that have not ended.
    running: u32,
    /// Whether a checkpoint stopped it.
    stopped: bool,
    error: Option<Error>,
}

impl Master {
    /// Before anything runs. It speaks to the slots through `readers` and `signals`; what is said to it through its
    /// [`JobControl`] comes to `hear`, which hands it to [`Master::note`].
    pub fn new(
        spec: &JobSpec,
        prologue: Prologue,
        readers: &Readers,
        signals: Arc<Signals>,
        checkpoints: Option<Checkpoints>,
        hear: impl Fn(MasterEvent) + Send + Sync + 'static,
    ) -> Result<Self> {
        let Prologue { plan, start, tasks, committers, takeover } = prologue;
        let passed = takeover.as_ref().map_or(Epoch(0), Takeover::passed);
        let enumerations = enumerations(spec, &plan, &start, readers, takeover.as_ref())?;
        let letters = letters_tasks(&spec.name, &plan);
        let collector = Collector::new(&spec.name, spec.settings.max_parallelism, &tasks, letters);
        let clock = spec.clock.clone();
        let signalled = signals.clone();
        let coordinator = Coordinator::new(clock, enumerations, committers, collector, signalled, checkpoints, passed);
        let takes_checkpoints = coordinator.takes_checkpoints();
        let control = JobControl { signals, hear: Arc::new(hear), takes_checkpoints };
        let (running, restored) = (plan.slots(), start.from);
        Ok(Self { job: spec.name.clone(), tasks, restored, control, coordinator, running, stopped: false, error: None })
    }

    /// Ends the job before its input does.
    pub fn control(&self) -> JobControl {
        self.control.clone()
    }

    /// Figures of its checkpoints, if it takes any.
    pub fn figures(&self) -> Option<&CheckpointFigures> {
        self.coordinator.figures()
    }

    /// Hears something.
    pub fn note(&mut self, event: MasterEvent) {
        match event {
            MasterEvent::Slot(event) => self.note_slot(event),
            MasterEvent::Stop(request) => _ = self.guarded("stopping", |c| c.stop(request)),
            MasterEvent::Checkpoint(answer) => _ = self.guarded("taking a checkpoint", |c| c.checkpoint(answer)),
            MasterEvent::Savepoint(request) => _ = self.guarded("taking a savepoint", |c| c.savepoint(request)),
        }
    }

    /// Does what is due; when something is due next.
    pub fn tick(&mut self) -> Option<Timestamp> {
        if !self.is_well() {
            return None;
        }
        self.guarded("looking for splits or taking a checkpoint", Coordinator::tick).flatten()
    }

    /// Whether all slots have ended, and the last checkpoint is complete, if one is to be.
    pub fn is_over(&self) -> bool {
        self.running == 0 && (!self.is_well() || self.coordinator.is_finished())
    }

    /// It is over: commits what is left, and tells the slots what came of it.
    pub fn conclude(&mut self) {
        let committed = self.is_well() && {
            let ended = self.guarded("committing", Coordinator::finish);
            self.stopped = ended == Some(true);
            ended.is_some()
        };
        self.control.signals.judge(committed);
    }

    /// All slots are gone. `errors`: what went wrong after they were told.
    pub fn end(mut self, errors: Vec<Error>) -> Result<Ending> {
        errors.into_iter().for_each(|error| self.fail(error));
        if let Some(error) = self.error {
            return Err(error);
        }
        let signals = &self.control.signals;
        Ok(match (signals.is_cancelled(), self.stopped || signals.is_stopping()) {
            (true, _) => Ending::Cancelled,
            (false, true) => Ending::Stopped,
            (false, false) => Ending::Finished,
        })
    }

    /// Drives it on a thread of its own. `join` waits until all slots are gone, and gives the errors that they had at the
    /// very end.
    pub(super) fn start(
        self,
        spec: &JobSpec,
        inbox: Receiver<MasterEvent>,
        join: impl FnOnce() -> Vec<Error> + Send + 'static,
    ) -> Result<JobHandle> {
        let (job, tasks, restored) = (self.job.clone(), self.tasks.clone(), self.restored.clone());
        let (control, clock) = (self.control(), spec.clock.clone());
        let figures = self.figures().cloned().map(|figures| Arc::new(Mutex::new(figures)));
        let shown = figures.clone();
        let join = spawn(format!("{job}-master"), move || {
            let mut master = self;
            while !master.is_over() {
                let due = master.tick();
                master.show(shown.as_ref());
                match inbox.recv_timeout(due.map_or(LONGEST_SLEEP, |due| sleep(&*clock, due))) {
                    Ok(event) => master.note(event),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                master.show(shown.as_ref());
            }
            master.conclude();
            master.end(join())
        })?;
        Ok(JobHandle { job, tasks, restored, figures, control, join })
    }

    fn show(&self, shown: Option<&Figures>) {
        if let Some((shown, figures)) = shown.zip(self.figures()) {
            let mut shown = lock(shown);
            if *shown != *figures {
                shown.clone_from(figures);
            }
        }
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
