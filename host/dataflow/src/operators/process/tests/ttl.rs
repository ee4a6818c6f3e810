//! Values that expire, by the clock of the operator.

use tidemill_core::plan::{Ttl, TtlUpdate};

use super::*;

const TTL_MS: u64 = 100;

fn bench(update: TtlUpdate) -> Bench {
    Bench::of(1, 4096, Some(Ttl { duration_ms: TTL_MS, update }))
}

impl Bench {
    /// Rows at a time of the clock; what they said.
    fn rows_at(&mut self, now: i64, rows: &[(i64, i64, i64)]) -> Vec<i64> {
        self.clock.0.store(now, Ordering::Relaxed);
        let before = self.out.rows.len();
        self.rows(rows);
        self.out.rows[before..].iter().map(|row| row.1).collect()
    }
}

/// Looks at the state and changes nothing: there is no such timer.
const LOOK: i64 = DELETE;

#[test]
fn a_value_lives_so_long_after_it_was_written() {
    let mut bench = bench(TtlUpdate::OnCreateAndWrite);
    assert_eq!(bench.rows_at(0, &[(1, COUNT, 0), (2, COUNT, 0)]), [1, 1]);
    assert_eq!(bench.rows_at(60, &[(1, COUNT, 0), (2, LOOK, 0)]), [2, 1]);
    assert_eq!(bench.rows_at(99, &[(1, LOOK, 0), (2, LOOK, 0)]), [2, 1]);
    assert_eq!(bench.rows_at(100, &[(1, LOOK, 0), (2, LOOK, 0)]), [2, 0]);
    assert_eq!(bench.rows_at(159, &[(1, LOOK, 0)]), [2]);
    assert_eq!(bench.rows_at(160, &[(1, COUNT, 0), (2, COUNT, 0)]), [1, 1]);
    assert_eq!(bench.entries(), 2);
}

#[test]
fn a_value_lives_so_long_after_a_row_of_its_key() {
    let mut bench = bench(TtlUpdate::OnReadAndWrite);
    assert_eq!(bench.rows_at(0, &[(1, COUNT, 0), (2, COUNT, 0)]), [1, 1]);
    assert_eq!(bench.rows_at(60, &[(1, LOOK, 0)]), [1]);
    assert_eq!(bench.rows_at(159, &[(1, LOOK, 0), (2, LOOK, 0)]), [1, 0]);
    assert_eq!(bench.rows_at(258, &[(1, COUNT, 0)]), [2]);
    assert_eq!(bench.rows_at(358, &[(1, LOOK, 0)]), [0]);
    assert_eq!(bench.entries(), 0, "what was seen to be over is gone");
}

#[test]
fn a_row_that_fails_is_no_access() {
    let mut bench = bench(TtlUpdate::OnReadAndWrite);
    bench.rows_at(0, &[(1, COUNT, 0), (2, COUNT, 0)]);
    assert_eq!(bench.rows_at(60, &[(1, TRAP, 0), (2, LOOK, 0)]), [1]);
    assert_eq!(bench.rows_at(110, &[(1, LOOK, 0), (2, LOOK, 0)]), [0, 1]);
    assert_eq!(bench.out.letters.len(), 1);
}

#[test]
fn a_timer_does_not_see_what_is_over() {
    let mut bench = bench(TtlUpdate::OnCreateAndWrite);
    bench.rows_at(0, &[(1, COUNT, 0), (1, SET, 10), (2, COUNT, 0), (2, COUNT, 0), (2, SET, 10), (3, SET, 20)]);
    bench.rows_at(50, &[(2, COUNT, 0)]);
    bench.clock.0.store(120, Ordering::Relaxed);
    bench.watermark(15);
    assert_eq!(bench.out.timers, [(1, 10, 1), (2, 10, 4)]);
}

/// A value that is taken away and one that is over are the same.
#[test]
fn a_value_that_is_cleared_has_no_last_access() {
    let mut bench = bench(TtlUpdate::OnReadAndWrite);
    bench.rows_at(0, &[(1, COUNT, 0)]);
    bench.rows_at(10, &[(1, CLEAR, 0)]);
    assert_eq!(bench.entries(), 0);
    assert_eq!(bench.rows_at(20, &[(1, LOOK, 0)]), [0]);
    assert_eq!(bench.entries(), 0);
}

#[test]
fn values_that_nobody_asks_for_are_cleaned_up_as_other_rows_come() {
    let mut bench = bench(TtlUpdate::OnCreateAndWrite);
    bench.rows_at(0, &(0..1_000).map(|key| (key, COUNT, 0)).collect::<Vec<_>>());
    assert_eq!(bench.entries(), 1_000);
    bench.rows_at(99, &[(5_000, COUNT, 0)]);
    assert_eq!(bench.entries(), 1_001, "nothing is over");
    let mut left = Vec::new();
    for now in 100..120 {
        bench.rows_at(now, &[(5_000, COUNT, 0)]);
        left.push(bench.entries());
    }
    assert!(left[0] > 800 && left.is_sorted_by(|a, b| a >= b), "a few at a time: {left:?}");
    assert_eq!(left[19], 1);
    assert_eq!(bench.rows_at(130, &[(7, LOOK, 0), (5_000, LOOK, 0)]), [0, 21]);
}
