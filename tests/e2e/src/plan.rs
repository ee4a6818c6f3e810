//! What happens to the processes of one scenario, drawn from its seed before anything runs.

use tidemill_core::failpoint::Failpoint;

use crate::jobs::{Job, PER_FILE, Partitions, Settings};
use crate::random::Random;

/// Of so many kills, this one is a failpoint's; the others happen at random moments.
const RANDOM_ONE_IN: u64 = 4;

/// What happens to one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is killed at some moment.
    Kill {
        /// Milliseconds after its start.
        after_ms: u64,
    },
    /// It kills itself.
    Failpoint {
        /// Where.
        at: Failpoint,
        /// When it comes there for this time.
        times: u64,
        /// What it is told meanwhile.
        asked: Asked,
        /// It goes on from the last checkpoint only if it was interrupted (and ends what ended).
        recovers: bool,
    },
    /// It is stopped with a savepoint or without; the next one goes on from there.
    Stop {
        /// Milliseconds after its start.
        after_ms: u64,
        /// With a savepoint.
        savepoint: bool,
    },
    /// A second process takes the job over while the first lives.
    Second {
        /// Milliseconds after its start.
        after_ms: u64,
    },
}

/// What a running job is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// Savepoints, again and again.
    Savepoints,
    /// To stop; before, it takes no checkpoint.
    Stop,
}

/// A run of a job from its first record to its last, with kills in between.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whose.
    pub job: Job,
    /// The seed of what is drawn while it runs.
    pub seed: u64,
    /// How many kills were asked for.
    pub kills: u64,
    /// Of its manifest.
    pub settings: Settings,
    /// One process after the other; after them, one runs to the end.
    pub steps: Vec<Step>,
}

impl Plan {
    /// One process from the first record to the last, of which there are few.
    pub fn undisturbed(job: Job) -> Self {
        let mut random = Random::new(0, 0);
        Self { job, seed: 0, kills: 0, settings: settings(job, 0, &mut random), steps: Vec::new() }
    }

    /// Scenario `number` of a seed. Failpoints are dealt in turn, so that a long run comes to all of them.
    pub fn new(job: Job, seed: u64, number: u64, kills: u64) -> Self {
        let mut random = Random::new(seed, number);
        // One is only dealt as the preparation of another.
        let mut deck: Vec<_> = Failpoint::ALL.iter().copied().filter(|at| *at != Failpoint::InFlightClaimed).collect();
        Random::new(seed, u64::MAX).shuffle(&mut deck);
        let mut dealt = deck.iter().copied().cycle().skip((number * kills) as usize % deck.len().max(1));
        let mut steps = Vec::new();
        let mut left = kills;
        while left > 0 {
            if random.one_in(8) {
                steps.push(Step::Stop { after_ms: random.between(100, 500), savepoint: random.one_in(2) });
            }
            if random.one_in(RANDOM_ONE_IN) {
                steps.push(match random.one_in(3) {
                    true => Step::Second { after_ms: random.between(60, 500) },
                    false => Step::Kill { after_ms: random.between(10, 600) },
                });
            } else if let Some(at) = dealt.next() {
                // What only happens after another kill needs that one first.
                let before = preparation(at);
                left = left.saturating_sub(before.len() as u64);
                steps.extend(before);
                steps.push(failpoint(at, &mut random));
            }
            left = left.saturating_sub(1);
        }
        let (seed, mut settings) = (random.between(0, u64::MAX), settings(job, kills, &mut random));
        if steps.iter().any(is_of_unaligned) {
            settings.aligned_timeout_ms = Some(0);
        }
        Self { job, seed, kills, settings, steps }
    }
}

fn settings(job: Job, kills: u64, random: &mut Random) -> Settings {
    Settings {
        records: job.records(kills).next_multiple_of(PER_FILE),
        interval_ms: random.between(10, 200),
        batch_rows: random.one_of(&[16, 100, 700, 4_096], 100),
        retained: random.between(1, 4),
        roll_bytes: random.one_of(&[500, 4_000, 1 << 20], 4_000),
        aligned_timeout_ms: random.one_in(3).then(|| random.between(0, 4)),
        roll_after_ms: random.one_in(3).then(|| random.between(1, 60)),
        roll_idle_ms: random.one_in(3).then(|| random.between(1, 40)),
        partitions: partitions(random),
    }
}

fn partitions(random: &mut Random) -> Partitions {
    let max_open_files = random.one_of(&[8, 64], 64);
    match random.between(0, 4) {
        0 => Partitions::Dropped { max_open_files },
        1 => Partitions::Kept { max_open_files },
        _ => Partitions::None,
    }
}

/// Whether a process dies where only unaligned checkpoints come.
fn is_of_unaligned(step: &Step) -> bool {
    use Failpoint::{
        InFlightClaimed, InFlightDue, InFlightRestored, InFlightWritten, OvertakeDone, OvertakeDue, OvertakeSaid,
    };
    let places =
        [InFlightClaimed, InFlightDue, InFlightRestored, InFlightWritten, OvertakeDone, OvertakeDue, OvertakeSaid];
    matches!(step, Step::Failpoint { at, .. } if places.contains(at))
}

fn failpoint(at: Failpoint, random: &mut Random) -> Step {
    let asked = match at {
        Failpoint::SavepointDue | Failpoint::SavepointCopied | Failpoint::SavepointDone => Asked::Savepoints,
        Failpoint::LastCommitted => Asked::Stop,
        _ => Asked::Nothing,
    };
    let once = asked != Asked::Nothing || !preparation(at).is_empty() || at < Failpoint::StateRestored;
    let times = if once { 1 } else { random.between(1, 5) };
    Step::Failpoint { at, times, asked, recovers: at == Failpoint::EndedCommitted }
}

/// Where a process must die for the next one to come to a failpoint.
fn preparation(at: Failpoint) -> Vec<Step> {
    let dies = |at, asked| vec![Step::Failpoint { at, times: 1, asked, recovers: false }];
    match at {
        Failpoint::RecoverUncommitted | Failpoint::RecoverCommitted => dies(Failpoint::CommitDue, Asked::Nothing),
        Failpoint::SinkDeleted => dies(Failpoint::PartSynced, Asked::Nothing),
        Failpoint::EndedCommitted => dies(Failpoint::CommitDue, Asked::Stop),
        Failpoint::InFlightRestored => dies(Failpoint::InFlightClaimed, Asked::Nothing),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_the_same_plans_again_and_few_of_them_have_every_way_of_closing_files() {
        let settings = |number| Plan::new(Job::Keyed, 7, number, 8).settings;
        let all: Vec<Settings> = (0..24).map(settings).collect();
        assert!(all.iter().zip(0..).all(|(one, number)| format!("{one:?}") == format!("{:?}", settings(number))));
        let some = |is: fn(&Settings) -> bool| all.iter().any(is) && !all.iter().all(is);
        assert!(some(|s| s.roll_after_ms.is_some()) && some(|s| s.roll_idle_ms.is_some()));
        assert!(some(|s| matches!(s.partitions, Partitions::Dropped { .. })));
        assert!(some(|s| matches!(s.partitions, Partitions::Kept { .. })));
    }
}
