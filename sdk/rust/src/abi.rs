//! The contract with the host, as Rust traits over plain byte slices.
//!
//! The same operator code runs in two places: in the sandbox, where the glue in `guest` feeds it from linear memory,
//! and natively, where the test kit feeds it from Arrow buffers. Both speak only through this module, so that what is
//! tested is what runs. The shapes are those of `wit/tidemill.wit`.
//!
//! What is here trusts its caller: the host (or the test kit) has checked lengths and offsets. A mistake is a panic,
//! which the host treats as a trap; it is never undefined behaviour.

use std::fmt;

use crate::time::Timestamp;

/// The time before any watermark.
pub const NO_WATERMARK: i64 = i64::MIN;

/// One field of a batch, or one level of a nested field, in Arrow's physical layout.
#[derive(Clone, Copy, Debug, Default)]
pub struct ColumnView<'a> {
    /// One bit per value, least significant first, 1 = present; empty where every value is present.
    pub validity: &'a [u8],
    /// Of text, bytes and lists: one s32 more than there are values. Else empty.
    pub offsets: &'a [u8],
    /// The values.
    pub values: &'a [u8],
}

/// A column that the host answers during a call.
#[derive(Clone, Debug, Default)]
pub struct OwnedColumn {
    /// As in [`ColumnView`].
    pub validity: Vec<u8>,
    /// As in [`ColumnView`].
    pub offsets: Vec<u8>,
    /// As in [`ColumnView`].
    pub values: Vec<u8>,
}

impl OwnedColumn {
    /// Its bytes.
    pub fn view(&self) -> ColumnView<'_> {
        ColumnView { validity: &self.validity, offsets: &self.offsets, values: &self.values }
    }
}

/// Rows with the columns that a node reads.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    /// How many.
    pub rows: usize,
    /// An s64 per row, or empty.
    pub timestamps: &'a [u8],
    /// Nested columns flattened depth first.
    pub columns: &'a [ColumnView<'a>],
}

/// The distinct keys of a call and their state.
#[derive(Clone, Copy, Debug)]
pub struct KeySetView<'a> {
    /// How many.
    pub keys: usize,
    /// A u32 per row: the number of the row's key.
    pub key_of_row: &'a [u8],
    /// Per declared state of kind `value`, flattened: one value per key.
    pub states: &'a [ColumnView<'a>],
}

/// Timers that are due.
#[derive(Clone, Copy, Debug)]
pub struct TimersView<'a> {
    /// Which time.
    pub domain: TimeDomain,
    /// An s64 per timer.
    pub timestamps: &'a [u8],
    /// One value per distinct key, flattened.
    pub key_columns: &'a [ColumnView<'a>],
    /// The keys and their state; `key_of_row` is per timer.
    pub keys: KeySetView<'a>,
}

/// The times of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallClock {
    /// In milliseconds UTC; [`NO_WATERMARK`] before the first.
    pub watermark: i64,
    /// In milliseconds UTC.
    pub processing_time: i64,
}

/// Event time or processing time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimeDomain {
    /// Driven by watermarks.
    Event,
    /// Driven by the clock.
    Processing,
}

/// How urgent a message to the people who run the job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the author.
    Debug,
    /// Worth knowing.
    Info,
    /// Look at it.
    Warn,
    /// Something is wrong.
    Error,
}

/// Why a call did not succeed. Nothing of it takes effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Something passing: the host calls again with the same rows.
    Retry(String),
    /// These rows of the call, for these reasons.
    Rows(Vec<(u32, String)>),
    /// It will never succeed.
    Fatal(String),
}

/// Why one row can't be processed. It goes to the dead-letter output with this reason; the job goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowError(String);

impl RowError {
    /// With a reason for the people who look at the dead letters.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// The reason.
    pub fn reason(&self) -> &str {
        &self.0
    }
}

