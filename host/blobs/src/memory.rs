//! Memory, for simulations and tests. Clones share it.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{BlobError, BlobWriter, Blobs, Listed, PutNew};

type Content = BTreeMap<String, Arc<Vec<u8>>>;

/// Blobs that end with the process.
#[derive(Clone, Default)]
pub struct Memory {
    content: Arc<Mutex<Content>>,
}

impl Memory {
    /// Every path, ascending.
    pub fn paths(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Replaces a blob (`None`: deletes it), as damage does.
    pub fn damage(&self, path: &str, content: Option<Vec<u8>>) {
        match content {
            Some(content) => self.lock().insert(path.to_owned(), Arc::new(content)),
            None => self.lock().remove(path),
        };
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // Every change is one insertion or removal, so a panic elsewhere leaves it sound.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blobs for Memory {
    fn location(&self) -> &str {
        "memory"
    }

    fn put_new(&self, path: &str, content: &[u8]) -> Result<PutNew, BlobError> {
        let mut blobs = self.lock();
        if blobs.contains_key(path) {
            return Ok(PutNew::Exists);
        }
        blobs.insert(path.to_owned(), Arc::new(content.to_vec()));
        Ok(PutNew::Done)
    }

    fn create(&self, path: &str) -> Result<Box<dyn BlobWriter>, BlobError> {
        Ok(Box::new(MemoryWriter { blobs: self.clone(), path: path.to_owned(), content: Vec::new() }))
    }

    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send>>, BlobError> {
        let content = self.lock().get(path).cloned();
        Ok(content.map(|content| Box::new(Cursor::new(content.to_vec())) as Box<dyn Read + Send>))
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, BlobError> {
        let prefix = format!("{folder}/");
        let blobs = self.lock();
        let inside = blobs.iter().filter_map(|(path, content)| Some((path.strip_prefix(&prefix)?, content.len())));
        let direct = inside.filter(|(name, _)| !name.contains('/'));
        Ok(direct.map(|(name, bytes)| Listed { name: name.to_owned(), bytes: bytes as u64 }).collect())
    }

    fn delete(&self, path: &str) -> Result<(), BlobError> {
        self.lock().remove(path);
        Ok(())
    }
}

struct MemoryWriter {
    blobs: Memory,
    path: String,
    content: Vec<u8>,
}

impl Write for MemoryWriter {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.content.write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for MemoryWriter {
    fn finish(self: Box<Self>) -> Result<(), BlobError> {
        self.blobs.lock().insert(self.path, Arc::new(self.content));
        Ok(())
    }
}
