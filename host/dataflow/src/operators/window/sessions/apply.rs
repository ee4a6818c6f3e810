//! Makes a plan real: accumulators of stored sessions are merged, rows are added, sessions are stored where they belong.
//!
//! Invariant: until `apply`, nothing that is stored has changed but the bounds that the plan moved.
#![allow(clippy::indexing_slicing, reason = "slots were answered by the tables whose columns are indexed")]

use std::collections::BTreeMap;

use arrow::array::UInt32Array;
use tidemill_core::Result;
use tidemill_core::operator::Output;
use tidemill_core::state::{Namespace, Slot};
use tidemill_core::user::UserFailure;

use super::super::super::aggregate::{Chunk, NONE, StageFailure, group};
use super::older::Old;
use super::plan::{Plan, Session, SlowKey, Source};
use super::{Core, DUE, END, Entry, NEVER, START, bounds, columns};

/// What accumulators will be, before it is stored.
#[derive(Default)]
pub(super) struct Staged {
    /// With user aggregators: the entries of the latest sessions that fast rows fall into, and their accumulators.
    fast: Option<(Vec<Slot>, Chunk)>,
    /// Those of the slow keys' sessions, in order: what is stored, merged; of user aggregators, with the rows.
    slow: Chunk,
}

/// A session of a slow key that is to be stored.
struct Placed<'a> {
    key: &'a SlowKey,
    number: u32,
    start: i64,
    session: &'a Session,
}

impl Core {
    /// Merges and calls the user's aggregators, and stores nothing.
    pub(super) fn stage(&mut self, plan: &Plan) -> Result<Staged, StageFailure> {
        let mut slow = self.merge_sources(plan)?;
        if !self.aggregates.runs_user_code() {
            return Ok(Staged { fast: None, slow });
        }
        let (rows, row_slots) = plan.fast();
        let (mut group_of_row, slots) = group(row_slots);
        let (count, mut next) = (slots.len() as u32, slots.len() as u32);
        let mut order: Vec<u32> = rows.map_or_else(|| (0..plan.batch.rows() as u32).collect(), <[u32]>::to_vec);
        for (_, _, session) in plan.sessions() {
            order.extend(sorted(&session.rows));
            group_of_row.resize(order.len(), next);
            next += 1;
        }
        let at = self.at_latest();
        let mut chunk = self.aggregates.gather(self.state.as_mut(), at, &slots)?;
        if next > count {
            chunk.append(std::mem::take(&mut slow))?;
        }
        let whole = rows.is_none() && next == count;
        let batch = if whole { plan.batch.clone() } else { plan.batch.take(&UInt32Array::from(order.clone()))? };
        if !batch.is_empty() {
            let called = self.aggregates.accumulate(&batch, &group_of_row, &mut chunk);
            called.map_err(|failure| in_batch(failure, &order))?;
        }
        if next > count {
            slow = chunk.take(&(count..next).collect::<Vec<u32>>())?;
            chunk = chunk.take(&(0..count).collect::<Vec<u32>>())?;
        }
        Ok(Staged { fast: Some((slots, chunk)), slow })
    }

    /// Per session of slow keys, the accumulators of the stored sessions that become part of it, merged.
    fn merge_sources(&mut self, plan: &Plan) -> Result<Chunk, StageFailure> {
        let mut entries = Vec::new();
        // Per session, the numbers of its sources.
        let mut sources: Vec<Vec<u32>> = Vec::new();
        let mut older: BTreeMap<i64, Vec<(usize, u32)>> = BTreeMap::new();
        for (key, _, session) in plan.sessions() {
            let first = entries.len() as u32;
            for source in &session.sources {
                if let Source::Older(start) = *source {
                    older.entry(self.namespace(start).0).or_default().push((entries.len(), key.row));
                }
                entries.push(Entry { key: key.slot, older: None, start: 0, end: 0 });
            }
            sources.push((first..entries.len() as u32).collect());
        }
        if sources.is_empty() {
            return Ok(Chunk::default());
        }
        for (namespace, of_namespace) in older {
            let rows: Vec<u32> = of_namespace.iter().map(|(_, row)| *row).collect();
            let slots = self.older_slots(Namespace(namespace), &plan.keys, &rows)?;
            for ((number, _), slot) in of_namespace.into_iter().zip(slots) {
                entries[number].older = Some((Namespace(namespace), slot));
            }
        }
        let stored = self.gather(&entries)?;
        let nth = |n: usize| sources.iter().map(|s| s.get(n).copied().unwrap_or(NONE)).collect::<Vec<u32>>();
        let mut merged = stored.take(&nth(0))?;
        for n in 1..sources.iter().map(Vec::len).max().unwrap_or(0) {
            merged = self.aggregates.try_combine(merged, &stored.take(&nth(n))?)?;
        }
        Ok(merged)
    }

