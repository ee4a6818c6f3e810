//! Whole jobs on connectors of memory, stepped in seeded orders and run in threads.

mod cost;
mod failures;
mod random;
mod four_ways;
mod support;
mod time;
mod topologies;
