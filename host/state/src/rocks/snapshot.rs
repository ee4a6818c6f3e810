//! Writing snapshots: new files of the native checkpoint, or everything in the portable format.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rocksdb::DB;
use tidemill_core::snapshot::{FileRef, SnapshotFiles, SnapshotKind, StateHandle, StateSnapshot};
use tidemill_core::{Error, Result};

use super::Shared;
use super::inventory::{Inventory, Meta};
use super::local::{Local, failed, options};
use super::read;
use crate::format::{Layout, divided, write_files};
use crate::memory::frozen::About;
use crate::memory::parts::{Parts, Placed};

/// The name of this format in a checkpoint's manifest.
pub(super) const FORMAT: &str = "rocksdb-1";

/// About so much of a database is in memory at once while it is written in the portable format.
pub(super) const PORTABLE_BYTES: u64 = 32 << 20;

/// A portable file is closed when it has so many bytes.
const FILE_BYTES: usize = 32 << 20;

/// What a file has is the same wherever its name is the same: the database never changes one, nor uses a number twice.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<BTreeMap<String, FileRef>>);

impl Uploads {
    /// Files that earlier snapshots have.
    pub(super) fn new(files: BTreeMap<String, FileRef>) -> Self {
        Self(Mutex::new(files))
    }
}

pub(super) struct RocksSnapshot {
    pub(super) about: Arc<About>,
    pub(super) shared: Arc<Shared>,
    pub(super) local: Arc<Local>,
    pub(super) uploads: Arc<Uploads>,
    pub(super) number: u64,
    pub(super) kind: SnapshotKind,
    pub(super) inventory: Inventory,
    /// Unset when it is dropped: then nobody takes a checkpoint for it.
    pub(super) wanted: Arc<AtomicBool>,
}

impl StateSnapshot for RocksSnapshot {
    fn write(self: Box<Self>, files: &dyn SnapshotFiles) -> Result<StateHandle> {
        let checkpoint = self.local.checkpoint(self.number)?;
        match self.kind {
            SnapshotKind::Incremental => self.upload(checkpoint.path(), files),
            SnapshotKind::Portable => self.convert(checkpoint.path(), files),
        }
    }
}

impl Drop for RocksSnapshot {
    fn drop(&mut self) {
        self.wanted.store(false, Ordering::Release);
        self.local.forget(self.number);
    }
}

impl RocksSnapshot {
    fn upload(&self, folder: &Path, files: &dyn SnapshotFiles) -> Result<StateHandle> {
        let mut uploaded = self.uploads.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut refs, mut names, mut kept) = (Vec::new(), Vec::new(), BTreeMap::new());
        for name in names_in(folder)? {
            let path = folder.join(&name);
            let file = match uploaded.get(&name).filter(|_| is_table(&name)) {
                Some(file) => file.clone(),
                None => files.write_file(&name.to_ascii_lowercase(), &path)?,
            };
            if is_table(&name) {
                kept.insert(name.clone(), file.clone());
            }
            refs.push(file);
            names.push(name);
        }
        let meta = files.write("state", Meta::encode(&self.about, &self.inventory, names)?)?;
        refs.insert(0, meta);
        // Only now: if this had failed, what was written would be nobody's, and the next snapshot must not refer to it.
        *uploaded = kept;
        Ok(StateHandle { format: FORMAT.to_owned(), key_groups: self.about.key_groups, files: refs })
    }

    fn convert(&self, folder: &Path, files: &dyn SnapshotFiles) -> Result<StateHandle> {
        let db = DB::open_for_read_only(&options(&self.shared), folder, false);
        let db = db.map_err(|e| failed("reading a checkpoint of", folder, &e))?;
        let shape = Meta::decode("checkpoint", &Meta::encode(&self.about, &self.inventory, Vec::new())?)?.shape;
        let mut refs = Vec::new();
        for range in divided(self.about.key_groups, buckets(&db)) {
            let mut parts = Parts::new(Arc::new(self.about.of(range)?));
            parts.apply(&Placed { file: &shape, growth: 0.0, more: false })?;
            read::read(&db, &self.inventory, self.about.max_parallelism, &mut parts)?;
            let layout = Layout { file_bytes: FILE_BYTES, buckets: 16, savepoint: true };
            write_files(&parts.freeze(), layout, |bytes, _| {
                refs.push(files.write("state", bytes)?);
                Ok(())
            })?;
        }
        Ok(StateHandle { format: StateHandle::PORTABLE.to_owned(), key_groups: self.about.key_groups, files: refs })
    }
}

/// Into how many ranges of key groups a database is divided when it is read as a whole.
pub(super) fn buckets(db: &DB) -> u16 {
    let bytes = db.live_files().map_or(0, |files| files.iter().map(|file| file.size as u64).sum::<u64>());
    // What is compressed on disk is about twice as large in memory.
    (2 * bytes / PORTABLE_BYTES + 1).min(u64::from(u16::MAX)) as u16
}

/// What of a checkpoint's folder makes up the database. Its options are ours to give.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    let listed = |e: std::io::Error| Error::internal(format!("listing '{}': {e}", folder.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(listed)? {
        let name = entry.map_err(listed)?.file_name();
        let name = name.to_str().unwrap_or_default();
        if is_table(name) || name == "CURRENT" || name.starts_with("MANIFEST-") {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn is_table(name: &str) -> bool {
    name.ends_with(".sst")
}
