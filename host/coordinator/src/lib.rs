//! The coordinator: knows the workers and their slots, keeps artifacts and jobs, and has a master for each job.
//!
//! What must survive it is in its storage: artifacts by their digests, the definition of each job, and how it ended. A
//! coordinator that starts finds the jobs that did not end and goes on with them from their newest checkpoints.
//! In reading order:

pub mod operations;
pub mod view;

mod execution;
mod inspect;
mod job;
mod logs;
mod placement;
mod serve;
mod storage;
mod workers;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use tidemill_blobs as blobs;
use tidemill_checkpoint::Start;
use tidemill_connector_kit::Registry;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_job::{Components, Environment, check_bindings, component};
use tidemill_wasm::Limits;

use crate::execution::Execution;
pub use crate::job::{Asked, Due, Job, JobMaster, Submission};
use crate::logs::archive;
pub use crate::logs::archive::LogSettings;
pub use crate::logs::{JobLog, LogFilter};
use crate::operations::{OperationSettings, Operations};
pub use crate::serve::serve;
use crate::storage::Storage;
use crate::view::{ArtifactView, JobView, Overview, WorkerView};
use crate::workers::Workers;
pub use crate::workers::{SILENCE, ToldWorker, Worker};

/// What becomes of a job that wants more slots than are free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// It is accepted and waits.
    #[default]
    Wait,
    /// It is refused.
    Refuse,
}

/// What a coordinator does with slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSettings {
    /// What becomes of a job that wants more than are free.
    pub when_full: WhenFull,
    /// So many free slots are kept for jobs that are started again: no new job gets them, and none that is to be larger.
    pub standby: u32,
}

/// What a coordinator is told when it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoordinatorSettings {
    /// What it does with slots.
    pub slots: SlotSettings,
    /// What it remembers of operations.
    pub operations: OperationSettings,
    /// What is kept of what jobs log.
    pub logs: LogSettings,
}

/// Of so many jobs that are over, what they logged is in memory: a megabyte each, at most.
const ENDED_LOGS: usize = 100;

/// See the crate.
pub struct Coordinator {
    environment: Environment,
    when_full: WhenFull,
    storage: Arc<Storage>,
    workers: Workers,
    executions: Mutex<HashMap<u64, Arc<Execution>>>,
    jobs: Mutex<BTreeMap<String, Arc<Job>>>,
    /// Those that came to their end here and whose logs are kept, the oldest first.
    ended: Mutex<VecDeque<Arc<Job>>>,
    operations: Operations,
    log_settings: LogSettings,
    /// Held while logs are written, once that has begun; what tells the thread that does so that there is a coordinator.
    writing_logs: Mutex<()>,
    writes_logs: Mutex<Option<Sender<()>>>,
    components: Arc<Components>,
    run: Box<dyn Fn(JobMaster) -> Result<()> + Send + Sync>,
    next_execution: AtomicU64,
}

impl Coordinator {
    /// With its storage: a folder that all processes of the cluster reach, or a URL. Goes on with the jobs there; each has a
    /// thread.
    pub fn start(storage: &str, registry: Arc<Registry>, settings: CoordinatorSettings) -> Result<Arc<Self>> {
        let components = Arc::new(Components::new(blobs::at(storage)?));
        let environment = Environment::new(registry, components.clone());
        let this = Self::with(storage, environment, components, settings, on_a_thread)?;
        this.operations.load()?;
        *lock(&this.writes_logs) = this.write_logs_on_a_thread()?;
        Ok(this)
    }

