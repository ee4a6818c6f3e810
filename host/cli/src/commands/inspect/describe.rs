//! A job graph as text: each operator with what comes in, what it does and what goes out.

use std::collections::BTreeSet;

use console::style;
use tidemill_core::graph::{JobGraph, key_of, keyed_input, runs_user_code};
use tidemill_core::ids::NodeId;
use tidemill_core::plan::{
    Aggregate, AggregateFunction, EventTime, Exchange, Field, Input, Node, NodeKind, Origin, OutputField,
    Redistribution, State, StateKind, TtlUpdate, Windows,
};

use crate::units::span_ms;

/// Lines for people. `graph` is what is shown, `declared` the same before pruning.
pub fn plan(declared: &JobGraph, graph: &JobGraph) -> Vec<String> {
    let mut lines = Vec::new();
    for ((id, node), before) in graph.iter().zip(declared.nodes()) {
        if id.index() > 0 {
            lines.push(String::new());
        }
        lines.extend(operator(graph, id, node, before));
    }
    lines
}

/// What a kind of operator is called.
pub fn kind(node: &Node) -> String {
    match &node.kind {
        NodeKind::Source { binding, .. } => format!("source '{binding}'"),
        NodeKind::Sink { binding } => format!("sink '{binding}'"),
        NodeKind::Union => "union".to_owned(),
        NodeKind::AssignEventTime(_) => "event time".to_owned(),
        NodeKind::Transform { .. } => "transform".to_owned(),
        NodeKind::Process { .. } if keyed_input(node).is_some() => "keyed process".to_owned(),
        NodeKind::Process { .. } => "process".to_owned(),
        NodeKind::Window { windows: w, .. } => format!("window, {}", windows(*w)),
        NodeKind::WindowJoin { windows: w } => format!("join, {}", windows(*w)),
        NodeKind::IntervalJoin { lower_ms, upper_ms } => {
            format!("interval join, right from {} to {} of left", signed(*lower_ms), signed(*upper_ms))
        }
    }
}

/// How rows come to a node.
pub fn exchange(graph: &JobGraph, input: &Input) -> String {
    match &input.exchange {
        Exchange::Forward => "forward".to_owned(),
        Exchange::Rebalance => "rebalance".to_owned(),
        Exchange::Broadcast => "broadcast".to_owned(),
        Exchange::Hash(columns) if columns.is_empty() => "all to one".to_owned(),
        Exchange::Hash(columns) => format!("hash by {}", names(graph, input, columns)),
    }
}

fn operator(graph: &JobGraph, id: NodeId, node: &Node, before: &Node) -> Vec<String> {
    let place = if runs_user_code(node) { style("  in the sandbox").magenta().to_string() } else { String::new() };
    let mut lines = vec![format!("{:>3}  {}  {}{place}", id.0, style(&node.name).bold(), style(kind(node)).cyan())];
    let mut line = |name: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("     {} {text}", style(format!("{name:<10}")).dim()));
        }
    };
    line("uid", if node.uid == node.name { String::new() } else { node.uid.clone() });
    line("subtasks", node.parallelism.map(|p| p.to_string()).unwrap_or_default());
    for input in &node.inputs {
        let from = graph.node(NodeId(input.node)).map(|n| n.name.as_str()).unwrap_or_default();
        let port = port_name(graph, input).map(|p| format!(", port '{p}'")).unwrap_or_default();
        line("from", format!("{} {from}{port}, {}", input.node, exchange(graph, input)));
        if !matches!(node.kind, NodeKind::Union) && !input.reads.is_empty() {
            line("reads", names(graph, input, &input.reads));
        }
    }
    details(graph, node, &mut line);
    for (output, declared) in node.outputs.iter().zip(&before.outputs) {
        let name = if node.outputs.len() == 1 { "columns".to_owned() } else { format!("-> {}", output.name) };
        line(&name, output.fields.iter().map(|f| column(node, f)).collect::<Vec<_>>().join(", "));
        let kept: BTreeSet<&str> = output.fields.iter().map(|f| f.field.name.as_str()).collect();
        let gone = declared.fields.iter().map(|f| f.field.name.as_str()).filter(|f| !kept.contains(f));
        line("unread", gone.collect::<Vec<_>>().join(", "));
    }
    lines
}

fn details(graph: &JobGraph, node: &Node, line: &mut impl FnMut(&str, String)) {
    match &node.kind {
        NodeKind::Source { event_time: Some(e), .. } => {
            line("event time", event_time(e, node.outputs.first().map_or(&[], |o| &o.fields)));
        }
        NodeKind::AssignEventTime(e) => {
            line("event time", event_time(e, node.outputs.first().map_or(&[], |o| &o.fields)));
        }
        NodeKind::Process { states, .. } => {
            line("state", states.iter().map(state).collect::<Vec<_>>().join(", "));
        }
        NodeKind::Window { allowed_lateness_ms, late_port, aggregates, .. } => {
            let fields = graph.input_fields(node, 0).unwrap_or_default();
            line("computes", aggregates.iter().map(|a| aggregate(a, fields)).collect::<Vec<_>>().join(", "));
            let then =
                if late_port.is_some() { "later rows go to a port" } else { "later rows are counted and dropped" };
            let lateness = match allowed_lateness_ms {
                0 => "none allowed".to_owned(),
                ms => format!("up to {}", span_ms(*ms)),
            };
            line("lateness", format!("{lateness}; {then}"));
        }
        _ => {}
    }
}

