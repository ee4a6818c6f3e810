//! The workers that attend, and what they say. How they are connected stands elsewhere (`serve`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemill_core::connector::Waker;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_rpc::proto::{self, FromWorker, Running, ToWorker, from_worker as says, signal, to_worker as tells};
use tidemill_rpc::{VERSION, to_worker};

use crate::placement::{self, Offered, may_have, place};
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
    /// So many free slots are kept for jobs that are started again.
    standby: u32,
}

/// Slots that a job wants.
pub struct Wanted<'a> {
    /// How many.
    pub slots: u32,
    /// Where those were that it had before, by slot.
    pub before: &'a [String],
    /// How many it had before, or may have had.
    pub had: u32,
    /// The workers that had no memory for it.
    pub refused: &'a BTreeSet<String>,
    /// The job.
    pub job: &'a str,
}

#[derive(Default)]
struct All {
    workers: BTreeMap<String, Arc<Worker>>,
    /// Jobs that want more slots than there were, and what has them look again.
    waiting: BTreeMap<String, Waker>,
    /// Jobs that are about to be started again, and how many slots they had: nobody else gets these meanwhile.
    returning: BTreeMap<String, u32>,
}

/// How many slots are free, and how many there are.
#[derive(Clone, Copy)]
struct Free {
    free: u32,
    of: u32,
}

impl All {
    fn free(&self) -> Free {
        let each = self.workers.values().map(|worker| (worker.free(), worker.slots));
        let (free, of) = each.fold((0, 0), |(free, of), (more_free, more)| (free + more_free, of + more));
        Free { free, of }
    }
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

    /// What placement looks at.
    fn offered(&self) -> Offered<'_> {
        let left_bytes = self.memory_bytes.saturating_sub(lock(&self.held).total());
        Offered { id: &self.id, free: self.free(), left_bytes }
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
    /// None yet. Of free slots, so many are kept for jobs that are started again.
    pub fn with_standby(standby: u32) -> Self {
        Self { all: Mutex::default(), standby }
    }

    /// Takes slots for a job, as [`place`] says; slot by slot. An error says what is missing; then the job is woken when
    /// there may be slots that were not there before.
    pub fn take(&self, wanted: &Wanted<'_>, wake: Waker) -> Result<Vec<Arc<Worker>>> {
        let mut all = lock(&self.all);
        let there = all.free();
        let others = all.returning.iter().filter(|(job, _)| *job != wanted.job).map(|(_, slots)| *slots);
        let kept = others.fold(self.standby, u32::saturating_add);
        if may_have(there.free, kept, wanted.had) < wanted.slots {
            // For more than it had it waits as a new job does: two that keep what they had would wait for each other.
            let gives = wanted.slots > wanted.had && all.returning.remove(wanted.job).is_some();
            let others = if gives { std::mem::take(&mut all.waiting) } else { BTreeMap::new() };
            all.waiting.insert(wanted.job.to_owned(), wake);
            drop(all);
            others.values().for_each(Waker::wake);
            return Err(missing(&format!("{} slots are needed", wanted.slots), there, kept));
        }
        // Those of a job that is smaller now may be had by others.
        let gives = all.returning.remove(wanted.job).is_some_and(|had| had > wanted.slots);
        let workers: Vec<&Arc<Worker>> = all.workers.values().collect();
        let offered: Vec<Offered<'_>> = workers.iter().map(|worker| worker.offered()).collect();
        let placed = place(&offered, wanted.slots, wanted.before, wanted.refused);
        let taken: Vec<Arc<Worker>> = placed.into_iter().filter_map(|at| Some((*workers.get(at)?).clone())).collect();
        taken.iter().for_each(|worker| *lock(&worker.used) += 1);
        drop(all);
        if gives {
            self.wake();
        }
        Ok(taken)
    }

