//! The sandbox: runs the code of users as WebAssembly components, and lets nothing else of theirs into the host.
//!
//! It knows the contract (`wit/`) and the engine's idea of user code ([`tidemill_core::user`]), and turns one into the
//! other. A component comes in through [`Sandbox::load`], says what it wants to be in [`Component::plan`], and runs
//! behind [`WasmCode`]. Everything that a component hands over is taken for hostile until it was checked.
//!
//! In reading order:

mod limits;

mod componentize;
mod contract;

mod cache;
mod component;
mod engine;
mod trusted;

mod collections;
mod crossing;
mod host;
mod lift;
mod lower;
mod shape;
mod state;
mod wasi;

mod code;
mod trap;

pub use code::WasmCode;
pub use component::{Component, Extern, Sizes};
pub use componentize::componentize;
pub use contract::CONTRACT_VERSION;
pub use engine::{Sandbox, SandboxSettings};
pub use limits::Limits;
