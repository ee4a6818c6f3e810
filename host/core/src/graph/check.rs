//! What makes a plan valid. It comes from a component, so it may be wrong in any way.

use std::collections::HashSet;

use tidemill_plan::{
    AggregateFunction, DataType, EventTime, Exchange, Field, Input, Node, NodeKind, Origin, Output, OutputField,
    PLAN_VERSION, Plan, State, StateKind, Windows,
};

use super::{MAX_FIELDS, MAX_NODES, aggregate_type};
use crate::error::{Error, Result};
use crate::keys::KeyCodec;
use crate::types::{arrow_type, last_access_name};

/// Names are shown in messages, files and metrics: this is plenty.
const MAX_NAME_BYTES: usize = 256;
/// Nested types deeper than this are a mistake, and each level is a recursion in several places.
const MAX_TYPE_DEPTH: usize = 16;
/// A year: windows and lateness beyond it would overflow nothing, but are always a wrong unit.
const MAX_WINDOW_MS: u64 = 366 * 24 * 3_600_000;
/// More panes per window than this make each late row cost as many merges.
const MAX_PANES: u64 = 100_000;

pub(super) fn check(plan: &Plan) -> Result<()> {
    if plan.version != PLAN_VERSION {
        let message = format!("the plan has version {}; this Tidemill reads version {PLAN_VERSION}", plan.version);
        return Err(Error::invalid(message).mend("Build the job with an SDK of this Tidemill version."));
    }
    check_name("the job's name", &plan.name)?;
    if plan.nodes.is_empty() || plan.nodes.len() > MAX_NODES {
        let message = format!("the plan has {} nodes; 1 to {MAX_NODES} are possible", plan.nodes.len());
        return Err(Error::invalid(message).mend("A job needs at least a source and a sink."));
    }
    let mut uids = HashSet::new();
    for (index, node) in plan.nodes.iter().enumerate() {
        check_name("a node's uid", &node.uid)?;
        check_name("a node's name", &node.name)?;
        if !uids.insert(node.uid.as_str()) {
            return Err(Error::invalid(format!("two operators have the uid '{}'", node.uid))
                .mend("Give one of them another uid; state is matched by it."));
        }
        let before = plan.nodes.get(..index).unwrap_or_default();
        Checker { node, before }.check().map_err(|what| {
            Error::invalid(format!("operator '{}' (node {index}): {what}", node.name))
                .mend("The plan comes from the component: correct the job, or the SDK that built it.")
        })?;
    }
    Ok(())
}

fn check_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        let message = format!("{what} must have 1 to {MAX_NAME_BYTES} bytes without control characters: {name:?}");
        return Err(Error::invalid(message));
    }
    Ok(())
}

type Check<T = ()> = Result<T, String>;

struct Checker<'a> {
    node: &'a Node,
    before: &'a [Node],
}

impl<'a> Checker<'a> {
    fn check(&self) -> Check {
        if self.node.parallelism == Some(0) {
            return Err("its parallelism is 0".into());
        }
        let mut inputs = Vec::new();
        for input in &self.node.inputs {
            inputs.push(self.input(input)?);
        }
        self.outputs()?;
        self.origins(&inputs)?;
        self.kind(&inputs)
    }

