//! A slice: the part of a job that one slot runs, a subtask of each operator, stepped cooperatively.
//!
//! Each cell (operator subtask) has an inbox of elements before it. A step runs the most downstream cell that has
//! something to do and room for what it emits; only when there is none does it look at the queues from other slots
//! and at its sources. So what is in flight is bounded by what one call emits, and since the last cell can always run,
//! slots that wait for each other's queues can't wait forever.
//!
//! Of these origins it takes the one that is most behind in event time. In turn, a slot that the system has kept from
//! running would mix the old rows of its source with the new ones that others have sent meanwhile, and stay behind:
//! measured, two slots drift apart by as much as their queue holds, and what keeps state by time (windows, sessions)
//! keeps that much more of it. Nothing waits for an origin that has nothing.
//!
//! A step never blocks and reads no clock but the injected one.
#![allow(
    clippy::indexing_slicing,
    reason = "cells and inboxes are made in pairs and never removed; this is the step loop"
)]

mod build;
mod cell;
mod overtake;
mod route;
mod sink;
mod source;

use std::sync::Arc;

use tidemill_core::Result;
use tidemill_core::connector::Committable;
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::{Epoch, SubtaskId};
use tidemill_core::memory::JobMemory;
use tidemill_core::snapshot::StateSnapshot;
use tidemill_core::time::{Clock, Timestamp, Watermark};

pub(crate) use build::hash_partitioner;
pub use build::{
    Assembly, Channel, CommitTarget, Committers, Placement, Wire, begin_sinks, committers, enumerations, letters_tasks,
    tasks,
};

use crate::element::{Element, Inbox};
use crate::exchange::queue::{Flush, QueueReceiver};
use crate::letters::Letters;
use crate::signals::Signals;
use crate::snapshot::{TaskEvent, TaskSnapshot, Unwritten};
use cell::{Cell, CellStep, Taken};
use source::SourceStep;

/// So long may rows wait in a busy slot until more go the same way to another process. The peers' default is 100.
const FLUSH_MS: i64 = 5;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Something: step again.
    Progress,
    /// Nothing, since a queue to another slot or a sink is full: step again when woken.
    Blocked,
    /// Nothing to do until woken, or until this time.
    IdleUntil(Option<Timestamp>),
    /// Everything ended, and sinks prepared what they wrote. `step` answers this from now on.
    Finished,
}

/// What was prepared, and who commits it.
#[derive(Debug)]
pub struct Prepared {
    /// Which committer.
    pub target: CommitTarget,
    /// What to commit.
    pub committables: Vec<Committable>,
}

/// One slot's part of a job.
pub struct Slice {
    cells: Vec<Cell>,
    /// Before the cell of the same index.
    inboxes: Vec<Inbox>,
    /// Queues from other slots and sources.
    origins: Vec<Origin>,
    turn: Turn,
    /// The origins that had nothing in this step.
    tried: Vec<usize>,
    /// Since when it stands still, and the cells whose receivers are full.
    stands_still: Option<(Timestamp, Vec<usize>)>,
    /// Of the queues to slots of other processes.
    flushes: Vec<Arc<Flush>>,
    /// When all of them were flushed.
    flushed: Timestamp,
    letters: Letters,
    /// The dead letters as a task of checkpoints.
    letters_task: Arc<SubtaskId>,
    clock: Arc<dyn Clock>,
    memory: Arc<JobMemory>,
    signals: Arc<Signals>,
    /// The latest checkpoint whose overtaking barriers all its cells have passed.
    overtaken: Epoch,
    /// What its tasks have to say.
    events: Vec<TaskEvent>,
    /// Of cells whose keyed state is still being copied: what else is to be written.
    copying: Vec<(usize, Unwritten)>,
    /// What its tasks froze, to be written.
    unwritten: Vec<Unwritten>,
    /// Whether its cells have said at which watermark they go on.
    announced: bool,
    finished: bool,
}

enum Origin {
    Queue { from: QueueReceiver, cell: usize, channel: u32 },
    Source { cell: usize },
}

/// Whose turn it is.
#[derive(Default)]
struct Turn {
    next: usize,
    /// Elements taken and polls.
    pulls: u32,
}

impl Turn {
    /// One pull of so many goes to an origin in turn, also where others are behind it: the watermark of one that always
    /// has rows may stand still for a reason of its own, such as a quiet split beside a busy one. More often would let a
    /// source with sparse rows run ahead of one with dense rows. A prime, so that it comes to each origin.
    const STRICT: u32 = 257;

