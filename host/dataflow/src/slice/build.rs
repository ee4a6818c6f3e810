//! Makes slices of a job from its physical plan: cells, the routes between them, and the queues between slots. Those of all
//! slots, or of some: then the queues to the others have an end that is handed out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tidemill_core::connector::{Attempt, Sink, SinkCommitter, SinkContext, Source, SourceContext, Waker};
use tidemill_core::graph::runs_user_code;
use tidemill_core::ids::{MaxParallelism, NodeId, Port, SubtaskId, SubtaskIndex};
use tidemill_core::keys::KeyCodec;
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::operator::OperatorContext;
use tidemill_core::plan::{Exchange, Node, NodeKind};
use tidemill_core::time::{RisingWatermark, Timestamp};
use tidemill_core::types::{arrow_schema, arrow_type};
use tidemill_core::{Error, Result};

use super::cell::{AssignCell, Cell, Work};
use super::route::{Route, Routes, Target};
use super::sink::SinkCell;
use super::source::SourceCell;
use super::{Origin, Slice, Turn};
use crate::event_time::EventTimeReader;
use crate::exchange::partition::{HashPartitioner, Partitioner};
use crate::exchange::queue::{Flush, QueueGauge, QueueReceiver, QueueSender, queue, queue_to_carrier};
use crate::in_flight::ChannelId;
use crate::job::{JobSpec, TaskStatus};
use crate::letters::{self, Letters};
use crate::operators::{self, Build};
use crate::physical::{Edge, PhysicalPlan};
use crate::record::RecordText;
use crate::replay::Replay;
use crate::restore::{DEAD_LETTERS_UID, Start};
use crate::signals::Signals;
use crate::splits::{Enumeration, Mailbox, News};
use crate::takeover::Takeover;

/// Such a part of what may be under way is worth a way to another process.
const ENOUGH: usize = 16;

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

/// Slots of a job that are made and not yet running.
pub struct Assembly {
    /// One per slot, in their order.
    pub slices: Vec<Slice>,
    /// Where the readers of sources get their news.
    pub readers: BTreeMap<(NodeId, u32), Arc<Mailbox>>,
    /// The ends of queues that belong to slots of other processes.
    pub wires: Vec<Wire>,
    /// All queues that have an end here.
    pub queues: Vec<QueueGauge>,
}

/// The way from a subtask to a subtask of another slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Channel {
    /// The edge's place in the physical plan.
    pub edge: u32,
    /// The slot that sends.
    pub sender: u32,
    /// The slot that receives.
    pub receiver: u32,
}

/// An end of a channel that has its other end in another process.
#[derive(Debug)]
pub enum Wire {
    /// What a slot of this process has sent.
    Out(Channel, QueueReceiver),
    /// What a slot of this process is to be given.
    In(Channel, QueueSender),
}

/// Where the slots of a job are.
pub struct Placement<'a> {
    /// Those of this process, each with what wakes it.
    pub here: Vec<(u32, Waker)>,
    /// What wakes whoever has the other end of a queue, by the slot of another process.
    pub elsewhere: &'a dyn Fn(u32) -> Waker,
}

impl Placement<'_> {
    fn is_here(&self, slot: u32) -> bool {
        self.here.iter().any(|(here, _)| *here == slot)
    }

    fn waker(&self, slot: u32) -> Waker {
        let here = self.here.iter().find(|(here, _)| *here == slot);
        here.map_or_else(|| (self.elsewhere)(slot), |(_, waker)| waker.clone())
    }
}

impl Assembly {
    /// Makes the slots that are to be in this process.
    pub fn new(
        spec: &JobSpec,
        plan: &PhysicalPlan,
        placement: &Placement<'_>,
        signals: &Arc<Signals>,
        tasks: &[TaskStatus],
        start: &Start,
    ) -> Result<Self> {
        let mut assembler = Assembler {
            spec,
            start,
            plan,
            signals,
            replay: Replay::new(start, plan, spec.settings.max_parallelism)?,
            wiring: Wiring::new(spec, plan, placement)?,
            readers: BTreeMap::new(),
            tasks: tasks.iter().map(|task| ((task.subtask.node, task.subtask.index.0), task)).collect(),
        };
        let slices = placement.here.iter().map(|(slot, waker)| assembler.slice(*slot, waker));
        let slices = slices.collect::<Result<Vec<_>>>()?;
        let elsewhere = |node, slot| slot < plan.parallelism(node) && !placement.is_here(slot);
        assembler.replay.finish(elsewhere)?;
        let Wiring { wires, queues, .. } = assembler.wiring;
        Ok(Self { slices, readers: assembler.readers, wires, queues })
    }
}

