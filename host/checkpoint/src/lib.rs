//! Checkpoints: what one is, when one is taken, and where it is kept.
//!
//! In reading order:

pub mod manifest;