    fn input(&self, input: &Input) -> Check<&'a [OutputField]> {
        let from = self.before.get(input.node as usize).ok_or_else(|| {
            format!("an input is node {}, which does not come before it (nodes are in topological order)", input.node)
        })?;
        let port = from.outputs.get(input.port as usize).ok_or_else(|| {
            format!("an input is port {} of '{}', which has {}", input.port, from.name, from.outputs.len())
        })?;
        let fields = port.fields.as_slice();
        if let Some(out) = input.reads.iter().find(|&&c| c as usize >= fields.len()) {
            return Err(format!("it reads column {out} of an input with {} columns", fields.len()));
        }
        if let Exchange::Hash(key) = &input.exchange {
            for &column in key {
                let field = self.column(fields, column)?;
                if matches!(field.data_type, DataType::Float32 | DataType::Float64) {
                    return Err(format!(
                        "its key column '{}' is a float, whose equality is not what a key needs",
                        field.name
                    ));
                }
            }
        }
        Ok(fields)
    }

    fn column<'f>(&self, fields: &'f [OutputField], index: u32) -> Check<&'f Field> {
        let field = fields.get(index as usize).map(|f| &f.field);
        field.ok_or_else(|| format!("it uses column {index} of an input with {} columns", fields.len()))
    }

    fn outputs(&self) -> Check {
        let mut ports = HashSet::new();
        for output in &self.node.outputs {
            check_name("a port's name", &output.name).map_err(|e| e.message().to_owned())?;
            if !ports.insert(output.name.as_str()) {
                return Err(format!("two of its outputs are named '{}'", output.name));
            }
            if output.fields.len() > MAX_FIELDS {
                return Err(format!(
                    "output '{}' has {} columns; {MAX_FIELDS} are possible",
                    output.name,
                    output.fields.len()
                ));
            }
            let mut names = HashSet::new();
            for OutputField { field, .. } in &output.fields {
                check_field(field, 0)?;
                if !names.insert(field.name.as_str()) {
                    return Err(format!("two columns of output '{}' are named '{}'", output.name, field.name));
                }
            }
        }
        Ok(())
    }

    fn origins(&self, inputs: &[&[OutputField]]) -> Check {
        for output in &self.node.outputs {
            for OutputField { field, origin } in &output.fields {
                let allowed = match (origin, &self.node.kind) {
                    (Origin::New, kind) => {
                        matches!(kind, NodeKind::Source { .. } | NodeKind::Transform { .. } | NodeKind::Process { .. })
                    }
                    (Origin::Input { .. }, NodeKind::Source { .. } | NodeKind::Sink { .. }) => false,
                    (Origin::Input { .. }, _) => true,
                    (_, kind) => matches!(kind, NodeKind::Window { .. }),
                };
                if !allowed {
                    return Err(format!(
                        "column '{}' has origin {origin:?}, which this kind of operator can't have",
                        field.name
                    ));
                }
                self.origin_type(field, *origin, inputs)?;
            }
        }
        Ok(())
    }

    fn origin_type(&self, field: &Field, origin: Origin, inputs: &[&[OutputField]]) -> Check {
        let (data_type, nullable) = match origin {
            Origin::New => return Ok(()),
            Origin::Input { input, column } => {
                let fields = inputs
                    .get(input as usize)
                    .ok_or_else(|| format!("column '{}' comes from input {input} of {}", field.name, inputs.len()))?;
                let from = self.column(fields, column)?;
                (from.data_type.clone(), from.nullable)
            }
            Origin::WindowStart | Origin::WindowEnd => (DataType::Timestamp, false),
            Origin::Aggregate(index) => {
                let NodeKind::Window { aggregates, .. } = &self.node.kind else { return Ok(()) };
                let aggregate = aggregates
                    .get(index as usize)
                    .ok_or_else(|| format!("column '{}' is aggregate {index} of {}", field.name, aggregates.len()))?;
                let fields = inputs.first().copied().unwrap_or_default();
                aggregate_type(&aggregate.function, fields)
                    .ok_or_else(|| format!("aggregate '{}' does not fit the type of its column", aggregate.name))?
            }
        };
        if data_type != field.data_type {
            return Err(format!("column '{}' is declared as {}, but is {data_type}", field.name, field.data_type));
        }
        if nullable && !field.nullable {
            return Err(format!("column '{}' is declared without nulls, but can have them", field.name));
        }
        Ok(())
    }

    fn kind(&self, inputs: &[&[OutputField]]) -> Check {
        let node = self.node;
        match &node.kind {
            NodeKind::Source { binding, event_time } => {
                self.shape(inputs, 0..=0, 1..=1)?;
                check_name("a source's binding", binding).map_err(|e| e.message().to_owned())?;
                let fields = node.outputs.first().map_or(&[][..], |o| &o.fields);
                event_time.as_ref().map_or(Ok(()), |e| self.event_time(e, fields))
            }
            NodeKind::Sink { binding } => {
                self.shape(inputs, 1..=1, 0..=0)?;
                check_name("a sink's binding", binding).map_err(|e| e.message().to_owned())
            }
            NodeKind::Union => {
                self.shape(inputs, 1..=64, 1..=1)?;
                self.union(inputs)
            }
            NodeKind::AssignEventTime(event_time) => {
                self.shape(inputs, 1..=1, 1..=1)?;
                self.event_time(event_time, inputs.first().copied().unwrap_or_default())
            }
            NodeKind::Transform { .. } => {
                self.shape(inputs, 1..=1, 0..=64)?;
                Ok(())
            }
            NodeKind::Process { states, .. } => {
                self.shape(inputs, 1..=2, 0..=64)?;
                self.process(inputs, states)?;
                check_states(states)
            }
            NodeKind::Window { windows, allowed_lateness_ms, late_port, aggregates } => {
                self.shape(inputs, 1..=1, 1..=2)?;
                self.keyed(inputs)?;
                check_windows(*windows)?;
                self.window(inputs, *allowed_lateness_ms, *late_port)?;
                for aggregate in aggregates {
                    let fields = inputs.first().copied().unwrap_or_default();
                    if aggregate_type(&aggregate.function, fields).is_none() {
                        return Err(format!("aggregate '{}' does not fit the type of its column", aggregate.name));
                    }
                    if let AggregateFunction::User { accumulator, output } = &aggregate.function {
                        check_type(&aggregate.name, accumulator, 0)?;
                        check_type(&aggregate.name, output, 0)?;
                    }
                }
                Ok(())
            }
            NodeKind::WindowJoin { windows } => {
                self.shape(inputs, 2..=2, 1..=1)?;
                self.keyed(inputs)?;
                if matches!(windows, Windows::Session { .. }) {
                    return Err("windows of a join are tumbling or sliding".into());
                }
                check_windows(*windows)
            }
            NodeKind::IntervalJoin { lower_ms, upper_ms } => {
                self.shape(inputs, 2..=2, 1..=1)?;
                self.keyed(inputs)?;
                let bound = MAX_WINDOW_MS as i64;
                if lower_ms > upper_ms || *lower_ms < -bound || *upper_ms > bound {
                    return Err(format!(
                        "its interval is {lower_ms} to {upper_ms} ms; the lower end must not be above the upper, and both within a year"
                    ));
                }
                Ok(())
            }
        }
    }

    fn shape(
        &self,
        inputs: &[&[OutputField]],
        in_range: std::ops::RangeInclusive<usize>,
        out_range: std::ops::RangeInclusive<usize>,
    ) -> Check {
        let outputs = self.node.outputs.len();
        if !in_range.contains(&inputs.len()) || !out_range.contains(&outputs) {
            return Err(format!(
                "it has {} inputs and {outputs} outputs; {in_range:?} and {out_range:?} are possible",
                inputs.len()
            ));
        }
        Ok(())
    }

    fn event_time(&self, event_time: &EventTime, fields: &[OutputField]) -> Check {
        let field = self.column(fields, event_time.column)?;
        if field.data_type != DataType::Timestamp {
            return Err(format!(
                "its event time is column '{}' of type {}; a timestamp is needed",
                field.name, field.data_type
            ));
        }
        if event_time.out_of_orderness_ms > MAX_WINDOW_MS {
            return Err("its out-of-orderness is over a year".into());
        }
        Ok(())
    }

    fn union(&self, inputs: &[&[OutputField]]) -> Check {
        let Some(first) = inputs.first() else { return Ok(()) };
        let same = |other: &&[OutputField]| {
            other.len() == first.len() && other.iter().zip(first.iter()).all(|(a, b)| a.field == b.field)
        };
        if !inputs.iter().all(same) {
            return Err("its inputs have different columns".into());
        }
        let Some(Output { fields, .. }) = self.node.outputs.first() else { return Ok(()) };
        let plain = fields.iter().all(|f| matches!(f.origin, Origin::Input { input: 0, .. }));
        plain.then_some(()).ok_or_else(|| "all columns of a union have an origin in input 0".into())
    }

    /// Inputs of a process function: hashed by one key or broadcast; or none hashed, and it is the only one or one is
    /// broadcast.
    fn process(&self, inputs: &[&[OutputField]], states: &[State]) -> Check {
        let broadcast = self.node.inputs.iter().any(|input| input.exchange == Exchange::Broadcast);
        let has_key = super::keyed_input(self.node).is_some();
        if !broadcast && (has_key || inputs.len() > 1) {
            self.keyed(inputs)?;
        }
        let is_broadcast = |state: &&State| matches!(state.kind, StateKind::Broadcast { .. });
        if let Some(state) = states.iter().find(is_broadcast).filter(|_| !broadcast) {
            return Err(format!("state '{}' is changed by rows of a broadcast input, and it has none", state.name));
        }
        let is_list = |state: &&State| matches!(state.kind, StateKind::OperatorList { .. });
        if let Some(state) = states.iter().find(is_list).filter(|_| has_key) {
            return Err(format!(
                "state '{}' is an operator list, which belongs to a subtask and not to a key, and its input is hashed by key; \
                 keep a list of each key, or do this in a process function before the stream is keyed",
                state.name
            ));
        }
        let has_no_key = |state: &&State| is_broadcast(state) || is_list(state);
        if states.iter().skip_while(|state| !has_no_key(state)).any(|state| !has_no_key(&state)) {
            return Err("its broadcast states must come behind the others".into());
        }
        if !has_key {
            return match states.iter().find(|state| !has_no_key(state)) {
                Some(state) => {
                    Err(format!("state '{}' belongs to a key, and none of its inputs is hashed", state.name))
                }
                None => Ok(()),
            };
        }
        let other = |input: &Input| !matches!(input.exchange, Exchange::Hash(_) | Exchange::Broadcast);
        if self.node.inputs.iter().any(other) {
            return Err("each of its inputs must be hashed by key, or broadcast".into());
        }
        self.same_keys(inputs)
    }

    fn keyed(&self, inputs: &[&[OutputField]]) -> Check {
        if self.node.inputs.iter().any(|input| super::key_of(&input.exchange).is_none()) {
            return Err("each of its inputs must be hashed by key".into());
        }
        self.same_keys(inputs)
    }

    /// Those of its inputs that are hashed are hashed by keys of the same types.
    fn same_keys(&self, inputs: &[&[OutputField]]) -> Check {
        let mut first: Option<Vec<&DataType>> = None;
        for (input, fields) in self.node.inputs.iter().zip(inputs) {
            let Some(key) = super::key_of(&input.exchange) else { continue };
            let types = key.iter().map(|&c| self.column(fields, c).map(|f| &f.data_type)).collect::<Check<Vec<_>>>()?;
            match &first {
                Some(other) if *other != types => return Err("its inputs are hashed by keys of different types".into()),
                Some(_) => {}
                None => first = Some(types),
            }
        }
        Ok(())
    }

    fn window(&self, inputs: &[&[OutputField]], lateness_ms: u64, late_port: Option<u32>) -> Check {
        if lateness_ms > MAX_WINDOW_MS {
            return Err("its allowed lateness is over a year".into());
        }
        if late_port.is_some_and(|p| p != 1) || late_port.is_some() != (self.node.outputs.len() == 2) {
            return Err("its late port must be port 1, and port 1 its late port".into());
        }
        let key = self.node.inputs.first().and_then(|i| super::key_of(&i.exchange)).unwrap_or_default();
        let main = self.node.outputs.first().map_or(&[][..], |o| &o.fields);
        for OutputField { field, origin } in main {
            if matches!(origin, Origin::Input { column, .. } if !key.contains(column)) {
                return Err(format!("column '{}' of its result is not part of the key", field.name));
            }
        }
        let late = self.node.outputs.get(1).map_or(&[][..], |o| &o.fields);
        if !late.iter().all(|f| matches!(f.origin, Origin::Input { .. })) || inputs.is_empty() {
            return Err("its late rows have only columns of its input".into());
        }
        Ok(())
    }
}

