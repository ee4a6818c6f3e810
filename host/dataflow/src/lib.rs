//! The engine of one process: runs a job graph in slots.
//!
//! It knows no connector and no sandbox: sources, sinks, user code and state come in through the contracts of
//! `tidemill-core`. In reading order:

// What is asked for, and what is to be built for it.
pub mod job;
pub mod physical;

// What flows, inside a slot and between slots.
pub mod element;
pub mod exchange;
mod in_flight;
pub mod snapshot;

// What the operators do.
pub mod operators;
pub mod transaction;

// What it begins with.
mod replay;
pub mod restore;

// A slot's part of the job, step by step.
mod event_time;
pub mod letters;
pub mod record;
pub mod slice;
pub mod splits;

// Who steps it: threads, or a test.
mod collect;
mod commit;
pub mod coordinate;
pub mod driver;
pub mod signals;
pub mod stepper;
pub mod takeover;

pub use coordinate::{CheckpointAnswer, CheckpointFigures, Checkpoints, SavepointRequest, commit_ended, fenced};
pub use driver::{JobControl, JobHandle, run, run_with};
pub use job::{Ending, JobReport, JobSettings, JobSpec, TaskStatus};
pub use stepper::{Stepped, Stepper};
