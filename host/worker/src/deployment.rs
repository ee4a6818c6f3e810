//! What runs on this worker: slots of jobs, by *execution*, which is one deployment of one attempt at a job.
//!
//! It goes in two steps, so that nothing that is sent finds nobody there: all workers of an execution make their slots
//! and say so; then all are started.
//!
//! What runs, runs on when the coordinator is gone. The next one takes it over or ends it.
//!
//! It has neither threads nor connections: what takes long is handed back to be done elsewhere ([`Work`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemill_checkpoint::manifest::Manifest;
use tidemill_checkpoint::{Origin, Reads, SnapshotWriter, Store, restoring};
use tidemill_core::connector::Waker;
use tidemill_core::ids::{Epoch, NodeId};
use tidemill_core::memory::{Account, Owner};
use tidemill_core::process::Surroundings;
use tidemill_core::{Error, Result};
use tidemill_dataflow::TaskStatus;
use tidemill_dataflow::driver::{Readers, SlotEvent, Slots};
use tidemill_dataflow::exchange::queue::QueueGauge;
use tidemill_dataflow::physical::PhysicalPlan;
use tidemill_dataflow::restore::{RestoredJob, Start};
use tidemill_dataflow::signals::Signals;
use tidemill_dataflow::slice::tasks;
use tidemill_job::{Environment, JobDefinition};
use tidemill_rpc::proto::{self, from_worker as says, signal, to_worker as tells};
use tidemill_rpc::{failure, news_of, slot_event, subtask_of};

use crate::exchange::Plane;
use crate::local::LocalRecovery;
use crate::logs::JobLogs;
use crate::voice::{Line, Voice};

/// See the module.
pub struct Deployments {
    environment: Environment,
    plane: Arc<Plane>,
    /// Copies of checkpoints on the local disk, if there may be any.
    local: Option<Arc<LocalRecovery>>,
    line: Arc<Line>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    deployments: BTreeMap<u64, Arc<Deployment>>,
    /// How many coordinators there were: what comes to be ready for one that is gone is not wanted any more.
    coordinators: u64,
}

/// What takes long, and is therefore not done where the coordinator is heard.
pub enum Work {
    /// Making slots ready, by [`Deployments::open`].
    Open(Box<Opening>),
    /// Running the slots of an execution to their end; then, [`Deployments::left`].
    Run(u64, Slots),
}

/// Slots that are to be made ready.
pub struct Opening {
    open: proto::Open,
    /// How many coordinators there had been when this one said so.
    coordinators: u64,
}

/// Slots of an attempt at a job.
struct Deployment {
    running: proto::Running,
    tasks: Vec<TaskStatus>,
    readers: Readers,
    signals: Arc<Signals>,
    writer: Option<SnapshotWriter>,
    voice: Arc<Voice>,
    logs: Arc<JobLogs>,
    /// What stands in the queues of its slots.
    queues: Vec<QueueGauge>,
    /// The same, as it was counted last.
    queued: Account,
    /// Until they are started.
    slots: Mutex<Option<Slots>>,
}

impl Deployments {
    /// Nothing runs yet.
    pub fn new(environment: Environment, plane: Arc<Plane>, local: Option<Arc<LocalRecovery>>) -> Self {
        let (line, running) = Default::default();
        Self { environment, plane, local, line, running }
    }

    /// There is a coordinator, which is spoken to so.
    pub fn connected(&self, say: impl Fn(proto::FromWorker) + Send + Sync + 'static) {
        self.line.connected(say);
    }

    /// The coordinator is gone. What runs, runs on; what was not started never will be.
    pub fn disconnected(&self) {
        self.line.broke();
        let mut running = self.running();
        running.coordinators += 1;
        let all: Vec<Arc<Deployment>> = running.deployments.values().cloned().collect();
        drop(running);
        for deployment in all {
            deployment.voice.unheard();
            if deployment.take_slots().is_some() {
                deployment.signals.cancel();
                self.left(deployment.running.execution, &[]);
            }
        }
    }

    /// What runs, for the next coordinator.
    pub fn all_running(&self) -> Vec<proto::Running> {
        self.running().deployments.values().map(|deployment| deployment.running.clone()).collect()
    }

