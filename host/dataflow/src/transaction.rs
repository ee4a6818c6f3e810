//! Runs a call of user code as a transaction, and finds the rows that it can't process.
//!
//! What a call returns takes effect only when it succeeded, so a call that failed can be repeated with fewer rows:
//! without those that the code named, or, after a trap, with one half after the other until the poisonous row stands
//! alone and is set aside. Rows keep their order, and each row takes effect exactly once or is set aside.
//!
//! A transaction does a bounded number of calls and then says [`Outcome::More`], so that a batch full of poison does not
//! stop the slot; it waits for a retry by answering when, never by sleeping.

use arrow::array::UInt32Array;
use tidemill_core::error::ErrorKind;
use tidemill_core::time::Timestamp;
use tidemill_core::user::{Effects, UserFailure};
use tidemill_core::{Batch, Error, Result};

/// Calls in one step: a bisection of a batch of 4,096 rows with one poisonous row needs 25.
const CALLS_PER_STEP: usize = 64;
/// After so many repetitions what should have passed has not passed.
const MAX_RETRIES: u32 = 10;
/// The first wait before a repetition; it doubles up to [`MAX_BACKOFF_MS`], so that the ten take about 15 s.
const FIRST_BACKOFF_MS: i64 = 20;
const MAX_BACKOFF_MS: i64 = 5_000;

/// Some rows of a batch (or timers of a call), ascending.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    /// Neighbours.
    Range {
        /// The first.
        start: usize,
        /// How many.
        len: usize,
    },
    /// Any.
    Of(UInt32Array),
}

impl Rows {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Range { len, .. } => *len,
            Self::Of(rows) => rows.values().len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index in the whole batch of the row with index `row` in this selection.
    pub fn original(&self, row: usize) -> Option<usize> {
        match self {
            Self::Range { start, len } => (row < *len).then_some(start + row),
            Self::Of(rows) => rows.values().get(row).map(|&r| r as usize),
        }
    }

    /// These rows of `batch`. Copies nothing where they are neighbours.
    pub fn of(&self, batch: &Batch) -> Result<Batch> {
        match self {
            Self::Range { start: 0, len } if *len == batch.rows() => Ok(batch.clone()),
            Self::Range { start, len } if start + len <= batch.rows() => Ok(batch.slice(*start, *len)),
            Self::Range { .. } => Err(Error::internal("rows outside their batch")),
            Self::Of(rows) => batch.take(rows),
        }
    }

    /// The first half and the rest.
    fn halves(&self) -> (Self, Self) {
        let middle = self.len() / 2;
        match self {
            Self::Range { start, len } => {
                (Self::Range { start: *start, len: middle }, Self::Range { start: start + middle, len: len - middle })
            }
            Self::Of(rows) => (Self::Of(rows.slice(0, middle)), Self::Of(rows.slice(middle, self.len() - middle))),
        }
    }

    /// These without some, which are indices into the selection, ascending.
    fn without(&self, failed: &[(u32, String)]) -> Self {
        let mut failed = failed.iter().map(|(row, _)| *row as usize).peekable();
        let kept = (0..self.len()).filter(|row| failed.next_if_eq(row).is_none());
        Self::Of(kept.filter_map(|row| self.original(row)).map(|row| row as u32).collect::<Vec<u32>>().into())
    }
}

/// One way of calling user code with rows of one batch, and what to do with the result.
pub trait Attempt {
    /// Calls the code with these rows. Nothing may change by it but `effects`, which is empty.
    /// The outer error is the engine's and fails the job.
    fn call(&mut self, rows: &Rows, effects: &mut Effects) -> Result<Result<(), UserFailure>>;

    /// The last `call` succeeded with these rows: makes `effects` real (may take them out).
    fn apply(&mut self, rows: &Rows, effects: &mut Effects) -> Result<()>;

    /// Sets a row aside; `row` is its index in the whole batch.
    fn set_aside(&mut self, row: usize, reason: String) -> Result<()>;

    /// A call is about to be repeated, for counting.
    fn repeated(&mut self) {}
}

/// What to do after [`Transaction::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Every row took effect or was set aside.
    Done,
    /// There is more to do: call again.
    More,
    /// Call again at this time.
    RetryAt(Timestamp),
}

/// The rows of a batch that are still to be processed.
#[derive(Debug, Default)]
pub struct Transaction {
    /// The next rows are the last entry.
    waiting: Vec<Rows>,
    /// Repetitions of the last entry so far.
    retries: u32,
    retry_at: Option<Timestamp>,
    effects: Effects,
}

impl Transaction {
    /// Begins with all rows of a batch. The one before must be done.
    pub fn start(&mut self, rows: usize) {
        self.waiting.clear();
        self.retries = 0;
        self.retry_at = None;
        if rows > 0 {
            self.waiting.push(Rows::Range { start: 0, len: rows });
        }
    }

