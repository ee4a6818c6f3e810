//! The operators, one module each, and the one place that chooses among them.
//!
//! Sources, sinks and `AssignEventTime` are not here: they make watermarks or talk to connectors, which the slice does.

pub mod emit;
mod process;
mod transform;
mod union;

mod admit;
mod aggregate;
pub mod join;
pub mod window;

use tidemill_core::graph::JobGraph;
use tidemill_core::ids::{MaxParallelism, NodeId};
use tidemill_core::keys::KeyCodec;
use tidemill_core::operator::{Operator, OperatorContext};
use tidemill_core::plan::NodeKind;
use tidemill_core::snapshot::{KeyGroupRange, RestoredState, StateSpec};
use tidemill_core::state::{KeyedState, StateBackend};
use tidemill_core::time::Watermark;
use tidemill_core::user::UserCode;
use tidemill_core::{Error, Result};

/// What mends that state is restored and not declared.
const DECLARE_AGAIN: &str = "Declare it again, or drop it with --allow-non-restored.";

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
    /// What it begins with.
    pub begin: Begin,
    /// An instance of the node's user code, for nodes that run some.
    pub user: Option<Box<dyn UserCode>>,
}

/// What an operator subtask begins with.
#[derive(Clone)]
pub struct Begin {
    /// Which keys it will be asked for.
    pub key_groups: KeyGroupRange,
    /// Its keyed state.
    pub restored: Option<RestoredState>,
    /// Its broadcast states, by name.
    pub broadcast: Vec<(String, RestoredState)>,
    /// Its operator lists.
    pub lists: Vec<RestoredList>,
    /// The watermark that it had with that state: what was due then has fired.
    pub watermark: Watermark,
}

impl Begin {
    /// With nothing, for all keys.
    pub fn fresh(max_parallelism: MaxParallelism) -> Self {
        let key_groups = KeyGroupRange::all(max_parallelism);
        Self { key_groups, restored: None, broadcast: Vec::new(), lists: Vec::new(), watermark: Watermark::MIN }
    }
}

/// What is kept of an operator list, and whose it was.
#[derive(Clone)]
pub struct RestoredList {
    /// Its name.
    pub name: String,
    /// Whether the parallelism is what it was: then there is no other piece than what the subtask had. Else there are those of
    /// all subtasks, in their order.
    pub own: bool,
    /// The lists of subtasks.
    pub pieces: Vec<RestoredPiece>,
}

/// The operator list of one subtask.
#[derive(Clone)]
pub struct RestoredPiece {
    /// How many items it has.
    pub items: u64,
    /// The items.
    pub from: RestoredState,
}

impl Build<'_> {
    /// The operator's keyed state, for keys of this codec.
    fn open_state(&self, codec: KeyCodec) -> Result<Box<dyn KeyedState>> {
        self.backend.open(self.state_spec(codec)?)
    }

    /// What that is opened with.
    fn state_spec(&self, codec: KeyCodec) -> Result<StateSpec> {
        Ok(StateSpec {
            codec,
            operator: self.graph.node(self.id)?.uid.clone(),
            key_groups: self.begin.key_groups,
            max_parallelism: self.context.max_parallelism,
            restored: self.begin.restored.clone(),
        })
    }
}

/// Makes the operator of a node.
pub fn build(build: Build<'_>) -> Result<Box<dyn Operator>> {
    let node = build.graph.node(build.id)?;
    if !matches!(node.kind, NodeKind::Process { .. }) {
        let broadcast = build.begin.broadcast.iter().map(|(name, from)| ("broadcast state", name, from));
        let lists = build
            .begin
            .lists
            .iter()
            .flat_map(|list| list.pieces.iter().map(|p| ("operator list", &list.name, &p.from)));
        if let Some((what, name, _)) = broadcast.chain(lists).find(|(_, _, from)| !from.allow_non_restored) {
            let message = format!("the {what} '{name}' of operator '{}' was kept, and is not declared", node.uid);
            return Err(Error::invalid(message).mend(DECLARE_AGAIN));
        }
    }
    match node.kind {
        NodeKind::Transform { .. } => transform::build(build),
        NodeKind::Union => union::build(build),
        NodeKind::Process { .. } => process::build(build),
        NodeKind::Window { .. } => window::build(build),
        NodeKind::WindowJoin { .. } | NodeKind::IntervalJoin { .. } => join::build(build),
        NodeKind::Source { .. } | NodeKind::Sink { .. } | NodeKind::AssignEventTime(_) => {
            Err(Error::internal(format!("'{}' is not made here", node.name)))
        }
    }
}
