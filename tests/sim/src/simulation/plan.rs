//! What a seed's cluster and job are like.

use crate::job::JobPlan;
use crate::outside::Input;
use crate::world::World;

/// See the module.
pub struct Plan {
    /// The slots of each worker.
    pub workers: Vec<u32>,
    /// Of the job.
    pub job: JobPlan,
    /// What it reads.
    pub input: Input,
    /// Until when things go wrong, in milliseconds from the beginning.
    pub faults_ms: i64,
    /// How long it is between two faults, at most, in milliseconds.
    pub pause_ms: i64,
    /// How likely it is that a request to the store fails; 0: it never does.
    pub store_faults: u64,
}

impl Plan {
    /// As chance wants it.
    pub fn draw(world: &World) -> Self {
        let mut dice = world.dice();
        let mut number = |low: i64, high: i64| dice.between(low, high);
        let workers: Vec<u32> = (0..number(2, 5)).map(|_| small(number(1, 3))).collect();
        let slots: u32 = workers.iter().sum();
        let job = JobPlan {
            parallelism: small(number(2, i64::from(slots.min(4)) + 1)),
            exchange_bytes: number(64, 2_000).unsigned_abs(),
            interval_ms: number(200, 1_500).unsigned_abs(),
            timeout_ms: number(2_000, 10_000).unsigned_abs(),
            aligned_timeout_ms: (number(0, 2) == 0).then(|| number(0, 300).unsigned_abs()),
            tolerable_failures: number(0, 4).unsigned_abs(),
            retained: number(1, 4).unsigned_abs(),
        };
        let input =
            Input { splits: small(number(2, 9)), records: small(number(20, 201)), keys: number(1, 40).unsigned_abs() };
        // Where much goes wrong, no job gets far; where little does, what goes wrong has more to spoil.
        let (faults_ms, pause_ms) = (number(8_000, 40_000), number(300, 8_000));
        let store_faults = number(0, 6).unsigned_abs();
        Self { workers, job, input, faults_ms, pause_ms, store_faults }
    }
}

/// A number that is small.
pub fn small(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(1)
}
