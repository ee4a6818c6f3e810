//! The plan document: what a component answers to `lifecycle.plan`.
//!
//! It is part of the contract beside `tidemill.wit`, and the one crate that both sides of the sandbox share: SDKs write
//! it, the host reads it. It is a JSON document rather than WIT records because a record can never gain a field, and
//! the job graph is what grows most (see `docs/decisions/0001-contract.md`). Unknown fields and kinds are refused.
//!
//! This crate only names shapes. What makes a plan valid is decided in `tidemill-core` (`graph`), where it is checked.

mod types;

pub use types::{DataType, Field};

use serde::{Deserialize, Serialize};

/// The version of the plan document that this crate writes and reads.
pub const PLAN_VERSION: u32 = 1;

/// A whole job graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// The job's default name.
    pub name: String,
    /// The operators, in topological order: a node's inputs come from nodes before it. A node is named by its index.
    pub nodes: Vec<Node>,
}

/// One operator of the job graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Names this operator across versions of the job: state is matched by it. Unique in the plan.
    pub uid: String,
    /// For people: shown in plans, metrics and errors.
    pub name: String,
    /// How many subtasks; absent: the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<u32>,
    /// Where its rows come from. None for a source, one or two otherwise (a union: one or more).
    #[serde(default)]
    pub inputs: Vec<Input>,
    /// What it emits. Port 0 is the main output, further ones are side outputs. None for a sink.
    #[serde(default)]
    pub outputs: Vec<Output>,
    /// What it does.
    pub kind: NodeKind,
}

/// One input of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Index of the node whose output this is.
    pub node: u32,
    /// Port of that node.
    #[serde(default)]
    pub port: u32,
    /// How rows find a subtask of this node.
    pub exchange: Exchange,
    /// The columns that the node's user code is given, as indices into the port's fields, in this order.
    /// Meaningful for `transform`, `process` and `window` nodes with user code; empty otherwise.
    #[serde(default)]
    pub reads: Vec<u32>,
}

/// How rows are distributed over the subtasks of the receiving node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Exchange {
    /// To the subtask of the same index (round-robin by subtask where the parallelism differs). Can be chained.
    Forward,
    /// Evenly, batch by batch.
    Rebalance,
    /// Every row to every subtask.
    Broadcast,
    /// By key group of these columns (indices into the port's fields). They are the key of a keyed node.
    Hash(Vec<u32>),
}

/// One output port of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// For people; unique among the node's ports.
    pub name: String,
    /// The columns of its rows.
    pub fields: Vec<OutputField>,
}

/// One column of an output port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OutputField {
    /// Name and type. Names are unique in the port.
    pub field: Field,
    /// Where its values come from.
    pub origin: Origin,
}

/// Where the values of an output column come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The operator makes them: a source reads them, user code emits them.
    New,
    /// The host copies them from the input row that the output row derives from.
    Input {
        /// Which input of the node. Joins: 0 = left, 1 = right. A `transform` with several inputs can't use it.
        input: u32,
        /// Index into the fields of that input's port.
        column: u32,
    },
    /// Windows: the start of the window, inclusive (a timestamp).
    WindowStart,
    /// Windows: the end of the window, exclusive (a timestamp).
    WindowEnd,
    /// Windows: the result of the aggregate with this index.
    Aggregate(u32),
}

/// What a node does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NodeKind {
    /// Rows from outside; the job's manifest binds `binding` to a connector. All origins are `new`.
    Source {
        /// The name that the manifest binds.
        binding: String,
        /// Event time and watermarks, made for each split of the source.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        event_time: Option<EventTime>,
    },
    /// Rows to outside; the job's manifest binds `binding` to a connector.
    Sink {
        /// The name that the manifest binds.
        binding: String,
    },
    /// All inputs as one stream. They have the same fields. One port; all origins are `input` with `input: 0`.
    /// (The host fills in the inputs' `reads`.)
    Union,
    /// Assigns event time and watermarks inside the stream, for when a column is computed after the source.
    /// One port; all origins are `input`.
    AssignEventTime(EventTime),
    /// Stateless user code. Origins are `new` or `input`.
    Transform {
        /// Whether the code reads the rows' timestamps.
        #[serde(default)]
        reads_timestamps: bool,
    },
    /// User code with state and timers. Its inputs are hashed by keys of the same types, or broadcast; or none is hashed, and
    /// either it is the only one or at least one is broadcast: then the node has no key, so no timers and no state but
    /// broadcast states and operator lists. With operator lists, it is told of the end of its input.
    /// Origins are `new` or `input`; with timers, `input` origins are possible on ports that timers do not emit to.
    Process {
        /// Whether the code reads the rows' timestamps.
        #[serde(default)]
        reads_timestamps: bool,
        /// The state of each key, then that without a key (`broadcast`, `operator_list`).
        #[serde(default)]
        states: Vec<State>,
    },
    /// Event-time windows by key (by none: one key). Its input is hashed by the key.
    /// Origins: `input` (columns of the key), `window_start`, `window_end`, `aggregate`; of the late port: `input`.
    Window {
        /// Which windows a row belongs to.
        windows: Windows,
        /// How long after its end a window still takes late rows and fires again, in milliseconds.
        #[serde(default)]
        allowed_lateness_ms: u64,
        /// Port that gets the rows which are later than that. Absent: they are counted and dropped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        late_port: Option<u32>,
        /// What is computed of each window.
        aggregates: Vec<Aggregate>,
    },
    /// Pairs of rows with equal keys in the same tumbling or sliding window. Both inputs are hashed. Origins: `input`.
    WindowJoin {
        /// Tumbling or sliding.
        windows: Windows,
    },
    /// Pairs of rows with equal keys and `left.time + lower <= right.time <= left.time + upper`. Both inputs are
    /// hashed. Origins: `input`. A pair's timestamp is the larger of the two.
    IntervalJoin {
        /// In milliseconds; may be negative.
        lower_ms: i64,
        /// In milliseconds, inclusive; not below `lower_ms`.
        upper_ms: i64,
    },
}

