//! The folder of a backend's databases, below a path that many processes may share.
//!
//! A home is a numbered folder with a lock beside it that its process holds; the system lets go of it when the process
//! ends, however it does. So what a killed process left behind is found, and removed by the next that comes.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemill_core::{Error, Result};

use super::local::Folder;

pub(super) struct Home {
    /// Folders that were made in it.
    made: AtomicU64,
    folder: Folder,
    /// Held as long as the folder is used; so it comes after it.
    _lock: File,
}

impl Home {
    /// The first that nobody uses.
    pub(super) fn claim(path: &Path) -> Result<Self> {
        claim(path).map_err(|e| {
            Error::invalid(format!("a folder for keyed state can't be made in '{}': {e}", path.display()))
                .mend("Give [state] a path to a folder in which files may be made.")
        })
    }

    /// A new folder for a database, which the database makes.
    pub(super) fn folder(&self) -> Result<Folder> {
        let path = self.folder.path().join(self.made.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&path).map_err(|e| {
            Error::invalid(format!("a folder for keyed state, '{}', can't be made: {e}", path.display()))
        })?;
        Ok(Folder(path))
    }
}

fn claim(path: &Path) -> io::Result<Home> {
    std::fs::create_dir_all(path)?;
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
            std::fs::remove_dir_all(&folder)?;
        }
        if claimed.is_none() {
            std::fs::create_dir(&folder)?;
            claimed = Some(Home { made: AtomicU64::new(0), folder: Folder(folder), _lock: lock });
        }
    }
    claimed.ok_or_else(|| io::Error::other("there are too many"))
}
