//! The timers of one time domain: by time, then in the order they were set; one per key and time.
//!
//! Timers of one time are a *bucket*: their keys in the order they were set. One hash table over all buckets finds a
//! timer by key and time, so that setting one twice and deleting one cost a look-up; a deleted timer stays in its bucket
//! as a gap until the bucket is empty or mostly gaps.
//!
//! A snapshot is copied after it was frozen, a few buckets at a time, and each before it changes.
//!
//! Invariants: `index` has one entry per timer; a bucket in `by_time` has at least one timer.
#![allow(clippy::indexing_slicing, reason = "buckets and positions come out of the index, which only this file fills")]

use std::collections::BTreeMap;

use hashbrown::HashTable;
use tidemill_core::keys::{KeyCodec, KeyData, Keys, hash_fixed, hash_row};
use tidemill_core::{Error, Result};

use super::frozen::{FrozenPart, KeyBytes, TableChunk};
use super::space::KEPT_REMOVALS;

/// A bucket with fewer gaps than this is left as it is.
const KEPT_GAPS: u32 = 32;

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u64,
    bucket: u32,
    position: u32,
}

#[derive(Debug, Default)]
struct Bucket {
    time: i64,
    /// Of every timer, and of the gaps.
    hashes: Vec<u64>,
    /// Fixed keys, if they are fixed.
    fixed: Vec<u64>,
    /// Encoded keys, if they are encoded: ends in, and the bytes.
    ends: Vec<usize>,
    bytes: Vec<u8>,
    gaps: Vec<bool>,
    live: u32,
    /// Before this position there are gaps only.
    first: usize,
    /// Timers before this position are in earlier snapshots.
    stored: usize,
    /// The period in which it was listed as one with timers that no snapshot has; 0: it is not listed.
    fresh: u64,
    /// The period in which it was made or copied last.
    seen: u64,
}

/// Numbers of buckets.
#[derive(Debug)]
enum Uncopied {
    /// These.
    Some(Vec<u32>),
    /// All before this one.
    Before(usize),
}

#[derive(Debug)]
pub(crate) struct Timers {
    index: HashTable<Entry>,
    by_time: BTreeMap<i64, u32>,
    buckets: Vec<Bucket>,
    free: Vec<u32>,
    /// The bucket that was used last: timers of one batch have few times.
    latest: Option<(i64, u32)>,
    /// Bytes that the buckets hold.
    bucket_bytes: usize,
    /// Buckets with timers that no snapshot has. Some may have been dropped meanwhile.
    fresh: Vec<u32>,
    /// Periods lie between freezes. The number of the latest.
    period: u64,
    /// The period that began with the latest freeze of all timers: buckets that were not seen since are not copied yet.
    whole_since: u64,
    /// Of these buckets, the latest snapshot may have to be given something.
    uncopied: Uncopied,
    /// What it was given.
    copies: Vec<TableChunk>,
    /// Timers that earlier snapshots have and that were deleted since the latest: times and keys.
    removed: Vec<(i64, usize)>,
    removed_keys: KeyBytes,
    /// The next snapshot has all timers, and `fresh` and `removed` mean nothing.
    whole: bool,
    /// Earlier snapshots may have timers.
    stored: bool,
    /// There is a disk, and timers at this time or later may be there only. `None`: there is none, or nothing on it
    /// that is not here.
    pub(crate) horizon: Option<i64>,
    /// There is a disk: what is here is not all that snapshots have.
    pub(crate) backed: bool,
}

