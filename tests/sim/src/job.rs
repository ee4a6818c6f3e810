//! The jobs that are simulated, as their user writes them. And how a process of the cluster sees them.

use std::path::PathBuf;
use std::sync::Arc;

use tidemill::prelude::*;
use tidemill_connector_kit::Registry;
use tidemill_core::Error;
use tidemill_core::graph::JobGraph;
use tidemill_core::memory::ProcessMemory;
use tidemill_job::{Environment, JobDefinition, Program};
use tidemill_testkit::NativeCode;

use crate::connectors::Simulated;
use crate::outside::{COUNTS, HELD, KNOWN};
use crate::sabotage::Sabotage;
use crate::store::Stores;
use crate::world::{Machine, MachineClock, World};

#[derive(Row)]
struct Record {
    id: i64,
    key: i64,
    time: Timestamp,
}

#[derive(Row)]
struct Counted {
    id: i64,
    key: i64,
    count: i64,
}

/// Counts records by key.
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

/// Does the same when a timer of event time is due; until then, records wait in a list.
struct CountLater {
    waiting: ListState<i64>,
    seen: ValueState<i64>,
}

impl KeyedProcess for CountLater {
    type Key = i64;
    type In = Record;
    type Out = Counted;

    fn process(&mut self, record: Record, ctx: &mut Context<'_, Counted>) -> Result<(), RowError> {
        self.waiting.push(ctx, record.id);
        ctx.set_event_timer(Timestamp::from_millis((record.time.millis() / 100 + 1) * 100));
        Ok(())
    }

    fn on_timer(&mut self, key: i64, _: Timestamp, ctx: &mut Context<'_, Counted>) -> Result<(), RowError> {
        let mut count = self.seen.get(ctx).unwrap_or(0);
        for id in self.waiting.to_vec(ctx) {
            count += 1;
            ctx.emit(Counted { id, key, count });
        }
        self.waiting.clear(ctx);
        self.seen.set(ctx, count);
        Ok(())
    }
}

/// So many records are held back.
const HELD_BACK: usize = 12;

/// Without a key: holds records back until there are some, or the input ends. At another parallelism, its list is split.
struct Holding {
    held: OperatorListState<i64>,
    /// Where the bug is put back: how often a job had been rescaled when this had its last row.
    forgets: Option<(Arc<World>, u64)>,
}

impl Holding {
    fn release(&self, ctx: &mut UnkeyedContext<'_, Counted>) {
        self.held.to_vec(ctx).into_iter().for_each(|id| ctx.emit(Counted { id, key: 0, count: 0 }));
        self.held.clear(ctx);
    }
}

impl Process for Holding {
    type In = Record;
    type Out = Counted;

    const TIMESTAMPS: bool = false;

    fn process(&mut self, record: Record, ctx: &mut UnkeyedContext<'_, Counted>) -> Result<(), RowError> {
        if let Some((world, rescaled)) = &mut self.forgets
            && std::mem::replace(rescaled, world.rescaled()) != world.rescaled()
        {
            self.held.clear(ctx);
        }
        self.held.push(ctx, record.id);
        if self.held.iter(ctx).count() >= HELD_BACK {
            self.release(ctx);
        }
        Ok(())
    }

    fn on_end(&mut self, ctx: &mut UnkeyedContext<'_, Counted>) -> Result<(), RowError> {
        self.release(ctx);
        Ok(())
    }
}

/// Without a key: knows some records to the end; at another parallelism every subtask knows all of them.
struct Knowing {
    known: OperatorListState<i64>,
}

#[derive(Row)]
struct Id {
    id: i64,
}

impl Process for Knowing {
    type In = Record;
    type Out = Id;

    const TIMESTAMPS: bool = false;

    fn process(&mut self, record: Record, ctx: &mut UnkeyedContext<'_, Id>) -> Result<(), RowError> {
        if record.id % 4 == 0 {
            // What was united may be there twice.
            let mut known = self.known.to_vec(ctx);
            known.push(record.id);
            known.sort_unstable();
            known.dedup();
            self.known.set(ctx, known);
        }
        Ok(())
    }

    fn on_end(&mut self, ctx: &mut UnkeyedContext<'_, Id>) -> Result<(), RowError> {
        self.known.to_vec(ctx).into_iter().for_each(|id| ctx.emit(Id { id }));
        Ok(())
    }
}

/// Each once, however many subtasks know it.
struct First {
    seen: ValueState<i64>,
}

impl KeyedProcess for First {
    type Key = i64;
    type In = Id;
    type Out = Counted;

    const TIMESTAMPS: bool = false;

