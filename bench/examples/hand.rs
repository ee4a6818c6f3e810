//! Measures the hand twin: `cargo run -p tidemill-bench --release --example hand -- [records] [query ...]`.
//!
//! Each query runs three times and the fastest counts: the loops are deterministic, so that everything above the fastest
//! is the machine's noise. `json` uses two files in the system's folder for temporary files and removes them.

use std::time::Instant;

use anyhow::{Context as _, Result};
use tidemill_bench::hand;
use tidemill_bench::query::{Answer, Parameters, Query};

const RUNS: usize = 3;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let records: u64 = arguments.next().map_or(Ok(20_000_000), |text| text.parse()).context("the number of records")?;
    let mut names: Vec<String> = arguments.collect();
    if names.is_empty() {
        names = Query::ALL.map(|query| query.name().to_owned()).to_vec();
        names.push("json".to_owned());
    }
    println!("{:8} {:>12} {:>22} {:>14}", "query", "out", "checksum", "M records/s");
    for name in names {
        if name == "json" {
            json(records)?;
        } else {
            let query = Query::from_name(&name).with_context(|| format!("there is no query {name}"))?;
            let parameters = Parameters::published(query, records)?;
            measure(&name, records, || Ok(hand::run(query, &parameters)))?;
        }
    }
    Ok(())
}

fn json(records: u64) -> Result<()> {
    let folder = std::env::temp_dir();
    let input = folder.join(format!("bids-{}.json", std::process::id()));
    let output = folder.join(format!("bids-{}-kept.json", std::process::id()));
    hand::write_json_file(&Parameters::new(records, 100_000, 100_000, 100_000)?, &input)?;
    let measured = measure("json", records, || hand::json_files(&input, &output));
    std::fs::remove_file(&input).context("removing the input")?;
    std::fs::remove_file(&output).context("removing the output")?;
    measured
}

fn measure(name: &str, records: u64, mut run: impl FnMut() -> Result<Answer>) -> Result<()> {
    let mut fastest_seconds = f64::INFINITY;
    let mut answer = Answer::default();
    for _ in 0..RUNS {
        let start = Instant::now();
        answer = run()?;
        fastest_seconds = fastest_seconds.min(start.elapsed().as_secs_f64());
    }
    let rate = records as f64 / fastest_seconds / 1e6;
    println!("{name:8} {:>12} {:>22} {rate:>14.1}", answer.records, answer.checksum);
    Ok(())
}
