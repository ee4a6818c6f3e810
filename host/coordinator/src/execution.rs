//! One deployment of one attempt at a job: which worker has which slot, and what is said between them and the job's
//! master. Whatever is said under another execution's number is not heard.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};

use tidemill_checkpoint::Owner;
use tidemill_core::connector::Waker;
use tidemill_core::ids::{NodeId, SubtaskId, SubtaskIndex};
use tidemill_core::plan::NodeKind;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_dataflow::driver::{Prologue, Readers, SlotEvent};
use tidemill_dataflow::job::TaskStatus;
use tidemill_dataflow::signals::Signals;
use tidemill_dataflow::slice::letters_tasks;
use tidemill_dataflow::splits::Mailbox;
use tidemill_job::JobDefinition;
use tidemill_rpc::proto::{self, from_worker as says, signal, to_worker as tells};
use tidemill_rpc::{failure_of, news, slot_event_of, subtask_of};

use crate::lock;
use crate::workers::Worker;

type Events = Box<dyn Fn(SlotEvent) + Send + Sync>;

/// See the module.
pub struct Execution {
    pub id: u64,
    /// By slot.
    pub slots: Vec<Arc<Worker>>,
    /// What stands for the readers of sources here.
    pub readers: Readers,
    /// What stands for the signals of all slots here.
    pub signals: Arc<Signals>,
    tasks: HashMap<(NodeId, u32), TaskStatus>,
    subtasks: HashMap<(NodeId, u32), Arc<SubtaskId>>,
    events: OnceLock<Events>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    opened: BTreeMap<String, Result<()>>,
    /// Workers on which nothing of it runs any more, as they said or since they are gone.
    left: BTreeSet<String>,
    /// Slots that came to their end, one way or another.
    ended: BTreeSet<u32>,
    /// What went wrong at the very end.
    failures: Vec<Error>,
}

/// What was passed on of the signals.
#[derive(Default)]
struct Said {
    stop: bool,
    cancel: bool,
    overtake: u64,
    verdict: bool,
}

impl Execution {
    /// Of a job that is about to be deployed to these workers, one per slot.
    pub fn new(id: u64, job: &str, prologue: &Prologue, slots: Vec<Arc<Worker>>) -> Self {
        let mut readers = Readers::new();
        for (node, of) in prologue.plan.graph().iter() {
            if !matches!(of.kind, NodeKind::Source { .. }) {
                continue;
            }
            for (index, worker) in (0..prologue.plan.parallelism(node)).zip(&slots) {
                readers.insert((node, index), mailbox(id, node, index, worker.clone()));
            }
        }
        let mut subtasks: HashMap<(NodeId, u32), Arc<SubtaskId>> = HashMap::new();
        let letters = letters_tasks(job, &prologue.plan);
        for subtask in prologue.tasks.iter().map(|task| &task.subtask).chain(&letters) {
            subtasks.insert((subtask.node, subtask.index.0), subtask.clone());
        }
        let tasks = prologue.tasks.iter().map(|task| ((task.subtask.node, task.subtask.index.0), task.clone()));
        let (events, progress, changed) = Default::default();
        let signals = signals(id, distinct(&slots));
        Self { id, slots, readers, signals, tasks: tasks.collect(), subtasks, events, progress, changed }
    }

