//! Makes the slices of a job from its physical plan: cells, the routes between them, and the queues between slots.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tidemill_core::connector::{Attempt, Sink, SinkCommitter, SinkContext, Source, SourceContext, Waker};
use tidemill_core::graph::runs_user_code;
use tidemill_core::ids::{MaxParallelism, NodeId, Port, SubtaskId, SubtaskIndex};
use tidemill_core::keys::KeyCodec;
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::operator::OperatorContext;
use tidemill_core::plan::{Exchange, Node, NodeKind};
use tidemill_core::time::RisingWatermark;
use tidemill_core::types::{arrow_schema, arrow_type};
use tidemill_core::{Error, Result};

use super::cell::{AssignCell, Cell, Work};
use super::route::{Route, Routes, Target};
use super::sink::SinkCell;
use super::source::SourceCell;
use super::{Origin, OvertakeSignal, Slice, StopSignal, Turn};
use crate::event_time::EventTimeReader;
use crate::exchange::partition::{HashPartitioner, Partitioner};
use crate::exchange::queue::queue;
use crate::in_flight::ChannelId;
use crate::job::{JobSpec, TaskStatus};
use crate::letters::{self, Letters};
use crate::operators::{self, Build};
use crate::physical::{Edge, PhysicalPlan};
use crate::record::RecordText;
use crate::replay::Replay;
use crate::restore::{DEAD_LETTERS_UID, Start};
use crate::splits::{Enumeration, Mailbox, News};

/// Who commits what a sink wrote.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CommitTarget {
    /// The sink of this binding.
    Sink(String),
    /// The dead-letter sink.
    DeadLetters,
}

/// Who commits, by what.
pub type Committers = BTreeMap<CommitTarget, Box<dyn SinkCommitter>>;

/// A job that is made and not yet running.
pub struct Assembly {
    /// One per slot.
    pub slices: Vec<Slice>,
    /// One per source node.
    pub enumerations: Vec<Enumeration>,
    /// Every subtask, by node and index.
    pub tasks: Vec<TaskStatus>,
    /// Stops the sources.
    pub stop: Arc<StopSignal>,
    /// Turns checkpoints unaligned.
    pub overtakes: Arc<OvertakeSignal>,
}

impl Assembly {
    /// Makes everything; a waker per slot of the plan.
    pub fn new(spec: &JobSpec, plan: &PhysicalPlan, wakers: &[Waker], start: &Start) -> Result<Self> {
        let mut assembler = Assembler {
            spec,
            start,
            plan,
            wakers,
            stop: Arc::default(),
            overtakes: Arc::new(OvertakeSignal::new(wakers.to_vec())),
            replay: Replay::new(start, plan, spec.settings.max_parallelism)?,
            wiring: Wiring::new(spec, plan, wakers)?,
            mailboxes: HashMap::new(),
            tasks: Vec::new(),
        };
        let slices = (0..plan.slots()).map(|slot| assembler.slice(slot)).collect::<Result<Vec<_>>>()?;
        let enumerations = assembler.enumerations()?;
        assembler.replay.finish()?;
        let mut tasks = assembler.tasks;
        tasks.sort_by_key(|task| (task.subtask.node, task.subtask.index));
        Ok(Self { slices, enumerations, tasks, stop: assembler.stop, overtakes: assembler.overtakes })
    }
}

/// Who sends what to whom. Everything is taken out once, when its subtask is made.
#[derive(Default)]
struct Wiring {
    routes: HashMap<(NodeId, u32), Routes>,
    inputs: HashMap<(NodeId, u32), Vec<ChannelId>>,
    /// Per slot.
    origins: HashMap<u32, Vec<Origin>>,
}

impl Wiring {
    fn new(spec: &JobSpec, plan: &PhysicalPlan, wakers: &[Waker]) -> Result<Self> {
        let mut wiring = Self::default();
        for (id, node) in plan.graph().iter() {
            for subtask in 0..plan.parallelism(id) {
                let routes = Routes(node.outputs.iter().map(|_| Vec::new()).collect());
                wiring.routes.insert((id, subtask), routes);
            }
        }
        for edge in plan.edges() {
            for sender in 0..edge.senders {
                let mut targets = Vec::new();
                for receiver in (0..edge.receivers).filter(|&r| edge.connects(sender, r)) {
                    targets.push(wiring.target(spec, plan, wakers, edge, sender, receiver)?);
                }
                let route =
                    Route { partitioner: partitioner(plan, edge, sender, spec.settings.max_parallelism)?, targets };
                let routes = wiring.routes.get_mut(&(edge.from, sender));
                let port = routes.and_then(|routes| routes.0.get_mut(edge.port.index()));
                port.ok_or_else(|| Error::internal(format!("{} of {}", edge.port, edge.from)))?.push(route);
            }
        }
        Ok(wiring)
    }

