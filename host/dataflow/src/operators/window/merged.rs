//! The aggregates of a sliding window over its panes, kept from one window to the next.
//!
//! Two stacks (as in "Low-Latency Sliding-Window Aggregation in Worst-Case Constant Time", Tangwongsan et al. 2017, the
//! simpler of its algorithms), by key: `back` is the aggregate of the panes that entered since the last *flip*, `front`
//! that of the older ones, and the window's aggregate is both combined. A pane leaves by undoing what it did to `front`:
//! the flip merges panes from the newest to the oldest, and keeps for each pane and key what `front` held before. So
//! each (pane, key) costs one merge when it enters and one in a flip, whatever the number of panes per window, and no
//! aggregate needs an inverse. Subtracting instead would cost the same look-ups and work for counts and sums only.
//!
//! All of this derives from the panes in state and can be made from them again at any time; it is kept in an index of
//! its own, in memory, whose slots stay while a key has a pane in the window.
//!
//! Invariants: `refs[slot]` is the number of pieces that have the slot; `front` is sorted by pane, descending, and no
//! pane of `back` is older than one of `front`.
#![allow(clippy::indexing_slicing, reason = "refs is as long as the largest slot that the index answered")]

use std::collections::BTreeSet;

use arrow::array::ArrayRef;
use tidemill_core::keys::{KeyCodec, Keys};
use tidemill_core::snapshot::StateSpec;
use tidemill_core::state::{KeyedState, NO_SLOT, Namespace, Slot, StateBackend, TableId, ValueSpec};
use tidemill_core::{Batch, Result};
use tidemill_state::MemoryBackend;

use super::super::aggregate::{Aggregates, At, Chunk};

/// Keys that are merged at a time: their accumulators stay in the cache between the steps.
const PIECE: usize = 4_096;

/// The panes of the window that fired last, merged by key.
pub(super) struct Merged {
    index: Box<dyn KeyedState>,
    window: TableId,
    scratch: TableId,
    /// Where `back`'s columns begin.
    width: usize,
    refs: Vec<u32>,
    front: Vec<Piece>,
    back: Vec<Piece>,
    /// The window's end and the end of the pane before its first; none: nothing is merged.
    covered: Option<(i64, i64)>,
    slots: Vec<Slot>,
}

/// Some keys of a pane, each at most once.
struct Piece {
    pane: i64,
    slots: Vec<Slot>,
    /// In `back`: the pane's accumulators. In `front`: what `front` held before they were merged into it.
    chunk: Chunk,
}

impl Merged {
    pub(super) fn new(codec: KeyCodec, aggregates: &Aggregates) -> Result<Self> {
        let mut index = MemoryBackend::new().open(StateSpec::empty(codec))?;
        let specs = |side: &str| -> Vec<ValueSpec> {
            let side = |s: ValueSpec| ValueSpec { name: format!("{side}.{}", s.name), ..s };
            aggregates.specs().map(side).collect()
        };
        let window = index.table("window", specs("front").into_iter().chain(specs("back")).collect())?;
        let scratch = index.table("late", specs("late"))?;
        let width = aggregates.width();
        let (refs, front, back) = Default::default();
        Ok(Self { index, window, scratch, width, refs, front, back, covered: None, slots: Vec::new() })
    }

    /// Forgets everything; the next `advance` starts from the panes.
    pub(super) fn reset(&mut self) -> Result<()> {
        self.index.drop_namespace(self.window, Namespace::GLOBAL)?;
        self.refs.clear();
        self.front.clear();
        self.back.clear();
        self.covered = None;
        Ok(())
    }

    /// Moves to the window `(before, end]` of pane ends. Windows are visited in ascending order.
    pub(super) fn advance(
        &mut self,
        aggregates: &mut Aggregates,
        state: &mut dyn KeyedState,
        panes: (TableId, &BTreeSet<i64>),
        (before, end): (i64, i64),
    ) -> Result<()> {
        if self.covered.is_some_and(|(_, last)| last <= before) {
            self.reset()?;
        }
        self.leave(aggregates, before)?;
        let from = self.covered.map_or(before, |(_, last)| last.max(before));
        for &pane in panes.1.range(from + 1..=end) {
            self.enter_pane(aggregates, state, panes.0, pane)?;
        }
        self.covered = Some((before, end));
        Ok(())
    }

    /// Up to `limit` keys of the window after a slot, with their accumulators: the slots and the accumulators.
    pub(super) fn scan(
        &mut self,
        aggregates: &mut Aggregates,
        after: Option<Slot>,
        limit: usize,
    ) -> Result<(Vec<Slot>, Chunk)> {
        let mut slots = Vec::new();
        self.index.scan(self.window, Namespace::GLOBAL, after, limit, &mut slots)?;
        let (front, back) = (self.at_front(), self.at_back());
        let front = aggregates.gather(self.index.as_mut(), front, &slots)?;
        let back = aggregates.gather(self.index.as_mut(), back, &slots)?;
        Ok((slots, aggregates.combine(front, &back)?))
    }

    /// The keys at slots of `scan`.
    pub(super) fn key_columns(&mut self, slots: &[Slot]) -> Result<Vec<ArrayRef>> {
        self.index.key_columns(self.window, Namespace::GLOBAL, slots)
    }

