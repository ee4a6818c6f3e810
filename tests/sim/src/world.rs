//! What all processes of a simulation share: the true time, chance, how likely what goes wrong, what did, and the trace.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemill_core::keys::hash_fixed;
use tidemill_core::time::{Clock, Timestamp};

use crate::dice::Dice;
use crate::sabotage::Sabotage;

/// When a simulation begins: some day, in milliseconds since 1970.
const BEGIN_MS: i64 = 1_700_000_000_000;

/// See the module.
pub struct World {
    now_ms: AtomicI64,
    dice: Mutex<Dice>,
    /// Whether things go wrong (still).
    faults: AtomicBool,
    /// By what the chance is multiplied that a request to the store fails.
    store_faults: AtomicU64,
    injected: Mutex<BTreeMap<&'static str, u64>>,
    trace: Mutex<Trace>,
    rescaled: AtomicU64,
    /// How many of the last events are kept to be shown.
    shown: usize,
    /// The bug that is put back.
    pub sabotage: Option<Sabotage>,
}

/// What happened: a digest of all, and the last of it.
#[derive(Default)]
struct Trace {
    digest: u64,
    events: u64,
    last: VecDeque<String>,
}

impl World {
    /// At its beginning.
    pub fn new(seed: u64, sabotage: Option<Sabotage>, shown: usize) -> Arc<Self> {
        Arc::new(Self {
            now_ms: AtomicI64::new(BEGIN_MS),
            dice: Mutex::new(Dice::new(seed)),
            faults: AtomicBool::new(false),
            store_faults: AtomicU64::new(0),
            injected: Mutex::default(),
            trace: Mutex::default(),
            rescaled: AtomicU64::new(0),
            shown,
            sabotage,
        })
    }

    /// The true time, in milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    /// Since the beginning, in milliseconds.
    pub fn elapsed_ms(&self) -> i64 {
        self.now_ms() - BEGIN_MS
    }

    /// Time passes.
    pub fn advance(&self, to_ms: i64) {
        self.now_ms.fetch_max(to_ms, Ordering::Relaxed);
    }

    /// Chance.
    pub fn dice(&self) -> MutexGuard<'_, Dice> {
        lock(&self.dice)
    }

    /// Things go wrong from now on, or not any more.
    pub fn set_faults(&self, on: bool) {
        self.faults.store(on, Ordering::Relaxed);
    }

    /// How likely it is from now on that a request to the store fails.
    pub fn set_store_faults(&self, times: u64) {
        self.store_faults.store(times, Ordering::Relaxed);
    }

    /// As [`World::goes_wrong`], of a request to the store.
    pub fn store_goes_wrong(&self, kind: &'static str, chance: u64) -> bool {
        self.goes_wrong(kind, chance * self.store_faults.load(Ordering::Relaxed))
    }

    /// Whether something goes wrong now, that does so often of a thousand times. If so, it is counted.
    pub fn goes_wrong(&self, kind: &'static str, chance: u64) -> bool {
        let wrong = self.faults.load(Ordering::Relaxed) && self.dice().permille(chance);
        if wrong {
            self.count(kind);
        }
        wrong
    }

    /// Counts a fault.
    pub fn count(&self, kind: &'static str) {
        *lock(&self.injected).entry(kind).or_default() += 1;
    }

    /// The faults so far, by kind.
    pub fn injected(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.injected).clone()
    }

    /// How often jobs were rescaled.
    pub fn rescaled(&self) -> u64 {
        self.rescaled.load(Ordering::Relaxed)
    }

    /// A job is rescaled.
    pub fn rescales(&self) {
        self.rescaled.fetch_add(1, Ordering::Relaxed);
    }

    /// Something happened.
    pub fn note(&self, what: &str) {
        let mut trace = lock(&self.trace);
        trace.events += 1;
        let line = format!("{:>8} {what}", self.elapsed_ms());
        trace.digest = line.bytes().fold(hash_fixed(trace.digest), |digest, byte| {
            (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        if trace.last.len() >= self.shown {
            trace.last.pop_front();
        }
        trace.last.push_back(line);
    }

    /// A digest of all that happened, and how many events that were.
    pub fn digest(&self) -> (u64, u64) {
        let trace = lock(&self.trace);
        (trace.digest, trace.events)
    }

    /// The last events.
    pub fn last_events(&self) -> Vec<String> {
        lock(&self.trace).last.iter().cloned().collect()
    }
}

/// What a process has of its machine: a clock that may be wrong, and its own life.
pub struct Machine {
    /// What the process is called.
    pub name: String,
    /// The rest of everything.
    pub world: Arc<World>,
    /// What the clock shows more than the true time, in milliseconds.
    ahead_ms: AtomicI64,
    alive: AtomicBool,
    /// How long the step that runs has waited for the outside.
    waited_ms: AtomicI64,
    named: AtomicI64,
}

impl Machine {
    /// Of a new process.
    pub fn new(world: &Arc<World>, name: String, ahead_ms: i64) -> Arc<Self> {
        let (waited_ms, named) = Default::default();
        let (ahead_ms, alive) = (AtomicI64::new(ahead_ms), AtomicBool::new(true));
        Arc::new(Self { name, world: world.clone(), ahead_ms, alive, waited_ms, named })
    }

    /// Whether the process lives. What it does after its end has no effect.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// The process is killed.
    pub fn kill(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    /// Its clock is set forward or back.
    pub fn set_clock(&self, by_ms: i64) {
        self.ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// The true time at which its clock shows this.
    pub fn true_ms(&self, shown: Timestamp) -> i64 {
        shown.0.saturating_sub(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// The step that runs waits so long.
    pub fn wait(&self, ms: i64) {
        self.waited_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// How long the step that runs has waited.
    pub fn waited_ms(&self) -> i64 {
        self.waited_ms.load(Ordering::Relaxed)
    }

    /// The same, and the step is over.
    pub fn take_waited_ms(&self) -> i64 {
        self.waited_ms.swap(0, Ordering::Relaxed)
    }

    /// A name that nobody else has.
    pub fn nonce(&self) -> String {
        format!("{}-{}", self.name, self.named.fetch_add(1, Ordering::Relaxed))
    }
}

/// The clock of a machine.
pub struct MachineClock(pub Arc<Machine>);

impl Clock for MachineClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.world.now_ms() + self.0.ahead_ms.load(Ordering::Relaxed))
    }
}

/// Locks what only this thread uses.
pub fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
