//! The auditor: runs jobs of every stateful kind in real processes, kills these at random moments and at every edge of
//! the checkpoint protocol, and counts, record by record, what is lost and what is there twice.
//!
//! The last line on stdout is a JSON object. The exit code is 0 if nothing was lost, duplicated or wrong and no process
//! failed. What happens is drawn from the seed; when the operating system lets the processes run is not, so a seed that
//! failed may have to be tried again. In reading order:

mod plan;
mod random;

mod jobs;
mod reference;

mod cluster;
mod feed;
mod guests;
mod links;
mod process;
mod scenario;

mod faults;

mod check;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde_json::json;
use tidemill_core::failpoint::Failpoint;

use crate::jobs::Job;
use crate::links::Links;
use crate::plan::Plan;
use crate::process::Binary;
use crate::scenario::{Outcome, Place, Scenario};
use tidemill_test_servers::S3Server;

/// Kills of one scenario: enough for one to build on what another left, few enough for a failure to be read.
const KILLS_PER_SCENARIO: u64 = 8;

/// Of the object store.
const BUCKET: &str = "audit";

/// A machine on which every run fails need not go on for an hour.
const MAX_FAILURES: u64 = 10;

/// Kills jobs of every stateful kind and counts what comes out, record by record.
#[derive(Parser, Debug)]
#[command(name = "tests/e2e/audit", max_term_width = 100)]
struct Args {
    /// How many processes to kill, at least
    #[arg(long, default_value_t = 40)]
    kills: u64,
    /// What is drawn at random is drawn from this
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// keyed, windows, joins, files, broadcast, lists, or all in turn
    #[arg(long, default_value = "all")]
    job: String,
    /// The state backend: memory or rocksdb
    #[arg(long, default_value = "memory")]
    backend: String,
    /// Where checkpoints and savepoints are kept: folder, or s3 (a server that is started for it)
    #[arg(long, default_value = "folder")]
    store: String,
    /// Where the jobs write: folder, or s3
    #[arg(long, default_value = "folder")]
    sink: String,
    /// Run the jobs in clusters of so many workers, and kill workers and coordinators
    #[arg(long, value_name = "WORKERS", value_parser = clap::value_parser!(u64).range(1..=16))]
    cluster: Option<u64>,
    /// Give each process of the clusters a machine of its own, and cut links between them; takes the right to make network
    /// namespaces
    #[arg(long, requires = "cluster")]
    links: bool,
    /// Only this scenario of the seed, with so many kills, as a failure names it
    #[arg(long)]
    scenario: Option<u64>,
    /// Before anything else, the scenarios that this file names: lines of `SEED SCENARIO KILLS JOB`
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Where the runs are kept that failed [default: audit-failures in the folder of temporary files]
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Break what is below a job instead of killing it: disks, files of checkpoints
    #[arg(long)]
    faults: bool,
    /// Print the failpoints and where they are
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        Failpoint::ALL.iter().for_each(|f| println!("{:20} {}", f.name(), f.place()));
        return ExitCode::SUCCESS;
    }
    match audit(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("audit: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What is counted over all scenarios.
#[derive(Default)]
struct Total {
    scenarios: u64,
    kills: u64,
    pauses: u64,
    cuts: u64,
    rolled: u64,
    records: u64,
    lost: u64,
    duplicated: u64,
    wrong: u64,
    failures: u64,
    hit: BTreeMap<Failpoint, u64>,
}

impl Total {
    fn is_well(&self) -> bool {
        self.lost + self.duplicated + self.wrong + self.failures == 0
    }
}

/// Runs everything; whether all is as it must be.
fn audit(args: &Args) -> Result<bool> {
    let begin = Instant::now();
    if args.faults {
        return break_what_is_below(args);
    }
    let jobs = match args.job.as_str() {
        "all" => Job::ALL.to_vec(),
        name => vec![Job::named(name).with_context(|| format!("there is no job '{name}'"))?],
    };
    let set = backend(&args.backend)?;
    let mut binary = Binary::find(guests::folder().join("compiled"))?;
    let (store_in_s3, sink_in_s3) = (is_s3("store", &args.store)?, is_s3("sink", &args.sink)?);
    if sink_in_s3 && args.cluster.is_some() {
        bail!("--sink s3 goes with single processes, not with --cluster");
    }
    if store_in_s3 && args.links {
        bail!("--store s3 is a server on this machine, which those of --links can't reach");
    }
    let links = args.cluster.filter(|_| args.links).map(Links::new).transpose()?;
    let server = (store_in_s3 || sink_in_s3).then(|| S3Server::start(BUCKET));
    binary.environment = server.as_ref().map_or_else(Vec::new, S3Server::environment);
    let mut components = BTreeMap::new();
    for job in &jobs {
        components.insert(*job, guests::component(*job)?);
    }
    try_out(&binary, &components, &set, &args.backend)?;
    eprintln!("{} component(s) built in {:.1} s", jobs.len(), begin.elapsed().as_secs_f64());
    let mut audit = Audit { args, binary, jobs, components, set, server, links, total: Total::default() };
    for ([seed, number, kills], job) in args.replay.as_deref().map_or(Ok(Vec::new()), read_scenarios)? {
        audit.scenario(job, seed, number, kills)?;
    }
    match args.scenario {
        Some(number) => audit.scenario(audit.job(number)?, args.seed, number, args.kills)?,
        None => audit.scenarios()?,
    }
    let Audit { total, jobs, .. } = audit;
    println!("{}", summary(&total, args, &jobs, begin));
    Ok(total.is_well())
}

/// Whether an object store is asked for.
fn is_s3(what: &str, name: &str) -> Result<bool> {
    match name {
        "folder" => Ok(false),
        "s3" => Ok(true),
        other => bail!("there is no {what} '{other}'; there are folder and s3"),
    }
}

struct Audit<'a> {
    args: &'a Args,
    binary: Binary,
    jobs: Vec<Job>,
    components: BTreeMap<Job, PathBuf>,
    set: Vec<String>,
    server: Option<S3Server>,
    links: Option<Links>,
    total: Total,
}

impl Audit<'_> {
    /// One after the other, until there are enough kills.
    fn scenarios(&mut self) -> Result<()> {
        let before = self.total.kills;
        for number in 0.. {
            let left = self.args.kills.saturating_sub(self.total.kills - before);
            if left == 0 {
                break;
            }
            let kills = KILLS_PER_SCENARIO.min(left.div_ceil(self.jobs.len() as u64));
            self.scenario(self.job(number)?, self.args.seed, number, kills)?;
            if self.total.failures > MAX_FAILURES {
                bail!("{MAX_FAILURES} runs failed: that is enough");
            }
        }
        Ok(())
    }

    /// The one whose turn it is.
    fn job(&self, number: u64) -> Result<Job> {
        let job = self.jobs.get((number % self.jobs.len().max(1) as u64) as usize).copied();
        job.context("there are no jobs")
    }

    fn scenario(&mut self, job: Job, seed: u64, number: u64, kills: u64) -> Result<()> {
        let component = self.components.get(&job).context("there is no component")?;
        let plan = Plan::new(job, seed, number, kills);
        let started = Instant::now();
        let folder = tempfile::Builder::new().prefix("tidemill-audit-").tempdir()?;
        let place = self.place(folder.path(), &self.args.store);
        let output = self.place(folder.path(), &self.args.sink);
        let outcome = match self.args.cluster {
            Some(workers) => {
                let machines = cluster::Machines { workers, links: self.links.as_ref() };
                cluster::run(&self.binary, &plan, component, folder.path(), &place, &self.set, machines)?
            }
            None => Scenario::new(&self.binary, &plan, component, folder.path(), place, output, &self.set)?.run()?,
        };
        add(&mut self.total, &outcome, &plan);
        if !report(&outcome, &plan, (seed, number), &self.args.job, started.elapsed().as_secs_f64()) {
            let kept = keep(self.args, folder, (seed, number))?;
            eprintln!("  the run is kept in {}", kept.display());
        }
        Ok(())
    }

    /// Of a scenario that runs in this folder.
    fn place(&self, folder: &Path, kind: &str) -> Place {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        match self.server.as_ref().filter(|_| kind == "s3") {
            Some(server) => Place { location: format!("s3://{BUCKET}/{name}"), folder: server.file(BUCKET, &name) },
            None => Place::of(folder),
        }
    }
}

