//! A cell: one operator subtask in its slice, with what it knows of its channels.
//!
//! A channel is one sender of one input. The operator's watermark is the minimum over its channels, without those that
//! are idle or at their end; only when all are at their end is the operator's watermark [`Watermark::MAX`], so an idle
//! channel beside an ended one does not end the stream.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::{Epoch, InputIndex, Port, SubtaskId};
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::operator::{Operator, Output, Progress};
use tidemill_core::snapshot::StateSnapshot;
use tidemill_core::time::{Clock, RisingWatermark, Timestamp, Watermark, WatermarkMerge};
use tidemill_core::{Batch, Error, Result};

use super::Prepared;
use super::route::{Emitter, Routes};
use super::sink::SinkCell;
use super::source::{SourceCell, SourceSnapshot, SourceStep, set_malformed_aside};
use crate::element::{Barrier, Element, Inbox};
use crate::event_time::EventTimeReader;
use crate::in_flight::{ChannelId, Overtaken};
use crate::letters::Letters;
use crate::record::RecordText;
use crate::snapshot::TaskSnapshot;

/// What a cell does with its elements.
pub enum Work {
    Source(SourceCell),
    Operator(Box<dyn Operator>),
    Assign(AssignCell),
    Sink(SinkCell),
}

/// Event time assigned in the middle of a stream.
pub struct AssignCell {
    pub reader: EventTimeReader,
    pub text: RecordText,
    pub clock: Arc<dyn Clock>,
    pub watermark: RisingWatermark,
    pub last_row: Timestamp,
    pub idle: bool,
}

/// What `resume` came to.
pub enum CellStep {
    Ran,
    Waits(Timestamp),
}

/// What taking an element came to.
pub enum Taken {
    Done,
    /// It was a barrier which other channels still owe: nothing more of this channel until they have brought it.
    Aligning,
    /// The same; what had been held for an earlier barrier, of a checkpoint that was given up, is held no more.
    Realigning,
    /// It passed the barrier.
    Passed(TaskSnapshot),
    /// All channels ended. A sink gives what it wrote since the last barrier.
    Ended(Option<Prepared>),
}

enum State {
    Running,
    /// In the middle of a call. After it, the watermark is handed on, and then that all channels are idle.
    Pending {
        watermark: Option<Watermark>,
        goes_idle: bool,
        wait: Option<Timestamp>,
    },
    Ended,
}

pub struct Cell {
    subtask: Arc<SubtaskId>,
    metrics: Arc<TaskMetrics>,
    work: Work,
    routes: Routes,
    channels: Channels,
    /// Who they are.
    ids: Vec<ChannelId>,
    state: State,
    timer: Option<Timestamp>,
    watermark: Watermark,
    /// The checkpoint whose barrier it passed last.
    passed: Epoch,
    /// Some of what its operator froze then may still have to be copied.
    copies: bool,
    /// What it had frozen at the barrier before, if that was not copied when the latest came.
    copied: Option<Box<dyn StateSnapshot>>,
    /// During a call that is finished for a barrier that overtakes: how much it may still emit past full receivers.
    past_full: Option<usize>,
    /// What is left of that for the checkpoint that it was finished for last.
    finishing: (Epoch, usize),
}

impl Cell {
    /// What the call in hand may emit past full receivers, for a barrier that overtakes to be passed: for each
    /// checkpoint, and in memory meanwhile, so it is about what the queues of a job hold, and enough for what windows
    /// of some 100,000 keys have to say at once. A call that has more to say holds its checkpoint up, as one record does
    /// in Flink, until those after it have taken some.
    const FINISH_BYTES: usize = 16 << 20;

