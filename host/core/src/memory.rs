//! The memory of a process, as an account: who holds how much of it, by job and by owner, and no more than the process may
//! use together.
//!
//! It does not see every allocation. It is told of what grows: at each growth of a sandbox's memory, at each commit of
//! keyed state, and every so often of what stands in queues. So it costs nothing per row, and the process has something
//! beside it (code, threads, what is being written), which `resident bytes` show.
//!
//! Invariant: what the process holds is the sum of what its jobs hold; a job that is gone holds nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::{Error, ErrorKind, Result};

/// How many jobs a refusal names.
const NAMED: usize = 3;

/// What memory is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Linear memories and tables of user code.
    Guests,
    /// Keyed state: what is resident, and the caches of state on disk.
    State,
    /// Rows that stand in queues between slots.
    Exchange,
    /// Sources and sinks. None of them reports anything yet.
    Connectors,
}

impl Owner {
    /// All, in the order of [`Held`].
    pub const ALL: [Self; 4] = [Self::Guests, Self::State, Self::Exchange, Self::Connectors];

    fn index(self) -> usize {
        match self {
            Self::Guests => 0,
            Self::State => 1,
            Self::Exchange => 2,
            Self::Connectors => 3,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guests => "guests",
            Self::State => "state",
            Self::Exchange => "exchange",
            Self::Connectors => "connectors",
        })
    }
}

/// Bytes, by owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held([u64; 4]);

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
}

impl ProcessMemory {
    /// Of a process that may use so much.
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicU64::new(0), leaving: AtomicU64::new(0), jobs: Mutex::default() })
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
        let (held, leaving) = Default::default();
        let job = Arc::new(JobMemory { process: self.clone(), name: name.to_owned(), held, leaving });
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
    name: String,
    held: [AtomicU64; 4],
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
        let room = self.room();
        // In one step: who is refused must not make others be refused meanwhile.
        let fits = |held: u64| held.checked_add(bytes).filter(|held| *held <= room);
        match self.process.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => {
                self.at(owner).fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(_) => Err(self.refusal(owner, bytes)),
        }
    }

    /// Memory that is there already has become `now` bytes, and was `before`. An error: it has grown, and that is more
    /// than the process may use; it is counted nevertheless.
    pub fn resize(&self, owner: Owner, before: u64, now: u64) -> Result<()> {
        if now <= before {
            self.give_back(owner, before - now);
            return Ok(());
        }
        let more = now - before;
        self.at(owner).fetch_add(more, Ordering::Relaxed);
        let held = self.process.held.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        if held > self.room() { Err(self.refusal(owner, 0)) } else { Ok(()) }
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

    /// What is held for an owner is now so much, whatever it was: of owners that are looked at every so often, by one
    /// thread. It is bounded elsewhere, so it is not refused.
    pub fn set(&self, owner: Owner, bytes: u64) {
        let before = self.at(owner).swap(bytes, Ordering::Relaxed);
        let held = &self.process.held;
        match bytes.checked_sub(before) {
            Some(more) => _ = held.fetch_add(more, Ordering::Relaxed),
            None => _ = held.fetch_sub(before - bytes, Ordering::Relaxed),
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
        let [guests, state, exchange, connectors] = &self.held;
        Held([guests, state, exchange, connectors].map(|of| of.load(Ordering::Relaxed)))
    }

    fn at(&self, owner: Owner) -> &AtomicU64 {
        let [guests, state, exchange, connectors] = &self.held;
        match owner {
            Owner::Guests => guests,
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
        let message = format!(
            "the process may use {} of memory, which is not enough: job '{}'{grows} holds {}; {}",
            size(limit),
            self.name,
            by_owner(&held),
            self.others()
        );
        let mend = match owner {
            Owner::State => {
                "Keep its state on disk ([state] backend = \"rocksdb\"), give workers more --memory, or spread the job \
                 over more workers."
            }
            _ => "Use less in the operator, give workers more --memory, or spread jobs over more workers.",
        };
        Error::new(ErrorKind::Limit, message).mend(mend)
    }

    /// Who holds the rest.
    fn others(&self) -> String {
        let mut others: Vec<(Held, String)> = Vec::new();
        for job in self.process.open().iter().filter(|job| !std::ptr::eq(&***job, self)) {
            match others.iter_mut().find(|(_, name)| *name == job.name) {
                Some((held, _)) => held.add(&job.held()),
                None => others.push((job.held(), job.name.clone())),
            }
        }
        others.retain(|(held, _)| held.total() > 0);
        others.sort_by_key(|(held, _)| std::cmp::Reverse(held.total()));
        if others.is_empty() {
            return "no other job holds any".to_owned();
        }
        let rest = others.split_off(NAMED.min(others.len()));
        let mut named: Vec<String> =
            others.iter().map(|(held, name)| format!("job '{name}' {}", by_owner(held))).collect();
        if !rest.is_empty() {
            let bytes = rest.iter().fold(0, |all, (held, _)| held.total().saturating_add(all));
            named.push(format!("{} other jobs {}", rest.len(), size(bytes)));
        }
        format!("of the rest holds {}", named.join(", "))
    }
}

impl Drop for JobMemory {
    fn drop(&mut self) {
        self.process.held.fetch_sub(self.held().total(), Ordering::Relaxed);
        self.process.leaving.fetch_sub(self.leaving.load(Ordering::Relaxed), Ordering::Relaxed);
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
        b.set(Owner::Exchange, 30);
        assert_eq!(process.held().total(), 90);
        assert_eq!((process.held().of(Owner::State), a.held().total()), (20, 60));
        b.set(Owner::Exchange, 5);
        a.resize(Owner::State, 20, 10).unwrap();
        assert_eq!(process.held().total(), 55);
        a.give_back(Owner::Guests, 40);
        drop(b);
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
        assert_eq!(refused.kind(), ErrorKind::Limit);
        assert_eq!(
            refused.message(),
            "the process may use 64 MiB of memory, which is not enough: job 'a' asks for 8 MiB more for its guests and \
             holds 16 MiB (guests 16 MiB); of the rest holds job 'b' 42 MiB (guests 2 MiB, state 40 MiB)"
        );
        assert_eq!(process.held().total(), 58 << 20, "what was refused is not counted");
        a.take(Owner::Guests, 6 << 20).unwrap();
        assert!(a.take(Owner::Guests, u64::MAX).is_err());
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
