//! Answers that get lost, disks that are full, files that are damaged, and processes that race.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tidemill_checkpoint::blobs::{BlobError, BlobWriter, Blobs, Listed, Memory, PutNew, Trouble};
use tidemill_checkpoint::{Claim, Origin, Start, Store, savepoint};
use tidemill_core::error::ErrorKind;
use tidemill_core::ids::Epoch;

use crate::support::*;

/// Fails as told, as often as told.
#[derive(Clone)]
struct Faulty {
    memory: Memory,
    fault: Fault,
    left: Arc<AtomicU32>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// What is put is there, but nobody says so.
    AnswerLost,
    /// Nothing is put, and nobody says so.
    RequestLost,
    /// Nothing answers from the first lost answer on.
    Gone,
    /// No room.
    Full,
    /// Every put wins.
    Careless,
}

impl Faulty {
    fn new(fault: Fault) -> Self {
        Self { memory: Memory::default(), fault, left: Arc::default() }
    }

    fn arm(&self, times: u32) {
        self.left.store(times, Ordering::SeqCst);
    }

    fn strikes(&self) -> bool {
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    fn error(&self, in_doubt: bool) -> BlobError {
        let trouble = if self.fault == Fault::Full { Trouble::Full } else { Trouble::Unavailable };
        BlobError { trouble, in_doubt, message: "writing 'x': no answer".to_owned() }
    }
}

impl Blobs for Faulty {
    fn location(&self) -> &str {
        "a faulty store"
    }

    fn put_new(&self, path: &str, content: &[u8]) -> Result<PutNew, BlobError> {
        if self.fault == Fault::Careless {
            self.memory.damage(path, Some(content.to_vec()));
            return Ok(PutNew::Done);
        }
        if !self.strikes() {
            return self.memory.put_new(path, content);
        }
        if matches!(self.fault, Fault::AnswerLost | Fault::Gone) {
            let _ = self.memory.put_new(path, content)?;
        }
        Err(self.error(self.fault != Fault::Full))
    }

