//! The bids benchmark: what is asked, how fast a loop written by hand answers it, and what the right answer is.
//!
//! Every system that is compared runs the same events and must give the same sums; this crate holds the two answers that
//! owe nothing to the engine. The invariant: [`hand`] and [`mod@reference`] share no code beyond the plain data in [`query`],
//! so that a mistake in one of them shows as a difference between them. What this is not: a generator for the engine
//! (that is the `bids` source of `connectors/builtin`).

// What is asked: parameters, queries, answers and the answers that were published.
pub mod query;

// The hand twin: single-threaded loops, the bar that the engine is measured against.
pub mod hand;

// The slow and obviously correct twin, for tests here and in other crates.
pub mod reference;

// What a run costs.
pub mod measure;

// Components of the queries.
pub mod guests;

// The sandboxed and the native twin.
pub mod engine;

// What snapshots of a large state cost.
pub mod state;

// What only a cluster has: submitting, recovering, the way between processes.
pub mod cluster;

// The page that people read.
pub mod report;
