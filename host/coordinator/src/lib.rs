//! The coordinator: knows the workers and their slots, keeps artifacts and jobs, and has a master for each job.
//!
//! What must survive it is in its storage: artifacts by their digests, the definition of each job, and how it ended. A
//! coordinator that starts finds the jobs that did not end and goes on with them from their newest checkpoints.
//! In reading order:

pub mod view;

mod execution;
mod job;
mod storage;
mod workers;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemill_connector_kit::Registry;
use tidemill_core::time::{Clock as _, SystemClock};
use tidemill_core::{Error, Result};
use tidemill_job::{Components, check_bindings, component};
use tidemill_wasm::Limits;

use crate::execution::Execution;
pub use crate::job::{Job, Submission};
use crate::storage::Storage;
use crate::view::{ArtifactView, JobView, Overview, WorkerView};
use crate::workers::Workers;
pub use crate::workers::serve;

/// See the crate.
pub struct Coordinator {
    registry: Arc<Registry>,
    storage: Storage,
    workers: Workers,
    executions: Mutex<HashMap<u64, Arc<Execution>>>,
    jobs: Mutex<BTreeMap<String, Arc<Job>>>,
    components: Components,
    next_execution: AtomicU64,
}

impl Coordinator {
    /// With its storage: a folder that all processes of the cluster reach, or a URL. Goes on with the jobs there.
    pub fn start(storage: &str, registry: Arc<Registry>) -> Result<Arc<Self>> {
        let storage = Storage::open(storage)?;
        // Unique also over coordinators that come after each other.
        let next_execution = AtomicU64::new(now_ms().unsigned_abs() << 16);
        let components = Components::new(storage.blobs().clone());
        let (workers, executions, jobs) = Default::default();
        let this = Arc::new(Self { registry, storage, components, workers, executions, jobs, next_execution });
        for kept in this.storage.jobs()? {
            let job = Job::again(this.clone(), kept)?;
            lock(&this.jobs).insert(job.id().to_owned(), job);
        }
        Ok(this)
    }

    /// Keeps a component, after checking it, its imports and its plan.
    pub fn upload(&self, bytes: &[u8]) -> Result<ArtifactView> {
        let limits = Limits::default();
        let loaded = component::of_bytes("the upload", bytes, limits.clone())?;
        let id = tidemill_job::definition::digest(bytes);
        self.storage.keep_artifact(&id, bytes)?;
        let job = loaded.graph.name().to_owned();
        self.components.put(&id, &limits, loaded);
        Ok(ArtifactView { id, job: Some(job), bytes: bytes.len() as u64 })
    }

    /// All artifacts.
    pub fn artifacts(&self) -> Result<Vec<ArtifactView>> {
        self.storage.artifacts()
    }

    /// Deletes an artifact that no job needs which is running.
    pub fn delete_artifact(&self, id: &str) -> Result<()> {
        let users = lock(&self.jobs).values().find(|job| job.artifact() == id && !job.is_over()).cloned();
        if let Some(job) = users {
            return Err(Error::invalid(format!("the artifact {id} is in use by the job {}", job.id()))
                .mend("Cancel or stop the job first."));
        }
        self.storage.delete_artifact(id)
    }

    /// Accepts a job, or says what is wrong with it before anything runs.
    pub fn submit(self: &Arc<Self>, submission: Submission) -> Result<JobView> {
        let manifest = submission.definition.manifest(submission.parallelism)?;
        let loaded = self.components.get(&submission.definition.artifact, &manifest.limits)?;
        check_bindings(&manifest, &loaded.graph)?;
        let job = Job::submit(self.clone(), submission)?;
        lock(&self.jobs).insert(job.id().to_owned(), job.clone());
        Ok(job.view())
    }

    /// All jobs, the oldest first.
    pub fn jobs(&self) -> Vec<JobView> {
        let jobs: Vec<Arc<Job>> = lock(&self.jobs).values().cloned().collect();
        jobs.iter().map(|job| job.view()).collect()
    }

    /// A job, by its id. `None`: there is none.
    pub fn job(&self, id: &str) -> Option<Arc<Job>> {
        lock(&self.jobs).get(id).cloned()
    }

    /// All workers that are there.
    pub fn workers(&self) -> Vec<WorkerView> {
        self.workers.views()
    }

    /// The cluster in a few numbers.
    pub fn overview(&self) -> Overview {
        let (workers, jobs) = (self.workers(), self.jobs());
        let running = jobs.iter().filter(|job| job.state == view::JobState::Running).count();
        Overview {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            workers: workers.len() as u64,
            slots: workers.iter().map(|worker| u64::from(worker.slots)).sum(),
            free_slots: workers.iter().map(|worker| u64::from(worker.free_slots)).sum(),
            jobs_running: running as u64,
            jobs: jobs.len() as u64,
        }
    }

    fn execution(&self, id: u64) -> Option<Arc<Execution>> {
        lock(&self.executions).get(&id).cloned()
    }

    fn new_execution(&self) -> u64 {
        self.next_execution.fetch_add(1, Ordering::Relaxed)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> i64 {
    SystemClock.now().0
}