    /// Rows were added to a pane: takes them over if the pane is in the window.
    pub(super) fn late(
        &mut self,
        aggregates: &mut Aggregates,
        pane: i64,
        keys: &Keys,
        batch: &Batch,
        rows: Option<&[u32]>,
    ) -> Result<()> {
        if !self.covered.is_some_and(|(before, end)| before < pane && pane <= end) {
            return Ok(());
        }
        // A pane of `front` is part of what others would be undone to. Users' rows would have to be added twice, which
        // could fail. In both cases the next window starts from the panes.
        if aggregates.runs_user_code() || self.front.first().is_some_and(|newest| pane <= newest.pane) {
            return self.reset();
        }
        let at = At { table: self.scratch, namespace: Namespace::GLOBAL, base: 0 };
        let mut slots = std::mem::take(&mut self.slots);
        match rows {
            None => self.index.resolve(at.table, at.namespace, keys, &mut slots)?,
            Some(rows) => self.index.resolve_rows(at.table, at.namespace, keys, rows, &mut slots)?,
        }
        aggregates.add(self.index.values(at.table, at.namespace)?, 0, batch, rows, &slots)?;
        slots.sort_unstable();
        slots.dedup();
        let keys = self.index.keys(at.table, at.namespace, &slots)?;
        let chunk = aggregates.gather(self.index.as_mut(), at, &slots)?;
        self.index.drop_namespace(at.table, at.namespace)?;
        self.slots = slots;
        self.enter(aggregates, pane, &keys, chunk)
    }

    /// Bytes held.
    pub(super) fn memory_bytes(&self) -> usize {
        let pieces = self.front.iter().chain(&self.back);
        let pieces: usize = pieces.map(|p| p.slots.capacity() * size_of::<Slot>() + p.chunk.memory_bytes()).sum();
        self.index.memory_bytes() + pieces + self.refs.capacity() * size_of::<u32>()
    }

    fn at_front(&self) -> At {
        At { table: self.window, namespace: Namespace::GLOBAL, base: 0 }
    }

    fn at_back(&self) -> At {
        At { base: self.width, ..self.at_front() }
    }

    fn enter_pane(
        &mut self,
        aggregates: &mut Aggregates,
        state: &mut dyn KeyedState,
        table: TableId,
        pane: i64,
    ) -> Result<()> {
        let at = At { table, namespace: Namespace(pane), base: 0 };
        let mut after = None;
        loop {
            let mut slots = std::mem::take(&mut self.slots);
            state.scan(table, at.namespace, after, PIECE, &mut slots)?;
            after = slots.last().copied();
            if after.is_some() {
                let keys = state.keys(table, at.namespace, &slots)?;
                let chunk = aggregates.gather(state, at, &slots)?;
                self.enter(aggregates, pane, &keys, chunk)?;
            }
            self.slots = slots;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    fn enter(&mut self, aggregates: &mut Aggregates, pane: i64, keys: &Keys, chunk: Chunk) -> Result<()> {
        let mut slots = Vec::with_capacity(keys.len());
        self.index.resolve(self.window, Namespace::GLOBAL, keys, &mut slots)?;
        let needed = slots.iter().max().map_or(0, |&s| s as usize + 1);
        if needed > self.refs.len() {
            self.refs.resize(needed, 0);
        }
        slots.iter().for_each(|&slot| self.refs[slot as usize] += 1);
        let at = self.at_back();
        let before = aggregates.gather(self.index.as_mut(), at, &slots)?;
        let after = aggregates.combine(before, &chunk)?;
        aggregates.put(self.index.as_mut(), at, &slots, &after)?;
        self.back.push(Piece { pane, slots, chunk });
        Ok(())
    }

    /// Takes out the panes up to `before`.
    fn leave(&mut self, aggregates: &mut Aggregates, before: i64) -> Result<()> {
        self.undo(aggregates, before)?;
        if self.front.is_empty() && self.back.iter().any(|p| p.pane <= before) {
            self.flip(aggregates, before)?;
        }
        Ok(())
    }

    fn undo(&mut self, aggregates: &Aggregates, before: i64) -> Result<()> {
        let front = self.at_front();
        while let Some(piece) = self.front.pop_if(|p| p.pane <= before) {
            aggregates.put(self.index.as_mut(), front, &piece.slots, &piece.chunk)?;
            self.unref(&piece.slots)?;
        }
        Ok(())
    }

    fn flip(&mut self, aggregates: &mut Aggregates, before: i64) -> Result<()> {
        let mut pieces = std::mem::take(&mut self.back);
        pieces.sort_by_key(|p| std::cmp::Reverse(p.pane));
        let (front, back) = (self.at_front(), self.at_back());
        for mut piece in pieces {
            let none = aggregates.gather(self.index.as_mut(), back, &vec![NO_SLOT; piece.slots.len()])?;
            aggregates.put(self.index.as_mut(), back, &piece.slots, &none)?;
            if piece.pane <= before {
                self.unref(&piece.slots)?;
                continue;
            }
            let newer = aggregates.gather(self.index.as_mut(), front, &piece.slots)?;
            let merged = aggregates.combine(std::mem::take(&mut piece.chunk), &newer)?;
            aggregates.put(self.index.as_mut(), front, &piece.slots, &merged)?;
            piece.chunk = newer;
            self.front.push(piece);
        }
        Ok(())
    }

    fn unref(&mut self, slots: &[Slot]) -> Result<()> {
        let mut gone = Vec::new();
        for &slot in slots {
            let refs = &mut self.refs[slot as usize];
            *refs -= 1;
            if *refs == 0 {
                gone.push(slot);
            }
        }
        self.index.remove(self.window, Namespace::GLOBAL, &gone)
    }
}