    /// Does what the coordinator says, or hands it back to be done. What is said of another execution than those here is
    /// stale.
    pub fn told(&self, message: proto::ToWorker) -> Option<Work> {
        match message.says? {
            // Compiling takes seconds, restoring too.
            tells::Says::Open(open) => {
                let coordinators = self.running().coordinators;
                return Some(Work::Open(Box::new(Opening { open, coordinators })));
            }
            tells::Says::Start(start) => {
                let slots = self.find(start.execution)?.take_slots()?;
                return Some(Work::Run(start.execution, slots));
            }
            tells::Says::News(news) => self.news(news),
            tells::Says::Signal(signal) => self.signal(&signal),
            tells::Says::Resume(resume) => self.resume(resume),
            tells::Says::Forget(forget) => self.local.iter().for_each(|local| local.forget(&forget.job)),
            tells::Says::Welcome(_) => {}
        }
        None
    }

    /// Makes slots ready, and says so. May block.
    pub fn open(&self, opening: Opening) {
        let Opening { open, coordinators } = opening;
        let execution = open.execution;
        let logs = Arc::new(JobLogs::new(&open.job, self.environment.clock.clone()));
        let reads = Arc::new(Reads::default());
        let opened = self.make(open, &logs, &reads);
        if let Err(error) = &opened {
            self.plane.leave(execution);
            tracing::warn!("slots can't be made ready: {error}");
        }
        if self.running().coordinators != coordinators {
            return self.cancel(execution);
        }
        // Of what can't be made, nothing is said later.
        if opened.is_err() {
            logs.take().into_iter().for_each(|logs| self.line.say(says::Says::Logs(logs)));
        }
        let failure = opened.err().map(|error| failure(&error));
        let (local_bytes, store_bytes) = (reads.local_bytes(), reads.store_bytes());
        if local_bytes + store_bytes > 0 {
            let bytes = local_bytes + store_bytes;
            tracing::info!("restored {bytes} bytes, {local_bytes} of them from this machine");
        }
        self.line.say(says::Says::Opened(proto::Opened { execution, failure, local_bytes, store_bytes }));
    }

    /// Ends everything that runs: nobody has come to take it over.
    pub fn cancel_all(&self) {
        let all: Vec<u64> = self.running().deployments.keys().copied().collect();
        all.into_iter().for_each(|execution| self.cancel(execution));
    }

    /// Says what is to be said every so often.
    pub fn report(&self) {
        let all: Vec<Arc<Deployment>> = self.running().deployments.values().cloned().collect();
        for deployment in all {
            let execution = deployment.running.execution;
            for ((node, index), mailbox) in &deployment.readers {
                let count = u32::try_from(mailbox.take_finished()).unwrap_or(u32::MAX);
                if count > 0 {
                    let reader = Some(proto::SubtaskRef { node: node.0, index: *index });
                    let finished = proto::SplitFinished { execution, reader, count };
                    deployment.voice.mention(says::Says::SplitFinished(finished));
                }
            }
            deployment.voice.mention(says::Says::Counters(deployment.counters()));
            deployment.say_logs();
            deployment.count_queues();
        }
    }

    /// What is held in the account of this process.
    pub fn memory(&self) -> proto::Memory {
        let held = self.environment.memory.held();
        proto::Memory {
            guests: held.of(Owner::Guests),
            state: held.of(Owner::State),
            exchange: held.of(Owner::Exchange),
            connectors: held.of(Owner::Connectors),
            code: held.of(Owner::Code),
        }
    }

    fn make(&self, open: proto::Open, logs: &Arc<JobLogs>, reads: &Arc<Reads>) -> Result<()> {
        let definition: JobDefinition =
            serde_json::from_slice(&open.definition).map_err(|e| broken("the definition", e))?;
        let manifest = definition.manifest(Some(open.parallelism))?;
        let program = self.environment.program(&definition.artifact, &manifest)?;
        let memory = self.environment.memory.job(manifest.job.name.as_deref().unwrap_or(program.graph.name()));
        let surroundings = Surroundings { memory: memory.clone(), log: logs.clone() };
        let spec = self.environment.spec_within(&manifest, program, &surroundings)?;
        let plan = PhysicalPlan::new(&spec.graph, &spec.settings)?;
        let tasks = tasks(&spec.name, &plan);
        let begin = open.begin.clone().unwrap_or_default();
        let store = manifest.checkpoints.as_ref().map(|checkpoints| self.environment.store(checkpoints, &spec.name));
        let store = store.transpose()?;
        let (start, writer) = self.checkpoints(&open, &begin, store.as_ref(), reads)?;
        let peers = open.places.iter().map(|place| (place.slot, self.plane.peer(&place.worker)));
        let peers: HashMap<u32, _> = peers.collect();
        let elsewhere = |slot| peers.get(&slot).map_or_else(|| Waker::new(|| ()), |peer| peer.waker());
        let mut slots = Slots::open(&spec, &plan, &tasks, &start, &open.slots, &elsewhere, writer.clone())?;
        let voice = Arc::new(Voice::new(self.line.clone()));
        let say = events(open.execution, voice.clone());
        let (wires, queues) = (slots.take_wires(), slots.queues().to_vec());
        self.plane.join(&open, &spec.settings, &plan, wires, move |error| say(SlotEvent::Trouble(error)))?;
        let proto::Open { execution, job, parallelism, slots: here, .. } = open.clone();
        let deployment = Deployment {
            running: proto::Running { execution, job, generation: begin.generation, parallelism, slots: here },
            // Only those that are here count anything.
            tasks: tasks.into_iter().filter(|task| open.slots.contains(&task.subtask.index.0)).collect(),
            readers: slots.readers().clone(),
            signals: slots.signals().clone(),
            writer,
            voice,
            logs: logs.clone(),
            queues,
            queued: Account::new(&memory, Owner::Exchange),
            slots: Mutex::new(Some(slots)),
        };
        self.running().deployments.insert(open.execution, Arc::new(deployment));
        Ok(())
    }

