//! A job as a user hands it over: a component and a manifest. Here they become what the engine runs, in whichever process.
//!
//! In reading order:

pub mod component;
mod components;
pub mod definition;
pub mod manifest;

mod bind;
mod environment;
mod spec;

pub use bind::{check_bindings, sources_total};
pub use component::Loaded;
pub use components::Components;
pub use definition::JobDefinition;
pub use environment::{Environment, Program};
pub use manifest::Manifest;
pub use spec::{checkpoints, job_name, spec};
