//! A whole cluster in one thread, from a seed: the coordinator, the masters of its jobs, workers with their slots and
//! channels, and the protocol and log of checkpoints are the ones that run in production; the network, the store, clocks and
//! the outside world are simulated, and go wrong as the seed wants it. The same seed gives the same history.
//!
//! `docs/decisions/0013-simulation.md` says what is simulated and what is not. In reading order:

// Chance, time and what is outside.
mod dice;
mod network;
mod outside;
mod store;
mod world;

// The job.
mod connectors;
mod job;

// The cluster.
mod coordinator;
mod simulation;
mod worker;

mod sabotage;

pub use outside::Verdict;
pub use sabotage::Sabotage;
pub use simulation::{Outcome, simulate};