    /// Whether nothing is to do.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When to call `run` again, after [`Outcome::RetryAt`].
    pub fn retry_at(&self) -> Option<Timestamp> {
        self.retry_at
    }

    /// Goes on, for a bounded number of calls. Each selection of rows is a transaction of its own:
    /// call, then either apply, or set aside and narrow down, or wait and repeat.
    pub fn run(&mut self, now: Timestamp, attempt: &mut impl Attempt) -> Result<Outcome> {
        if let Some(at) = self.retry_at {
            if now < at {
                return Ok(Outcome::RetryAt(at));
            }
            self.retry_at = None;
            attempt.repeated();
        }
        for _ in 0..CALLS_PER_STEP {
            let Some(rows) = self.waiting.pop() else { return Ok(Outcome::Done) };
            self.effects.clear();
            match attempt.call(&rows, &mut self.effects)? {
                Ok(()) => {
                    attempt.apply(&rows, &mut self.effects)?;
                    self.retries = 0;
                }
                Err(UserFailure::Retry(reason)) => return self.wait(now, rows, &reason),
                Err(UserFailure::Fatal(reason)) => return Err(Error::new(ErrorKind::UserCode, reason)),
                Err(UserFailure::Engine(error)) => return Err(error),
                Err(UserFailure::Rows(failed)) => self.leave_out(&rows, failed, attempt)?,
                Err(UserFailure::Trap(reason)) => self.narrow(&rows, reason, attempt)?,
            }
        }
        Ok(if self.waiting.is_empty() { Outcome::Done } else { Outcome::More })
    }

    fn wait(&mut self, now: Timestamp, rows: Rows, reason: &str) -> Result<Outcome> {
        if self.retries >= MAX_RETRIES {
            let message = format!("the code asked {MAX_RETRIES} times to be called again later: {reason}");
            return Err(Error::new(ErrorKind::UserCode, message).mend("See what the code waits for."));
        }
        let wait = (FIRST_BACKOFF_MS << self.retries).min(MAX_BACKOFF_MS);
        self.retries += 1;
        self.waiting.push(rows);
        let at = Timestamp(now.0.saturating_add(wait));
        self.retry_at = Some(at);
        Ok(Outcome::RetryAt(at))
    }

    /// The code named the rows.
    fn leave_out(&mut self, rows: &Rows, mut failed: Vec<(u32, String)>, attempt: &mut impl Attempt) -> Result<()> {
        failed.sort_by_key(|(row, _)| *row);
        failed.dedup_by_key(|(row, _)| *row);
        failed.retain(|(row, _)| (*row as usize) < rows.len());
        if failed.is_empty() {
            return self.narrow(rows, "it failed because of rows, but named none of the call".to_owned(), attempt);
        }
        let rest = rows.without(&failed);
        for (row, reason) in failed {
            let original =
                rows.original(row as usize).ok_or_else(|| Error::internal("a failed row outside its call"))?;
            attempt.set_aside(original, reason)?;
        }
        attempt.repeated();
        if !rest.is_empty() {
            self.waiting.push(rest);
        }
        Ok(())
    }

