//! The two twins that run in the engine. They differ in one thing: who runs the user's functions.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tidemill::Flow;
use tidemill_bench_queries as queries;
use tidemill_checkpoint::protocol::Settings;
use tidemill_checkpoint::{Begun, Start, Store};
use tidemill_connector_builtin::{Blackhole, Term, Totals};
use tidemill_connector_kit::{Binding, Registry};
use tidemill_core::connector::{Sink, Source};
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::Port;
use tidemill_core::plan::{NodeKind, Plan};
use tidemill_core::state::StateBackend;
use tidemill_core::time::{Clock as _, SystemClock};
use tidemill_core::user::UserCodeFactory;
use tidemill_dataflow::Checkpoints;
use tidemill_dataflow::job::{JobSettings, JobSpec};
use tidemill_state::MemoryBackend;
use tidemill_testkit::NativeCode;
use tidemill_wasm::{Limits, Sandbox, SandboxSettings, WasmCode};

use crate::guests;
use crate::measure::{Measured, Stopwatch};
use crate::query::Parameters;

/// The queries that the engine runs.
pub const QUERIES: &[&str] = &["q0", "q1", "q2", "wc", "q5", "q5u", "q7", "session", "q8", "q8i", "json"];

/// What the engine calls a source.
const SOURCE: &str = "source";

/// How often the progress is read, for the steady rate.
const WATCH_EVERY: Duration = Duration::from_millis(1);

/// Who runs the user's functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The sandbox.
    Sandbox,
    /// The host itself.
    Native,
}

/// Where keyed state is kept.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// On disk, in RocksDB, or else in memory.
    pub disk: bool,
    /// What it may take of memory.
    pub memory_bytes: Option<usize>,
    /// A checkpoint is taken so often, into the work folder.
    pub checkpoint_ms: Option<u64>,
}

/// Runs a query and fills in what was measured.
///
/// # Errors
/// When there is no such query, its component can't be built, or the job fails.
pub fn run(
    measured: &mut Measured,
    parameters: &Parameters,
    code: Code,
    input: Option<&Path>,
    work: &Path,
    keeping: &Keeping,
) -> Result<()> {
    run_loaded(measured, parameters, load(&measured.query, code)?, input, work, keeping)
}

/// [`run`] with a query that is loaded already.
///
/// # Errors
/// When the job fails.
pub fn run_loaded(
    measured: &mut Measured,
    parameters: &Parameters,
    query: Loaded,
    input: Option<&Path>,
    work: &Path,
    keeping: &Keeping,
) -> Result<()> {
    let Loaded { plan, user_code } = query;
    let graph = JobGraph::from_plan(plan)?;
    let output = work.join("engine-out");
    if input.is_some() && output.exists() {
        std::fs::remove_dir_all(&output)?;
    }
    let (sinks, totals) = sinks(&graph, &measured.query, input.is_some().then_some(output.as_path()))?;
    let spec = JobSpec {
        name: measured.query.clone(),
        sources: sources(&graph, &measured.query, parameters, input)?,
        sinks,
        dead_letters: None,
        user_code,
        state: backend(keeping, work)?,
        memory: tidemill_core::memory::JobMemory::unlimited(),
        clock: Arc::new(SystemClock),
        settings: JobSettings {
            parallelism: measured.slots,
            batch_rows: measured.batch_rows,
            ..JobSettings::default()
        },
        graph,
    };
    let mut watch = Stopwatch::start(measured.records / 5);
    let checkpoints = keeping.checkpoint_ms.map(|ms| checkpoints(&work.join("checkpoints"), &spec.name, ms));
    let handle = tidemill_dataflow::run_with(spec, checkpoints.transpose()?, false)?;
    while !handle.is_finished() {
        watch.read(handle.tasks().iter().filter(|t| t.kind == SOURCE).map(|t| t.metrics.records_out.get()).sum());
        std::thread::sleep(WATCH_EVERY);
    }
    let report = handle.wait()?;
    (measured.seconds, measured.steady_rps, measured.cpu_s) = watch.stop(measured.records);
    measured.crossings = report.tasks.iter().map(|t| t.metrics.crossings.get()).sum();
    measured.bytes_copied = report.tasks.iter().map(|t| t.metrics.bytes_copied.get()).sum();
    (measured.out_records, measured.checksum) = match totals {
        Some(totals) => (totals.records(), totals.checksum()),
        None => sum_of_prices(&output)?,
    };
    Ok(())
}

fn backend(keeping: &Keeping, work: &Path) -> Result<Arc<dyn StateBackend>> {
    if !keeping.disk {
        return Ok(Arc::new(keeping.memory_bytes.map_or_else(MemoryBackend::new, MemoryBackend::with_limit)));
    }
    on_disk(keeping.memory_bytes.unwrap_or(1 << 30), &work.join("state"))
}

#[cfg(feature = "rocksdb")]
fn on_disk(memory_bytes: usize, path: &Path) -> Result<Arc<dyn StateBackend>> {
    let settings = tidemill_state::RocksSettings::new(memory_bytes, path.to_owned());
    Ok(Arc::new(tidemill_state::RocksBackend::new(settings)))
}

#[cfg(not(feature = "rocksdb"))]
fn on_disk(_: usize, _: &Path) -> Result<Arc<dyn StateBackend>> {
    bail!("this was built without state on disk; build it with --features tidemill-bench/rocksdb")
}

/// Checkpoints of a run that begins anew.
fn checkpoints(folder: &Path, job: &str, ms: u64) -> Result<Checkpoints> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    let store = Store::open(&folder.display().to_string(), job)?;
    let Begun::Run(owner) = store.begin(&Start::Anew, SystemClock.now().0)? else {
        bail!("a run that begins anew has something to commit");
    };
    let settings = Settings { interval_ms: Some(ms), ..Settings::default() };
    Ok(Checkpoints { store, owner: *owner, settings, retained: 1 })
}