    /// Goes on to the origin after `first`.
    fn pass(&mut self, first: usize, origins: usize) {
        self.next = (first + 1) % origins.max(1);
        self.pulls = self.pulls.wrapping_add(1);
    }

    fn is_strict(&self) -> bool {
        self.pulls.is_multiple_of(Self::STRICT)
    }
}

/// What a slice waits for.
#[derive(Default)]
struct Waits {
    blocked: bool,
    until: Option<Timestamp>,
}

impl Waits {
    fn until(&mut self, at: Option<Timestamp>) {
        self.until = self.until.into_iter().chain(at).min();
    }
}

impl Slice {
    /// Does a bounded piece of work.
    pub fn step(&mut self) -> Result<Step> {
        if let Some((since, cells)) = self.stands_still.take() {
            let ms = self.clock.now().0.saturating_sub(since.0);
            let ms = u64::try_from(ms).unwrap_or_default();
            cells.into_iter().for_each(|at| self.cells[at].metrics().backpressured_ms.add(ms));
        }
        let mut step = self.work()?;
        if self.copy_frozen()? {
            step = Step::Progress;
        }
        self.flush(step == Step::Progress);
        Ok(step)
    }

    /// Copies a part of what was frozen last, whatever else there is to do: who waits for nothing else is done soon, and
    /// who is busy goes on with that. Whether there was any.
    fn copy_frozen(&mut self) -> Result<bool> {
        let Some((at, _)) = self.copying.first() else { return Ok(false) };
        let at = *at;
        Failpoint::CopyDue.reach();
        let cell = &mut self.cells[at];
        if let Some(snapshot) = cell.copy_frozen().map_err(|e| e.at(cell.subtask(), "taking a checkpoint"))? {
            self.copied(at, snapshot);
        }
        Ok(true)
    }

    /// What a cell froze is copied, and can be written.
    fn copied(&mut self, at: usize, snapshot: Box<dyn StateSnapshot>) {
        if let Some(place) = self.copying.iter().position(|(cell, _)| *cell == at) {
            let (_, mut unwritten) = self.copying.remove(place);
            unwritten.keyed = Some(snapshot);
            self.unwritten.push(unwritten);
        }
    }

    /// Sends on what waits for a way to other processes: when it has waited long enough, or there is nothing else to do.
    fn flush(&mut self, busy: bool) {
        if self.flushes.is_empty() {
            return;
        }
        let now = self.clock.now();
        // A clock that is set back holds up nothing.
        if !busy || now < self.flushed || now.0.saturating_sub(self.flushed.0) >= FLUSH_MS {
            self.flushed = now;
            self.flushes.iter().for_each(|flush| flush.now());
        }
    }

    fn work(&mut self) -> Result<Step> {
        if self.finished {
            return Ok(Step::Finished);
        }
        let mut waits = Waits::default();
        if !std::mem::replace(&mut self.announced, true) {
            self.cells.iter_mut().try_for_each(|cell| cell.announce(&mut self.inboxes, &mut self.letters))?;
        }
        let overtaking = self.signals.overtaking();
        if overtaking > self.overtaken && self.overtake(overtaking, &mut waits)? {
            return Ok(Step::Progress);
        }
        if self.letters.is_full(self.letters.passed()) && self.letters.flush()? {
            return Ok(Step::Progress);
        }
        if self.run_timers(&mut waits)? || self.run_cells(&mut waits)? || self.pull(&mut waits)? {
            return Ok(Step::Progress);
        }
        if self.letters.flush()? {
            return Ok(Step::Progress);
        }
        if self.copying.is_empty() && self.cells.iter().all(Cell::has_ended) {
            let passed = self.cells.iter().map(Cell::passed).max().unwrap_or(self.letters.passed());
            // Whoever passed a barrier may have ended before others that ended without it: what these set aside belongs to
            // that checkpoint.
            self.letters_pass(passed)?;
            let epoch = Epoch(passed.0 + 1);
            let committables = self.letters.prepare(epoch)?;
            let prepared = Some(Prepared { target: CommitTarget::DeadLetters, committables });
            self.events.push(TaskEvent::Ended { subtask: self.letters_task.clone(), epoch, prepared });
            self.finished = true;
            return Ok(Step::Finished);
        }
        if waits.blocked {
            let full = (0..self.cells.len()).filter(|at| !self.cells[*at].has_ended() && self.is_full(*at));
            self.stands_still = Some((self.clock.now(), full.collect()));
        }
        Ok(match waits {
            Waits { until: None, blocked: true } => Step::Blocked,
            Waits { until, .. } => Step::IdleUntil(until),
        })
    }