/// Who sends what to whom. Everything is taken out once, when its subtask is made.
#[derive(Default)]
struct Wiring {
    routes: HashMap<(NodeId, u32), Routes>,
    inputs: HashMap<(NodeId, u32), Vec<ChannelId>>,
    /// Per slot.
    origins: HashMap<u32, Vec<Origin>>,
    /// Per slot here, per slot elsewhere that it sends to.
    flushes: HashMap<u32, BTreeMap<u32, Arc<Flush>>>,
    wires: Vec<Wire>,
    queues: Vec<QueueGauge>,
}

impl Wiring {
    fn new(spec: &JobSpec, plan: &PhysicalPlan, placement: &Placement<'_>) -> Result<Self> {
        let mut wiring = Self::default();
        for (id, node) in plan.graph().iter() {
            for subtask in 0..plan.parallelism(id) {
                let routes = Routes(node.outputs.iter().map(|_| Vec::new()).collect());
                wiring.routes.insert((id, subtask), routes);
            }
        }
        for (at, edge) in (0..).zip(plan.edges()) {
            for sender in 0..edge.senders {
                let mut targets = Vec::new();
                for receiver in (0..edge.receivers).filter(|&r| edge.connects(sender, r)) {
                    let channel = Channel { edge: at, sender, receiver };
                    targets.extend(wiring.target(spec, plan, placement, edge, channel)?);
                }
                if !placement.is_here(sender) {
                    continue;
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

    /// A new channel. `None`: its sender is elsewhere.
    fn target(
        &mut self,
        spec: &JobSpec,
        plan: &PhysicalPlan,
        placement: &Placement<'_>,
        edge: &Edge,
        channel: Channel,
    ) -> Result<Option<Target>> {
        let Channel { sender, receiver, .. } = channel;
        let inputs = self.inputs.entry((edge.to, receiver)).or_default();
        let number = inputs.len() as u32;
        let from = Arc::from(plan.graph().node(edge.from)?.uid.as_str());
        inputs.push(ChannelId { input: edge.input, from, port: edge.port, sender });
        let (sends, receives) = (placement.is_here(sender), placement.is_here(receiver));
        let cell = cell_index(plan, edge.to, receiver);
        if sender == receiver || !(sends || receives) {
            return Ok(sends.then_some(Target::Local { cell, channel: number }));
        }
        let bound = spec.settings.exchange_bytes;
        let (tx, from) = match receives {
            true => queue(bound, placement.waker(sender), placement.waker(receiver)),
            false => queue_to_carrier(bound, placement.waker(sender), self.flush(bound, placement, sender, receiver)),
        };
        self.queues.push(tx.gauge());
        match receives {
            true => self.origins.entry(receiver).or_default().push(Origin::Queue { from, cell, channel: number }),
            false => self.wires.push(Wire::Out(channel, from)),
        }
        if sends {
            return Ok(Some(Target::Remote(tx)));
        }
        self.wires.push(Wire::In(channel, tx));
        Ok(None)
    }

    /// What a slot here flushes for one elsewhere.
    fn flush(&mut self, bound: usize, placement: &Placement<'_>, sender: u32, receiver: u32) -> Arc<Flush> {
        let new = || Arc::new(Flush::new(placement.waker(receiver), bound / ENOUGH));
        self.flushes.entry(sender).or_default().entry(receiver).or_insert_with(new).clone()
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
    signals: &'a Arc<Signals>,
    replay: Replay,
    wiring: Wiring,
    readers: BTreeMap<(NodeId, u32), Arc<Mailbox>>,
    tasks: HashMap<(NodeId, u32), &'a TaskStatus>,
}

impl Assembler<'_> {
    fn slice(&mut self, slot: u32, waker: &Waker) -> Result<Slice> {
        let (mut cells, mut inboxes) = (Vec::new(), Vec::new());
        let mut origins = self.wiring.origins.remove(&slot).unwrap_or_default();
        for (id, node) in self.plan.graph().iter().filter(|(id, _)| self.plan.parallelism(*id) > slot) {
            if matches!(node.kind, NodeKind::Source { .. }) {
                origins.push(Origin::Source { cell: cells.len() });
            }
            let cell = self.cell(id, node, slot, waker)?;
            // Before all that is new, also before what those that send say of where they go on.
            inboxes.push(self.replay.inbox(id, slot, cell.channels())?);
            cells.push(cell);
        }
        let letters_task = Arc::new(letters_task(&self.spec.name, self.plan, slot));
        let letters = self.letters(&letters_task, waker.clone())?;
        let flushes = self.wiring.flushes.remove(&slot).unwrap_or_default();
        Ok(Slice {
            stands_still: None,
            flushes: flushes.into_values().collect(),
            flushed: Timestamp::MIN,
            letters_task,
            inboxes,
            cells,
            origins,
            turn: Turn::default(),
            tried: Vec::new(),
            letters,
            clock: self.spec.clock.clone(),
            memory: self.spec.memory.clone(),
            signals: self.signals.clone(),
            overtaken: self.start.passed(),
            events: Vec::new(),
            copying: Vec::new(),
            unwritten: Vec::new(),
            announced: false,
            finished: false,
        })
    }

    fn cell(&mut self, id: NodeId, node: &Node, slot: u32, waker: &Waker) -> Result<Cell> {
        let task = self.tasks.get(&(id, slot));
        let task = task.ok_or_else(|| Error::internal(format!("subtask {slot} of {id} is no task of the job")))?;
        let (subtask, metrics) = (task.subtask.clone(), task.metrics.clone());
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
                    memory: spec.memory.clone(),
                })?;
                let mailbox = Arc::new(Mailbox::new(waker.clone()));
                self.readers.insert((id, subtask.index.0), mailbox.clone());
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
                    memory: spec.memory.clone(),
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
                    memory: spec.memory.clone(),
                };
                let backend = spec.state.as_ref();
                let groups = spec.settings.max_parallelism;
                let begin = self.start.operator(&node.uid, subtask.index, subtask.parallelism, groups);
                operators::build(Build { graph, id, context, backend, begin, user }).map(Work::Operator)
            }
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
            memory: self.spec.memory.clone(),
            attempt: self.start.attempt,
            restored,
        };
        Ok(Letters::new(Some(sink.writer(context)?), passed))
    }
}

