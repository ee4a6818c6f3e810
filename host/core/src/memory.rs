//! The memory of a process, as an account: who holds how much of it, by job and by owner, and no more than the process may
//! use together.
//!
//! It does not see every allocation. It is told of what grows: at each growth of a sandbox's memory, at each commit of
//! keyed state, of caches and buffers once per batch, and every so often of what stands in queues. So it costs nothing per
//! row, and the process has something beside it (its own code, threads, what is being written), which `resident bytes` show.
//!
//! Invariant: what the process holds is the sum of what its jobs hold; a job that is gone holds nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::{Error, ErrorKind, Result};

/// How many jobs a refusal names.
const NAMED: usize = 3;
/// How many owners there are.
const OWNERS: usize = 5;

/// What memory is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Linear memories and tables of user code.
    Guests,
    /// Compiled components. Jobs share them, so they are of the process and not of a job.
    Code,
    /// Keyed state: what is resident, and the caches of state on disk. Broadcast state, operator lists, and what windows and
    /// joins derive from state and keep beside it.
    State,
    /// Rows that stand in queues between slots, and those that a checkpoint took from there and has not written yet.
    Exchange,
    /// What sources and sinks read ahead and have not written yet.
    Connectors,
}

impl Owner {
    /// All, in the order of [`Held`].
    pub const ALL: [Self; OWNERS] = [Self::Guests, Self::Code, Self::State, Self::Exchange, Self::Connectors];

    fn index(self) -> usize {
        match self {
            Self::Guests => 0,
            Self::Code => 1,
            Self::State => 2,
            Self::Exchange => 3,
            Self::Connectors => 4,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guests => "guests",
            Self::Code => "code",
            Self::State => "state",
            Self::Exchange => "exchange",
            Self::Connectors => "connectors",
        })
    }
}

/// Bytes, by owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held([u64; OWNERS]);

impl Held {
    /// Those of an owner.
    pub fn of(&self, owner: Owner) -> u64 {
        self.0.get(owner.index()).copied().unwrap_or(0)
    }

    /// All.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |all, bytes| all.saturating_add(*bytes))
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(of, more)| *of = of.saturating_add(more));
    }
}

/// The account of a process.
#[derive(Debug)]
pub struct ProcessMemory {
    /// What it may use. None: whatever there is.
    limit: Option<u64>,
    held: AtomicU64,
    /// What of that is held by jobs that are about to end.
    leaving: AtomicU64,
    jobs: Mutex<Vec<Weak<JobMemory>>>,
    spare: Spare,
}

/// What gives up memory that nobody needs at the moment, when there is not enough.
#[derive(Default)]
struct Spare(Mutex<Option<Arc<dyn Fn() + Send + Sync>>>);

impl fmt::Debug for Spare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spare")
    }
}

impl ProcessMemory {
    /// Of a process that may use so much.
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        let (held, leaving, jobs, spare) = Default::default();
        Arc::new(Self { limit, held, leaving, jobs, spare })
    }

    /// Of one that may use whatever there is.
    pub fn unlimited() -> Arc<Self> {
        Self::new(None)
    }

    /// What it may use, if that is bounded.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Opens the account of an execution of a job. It is closed when nobody has it any more.
    pub fn job(self: &Arc<Self>, name: &str) -> Arc<JobMemory> {
        self.open_account(Some(name.to_owned()))
    }

    /// The account of a compiled component, which holds so much: once, however many jobs run it. An error: it is more than
    /// the process may use.
    pub fn component(self: &Arc<Self>, bytes: usize) -> Result<Account> {
        Account::holding(&self.open_account(None), Owner::Code, bytes)
    }

    /// Before somebody is refused, this is called: it drops what nobody needs at the moment. It must not take any memory.
    pub fn on_shortage(&self, give_up: impl Fn() + Send + Sync + 'static) {
        *self.spare.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(give_up));
    }

    fn give_up_spare(&self) {
        // Not under the lock: what is dropped there gives back to this account.
        let give_up = self.spare.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        give_up.into_iter().for_each(|give_up| give_up());
    }

    fn open_account(self: &Arc<Self>, name: Option<String>) -> Arc<JobMemory> {
        let (held, leaving) = Default::default();
        let job = Arc::new(JobMemory { process: self.clone(), name, held, leaving });
        let mut jobs = self.jobs();
        jobs.retain(|job| job.strong_count() > 0);
        jobs.push(Arc::downgrade(&job));
        job
    }

    /// What all jobs hold.
    pub fn held(&self) -> Held {
        let mut all = Held::default();
        self.open().iter().for_each(|job| all.add(&job.held()));
        all
    }

    fn open(&self) -> Vec<Arc<JobMemory>> {
        self.jobs().iter().filter_map(Weak::upgrade).collect()
    }

    fn jobs(&self) -> MutexGuard<'_, Vec<Weak<JobMemory>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The account of one execution of a job in a process.