/// A time-to-live beyond this is a mistake in the unit; and a last access and it stay far from overflow.
const MAX_TTL_MS: u64 = 100 * 366 * 24 * 3_600_000;

fn check_states(states: &[State]) -> Result<(), String> {
    let mut names = HashSet::new();
    for state in states {
        let State { name, kind, data_type, ttl } = state;
        check_name("a state's name", name).map_err(|e| e.message().to_owned())?;
        check_type(name, data_type, 0)?;
        match kind {
            StateKind::Value | StateKind::List | StateKind::OperatorList { .. } => {}
            StateKind::Map { key } => check_type(name, key, 0)?,
            StateKind::Broadcast { key } => {
                check_type(name, key, 0)?;
                let float = matches!(key, DataType::Float32 | DataType::Float64);
                if float || KeyCodec::new(&[arrow_type(key)], false).is_err() {
                    return Err(format!("the keys of state '{name}' have the type {key}, which can't be a key"));
                }
            }
        }
        let times = ttl.map(|_| last_access_name(name));
        for column in [name].into_iter().chain(&times) {
            if !names.insert(column.clone()) {
                return Err(format!(
                    "two states are named '{column}' (a state that expires has a second one of that name)"
                ));
            }
        }
        let Some(ttl) = ttl else { continue };
        if *kind != StateKind::Value {
            return Err(format!("state '{name}' is no value; only states of kind value can have a time-to-live"));
        }
        if !(1..=MAX_TTL_MS).contains(&ttl.duration_ms) {
            let ms = ttl.duration_ms;
            return Err(format!("state '{name}' has a time-to-live of {ms} ms; 1 ms to a hundred years are possible"));
        }
    }
    Ok(())
}

