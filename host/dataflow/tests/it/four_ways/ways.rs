//! Runs a described job four ways, and compares what is visible at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tempfile::TempDir;
use tidemill_checkpoint::manifest::ManifestKind;
use tidemill_checkpoint::protocol::Settings;
use tidemill_checkpoint::{Begun, Start, Store};
use tidemill_core::connector::{Sink, Source};
use tidemill_core::graph::JobGraph;
use tidemill_core::keys::hash_fixed;
use tidemill_core::plan::NodeKind;
use tidemill_core::state::StateBackend;
use tidemill_dataflow::{Checkpoints, JobSettings, JobSpec, Stepped, Stepper, commit_ended};
use tidemill_state::{MemoryBackend, SnapshotLimits};

use super::code::Code;
use super::world::{self, Act, Input, Sinking, Splits, World};

/// Rows of the output, each with its number.
pub type Output = BTreeMap<String, i64>;

/// One description of a job: its graph, the rows of its sources, and what of its output is always the same.
pub struct Description {
    pub graph: JobGraph,
    pub sources: Vec<(&'static str, Splits)>,
    /// What is compared.
    pub compared: fn(Output) -> Output,
    /// How many (different) rows that has at least; so that a description which tests nothing is noticed.
    pub at_least: usize,
}

/// Of state on disk: less than a job of these needs, so that entries are evicted and read back.
#[cfg(feature = "rocksdb")]
const LITTLE_MEMORY: usize = 256 << 10;

/// How often the ways are run with state on disk, which opens databases and takes its time.
const SEEDS_ON_DISK: u64 = if cfg!(feature = "rocksdb") { 2 } else { 0 };

/// How often each way is run.
fn seeds() -> u64 {
    std::env::var("TIDEMILL_FOUR_WAYS_SEEDS").ok().map_or(15, |seeds| seeds.parse().unwrap())
}

/// Draws numbers.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        hash_fixed(self.0 ^ 0x0005_EED5) % bound
    }
}

/// How a process ends.
#[derive(Clone, Copy, Debug)]
pub enum Death {
    None,
    /// After so many steps.
    After(u64),
    /// At the n-th edge of an act.
    At(Act, u64),
}

impl Death {
    fn draw(dice: &mut Dice) -> Self {
        match dice.below(2) {
            0 => Self::After(dice.below(700)),
            _ => {
                let act = Act::ALL[dice.below(Act::ALL.len() as u64) as usize];
                Self::At(act, 1 + dice.below(if matches!(act, Act::Claim | Act::Mark) { 8 } else { 24 }))
            }
        }
    }
}

/// What became of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Died,
    Ended,
    /// What was in flight can't be restored at that parallelism.
    Refused,
}

/// A job that processes run, one after the other.
pub struct Run<'a> {
    pub description: &'a Description,
    pub world: Arc<World>,
    pub dice: Dice,
    /// Complete checkpoints of all processes.
    pub completed: u64,
    /// What a `begin` starts from.
    pub start: Start,
    /// No checkpoint fails.
    pub calm: bool,
    /// Checkpoints may turn unaligned.
    pub unaligned: bool,
    /// Where state is, if it is on disk: in little memory, so that it is read back.
    pub disk: Option<TempDir>,
    /// Not drawn.
    pub settings: Option<Settings>,
    /// Processes that were begun from a checkpoint with something in flight; of these, at another parallelism.
    pub replayed: [u64; 2],
}

impl<'a> Run<'a> {
    pub fn new(description: &'a Description, seed: u64) -> Self {
        let (world, start) = (Arc::default(), Start::Recover);
        let dice = Dice(hash_fixed(seed));
        Self {
            description,
            world,
            dice,
            completed: 0,
            start,
            calm: false,
            unaligned: false,
            disk: None,
            settings: None,
            replayed: [0; 2],
        }
    }