#[derive(Debug)]
pub struct JobMemory {
    process: Arc<ProcessMemory>,
    /// None: it is a compiled component's.
    name: Option<String>,
    held: [AtomicU64; OWNERS],
    /// Above 0: it is about to end, and so much of what it holds is as good as given back.
    leaving: AtomicU64,
}

impl JobMemory {
    /// Of a job in a process that may use whatever there is.
    pub fn unlimited() -> Arc<Self> {
        ProcessMemory::unlimited().job("")
    }

    /// What the process may use, if that is bounded.
    pub fn limit(&self) -> Option<u64> {
        self.process.limit
    }

    /// Takes memory before it is there. An error, and nothing is taken: it is more than the process may use.
    pub fn take(&self, owner: Owner, bytes: u64) -> Result<()> {
        // In one step: who is refused must not make others be refused meanwhile.
        let took = || {
            let room = self.room();
            let fits = |held: u64| held.checked_add(bytes).filter(|held| *held <= room);
            self.process.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
        };
        let again = || {
            self.process.give_up_spare();
            took()
        };
        if took() || again() {
            self.at(owner).fetch_add(bytes, Ordering::Relaxed);
            return Ok(());
        }
        Err(self.refusal(owner, bytes))
    }

    /// Memory that is there already has become `now` bytes, and was `before`. An error: it has grown, and that is more
    /// than the process may use; it is counted nevertheless.
    pub fn resize(&self, owner: Owner, before: u64, now: u64) -> Result<()> {
        if now <= before {
            self.give_back(owner, before - now);
            return Ok(());
        }
        self.add(owner, now - before);
        if self.fits() {
            return Ok(());
        }
        self.process.give_up_spare();
        if self.fits() { Ok(()) } else { Err(self.refusal(owner, 0)) }
    }

    fn add(&self, owner: Owner, bytes: u64) {
        self.at(owner).fetch_add(bytes, Ordering::Relaxed);
        self.process.held.fetch_add(bytes, Ordering::Relaxed);
    }

    fn fits(&self) -> bool {
        self.process.held.load(Ordering::Relaxed) <= self.room()
    }

    /// It was refused, and fails for that. What it holds still is nobody's business any more: until it is gone, others are
    /// not refused for it, and it is refused whatever it wants.
    pub fn ends(&self) {
        let held = self.held().total().max(1);
        if self.leaving.compare_exchange(0, held, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.process.leaving.fetch_add(held, Ordering::Relaxed);
        }
    }

    /// How much the process may hold with what this job holds.
    fn room(&self) -> u64 {
        match (self.process.limit, self.leaving.load(Ordering::Relaxed)) {
            (None, _) => u64::MAX,
            (Some(limit), 0) => limit.saturating_add(self.process.leaving.load(Ordering::Relaxed)),
            (Some(_), _) => 0,
        }
    }

