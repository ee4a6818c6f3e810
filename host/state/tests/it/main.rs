//! The memory backend behind its contract.

mod contract;
mod model;
