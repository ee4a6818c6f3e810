//! Session windows: a row at t opens `[t, t + gap)`, and sessions of a key that overlap or touch are one.
//!
//! **When they fire.** When the watermark reaches the *end*, not, as other windows, the last millisecond: a row at the
//! very end touches the session and belongs to it, and at the last millisecond such rows may still come. The result has
//! the end as its timestamp, since one before it could be late already for what follows. Flink, whose sessions merge
//! likewise, fires at the last millisecond; there it depends on when watermarks come, thus on batches and parallelism,
//! whether a row at the end joins the session or begins one.
//!
//! **State.** A table `latest` has each key's latest session, in the global namespace: start, end, when it is to be
//! looked at, and the accumulators. Where time is in order that is the only session of the key, and adding a row is an
//! extension in place. A table `older` has those sessions before it that still wait for the watermark or for late rows;
//! its namespace is the gap-long piece of time in which a session starts, of which a key has at most one, since sessions
//! that do not touch start more than a gap apart.
//!
//! **Caches**, made anew from the tables: which keys have a session that ends at a time ([`Calendar`]), and in which
//! order the older sessions of a key are ([`Older`]).
//!
//! A batch is first planned (`plan`), which touches no accumulator; then the user's aggregators are called, and merge,
//! without storing anything; then it is applied (`apply`). So a failure of the user's code takes nothing with it.
//!
//! Invariants: a key with older sessions has a latest one. A session that has not fired is in the calendar `due` at the
//! time that it has as due, which is its end or before, and nothing else of the key is put down for that time. One that
//! has fired and is kept is in `expiry`, at its end or at one that an earlier part of it had.
#![allow(clippy::indexing_slicing, reason = "slots were answered by the tables whose columns are indexed")]

mod apply;
mod calendar;
mod older;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use arrow::datatypes::DataType as ArrowType;
use tidemill_core::ids::InputIndex;
use tidemill_core::keys::Keys;
use tidemill_core::operator::{Operator, Output, Progress};
use tidemill_core::snapshot::{SnapshotKind, StateSnapshot};
use tidemill_core::state::{KeyedState, NO_SLOT, Namespace, Slot, TableId, ValueColumn, ValueSpec, Values};
use tidemill_core::time::{Timestamp, Watermark};
use tidemill_core::user::{Effects, UserFailure};
use tidemill_core::{Batch, Error, Result};

use self::apply::Staged;
use self::calendar::{Calendar, Due};
use self::older::{Old, Older};
use self::plan::{Bounds, Plan, Time};
use super::super::aggregate::{Aggregates, At, Chunk, StageFailure};
use super::{Common, Spans};
use crate::transaction::{Attempt, Outcome, Rows, Transaction};

/// The due time of a session that is not to be looked at.
const NEVER: i64 = i64::MIN;
/// The columns of `latest` before the accumulators; `older` has the first two.
const START: usize = 0;
const END: usize = 1;
const DUE: usize = 2;
const LATEST_BASE: usize = 3;
const OLDER_BASE: usize = 2;
/// Keys that are looked up in one step without emitting: some milliseconds.
const KEYS_PER_STEP: usize = 1 << 16;
/// Of these, so many at a time.
const LOOK_UP: usize = 4_096;
/// Entries that are read at a time when the caches are made.
const SCAN: usize = 4_096;

/// The operator.
pub(super) struct SessionWindows {
    core: Core,
    /// Batches whose user code is being run; built-in aggregates need no transaction.
    batch: Option<Batch>,
    transaction: Transaction,
}

struct Core {
    common: Common,
    aggregates: Aggregates,
    state: Box<dyn KeyedState>,
    latest: TableId,
    older_table: TableId,
    gap_ms: i64,
    older: Older,
    due: Calendar,
    expiry: Calendar,
    /// Sessions that fire, in order of their ends, until they are emitted.
    fired: Vec<Entry>,
}

/// A session that is emitted.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The entry of the key's latest session.
    key: Slot,
    /// Where it is itself; none: it is the latest.
    older: Option<(Namespace, Slot)>,
    start: i64,
    end: i64,
}

