//! How long a job's output pauses when a worker is killed, and when the coordinator is.
//!
//! The job counts the bids of each auction, at a steady rate, with checkpoints, and prints a thousandth of the counts.

use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tidemill_coordinator::view::JobState;

use super::{Cluster, Spread, unix_ms};
use crate::guests;

/// Of each worker, and of the job: when one of the three is gone, there are enough left.
const SLOTS: u32 = 2;
const WORKERS: usize = 3;
const PARALLELISM: u32 = 4;
/// Between two kills, so that the rate is steady again and checkpoints are taken.
const SETTLES: Duration = Duration::from_millis(2_500);

/// What was measured. Every phase begins where the one before ends, the first with the kill.
#[derive(Debug, Serialize)]
pub struct RecoveryFigures {
    /// Workers that were killed.
    pub kills: usize,
    /// Records per second and slot.
    pub rate: u64,
    /// Until the coordinator knew.
    pub seen: Spread,
    /// Until it began the next attempt.
    pub decided: Spread,
    /// Until the workers were told what to run: the log, slots, what was left to commit.
    pub deployed: Spread,
    /// Until all of them had made their slots and read their state.
    pub restored: Spread,
    /// Until the first line of the new attempt was read.
    pub first_output: Spread,
    /// From the kill to that line.
    pub total: Spread,
    /// Coordinators that were killed.
    pub coordinator_kills: usize,
    /// The longest time without output while one was gone, and after.
    pub coordinator_pause: Spread,
    /// From its kill until its successor, which starts at once, shows the job as running.
    pub takeover: Spread,
}

/// Kills so many workers, and coordinators, at a rate per slot.
///
/// # Errors
/// When the job fails or does not go on.
pub fn measure(folder: &Path, kills: usize, coordinator_kills: usize, rate: u64) -> Result<RecoveryFigures> {
    ensure!(kills > 0 && rate > 0, "one kill or more, and a rate above 0");
    let mut cluster = Cluster::start(folder, &[SLOTS; WORKERS])?;
    let artifact = cluster.upload(guests::component("sample")?)?;
    let job = cluster.submit(&artifact.id, &manifest(rate * u64::from(PARALLELISM)))?.id;
    cluster.line()?;
    let (mut phases, mut totals): ([Vec<f64>; 5], Vec<f64>) = Default::default();
    for _ in 0..kills {
        thread::sleep(SETTLES);
        let found = cluster.job(&job)?;
        let victim = found.vertices.last().and_then(|vertex| vertex.subtasks.first()?.worker.clone());
        let victim = cluster.worker(&victim.context("the job runs nowhere")?).context("an unknown worker")?;
        let killed = unix_ms(SystemTime::now());
        cluster.kill_worker(victim)?;
        cluster.until(|cluster| {
            let now = cluster.job(&job)?;
            Ok(now.restarts > found.restarts && now.state == JobState::Running)
        })?;
        let now = cluster.job(&job)?;
        let attempt = now.attempt.context("the job runs without an attempt")?;
        let seen = now.exceptions.last().context("the job was restarted without a reason")?.at_ms as f64;
        let opened = attempt.ready_ms as f64;
        let first = loop {
            let at = unix_ms(cluster.line()?.at);
            if at >= opened {
                break at;
            }
        };
        let ends = [seen, attempt.began_ms as f64, attempt.deploying_ms as f64, opened, first];
        let mut begin = killed;
        for (phase, end) in phases.iter_mut().zip(ends) {
            phase.push(end - begin);
            begin = end;
        }
        totals.push(first - killed);
        cluster.add_worker(SLOTS)?;
    }
    let (mut pauses, mut takeovers) = (Vec::new(), Vec::new());
    for _ in 0..coordinator_kills {
        thread::sleep(SETTLES);
        cluster.lines().for_each(drop);
        let killed = SystemTime::now();
        cluster.kill_coordinator()?;
        cluster.revive_coordinator()?;
        cluster.until(|cluster| Ok(cluster.job(&job).is_ok_and(|job| job.state == JobState::Running)))?;
        takeovers.push(unix_ms(SystemTime::now()) - unix_ms(killed));
        thread::sleep(SETTLES);
        let (mut last, mut longest) = (unix_ms(killed), 0.0_f64);
        for line in cluster.lines() {
            let at = unix_ms(line.at);
            longest = longest.max(at - last);
            last = at;
        }
        pauses.push(longest);
    }
    let [seen, decided, deployed, restored, first_output] = phases.map(Spread::of);
    Ok(RecoveryFigures {
        kills,
        rate,
        seen,
        decided,
        deployed,
        restored,
        first_output,
        total: Spread::of(totals),
        coordinator_kills,
        coordinator_pause: Spread::of(pauses),
        takeover: Spread::of(takeovers),
    })
}

fn manifest(pace: u64) -> String {
    format!(
        r#"
[job]
name = "recovery"
parallelism = {PARALLELISM}

[sources.bids]
connector = "bids"
pace = {pace}

[sinks.out]
connector = "print"

[checkpoints]
location = "checkpoints"
interval = "1 s"
"#
    )
}
