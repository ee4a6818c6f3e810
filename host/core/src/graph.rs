//! The job graph: a plan that was checked, and that was cut down to the columns which somebody reads.
//!
//! Invariant: in a [`JobGraph`] every index is in bounds, every type fits, and every node's inputs come before it; the
//! rest of the host relies on it and does not look again.

mod check;
mod prune;

use arrow::datatypes::SchemaRef;
use tidemill_plan::{AggregateFunction, DataType, Exchange, Node, NodeKind, OutputField, Plan};

use crate::error::{Error, Result};
use crate::ids::{NodeId, Port};
use crate::keys::KeyCodec;
use crate::types::{arrow_schema, arrow_type};

/// A plan has at most this many nodes: more is a mistake (or an attack), and every node costs a task per slot.
pub const MAX_NODES: usize = 1_000;
/// A port has at most this many columns.
pub const MAX_FIELDS: usize = 1_000;

/// A checked job graph.
#[derive(Clone, Debug)]
pub struct JobGraph {
    name: String,
    nodes: Vec<Node>,
}

impl JobGraph {
    /// Checks a plan. Errors name the node and the mend.
    pub fn from_plan(plan: Plan) -> Result<Self> {
        check::check(&plan)?;
        Ok(Self { name: plan.name, nodes: plan.nodes })
    }

    /// The same graph without the columns that nobody reads: sources do not even produce them.
    /// User code sees no difference: it gets what it `reads`, and what it emits as `new` stays.
    pub fn prune(self) -> Self {
        Self { nodes: prune::prune(self.nodes), name: self.name }
    }

    /// The job's default name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The nodes in topological order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, node)| (NodeId(i as u32), node))
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> Result<&Node> {
        self.nodes.get(id.index()).ok_or_else(|| Error::internal(format!("{id} of {} nodes", self.nodes.len())))
    }

    /// The columns of a port.
    pub fn fields(&self, id: NodeId, port: Port) -> Result<&[OutputField]> {
        let output = self.node(id)?.outputs.get(port.index());
        output.map(|o| o.fields.as_slice()).ok_or_else(|| Error::internal(format!("{port} of {id}")))
    }

    /// The columns of a port, as the host holds them.
    pub fn schema(&self, id: NodeId, port: Port) -> Result<SchemaRef> {
        Ok(arrow_schema(self.fields(id, port)?.iter().map(|f| &f.field)))
    }

    /// The columns that arrive at an input of a node.
    pub fn input_fields(&self, node: &Node, input: usize) -> Result<&[OutputField]> {
        let from = node.inputs.get(input).ok_or_else(|| Error::internal(format!("input {input} of '{}'", node.uid)))?;
        self.fields(NodeId(from.node), Port(from.port))
    }

    /// The codec of the key by which an input of a node is hashed. The exchange before the node and the node's state
    /// both use it: a key has one encoding, and so one hash and one key group, on all inputs of the node (which is why
    /// a nullable column of one input counts for all).
    pub fn key_codec(&self, node: &Node, input: usize) -> Result<KeyCodec> {
        let mut types = Vec::new();
        let mut nullable = false;
        for (index, from) in node.inputs.iter().enumerate() {
            let fields = self.input_fields(node, index)?;
            for &column in key_of(&from.exchange).unwrap_or_default() {
                let field = fields.get(column as usize).map(|f| &f.field);
                let field = field.ok_or_else(|| Error::internal(format!("key column {column} of '{}'", node.uid)))?;
                nullable |= field.nullable;
                if index == input {
                    types.push(arrow_type(&field.data_type));
                }
            }
        }
        KeyCodec::new(&types, nullable)
    }

    /// Which nodes run the component's code.
    pub fn user_nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.iter().filter(|(_, node)| runs_user_code(node))
    }
}

/// Whether a node runs the component's code.
pub fn runs_user_code(node: &Node) -> bool {
    match &node.kind {
        NodeKind::Transform { .. } | NodeKind::Process { .. } => true,
        NodeKind::Window { aggregates, .. } => {
            aggregates.iter().any(|a| matches!(a.function, AggregateFunction::User { .. }))
        }
        _ => false,
    }
}

/// Whether an operator has a key: the first input that is hashed.
pub fn keyed_input(node: &Node) -> Option<usize> {
    node.inputs.iter().position(|input| key_of(&input.exchange).is_some())
}

/// The columns by which an input is hashed, as indices into the fields that arrive.
pub fn key_of(exchange: &Exchange) -> Option<&[u32]> {
    match exchange {
        Exchange::Hash(columns) => Some(columns),
        _ => None,
    }
}

/// The result type of a built-in or user aggregate over input fields, and whether it can be null.
pub fn aggregate_type(function: &AggregateFunction, fields: &[OutputField]) -> Option<(DataType, bool)> {
    let column = |index: &u32| fields.get(*index as usize).map(|f| &f.field);
    match function {
        AggregateFunction::Count => Some((DataType::Int64, false)),
        AggregateFunction::Sum(index) => {
            let field = column(index)?;
            Some((sum_type(&field.data_type)?, field.nullable))
        }
        AggregateFunction::Min(index) | AggregateFunction::Max(index) => {
            let field = column(index)?;
            let ordered =
                sum_type(&field.data_type).is_some() || matches!(field.data_type, DataType::Timestamp | DataType::Date);
            ordered.then(|| (field.data_type.clone(), field.nullable))
        }
        AggregateFunction::Avg(index) => {
            let field = column(index)?;
            sum_type(&field.data_type)?;
            Some((DataType::Float64, field.nullable))
        }
        AggregateFunction::User { output, .. } => Some((output.clone(), false)),
    }
}

/// The type of a sum over numbers of a type; `None` where it isn't a number.
pub fn sum_type(data_type: &DataType) -> Option<DataType> {
    use DataType::*;
    match data_type {
        Int8 | Int16 | Int32 | Int64 => Some(Int64),
        UInt8 | UInt16 | UInt32 | UInt64 => Some(UInt64),
        Float32 | Float64 => Some(Float64),
        _ => None,
    }
}