    /// A new channel from a sender to a receiver.
    fn target(
        &mut self,
        spec: &JobSpec,
        plan: &PhysicalPlan,
        wakers: &[Waker],
        edge: &Edge,
        sender: u32,
        receiver: u32,
    ) -> Result<Target> {
        let inputs = self.inputs.entry((edge.to, receiver)).or_default();
        let channel = inputs.len() as u32;
        let from = Arc::from(plan.graph().node(edge.from)?.uid.as_str());
        inputs.push(ChannelId { input: edge.input, from, port: edge.port, sender });
        let cell = cell_index(plan, edge.to, receiver);
        if sender == receiver {
            return Ok(Target::Local { cell, channel });
        }
        let waker = |slot: u32| {
            let waker = wakers.get(slot as usize).cloned();
            waker.ok_or_else(|| Error::internal(format!("no waker for slot {slot}")))
        };
        let (tx, from) = queue(spec.settings.exchange_bytes, waker(sender)?, waker(receiver)?);
        self.origins.entry(receiver).or_default().push(Origin::Queue { from, cell, channel });
        Ok(Target::Remote(tx))
    }
}

/// The place of a node's subtask among the cells of its slot.
fn cell_index(plan: &PhysicalPlan, node: NodeId, slot: u32) -> usize {
    (0..node.0).filter(|&before| plan.parallelism(NodeId(before)) > slot).count()
}

fn partitioner(plan: &PhysicalPlan, edge: &Edge, sender: u32, groups: MaxParallelism) -> Result<Partitioner> {
    Ok(match &edge.exchange {
        Exchange::Forward => Partitioner::Turn(0),
        // Not all at the same receiver first.
        Exchange::Rebalance => Partitioner::Turn(sender as usize),
        Exchange::Broadcast => Partitioner::Broadcast,
        Exchange::Hash(key) => Partitioner::Hash(Box::new(hash_partitioner(plan, edge, key, groups)?)),
    })
}

/// Distributes the rows of an edge that is keyed by these columns.
pub fn hash_partitioner(
    plan: &PhysicalPlan,
    edge: &Edge,
    key: &[u32],
    groups: MaxParallelism,
) -> Result<HashPartitioner> {
    let fields = plan.graph().fields(edge.from, edge.port)?;
    let fields = key.iter().filter_map(|&column| fields.get(column as usize)).map(|f| &f.field);
    let types: Vec<_> = fields.clone().map(|f| arrow_type(&f.data_type)).collect();
    // Both inputs of a join must agree on the encoding, whichever of them can have nulls.
    let nullable = keyed_by_nullable(plan, edge.to)?;
    let codec = KeyCodec::new(&types, nullable)?;
    let key = key.iter().map(|&column| column as usize).collect();
    Ok(HashPartitioner::new(codec, key, groups, edge.receivers))
}