    /// Makes a batch real, and fires again what it changed of fired sessions.
    pub(super) fn apply(&mut self, plan: Plan, staged: Staged, out: &mut dyn Output) -> Result<()> {
        let (rows, slots) = plan.fast();
        let at = self.at_latest();
        self.aggregates.add(self.state.values(at.table, at.namespace)?, at.base, &plan.batch, rows, slots)?;
        if let Some((slots, chunk)) = &staged.fast {
            self.aggregates.put_user(self.state.as_mut(), at, slots, chunk)?;
        }
        self.note_moved(&plan)?;
        let mut again = self.fired_again(&plan)?;
        if !plan.slow.is_empty() {
            self.store_slow(&plan, &staged.slow, &mut again)?;
        }
        if !again.is_empty() {
            self.emit(&again, out)?;
        }
        let late: Vec<Slot> = plan.late.iter().map(|&row| plan.slots[row as usize]).collect();
        if !late.is_empty() {
            self.state.remove_vacant(at.table, at.namespace, &late)?;
        }
        self.common.emit_late(&plan.batch, plan.late, out)
    }

    /// Puts down the latest sessions that are new, or were moved beyond the watermark again.
    fn note_moved(&mut self, plan: &Plan) -> Result<()> {
        let (mut due, mut expiry) = (Vec::new(), Vec::new());
        let time = self.time();
        let values = self.state.values(self.latest, Namespace::GLOBAL)?;
        for &row in &plan.moved {
            let (slot, (start, end)) = (plan.slots[row as usize] as usize, plan.before[row as usize]);
            let there = values.present[DUE][slot];
            (START..=DUE).for_each(|column| values.present[column][slot] = true);
            let times = bounds(values)?;
            let new_end = times.ends[slot];
            if new_end > time.fired_upto {
                if !there || times.dues[slot] != new_end {
                    times.dues[slot] = new_end;
                    due.push((new_end, row));
                }
            } else {
                times.dues[slot] = NEVER;
                if start == end {
                    expiry.push((new_end, row));
                }
            }
        }
        self.due.put(self.state.codec(), &plan.keys, &due)?;
        self.expiry.put(self.state.codec(), &plan.keys, &expiry)
    }

    /// The latest sessions that got fast rows and have fired.
    fn fired_again(&mut self, plan: &Plan) -> Result<Vec<Entry>> {
        let time = self.time();
        let earliest = plan.batch.timestamps().and_then(|t| t.iter().min().copied());
        if earliest.is_none_or(|t| t + self.gap_ms > time.fired_upto) {
            return Ok(Vec::new());
        }
        let mut slots = plan.fast().1.to_vec();
        slots.sort_unstable();
        slots.dedup();
        let times = bounds(self.state.values(self.latest, Namespace::GLOBAL)?)?;
        let entry = |key: Slot| {
            let (start, end) = (times.starts[key as usize], times.ends[key as usize]);
            (end <= time.fired_upto).then_some(Entry { key, older: None, start, end })
        };
        Ok(slots.into_iter().filter_map(entry).collect())
    }

    /// Stores the sessions of slow keys; those that got rows and have fired are added to `again`.
    fn store_slow(&mut self, plan: &Plan, chunk: &Chunk, again: &mut Vec<Entry>) -> Result<()> {
        self.forget_sources(plan)?;
        let (mut latest, mut older): (Vec<Placed<'_>>, BTreeMap<i64, Vec<Placed<'_>>>) = Default::default();
        for (number, (key, start, session)) in (0..).zip(plan.sessions()) {
            let placed = Placed { key, number, start, session };
            if key.sessions.last_key_value().is_some_and(|(last, _)| *last == start) {
                latest.push(placed);
            } else {
                older.entry(self.namespace(start).0).or_default().push(placed);
            }
        }
        self.store_latest(plan, &latest, chunk, again)?;
        older.into_iter().try_for_each(|(n, placed)| self.store_older(plan, Namespace(n), &placed, chunk, again))
    }