    /// Whether a job that has so many slots may want so many, where some of what is free is for others that wait; an error
    /// says that they are not there.
    pub fn has_room(&self, wants: u32, has: u32, others: u32) -> Result<()> {
        let there = lock(&self.all).free();
        let there = Free { free: there.free.saturating_sub(others), ..there };
        match wants.saturating_sub(has) {
            more if more <= may_have(there.free, self.standby, 0) => Ok(()),
            more => Err(missing(&format!("the job needs {more} slots"), there, self.standby)),
        }
    }

    /// Whether there is a better worker for a job than these, which had no memory for it.
    pub fn has_memory_beside(&self, refused: &BTreeSet<String>) -> bool {
        let all = lock(&self.all);
        placement::has_room(&all.workers.values().map(|worker| worker.offered()).collect::<Vec<_>>(), refused)
    }

    /// How many free slots are kept for jobs that are started again.
    pub fn standby(&self) -> u32 {
        lock(&self.all).free().free.min(self.standby)
    }

    /// A job had so many slots, which are about to be given back or are lost, and is about to be started again.
    pub fn returns(&self, job: &str, slots: u32) {
        lock(&self.all).returning.insert(job.to_owned(), slots);
    }

    /// What a job had is not kept for it any more: it has it, or is over.
    pub fn returned(&self, job: &str) {
        if lock(&self.all).returning.remove(job).is_some() {
            self.wake();
        }
    }