fn check_windows(windows: Windows) -> Check {
    let (size, slide) = match windows {
        Windows::Tumbling { size_ms, .. } => (size_ms, size_ms),
        Windows::Sliding { size_ms, slide_ms, .. } => (size_ms, slide_ms),
        Windows::Session { gap_ms } => (gap_ms, gap_ms),
    };
    if size == 0 || slide == 0 || size > MAX_WINDOW_MS {
        return Err(format!("a window of {size} ms every {slide} ms: both must be above 0 and at most a year"));
    }
    if !size.is_multiple_of(slide) || size / slide > MAX_PANES {
        return Err(format!(
            "a window's size ({size} ms) must be a multiple of its slide ({slide} ms), at most {MAX_PANES} times"
        ));
    }
    Ok(())
}

fn check_field(field: &Field, depth: usize) -> Check {
    check_name("a column's name", &field.name).map_err(|e| e.message().to_owned())?;
    check_type(&field.name, &field.data_type, depth)
}

fn check_type(name: &str, data_type: &DataType, depth: usize) -> Check {
    if depth >= MAX_TYPE_DEPTH {
        return Err(format!("the type of '{name}' is nested deeper than {MAX_TYPE_DEPTH} levels"));
    }
    match data_type {
        DataType::Struct(fields) if fields.is_empty() || fields.len() > MAX_FIELDS => {
            Err(format!("the struct '{name}' has {} fields; 1 to {MAX_FIELDS} are possible", fields.len()))
        }
        DataType::Struct(fields) => fields.iter().try_for_each(|f| check_field(f, depth + 1)),
        DataType::List(item) => check_field(item, depth + 1),
        _ => Ok(()),
    }
}
