//! What the way between two processes costs: a query on two slots of one worker, and on one slot of each of two.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::Cluster;
use crate::guests;
use crate::measure::quantile;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct ShuffleFigures {
    /// The query.
    pub query: String,
    /// Records that were read.
    pub records: u64,
    /// How often each was measured.
    pub rounds: usize,
    /// Records per second with both slots in one process: the median.
    pub one_process_rps: f64,
    /// With each in a process of its own: the median.
    pub two_processes_rps: f64,
    /// The second by the first: the median of the rounds.
    pub ratio: f64,
}

/// Measures a query in both ways in turn, so often.
///
/// # Errors
/// When a job fails, or the two do not write the same number of rows.
pub fn measure(folder: &Path, query: &str, records: u64, rounds: usize) -> Result<ShuffleFigures> {
    ensure!(rounds > 0 && records > 0, "one round and one record or more");
    let component = guests::component(query)?;
    fs::create_dir_all(folder.join("one"))?;
    fs::create_dir_all(folder.join("two"))?;
    let one = Cluster::start(&folder.join("one"), &[2])?;
    let two = Cluster::start(&folder.join("two"), &[1, 1])?;
    let (mut of_one, mut of_two, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (alone, wrote_alone) = rate(&one, &component, records)?;
        let (apart, wrote_apart) = rate(&two, &component, records)?;
        ensure!(wrote_alone == wrote_apart, "{wrote_alone} rows were written in one process, {wrote_apart} in two");
        of_one.push(alone);
        of_two.push(apart);
        ratios.push(apart / alone);
    }
    let [one_process_rps, two_processes_rps, ratio] = [of_one, of_two, ratios].map(|mut of| quantile(&mut of, 0.5));
    Ok(ShuffleFigures { query: query.to_owned(), records, rounds, one_process_rps, two_processes_rps, ratio })
}

/// Records per second from when all slots ran to the end; and how many rows were written.
fn rate(cluster: &Cluster, component: &[u8], records: u64) -> Result<(f64, u64)> {
    let artifact = cluster.upload(component.to_vec())?;
    let job = cluster.submit(&artifact.id, &manifest(records))?;
    let ended = cluster.finish(&job.id)?;
    let began = ended.attempt.as_ref().context("the job ran without an attempt")?.ready_ms;
    let ms = ended.ended_ms.context("the job ended at no time")? - began;
    let sink = ended.vertices.last().context("the job has no operators")?;
    let written = sink.subtasks.iter().map(|subtask| subtask.records_in).sum();
    Ok((records as f64 / (ms.max(1) as f64 / 1e3), written))
}

fn manifest(records: u64) -> String {
    format!(
        r#"
[job]
name = "shuffle"
parallelism = 2

[sources.bids]
connector = "bids"
records = {records}

[sinks.out]
connector = "blackhole"
"#
    )
}