    /// The same in any environment, without the operations of those before it, and without writing logs. `run` runs the master of a job to its end,
    /// or has that done.
    pub fn with(
        storage: &str,
        environment: Environment,
        components: Arc<Components>,
        settings: CoordinatorSettings,
        run: impl Fn(JobMaster) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Arc<Self>> {
        let storage = Arc::new(Storage::new(storage, (environment.place)(storage)?));
        storage.mark()?;
        // Unique also over coordinators that come after each other.
        let next_execution = AtomicU64::new(environment.now_ms().unsigned_abs() << 16);
        let (executions, jobs, ended) = Default::default();
        let SlotSettings { when_full, standby } = settings.slots;
        let clock = environment.clone();
        let operations = Operations::new(storage.clone(), settings.operations, move || clock.now_ms());
        let workers = Workers::with_standby(standby);
        let run = Box::new(run);
        let this = Arc::new(Self {
            environment,
            when_full,
            storage,
            workers,
            executions,
            jobs,
            ended,
            operations,
            log_settings: settings.logs,
            writing_logs: Mutex::default(),
            writes_logs: Mutex::default(),
            components,
            run,
            next_execution,
        });
        for found in this.storage.jobs()? {
            let (job, master) = job::recover(&this, found)?;
            if let Some(master) = master {
                (this.run)(master)?;
            }
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

    /// Deletes an artifact that no job needs which is running. False: there is none.
    pub fn delete_artifact(&self, id: &str) -> Result<bool> {
        for job in self.all_jobs().iter().filter(|job| !job.is_over()) {
            // Of what can't be read, nobody knows what it needs.
            let uses = match job.definition() {
                Ok(definition) if definition.artifact == id => "is",
                Ok(_) => continue,
                Err(_) => "may be",
            };
            return Err(Error::invalid(format!("the artifact {id} {uses} in use by the job {}", job.id()))
                .mend("Cancel or stop the job first."));
        }
        let found = self.storage.has_artifact(id)?;
        if found {
            self.storage.delete_artifact(id)?;
        }
        Ok(found)
    }

    /// Accepts a job, or says what is wrong with it before anything runs.
    pub fn submit(self: &Arc<Self>, submission: Submission) -> Result<JobView> {
        let manifest = submission.definition.manifest(submission.parallelism)?;
        if manifest.checkpoints.is_none() && matches!(submission.from, Start::GoOn | Start::At(_)) {
            return Err(Error::invalid("a job that takes no checkpoints can't start from one")
                .mend("Give its manifest a [checkpoints] section with a location."));
        }
        let program = self.environment.program(&submission.definition.artifact, &manifest)?;
        check_bindings(&manifest, &program.graph)?;
        let name = manifest.job.name.as_deref().unwrap_or(program.graph.name());
        if let Some(settings) = &manifest.checkpoints {
            self.is_alone(name, &settings.location)?;
        }
        self.has_room(manifest.job.parallelism, 0)?;
        let (job, master) = JobMaster::submit(self.clone(), submission, name)?;
        (self.run)(master)?;
        lock(&self.jobs).insert(job.id().to_owned(), job.clone());
        Ok(job.view())
    }

    /// Whether a job that has so many slots may want so many; an error says that they are not there.
    pub fn has_room(&self, wants: u32, has: u32) -> Result<()> {
        // A job that runs is not stopped to wait for slots that are kept from it.
        let waits = self.when_full == WhenFull::Wait && (has == 0 || self.workers.standby() == 0);
        if waits || wants <= has {
            return Ok(());
        }
        // Those that wait have a claim on what is free.
        let waiting: u32 = self.summaries().iter().filter(|job| job.waits()).map(|job| job.parallelism).sum();
        self.workers.has_room(wants, has, waiting)
    }

    /// Refuses a second job with the same checkpoints: each would end the other.
    fn is_alone(&self, name: &str, location: &str) -> Result<()> {
        match self.all_jobs().iter().find(|job| !job.is_over() && job.keeps_checkpoints(name, location)) {
            None => Ok(()),
            Some(job) => Err(Error::invalid(format!(
                "the job {} is called '{name}' too and keeps its checkpoints in '{location}' too",
                job.id()
            ))
            .mend("Stop it first, or give this one another name or another location of checkpoints.")),
        }
    }

    /// All jobs, the oldest first.
    pub fn jobs(&self) -> Vec<JobView> {
        self.all_jobs().iter().map(|job| job.view()).collect()
    }

    /// All jobs, without their operators.
    pub fn summaries(&self) -> Vec<JobView> {
        self.all_jobs().iter().map(|job| job.summary()).collect()
    }

    fn all_jobs(&self) -> Vec<Arc<Job>> {
        lock(&self.jobs).values().cloned().collect()
    }

    /// A job, by its id. `None`: there is none.
    pub fn job(&self, id: &str) -> Option<Arc<Job>> {
        lock(&self.jobs).get(id).cloned()
    }

    /// Ends a job at once, as [`Job::cancel`] says; one that is taken off the list is not known any more.
    pub fn cancel(&self, job: &Job) -> Result<JobView> {
        let is_known = job.goes_on();
        job.cancel()?;
        if !is_known {
            lock(&self.jobs).remove(job.id());
            // Nobody looks at it any more.
            if let Err(error) = archive::forget(&self.storage, job.id()) {
                tracing::warn!("the log of the job {} could not be deleted: {error}", job.id());
            }
        }
        Ok(job.view())
    }

    /// What was asked for and takes long.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// All workers that are there.
    pub fn workers(&self) -> Vec<WorkerView> {
        self.workers.views()
    }

    /// The cluster in a few numbers.
    pub fn overview(&self) -> Overview {
        let (workers, jobs) = (self.workers(), self.summaries());
        let running = jobs.iter().filter(|job| job.state == view::JobState::Running).count();
        Overview {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            workers: workers.len() as u64,
            slots: workers.iter().map(|worker| u64::from(worker.slots)).sum(),
            free_slots: workers.iter().map(|worker| u64::from(worker.free_slots)).sum(),
            standby_slots: u64::from(self.workers.standby()),
            jobs_running: running as u64,
            jobs: jobs.len() as u64,
        }
    }

    fn execution(&self, id: u64) -> Option<Arc<Execution>> {
        lock(&self.executions).get(&id).cloned()
    }

    /// A job came to its end: its log stays in memory with those of the latest that did.
    fn ended(&self, job: &Arc<Job>) {
        self.workers.forget(job.id());
        let mut ended = lock(&self.ended);
        ended.push_back(job.clone());
        if ended.len() > ENDED_LOGS {
            ended.pop_front().into_iter().for_each(|oldest| oldest.log().clear());
        }
        drop(ended);
        job.log().wake();
    }

    fn new_execution(&self) -> u64 {
        self.next_execution.fetch_add(1, Ordering::Relaxed)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn on_a_thread(master: JobMaster) -> Result<()> {
    let name = format!("job-{}", master.job().id());
    let spawned = thread::Builder::new().name(name).spawn(move || master.run());
    spawned.map(drop).map_err(|e| Error::new(ErrorKind::Limit, format!("no thread could be started: {e}")))
}
