//! Reads event time off rows and makes watermarks: per split in a source, of the whole stream in `AssignEventTime`.
//!
//! A watermark is the largest timestamp seen, less the allowed disorder, less 1 ms. A split that was assigned holds its
//! source's watermark back until it was read, went idle or ended: a file that waits to be read may hold old rows.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampMillisecondType;
use tidemill_core::connector::SplitId;
use tidemill_core::plan::EventTime;
use tidemill_core::time::{RisingWatermark, Timestamp, Watermark};
use tidemill_core::{Batch, Error, Result};

/// Where the timestamp is, and how much disorder is allowed.
#[derive(Clone, Debug)]
pub struct EventTimeReader {
    column: usize,
    disorder_ms: i64,
    idle_after_ms: Option<i64>,
}

/// A batch with its timestamps.
#[derive(Debug)]
pub struct Timed {
    /// The rows that have a time.
    pub batch: Batch,
    /// The watermark that they justify.
    pub watermark: Watermark,
    /// The rows of the batch as it was that have none: they are malformed.
    pub malformed: Vec<u32>,
}

impl EventTimeReader {
    /// As the (pruned) plan says.
    pub fn new(event_time: &EventTime) -> Self {
        let ms = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        Self {
            column: event_time.column as usize,
            disorder_ms: ms(event_time.out_of_orderness_ms),
            idle_after_ms: event_time.idle_after_ms.map(ms),
        }
    }

    /// After how long without rows a split is idle.
    pub fn idle_after_ms(&self) -> Option<i64> {
        self.idle_after_ms
    }

    /// Gives rows their timestamps. Shares the column's values where none is null.
    pub fn read(&self, batch: Batch) -> Result<Timed> {
        let column = batch.column(self.column)?;
        let times = column
            .as_primitive_opt::<TimestampMillisecondType>()
            .ok_or_else(|| Error::internal(format!("event time of type {}", column.data_type())))?
            .clone();
        if times.null_count() == 0 {
            let watermark = self.watermark(times.values());
            let batch = batch.with_timestamps(Some(times.values().clone()))?;
            return Ok(Timed { batch, watermark, malformed: Vec::new() });
        }
        let (present, malformed): (Vec<u32>, Vec<u32>) =
            (0..times.len() as u32).partition(|&row| times.is_valid(row as usize));
        let kept = batch.with_timestamps(Some(times.values().clone()))?.take(&present.into())?;
        let watermark = kept.timestamps().map_or(Watermark::MIN, |t| self.watermark(t));
        Ok(Timed { batch: kept, watermark, malformed })
    }

    fn watermark(&self, times: &[i64]) -> Watermark {
        Watermark(largest(times).saturating_sub(self.disorder_ms).saturating_sub(1))
    }
}

/// The largest of some times, or the smallest time there is. In eight lanes, since a chain of comparisons would cost as
/// much as many an operator.
fn largest(times: &[i64]) -> i64 {
    let (chunks, rest) = times.as_chunks::<8>();
    let mut lanes = [i64::MIN; 8];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &time)| *lane = (*lane).max(time));
    }
    lanes.iter().chain(rest).copied().fold(i64::MIN, i64::max)
}

/// The watermark over the splits of one reader. Only splits that are being read are kept, so it costs nothing that
/// there were many.
#[derive(Debug, Default)]
pub struct SplitWatermarks {
    splits: Vec<SplitState>,
    /// Where each is: a folder may have very many files.
    places: HashMap<SplitId, usize>,
    /// The largest of splits that ended.
    ended: RisingWatermark,
    merged: RisingWatermark,
}

#[derive(Debug)]
struct SplitState {
    id: SplitId,
    watermark: RisingWatermark,
    last_row: Timestamp,
    idle: bool,
}

impl SplitWatermarks {
    /// A split was assigned.
    pub fn add(&mut self, id: SplitId, now: Timestamp) {
        self.state(&id, now);
    }

    /// Goes on with splits as they were, and with a watermark that the reader had reached at least.
    pub fn restore(
        &mut self,
        splits: impl Iterator<Item = (SplitId, Watermark)>,
        watermark: Watermark,
        now: Timestamp,
    ) {
        for (id, watermark) in splits {
            if let Some(split) = self.state(&id, now) {
                split.watermark.raise(watermark);
            }
        }
        self.ended.raise(watermark);
        self.merged.raise(watermark);
        if !self.splits.is_empty() {
            self.merge();
        }
    }

    /// A split's watermark.
    pub fn watermark_of(&self, id: &SplitId) -> Watermark {
        let split = self.places.get(id).and_then(|at| self.splits.get(*at));
        split.map_or(Watermark::MIN, |split| split.watermark.get())
    }

    /// The reader's watermark.
    pub fn watermark(&self) -> Watermark {
        self.merged.get()
    }

    /// A split gave rows; the reader's watermark, if it rose.
    pub fn rows(&mut self, id: &SplitId, watermark: Watermark, now: Timestamp) -> Option<Watermark> {
        if let Some(split) = self.state(id, now) {
            split.watermark.raise(watermark);
            split.last_row = now;
            split.idle = false;
        }
        self.merge()
    }

    /// A split ended; the reader's watermark, if it rose.
    pub fn finish(&mut self, id: &SplitId) -> Option<Watermark> {
        if let Some(at) = self.places.remove(id) {
            self.ended.raise(self.splits.swap_remove(at).watermark.get());
            if let Some(place) = self.splits.get(at).and_then(|moved| self.places.get_mut(&moved.id)) {
                *place = at;
            }
        }
        self.merge()
    }

    /// All splits came at least so far; the reader's watermark, if it rose.
    pub fn raise(&mut self, to: Watermark) -> Option<Watermark> {
        self.splits.iter_mut().for_each(|split| _ = split.watermark.raise(to));
        self.ended.raise(to);
        self.merge()
    }