    /// Whether it is at its end.
    pub fn has_finished(&self) -> bool {
        self.finished
    }

    /// Its dead letters as a task.
    pub fn letters_task(&self) -> Arc<SubtaskId> {
        self.letters_task.clone()
    }

    /// What its tasks had to say since the last call.
    pub fn take_events(&mut self) -> Vec<TaskEvent> {
        std::mem::take(&mut self.events)
    }

    /// What its tasks froze since the last call and have copied: to be written in this order.
    pub fn take_unwritten(&mut self) -> Vec<Unwritten> {
        std::mem::take(&mut self.unwritten)
    }

    /// Everything that was prepared is committed: tells the sources. The last call.
    pub fn committed(&mut self) -> Result<()> {
        self.cells.iter_mut().try_for_each(Cell::committed)
    }

    /// For tests: everything that makes event time came so far. Whether there is any such thing.
    pub fn raise_watermark(&mut self, to: Watermark) -> Result<bool> {
        let mut any = false;
        for cell in &mut self.cells {
            any |= cell.raise_watermark(to, &mut self.inboxes, &mut self.letters)?;
        }
        Ok(any)
    }

    /// Fires processing-time timers before anything else: they are late already.
    fn run_timers(&mut self, waits: &mut Waits) -> Result<bool> {
        let timers = self.cells.iter().filter_map(Cell::timer);
        let Some(first) = timers.min() else { return Ok(false) };
        let now = self.clock.now();
        if first > now {
            waits.until(Some(first));
            return Ok(false);
        }
        for at in (0..self.cells.len()).rev() {
            if self.cells[at].timer().is_none_or(|timer| timer > now) {
                continue;
            }
            if self.is_full(at) {
                waits.blocked = true;
                continue;
            }
            self.cells[at].on_timer(now, &mut self.inboxes, &mut self.letters)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn run_cells(&mut self, waits: &mut Waits) -> Result<bool> {
        for at in (0..self.cells.len()).rev() {
            let resumes = self.cells[at].is_pending();
            if !resumes && self.inboxes[at].is_empty() {
                continue;
            }
            if self.is_full(at) || !self.cells[at].is_ready()? {
                waits.blocked = true;
                continue;
            }
            if resumes {
                match self.cells[at].resume(&*self.clock, &mut self.inboxes, &mut self.letters)? {
                    CellStep::Ran => return Ok(true),
                    CellStep::Waits(until) => waits.until(Some(until)),
                }
            } else if let Some((channel, element)) = self.inboxes[at].pop() {
                self.take(at, channel, element)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A cell takes an element.
    fn take(&mut self, at: usize, channel: u32, element: Element) -> Result<()> {
        match self.cells[at].take(channel, element, &mut self.inboxes, &mut self.letters)? {
            Taken::Done => Ok(()),
            Taken::Aligning => {
                self.inboxes[at].block(channel);
                Ok(())
            }
            Taken::Realigning => {
                self.inboxes[at].unblock();
                self.inboxes[at].block(channel);
                Ok(())
            }
            Taken::Passed(snapshot) => {
                self.inboxes[at].unblock();
                self.passed(at, snapshot)
            }
            Taken::Ended(prepared) => self.ended(at, prepared),
        }
    }

    /// A cell passed a barrier.
    fn passed(&mut self, at: usize, snapshot: TaskSnapshot) -> Result<()> {
        let mut event = TaskEvent::Passed(snapshot);
        let unwritten = event.take_unwritten();
        self.events.push(event);
        if let Some(snapshot) = self.cells[at].take_copied() {
            self.copied(at, snapshot);
        }
        if self.cells[at].copies() {
            self.copying.extend(unwritten.map(|unwritten| (at, unwritten)));
        } else {
            self.unwritten.extend(unwritten);
        }
        self.pass_letters()
    }

    fn ended(&mut self, at: usize, prepared: Option<Prepared>) -> Result<()> {
        let cell = &self.cells[at];
        let epoch = Epoch(cell.passed().0 + 1);
        self.events.push(TaskEvent::Ended { subtask: cell.subtask().clone(), epoch, prepared });
        self.pass_letters()
    }

    /// The dead letters pass a barrier when every cell has passed it that did not end.
    fn pass_letters(&mut self) -> Result<()> {
        let running = self.cells.iter().filter(|cell| !cell.has_ended());
        running.map(Cell::passed).min().map_or(Ok(()), |epoch| self.letters_pass(epoch))
    }

    /// The dead letters pass this barrier, if they did not yet.
    fn letters_pass(&mut self, epoch: Epoch) -> Result<()> {
        if epoch <= self.letters.passed() {
            return Ok(());
        }
        let committables = self.letters.prepare(epoch)?;
        let mut snapshot = TaskSnapshot::new(self.letters_task.clone(), epoch, Watermark::MIN);
        snapshot.prepared = Some(Prepared { target: CommitTarget::DeadLetters, committables });
        snapshot.sink = self.letters.snapshot()?;
        self.events.push(TaskEvent::Passed(snapshot));
        Ok(())
    }

    /// Takes one element from another slot, or polls sources until one has something.
    fn pull(&mut self, waits: &mut Waits) -> Result<bool> {
        if self.read_news()? {
            return Ok(true);
        }
        self.tried.clear();
        while let Some(at) = self.choose(waits) {
            match &self.origins[at] {
                Origin::Queue { from, cell, channel } => {
                    if let Some(element) = from.pop() {
                        self.inboxes[*cell].push(*channel, element);
                        return Ok(true);
                    }
                }
                Origin::Source { cell } => {
                    let (cell, stopping) = (*cell, self.signals.is_stopping());
                    match self.cells[cell].poll(stopping, &*self.clock, &mut self.inboxes, &mut self.letters)? {
                        SourceStep::Emitted => return Ok(true),
                        SourceStep::Ended => {
                            self.ended(cell, None)?;
                            return Ok(true);
                        }
                        SourceStep::Pending(until) => waits.until(until),
                    }
                }
            }
            self.tried.push(at);
        }
        Ok(false)
    }

    /// Whether a source had a barrier among its news: it is passed at once, whoever's turn it is.
    fn read_news(&mut self) -> Result<bool> {
        for at in 0..self.origins.len() {
            let Origin::Source { cell } = self.origins[at] else { continue };
            if self.cells[cell].has_ended() {
                continue;
            }
            if let Some(passed) = self.cells[cell].news(&*self.clock, &mut self.inboxes, &mut self.letters)? {
                self.passed(cell, passed)?;
                if self.cells[cell].has_ended() {
                    self.ended(cell, None)?;
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Of the origins that may be taken from: the one in turn, if nothing is known of its event time, and otherwise the
    /// one that is most behind of those of which something is known.
    fn choose(&mut self, waits: &mut Waits) -> Option<usize> {
        let origins = self.origins.len();
        let (mut first, mut best) = (None, None);
        for at in (self.turn.next..origins).chain(0..self.turn.next) {
            if self.tried.contains(&at) || !self.has_something(at, waits) {
                continue;
            }
            let time = self.event_time(at);
            if first.is_none() {
                first = Some(at);
                if time.is_none() || self.turn.is_strict() {
                    best = Some((at, Watermark::MIN));
                    break;
                }
            }
            // Of equal ones, the one whose turn comes first.
            if let Some(time) = time.filter(|time| best.is_none_or(|(_, least)| *time < least)) {
                best = Some((at, time));
            }
        }
        self.turn.pass(first?, origins);
        best.map(|(at, _)| at)
    }

    /// Whether an origin may be taken from and has something, as far as one can see.
    fn has_something(&self, at: usize, waits: &mut Waits) -> bool {
        match &self.origins[at] {
            // A cell that can't run keeps its inbox: what waits for it stays in the queue and is counted there.
            Origin::Queue { from, cell, channel } => {
                !from.is_empty()
                    && self.inboxes[*cell].is_empty()
                    && !self.cells[*cell].is_pending()
                    && !self.inboxes[*cell].is_blocked(*channel)
            }
            Origin::Source { cell } => {
                if self.cells[*cell].has_ended() {
                    return false;
                }
                let is_full = self.is_full(*cell);
                waits.blocked |= is_full;
                !is_full
            }
        }
    }

    /// How far an origin has come; none: nothing is known.
    fn event_time(&self, at: usize) -> Option<Watermark> {
        let time = match &self.origins[at] {
            Origin::Queue { cell, channel, .. } => self.cells[*cell].channel_watermark(*channel),
            Origin::Source { cell } => self.cells[*cell].source_watermark(),
        };
        Some(time).filter(|time| *time > Watermark::MIN)
    }

    fn is_full(&self, cell: usize) -> bool {
        let cell = &self.cells[cell];
        self.letters.is_full(cell.passed()) || cell.is_full(&self.inboxes)
    }
}
