//! The Rust SDK of Tidemill: write a job, test it natively, ship it as one WebAssembly component.
//!
//! ```
//! use tidemill::prelude::*;
//!
//! #[derive(Row)]
//! struct Bid { auction: i64, price: i64, date_time: Timestamp } // names the columns that are read
//!
//! #[derive(Row)]
//! struct Hot { auction: i64, bids: i64, window_end: Timestamp }
//!
//! #[tidemill::job]
//! fn hot_items(flow: &mut Flow) {
//!     flow.source::<Bid>("bids")
//!         .watermark(|b| b.date_time, BoundedOutOfOrderness::secs(4))
//!         .filter(|b| b.price > 100)
//!         .key_by(|b| b.auction)
//!         .window(Sliding::secs(10, 2))
//!         .aggregate(Count) // a built-in: runs natively in the host
//!         .map(|w| Hot { auction: w.key, bids: w.value, window_end: w.end })
//!         .sink("hot");
//! }
//! # let _ = hot_items;
//! ```
//!
//! There are two kinds of closures. Those of `key_by`, `watermark`, `on` and `aggregate` take *handles of columns* and
//! say which column is meant; they run once, when the job is planned. Those of `map`, `filter`, `flat_map` and the
//! functions of a [`KeyedProcess`] take *rows* and run in the sandbox. Consecutive ones are one crossing per batch.
//!
//! To read the code begin with [`value`] and [`row`] (what a row is), then [`stage`] (chains of row functions),
//! [`stream`], [`keyed`], [`window`], [`aggregate`], [`process`] with [`collections`], [`broadcast`] and [`unkeyed`], and
//! [`join`] (what a job is built from), [`flow`] (its graph); [`abi`] is the border to the host, `guest` the component.

// The macros write `::tidemill`, here too.
extern crate self as tidemill;

pub mod abi;
pub mod aggregate;
pub mod broadcast;
#[cfg(target_arch = "wasm32")]
mod bytes;
mod cells;
pub mod collections;
pub mod flow;
#[cfg(target_arch = "wasm32")]
pub mod guest;
pub mod join;
pub mod keyed;
pub mod log;
pub mod process;
pub mod row;
pub mod stage;
pub mod stream;
pub mod time;
pub mod unkeyed;
pub mod value;
pub mod window;

pub use abi::RowError;
pub use aggregate::Aggregator;
pub use flow::Flow;
pub use process::KeyedProcess;
pub use row::{Col, EmitRow, IntoRow, Row};
pub use stream::Stream;
pub use tidemill_macros::{Row, job};
pub use tidemill_plan as plan;
pub use time::Timestamp;
pub use unkeyed::Process;
pub use value::Value;

/// Everything that a job usually needs.
pub mod prelude {
    pub use crate::abi::RowError;
    pub use crate::aggregate::{Aggregator, Avg, Count, Max, Min, Sum};
    pub use crate::broadcast::{BroadcastContext, BroadcastProcess, BroadcastState, KeyedBroadcastProcess};
    pub use crate::collections::{ListState, MapState};
    pub use crate::flow::Flow;
    pub use crate::join::before;
    pub use crate::process::{Context, KeyedProcess, Prefetch, Side, States, Ttl, ValueState};
    pub use crate::row::{Col, IntoRow, Row};
    pub use crate::stream::Stream;
    pub use crate::time::{BoundedOutOfOrderness, Date, Timestamp, days, hours, millis, mins, secs};
    pub use crate::unkeyed::{OperatorListState, Process, UnkeyedContext};
    pub use crate::window::{Session, Sliding, Tumbling, Windowed, WindowedRow};
    pub use std::time::Duration;
    pub use tidemill_macros::Row;
}