    /// Removes the older sessions that became part of others, or are stored anew.
    fn forget_sources(&mut self, plan: &Plan) -> Result<()> {
        let (mut rows, mut starts) = (Vec::new(), Vec::new());
        for (key, _, session) in plan.sessions() {
            for source in &session.sources {
                if let Source::Older(start) = *source {
                    rows.push(key.row);
                    starts.push(start);
                }
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let keys = self.state.codec().take(&plan.keys, &rows)?;
        self.forget_older(&keys, &starts)
    }

    fn store_latest(
        &mut self,
        plan: &Plan,
        placed: &[Placed<'_>],
        chunk: &Chunk,
        again: &mut Vec<Entry>,
    ) -> Result<()> {
        let at = self.at_latest();
        let slots: Vec<Slot> = placed.iter().map(|p| p.key.slot).collect();
        let dues = self.put_down_slow(plan, placed)?;
        let values = self.state.values(at.table, at.namespace)?;
        for ((p, &slot), due) in placed.iter().zip(&slots).zip(dues) {
            let slot = slot as usize;
            (START..=DUE).for_each(|column| values.present[column][slot] = true);
            let times = bounds(values)?;
            (times.starts[slot], times.ends[slot], times.dues[slot]) = (p.start, p.session.end, due);
        }
        self.fill(plan, at, placed, &slots, chunk)?;
        let fired_upto = self.time().fired_upto;
        let fired = placed.iter().filter(|p| p.session.end <= fired_upto && !p.session.rows.is_empty());
        again.extend(fired.map(|p| Entry { key: p.key.slot, older: None, start: p.start, end: p.session.end }));
        Ok(())
    }

    fn store_older(
        &mut self,
        plan: &Plan,
        namespace: Namespace,
        placed: &[Placed<'_>],
        chunk: &Chunk,
        again: &mut Vec<Entry>,
    ) -> Result<()> {
        let (at, mut slots) = (self.at_older(namespace), Vec::new());
        let rows: Vec<u32> = placed.iter().map(|p| p.key.row).collect();
        let keys = self.state.codec().take(&plan.keys, &rows)?;
        let dues = self.put_down_slow(plan, placed)?;
        self.state.resolve(at.table, namespace, &keys, &mut slots)?;
        let values = self.state.values(at.table, namespace)?;
        for (p, &slot) in placed.iter().zip(&slots) {
            let slot = slot as usize;
            (START..=END).for_each(|column| values.present[column][slot] = true);
            let [starts, ends] = columns(values)?;
            (starts[slot], ends[slot]) = (p.start, p.session.end);
        }
        self.fill(plan, at, placed, &slots, chunk)?;
        let sessions = placed.iter().zip(dues).map(|(p, due)| (p.start, Old { end: p.session.end, due }));
        self.older.insert(&keys, &sessions.collect::<Vec<_>>())?;
        let fired_upto = self.time().fired_upto;
        for (p, slot) in placed.iter().zip(slots) {
            if p.session.end <= fired_upto && !p.session.rows.is_empty() {
                let older = Some((namespace, slot));
                again.push(Entry { key: p.key.slot, older, start: p.start, end: p.session.end });
            }
        }
        Ok(())
    }

    /// Puts down what nothing is put down for; when each is to be looked at.
    fn put_down_slow(&mut self, plan: &Plan, placed: &[Placed<'_>]) -> Result<Vec<i64>> {
        let (mut due, mut expiry, time) = (Vec::new(), Vec::new(), self.time());
        let dues = placed.iter().map(|p| {
            let end = p.session.end;
            if end <= time.fired_upto {
                if p.session.sources.is_empty() {
                    expiry.push((end, p.key.row));
                }
                return NEVER;
            }
            if p.session.due != NEVER {
                return p.session.due;
            }
            due.push((end, p.key.row));
            end
        });
        let dues = dues.collect();
        self.due.put(self.state.codec(), &plan.keys, &due)?;
        self.expiry.put(self.state.codec(), &plan.keys, &expiry)?;
        Ok(dues)
    }

    /// Writes the accumulators of sessions that are stored at these slots, and adds their rows.
    fn fill(&mut self, plan: &Plan, at: super::At, placed: &[Placed<'_>], slots: &[Slot], chunk: &Chunk) -> Result<()> {
        let numbers: Vec<u32> = placed.iter().map(|p| p.number).collect();
        self.aggregates.put(self.state.as_mut(), at, slots, &chunk.take(&numbers)?)?;
        let (mut rows, mut row_slots) = (Vec::new(), Vec::new());
        for (p, &slot) in placed.iter().zip(slots) {
            rows.extend(sorted(&p.session.rows));
            row_slots.resize(rows.len(), slot);
        }
        let values = self.state.values(at.table, at.namespace)?;
        self.aggregates.add(values, at.base, &plan.batch, Some(&rows), &row_slots)
    }
}

fn sorted(rows: &[u32]) -> Vec<u32> {
    let mut rows = rows.to_vec();
    rows.sort_unstable();
    rows
}

/// Rows by their numbers in the call as rows by their numbers in the batch. What names no row stays outside.
fn in_batch(failure: StageFailure, order: &[u32]) -> StageFailure {
    match failure {
        StageFailure::User(UserFailure::Rows(rows)) => {
            let original = |row: u32| order.get(row as usize).copied().unwrap_or(u32::MAX);
            let rows = rows.into_iter().map(|(row, reason)| (original(row), reason)).collect();
            StageFailure::User(UserFailure::Rows(rows))
        }
        other => other,
    }
}