    /// What slots begin with, and where they write checkpoints, if they take any.
    fn checkpoints(
        &self,
        open: &proto::Open,
        begin: &proto::Begin,
        store: Option<&Store>,
        reads: &Arc<Reads>,
    ) -> Result<(Start, Option<SnapshotWriter>)> {
        let mut start = Start { attempt: begin.generation, epoch: begin.epoch, from: None };
        let Some(store) = store else { return Ok((start, None)) };
        let mut from = None;
        if !begin.origin.is_empty() {
            let origin: Origin = serde_json::from_slice(&begin.origin).map_err(|e| broken("the origin", e))?;
            let manifest: Manifest =
                serde_json::from_slice(&begin.manifest).map_err(|e| broken("the checkpoint", e))?;
            from = Some((origin, manifest));
        }
        // The files of a savepoint are nobody's copies.
        let own = from.as_ref().filter(|(origin, _)| matches!(origin, Origin::Checkpoint(_)));
        let own = own.map(|(_, manifest)| manifest);
        let copies = self.local.as_ref().and_then(|local| local.begin(store.is_remote(), &open.job, own));
        if let Some((origin, manifest)) = from {
            let files = restoring(store.files_of(&origin)?, copies.clone(), reads.clone());
            let (manifest, allow_non_restored) = (Arc::new(manifest), begin.allow_non_restored);
            start.from = Some(RestoredJob { manifest, files, allow_non_restored });
        }
        Ok((start, Some(store.writer(begin.generation).keeping(copies))))
    }

    /// Nothing of an execution runs here any more. `errors`: what went wrong after its slots were told how it ended.
    pub fn left(&self, execution: u64, errors: &[Error]) {
        let deployment = self.running().deployments.remove(&execution);
        if let Some(deployment) = deployment {
            // What was counted to the end.
            deployment.voice.mention(says::Says::Counters(deployment.counters()));
            deployment.say_logs();
        }
        self.plane.leave(execution);
        let failures = errors.iter().map(failure).collect();
        self.line.say(says::Says::Left(proto::Left { execution, failures }));
    }

    fn news(&self, news: proto::News) {
        let Some(deployment) = self.find(news.execution) else { return };
        let place = news.reader.map(|reader| (reader.node, reader.index));
        if let Some((place, item)) = place.zip(news.item.as_ref())
            && !deployment.voice.told(place, item)
        {
            return;
        }
        let found = subtask_of(news.reader).and_then(|(node, index)| {
            let reader = deployment.readers.get(&(node, index.0));
            reader.ok_or_else(|| Error::internal(format!("news for subtask {index} of {node}, which is not here")))
        });
        match found.and_then(|reader| Ok((reader, news_of(news.item)?))) {
            Ok((reader, item)) => reader.send(item),
            Err(error) => events(news.execution, deployment.voice.clone())(SlotEvent::Trouble(error)),
        }
    }

    fn signal(&self, signal: &proto::Signal) {
        let Some(deployment) = self.find(signal.execution) else { return };
        match signal.what {
            Some(signal::What::Stop(_)) => deployment.signals.stop(),
            Some(signal::What::Overtake(epoch)) => deployment.signals.overtake(Epoch(epoch)),
            Some(signal::What::Verdict(committed)) => deployment.signals.judge(committed),
            Some(signal::What::Completed(epoch)) => {
                deployment.voice.completed(epoch);
                deployment.writer.iter().for_each(|writer| writer.completed(epoch));
            }
            Some(signal::What::Cancel(_)) => self.cancel(signal.execution),
            None => {}
        }
    }

