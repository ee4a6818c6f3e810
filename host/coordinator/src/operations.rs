//! What takes long and was asked for: a checkpoint, a savepoint, a stop, another number of slots. Each is an *operation*,
//! kept in the storage from before its id is given out until it is too old.
//!
//! Invariant: an operation has one outcome, whoever asks and whichever coordinator answers: it is written once, and shown
//! when it is written. Who goes on with one that a coordinator before began is not decided here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tidemill_core::{Error, Result};
use utoipa::ToSchema;

use crate::lock;
use crate::storage::Storage;

const FOLDER: &str = "operations";
const BEGUN: &str = ".begun";
const END: &str = ".end";
/// So many may be under way: each may hold a thread.
const UNDER_WAY: usize = 64;

/// How much is remembered of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationSettings {
    /// So many that are over, some kilobytes each at most.
    pub kept: usize,
    /// None that began before so long.
    pub age_ms: i64,
}

impl Default for OperationSettings {
    fn default() -> Self {
        Self { kept: 1_000, age_ms: 7 * 24 * 60 * 60 * 1_000 }
    }
}

/// Something that was asked for and takes long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Names it, at `/api/v1/operations/{id}`.
    pub id: String,
    /// What was asked for.
    pub kind: OperationKind,
    /// The job's id.
    pub job: String,
    /// How far it is.
    pub state: OperationState,
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// When it ended, likewise.
    pub ended_ms: Option<i64>,
    /// The number of the checkpoint, if one was asked for.
    pub checkpoint: Option<u64>,
    /// Where the savepoint is, if one was taken.
    pub location: Option<String>,
    /// How many slots the job has, if that was asked for.
    pub parallelism: Option<u32>,
    /// Why it failed, and the mend.
    pub failure: Option<String>,
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum OperationKind {
    /// Take a checkpoint.
    Checkpoint,
    /// Take a savepoint.
    Savepoint,
    /// Stop the job.
    Stop,
    /// Give the job another number of slots.
    Rescale,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum OperationState {
    /// It is under way.
    Running,
    /// It is done.
    Completed,
    /// It was given up.
    Failed,
}

/// What came of an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The number of the checkpoint.
    pub checkpoint: Option<u64>,
    /// Where the savepoint is.
    pub location: Option<String>,
    /// How many slots the job has.
    pub parallelism: Option<u32>,
}

/// What exactly was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Where a savepoint is to be.
    pub savepoint: Option<String>,
    /// How many slots the job is to have.
    pub parallelism: Option<u32>,
}

/// An operation as it is kept when it begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BegunOperation {
    /// It.
    pub operation: Operation,
    /// What it is to do.
    pub wanted: Wanted,
}

/// What is known of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundOperation {
    /// How far it is.
    Known(Operation),
    /// Another coordinator began it after this one had looked for them, and did not end it.
    OfAnother(BegunOperation),
}

/// See the module.
pub struct Operations {
    storage: Arc<Storage>,
    settings: OperationSettings,
    now: Box<dyn Fn() -> i64 + Send + Sync>,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    /// The oldest first.
    entries: BTreeMap<Key, Entry>,
    /// Those that coordinators before this one began and did not end.
    unfinished: Vec<BegunOperation>,
    /// The newest that there ever was: an id is not given out again when it is forgotten, also by a clock that is set back.
    newest: Key,
}

/// When it began, and which of those that began then: as in its id.
type Key = (u64, u64);

enum Entry {
    Known(Operation),
    /// It is over; how was not read yet.
    Stored,
}

impl All {
    fn put(&mut self, key: Key, operation: Operation) {
        self.entries.insert(key, Entry::Known(operation));
        self.newest = self.newest.max(key);
    }
}

impl Operations {
    /// With none known.
    pub(crate) fn new(
        storage: Arc<Storage>,
        settings: OperationSettings,
        now: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        Self { storage, settings, now: Box::new(now), all: Mutex::default() }
    }

    /// Finds those of coordinators before this one; before it has any itself.
    pub(crate) fn load(&self) -> Result<()> {
        let names = self.storage.list(FOLDER)?;
        let of = |suffix: &str| names.iter().filter_map(|name| key_of(name.strip_suffix(suffix)?)).collect::<Vec<_>>();
        let (begun, ended) = (of(BEGUN), of(END));
        let mut all = All::default();
        let mut orphans = Vec::new();
        for key in &ended {
            match begun.contains(key) {
                true => _ = all.entries.insert(*key, Entry::Stored),
                // Of one that was being forgotten.
                false => orphans.push(path(*key, END)),
            }
        }
        for key in begun.into_iter().filter(|key| !ended.contains(key)) {
            match self.storage.read::<BegunOperation>(&path(key, BEGUN)) {
                Ok(Some(begun)) => {
                    _ = all.entries.insert(key, Entry::Known(begun.operation.clone()));
                    all.unfinished.push(begun);
                }
                Ok(None) => {}
                // Who asks for it is told.
                Err(error) => tracing::warn!("an operation that was under way is left as it is: {error}"),
            }
        }
        all.newest = all.entries.keys().next_back().copied().unwrap_or_default();
        *lock(&self.all) = all;
        self.delete(&orphans);
        self.prune();
        Ok(())
    }