    /// Some row is the cause: it is this one, or in one of the halves.
    fn narrow(&mut self, rows: &Rows, reason: String, attempt: &mut impl Attempt) -> Result<()> {
        if rows.len() == 1 {
            let original = rows.original(0).ok_or_else(|| Error::internal("a failed row outside its call"))?;
            return attempt.set_aside(original, reason);
        }
        attempt.repeated();
        let (first, rest) = rows.halves();
        self.waiting.push(rest);
        self.waiting.push(first);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes 0 .. n; some rows trap, some are refused by name, some ask once to come later.
    #[derive(Default)]
    struct Numbers {
        traps: Vec<usize>,
        refuses: Vec<usize>,
        retries: u32,
        calls: usize,
        applied: Vec<usize>,
        aside: Vec<(usize, String)>,
    }

    fn originals(rows: &Rows) -> Vec<usize> {
        (0..rows.len()).map(|i| rows.original(i).unwrap()).collect()
    }

    impl Attempt for Numbers {
        fn call(&mut self, rows: &Rows, _effects: &mut Effects) -> Result<Result<(), UserFailure>> {
            self.calls += 1;
            if self.retries > 0 {
                self.retries -= 1;
                return Ok(Err(UserFailure::Retry("busy".into())));
            }
            let rows = originals(rows);
            if rows.iter().any(|r| self.traps.contains(r)) {
                return Ok(Err(UserFailure::Trap("unreachable".into())));
            }
            let named = rows.iter().enumerate().filter(|(_, r)| self.refuses.contains(r));
            let named: Vec<_> = named.map(|(i, r)| (i as u32, format!("no {r}"))).collect();
            Ok(if named.is_empty() { Ok(()) } else { Err(UserFailure::Rows(named)) })
        }

        fn apply(&mut self, rows: &Rows, _effects: &mut Effects) -> Result<()> {
            self.applied.extend(originals(rows));
            Ok(())
        }

        fn set_aside(&mut self, row: usize, reason: String) -> Result<()> {
            self.aside.push((row, reason));
            Ok(())
        }
    }

    fn run(rows: usize, attempt: &mut Numbers) -> Result<()> {
        let (mut transaction, mut now) = (Transaction::default(), Timestamp(0));
        transaction.start(rows);
        loop {
            match transaction.run(now, attempt)? {
                Outcome::Done => return Ok(()),
                Outcome::More => {}
                Outcome::RetryAt(at) => now = at,
            }
        }
    }

    #[test]
    fn each_row_takes_effect_once_and_in_order_around_poison() {
        for (traps, refuses) in [(vec![], vec![]), (vec![0, 4_095], vec![7]), (vec![1_000, 1_001], vec![999, 1_002])] {
            let mut numbers = Numbers { traps: traps.clone(), refuses: refuses.clone(), ..Numbers::default() };
            run(4_096, &mut numbers).unwrap();
            let bad: Vec<usize> = traps.iter().chain(&refuses).copied().collect();
            assert_eq!(numbers.applied, (0..4_096).filter(|r| !bad.contains(r)).collect::<Vec<_>>());
            let mut aside: Vec<usize> = numbers.aside.iter().map(|(r, _)| *r).collect();
            aside.sort_unstable();
            let mut bad = bad;
            bad.sort_unstable();
            assert_eq!(aside, bad);
        }
    }

    #[test]
    fn one_poisonous_row_costs_a_logarithmic_number_of_calls() {
        let mut numbers = Numbers { traps: vec![1_234], ..Numbers::default() };
        run(4_096, &mut numbers).unwrap();
        assert!(numbers.calls <= 2 * 12 + 1, "{} calls", numbers.calls);
        assert_eq!(numbers.aside, vec![(1_234, "unreachable".to_owned())]);
    }

    #[test]
    fn a_batch_full_of_poison_is_worked_off_in_steps() {
        let mut numbers = Numbers { traps: (0..100).collect(), ..Numbers::default() };
        let mut transaction = Transaction::default();
        transaction.start(100);
        assert_eq!(transaction.run(Timestamp(0), &mut numbers).unwrap(), Outcome::More);
        assert_eq!(numbers.calls, CALLS_PER_STEP);
        run(100, &mut numbers).unwrap();
        assert!(numbers.applied.is_empty());
    }

    #[test]
    fn a_retry_waits_by_the_clock_and_gives_up_in_the_end() {
        let mut numbers = Numbers { retries: 2, ..Numbers::default() };
        let mut transaction = Transaction::default();
        transaction.start(3);
        assert_eq!(transaction.run(Timestamp(0), &mut numbers).unwrap(), Outcome::RetryAt(Timestamp(20)));
        assert_eq!(transaction.run(Timestamp(19), &mut numbers).unwrap(), Outcome::RetryAt(Timestamp(20)));
        assert_eq!(numbers.calls, 1, "too early to call");
        assert_eq!(transaction.run(Timestamp(20), &mut numbers).unwrap(), Outcome::RetryAt(Timestamp(60)));
        assert_eq!(transaction.run(Timestamp(60), &mut numbers).unwrap(), Outcome::Done);
        assert_eq!(numbers.applied, vec![0, 1, 2]);

        let mut numbers = Numbers { retries: u32::MAX, ..Numbers::default() };
        let error = run(3, &mut numbers).unwrap_err();
        assert!(error.to_string().contains("busy"), "{error}");
    }

    #[test]
    fn failures_that_name_no_row_are_searched_like_traps() {
        struct Liar(Vec<usize>);
        impl Attempt for Liar {
            fn call(&mut self, _rows: &Rows, _effects: &mut Effects) -> Result<Result<(), UserFailure>> {
                Ok(Err(UserFailure::Rows(vec![(1_000, "nowhere".into())])))
            }
            fn apply(&mut self, _rows: &Rows, _effects: &mut Effects) -> Result<()> {
                Ok(())
            }
            fn set_aside(&mut self, row: usize, _reason: String) -> Result<()> {
                self.0.push(row);
                Ok(())
            }
        }
        let (mut transaction, mut liar) = (Transaction::default(), Liar(vec![]));
        transaction.start(4);
        assert_eq!(transaction.run(Timestamp(0), &mut liar).unwrap(), Outcome::Done);
        assert_eq!(liar.0, vec![0, 1, 2, 3]);
    }
}
