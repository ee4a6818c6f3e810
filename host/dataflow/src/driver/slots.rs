//! The slots of a job that are in this process: a thread for each, which steps its slice until that has come to its end
//! and parks while there is nothing to do; and one that writes what tasks froze, in the order of freezing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};

use tidemill_checkpoint::SnapshotWriter;
use tidemill_core::connector::Waker;
use tidemill_core::failpoint::Failpoint;
use tidemill_core::time::Clock;
use tidemill_core::{Error, Result};

use super::{LONGEST_SLEEP, Readers, SlotEvent, panicked, sleep, spawn};
use crate::job::{JobSpec, TaskStatus};
use crate::physical::PhysicalPlan;
use crate::restore::Start;
use crate::signals::Signals;
use crate::slice::{Assembly, Placement, Slice, Step, Wire};
use crate::snapshot::{TaskEvent, Unwritten};

/// Slots of a job, made and not yet running.
pub struct Slots {
    job: String,
    slots: Vec<(u32, Slice, Arc<Sleeper>)>,
    clock: Arc<dyn Clock>,
    readers: Readers,
    wires: Vec<Wire>,
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
        let Assembly { slices, readers, wires } = Assembly::new(spec, plan, &placement, &signals, tasks, start)?;
        let slots = slots.iter().copied().zip(slices).zip(sleepers).map(|((slot, slice), s)| (slot, slice, s));
        let (job, slots, clock) = (spec.name.clone(), slots.collect(), spec.clock.clone());
        Ok(Self { job, slots, clock, readers, wires, signals, writer })
    }

    /// Where the readers of their sources get their news.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// What is said to all of them.
    pub fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// The ends of queues that belong to slots of other processes. Once.
    pub fn take_wires(&mut self) -> Vec<Wire> {
        std::mem::take(&mut self.wires)
    }

    /// Starts their threads.
    pub fn start(self, events: impl Fn(SlotEvent) + Clone + Send + 'static) -> Result<RunningSlots> {
        let Self { job, slots, clock, readers: _, wires: _, signals, writer } = self;
        let (to_write, unwritten) = mpsc::channel();
        let says = events.clone();
        // It ends when the slots have, which drop the sender. Nobody has to wait for it: what it writes after the job's
        // end nobody refers to.
        spawn(format!("{job}-write"), move || write(&unwritten, writer.as_ref(), says))?;
        let mut joins = Vec::new();
        for (slot, slice, sleeper) in slots {
            let (clock, signals, events) = (clock.clone(), signals.clone(), events.clone());
            let thread = SlotThread {
                slot,
                slice,
                sleeper,
                clock,
                signals: signals.clone(),
                events,
                to_write: to_write.clone(),
            };
            let spawned = spawn(format!("{job}-slot-{slot}"), move || thread.run());
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

/// Steps a slice.
struct SlotThread<E> {
    slot: u32,
    slice: Slice,
    sleeper: Arc<Sleeper>,
    clock: Arc<dyn Clock>,
    signals: Arc<Signals>,
    events: E,
    to_write: Sender<Unwritten>,
}

impl<E: Fn(SlotEvent)> SlotThread<E> {
    fn run(mut self) -> Result<()> {
        _ = self.sleeper.0.set(thread::current());
        let outcome = catch_unwind(AssertUnwindSafe(|| self.step_to_the_end()))
            .unwrap_or_else(|panic| Err(panicked(&format!("slot {}", self.slot), &*panic)));
        let event = match outcome {
            Ok(true) => SlotEvent::Finished(self.slot),
            Ok(false) => SlotEvent::Gone(self.slot),
            Err(error) => SlotEvent::Failed(self.slot, error),
        };
        let finished = matches!(event, SlotEvent::Finished(_));
        (self.events)(event);
        if finished && self.wait_for_verdict() {
            return catch_unwind(AssertUnwindSafe(|| self.slice.committed()))
                .unwrap_or_else(|panic| Err(panicked(&format!("slot {}", self.slot), &*panic)));
        }
        Ok(())
    }

    /// Whether everything is committed.
    fn wait_for_verdict(&self) -> bool {
        loop {
            if let Some(verdict) = self.signals.verdict() {
                return verdict;
            }
            if self.signals.is_cancelled() {
                return false;
            }
            thread::park_timeout(LONGEST_SLEEP);
        }
    }

    /// Whether it came to its end (and was not cancelled).
    fn step_to_the_end(&mut self) -> Result<bool> {
        loop {
            if self.signals.is_cancelled() {
                return Ok(false);
            }
            let step = self.slice.step()?;
            let news = self.slice.take_events();
            self.tell(news);
            match step {
                Step::Progress => {}
                Step::Finished => return Ok(true),
                Step::Blocked | Step::IdleUntil(None) => thread::park_timeout(LONGEST_SLEEP),
                Step::IdleUntil(Some(at)) => thread::park_timeout(sleep(&*self.clock, at)),
            }
        }
    }

    fn tell(&self, mut news: Vec<TaskEvent>) {
        if news.is_empty() {
            return;
        }
        let unwritten: Vec<Unwritten> = news.iter_mut().filter_map(TaskEvent::take_unwritten).collect();
        // In this order: that something is written is said after what it belongs to.
        (self.events)(SlotEvent::Tasks(news));
        for unwritten in unwritten {
            if let Err(mpsc::SendError(Unwritten { subtask, epoch, .. })) = self.to_write.send(unwritten) {
                let outcome = Err(Error::internal("the thread that writes checkpoints has ended"));
                (self.events)(SlotEvent::Written { subtask, epoch, outcome });
            }
        }
    }
}

/// The writing thread.
fn write(unwritten: &Receiver<Unwritten>, writer: Option<&SnapshotWriter>, events: impl Fn(SlotEvent)) {
    while let Ok(unwritten) = unwritten.recv() {
        let (subtask, epoch) = (unwritten.subtask.clone(), unwritten.epoch);
        Failpoint::SnapshotDue.reach();
        let outcome = catch_unwind(AssertUnwindSafe(|| match writer {
            Some(writer) => unwritten.write(&*writer.files(epoch)),
            None => Err(Error::internal("a job without checkpoints takes one")),
        }));
        Failpoint::SnapshotWritten.reach();
        let outcome = outcome.unwrap_or_else(|panic| Err(panicked("writing a checkpoint", &*panic)));
        events(SlotEvent::Written { subtask, epoch, outcome });
    }
}