/// The scenarios that a file names. What is behind `#` is for people.
fn read_scenarios(path: &Path) -> Result<Vec<([u64; 3], Job)>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines = text.lines().filter_map(|line| line.split('#').next()).filter(|line| !line.trim().is_empty());
    let scenario = |line: &str| -> Option<([u64; 3], Job)> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (job, numbers) = words.split_last()?;
        let numbers: Vec<u64> = numbers.iter().map(|n| n.parse().ok()).collect::<Option<_>>()?;
        Some((numbers.try_into().ok()?, Job::named(job)?))
    };
    let wrong = |line: &str| format!("{}: not three numbers and a job: {line}", path.display());
    lines.map(|line| scenario(line).with_context(|| wrong(line))).collect()
}

/// Before anything is killed: whether the binary has the state backend that is asked for.
fn try_out(binary: &Binary, components: &BTreeMap<Job, PathBuf>, set: &[String], backend: &str) -> Result<()> {
    let Some((job, component)) = components.first_key_value().filter(|_| !set.is_empty()) else { return Ok(()) };
    let folder = tempfile::Builder::new().prefix("tidemill-audit-").tempdir()?;
    let plan = Plan::undisturbed(*job);
    let place = Place::of(folder.path());
    match Scenario::new(binary, &plan, component, folder.path(), place.clone(), place, set)?.run()?.failure {
        Some(why) => bail!("this tidemill does not run with the state backend {backend}: {why}"),
        None => Ok(()),
    }
}

