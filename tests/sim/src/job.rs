//! The job that is simulated, as its user writes it: it counts records by key. And how a process of the cluster sees it.

use std::path::PathBuf;
use std::sync::Arc;

use tidemill::prelude::*;
use tidemill_connector_kit::Registry;
use tidemill_core::Result as CoreResult;
use tidemill_core::graph::JobGraph;
use tidemill_core::memory::ProcessMemory;
use tidemill_job::{Environment, JobDefinition, Program};
use tidemill_testkit::NativeCode;

use crate::connectors::Simulated;
use crate::store::Stores;
use crate::world::{Machine, MachineClock};

#[derive(Row)]
struct Record {
    id: i64,
    key: i64,
}

#[derive(Row)]
struct Counted {
    id: i64,
    key: i64,
    count: i64,
}

struct Count {
    seen: ValueState<i64>,
}

impl KeyedProcess for Count {
    type Key = i64;
    type In = Record;
    type Out = Counted;

    fn process(&mut self, record: Record, ctx: &mut Context<'_, Counted>) -> Result<(), RowError> {
        let count = self.seen.get(ctx).unwrap_or(0) + 1;
        self.seen.set(ctx, count);
        ctx.emit(Counted { id: record.id, key: record.key, count });
        Ok(())
    }
}

fn job(flow: &mut Flow) {
    flow.source::<Record>("records").key_by(|r| r.key).process(|s| Count { seen: s.value("seen") }).sink("counts");
}

/// How the job is run.
#[derive(Clone, Debug)]
pub struct JobPlan {
    /// How many slots.
    pub parallelism: u32,
    /// How many bytes a queue between two slots holds.
    pub exchange_bytes: u64,
    /// How often a checkpoint is begun, in milliseconds.
    pub interval_ms: u64,
    /// After how long it is given up, in milliseconds.
    pub timeout_ms: u64,
    /// After how long it turns unaligned, in milliseconds, if it may.
    pub aligned_timeout_ms: Option<u64>,
    /// How many may be given up in a row.
    pub tolerable_failures: u64,
    /// How many are kept.
    pub retained: u64,
}

/// The job as it is submitted.
pub fn definition(plan: &JobPlan) -> JobDefinition {
    let JobPlan { parallelism, exchange_bytes, interval_ms, timeout_ms, tolerable_failures, retained, .. } = plan;
    let unaligned = plan.aligned_timeout_ms.map(|ms| format!("aligned-timeout = \"{ms} ms\"\n")).unwrap_or_default();
    let manifest = format!(
        "[job]\nname = \"counts\"\nparallelism = {parallelism}\nexchange = \"{exchange_bytes} B\"\nbatch-rows = 8\n\
         [sources.records]\nconnector = \"simulated\"\n[sinks.counts]\nconnector = \"simulated\"\n\
         [checkpoints]\nlocation = \"/checkpoints\"\ninterval = \"{interval_ms} ms\"\ntimeout = \"{timeout_ms} ms\"\n\
         tolerable-failures = {tolerable_failures}\nretained = {retained}\n{unaligned}\
         [restart]\nmax-backoff = \"4 s\"\nreset-after = \"20 s\"\n"
    );
    JobDefinition {
        artifact: tidemill_job::definition::digest(b"counts"),
        manifest,
        manifest_name: PathBuf::from("tidemill.toml"),
        folder: PathBuf::from("/"),
        set: Vec::new(),
    }
}

/// What a process of the cluster has for its jobs.
pub fn environment(machine: &Arc<Machine>, stores: &Arc<Stores>, connector: Simulated) -> Environment {
    let mut registry = Registry::new();
    registry.register(connector);
    let (at, stores, named) = (machine.clone(), stores.clone(), machine.clone());
    Environment {
        registry: Arc::new(registry),
        program: Arc::new(|_, _| program()),
        place: Arc::new(move |location| Ok(stores.at(location, &at))),
        clock: Arc::new(MachineClock(machine.clone())),
        nonces: Arc::new(move || named.nonce()),
        memory: ProcessMemory::unlimited(),
    }
}

fn program() -> CoreResult<Program> {
    let code = NativeCode::new(job);
    let graph = JobGraph::from_plan(code.plan("counts")?)?;
    Ok(Program { graph, code: Arc::new(code) })
}
