//! Whole jobs on connectors of memory, stepped in seeded orders and run in threads.

mod cost;
mod failures;
mod four_ways;
mod random;
mod support;
mod time;
mod topologies;
