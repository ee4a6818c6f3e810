//! When a worker keeps copies of checkpoints on its own disk, and where.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;

use tidemill_checkpoint::manifest::Manifest;
use tidemill_checkpoint::{JobCopies, LocalCopies};
use tidemill_core::{Error, Result};

/// Local recovery, as a worker is told it.
#[derive(Clone, Debug)]
pub struct LocalRecoverySettings {
    /// When there are copies.
    pub when: LocalRecoveryWhen,
    /// Below which folder. Workers of one machine may have the same.
    pub folder: PathBuf,
    /// How much all copies may have together.
    pub limit_bytes: u64,
}

/// When copies are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalRecoveryWhen {
    /// Where a job's checkpoints are in an object store. From a folder, a file is read as fast as its copy.
    Auto,
    /// Of all jobs: the folder of their checkpoints may be on another machine.
    Always,
    /// Never.
    Never,
}

/// The copies of this process, from when they are needed first.
pub struct LocalRecovery {
    settings: LocalRecoverySettings,
    /// `None`: there can't be any.
    copies: OnceLock<Option<Arc<LocalCopies>>>,
}

impl LocalRecovery {
    /// An error: there are to be copies in any case, and can't be.
    pub fn new(settings: LocalRecoverySettings) -> Result<Self> {
        let copies = OnceLock::new();
        if settings.when == LocalRecoveryWhen::Always {
            _ = copies.set(Some(open(&settings)?));
        }
        Ok(Self { settings, copies })
    }

    /// Those of a job, of which an attempt begins here from this checkpoint of its own. `remote`: whether its checkpoints
    /// are in an object store. That there are none for some reason is no reason not to begin.
    pub fn begin(&self, remote: bool, job: &str, restored: Option<&Manifest>) -> Option<JobCopies> {
        match self.settings.when {
            LocalRecoveryWhen::Never => return None,
            LocalRecoveryWhen::Auto if !remote => return None,
            LocalRecoveryWhen::Auto | LocalRecoveryWhen::Always => {}
        }
        let warned = |error: Error| tracing::warn!("restarts read from the store: {error}");
        let copies = self.copies.get_or_init(|| open(&self.settings).inspect_err(|e| warned(e.clone())).ok());
        copies.as_ref()?.begin(job, restored).inspect_err(|e| warned(e.clone())).ok()
    }

    /// A job is over.
    pub fn forget(&self, job: &str) {
        self.opened().for_each(|copies| copies.forget(job));
    }

    /// The jobs of which there are copies.
    pub fn jobs(&self) -> Vec<String> {
        self.opened().flat_map(|copies| copies.jobs()).collect()
    }

    /// The process is about to end.
    pub fn end(&self) {
        self.opened().for_each(|copies| copies.end());
    }

    fn opened(&self) -> impl Iterator<Item = &Arc<LocalCopies>> {
        self.copies.get().into_iter().flatten()
    }
}

fn open(settings: &LocalRecoverySettings) -> Result<Arc<LocalCopies>> {
    let (copies, copier) = LocalCopies::open(&settings.folder, settings.limit_bytes)?;
    let spawned = thread::Builder::new().name("local-copies".to_owned()).spawn(move || copier.run());
    spawned.map_err(|e| Error::internal(format!("no thread for local copies of checkpoints: {e}")))?;
    tracing::info!("local copies of checkpoints are in {}", settings.folder.display());
    Ok(copies)
}