    /// `passed` and `watermark`: the checkpoint from which it goes on, and its watermark in it.
    pub fn new(
        subtask: Arc<SubtaskId>,
        metrics: Arc<TaskMetrics>,
        work: Work,
        routes: Routes,
        ids: Vec<ChannelId>,
        (passed, watermark): (Epoch, Watermark),
    ) -> Self {
        let mut cell = Self {
            subtask,
            metrics,
            work,
            routes,
            channels: Channels::new(ids.iter().map(|id| id.input).collect(), watermark),
            ids,
            state: State::Running,
            timer: None,
            watermark,
            passed,
            copies: false,
            copied: None,
            past_full: None,
            finishing: (passed, 0),
        };
        cell.look_for_timer();
        cell
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    pub fn is_pending(&self) -> bool {
        matches!(self.state, State::Pending { .. })
    }

    pub fn is_full(&self, inboxes: &[Inbox]) -> bool {
        self.routes.is_full(inboxes)
    }

    pub fn metrics(&self) -> &TaskMetrics {
        &self.metrics
    }

    pub fn subtask(&self) -> &Arc<SubtaskId> {
        &self.subtask
    }

    /// The checkpoint whose barrier it passed last.
    pub fn passed(&self) -> Epoch {
        self.passed
    }

    /// When it wants `on_timer`.
    pub fn timer(&self) -> Option<Timestamp> {
        self.timer.filter(|_| matches!(self.state, State::Running))
    }

    /// Whether its barriers come to it by its news, and not by channels.
    pub fn is_source(&self) -> bool {
        matches!(self.work, Work::Source(_))
    }

    /// Its channels, by number.
    pub fn channels(&self) -> &[ChannelId] {
        &self.ids
    }

    /// Whether a channel has neither brought the barrier of this checkpoint nor ended.
    pub fn owes(&self, channel: u32, epoch: Epoch) -> bool {
        self.channels.owes(channel as usize, epoch)
    }

    /// Sinks: whether there is room.
    pub fn is_ready(&mut self) -> Result<bool> {
        match &mut self.work {
            Work::Sink(sink) => sink.is_ready().map_err(|e| e.at(&self.subtask, "writing")),
            _ => Ok(true),
        }
    }

    pub fn committed(&mut self) -> Result<()> {
        match &mut self.work {
            Work::Source(source) => source.committed().map_err(|e| e.at(&self.subtask, "acknowledging")),
            _ => Ok(()),
        }
    }

    /// How far a channel has come in event time.
    pub fn channel_watermark(&self, channel: u32) -> Watermark {
        self.channels.merge.of(channel as usize)
    }

    /// Sources: how far it has come in event time, if it makes any.
    pub fn source_watermark(&self) -> Watermark {
        match &self.work {
            Work::Source(source) => source.watermark(),
            _ => Watermark::MIN,
        }
    }

    /// Sources.
    pub fn poll(
        &mut self,
        stopping: bool,
        clock: &dyn Clock,
        inboxes: &mut [Inbox],
        letters: &mut Letters,
    ) -> Result<SourceStep> {
        let Self { work: Work::Source(source), routes, subtask, metrics, state, passed, .. } = self else {
            return Ok(SourceStep::Pending(None));
        };
        let mut out =
            Emitter { routes, inboxes, letters, subtask, metrics, passed: *passed, emitted: false, past_full: None };
        let step = source.poll(stopping, clock, &mut out).map_err(|e| e.at(subtask, "reading"))?;
        if matches!(step, SourceStep::Ended) {
            *state = State::Ended;
        }
        Ok(step)
    }

    /// Says to those after it at which watermark it goes on: they know only their own, which may be that of others.
    pub fn announce(&mut self, inboxes: &mut [Inbox], letters: &mut Letters) -> Result<()> {
        let is_source = matches!(self.work, Work::Source(_));
        if is_source || self.watermark == Watermark::MIN || self.watermark == Watermark::MAX {
            return Ok(());
        }
        self.control(&Element::Watermark(self.watermark), inboxes, letters)
    }

    /// Sources: reads the news; a barrier among them is passed at once, also where nothing else could be emitted.
    pub fn news(
        &mut self,
        clock: &dyn Clock,
        inboxes: &mut [Inbox],
        letters: &mut Letters,
    ) -> Result<Option<TaskSnapshot>> {
        let Work::Source(source) = &mut self.work else { return Ok(None) };
        let barrier = source.read_news(clock).map_err(|e| e.at(&self.subtask, "reading"))?;
        barrier.map(|barrier| self.pass(barrier, inboxes, letters)).transpose()
    }

    /// Passes a barrier: hands it on, and freezes what it keeps.
    fn pass(&mut self, barrier: Barrier, inboxes: &mut [Inbox], letters: &mut Letters) -> Result<TaskSnapshot> {
        self.control(&Element::Barrier(barrier), inboxes, letters)?;
        self.passed = barrier.epoch;
        Failpoint::FreezeDue.reach();
        let snapshot = self.freeze(barrier).map_err(|e| e.at(&self.subtask, "taking a checkpoint"))?;
        Failpoint::FreezeDone.reach();
        if barrier.stops && matches!(self.work, Work::Source(_)) {
            self.control(&Element::End, inboxes, letters)?;
            self.state = State::Ended;
        }
        Ok(snapshot)
    }

    fn freeze(&mut self, barrier: Barrier) -> Result<TaskSnapshot> {
        // Of a checkpoint that was given up; but that it is written is waited for.
        while self.copies {
            self.copied = self.copy_frozen()?;
        }
        let mut snapshot = TaskSnapshot::new(self.subtask.clone(), barrier.epoch, self.watermark);
        match &mut self.work {
            Work::Source(source) => {
                let SourceSnapshot { splits, watermark } = source.snapshot(barrier.epoch)?;
                (snapshot.splits, snapshot.watermark) = (splits, watermark);
            }
            Work::Operator(operator) => {
                self.copies = operator.freeze(barrier.kind)?;
                snapshot.freeze(self.copies, operator.snapshot_unkeyed(barrier.kind)?);
            }
            Work::Assign(assign) => snapshot.watermark = assign.watermark.get(),
            Work::Sink(sink) => {
                snapshot.prepared = Some(sink.prepare(barrier.epoch)?);
                snapshot.sink = sink.snapshot()?;
            }
        }
        Ok(snapshot)
    }

    /// Whether keyed state that was frozen at the latest barrier has to be copied.
    pub fn copies(&self) -> bool {
        self.copies
    }

    /// Copies a bounded part of it. `Some`: that was all.
    pub fn copy_frozen(&mut self) -> Result<Option<Box<dyn StateSnapshot>>> {
        let Work::Operator(operator) = &mut self.work else { return Ok(None) };
        let snapshot = operator.copy_frozen()?;
        self.copies = snapshot.is_none();
        Ok(snapshot)
    }

    /// What it had frozen at the barrier before the latest, if that was copied only then.
    pub fn take_copied(&mut self) -> Option<Box<dyn StateSnapshot>> {
        self.copied.take()
    }

    /// Passes a barrier before what stands before it: `in_flight`. Not in the middle of a call.
    pub fn overtake(
        &mut self,
        barrier: Barrier,
        in_flight: Overtaken,
        inboxes: &mut [Inbox],
        letters: &mut Letters,
    ) -> Result<TaskSnapshot> {
        self.channels.aligning = None;
        let mut snapshot = self.pass(barrier, inboxes, letters)?;
        snapshot.freeze_in_flight(in_flight);
        Failpoint::OvertakeDone.reach();
        Ok(snapshot)
    }

    /// As `resume`, also where receivers are full, so that the barrier of this checkpoint can be passed. `None`: it has
    /// used up what it may emit so.
    pub fn finish(
        &mut self,
        epoch: Epoch,
        clock: &dyn Clock,
        inboxes: &mut [Inbox],
        letters: &mut Letters,
    ) -> Result<Option<CellStep>> {
        if self.finishing.0 != epoch {
            self.finishing = (epoch, Self::FINISH_BYTES);
        }
        if self.finishing.1 == 0 {
            return Ok(None);
        }
        self.past_full = Some(self.finishing.1);
        let step = self.resume(clock, inboxes, letters);
        self.finishing.1 = self.past_full.take().unwrap_or(0);
        step.map(Some)
    }

    /// Takes an element of a channel.
    pub fn take(
        &mut self,
        channel: u32,
        element: Element,
        inboxes: &mut [Inbox],
        letters: &mut Letters,
    ) -> Result<Taken> {
        if let Element::Barrier(barrier) = &element
            && (barrier.epoch <= self.passed || self.channels.waits_for_later(barrier.epoch))
        {
            // Of a checkpoint that was given up.
            return Ok(Taken::Done);
        }
        let change = self.channels.note(channel as usize, &element);
        if change.idle == Some(false) {
            self.idle(false, inboxes, letters)?;
        }
        match element {
            Element::Batch(batch) => {
                let input = self.channels.input(channel as usize)?;
                self.metrics.records_in.add(batch.rows() as u64);
                self.metrics.batches_in.add(1);
                self.metrics.bytes_in.add(batch.bytes() as u64);
                self.batch(input, batch, inboxes, letters)?;
            }
            Element::End if change.ended => return self.end(inboxes, letters).map(Taken::Ended),
            Element::Barrier(_) | Element::End => {
                if let Some(barrier) = self.channels.aligned() {
                    return self.pass(barrier, inboxes, letters).map(Taken::Passed);
                }
                if matches!(element, Element::Barrier(_)) {
                    return Ok(if change.restarts { Taken::Realigning } else { Taken::Aligning });
                }
            }
            _ => {}
        }
        if let Some(watermark) = change.watermark {
            self.watermark(watermark, inboxes, letters)?;
        }
        // After what the watermark fires: who is told that this cell is idle does not wait for its rows.
        if change.idle == Some(true) {
            match &mut self.state {
                State::Pending { goes_idle, .. } => *goes_idle = true,
                State::Running | State::Ended => self.idle(true, inboxes, letters)?,
            }
        }
        Ok(Taken::Done)
    }

    pub fn resume(&mut self, clock: &dyn Clock, inboxes: &mut [Inbox], letters: &mut Letters) -> Result<CellStep> {
        let State::Pending { watermark, goes_idle, wait } = self.state else { return Ok(CellStep::Ran) };
        if let Some(at) = wait.filter(|at| *at > clock.now()) {
            return Ok(CellStep::Waits(at));
        }
        self.call(watermark, "processing records", inboxes, letters, |operator, out| operator.resume(out))?;
        match &mut self.state {
            State::Pending { goes_idle: later, .. } => *later = goes_idle,
            State::Running | State::Ended if goes_idle => self.idle(true, inboxes, letters)?,
            State::Running | State::Ended => {}
        }
        Ok(CellStep::Ran)
    }

    pub fn on_timer(&mut self, now: Timestamp, inboxes: &mut [Inbox], letters: &mut Letters) -> Result<()> {
        if let Work::Assign(assign) = &mut self.work {
            assign.idle = true;
            return self.control(&Element::Idle(true), inboxes, letters);
        }
        self.call(None, "firing timers", inboxes, letters, |operator, out| operator.on_processing_time(now, out))
    }

    /// For tests: what makes event time here came so far. Whether anything does.
    pub fn raise_watermark(&mut self, to: Watermark, inboxes: &mut [Inbox], letters: &mut Letters) -> Result<bool> {
        let (subtask, metrics, routes, passed) = (&self.subtask, &*self.metrics, &mut self.routes, self.passed);
        let mut out = Emitter { routes, inboxes, letters, subtask, metrics, passed, emitted: false, past_full: None };
        match &mut self.work {
            _ if matches!(self.state, State::Ended) => Ok(false),
            Work::Source(source) => source.raise_watermark(to, &mut out),
            Work::Assign(assign) => {
                assign.watermark.raise(to).map_or(Ok(()), |watermark| out.watermark(watermark))?;
                Ok(true)
            }
            Work::Operator(_) | Work::Sink(_) => Ok(false),
        }
    }

    fn batch(&mut self, input: InputIndex, batch: Batch, inboxes: &mut [Inbox], letters: &mut Letters) -> Result<()> {
        match &mut self.work {
            Work::Operator(_) => {
                self.call(None, "processing records", inboxes, letters, |op, out| op.process(input, batch, out))
            }
            Work::Sink(sink) => sink.write(&batch).map_err(|e| e.at(&self.subtask, "writing")),
            Work::Assign(assign) => {
                let (subtask, metrics, routes, passed) = (&self.subtask, &*self.metrics, &mut self.routes, self.passed);
                let mut out =
                    Emitter { routes, inboxes, letters, subtask, metrics, passed, emitted: false, past_full: None };
                assign.batch(batch, &mut out).map_err(|e| e.at(subtask, "reading event time"))?;
                self.look_for_timer();
                Ok(())
            }
            Work::Source(_) => Err(Error::internal("rows for a source")),
        }
    }

    fn watermark(&mut self, watermark: Watermark, inboxes: &mut [Inbox], letters: &mut Letters) -> Result<()> {
        self.watermark = watermark;
        match &mut self.work {
            Work::Operator(_) => {
                // It stands while the operator works it off: that is what people want to see of a long firing.
                self.metrics.watermark.store(watermark.0, Ordering::Relaxed);
                self.call(Some(watermark), "advancing event time", inboxes, letters, |operator, out| {
                    operator.on_watermark(watermark, out)
                })
            }
            // It makes its own; only the end passes.
            Work::Assign(_) if watermark < Watermark::MAX => Ok(()),
            _ => {
                self.metrics.watermark.store(watermark.0, Ordering::Relaxed);
                self.control(&Element::Watermark(watermark), inboxes, letters)
            }
        }
    }

    fn idle(&mut self, idle: bool, inboxes: &mut [Inbox], letters: &mut Letters) -> Result<()> {
        if let Work::Assign(assign) = &mut self.work {
            // It is active again when it has a row.
            if !idle || assign.idle {
                return Ok(());
            }
            assign.idle = true;
        }
        self.control(&Element::Idle(idle), inboxes, letters)
    }

    /// All channels ended.
    fn end(&mut self, inboxes: &mut [Inbox], letters: &mut Letters) -> Result<Option<Prepared>> {
        self.state = State::Ended;
        match &mut self.work {
            Work::Sink(sink) => {
                let epoch = Epoch(self.passed.0 + 1);
                return sink.prepare(epoch).map(Some).map_err(|e| e.at(&self.subtask, "preparing"));
            }
            Work::Operator(operator) => operator.close().map_err(|e| e.at(&self.subtask, "closing"))?,
            Work::Source(_) | Work::Assign(_) => {}
        }
        self.control(&Element::End, inboxes, letters)?;
        Ok(None)
    }

    fn control(&mut self, element: &Element, inboxes: &mut [Inbox], letters: &mut Letters) -> Result<()> {
        let (subtask, metrics, routes, passed) = (&self.subtask, &*self.metrics, &mut self.routes, self.passed);
        Emitter { routes, inboxes, letters, subtask, metrics, passed, emitted: false, past_full: None }.control(element)
    }

    /// Calls the operator; when it is done, `watermark` is handed on.
    fn call(
        &mut self,
        watermark: Option<Watermark>,
        phase: &'static str,
        inboxes: &mut [Inbox],
        letters: &mut Letters,
        call: impl FnOnce(&mut dyn Operator, &mut dyn Output) -> Result<Progress>,
    ) -> Result<()> {
        let Self { work: Work::Operator(operator), routes, subtask, metrics, state, timer, passed, past_full, .. } =
            self
        else {
            return Ok(());
        };
        let (passed, emitted) = (*passed, false);
        let mut out =
            Emitter { routes, inboxes, letters, subtask, metrics, passed, emitted, past_full: past_full.take() };
        let progress = call(operator.as_mut(), &mut out).map_err(|e| e.at(subtask, phase))?;
        *past_full = out.past_full;
        *timer = operator.next_timer();
        *state = match progress {
            Progress::More => State::Pending { watermark, goes_idle: false, wait: timer.filter(|_| !out.emitted) },
            Progress::Done => {
                watermark.map_or(Ok(()), |watermark| out.control(&Element::Watermark(watermark)))?;
                State::Running
            }
        };
        Ok(())
    }

    fn look_for_timer(&mut self) {
        self.timer = match &self.work {
            Work::Operator(operator) => operator.next_timer(),
            Work::Assign(assign) => {
                let idle_after = assign.reader.idle_after_ms().filter(|_| !assign.idle);
                idle_after.map(|ms| Timestamp(assign.last_row.0.saturating_add(ms)))
            }
            Work::Source(_) | Work::Sink(_) => None,
        };
    }
}

impl AssignCell {
    fn batch(&mut self, batch: Batch, out: &mut Emitter<'_>) -> Result<()> {
        let timed = self.reader.read(batch.clone())?;
        set_malformed_aside(&timed.malformed, &batch, &self.text, out)?;
        if self.reader.idle_after_ms().is_some() {
            self.last_row = self.clock.now();
        }
        if std::mem::take(&mut self.idle) {
            out.control(&Element::Idle(false))?;
        }
        out.emit(Port(0), timed.batch)?;
        self.watermark.raise(timed.watermark).map_or(Ok(()), |watermark| out.watermark(watermark))
    }
}

/// What is known of the channels of a cell.
struct Channels {
    inputs: Vec<InputIndex>,
    status: Vec<Status>,
    merge: WatermarkMerge,
    ended: usize,
    all_idle: bool,
    /// The barrier that some channels have brought, and which.
    aligning: Option<(Barrier, Vec<bool>)>,
    at_end: Vec<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Active,
    Idle,
    AtEnd,
}

/// What an element changed.
#[derive(Default)]
struct Change {
    watermark: Option<Watermark>,
    idle: Option<bool>,
    ended: bool,
    /// A barrier ended the wait for an earlier one.
    restarts: bool,
}

impl Channels {
    /// `watermark`: what all of them together had reached before.
    fn new(inputs: Vec<InputIndex>, watermark: Watermark) -> Self {
        Self {
            status: vec![Status::Active; inputs.len()],
            merge: WatermarkMerge::from(inputs.len(), watermark),
            aligning: None,
            at_end: vec![false; inputs.len()],
            inputs,
            ended: 0,
            all_idle: false,
        }
    }