    fn create(&self, path: &str) -> Result<Box<dyn BlobWriter>, BlobError> {
        if self.fault == Fault::Full && self.strikes() {
            return Err(self.error(false));
        }
        self.memory.create(path)
    }

    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send>>, BlobError> {
        if self.fault == Fault::Gone && self.strikes() {
            return Err(self.error(false));
        }
        self.memory.open(path)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, BlobError> {
        self.memory.list(folder)
    }

    fn delete(&self, path: &str) -> Result<(), BlobError> {
        self.memory.delete(path)
    }
}

#[test]
fn a_claim_whose_answer_or_request_was_lost_is_won_once() {
    for fault in [Fault::AnswerLost, Fault::RequestLost] {
        for lost in 1..=3 {
            let faulty = Faulty::new(fault);
            let store = store_on(Arc::new(faulty.clone()));
            let mut owner = begin(&store);
            faulty.arm(lost);
            let number = won(owner.claim(manifest(&owner, 1, Vec::new())).unwrap());
            assert_eq!(number, 2);
            owner.mark_committed(number).unwrap();
            assert_eq!(checkpoint(&mut owner, 2, &[]).0, 3);
            assert_eq!(store.checkpoints().unwrap().len(), 2);
        }
    }
}

#[test]
fn a_claim_in_doubt_stops_the_attempt_and_the_log_tells_the_next_one() {
    let faulty = Faulty::new(Fault::Gone);
    let store = store_on(Arc::new(faulty.clone()));
    let mut owner = begin(&store);
    faulty.arm(1_000);
    let claim = owner.claim(manifest(&owner, 1, Vec::new())).unwrap();
    assert!(matches!(&claim, Claim::InDoubt(e) if e.kind() == ErrorKind::Retry), "{claim:?}");
    faulty.arm(0);
    assert!(matches!(owner.claim(manifest(&owner, 2, Vec::new())).unwrap(), Claim::InDoubt(_)));
    let next = begin(&store);
    assert_eq!((from(&next), next.uncommitted()), (Some(2), Some(2)));
}

#[test]
fn a_begin_whose_answer_was_lost_is_won() {
    let faulty = Faulty::new(Fault::AnswerLost);
    let store = store_on(Arc::new(faulty.clone()));
    drop(begin(&store));
    // The probe's first put, whose loss it survives, is not what is tested here.
    faulty.arm(0);
    let mut owner = begin(&store);
    assert_eq!(owner.generation(), 2);
    faulty.arm(1);
    assert!(matches!(owner.cancel(5).unwrap(), Claim::Won(3)));
    assert_eq!(from(&begin(&store)), None);
}

#[test]
fn a_full_disk_fails_the_checkpoint_and_not_the_attempt() {
    let faulty = Faulty::new(Fault::Full);
    let store = store_on(Arc::new(faulty.clone()));
    let mut owner = begin(&store);
    faulty.arm(2);
    let error = owner.files(Epoch(1)).write("count", b"x".to_vec()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains("free some space"), "{error}");
    assert_eq!(owner.claim(manifest(&owner, 1, Vec::new())).unwrap_err().kind(), ErrorKind::Limit);
    assert_eq!(checkpoint(&mut owner, 2, &[]).0, 2);
    assert_eq!(from(&begin(&store)), Some(2));
}

#[test]
fn a_store_without_conditional_puts_is_refused() {
    let error = store_on(Arc::new(Faulty::new(Fault::Careless))).begin(&Start::Recover, 0).err().unwrap();
    let text = error.to_string();
    assert!(text.contains(JOB) && text.contains("second writer") && text.contains("mend"), "{text}");
}

#[test]
fn a_new_checkpoint_waits_for_the_commit_of_the_one_before() {
    let (_, store) = in_memory();
    let mut owner = begin(&store);
    let number = won(owner.claim(manifest(&owner, 1, Vec::new())).unwrap());
    assert!(owner.claim(manifest(&owner, 2, Vec::new())).is_err());
    assert_eq!(begin(&store).uncommitted(), Some(number));
}

#[test]
fn damage_names_the_file_and_the_newest_checkpoint_that_is_whole() {
    let (memory, store) = in_memory();
    let mut owner = begin(&store);
    let (old, _) = checkpoint(&mut owner, 1, &[]);
    let (middle, damaged) = checkpoint(&mut owner, 2, &[]);
    let (newest, _) = checkpoint(&mut owner, 3, &[]);
    let content = b"epoch 2".to_vec();
    for (bytes, why) in [
        (Some(content[..4].to_vec()), "4 bytes long instead of 7"),
        (Some([&content[..], b"!"].concat()), "longer than 7"),
        (Some(b"epoch 3".to_vec()), "checksum"),
        (None, "not there"),
    ] {
        memory.damage(&damaged.path, bytes);
        let error = store.verify(middle).unwrap_err().to_string();
        assert!(error.contains(&damaged.path) && error.contains(why), "{error}");
        assert_eq!(store.newest_usable_before(newest).unwrap(), Some(old));
    }
    let path = memory.paths().into_iter().rfind(|p| p.starts_with("log/")).unwrap();
    memory.damage(&path, Some(br#"{"format":"tidemill-log","version":99}"#.to_vec()));
    let error = store.begin(&Start::Recover, 0).err().unwrap().to_string();
    assert!(error.contains(&path) && error.contains("version 99"), "{error}");
    memory.damage(&path, Some(b"{\"format\":\"tidemill-log\",\"vers".to_vec()));
    let error = store.begin(&Start::Recover, 0).err().unwrap().to_string();
    assert!(error.contains(&path) && error.contains(&format!("checkpoint {old}")), "{error}");
    let goes_on = run(store.begin(&Start::At(Origin::Checkpoint(old)), 0).unwrap());
    assert_eq!(from(&goes_on), Some(old));
    assert!(goes_on.generation() > owner.generation());
    // And the next one goes on from there too: what came after it was given up.
    assert_eq!(from(&begin(&store)), Some(old));
}

#[test]
fn racing_attempts_make_one_history() {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().to_str().unwrap();
    let mut won: Vec<u64> = std::thread::scope(|scope| {
        let race = |_| {
            scope.spawn(|| {
                let store = Store::open(location, JOB).unwrap();
                let mut owner = begin(&store);
                let mut won = Vec::new();
                for epoch in 1..=10 {
                    if let Some(number) = owner.uncommitted() {
                        owner.mark_committed(number).unwrap();
                    }
                    match owner.claim(manifest(&owner, epoch, Vec::new())).unwrap() {
                        Claim::Won(number) => won.push(number),
                        Claim::Fenced { .. } => break,
                        Claim::InDoubt(error) => panic!("{error}"),
                    }
                }
                won
            })
        };
        let racers: Vec<_> = (0..4).map(race).collect();
        racers.into_iter().flat_map(|racer| racer.join().unwrap()).collect()
    });
    won.sort_unstable();
    let store = Store::open(location, JOB).unwrap();
    let mut history: Vec<u64> = store.checkpoints().unwrap().iter().map(|checkpoint| checkpoint.number).collect();
    history.reverse();
    assert_eq!(history, won, "every won claim is in the one history, and nothing else");
}

#[test]
fn a_savepoint_can_be_moved_and_started_from() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let store = Store::open(&at("job"), JOB).unwrap();
    let mut owner = begin(&store);
    let (number, _) = checkpoint(&mut owner, 1, &[]);
    savepoint::write(&at("kept"), &store, &store.load(number).unwrap()).unwrap();
    assert!(savepoint::write(&at("kept"), &store, &store.load(number).unwrap()).is_err(), "it would be replaced");
    std::fs::rename(at("kept"), at("moved")).unwrap();
    std::fs::remove_dir_all(at("job")).unwrap();

    let other = Store::open(&at("other"), JOB).unwrap();
    let start = Start::At(Origin::Savepoint(at("moved")));
    let mut owner = run(other.begin(&start, 0).unwrap());
    let restored = owner.restored().unwrap();
    assert!(restored.manifest.committables.is_empty(), "they were committed");
    let files: Vec<_> = restored.manifest.files().cloned().collect();
    assert_eq!(restored.files.read(&files[0]).unwrap(), b"epoch 1");
    // Before the first checkpoint, a restart starts from the savepoint again; files of it are nobody else's.
    assert_eq!(begin(&other).restored().unwrap().origin, Origin::Savepoint(at("moved")));
    assert!(owner.claim(manifest(&owner, 2, files)).is_err());
    assert!(savepoint::read(&at("nowhere")).err().unwrap().to_string().contains("no savepoint"));
}
