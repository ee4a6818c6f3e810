//! Compiled components on disk, so that a job compiles once per machine and not once per start.
//!
//! An entry is named by the SHA-256 of the component together with the engine's version, configuration and CPU: a
//! change of any of them is another entry. It is written aside and renamed, so that a reader sees all of it or nothing,
//! and carries a checksum bound to its name. What is read is machine code, so the folder must be one that nobody else
//! can write: others are not used at all. Nothing here fails a job: without a cache it compiles.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_128_with_seed;

const MAGIC: &[u8; 8] = b"TMAOT\0\0\x01";
const HEADER: usize = 8 + 32 + 16;

/// A folder of compiled components.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

/// Names an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// Of a component under an engine, whose `fingerprint` covers version, configuration and CPU.
    pub(crate) fn new(component: &[u8], fingerprint: u64) -> Self {
        let digest = Sha256::new().chain_update(fingerprint.to_le_bytes()).chain_update(component).finalize();
        Self(digest.into())
    }

    fn seed(&self) -> u64 {
        let mut seed = [0; 8];
        seed.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        u64::from_le_bytes(seed)
    }

    fn file_name(&self) -> String {
        let hex: String = self.0.iter().map(|b| format!("{b:02x}")).collect();
        format!("{hex}.cwasm")
    }
}

impl Cache {
    /// Opens a folder, making it if need be. An error says why it can't be used.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        make_private(folder)?;
        refuse_shared(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The artifact of an entry, if there is one and it is whole.
    pub(crate) fn read(&self, key: &Key) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.folder.join(key.file_name())).ok()?;
        let (header, artifact) = bytes.split_at_checked(HEADER)?;
        if header != seal(key, artifact) {
            tracing::warn!(folder = %self.folder.display(), "a damaged entry of the compile cache is ignored");
            return None;
        }
        bytes.drain(..HEADER);
        Some(bytes)
    }

    /// Stores an artifact.
    pub(crate) fn write(&self, key: &Key, artifact: &[u8]) -> io::Result<()> {
        let file = self.folder.join(key.file_name());
        // The process id keeps apart two processes that compile the same component; within one, the last rename wins.
        let aside = self.folder.join(format!("{}.{}.part", key.file_name(), std::process::id()));
        let write = || {
            let mut out = fs::File::create(&aside)?;
            out.write_all(&seal(key, artifact))?;
            out.write_all(artifact)?;
            fs::rename(&aside, &file)
        };
        write().inspect_err(|_| drop(fs::remove_file(&aside)))
    }
}

fn seal(key: &Key, artifact: &[u8]) -> Vec<u8> {
    let checksum = xxh3_128_with_seed(artifact, key.seed());
    [&MAGIC[..], &key.0, &checksum.to_le_bytes()].concat()
}

#[cfg(unix)]
fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(unix)]
fn refuse_shared(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if fs::metadata(folder)?.permissions().mode() & 0o022 != 0 {
        return Err(io::Error::other("others can write to it; it must be writable by its owner only"));
    }
    Ok(())
}

#[cfg(not(unix))]
fn make_private(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)
}

#[cfg(not(unix))]
fn refuse_shared(_folder: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("aot")).unwrap();
        let key = Key::new(b"component", 7);
        assert_eq!(cache.read(&key), None);
        cache.write(&key, b"machine code").unwrap();
        assert_eq!(cache.read(&key).as_deref(), Some(&b"machine code"[..]));
        assert_eq!(cache.read(&Key::new(b"component", 8)), None, "another engine");
        assert_eq!(cache.read(&Key::new(b"Component", 7)), None, "another component");

        let file = cache.folder.join(key.file_name());
        let good = fs::read(&file).unwrap();
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0x10;
            fs::write(&file, &bad).unwrap();
            assert_eq!(cache.read(&key), None, "byte {i} flipped");
            fs::write(&file, &good[..i]).unwrap();
            assert_eq!(cache.read(&key), None, "cut after {i} bytes");
        }
        let other = Key::new(b"other", 7);
        fs::write(cache.folder.join(other.file_name()), &good).unwrap();
        assert_eq!(cache.read(&other), None, "an entry under another entry's name");
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Cache::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("others can write"), "{error}");
    }
}
