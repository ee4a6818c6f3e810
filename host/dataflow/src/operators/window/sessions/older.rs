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
}

impl Older {
    pub(super) fn new(codec: KeyCodec) -> Result<Self> {
        let mut index = MemoryBackend::new().open(StateSpec::empty(codec))?;
        let table = index.table("keys", Vec::new())?;
        Ok(Self { index, table, sessions: Vec::new(), count: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
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
        for (&slot, &(start, old)) in slots.iter().zip(sessions) {
            if slot as usize >= self.sessions.len() {
                self.sessions.resize_with(slot as usize + 1, BTreeMap::new);
            }
            self.count += usize::from(self.sessions[slot as usize].insert(start, old).is_none());
        }
        Ok(())
    }

    /// Removes a session per key, by its start.
    pub(super) fn remove(&mut self, keys: &Keys, starts: &[i64]) -> Result<()> {
        let (slots, mut gone) = (self.find(keys)?, Vec::new());
        for (&slot, start) in slots.iter().zip(starts) {
            let Some(sessions) = self.sessions.get_mut(slot as usize) else { continue };
            self.count -= usize::from(sessions.remove(start).is_some());
            if sessions.is_empty() {
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
        self.index.memory_bytes() + sessions
    }
}
