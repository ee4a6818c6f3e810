//! Tumbling and sliding windows, made of panes.
//!
//! A pane is as long as the slide (of a tumbling window: the window), so each row is added to one pane, whatever the
//! number of windows that it belongs to; a window is the panes up to its end. Panes are the operator's state: a table
//! with a namespace per pane, named by the pane's end. Windows of several panes are merged by [`Merged`].
//!
//! Invariants: `panes` are the namespaces that have entries. Every window whose end is at or before `fired` has fired,
//! and no other. Windows without rows never appear: the next window is found by looking at the next pane.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use tidemill_core::ids::InputIndex;
use tidemill_core::keys::Keys;
use tidemill_core::operator::{Operator, Output, Progress};
use tidemill_core::snapshot::{SnapshotKind, StateSnapshot, StateSpec};
use tidemill_core::state::{KeyedState, Namespace, Slot, StateBackend, TableId};
use tidemill_core::time::{Timestamp, Watermark};
use tidemill_core::user::{Effects, UserFailure};
use tidemill_core::{Batch, Error, Result};
use tidemill_state::MemoryBackend;

use super::super::aggregate::{Aggregates, At, StageFailure, Staged};
use super::merged::Merged;
use super::{Common, Spans, TIME_LIMIT_MS, key_columns};
use crate::transaction::{Attempt, Outcome, Rows, Transaction};

/// Before every window, and after every window.
const NEVER: i64 = -2 * TIME_LIMIT_MS;
const ALWAYS: i64 = 2 * TIME_LIMIT_MS;

/// The operator.
pub(super) struct PaneWindows {
    core: Core,
    /// Batches whose user code is being run; built-in aggregates need no transaction.
    batch: Option<Batch>,
    transaction: Transaction,
}

struct Core {
    common: Common,
    aggregates: Aggregates,
    state: Box<dyn KeyedState>,
    table: TableId,
    size_ms: i64,
    slide_ms: i64,
    /// Below the slide.
    offset_ms: i64,
    panes: BTreeSet<i64>,
    /// For windows of several panes.
    merged: Option<Merged>,
    /// The end of the last window that was due up to now.
    fired: i64,
    /// The end of the last window that is due by the watermark.
    target: i64,
    firing: Option<Firing>,
    refires: VecDeque<Refire>,
}

/// A window that is being fired, in pieces.
#[derive(Clone, Copy, Debug)]
struct Firing {
    end: i64,
    after: Option<Slot>,
}

/// A window that fires again for some keys.
struct Refire {
    end: i64,
    keys: Keys,
}

/// Rows that are about to be added: nothing is stored yet but entries without values.
struct Prepared {
    batch: Batch,
    keys: Keys,
    groups: Vec<Group>,
    late: Vec<u32>,
}

/// The rows of a batch that belong to one pane.
struct Group {
    pane: i64,
    /// None: all.
    rows: Option<Vec<u32>>,
    /// One per row.
    slots: Vec<Slot>,
    staged: Option<Staged>,
}

impl PaneWindows {
    pub(super) fn new(
        common: Common,
        aggregates: Aggregates,
        mut state: Box<dyn KeyedState>,
        size_ms: u64,
        slide_ms: u64,
        offset_ms: i64,
    ) -> Result<Self> {
        let (size_ms, slide_ms) = (size_ms as i64, slide_ms as i64);
        let table = state.table("panes", aggregates.specs().collect())?;
        state.declared()?;
        let merged = (size_ms > slide_ms).then(|| Merged::new(common.codec()?, &aggregates)).transpose()?;
        let offset_ms = offset_ms.rem_euclid(slide_ms);
        // What the watermark had reached before the state was frozen has fired already.
        let fired = last_due(common.watermark, slide_ms, offset_ms);
        let core = Core {
            panes: state.namespaces(table).into_iter().map(|n| n.0).collect(),
            offset_ms,
            common,
            aggregates,
            state,
            table,
            size_ms,
            slide_ms,
            merged,
            fired,
            target: fired,
            firing: None,
            refires: VecDeque::new(),
        };
        Ok(Self { core, batch: None, transaction: Transaction::default() })
    }

    fn go_on(&mut self, out: &mut dyn Output) -> Result<Progress> {
        if let Some(batch) = &self.batch {
            let now = self.core.common.context.clock.now();
            let mut adding = Adding { core: &mut self.core, batch, prepared: None, out };
            if self.transaction.run(now, &mut adding)? != Outcome::Done {
                return Ok(Progress::More);
            }
            self.batch = None;
        }
        self.core.fire(out)
    }
}

