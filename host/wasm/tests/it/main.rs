//! The sandbox from outside: good and evil guests, built from `tests/guests` by the test itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers of tests fail as tests do"
)]

mod contract;
mod evil;
mod good;
mod guests;
mod load;
mod other_languages;
