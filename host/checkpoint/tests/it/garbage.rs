//! Garbage collection over random histories: attempts, aborted epochs, sleepers that write late, crashes anywhere.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use tidemill_checkpoint::blobs::{BlobError, BlobWriter, Blobs, Listed, Memory, PutNew, Trouble};
use tidemill_checkpoint::garbage::Written;
use tidemill_checkpoint::manifest::ManifestKind;
use tidemill_checkpoint::{Claim, Owner, Start};
use tidemill_core::snapshot::FileRef;

use crate::support::*;

/// A process's view of the store: after so many more writes it is dead.
#[derive(Clone)]
struct Mortal {
    memory: Memory,
    lives: Arc<AtomicU32>,
}

impl Mortal {
    fn write<T>(&self, apply: impl FnOnce() -> Result<T, BlobError>) -> Result<T, BlobError> {
        let lives = self.lives.load(Ordering::SeqCst);
        if lives == 0 {
            return Err(BlobError { trouble: Trouble::Unavailable, in_doubt: true, message: "dead".to_owned() });
        }
        self.lives.store(lives - 1, Ordering::SeqCst);
        apply()
    }

    fn is_dead(&self) -> bool {
        self.lives.load(Ordering::SeqCst) == 0
    }
}

impl Blobs for Mortal {
    fn location(&self) -> &str {
        "memory"
    }

    fn put_new(&self, path: &str, content: &[u8]) -> Result<PutNew, BlobError> {
        self.write(|| self.memory.put_new(path, content))
    }

