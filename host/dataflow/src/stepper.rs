//! Runs a job on the caller's thread, one step at a time, in an order drawn from a seed.
//!
//! The same slices as in production, so a test that holds the clock and the sources in its hands sees the whole job.
//! Equal seeds give equal histories, as long as the connectors do not use threads of their own.

use std::collections::VecDeque;
use std::sync::Arc;

use tidemill_checkpoint::SnapshotWriter;
use tidemill_core::connector::Waker;
use tidemill_core::ids::Epoch;
use tidemill_core::keys::hash_fixed;
use tidemill_core::time::{Timestamp, Watermark};
use tidemill_core::{Error, Result};

use crate::collect::Collector;
use crate::coordinate::{CheckpointFigures, Checkpoints, Coordinator, SavepointRequest};
use crate::driver::Prologue;
use crate::job::{Ending, JobReport, JobSpec, TaskStatus};
use crate::signals::Signals;
use crate::slice::{Assembly, Placement, Slice, Step, enumerations, letters_tasks};
use crate::snapshot::Unwritten;

/// A job that is stepped by hand.
pub struct Stepper {
    spec: JobSpec,
    slices: Vec<Slice>,
    coordinator: Coordinator,
    tasks: Vec<TaskStatus>,
    signals: Arc<Signals>,
    writer: Option<SnapshotWriter>,
    random: u64,
    /// Which slot was stepped, and what it said: a digest of the history.
    history: u64,
    finished: bool,
    stopped: bool,
    /// What tasks froze and what is not written yet: in production, another thread writes it meanwhile.
    unwritten: VecDeque<Unwritten>,
}

/// Where a bounded number of steps led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Stepped {
    /// The steps are used up, and there may be more to do.
    More,
    /// Nothing moves without new input or a later time: this one, if any part waits for one.
    Idle(Option<Timestamp>),
}

impl Stepper {
    /// Makes the job's slices.
    pub fn new(spec: JobSpec, seed: u64) -> Result<Self> {
        Self::with_checkpoints(spec, seed, None)
    }

    /// As `new`, with checkpoints; goes on from what their owner restored.
    pub fn with_checkpoints(spec: JobSpec, seed: u64, mut checkpoints: Option<Checkpoints>) -> Result<Self> {
        let prologue = Prologue::of(&spec, checkpoints.as_mut(), false)?;
        let Prologue { plan, start, tasks, committers, .. } = prologue;
        let here: Vec<_> = (0..plan.slots()).map(|slot| (slot, Waker::new(|| ()))).collect();
        let signals = Arc::new(Signals::new(here.iter().map(|(_, waker)| waker.clone()).collect()));
        let placement = Placement { here, elsewhere: &|_| Waker::new(|| ()) };
        let Assembly { slices, readers, .. } = Assembly::new(&spec, &plan, &placement, &signals, &tasks, &start)?;
        let enumerations = enumerations(&spec, &plan, &start, &readers, None)?;
        let letters = letters_tasks(&spec.name, &plan);
        let collector = Collector::new(&spec.name, spec.settings.max_parallelism, &tasks, letters);
        let (clock, writer) = (spec.clock.clone(), checkpoints.as_ref().map(|c| c.owner.writer()));
        let (signalled, passed) = (signals.clone(), Epoch(0));
        let coordinator = Coordinator::new(clock, enumerations, committers, collector, signalled, checkpoints, passed);
        Ok(Self {
            spec,
            slices,
            coordinator,
            tasks,
            signals,
            writer,
            random: seed,
            history: 0,
            finished: false,
            stopped: false,
            unwritten: VecDeque::new(),
        })
    }

    /// Steps until nothing moves without new input or a later time. Answers that time, if any part waits for one.
    pub fn step_until_idle(&mut self) -> Result<Option<Timestamp>> {
        loop {
            if let Stepped::Idle(until) = self.step_some(usize::MAX)? {
                return Ok(until);
            }
        }
    }

