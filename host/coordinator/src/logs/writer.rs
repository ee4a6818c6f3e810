//! The thread that writes what is new of the logs of all jobs, and deletes what is too much.
//!
//! Nobody waits for it, and it waits for nobody but the store: where that is slow or fails, what is new is written later, as
//! far as it is still in memory.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use tidemill_core::{Error, ErrorKind, Result};

use super::archive::{self, LogSettings};
use crate::{Coordinator, Job, lock};

/// So often what is too old is looked for, of all jobs.
const PRUNE_EVERY_MS: i64 = 60 * 60 * 1_000;

impl Coordinator {
    /// Begins to write logs, until what is answered is dropped.
    pub(crate) fn write_logs_on_a_thread(self: &Arc<Self>) -> Result<Option<Sender<()>>> {
        let LogSettings { every_ms, size_bytes, .. } = self.log_settings;
        if size_bytes == 0 {
            return Ok(None);
        }
        let (goes_on, ends) = mpsc::channel::<()>();
        let (this, every) = (Arc::downgrade(self), Duration::from_millis(every_ms.max(1)));
        let write = move || {
            let mut pruned_ms = None;
            while ends.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let Some(this) = Weak::upgrade(&this) else { return };
                this.write_logs();
                let now_ms = this.environment.now_ms();
                if pruned_ms.is_none_or(|pruned: i64| now_ms.abs_diff(pruned) >= PRUNE_EVERY_MS.unsigned_abs()) {
                    pruned_ms = Some(now_ms);
                    this.all_jobs().iter().for_each(|job| this.prune_log(job));
                }
            }
        };
        let spawned = thread::Builder::new().name("logs".to_owned()).spawn(write);
        spawned.map_err(|e| Error::new(ErrorKind::Limit, format!("no thread could be started: {e}")))?;
        Ok(Some(goes_on))
    }

    /// Writes what is new of the logs of all jobs. Blocks for as long as the store takes.
    pub fn write_logs(&self) {
        if self.log_settings.size_bytes == 0 {
            return;
        }
        let _one_at_a_time = lock(&self.writing_logs);
        for job in self.all_jobs() {
            if let Err(error) = self.write_log(&job) {
                tracing::warn!("the log of the job {} could not be written, and is later: {error}", job.id());
            }
        }
    }

    fn write_log(&self, job: &Job) -> Result<()> {
        while let Some(segment) = job.log().to_write() {
            let name = archive::write(&self.storage, job.id(), &segment, self.environment.now_ms())?;
            job.log().wrote(&segment, name);
            if segment.is_full {
                self.prune_log(job);
            }
        }
        Ok(())
    }

    fn prune_log(&self, job: &Job) {
        let pruned = archive::prune(&self.storage, job.id(), &self.log_settings, self.environment.now_ms());
        if let Err(error) = pruned {
            tracing::warn!("what is too much of the log of the job {} could not be deleted: {error}", job.id());
        }
    }
}
