//! The sessions that a key has beside its latest, in order of time.
//!
//! A cache of what the table of older sessions holds, for finding the session of a row among very many of one key. It
//! has a hash index of its own, whose slots stay while a key has an older session.
#![allow(clippy::indexing_slicing, reason = "sessions is as long as the largest slot that the index answered")]

use std::collections::BTreeMap;

use tidemill_core::Result;
use tidemill_core::keys::{KeyCodec, Keys};
use tidemill_core::snapshot::StateSpec;
use tidemill_core::state::{KeyedState, Namespace, Slot, StateBackend, TableId};
use tidemill_state::MemoryBackend;

/// One of them; the map that it is in has its start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Old {
    pub(super) end: i64,
    /// As of the latest session: when it is to be looked at, [`super::NEVER`] if it has fired.
    pub(super) due: i64,
}

/// By key.
pub(super) struct Older {
    index: Box<dyn KeyedState>,
    table: TableId,
    sessions: Vec<BTreeMap<i64, Old>>,
    count: usize,
    /// How many keys are here, by some bits of their hashes: most rows that ask find nothing.
    filter: Vec<u32>,
}

/// Counters of the filter: 256 kB, which stays in the second-level cache. Far more keys than that make it answer "maybe".
const FILTER: usize = 1 << 16;

impl Older {
    pub(super) fn new(codec: KeyCodec) -> Result<Self> {
        let mut index = MemoryBackend::new().open(StateSpec::empty(codec))?;
        let table = index.table("keys", Vec::new())?;
        Ok(Self { index, table, sessions: Vec::new(), count: 0, filter: vec![0; FILTER] })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a key with this hash may have sessions here; false: it has none.
    pub(super) fn may_have(&self, hash: u64) -> bool {
        self.count > 0 && self.filter[filtered(hash)] > 0
    }

    /// Per key, where its sessions are, for `of`; [`tidemill_core::state::NO_SLOT`]: it has none.
    pub(super) fn find(&mut self, keys: &Keys) -> Result<Vec<Slot>> {
        let mut slots = Vec::new();
        self.index.find(self.table, Namespace::GLOBAL, keys, &mut slots)?;
        Ok(slots)
    }

    pub(super) fn of(&self, slot: Slot) -> Option<&BTreeMap<i64, Old>> {
        self.sessions.get(slot as usize)
    }

    /// The session whose span has this end of a session that may have become part of it.
    pub(super) fn containing(&mut self, slot: Slot, end: i64) -> Option<(i64, &mut Old)> {
        let (&start, old) = self.sessions.get_mut(slot as usize)?.range_mut(..end).next_back()?;
        (end <= old.end).then_some((start, old))
    }

    /// Adds a session per key.
    pub(super) fn insert(&mut self, keys: &Keys, sessions: &[(i64, Old)]) -> Result<()> {
        let mut slots = Vec::new();
        self.index.resolve(self.table, Namespace::GLOBAL, keys, &mut slots)?;
        for ((&slot, &(start, old)), &hash) in slots.iter().zip(sessions).zip(&keys.hashes) {
            if slot as usize >= self.sessions.len() {
                self.sessions.resize_with(slot as usize + 1, BTreeMap::new);
            }
            self.filter[filtered(hash)] += u32::from(self.sessions[slot as usize].is_empty());
            self.count += usize::from(self.sessions[slot as usize].insert(start, old).is_none());
        }
        Ok(())
    }

    /// Removes a session per key, by its start.
    pub(super) fn remove(&mut self, keys: &Keys, starts: &[i64]) -> Result<()> {
        let (slots, mut gone) = (self.find(keys)?, Vec::new());
        for ((&slot, start), &hash) in slots.iter().zip(starts).zip(&keys.hashes) {
            let Some(sessions) = self.sessions.get_mut(slot as usize) else { continue };
            if sessions.remove(start).is_none() {
                continue;
            }
            self.count -= 1;
            if sessions.is_empty() {
                self.filter[filtered(hash)] -= 1;
                gone.push(slot);
            }
        }
        if !gone.is_empty() {
            self.index.remove(self.table, Namespace::GLOBAL, &gone)?;
        }
        Ok(())
    }

    /// Bytes held.
    pub(super) fn memory_bytes(&self) -> usize {
        // B-trees are about two thirds full.
        let sessions = self.count * 36 + self.sessions.capacity() * size_of::<BTreeMap<i64, Old>>();
        self.index.memory_bytes() + sessions + FILTER * size_of::<u32>()
    }
}

/// Its counter. The highest bits choose the key group, so a subtask has few of them; the lowest place keys in tables.
fn filtered(hash: u64) -> usize {
    (hash >> 24) as usize % FILTER
}
