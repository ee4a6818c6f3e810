//! What a seed's cluster is like, and its jobs, and what their users want.

use crate::dice::Dice;
use crate::job::{JobPlan, Kind};
use crate::outside::Input;
use crate::world::World;

/// See the module.
pub struct Plan {
    /// The slots of each worker.
    pub workers: Vec<u32>,
    /// What is to be run.
    pub jobs: Vec<Planned>,
    /// Until when things go wrong, in milliseconds from the beginning.
    pub faults_ms: i64,
    /// How long it is between two faults, at most, in milliseconds.
    pub pause_ms: i64,
    /// How likely it is that a request to the store fails; 0: it never does.
    pub store_faults: u64,
}

/// A job, and what its user does.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The job.
    pub job: JobPlan,
    /// What it reads.
    pub input: Input,
    /// Whether it can't come to its end before its user has done everything.
    pub held_back: bool,
    /// What the user does, in this order.
    pub steps: Vec<Step>,
}

/// What a user wants of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A checkpoint now.
    Checkpoint,
    /// A savepoint now.
    Savepoint,
    /// So many slots. The user waits until it has them, or goes on at once.
    Rescale(u32, bool),
    /// To stop it with a checkpoint; then it is submitted again, perhaps with another number of slots, and goes on.
    Stop(Option<u32>),
    /// The same with a savepoint.
    StopWithSavepoint(Option<u32>),
    /// To cancel it.
    Cancel,
}

impl Plan {
    /// As chance wants it.
    pub fn draw(world: &World) -> Self {
        let mut dice = world.dice();
        let workers: Vec<u32> = (0..dice.between(2, 5)).map(|_| small(dice.between(1, 3))).collect();
        let slots: u32 = workers.iter().sum();
        let jobs = [1, 1, 1, 2, 2, 3, 4].get(dice.between(0, 7).unsigned_abs() as usize).copied().unwrap_or(1);
        let jobs = (0..jobs).map(|_| Planned::draw(&mut dice, slots, jobs)).collect();
        // Where much goes wrong, no job gets far; where little does, what goes wrong has more to spoil.
        let (faults_ms, pause_ms) = (dice.between(8_000, 40_000), dice.between(300, 8_000));
        let store_faults = dice.between(0, 6).unsigned_abs();
        Self { workers, jobs, faults_ms, pause_ms, store_faults }
    }
}

impl Planned {
    fn draw(dice: &mut Dice, slots: u32, jobs: i64) -> Self {
        let kind =
            dice.pick(&[Kind::Count, Kind::Count, Kind::CountLater, Kind::Lists]).copied().unwrap_or(Kind::Count);
        let mut number = |low: i64, high: i64| dice.between(low, high);
        let job = JobPlan {
            kind,
            parallelism: small(number(if jobs == 1 { 2 } else { 1 }, i64::from(slots.min(4)) + 1)),
            exchange_bytes: number(64, 2_000).unsigned_abs(),
            interval_ms: number(200, 1_500).unsigned_abs(),
            // Where it is that long, nobody is rescued by it who waits for what never comes.
            timeout_ms: if number(0, 4) == 0 { 600_000 } else { number(2_000, 10_000).unsigned_abs() },
            aligned_timeout_ms: (number(0, 2) == 0).then(|| number(0, 300).unsigned_abs()),
            tolerable_failures: number(0, 4).unsigned_abs(),
            retained: number(1, 4).unsigned_abs(),
        };
        let (splits, records) = (small(number(2, 9)), small(number(20, 201) / jobs.min(2)));
        let input = Input { splits, records, keys: number(1, 40).unsigned_abs() };
        let held_back = number(0, 3) > 0;
        let mut steps = Vec::new();
        for _ in 0..number(0, 5) {
            Step::draw(dice, slots, &mut steps);
        }
        if dice.between(0, 8) == 0 {
            steps.push(Step::Cancel);
        }
        Self { job, input, held_back, steps }
    }
}

impl Step {
    fn draw(dice: &mut Dice, slots: u32, steps: &mut Vec<Self>) {
        let mut parallelism = || small(dice.between(1, i64::from(slots.min(5)) + 1));
        let (some, other) = (parallelism(), parallelism());
        let other = (dice.between(0, 2) == 0).then_some(other);
        match dice.between(0, 9) {
            0 => steps.push(Self::Checkpoint),
            1 | 2 => steps.push(Self::Savepoint),
            3 | 4 => steps.push(Self::Rescale(some, true)),
            // Once more soon, perhaps before anything came of it; or it can't have so many and has to take fewer.
            5 => {
                let many =
                    if dice.between(0, 3) == 0 { slots + 1 } else { small(dice.between(1, i64::from(slots) + 1)) };
                steps.extend([Self::Rescale(many, false), Self::Rescale(some, true)]);
            }
            6 => steps.push(Self::Stop(other)),
            _ => steps.push(Self::StopWithSavepoint(other)),
        }
    }
}

/// A number that is small.
pub fn small(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(1)
}