/// Every subtask of a job, by node and index.
pub fn tasks(job: &str, plan: &PhysicalPlan) -> Vec<TaskStatus> {
    let of = |(id, node): (NodeId, &Node)| {
        let (name, kind, uid) = (node.name.clone(), kind_name(&node.kind), node.uid.clone());
        let parallelism = plan.parallelism(id);
        let job = job.to_owned();
        (0..parallelism).map(move |index| TaskStatus {
            subtask: Arc::new(SubtaskId {
                job: job.clone(),
                node: id,
                operator: name.clone(),
                index: SubtaskIndex(index),
                parallelism,
            }),
            uid: uid.clone(),
            kind,
            metrics: Arc::new(TaskMetrics::default()),
        })
    };
    plan.graph().iter().flat_map(of).collect()
}

/// The dead letters of every slot, as tasks.
pub fn letters_tasks(job: &str, plan: &PhysicalPlan) -> Vec<Arc<SubtaskId>> {
    (0..plan.slots()).map(|slot| Arc::new(letters_task(job, plan, slot))).collect()
}

fn letters_task(job: &str, plan: &PhysicalPlan, slot: u32) -> SubtaskId {
    SubtaskId {
        job: job.to_owned(),
        // After all nodes of the plan: it has a name of its own in what sinks derive from it.
        node: NodeId(plan.graph().nodes().len() as u32),
        operator: "dead letters".to_owned(),
        index: SubtaskIndex(slot),
        parallelism: plan.slots(),
    }
}

/// Who finds the splits of a job's sources, one per source node, for these readers. What the readers go on from is said
/// to them here.
pub fn enumerations(
    spec: &JobSpec,
    plan: &PhysicalPlan,
    start: &Start,
    readers: &BTreeMap<(NodeId, u32), Arc<Mailbox>>,
    takeover: Option<&Takeover>,
) -> Result<Vec<Enumeration>> {
    let mut enumerations = Vec::new();
    for (id, node) in plan.graph().iter() {
        let NodeKind::Source { binding, .. } = &node.kind else { continue };
        let parallelism = plan.parallelism(id);
        let mut enumerator = source(spec, binding)?.enumerator(parallelism)?;
        if let Some(found) = start.enumerator(&node.uid) {
            enumerator.restore(found)?;
        }
        let of_node = (0..parallelism).map(|index| {
            let reader = readers.get(&(id, index)).cloned();
            reader.ok_or_else(|| Error::internal(format!("subtask {index} of {id} has no reader")))
        });
        let of_node = of_node.collect::<Result<Vec<_>>>()?;
        for (index, reader) in (0..).zip(&of_node) {
            match takeover {
                // It reads on. The barrier may have been sent to others only; who has seen it does not hear it again.
                Some(takeover) => takeover.barrier.iter().for_each(|barrier| reader.send(News::Barrier(*barrier))),
                None => {
                    if let Some(splits) = start.splits(&node.uid, SubtaskIndex(index), parallelism) {
                        reader.send(News::Restored(splits, start.watermark(&node.uid)));
                    }
                }
            }
        }
        let known = takeover.and_then(|takeover| takeover.known.get(&id)).into_iter().flatten().cloned();
        let given = start.given(&node.uid).chain(known).collect();
        enumerations.push(Enumeration::new(id, enumerator, of_node, given));
    }
    Ok(enumerations)
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
