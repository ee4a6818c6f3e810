//! A job graph for Graphviz.

use std::fmt::Write as _;

use tidemill_core::graph::{JobGraph, runs_user_code};
use tidemill_core::ids::NodeId;
use tidemill_core::plan::{Node, NodeKind};

use super::describe;

/// The whole graph. Operators whose code runs in the sandbox are coloured.
pub fn graph(graph: &JobGraph) -> String {
    let mut text = format!("digraph {} {{\n", quoted(graph.name()));
    text.push_str("  rankdir=LR;\n  node [shape=box, style=\"rounded,filled\", fillcolor=white, fontname=sans];\n");
    text.push_str("  edge [fontname=sans, fontsize=10];\n");
    for (id, node) in graph.iter() {
        let label = format!("{}\n{}", node.name, describe::kind(node));
        let _ = writeln!(text, "  n{} [label={}{}];", id.0, quoted(&label), look(node));
    }
    for (id, node) in graph.iter() {
        for input in &node.inputs {
            let port = graph.node(NodeId(input.node)).ok().and_then(|n| n.outputs.get(input.port as usize));
            let port = port.filter(|_| input.port > 0).map(|p| format!("{}\n", p.name)).unwrap_or_default();
            let label = quoted(&format!("{port}{}", describe::exchange(graph, input)));
            let _ = writeln!(text, "  n{} -> n{} [label={label}];", input.node, id.0);
        }
    }
    text.push_str("}\n");
    text
}

fn look(node: &Node) -> &'static str {
    match node.kind {
        NodeKind::Source { .. } | NodeKind::Sink { .. } => ", shape=cds, height=0.8, fillcolor=\"#e8f1fa\"",
        _ if runs_user_code(node) => ", fillcolor=\"#f6e6fa\"",
        _ => "",
    }
}

/// A DOT string: names come from the component and may hold anything.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
