//! The workers that attend, and what they say. How they are connected stands elsewhere (`serve`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemill_core::connector::Waker;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_rpc::proto::{self, FromWorker, Running, ToWorker, from_worker as says, signal, to_worker as tells};
use tidemill_rpc::{VERSION, to_worker};

use crate::view::{HeldView, WorkerView};
use crate::{Coordinator, lock};

/// How often workers say that they are there, and bring figures.
const BEAT: Duration = Duration::from_millis(500);
/// A worker that says nothing for so long is gone, though its connection may stand.
pub const SILENCE: Duration = Duration::from_secs(10);

/// All that are there.
#[derive(Default)]
pub struct Workers {
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    workers: BTreeMap<String, Arc<Worker>>,
    /// Jobs that want more slots than there were, and what has them look again.
    waiting: BTreeMap<String, Waker>,
}

/// A worker that attends.
pub struct Worker {
    /// Its name, which no other process has.
    pub id: String,
    /// Where other workers reach it.
    pub address: String,
    slots: u32,
    memory_bytes: u64,
    resident_bytes: AtomicU64,
    held: Mutex<HeldView>,
    used: Mutex<u32>,
    say: Box<dyn Fn(ToldWorker) + Send + Sync>,
}

/// What a worker is told.
pub enum ToldWorker {
    /// This.
    Says(Box<ToWorker>),
    /// Nothing any more: the connection is to end, if it stands.
    GivenUp,
}

impl Worker {
    /// How many of its slots nothing runs in.
    fn free(&self) -> u32 {
        self.slots.saturating_sub(*lock(&self.used))
    }

    /// Says something to its slots of an execution.
    pub fn signal(&self, execution: u64, what: signal::What) {
        self.say(tells::Says::Signal(proto::Signal { execution, what: Some(what) }));
    }

    /// Says something to it. If it is gone, that is noticed elsewhere.
    pub fn say(&self, says: tells::Says) {
        (self.say)(ToldWorker::Says(Box::new(to_worker(says))));
    }
}

impl Workers {
    /// Takes slots for a job, spread over the workers; slot by slot. An error says what is missing; then the job is woken
    /// when there may be slots that were not there before.
    pub fn take(&self, slots: u32, job: &str, wake: Waker) -> Result<Vec<Arc<Worker>>> {
        let mut all = lock(&self.all);
        let mut free: Vec<(u32, &Arc<Worker>)> = all.workers.values().map(|worker| (worker.free(), worker)).collect();
        let there: u32 = free.iter().map(|(free, _)| free).sum();
        if there < slots {
            let of: u32 = all.workers.values().map(|worker| worker.slots).sum();
            all.waiting.insert(job.to_owned(), wake);
            return Err(Error::new(
                ErrorKind::Retry,
                format!("{slots} slots are needed, and {there} of {of} are free"),
            )
            .mend("Start more workers, stop other jobs, or give the job a smaller parallelism."));
        }
        let mut taken = Vec::new();
        for _ in 0..slots {
            // From whoever has most left.
            let Some((left, worker)) = free.iter_mut().max_by_key(|(left, _)| *left) else { break };
            *left -= 1;
            *lock(&worker.used) += 1;
            taken.push(worker.clone());
        }
        Ok(taken)
    }

    /// How many slots are free, and how many there are.
    pub fn free(&self) -> (u32, u32) {
        let all = lock(&self.all);
        let each = all.workers.values().map(|worker| (worker.free(), worker.slots));
        each.fold((0, 0), |(free, of), (more_free, more)| (free + more_free, of + more))
    }

    /// Takes so many slots of a worker: something runs there since before.
    pub fn claim(&self, worker: &Worker, slots: usize) {
        *lock(&worker.used) += u32::try_from(slots).unwrap_or(u32::MAX);
    }

    /// Gives slots back.
    pub fn give_back(&self, slots: &[Arc<Worker>]) {
        for worker in slots {
            let mut used = lock(&worker.used);
            *used = used.saturating_sub(1);
        }
        self.wake();
    }

    /// Whether a worker is there, under this registration.
    pub fn has(&self, worker: &Arc<Worker>) -> bool {
        lock(&self.all).workers.get(&worker.id).is_some_and(|of| Arc::ptr_eq(of, worker))
    }

    pub fn views(&self) -> Vec<WorkerView> {
        let all = lock(&self.all);
        let view = |worker: &Arc<Worker>| WorkerView {
            id: worker.id.clone(),
            address: worker.address.clone(),
            slots: worker.slots,
            free_slots: worker.free(),
            memory_bytes: worker.memory_bytes,
            resident_bytes: worker.resident_bytes.load(Ordering::Relaxed),
            held: *lock(&worker.held),
        };
        all.workers.values().map(view).collect()
    }

