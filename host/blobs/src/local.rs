//! A local folder, or a file system that behaves like one.
//!
//! A blob of [`Blobs::put_new`] is written under a hidden name, synced, and then *linked* to its name, which fails if
//! there is one: atomic, whenever the process is killed. `rename` would replace the other's, and creating the file
//! exclusively would show it half written. Folders are synced after each change, since a name that is not on the disk
//! is a lost blob. Hidden names that a killed process left are swept when the folder is opened.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use tidemill_core::failpoint::Failpoint;
use tidemill_core::nonce::nonce;

use crate::{BlobError, BlobWriter, Blobs, Listed, PutNew, Trouble, io_failed};

/// How often a hidden file is written again after another process swept it away.
const STAGING_ATTEMPTS: u32 = 5;

/// Large enough that the kernel is not asked often, small beside a task's memory.
const BUFFER_BYTES: usize = 256 << 10;

/// A folder of the local file system.
pub struct Local {
    root: PathBuf,
    location: String,
}

impl Local {
    /// A folder, which is made with the first blob.
    pub fn open(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        sweep(&root);
        Self { location: root.display().to_string(), root }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn failed(&self, doing: &str, path: &str) -> impl FnOnce(io::Error) -> BlobError {
        let whole_path = self.path(path).display().to_string();
        let doing = doing.to_owned();
        move |error| io_failed(&doing, &whole_path, &error)
    }

    /// A name that nobody else uses, in the folder of `path`: only within a folder is a link sure to be possible.
    fn staging_path(path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.with_file_name(format!(".{name}.{}.tmp", nonce()))
    }
}

impl Blobs for Local {
    fn location(&self) -> &str {
        &self.location
    }

    fn put_new(&self, path: &str, content: &[u8]) -> Result<PutNew, BlobError> {
        let target = self.path(path);
        let staging = Self::staging_path(&target);
        let mut linked = Ok(());
        for _ in 0..STAGING_ATTEMPTS {
            write_staged(&staging, content).map_err(self.failed("writing", path))?;
            Failpoint::PutStaged.reach();
            linked = fs::hard_link(&staging, &target);
            Failpoint::PutLinked.reach();
            let swept = matches!(&linked, Err(e) if e.kind() == ErrorKind::NotFound) && !target.exists();
            let _ = fs::remove_file(&staging);
            if !swept {
                break;
            }
        }
        match linked {
            Ok(()) => {
                // It is visible; without this it might be gone after a power failure.
                sync_folder_of(&target).map_err(|e| BlobError { in_doubt: true, ..self.failed("syncing", path)(e) })?;
                Ok(PutNew::Done)
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists || target.exists() => Ok(PutNew::Exists),
            Err(e) if e.kind() == ErrorKind::PermissionDenied || e.kind() == ErrorKind::Unsupported => Err(BlobError {
                trouble: Trouble::Unfit,
                ..self.failed("linking (this file system may have no hard links)", path)(e)
            }),
            Err(e) => Err(self.failed("linking", path)(e)),
        }
    }

    fn create(&self, path: &str) -> Result<Box<dyn BlobWriter>, BlobError> {
        let target = self.path(path);
        let file = create_new(&target).map_err(self.failed("making", path))?;
        Ok(Box::new(LocalWriter { file: BufWriter::with_capacity(BUFFER_BYTES, file), target }))
    }

    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send>>, BlobError> {
        match File::open(self.path(path)) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.failed("opening", path)(e)),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, BlobError> {
        let entries = match fs::read_dir(self.path(folder)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(self.failed("listing", folder)(e)),
        };
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(self.failed("listing", folder))?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Deleted since.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(self.failed("listing", folder)(e)),
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            if metadata.is_file() && !name.starts_with('.') {
                listed.push(Listed { name, bytes: metadata.len() });
            }
        }
        Ok(listed)
    }

    fn delete(&self, path: &str) -> Result<(), BlobError> {
        let target = self.path(path);
        match fs::remove_file(&target) {
            // Order matters where a log is deleted from its start, so a deletion is as durable as a write.
            Ok(()) => sync_folder_of(&target).map_err(self.failed("syncing", path)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(self.failed("deleting", path)(e)),
        }
    }
}

struct LocalWriter {
    file: BufWriter<File>,
    target: PathBuf,
}

impl Write for LocalWriter {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.file.write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter for LocalWriter {
    fn finish(mut self: Box<Self>) -> Result<(), BlobError> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let synced = synced.and_then(|()| sync_folder_of(&self.target));
        synced.map_err(|e| io_failed("writing", &self.target.display().to_string(), &e))
    }
}

/// Deletes hidden files, in the folder and in those directly in it. Another process that has one in the making writes
/// it again; what can't be deleted does no harm.
fn sweep(root: &Path) {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let folders = entries(root).filter(|path| path.is_dir());
    for path in folders.flat_map(|folder| entries(&folder)).chain(entries(root)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') && name.ends_with(".tmp") {
            let _ = fs::remove_file(&path);
        }
    }
}

fn write_staged(staging: &Path, content: &[u8]) -> io::Result<()> {
    let written = create_new(staging).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    if written.is_err() {
        let _ = fs::remove_file(staging);
    }
    written
}

/// Makes a file, and its folder if that is not there.
fn create_new(path: &Path) -> io::Result<File> {
    match File::create_new(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if let Some(folder) = path.parent() {
                make_folders(folder)?;
            }
            File::create_new(path)
        }
        made => made,
    }
}

/// Makes folders, durably: each new one is synced into the one above it.
fn make_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() || folder.as_os_str().is_empty() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folders(above)?;
    }
    match fs::create_dir(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_folder_of(folder),
    }
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_all;

    #[test]
    fn of_many_writers_one_wins_and_its_bytes_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let winners: Vec<usize> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|i| {
                    let local = Local::open(folder.path());
                    scope.spawn(move || (i, local.put_new("log/1", format!("writer {i}").as_bytes()).unwrap()))
                })
                .collect();
            let answers = writers.into_iter().map(|w| w.join().unwrap());
            answers.filter(|(_, put)| *put == PutNew::Done).map(|(i, _)| i).collect()
        });
        assert_eq!(winners.len(), 1);
        let local = Local::open(folder.path());
        let content = read_all(&local, "log/1").unwrap().unwrap();
        assert_eq!(content, format!("writer {}", winners[0]).as_bytes());
        let names: Vec<_> = fs::read_dir(folder.path().join("log")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["1"], "nothing hidden is left behind");
    }

    #[test]
    fn errors_name_the_path() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("log"), "a file where a folder is needed").unwrap();
        let local = Local::open(folder.path());
        let error = local.put_new("log/1", b"x").unwrap_err();
        assert!(error.message.contains("log/1"), "{error}");
        assert_eq!(error.trouble, Trouble::NoSuchPlace);
    }
}
