//! Edges between slots: which receiver a row goes to ([`partition`]), and the way there ([`queue`]).

pub mod partition;
pub mod queue;