    /// Adds one; the registration that it had before, if it had one.
    fn insert(&self, worker: Arc<Worker>) -> Option<Arc<Worker>> {
        let before = lock(&self.all).workers.insert(worker.id.clone(), worker);
        self.wake();
        before
    }

    /// Of one that registered again meanwhile, the newer registration stays.
    fn remove(&self, worker: &Arc<Worker>) {
        let mut all = lock(&self.all);
        if all.workers.get(&worker.id).is_some_and(|of| Arc::ptr_eq(of, worker)) {
            all.workers.remove(&worker.id);
        }
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut lock(&self.all).waiting);
        waiting.values().for_each(Waker::wake);
    }
}

impl Coordinator {
    /// A worker registers: it is told so through `say`. An error: it can't be used, whatever it tries.
    pub fn hello(&self, hello: proto::Hello, say: impl Fn(ToldWorker) + Send + Sync + 'static) -> Result<Arc<Worker>> {
        if hello.version != VERSION {
            let (theirs, ours) = (hello.version, VERSION);
            let message = format!("the worker is of version {theirs}, the coordinator of {ours}: use one version");
            return Err(Error::invalid(message));
        }
        let worker = Arc::new(Worker {
            id: hello.worker,
            address: hello.exchange_address,
            slots: hello.slots,
            memory_bytes: hello.memory_bytes,
            resident_bytes: AtomicU64::new(0),
            held: Mutex::default(),
            used: Mutex::new(0),
            say: Box::new(say),
        });
        let beat_every_ms = u64::try_from(BEAT.as_millis()).unwrap_or(u64::MAX);
        let storage = self.storage.location().to_owned();
        worker.say(tells::Says::Welcome(proto::Welcome { beat_every_ms, storage }));
        tracing::info!("{} registered with {} slots", worker.id, worker.slots);
        for running in &hello.running {
            self.workers.claim(&worker, running.slots.len());
        }
        // It saw the end of its connection before it was seen here.
        if let Some(before) = self.workers.insert(worker.clone()) {
            self.gone(&before, "it registered again");
        }
        for running in hello.running {
            match self.job(&running.job).filter(|job| !job.is_over()) {
                Some(job) => job.offer(worker.clone(), running),
                None => self.decline(&worker, &running),
            }
        }
        Ok(worker)
    }

    /// Ends what a worker runs since before this coordinator and nobody wants.
    pub(crate) fn decline(&self, worker: &Arc<Worker>, running: &Running) {
        worker.signal(running.execution, signal::What::Cancel(true));
        self.workers.give_back(&vec![worker.clone(); running.slots.len()]);
    }

    /// A worker says something.
    pub fn said(&self, worker: &Arc<Worker>, message: FromWorker) {
        let Some(says) = message.says else { return };
        let execution = match &says {
            says::Says::Beat(beat) => {
                *lock(&worker.held) = beat.memory.unwrap_or_default().into();
                return worker.resident_bytes.store(beat.resident_bytes, Ordering::Relaxed);
            }
            says::Says::Logs(_) => return self.heard_logs(worker, says),
            says::Says::Hello(_) => return,
            says::Says::Opened(opened) => opened.execution,
            says::Says::Tasks(tasks) => tasks.execution,
            says::Says::Written(written) => written.execution,
            says::Says::SlotEnded(ended) => ended.execution,
            says::Says::SplitFinished(finished) => finished.execution,
            says::Says::Left(left) => left.execution,
            says::Says::Counters(counters) => counters.execution,
            says::Says::Trouble(trouble) => trouble.execution,
            says::Says::Resumed(resumed) => resumed.execution,
        };
        // Of one that is over: stale.
        if let Some(execution) = self.execution(execution) {
            execution.said(&worker.id, says);
        }
    }

    /// Also of an execution that is over: its last words.
    fn heard_logs(&self, worker: &Worker, says: says::Says) {
        let says::Says::Logs(logs) = says else { return };
        if let Some(job) = self.job(&logs.job) {
            job.log().hear(self.environment.now_ms(), &worker.id, logs);
        }
    }

    /// A worker is gone, and with it what ran there.
    pub fn gone(&self, worker: &Arc<Worker>, why: &str) {
        tracing::warn!("{} is gone: {why}", worker.id);
        self.workers.remove(worker);
        (worker.say)(ToldWorker::GivenUp);
        let executions: Vec<_> = lock(&self.executions).values().cloned().collect();
        executions.iter().for_each(|execution| execution.gone(worker, why));
    }
}
