//! What is outside the cluster, for each job: the records that are to be read, the systems into which it writes in
//! transactions, and the check of what is in there at the end, which knows nothing of how it came there.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// Its event time, in milliseconds: in order within a split.
    pub time: i64,
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
        Record { id, key: i64::try_from(key).unwrap_or(0), time: i64::from(at) * 10 }
    }

    fn all(&self) -> impl Iterator<Item = Record> + '_ {
        (0..self.splits).flat_map(move |split| (0..self.records).map(move |at| self.record(split, at)))
    }
}

/// What there is outside for one job.
pub struct Outside {
    /// What it reads.
    pub input: Input,
    /// Whether its last split is not to be found yet: so the job can't end by itself.
    held_back: AtomicBool,
    /// What it writes into, by name.
    targets: BTreeMap<&'static str, Target>,
}

impl Outside {
    /// With nothing written yet, by sinks of these names.
    pub fn new(input: Input, held_back: bool, sinks: &[&'static str]) -> Arc<Self> {
        let targets = sinks.iter().map(|name| (*name, Target::default())).collect();
        Arc::new(Self { input, held_back: AtomicBool::new(held_back), targets })
    }

    /// Lets the job come to its end.
    pub fn release(&self) {
        self.held_back.store(false, Ordering::Relaxed);
    }

    /// How many splits can be found now.
    pub fn splits(&self) -> u32 {
        self.input.splits - u32::from(self.held_back.load(Ordering::Relaxed))
    }

    /// What a sink writes into.
    pub fn target(&self, name: &str) -> Option<&Target> {
        self.targets.get(name)
    }

    /// How many rows are visible.
    pub fn visible(&self) -> usize {
        self.targets.values().map(|target| target.visible().len()).sum()
    }

    /// What is wrong with what is visible. `whole`: whether everything was read.
    pub fn check(&self, whole: bool) -> Verdict {
        let mut verdict = Verdict::default();
        for (name, target) in &self.targets {
            let rows = target.visible();
            verdict += match *name {
                COUNTS => counted(&self.input, &rows, whole),
                KNOWN => passed(self.input.all().filter(|record| record.is_known()), &rows, whole),
                _ => passed(self.input.all(), &rows, whole),
            };
        }
        verdict
    }
}

/// The sink into which records go with their counts.
pub const COUNTS: &str = "counts";
/// The sink into which each record goes that was held back in a list.
pub const HELD: &str = "held";
/// The sink into which those go that were known to the end.
pub const KNOWN: &str = "known";

impl Record {
    /// Whether it is one of those that are known to the end.
    pub fn is_known(&self) -> bool {
        self.id % 4 == 0
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
    /// Keeps rows that are to be made visible under this name.
    pub fn prepare(&self, name: &str, rows: Vec<Counted>) {
        lock(&self.transactions).insert(name.to_owned(), Transaction { rows, committed: false });
    }

    /// Makes them visible; again is no error. Whether there are any.
    pub fn commit(&self, name: &str) -> bool {
        let mut transactions = lock(&self.transactions);
        transactions.get_mut(name).map(|transaction| transaction.committed = true).is_some()
    }

    fn visible(&self) -> Vec<Counted> {
        lock(&self.transactions).values().filter(|t| t.committed).flat_map(|t| &t.rows).copied().collect()
    }
}

/// Each record is there once, and nothing else.
fn passed(records: impl Iterator<Item = Record>, rows: &[Counted], whole: bool) -> Verdict {
    let mut seen: BTreeMap<i64, u64> = BTreeMap::new();
    rows.iter().for_each(|row| *seen.entry(row.id).or_default() += 1);
    let mut verdict = Verdict::default();
    for record in records {
        let times = seen.remove(&record.id).unwrap_or(0);
        verdict.lost += u64::from(whole && times == 0);
        verdict.duplicated += times.saturating_sub(1);
    }
    verdict.duplicated += seen.values().sum::<u64>();
    verdict
}

/// The same, and the counts of a key are 1, 2, 3 and so on: each record was counted once, and none that was not.
fn counted(input: &Input, rows: &[Counted], whole: bool) -> Verdict {
    let mut verdict = passed(input.all(), rows, whole);
    let (mut counts, mut of_key): (BTreeMap<i64, Vec<i64>>, BTreeMap<i64, i64>) = Default::default();
    rows.iter().for_each(|row| counts.entry(row.key).or_default().push(row.count));
    input.all().for_each(|record| *of_key.entry(record.key).or_default() += 1);
    for (key, mut counts) in counts {
        counts.sort_unstable();
        let most = of_key.remove(&key).unwrap_or(0);
        let right = match whole {
            true => (1..=most).eq(counts),
            // Of a job that was cancelled, some transactions were never committed.
            false => counts.is_sorted_by(|a, b| a < b) && counts.iter().all(|count| (1..=most).contains(count)),
        };
        verdict.wrong += u64::from(!right);
    }
    verdict
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

impl AddAssign for Verdict {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.wrong += other.wrong;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUT: Input = Input { splits: 1, records: 3, keys: 1 };

    fn row(at: u32, count: i64) -> Counted {
        let record = INPUT.record(0, at);
        Counted { id: record.id, key: record.key, count }
    }

    fn check(sink: &'static str, rows: Vec<Counted>, whole: bool) -> Verdict {
        let outside = Outside::new(INPUT, false, &[sink]);
        let target = outside.target(sink).unwrap();
        target.prepare("a", rows);
        assert!(target.commit("a") && target.commit("a") && !target.commit("b"));
        outside.check(whole)
    }

    #[test]
    fn the_check_sees_what_is_missing_doubled_and_counted_wrong() {
        let counts = |rows| check(COUNTS, rows, true);
        assert!(counts(vec![row(0, 1), row(1, 2), row(2, 3)]).is_good());
        assert!(counts(vec![row(2, 1), row(1, 2), row(0, 3)]).is_good());
        assert_eq!(counts(vec![row(0, 1), row(1, 2)]), Verdict { lost: 1, duplicated: 0, wrong: 1 });
        assert_eq!(counts(vec![row(0, 1), row(1, 2), row(2, 2)]), Verdict { lost: 0, duplicated: 0, wrong: 1 });
        let twice = vec![row(0, 1), row(1, 2), row(2, 3), row(2, 4)];
        assert_eq!(counts(twice), Verdict { lost: 0, duplicated: 1, wrong: 1 });
        let unprepared = Outside::new(INPUT, false, &[COUNTS]);
        unprepared.target(COUNTS).unwrap().prepare("a", vec![row(0, 1)]);
        assert_eq!(unprepared.check(true).lost, 3, "nothing is visible before it is committed");
    }

    #[test]
    fn of_a_job_that_was_cancelled_some_may_be_missing_and_none_doubled() {
        let cancelled = |rows| check(COUNTS, rows, false);
        assert!(cancelled(vec![row(1, 2)]).is_good());
        assert_eq!(cancelled(vec![row(1, 2), row(1, 3)]), Verdict { lost: 0, duplicated: 1, wrong: 0 });
        assert_eq!(cancelled(vec![row(1, 2), row(2, 2)]), Verdict { lost: 0, duplicated: 0, wrong: 1 });
        assert_eq!(cancelled(vec![row(1, 4)]), Verdict { lost: 0, duplicated: 0, wrong: 1 });
    }

    #[test]
    fn of_lists_each_record_has_to_be_there_once() {
        assert!(check(HELD, vec![row(0, 0), row(1, 0), row(2, 0)], true).is_good());
        assert_eq!(check(HELD, vec![row(0, 0), row(0, 0)], true), Verdict { lost: 2, duplicated: 1, wrong: 0 });
        assert!(check(KNOWN, vec![row(0, 0)], true).is_good());
        assert_eq!(check(KNOWN, vec![row(1, 0)], true), Verdict { lost: 1, duplicated: 1, wrong: 0 });
    }
}
