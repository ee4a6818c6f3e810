//! Manifests, and places that fail when told to.

use std::sync::Arc;

use tidemill_checkpoint::blobs::{Blobs, Memory};
use tidemill_checkpoint::manifest::*;
use tidemill_checkpoint::{Begun, Claim, Owner, Start, Store};
use tidemill_core::ids::Epoch;
use tidemill_core::snapshot::{FileRef, KeyGroupRange, StateHandle};

pub const JOB: &str = "hot items";

/// A manifest with these files, and with something to commit.
pub fn manifest(owner: &Owner, epoch: u64, files: Vec<FileRef>) -> Manifest {
    let state = StateHandle {
        format: StateHandle::PORTABLE.to_owned(),
        key_groups: KeyGroupRange { first: 0, last: 127 },
        files,
    };
    let subtask = SubtaskState {
        index: 0,
        watermark: 17,
        state: Some(state),
        broadcast: Vec::new(),
        lists: Vec::new(),
        splits: Vec::new(),
        sink: None,
        in_flight: None,
    };
    let operator = OperatorState {
        uid: "count".to_owned(),
        name: "count".to_owned(),
        parallelism: 1,
        given: Vec::new(),
        enumerator: None,
        subtasks: vec![subtask],
    };
    Manifest {
        version: MANIFEST_VERSION,
        job: JOB.to_owned(),
        kind: ManifestKind::Checkpoint,
        epoch,
        generation: owner.generation(),
        created_ms: 1,
        max_parallelism: 128,
        operators: vec![operator],
        committables: vec![TargetCommittables { sink: Some("out".to_owned()), committables: vec![Bytes(vec![1, 2])] }],
    }
}

/// Writes a file for an epoch.
pub fn file(owner: &Owner, epoch: u64, content: &str) -> FileRef {
    owner.files(Epoch(epoch)).write("count-0", content.as_bytes().to_vec()).unwrap()
}

/// Takes a whole checkpoint of one new file and those of before.
pub fn checkpoint(owner: &mut Owner, epoch: u64, kept: &[FileRef]) -> (u64, FileRef) {
    let new = file(owner, epoch, &format!("epoch {epoch}"));
    let files = kept.iter().cloned().chain([new.clone()]).collect();
    let number = won(owner.claim(manifest(owner, epoch, files)).unwrap());
    owner.mark_committed(number).unwrap();
    (number, new)
}

pub fn won(claim: Claim) -> u64 {
    match claim {
        Claim::Won(number) => number,
        other => panic!("not won: {other:?}"),
    }
}

pub fn run(begun: Begun) -> Owner {
    match begun {
        Begun::Run(owner) => *owner,
        Begun::Commit(checkpoint) => panic!("only {} is to be committed", checkpoint.number),
        Begun::Over(savepoint) => panic!("it is over with {savepoint}"),
    }
}

pub fn begin(store: &Store) -> Owner {
    run(store.begin(&Start::Recover, 1_000).unwrap())
}

/// Which checkpoint an attempt goes on from.
pub fn from(owner: &Owner) -> Option<u64> {
    owner.restored().map(|restored| match restored.origin {
        tidemill_checkpoint::Origin::Checkpoint(number) => number,
        tidemill_checkpoint::Origin::Savepoint(_) => panic!("from a savepoint"),
    })
}

pub fn in_memory() -> (Memory, Store) {
    let memory = Memory::default();
    let store = store_on(Arc::new(memory.clone()));
    (memory, store)
}

/// With nonces that are the same at each run of the test.
pub fn store_on(blobs: Arc<dyn Blobs>) -> Store {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    Store::with(blobs, JOB, Arc::new(|| format!("{:08x}", NEXT.fetch_add(1, Ordering::Relaxed))))
}
