//! What one run cost: time, processor, memory. Read from the operating system, and only here.

use std::fs;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// One run of one twin: the last line that `bench/run` prints.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Name of the query.
    pub query: String,
    /// Which twin ran.
    pub twin: String,
    /// Slots.
    pub slots: u32,
    /// Rows per batch.
    pub batch_rows: usize,
    /// Records that were read.
    pub records: u64,
    /// Records that came out.
    pub out_records: u64,
    /// Their checksum.
    pub checksum: u64,
    /// From the start of the job to its end, with compiled code at hand.
    pub seconds: f64,
    /// Records per second after the first fifth of the input.
    pub steady_rps: f64,
    /// Processor time of all threads.
    pub cpu_s: f64,
    /// Largest resident memory of the process.
    pub peak_rss_mb: f64,
    /// Calls into the sandbox.
    pub crossings: u64,
    /// Bytes copied into and out of the sandbox.
    pub bytes_copied: u64,
}

/// Watches how far a run is, for its steady rate.
#[derive(Debug)]
pub struct Stopwatch {
    started: Instant,
    cpu_s: f64,
    mark: Option<(Duration, u64)>,
    warm: u64,
}

impl Stopwatch {
    /// Starts. The steady rate begins once `warm` records were read.
    pub fn start(warm: u64) -> Self {
        Self { started: Instant::now(), cpu_s: cpu_seconds(), mark: None, warm }
    }

    /// So many records were read up to now.
    pub fn read(&mut self, records: u64) {
        if self.mark.is_none() && records >= self.warm {
            self.mark = Some((self.started.elapsed(), records));
        }
    }

    /// The end: seconds, steady records per second, processor seconds.
    pub fn stop(self, records: u64) -> (f64, f64, f64) {
        let elapsed = self.started.elapsed();
        let (since, read) = self.mark.unwrap_or_default();
        let steady_s = (elapsed - since).as_secs_f64().max(1e-9);
        (elapsed.as_secs_f64(), records.saturating_sub(read) as f64 / steady_s, cpu_seconds() - self.cpu_s)
    }
}

/// Processor seconds of this process up to now, from the kernel's account of it.
fn cpu_seconds() -> f64 {
    // Fields 14 and 15 (user and system time in ticks of 1/100 s), counted after the name, which may hold spaces.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Largest resident memory of this process up to now, in MiB.
pub fn peak_rss_mb() -> f64 {
    memory_mb("self", "VmHWM:").unwrap_or_default()
}

/// Resident memory of a process now, in MiB. `None`: it has ended.
pub fn rss_mb(process: u32) -> Option<f64> {
    memory_mb(&process.to_string(), "VmRSS:")
}

fn memory_mb(process: &str, field: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let rest = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(rest.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// The smallest of these values that such a share of them does not exceed: 0.5 is the median, 1 the largest. Sorts them.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len().max(1)) - 1;
    values.get(index).copied().unwrap_or(f64::NAN)
}