    pub fn spec(&self, parallelism: u32) -> JobSpec {
        let source = |splits: &Splits| -> Arc<dyn Source> {
            Arc::new(Input { splits: Arc::new(splits.clone()), bounded: true })
        };
        let sink =
            |name: &str| -> Arc<dyn Sink> { Arc::new(Sinking { world: self.world.clone(), name: name.to_owned() }) };
        let bindings = self.description.graph.nodes().iter().filter_map(|node| match &node.kind {
            NodeKind::Sink { binding } => Some(binding),
            _ => None,
        });
        JobSpec {
            name: "job".into(),
            graph: self.description.graph.clone(),
            sources: self.description.sources.iter().map(|(name, s)| ((*name).to_owned(), source(s))).collect(),
            sinks: bindings.map(|binding| (binding.clone(), sink(binding))).collect(),
            dead_letters: Some(sink("letters")),
            user_code: Arc::new(Code),
            state: self.backend(),
            memory: tidemill_core::memory::JobMemory::unlimited(),
            clock: self.world.clock.clone(),
            settings: JobSettings { parallelism, exchange_bytes: 512, ..JobSettings::default() },
        }
    }

    fn backend(&self) -> Arc<dyn StateBackend> {
        // Snapshots are copied while rows are processed, or nearly at once.
        let copied_at_once = [5, 50, 1 << 14][(hash_fixed(self.dice.0) % 3) as usize];
        match &self.disk {
            #[cfg(feature = "rocksdb")]
            Some(folder) => {
                let settings = tidemill_state::RocksSettings::new(LITTLE_MEMORY, folder.path().to_owned());
                let settings = tidemill_state::RocksSettings { copied_at_once, ..settings };
                Arc::new(tidemill_state::RocksBackend::new(settings))
            }
            _ => {
                let snapshots = SnapshotLimits { copied_at_once, ..SnapshotLimits::default() };
                Arc::new(MemoryBackend::new().snapshots(snapshots))
            }
        }
    }

    pub fn store(&self) -> Store {
        let next = std::sync::atomic::AtomicU64::new(self.world.store.paths().len() as u64);
        // Unique over all processes, since each begins with more blobs or after a clock that went on.
        let (clock, salt) = (self.world.clock.clone(), hash_fixed(self.dice.0));
        let nonces = move || {
            let n = next.fetch_add(1, Ordering::SeqCst);
            format!("{:016x}", hash_fixed(salt ^ n ^ (clock.0.load(Ordering::SeqCst) as u64) << 32))
        };
        Store::with(Arc::new(world::Store(self.world.clone())), "job", Arc::new(nonces))
    }

    /// Makes a process that begins; `None`: there is nothing more to run.
    pub fn begin(&mut self, parallelism: u32) -> tidemill_core::Result<Option<Stepper>> {
        let (store, spec) = (self.store(), self.spec(parallelism));
        // Who ran the job would know that it has ended.
        if let Some(newest) = store.checkpoints()?.first()
            && newest.manifest.kind == ManifestKind::Finished
            && newest.committed
        {
            return Ok(None);
        }
        let settings = Settings {
            interval_ms: Some(8 + self.dice.below(40)),
            min_pause_ms: self.dice.below(3),
            timeout_ms: if !self.calm && self.dice.below(3) == 0 { 1 + self.dice.below(20) } else { 100_000 },
            tolerable_failures: u32::MAX,
            aligned_timeout_ms: self.unaligned.then(|| self.dice.below(12)),
        };
        let settings = self.settings.clone().unwrap_or(settings);
        let now = self.world.clock.0.load(Ordering::SeqCst);
        let owner = match store.begin(&self.start, now)? {
            Begun::Run(owner) => owner,
            Begun::Over(savepoint) => unreachable!("{savepoint}"),
            Begun::Commit(checkpoint) => {
                return commit_ended(&spec, &store, &checkpoint).map(|()| None);
            }
        };
        let retained = 1 + self.dice.below(3) as usize;
        let manifest = owner.restored().map(|restored| restored.manifest.clone());
        let checkpoints = Checkpoints { store, owner: *owner, settings, retained };
        let stepper = Stepper::with_checkpoints(spec, self.dice.below(u64::MAX), Some(checkpoints))?;
        if let Some(manifest) = manifest.filter(|manifest| manifest.in_flight_bytes() > 0) {
            let before = manifest.operators.iter().map(|operator| operator.parallelism).max();
            let moved = before != Some(parallelism);
            self.replayed[usize::from(moved)] += 1;
        }
        Ok(Some(stepper))
    }

