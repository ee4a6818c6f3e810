//! The local database of one operator subtask: a working set, which checkpoints make durable.
//!
//! Nothing is logged. What the slot froze for a snapshot is not written at once but waits in a queue; whoever comes
//! first writes it: the snapshot's writer, off the slot, or the slot when it has to make entries absent. Whoever writes
//! a snapshot's changes also takes the native checkpoint (hard links) before anything later is written.
//!
//! Invariant: the database holds exactly what was frozen up to some snapshot or eviction, in the order of freezing.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, ColumnFamilyDescriptor, DB, DBCompactionStyle, DBCompressionType, DEFAULT_COLUMN_FAMILY_NAME,
    DataBlockIndexType, IngestExternalFileOptions, Options, ReadOptions, SstFileWriter, UniversalCompactOptions,
    WriteBatch,
};
use tidemill_core::scratch::Folder;
use tidemill_core::{Error, ErrorKind, Result};

use super::Shared;
use super::changes::{Changes, each_change};
use super::expiry::{Expiry, Filters};

use crate::helpers::in_pieces;
use crate::memory::frozen::{FrozenState, InPieces};

/// From so many changes on, a sorted file that is taken in as it is costs less than passing the write buffer.
const FILE_CHANGES: usize = 2_000;

pub(super) struct Local {
    db: DB,
    /// Where files for the database are written.
    pub(super) options: Options,
    expiry: Arc<Expiry>,
    queue: Mutex<Queue>,
    /// Held while changes are written, by whoever does it. Taken before that of the queue, which is held for moments only,
    /// so that a snapshot never waits for a disk.
    writing: Mutex<()>,
    /// How many frozen snapshots are not in the database yet.
    unapplied: AtomicUsize,
    files: AtomicUsize,
    /// Removed at the end, after the database was closed.
    folder: Folder,
    /// Its folder is in theirs.
    _shared: Arc<Shared>,
}

#[derive(Default)]
struct Queue {
    pending: VecDeque<Arc<Pending>>,
    /// Checkpoints that were taken for snapshots which are not written yet.
    ready: BTreeMap<u64, Folder>,
}

struct Pending {
    number: u64,
    /// Put together by whoever writes it.
    frozen: LazyLock<FrozenState, Box<dyn FnOnce() -> FrozenState + Send>>,
    /// Whether the snapshot will be written.
    wanted: Arc<AtomicBool>,
}

/// Where the database lies in its folder.
pub(super) fn database_in(folder: &Path) -> PathBuf {
    folder.join("db")
}