impl Operator for PaneWindows {
    fn process(&mut self, _input: InputIndex, batch: Batch, out: &mut dyn Output) -> Result<Progress> {
        let Some((batch, low, high)) = self.core.common.admit(batch, out)? else { return Ok(Progress::Done) };
        if self.core.aggregates.runs_user_code() {
            self.transaction.start(batch.rows());
            self.batch = Some(batch);
        } else {
            let prepared = self.core.prepare(batch, low, high)?;
            self.core.add(prepared, out)?;
        }
        self.go_on(out)
    }

    fn on_watermark(&mut self, watermark: Watermark, out: &mut dyn Output) -> Result<Progress> {
        self.core.common.watermark = watermark.0;
        self.core.target = last_due(watermark.0, self.core.slide_ms, self.core.offset_ms);
        self.go_on(out)
    }

    fn freeze(&mut self, kind: SnapshotKind) -> Result<bool> {
        self.core.state.freeze(kind).map(|()| true)
    }

    fn copy_frozen(&mut self) -> Result<Option<Box<dyn StateSnapshot>>> {
        self.core.state.copy_frozen()
    }

    fn resume(&mut self, out: &mut dyn Output) -> Result<Progress> {
        self.go_on(out)
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
    prepared: Option<Prepared>,
    out: &'a mut dyn Output,
}

impl Attempt for Adding<'_> {
    fn call(&mut self, rows: &Rows, _effects: &mut Effects) -> Result<Result<(), UserFailure>> {
        let rows = rows.of(self.batch)?;
        let (low, high) = super::bounds(rows.timestamps().map_or(&[][..], |t| t));
        let mut prepared = self.core.prepare(rows, low, high)?;
        let staged = self.core.stage(&mut prepared)?;
        self.prepared = Some(prepared);
        Ok(staged)
    }

    fn apply(&mut self, _rows: &Rows, _effects: &mut Effects) -> Result<()> {
        let prepared = self.prepared.take().ok_or_else(|| Error::internal("rows applied without a call"))?;
        self.core.add(prepared, self.out)
    }

    fn set_aside(&mut self, row: usize, reason: String) -> Result<()> {
        self.core.common.set_aside(self.batch, row, reason, self.out)
    }

    fn repeated(&mut self) {
        self.core.common.context.metrics.retries.add(1);
    }
}

impl Core {
    /// The end of the pane of a timestamp.
    fn pane_of(&self, timestamp: i64) -> i64 {
        pane_of(timestamp, self.slide_ms, self.offset_ms)
    }

    /// The end of the last window that has a pane.
    fn last_window(&self, pane: i64) -> i64 {
        pane - self.slide_ms + self.size_ms
    }

    /// Finds the panes of rows and their keys' slots in them.
    fn prepare(&mut self, batch: Batch, low: i64, high: i64) -> Result<Prepared> {
        let keys = self.common.keys(self.state.as_ref(), &batch)?;
        let mut prepared = Prepared { keys, groups: Vec::new(), late: Vec::new(), batch };
        for (pane, rows) in self.split(&prepared.batch, low, high) {
            if self.common.is_expired(self.last_window(pane)) {
                prepared.late.extend(rows.unwrap_or_else(|| (0..prepared.batch.rows() as u32).collect()));
                continue;
            }
            let (mut slots, namespace) = (Vec::new(), Namespace(pane));
            match &rows {
                None => self.state.resolve(self.table, namespace, &prepared.keys, &mut slots)?,
                Some(rows) => self.state.resolve_rows(self.table, namespace, &prepared.keys, rows, &mut slots)?,
            }
            prepared.groups.push(Group { pane, rows, slots, staged: None });
        }
        Ok(prepared)
    }

    /// The rows by pane, ascending.
    fn split(&self, batch: &Batch, low: i64, high: i64) -> Vec<(i64, Option<Vec<u32>>)> {
        let first = self.pane_of(low);
        if high < first {
            return vec![(first, None)];
        }
        let mut groups: Vec<(i64, Vec<u32>)> = Vec::new();
        let mut group_of: HashMap<i64, usize> = HashMap::new();
        // Neighbours are nearly always in the same pane: only where that changes is the group looked up.
        let (mut pane, mut current) = (i64::MIN, 0);
        for (row, &timestamp) in batch.timestamps().map_or(&[][..], |t| t).iter().enumerate() {
            if timestamp >= pane || timestamp < pane.saturating_sub(self.slide_ms) {
                pane = self.pane_of(timestamp);
                current = *group_of.entry(pane).or_insert_with(|| {
                    groups.push((pane, Vec::new()));
                    groups.len() - 1
                });
            }
            if let Some((_, rows)) = groups.get_mut(current) {
                rows.push(row as u32);
            }
        }
        groups.sort_unstable_by_key(|(pane, _)| *pane);
        groups.into_iter().map(|(pane, rows)| (pane, Some(rows))).collect()
    }

