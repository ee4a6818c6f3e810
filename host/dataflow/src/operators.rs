//! The operators, one module each, and the one place that chooses among them.

pub mod join;

use tidemill_core::graph::JobGraph;
use tidemill_core::ids::NodeId;
use tidemill_core::operator::OperatorContext;
use tidemill_core::state::StateBackend;
use tidemill_core::user::UserCode;

/// What an operator is made from. Each operator module has `fn build(build: Build<'_>) -> Result<Box<dyn Operator>>`.
pub struct Build<'a> {
    /// The job, checked and pruned.
    pub graph: &'a JobGraph,
    /// Which node.
    pub id: NodeId,
    /// The subtask's surroundings.
    pub context: OperatorContext,
    /// Makes its keyed state.
    pub backend: &'a dyn StateBackend,
    /// An instance of the node's user code, for nodes that run some.
    pub user: Option<Box<dyn UserCode>>,
}
