//! Files of snapshots in memory, for tests: of state here, of operators and checkpoints elsewhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tidemill_core::snapshot::{FileRef, SnapshotFiles};
use tidemill_core::{Error, ErrorKind, Result};
use xxhash_rust::xxh3::xxh3_128;

/// Keeps files in a map; fails when told to.
#[derive(Debug, Default)]
pub struct MemoryFiles(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<String, Vec<u8>>,
    written: u64,
    /// So many more writes succeed.
    allowed: Option<u64>,
}

impl MemoryFiles {
    /// Without files.
    pub fn new() -> Self {
        Self::default()
    }

    /// After so many more writes, all fail. `None`: none does.
    pub fn fail_after(&self, writes: Option<u64>) {
        self.lock().allowed = writes;
    }

    /// Changes a file's content, as a broken disk would. The file must be there.
    pub fn damage(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(content) = self.lock().files.get_mut(path) {
            change(content);
        }
    }

    /// Removes all files but these, as garbage collection does.
    pub fn retain(&self, kept: &[FileRef]) {
        self.lock().files.retain(|path, _| kept.iter().any(|file| file.path == *path));
    }

    /// The paths of all files.
    pub fn paths(&self) -> Vec<String> {
        self.lock().files.keys().cloned().collect()
    }

    /// A reference to some content, as if it had been written.
    pub fn reference(path: &str, content: &[u8]) -> FileRef {
        let checksum = format!("{:032x}", xxh3_128(content));
        FileRef { path: path.to_owned(), bytes: content.len() as u64, checksum }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SnapshotFiles for MemoryFiles {
    fn write(&self, name: &str, content: Vec<u8>) -> Result<FileRef> {
        let mut inner = self.lock();
        match &mut inner.allowed {
            Some(0) => return Err(Error::new(ErrorKind::Retry, format!("writing '{name}': told to fail"))),
            Some(allowed) => *allowed -= 1,
            None => {}
        }
        inner.written += 1;
        let path = format!("{:06}-{name}", inner.written);
        let file = Self::reference(&path, &content);
        inner.files.insert(path, content);
        Ok(file)
    }

    fn write_file(&self, name: &str, content: &Path) -> Result<FileRef> {
        let content = std::fs::read(content).map_err(|e| Error::internal(format!("{}: {e}", content.display())))?;
        self.write(name, content)
    }

    fn read(&self, file: &FileRef) -> Result<Vec<u8>> {
        let content = self.lock().files.get(&file.path).cloned();
        let content = content.ok_or_else(|| Error::invalid(format!("the file '{}' is missing", file.path)))?;
        if Self::reference(&file.path, &content) != *file {
            return Err(Error::invalid(format!("the file '{}' is damaged", file.path)));
        }
        Ok(content)
    }

    fn read_to(&self, file: &FileRef, to: &Path) -> Result<()> {
        let content = self.read(file)?;
        std::fs::write(to, content).map_err(|e| Error::internal(format!("{}: {e}", to.display())))
    }
}