    fn create(&self, path: &str) -> Result<Box<dyn BlobWriter>, BlobError> {
        self.write(|| self.memory.create(path))
    }

    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send>>, BlobError> {
        if self.is_dead() {
            return self.write(|| Ok(None));
        }
        self.memory.open(path)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, BlobError> {
        self.memory.list(folder)
    }

    fn delete(&self, path: &str) -> Result<(), BlobError> {
        self.write(|| self.memory.delete(path))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    /// Somebody takes an epoch: writes a file, and claims it, or not.
    Epoch {
        by: usize,
        claim: bool,
        keep: u8,
    },
    Collect {
        by: usize,
    },
    /// Somebody will die after so many more writes.
    Doom {
        by: usize,
        writes: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // 0 is the newest attempt; it does most.
    let by = || prop_oneof![4 => Just(0_usize), 1 => 1..4_usize];
    let step = prop_oneof![
        2 => Just(Step::Begin),
        8 => (by(), prop::bool::weighted(0.8), any::<u8>()).prop_map(|(by, claim, keep)| Step::Epoch { by, claim, keep }),
        5 => by().prop_map(|by| Step::Collect { by }),
        1 => (by(), 0..6_u32).prop_map(|(by, writes)| Step::Doom { by, writes }),
    ];
    prop::collection::vec(step, 1..60)
}

/// A process that runs the job, or believes to.
struct Process {
    blobs: Mortal,
    owner: Owner,
    epoch: u64,
    /// What its state consists of now.
    state: Vec<FileRef>,
}

struct Model {
    memory: Memory,
    retained: usize,
    /// Newest last.
    processes: Vec<Process>,
    /// Numbers of complete checkpoints.
    complete: Vec<u64>,
}

impl Model {
    fn begin(&mut self) {
        let blobs = Mortal { memory: self.memory.clone(), lives: Arc::new(AtomicU32::new(u32::MAX)) };
        let store = store_on(Arc::new(blobs.clone()));
        let mut owner = run(store.begin(&Start::Recover, 0).unwrap());
        assert_eq!(from(&owner), self.complete.last().copied(), "goes on from the newest complete checkpoint");
        if let Some(number) = owner.uncommitted() {
            owner.mark_committed(number).unwrap();
        }
        let restored = owner.restored();
        let state = restored.map(|r| r.manifest.files().cloned().collect()).unwrap_or_default();
        let epoch = restored.map_or(0, |r| r.manifest.epoch);
        self.processes.push(Process { blobs, owner, epoch, state });
    }

    fn step(&mut self, step: &Step) {
        let (Step::Epoch { by, .. } | Step::Collect { by } | Step::Doom { by, .. }) = step else { return self.begin() };
        let Some(index) = self.processes.len().checked_sub(1 + *by) else { return };
        let newest = *by == 0;
        let process = &mut self.processes[index];
        match step {
            Step::Begin => {}
            Step::Doom { writes, .. } if !process.blobs.is_dead() => {
                process.blobs.lives.store(*writes, Ordering::SeqCst)
            }
            Step::Doom { .. } => {}
            Step::Collect { .. } => {
                let collected = process.owner.collect_garbage(self.retained);
                // One that died before is not allowed to, and deletes nothing.
                if collected.is_ok() && newest && !process.blobs.is_dead() && process.owner.uncommitted().is_none() {
                    self.nothing_useless();
                }
            }
            Step::Epoch { claim, keep, .. } => {
                process.epoch += 1;
                let written = process.owner.files(tidemill_core::ids::Epoch(process.epoch)).write("s", vec![*keep; 9]);
                let Ok(file) = written else { return };
                // Some files are replaced by others for good, as by a compaction.
                let mut bits = (0..8).cycle().map(|bit| keep >> bit & 1 == 1);
                process.state.retain(|_| bits.next().unwrap());
                process.state.push(file);
                if *claim {
                    self.claim(index, newest);
                }
            }
        }
    }

    fn claim(&mut self, index: usize, newest: bool) {
        let process = &mut self.processes[index];
        if process.owner.uncommitted().is_some() {
            return;
        }
        let entries = |memory: &Memory| memory.paths().into_iter().rfind(|p| p.starts_with("log/"));
        let before = entries(&self.memory);
        let manifest = manifest(&process.owner, process.epoch, process.state.clone());
        let claim = process.owner.claim(manifest);
        let after = entries(&self.memory);
        if let Ok(Claim::Won(number)) = claim {
            assert!(newest, "a sleeper won");
            let _ = process.owner.mark_committed(number);
        } else if !newest {
            assert_eq!(before, after, "a sleeper that lost has left something in the history");
        }
        if before != after {
            let name = after.unwrap();
            self.complete.push(name["log/".len()..].trim_end_matches(".json").parse().unwrap());
        }
    }

    /// All that is needed is there.
    fn check(&self) {
        let store = store_on(Arc::new(self.memory.clone()));
        let listed = store.checkpoints().unwrap();
        let needed = self.complete.iter().rev().take(self.retained);
        for (i, number) in needed.enumerate() {
            assert_eq!(listed.get(i).map(|c| c.number), Some(*number), "a retained checkpoint is gone");
            store.verify(*number).unwrap();
        }
        let Some(process) = self.processes.last() else { return };
        for file in &process.state {
            assert!(self.memory.paths().contains(&file.path), "the next checkpoint needs {}", file.path);
        }
    }

    /// After a whole collection, only what is needed is there, and what may be.
    fn nothing_useless(&self) {
        let store = store_on(Arc::new(self.memory.clone()));
        let checkpoints = store.checkpoints().unwrap();
        let Some(newest) = checkpoints.first() else { return };
        let named: BTreeSet<_> =
            checkpoints.iter().take(self.retained).flat_map(|c| c.manifest.files()).map(|f| f.path.as_str()).collect();
        for path in self.memory.paths().iter().filter(|path| path.starts_with("files/")) {
            let late = Written::of_file(&path["files/".len()..]).unwrap() >= Written::from(&newest.manifest);
            assert!(late || named.contains(path.as_str()), "{path} is garbage");
        }
        assert!(checkpoints.len() <= self.retained, "{} checkpoints are left", checkpoints.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_needed_stays_and_what_is_not_goes(retained in 1..4_usize, steps in steps()) {
        let mut model = Model { memory: Memory::default(), retained, processes: Vec::new(), complete: Vec::new() };
        for step in &steps {
            model.step(step);
            model.check();
        }
    }
}

/// The number that a sleeper tries next may have been deleted, and so be free.
#[test]
fn a_sleeper_whose_next_number_was_deleted_is_fenced() {
    let (memory, store) = in_memory();
    let mut sleeper = begin(&store);
    checkpoint(&mut sleeper, 1, &[]);
    let mut owner = begin(&store);
    for epoch in 2..6 {
        checkpoint(&mut owner, epoch, &[]);
    }
    let collected = owner.collect_garbage(1).unwrap();
    assert_eq!((collected.entries, collected.files), (6, 4));
    let before = memory.paths();
    let claim = sleeper.claim(manifest(&sleeper, 2, Vec::new())).unwrap();
    assert!(matches!(claim, Claim::Fenced { .. }), "{claim:?}");
    assert_eq!(memory.paths(), before);
}

/// A savepoint between two checkpoints has files of its own, and the second still refers to those of the first, and to
/// that of a checkpoint which was given up before the savepoint.
#[test]
fn a_savepoint_keeps_what_the_next_checkpoint_refers_to() {
    let store = store_on(Arc::new(Memory::default()));
    let mut owner = begin(&store);
    let (_, first) = checkpoint(&mut owner, 1, &[]);
    let given_up = file(&owner, 2, "given up");
    let own = file(&owner, 3, "portable");
    let mut savepoint = manifest(&owner, 3, vec![own.clone()]);
    savepoint.kind = ManifestKind::Savepoint;
    let number = won(owner.claim(savepoint).unwrap());
    owner.mark_committed(number).unwrap();
    owner.collect_garbage(1).unwrap();
    let kept = [first.clone(), given_up.clone()];
    let (_, last) = checkpoint(&mut owner, 4, &kept);
    owner.collect_garbage(1).unwrap();
    for file in kept.iter().chain([&last]) {
        assert!(store.files().read(file).is_ok(), "{}", file.path);
    }
    assert!(store.files().read(&own).is_err(), "what the savepoint was copied from is garbage");
}
