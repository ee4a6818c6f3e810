//! The files of checkpoints, with copies beside them on the local disk: backends and rows in flight use them without
//! knowing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemill_core::error::Result;
use tidemill_core::snapshot::{FileRef, SnapshotFiles};

use super::JobCopies;

/// How much was read of the files of checkpoints, and from where.
#[derive(Debug, Default)]
pub struct Reads {
    local_bytes: AtomicU64,
    store_bytes: AtomicU64,
}

impl Reads {
    /// From copies on this machine.
    pub fn local_bytes(&self) -> u64 {
        self.local_bytes.load(Ordering::Relaxed)
    }

    /// From the store.
    pub fn store_bytes(&self) -> u64 {
        self.store_bytes.load(Ordering::Relaxed)
    }
}

/// The files of what an attempt goes on from, read from copies where those are there and sound; and how much of them is
/// read. What comes from the store is copied: it is what the next checkpoints go on from.
pub fn restoring(
    store: Arc<dyn SnapshotFiles>,
    copies: Option<JobCopies>,
    reads: Arc<Reads>,
) -> Arc<dyn SnapshotFiles> {
    Arc::new(LocalFiles { store, copies, reads })
}

pub(crate) struct LocalFiles {
    pub(crate) store: Arc<dyn SnapshotFiles>,
    pub(crate) copies: Option<JobCopies>,
    pub(crate) reads: Arc<Reads>,
}

impl SnapshotFiles for LocalFiles {
    fn write(&self, name: &str, content: Vec<u8>) -> Result<FileRef> {
        let Some(copies) = self.copies.as_ref().filter(|copies| copies.has_room(content.len())) else {
            return self.store.write(name, content);
        };
        let file = self.store.write(name, content.clone())?;
        copies.keep(&file, content);
        Ok(file)
    }

    fn write_file(&self, name: &str, content: &Path) -> Result<FileRef> {
        let file = self.store.write_file(name, content)?;
        self.copies.iter().for_each(|copies| copies.keep_file(&file, content));
        Ok(file)
    }

    fn read(&self, file: &FileRef) -> Result<Vec<u8>> {
        if let Some(content) = self.copies.as_ref().and_then(|copies| copies.read(file)) {
            self.reads.local_bytes.fetch_add(file.bytes, Ordering::Relaxed);
            return Ok(content);
        }
        let content = self.store.read(file)?;
        self.reads.store_bytes.fetch_add(file.bytes, Ordering::Relaxed);
        let copies = self.copies.iter().filter(|copies| copies.has_room(content.len()));
        copies.for_each(|copies| copies.keep(file, content.clone()));
        Ok(content)
    }

    fn read_to(&self, file: &FileRef, to: &Path) -> Result<()> {
        if self.copies.as_ref().is_some_and(|copies| copies.read_to(file, to)) {
            self.reads.local_bytes.fetch_add(file.bytes, Ordering::Relaxed);
            return Ok(());
        }
        self.store.read_to(file, to)?;
        self.reads.store_bytes.fetch_add(file.bytes, Ordering::Relaxed);
        self.copies.iter().for_each(|copies| copies.keep_file(file, to));
        Ok(())
    }
}