    /// Gives back what was taken.
    pub fn give_back(&self, owner: Owner, bytes: u64) {
        self.at(owner).fetch_sub(bytes, Ordering::Relaxed);
        self.process.held.fetch_sub(bytes, Ordering::Relaxed);
        // It stays above 0: it is about to end still.
        let left = |leaving: u64| (leaving > 1).then(|| leaving.saturating_sub(bytes).max(1));
        if let Ok(before) = self.leaving.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left) {
            let now = before.saturating_sub(bytes).max(1);
            self.process.leaving.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// What it holds.
    pub fn held(&self) -> Held {
        Held(Owner::ALL.map(|owner| self.at(owner).load(Ordering::Relaxed)))
    }

    fn at(&self, owner: Owner) -> &AtomicU64 {
        let [guests, code, state, exchange, connectors] = &self.held;
        match owner {
            Owner::Guests => guests,
            Owner::Code => code,
            Owner::State => state,
            Owner::Exchange => exchange,
            Owner::Connectors => connectors,
        }
    }

    /// `asked`: what is not there yet.
    fn refusal(&self, owner: Owner, asked: u64) -> Error {
        let limit = self.process.limit.unwrap_or(u64::MAX);
        let held = self.held();
        let grows = match asked {
            0 => String::new(),
            bytes => format!(" asks for {} more for its {owner} and", size(bytes)),
        };
        let who = match &self.name {
            Some(name) => format!("job '{name}'{grows} holds {}; ", by_owner(&held)),
            None => String::new(),
        };
        let code = self.process.held().of(Owner::Code);
        let components = match code {
            0 => String::new(),
            bytes => format!("; compiled components hold {}", size(bytes)),
        };
        let (others, named) = self.others();
        let message =
            format!("the process may use {} of memory, which is not enough: {who}{named}{components}", size(limit),);
        // What it has most of is what there is to save, whoever asked last.
        let wanted = |of: Owner| held.of(of).saturating_add(if of == owner { asked } else { 0 });
        let mend = match Owner::ALL.into_iter().max_by_key(|of| wanted(*of)).unwrap_or(owner) {
            Owner::State => {
                "Keep its state on disk ([state] backend = \"rocksdb\"), give workers more --memory, or spread the job \
                 over more workers."
            }
            Owner::Code => "Give workers more --memory, or spread jobs over more workers.",
            Owner::Connectors => {
                "Give its sources and sinks smaller buffers, give workers more --memory, or spread jobs over more workers."
            }
            Owner::Guests | Owner::Exchange => {
                "Use less in the operator, give workers more --memory, or spread jobs over more workers."
            }
        };
        // Without the others there would be room: elsewhere there may be, or here when they are gone.
        let own = if self.name.is_some() { held.total() } else { 0 };
        let alone = own.saturating_add(code).saturating_add(asked);
        let kind = if others > 0 && alone <= limit { ErrorKind::Full } else { ErrorKind::Limit };
        Error::new(kind, message).mend(mend)
    }

    /// How much other jobs hold, and which.
    fn others(&self) -> (u64, String) {
        let mut others: Vec<(Held, String)> = Vec::new();
        for job in self.process.open().iter().filter(|job| !std::ptr::eq(&***job, self)) {
            let Some(of) = &job.name else { continue };
            match others.iter_mut().find(|(_, name)| name == of) {
                Some((held, _)) => held.add(&job.held()),
                None => others.push((job.held(), of.clone())),
            }
        }
        others.retain(|(held, _)| held.total() > 0);
        others.sort_by_key(|(held, _)| std::cmp::Reverse(held.total()));
        let all = others.iter().fold(0, |all, (held, _)| held.total().saturating_add(all));
        if others.is_empty() {
            return (0, "no other job holds any".to_owned());
        }
        let rest = others.split_off(NAMED.min(others.len()));
        let mut named: Vec<String> =
            others.iter().map(|(held, name)| format!("job '{name}' {}", by_owner(held))).collect();
        if !rest.is_empty() {
            let bytes = rest.iter().fold(0, |all, (held, _)| held.total().saturating_add(all));
            named.push(format!("{} other jobs {}", rest.len(), size(bytes)));
        }
        (all, format!("of the rest holds {}", named.join(", ")))
    }
}

impl Drop for JobMemory {
    fn drop(&mut self) {
        self.process.held.fetch_sub(self.held().total(), Ordering::Relaxed);
        self.process.leaving.fetch_sub(self.leaving.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// What one holder has in the account of its job: a cache, a buffer, rows on their way. It is given back when this is dropped.
#[derive(Debug)]
pub struct Account {
    job: Arc<JobMemory>,
    owner: Owner,
    bytes: AtomicU64,
}

impl Account {
    /// Of a holder that has nothing yet.
    pub fn new(job: &Arc<JobMemory>, owner: Owner) -> Self {
        Self { job: job.clone(), owner, bytes: AtomicU64::new(0) }
    }

    /// Of one that has so many bytes; an error as for [`Account::hold`].
    pub fn holding(job: &Arc<JobMemory>, owner: Owner, bytes: usize) -> Result<Self> {
        let account = Self::new(job, owner);
        account.hold(bytes)?;
        Ok(account)
    }

    /// It has so many bytes now, which are there already; to be called once per batch, not per row. An error: it has
    /// grown, and that is more than the process may use. It is counted nevertheless; the caller has to fail for it.
    pub fn hold(&self, bytes: usize) -> Result<()> {
        let before = self.bytes.swap(bytes as u64, Ordering::Relaxed);
        if before == bytes as u64 {
            return Ok(());
        }
        self.job.resize(self.owner, before, bytes as u64).inspect_err(|_| self.job.ends())
    }

    /// The same of what is bounded elsewhere, and therefore not refused.
    pub fn note(&self, bytes: usize) {
        let before = self.bytes.swap(bytes as u64, Ordering::Relaxed);
        match (bytes as u64).checked_sub(before) {
            Some(more) => self.job.add(self.owner, more),
            None => self.job.give_back(self.owner, before - bytes as u64),
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.job.give_back(self.owner, self.bytes.load(Ordering::Relaxed));
    }
}

/// `12.0 MiB (guests 2.0 MiB, state 10.0 MiB)`.
fn by_owner(held: &Held) -> String {
    let parts = Owner::ALL.iter().filter(|owner| held.of(**owner) > 0);
    let parts: Vec<String> = parts.map(|owner| format!("{owner} {}", size(held.of(*owner)))).collect();
    match parts.is_empty() {
        true => "nothing".to_owned(),
        false => format!("{} ({})", size(held.total()), parts.join(", ")),
    }
}

/// In the unit in which people say it.
fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0x4000_0000.. => (1_u64 << 30, "GiB"),
        0x10_0000.. => (1 << 20, "MiB"),
        0x400.. => (1 << 10, "KiB"),
        _ => return format!("{bytes} B"),
    };
    match bytes.is_multiple_of(unit) {
        true => format!("{} {name}", bytes / unit),
        false => format!("{:.1} {name}", bytes as f64 / unit as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_the_sum_of_the_jobs_and_falls_to_nothing() {
        let process = ProcessMemory::new(Some(100));
        let (a, b) = (process.job("a"), process.job("b"));
        a.take(Owner::Guests, 40).unwrap();
        a.resize(Owner::State, 0, 20).unwrap();
        let queues = Account::new(&b, Owner::Exchange);
        queues.note(30);
        assert_eq!(process.held().total(), 90);
        assert_eq!((process.held().of(Owner::State), a.held().total()), (20, 60));
        queues.note(5);
        a.resize(Owner::State, 20, 10).unwrap();
        assert_eq!(process.held().total(), 55);
        a.give_back(Owner::Guests, 40);
        drop((queues, b));
        assert_eq!(process.held().total(), 10);
        drop(a);
        assert_eq!((process.held(), process.held.load(Ordering::Relaxed)), (Held::default(), 0));
    }

    #[test]
    fn who_takes_too_much_is_refused_and_takes_nothing() {
        let process = ProcessMemory::new(Some(64 << 20));
        let (a, b) = (process.job("a"), process.job("b"));
        b.resize(Owner::State, 0, 40 << 20).unwrap();
        b.take(Owner::Guests, 2 << 20).unwrap();
        a.take(Owner::Guests, 16 << 20).unwrap();
        let refused = a.take(Owner::Guests, 8 << 20).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Full, "alone it would fit");
        assert_eq!(
            refused.message(),
            "the process may use 64 MiB of memory, which is not enough: job 'a' asks for 8 MiB more for its guests and \
             holds 16 MiB (guests 16 MiB); of the rest holds job 'b' 42 MiB (guests 2 MiB, state 40 MiB)"
        );
        assert_eq!(process.held().total(), 58 << 20, "what was refused is not counted");
        a.take(Owner::Guests, 6 << 20).unwrap();
        assert_eq!(a.take(Owner::Guests, u64::MAX).unwrap_err().kind(), ErrorKind::Limit, "nowhere would it fit");
    }

    #[test]
    fn what_a_holder_has_goes_with_it_and_beyond_the_room_it_is_refused() {
        let process = ProcessMemory::new(Some(100));
        let (a, b) = (process.job("a"), process.job("b"));
        let cache = Account::holding(&a, Owner::State, 60).unwrap();
        cache.hold(20).unwrap();
        let buffer = Account::holding(&b, Owner::Connectors, 80).unwrap();
        assert_eq!((a.held().of(Owner::State), b.held().of(Owner::Connectors)), (20, 80));
        let refused = cache.hold(21).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Full);
        assert!(refused.to_string().contains("job 'a' holds 21 B (state 21 B); of the rest holds job 'b' 80 B"));
        buffer.hold(90).expect("the other one has said that it ends");
        drop((cache, buffer));
        assert_eq!((process.held(), process.held.load(Ordering::Relaxed)), (Held::default(), 0));
    }

    #[test]
    fn compiled_components_are_of_no_job_and_unused_ones_make_room() {
        let process = ProcessMemory::new(Some(100));
        let job = process.job("a");
        let used = process.component(30).unwrap();
        let unused = Mutex::new(Some(process.component(40).unwrap()));
        assert_eq!((process.held().of(Owner::Code), job.held().total()), (70, 0));
        process.on_shortage(move || drop(unused.lock().unwrap().take()));
        job.take(Owner::Guests, 50).unwrap();
        assert_eq!(process.held().of(Owner::Code), 30, "what nobody uses went");
        let refused = job.resize(Owner::State, 0, 25).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Limit, "it needs its own code wherever it is");
        assert!(refused.message().ends_with("no other job holds any; compiled components hold 30 B"), "{refused}");
        // A component that does not fit beside a job.
        job.resize(Owner::State, 25, 0).unwrap();
        let refused = process.component(30).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Full);
        let words = "which is not enough: of the rest holds job 'a' 50 B (guests 50 B); compiled components hold 60 B";
        assert!(refused.message().ends_with(words), "{refused}");
        drop((used, job));
        assert_eq!(process.held().total(), 0);
    }

