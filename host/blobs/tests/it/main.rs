//! Places for bytes behave alike; the object store is a real one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod alike;
mod s3;
