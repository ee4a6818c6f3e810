//! Where bytes are kept: what the store of checkpoints needs of a file system or an object store, and nothing more.
//! The object store also has uploads that another process may complete, for sinks that write there: [`S3::uploads`].
//!
//! Invariant: what a call reported as written survives the death of the machine, and [`Blobs::put_new`] lets exactly one
//! of all writers of a path win, of whom readers see everything or nothing.
//!
//! Paths are relative to the location, with `/` between folders.

mod local;
mod memory;
mod s3;

use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;

use tidemill_core::error::{Error, ErrorKind, Result};

pub use local::Local;
pub use memory::Memory;
pub use s3::{Completion, PendingUpload, S3, S3Addressing, S3Credentials, S3Settings, Unfinished, Upload, Uploads};

/// A place for bytes. Every call may block, and repeats what failed for a passing reason before it reports it.
pub trait Blobs: Send + Sync {
    /// What people call it: the folder, or the URL.
    fn location(&self) -> &str;

    /// Whether it is surely not on this machine. A folder may be on another one too, which nobody sees from here.
    fn is_remote(&self) -> bool {
        false
    }

    /// Writes a whole blob if there is none at the path.
    fn put_new(&self, path: &str, content: &[u8]) -> Result<PutNew, BlobError>;

    /// Writes a blob piece by piece, at a path that nobody else writes to or reads before it is finished.
    fn create(&self, path: &str) -> Result<Box<dyn BlobWriter>, BlobError>;

    /// Reads a blob from its start. `None`: there is none.
    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send>>, BlobError>;

    /// The blobs of a folder, in no order, without those of folders in it.
    fn list(&self, folder: &str) -> Result<Vec<Listed>, BlobError>;

    /// Deletes a blob. That there is none is no error.
    fn delete(&self, path: &str) -> Result<(), BlobError>;

    /// Deletes blobs of which none is missed before another, where that is faster than one after the other.
    fn delete_all(&self, paths: &[String]) -> Result<(), BlobError> {
        paths.iter().try_for_each(|path| self.delete(path))
    }
}

/// The answer of [`Blobs::put_new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum PutNew {
    /// It was written.
    Done,
    /// There is one already. It may be this very one, if the answer to a repeated request was lost.
    Exists,
}

/// A blob that is being written. Dropped unfinished, nothing is promised about what is left.
pub trait BlobWriter: Write + Send {
    /// Makes it durable and, if it was not, visible.
    fn finish(self: Box<Self>) -> Result<(), BlobError>;
}

/// A blob of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name in the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// What went wrong at a place for bytes.
#[derive(Clone, Debug)]
pub struct BlobError {
    /// What kind of trouble it is.
    pub trouble: Trouble,
    /// Whether the request may have taken effect, or may still.
    pub in_doubt: bool,
    /// What was tried, where, and what was answered.
    pub message: String,
}

/// Kinds of trouble, by what mends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No room, or no more allowed.
    Full,
    /// Not writable at all.
    ReadOnly,
    /// Not for this user.
    Denied,
    /// The location itself is not there: a folder, a bucket.
    NoSuchPlace,
    /// It did not answer, or said that it can't now.
    Unavailable,
    /// It can't do what is needed.
    Unfit,
    /// Anything else.
    Other,
}

impl Trouble {
    fn mend(self) -> &'static str {
        match self {
            Self::Full => "free some space there, or choose another place",
            Self::ReadOnly => "make it writable, or choose another place",
            Self::Denied => "allow this user (these credentials) to read, write, list and delete there",
            Self::NoSuchPlace => "make the folder or bucket, or correct the location",
            Self::Unavailable => "see whether the store is up and can be reached, and try again",
            Self::Unfit => "choose a local folder, or a store with conditional writes",
            Self::Other => "see whether the store is sound, or choose another place",
        }
    }
}

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for BlobError {}

impl From<BlobError> for Error {
    fn from(error: BlobError) -> Self {
        let kind = match error.trouble {
            Trouble::Unavailable => ErrorKind::Retry,
            Trouble::Full => ErrorKind::Limit,
            _ => ErrorKind::Invalid,
        };
        Self::new(kind, error.message).mend(error.trouble.mend())
    }
}

/// Finds the place that a location names.
pub type Places = Arc<dyn Fn(&str) -> Result<Arc<dyn Blobs>> + Send + Sync>;

/// The place that a location names: a folder, or a URL.
pub fn at(location: &str) -> Result<Arc<dyn Blobs>> {
    match location.split_once("://") {
        None => Ok(Arc::new(Local::open(location))),
        Some(("file", path)) => Ok(Arc::new(Local::open(path))),
        Some(("s3" | "s3a", _)) => Ok(Arc::new(S3::open(location)?)),
        Some((scheme, _)) => Err(Error::invalid(format!("'{location}': nothing can be kept in {scheme}://"))
            .mend("name a folder, or s3://BUCKET/PREFIX")),
    }
}

/// Reads a whole blob.
pub fn read_all(blobs: &dyn Blobs, path: &str) -> Result<Option<Vec<u8>>, BlobError> {
    let Some(mut reader) = blobs.open(path)? else { return Ok(None) };
    let mut content = Vec::new();
    reader.read_to_end(&mut content).map_err(|e| read_failed(blobs, path, &e))?;
    Ok(Some(content))
}

/// The error of a reader that [`Blobs::open`] answered.
pub fn read_failed(blobs: &dyn Blobs, path: &str, error: &std::io::Error) -> BlobError {
    io_failed("reading", &at_path(blobs.location(), path), error)
}

/// The error of a writer that [`Blobs::create`] answered.
pub fn write_failed(blobs: &dyn Blobs, path: &str, error: &std::io::Error) -> BlobError {
    io_failed("writing", &at_path(blobs.location(), path), error)
}

/// What people call a path.
pub fn at_path(location: &str, path: &str) -> String {
    format!("{}/{path}", location.trim_end_matches('/'))
}

fn io_failed(doing: &str, whole_path: &str, error: &std::io::Error) -> BlobError {
    use std::io::ErrorKind as Io;
    let trouble = match error.kind() {
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => Trouble::Full,
        Io::ReadOnlyFilesystem => Trouble::ReadOnly,
        Io::PermissionDenied => Trouble::Denied,
        Io::NotFound | Io::NotADirectory => Trouble::NoSuchPlace,
        Io::TimedOut | Io::ConnectionRefused | Io::ConnectionReset | Io::Interrupted => Trouble::Unavailable,
        Io::Unsupported => Trouble::Unfit,
        _ => Trouble::Other,
    };
    BlobError { trouble, in_doubt: false, message: format!("{doing} '{whole_path}': {error}") }
}
