//! The connectors that need no outside system: the bids generator, the process's own input and output, and two sinks
//! that keep everything inside. In reading order:

pub mod bids;
pub mod blackhole;
pub mod collect;
pub mod print;
pub mod stdin;

pub use bids::Bids;
pub use blackhole::{Blackhole, Term, Totals};
pub use collect::{Collect, Collected};
pub use print::Print;
pub use stdin::Stdin;

use tidemill_connector_kit::Registry;

/// Adds all of them to a registry.
pub fn register(registry: &mut Registry) {
    registry.register(Bids);
    registry.register(Stdin::of_process());
    registry.register(Print::stdout());
    registry.register(Blackhole);
}