    /// A job is over: nobody needs copies of its checkpoints any more.
    pub fn forget(&self, job: &str) {
        self.returned(job);
        for worker in lock(&self.all).workers.values() {
            worker.say(tells::Says::Forget(proto::Forget { job: job.to_owned() }));
        }
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

fn missing(needed: &str, Free { free, of }: Free, kept: u32) -> Error {
    let message = match free.min(kept) {
        0 => format!("{needed}, and {free} of {of} are free"),
        1 => format!("{needed}, {free} of {of} are free, 1 of these is kept as standby"),
        kept => format!("{needed}, {free} of {of} are free, {kept} of these are kept as standby"),
    };
    Error::new(ErrorKind::Retry, message)
        .mend("Start more workers, stop other jobs, or give the job a smaller parallelism.")
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
        for job in hello.kept {
            // Copies of the checkpoints of a job that ended while it was away.
            if self.job(&job).is_none_or(|job| job.is_over()) {
                worker.say(tells::Says::Forget(proto::Forget { job }));
            }
        }
        for running in hello.running {
            match self.job(&running.job).filter(|job| job.goes_on()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(standby: u32, slots: &[u32]) -> Workers {
        let workers = Workers::with_standby(standby);
        for (at, slots) in slots.iter().enumerate() {
            workers.insert(Arc::new(Worker {
                id: format!("worker-{at}"),
                address: String::new(),
                slots: *slots,
                memory_bytes: 1_000,
                resident_bytes: AtomicU64::new(0),
                held: Mutex::default(),
                used: Mutex::new(0),
                say: Box::new(|_| ()),
            }));
        }
        workers
    }

    static NOBODY: BTreeSet<String> = BTreeSet::new();

    fn wants(job: &str, slots: u32, had: u32) -> Wanted<'_> {
        Wanted { slots, before: &[], had, refused: &NOBODY, job }
    }

    /// The words of the refusal.
    fn refused(workers: &Workers, wanted: &Wanted<'_>) -> String {
        workers.take(wanted, Waker::new(|| ())).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn standby_slots_go_to_a_job_that_ran_and_to_no_new_one() {
        let workers = workers(2, &[2, 2]);
        let ran = workers.take(&wants("ran", 2, 0), Waker::new(|| ())).unwrap();
        let words = refused(&workers, &wants("new", 1, 0));
        assert!(words.starts_with("1 slots are needed, 2 of 4 are free, 2 of these are kept as standby"), "{words}");
        assert_eq!((workers.standby(), workers.has_room(3, 2, 0).is_err()), (2, true));
        // Its worker is gone.
        workers.remove(&ran[0]);
        workers.returns("ran", 2);
        workers.give_back(&ran);
        let again = workers.take(&wants("ran", 2, 2), Waker::new(|| ())).unwrap();
        assert_eq!((again.len(), workers.standby()), (2, 0));
    }

    #[test]
    fn what_a_job_had_is_kept_for_it_until_it_runs_again_or_is_over() {
        let workers = workers(0, &[4]);
        let had = workers.take(&wants("ran", 4, 0), Waker::new(|| ())).unwrap();
        workers.returns("ran", 4);
        workers.give_back(&had);
        let told = Arc::new(AtomicU64::new(0));
        let tell = told.clone();
        let wake = Waker::new(move || _ = tell.fetch_add(1, Ordering::Relaxed));
        assert!(workers.take(&wants("new", 1, 0), wake).is_err(), "it would take the place of one that ran");
        // It is smaller now: there is room, and who waits hears of it.
        assert_eq!(workers.take(&wants("ran", 2, 4), Waker::new(|| ())).unwrap().len(), 2);
        assert_eq!(told.load(Ordering::Relaxed), 1);
        assert_eq!(workers.take(&wants("new", 1, 0), Waker::new(|| ())).unwrap().len(), 1);
        // One that is over has a claim no more.
        workers.returns("ran", 2);
        assert!(workers.take(&wants("other", 1, 0), Waker::new(|| ())).is_err());
        workers.forget("ran");
        assert_eq!(workers.take(&wants("other", 1, 0), Waker::new(|| ())).unwrap().len(), 1);
    }

    #[test]
    fn a_job_that_a_full_worker_refused_goes_where_more_memory_is_left() {
        let workers = workers(0, &[3, 1]);
        let first = workers.take(&wants("job", 1, 0), Waker::new(|| ())).unwrap();
        assert_eq!(first[0].id, "worker-0");
        workers.give_back(&first);
        let refused = BTreeSet::from(["worker-0".to_owned()]);
        let before = ["worker-0".to_owned()];
        let placed = || {
            let wanted = Wanted { before: &before, refused: &refused, ..wants("job", 1, 1) };
            let taken = workers.take(&wanted, Waker::new(|| ())).unwrap();
            workers.give_back(&taken);
            taken[0].id.clone()
        };
        assert_eq!((placed(), workers.has_memory_beside(&refused)), ("worker-0".to_owned(), false));
        // As its beats say.
        *lock(&first[0].held) = HeldView { guests_bytes: 600, state_bytes: 300, ..HeldView::default() };
        assert_eq!((placed(), workers.has_memory_beside(&refused)), ("worker-1".to_owned(), true));
        assert!(!workers.has_memory_beside(&BTreeSet::from(["worker-0".to_owned(), "worker-1".to_owned()])));
        let other = workers.take(&Wanted { refused: &refused, ..wants("other", 1, 0) }, Waker::new(|| ())).unwrap();
        assert_eq!((other[0].id.as_str(), workers.has_memory_beside(&refused)), ("worker-1", false), "no slot is left");
    }

    #[test]
    fn jobs_that_wait_for_more_than_they_had_do_not_wait_for_each_other() {
        let workers = workers(0, &[5]);
        for job in ["one", "other"] {
            let had = workers.take(&wants(job, 2, 0), Waker::new(|| ())).unwrap();
            workers.returns(job, 2);
            workers.give_back(&had);
        }
        let told = Arc::new(AtomicU64::new(0));
        let tell = told.clone();
        let wake = Waker::new(move || _ = tell.fetch_add(1, Ordering::Relaxed));
        assert!(workers.take(&wants("one", 5, 2), wake).is_err(), "the other one comes back");
        assert!(workers.take(&wants("other", 5, 2), Waker::new(|| ())).is_ok(), "nobody else has a claim");
        // Who waits hears of it when there is more.
        assert_eq!(told.load(Ordering::Relaxed), 0);
        workers.give_back(&[]);
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }
}