/// How event time is read off rows, and how far out of order they come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EventTime {
    /// Index of a timestamp column that holds the event time. A row without one is malformed.
    pub column: u32,
    /// The watermark is the largest timestamp seen, less this, less 1 ms.
    #[serde(default)]
    pub out_of_orderness_ms: u64,
    /// A split without rows for this long (processing time) no longer holds the watermark back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_after_ms: Option<u64>,
}

/// Windows over event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Windows {
    /// `[offset + n * size, offset + (n + 1) * size)`.
    Tumbling {
        /// In milliseconds, above 0.
        size_ms: u64,
        /// In milliseconds.
        #[serde(default)]
        offset_ms: i64,
    },
    /// A window of `size` every `slide`.
    Sliding {
        /// In milliseconds; a multiple of `slide_ms`.
        size_ms: u64,
        /// In milliseconds, above 0.
        slide_ms: u64,
        /// In milliseconds.
        #[serde(default)]
        offset_ms: i64,
    },
    /// A row at t opens `[t, t + gap)`; windows that overlap or touch merge.
    Session {
        /// In milliseconds, above 0.
        gap_ms: u64,
    },
}

/// One aggregate of a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Aggregate {
    /// For people.
    pub name: String,
    /// What is computed.
    pub function: AggregateFunction,
}

/// What an aggregate computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AggregateFunction {
    /// Number of rows, as an i64.
    Count,
    /// Sum of a numeric column, nulls left out: i64 or u64 (wrapping never: an overflow fails the job) or f64.
    Sum(u32),
    /// Smallest value of a numeric or timestamp column, nulls left out.
    Min(u32),
    /// Largest value of a numeric or timestamp column, nulls left out.
    Max(u32),
    /// Mean of a numeric column as an f64, nulls left out.
    Avg(u32),
    /// The component's code (interface `aggregate`); it is given the columns of the input's `reads`.
    User {
        /// Type of the accumulator, which the host keeps.
        accumulator: DataType,
        /// Type of the result.
        output: DataType,
    },
}

/// One state of a `process` node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Names the state across versions of the job. Unique in the node.
    pub name: String,
    /// Its kind.
    pub kind: StateKind,
    /// Type of its value; of a list's items (an operator list's too); of the values of a map or broadcast state.
    pub data_type: DataType,
    /// How long a value lives. Absent: until it is removed. Only for `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
}

impl State {
    /// A state with one value per key, which lives until it is removed.
    pub fn value(name: impl Into<String>, data_type: DataType) -> Self {
        Self { name: name.into(), kind: StateKind::Value, data_type, ttl: None }
    }
}

/// The kinds of state: of each key, but for `broadcast` and `operator_list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StateKind {
    /// One value per key, sent whole with each batch that has the key.
    Value,
    /// A list per key. Not sent: what the code does to it are deltas, and it asks for what it reads
    /// (interface `collections`). An empty list and none are the same.
    List,
    /// A map per key, with one value per map key; as a list is not sent. An empty map and none are the same.
    Map {
        /// Type of the map's keys, which are never absent.
        key: DataType,
    },
    /// One map for all keys, which every subtask has whole. It is not sent either. Only rows of a broadcast input change it.
    Broadcast {
        /// Type of the map's keys, which are never absent; a type that a stream could be keyed by.
        key: DataType,
    },
    /// A list that each subtask of a node without a key has for itself. It is not sent either. An empty list and none are the
    /// same. At the same parallelism a subtask goes on with its own.
    OperatorList {
        /// What becomes of the lists at another parallelism.
        redistribution: Redistribution,
    },
}

/// How the operator lists of all subtasks come to another number of subtasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Redistribution {
    /// One after the other, cut into as many parts as there are subtasks now, whose lengths differ by one at most: each item
    /// is in one list, in the same order.
    Split,
    /// Every subtask gets all, one after the other.
    Union,
}

/// How long values of a state live after they were accessed, in processing time. A value that is over is never seen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Ttl {
    /// In milliseconds, above 0.
    pub duration_ms: u64,
    /// What counts as an access.
    #[serde(default)]
    pub update: TtlUpdate,
}

/// What makes a value live on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TtlUpdate {
    /// Storing it.
    #[default]
    OnCreateAndWrite,
    /// Storing it, and every row or timer of its key that is processed: the value is sent with it.
    OnReadAndWrite,
}

/// The JSON Schema of the plan document, for authors of SDKs in other languages.
#[cfg(feature = "schema")]
pub fn json_schema() -> schemars::Schema {
    schemars::schema_for!(Plan)
}
