//! What stands in for the world around a job under test: its sources, and its clock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use tidemill_core::connector::{
    Boundedness, Discovery, ReaderPoll, Source, SourceContext, SourceReader, Split, SplitEnumerator, SplitId,
};
use tidemill_core::ids::Epoch;
use tidemill_core::time::{Clock, Timestamp};
use tidemill_core::{Batch, Result};

/// A clock that stands still until it is set.
#[derive(Debug, Default)]
pub(super) struct HandClock(pub(super) AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// What was pushed and not read yet.
#[derive(Default)]
pub(super) struct Input {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    ended: bool,
}

impl Input {
    pub(super) fn push(&self, batch: Batch) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).batches.push_back(batch);
    }

    pub(super) fn end(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
    }
}

pub(super) struct HandSource {
    pub(super) schema: SchemaRef,
    pub(super) input: Arc<Input>,
}

impl Source for HandSource {
    fn boundedness(&self) -> Boundedness {
        Boundedness::Bounded
    }

    fn enumerator(&self, _parallelism: u32) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(OneSplit { found: false }))
    }

    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>> {
        let wanted = context.schema.fields().iter().map(|f| self.schema.index_of(f.name()));
        let columns = wanted.collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Box::new(HandReader { columns, input: self.input.clone(), split: None, open: true }))
    }
}

struct OneSplit {
    found: bool,
}

impl SplitEnumerator for OneSplit {
    fn discover(&mut self) -> Result<Discovery> {
        let split = Split { id: SplitId("all".to_owned()), description: Vec::new() };
        let splits = if std::mem::replace(&mut self.found, true) { Vec::new() } else { vec![split] };
        Ok(Discovery { splits, again_after_ms: None })
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(vec![u8::from(self.found)])
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.found = snapshot == [1];
        Ok(())
    }
}

struct HandReader {
    columns: Vec<usize>,
    input: Arc<Input>,
    split: Option<SplitId>,
    open: bool,
}

impl SourceReader for HandReader {
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()> {
        self.split = splits.into_iter().next().map(|s| s.id).or(self.split.take());
        Ok(())
    }

    fn no_more_splits(&mut self) {
        self.open = false;
    }

    fn poll(&mut self) -> Result<ReaderPoll> {
        let Some(split) = self.split.clone() else {
            return Ok(if self.open { ReaderPoll::Pending(None) } else { ReaderPoll::Finished });
        };
        let mut queue = self.input.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(batch) = queue.batches.pop_front() {
            return Ok(ReaderPoll::Batch {
                split,
                batch: batch.project(&self.columns)?,
                rejected: Vec::new(),
                progress: 0,
            });
        }
        if queue.ended {
            self.split = None;
            return Ok(ReaderPoll::SplitFinished(split));
        }
        Ok(ReaderPoll::Pending(None))
    }

    fn snapshot(&mut self, _epoch: Epoch) -> Result<Vec<Split>> {
        Ok(self.split.iter().map(|id| Split { id: id.clone(), description: Vec::new() }).collect())
    }
}
