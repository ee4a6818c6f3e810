//! What the tasks of a job log on this worker, until the coordinator is told.
//!
//! Invariant: whatever a job logs, it takes no more than a bounded part of this worker's memory and of the connection to
//! the coordinator. What is too much is dropped and counted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tidemill_core::log::{MESSAGE_BYTES, NAME_BYTES, TaskLog, TaskMessage, bounded};
use tidemill_core::time::Clock;
use tidemill_rpc::proto;

/// So many wait for the coordinator, which takes them twice a second; while there is none, the newest are kept.
const ENTRIES: usize = 1_000;
/// So many bytes of them, about.
const BYTES: usize = 256 << 10;
/// What an entry takes beside its texts.
const OVERHEAD: usize = 64;
/// So many may come at once, as when all subtasks are opened.
const BURST: i64 = 500;
/// So many may come per second in the long run: more than anybody reads.
const PER_SECOND: i64 = 100;

/// Of one execution of a job.
pub struct JobLogs {
    job: String,
    clock: Arc<dyn Clock>,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    entries: VecDeque<proto::LogEntry>,
    bytes: usize,
    dropped: u64,
    /// Thousandths of a message that may still come, and when that was.
    allowance: i64,
    at_ms: i64,
}

impl JobLogs {
    /// Of the job with this id; nothing was logged yet.
    pub fn new(job: &str, clock: Arc<dyn Clock>) -> Self {
        let (entries, bytes, dropped, at_ms) = (VecDeque::new(), 0, 0, clock.now().0);
        let waiting = Waiting { entries, bytes, dropped, allowance: BURST * 1_000, at_ms };
        Self { job: job.to_owned(), clock, waiting: Mutex::new(waiting) }
    }

    /// Takes what waits, to be said. `None`: nothing does.
    pub fn take(&self) -> Option<proto::Logs> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.entries.is_empty() && waiting.dropped == 0 {
            return None;
        }
        waiting.bytes = 0;
        let entries = std::mem::take(&mut waiting.entries).into();
        Some(proto::Logs { job: self.job.clone(), entries, dropped: std::mem::take(&mut waiting.dropped) })
    }
}

impl TaskLog for JobLogs {
    fn log(&self, message: &TaskMessage<'_>) -> bool {
        let at_ms = self.clock.now().0;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.admits(at_ms) {
            waiting.dropped += 1;
            return false;
        }
        waiting.push(proto::LogEntry {
            at_ms,
            level: message.level as u32,
            subtask: Some(proto::SubtaskRef { node: message.node.0, index: message.subtask.0 }),
            operator: bounded(message.operator, NAME_BYTES),
            message: bounded(message.text, MESSAGE_BYTES),
        });
        true
    }
}

impl Waiting {
    /// Whether another message may come now.
    fn admits(&mut self, at_ms: i64) -> bool {
        // A clock that was set back gives nothing.
        let passed = at_ms.saturating_sub(self.at_ms).max(0);
        self.at_ms = at_ms;
        self.allowance = self.allowance.saturating_add(passed.saturating_mul(PER_SECOND)).min(BURST * 1_000);
        let admits = self.allowance >= 1_000;
        if admits {
            self.allowance -= 1_000;
        }
        admits
    }

    fn push(&mut self, entry: proto::LogEntry) {
        self.bytes += cost(&entry);
        self.entries.push_back(entry);
        while self.entries.len() > ENTRIES || self.bytes > BYTES {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= cost(&oldest);
            self.dropped += 1;
        }
    }
}

fn cost(entry: &proto::LogEntry) -> usize {
    OVERHEAD + entry.operator.len() + entry.message.len()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use tidemill_core::ids::{NodeId, SubtaskIndex};
    use tidemill_core::log::Level;
    use tidemill_core::time::Timestamp;

    use super::*;

    /// A clock that is set by hand.
    struct ManualClock(AtomicI64);

    impl ManualClock {
        fn set(&self, ms: i64) {
            self.0.store(ms, Ordering::Relaxed);
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> Timestamp {
            Timestamp(self.0.load(Ordering::Relaxed))
        }
    }

    fn logs() -> (JobLogs, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock(AtomicI64::new(1_000)));
        (JobLogs::new("j", clock.clone()), clock)
    }

    fn log(logs: &JobLogs, text: &str) -> bool {
        let (node, subtask) = (NodeId(2), SubtaskIndex(1));
        logs.log(&TaskMessage { operator: "map", node, subtask, level: Level::Warn, text })
    }

    #[test]
    fn what_was_logged_is_taken_once() {
        let (logs, _) = logs();
        assert!(logs.take().is_none());
        assert!(log(&logs, "a\u{1b}[31mb"));
        let taken = logs.take().unwrap();
        assert_eq!((taken.job.as_str(), taken.dropped, taken.entries.len()), ("j", 0, 1));
        let entry = &taken.entries[0];
        assert_eq!((entry.at_ms, entry.level, entry.operator.as_str()), (1_000, 2, "map"));
        assert_eq!(entry.message, "a\\u{1b}[31mb");
        assert!(logs.take().is_none());
    }

    #[test]
    fn a_flood_is_dropped_and_counted_and_passes() {
        let (logs, clock) = logs();
        let taken = (0..10_000).filter(|_| log(&logs, "again")).count();
        assert_eq!(taken as i64, BURST);
        let said = logs.take().unwrap();
        assert_eq!((said.entries.len() + said.dropped as usize, said.entries.len()), (10_000, taken));
        clock.set(2_000);
        let taken = (0..10_000).filter(|_| log(&logs, "again")).count();
        assert_eq!(taken as i64, PER_SECOND);
        clock.set(0);
        assert!(!log(&logs, "the clock was set back"));
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_the_newest_stay() {
        let (logs, _) = logs();
        let long = "x".repeat(100_000);
        (0..100).for_each(|_| assert!(log(&logs, &long)));
        assert!(log(&logs, "the last"));
        let said = logs.take().unwrap();
        let bytes: usize = said.entries.iter().map(cost).sum();
        assert!(bytes <= BYTES && bytes > BYTES / 2, "{bytes}");
        assert_eq!(said.dropped + said.entries.len() as u64, 101);
        assert_eq!(said.entries.last().unwrap().message, "the last");
        assert!(said.entries[0].message.ends_with("bytes more)"), "long ones are cut");
    }
}
