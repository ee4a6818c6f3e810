//! One deployment of one attempt at a job: which worker has which slot, and what is said between them and the job's
//! master. Whatever is said under another execution's number is not heard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tidemill_checkpoint::Owner;
use tidemill_core::connector::Waker;
use tidemill_core::ids::{NodeId, SubtaskId, SubtaskIndex};
use tidemill_core::plan::NodeKind;
use tidemill_core::{Error, Result};
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

/// What is said of an execution, and by which worker.
pub enum ExecutionEvent {
    /// Its slots there are ready, or can't be made.
    Opened(String, Result<RestoredBytes>),
    /// Its slots there were taken over and go on; what their readers were given.
    Resumed(String, Vec<proto::ReaderState>),
    /// A slot says something.
    Slot(String, SlotEvent),
    /// Nothing of it runs there any more; what went wrong at the very end.
    Left(String, Vec<Error>),
    /// The worker is gone, and its slots with it; why.
    Gone(String, String),
}

/// What was read of the files of a checkpoint.
#[derive(Clone, Copy, Default)]
pub struct RestoredBytes {
    /// From copies on the machine that reads.
    pub local: u64,
    /// From the store.
    pub store: u64,
}

/// See the module.
pub struct Execution {
    pub id: u64,
    /// By slot.
    pub slots: Vec<Arc<Worker>>,
    /// Each once.
    pub workers: Vec<Arc<Worker>>,
    /// What stands for the readers of sources here.
    pub readers: Readers,
    /// What stands for the signals of all slots here.
    pub signals: Arc<Signals>,
    tasks: HashMap<(NodeId, u32), TaskStatus>,
    subtasks: HashMap<(NodeId, u32), Arc<SubtaskId>>,
    says: Box<dyn Fn(ExecutionEvent) + Send + Sync>,
}

/// What was passed on of the signals.
#[derive(Default)]
struct Said {
    stop: bool,
    cancel: bool,
    overtake: u64,
    completed: u64,
    verdict: bool,
}

impl Execution {
    /// Of a job that is about to be deployed to these workers, one per slot. What they say of it goes to `says`.
    pub fn new(
        id: u64,
        job: &str,
        prologue: &Prologue,
        slots: Vec<Arc<Worker>>,
        says: impl Fn(ExecutionEvent) + Send + Sync + 'static,
    ) -> Self {
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
        let workers = distinct(&slots);
        let signals = signals(id, workers.clone());
        Self { id, slots, workers, readers, signals, tasks: tasks.collect(), subtasks, says: Box::new(says) }
    }

    /// Has all workers make their slots; each says when it has. `job`: its id in the cluster.
    pub fn open(
        &self,
        job: &str,
        definition: &JobDefinition,
        owner: Option<&Owner>,
        allow_non_restored: bool,
    ) -> Result<()> {
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
            job: job.to_owned(),
        };
        for worker in &self.workers {
            let slots = (0..).zip(&self.slots).filter(|(_, of)| of.id == worker.id).map(|(slot, _)| slot).collect();
            worker.say(tells::Says::Open(proto::Open { slots, ..open.clone() }));
        }
        Ok(())
    }

    /// Takes over what runs, in the name of an attempt of this generation; each worker says when it has heard.
    pub fn resume(&self, generation: u64) {
        for worker in &self.workers {
            worker.say(tells::Says::Resume(proto::Resume { execution: self.id, generation }));
        }
    }

    /// Starts what was made ready.
    pub fn start(&self) {
        for worker in &self.workers {
            worker.say(tells::Says::Start(proto::Start { execution: self.id }));
        }
    }

    /// A worker says something of it.
    pub fn said(&self, worker: &str, says: says::Says) {
        match says {
            says::Says::Opened(opened) => {
                let read = RestoredBytes { local: opened.local_bytes, store: opened.store_bytes };
                let outcome = opened.failure.map_or(Ok(read), |failure| Err(failure_of(failure)));
                (self.says)(ExecutionEvent::Opened(worker.to_owned(), outcome));
            }
            says::Says::Resumed(resumed) => {
                (self.says)(ExecutionEvent::Resumed(worker.to_owned(), resumed.readers));
            }
            says::Says::Left(left) => {
                let failures = left.failures.into_iter().map(failure_of).collect();
                (self.says)(ExecutionEvent::Left(worker.to_owned(), failures));
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
                let event = slot_event_of(other, find).unwrap_or_else(|error| Some(SlotEvent::Trouble(error)));
                if let Some(event) = event {
                    (self.says)(ExecutionEvent::Slot(worker.to_owned(), event));
                }
            }
        }
    }

    /// A worker is gone, and its slots with it.
    pub fn gone(&self, worker: &Arc<Worker>, why: &str) {
        if self.workers.iter().any(|of| Arc::ptr_eq(of, worker)) {
            (self.says)(ExecutionEvent::Gone(worker.id.clone(), why.to_owned()));
        }
    }
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
            let completed = signals.completed().0;
            if completed > said.completed {
                said.completed = completed;
                news.push(signal::What::Completed(completed));
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
                    worker.signal(execution, *what);
                }
            }
        })])
    })
}
