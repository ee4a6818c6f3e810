//! Folders on the local disk of what may be lost at any time: they are gone when their process is.
//!
//! A home is a numbered folder below a path that many processes may share, with a lock beside it that its process holds;
//! the system lets go of it when the process ends, however it does. So what a killed process left behind is found, and
//! removed by the next that comes.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The folders of one process, below a path that it may share with others.
#[derive(Debug)]
pub struct Home {
    /// Folders that were made in it.
    made: AtomicU64,
    folder: Folder,
    /// Held as long as the folder is used; so it comes after it.
    _lock: File,
}

impl Home {
    /// The first that nobody uses, empty. What processes left there that are gone is removed.
    pub fn claim(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        // One claims at a time, so that a lock without a holder is of somebody who is gone.
        let claiming = File::create(path.join("lock"))?;
        claiming.lock()?;
        let mut claimed = None;
        for number in 0_u64.. {
            let (lock, folder) = (path.join(format!("{number}.lock")), path.join(number.to_string()));
            if !lock.exists() && claimed.is_some() {
                break;
            }
            let lock = File::create(lock)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(e)) => return Err(e),
            }
            if folder.exists() {
                fs::remove_dir_all(&folder)?;
            }
            if claimed.is_none() {
                fs::create_dir(&folder)?;
                claimed = Some(Self { made: AtomicU64::new(0), folder: Folder(folder), _lock: lock });
            }
        }
        claimed.ok_or_else(|| io::Error::other("there are too many"))
    }

    /// A new folder in it.
    pub fn folder(&self) -> io::Result<Folder> {
        let path = self.folder.path().join(self.made.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path)?;
        Ok(Folder(path))
    }
}

/// A folder that is removed, with all that is in it, when it is dropped.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_left_that_is_gone_is_removed_and_what_another_uses_is_not() {
        let path = std::env::temp_dir().join(format!("tidemill-scratch-{}", std::process::id()));
        let used = Home::claim(&path).unwrap();
        let of_used = used.folder().unwrap();
        // As a killed process leaves it: a folder, and a lock that nobody holds.
        let left = path.join("1");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("file"), "left").unwrap();
        File::create(path.join("1.lock")).unwrap();
        let next = Home::claim(&path).unwrap();
        assert!(!left.join("file").exists(), "what was left is gone");
        assert_eq!(next.folder().unwrap().path(), left.join("0"), "its number is taken again");
        assert!(of_used.path().exists());
        drop(next);
        assert!(!left.exists());
        drop(of_used);
        drop(used);
        fs::remove_dir_all(path).unwrap();
    }
}