    /// Marks splits without rows for so long as idle; the reader's watermark, if it rose.
    pub fn look_for_idle(&mut self, now: Timestamp, idle_after_ms: i64) -> Option<Watermark> {
        for split in &mut self.splits {
            split.idle |= split.last_row.0.saturating_add(idle_after_ms) <= now.0;
        }
        self.merge()
    }

    /// When `look_for_idle` may find something next.
    pub fn next_idle(&self, idle_after_ms: i64) -> Option<Timestamp> {
        let active = self.splits.iter().filter(|s| !s.idle);
        active.map(|s| Timestamp(s.last_row.0.saturating_add(idle_after_ms))).min()
    }

    /// Whether no split holds the watermark back (also where there is none).
    pub fn all_idle(&self) -> bool {
        self.splits.iter().all(|s| s.idle)
    }

    /// What is known of a split, also of one that nobody assigned.
    fn state(&mut self, id: &SplitId, now: Timestamp) -> Option<&mut SplitState> {
        if !self.places.contains_key(id) {
            self.places.insert(id.clone(), self.splits.len());
            let watermark = RisingWatermark::default();
            self.splits.push(SplitState { id: id.clone(), watermark, last_row: now, idle: false });
        }
        self.places.get(id).and_then(|at| self.splits.get_mut(*at))
    }

    fn merge(&mut self) -> Option<Watermark> {
        // Where many wait to be read, one that holds it back is found at once.
        let merged = self.merged.get();
        if self.splits.iter().any(|s| !s.idle && s.watermark.get() <= merged) {
            return None;
        }
        let active = self.splits.iter().filter(|s| !s.idle).map(|s| s.watermark.get()).min();
        // Nobody is left to wait for: as far as any came.
        let all = || self.splits.iter().map(|s| s.watermark.get()).chain([self.ended.get()]).max();
        self.merged.raise(active.or_else(all)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, TimestampMillisecondArray};

    use super::*;

    fn reader(disorder: u64) -> EventTimeReader {
        EventTimeReader::new(&EventTime { column: 0, out_of_orderness_ms: disorder, idle_after_ms: Some(100) })
    }

    fn batch(times: Vec<Option<i64>>) -> Batch {
        let column: ArrayRef = Arc::new(TimestampMillisecondArray::from(times));
        Batch::new(column.len(), vec![column], None).unwrap()
    }

    #[test]
    fn rows_get_their_time_and_those_without_one_are_malformed() {
        let timed = reader(4).read(batch(vec![Some(10), None, Some(30), Some(20)])).unwrap();
        assert_eq!(timed.batch.timestamps().unwrap().to_vec(), vec![10, 30, 20]);
        assert_eq!((timed.watermark, timed.malformed), (Watermark(25), vec![1]));
        let none = reader(4).read(batch(vec![None])).unwrap();
        assert_eq!((none.batch.rows(), none.watermark), (0, Watermark::MIN));
        let extreme = reader(4).read(batch(vec![Some(i64::MIN)])).unwrap();
        assert_eq!(extreme.watermark, Watermark::MIN);
    }

    #[test]
    fn the_slowest_split_holds_back_until_it_ends_or_is_idle() {
        let (a, b) = (SplitId("a".into()), SplitId("b".into()));
        let mut splits = SplitWatermarks::default();
        splits.add(a.clone(), Timestamp(0));
        splits.add(b.clone(), Timestamp(0));
        assert_eq!(splits.rows(&a, Watermark(10), Timestamp(50)), None, "b was not read yet");
        assert_eq!(splits.rows(&b, Watermark(5), Timestamp(60)), Some(Watermark(5)));
        assert_eq!(splits.rows(&a, Watermark(20), Timestamp(150)), None);
        assert_eq!(splits.next_idle(100), Some(Timestamp(160)));
        assert_eq!(splits.look_for_idle(Timestamp(160), 100), Some(Watermark(20)));
        assert_eq!(splits.rows(&b, Watermark(7), Timestamp(170)), None, "late, not back in time");
        assert_eq!(splits.rows(&a, Watermark(30), Timestamp(170)), None);
        assert_eq!(splits.finish(&b), Some(Watermark(30)));
        assert!(!splits.all_idle());
        assert_eq!(splits.finish(&a), None);
        assert!(splits.all_idle());
        splits.add(b.clone(), Timestamp(200));
        assert_eq!(splits.rows(&b, Watermark(25), Timestamp(200)), None, "a new split may be late");
    }

    #[test]
    fn of_many_splits_each_has_its_own_watermark_in_whatever_order_they_end() {
        let id = |n: i64| SplitId(format!("{n}"));
        let mut splits = SplitWatermarks::default();
        let many = 1_000;
        (0..many).for_each(|n| splits.add(id(n), Timestamp(0)));
        for n in 0..many {
            assert_eq!(splits.rows(&id(n), Watermark(n + 1), Timestamp(0)), (n == many - 1).then_some(Watermark(1)));
        }
        // From both ends to the middle, so that the last one of the list takes every place.
        for n in 0..many / 2 {
            assert_eq!(splits.watermark_of(&id(many - 1 - n)), Watermark(many - n));
            assert_eq!(splits.finish(&id(many - 1 - n)), None);
            if n + 1 < many / 2 {
                assert_eq!(splits.watermark_of(&id(n)), Watermark(n + 1));
                assert!(splits.finish(&id(n)).is_some_and(|watermark| watermark == Watermark(n + 2)), "{n}");
            }
        }
        assert_eq!(splits.finish(&id(many / 2 - 1)), Some(Watermark(many)));
        assert!(splits.splits.is_empty() && splits.places.is_empty());
    }
}