fn state(state: &State) -> String {
    let data_type = &state.data_type;
    let shown = match &state.kind {
        StateKind::Value => data_type.to_string(),
        StateKind::List => format!("list of {data_type}"),
        StateKind::Map { key } => format!("map of {key} to {data_type}"),
        StateKind::Broadcast { key } => format!("broadcast map of {key} to {data_type}"),
        StateKind::OperatorList { redistribution: Redistribution::Split } => {
            format!("operator list of {data_type}, split at another parallelism")
        }
        StateKind::OperatorList { redistribution: Redistribution::Union } => {
            format!("operator list of {data_type}, united at another parallelism")
        }
    };
    let lives = state.ttl.map(|ttl| {
        let since = match ttl.update {
            TtlUpdate::OnCreateAndWrite => "it was written",
            TtlUpdate::OnReadAndWrite => "it was read or written",
        };
        format!(", gone {} after {since}", span_ms(ttl.duration_ms))
    });
    format!("{} {shown}{}", state.name, lives.unwrap_or_default())
}

fn event_time(event_time: &EventTime, fields: &[OutputField]) -> String {
    let name = fields.get(event_time.column as usize).map_or("?", |f| f.field.name.as_str());
    let disorder = match event_time.out_of_orderness_ms {
        0 => "in order".to_owned(),
        ms => format!("up to {} out of order", span_ms(ms)),
    };
    let idle = event_time.idle_after_ms.map(|ms| format!(", idle after {}", span_ms(ms))).unwrap_or_default();
    format!("{name}, {disorder}{idle}")
}

fn windows(windows: Windows) -> String {
    let offset = |ms: i64| if ms == 0 { String::new() } else { format!(", offset {}", signed(ms)) };
    match windows {
        Windows::Tumbling { size_ms, offset_ms } => format!("tumbling {}{}", span_ms(size_ms), offset(offset_ms)),
        Windows::Sliding { size_ms, slide_ms, offset_ms } => {
            format!("sliding {} every {}{}", span_ms(size_ms), span_ms(slide_ms), offset(offset_ms))
        }
        Windows::Session { gap_ms } => format!("session, gap {}", span_ms(gap_ms)),
    }
}

fn aggregate(aggregate: &Aggregate, fields: &[OutputField]) -> String {
    let of = |function: &str, column: &u32| {
        let name = fields.get(*column as usize).map_or("?", |f| f.field.name.as_str());
        format!("{function}({name})")
    };
    let what = match &aggregate.function {
        AggregateFunction::Count => "count".to_owned(),
        AggregateFunction::Sum(c) => of("sum", c),
        AggregateFunction::Min(c) => of("min", c),
        AggregateFunction::Max(c) => of("max", c),
        AggregateFunction::Avg(c) => of("avg", c),
        AggregateFunction::User { accumulator, output } => format!("user code, {accumulator} to {output}"),
    };
    let plain = what.split('(').next() == Some(aggregate.name.as_str());
    if plain { what } else { format!("{} = {what}", aggregate.name) }
}

fn column(node: &Node, field: &OutputField) -> String {
    let Field { name, data_type, nullable } = &field.field;
    let null = if *nullable { "?" } else { "" };
    let key = match field.origin {
        Origin::Input { input, column } => {
            let exchange = node.inputs.get(input as usize).map(|i| &i.exchange);
            exchange.and_then(key_of).is_some_and(|key| key.contains(&column))
        }
        _ => false,
    };
    let note = if key { " (key)" } else { "" };
    format!("{name} {}{note}", style(format!("{data_type}{null}")).dim())
}

fn port_name<'a>(graph: &'a JobGraph, input: &Input) -> Option<&'a str> {
    let from = graph.node(NodeId(input.node)).ok()?;
    let port = from.outputs.get(input.port as usize)?;
    (input.port > 0).then_some(port.name.as_str())
}

fn names(graph: &JobGraph, input: &Input, columns: &[u32]) -> String {
    let from = graph.node(NodeId(input.node)).ok().and_then(|n| n.outputs.get(input.port as usize));
    let name = |c: &u32| from.and_then(|o| o.fields.get(*c as usize)).map_or("?", |f| f.field.name.as_str());
    columns.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn signed(ms: i64) -> String {
    let sign = if ms < 0 { "-" } else { "" };
    format!("{sign}{}", span_ms(ms.unsigned_abs()))
}
