//! The manifest, `tidemill.toml`: what binds a component's sources and sinks to the world, and how the job runs.
//!
//! It is parsed twice: `tree` knows where everything was typed, `meaning` what it means. Every error quotes the place.

mod keys;
mod meaning;
mod tree;
mod variables;

pub use keys::documentation;
pub use meaning::{Binding, Checkpoints, FILE_NAME, Limits, Manifest, Side, State};