fn break_what_is_below(args: &Args) -> Result<bool> {
    let binary = Binary::find(guests::folder().join("compiled"))?;
    let failed = faults::run(&binary, &guests::component(Job::Keyed)?, &backend(&args.backend)?)?;
    println!("{}", json!({ "failed": failed, "backend": args.backend }));
    Ok(failed == 0)
}

/// What chooses a state backend, as `--set` takes it.
fn backend(name: &str) -> Result<Vec<String>> {
    match name {
        // What a manifest has that says nothing.
        "memory" => Ok(Vec::new()),
        "rocksdb" => Ok(vec!["state.backend=rocksdb".to_owned()]),
        other => bail!("there is no state backend '{other}'; there are memory and rocksdb"),
    }
}

fn add(total: &mut Total, outcome: &Outcome, plan: &Plan) {
    total.scenarios += 1;
    total.kills += outcome.kills;
    total.pauses += outcome.pauses;
    total.cuts += outcome.cuts;
    total.rolled += outcome.rolled;
    total.records += plan.settings.records;
    total.lost += outcome.difference.lost;
    total.duplicated += outcome.difference.duplicated;
    total.wrong += outcome.difference.wrong;
    total.failures += u64::from(outcome.failure.is_some());
    for failpoint in &outcome.hit {
        *total.hit.entry(*failpoint).or_default() += 1;
    }
}

/// Says what a scenario came to; whether it is as it must be.
fn report(outcome: &Outcome, plan: &Plan, (seed, number): (u64, u64), jobs: &str, seconds: f64) -> bool {
    let Outcome { kills, hit, difference, failure, .. } = outcome;
    let well = failure.is_none() && difference.lost + difference.duplicated + difference.wrong == 0;
    let names: Vec<&str> = hit.iter().map(|f| f.name()).collect();
    let word = if well { "ok" } else { "FAILED" };
    eprintln!("{word}: scenario {number}, {}, {seconds:.1} s, {kills} kills ({})", plan.job.name(), names.join(", "));
    if well {
        return true;
    }
    eprintln!("  {} lost, {} duplicated, {} wrong", difference.lost, difference.duplicated, difference.wrong);
    difference.examples.iter().for_each(|example| eprintln!("    {example}"));
    failure.iter().for_each(|failure| eprintln!("  {failure}"));
    eprintln!("  {:?}\n  steps: {:?}", plan.settings, plan.steps);
    eprintln!("  again: tests/e2e/audit --seed {seed} --job {jobs} --scenario {number} --kills {}", plan.kills);
    false
}

fn keep(args: &Args, folder: tempfile::TempDir, (seed, number): (u64, u64)) -> Result<PathBuf> {
    let kept = args.keep.clone().unwrap_or_else(|| std::env::temp_dir().join("audit-failures"));
    std::fs::create_dir_all(&kept)?;
    let target = kept.join(format!("seed-{seed}-scenario-{number}"));
    _ = std::fs::remove_dir_all(&target);
    let folder = folder.keep();
    Ok(if std::fs::rename(&folder, &target).is_ok() { target } else { folder })
}

fn summary(total: &Total, args: &Args, jobs: &[Job], begin: Instant) -> serde_json::Value {
    let hit: BTreeMap<&str, u64> = total.hit.iter().map(|(failpoint, n)| (failpoint.name(), *n)).collect();
    let missed = Failpoint::ALL.iter().filter(|f| !total.hit.contains_key(f)).map(|f| f.name());
    json!({
        "kills": total.kills,
        "pauses": total.pauses,
        "cuts": total.cuts,
        "rolling_restarts": total.rolled,
        "failpoints": hit,
        "failpoints_not_hit": missed.collect::<Vec<_>>(),
        "input_records": total.records,
        "lost": total.lost,
        "duplicated": total.duplicated,
        "wrong": total.wrong,
        "failed_runs": total.failures,
        "scenarios": total.scenarios,
        "seconds": (begin.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        "seed": args.seed,
        "backend": args.backend,
        "store": args.store,
        "sink": args.sink,
        "workers": args.cluster,
        "jobs": jobs.iter().map(|job| job.name()).collect::<Vec<_>>(),
    })
}