    /// As `step_until_idle`, but takes so many steps at most. Between two calls, the job may be dropped: that is what its
    /// process's death at this point comes to.
    pub fn step_some(&mut self, mut steps: usize) -> Result<Stepped> {
        loop {
            let due = self.coordinator.tick()?;
            // Slots that have not said "nothing to do" since the last progress of any.
            let mut open: Vec<usize> = (0..self.slices.len()).collect();
            let (mut progressed, mut until) = (false, None);
            while !open.is_empty() {
                if steps == 0 {
                    return Ok(Stepped::More);
                }
                steps -= 1;
                self.write_some()?;
                let pick = self.draw(open.len());
                let Some(&slot) = open.get(pick) else { continue };
                match self.step(slot)? {
                    Step::Progress => {
                        progressed = true;
                        open = (0..self.slices.len()).collect();
                        continue;
                    }
                    Step::IdleUntil(at) => until = until.into_iter().chain(at).min(),
                    Step::Blocked | Step::Finished => {}
                }
                open.swap_remove(pick);
            }
            while self.write_next()? {
                progressed = true;
            }
            self.finish_if_all_did()?;
            let due_now = due.is_some_and(|due| due <= self.spec.clock.now());
            if self.finished {
                return Ok(Stepped::Idle(None));
            }
            if !progressed && !due_now {
                return Ok(Stepped::Idle(until.into_iter().chain(due).min()));
            }
        }
    }

    /// Event time came so far, whatever the rows say: sources, and what assigns event time behind them, raise their
    /// watermarks to it. It takes effect with the next steps. False: nothing in the job makes event time (any more).
    pub fn raise_watermark(&mut self, to: Watermark) -> Result<bool> {
        let mut any = false;
        for slice in &mut self.slices {
            any |= slice.raise_watermark(to)?;
        }
        Ok(any)
    }

    /// Whether everything ended and is committed.
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// Sources end where they are at their next step, and everything drains; if the job takes checkpoints, with one.
    pub fn stop(&mut self) -> Result<()> {
        if self.coordinator.takes_checkpoints() {
            return self.coordinator.stop(None);
        }
        self.signals.stop();
        Ok(())
    }

    /// Takes a savepoint (or stops with one) while steps go on.
    pub fn savepoint(&mut self, request: SavepointRequest, stops: bool) -> Result<()> {
        if stops { self.coordinator.stop(Some(request)) } else { self.coordinator.savepoint(request) }
    }

    /// Figures of the checkpoints, if the job takes any.
    pub fn checkpoints(&self) -> Option<&CheckpointFigures> {
        self.coordinator.figures()
    }

    /// Every subtask with its counters.
    pub fn tasks(&self) -> &[TaskStatus] {
        &self.tasks
    }

    /// A digest of which slot was stepped when and what it did: equal for equal histories.
    pub fn history(&self) -> u64 {
        self.history
    }

    /// What is to say at the end.
    pub fn report(&self) -> JobReport {
        let ending = if self.stopped || self.signals.is_stopping() { Ending::Stopped } else { Ending::Finished };
        JobReport { job: self.spec.name.clone(), ending, tasks: self.tasks.clone() }
    }

    fn step(&mut self, slot: usize) -> Result<Step> {
        let Some(slice) = self.slices.get_mut(slot) else { return Ok(Step::Finished) };
        let step = slice.step()?;
        for event in slice.take_events() {
            self.coordinator.note(event)?;
        }
        self.unwritten.extend(slice.take_unwritten());
        let code = match step {
            Step::Progress => 1,
            Step::Blocked => 2,
            Step::IdleUntil(_) => 3,
            Step::Finished => 4,
        };
        self.history = hash_fixed(self.history ^ ((slot as u64) << 8) ^ code);
        Ok(step)
    }

    /// Writes what is next, or lets it wait, by the seed.
    fn write_some(&mut self) -> Result<()> {
        while !self.unwritten.is_empty() && self.draw(4) == 0 {
            self.write_next()?;
        }
        Ok(())
    }

    /// Writes the oldest of what tasks froze; whether there was any.
    fn write_next(&mut self) -> Result<bool> {
        let Some(unwritten) = self.unwritten.pop_front() else { return Ok(false) };
        let (subtask, epoch) = (unwritten.subtask.clone(), unwritten.epoch);
        let writer = self.writer.as_ref().ok_or_else(|| Error::internal("a job without checkpoints takes one"))?;
        let outcome = unwritten.write(&*writer.files(epoch));
        self.coordinator.written(&subtask, epoch, outcome)?;
        Ok(true)
    }

    fn finish_if_all_did(&mut self) -> Result<()> {
        if self.finished || !self.slices.iter().all(Slice::has_finished) {
            return Ok(());
        }
        self.stopped = self.coordinator.finish()?;
        self.slices.iter_mut().try_for_each(Slice::committed)?;
        self.finished = true;
        Ok(())
    }

    fn draw(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_add(1);
        (hash_fixed(self.random) % below.max(1) as u64) as usize
    }
}
