//! What a process of a cluster takes from outside for the jobs that it serves: connectors, user code, time, the places of
//! checkpoints. A real one takes the real things; a simulation has all of them in its hands.

use std::sync::Arc;

use tidemill_blobs::{self as blobs, Places};
use tidemill_checkpoint::Store;
use tidemill_connector_kit::Registry;
use tidemill_core::Result;
use tidemill_core::graph::JobGraph;
use tidemill_core::memory::ProcessMemory;
use tidemill_core::nonce::{Nonces, random_nonces};
use tidemill_core::process::Surroundings;
use tidemill_core::time::{Clock, SystemClock};
use tidemill_core::user::UserCodeFactory;
use tidemill_dataflow::JobSpec;
use tidemill_wasm::WasmCode;

use crate::components::Components;
use crate::manifest::{Checkpoints, Manifest};
use crate::spec;

/// See the module. Clones are the same environment.
#[derive(Clone)]
pub struct Environment {
    /// The connectors.
    pub registry: Arc<Registry>,
    /// The program that an artifact is, for a job with this manifest.
    pub program: Programs,
    /// The place that a location names: a folder, or a URL.
    pub place: Places,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Names that nobody else has.
    pub nonces: Nonces,
    /// How much memory jobs hold in this process, and may.
    pub memory: Arc<ProcessMemory>,
}

/// Finds the program that an artifact is.
pub type Programs = Arc<dyn Fn(&str, &Manifest) -> Result<Program> + Send + Sync>;

/// What a job does, and who does the user's part of it.
pub struct Program {
    /// The plan, checked.
    pub graph: JobGraph,
    /// The user's code.
    pub code: Arc<dyn UserCodeFactory>,
}

impl Environment {
    /// Of a real process, which finds programs among these components.
    pub fn new(registry: Arc<Registry>, components: Arc<Components>) -> Self {
        let program = move |artifact: &str, manifest: &Manifest| {
            let loaded = components.get(artifact, &manifest.limits)?;
            let code = Arc::new(WasmCode::new(loaded.component, manifest.params.clone()));
            Ok(Program { graph: loaded.graph, code })
        };
        Self {
            registry,
            program: Arc::new(program),
            place: Arc::new(blobs::at),
            clock: Arc::new(SystemClock),
            nonces: random_nonces(),
            memory: ProcessMemory::unlimited(),
        }
    }

    /// What an artifact is, for a job with this manifest.
    pub fn program(&self, artifact: &str, manifest: &Manifest) -> Result<Program> {
        (self.program)(artifact, manifest)
    }

    /// Everything that the engine needs of a job.
    pub fn spec(&self, manifest: &Manifest, program: Program) -> Result<JobSpec> {
        self.spec_within(manifest, program, &Surroundings::default())
    }

    /// The same, to be run in these surroundings.
    pub fn spec_within(&self, manifest: &Manifest, program: Program, within: &Surroundings) -> Result<JobSpec> {
        spec::assemble(manifest, &self.registry, program, self.clock.clone(), within)
    }

    /// The checkpoints of a job.
    pub fn store(&self, checkpoints: &Checkpoints, job: &str) -> Result<Store> {
        let place = (self.place)(&Store::place(&checkpoints.location, job))?;
        Ok(Store::with(place, job, self.nonces.clone()).with_places(self.place.clone()))
    }

    /// The time, in milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        self.clock.now().0
    }
}
