//! What runs on this worker: slots of jobs, by *execution*, which is one deployment of one attempt at a job.
//!
//! It goes in two steps, so that nothing that is sent finds nobody there: all workers of an execution make their slots
//! and say so; then all are started.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tidemill_blobs::Blobs;
use tidemill_checkpoint::{Origin, Store};
use tidemill_connector_kit::Registry;
use tidemill_core::connector::Waker;
use tidemill_core::ids::Epoch;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_dataflow::TaskStatus;
use tidemill_dataflow::driver::{Readers, SlotEvent, Slots};
use tidemill_dataflow::physical::PhysicalPlan;
use tidemill_dataflow::restore::{RestoredJob, Start};
use tidemill_dataflow::signals::Signals;
use tidemill_dataflow::slice::tasks;
use tidemill_job::{Components, JobDefinition, spec};
use tidemill_rpc::proto::{self, from_worker as says, signal, to_worker as tells};
use tidemill_rpc::{failure, from_worker, news_of, slot_event, subtask_of};
use tokio::sync::mpsc::UnboundedSender;

use crate::exchange::Plane;

/// See the module.
pub struct Deployments {
    registry: Arc<Registry>,
    components: Components,
    plane: Arc<Plane>,
    say: UnboundedSender<proto::FromWorker>,
    running: Mutex<HashMap<u64, Arc<Deployment>>>,
}

/// Slots of an attempt at a job.
struct Deployment {
    execution: u64,
    tasks: Vec<TaskStatus>,
    readers: Readers,
    signals: Arc<Signals>,
    /// Until they are started.
    slots: Mutex<Option<Slots>>,
}

impl Deployments {
    /// Nothing runs yet.
    pub fn new(
        registry: Arc<Registry>,
        storage: Arc<dyn Blobs>,
        plane: Arc<Plane>,
        say: UnboundedSender<proto::FromWorker>,
    ) -> Self {
        Self { registry, components: Components::new(storage), plane, say, running: Mutex::default() }
    }

    /// Does what the coordinator says. What is said of another execution than those here is stale.
    pub fn told(self: &Arc<Self>, message: proto::ToWorker) {
        match message.says {
            Some(tells::Says::Open(open)) => {
                let this = self.clone();
                // Compiling takes seconds, restoring too.
                tokio::task::spawn_blocking(move || {
                    let execution = open.execution;
                    let opened = this.open(open);
                    if let Err(error) = &opened {
                        this.plane.leave(execution);
                        tracing::warn!("slots can't be made ready: {error}");
                    }
                    let failed = opened.err().map(|error| failure(&error));
                    this.say(says::Says::Opened(proto::Opened { execution, failure: failed }));
                });
            }
            Some(tells::Says::Start(start)) => self.start(start.execution),
            Some(tells::Says::News(news)) => self.news(news),
            Some(tells::Says::Signal(signal)) => self.signal(&signal),
            Some(tells::Says::Welcome(_)) | None => {}
        }
    }

    /// The coordinator is gone.
    pub fn cancel_all(self: &Arc<Self>) {
        let all: Vec<u64> = self.running().keys().copied().collect();
        let cancel = |execution| proto::Signal { execution, what: Some(signal::What::Cancel(true)) };
        all.into_iter().for_each(|execution| self.signal(&cancel(execution)));
    }

    /// Says what is to be said every so often.
    pub fn report(&self) {
        let all: Vec<Arc<Deployment>> = self.running().values().cloned().collect();
        for deployment in all {
            let execution = deployment.execution;
            for ((node, index), mailbox) in &deployment.readers {
                let count = u32::try_from(mailbox.take_finished()).unwrap_or(u32::MAX);
                if count > 0 {
                    let reader = Some(proto::SubtaskRef { node: node.0, index: *index });
                    self.say(says::Says::SplitFinished(proto::SplitFinished { execution, reader, count }));
                }
            }
            self.say(says::Says::Counters(deployment.counters()));
        }
    }

