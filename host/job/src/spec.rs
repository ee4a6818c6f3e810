//! From a manifest and a component to what the engine runs.

use std::sync::Arc;
use std::time::Duration;

use tidemill_checkpoint::protocol::Settings;
use tidemill_checkpoint::{Owner, Store};
use tidemill_connector_kit::Registry;
use tidemill_core::memory::JobMemory;
use tidemill_core::process::Surroundings;
use tidemill_core::state::StateBackend;
use tidemill_core::time::{Clock, SystemClock};
use tidemill_core::{Error, Result};
use tidemill_dataflow::{Checkpoints, JobSettings, JobSpec};
use tidemill_state::MemoryBackend;
use tidemill_wasm::WasmCode;

use crate::component::{self, Loaded};
use crate::environment::Program;
use crate::manifest::{self, Manifest};

/// Everything that the engine needs of a job.
pub fn spec(manifest: &Manifest, registry: &Registry, job: Loaded) -> Result<JobSpec> {
    let code = Arc::new(WasmCode::new(job.component, manifest.params.clone()));
    let program = Program { graph: job.graph, code };
    assemble(manifest, registry, program, Arc::new(SystemClock), &Surroundings::default())
}

/// The same of any program, with any clock, and in any surroundings.
pub(crate) fn assemble(
    manifest: &Manifest,
    registry: &Registry,
    job: Program,
    clock: Arc<dyn Clock>,
    within: &Surroundings,
) -> Result<JobSpec> {
    let settings = &manifest.job;
    Ok(JobSpec {
        name: settings.name.clone().unwrap_or_else(|| job.graph.name().to_owned()),
        sources: crate::bind::sources(manifest, registry, &job.graph)?,
        sinks: crate::bind::sinks(manifest, registry, &job.graph)?,
        dead_letters: crate::bind::dead_letters(manifest, registry)?,
        user_code: job.code.within(within).unwrap_or(job.code),
        state: state(&manifest.state, &within.memory)?,
        memory: within.memory.clone(),
        clock,
        settings: JobSettings {
            parallelism: settings.parallelism,
            max_parallelism: settings.max_parallelism,
            batch_rows: settings.batch_rows,
            exchange_bytes: settings.exchange_bytes,
        },
        graph: job.graph,
    })
}

/// The name under which a manifest's job keeps its checkpoints.
pub fn job_name(manifest: &Manifest) -> Result<String> {
    match &manifest.job.name {
        Some(name) => Ok(name.clone()),
        None => {
            let job = component::load(&manifest.job.component, component::limits(&manifest.limits))?;
            Ok(job.graph.name().to_owned())
        }
    }
}

/// What is needed to take checkpoints as a manifest says, by the attempt that owns this store.
pub fn checkpoints(from: &manifest::Checkpoints, store: Store, owner: Owner) -> Checkpoints {
    Checkpoints { store, owner, settings: checkpoint_settings(from), retained: from.retained }
}

/// When checkpoints are taken.
fn checkpoint_settings(from: &manifest::Checkpoints) -> Settings {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Settings {
        interval_ms: Some(ms(from.interval)),
        min_pause_ms: ms(from.min_pause),
        timeout_ms: ms(from.timeout),
        tolerable_failures: from.tolerable_failures,
        aligned_timeout_ms: from.aligned_timeout.map(ms),
    }
}

fn state(settings: &manifest::State, memory: &Arc<JobMemory>) -> Result<Arc<dyn StateBackend>, Error> {
    match &settings.disk {
        Some(path) => state_on_disk(settings.memory_bytes, path, memory),
        None => {
            let backend = settings.memory_bytes.map_or_else(MemoryBackend::new, MemoryBackend::with_limit);
            Ok(Arc::new(backend.accounted(memory.clone())))
        }
    }
}

#[cfg(feature = "rocksdb")]
fn state_on_disk(
    memory_bytes: Option<usize>,
    path: &std::path::Path,
    memory: &Arc<JobMemory>,
) -> Result<Arc<dyn StateBackend>, Error> {
    /// Half of what the smallest usual machine has.
    const MEMORY_BYTES: usize = 1 << 30;
    // Where others are to have some too, no more than half of what there is.
    let half = memory.limit().map_or(MEMORY_BYTES, |limit| usize::try_from(limit / 2).unwrap_or(MEMORY_BYTES));
    let memory_bytes = memory_bytes.unwrap_or(MEMORY_BYTES.min(half));
    let settings = tidemill_state::RocksSettings::new(memory_bytes, path.to_owned());
    Ok(Arc::new(tidemill_state::RocksBackend::accounted(settings, memory.clone())))
}

#[cfg(not(feature = "rocksdb"))]
fn state_on_disk(_: Option<usize>, _: &std::path::Path, _: &Arc<JobMemory>) -> Result<Arc<dyn StateBackend>, Error> {
    Err(Error::invalid("[state] asks for the backend 'rocksdb', without which this tidemill was built").mend(
        "Use a released tidemill, build it with `cargo build --release --workspace --bin tidemill --features \
         tidemill-cli/rocksdb`, or keep state in memory.",
    ))
}