    /// The barrier that all channels have brought that did not end; from then on it is over.
    fn aligned(&mut self) -> Option<Barrier> {
        let (barrier, arrived) = self.aligning.as_ref()?;
        let barrier = *barrier;
        if !arrived.iter().zip(&self.at_end).all(|(arrived, ended)| *arrived || *ended) {
            return None;
        }
        self.aligning = None;
        Some(barrier)
    }

    fn owes(&self, channel: usize, epoch: Epoch) -> bool {
        let of = |list: &[bool]| list.get(channel) == Some(&true);
        let arrived = self.aligning.as_ref().is_some_and(|(barrier, arrived)| barrier.epoch == epoch && of(arrived));
        !arrived && !of(&self.at_end)
    }

    /// Whether the barrier that is waited for is of a later checkpoint than this one.
    fn waits_for_later(&self, epoch: Epoch) -> bool {
        self.aligning.as_ref().is_some_and(|(barrier, _)| barrier.epoch > epoch)
    }

    fn input(&self, channel: usize) -> Result<InputIndex> {
        self.inputs.get(channel).copied().ok_or_else(|| Error::internal(format!("channel {channel}")))
    }

    fn note(&mut self, channel: usize, element: &Element) -> Change {
        let watermark = match element {
            Element::Batch(_) if self.status.get(channel) == Some(&Status::Active) => return Change::default(),
            Element::Batch(_) | Element::Idle(false) => self.set(channel, Status::Active),
            Element::Idle(true) => self.set(channel, Status::Idle),
            Element::Watermark(Watermark::MAX) => self.set(channel, Status::AtEnd),
            Element::Watermark(watermark) => {
                self.set(channel, Status::Active);
                self.merge.raise(channel, *watermark)
            }
            Element::Barrier(barrier) => {
                let channels = self.status.len();
                // Who turned unaligned for the later checkpoint does not bring the earlier one's barrier any more.
                let restarts = self.aligning.as_ref().is_some_and(|(other, _)| other.epoch < barrier.epoch);
                if restarts {
                    self.aligning = None;
                }
                let (_, arrived) = self.aligning.get_or_insert_with(|| (*barrier, vec![false; channels]));
                arrived.get_mut(channel).into_iter().for_each(|arrived| *arrived = true);
                return Change { restarts, ..Change::default() };
            }
            Element::End => {
                self.ended += 1;
                self.at_end.get_mut(channel).into_iter().for_each(|ended| *ended = true);
                return Change { ended: self.ended == self.status.len(), ..Change::default() };
            }
        };
        let at_end = self.status.iter().all(|s| *s == Status::AtEnd);
        let all_idle = !at_end && self.status.iter().all(|s| *s != Status::Active);
        let idle = (all_idle != self.all_idle && !at_end).then_some(all_idle);
        self.all_idle = all_idle;
        Change { watermark: if at_end { Some(Watermark::MAX) } else { watermark }, idle, ..Change::default() }
    }

