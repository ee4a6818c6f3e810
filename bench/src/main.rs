//! `tidemill-bench run QUERY` measures one twin of one query and prints a JSON object as its last line;
//! `tidemill-bench all` runs every query in all twins, each run in a process of its own, and writes the report.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tidemill_bench::cluster::{many, recovery, shuffle, submit};
use tidemill_bench::engine::{self, Code, Keeping};
use tidemill_bench::measure::{Measured, Stopwatch, peak_rss_mb};
use tidemill_bench::query::{Answer, Parameters, Query};
use tidemill_bench::{guests, hand, report, state};

/// Benchmarks of Tidemill.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Measure one twin of one query; the last line is a JSON object.
    Run(RunArgs),
    /// Measure every query in all twins and write a report.
    All(AllArgs),
    /// Measure snapshots of a large state; the last line is a JSON object.
    State(StateArgs),
    /// Measure the time from a job's upload to its first output; the last line is a JSON object.
    Submit(SubmitArgs),
    /// Measure how long output pauses when a worker or the coordinator is killed; the last line is a JSON object.
    Recovery(RecoveryArgs),
    /// Measure a query on two slots of two processes against two slots of one; the last line is a JSON object.
    Shuffle(ShuffleArgs),
    /// Measure many small jobs on one worker; the last line is a JSON object.
    Many(ManyArgs),
}

#[derive(Args)]
struct RunArgs {
    /// q0, q1, q2, wc, q5, q5u, q7, session, q8, q8i or json.
    query: String,
    /// Events to generate.
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,
    /// Slots, and the parallelism of every operator.
    #[arg(long, default_value_t = 1)]
    slots: u32,
    /// Distinct auctions.
    #[arg(long, default_value_t = 100_000)]
    auctions: u64,
    /// Distinct bidders; 100,000, or 400,000 for `session`.
    #[arg(long)]
    bidders: Option<u64>,
    /// Events per second of event time.
    #[arg(long, default_value_t = 100_000)]
    rate: u64,
    /// Which twin.
    #[arg(long, value_enum, default_value_t = Twin::Sandbox)]
    twin: Twin,
    /// Rows per batch to aim at.
    #[arg(long, default_value_t = 4_096)]
    batch_rows: usize,
    /// Where keyed state is kept.
    #[arg(long, value_enum, default_value_t = Backend::Memory)]
    backend: Backend,
    /// Bytes that keyed state may take of memory; on disk 1 GiB if not given.
    #[arg(long)]
    memory: Option<usize>,
    /// Take a checkpoint so often.
    #[arg(long)]
    checkpoint_ms: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// In memory.
    Memory,
    /// On disk.
    Rocksdb,
}

#[derive(Args)]
struct StateArgs {
    /// Keys of the state; each takes about 43 bytes of memory.
    #[arg(long, default_value_t = 25_000_000)]
    entries: u64,
    /// The share of the keys that changes between two snapshots.
    #[arg(long, default_value_t = 0.01)]
    changed: f64,
    /// Snapshots after the first. A p99 needs some hundreds.
    #[arg(long, default_value_t = 300)]
    rounds: usize,
    /// Where the files go; without it, a temporary folder.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Args)]
struct SubmitArgs {
    /// How often each is measured.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
}

#[derive(Args)]
struct RecoveryArgs {
    /// Workers to kill, one after another.
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Coordinators to kill after them.
    #[arg(long, default_value_t = 5)]
    coordinators: usize,
    /// Records per second and slot.
    #[arg(long, default_value_t = 100_000)]
    rate: u64,
}

#[derive(Args)]
struct ShuffleArgs {
    /// A query without files.
    query: String,
    /// Events to generate.
    #[arg(long, default_value_t = 20_000_000)]
    records: u64,
    /// How often each way is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Args)]
struct ManyArgs {
    /// Jobs to run at once.
    #[arg(long, default_value_t = 200)]
    jobs: usize,
}

#[derive(Args)]
struct AllArgs {
    /// Rounds over all twins; the report shows medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Events of a run (a quarter of it for the queries with windows, joins or files).
    #[arg(long, default_value_t = 20_000_000)]
    records: u64,
    /// Only these queries.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Folder for `report.html` and `results.json`.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Twin {
    /// The user's functions in the sandbox.
    Sandbox,
    /// The same code and engine, linked natively.
    Native,
    /// A plain single-threaded loop.
    Hand,
}

impl Twin {
    const ALL: [Self; 3] = [Self::Sandbox, Self::Native, Self::Hand];

    fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Native => "native",
            Self::Hand => "hand",
        }
    }
}

fn main() -> Result<()> {
    tidemill_system::keep_freed_memory();
    match Cli::parse().command {
        Cmd::Run(args) => println!("{}", serde_json::to_string(&run(&args)?)?),
        Cmd::All(args) => all(&args)?,
        Cmd::State(args) => println!("{}", serde_json::to_string(&measure_state(&args)?)?),
        Cmd::Submit(args) => in_cluster(|folder| submit::measure(folder, args.rounds))?,
        Cmd::Recovery(RecoveryArgs { kills, coordinators, rate }) => {
            in_cluster(|folder| recovery::measure(folder, kills, coordinators, rate))?;
        }
        Cmd::Shuffle(ShuffleArgs { query, records, rounds }) => {
            in_cluster(|folder| shuffle::measure(folder, &query, records, rounds))?;
        }
        Cmd::Many(args) => in_cluster(|folder| many::measure(folder, args.jobs))?,
    }
    Ok(())
}

