//! What makes copies and deletes them, off the path of checkpoints: what it is told is done in order.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use tidemill_core::scratch::Folder;

use super::JobCopies;

/// See the module. A thread of its own runs it; in tests, it is told when.
pub struct Copier(Receiver<Task>);

/// What it is told.
pub(super) enum Task {
    Copy {
        of: JobCopies,
        name: String,
        path: PathBuf,
        content: Content,
    },
    Remove(Vec<PathBuf>),
    /// By dropping it.
    RemoveAll(Folder),
}

/// What is to be copied.
pub(super) enum Content {
    Bytes(Vec<u8>),
    /// It is open: it may be deleted meanwhile.
    File(File),
}

impl Copier {
    pub(super) fn new(tasks: Receiver<Task>) -> Self {
        Self(tasks)
    }

    /// Does what it is told, until nobody can tell it anything any more.
    pub fn run(self) {
        self.0.iter().for_each(does);
    }

    /// Does what it was told until now.
    pub fn settle(&self) {
        self.0.try_iter().for_each(does);
    }
}

fn does(task: Task) {
    match task {
        Task::Copy { of, name, path, content } => {
            let made = match content {
                Content::Bytes(content) => {
                    let made = copy_new(&mut content.as_slice(), &path);
                    of.unqueued(content.len() as u64);
                    made
                }
                Content::File(mut file) => copy_new(&mut file, &path),
            };
            of.made(&name, &path, made);
        }
        // What is not there is not to be removed.
        Task::Remove(paths) => paths.iter().for_each(|path| _ = fs::remove_file(path)),
        Task::RemoveAll(folder) => drop(folder),
    }
}

/// Copies into a new file. After an error there is none, unless there was one before.
pub(super) fn copy_new(from: &mut dyn Read, to: &Path) -> io::Result<()> {
    let mut copy = File::create_new(to)?;
    io::copy(from, &mut copy).map(drop).inspect_err(|_| _ = fs::remove_file(to))
}
