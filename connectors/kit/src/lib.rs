//! What every connector needs and none should write again: options, formats, and the tests that a connector must pass.
//!
//! A connector crate depends on this one and on `tidemill-core`, and on nothing else of the host. In reading order:

pub mod buffers;
pub mod connector;
pub mod format;
pub mod options;
pub mod queue;
pub mod reading;
pub mod suggest;

#[doc(hidden)]
pub mod conformance;

pub use buffers::Buffers;
pub use connector::{Binding, Connector, NothingToCommit, Registry, Setup};
pub use options::{ByteSize, Key, OptionSpec, OptionValue, Options};