    /// Runs the user's aggregators on prepared rows. If they fail, the entries that were added for the rows go again.
    fn stage(&mut self, prepared: &mut Prepared) -> Result<Result<(), UserFailure>> {
        let mut failure = None;
        for group in &mut prepared.groups {
            let at = At { table: self.table, namespace: Namespace(group.pane), base: 0 };
            let rows = match &group.rows {
                None => prepared.batch.clone(),
                Some(rows) => prepared.batch.take(&rows.clone().into())?,
            };
            match self.aggregates.stage(self.state.as_mut(), at, &rows, &group.slots, false) {
                Ok(staged) => group.staged = Some(staged),
                Err(StageFailure::Engine(error)) => return Err(error),
                Err(StageFailure::User(UserFailure::Rows(rows))) => {
                    failure = Some(UserFailure::Rows(in_batch(rows, group.rows.as_deref())));
                    break;
                }
                Err(StageFailure::User(other)) => {
                    failure = Some(other);
                    break;
                }
            }
        }
        let Some(failure) = failure else { return Ok(Ok(())) };
        for group in &prepared.groups {
            self.state.remove_vacant(self.table, Namespace(group.pane), &group.slots)?;
        }
        Ok(Err(failure))
    }

    /// Adds prepared rows to their panes, and notes which windows fire again.
    fn add(&mut self, prepared: Prepared, out: &mut dyn Output) -> Result<()> {
        let Prepared { batch, keys, groups, late } = prepared;
        let mut refires: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        for group in &groups {
            let (at, rows) =
                (At { table: self.table, namespace: Namespace(group.pane), base: 0 }, group.rows.as_deref());
            let values = self.state.values(at.table, at.namespace)?;
            self.aggregates.add(values, at.base, &batch, rows, &group.slots)?;
            if let Some(staged) = &group.staged {
                self.aggregates.store(self.state.as_mut(), at, staged)?;
            }
            self.panes.insert(group.pane);
            if let Some(merged) = &mut self.merged {
                merged.late(&mut self.aggregates, group.pane, &keys, &batch, rows)?;
            }
            self.note_refires(group, batch.rows(), &mut refires);
        }
        for (end, rows) in refires {
            let keys = self.distinct(&keys, &rows)?;
            self.refires.push_back(Refire { end, keys });
        }
        self.common.emit_late(&batch, late, out)
    }

    /// The windows of a pane that have fired but not expired, with the rows of the pane.
    fn note_refires(&self, group: &Group, rows: usize, refires: &mut BTreeMap<i64, Vec<u32>>) {
        let mut end = group.pane;
        while end <= self.last_window(group.pane) && self.common.is_fired(end) {
            if !self.common.is_expired(end) {
                let of_window = refires.entry(end).or_default();
                match &group.rows {
                    None => of_window.extend(0..rows as u32),
                    Some(rows) => of_window.extend(rows),
                }
            }
            end += self.slide_ms;
        }
    }

    /// Each key of these rows once.
    fn distinct(&self, keys: &Keys, rows: &[u32]) -> Result<Keys> {
        let mut index = MemoryBackend::new().open(StateSpec::empty(self.common.codec()?))?;
        let (table, mut slots) = (index.table("distinct", Vec::new())?, Vec::new());
        index.resolve_rows(table, Namespace::GLOBAL, keys, rows, &mut slots)?;
        // New slots are given in ascending order, so a row is its key's first if it has the next slot.
        let mut next = 0;
        let firsts = rows.iter().zip(&slots).filter(|(_, slot)| {
            let first = **slot == next;
            next += u32::from(first);
            first
        });
        let firsts: Vec<u32> = firsts.map(|(&row, _)| row).collect();
        self.state.codec().take(keys, &firsts)
    }

    /// Fires what is due, in pieces, until the output is full.
    fn fire(&mut self, out: &mut dyn Output) -> Result<Progress> {
        while let Some(refire) = self.refires.pop_front() {
            self.fire_again(refire, out)?;
            if out.is_full() {
                return Ok(Progress::More);
            }
        }
        while let Some(firing) = self.firing.or_else(|| self.next_window()) {
            if self.firing.is_none() {
                let window = (firing.end - self.size_ms, firing.end);
                if let Some(merged) = &mut self.merged {
                    merged.advance(&mut self.aggregates, self.state.as_mut(), (self.table, &self.panes), window)?;
                    self.common.caches.hold(merged.memory_bytes())?;
                }
            }
            self.firing = self.fire_piece(firing, out)?;
            if self.firing.is_none() {
                self.fired = firing.end;
                self.purge()?;
            }
            if out.is_full() {
                return Ok(Progress::More);
            }
        }
        self.fired = self.target;
        self.purge()?;
        self.state.commit()?;
        let merged = self.merged.as_ref().map_or(0, Merged::memory_bytes);
        self.common.show_state(self.state.as_ref(), merged)?;
        Ok(Progress::Done)
    }