impl SessionWindows {
    pub(super) fn new(
        common: Common,
        aggregates: Aggregates,
        mut state: Box<dyn KeyedState>,
        gap_ms: u64,
    ) -> Result<Self> {
        let time = |name: &str| ValueSpec::new(format!("session.{name}"), ArrowType::Int64);
        let specs = |times: &[&str]| times.iter().map(|t| time(t)).chain(aggregates.specs()).collect();
        let latest = state.table("latest", specs(&["start", "end", "due"]))?;
        let older_table = state.table("older", specs(&["start", "end"]))?;
        state.declared()?;
        let gap_ms = i64::try_from(gap_ms).unwrap_or(i64::MAX);
        let mut core = Core::new(common, aggregates, state, (latest, older_table), gap_ms)?;
        core.recall_latest()?;
        core.recall_older()?;
        Ok(Self { core, batch: None, transaction: Transaction::default() })
    }

    fn go_on(&mut self, out: &mut dyn Output) -> Result<Progress> {
        if let Some(batch) = &self.batch {
            let now = self.core.common.context.clock.now();
            let mut adding = Adding { core: &mut self.core, batch, planned: None, out };
            if self.transaction.run(now, &mut adding)? != Outcome::Done {
                return Ok(Progress::More);
            }
            self.batch = None;
        }
        self.core.fire(out)
    }
}

impl Operator for SessionWindows {
    fn process(&mut self, _input: InputIndex, batch: Batch, out: &mut dyn Output) -> Result<Progress> {
        let Some((batch, _, _)) = self.core.common.admit(batch, out)? else { return Ok(Progress::Done) };
        if self.core.aggregates.runs_user_code() {
            self.transaction.start(batch.rows());
            self.batch = Some(batch);
        } else {
            let plan = self.core.plan(batch)?;
            match self.core.stage(&plan) {
                Ok(staged) => self.core.apply(plan, staged, out)?,
                Err(StageFailure::Engine(error)) => return Err(error),
                Err(StageFailure::User(_)) => return Err(Error::internal("built-in aggregates ran user code")),
            }
        }
        self.go_on(out)
    }

    fn on_watermark(&mut self, watermark: Watermark, out: &mut dyn Output) -> Result<Progress> {
        self.core.common.watermark = watermark.0;
        self.go_on(out)
    }

    fn resume(&mut self, out: &mut dyn Output) -> Result<Progress> {
        self.go_on(out)
    }

    fn freeze(&mut self, kind: SnapshotKind) -> Result<bool> {
        self.core.state.freeze(kind).map(|()| true)
    }

    fn copy_frozen(&mut self) -> Result<Option<Box<dyn StateSnapshot>>> {
        self.core.state.copy_frozen()
    }

    fn next_timer(&self) -> Option<Timestamp> {
        self.transaction.retry_at()
    }

    fn close(&mut self) -> Result<()> {
        self.core.aggregates.close()
    }
}

/// Adding the rows of a batch with user aggregators.
struct Adding<'a> {
    core: &'a mut Core,
    batch: &'a Batch,
    planned: Option<(Plan, Staged)>,
    out: &'a mut dyn Output,
}

impl Attempt for Adding<'_> {
    fn call(&mut self, rows: &Rows, _effects: &mut Effects) -> Result<Result<(), UserFailure>> {
        let plan = self.core.plan(rows.of(self.batch)?)?;
        match self.core.stage(&plan) {
            Ok(staged) => {
                self.planned = Some((plan, staged));
                Ok(Ok(()))
            }
            Err(StageFailure::Engine(error)) => Err(error),
            Err(StageFailure::User(failure)) => {
                self.core.undo(&plan)?;
                Ok(Err(failure))
            }
        }
    }

    fn apply(&mut self, _rows: &Rows, _effects: &mut Effects) -> Result<()> {
        let (plan, staged) = self.planned.take().ok_or_else(|| Error::internal("rows applied without a call"))?;
        self.core.apply(plan, staged, self.out)
    }

    fn set_aside(&mut self, row: usize, reason: String) -> Result<()> {
        self.core.common.set_aside(self.batch, row, reason, self.out)
    }

    fn repeated(&mut self) {
        self.core.common.context.metrics.retries.add(1);
    }
}

