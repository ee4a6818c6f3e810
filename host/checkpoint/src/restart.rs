//! Whether and when a job that failed is started again. Pure: failures in, a decision out. The strategies, their names
//! and defaults are Flink's.

use std::collections::VecDeque;

/// How many failures are remembered, to be shown.
pub const HISTORY: usize = 16;

/// A restart strategy.
#[derive(Clone, Debug, PartialEq)]
pub enum Strategy {
    /// `none`: the first failure is the last.
    None,
    /// `fixed-delay`.
    FixedDelay {
        /// How many times the job is started again.
        attempts: u32,
        /// The wait before each.
        delay_ms: u64,
    },
    /// `exponential-delay`: for ever, but ever more slowly.
    ExponentialDelay {
        /// The first wait.
        initial_backoff_ms: u64,
        /// The longest.
        max_backoff_ms: u64,
        /// What a wait is multiplied with for the next one; at least 1.
        multiplier: f64,
        /// After running this long, the next failure counts as the first.
        reset_after_ms: u64,
        /// By which share a wait is made longer or shorter, so that jobs that failed together do not come back together.
        jitter: f64,
        /// After this many failures in a row, give up. `None`: never.
        attempts: Option<u32>,
    },
    /// `failure-rate`.
    FailureRate {
        /// How many failures within the interval are accepted.
        max_failures: u32,
        /// Its length.
        interval_ms: u64,
        /// The wait before each start.
        delay_ms: u64,
    },
}

impl Strategy {
    /// `fixed-delay` as it is if nothing else is said.
    pub const FIXED_DELAY: Self = Self::FixedDelay { attempts: 1, delay_ms: 1_000 };
    /// `exponential-delay` as it is if nothing else is said. It is also what a job with checkpoints has.
    pub const EXPONENTIAL_DELAY: Self = Self::ExponentialDelay {
        initial_backoff_ms: 1_000,
        max_backoff_ms: 60_000,
        multiplier: 1.5,
        reset_after_ms: 3_600_000,
        jitter: 0.1,
        attempts: None,
    };
    /// `failure-rate` as it is if nothing else is said.
    pub const FAILURE_RATE: Self = Self::FailureRate { max_failures: 1, interval_ms: 60_000, delay_ms: 1_000 };
}

/// A failure of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// Why.
    pub reason: String,
    /// What was decided.
    pub then: Restart,
}

/// What to do after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Start the job again after so many milliseconds.
    After(u64),
    /// Don't; why.
    GiveUp(String),
}

/// Decides about the restarts of one job, and remembers its failures.
#[derive(Clone, Debug)]
pub struct Restarts {
    strategy: Strategy,
    random: u64,
    /// The newest ones, oldest first.
    history: VecDeque<Failure>,
    /// When the failures were that the strategy counts, oldest first. Bounded by what it accepts.
    counted: VecDeque<u64>,
    /// Failures in a row.
    in_a_row: u32,
    /// When the last restart was (to be).
    restarted_ms: u64,
    /// Whether the job got on since the last failure.
    progressed: bool,
}

impl Restarts {
    /// Without any failure yet. The seed makes the jitter.
    pub fn new(strategy: Strategy, seed: u64) -> Self {
        let (history, counted) = (VecDeque::new(), VecDeque::new());
        Self { strategy, random: seed, history, counted, in_a_row: 0, restarted_ms: 0, progressed: true }
    }

    /// The job failed.
    pub fn failed(&mut self, now_ms: u64, reason: &str) -> Restart {
        self.progressed = false;
        let then = self.decide(now_ms);
        self.note(now_ms, reason, then)
    }

    /// The job failed since a process, or the way to one, was lost, and for no other reason. That says nothing about the
    /// job, and nothing has to pass before it can be started again on what is left: there is no wait, and it does not
    /// count; unless the job has not got on since the failure before, when something may be wrong with it after all.
    pub fn lost(&mut self, now_ms: u64, reason: &str) -> Restart {
        let then = match (&self.strategy, std::mem::take(&mut self.progressed)) {
            (Strategy::None, _) | (_, false) => self.decide(now_ms),
            (_, true) => Restart::After(0),
        };
        self.note(now_ms, reason, then)
    }

    /// The job got on: a checkpoint is complete since it was started.
    pub fn progressed(&mut self) {
        self.progressed = true;
    }

    fn note(&mut self, now_ms: u64, reason: &str, then: Restart) -> Restart {
        if let Restart::After(delay_ms) = then {
            self.restarted_ms = now_ms.saturating_add(delay_ms);
        }
        if self.history.len() >= HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Failure { at_ms: now_ms, reason: reason.to_owned(), then: then.clone() });
        then
    }

    /// The newest failures, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Failure> {
        self.history.iter()
    }

    fn decide(&mut self, now_ms: u64) -> Restart {
        match self.strategy {
            Strategy::None => Restart::GiveUp("the restart strategy is 'none'".to_owned()),
            Strategy::FixedDelay { attempts, delay_ms } => {
                self.in_a_row += 1;
                if self.in_a_row > attempts {
                    return Restart::GiveUp(format!(
                        "it was started again {attempts} time(s), as often as fixed-delay does"
                    ));
                }
                Restart::After(delay_ms)
            }
            Strategy::ExponentialDelay {
                initial_backoff_ms,
                max_backoff_ms,
                multiplier,
                reset_after_ms,
                jitter,
                attempts,
            } => {
                if now_ms.saturating_sub(self.restarted_ms) >= reset_after_ms {
                    self.in_a_row = 0;
                }
                self.in_a_row += 1;
                if let Some(attempts) = attempts.filter(|attempts| self.in_a_row > *attempts) {
                    return Restart::GiveUp(format!(
                        "{} failures in a row; exponential-delay ends after {attempts}",
                        self.in_a_row
                    ));
                }
                let exponent = i32::try_from(self.in_a_row - 1).unwrap_or(i32::MAX);
                let grown = initial_backoff_ms as f64 * multiplier.max(1.0).powi(exponent);
                let backoff = grown.min(max_backoff_ms as f64);
                let jittered = backoff * (1.0 + jitter * self.symmetric());
                Restart::After(jittered.clamp(0.0, max_backoff_ms as f64).round() as u64)
            }
            Strategy::FailureRate { max_failures, interval_ms, delay_ms } => {
                self.counted.push_back(now_ms);
                while self.counted.front().is_some_and(|at| now_ms.saturating_sub(*at) > interval_ms) {
                    self.counted.pop_front();
                }
                let failures = self.counted.len();
                if failures as u64 > u64::from(max_failures) {
                    return Restart::GiveUp(format!(
                        "{failures} failures within {interval_ms} ms; failure-rate accepts {max_failures}"
                    ));
                }
                Restart::After(delay_ms)
            }
        }
    }

    /// The next random number of -1 to 1 (splitmix64: any seed is good).
    fn symmetric(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        (x >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}