    fn open(&self, open: proto::Open) -> Result<()> {
        let broken = |what: &str, e: serde_json::Error| Error::internal(format!("{what} of a deployment: {e}"));
        let definition: JobDefinition =
            serde_json::from_slice(&open.definition).map_err(|e| broken("the definition", e))?;
        let manifest = definition.manifest(Some(open.parallelism))?;
        let loaded = self.components.get(&definition.artifact, &manifest.limits)?;
        let spec = spec(&manifest, &self.registry, loaded)?;
        let plan = PhysicalPlan::new(&spec.graph, &spec.settings)?;
        let tasks = tasks(&spec.name, &plan);
        let begin = open.begin.clone().unwrap_or_default();
        let store = manifest.checkpoints.as_ref().map(|checkpoints| Store::open(&checkpoints.location, &spec.name));
        let store = store.transpose()?;
        let mut start = Start { attempt: begin.generation, epoch: begin.epoch, from: None };
        if let (Some(store), false) = (&store, begin.origin.is_empty()) {
            let origin: Origin = serde_json::from_slice(&begin.origin).map_err(|e| broken("the origin", e))?;
            let manifest = serde_json::from_slice(&begin.manifest).map_err(|e| broken("the checkpoint", e))?;
            let (files, allow_non_restored) = (store.files_of(&origin)?, begin.allow_non_restored);
            start.from = Some(RestoredJob { manifest: Arc::new(manifest), files, allow_non_restored });
        }
        let writer = store.map(|store| store.writer(begin.generation));
        let peers = open.places.iter().map(|place| (place.slot, self.plane.peer(&place.worker)));
        let peers: HashMap<u32, _> = peers.collect();
        let elsewhere = |slot| peers.get(&slot).map_or_else(|| Waker::new(|| ()), |peer| peer.waker());
        let mut slots = Slots::open(&spec, &plan, &tasks, &start, &open.slots, &elsewhere, writer)?;
        let say = self.events(open.execution);
        let wires = slots.take_wires();
        self.plane.join(&open, &spec.settings, &plan, wires, move |error| say(SlotEvent::Trouble(error)))?;
        let deployment = Deployment {
            execution: open.execution,
            // Only those that are here count anything.
            tasks: tasks.into_iter().filter(|task| open.slots.contains(&task.subtask.index.0)).collect(),
            readers: slots.readers().clone(),
            signals: slots.signals().clone(),
            slots: Mutex::new(Some(slots)),
        };
        self.running().insert(open.execution, Arc::new(deployment));
        Ok(())
    }

    fn start(self: &Arc<Self>, execution: u64) {
        let Some(deployment) = self.find(execution) else { return };
        let Some(slots) = deployment.take_slots() else { return };
        let say = self.events(execution);
        match slots.start(say.clone()) {
            Ok(running) => {
                let this = self.clone();
                tokio::task::spawn_blocking(move || this.left(execution, &running.join()));
            }
            Err(error) => {
                say(SlotEvent::Trouble(error));
                self.left(execution, &[]);
            }
        }
    }

    /// Nothing of it runs here any more.
    fn left(&self, execution: u64, errors: &[Error]) {
        if let Some(deployment) = self.running().remove(&execution) {
            // What was counted to the end.
            self.say(says::Says::Counters(deployment.counters()));
        }
        self.plane.leave(execution);
        let failures = errors.iter().map(failure).collect();
        self.say(says::Says::Left(proto::Left { execution, failures }));
    }

    fn news(&self, news: proto::News) {
        let Some(deployment) = self.find(news.execution) else { return };
        let found = subtask_of(news.reader).and_then(|(node, index)| {
            let reader = deployment.readers.get(&(node, index.0));
            reader.ok_or_else(|| Error::internal(format!("news for subtask {index} of {node}, which is not here")))
        });
        match found.and_then(|reader| Ok((reader, news_of(news.item)?))) {
            Ok((reader, item)) => reader.send(item),
            Err(error) => self.events(news.execution)(SlotEvent::Trouble(error)),
        }
    }

    fn signal(self: &Arc<Self>, signal: &proto::Signal) {
        let Some(deployment) = self.find(signal.execution) else { return };
        match signal.what {
            Some(signal::What::Stop(_)) => deployment.signals.stop(),
            Some(signal::What::Overtake(epoch)) => deployment.signals.overtake(Epoch(epoch)),
            Some(signal::What::Verdict(committed)) => deployment.signals.judge(committed),
            Some(signal::What::Cancel(_)) => {
                deployment.signals.cancel();
                if deployment.take_slots().is_some() {
                    self.left(signal.execution, &[]);
                }
            }
            None => {}
        }
    }

    /// Says what slots say.
    fn events(&self, execution: u64) -> impl Fn(SlotEvent) + Clone + Send + Sync + 'static {
        let say = self.say.clone();
        move |event| {
            let says = slot_event(execution, event).unwrap_or_else(|error| {
                let failure = Some(failure(&error));
                says::Says::Trouble(proto::Trouble { execution, failure })
            });
            // If nobody hears it, the connection is broken, and everything is about to be cancelled.
            _ = say.send(from_worker(says));
        }
    }

    fn say(&self, says: says::Says) {
        _ = self.say.send(from_worker(says));
    }

    fn find(&self, execution: u64) -> Option<Arc<Deployment>> {
        self.running().get(&execution).cloned()
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Deployment>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deployment {
    fn take_slots(&self) -> Option<Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn counters(&self) -> proto::Counters {
        let of = |task: &TaskStatus| proto::TaskCounters {
            subtask: Some(proto::SubtaskRef { node: task.subtask.node.0, index: task.subtask.index.0 }),
            values: task.metrics.values(),
            watermark: task.metrics.watermark.load(std::sync::atomic::Ordering::Relaxed),
        };
        proto::Counters { execution: self.execution, tasks: self.tasks.iter().map(of).collect() }
    }
}

/// What the way to another worker breaks may pass by itself.
pub fn broken(worker: &str, why: &str) -> Error {
    Error::new(ErrorKind::Retry, format!("the connection to {worker} broke: {why}"))
}