impl Timers {
    pub(crate) fn new(fixed: bool) -> Self {
        Self {
            index: HashTable::new(),
            by_time: BTreeMap::new(),
            buckets: Vec::new(),
            free: Vec::new(),
            latest: None,
            bucket_bytes: 0,
            fresh: Vec::new(),
            period: 1,
            whole_since: 0,
            uncopied: Uncopied::Some(Vec::new()),
            copies: Vec::new(),
            removed: Vec::new(),
            removed_keys: KeyBytes::new(fixed),
            whole: true,
            stored: false,
            horizon: None,
            backed: false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Sets `keys[of[i]]` at `times[i]`, where there is none yet.
    pub(crate) fn set(&mut self, keys: &Keys, of: &[u32], times: &[i64]) -> Result<()> {
        check(keys, of, times)?;
        for (&row, &time) in of.iter().zip(times) {
            let row = row as usize;
            let hash = mixed(keys.hashes[row], time);
            if self.index.find(hash, |e| is(&self.buckets, e, hash, keys, row, time)).is_some() {
                continue;
            }
            let number = self.bucket(time);
            self.copy_first(number);
            let bucket = &mut self.buckets[number as usize];
            let before = bucket.memory_bytes();
            let position = bucket.hashes.len() as u32;
            bucket.push(keys, row, hash);
            if !self.whole && std::mem::replace(&mut bucket.fresh, self.period) != self.period {
                self.fresh.push(number);
            }
            self.bucket_bytes += bucket.memory_bytes() - before;
            self.index.insert_unique(hash, Entry { hash, bucket: number, position }, |e| e.hash);
        }
        // Buckets that are gone stay listed: without snapshots, the list would grow for ever.
        if self.fresh.len() > 2 * self.by_time.len() + KEPT_REMOVALS {
            if self.backed {
                self.fresh.sort_unstable();
                self.fresh.dedup();
                self.fresh.retain(|&number| self.buckets[number as usize].fresh == self.period);
            } else {
                self.become_whole();
            }
        }
        Ok(())
    }

    /// Deletes `keys[of[i]]` at `times[i]`, where it is there.
    pub(crate) fn delete(&mut self, keys: &Keys, of: &[u32], times: &[i64]) -> Result<()> {
        check(keys, of, times)?;
        for (&row, &time) in of.iter().zip(times) {
            let row = row as usize;
            let hash = mixed(keys.hashes[row], time);
            let Ok(found) = self.index.find_entry(hash, |e| is(&self.buckets, e, hash, keys, row, time)) else {
                if self.horizon.is_some_and(|horizon| time >= horizon) {
                    self.removed.push((time, 1));
                    self.removed_keys.push(keys, row);
                }
                continue;
            };
            let (entry, _) = found.remove();
            self.copy_first(entry.bucket);
            let bucket = &mut self.buckets[entry.bucket as usize];
            bucket.gaps[entry.position as usize] = true;
            bucket.live -= 1;
            let beyond = self.horizon.is_some_and(|horizon| time >= horizon);
            if !self.whole && (beyond || (entry.position as usize) < bucket.stored) {
                self.removed.push((time, 1));
                self.removed_keys.push(keys, row);
            }
            while bucket.gaps.get(bucket.first) == Some(&true) {
                bucket.first += 1;
            }
            if bucket.live == 0 {
                self.drop_bucket(entry.bucket);
            } else if bucket.gap_count() > bucket.live.max(KEPT_GAPS) {
                self.close_gaps(entry.bucket);
            }
        }
        if self.removed.len() > self.index.len() + KEPT_REMOVALS && !self.backed {
            self.become_whole();
        }
        Ok(())
    }

    /// Timers that the disk has.
    pub(crate) fn load(&mut self, keys: &Keys, times: &[i64]) -> Result<()> {
        let all: Vec<u32> = (0..keys.len() as u32).collect();
        let (whole, fresh) = (std::mem::replace(&mut self.whole, true), std::mem::take(&mut self.fresh));
        let set = self.set(keys, &all, times);
        (self.whole, self.fresh) = (whole, fresh);
        for time in times {
            if let Some(&number) = self.by_time.get(time) {
                let bucket = &mut self.buckets[number as usize];
                bucket.stored = bucket.hashes.len();
            }
        }
        set
    }

    /// Forgets all but the first timers, at least so many, which must be on disk as they are here. Answers how many.
    pub(crate) fn evict(&mut self, kept: usize) -> usize {
        let mut before = 0;
        let mut times = self.by_time.iter().skip_while(|(_, number)| {
            let enough = before >= kept;
            before += self.buckets[**number as usize].live as usize;
            !enough
        });
        let Some((&from, _)) = times.next() else { return 0 };
        let mut evicted = 0;
        for number in self.by_time.split_off(&from).into_values() {
            let bucket = std::mem::take(&mut self.buckets[number as usize]);
            for (position, &hash) in bucket.hashes.iter().enumerate().filter(|(p, _)| !bucket.gaps[*p]) {
                let same = |e: &Entry| e.bucket == number && e.position as usize == position;
                if let Ok(entry) = self.index.find_entry(hash, same) {
                    entry.remove();
                    evicted += 1;
                }
            }
            self.bucket_bytes -= bucket.memory_bytes();
            self.free.push(number);
        }
        self.latest = None;
        self.horizon = Some(self.horizon.map_or(from, |horizon| horizon.min(from)));
        evicted
    }

    /// The next snapshot is the first.
    pub(crate) fn forget_snapshots(&mut self) {
        self.become_whole();
        self.stored = false;
    }

    /// Snapshots have everything as it is.
    pub(crate) fn settle(&mut self) {
        self.become_whole();
        for bucket in &mut self.buckets {
            (bucket.stored, bucket.fresh, bucket.seen) = (bucket.hashes.len(), 0, self.period);
        }
        (self.whole, self.stored) = (false, true);
    }

    /// What changed since the latest snapshot, but for the timers that were set: these are copied by `copy_some`.
    pub(crate) fn freeze(&mut self, fixed: bool) -> FrozenPart {
        let mut part = FrozenPart::new(fixed);
        self.period += 1;
        if self.whole {
            part.dropped.extend(self.stored.then_some(0));
            self.become_whole();
            self.uncopied = Uncopied::Before(self.buckets.len());
            self.whole_since = self.period;
            (self.whole, self.stored) = (false, true);
            return part;
        }
        part.removed.runs = std::mem::take(&mut self.removed);
        part.removed.keys.append(&mut self.removed_keys);
        self.uncopied = Uncopied::Some(std::mem::take(&mut self.fresh));
        part
    }

    /// Copies about so many `entries` that the latest snapshot waits for, and takes them off. Whether all is copied.
    pub(crate) fn copy_some(&mut self, entries: &mut usize) -> bool {
        while *entries > 0 {
            let number = match &mut self.uncopied {
                Uncopied::Some(numbers) => numbers.pop(),
                Uncopied::Before(number) => number.checked_sub(1).inspect(|before| *number = *before).map(|n| n as u32),
            };
            let Some(number) = number else { return true };
            // To look at one that was copied already takes as long as an entry.
            *entries = entries.saturating_sub(1 + self.copy_first(number));
        }
        false
    }

    /// What was copied for the latest snapshot.
    pub(crate) fn take_copies(&mut self) -> Vec<TableChunk> {
        std::mem::take(&mut self.copies)
    }

    /// Copies what the latest snapshot is still to be given of a bucket, before that changes. Answers how many timers.
    fn copy_first(&mut self, number: u32) -> usize {
        let Some(bucket) = self.buckets.get_mut(number as usize) else { return 0 };
        let from = match () {
            () if bucket.seen < self.whole_since => 0,
            () if bucket.fresh != 0 && bucket.fresh < self.period => bucket.stored,
            () => return 0,
        };
        (bucket.stored, bucket.fresh, bucket.seen) = (bucket.hashes.len(), 0, self.period);
        let fixed = matches!(self.removed_keys, KeyBytes::Fixed(_));
        let Some(piece) = TableChunk::open(&mut self.copies, fixed) else { return 0 };
        let before = piece.keys.len();
        bucket.copy_from(from, piece);
        piece.keys.len() - before
    }

    fn become_whole(&mut self) {
        self.whole = true;
        self.fresh.clear();
        self.removed.clear();
        self.removed_keys.clear();
    }

    /// The first `limit` timers at `up_to` or before.
    pub(crate) fn due(&self, codec: &KeyCodec, up_to: i64, limit: usize) -> Result<(Keys, Vec<i64>)> {
        let mut times = Vec::new();
        let mut due = Vec::new();
        'enough: for (&time, &number) in self.by_time.range(..=up_to) {
            let bucket = &self.buckets[number as usize];
            for position in (bucket.first..bucket.hashes.len()).filter(|&p| !bucket.gaps[p]) {
                if due.len() == limit {
                    break 'enough;
                }
                due.push((number, position));
                times.push(time);
            }
        }
        if codec.is_fixed() {
            let values: Vec<u64> = due.iter().map(|&(b, p)| self.buckets[b as usize].fixed[p]).collect();
            let hashes = values.iter().map(|&v| hash_fixed(v)).collect();
            return Ok((Keys { data: KeyData::Fixed(values), hashes }, times));
        }
        let key = |&(b, p): &(u32, usize)| self.buckets[b as usize].row(p);
        let rows = codec.empty_rows(due.len(), due.iter().map(|d| key(d).len()).sum()).zip(codec.parser());
        let (mut rows, parser) = rows.ok_or_else(|| Error::internal("a codec of encoded keys without rows"))?;
        due.iter().for_each(|d| rows.push(parser.parse(key(d))));
        let hashes = due.iter().map(|d| hash_row(key(d))).collect();
        Ok((Keys { data: KeyData::Rows(rows), hashes }, times))
    }

    /// The time of the first timer.
    pub(crate) fn first(&self) -> Option<i64> {
        self.by_time.first_key_value().map(|(&time, _)| time)
    }

    /// Bytes held.
    pub(crate) fn memory_bytes(&self) -> usize {
        // A B-tree of pairs is about two thirds full.
        let order = self.by_time.len() * 18;
        let removed = self.removed.capacity() * 16 + self.removed_keys.memory_bytes();
        self.index.allocation_size()
            + order
            + self.buckets.capacity() * size_of::<Bucket>()
            + self.bucket_bytes
            + self.fresh.capacity() * 4
            + removed
    }

    /// The bucket of a time, made where there is none.
    fn bucket(&mut self, time: i64) -> u32 {
        if let Some((_, number)) = self.latest.filter(|(latest, _)| *latest == time) {
            return number;
        }
        let number = *self.by_time.entry(time).or_insert_with(|| match self.free.pop() {
            Some(number) => number,
            None => {
                self.buckets.push(Bucket::default());
                (self.buckets.len() - 1) as u32
            }
        });
        let bucket = &mut self.buckets[number as usize];
        if bucket.hashes.is_empty() {
            (bucket.time, bucket.seen) = (time, self.period);
        }
        self.latest = Some((time, number));
        number
    }

    fn drop_bucket(&mut self, number: u32) {
        let bucket = std::mem::take(&mut self.buckets[number as usize]);
        self.bucket_bytes -= bucket.memory_bytes();
        self.by_time.remove(&bucket.time);
        self.latest = self.latest.filter(|(_, latest)| *latest != number);
        self.free.push(number);
        if self.by_time.is_empty() && self.buckets.len() > 1 << 16 && !self.backed {
            let (stored, period, copies) = (self.stored, self.period, std::mem::take(&mut self.copies));
            let empty = Self::new(matches!(self.removed_keys, KeyBytes::Fixed(_)));
            *self = Self { stored, period, copies, ..empty };
        }
    }

    fn close_gaps(&mut self, number: u32) {
        let bucket = &mut self.buckets[number as usize];
        let old = std::mem::take(bucket);
        (bucket.time, bucket.fresh, bucket.seen) = (old.time, old.fresh, old.seen);
        for position in 0..old.hashes.len() {
            if old.gaps[position] {
                continue;
            }
            let (hash, to) = (old.hashes[position], bucket.hashes.len() as u32);
            let from = position as u32;
            if let Some(entry) = self.index.find_mut(hash, |e| e.bucket == number && e.position == from) {
                entry.position = to;
            }
            bucket.copy(&old, position);
            if position < old.stored {
                bucket.stored = bucket.hashes.len();
            }
        }
        self.bucket_bytes = self.bucket_bytes + bucket.memory_bytes() - old.memory_bytes();
    }
}

impl Bucket {
    fn push(&mut self, keys: &Keys, row: usize, hash: u64) {
        self.hashes.push(hash);
        self.gaps.push(false);
        self.live += 1;
        match &keys.data {
            KeyData::Fixed(values) => self.fixed.push(values[row]),
            KeyData::Rows(rows) => {
                self.bytes.extend_from_slice(rows.row(row).as_ref());
                self.ends.push(self.bytes.len());
            }
        }
    }

