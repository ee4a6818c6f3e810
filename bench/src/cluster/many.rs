//! Many small jobs on one worker: what each takes of memory, whether all progress, and how fast the API answers meanwhile.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tidemill_coordinator::view::{JobState, JobView, Overview};

use super::{Cluster, answer};
use crate::guests;
use crate::measure::{quantile, rss_mb};

/// Requests of each kind that are timed.
const REQUESTS: usize = 400;
/// After which every job must have progressed.
const PROGRESSES: Duration = Duration::from_secs(5);

/// What was measured.
#[derive(Debug, Serialize)]
pub struct ManyFigures {
    /// Jobs that ran at once.
    pub jobs: usize,
    /// How many of them read more records within five seconds.
    pub progressing: usize,
    /// How much the worker grew by each job, in MiB.
    pub worker_mib_per_job: f64,
    /// How much the coordinator grew by each job, in MiB.
    pub coordinator_mib_per_job: f64,
    /// From the first submission until all ran, in seconds.
    pub started_s: f64,
    /// Of requests for one job and for the overview: half were answered faster.
    pub api_p50_ms: f64,
    /// Of these: 99 of 100.
    pub api_p99_ms: f64,
    /// The same of the list of all jobs, which is large.
    pub list_p99_ms: f64,
}

/// Runs so many jobs.
///
/// # Errors
/// When one fails.
pub fn measure(folder: &Path, jobs: usize) -> Result<ManyFigures> {
    ensure!(jobs > 0, "one job or more");
    let cluster = Cluster::start(folder, &[u32::try_from(jobs)?])?;
    let artifact = cluster.upload(guests::component("sample")?)?.id;
    // What the first job brings along is not each job's.
    let first = cluster.submit(&artifact, &manifest(0))?;
    cluster.until(|cluster| Ok(progress(&cluster.job(&first.id)?) > 0))?;
    let (worker_before, coordinator_before) = (worker_mib(&cluster)?, mib(cluster.coordinator.id())?);
    let begin = Instant::now();
    let mut ids = vec![first.id];
    for number in 1..jobs {
        ids.push(cluster.submit(&artifact, &manifest(number))?.id);
    }
    cluster.until(|cluster| Ok(answer::<Overview>(cluster.get("overview"))?.jobs_running == jobs as u64))?;
    let started_s = begin.elapsed().as_secs_f64();
    let at_first = progresses(&cluster, &ids)?;
    thread::sleep(PROGRESSES);
    let at_last = progresses(&cluster, &ids)?;
    let progressing = at_first.iter().zip(&at_last).filter(|(first, last)| last > first).count();
    let grown = |before: f64, after: f64| (after - before) / (jobs.max(2) - 1) as f64;
    let worker_mib_per_job = grown(worker_before, worker_mib(&cluster)?);
    let coordinator_mib_per_job = grown(coordinator_before, mib(cluster.coordinator.id())?);
    let mut times = Vec::new();
    for id in ids.iter().cycle().take(REQUESTS) {
        times.push(timed(&cluster, &format!("jobs/{id}"))?);
        times.push(timed(&cluster, "overview")?);
    }
    let mut lists = (0..REQUESTS / 4).map(|_| timed(&cluster, "jobs")).collect::<Result<Vec<f64>>>()?;
    Ok(ManyFigures {
        jobs,
        progressing,
        worker_mib_per_job,
        coordinator_mib_per_job,
        started_s,
        api_p50_ms: quantile(&mut times, 0.5),
        api_p99_ms: quantile(&mut times, 0.99),
        list_p99_ms: quantile(&mut lists, 0.99),
    })
}

fn manifest(number: usize) -> String {
    format!(
        r#"
[job]
name = "small-{number}"

[sources.bids]
connector = "bids"
pace = 20

[sinks.out]
connector = "blackhole"

[checkpoints]
location = "checkpoints"
interval = "10 s"
"#
    )
}

fn progresses(cluster: &Cluster, ids: &[String]) -> Result<Vec<u64>> {
    let each = ids.iter().map(|id| {
        let job = cluster.job(id)?;
        ensure!(job.state == JobState::Running, "the job {id} does not run");
        Ok(progress(&job))
    });
    each.collect()
}

/// What its source has read.
fn progress(job: &JobView) -> u64 {
    job.vertices.first().into_iter().flat_map(|vertex| &vertex.subtasks).map(|subtask| subtask.records_out).sum()
}

fn timed(cluster: &Cluster, path: &str) -> Result<f64> {
    let begin = Instant::now();
    let answered = cluster.get(path).send()?.error_for_status()?.bytes()?;
    ensure!(!answered.is_empty(), "{path} is empty");
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

fn worker_mib(cluster: &Cluster) -> Result<f64> {
    mib(cluster.workers.first().context("a worker")?.id())
}

/// What a process has in memory.
fn mib(process: u32) -> Result<f64> {
    rss_mb(process).context("a process has ended")
}