/// Measures something in a cluster that keeps everything in a temporary folder, which stays if that fails.
fn in_cluster<T: Serialize>(measure: impl FnOnce(&Path) -> Result<T>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    match measure(folder.path()) {
        Ok(figures) => println!("{}", serde_json::to_string(&figures)?),
        Err(error) => return Err(error.context(format!("what the processes said is in {}", folder.keep().display()))),
    }
    Ok(())
}

fn measure_state(args: &StateArgs) -> Result<state::StateFigures> {
    let temporary = tempfile::tempdir()?;
    let folder = args.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
    let backend = tidemill_state::MemoryBackend::new();
    state::measure(&backend, "memory", (args.entries, args.changed, args.rounds), &folder.display().to_string())
}

fn run(args: &RunArgs) -> Result<Measured> {
    let bidders = args.bidders.unwrap_or(if args.query == "session" { 400_000 } else { 100_000 });
    let parameters = Parameters::new(args.records, args.auctions, bidders, args.rate)?;
    let mut measured = Measured {
        query: args.query.clone(),
        twin: args.twin.name().to_owned(),
        slots: args.slots,
        batch_rows: args.batch_rows,
        records: args.records,
        out_records: 0,
        checksum: 0,
        seconds: 0.0,
        steady_rps: 0.0,
        cpu_s: 0.0,
        peak_rss_mb: 0.0,
        crossings: 0,
        bytes_copied: 0,
    };
    let work = guests::work_folder();
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let input = if args.query == "json" { Some(json_input(&work, &parameters)?) } else { None };
    match args.twin {
        Twin::Hand => run_by_hand(&mut measured, &parameters, input.as_deref(), &work)?,
        Twin::Sandbox | Twin::Native => {
            let code = if args.twin == Twin::Native { Code::Native } else { Code::Sandbox };
            let keeping = Keeping {
                disk: args.backend == Backend::Rocksdb,
                memory_bytes: args.memory,
                checkpoint_ms: args.checkpoint_ms,
            };
            engine::run(&mut measured, &parameters, code, input.as_deref(), &work, &keeping)?;
        }
    }
    measured.peak_rss_mb = peak_rss_mb();
    Ok(measured)
}

fn run_by_hand(measured: &mut Measured, parameters: &Parameters, input: Option<&Path>, work: &Path) -> Result<()> {
    let watch = Stopwatch::start(0);
    let answer: Answer = match input {
        Some(input) => hand::json_files(input, &work.join("hand.jsonl"))?,
        None => {
            let query = Query::from_name(&measured.query).with_context(|| format!("no query '{}'", measured.query))?;
            hand::run(query, parameters)
        }
    };
    (measured.seconds, measured.steady_rps, measured.cpu_s) = watch.stop(measured.records);
    (measured.out_records, measured.checksum) = (answer.records, answer.checksum);
    Ok(())
}

/// The events as JSON lines, made once and kept.
fn json_input(work: &Path, p: &Parameters) -> Result<PathBuf> {
    let name = format!("bids-{}-{}-{}-{}.jsonl", p.records(), p.auctions(), p.bidders(), p.rate());
    let path = work.join(name);
    if !path.exists() {
        let partial = path.with_extension("partial");
        hand::write_json_file(p, &partial)?;
        fs::rename(&partial, &path)?;
    }
    Ok(path)
}

fn all(args: &AllArgs) -> Result<()> {
    let names: Vec<String> = engine::QUERIES.iter().map(|q| (*q).to_owned()).collect();
    let queries: Vec<&String> = names.iter().filter(|q| args.only.is_empty() || args.only.contains(q)).collect();
    if queries.is_empty() {
        bail!("none of the queries is named so; there are: {}", names.join(", "));
    }
    let mut runs = Vec::new();
    for query in &queries {
        let stateless = matches!(query.as_str(), "q0" | "q1" | "q2" | "wc");
        let records = if stateless { args.records } else { (args.records / 4).max(1) };
        let records = if query.as_str() == "json" { records.min(2_000_000) } else { records };
        for _ in 0..args.rounds {
            for twin in Twin::ALL {
                runs.push(measure(query, twin, 1, records)?);
            }
            runs.push(measure(query, Twin::Sandbox, 2, records)?);
        }
    }
    let rows: Vec<report::Row> = queries.iter().map(|q| report::summarise(q, &runs)).collect();
    fs::create_dir_all(&args.out)?;
    fs::write(args.out.join("results.json"), serde_json::to_string_pretty(&runs)?)?;
    fs::write(args.out.join("report.html"), report::html(&rows, args.records))?;
    println!("\n{}", report::text(&rows));
    println!("The page: {}", args.out.join("report.html").display());
    Ok(())
}

/// One run in a process of its own, so that its memory is its own.
fn measure(query: &str, twin: Twin, slots: u32, records: u64) -> Result<Measured> {
    let output = Command::new(std::env::current_exe()?)
        .args(["run", query, "--twin", twin.name()])
        .args(["--slots", &slots.to_string(), "--records", &records.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("{query}, {}, {slots} slots: {}", twin.name(), output.status);
    }
    let text = String::from_utf8(output.stdout)?;
    let measured: Measured = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    println!(
        "{:<8} {:<8} {} slots  {:>8.2} M records/s  {:>7.2} s  {:>6.0} MiB",
        query,
        twin.name(),
        slots,
        measured.steady_rps / 1e6,
        measured.seconds,
        measured.peak_rss_mb
    );
    Ok(measured)
}
