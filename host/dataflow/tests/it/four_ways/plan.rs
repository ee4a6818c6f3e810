//! Builds plans of rows with the columns `k`, `t` and `v`.

use tidemill_core::graph::JobGraph;
use tidemill_core::plan::*;

pub use AggregateFunction::*;

/// Names a port of a node.
pub type From = (u32, u32);

#[derive(Default)]
pub struct Plan(Vec<Node>);

fn field(name: &str, data_type: DataType, origin: Origin) -> OutputField {
    let nullable = name == "t?";
    OutputField { field: Field::new(name.trim_end_matches('?'), data_type, nullable), origin }
}

fn output(name: &str, fields: Vec<OutputField>) -> Output {
    Output { name: name.into(), fields }
}

fn new(names: [&str; 3]) -> Vec<OutputField> {
    let data_type = |name: &str| if name.starts_with('t') { DataType::Timestamp } else { DataType::Int64 };
    names.into_iter().map(|name| field(name, data_type(name), Origin::New)).collect()
}

/// The three columns of the input, copied.
fn copied(t: &str) -> Vec<OutputField> {
    let mut fields = new(["k", t, "v"]);
    fields.iter_mut().zip(0..).for_each(|(field, column)| field.origin = Origin::Input { input: 0, column });
    fields
}

pub fn event_time(out_of_orderness_ms: u64, idle_after_ms: Option<u64>) -> EventTime {
    EventTime { column: 1, out_of_orderness_ms, idle_after_ms }
}

pub fn tumbling(size_ms: u64) -> Windows {
    Windows::Tumbling { size_ms, offset_ms: 0 }
}

pub fn sliding(size_ms: u64, slide_ms: u64) -> Windows {
    Windows::Sliding { size_ms, slide_ms, offset_ms: 0 }
}

impl Plan {
    fn node(&mut self, name: &str, inputs: Vec<Input>, outputs: Vec<Output>, kind: NodeKind) -> u32 {
        self.0.push(Node { uid: name.into(), name: name.into(), parallelism: None, inputs, outputs, kind });
        self.0.len() as u32 - 1
    }

    fn input((node, port): From, exchange: Exchange, reads: &[u32]) -> Input {
        Input { node, port, exchange, reads: reads.to_vec() }
    }

    /// By `k`, which is the first column of all rows.
    fn keyed(from: From, reads: &[u32]) -> Input {
        Self::input(from, Exchange::Hash(vec![0]), reads)
    }

    pub fn parallelism(&mut self, node: u32, parallelism: u32) {
        self.0[node as usize].parallelism = Some(parallelism);
    }

    pub fn source(&mut self, binding: &str, event_time: impl Into<Option<EventTime>>) -> From {
        let kind = NodeKind::Source { binding: binding.into(), event_time: event_time.into() };
        (self.node(binding, vec![], vec![output("main", new(["k", "t?", "v"]))], kind), 0)
    }

    /// Rows on as they are.
    pub fn transform(&mut self, name: &str, from: From, exchange: Exchange) -> From {
        let input = Self::input(from, exchange, &[0, 1, 2]);
        let kind = NodeKind::Transform { reads_timestamps: false };
        (self.node(name, vec![input], vec![output("main", copied("t?"))], kind), 0)
    }

    /// A keyed function with the state `kept`. Port 0: (k, t, v) of timers; port 1: the rows.
    pub fn process(&mut self, name: &str, from: From) -> u32 {
        let state = State::value("kept", DataType::Utf8);
        let kind = NodeKind::Process { reads_timestamps: false, states: vec![state] };
        let outputs = vec![output("timers", new(["k", "t", "v"])), output("rows", copied("t?"))];
        self.node(name, vec![Self::keyed(from, &[0, 1, 2])], outputs, kind)
    }

    /// A keyed function that keeps everything in a list and a map, and a count that expires after a year. Ports as of
    /// `process`.
    pub fn collecting(&mut self, name: &str, from: From) -> u32 {
        let of_kind = |name: &str, kind| State { kind, ..State::value(name, DataType::Int64) };
        let ttl = Ttl { duration_ms: 31_536_000_000, update: TtlUpdate::OnReadAndWrite };
        let states = vec![
            of_kind("list", StateKind::List),
            State { ttl: Some(ttl), ..State::value("count", DataType::Int64) },
            of_kind("map", StateKind::Map { key: DataType::Int64 }),
        ];
        let kind = NodeKind::Process { reads_timestamps: false, states };
        let outputs = vec![output("timers", new(["k", "t", "v"])), output("rows", copied("t?"))];
        self.node(name, vec![Self::keyed(from, &[0, 1, 2])], outputs, kind)
    }