    /// Those that coordinators before this one began and did not end. Once: whoever takes them sees to it that they end.
    pub fn take_unfinished(&self) -> Vec<BegunOperation> {
        std::mem::take(&mut lock(&self.all).unfinished)
    }

    /// A new one, which is kept. `None`: too many are under way.
    pub fn begin(&self, kind: OperationKind, job: &str, wanted: Wanted) -> Result<Option<Operation>> {
        self.prune();
        let started_ms = (self.now)();
        loop {
            let mut all = lock(&self.all);
            let is_running = |of: &&Entry| matches!(of, Entry::Known(of) if of.state == OperationState::Running);
            if all.entries.values().filter(is_running).count() >= UNDER_WAY {
                return Ok(None);
            }
            let (newest_ms, number) = all.newest;
            let key = match started_ms.unsigned_abs() {
                ms if ms > newest_ms => (ms, 0),
                _ => (newest_ms, number + 1),
            };
            let (state, job) = (OperationState::Running, job.to_owned());
            let (ended_ms, checkpoint, location, parallelism, failure) = Default::default();
            let id = id_of(key);
            let operation =
                Operation { id, kind, job, state, started_ms, ended_ms, checkpoint, location, parallelism, failure };
            all.put(key, operation.clone());
            drop(all);
            let begun = BegunOperation { operation, wanted: wanted.clone() };
            match self.storage.keep_new(&path(key, BEGUN), &begun) {
                Ok(true) => return Ok(Some(begun.operation)),
                // Another coordinator has one that began at the same time.
                Ok(false) => _ = lock(&self.all).entries.remove(&key),
                Err(error) => {
                    lock(&self.all).entries.remove(&key);
                    return Err(error);
                }
            }
        }
    }

    /// It is over, and that is kept; or was over already, as another coordinator said. An error: it is not kept, so it is not
    /// over yet.
    pub fn end(&self, begun: &Operation, outcome: Result<Done>) -> Result<()> {
        let Some(key) = key_of(&begun.id) else { return Ok(()) };
        let mut ended = Operation { ended_ms: Some((self.now)()), ..begun.clone() };
        match outcome {
            Ok(Done { checkpoint, location, parallelism }) => {
                ended.state = OperationState::Completed;
                (ended.checkpoint, ended.location, ended.parallelism) = (checkpoint, location, parallelism);
            }
            Err(error) => {
                ended.state = OperationState::Failed;
                ended.failure = Some(error.text());
            }
        }
        let entry = if self.storage.keep_new(&path(key, END), &ended)? { Entry::Known(ended) } else { Entry::Stored };
        lock(&self.all).entries.insert(key, entry);
        Ok(())
    }

    /// It was refused after all, and its id was not given out.
    pub fn forget(&self, id: &str) -> Result<()> {
        let Some(key) = key_of(id) else { return Ok(()) };
        lock(&self.all).entries.remove(&key);
        self.storage.delete_all(&[path(key, BEGUN)])
    }

    /// What is known of an id. `None`: no operation has it, or that one is forgotten.
    pub fn find(&self, id: &str) -> Result<Option<FoundOperation>> {
        let Some(key) = key_of(id) else { return Ok(None) };
        if let Some(Entry::Known(operation)) = lock(&self.all).entries.get(&key) {
            return Ok(Some(FoundOperation::Known(operation.clone())));
        }
        if let Some(ended) = self.ended(key)? {
            return Ok(Some(FoundOperation::Known(ended)));
        }
        let begun = self.storage.read::<BegunOperation>(&path(key, BEGUN))?;
        if let Some(begun) = &begun {
            lock(&self.all).put(key, begun.operation.clone());
        }
        Ok(begun.map(FoundOperation::OfAnother))
    }

