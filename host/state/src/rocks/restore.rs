//! What a state on disk begins with: the files of its own last snapshot as they are, or what of other snapshots is wanted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rocksdb::DB;
use tidemill_core::ids::MaxParallelism;
use tidemill_core::scratch::Folder;
use tidemill_core::snapshot::{RestoredState, StateHandle};
use tidemill_core::{Error, Result};

use super::Shared;
use super::inventory::{Inventory, Meta};
use super::local::{Local, database_in, failed, options};
use super::read;
use super::snapshot::{FORMAT, PORTABLE_BYTES, Uploads, buckets};
use crate::format::{PartKind, PortableFile, divided};
use crate::memory::frozen::{About, FrozenState};
use crate::memory::parts::{Parts, Placed, Wanted};

/// A database and what is in it.
pub(super) struct Opened {
    pub(super) local: Local,
    pub(super) inventory: Inventory,
    pub(super) uploads: Uploads,
}

/// A handle's database, to read from.
struct Source {
    db: DB,
    meta: Meta,
    /// Removed when it was read.
    _folder: Folder,
}

/// A portable file is read again for each range of key groups that it has some of.
struct Portable<'a> {
    handle: &'a StateHandle,
    at: usize,
    key_groups: tidemill_core::snapshot::KeyGroupRange,
    max_parallelism: u16,
}

pub(super) fn restore(
    about: &Arc<About>,
    shared: &Arc<Shared>,
    folder: Folder,
    from: &RestoredState,
) -> Result<Opened> {
    let wanted = Wanted { key_groups: about.key_groups, max_parallelism: about.max_parallelism };
    let overlaps = |handle: &&StateHandle| wanted.overlaps(handle.key_groups, from.max_parallelism.get());
    let handles: Vec<&StateHandle> = from.handles.iter().filter(overlaps).collect();
    if let [one] = handles.as_slice()
        && one.format == FORMAT
        && one.key_groups == about.key_groups
        && from.max_parallelism == about.max_parallelism
    {
        return as_it_is(about, shared, folder, from, one);
    }
    let local = Local::open(folder, shared)?;
    let (mut portable, mut sources, mut ranges) = (Vec::new(), Vec::new(), 1);
    let mut bytes = 0;
    for (i, handle) in handles.into_iter().enumerate() {
        match handle.format.as_str() {
            FORMAT => {
                let folder = Folder(local.folder().join(format!("restored-{i}")));
                let meta = download(about, from, handle, folder.path())?;
                let db = DB::open_for_read_only(&options(shared), folder.path(), false);
                let db = db.map_err(|e| failed("reading restored", folder.path(), &e))?;
                ranges = ranges.max(buckets(&db));
                sources.push(Source { db, meta, _folder: folder });
            }
            StateHandle::PORTABLE => {
                for (at, file) in handle.files.iter().enumerate() {
                    let footer = read_portable(about, from, handle, at)?.footer;
                    bytes += file.bytes;
                    let (key_groups, max_parallelism) = (footer.key_groups, footer.max_parallelism);
                    portable.push(Portable { handle, at, key_groups, max_parallelism });
                }
            }
            other => return Err(unknown(about, other)),
        }
    }
    ranges = ranges.max((2 * bytes / PORTABLE_BYTES + 1).min(u64::from(u16::MAX)) as u16);
    let mut inventory = Inventory::default();
    for range in divided(about.key_groups, ranges) {
        let mut parts = Parts::new(Arc::new(about.of(range)?));
        let wanted = Wanted { key_groups: range, max_parallelism: about.max_parallelism };
        for file in portable.iter().filter(|file| wanted.overlaps(file.key_groups, file.max_parallelism)) {
            let file = read_portable(about, from, file.handle, file.at)?;
            parts.apply(&Placed { file: &file, growth: 0.0, more: false })?;
        }
        for source in &sources {
            parts.apply(&Placed { file: &source.meta.shape, growth: 0.0, more: false })?;
            read::read(&source.db, &source.meta.inventory, from.max_parallelism, &mut parts)?;
        }
        import(&local, &mut inventory, parts.freeze())?;
    }
    Ok(Opened { local, inventory, uploads: Uploads::default() })
}

/// Writes what was read of some key groups.
pub(super) fn import(local: &Local, inventory: &mut Inventory, mut frozen: FrozenState) -> Result<()> {
    for (about, part) in &mut frozen.parts {
        if about.kind != PartKind::Log {
            continue;
        }
        // The pieces of these key groups come after those of others.
        let before = inventory.parts.get(&(about.kind, about.name.clone()));
        for (sequence, (namespace, _)) in part.sequences.iter_mut().zip(&part.put.runs) {
            *sequence += before.and_then(|log| log.namespaces.get(namespace)).map_or(0, |count| count.entries);
        }
    }
    local.write_frozen(&frozen)?;
    inventory.add(&frozen);
    Ok(())
}

fn as_it_is(
    about: &Arc<About>,
    shared: &Arc<Shared>,
    folder: Folder,
    from: &RestoredState,
    handle: &StateHandle,
) -> Result<Opened> {
    let meta = download(about, from, handle, &database_in(folder.path()))?;
    // Refuses another key.
    Parts::new(Arc::clone(about)).apply(&Placed { file: &meta.shape, growth: 0.0, more: false })?;
    let local = Local::open(folder, shared)?;
    let files = meta.names.into_iter().zip(handle.files.iter().skip(1).cloned());
    let uploads = Uploads::new(files.collect::<BTreeMap<_, _>>());
    Ok(Opened { local, inventory: meta.inventory, uploads })
}

fn download(about: &About, from: &RestoredState, handle: &StateHandle, to: &Path) -> Result<Meta> {
    let restoring = |e: Error| e.prefixed(&format!("restoring operator '{}'", about.operator));
    let Some((first, files)) = handle.files.split_first() else {
        return Err(Error::invalid(format!("the snapshot of operator '{}' has no files", about.operator)));
    };
    let meta = Meta::decode(&first.path, &from.files.read(first).map_err(restoring)?)?;
    if meta.names.len() != files.len() || meta.shape.footer.max_parallelism != from.max_parallelism.get() {
        return Err(meta.shape.wrong("does not belong to the files beside it"));
    }
    let making = |e: std::io::Error| Error::internal(format!("making '{}': {e}", to.display()));
    std::fs::create_dir_all(to).map_err(making)?;
    for (name, file) in meta.names.iter().zip(files) {
        from.files.read_to(file, &to.join(name)).map_err(restoring)?;
    }
    Ok(meta)
}

fn read_portable(about: &About, from: &RestoredState, handle: &StateHandle, at: usize) -> Result<PortableFile> {
    let restoring = |e: Error| e.prefixed(&format!("restoring operator '{}'", about.operator));
    let file = handle.files.get(at).ok_or_else(|| Error::internal("a snapshot with fewer files than it had"))?;
    let read = PortableFile::parse(&file.path, from.files.read(file).map_err(restoring)?)?;
    if MaxParallelism::new(read.footer.max_parallelism) != Some(from.max_parallelism) {
        return Err(read.wrong(format!(
            "counts {} key groups instead of {}",
            read.footer.max_parallelism,
            from.max_parallelism.get()
        )));
    }
    Ok(read)
}

fn unknown(about: &About, format: &str) -> Error {
    Error::invalid(format!(
        "the state of operator '{}' is kept in the format '{format}', which state on disk can't read",
        about.operator
    ))
    .mend("Restore with the version and backend that wrote it, or from a savepoint.")
}