    fn process(&mut self, row: Id, ctx: &mut Context<'_, Counted>) -> Result<(), RowError> {
        if self.seen.get(ctx).is_none() {
            self.seen.set(ctx, 1);
            ctx.emit(Counted { id: row.id, key: 0, count: 0 });
        }
        Ok(())
    }
}

/// Which job it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keyed state.
    Count,
    /// Keyed lists, and timers.
    CountLater,
    /// Operator lists, split and united at another parallelism.
    Lists,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Count, Self::CountLater, Self::Lists];

    /// The sinks of the job.
    pub fn sinks(self) -> &'static [&'static str] {
        match self {
            Self::Count | Self::CountLater => &[COUNTS],
            Self::Lists => &[HELD, KNOWN],
        }
    }

    fn artifact(self) -> String {
        tidemill_job::definition::digest(format!("{self:?}").as_bytes())
    }

    fn flow(self, flow: &mut Flow, world: &Arc<World>) {
        let records = flow.source::<Record>("records");
        match self {
            Self::Count => {
                records.key_by(|r| r.key).process(|s| Count { seen: s.value("seen") }).sink(COUNTS);
            }
            Self::CountLater => {
                let timed = records.watermark(|r| r.time, BoundedOutOfOrderness::secs(0)).key_by(|r| r.key);
                timed.process(|s| CountLater { waiting: s.list("waiting"), seen: s.value("seen") }).sink(COUNTS);
            }
            Self::Lists => {
                let forgets = (world.sabotage == Some(Sabotage::ForgetList)).then(|| (world.clone(), 0));
                let holding = move |s: &mut States| Holding { held: s.operator_list("held"), forgets: forgets.clone() };
                records.clone().process(holding).uid("hold").sink(HELD);
                records
                    .process(|s| Knowing { known: s.union_list("known") })
                    .uid("know")
                    .key_by(|i| i.id)
                    .process(|s| First { seen: s.value("seen") })
                    .sink(KNOWN);
            }
        }
    }
}

/// How a job is run.
#[derive(Clone, Debug)]
pub struct JobPlan {
    /// Which it is.
    pub kind: Kind,
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

/// What a job is called.
pub fn name(job: usize) -> String {
    format!("job-{job}")
}

/// A job as it is submitted.
pub fn definition(job: usize, plan: &JobPlan) -> JobDefinition {
    let JobPlan { kind, parallelism, exchange_bytes, interval_ms, timeout_ms, tolerable_failures, retained, .. } = plan;
    let unaligned = plan.aligned_timeout_ms.map(|ms| format!("aligned-timeout = \"{ms} ms\"\n")).unwrap_or_default();
    let sink = |sink| format!("[sinks.{sink}]\nconnector = \"simulated\"\njob = {job}\nsink = \"{sink}\"\n");
    let sinks: String = kind.sinks().iter().map(sink).collect();
    let manifest = format!(
        "[job]\nname = \"{}\"\nparallelism = {parallelism}\nexchange = \"{exchange_bytes} B\"\nbatch-rows = 8\n\
         [sources.records]\nconnector = \"simulated\"\njob = {job}\n{sinks}\
         [checkpoints]\nlocation = \"/checkpoints\"\ninterval = \"{interval_ms} ms\"\ntimeout = \"{timeout_ms} ms\"\n\
         tolerable-failures = {tolerable_failures}\nretained = {retained}\n{unaligned}\
         [restart]\nmax-backoff = \"4 s\"\nreset-after = \"20 s\"\n",
        name(job)
    );
    JobDefinition {
        artifact: kind.artifact(),
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
    let (at, stores, named, world) = (machine.clone(), stores.clone(), machine.clone(), machine.world.clone());
    Environment {
        registry: Arc::new(registry),
        program: Arc::new(move |artifact, manifest| {
            let kind = Kind::ALL.into_iter().find(|kind| kind.artifact() == artifact);
            let kind = kind.ok_or_else(|| Error::invalid(format!("there is no artifact {artifact}")))?;
            let world = world.clone();
            let code = NativeCode::new(move |flow| kind.flow(flow, &world));
            let name = manifest.job.name.as_deref().unwrap_or("job");
            let graph = JobGraph::from_plan(code.plan(name)?)?;
            Ok(Program { graph, code: Arc::new(code) })
        }),
        place: Arc::new(move |location| Ok(stores.at(location, &at))),
        clock: Arc::new(MachineClock(machine.clone())),
        nonces: Arc::new(move || named.nonce()),
        memory: ProcessMemory::unlimited(),
    }
}