    /// The next window that has rows, if it is due.
    fn next_window(&self) -> Option<Firing> {
        let next = self.fired + self.slide_ms;
        let pane = *self.panes.range(next - self.size_ms + 1..).next()?;
        let end = next.max(pane);
        (end <= self.target).then_some(Firing { end, after: None })
    }

    /// Emits one batch of a window's results; what is left of the window, if anything.
    fn fire_piece(&mut self, firing: Firing, out: &mut dyn Output) -> Result<Option<Firing>> {
        let limit = self.common.context.batch_rows.max(1);
        let (slots, chunk, key) = match &mut self.merged {
            Some(merged) => {
                let (slots, chunk) = merged.scan(&mut self.aggregates, firing.after, limit)?;
                let key = merged.key_columns(&slots)?;
                (slots, chunk, key)
            }
            None => {
                let at = At { table: self.table, namespace: Namespace(firing.end), base: 0 };
                let mut slots = Vec::new();
                self.state.scan(at.table, at.namespace, firing.after, limit, &mut slots)?;
                let chunk = self.aggregates.gather(self.state.as_mut(), at, &slots)?;
                let key = self.state.key_columns(at.table, at.namespace, &slots)?;
                (slots, chunk, key)
            }
        };
        if !slots.is_empty() {
            let results = self.aggregates.finish(&chunk)?;
            let span = Spans::One { start: firing.end - self.size_ms, end: firing.end };
            self.common.emit_result(slots.len(), &key, &span, &results, out)?;
        }
        let more = slots.len() == limit;
        Ok(more.then_some(Firing { end: firing.end, after: slots.last().copied() }))
    }

    /// Merges some keys' panes of a window and emits the result.
    fn fire_again(&mut self, refire: Refire, out: &mut dyn Output) -> Result<()> {
        let Refire { end, keys } = refire;
        let (mut slots, mut merged) = (Vec::new(), None);
        for &pane in self.panes.range(end - self.size_ms + 1..=end) {
            let at = At { table: self.table, namespace: Namespace(pane), base: 0 };
            self.state.find(at.table, at.namespace, &keys, &mut slots)?;
            let chunk = self.aggregates.gather(self.state.as_mut(), at, &slots)?;
            merged = Some(match merged {
                None => chunk,
                Some(before) => self.aggregates.combine(before, &chunk)?,
            });
        }
        let Some(chunk) = merged else { return Ok(()) };
        let results = self.aggregates.finish(&chunk)?;
        let key = key_columns(self.state.codec(), &keys)?;
        let span = Spans::One { start: end - self.size_ms, end };
        self.common.emit_result(keys.len(), &key, &span, &results, out)
    }

    /// Drops the panes whose last window has fired and expired.
    fn purge(&mut self) -> Result<()> {
        while let Some(&pane) = self.panes.first() {
            let last = self.last_window(pane);
            if last > self.fired || !self.common.is_expired(last) {
                break;
            }
            self.panes.pop_first();
            self.state.drop_namespace(self.table, Namespace(pane))?;
        }
        Ok(())
    }
}

/// The end of the pane of a timestamp.
fn pane_of(timestamp: i64, slide_ms: i64, offset_ms: i64) -> i64 {
    (timestamp - offset_ms).div_euclid(slide_ms) * slide_ms + offset_ms + slide_ms
}

/// The end of the last window that is due at a watermark.
fn last_due(watermark: i64, slide_ms: i64, offset_ms: i64) -> i64 {
    pane_of(watermark.clamp(NEVER, ALWAYS - 1) + 1, slide_ms, offset_ms) - slide_ms
}

/// Row numbers within a group as row numbers within the batch. What names no row stays outside.
fn in_batch(rows: Vec<(u32, String)>, group: Option<&[u32]>) -> Vec<(u32, String)> {
    let Some(group) = group else { return rows };
    let original = |row: u32| group.get(row as usize).copied().unwrap_or(u32::MAX);
    rows.into_iter().map(|(row, reason)| (original(row), reason)).collect()
}