    /// Runs a process to its end or death.
    pub fn process(&mut self, parallelism: u32, death: Death) -> Fate {
        let dies = if let Death::At(act, edge) = death { Some((act, edge)) } else { None };
        let declines = (self.dice.below(3) == 0).then(|| 1 + self.dice.below(12));
        self.world.revive(dies, declines);
        let mut stepper = match self.begin(parallelism) {
            Ok(Some(stepper)) => stepper,
            Ok(None) => return Fate::Ended,
            Err(_) if self.world.is_dead() => return Fate::Died,
            Err(error) if self.unaligned && error.to_string().contains("was taken unaligned") => return Fate::Refused,
            Err(error) => panic!("{error}"),
        };
        let limit = if let Death::After(steps) = death { steps } else { u64::MAX };
        let fate = self.steps(&mut stepper, limit);
        self.completed += stepper.checkpoints().map_or(0, |figures| figures.completed);
        fate
    }

    /// The parallelism of the newest checkpoint.
    fn taken_at(&self) -> u32 {
        let newest = self.store().checkpoints().unwrap().remove(0);
        newest.manifest.operators.iter().map(|operator| operator.parallelism).max().unwrap()
    }

    /// Steps, while the clock goes on.
    pub fn steps(&mut self, stepper: &mut Stepper, limit: u64) -> Fate {
        let mut left = limit;
        for _ in 0..100_000 {
            let steps = (1 + self.dice.below(40)).min(left);
            left -= steps;
            let clock = &self.world.clock.0;
            match stepper.step_some(steps as usize) {
                Ok(Stepped::Idle(_)) if stepper.finished() => return Fate::Ended,
                Ok(Stepped::Idle(Some(at))) => _ = clock.fetch_max(at.0, Ordering::SeqCst),
                Ok(Stepped::Idle(None)) => panic!("it stands still"),
                Ok(Stepped::More) => _ = clock.fetch_add(self.dice.below(4) as i64, Ordering::SeqCst),
                Err(_) if self.world.is_dead() => return Fate::Died,
                Err(error) => panic!("{error}"),
            }
            if left == 0 {
                return Fate::Died;
            }
        }
        panic!("it does not end");
    }

    /// Without checkpoints.
    pub fn plain(mut self, parallelism: u32) -> Output {
        let mut stepper = Stepper::new(self.spec(parallelism), self.dice.below(u64::MAX)).unwrap();
        assert_eq!(self.steps(&mut stepper, u64::MAX), Fate::Ended);
        self.output()
    }

    pub fn output(&self) -> Output {
        (self.description.compared)(self.world.output())
    }
}

/// Prints what is needed to run a failure again.
struct Failing(String);

impl Drop for Failing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("four ways: {}", self.0);
        }
    }
}

pub fn on_failure(what: String) -> impl Drop {
    Failing(what)
}

/// Fails with the rows that are too many or too few.
pub fn assert_same(found: &Output, expected: &Output) {
    let rows: std::collections::BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let count = |of: &Output, row: &String| of.get(row).copied().unwrap_or(0);
    let wrong = rows.into_iter().map(|row| (row, count(found, row), count(expected, row)));
    let wrong: Vec<_> = wrong.filter(|(_, found, expected)| found != expected).collect();
    let lines: Vec<_> = wrong.iter().take(20).map(|(row, f, e)| format!("  {row}: {f} times, not {e}")).collect();
    assert!(wrong.is_empty(), "{} rows differ:\n{}", wrong.len(), lines.join("\n"));
}

