//! What the rows of a batch do to sessions, before any accumulator is touched.
//!
//! Nearly every row falls into the latest session of its key, extends it at either end, or begins the first one: that is
//! decided in one loop over the rows, which moves the bounds of the sessions in place. The rows of all other keys are
//! *slow*: their sessions are laid out one by one, in order of time, with the stored sessions that they touch.
//!
//! Invariant: a plan that is undone leaves nothing but entries without values.
#![allow(clippy::indexing_slicing, reason = "slots were resolved in the columns, rows lie within their batch")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tidemill_core::Batch;
use tidemill_core::keys::Keys;
use tidemill_core::state::Slot;

use super::NEVER;
use super::older::{Old, Older};

/// The bounds of a key's latest session while its rows are slow: no row falls into it.
const MARKED: i64 = i64::MAX;

/// In `before`: the row left the start as it is.
const KEPT: i64 = i64::MIN;

/// What a batch does.
pub(super) struct Plan {
    pub(super) batch: Batch,
    pub(super) keys: Keys,
    /// Per row, the entry of its key's latest session.
    pub(super) slots: Vec<Slot>,
    /// The rows that fall into their key's latest session, whose bounds have been moved; none: all.
    pub(super) fast: Option<Fast>,
    /// Of these, those that began a session, or moved the end of one that has fired.
    pub(super) moved: Vec<u32>,
    pub(super) late: Vec<u32>,
    pub(super) slow: Vec<SlowKey>,
    /// Per row, the bounds of the latest session before it; those of an empty entry are equal.
    pub(super) before: Vec<(i64, i64)>,
}

#[derive(Default)]
pub(super) struct Fast {
    pub(super) rows: Vec<u32>,
    pub(super) slots: Vec<Slot>,
}

/// A key whose rows do not all fall into its latest session.
pub(super) struct SlowKey {
    pub(super) slot: Slot,
    /// A row that has the key.
    pub(super) row: u32,
    /// Those sessions that its rows touch, and the latest, by start: as they will be.
    pub(super) sessions: BTreeMap<i64, Session>,
    /// Starts of the older sessions that are among them.
    taken: BTreeSet<i64>,
}

/// A session as it will be.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) end: i64,
    /// When it is to be looked at, by what is put down already; [`NEVER`]: nothing is.
    pub(super) due: i64,
    /// The stored sessions that become part of it, in order of time.
    pub(super) sources: Vec<Source>,
    /// The rows that fall into it.
    pub(super) rows: Vec<u32>,
}

/// A stored session of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Latest,
    /// With this start.
    Older(i64),
}

/// The bounds of the latest sessions, by slot.
pub(super) struct Bounds<'a> {
    pub(super) starts: &'a mut [i64],
    pub(super) ends: &'a mut [i64],
    pub(super) dues: &'a mut [i64],
}

/// What time it is for sessions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    pub(super) gap_ms: i64,
    /// A session has fired if it ends here or before.
    pub(super) fired_upto: i64,
    /// A session is forgotten if it ends here or before.
    pub(super) expired_upto: i64,
}

impl Plan {
    /// Decides on all rows but the slow ones, which are answered: their keys are in `slow`, without older sessions yet.
    pub(super) fn new(
        batch: Batch,
        keys: Keys,
        slots: Vec<Slot>,
        bounds: &mut Bounds<'_>,
        older: &Older,
        time: Time,
    ) -> (Self, Vec<u32>) {
        let before = Vec::with_capacity(slots.len());
        let (fast, moved, late, slow) = Default::default();
        let mut plan = Self { batch, keys, slots, fast, moved, late, slow, before };
        let any_slow = plan.extend_latest(bounds, older, time);
        let deferred = if any_slow { plan.defer(bounds) } else { Vec::new() };
        if any_slow || !plan.late.is_empty() {
            let mut left_out = deferred.iter().chain(&plan.late).copied().collect::<Vec<u32>>();
            left_out.sort_unstable();
            let mut left_out = left_out.into_iter().peekable();
            let rows: Vec<u32> = (0..plan.slots.len() as u32).filter(|r| left_out.next_if_eq(r).is_none()).collect();
            let slots = rows.iter().map(|&r| plan.slots[r as usize]).collect();
            plan.fast = Some(Fast { rows, slots });
        }
        (plan, deferred)
    }

    /// The loop over all rows; whether some are slow.
    fn extend_latest(&mut self, bounds: &mut Bounds<'_>, older: &Older, time: Time) -> bool {
        let mut any_slow = false;
        let times = self.batch.timestamps().map_or(&[][..], |t| t);
        for (row, (&t, &slot)) in times.iter().zip(&self.slots).enumerate() {
            let slot = slot as usize;
            let (end, reached) = (bounds.ends[slot], t + time.gap_ms);
            // A session lasts at least from a gap before its end, so its start need not be looked at: a column less to
            // fetch. An empty entry has an end of 0, which may be that of a session too.
            if t <= end && end <= reached && end != 0 {
                self.before.push((KEPT, end));
                if reached > end {
                    bounds.ends[slot] = reached;
                    if end <= time.fired_upto {
                        self.moved.push(row as u32);
                    }
                }
                continue;
            }
            let start = bounds.starts[slot];
            self.before.push((start, end));
            if start <= t && t <= end && start < end {
                if reached > end {
                    bounds.ends[slot] = reached;
                    if end <= time.fired_upto {
                        self.moved.push(row as u32);
                    }
                }
            } else if start == end {
                // No entry but an empty one has equal bounds.
                if reached <= time.expired_upto {
                    self.late.push(row as u32);
                } else {
                    (bounds.starts[slot], bounds.ends[slot]) = (t, reached);
                    self.moved.push(row as u32);
                }
            } else if start < end && t < start && start <= reached && !older.may_have(self.keys.hashes[row]) {
                // It touches the latest session from before, and there is no other that it could touch too.
                bounds.starts[slot] = t;
            } else {
                bounds.starts[slot] = MARKED;
                any_slow = true;
            }
        }
        any_slow
    }