impl Core {
    /// Without knowing what is in state yet.
    fn new(
        common: Common,
        aggregates: Aggregates,
        state: Box<dyn KeyedState>,
        (latest, older_table): (TableId, TableId),
        gap_ms: i64,
    ) -> Result<Self> {
        let older = Older::new(common.codec()?)?;
        let (due, expiry, fired) = (Calendar::new(gap_ms), Calendar::new(gap_ms), Vec::new());
        Ok(Self { common, aggregates, state, latest, older_table, gap_ms, older, due, expiry, fired })
    }

    fn time(&self) -> Time {
        let watermark = self.common.watermark;
        let expired_upto = match watermark {
            i64::MAX => i64::MAX,
            _ => watermark.saturating_sub(self.common.lateness_ms),
        };
        Time { gap_ms: self.gap_ms, fired_upto: watermark, expired_upto }
    }

    fn at_latest(&self) -> At {
        At { table: self.latest, namespace: Namespace::GLOBAL, base: LATEST_BASE }
    }

    fn at_older(&self, namespace: Namespace) -> At {
        At { table: self.older_table, namespace, base: OLDER_BASE }
    }

    /// Where an older session with this start is.
    fn namespace(&self, start: i64) -> Namespace {
        Namespace(start.div_euclid(self.gap_ms))
    }

    /// Decides what a batch does.
    fn plan(&mut self, batch: Batch) -> Result<Plan> {
        let (keys, time) = (self.common.keys(self.state.as_ref(), &batch)?, self.time());
        let mut slots = Vec::new();
        self.state.resolve(self.latest, Namespace::GLOBAL, &keys, &mut slots)?;
        let values = self.state.values(self.latest, Namespace::GLOBAL)?;
        let (mut plan, deferred) = Plan::new(batch, keys, slots, &mut bounds(values)?, &self.older, time);
        if !deferred.is_empty() {
            let rows: Vec<u32> = plan.slow.iter().map(|key| key.row).collect();
            let keys = self.state.codec().take(&plan.keys, &rows)?;
            let found = self.older.find(&keys)?;
            let older: Vec<_> = found.into_iter().map(|slot| self.older.of(slot)).collect();
            plan.lay_out(&deferred, &older, time);
        }
        Ok(plan)
    }

    /// Takes back what a plan did.
    fn undo(&mut self, plan: &Plan) -> Result<()> {
        plan.undo(&mut bounds(self.state.values(self.latest, Namespace::GLOBAL)?)?);
        self.state.remove_vacant(self.latest, Namespace::GLOBAL, &plan.slots)
    }

    /// Fires what is due, in pieces, until the output is full; then forgets what has expired.
    fn fire(&mut self, out: &mut dyn Output) -> Result<Progress> {
        let (limit, time) = (self.common.context.batch_rows.max(1), self.time());
        let mut looked_up = 0;
        loop {
            while self.fired.len() < limit && looked_up < KEYS_PER_STEP {
                let due = self.due.take(self.state.codec(), time.fired_upto, LOOK_UP)?;
                let Some(due) = due else { break };
                looked_up += due.keys.len();
                self.look_at(&due)?;
            }
            if self.fired.len() < limit && looked_up >= KEYS_PER_STEP {
                return Ok(Progress::More);
            }
            if self.fired.is_empty() {
                break;
            }
            let rest = self.fired.split_off(limit.min(self.fired.len()));
            let entries = std::mem::replace(&mut self.fired, rest);
            self.emit(&entries, out)?;
            self.settle(&entries, time)?;
            if out.is_full() {
                return Ok(Progress::More);
            }
        }
        while let Some(due) = self.expiry.take(self.state.codec(), time.expired_upto, LOOK_UP)? {
            looked_up += due.keys.len();
            self.expire(&due, time)?;
            if looked_up >= KEYS_PER_STEP {
                return Ok(Progress::More);
            }
        }
        self.state.commit()?;
        let caches = self.due.memory_bytes() + self.expiry.memory_bytes() + self.older.memory_bytes();
        self.common.show_state(self.state.as_ref(), caches)?;
        Ok(Progress::Done)
    }