    fn copy(&mut self, from: &Self, position: usize) {
        self.hashes.push(from.hashes[position]);
        self.gaps.push(false);
        self.live += 1;
        if let Some(&key) = from.fixed.get(position) {
            self.fixed.push(key);
        } else {
            self.bytes.extend_from_slice(from.row(position));
            self.ends.push(self.bytes.len());
        }
    }

    /// Copies the timers from a position on.
    fn copy_from(&self, from: usize, to: &mut TableChunk) {
        let before = to.keys.len();
        for position in (from..self.hashes.len()).filter(|&p| !self.gaps[p]) {
            match self.fixed.get(position) {
                Some(&key) => to.keys.push_fixed(key),
                None => to.keys.push_row(self.row(position)),
            }
        }
        if to.keys.len() > before {
            to.runs.push((self.time, to.keys.len() - before));
        }
    }

    fn row(&self, position: usize) -> &[u8] {
        let start = if position == 0 { 0 } else { self.ends[position - 1] };
        &self.bytes[start..self.ends[position]]
    }

    fn gap_count(&self) -> u32 {
        self.hashes.len() as u32 - self.live
    }

    fn memory_bytes(&self) -> usize {
        (self.hashes.capacity() + self.fixed.capacity() + self.ends.capacity()) * 8
            + self.bytes.capacity()
            + self.gaps.capacity()
    }
}

fn check(keys: &Keys, of: &[u32], times: &[i64]) -> Result<()> {
    if of.len() != times.len() || of.iter().any(|&row| row as usize >= keys.len()) {
        return Err(Error::internal(format!("{} timers of {} keys at {} times", of.len(), keys.len(), times.len())));
    }
    Ok(())
}

fn is(buckets: &[Bucket], entry: &Entry, hash: u64, keys: &Keys, row: usize, time: i64) -> bool {
    let bucket = &buckets[entry.bucket as usize];
    let position = entry.position as usize;
    entry.hash == hash
        && bucket.time == time
        && match &keys.data {
            KeyData::Fixed(values) => bucket.fixed[position] == values[row],
            KeyData::Rows(rows) => bucket.row(position) == rows.row(row).as_ref(),
        }
}

fn mixed(hash: u64, time: i64) -> u64 {
    hash_fixed(hash ^ (time as u64).rotate_left(32))
}