    fn cancel(&self, execution: u64) {
        let Some(deployment) = self.find(execution) else { return };
        deployment.signals.cancel();
        if deployment.take_slots().is_some() {
            self.left(execution, &[]);
        }
    }

    /// The coordinator takes over what runs.
    fn resume(&self, resume: proto::Resume) {
        let Some(deployment) = self.find(resume.execution) else {
            // It came to its end since it was offered.
            return self.line.say(says::Says::Left(proto::Left { execution: resume.execution, failures: Vec::new() }));
        };
        deployment.writer.iter().for_each(|writer| writer.taken_over(resume.generation));
        deployment.voice.resumed(resume.execution, |(node, index)| {
            let reader = deployment.readers.get(&(NodeId(node), index));
            reader.map_or(0, |reader| {
                // What ended until now is not said again.
                reader.take_finished();
                u32::try_from(reader.unfinished()).unwrap_or(u32::MAX)
            })
        });
    }

    /// Where slots of an execution say what happens. `None`: nothing of it runs here.
    pub fn events(&self, execution: u64) -> Option<impl Fn(SlotEvent) + Clone + Send + Sync + 'static> {
        Some(events(execution, self.find(execution)?.voice.clone()))
    }

    fn find(&self, execution: u64) -> Option<Arc<Deployment>> {
        self.running().deployments.get(&execution).cloned()
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn broken(what: &str, error: serde_json::Error) -> Error {
    Error::internal(format!("{what} of a deployment: {error}"))
}

fn events(execution: u64, voice: Arc<Voice>) -> impl Fn(SlotEvent) + Clone + Send + Sync + 'static {
    move |event| {
        let says = slot_event(execution, event).unwrap_or_else(|error| {
            let failure = Some(failure(&error));
            says::Says::Trouble(proto::Trouble { execution, failure })
        });
        voice.say(says);
    }
}

impl Deployment {
    fn take_slots(&self) -> Option<Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What waits for a master waits on while there is none.
    fn say_logs(&self) {
        if self.voice.is_heard() {
            self.logs.take().into_iter().for_each(|logs| self.voice.mention(says::Says::Logs(logs)));
        }
    }

    /// What stands in queues is bounded by the job's settings, so it is looked at and not asked for.
    fn count_queues(&self) {
        self.queued.note(self.queues.iter().map(QueueGauge::bytes).sum());
    }

    fn counters(&self) -> proto::Counters {
        let of = |task: &TaskStatus| proto::TaskCounters {
            subtask: Some(proto::SubtaskRef { node: task.subtask.node.0, index: task.subtask.index.0 }),
            values: task.metrics.values(),
            watermark: task.metrics.watermark.load(std::sync::atomic::Ordering::Relaxed),
        };
        proto::Counters { execution: self.running.execution, tasks: self.tasks.iter().map(of).collect() }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_blobs::Memory;
    use tidemill_connector_kit::Registry;
    use tidemill_job::Components;

    use super::*;

    /// What the coordinator heard after it said that slots are to be made ready; the worker may lose it before it begins.
    fn heard(loses_coordinator: bool) -> usize {
        let components = Arc::new(Components::new(Arc::new(Memory::default())));
        let environment = Environment::new(Arc::new(Registry::new()), components);
        let plane = Arc::new(Plane::new("worker".to_owned(), |_, _, _| ()));
        let deployments = Deployments::new(environment, plane, None);
        let said: Arc<Mutex<Vec<proto::FromWorker>>> = Arc::default();
        let connect = || {
            let said = said.clone();
            deployments.connected(move |message| said.lock().unwrap().push(message));
        };
        connect();
        let open = proto::Open { execution: 7, ..proto::Open::default() };
        let told = tidemill_rpc::to_worker(tells::Says::Open(open));
        let Some(Work::Open(opening)) = deployments.told(told) else { panic!("there is something to do") };
        if loses_coordinator {
            deployments.disconnected();
            connect();
        }
        deployments.open(*opening);
        said.lock().unwrap().iter().filter(|of| matches!(of.says, Some(says::Says::Opened(_)))).count()
    }

    /// The worker stood still between the two, and had registered again before: nobody ever ended what it then made.
    #[test]
    fn what_another_coordinator_wanted_is_not_made_ready() {
        assert_eq!((heard(false), heard(true)), (1, 0));
    }
}
