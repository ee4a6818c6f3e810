//! What the host keeps beside one instance: the effects of the call that runs, its budget, and who it is.
//!
//! Invariant: outside of a call (`Call::None`) no import may be used, and the budget is that of one call only.

use std::sync::Arc;

use arrow::datatypes::Field as ArrowField;
use tidemill_core::Error;
use tidemill_core::ids::{NodeId, SubtaskIndex};
use tidemill_core::log::{TaskLog, TaskMessage};
use tidemill_core::memory::{JobMemory, Owner};
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::process::Surroundings;
use tidemill_core::user::{Effects, ReadCollections};
use wasmtime::ResourceLimiter;

use crate::crossing::Level;
use crate::lift::{Violation, violation};
use crate::limits::Limits;
use crate::shape::Shape;
use crate::wasi::Wasi;

/// What the guest is doing.
#[derive(Clone, Debug, Default)]
pub(crate) enum Call {
    /// Starting, planning, opening or closing: it may log and nothing else.
    #[default]
    Quiet,
    /// `transform.process`.
    Transform { rows: usize },
    /// `keyed.process`.
    Process { rows: usize, keys: usize },
    /// `keyed.on-timers`; `only` is the time where there is one timer.
    Timers { rows: usize, keys: usize, only: Option<i64> },
    /// A function of `aggregate`: it emits one column, a value per group.
    Aggregate { groups: usize, result: ArrowField },
}

/// Who the instance is, for its log messages.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) job: String,
    pub(crate) operator: String,
    pub(crate) node: NodeId,
    pub(crate) index: SubtaskIndex,
}

/// Data of the store.
pub(crate) struct HostState {
    pub(crate) identity: Arc<Identity>,
    pub(crate) limits: Limits,
    pub(crate) shape: Arc<Shape>,
    pub(crate) metrics: Arc<TaskMetrics>,
    pub(crate) call: Call,
    pub(crate) effects: Effects,
    /// Reads lists and maps of the call's keys.
    pub(crate) collections: Option<Arc<dyn ReadCollections>>,
    pub(crate) budget: Budget,
    pub(crate) memory: MemoryGuard,
    pub(crate) distinct: Distinct,
    /// The last error that it logged in this call: SDKs log the message of a panic before they trap.
    pub(crate) last_words: Option<String>,
    pub(crate) wasi: Option<Wasi>,
    /// Where its messages go, beside the log of the process.
    log: Arc<dyn TaskLog>,
}

impl HostState {
    pub(crate) fn new(
        identity: Arc<Identity>,
        limits: &Limits,
        shape: Arc<Shape>,
        metrics: Arc<TaskMetrics>,
        wasi: Option<Wasi>,
        surroundings: &Surroundings,
    ) -> Self {
        Self {
            identity,
            limits: limits.clone(),
            shape,
            metrics,
            call: Call::Quiet,
            effects: Effects::default(),
            collections: None,
            budget: Budget::default(),
            memory: MemoryGuard::new(limits.memory_bytes, surroundings.memory.clone()),
            distinct: Distinct::default(),
            last_words: None,
            wasi,
            log: surroundings.log.clone(),
        }
    }

    /// Makes it ready for a call.
    pub(crate) fn begin(&mut self, call: Call, effects: Effects) {
        self.call = call;
        self.effects = effects;
        self.budget = Budget::default();
        self.memory.denied = None;
        self.memory.refused = None;
        self.last_words = None;
    }

    /// Ends a call: what it did.
    pub(crate) fn end(&mut self) -> Effects {
        self.call = Call::Quiet;
        self.collections = None;
        self.metrics.bytes_copied.add(self.budget.copied);
        self.collect_output();
        std::mem::take(&mut self.effects)
    }

    /// What it wrote to standard output and error becomes log messages, and its last words: that is where the runtimes
    /// of other languages say why they abort.
    pub(crate) fn collect_output(&mut self) {
        /// The end of a stack trace, which is where the reason stands.
        const LINES: usize = 20;
        let lines = self.wasi.as_mut().map(Wasi::take_output).unwrap_or_default();
        lines.iter().for_each(|line| self.log(Level::Info, line));
        if let Some(tail) = lines.get(lines.len().saturating_sub(LINES)..).filter(|tail| !tail.is_empty()) {
            self.last_words = Some(tail.join("\n    | "));
        }
    }

