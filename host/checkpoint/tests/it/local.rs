//! Copies on the local disk: read where they are sound, made anew from the store where they are not, bounded, and dropped.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tidemill_checkpoint::blobs::{Blobs as _, Memory};
use tidemill_checkpoint::{Copier, JobCopies, LocalCopies, Owner, Reads, Store, restoring};
use tidemill_core::ids::Epoch;
use tidemill_core::snapshot::{FileRef, SnapshotFiles};

use crate::support::*;

const TASK: (u32, u32) = (1, 0);

/// The copies of a process, and a job in a store.
struct Local {
    folder: TempDir,
    all: Arc<LocalCopies>,
    copier: Copier,
    blobs: Memory,
    store: Store,
    owner: Owner,
}

impl Local {
    fn new(limit_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (all, copier) = LocalCopies::open(folder.path(), limit_bytes).unwrap();
        let (blobs, store) = in_memory();
        let owner = begin(&store);
        Self { folder, all, copier, blobs, store, owner }
    }

    fn begin(&self) -> JobCopies {
        self.all.begin("job", None).unwrap()
    }

    /// Writes the state of a task for a checkpoint: a new file of so many bytes, and these of before.
    fn writes(&self, copies: &JobCopies, epoch: u64, bytes: usize, kept: &[&FileRef]) -> FileRef {
        let writer = self.owner.writer().keeping(Some(copies.clone()));
        let file = writer.files(Epoch(epoch)).write("count-0", vec![epoch as u8; bytes]).unwrap();
        writer.written(TASK, Epoch(epoch), kept.iter().copied().chain([&file]));
        self.copier.settle();
        file
    }

    fn completes(&self, copies: &JobCopies, epoch: u64) {
        self.owner.writer().keeping(Some(copies.clone())).completed(epoch);
        self.copier.settle();
    }

    /// Where what an attempt goes on from is read.
    fn restores(&self, copies: &JobCopies) -> (Arc<dyn SnapshotFiles>, Arc<Reads>) {
        let reads = Arc::new(Reads::default());
        (restoring(self.store.files(), Some(copies.clone()), reads.clone()), reads)
    }

    /// Reads a file: how many bytes of it came from here, and how many from the store.
    fn reads(&self, copies: &JobCopies, file: &FileRef) -> (u64, u64) {
        let (files, reads) = self.restores(copies);
        assert_eq!(files.read(file).unwrap().len() as u64, file.bytes);
        self.copier.settle();
        (reads.local_bytes(), reads.store_bytes())
    }

    /// The files on the disk, by name.
    fn on_disk(&self) -> Vec<PathBuf> {
        let mut found = files_below(self.folder.path());
        found.retain(|path| path.extension().is_none_or(|extension| extension != "lock") && !path.ends_with("lock"));
        found
    }