    /// Of these keys, the sessions that were put down for these ends fire, or if they have grown, are put down again.
    fn look_at(&mut self, due: &Due) -> Result<()> {
        let keys = &due.keys;
        let (mut slots, mut again, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let (first, last) = (self.fired.len(), due.ends.last().copied().unwrap_or(NEVER));
        self.state.find(self.latest, Namespace::GLOBAL, keys, &mut slots)?;
        let Bounds { starts, ends, dues } = bounds(self.state.values(self.latest, Namespace::GLOBAL)?)?;
        for (i, (&key, &end)) in slots.iter().zip(&due.ends).enumerate().filter(|(_, (slot, _))| **slot != NO_SLOT) {
            let slot = key as usize;
            if dues[slot] != end || starts[slot] >= ends[slot] {
                others.push(i as u32);
            } else if ends[slot] <= last {
                dues[slot] = NEVER;
                self.fired.push(Entry { key, older: None, start: starts[slot], end: ends[slot] });
            } else {
                dues[slot] = ends[slot];
                again.push((ends[slot], i as u32));
            }
        }
        if !others.is_empty() && !self.older.is_empty() {
            self.look_at_older(due, &slots, &others, &mut again)?;
        }
        // One that has grown ends after others that were put down for later than it.
        self.fired[first..].sort_by_key(|entry| entry.end);
        self.due.put(self.state.codec(), keys, &again)
    }

    fn look_at_older(&mut self, due: &Due, slots: &[Slot], others: &[u32], again: &mut Vec<(i64, u32)>) -> Result<()> {
        let last = due.ends.last().copied().unwrap_or(NEVER);
        let mut fired: BTreeMap<i64, Vec<(u32, i64, i64)>> = BTreeMap::new();
        let found = self.older.find(&self.state.codec().take(&due.keys, others)?)?;
        for (&i, slot) in others.iter().zip(found) {
            let end = due.ends[i as usize];
            let Some((start, old)) = self.older.containing(slot, end).filter(|(_, o)| o.due == end) else { continue };
            if old.end <= last {
                old.due = NEVER;
                fired.entry(start.div_euclid(self.gap_ms)).or_default().push((i, start, old.end));
            } else {
                old.due = old.end;
                again.push((old.end, i));
            }
        }
        for (namespace, sessions) in fired {
            let rows: Vec<u32> = sessions.iter().map(|(i, ..)| *i).collect();
            let namespace = Namespace(namespace);
            for ((i, start, end), slot) in sessions.into_iter().zip(self.older_slots(namespace, &due.keys, &rows)?) {
                self.fired.push(Entry { key: slots[i as usize], older: Some((namespace, slot)), start, end });
            }
        }
        Ok(())
    }

    /// The entries of older sessions of some keys, which are there.
    fn older_slots(&mut self, namespace: Namespace, keys: &Keys, rows: &[u32]) -> Result<Vec<Slot>> {
        let mut slots = Vec::new();
        let keys = self.state.codec().take(keys, rows)?;
        self.state.find(self.older_table, namespace, &keys, &mut slots)?;
        if slots.contains(&NO_SLOT) {
            return Err(Error::internal("a session that is known is not in state"));
        }
        Ok(slots)
    }

    fn emit(&mut self, entries: &[Entry], out: &mut dyn Output) -> Result<()> {
        let keys: Vec<Slot> = entries.iter().map(|e| e.key).collect();
        let key = self.state.key_columns(self.latest, Namespace::GLOBAL, &keys)?;
        let chunk = self.gather(entries)?;
        let results = self.aggregates.finish(&chunk)?;
        let starts: Vec<i64> = entries.iter().map(|e| e.start).collect();
        let ends: Vec<i64> = entries.iter().map(|e| e.end).collect();
        self.common.emit_result(entries.len(), &key, &Spans::Each { starts: &starts, ends: &ends }, &results, out)
    }

    /// The accumulators of sessions.
    fn gather(&mut self, entries: &[Entry]) -> Result<Chunk> {
        let mut groups: BTreeMap<Option<i64>, (Vec<Slot>, Vec<u32>)> = BTreeMap::new();
        if entries.iter().all(|e| e.older.is_none()) {
            let slots: Vec<Slot> = entries.iter().map(|e| e.key).collect();
            let at = self.at_latest();
            return self.aggregates.gather(self.state.as_mut(), at, &slots);
        }
        for (i, entry) in entries.iter().enumerate() {
            let (namespace, slot) = entry.older.map_or((None, entry.key), |(n, slot)| (Some(n.0), slot));
            let (slots, numbers) = groups.entry(namespace).or_default();
            slots.push(slot);
            numbers.push(i as u32);
        }
        let (mut all, mut order) = (Chunk::default(), vec![0; entries.len()]);
        let mut next = 0;
        for (namespace, (slots, numbers)) in groups {
            let at = namespace.map_or(self.at_latest(), |n| self.at_older(Namespace(n)));
            all.append(self.aggregates.gather(self.state.as_mut(), at, &slots)?)?;
            for number in numbers {
                order[number as usize] = next;
                next += 1;
            }
        }
        all.take(&order)
    }

    /// After sessions have fired: they are forgotten, or kept for late rows.
    fn settle(&mut self, entries: &[Entry], time: Time) -> Result<()> {
        let (gone, kept): (Vec<Entry>, Vec<Entry>) = entries.iter().partition(|e| e.end <= time.expired_upto);
        if !kept.is_empty() {
            let slots: Vec<Slot> = kept.iter().map(|e| e.key).collect();
            let keys = self.state.keys(self.latest, Namespace::GLOBAL, &slots)?;
            let ends: Vec<_> = kept.iter().zip(0..).map(|(e, i)| (e.end, i)).collect();
            self.expiry.put(self.state.codec(), &keys, &ends)?;
        }
        let older: Vec<&Entry> = gone.iter().filter(|e| e.older.is_some()).collect();
        if !older.is_empty() {
            let slots: Vec<Slot> = older.iter().map(|e| e.key).collect();
            let starts: Vec<i64> = older.iter().map(|e| e.start).collect();
            let keys = self.state.keys(self.latest, Namespace::GLOBAL, &slots)?;
            self.forget_older(&keys, &starts)?;
        }
        let latest: Vec<Slot> = gone.iter().filter(|e| e.older.is_none()).map(|e| e.key).collect();
        if latest.is_empty() { Ok(()) } else { self.state.remove(self.latest, Namespace::GLOBAL, &latest) }
    }

    /// Removes an older session per key.
    fn forget_older(&mut self, keys: &Keys, starts: &[i64]) -> Result<()> {
        let mut by_namespace: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        for (&start, i) in starts.iter().zip(0..) {
            by_namespace.entry(self.namespace(start).0).or_default().push(i);
        }
        for (namespace, rows) in by_namespace {
            let slots = self.older_slots(Namespace(namespace), keys, &rows)?;
            self.state.remove(self.older_table, Namespace(namespace), &slots)?;
        }
        self.older.remove(keys, starts)
    }

    /// Of these keys, the sessions that were kept since they ended then are forgotten, or if they have grown, kept on.
    fn expire(&mut self, due: &Due, time: Time) -> Result<()> {
        let keys = &due.keys;
        let (mut slots, mut again, mut others) = (Vec::new(), Vec::new(), Vec::new());
        self.state.find(self.latest, Namespace::GLOBAL, keys, &mut slots)?;
        let Bounds { starts, ends, .. } = bounds(self.state.values(self.latest, Namespace::GLOBAL)?)?;
        let mut gone = Vec::new();
        for (i, (&slot, &end)) in slots.iter().zip(&due.ends).enumerate() {
            let span = (slot != NO_SLOT).then(|| (starts[slot as usize], ends[slot as usize]));
            match span.filter(|(start, latest_end)| *start < end && end <= *latest_end) {
                Some((_, latest_end)) if latest_end == end => gone.push(slot),
                // One that is to fire (again) is put down when it has.
                Some((_, latest_end)) if latest_end <= time.fired_upto => again.push((latest_end, i as u32)),
                Some(_) => {}
                None => others.push(i as u32),
            }
        }
        if !gone.is_empty() {
            self.state.remove(self.latest, Namespace::GLOBAL, &gone)?;
        }
        if !others.is_empty() && !self.older.is_empty() {
            let (mut rows, mut starts) = (Vec::new(), Vec::new());
            let found = self.older.find(&self.state.codec().take(keys, &others)?)?;
            for (&i, slot) in others.iter().zip(found) {
                let end = due.ends[i as usize];
                let Some((start, old)) = self.older.containing(slot, end) else { continue };
                if old.end == end {
                    rows.push(i);
                    starts.push(start);
                } else if old.end <= time.fired_upto {
                    again.push((old.end, i));
                }
            }
            if !rows.is_empty() {
                self.forget_older(&self.state.codec().take(keys, &rows)?, &starts)?;
            }
        }
        self.expiry.put(self.state.codec(), keys, &again)
    }

    /// Puts down the latest sessions that are in state.
    fn recall_latest(&mut self) -> Result<()> {
        let (mut slots, time) = (Vec::new(), self.time());
        let mut after = None;
        loop {
            self.state.scan(self.latest, Namespace::GLOBAL, after, SCAN, &mut slots)?;
            after = slots.last().copied();
            if after.is_none() {
                return Ok(());
            }
            let keys = self.state.keys(self.latest, Namespace::GLOBAL, &slots)?;
            let Bounds { ends, dues, .. } = bounds(self.state.values(self.latest, Namespace::GLOBAL)?)?;
            let found: Vec<i64> = slots.iter().map(|&slot| ends[slot as usize]).collect();
            for (&slot, &end) in slots.iter().zip(&found) {
                dues[slot as usize] = if end <= time.fired_upto { NEVER } else { end };
            }
            self.put_down(&keys, &found, time)?;
        }
    }

    /// Puts down, and in order, the older sessions that are in state.
    fn recall_older(&mut self) -> Result<()> {
        let (mut slots, time) = (Vec::new(), self.time());
        for namespace in self.state.namespaces(self.older_table) {
            let mut after = None;
            loop {
                self.state.scan(self.older_table, namespace, after, SCAN, &mut slots)?;
                after = slots.last().copied();
                if after.is_none() {
                    break;
                }
                let keys = self.state.keys(self.older_table, namespace, &slots)?;
                let [starts, ends] = columns(self.state.values(self.older_table, namespace)?)?;
                let found: Vec<i64> = slots.iter().map(|&slot| ends[slot as usize]).collect();
                let due = |end| if end <= time.fired_upto { NEVER } else { end };
                let old = |(&slot, &end): (&Slot, &i64)| (starts[slot as usize], Old { end, due: due(end) });
                let sessions: Vec<_> = slots.iter().zip(&found).map(old).collect();
                self.older.insert(&keys, &sessions)?;
                self.put_down(&keys, &found, time)?;
            }
        }
        Ok(())
    }

    /// Puts sessions with these ends down, which nothing was put down for.
    fn put_down(&mut self, keys: &Keys, ends: &[i64], time: Time) -> Result<()> {
        let (fired, open): (Vec<_>, Vec<_>) =
            ends.iter().copied().zip(0..).partition(|(end, _)| *end <= time.fired_upto);
        self.expiry.put(self.state.codec(), keys, &fired)?;
        self.due.put(self.state.codec(), keys, &open)
    }
}

/// The columns of `latest` that are times.
fn bounds(values: &mut Values) -> Result<Bounds<'_>> {
    match values.columns.as_mut_slice() {
        [ValueColumn::Int(starts), ValueColumn::Int(ends), ValueColumn::Int(dues), ..] => {
            Ok(Bounds { starts, ends, dues })
        }
        _ => Err(no_times()),
    }
}

/// The columns of `older` that are times.
fn columns(values: &mut Values) -> Result<[&mut Vec<i64>; OLDER_BASE]> {
    match values.columns.as_mut_slice() {
        [ValueColumn::Int(starts), ValueColumn::Int(ends), ..] => Ok([starts, ends]),
        _ => Err(no_times()),
    }
}

fn no_times() -> Error {
    Error::internal("a table of sessions without their times")
}
