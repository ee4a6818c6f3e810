//! What runs on this worker: slots of jobs, by *execution*, which is one deployment of one attempt at a job.
//!
//! It goes in two steps, so that nothing that is sent finds nobody there: all workers of an execution make their slots
//! and say so; then all are started.
//!
//! It has neither threads nor connections: what takes long is handed back to be done elsewhere ([`Work`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemill_checkpoint::Origin;
use tidemill_core::connector::Waker;
use tidemill_core::ids::Epoch;
use tidemill_core::{Error, Result};
use tidemill_dataflow::TaskStatus;
use tidemill_dataflow::driver::{Readers, SlotEvent, Slots};
use tidemill_dataflow::physical::PhysicalPlan;
use tidemill_dataflow::restore::{RestoredJob, Start};
use tidemill_dataflow::signals::Signals;
use tidemill_dataflow::slice::tasks;
use tidemill_job::{Environment, JobDefinition};
use tidemill_rpc::proto::{self, from_worker as says, signal, to_worker as tells};
use tidemill_rpc::{failure, from_worker, news_of, slot_event, subtask_of};

use crate::exchange::Plane;

/// See the module.
pub struct Deployments {
    environment: Environment,
    plane: Arc<Plane>,
    /// To the coordinator. If nobody hears it, the connection is broken, and everything is about to be cancelled.
    say: Arc<dyn Fn(proto::FromWorker) + Send + Sync>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    deployments: BTreeMap<u64, Arc<Deployment>>,
    /// The coordinator is gone: what comes to be ready now is not wanted any more.
    cancelled: bool,
}

/// What takes long, and is therefore not done where the coordinator is heard.
pub enum Work {
    /// Making slots ready, by [`Deployments::open`].
    Open(proto::Open),
    /// Running the slots of an execution to their end; then, [`Deployments::left`].
    Run(u64, Slots),
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
        environment: Environment,
        plane: Arc<Plane>,
        say: impl Fn(proto::FromWorker) + Send + Sync + 'static,
    ) -> Self {
        Self { environment, plane, say: Arc::new(say), running: Mutex::default() }
    }

    /// Does what the coordinator says, or hands it back to be done. What is said of another execution than those here is
    /// stale.
    pub fn told(&self, message: proto::ToWorker) -> Option<Work> {
        match message.says? {
            // Compiling takes seconds, restoring too.
            tells::Says::Open(open) => return Some(Work::Open(open)),
            tells::Says::Start(start) => {
                let slots = self.find(start.execution)?.take_slots()?;
                return Some(Work::Run(start.execution, slots));
            }
            tells::Says::News(news) => self.news(news),
            tells::Says::Signal(signal) => self.signal(&signal),
            tells::Says::Welcome(_) => {}
        }
        None
    }

    /// Makes slots ready, and says so. May block.
    pub fn open(&self, open: proto::Open) {
        let execution = open.execution;
        let opened = self.make(open);
        if let Err(error) = &opened {
            self.plane.leave(execution);
            tracing::warn!("slots can't be made ready: {error}");
        }
        let failed = opened.err().map(|error| failure(&error));
        self.say(says::Says::Opened(proto::Opened { execution, failure: failed }));
        if self.running().cancelled {
            self.cancel_all();
        }
    }

    /// The coordinator is gone.
    pub fn cancel_all(&self) {
        let mut running = self.running();
        running.cancelled = true;
        let all: Vec<u64> = running.deployments.keys().copied().collect();
        drop(running);
        let cancel = |execution| proto::Signal { execution, what: Some(signal::What::Cancel(true)) };
        all.into_iter().for_each(|execution| self.signal(&cancel(execution)));
    }

    /// Says what is to be said every so often.
    pub fn report(&self) {
        let all: Vec<Arc<Deployment>> = self.running().deployments.values().cloned().collect();
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

    fn make(&self, open: proto::Open) -> Result<()> {
        let broken = |what: &str, e: serde_json::Error| Error::internal(format!("{what} of a deployment: {e}"));
        let definition: JobDefinition =
            serde_json::from_slice(&open.definition).map_err(|e| broken("the definition", e))?;
        let manifest = definition.manifest(Some(open.parallelism))?;
        let spec = self.environment.spec(&manifest, self.environment.program(&definition.artifact, &manifest)?)?;
        let plan = PhysicalPlan::new(&spec.graph, &spec.settings)?;
        let tasks = tasks(&spec.name, &plan);
        let begin = open.begin.clone().unwrap_or_default();
        let store = manifest.checkpoints.as_ref().map(|checkpoints| self.environment.store(checkpoints, &spec.name));
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
        self.running().deployments.insert(open.execution, Arc::new(deployment));
        Ok(())
    }

    /// Nothing of an execution runs here any more. `errors`: what went wrong after its slots were told how it ended.
    pub fn left(&self, execution: u64, errors: &[Error]) {
        let deployment = self.running().deployments.remove(&execution);
        if let Some(deployment) = deployment {
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

    fn signal(&self, signal: &proto::Signal) {
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

    /// Where slots of an execution say what happens.
    pub fn events(&self, execution: u64) -> impl Fn(SlotEvent) + Clone + Send + Sync + 'static {
        let say = self.say.clone();
        move |event| {
            let says = slot_event(execution, event).unwrap_or_else(|error| {
                let failure = Some(failure(&error));
                says::Says::Trouble(proto::Trouble { execution, failure })
            });
            say(from_worker(says));
        }
    }

    fn say(&self, says: says::Says) {
        (self.say)(from_worker(says));
    }

    fn find(&self, execution: u64) -> Option<Arc<Deployment>> {
        self.running().deployments.get(&execution).cloned()
    }

    fn running(&self) -> MutexGuard<'_, Running> {
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