    fn copy_of(&self, file: &FileRef) -> PathBuf {
        let name = file.path.rsplit_once('/').unwrap().1;
        self.on_disk().into_iter().find(|path| path.ends_with(name)).unwrap()
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn what_was_written_here_is_read_here() {
    let local = Local::new(1_000);
    let copies = local.begin();
    let file = local.writes(&copies, 1, 100, &[]);
    assert_eq!(local.reads(&copies, &file), (100, 0));
    // Also by an attempt that comes later.
    let later = local.all.begin("job", Some(&manifest(&local.owner, 1, vec![file.clone()]))).unwrap();
    assert_eq!(local.reads(&later, &file), (100, 0));
    // Of another job of the same name of file.
    assert_eq!(local.reads(&local.all.begin("other", None).unwrap(), &file), (0, 100));
}

#[test]
fn a_copy_that_is_damaged_or_missing_costs_a_read_from_the_store_and_is_made_again() {
    let local = Local::new(1_000);
    let copies = local.begin();
    let file = local.writes(&copies, 1, 100, &[]);
    let breaks: [fn(&Path); 4] = [
        |path| fs::write(path, [9; 100]).unwrap(),
        |path| fs::write(path, [1; 99]).unwrap(),
        |path| fs::write(path, [1; 101]).unwrap(),
        |path| fs::remove_file(path).unwrap(),
    ];
    for (at, break_it) in breaks.into_iter().enumerate() {
        break_it(&local.copy_of(&file));
        assert_eq!(local.reads(&copies, &file), (0, 100), "{at}");
        assert_eq!(local.reads(&copies, &file), (100, 0), "{at}: it was made again");
        assert_eq!(local.all.bytes(), 100, "{at}");

        break_it(&local.copy_of(&file));
        let (files, reads) = local.restores(&copies);
        let to = local.folder.path().join(format!("to-{at}.lock"));
        files.read_to(&file, &to).unwrap();
        assert_eq!((fs::read(&to).unwrap(), reads.store_bytes()), (vec![1; 100], 100), "{at}");
        assert_eq!(local.reads(&copies, &file), (100, 0), "{at}: it was made again");
    }
    // What is damaged in the store too can't be used.
    fs::remove_file(local.copy_of(&file)).unwrap();
    local.blobs.delete(&file.path).unwrap();
    assert!(local.restores(&copies).0.read(&file).is_err());
}

#[test]
fn copies_are_bounded_and_what_does_not_fit_is_in_the_store() {
    let local = Local::new(250);
    let copies = local.begin();
    let files: Vec<FileRef> = (1..=5).map(|epoch| local.writes(&copies, epoch, 100, &[])).collect();
    assert_eq!((local.all.bytes(), local.on_disk().len()), (200, 2));
    let read: Vec<(u64, u64)> = files.iter().map(|file| local.reads(&copies, file)).collect();
    assert_eq!(read, [(100, 0), (100, 0), (0, 100), (0, 100), (0, 100)]);
    let large = local.writes(&copies, 6, 251, &[]);
    assert_eq!(local.reads(&copies, &large), (0, 251));
    // A job that has moved elsewhere makes room for one that runs here.
    drop(copies);
    let other = local.all.begin("other", None).unwrap();
    let file = local.writes(&other, 7, 100, &[]);
    assert_eq!(local.reads(&other, &file), (100, 0));
    assert_eq!((local.all.bytes(), local.on_disk().len(), local.all.jobs()), (100, 1, vec!["other".to_owned()]));
}

#[test]
fn what_newer_checkpoints_do_not_need_is_dropped_and_everything_of_a_job_that_is_over() {
    let local = Local::new(1_000);
    let copies = local.begin();
    let first = local.writes(&copies, 1, 100, &[]);
    let second = local.writes(&copies, 2, 10, &[&first]);
    local.completes(&copies, 2);
    assert_eq!(local.on_disk().len(), 2, "the second goes on from the first");
    let third = local.writes(&copies, 3, 1, &[&second]);
    local.completes(&copies, 3);
    assert_eq!((local.all.bytes(), local.on_disk().len()), (11, 2));
    assert_eq!(local.reads(&copies, &first), (0, 100));

    // An attempt that goes on from the second: what was written after that is of no use.
    let later = local.all.begin("job", Some(&manifest(&local.owner, 2, vec![second.clone()]))).unwrap();
    local.copier.settle();
    assert_eq!(local.on_disk(), [local.copy_of(&second)]);
    // What the attempt before says is not heard any more.
    local.writes(&copies, 3, 1, &[]);
    local.completes(&copies, 3);
    assert_eq!(local.on_disk(), [local.copy_of(&second)]);
    assert_eq!(local.reads(&later, &third), (0, 1));

    local.all.forget("job");
    local.copier.settle();
    assert_eq!((local.all.bytes(), local.on_disk().len(), local.all.jobs().len()), (0, 0, 0));
    local.writes(&later, 4, 1, &[]);
    assert_eq!(local.on_disk().len(), 0, "it is over");
}

/// As a full disk does.
#[test]
fn a_disk_that_takes_nothing_fails_no_checkpoint() {
    let local = Local::new(1_000);
    let copies = local.begin();
    let there = local.writes(&copies, 1, 100, &[]);
    let folder = local.copy_of(&there).parent().unwrap().to_owned();
    fs::remove_dir_all(&folder).unwrap();
    let file = local.writes(&copies, 2, 100, &[]);
    let source = local.folder.path().join("source.lock");
    fs::write(&source, [7; 50]).unwrap();
    let writer = local.owner.writer().keeping(Some(copies.clone()));
    let other = writer.files(Epoch(2)).write_file("table", &source).unwrap();
    local.copier.settle();
    assert_eq!(local.all.bytes(), 100, "of the two that could not be made, nothing is counted");
    assert_eq!(local.reads(&copies, &file), (0, 100));
    assert_eq!(local.reads(&copies, &other), (0, 50));
    assert_eq!(local.reads(&copies, &there), (0, 100));
    // When there is room again, there are copies again.
    fs::create_dir(&folder).unwrap();
    let file = local.writes(&copies, 3, 100, &[]);
    assert_eq!(local.reads(&copies, &file), (100, 0));
}

#[test]
fn files_of_a_database_are_hard_links() {
    let local = Local::new(1_000);
    let copies = local.begin();
    let (source, to) = (local.folder.path().join("source.lock"), local.folder.path().join("to.lock"));
    fs::write(&source, [7; 50]).unwrap();
    let writer = local.owner.writer().keeping(Some(copies.clone()));
    let file = writer.files(Epoch(1)).write_file("table", &source).unwrap();
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&local.copy_of(&file)), inode(&source));
    let (files, reads) = local.restores(&copies);
    files.read_to(&file, &to).unwrap();
    assert_eq!((inode(&to), reads.local_bytes(), reads.store_bytes()), (inode(&source), 50, 0));
    // What stands there already is not touched.
    fs::write(local.folder.path().join("mine.lock"), "mine").unwrap();
    assert!(files.read_to(&file, &local.folder.path().join("mine.lock")).is_err());
    assert_eq!(fs::read(local.folder.path().join("mine.lock")).unwrap(), b"mine");
    assert_eq!(local.reads(&copies, &file), (50, 0));
}
