//! A sink that keeps every row in memory, for tests and for programs that run a job and look at its result.
//!
//! It has no name in manifests: what it holds grows without bound.

use std::sync::{Arc, Mutex, PoisonError};

use tidemill_connector_kit::NothingToCommit;
use tidemill_core::Batch;
use tidemill_core::connector::{Committable, Guarantee, Sink, SinkCommitter, SinkContext, SinkWriter};
use tidemill_core::error::Result;
use tidemill_core::ids::Epoch;

/// Makes the sink.
#[derive(Clone, Copy, Debug)]
pub struct Collect;

impl Collect {
    /// A sink, and what was written to it so far.
    pub fn sink() -> (Arc<dyn Sink>, Arc<Collected>) {
        let collected = Arc::new(Collected::default());
        (Arc::new(CollectSink(collected.clone())), collected)
    }
}

/// What was written.
#[derive(Debug, Default)]
pub struct Collected(Mutex<Vec<Batch>>);

impl Collected {
    /// All batches up to now, in the order in which they were written.
    pub fn batches(&self) -> Vec<Batch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Number of rows up to now.
    pub fn rows(&self) -> usize {
        self.batches().iter().map(Batch::rows).sum()
    }
}

struct CollectSink(Arc<Collected>);

impl Sink for CollectSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn writer(&self, _context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(Writer(self.0.clone())))
    }

    fn committer(&self) -> Result<Box<dyn SinkCommitter>> {
        Ok(Box::new(NothingToCommit))
    }
}

struct Writer(Arc<Collected>);

impl SinkWriter for Writer {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).push(batch.clone());
        Ok(())
    }

    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<Committable>> {
        Ok(Vec::new())
    }
}
