//! Timers of one time domain: the next ones in memory, all of them on disk.
//!
//! Timers before the *horizon* are resident. At the horizon and later there may be others on disk; those that were set
//! lately are in memory too, until they are written. Deleting one that is not here tells the disk.
//!
//! Invariant: if there is a horizon, some timer before it is resident, so that the first timer is known without a read.

use rocksdb::DB;
use tidemill_core::Result;
use tidemill_core::keys::{KeyCodec, Keys};

use super::layout::{HEAD, LEAD, PartId, damaged, keys_of};
use super::read;
use crate::format::PartKind;
use crate::memory::timers::Timers;

pub(super) struct DiskTimers {
    pub(super) resident: Timers,
    pub(super) id: PartId,
    /// About so many are on disk only.
    far: u64,
}

impl DiskTimers {
    pub(super) fn new(kind: PartKind, fixed: bool) -> Self {
        let mut resident = Timers::new(fixed);
        resident.backed = true;
        Self { resident, id: PartId::new(kind, ""), far: 0 }
    }

    /// All are on disk. The first have to be loaded before anything else.
    pub(super) fn restored(&mut self, timers: u64) {
        self.resident.settle();
        self.far = timers;
        self.resident.horizon = (timers > 0).then_some(i64::MIN);
    }

    pub(super) fn len(&self) -> u64 {
        self.resident.len() as u64 + self.far
    }

    /// Whether those before the horizon are used up.
    pub(super) fn is_short(&self) -> bool {
        self.resident.horizon.is_some_and(|horizon| self.resident.first().is_none_or(|first| first >= horizon))
    }

    /// Keeps about so many. The disk must have all of them as they are.
    pub(super) fn evict(&mut self, kept: usize) {
        if self.resident.len() > 2 * kept {
            self.far += self.resident.evict(kept) as u64;
        }
    }

    /// Loads about so many beyond the horizon, all of each time. The disk must have all of them as they are.
    pub(super) fn advance(&mut self, db: &DB, codec: &KeyCodec, wanted: usize) -> Result<()> {
        let Some(horizon) = self.resident.horizon else { return Ok(()) };
        let (_, end) = self.id.all();
        let (mut stored, mut times) = (Vec::<Vec<u8>>::new(), Vec::new());
        let (id, mut next) = (self.id, None);
        read::each(db, &id.lead(horizon), &end, |key, _| {
            let (time, rest) = id.split(key).ok_or_else(damaged)?;
            if times.len() >= wanted && times.last() != Some(&time) {
                next = Some(time);
                return Ok(false);
            }
            stored.push(rest.get(HEAD - LEAD..).ok_or_else(damaged)?.to_vec());
            times.push(time);
            Ok(true)
        })?;
        let before = self.resident.len();
        self.resident.load(&keys_of(codec, stored.iter().map(Vec::as_slice))?, &times)?;
        self.far = match next {
            Some(_) => self.far.saturating_sub((self.resident.len() - before) as u64),
            None => 0,
        };
        self.resident.horizon = next;
        Ok(())
    }

    /// Those that are due and known to be all: the rest is beyond the horizon.
    pub(super) fn due(&self, codec: &KeyCodec, up_to: i64, limit: usize) -> Result<(Keys, Vec<i64>)> {
        let known = self.resident.horizon.map_or(up_to, |horizon| up_to.min(horizon.saturating_sub(1)));
        self.resident.due(codec, known, limit)
    }
}
