//! Savepoints: checkpoints that belong to the user.
//!
//! A savepoint is a folder (or a prefix in an object store) with a manifest and all files that it names, by paths
//! relative to it: it may be moved and copied as it is. The manifest is written last; without it there is no savepoint.
//! What its sinks prepared is not in it: that was committed before.

use std::sync::Arc;

use tidemill_core::error::{Error, Result};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::snapshot::SnapshotFiles;

use crate::blobs::{self, Blobs, PutNew, read_all};
use crate::files::Files;
use crate::manifest::{MANIFEST_VERSION, Manifest, ManifestKind};
use crate::sealed;
use crate::store::{Checkpoint, Store, copy_files};

const FORMAT: &str = "tidemill-savepoint";

/// The manifest's name.
const MANIFEST: &str = "manifest.json";

/// A savepoint that can be read.
pub struct Savepoint {
    /// What it keeps.
    pub manifest: Manifest,
    /// Where its files are read.
    pub files: Arc<dyn SnapshotFiles>,
}

/// Writes a savepoint: the copy of a checkpoint that is committed and whose state is in the portable format.
pub fn write(location: &str, store: &Store, checkpoint: &Checkpoint) -> Result<()> {
    if !checkpoint.committed {
        return Err(Error::internal(format!(
            "a savepoint of checkpoint {}, which is not committed",
            checkpoint.number
        )));
    }
    Failpoint::SavepointDue.reach();
    let blobs = store.place_of(location)?;
    let exists = || {
        Error::invalid(format!("there is a savepoint in '{location}' already")).mend("name a folder that is not there")
    };
    if blobs.open(MANIFEST)?.is_some() {
        return Err(exists());
    }
    let mut manifest = Manifest { committables: Vec::new(), ..checkpoint.manifest.clone() };
    manifest.kind = ManifestKind::Savepoint;
    copy_files(store, &mut manifest, &*blobs, |file| match file.path.rsplit_once('/') {
        Some((_, name)) => format!("data/{name}"),
        None => format!("data/{}", file.path),
    })?;
    let body = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::internal(e.to_string()))?;
    match blobs.put_new(MANIFEST, &sealed::seal(FORMAT, MANIFEST_VERSION, &body)) {
        Ok(PutNew::Done) => {
            Failpoint::SavepointDone.reach();
            Ok(())
        }
        Ok(PutNew::Exists) => Err(exists()),
        Err(e) => Err(e.into()),
    }
}

/// Reads the savepoint at a location.
pub fn read(location: &str) -> Result<Savepoint> {
    read_at(location, blobs::at(location)?)
}

/// The same, where its place was found.
pub(crate) fn read_at(location: &str, blobs: Arc<dyn Blobs>) -> Result<Savepoint> {
    let Some(content) = read_all(&*blobs, MANIFEST)? else {
        return Err(Error::invalid(format!("there is no savepoint in '{location}': it has no {MANIFEST}"))
            .mend("name the folder of a savepoint"));
    };
    let unreadable = |why: String| {
        Error::invalid(format!("'{}' can't be read: {why}", blobs::at_path(location, MANIFEST)))
            .mend("use another copy of the savepoint, or another savepoint")
    };
    let body = sealed::open(FORMAT, MANIFEST_VERSION, &content).map_err(|e| unreadable(e.to_string()))?;
    let manifest = serde_json::from_slice(body).map_err(|e| unreadable(e.to_string()))?;
    Ok(Savepoint { manifest, files: Arc::new(Files::read_only(blobs, "a savepoint")) })
}
