//! The joins on their own: against nested loops, at their limits, and with the benchmark's input.

mod bids;
mod bounds;
mod driver;
mod model;