/// Any error is a reason, so that `?` works in row functions. (For this to hold, `RowError` itself is not an `Error`.)
impl<E: std::error::Error> From<E> for RowError {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an operator may ask of the host during a call. Slices are read before the function returns.
pub trait HostCalls {
    /// Emits rows that derive from those of the call: `rows` (none: all, in order), with the port's new columns.
    fn forward(&mut self, port: u32, rows: Option<&[u32]>, columns: &[ColumnView<'_>]);

    /// Emits new rows with all columns of the port.
    fn emit(&mut self, port: u32, rows: u32, timestamps: &[i64], columns: &[ColumnView<'_>]);

    /// Stores values of a state for some key numbers.
    fn put(&mut self, state: u32, keys: &[u32], values: &[ColumnView<'_>]);

    /// Appends to lists: an item per entry of `keys`.
    fn append(&mut self, state: u32, keys: &[u32], items: &[ColumnView<'_>]);

    /// Puts entries into maps.
    fn insert(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>], values: &[ColumnView<'_>]);

    /// Removes entries of maps.
    fn remove(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>]);

    /// Empties lists or maps.
    fn clear(&mut self, state: u32, keys: &[u32]);

    /// The lists (of maps: lists of structs of key and value) of these keys, as they were before the call.
    fn read(&mut self, state: u32, keys: &[u32]) -> Vec<OwnedColumn>;

    /// The values of entries of maps, as they were before the call; absent where there is none.
    fn get(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>]) -> Vec<OwnedColumn>;

    /// Sets timers.
    fn set_timers(&mut self, domain: TimeDomain, keys: &[u32], timestamps: &[i64]);

    /// Deletes timers.
    fn delete_timers(&mut self, domain: TimeDomain, keys: &[u32], timestamps: &[i64]);
}

/// The code of one node of the plan. A call that a node has no use for is a defect of the host.
pub trait NodeRuntime: Send {
    /// `transform` nodes.
    fn transform(
        &mut self,
        _clock: CallClock,
        _input: u32,
        _batch: &BatchView<'_>,
        _host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        Err(not_this_kind("transform"))
    }

    /// `process` nodes, rows.
    fn process(
        &mut self,
        _clock: CallClock,
        _input: u32,
        _batch: &BatchView<'_>,
        _keys: &KeySetView<'_>,
        _host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        Err(not_this_kind("process"))
    }

    /// `process` nodes, timers.
    fn on_timers(
        &mut self,
        _clock: CallClock,
        _timers: &TimersView<'_>,
        _host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        Err(not_this_kind("process"))
    }

    /// User aggregators: adds rows. The result is emitted on port 0.
    fn accumulate(
        &mut self,
        _aggregator: u32,
        _groups: usize,
        _group_of_row: &[u8],
        _batch: &BatchView<'_>,
        _accumulators: &[ColumnView<'_>],
        _host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        Err(not_this_kind("window"))
    }

    /// User aggregators: merges pairwise. The result is emitted on port 0.
    fn merge(
        &mut self,
        _aggregator: u32,
        _groups: usize,
        _left: &[ColumnView<'_>],
        _right: &[ColumnView<'_>],
        _host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        Err(not_this_kind("window"))
    }

    /// User aggregators: results. They are emitted on port 0.
    fn finish(
        &mut self,
        _aggregator: u32,
        _groups: usize,
        _accumulators: &[ColumnView<'_>],
        _host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        Err(not_this_kind("window"))
    }
}

fn not_this_kind(kind: &str) -> Failure {
    Failure::Fatal(format!("the host made a call for a {kind} node, which this is not"))
}

/// The event time of a row.
pub(crate) fn timestamp_at(timestamps: &[u8], row: usize) -> Option<Timestamp> {
    timestamps.as_chunks::<8>().0.get(row).map(|bytes| Timestamp::from_millis(i64::from_le_bytes(*bytes)))
}

/// A u32 per row.
pub(crate) fn number_at(numbers: &[[u8; 4]], row: usize) -> usize {
    numbers.get(row).map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize)
}
