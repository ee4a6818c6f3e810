//! The files of checkpoints: snapshots of state, written once, checked whenever they are read.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use tidemill_core::error::{Error, Result};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::snapshot::{FileRef, SnapshotFiles};

use crate::blobs::{BlobError, Blobs, at_path, read_failed, write_failed};
use crate::checksum::Running;

/// What is read or written at once.
const PIECE_BYTES: usize = 256 << 10;

/// Memory that is reserved for a file before its bytes are there, since its length is only what a manifest says.
const RESERVED_BYTES: u64 = 64 << 20;

/// Names a new file, by a hint for people.
pub(crate) type FileNames = dyn Fn(&str) -> Result<String> + Send + Sync;

/// Files at a place for bytes.
pub(crate) struct Files {
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) names: Box<FileNames>,
}

impl Files {
    /// Files that are only read; `what` they are, for the message to one who writes.
    pub(crate) fn read_only(blobs: Arc<dyn Blobs>, what: &'static str) -> Self {
        Self { blobs, names: Box::new(move |_| Err(Error::internal(format!("{what} is written to")))) }
    }
}

impl SnapshotFiles for Files {
    fn write(&self, name: &str, content: Vec<u8>) -> Result<FileRef> {
        Ok(write_from(&*self.blobs, (self.names)(name)?, &mut content.as_slice())?)
    }

    fn write_file(&self, name: &str, content: &Path) -> Result<FileRef> {
        let mut file = File::open(content).map_err(|e| local_failed("reading", content, &e))?;
        Ok(write_from(&*self.blobs, (self.names)(name)?, &mut file)?)
    }

    fn read(&self, file: &FileRef) -> Result<Vec<u8>> {
        let mut content = Vec::with_capacity(file.bytes.min(RESERVED_BYTES) as usize);
        read_into(&*self.blobs, file, |piece| {
            content.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(content)
    }

    fn read_to(&self, file: &FileRef, to: &Path) -> Result<()> {
        let failed = |e: io::Error| local_failed("writing", to, &e);
        let mut local = File::create_new(to).map_err(failed)?;
        let read = read_into(&*self.blobs, file, |piece| local.write_all(piece).map_err(failed));
        if read.is_err() {
            let _ = fs::remove_file(to);
        }
        read
    }
}

/// Reads a whole file and says whether it is what it was.
pub(crate) fn verify(blobs: &dyn Blobs, file: &FileRef) -> Result<()> {
    read_into(blobs, file, |_| Ok(()))
}

/// Copies a file from one place to another, checking it.
pub(crate) fn copy(from: &dyn Blobs, file: &FileRef, to: &dyn Blobs, path: String) -> Result<FileRef> {
    let mut writer = to.create(&path)?;
    read_into(from, file, |piece| writer.write_all(piece).map_err(|e| write_failed(to, &path, &e).into()))?;
    writer.finish()?;
    Ok(FileRef { path, ..file.clone() })
}

fn write_from(blobs: &dyn Blobs, path: String, content: &mut dyn Read) -> Result<FileRef, BlobError> {
    let mut writer = blobs.create(&path)?;
    let mut running = Running::default();
    let written = pass(content, |piece| {
        running.update(piece);
        writer.write_all(piece)
    });
    Failpoint::SnapshotUnsynced.reach();
    if let Err(error) = written.map_err(|e| write_failed(blobs, &path, &e)).and_then(|()| writer.finish()) {
        // What is left of it is garbage, and would be found as such; but a full disk is better relieved at once.
        let _ = blobs.delete(&path);
        return Err(error);
    }
    Ok(FileRef { path, bytes: running.bytes(), checksum: running.finish() })
}

fn read_into(blobs: &dyn Blobs, file: &FileRef, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let Some(content) = blobs.open(&file.path)? else { return Err(damaged(blobs, file, "it is not there")) };
    let mut running = Running::default();
    // One byte more than there should be, so that a file that is too long is noticed, but not read to its end.
    let mut content = content.take(file.bytes.saturating_add(1));
    let mut refused = None;
    let passed = pass(&mut content, |piece| {
        running.update(piece);
        take(piece).map_err(|e| {
            refused = Some(e);
            io::Error::other("refused")
        })
    });
    match (refused, passed) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(read_failed(blobs, &file.path, &error).into()),
        (None, Ok(())) if running.bytes() < file.bytes => {
            let bytes = running.bytes();
            Err(damaged(blobs, file, &format!("it is {bytes} bytes long instead of {}", file.bytes)))
        }
        (None, Ok(())) if running.bytes() > file.bytes => {
            Err(damaged(blobs, file, &format!("it is longer than {} bytes", file.bytes)))
        }
        (None, Ok(())) if running.finish() != file.checksum => {
            Err(damaged(blobs, file, "its content is not what was written (the checksum does not fit)"))
        }
        (None, Ok(())) => Ok(()),
    }
}

pub(crate) fn pass(from: &mut dyn Read, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(bytes) => take(piece.get(..bytes).unwrap_or_default())?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn damaged(blobs: &dyn Blobs, file: &FileRef, why: &str) -> Error {
    let path = at_path(blobs.location(), &file.path);
    Error::invalid(format!("the checkpoint file '{path}' can't be used: {why}"))
        .mend("put the file back, or start from an older checkpoint or a savepoint")
}

fn local_failed(doing: &str, path: &Path, error: &io::Error) -> Error {
    Error::invalid(format!("{doing} '{}': {error}", path.display()))
}
