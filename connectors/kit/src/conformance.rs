//! What every connector must keep, as functions that its tests call.
//!
//! They panic where a connector breaks its contract, as assertions do, and are part of no production path.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "assertions of tests")]

pub mod exactly_once;

use std::sync::{Arc, Mutex};

use arrow::datatypes::SchemaRef;
use tidemill_core::connector::{SinkContext, SourceContext, Waker};
use tidemill_core::ids::{NodeId, SubtaskId, SubtaskIndex};
use tidemill_core::memory::JobMemory;
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::time::{Clock, Timestamp};

/// A clock that a test moves.
#[derive(Debug, Default)]
pub struct HandClock(Mutex<i64>);

impl HandClock {
    /// Moves to a time in milliseconds.
    pub fn set(&self, ms: i64) {
        *self.0.lock().unwrap() = ms;
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp(*self.0.lock().unwrap())
    }
}

/// Subtask `index` of `parallelism`, for messages.
pub fn subtask(index: u32, parallelism: u32) -> SubtaskId {
    let (job, operator) = ("test".to_owned(), "connector".to_owned());
    SubtaskId { job, node: NodeId(0), operator, index: SubtaskIndex(index), parallelism }
}

/// What a reader is given, with a clock that stands at 0.
pub fn source_context(schema: SchemaRef, batch_rows: usize, waker: Waker) -> SourceContext {
    let (clock, metrics) = (Arc::new(HandClock::default()), Arc::new(TaskMetrics::default()));
    let memory = JobMemory::unlimited();
    SourceContext { subtask: subtask(0, 1), schema, batch_rows, waker, clock, metrics, memory }
}

/// What a writer is given, with a clock that stands at 0.
pub fn sink_context(schema: SchemaRef) -> SinkContext {
    let (clock, metrics) = (Arc::new(HandClock::default()), Arc::new(TaskMetrics::default()));
    SinkContext {
        subtask: subtask(0, 1),
        schema,
        clock,
        waker: Waker::new(|| {}),
        metrics,
        memory: JobMemory::unlimited(),
        attempt: 1,
        restored: Vec::new(),
    }
}