    /// Takes back what rows of slow keys did; these rows.
    fn defer(&mut self, bounds: &mut Bounds<'_>) -> Vec<u32> {
        let is_slow = |row: &u32| bounds.starts[self.slots[*row as usize] as usize] == MARKED;
        let deferred: Vec<u32> = (0..self.slots.len() as u32).filter(is_slow).collect();
        self.moved.retain(|row| !is_slow(row));
        self.late.retain(|row| !is_slow(row));
        self.restore(bounds, deferred.iter().rev().copied());
        let mut number_of: HashMap<Slot, ()> = HashMap::new();
        for &row in &deferred {
            let slot = self.slots[row as usize];
            if number_of.insert(slot, ()).is_some() {
                continue;
            }
            let at = slot as usize;
            let mut sessions = BTreeMap::new();
            let (start, end) = (bounds.starts[at], bounds.ends[at]);
            if start < end {
                let latest = Session { end, due: bounds.dues[at], sources: vec![Source::Latest], rows: Vec::new() };
                sessions.insert(start, latest);
            }
            self.slow.push(SlowKey { slot, row, sessions, taken: BTreeSet::new() });
        }
        deferred
    }

    fn restore(&self, bounds: &mut Bounds<'_>, rows: impl Iterator<Item = u32>) {
        for row in rows {
            let slot = self.slots[row as usize] as usize;
            let (start, end) = self.before[row as usize];
            if start != KEPT {
                bounds.starts[slot] = start;
            }
            bounds.ends[slot] = end;
        }
    }

    /// Takes back everything.
    pub(super) fn undo(&self, bounds: &mut Bounds<'_>) {
        self.restore(bounds, (0..self.slots.len() as u32).rev());
    }

    /// Lays out the sessions of slow keys: `rows` as answered, `older` has what is stored for each of `slow`.
    pub(super) fn lay_out(&mut self, rows: &[u32], older: &[Option<&BTreeMap<i64, Old>>], time: Time) {
        let number_of: HashMap<Slot, usize> = self.slow.iter().enumerate().map(|(i, key)| (key.slot, i)).collect();
        let times = self.batch.timestamps().map_or(&[][..], |t| t);
        for &row in rows {
            let Some(&number) = number_of.get(&self.slots[row as usize]) else { continue };
            if !self.slow[number].add(row, times[row as usize], older[number], time) {
                self.late.push(row);
            }
        }
    }

    /// The rows that fall into their key's latest session, and its entry for each; no rows: all.
    pub(super) fn fast(&self) -> (Option<&[u32]>, &[Slot]) {
        match &self.fast {
            None => (None, &self.slots),
            Some(fast) => (Some(&fast.rows), &fast.slots),
        }
    }

    /// The sessions of slow keys, each with its key and its start.
    pub(super) fn sessions(&self) -> impl Iterator<Item = (&SlowKey, i64, &Session)> {
        self.slow.iter().flat_map(|key| key.sessions.iter().map(move |(&start, session)| (key, start, session)))
    }
}

impl SlowKey {
    /// Adds a row to the session that it falls into, extends, joins or begins; false: it is too late for all.
    fn add(&mut self, row: u32, t: i64, older: Option<&BTreeMap<i64, Old>>, time: Time) -> bool {
        let reached = t + time.gap_ms;
        for (&start, old) in older.into_iter().flat_map(|o| o.range(..=reached).rev()).take_while(|(_, o)| o.end >= t) {
            if self.taken.insert(start) {
                let sources = vec![Source::Older(start)];
                self.sessions.insert(start, Session { end: old.end, due: old.due, sources, rows: Vec::new() });
            }
        }
        let touched = self.sessions.range(..=reached).rev().take_while(|(_, s)| s.end >= t);
        let touched: Vec<i64> = touched.map(|(&start, _)| start).collect();
        if touched.is_empty() && reached <= time.expired_upto {
            return false;
        }
        let mut joined = Session { end: reached, due: NEVER, sources: Vec::new(), rows: Vec::new() };
        for start in touched.iter().rev() {
            let Some(session) = self.sessions.remove(start) else { continue };
            joined.end = joined.end.max(session.end);
            // The later one: what is put down for the earlier finds nothing to do.
            joined.due = joined.due.max(session.due);
            joined.sources.extend(session.sources);
            joined.rows.extend(session.rows);
        }
        joined.rows.push(row);
        self.sessions.insert(touched.last().map_or(t, |&first| first.min(t)), joined);
        true
    }
}