    #[test]
    fn what_is_there_already_is_counted_also_beyond_the_limit() {
        let process = ProcessMemory::new(Some(1_000));
        let a = process.job("a");
        let refused = a.resize(Owner::State, 0, 1_500).unwrap_err().to_string();
        assert!(refused.contains("job 'a' holds 1.5 KiB (state 1.5 KiB); no other job holds any"), "{refused}");
        assert!(refused.contains("rocksdb"), "{refused}");
        assert_eq!(process.held().total(), 1_500);
        a.resize(Owner::State, 1_500, 1_400).unwrap();
        assert_eq!(process.held().total(), 1_400, "who falls is not refused");
    }

    #[test]
    fn nobody_is_refused_for_one_who_ends() {
        let process = ProcessMemory::new(Some(100));
        let (a, b) = (process.job("a"), process.job("b"));
        a.resize(Owner::State, 0, 90).unwrap();
        assert!(a.resize(Owner::State, 90, 120).is_err());
        assert!(b.take(Owner::Guests, 10).is_err(), "nobody said that it ends");
        a.ends();
        a.ends();
        b.take(Owner::Guests, 10).unwrap();
        b.resize(Owner::State, 0, 20).unwrap();
        assert!(a.take(Owner::Guests, 1).is_err() && a.resize(Owner::State, 120, 121).is_err());
        a.give_back(Owner::State, 100);
        assert!(b.take(Owner::Guests, 100).is_err(), "what is given back is not left out twice");
        b.take(Owner::Guests, 60).unwrap();
        drop(a);
        assert!(b.take(Owner::Guests, 11).is_err());
        b.take(Owner::Guests, 10).unwrap();
        drop(b);
        assert_eq!((process.held.load(Ordering::Relaxed), process.leaving.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn many_others_are_summed_up() {
        let process = ProcessMemory::new(Some(100));
        let jobs: Vec<_> = (1..=5).map(|n| (n, process.job(&format!("job{n}")))).collect();
        jobs.iter().for_each(|(n, job)| job.take(Owner::Guests, *n).unwrap());
        let refused = process.job("late").take(Owner::Guests, 100).unwrap_err().to_string();
        assert!(refused.contains("job 'job5' 5 B (guests 5 B), "), "{refused}");
        assert!(refused.contains("2 other jobs 3 B"), "{refused}");
        assert!(!refused.contains("job2"), "{refused}");
    }
}
