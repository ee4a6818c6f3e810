//! One job's life in its store: attempts, claims, fencing, ends.

use std::cell::Cell;
use std::sync::Arc;

use tidemill_checkpoint::blobs::{Blobs as _, S3};
use tidemill_checkpoint::manifest::ManifestKind;
use tidemill_checkpoint::{Begun, Claim, Origin, Start, Store};
use tidemill_core::nonce::random_nonces;

use crate::support::*;

#[test]
fn an_attempt_goes_on_from_the_newest_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), JOB).unwrap();
    let mut first = begin(&store);
    assert_eq!((first.generation(), from(&first)), (1, None));
    let (number, kept) = checkpoint(&mut first, 1, &[]);
    assert_eq!(number, 2);
    let (number, newer) = checkpoint(&mut first, 2, &[kept]);

    let store = Store::open(folder.path().to_str().unwrap(), JOB).unwrap();
    let second = begin(&store);
    assert_eq!((second.generation(), from(&second)), (2, Some(number)));
    let restored = second.restored().unwrap();
    assert!(restored.committed);
    assert_eq!(restored.files.read(&newer).unwrap(), b"epoch 2");
    assert_eq!(restored.manifest.files().count(), 2);
    store.verify(number).unwrap();
}

/// The log's claims, its listing and the files of a checkpoint, on a real object store.
#[test]
fn an_object_store_keeps_checkpoints() {
    let server = tidemill_test_servers::S3Server::start("bucket");
    let open = || {
        let blobs = S3::with_settings("s3://bucket/checkpoints/hot-items", server.environment()).unwrap();
        Store::with(Arc::new(blobs), JOB, random_nonces())
    };
    let store = open();
    let mut first = begin(&store);
    let (_, kept) = checkpoint(&mut first, 1, &[]);
    let (number, newer) = checkpoint(&mut first, 2, std::slice::from_ref(&kept));
    let second = begin(&open());
    assert_eq!((second.generation(), from(&second)), (2, Some(number)));
    assert_eq!(second.restored().unwrap().files.read(&newer).unwrap(), b"epoch 2");
    let claim = first.claim(manifest(&first, 3, Vec::new())).unwrap();
    assert!(matches!(claim, Claim::Fenced { by: Some(2) }), "{claim:?}");

    store.verify(number).unwrap();
    std::fs::write(server.file("bucket", &format!("checkpoints/hot-items/{}", kept.path)), b"epoch x").unwrap();
    let error = store.verify(number).unwrap_err().to_string();
    assert!(error.contains("s3://bucket/checkpoints/hot-items") && error.contains(&kept.path), "{error}");
}

#[test]
fn whoever_began_last_owns_the_job() {
    let (_, store) = in_memory();
    let mut old = begin(&store);
    let (number, _) = checkpoint(&mut old, 1, &[]);
    let mut new = begin(&store);
    let claim = old.claim(manifest(&old, 2, Vec::new())).unwrap();
    assert!(matches!(claim, Claim::Fenced { by: Some(2) }), "{claim:?}");
    // And for good.
    assert!(matches!(old.claim(manifest(&old, 3, Vec::new())).unwrap(), Claim::Fenced { .. }));
    assert_eq!(checkpoint(&mut new, 2, &[]).0, number + 2);
}

#[test]
fn a_job_that_ended_starts_anew_once_its_output_is_committed() {
    let (_, store) = in_memory();
    let mut owner = begin(&store);
    let mut last = manifest(&owner, 1, Vec::new());
    last.kind = ManifestKind::Finished;
    let number = won(owner.claim(last).unwrap());
    for _ in 0..2 {
        match store.begin(&Start::Recover, 0).unwrap() {
            Begun::Commit(checkpoint) => assert_eq!((checkpoint.number, checkpoint.committed), (number, false)),
            Begun::Run(_) | Begun::Over(_) => panic!("it would run again, and its output would be there twice"),
        }
    }
    store.mark_committed(number).unwrap();
    assert_eq!(from(&run(store.begin(&Start::GoOn, 0).unwrap())), Some(number));
    // That attempt took no checkpoint; the next one goes on from the same.
    assert_eq!(from(&begin(&store)), Some(number));
    assert_eq!(from(&run(store.begin(&Start::Anew, 0).unwrap())), None);
}

/// A coordinator that had looked, and then stood still while another one ran the job to its end, began it from nothing.
#[test]
fn what_to_begin_from_follows_from_what_others_did_until_the_newest_entry_was_read() {
    // At the first question nothing was read; at the second, the newest entry was, and another one is faster.
    for ends_at in [1, 2] {
        let (_, store) = in_memory();
        let (asked, ended) = (Cell::new(0), Cell::new(None));
        let start = || {
            asked.set(asked.get() + 1);
            if asked.get() == ends_at {
                let mut other = begin(&store);
                let mut last = manifest(&other, 1, Vec::new());
                last.kind = ManifestKind::Finished;
                let number = won(other.claim(last)?);
                other.mark_committed(number)?;
                ended.set(Some(number));
            }
            Ok(if ended.get().is_some() { Start::GoOn } else { Start::Recover })
        };
        let owner = run(store.begin_as(start, 0).unwrap());
        assert_eq!(from(&owner), ended.get(), "ended at question {ends_at}");
    }
}

/// Going on from the one before would write once more what was committed for the newest.
#[test]
fn a_newest_entry_that_is_gone_is_missed() {
    let (blobs, store) = in_memory();
    let mut owner = begin(&store);
    checkpoint(&mut owner, 1, &[]);
    let (number, _) = checkpoint(&mut owner, 2, &[]);
    blobs.delete(&format!("log/{number:020}.json")).unwrap();
    let Err(error) = store.begin(&Start::Recover, 0) else { panic!("it began") };
    let error = error.to_string();
    assert!(
        error.contains(&format!("log/{number:020}.json' is gone")) && error.contains("put the file back"),
        "{error}"
    );
    assert!(store.begin(&Start::Anew, 0).is_ok(), "who starts anew does not need it");
}

/// What was stopped with a savepoint is over for whoever tries again, and nobody ends so what another one goes on with.
#[test]
fn a_job_that_was_stopped_with_a_savepoint_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), JOB).unwrap();
    let mut owner = begin(&store);
    let (number, _) = checkpoint(&mut owner, 1, &[]);
    assert!(matches!(owner.saved("/kept", 5).unwrap(), Claim::Won(_)));
    assert!(matches!(store.begin(&Start::Again, 0).unwrap(), Begun::Over(savepoint) if savepoint == "/kept"));
    // Who submits it again may go on from where it ended.
    let mut again = run(store.begin(&Start::GoOn, 0).unwrap());
    assert_eq!(again.restored().unwrap().origin, Origin::Checkpoint(number));
    assert_eq!(store.newest_generation().unwrap(), Some(again.generation()));

    let newer = run(store.begin(&Start::Again, 0).unwrap());
    assert!(matches!(again.saved("/other", 5).unwrap(), Claim::Fenced { .. }));
    assert_eq!(newer.restored().unwrap().origin, Origin::Checkpoint(number));
}
