//! Counters of one operator subtask: written by its slot, read by anyone, never waited for.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters of a subtask.
        #[derive(Debug)]
        pub struct TaskMetrics {
            $($(#[$doc])* pub $name: Counter,)*
            /// The operator's watermark in milliseconds UTC.
            pub watermark: AtomicI64,
        }

        impl TaskMetrics {
            /// What the counters are called, in the order of their declaration.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// What they have counted, in the same order.
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$name.get()),*]
            }

            /// Takes over what others have counted. Values that are missing are left as they are.
            pub fn set_values(&self, values: &[u64]) {
                let mut values = values.iter().copied();
                $(if let Some(value) = values.next() { self.$name.set(value); })*
            }
        }

        impl Default for TaskMetrics {
            fn default() -> Self {
                Self { $($name: Counter::default(),)* watermark: AtomicI64::new(i64::MIN) }
            }
        }
    };
}

counters! {
    /// Rows that came in.
    records_in,
    /// Rows that went out, over all ports.
    records_out,
    /// Batches that came in.
    batches_in,
    /// Bytes of the rows that came in, as they are in memory.
    bytes_in,
    /// Bytes of the rows that went out, likewise.
    bytes_out,
    /// Milliseconds for which its slot stood still since receivers of its rows were full.
    backpressured_ms,
    /// Rows that came too late for every window (dropped or sent to the late port).
    records_late,
    /// Rows that were set aside.
    records_dead_lettered,
    /// Malformed records that were skipped.
    records_skipped,
    /// Calls into the sandbox.
    crossings,
    /// Bytes copied into and out of the sandbox.
    bytes_copied,
    /// Calls of user code that were repeated after a failure.
    retries,
    /// Log messages of user code that exceeded the bound.
    logs_dropped,
    /// How much of the source's total was read.
    progress,
    /// Entries, rows and timers held in state.
    state_entries,
    /// Bytes of state in memory.
    state_bytes,
}

/// A number that one thread changes and others look at.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; there is one writer, so no locked instruction is needed.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Reads.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
