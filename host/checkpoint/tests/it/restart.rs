//! Restart strategies: failures in, waits out.

use tidemill_checkpoint::restart::{HISTORY, Restart, Restarts, Strategy};

/// What is decided about failures at these times.
#[track_caller]
fn check(strategy: Strategy, failures_ms: &[u64], expected: &[Option<u64>]) {
    let mut restarts = Restarts::new(strategy, 7);
    let decided: Vec<_> = failures_ms.iter().map(|at| after(restarts.failed(*at, "trap"))).collect();
    assert_eq!(decided, expected);
}

fn after(restart: Restart) -> Option<u64> {
    match restart {
        Restart::After(ms) => Some(ms),
        Restart::GiveUp(reason) => {
            assert!(!reason.is_empty());
            None
        }
    }
}

fn exponential(jitter: f64, attempts: Option<u32>) -> Strategy {
    Strategy::ExponentialDelay {
        initial_backoff_ms: 1_000,
        max_backoff_ms: 5_000,
        multiplier: 2.0,
        reset_after_ms: 60_000,
        jitter,
        attempts,
    }
}

#[test]
fn none_gives_up_at_once() {
    check(Strategy::None, &[0], &[None]);
}

#[test]
fn fixed_delay_counts_attempts() {
    let strategy = Strategy::FixedDelay { attempts: 2, delay_ms: 500 };
    check(strategy, &[0, 1_000, 900_000], &[Some(500), Some(500), None]);
    check(Strategy::FIXED_DELAY, &[0, 1], &[Some(1_000), None]);
}

#[test]
fn exponential_delay_grows_to_its_maximum_and_starts_again_after_a_good_run() {
    let failures = [0, 1_500, 4_000, 9_000, 15_000, 80_000, 81_500];
    let waits = [1_000, 2_000, 4_000, 5_000, 5_000, 1_000, 2_000].map(Some);
    check(exponential(0.0, None), &failures, &waits);
    check(exponential(0.0, Some(2)), &failures[..3], &[Some(1_000), Some(2_000), None]);
}

#[test]
fn what_was_lost_is_replaced_at_once_while_the_job_gets_on() {
    let lost = |strategy: Strategy, progresses: bool| {
        let mut restarts = Restarts::new(strategy, 7);
        [0, 10_000, 20_000].map(|at| {
            let decided = after(restarts.lost(at, "worker"));
            if progresses {
                restarts.progressed();
            }
            decided
        })
    };
    assert_eq!(lost(exponential(0.0, None), true), [Some(0), Some(0), Some(0)]);
    assert_eq!(lost(Strategy::FIXED_DELAY, true), [Some(0), Some(0), Some(0)]);
    // Without progress it is a failure as any other.
    assert_eq!(lost(exponential(0.0, None), false), [Some(0), Some(1_000), Some(2_000)]);
    assert_eq!(lost(Strategy::FIXED_DELAY, false), [Some(0), Some(1_000), None]);
    assert_eq!(lost(Strategy::None, true), [None; 3]);
    // Nor is it after another failure.
    let mut restarts = Restarts::new(exponential(0.0, None), 7);
    assert_eq!([restarts.failed(0, "trap"), restarts.lost(1_500, "worker")].map(after), [Some(1_000), Some(2_000)]);
}

#[test]
fn jitter_stays_within_its_share_and_comes_from_the_seed() {
    let waits = |seed| {
        let mut restarts = Restarts::new(exponential(0.5, None), seed);
        (0..200).map(|i| after(restarts.failed(i * 100_000, "trap")).unwrap()).collect::<Vec<_>>()
    };
    assert!(waits(1).iter().all(|ms| (500..=1_500).contains(ms)));
    assert!(waits(1).iter().any(|ms| *ms < 700) && waits(1).iter().any(|ms| *ms > 1_300));
    assert_eq!(waits(1), waits(1));
    assert_ne!(waits(1), waits(2));
}

#[test]
fn failure_rate_forgets_what_is_older_than_its_interval() {
    let strategy = Strategy::FailureRate { max_failures: 2, interval_ms: 1_000, delay_ms: 10 };
    check(strategy.clone(), &[0, 900, 1_901, 2_000, 2_100], &[Some(10), Some(10), Some(10), Some(10), None]);
    check(strategy, &[0, 500, 1_000], &[Some(10), Some(10), None]);
}

#[test]
fn the_newest_failures_are_kept_with_what_was_decided() {
    let mut restarts = Restarts::new(Strategy::FixedDelay { attempts: 30, delay_ms: 1 }, 0);
    for i in 0..40 {
        let _ = restarts.failed(i, &format!("failure {i}"));
    }
    let history: Vec<_> = restarts.history().collect();
    assert_eq!(history.len(), HISTORY);
    assert_eq!(history[HISTORY - 1].reason, "failure 39");
    assert!(matches!(history[HISTORY - 1].then, Restart::GiveUp(_)));
    assert_eq!(history[0].reason, format!("failure {}", 40 - HISTORY));
}