/// The four ways.
pub fn check(name: &str, description: &Description) {
    let expected = Run::new(description, 0).plain(1);
    assert!(expected.len() >= description.at_least, "{name} has {} rows", expected.len());
    let only = std::env::var("TIDEMILL_FOUR_WAYS_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let (mut completed, mut replayed) = (0, [0, 0]);
    for seed in 0..seeds() {
        let seed = only.unwrap_or(seed);
        let say = |way: &str| on_failure(format!("{name}, {way}, TIDEMILL_FOUR_WAYS_SEED={seed}"));
        let parallelism = 1 + seed as u32 % 4;
        {
            let _failing = say("plain");
            assert_same(&Run::new(description, seed).plain(parallelism), &expected);
        }
        {
            let _failing = say("with checkpoints");
            let mut run = Run::new(description, seed);
            assert_eq!(run.process(parallelism, Death::None), Fate::Ended);
            assert_same(&run.output(), &expected);
            completed += run.completed;
        }
        {
            let _failing = say("killed and restored");
            killed(Run::new(description, seed), &expected, |_| parallelism);
        }
        {
            let _failing = say("killed and restored at another parallelism");
            killed(Run::new(description, seed + 1_000), &expected, |attempt| {
                [1, 3, 2, 4, 1, 2, 3][(attempt + seed as usize) % 7]
            });
        }
        for (at, way) in ["unaligned", "unaligned and at another parallelism"].into_iter().enumerate() {
            let _failing = say(way);
            let run = Run { unaligned: true, ..Run::new(description, seed + 2_000 + at as u64) };
            let other = [2, 3, 1, 4, 2, 1, 3];
            let replays = killed(run, &expected, |attempt| match at {
                0 => parallelism,
                _ => other[(attempt + seed as usize) % 7],
            });
            replayed = [replayed[0] + replays[0], replayed[1] + replays[1]];
        }
    }
    for seed in 0..SEEDS_ON_DISK {
        let _failing = on_failure(format!("{name}, on disk, seed {seed}"));
        let on_disk = |run| Run { disk: Some(tempfile::tempdir().unwrap()), ..run };
        killed(on_disk(Run::new(description, seed + 3_000)), &expected, |_| 2);
        let other = |attempt| [1, 3, 2, 4][(attempt + seed as usize) % 4];
        killed(on_disk(Run::new(description, seed + 4_000)), &expected, other);
    }
    assert!(completed > seeds(), "{completed} checkpoints in {} runs", seeds());
    eprintln!("{name}: {replayed:?} replays of what was in flight, at the same and at another parallelism");
    assert!(replayed[0] > 0, "{replayed:?} replays");
}

fn killed(mut run: Run<'_>, expected: &Output, parallelism: impl Fn(usize) -> u32) -> [u64; 2] {
    let kills = 1 + run.dice.below(7) as usize;
    let mut history = Vec::new();
    for attempt in 0.. {
        let death = if attempt < kills { Death::draw(&mut run.dice) } else { Death::None };
        let mut at = parallelism(attempt);
        history.push((death, at));
        let _failing = on_failure(format!("deaths and parallelisms: {history:?}"));
        let mut fate = run.process(at, death);
        if fate == Fate::Refused {
            // The mend: the parallelism at which it was taken.
            at = run.taken_at();
            history.push((death, at));
            fate = run.process(at, death);
            assert_ne!(fate, Fate::Refused, "at the parallelism that it was taken with");
        }
        if fate == Fate::Ended {
            break;
        }
    }
    let _failing = on_failure(format!("deaths and parallelisms: {history:?}"));
    assert_same(&run.output(), expected);
    run.replayed
}
