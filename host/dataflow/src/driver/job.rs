//! The job's thread: carries out what the coordinator decides, and notes what the slots say.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidemill_core::failpoint::Failpoint;
use tidemill_core::snapshot::SnapshotFiles;
use tidemill_core::time::Clock;
use tidemill_core::{Error, Result};

use super::slot::Slot;
use super::{Event, JobControl, LONGEST_SLEEP, panicked, sleep, spawn};
use crate::collect::Unwritten;
use crate::coordinate::{CheckpointFigures, Coordinator};
use crate::job::JobSpec;

/// What the writing thread gets: what to write, and where.
type ToWrite = (Unwritten, Arc<dyn SnapshotFiles>);

pub(super) struct JobThread {
    clock: Arc<dyn Clock>,
    control: JobControl,
    coordinator: Coordinator,
    running: usize,
    writer: Sender<ToWrite>,
    figures: Option<Arc<Mutex<CheckpointFigures>>>,
    error: Option<Error>,
}

impl JobThread {
    /// For so many slots. `events` is where the writing thread answers.
    pub(super) fn new(
        spec: &JobSpec,
        control: JobControl,
        coordinator: Coordinator,
        slots: usize,
        events: Sender<Event>,
        figures: Option<Arc<Mutex<CheckpointFigures>>>,
    ) -> Result<Self> {
        let (writer, to_write) = mpsc::channel();
        // It ends when this thread does, which drops the sender. Nobody has to wait for it: what it writes after the
        // job's end nobody refers to.
        spawn(format!("{}-write", spec.name), move || write(&to_write, &events))?;
        Ok(Self { clock: spec.clock.clone(), control, coordinator, running: slots, writer, figures, error: None })
    }

    /// Until the end of the job; whether a checkpoint stopped it.
    pub(super) fn run(mut self, inbox: &Receiver<Event>, slots: Vec<Slot>) -> Result<bool> {
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
        for slot in slots {
            _ = slot.verdicts.send(committed);
            if let Err(panic) = slot.join.join() {
                self.fail(panicked("a slot", &*panic));
            }
        }
        while let Ok(event) = inbox.try_recv() {
            if let Event::Failed(error) = event {
                self.fail(error);
            }
        }
        self.error.map_or(Ok(stopped), Err)
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Tasks(news) => {
                for news in news {
                    if !self.is_well() {
                        return;
                    }
                    if let Some(Some(unwritten)) = self.guarded("taking a checkpoint", |c| c.note(news)) {
                        self.write(unwritten);
                    }
                }
            }
            Event::Written { task, epoch, outcome } => {
                self.guarded("taking a checkpoint", |c| c.written(task, epoch, outcome));
            }
            Event::Stop(request) => _ = self.guarded("stopping", |c| c.stop(request)),
            Event::Savepoint(request) => _ = self.guarded("taking a savepoint", |c| c.savepoint(request)),
            Event::Finished | Event::Gone => self.running = self.running.saturating_sub(1),
            Event::Failed(error) => {
                self.running = self.running.saturating_sub(1);
                self.fail(error);
            }
        }
        self.show_figures();
    }

    fn write(&mut self, unwritten: Unwritten) {
        if let Some(files) = self.guarded("taking a checkpoint", |c| c.files(unwritten.epoch))
            && self.writer.send((unwritten, files)).is_err()
        {
            self.fail(Error::internal("the thread that writes checkpoints has ended"));
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

/// The writing thread: writes what tasks froze, in the order of freezing.
fn write(to_write: &Receiver<ToWrite>, events: &Sender<Event>) {
    while let Ok((unwritten, files)) = to_write.recv() {
        let (task, epoch) = (unwritten.task, unwritten.epoch);
        Failpoint::SnapshotDue.reach();
        let outcome = catch_unwind(AssertUnwindSafe(|| unwritten.write(&*files)));
        Failpoint::SnapshotWritten.reach();
        let outcome = outcome.unwrap_or_else(|panic| Err(panicked("writing a checkpoint", &*panic)));
        if events.send(Event::Written { task, epoch, outcome }).is_err() {
            return;
        }
    }
}
