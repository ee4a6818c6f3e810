//! `tests/sim/run`: simulates seeds, and says what came of them. The last line is a JSON object.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use clap::Parser;
use serde_json::json;
use tidemill_sim::{Outcome, Sabotage, simulate};

/// Simulates whole jobs on a cluster, under faults drawn from a seed each.
#[derive(Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many of the last events are shown of a seed that fails.
    #[arg(long, default_value_t = 100)]
    events: usize,
    /// Puts a bug back on purpose, to see that it is found.
    #[arg(long)]
    bug: Option<Sabotage>,
    /// Shows them of every seed.
    #[arg(long)]
    verbose: bool,
}

/// What came of all seeds so far.
#[derive(Default)]
struct Sum {
    seeds: u64,
    events: u64,
    lost: u64,
    duplicated: u64,
    wrong: u64,
    stuck: u64,
    faults: BTreeMap<&'static str, u64>,
    failed: Vec<u64>,
}

impl Sum {
    fn add(&mut self, outcome: Outcome, shows: bool) {
        if shows || !outcome.is_good() {
            show(&outcome);
        }
        if !outcome.is_good() {
            self.failed.push(outcome.seed);
        }
        self.seeds += 1;
        self.events += outcome.digest.1;
        self.lost += outcome.verdict.lost;
        self.duplicated += outcome.verdict.duplicated;
        self.wrong += outcome.verdict.wrong;
        self.stuck += u64::from(outcome.stuck.is_some());
        outcome.faults.into_iter().for_each(|(kind, times)| *self.faults.entry(kind).or_default() += times);
    }
}

fn show(outcome: &Outcome) {
    let Outcome { seed, verdict, stuck, .. } = outcome;
    println!("seed {seed}: the last events, with their time in ms:");
    outcome.last_events.iter().for_each(|event| println!("  {event}"));
    let stuck = stuck.as_ref().map(|why| format!("; stuck: {why}")).unwrap_or_default();
    let (digest, events) = outcome.digest;
    println!("seed {seed}: {events} events, digest {digest:016x}; {verdict:?}{stuck}");
    println!("seed {seed}: again with: tests/sim/run --seeds 1 --from {seed}");
}

fn main() -> ExitCode {
    let Args { seeds, from, events, bug, verbose } = Args::parse();
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    // Each seed is in one thread; several seeds are not.
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < seeds) {
                    let outcome = simulate(from.wrapping_add(at), bug, events);
                    sum.lock().unwrap_or_else(PoisonError::into_inner).add(outcome, verbose);
                }
            });
        }
    });
    let mut sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    sum.failed.sort_unstable();
    let Sum { seeds, events, lost, duplicated, wrong, stuck, faults, failed } = sum;
    let said = json!({
        "seeds": seeds, "from": from, "events": events, "faults": faults, "lost": lost, "duplicated": duplicated,
        "wrong": wrong, "stuck": stuck, "failed": failed,
    });
    println!("{said}");
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
