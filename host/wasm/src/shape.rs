//! What a node may hand to the host: the columns of its ports, states and aggregators, prepared once per subtask.

use arrow::datatypes::{DataType as ArrowType, Field as ArrowField};
use tidemill_core::types::{arrow_field, arrow_type};
use tidemill_plan::{AggregateFunction, Node, NodeKind, Origin, State, StateKind};

/// The shapes of one node.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    pub(crate) ports: Vec<PortShape>,
    pub(crate) states: Vec<StateShape>,
    /// By index of the aggregate; `None` for those that the host computes.
    pub(crate) aggregators: Vec<Option<AggregatorShape>>,
}

/// One state.
#[derive(Debug)]
pub(crate) struct StateShape {
    /// Of a value, an item of a list, or a value of a map.
    pub(crate) field: ArrowField,
    pub(crate) kind: Kind,
}

/// What a state's changes look like.
#[derive(Debug)]
pub(crate) enum Kind {
    Value,
    List,
    /// With the field of its keys.
    Map(ArrowField),
    /// One map for all keys of the call, with the field of its keys.
    Broadcast(ArrowField),
    /// One list for all rows of the call.
    OperatorList,
}

/// One output port.
#[derive(Debug)]
pub(crate) struct PortShape {
    pub(crate) name: String,
    /// The columns that user code makes, in order.
    pub(crate) new: Vec<ArrowField>,
    /// Whether other columns are copied from the input row.
    pub(crate) inherits: bool,
}

/// One user aggregator.
#[derive(Debug)]
pub(crate) struct AggregatorShape {
    pub(crate) accumulator: ArrowField,
    pub(crate) result: ArrowField,
}

impl Shape {
    pub(crate) fn of(node: &Node) -> Self {
        let port = |output: &tidemill_plan::Output| PortShape {
            name: output.name.clone(),
            new: output.fields.iter().filter(|f| f.origin == Origin::New).map(|f| arrow_field(&f.field)).collect(),
            inherits: output.fields.iter().any(|f| f.origin != Origin::New),
        };
        let states = match &node.kind {
            NodeKind::Process { states, .. } => states.iter().map(state).collect(),
            _ => Vec::new(),
        };
        let aggregators = match &node.kind {
            NodeKind::Window { aggregates, .. } => {
                aggregates.iter().map(|a| aggregator(&a.name, &a.function)).collect()
            }
            _ => Vec::new(),
        };
        Self { ports: node.outputs.iter().map(port).collect(), states, aggregators }
    }
}

fn state(state: &State) -> StateShape {
    let key_field = |key| ArrowField::new(format!("key of {}", state.name), arrow_type(key), false);
    let kind = match &state.kind {
        StateKind::Value => Kind::Value,
        StateKind::List => Kind::List,
        StateKind::Map { key } => Kind::Map(key_field(key)),
        StateKind::Broadcast { key } => Kind::Broadcast(key_field(key)),
        StateKind::OperatorList { .. } => Kind::OperatorList,
    };
    StateShape { field: ArrowField::new(&state.name, arrow_type(&state.data_type), true), kind }
}

fn aggregator(name: &str, function: &AggregateFunction) -> Option<AggregatorShape> {
    let AggregateFunction::User { accumulator, output } = function else { return None };
    Some(AggregatorShape {
        accumulator: ArrowField::new(format!("accumulator of {name}"), arrow_type(accumulator), false),
        result: ArrowField::new(format!("result of {name}"), arrow_type(output), false),
    })
}

/// How many `column` records a type takes, depth first.
pub(crate) fn flat_columns(data_type: &ArrowType) -> usize {
    match data_type {
        ArrowType::Struct(fields) => 1 + fields.iter().map(|f| flat_columns(f.data_type())).sum::<usize>(),
        ArrowType::List(item) => 1 + flat_columns(item.data_type()),
        _ => 1,
    }
}
