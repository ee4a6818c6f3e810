//! A slot's thread: steps its slice until that has come to its end, and parks while there is nothing to do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::{self, JoinHandle};

use tidemill_core::Result;
use tidemill_core::time::Clock;

use super::{Event, LONGEST_SLEEP, Sleeper, panicked, sleep};
use crate::slice::{Slice, Step};

/// A slot's thread, as the job's thread has it.
pub(super) struct Slot {
    /// Told whether everything is committed.
    pub(super) verdicts: Sender<bool>,
    pub(super) join: JoinHandle<()>,
}

/// Steps a slice.
pub(super) struct SlotThread {
    pub(super) slot: usize,
    pub(super) slice: Slice,
    pub(super) sleeper: Arc<Sleeper>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) events: Sender<Event>,
    pub(super) verdict: Receiver<bool>,
}

impl SlotThread {
    pub(super) fn run(mut self) {
        _ = self.sleeper.0.set(thread::current());
        let outcome = catch_unwind(AssertUnwindSafe(|| self.step_to_the_end()))
            .unwrap_or_else(|panic| Err(panicked(&format!("slot {}", self.slot), &*panic)));
        let event = match outcome {
            Ok(true) => Event::Finished,
            Ok(false) => Event::Gone,
            Err(error) => Event::Failed(error),
        };
        let finished = matches!(event, Event::Finished);
        // If nobody listens any more, the job has ended.
        _ = self.events.send(event);
        if finished && self.verdict.recv().unwrap_or(false) {
            let told = catch_unwind(AssertUnwindSafe(|| self.slice.committed()))
                .unwrap_or_else(|panic| Err(panicked(&format!("slot {}", self.slot), &*panic)));
            if let Err(error) = told {
                _ = self.events.send(Event::Failed(error));
            }
        }
    }

    /// Whether it came to its end (and was not cancelled).
    fn step_to_the_end(&mut self) -> Result<bool> {
        loop {
            if self.cancelled.load(Ordering::Acquire) {
                return Ok(false);
            }
            let step = self.slice.step()?;
            let news = self.slice.take_events();
            if !news.is_empty() {
                // If nobody listens any more, the job has ended.
                _ = self.events.send(Event::Tasks(news));
            }
            match step {
                Step::Progress => {}
                Step::Finished => return Ok(true),
                Step::Blocked | Step::IdleUntil(None) => thread::park_timeout(LONGEST_SLEEP),
                Step::IdleUntil(Some(at)) => thread::park_timeout(sleep(&*self.clock, at)),
            }
        }
    }
}