    /// A keyed function with the state `kept`, and one that all keys share, which rows of `rules` change. Ports as of
    /// `process`.
    pub fn judging(&mut self, name: &str, from: From, rules: From) -> u32 {
        let states = vec![State::value("kept", DataType::Utf8), Self::rules()];
        let kind = NodeKind::Process { reads_timestamps: false, states };
        let outputs = vec![output("timers", new(["k", "t", "v"])), output("rows", copied("t?"))];
        let inputs = vec![Self::keyed(from, &[0, 1, 2]), Self::input(rules, Exchange::Broadcast, &[0, 1, 2])];
        self.node(name, inputs, outputs, kind)
    }

    /// A function without a key that knows what rows of `rules` say: hands on the rows.
    pub fn judging_unkeyed(&mut self, name: &str, from: From, rules: From) -> From {
        let kind = NodeKind::Process { reads_timestamps: false, states: vec![Self::rules()] };
        let main = Self::input(from, Exchange::Rebalance, &[0, 1, 2]);
        let inputs = vec![main, Self::input(rules, Exchange::Broadcast, &[0, 1, 2])];
        (self.node(name, inputs, vec![output("rows", copied("t?"))], kind), 0)
    }

    /// A function without a key that holds rows in a list, and knows in one that is united which there were. Port 0: (k, t, v)
    /// of both.
    pub fn buffering(&mut self, name: &str, from: From) -> From {
        let list = |name: &str, redistribution| {
            let kind = StateKind::OperatorList { redistribution };
            State { kind, ..State::value(name, DataType::Utf8) }
        };
        let states = vec![list("held", Redistribution::Split), list("known", Redistribution::Union)];
        let kind = NodeKind::Process { reads_timestamps: false, states };
        let input = Self::input(from, Exchange::Rebalance, &[0, 1, 2]);
        (self.node(name, vec![input], vec![output("rows", new(["k", "t", "v"]))], kind), 0)
    }

    fn rules() -> State {
        State { kind: StateKind::Broadcast { key: DataType::Int64 }, ..State::value("rules", DataType::Int64) }
    }

    /// Port 0: k, the window's start and end, the aggregates; port 1: late rows.
    pub fn window(
        &mut self,
        name: &str,
        from: From,
        windows: Windows,
        lateness_ms: u64,
        functions: Vec<AggregateFunction>,
    ) -> u32 {
        let mut fields = vec![
            field("k", DataType::Int64, Origin::Input { input: 0, column: 0 }),
            field("start", DataType::Timestamp, Origin::WindowStart),
            field("end", DataType::Timestamp, Origin::WindowEnd),
        ];
        for (index, function) in functions.iter().enumerate() {
            let data_type = if matches!(function, Avg(_)) { DataType::Float64 } else { DataType::Int64 };
            fields.push(field(&format!("a{index}"), data_type, Origin::Aggregate(index as u32)));
        }
        let outputs = vec![output("results", fields), output("late", copied("t?"))];
        let aggregates =
            functions.into_iter().enumerate().map(|(i, function)| Aggregate { name: format!("a{i}"), function });
        let kind = NodeKind::Window {
            windows,
            allowed_lateness_ms: lateness_ms,
            late_port: Some(1),
            aggregates: aggregates.collect(),
        };
        self.node(name, vec![Self::keyed(from, &[2])], outputs, kind)
    }

    fn join(&mut self, left: From, right: From, kind: NodeKind) -> From {
        let of = |name: &str, input, column, data_type| field(name, data_type, Origin::Input { input, column });
        let fields =
            vec![of("k", 0, 0, DataType::Int64), of("left", 0, 2, DataType::Int64), of("right", 1, 2, DataType::Int64)];
        let inputs = vec![Self::keyed(left, &[]), Self::keyed(right, &[])];
        (self.node("join", inputs, vec![output("pairs", fields)], kind), 0)
    }

    pub fn window_join(&mut self, left: From, right: From, windows: Windows) -> From {
        self.join(left, right, NodeKind::WindowJoin { windows })
    }

    pub fn interval_join(&mut self, left: From, right: From, lower_ms: i64, upper_ms: i64) -> From {
        self.join(left, right, NodeKind::IntervalJoin { lower_ms, upper_ms })
    }

    pub fn union(&mut self, from: &[From]) -> From {
        let inputs = from.iter().map(|&from| Self::input(from, Exchange::Forward, &[])).collect();
        (self.node("union", inputs, vec![output("main", copied("t?"))], NodeKind::Union), 0)
    }

    pub fn assign(&mut self, from: From, exchange: Exchange, event_time: EventTime) -> From {
        let input = Self::input(from, exchange, &[]);
        (self.node("assign", vec![input], vec![output("main", copied("t?"))], NodeKind::AssignEventTime(event_time)), 0)
    }

    pub fn sink(&mut self, binding: &str, from: From) {
        let input = Self::input(from, Exchange::Forward, &[]);
        self.node(&format!("to {binding}"), vec![input], vec![], NodeKind::Sink { binding: binding.into() });
    }

    pub fn graph(self) -> JobGraph {
        let plan = tidemill_core::plan::Plan { version: PLAN_VERSION, name: "job".into(), nodes: self.0 };
        JobGraph::from_plan(plan).unwrap()
    }
}
