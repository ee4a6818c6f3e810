//! The slots of a job that are in this process: a thread for each, which steps its slice until that has come to its end
//! and parks while there is nothing to do; and one that writes what tasks froze, in the order of freezing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::{self, JoinHandle, Thread};

use tidemill_checkpoint::SnapshotWriter;
use tidemill_core::connector::Waker;
use tidemill_core::failpoint::Failpoint;
use tidemill_core::time::{Clock, Timestamp};
use tidemill_core::{Error, Result};

use super::{LONGEST_SLEEP, Readers, SlotEvent, panicked, sleep, spawn};
use crate::exchange::queue::QueueGauge;
use crate::job::{JobSpec, TaskStatus};
use crate::physical::PhysicalPlan;
use crate::restore::Start;
use crate::signals::Signals;
use crate::slice::{Assembly, Placement, Slice, Step, Wire};
use crate::snapshot::Unwritten;

/// Slots of a job, made and not yet running.
pub struct Slots {
    job: String,
    slots: Vec<(u32, Slice, Arc<Sleeper>)>,
    clock: Arc<dyn Clock>,
    readers: Readers,
    wires: Vec<Wire>,
    queues: Vec<QueueGauge>,
    signals: Arc<Signals>,
    writer: Option<SnapshotWriter>,
}

impl Slots {
    /// Makes these slots of a job. `elsewhere`: what wakes whoever has the other end of a queue to or from a slot of
    /// another process. `writer`: where what tasks freeze is written, if checkpoints are taken.
    pub fn open(
        spec: &JobSpec,
        plan: &PhysicalPlan,
        tasks: &[TaskStatus],
        start: &Start,
        slots: &[u32],
        elsewhere: &dyn Fn(u32) -> Waker,
        writer: Option<SnapshotWriter>,
    ) -> Result<Self> {
        let sleepers: Vec<Arc<Sleeper>> = slots.iter().map(|_| Arc::default()).collect();
        let wakers: Vec<Waker> = sleepers.iter().map(|sleeper| waker(sleeper.clone())).collect();
        let here = slots.iter().copied().zip(wakers.iter().cloned()).collect();
        let signals = Arc::new(Signals::new(wakers));
        let placement = Placement { here, elsewhere };
        let assembly = Assembly::new(spec, plan, &placement, &signals, tasks, start)?;
        let Assembly { slices, readers, wires, queues } = assembly;
        let slots = slots.iter().copied().zip(slices).zip(sleepers).map(|((slot, slice), s)| (slot, slice, s));
        let (job, slots, clock) = (spec.name.clone(), slots.collect(), spec.clock.clone());
        Ok(Self { job, slots, clock, readers, wires, queues, signals, writer })
    }

    /// Where the readers of their sources get their news.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// What is said to all of them.
    pub fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// What shows how much stands in their queues.
    pub fn queues(&self) -> &[QueueGauge] {
        &self.queues
    }

    /// The ends of queues that belong to slots of other processes. Once.
    pub fn take_wires(&mut self) -> Vec<Wire> {
        std::mem::take(&mut self.wires)
    }

    /// Hands them out, to be stepped by the caller, and what writes what they freeze. What they say goes to `events`,
    /// what they freeze to `freeze`, to be written in this order.
    pub fn by_hand<E, F>(self, events: E, freeze: F) -> (Vec<Slot<E, F>>, SlotWriter)
    where
        E: Fn(SlotEvent) + Clone,
        F: Fn(Unwritten) + Clone,
    {
        let Self { slots, signals, writer, .. } = self;
        let slot = |(number, slice, _)| Slot {
            number,
            slice,
            signals: signals.clone(),
            events: events.clone(),
            freeze: freeze.clone(),
            stage: Stage::Running,
        };
        (slots.into_iter().map(slot).collect(), SlotWriter(writer))
    }

    /// Starts their threads.
    pub fn start(self, events: impl Fn(SlotEvent) + Clone + Send + 'static) -> Result<RunningSlots> {
        let (job, clock, signals) = (self.job.clone(), self.clock.clone(), self.signals.clone());
        let sleepers: Vec<Arc<Sleeper>> = self.slots.iter().map(|(_, _, sleeper)| sleeper.clone()).collect();
        let (to_write, unwritten) = mpsc::channel();
        let says = events.clone();
        let freeze = move |unwritten| {
            if let Err(mpsc::SendError(Unwritten { subtask, epoch, .. })) = to_write.send(unwritten) {
                let outcome = Err(Error::internal("the thread that writes checkpoints has ended"));
                says(SlotEvent::Written { subtask, epoch, outcome });
            }
        };
        let (slots, writer) = self.by_hand(events.clone(), freeze);
        // It ends when the slots have, which drop the sender. Nobody has to wait for it: what it writes after the job's
        // end nobody refers to.
        spawn(format!("{job}-write"), move || unwritten.iter().for_each(|unwritten| events(writer.write(unwritten))))?;
        let mut joins = Vec::new();
        for (slot, sleeper) in slots.into_iter().zip(sleepers) {
            let clock = clock.clone();
            let spawned = spawn(format!("{job}-slot-{}", slot.number), move || slot.run(&sleeper, &*clock));
            joins.push(spawned.inspect_err(|_| signals.cancel())?);
        }
        Ok(RunningSlots { joins })
    }
}

