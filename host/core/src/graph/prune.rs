//! Leaves out the columns that nobody reads, from the sinks back to the sources.
//!
//! User code emits all `new` columns of its ports, so those stay; what the host makes or copies goes when unread.

use tidemill_plan::{AggregateFunction, EventTime, Exchange, Input, Node, NodeKind, Origin, Output};

pub(super) fn prune(mut nodes: Vec<Node>) -> Vec<Node> {
    let needed = needed_columns(&nodes);
    // For each port: the new index of each old column.
    let moved: Vec<Vec<Vec<Option<u32>>>> =
        needed.iter().map(|ports| ports.iter().map(|p| renumber(p)).collect()).collect();
    for (node, needed) in nodes.iter_mut().zip(&needed) {
        let sources: Vec<&[Option<u32>]> = node
            .inputs
            .iter()
            .map(|i| moved.get(i.node as usize).and_then(|n| n.get(i.port as usize)).map_or(&[][..], Vec::as_slice))
            .collect();
        rewrite_inputs(&mut node.inputs, &sources);
        if matches!(node.kind, NodeKind::Union) {
            read_union_columns(node, needed.first().map_or(&[][..], Vec::as_slice), &sources);
        }
        for (output, needed) in node.outputs.iter_mut().zip(needed) {
            rewrite_output(output, needed, &sources);
        }
        let input = sources.first().copied().unwrap_or_default();
        rewrite_kind(&mut node.kind, input);
        if let NodeKind::Source { event_time: Some(event_time), .. } = &mut node.kind {
            let own = renumber(needed.first().map_or(&[][..], Vec::as_slice));
            event_time.column = new_index(&own, event_time.column);
        }
    }
    nodes
}

/// Per node and port, whether each column is read.
fn needed_columns(nodes: &[Node]) -> Vec<Vec<Vec<bool>>> {
    let mut needed: Vec<Vec<Vec<bool>>> =
        nodes.iter().map(|n| n.outputs.iter().map(|o| vec![false; o.fields.len()]).collect()).collect();
    for (index, node) in nodes.iter().enumerate().rev() {
        let own = needed.get(index).cloned().unwrap_or_default();
        let own = keep_own(node, own);
        for (input_index, input) in node.inputs.iter().enumerate() {
            let from = nodes.get(input.node as usize).and_then(|n| n.outputs.get(input.port as usize));
            let columns = from.map_or(0, |o| o.fields.len() as u32);
            let target = needed.get_mut(input.node as usize).and_then(|n| n.get_mut(input.port as usize));
            let Some(target) = target else { continue };
            for column in columns_used(node, &own, input, input_index as u32, columns) {
                if let Some(flag) = target.get_mut(column as usize) {
                    *flag = true;
                }
            }
        }
        if let Some(slot) = needed.get_mut(index) {
            *slot = own;
        }
    }
    needed
}

/// Adds to a node's needed columns those that it can't leave out.
fn keep_own(node: &Node, mut own: Vec<Vec<bool>>) -> Vec<Vec<bool>> {
    if matches!(node.kind, NodeKind::Transform { .. } | NodeKind::Process { .. }) {
        for (output, flags) in node.outputs.iter().zip(&mut own) {
            for (field, flag) in output.fields.iter().zip(flags) {
                *flag |= field.origin == Origin::New;
            }
        }
    }
    if let NodeKind::Source { event_time: Some(event_time), .. } = &node.kind {
        let flag = own.first_mut().and_then(|p| p.get_mut(event_time.column as usize));
        flag.into_iter().for_each(|f| *f = true);
    }
    own
}

fn columns_used(node: &Node, own: &[Vec<bool>], input: &Input, input_index: u32, columns: u32) -> Vec<u32> {
    let mut used: Vec<u32> = input.reads.clone();
    if let Exchange::Hash(key) = &input.exchange {
        used.extend(key);
    }
    match &node.kind {
        NodeKind::Sink { .. } => used.extend(0..columns),
        NodeKind::AssignEventTime(EventTime { column, .. }) => used.push(*column),
        NodeKind::Window { aggregates, .. } => {
            used.extend(aggregates.iter().filter_map(|a| aggregate_column(&a.function)));
        }
        _ => {}
    }
    let union = matches!(node.kind, NodeKind::Union);
    for (output, flags) in node.outputs.iter().zip(own) {
        for (field, _) in output.fields.iter().zip(flags).filter(|(_, needed)| **needed) {
            match field.origin {
                Origin::Input { input, column } if input == input_index || union => used.push(column),
                _ => {}
            }
        }
    }
    used
}

fn aggregate_column(function: &AggregateFunction) -> Option<u32> {
    match function {
        AggregateFunction::Sum(c)
        | AggregateFunction::Min(c)
        | AggregateFunction::Max(c)
        | AggregateFunction::Avg(c) => Some(*c),
        AggregateFunction::Count | AggregateFunction::User { .. } => None,
    }
}

fn renumber(needed: &[bool]) -> Vec<Option<u32>> {
    let mut next = 0;
    needed
        .iter()
        .map(|&n| {
            n.then(|| {
                next += 1;
                next - 1
            })
        })
        .collect()
}

/// Every index that is looked up was marked as needed before.
fn new_index(moved: &[Option<u32>], old: u32) -> u32 {
    moved.get(old as usize).copied().flatten().unwrap_or_default()
}

fn rewrite_inputs(inputs: &mut [Input], sources: &[&[Option<u32>]]) {
    for (input, moved) in inputs.iter_mut().zip(sources) {
        input.reads.iter_mut().for_each(|c| *c = new_index(moved, *c));
        if let Exchange::Hash(key) = &mut input.exchange {
            key.iter_mut().for_each(|c| *c = new_index(moved, *c));
        }
    }
}

/// The inputs of a union can be pruned differently (something else may read more of one), so each says which of its
/// columns become the union's.
fn read_union_columns(node: &mut Node, needed: &[bool], sources: &[&[Option<u32>]]) {
    let fields = node.outputs.first().map_or(&[][..], |o| o.fields.as_slice());
    let columns: Vec<u32> = fields
        .iter()
        .zip(needed)
        .filter(|(_, needed)| **needed)
        .filter_map(|(field, _)| match field.origin {
            Origin::Input { column, .. } => Some(column),
            _ => None,
        })
        .collect();
    for (input, moved) in node.inputs.iter_mut().zip(sources) {
        input.reads = columns.iter().map(|&c| new_index(moved, c)).collect();
    }
}

fn rewrite_output(output: &mut Output, needed: &[bool], sources: &[&[Option<u32>]]) {
    let mut flags = needed.iter();
    output.fields.retain(|_| flags.next().copied().unwrap_or(false));
    for field in &mut output.fields {
        if let Origin::Input { input, column } = &mut field.origin {
            *column = new_index(sources.get(*input as usize).copied().unwrap_or_default(), *column);
        }
    }
}

fn rewrite_kind(kind: &mut NodeKind, input: &[Option<u32>]) {
    match kind {
        NodeKind::AssignEventTime(event_time) => event_time.column = new_index(input, event_time.column),
        NodeKind::Window { aggregates, .. } => {
            for aggregate in aggregates {
                match &mut aggregate.function {
                    AggregateFunction::Sum(c)
                    | AggregateFunction::Min(c)
                    | AggregateFunction::Max(c)
                    | AggregateFunction::Avg(c) => *c = new_index(input, *c),
                    AggregateFunction::Count | AggregateFunction::User { .. } => {}
                }
            }
        }
        _ => {}
    }
}