/// Whether a key column of any input of the node can be null.
fn keyed_by_nullable(plan: &PhysicalPlan, node: NodeId) -> Result<bool> {
    let node = plan.graph().node(node)?;
    for (index, input) in node.inputs.iter().enumerate() {
        let Exchange::Hash(key) = &input.exchange else { continue };
        let fields = plan.graph().input_fields(node, index)?;
        if key.iter().filter_map(|&column| fields.get(column as usize)).any(|f| f.field.nullable) {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Assembler<'a> {
    start: &'a Start,
    spec: &'a JobSpec,
    plan: &'a PhysicalPlan,
    wakers: &'a [Waker],
    stop: Arc<StopSignal>,
    overtakes: Arc<OvertakeSignal>,
    replay: Replay,
    wiring: Wiring,
    mailboxes: HashMap<NodeId, Vec<Arc<Mailbox>>>,
    tasks: Vec<TaskStatus>,
}

impl Assembler<'_> {
    fn slice(&mut self, slot: u32) -> Result<Slice> {
        let (mut cells, mut inboxes) = (Vec::new(), Vec::new());
        let mut origins = self.wiring.origins.remove(&slot).unwrap_or_default();
        let waker = self.wakers.get(slot as usize).cloned().unwrap_or_else(|| Waker::new(|| ()));
        for (id, node) in self.plan.graph().iter().filter(|(id, _)| self.plan.parallelism(*id) > slot) {
            if matches!(node.kind, NodeKind::Source { .. }) {
                origins.push(Origin::Source { cell: cells.len() });
            }
            let cell = self.cell(id, node, slot, &waker)?;
            // Before all that is new, also before what those that send say of where they go on.
            inboxes.push(self.replay.inbox(id, slot, cell.channels())?);
            cells.push(cell);
        }
        let letters_task = Arc::new(self.letters_task(slot));
        let letters = self.letters(&letters_task, waker)?;
        Ok(Slice {
            letters_task,
            inboxes,
            cells,
            origins,
            turn: Turn::default(),
            tried: Vec::new(),
            letters,
            clock: self.spec.clock.clone(),
            stop: self.stop.clone(),
            overtakes: self.overtakes.clone(),
            overtaken: self.start.passed(),
            events: Vec::new(),
            announced: false,
            finished: false,
        })
    }

    fn cell(&mut self, id: NodeId, node: &Node, slot: u32, waker: &Waker) -> Result<Cell> {
        let subtask = Arc::new(SubtaskId {
            job: self.spec.name.clone(),
            node: id,
            operator: node.name.clone(),
            index: SubtaskIndex(slot),
            parallelism: self.plan.parallelism(id),
        });
        let metrics = Arc::new(TaskMetrics::default());
        self.tasks.push(TaskStatus {
            subtask: subtask.clone(),
            uid: node.uid.clone(),
            kind: kind_name(&node.kind),
            metrics: metrics.clone(),
        });
        let work = self.work(id, node, &subtask, &metrics, waker).map_err(|e| e.at(&subtask, "opening"))?;
        let routes = self.wiring.routes.remove(&(id, slot)).unwrap_or_default();
        let inputs = self.wiring.inputs.remove(&(id, slot)).unwrap_or_default();
        let watermark = match &work {
            Work::Operator(_) => {
                let groups = self.spec.settings.max_parallelism;
                self.start.operator_watermark(&node.uid, subtask.index, subtask.parallelism, groups)
            }
            Work::Source(_) | Work::Assign(_) | Work::Sink(_) => self.start.watermark(&node.uid),
        };
        let begins = (self.start.passed(), watermark);
        Ok(Cell::new(subtask, metrics, work, routes, inputs, begins))
    }

    fn work(
        &mut self,
        id: NodeId,
        node: &Node,
        subtask: &SubtaskId,
        metrics: &Arc<TaskMetrics>,
        waker: &Waker,
    ) -> Result<Work> {
        let (graph, spec) = (self.plan.graph(), self.spec);
        match &node.kind {
            NodeKind::Source { binding, event_time } => {
                let schema = graph.schema(id, Port(0))?;
                let reader = source(spec, binding)?.reader(SourceContext {
                    subtask: subtask.clone(),
                    schema: schema.clone(),
                    batch_rows: spec.settings.batch_rows,
                    waker: waker.clone(),
                    clock: spec.clock.clone(),
                    metrics: metrics.clone(),
                })?;
                let mailbox = Arc::new(Mailbox::new(waker.clone()));
                if let Some(splits) = self.start.splits(&node.uid, subtask.index, subtask.parallelism) {
                    mailbox.send(News::Restored(splits, self.start.watermark(&node.uid)));
                }
                self.mailboxes.entry(id).or_default().push(mailbox.clone());
                let event_time = event_time.as_ref().map(EventTimeReader::new);
                let text = RecordText::new(schema);
                Ok(Work::Source(SourceCell::new(reader, mailbox, event_time, text, self.plan.is_stateful())))
            }
            NodeKind::Sink { binding } => {
                let writer = sink(spec, binding)?.writer(SinkContext {
                    subtask: subtask.clone(),
                    schema: arrow_schema(graph.input_fields(node, 0)?.iter().map(|f| &f.field)),
                    clock: spec.clock.clone(),
                    waker: waker.clone(),
                    metrics: metrics.clone(),
                    attempt: self.start.attempt,
                    restored: self.start.sink(&node.uid, subtask.index, subtask.parallelism),
                })?;
                Ok(Work::Sink(SinkCell { writer, target: CommitTarget::Sink(binding.clone()) }))
            }
            NodeKind::AssignEventTime(event_time) => Ok(Work::Assign(AssignCell {
                reader: EventTimeReader::new(event_time),
                text: RecordText::new(graph.schema(id, Port(0))?),
                clock: spec.clock.clone(),
                watermark: RisingWatermark::from(self.start.watermark(&node.uid)),
                last_row: spec.clock.now(),
                idle: false,
            })),
            _ => {
                let user = runs_user_code(node).then(|| spec.user_code.open(subtask, node, metrics)).transpose()?;
                let context = OperatorContext {
                    subtask: subtask.clone(),
                    max_parallelism: spec.settings.max_parallelism,
                    batch_rows: spec.settings.batch_rows,
                    clock: spec.clock.clone(),
                    metrics: metrics.clone(),
                };
                let backend = spec.state.as_ref();
                let groups = spec.settings.max_parallelism;
                let begin = self.start.operator(&node.uid, subtask.index, subtask.parallelism, groups);
                operators::build(Build { graph, id, context, backend, begin, user }).map(Work::Operator)
            }
        }
    }

    fn letters_task(&self, slot: u32) -> SubtaskId {
        SubtaskId {
            job: self.spec.name.clone(),
            // After all nodes of the plan: it has a name of its own in what sinks derive from it.
            node: NodeId(self.plan.graph().nodes().len() as u32),
            operator: "dead letters".to_owned(),
            index: SubtaskIndex(slot),
            parallelism: self.plan.slots(),
        }
    }

    fn letters(&self, task: &Arc<SubtaskId>, waker: Waker) -> Result<Letters> {
        let passed = self.start.passed();
        let Some(sink) = &self.spec.dead_letters else { return Ok(Letters::new(None, passed)) };
        let restored = self.start.sink(DEAD_LETTERS_UID, task.index, task.parallelism);
        let context = SinkContext {
            subtask: SubtaskId::clone(task),
            schema: letters::schema(),
            clock: self.spec.clock.clone(),
            waker,
            metrics: Arc::default(),
            attempt: self.start.attempt,
            restored,
        };
        Ok(Letters::new(Some(sink.writer(context)?), passed))
    }

    fn enumerations(&mut self) -> Result<Vec<Enumeration>> {
        let mut enumerations = Vec::new();
        for (id, node) in self.plan.graph().iter() {
            if let NodeKind::Source { binding, .. } = &node.kind {
                let mut enumerator = source(self.spec, binding)?.enumerator(self.plan.parallelism(id))?;
                if let Some(found) = self.start.enumerator(&node.uid) {
                    enumerator.restore(found)?;
                }
                enumerations.push(Enumeration::new(id, enumerator, self.mailboxes.remove(&id).unwrap_or_default()));
            }
        }
        Ok(enumerations)
    }
}

/// The committers of a job's sinks.
pub fn committers(spec: &JobSpec) -> Result<Committers> {
    let mut committers = BTreeMap::new();
    for node in spec.graph.nodes() {
        if let NodeKind::Sink { binding } = &node.kind {
            committers.insert(CommitTarget::Sink(binding.clone()), sink(spec, binding)?.committer()?);
        }
    }
    if let Some(sink) = &spec.dead_letters {
        committers.insert(CommitTarget::DeadLetters, sink.committer()?);
    }
    Ok(committers)
}

/// Tells the sinks that an attempt at the job begins.
pub fn begin_sinks(spec: &JobSpec, start: &Start) -> Result<()> {
    let attempt = Attempt { job: &spec.name, number: start.attempt, goes_on: start.from.is_some() };
    spec.sinks.values().chain(&spec.dead_letters).try_for_each(|sink| sink.begin(&attempt))
}

fn source<'a>(spec: &'a JobSpec, binding: &str) -> Result<&'a Arc<dyn Source>> {
    spec.sources.get(binding).ok_or_else(|| {
        Error::invalid(format!("job '{}': its source '{binding}' is not bound to a connector", spec.name))
            .mend(format!("Bind it in tidemill.toml: [sources.{binding}] with a connector and its options."))
    })
}

fn sink<'a>(spec: &'a JobSpec, binding: &str) -> Result<&'a Arc<dyn Sink>> {
    spec.sinks.get(binding).ok_or_else(|| {
        Error::invalid(format!("job '{}': its sink '{binding}' is not bound to a connector", spec.name))
            .mend(format!("Bind it in tidemill.toml: [sinks.{binding}] with a connector and its options."))
    })
}

fn kind_name(kind: &NodeKind) -> &'static str {
    match kind {
        NodeKind::Source { .. } => "source",
        NodeKind::Sink { .. } => "sink",
        NodeKind::Union => "union",
        NodeKind::AssignEventTime(_) => "event time",
        NodeKind::Transform { .. } => "transform",
        NodeKind::Process { .. } => "process",
        NodeKind::Window { .. } => "window",
        NodeKind::WindowJoin { .. } => "window join",
        NodeKind::IntervalJoin { .. } => "interval join",
    }
}