    /// All that are known, the oldest first; without those that can't be read.
    pub fn list(&self) -> Result<Vec<Operation>> {
        let keys: Vec<Key> = lock(&self.all).entries.keys().copied().collect();
        let mut list = Vec::new();
        for key in keys {
            let known = match lock(&self.all).entries.get(&key) {
                Some(Entry::Known(operation)) => Some(operation.clone()),
                Some(Entry::Stored) => None,
                None => continue,
            };
            match known.map_or_else(|| self.ended(key), |known| Ok(Some(known))) {
                Ok(operation) => list.extend(operation),
                Err(error) if error.kind() == tidemill_core::ErrorKind::Invalid => {
                    tracing::warn!("an operation is not listed: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(list)
    }

    /// How it ended, as it is kept.
    fn ended(&self, key: Key) -> Result<Option<Operation>> {
        let ended = self.storage.read::<Operation>(&path(key, END))?;
        if let Some(ended) = &ended {
            lock(&self.all).put(key, ended.clone());
        }
        Ok(ended)
    }

    /// Forgets the oldest of those that are over, and those that are too old.
    fn prune(&self) {
        let mut all = lock(&self.all);
        let is_over = |of: &Entry| !matches!(of, Entry::Known(of) if of.state == OperationState::Running);
        let over: Vec<Key> = all.entries.iter().filter(|(_, of)| is_over(of)).map(|(key, _)| *key).collect();
        let too_many = over.len().saturating_sub(self.settings.kept);
        let too_old = (self.now)().saturating_sub(self.settings.age_ms).max(0).unsigned_abs();
        let gone: Vec<Key> =
            (0..).zip(over).filter(|(n, (ms, _))| *n < too_many || *ms < too_old).map(|(_, key)| key).collect();
        gone.iter().for_each(|key| _ = all.entries.remove(key));
        drop(all);
        // In this order: what is left where it breaks off in between must not look as if it were under way.
        for suffix in [BEGUN, END] {
            if !self.delete(&gone.iter().map(|key| path(*key, suffix)).collect::<Vec<_>>()) {
                return;
            }
        }
    }

    /// Whether all are gone. What can't be deleted now is found by the next coordinator.
    fn delete(&self, paths: &[String]) -> bool {
        let deleted = self.storage.delete_all(paths);
        deleted
            .inspect_err(|error| tracing::warn!("operations that are forgotten could not be deleted: {error}"))
            .is_ok()
    }
}

/// The failure of what only the coordinator that is gone could bring to its end.
pub fn replaced(kind: OperationKind) -> Error {
    let mend = match kind {
        OperationKind::Savepoint | OperationKind::Stop => {
            "Ask again, at another place: some of it may be there already."
        }
        OperationKind::Checkpoint | OperationKind::Rescale => "Ask again.",
    };
    let what = "the coordinator was replaced before it was finished, and the job goes on without it";
    Error::new(tidemill_core::ErrorKind::Retry, what).mend(mend)
}

fn path(key: Key, suffix: &str) -> String {
    format!("{FOLDER}/{}{suffix}", id_of(key))
}

fn id_of((ms, number): Key) -> String {
    format!("{ms:x}-{number}")
}

/// `None`: that is the id of none.
fn key_of(id: &str) -> Option<Key> {
    let (ms, number) = id.split_once('-')?;
    let key = (u64::from_str_radix(ms, 16).ok()?, number.parse().ok()?);
    (id_of(key) == id).then_some(key)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use tidemill_blobs::Memory;
    use tidemill_core::ErrorKind;

    use super::*;

    const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

    struct Cluster(Arc<Memory>, Arc<AtomicI64>);

    impl Cluster {
        fn new() -> Self {
            Self(Arc::default(), Arc::new(AtomicI64::new(1_000)))
        }

        /// Of the next coordinator.
        fn next(&self, kept: usize) -> Operations {
            let settings = OperationSettings { kept, age_ms: DAY_MS };
            let clock = self.1.clone();
            let storage = Arc::new(Storage::new("/here", self.0.clone()));
            let operations = Operations::new(storage, settings, move || clock.load(Ordering::Relaxed));
            operations.load().unwrap();
            operations
        }

        fn names(&self) -> usize {
            tidemill_blobs::Blobs::list(&*self.0, FOLDER).unwrap().len()
        }
    }

    fn begin(operations: &Operations, job: &str) -> Operation {
        operations.begin(OperationKind::Rescale, job, Wanted::default()).unwrap().unwrap()
    }

    fn known(operations: &Operations, id: &str) -> Option<Operation> {
        operations.find(id).unwrap().map(|found| match found {
            FoundOperation::Known(operation) => operation,
            FoundOperation::OfAnother(begun) => panic!("of another: {begun:?}"),
        })
    }

    #[test]
    fn the_next_coordinator_answers_with_the_outcome_and_hears_what_was_under_way() {
        let cluster = Cluster::new();
        let first = cluster.next(10);
        let (done, failed, under_way) = (begin(&first, "a"), begin(&first, "b"), begin(&first, "c"));
        first.end(&done, Ok(Done { parallelism: Some(4), ..Done::default() })).unwrap();
        first.end(&failed, Err(Error::new(ErrorKind::Retry, "no room").mend("Wait."))).unwrap();
        let before = first.list().unwrap();
        let second = cluster.next(10);
        assert_eq!(known(&second, &done.id).unwrap().parallelism, Some(4));
        assert_eq!(known(&second, &failed.id).unwrap().failure.as_deref(), Some("no room\n  mend: Wait."));
        assert_eq!(known(&second, &under_way.id), Some(under_way.clone()));
        assert_eq!(second.list().unwrap(), before);
        let unfinished = second.take_unfinished();
        assert_eq!((unfinished.len(), &unfinished[0].operation), (1, &under_way));
        assert_eq!(second.take_unfinished(), []);
        assert_ne!(begin(&second, "d").id, under_way.id);
    }

    /// Both answer alike, whoever ends it first.
    #[test]
    fn an_operation_has_one_outcome() {
        let cluster = Cluster::new();
        let first = cluster.next(10);
        let operation = begin(&first, "a");
        let second = cluster.next(10);
        second.end(&operation, Err(replaced(OperationKind::Rescale))).unwrap();
        first.end(&operation, Ok(Done::default())).unwrap();
        let outcome = known(&first, &operation.id).unwrap();
        assert_eq!(outcome.state, OperationState::Failed);
        assert_eq!(known(&second, &operation.id).unwrap(), outcome);
        assert_eq!(first.list().unwrap(), [outcome]);
    }

    #[test]
    fn what_another_one_began_since_is_found() {
        let cluster = Cluster::new();
        let (first, second) = (cluster.next(10), cluster.next(10));
        let (ended, under_way) = (begin(&first, "a"), begin(&first, "a"));
        assert_eq!(under_way.id, "3e8-1");
        first.end(&ended, Ok(Done::default())).unwrap();
        assert_eq!(known(&second, &ended.id).unwrap().state, OperationState::Completed);
        let found = second.find(&under_way.id).unwrap();
        assert!(matches!(found, Some(FoundOperation::OfAnother(of)) if of.operation == under_way));
        assert_eq!(begin(&second, "b").id, "3e8-2");
    }

    #[test]
    fn so_many_are_under_way_and_so_many_are_remembered() {
        let cluster = Cluster::new();
        let operations = cluster.next(100);
        let first = begin(&operations, "a");
        (1..UNDER_WAY).for_each(|_| _ = begin(&operations, "a"));
        assert_eq!(operations.begin(OperationKind::Stop, "a", Wanted::default()).unwrap(), None);
        operations.end(&first, Ok(Done::default())).unwrap();
        for _ in 0..200 {
            let operation = begin(&operations, "b");
            operations.end(&operation, Ok(Done::default())).unwrap();
        }
        let last = begin(&operations, "b");
        assert_eq!(operations.list().unwrap().len(), 100 + UNDER_WAY);
        assert_eq!(known(&operations, &first.id), None);
        assert_eq!(cluster.names(), 200 + UNDER_WAY, "two of each that is over, one of each that is under way");
        cluster.1.fetch_add(2 * DAY_MS, Ordering::Relaxed);
        operations.end(&last, Ok(Done::default())).unwrap();
        begin(&operations, "c");
        assert_eq!(operations.list().unwrap().len(), UNDER_WAY, "none that is under way is forgotten");
        assert_eq!(cluster.next(100).list().unwrap().len(), UNDER_WAY);
    }

    #[test]
    fn what_is_left_of_one_that_was_forgotten_or_refused_is_none() {
        let cluster = Cluster::new();
        let first = cluster.next(10);
        let (operation, refused) = (begin(&first, "a"), begin(&first, "a"));
        first.end(&operation, Ok(Done::default())).unwrap();
        first.forget(&refused.id).unwrap();
        first.storage.delete_all(&[path(key_of(&operation.id).unwrap(), BEGUN)]).unwrap();
        let second = cluster.next(10);
        assert_eq!((known(&second, &operation.id), known(&second, &refused.id)), (None, None));
        assert_eq!((second.take_unfinished().len(), cluster.names()), (0, 0));
        for wrong in ["", "x", "../jobs/a", "3e8", "3e8-", "3E8-0", "3e8-00", "+3e8-0"] {
            assert_eq!(known(&second, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_can_not_be_read_is_said_to_whoever_asks_for_it() {
        let cluster = Cluster::new();
        let storage = Storage::new("/here", cluster.0.clone());
        assert!(storage.keep_new("operations/1-0.begun", &7).unwrap());
        let operations = cluster.next(10);
        assert_eq!(operations.list().unwrap(), []);
        let error = operations.find("1-0").unwrap_err().to_string();
        assert!(error.contains("/here/operations/1-0.begun can't be read"), "{error}");
    }
}