    /// Has all workers make their slots. An error of any.
    pub fn open(&self, definition: &JobDefinition, owner: Option<&Owner>, allow_non_restored: bool) -> Result<()> {
        let json = |what: serde_json::Result<Vec<u8>>| {
            what.map(Into::into).map_err(|e| Error::internal(format!("a deployment: {e}")))
        };
        let restored = owner.and_then(Owner::restored);
        let begin = proto::Begin {
            generation: owner.map_or(0, Owner::generation),
            epoch: restored.map_or(0, |restored| restored.manifest.epoch),
            origin: restored.map(|r| json(serde_json::to_vec(&r.origin))).transpose()?.unwrap_or_default(),
            manifest: restored.map(|r| json(serde_json::to_vec(&r.manifest))).transpose()?.unwrap_or_default(),
            allow_non_restored,
        };
        let places = (0..).zip(&self.slots).map(|(slot, worker)| proto::Place {
            slot,
            worker: worker.id.clone(),
            exchange_address: worker.address.clone(),
        });
        let open = proto::Open {
            execution: self.id,
            definition: json(serde_json::to_vec(definition))?,
            slots: Vec::new(),
            places: places.collect(),
            begin: Some(begin),
            parallelism: u32::try_from(self.slots.len()).unwrap_or(u32::MAX),
        };
        let workers = distinct(&self.slots);
        for worker in &workers {
            let slots = (0..).zip(&self.slots).filter(|(_, of)| of.id == worker.id).map(|(slot, _)| slot).collect();
            worker.say(tells::Says::Open(proto::Open { slots, ..open.clone() }));
        }
        let progress = lock(&self.progress);
        let waiting = |progress: &mut Progress| progress.opened.len() < workers.len();
        let mut progress = self.changed.wait_while(progress, waiting).unwrap_or_else(PoisonError::into_inner);
        let (mut error, mut ready) = (None, BTreeSet::new());
        for (worker, outcome) in std::mem::take(&mut progress.opened) {
            match outcome {
                Ok(()) => _ = ready.insert(worker),
                Err(e) => error = Some(error.unwrap_or(e)),
            }
        }
        drop(progress);
        let Some(error) = error else { return Ok(()) };
        for worker in workers.iter().filter(|worker| ready.contains(&worker.id)) {
            let what = Some(signal::What::Cancel(true));
            worker.say(tells::Says::Signal(proto::Signal { execution: self.id, what }));
        }
        Err(error)
    }

    /// Starts what was made ready. What its slots say goes to `events`.
    pub fn start(&self, events: impl Fn(SlotEvent) + Send + Sync + 'static) {
        _ = self.events.set(Box::new(events));
        for worker in distinct(&self.slots) {
            worker.say(tells::Says::Start(proto::Start { execution: self.id }));
        }
        // Whoever is gone by now was not heard of by anyone.
        let gone: Vec<String> = lock(&self.progress).left.iter().cloned().collect();
        gone.iter().for_each(|worker| self.fail_slots(worker, "it is gone"));
    }

