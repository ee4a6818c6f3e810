//! The engine of one process: runs a job graph in slots.
//!
//! It knows no connector and no sandbox: sources, sinks, user code and state come in through the contracts of
//! `tidemill-core`. In reading order:

pub mod job;
pub mod operators;
pub mod record;
pub mod transaction;