    /// Counts what the call hands over.
    pub(crate) fn charge(&mut self, bytes: usize, rows: usize) -> Result<(), Violation> {
        /// What an emission or update costs the host beside its bytes, so that empty ones are not free.
        const OVERHEAD: u64 = 256;
        self.budget.copied += bytes as u64;
        self.budget.transferred += bytes as u64 + OVERHEAD;
        self.budget.rows += rows as u64;
        if self.budget.transferred > self.limits.transfer_bytes {
            return violation(format!(
                "it hands more than {} bytes to the host in one call, with what it reads; emit or read less, use smaller \
                 batches, or raise limits.transfer",
                self.limits.transfer_bytes
            ));
        }
        if self.budget.rows > self.limits.emitted_rows {
            return violation(format!(
                "it emits more than {} rows in one call; emit less, use smaller batches, or raise limits.emitted-rows",
                self.limits.emitted_rows
            ));
        }
        Ok(())
    }

    /// So many bytes more may the call hand over or read.
    pub(crate) fn left_to_transfer(&self) -> u64 {
        self.limits.transfer_bytes.saturating_sub(self.budget.transferred)
    }

    /// A message of the guest, cut to what is left of the call's budget.
    pub(crate) fn log(&mut self, level: Level, message: &str) {
        let left = self.limits.log_bytes.saturating_sub(self.budget.logged);
        if left == 0 {
            self.metrics.logs_dropped.add(1);
            return;
        }
        let text = message.get(..message.floor_char_boundary(left)).unwrap_or_default();
        // Empty messages count too.
        self.budget.logged += text.len().max(1);
        if matches!(level, Level::Error) {
            self.last_words = Some(text.to_owned());
        }
        let Identity { job, operator, node, index } = &*self.identity;
        let message = TaskMessage { operator, node: *node, subtask: *index, level: level.into(), text };
        if !self.log.log(&message) {
            self.metrics.logs_dropped.add(1);
            return;
        }
        match level {
            Level::Debug => tracing::debug!(target: "tidemill::user", %job, %operator, "{text}"),
            Level::Info => tracing::info!(target: "tidemill::user", %job, %operator, "{text}"),
            Level::Warn => tracing::warn!(target: "tidemill::user", %job, %operator, "{text}"),
            Level::Error => tracing::error!(target: "tidemill::user", %job, %operator, "{text}"),
        }
    }
}

/// What a call used up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Budget {
    /// What was read out of the guest, in bytes.
    pub(crate) copied: u64,
    /// The same with what each hand-over costs.
    pub(crate) transferred: u64,
    pub(crate) rows: u64,
    pub(crate) logged: usize,
}

/// Bounds memory and tables, and remembers a refusal: the guest then traps somewhere else, and the message should say why.
/// What the instance holds is in the job's account, until it is gone.
#[derive(Debug)]
pub(crate) struct MemoryGuard {
    limit: usize,
    /// Bytes of all memories.
    pub(crate) held: usize,
    /// Bytes of all tables.
    tables: usize,
    account: Arc<JobMemory>,
    /// How much was asked for when it was refused.
    pub(crate) denied: Option<usize>,
    /// Why the process had no more.
    pub(crate) refused: Option<Error>,
}

impl MemoryGuard {
    fn new(limit: usize, account: Arc<JobMemory>) -> Self {
        Self { limit, held: 0, tables: 0, account, denied: None, refused: None }
    }

    /// The instance is gone for want of memory, and the job ends.
    pub(crate) fn ends(&self) {
        self.account.ends();
    }

    /// Whether the process has so much more.
    fn take(&mut self, bytes: usize) -> bool {
        match self.account.take(Owner::Guests, bytes as u64) {
            Ok(()) => true,
            Err(refused) => {
                self.refused = Some(refused);
                false
            }
        }
    }
}

impl Drop for MemoryGuard {
    fn drop(&mut self) {
        self.account.give_back(Owner::Guests, (self.held + self.tables) as u64);
    }
}