    fn set(&mut self, channel: usize, status: Status) -> Option<Watermark> {
        let old = self.status.get_mut(channel)?;
        if *old == status || *old == Status::AtEnd {
            return None;
        }
        *old = status;
        self.merge.set_idle(channel, status != Status::Active)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watermark(channels: &mut Channels, channel: usize, ms: i64) -> Option<Watermark> {
        channels.note(channel, &Element::Watermark(Watermark(ms))).watermark
    }

    #[test]
    fn the_minimum_passes_and_the_end_only_when_all_are_there() {
        let mut channels = Channels::new(vec![InputIndex(0), InputIndex(1)], Watermark::MIN);
        assert_eq!(watermark(&mut channels, 0, 10), None);
        assert_eq!(watermark(&mut channels, 1, 5), Some(Watermark(5)));
        assert_eq!(channels.note(0, &Element::Watermark(Watermark::MAX)).watermark, None);
        assert_eq!(watermark(&mut channels, 1, 20), Some(Watermark(20)), "one at its end holds nothing back");
        assert!(!channels.note(0, &Element::End).ended);
        let change = channels.note(1, &Element::Idle(true));
        assert_eq!((change.watermark, change.idle), (None, Some(true)), "idle is not the end");
        let change = channels.note(1, &Element::Watermark(Watermark::MAX));
        assert_eq!((change.watermark, change.idle), (Some(Watermark::MAX), None));
        assert!(channels.note(1, &Element::End).ended);
    }

    #[test]
    fn a_later_barrier_ends_the_wait_for_an_earlier_one() {
        let barrier = |epoch| {
            let kind = tidemill_core::snapshot::SnapshotKind::Incremental;
            Element::Barrier(Barrier { epoch: Epoch(epoch), kind, stops: false })
        };
        let mut channels = Channels::new(vec![InputIndex(0); 3], Watermark::MIN);
        assert!(!channels.note(0, &barrier(4)).restarts && channels.aligned().is_none());
        assert!(!channels.owes(0, Epoch(4)) && channels.owes(0, Epoch(5)) && channels.owes(1, Epoch(4)));
        // The sender of channel 1 was unaligned, and has skipped the fourth.
        assert!(channels.note(1, &barrier(5)).restarts && channels.aligned().is_none());
        assert!(channels.waits_for_later(Epoch(4)) && !channels.waits_for_later(Epoch(5)));
        assert!(!channels.note(0, &barrier(5)).restarts && channels.aligned().is_none());
        channels.note(2, &Element::End);
        assert_eq!(channels.aligned().map(|barrier| barrier.epoch), Some(Epoch(5)));
    }

    #[test]
    fn idleness_is_handed_on_when_all_are_idle_and_ends_with_a_row() {
        let mut channels = Channels::new(vec![InputIndex(0), InputIndex(0)], Watermark::MIN);
        watermark(&mut channels, 0, 10);
        watermark(&mut channels, 1, 30);
        let change = channels.note(0, &Element::Idle(true));
        assert_eq!((change.watermark, change.idle), (Some(Watermark(30)), None));
        assert_eq!(channels.note(1, &Element::Idle(true)).idle, Some(true));
        let row = Element::Batch(Batch::new(1, vec![], None).unwrap());
        assert_eq!(channels.note(0, &row).idle, Some(false));
        assert_eq!(channels.note(0, &row).idle, None);
    }
}