/// The threads of slots.
pub struct RunningSlots {
    joins: Vec<JoinHandle<Result<()>>>,
}

impl RunningSlots {
    /// Waits for their end: after their verdict, or a cancellation. The errors that came after the verdict.
    pub fn join(self) -> Vec<Error> {
        let ended = self.joins.into_iter().map(|join| join.join());
        let ended = ended.map(|outcome| outcome.unwrap_or_else(|panic| Err(panicked("a slot", &*panic))));
        ended.filter_map(Result::err).collect()
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

/// A slot that runs: steps its slice, says what that says, and waits at the end for what came of it.
pub struct Slot<E, F> {
    number: u32,
    slice: Slice,
    signals: Arc<Signals>,
    events: E,
    freeze: F,
    stage: Stage,
}

/// Where a slot is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// It came to its end. Whether everything is committed will be said.
    Finished,
    Over,
}

/// What is to be done with a slot after a step.
#[derive(Debug)]
#[must_use]
pub enum SlotStep {
    /// Step it again.
    Again,
    /// Step it again when it is woken, or at this time.
    Wait(Option<Timestamp>),
    /// Nothing any more. An error came after it was told that everything is committed.
    Over(Result<()>),
}

impl<E: Fn(SlotEvent), F: Fn(Unwritten)> Slot<E, F> {
    /// Which slot of the job.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Does a bounded piece of work.
    pub fn step(&mut self) -> SlotStep {
        match self.stage {
            Stage::Running if self.signals.is_cancelled() => self.end(SlotEvent::Gone(self.number)),
            Stage::Running => match self.guarded(Self::step_slice) {
                Ok(Step::Progress) => SlotStep::Again,
                Ok(Step::Blocked) => SlotStep::Wait(None),
                Ok(Step::IdleUntil(until)) => SlotStep::Wait(until),
                Ok(Step::Finished) => {
                    self.stage = Stage::Finished;
                    (self.events)(SlotEvent::Finished(self.number));
                    SlotStep::Again
                }
                Err(error) => self.end(SlotEvent::Failed(self.number, error)),
            },
            Stage::Finished => match self.signals.verdict() {
                Some(true) => {
                    self.stage = Stage::Over;
                    SlotStep::Over(self.guarded(|slot| slot.slice.committed()))
                }
                None if !self.signals.is_cancelled() => SlotStep::Wait(None),
                Some(false) | None => {
                    self.stage = Stage::Over;
                    SlotStep::Over(Ok(()))
                }
            },
            Stage::Over => SlotStep::Over(Ok(())),
        }
    }

    /// Steps it to its end.
    fn run(mut self, sleeper: &Sleeper, clock: &dyn Clock) -> Result<()> {
        _ = sleeper.0.set(thread::current());
        loop {
            match self.step() {
                SlotStep::Again => {}
                SlotStep::Wait(until) => thread::park_timeout(until.map_or(LONGEST_SLEEP, |at| sleep(clock, at))),
                SlotStep::Over(outcome) => return outcome,
            }
        }
    }

    fn end(&mut self, how: SlotEvent) -> SlotStep {
        self.stage = Stage::Over;
        (self.events)(how);
        SlotStep::Over(Ok(()))
    }

    fn step_slice(&mut self) -> Result<Step> {
        let step = self.slice.step()?;
        let news = self.slice.take_events();
        // In this order: that something is written is said after what it belongs to.
        if !news.is_empty() {
            (self.events)(SlotEvent::Tasks(news));
        }
        self.slice.take_unwritten().into_iter().for_each(&self.freeze);
        Ok(step)
    }

    fn guarded<T>(&mut self, call: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outcome = catch_unwind(AssertUnwindSafe(|| call(self)));
        outcome.unwrap_or_else(|panic| Err(panicked(&format!("slot {}", self.number), &*panic)))
    }
}

/// Writes what slots froze.
pub struct SlotWriter(Option<SnapshotWriter>);

impl SlotWriter {
    /// Writes it, and gives what is to be said of that. May block.
    pub fn write(&self, unwritten: Unwritten) -> SlotEvent {
        let (subtask, epoch) = (unwritten.subtask.clone(), unwritten.epoch);
        Failpoint::SnapshotDue.reach();
        let outcome = catch_unwind(AssertUnwindSafe(|| match &self.0 {
            Some(writer) => unwritten.write(&*writer.files(epoch)).inspect(|written| {
                writer.written((subtask.node.0, subtask.index.0), epoch, written.files());
            }),
            None => Err(Error::internal("a job without checkpoints takes one")),
        }));
        Failpoint::SnapshotWritten.reach();
        let outcome = outcome.unwrap_or_else(|panic| Err(panicked("writing a checkpoint", &*panic)));
        SlotEvent::Written { subtask, epoch, outcome }
    }
}
