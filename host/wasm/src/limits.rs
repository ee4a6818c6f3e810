//! What an instance may use. Each bound is a field here, and a message about a bound names it as manifests do
//! (`limits.call-time` is `call_ms`); those that manifests can't set are named as the field.

/// The bounds of user code. One set for all components of a [`crate::Sandbox`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one instance, in bytes. 256 MiB holds any sensible working set of one operator subtask (state
    /// is the host's), and an interpreter of another language with its library.
    pub memory_bytes: usize,
    /// Time of one call, in milliseconds. A call takes one batch; a good one takes a millisecond.
    pub call_ms: u64,
    /// Bytes that one call may hand to the host: emitted columns, states, timers. Far above a batch, far below what
    /// would hurt a worker.
    pub transfer_bytes: u64,
    /// Rows that one call may emit. Bounds what `forward` makes of few bytes.
    pub emitted_rows: u64,
    /// Bytes of log messages of one call; the rest is counted and dropped.
    pub log_bytes: usize,
    /// The stack of WebAssembly code, in bytes. The threads that call it must have at least twice as much.
    pub stack_bytes: usize,
    /// The largest component, in bytes: what is compiled costs time and memory in proportion.
    pub component_bytes: usize,
    /// Time of compiling a component, in milliseconds. Above what the largest sensible one takes (an interpreter of 18 MB
    /// takes 6 s), below what would look like a hang.
    pub compile_ms: u64,
    /// The largest plan document, in bytes.
    pub plan_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            call_ms: 5_000,
            transfer_bytes: 64 << 20,
            emitted_rows: 8 << 20,
            log_bytes: 16 << 10,
            stack_bytes: 1 << 20,
            component_bytes: 64 << 20,
            compile_ms: 60_000,
            plan_bytes: 4 << 20,
        }
    }
}
