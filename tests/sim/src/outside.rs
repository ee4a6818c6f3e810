//! What is outside the cluster: the records that are to be read, the system into which the job writes in transactions, and
//! the check of what is in there at the end, which knows nothing of how it came there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tidemill_core::keys::hash_fixed;

use crate::world::lock;

/// A record as it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// No other record has it.
    pub id: i64,
    /// By what it is counted.
    pub key: i64,
}

/// A row as it is written: a record, and how many records of its key the job had counted with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Of the record.
    pub id: i64,
    /// Of the record.
    pub key: i64,
    /// Of the job.
    pub count: i64,
}

/// What there is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// How many splits.
    pub splits: u32,
    /// How many records each has.
    pub records: u32,
    /// How many keys.
    pub keys: u64,
}

impl Input {
    /// A record of a split.
    pub fn record(&self, split: u32, at: u32) -> Record {
        let id = i64::from(split) * 1_000_000 + i64::from(at);
        let key = hash_fixed(id.unsigned_abs()) % self.keys.max(1);
        Record { id, key: i64::try_from(key).unwrap_or(0) }
    }

    fn all(&self) -> impl Iterator<Item = Record> + '_ {
        (0..self.splits).flat_map(move |split| (0..self.records).map(move |at| self.record(split, at)))
    }
}

/// A system that is written in transactions. What is committed stays so.
#[derive(Default)]
pub struct Target {
    transactions: Mutex<BTreeMap<String, Transaction>>,
}

struct Transaction {
    rows: Vec<Counted>,
    committed: bool,
}

impl Target {
    /// Empty.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Keeps rows that are to be made visible under this name.
    pub fn prepare(&self, name: &str, rows: Vec<Counted>) {
        lock(&self.transactions).insert(name.to_owned(), Transaction { rows, committed: false });
    }

    /// Makes them visible; again is no error. Whether there are any.
    pub fn commit(&self, name: &str) -> bool {
        let mut transactions = lock(&self.transactions);
        transactions.get_mut(name).map(|transaction| transaction.committed = true).is_some()
    }

    /// How many rows are visible.
    pub fn visible(&self) -> usize {
        lock(&self.transactions).values().filter(|t| t.committed).map(|t| t.rows.len()).sum()
    }

    /// What is wrong with what is visible, when everything was read.
    pub fn check(&self, input: &Input) -> Verdict {
        let mut seen: BTreeMap<i64, u64> = BTreeMap::new();
        let mut counts: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for row in lock(&self.transactions).values().filter(|t| t.committed).flat_map(|t| &t.rows) {
            *seen.entry(row.id).or_default() += 1;
            counts.entry(row.key).or_default().push(row.count);
        }
        let mut verdict = Verdict::default();
        let mut of_key: BTreeMap<i64, i64> = BTreeMap::new();
        for record in input.all() {
            let times = seen.remove(&record.id).unwrap_or(0);
            verdict.lost += u64::from(times == 0);
            verdict.duplicated += times.saturating_sub(1);
            *of_key.entry(record.key).or_default() += 1;
        }
        verdict.duplicated += seen.values().sum::<u64>();
        // The counts of a key must be 1, 2, 3 and so on: each record was counted once, and none that was not.
        for (key, mut counts) in counts {
            counts.sort_unstable();
            let right = 1..=of_key.remove(&key).unwrap_or(0);
            verdict.wrong += u64::from(!right.eq(counts));
        }
        verdict
    }
}

/// What is wrong with what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Records that are not there.
    pub lost: u64,
    /// Records that are there once too often, and rows of no record.
    pub duplicated: u64,
    /// Keys of which the counts are not what they must be.
    pub wrong: u64,
}

impl Verdict {
    /// Whether everything is as it must be.
    pub fn is_good(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_sees_what_is_missing_doubled_and_counted_wrong() {
        let input = Input { splits: 1, records: 3, keys: 1 };
        let row = |at: u32, count| {
            let record = input.record(0, at);
            Counted { id: record.id, key: record.key, count }
        };
        let check = |rows: Vec<Counted>| {
            let target = Target::default();
            target.prepare("a", rows);
            assert!(target.commit("a") && target.commit("a") && !target.commit("b"));
            target.check(&input)
        };
        assert!(check(vec![row(0, 1), row(1, 2), row(2, 3)]).is_good());
        assert!(check(vec![row(2, 1), row(1, 2), row(0, 3)]).is_good());
        assert_eq!(check(vec![row(0, 1), row(1, 2)]), Verdict { lost: 1, duplicated: 0, wrong: 1 });
        assert_eq!(check(vec![row(0, 1), row(1, 2), row(2, 2)]), Verdict { lost: 0, duplicated: 0, wrong: 1 });
        let twice = vec![row(0, 1), row(1, 2), row(2, 3), row(2, 4)];
        assert_eq!(check(twice), Verdict { lost: 0, duplicated: 1, wrong: 1 });
        let unprepared = Target::default();
        unprepared.prepare("a", vec![row(0, 1)]);
        assert_eq!(unprepared.check(&input).lost, 3, "nothing is visible before it is committed");
    }
}