/// Far more than any toolchain makes of a table (function pointers), and 800 kB.
const TABLE_ELEMENTS: usize = 100_000;

impl ResourceLimiter for MemoryGuard {
    fn memory_growing(&mut self, current: usize, desired: usize, _max: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let total = self.held + more;
        if total > self.limit {
            self.denied = Some(total);
            return Ok(false);
        }
        if !self.take(more) {
            return Ok(false);
        }
        self.held = total;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _max: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current).saturating_mul(size_of::<usize>());
        if desired > TABLE_ELEMENTS || !self.take(more) {
            return Ok(false);
        }
        self.tables += more;
        Ok(true)
    }

    /// A component consists of a few core instances (adapters, shims); an interpreter's of a dozen or two.
    fn instances(&self) -> usize {
        100
    }

    fn tables(&self) -> usize {
        100
    }

    fn memories(&self) -> usize {
        10
    }
}

/// Finds numbers that appear twice, in buffers used again and again.
#[derive(Debug, Default)]
pub(crate) struct Distinct {
    seen: Vec<u32>,
    round: u32,
}

impl Distinct {
    /// The first number that appears twice; all are below `bound`.
    pub(crate) fn duplicate(&mut self, numbers: &[u32], bound: usize) -> Option<u32> {
        // Most code writes its keys in order, and then no table is needed.
        if numbers.iter().zip(numbers.iter().skip(1)).fold(true, |all, (a, b)| all & (a < b)) {
            return None;
        }
        if self.round == u32::MAX {
            self.seen.fill(0);
            self.round = 0;
        }
        self.round += 1;
        if self.seen.len() < bound {
            self.seen.resize(bound, 0);
        }
        numbers.iter().copied().find(|&n| {
            let slot = self.seen.get_mut(n as usize);
            slot.is_some_and(|s| std::mem::replace(s, self.round) == self.round)
        })
    }
}

#[cfg(test)]
mod tests {
    use tidemill_core::memory::ProcessMemory;

    use super::*;

    #[test]
    fn duplicates_are_found_within_a_round_only() {
        let mut distinct = Distinct::default();
        assert_eq!(distinct.duplicate(&[0, 1, 2], 3), None);
        assert_eq!(distinct.duplicate(&[2, 0, 1], 3), None);
        assert_eq!(distinct.duplicate(&[2, 1, 0], 3), None);
        assert_eq!(distinct.duplicate(&[2, 0, 2], 3), Some(2));
        assert_eq!(distinct.duplicate(&[1, 1], 3), Some(1));
        assert_eq!(distinct.duplicate(&[], 0), None);
    }

    #[test]
    fn what_an_instance_holds_is_counted_until_it_is_gone() {
        let process = ProcessMemory::new(Some(1_000));
        let mut guard = MemoryGuard::new(10_000, process.job("a"));
        let mut neighbour = MemoryGuard::new(10_000, process.job("b"));
        assert!(guard.memory_growing(0, 600, None).unwrap());
        assert!(guard.table_growing(0, 10, None).unwrap());
        assert_eq!(process.held().of(Owner::Guests), 680);
        assert!(!neighbour.memory_growing(0, 400, None).unwrap());
        assert!(!neighbour.table_growing(0, 100, None).unwrap());
        assert!(neighbour.refused.as_ref().unwrap().message().contains("job 'a' 680 B"), "{:?}", neighbour.refused);
        assert_eq!(neighbour.denied, None);
        drop(guard);
        assert!(neighbour.memory_growing(0, 400, None).unwrap());
        drop(neighbour);
        assert_eq!(process.held().total(), 0);
    }

    #[test]
    fn memory_is_bounded_over_all_memories() {
        let mut guard = MemoryGuard::new(100, JobMemory::unlimited());
        assert!(guard.memory_growing(0, 60, None).unwrap());
        assert!(!guard.memory_growing(0, 60, None).unwrap());
        assert_eq!(guard.denied, Some(120));
        assert!(guard.memory_growing(60, 100, None).unwrap());
        assert_eq!(guard.held, 100);
    }
}