impl Local {
    /// Opens what is in a folder, or begins anew there.
    pub(super) fn open(folder: Folder, shared: &Arc<Shared>) -> Result<Self> {
        let options = options(shared);
        let path = database_in(folder.path());
        // Reading many keys at once needs the handle, which there is only if it is asked for.
        let expiry = Arc::new(Expiry::default());
        let mut of_all = options.clone();
        of_all.set_compaction_filter_factory(Filters(Arc::clone(&expiry)));
        let all = ColumnFamilyDescriptor::new(DEFAULT_COLUMN_FAMILY_NAME, of_all);
        let db = DB::open_cf_descriptors(&options, &path, [all]).map_err(|e| failed("opening", &path, &e))?;
        let (queue, writing, unapplied, files) = Default::default();
        Ok(Self { db, options, expiry, queue, writing, unapplied, files, folder, _shared: Arc::clone(shared) })
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What compactions leave out.
    pub(super) fn expiry(&self) -> &Expiry {
        &self.expiry
    }

    pub(super) fn db(&self) -> &DB {
        &self.db
    }

    /// Whether there are frozen changes that the database does not have yet.
    pub(super) fn is_behind(&self) -> bool {
        self.unapplied.load(Ordering::Acquire) > 0
    }

    /// Queues what a snapshot froze.
    pub(super) fn queue(&self, number: u64, frozen: InPieces, wanted: Arc<AtomicBool>) {
        let frozen = LazyLock::new(Box::new(move || frozen.join()) as Box<dyn FnOnce() -> FrozenState + Send>);
        self.queue_now().pending.push_back(Arc::new(Pending { number, frozen, wanted }));
        self.unapplied.fetch_add(1, Ordering::AcqRel);
    }

    /// Writes everything that is queued, and then this.
    pub(super) fn apply(&self, frozen: Option<&FrozenState>) -> Result<()> {
        let _writing = self.lock();
        self.catch_up(u64::MAX)?;
        frozen.map_or(Ok(()), |frozen| self.write_frozen(frozen))
    }

    /// The native checkpoint of a queued snapshot, in a folder of its own.
    pub(super) fn checkpoint(&self, number: u64) -> Result<Folder> {
        let _writing = self.lock();
        self.catch_up(number)?;
        self.queue_now()
            .ready
            .remove(&number)
            .ok_or_else(|| Error::internal(format!("snapshot {number} was not frozen")))
    }

    /// A snapshot will not be written.
    pub(super) fn forget(&self, number: u64) {
        let unwanted = self.queue_now().ready.remove(&number);
        drop(unwanted);
    }

    /// Reads the values of sorted keys.
    pub(super) fn get(&self, keys: &[&[u8]], mut each: impl FnMut(usize, Option<&[u8]>) -> Result<()>) -> Result<()> {
        let Some(cf) = self.db.cf_handle(DEFAULT_COLUMN_FAMILY_NAME) else {
            return Err(Error::internal("a database without its column family"));
        };
        let values = in_pieces(keys, |keys| {
            let mut read = ReadOptions::default();
            read.set_verify_checksums(false);
            self.db.batched_multi_get_cf_opt(&cf, keys.iter().copied(), true, &read)
        });
        for (i, value) in values.into_iter().flatten().enumerate() {
            let value = value.map_err(|e| failed("reading", self.folder.path(), &e))?;
            each(i, value.as_deref())?;
        }
        Ok(())
    }

    /// What the database itself holds in memory beyond its cache and write buffers.
    pub(super) fn table_bytes(&self) -> usize {
        let bytes = self.db.property_int_value("rocksdb.estimate-table-readers-mem");
        bytes.ok().flatten().unwrap_or(0) as usize
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue_now(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is queued up to a snapshot. One at a time.
    fn catch_up(&self, number: u64) -> Result<()> {
        loop {
            let next = self.queue_now().pending.front().filter(|pending| pending.number <= number).map(Arc::clone);
            let Some(pending) = next else { return Ok(()) };
            self.write_frozen(&pending.frozen)?;
            let mut ready = None;
            if pending.wanted.load(Ordering::Acquire) {
                let folder = Folder(self.folder.path().join(format!("checkpoint-{}", pending.number)));
                let taken = Checkpoint::new(&self.db).and_then(|point| point.create_checkpoint(folder.path()));
                taken.map_err(|e| failed("taking a checkpoint of", self.folder.path(), &e))?;
                ready = Some(folder);
            }
            let mut queue = self.queue_now();
            queue.pending.pop_front();
            queue.ready.extend(ready.map(|folder| (pending.number, folder)));
            drop(queue);
            self.unapplied.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Writes what was frozen. After an error, all of it may be written again.
    pub(super) fn write_frozen(&self, frozen: &FrozenState) -> Result<()> {
        each_change(frozen, &mut |changes| self.write(changes))
    }

    /// Writes changes: ranges that are dropped first.
    pub(super) fn write(&self, mut changes: Changes) -> Result<()> {
        let wrong = |e| failed("writing to", self.folder.path(), &e);
        let mut batch = WriteBatch::default();
        changes.dropped.iter().for_each(|(from, to)| batch.delete_range(from, to));
        if changes.len() < FILE_CHANGES {
            changes.each(|key, value| {
                match value {
                    Some(value) => batch.put(key, value),
                    None => batch.delete(key),
                }
                Ok(())
            })?;
            return self.db.write_without_wal(batch).map_err(wrong);
        }
        if !batch.is_empty() {
            self.db.write_without_wal(batch).map_err(wrong)?;
        }
        changes.sort();
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.path().join(format!("changes-{number}.sst"));
        let mut file = SstFileWriter::create(&self.options);
        file.open(&path).map_err(wrong)?;
        changes.each(|key, value| {
            match value {
                Some(value) => file.put(key, value),
                None => file.delete(key),
            }
            .map_err(wrong)
        })?;
        file.finish().map_err(wrong)?;
        let mut how = IngestExternalFileOptions::default();
        how.set_move_files(true);
        self.db.ingest_external_file_opts(&how, vec![&path]).map_err(wrong)
    }
}

/// The options of every database; also of those that are opened to read only.
pub(super) fn options(shared: &Shared) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&shared.cache);
    // A key that is not there costs no read.
    blocks.set_bloom_filter(10.0, false);
    blocks.set_block_size(4 << 10);
    // Most reads are of single keys, so a block is for finding one quickly, even if it becomes a quarter larger.
    blocks.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    blocks.set_block_restart_interval(4);
    blocks.set_format_version(5);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_manager(&shared.buffers);
    options.set_write_buffer_size(shared.buffer_bytes);
    // A read that decompresses a block, or copies it, takes twice as long. What the system keeps of the files in memory
    // is its own, and it takes it back when it likes.
    options.set_compression_type(DBCompressionType::None);
    options.set_allow_mmap_reads(true);
    // Entries are written many times over: fewer rewrites are worth the space.
    options.set_compaction_style(DBCompactionStyle::Universal);
    let mut universal = UniversalCompactOptions::default();
    universal.set_max_size_amplification_percent(100);
    options.set_universal_compaction_options(&universal);
    options.set_level_zero_file_num_compaction_trigger(6);
    options.set_max_background_jobs(2);
    options.set_max_open_files(-1);
    options.set_keep_log_file_num(1);
    options.set_max_log_file_size(1 << 20);
    options.set_paranoid_checks(true);
    options.set_use_fsync(false);
    options
}

pub(super) fn failed(doing: &str, path: &Path, error: &rocksdb::Error) -> Error {
    Error::new(ErrorKind::Retry, format!("{doing} keyed state in '{}': {error}", path.display()))
        .mend("See that the disk of that folder works and has room, or give [state] another path.")
}
