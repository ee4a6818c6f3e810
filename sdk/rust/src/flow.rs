//! The job under construction: its graph, and beside each node that runs user code that code.
//!
//! A job's function runs whenever its graph is wanted: once to plan, and once in each instance to take out the code of
//! one node. So it must describe the same graph each time; it is checked when an instance opens. Parameters of the job
//! can go into the code, not into the shape of the graph.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::str::FromStr;

use tidemill_plan::{Input, Node, NodeKind, Origin, Output, OutputField, PLAN_VERSION, Plan};

use crate::abi::NodeRuntime;
use crate::row::EmitRow;
use crate::stream::Stream;

/// A job under construction.
#[derive(Debug)]
pub struct Flow {
    graph: SharedGraph,
    parameters: BTreeMap<String, String>,
}

/// The graph that all streams of a flow add to.
pub(crate) type SharedGraph = Rc<RefCell<Graph>>;

/// A described job.
pub struct Built {
    /// Its graph.
    pub plan: Plan,
    /// Per node, its user code if it has any.
    pub runtimes: Vec<Option<Box<dyn NodeRuntime>>>,
}

/// Describes a job: runs its function with these parameters.
///
/// # Errors
/// What is wrong with the job, as sentences.
pub fn build(name: &str, job: impl FnOnce(&mut Flow), parameters: &[(String, String)]) -> Result<Built, String> {
    let mut flow = Flow { graph: SharedGraph::default(), parameters: parameters.iter().cloned().collect() };
    job(&mut flow);
    let mut graph = flow.graph.take();
    if graph.nodes.is_empty() {
        graph.errors.push("the job has no operators; begin with `flow.source::<R>(\"name\")`".to_owned());
    }
    if !graph.errors.is_empty() {
        return Err(graph.errors.join("; "));
    }
    let plan = Plan { version: PLAN_VERSION, name: name.replace('_', "-"), nodes: graph.nodes };
    Ok(Built { plan, runtimes: graph.runtimes })
}

impl Flow {
    /// Rows from outside. The job's manifest binds `binding` to a connector; only the columns of `R` are read.
    pub fn source<R: EmitRow>(&mut self, binding: &str) -> Stream<R> {
        let fields = R::fields().into_iter().map(|field| OutputField { field, origin: Origin::New }).collect();
        let outputs = vec![Output { name: "main".to_owned(), fields }];
        let kind = NodeKind::Source { binding: binding.to_owned(), event_time: None };
        let label = Label::of(&format!("source-{binding}"), binding);
        let node = self.graph.borrow_mut().add(label, Vec::new(), outputs, kind, None);
        Stream::direct(Rc::clone(&self.graph), node, 0, (0..R::WIDTH as u32).collect())
    }

    /// A parameter of the job, from its manifest or command line. Absent while the job is planned: it can go into
    /// functions of rows, but not decide which operators there are.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// A parameter of the job, or what it is without. One that can't be read is an error of the job.
    pub fn param_or<T: FromStr>(&self, name: &str, default: T) -> T {
        let Some(text) = self.parameters.get(name) else { return default };
        text.parse().unwrap_or_else(|_| {
            let wanted = std::any::type_name::<T>();
            self.graph.borrow_mut().error(format!("parameter '{name}' is '{text}', which is no {wanted}"));
            default
        })
    }
}

/// Nodes and their code.
#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
    runtimes: Vec<Option<Box<dyn NodeRuntime>>>,
    errors: Vec<String>,
    uids: BTreeMap<String, usize>,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("nodes", &self.nodes).field("errors", &self.errors).finish_non_exhaustive()
    }
}

/// What a node is called.
#[derive(Clone, Debug, Default)]
pub(crate) struct Label {
    pub(crate) uid: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) parallelism: Option<u32>,
    base: String,
}

impl Label {
    /// As long as the user says nothing else: a uid that is numbered where it is taken, and a name.
    pub(crate) fn of(uid: &str, name: &str) -> Self {
        Self { uid: None, name: Some(name.to_owned()), parallelism: None, base: uid.to_owned() }
    }

    /// With what the user said.
    pub(crate) fn or(self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self }
    }
}

impl Graph {
    pub(crate) fn add(
        &mut self,
        label: Label,
        inputs: Vec<Input>,
        outputs: Vec<Output>,
        kind: NodeKind,
        runtime: Option<Box<dyn NodeRuntime>>,
    ) -> u32 {
        let uid = label.uid.unwrap_or_else(|| self.number(&label.base));
        let name = label.name.unwrap_or_else(|| label.base.clone());
        self.nodes.push(Node { uid, name, parallelism: label.parallelism, inputs, outputs, kind });
        self.runtimes.push(runtime);
        self.nodes.len() as u32 - 1
    }

    /// `window`, then `window-2` and so on: the same in each run of the same job.
    fn number(&mut self, base: &str) -> String {
        let count = self.uids.entry(base.to_owned()).or_default();
        *count += 1;
        if *count == 1 { base.to_owned() } else { format!("{base}-{count}") }
    }

    pub(crate) fn error(&mut self, message: String) {
        self.errors.push(message);
    }

    pub(crate) fn node_mut(&mut self, node: u32) -> Option<&mut Node> {
        self.nodes.get_mut(node as usize)
    }

    /// The fields of a port.
    pub(crate) fn fields(&self, node: u32, port: u32) -> &[OutputField] {
        let output = self.nodes.get(node as usize).and_then(|n| n.outputs.get(port as usize));
        output.map_or(&[], |o| o.fields.as_slice())
    }
}