    /// Waits until nothing of it runs any more; what went wrong at the very end.
    pub fn join(&self) -> Vec<Error> {
        let workers = distinct(&self.slots);
        let progress = lock(&self.progress);
        let waiting = |progress: &mut Progress| workers.iter().any(|worker| !progress.left.contains(&worker.id));
        let mut progress = self.changed.wait_while(progress, waiting).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut progress.failures)
    }

    /// A worker says something of it.
    pub fn said(&self, worker: &str, says: says::Says) {
        match says {
            says::Says::Opened(opened) => {
                let outcome = opened.failure.map_or(Ok(()), |failure| Err(failure_of(failure)));
                lock(&self.progress).opened.entry(worker.to_owned()).or_insert(outcome);
                self.changed.notify_all();
            }
            says::Says::Left(left) => {
                let mut progress = lock(&self.progress);
                progress.failures.extend(left.failures.into_iter().map(failure_of));
                progress.left.insert(worker.to_owned());
                self.changed.notify_all();
            }
            says::Says::SplitFinished(finished) => {
                let reader =
                    subtask_of(finished.reader).ok().and_then(|(node, index)| self.readers.get(&(node, index.0)));
                reader.into_iter().for_each(|reader| reader.splits_finished(finished.count as usize));
            }
            says::Says::Counters(counters) => {
                for counted in counters.tasks {
                    let Ok((node, index)) = subtask_of(counted.subtask) else { continue };
                    let Some(task) = self.tasks.get(&(node, index.0)) else { continue };
                    task.metrics.set_values(&counted.values);
                    task.metrics.watermark.store(counted.watermark, std::sync::atomic::Ordering::Relaxed);
                }
            }
            other => {
                let find = |node: NodeId, index: SubtaskIndex| self.subtasks.get(&(node, index.0)).cloned();
                match slot_event_of(other, find) {
                    Ok(Some(event)) => self.event(worker, event),
                    Ok(None) => {}
                    Err(error) => self.tell(SlotEvent::Trouble(error)),
                }
            }
        }
    }

    /// A worker is gone, and its slots with it.
    pub fn gone(&self, worker: &str, why: &str) {
        if !self.slots.iter().any(|of| of.id == worker) {
            return;
        }
        let mut progress = lock(&self.progress);
        progress.opened.insert(worker.to_owned(), Err(gone(worker, why)));
        progress.left.insert(worker.to_owned());
        drop(progress);
        self.fail_slots(worker, why);
        self.changed.notify_all();
    }

    fn fail_slots(&self, worker: &str, why: &str) {
        if self.events.get().is_none() {
            return;
        }
        for (slot, of) in (0..).zip(&self.slots) {
            if of.id == worker {
                self.event(worker, SlotEvent::Failed(slot, gone(worker, why)));
            }
        }
    }

    /// A slot ends once, whatever else is said of it, and only its own worker says so.
    fn event(&self, worker: &str, event: SlotEvent) {
        if let SlotEvent::Finished(slot) | SlotEvent::Gone(slot) | SlotEvent::Failed(slot, _) = &event {
            let is_its = self.slots.get(*slot as usize).is_some_and(|of| of.id == worker);
            if !is_its || !lock(&self.progress).ended.insert(*slot) {
                return;
            }
        }
        self.tell(event);
    }

    fn tell(&self, event: SlotEvent) {
        if let Some(events) = self.events.get() {
            events(event);
        }
    }
}

fn gone(worker: &str, why: &str) -> Error {
    Error::new(ErrorKind::Retry, format!("{worker} is gone: {why}"))
}

fn distinct(slots: &[Arc<Worker>]) -> Vec<Arc<Worker>> {
    let mut workers: Vec<Arc<Worker>> = Vec::new();
    for worker in slots {
        if !workers.iter().any(|of| of.id == worker.id) {
            workers.push(worker.clone());
        }
    }
    workers
}

/// What is put into it goes to the worker at once.
fn mailbox(execution: u64, node: NodeId, index: u32, worker: Arc<Worker>) -> Arc<Mailbox> {
    Arc::new_cyclic(|this: &Weak<Mailbox>| {
        let this = this.clone();
        Mailbox::new(Waker::new(move || {
            while let Some(item) = this.upgrade().and_then(|mailbox| mailbox.take()) {
                worker.say(tells::Says::News(news(execution, node, index, item)));
            }
        }))
    })
}

/// What is said there goes to all workers at once.
fn signals(execution: u64, workers: Vec<Arc<Worker>>) -> Arc<Signals> {
    let said = Mutex::new(Said::default());
    Arc::new_cyclic(|this: &Weak<Signals>| {
        let this = this.clone();
        Signals::new(vec![Waker::new(move || {
            let Some(signals) = this.upgrade() else { return };
            let mut said = lock(&said);
            let mut news = Vec::new();
            if signals.is_stopping() && !std::mem::replace(&mut said.stop, true) {
                news.push(signal::What::Stop(true));
            }
            let overtaking = signals.overtaking().0;
            if overtaking > said.overtake {
                said.overtake = overtaking;
                news.push(signal::What::Overtake(overtaking));
            }
            if signals.is_cancelled() && !std::mem::replace(&mut said.cancel, true) {
                news.push(signal::What::Cancel(true));
            }
            if let Some(verdict) = signals.verdict()
                && !std::mem::replace(&mut said.verdict, true)
            {
                news.push(signal::What::Verdict(verdict));
            }
            for worker in &workers {
                for what in &news {
                    worker.say(tells::Says::Signal(proto::Signal { execution, what: Some(*what) }));
                }
            }
        })])
    })
}
