//! The physical plan: the pruned graph, how many subtasks each node has, and which edges cross slots.
//!
//! Slot k runs subtask k of every node with a parallelism above k. An edge is *local* where each sender has exactly
//! one receiver and that is in its own slot; every other edge is an *exchange* between all slots that take part.

use std::fmt;

use tidemill_core::graph::JobGraph;
use tidemill_core::ids::{InputIndex, NodeId, Port};
use tidemill_core::plan::{Exchange, NodeKind};
use tidemill_core::{Error, Result};

use crate::job::JobSettings;

/// What is to be built.
#[derive(Clone, Debug)]
pub struct PhysicalPlan {
    graph: JobGraph,
    parallelism: Vec<u32>,
    edges: Vec<Edge>,
}

/// A port of a node that feeds an input of another.
#[derive(Clone, Debug)]
pub struct Edge {
    /// Whose port.
    pub from: NodeId,
    /// Which port.
    pub port: Port,
    /// Whose input.
    pub to: NodeId,
    /// Which input.
    pub input: InputIndex,
    /// How rows find a subtask.
    pub exchange: Exchange,
    /// Subtasks of the sender.
    pub senders: u32,
    /// Subtasks of the receiver.
    pub receivers: u32,
}

impl Edge {
    /// Whether it stays in the slot.
    pub fn is_local(&self) -> bool {
        (self.senders == 1 && self.receivers == 1)
            || (self.exchange == Exchange::Forward && self.senders == self.receivers)
    }

    /// Whether a sending subtask can send to a receiving one. A forward between nodes of different parallelism pairs
    /// them round-robin, so that every subtask of both has a partner.
    pub fn connects(&self, sender: u32, receiver: u32) -> bool {
        match self.exchange {
            Exchange::Forward if self.senders < self.receivers => receiver % self.senders == sender,
            Exchange::Forward => sender % self.receivers == receiver,
            Exchange::Rebalance | Exchange::Broadcast | Exchange::Hash(_) => true,
        }
    }
}

impl PhysicalPlan {
    /// Prunes the graph and places it. Errors where a parallelism is impossible.
    pub fn new(graph: &JobGraph, settings: &JobSettings) -> Result<Self> {
        let graph = graph.clone().prune();
        let limit = u32::from(settings.max_parallelism.get());
        let mut parallelism = Vec::new();
        for node in graph.nodes() {
            let subtasks = node.parallelism.unwrap_or(settings.parallelism);
            if subtasks == 0 || subtasks > limit {
                let message = format!("operator '{}' is to run with parallelism {subtasks}", node.name);
                return Err(Error::invalid(message)
                    .mend(format!("Choose 1 to {limit} (the job's number of key groups, max_parallelism).")));
            }
            parallelism.push(subtasks);
        }
        let of = |node: u32| parallelism.get(node as usize).copied().unwrap_or(1);
        let mut edges = Vec::new();
        for (id, node) in graph.iter() {
            for (index, input) in node.inputs.iter().enumerate() {
                edges.push(Edge {
                    from: NodeId(input.node),
                    port: Port(input.port),
                    to: id,
                    input: InputIndex(index as u32),
                    exchange: input.exchange.clone(),
                    senders: of(input.node),
                    receivers: of(id.0),
                });
            }
        }
        Ok(Self { graph, parallelism, edges })
    }

    /// The pruned graph.
    pub fn graph(&self) -> &JobGraph {
        &self.graph
    }

    /// Subtasks of a node.
    pub fn parallelism(&self, node: NodeId) -> u32 {
        self.parallelism.get(node.index()).copied().unwrap_or(1)
    }

    /// All edges, by receiving node and input.
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// Slots that the job needs.
    pub fn slots(&self) -> u32 {
        self.parallelism.iter().copied().max().unwrap_or(1)
    }

    /// Whether some node keeps state that a stop without a savepoint loses.
    pub fn is_stateful(&self) -> bool {
        self.graph.nodes().iter().any(|node| {
            matches!(
                node.kind,
                NodeKind::Process { .. }
                    | NodeKind::Window { .. }
                    | NodeKind::WindowJoin { .. }
                    | NodeKind::IntervalJoin { .. }
            )
        })
    }
}

impl fmt::Display for PhysicalPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} slots", self.slots())?;
        for (id, node) in self.graph.iter() {
            writeln!(f, "{:>3}  {} x{}", id.0, node.name, self.parallelism(id))?;
            for edge in self.edges.iter().filter(|e| e.to == id) {
                let how = match &edge.exchange {
                    _ if edge.is_local() => "in the slot".to_owned(),
                    Exchange::Forward => "forward between slots".to_owned(),
                    Exchange::Rebalance => "rebalance".to_owned(),
                    Exchange::Broadcast => "broadcast".to_owned(),
                    Exchange::Hash(columns) => {
                        let fields = self.graph.fields(edge.from, edge.port).unwrap_or_default();
                        let names = columns.iter().filter_map(|&c| fields.get(c as usize));
                        format!("hash({})", names.map(|f| f.field.name.as_str()).collect::<Vec<_>>().join(", "))
                    }
                };
                writeln!(f, "       <- {} ({}), {how}", edge.from.0, edge.port)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_gives_every_subtask_a_partner_and_no_receiver_two_ways() {
        for (senders, receivers) in [(1, 1), (1, 4), (4, 1), (2, 3), (3, 2), (2, 6), (5, 5)] {
            let (from, to, exchange) = (NodeId(0), NodeId(1), Exchange::Forward);
            let edge = Edge { from, port: Port(0), to, input: InputIndex(0), exchange, senders, receivers };
            let pairs = (0..senders).flat_map(|s| (0..receivers).map(move |r| (s, r)));
            let pairs: Vec<_> = pairs.filter(|&(s, r)| edge.connects(s, r)).collect();
            assert_eq!(pairs.len() as u32, senders.max(receivers), "{senders} to {receivers}: {pairs:?}");
            assert!((0..senders).all(|s| pairs.iter().any(|p| p.0 == s)));
            assert!((0..receivers).all(|r| pairs.iter().any(|p| p.1 == r)));
        }
    }
}