/// A query with what runs its functions.
#[derive(Clone)]
pub struct Loaded {
    plan: Plan,
    user_code: Arc<dyn UserCodeFactory>,
}

/// Finds a query; for the sandbox, builds its component, which is compiled for this machine once and kept.
///
/// # Errors
/// When there is no such query, or its component can't be built.
pub fn load(query: &str, code: Code) -> Result<Loaded> {
    Ok(match code {
        Code::Native => {
            let native = NativeCode::new(job(query)?);
            Loaded { plan: native.plan(query)?, user_code: Arc::new(native) }
        }
        Code::Sandbox => {
            let cache = Some(guests::work_folder().join("compiled"));
            let sandbox = Sandbox::new(SandboxSettings { limits: Limits::default(), cache })?;
            let component = sandbox.load(query, &guests::component(query)?)?;
            Loaded { plan: component.plan()?, user_code: Arc::new(WasmCode::new(component, Vec::new())) }
        }
    })
}

fn job(query: &str) -> Result<fn(&mut Flow)> {
    Ok(match query {
        "q0" => queries::q0,
        "q1" => queries::q1,
        "q2" => queries::q2,
        "wc" => queries::wc,
        "q5" => queries::q5,
        "q5u" => queries::q5u,
        "q7" => queries::q7,
        "session" => queries::session,
        "q8" => queries::q8,
        "q8i" => queries::q8i,
        "json" => queries::json,
        other => bail!("there is no query '{other}'; there are: {}", QUERIES.join(", ")),
    })
}

/// What the checksum adds up, by the names of the sink's columns.
fn terms(query: &str) -> Vec<Term> {
    match query {
        "q0" => vec![Term::sum("price")],
        "q1" => vec![Term::sum("euro")],
        "q2" => vec![Term::sum("auction")],
        "wc" => vec![Term::sum("n")],
        "q5" => vec![Term::sum("max_count")],
        "q5u" => vec![Term::sum("max_UserCount")],
        "q7" => vec![Term::sum("max_price")],
        "session" => vec![Term::square("count")],
        _ => vec![Term::sum("price"), Term::sum("seller")],
    }
}

fn sources(
    graph: &JobGraph,
    query: &str,
    p: &Parameters,
    input: Option<&Path>,
) -> Result<HashMap<String, Arc<dyn Source>>> {
    let mut registry = Registry::new();
    tidemill_connector_builtin::register(&mut registry);
    tidemill_connector_files::register(&mut registry);
    let mut sources = HashMap::new();
    for (id, node) in graph.iter() {
        let NodeKind::Source { binding, .. } = &node.kind else { continue };
        let schema = graph.schema(id, Port(0))?;
        let (connector, options) = match input {
            Some(path) => ("files", toml::toml! { format = "json" }.with("path", path.display().to_string())),
            None => ("bids", bids_options(query, p)?),
        };
        let binding_of = Binding { name: binding, schema: &schema, options: &options, base: Path::new(".") };
        sources.insert(binding.clone(), registry.source(connector, binding_of)?);
    }
    Ok(sources)
}

fn bids_options(query: &str, p: &Parameters) -> Result<toml::Table> {
    let mut options = toml::Table::new();
    for (name, value) in
        [("records", p.records()), ("auctions", p.auctions()), ("bidders", p.bidders()), ("rate", p.rate())]
    {
        options.insert(name.to_owned(), toml::Value::Integer(i64::try_from(value)?));
    }
    options.insert("mixed".to_owned(), toml::Value::Boolean(query.starts_with("q8")));
    Ok(options)
}

type Sinks = (HashMap<String, Arc<dyn Sink>>, Option<Arc<Totals>>);

fn sinks(graph: &JobGraph, query: &str, output: Option<&Path>) -> Result<Sinks> {
    let Some(output) = output else {
        let (sink, totals) = Blackhole::with_checksum(terms(query));
        return Ok((HashMap::from([("out".to_owned(), sink)]), Some(totals)));
    };
    let mut registry = Registry::new();
    tidemill_connector_files::register(&mut registry);
    let (_, node) =
        graph.iter().find(|(_, n)| matches!(n.kind, NodeKind::Sink { .. })).context("a query has a sink")?;
    let from = node.inputs.first().context("a sink has an input")?;
    let schema = graph.schema(tidemill_core::ids::NodeId(from.node), Port(from.port))?;
    let options = toml::toml! { format = "json" }.with("path", output.display().to_string());
    let binding = Binding { name: "out", schema: &schema, options: &options, base: Path::new(".") };
    Ok((HashMap::from([("out".to_owned(), registry.sink("files", binding)?)]), None))
}

/// Reads the written files back: how many lines, and the sum of their prices.
fn sum_of_prices(folder: &Path) -> Result<(u64, u64)> {
    let (mut lines, mut sum) = (0, 0_u64);
    for entry in std::fs::read_dir(folder)? {
        for line in std::io::BufRead::lines(std::io::BufReader::new(std::fs::File::open(entry?.path())?)) {
            let line = line?;
            let price = line.split_once("\"price\":").and_then(|(_, rest)| rest.split(',').next());
            let price = price.and_then(|p| p.parse::<u64>().ok()).with_context(|| format!("no price in: {line}"))?;
            (lines, sum) = (lines + 1, sum.wrapping_add(price));
        }
    }
    Ok((lines, sum))
}

trait With {
    fn with(self, key: &str, value: String) -> Self;
}

impl With for toml::Table {
    fn with(mut self, key: &str, value: String) -> Self {
        self.insert(key.to_owned(), toml::Value::String(value));
        self
    }
}
