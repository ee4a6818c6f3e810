//! A sink subtask: writes, and prepares what it wrote at the end.

use tidemill_core::connector::{SinkReady, SinkWriter};
use tidemill_core::ids::Epoch;
use tidemill_core::{Batch, Result};

use super::{CommitTarget, Prepared};

pub struct SinkCell {
    pub writer: Box<dyn SinkWriter>,
    pub target: CommitTarget,
}

impl SinkCell {
    /// Whether there is room for a batch.
    pub fn is_ready(&mut self) -> Result<bool> {
        Ok(self.writer.ready()? == SinkReady::Ready)
    }

    pub fn write(&mut self, batch: &Batch) -> Result<()> {
        self.writer.write(batch)
    }

    /// What a writer of a later attempt must know.
    pub fn snapshot(&mut self) -> Result<Option<Vec<u8>>> {
        self.writer.snapshot()
    }

    pub fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        Ok(Prepared { target: self.target.clone(), committables: self.writer.prepare(epoch)? })
    }
}
