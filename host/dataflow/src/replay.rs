//! What was in flight when a checkpoint was taken, put before the operators again.
//!
//! With as many subtasks on both sides of an edge as before, each channel has again what it had. Else rows of a keyed
//! edge go to those who own their keys now, rows of a broadcast one with the broadcast state for which they were meant;
//! other rows to a subtask by its number. What can't be right at another
//! parallelism is refused before anything runs.
//!
//! Invariant: no row is late that was not. Rows come before all that is new, and an operator's watermark is not ahead of
//! what it was for any of its subtasks; where channels are put together, a watermark comes behind all rows before it.

use std::collections::{BTreeMap, HashMap};

use tidemill_checkpoint::manifest::{InFlightState, OperatorState};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::{InputIndex, MaxParallelism, NodeId};
use tidemill_core::plan::{Exchange, NodeKind};
use tidemill_core::time::Watermark;
use tidemill_core::types::arrow_type;
use tidemill_core::{Batch, Error, Result};
use tidemill_state::{InFlight, decode_in_flight};

use crate::element::{Element, Inbox};
use crate::in_flight::ChannelId;
use crate::physical::{Edge, PhysicalPlan};
use crate::restore::{RestoredJob, Start};
use crate::slice::hash_partitioner;

/// What each subtask is given first.
#[derive(Default)]
pub struct Replay(HashMap<(NodeId, u32), Vec<Replayed>>);

struct Replayed {
    input: InputIndex,
    sender: u32,
    element: Element,
}

/// A channel as it was.
struct Channel {
    input: InputIndex,
    sender: u32,
    receiver: u32,
    elements: Vec<InFlight>,
}

/// How what was in flight on an edge comes to the subtasks that there are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As it was.
    Same,
    /// To those who own the keys.
    ByKey,
    /// By the number of the subtask that had it.
    ByNumber,
    /// To each subtask what stood before the one whose broadcast states it goes on with.
    WithState,
}

/// Refuses what was in flight where it can't come to the subtasks that there are now, before anything runs.
pub fn check(start: &Start, plan: &PhysicalPlan, groups: MaxParallelism) -> Result<()> {
    for (from, operator, id) in operators(start, plan)? {
        for channel in operator.subtasks.iter().filter_map(|s| s.in_flight.as_ref()).flat_map(|f| &f.channels) {
            let edge = edge(plan, from, operator, id, InputIndex(channel.input))?;
            let sender = plan.graph().node(edge.from)?;
            if sender.uid != channel.from || edge.port.0 != channel.port {
                let message = format!(
                    "{from:?} has rows in flight from '{}' to input {} of '{}', which is fed by '{}' now",
                    channel.from, channel.input, operator.name, sender.uid,
                );
                return Err(Error::invalid(message).mend(OTHER_CODE));
            }
            way(from, operator, plan, edge, groups)?;
        }
    }
    Ok(())
}

const OTHER_CODE: &str = "Go on with the code that the checkpoint was taken of, take a savepoint with it (a savepoint has \
                          nothing in flight), and go on from that with the new code.";

impl Replay {
    /// Reads what was in flight. What [`check`] refuses must have been refused.
    pub fn new(start: &Start, plan: &PhysicalPlan, groups: MaxParallelism) -> Result<Self> {
        let mut replay = Self::default();
        for (from, operator, id) in operators(start, plan)? {
            let mut inputs: BTreeMap<InputIndex, Vec<Channel>> = BTreeMap::new();
            for subtask in &operator.subtasks {
                let Some(in_flight) = &subtask.in_flight else { continue };
                for channel in read(from, in_flight, subtask.index)? {
                    inputs.entry(channel.input).or_default().push(channel);
                }
                Failpoint::InFlightRestored.reach();
            }
            for (input, channels) in inputs {
                let edge = edge(plan, from, operator, id, input)?;
                check_columns(plan, edge, operator, &channels)?;
                match way(from, operator, plan, edge, groups)? {
                    Way::Same => replay.same(id, channels),
                    Way::ByKey => {
                        let same_senders = senders(from, plan, edge) == Some(edge.senders);
                        replay.by_key(id, plan, edge, groups, &channels, same_senders)?;
                    }
                    Way::ByNumber => replay.by_number(id, edge, channels),
                    Way::WithState => replay.with_state(id, edge, operator, &channels),
                }
            }
        }
        Ok(replay)
    }

    /// What stands before a subtask with these channels.
    pub fn inbox(&mut self, node: NodeId, subtask: u32, channels: &[ChannelId]) -> Result<Inbox> {
        let mut inbox = Inbox::default();
        for Replayed { input, sender, element } in self.0.remove(&(node, subtask)).unwrap_or_default() {
            let channel = channels.iter().position(|id| id.input == input && id.sender == sender);
            let channel =
                channel.ok_or_else(|| Error::internal(format!("{input} of {node} has no sender {sender}")))?;
            inbox.push(channel as u32, element);
        }
        Ok(inbox)
    }

    /// Whether all of it stands somewhere, here or with a subtask that is `elsewhere`: no row is lost.
    pub fn finish(self, elsewhere: impl Fn(NodeId, u32) -> bool) -> Result<()> {
        match self.0.keys().find(|(node, subtask)| !elsewhere(*node, *subtask)) {
            None => Ok(()),
            Some((node, subtask)) => {
                Err(Error::internal(format!("rows were in flight to subtask {subtask} of {node}, which there is not")))
            }
        }
    }

    fn same(&mut self, id: NodeId, channels: Vec<Channel>) {
        for Channel { input, sender, receiver, elements } in channels {
            for element in elements {
                self.push(id, receiver, Replayed { input, sender, element: element_of(element) });
            }
        }
    }

    fn by_key(
        &mut self,
        id: NodeId,
        plan: &PhysicalPlan,
        edge: &Edge,
        groups: MaxParallelism,
        channels: &[Channel],
        same_senders: bool,
    ) -> Result<()> {
        let Exchange::Hash(key) = &edge.exchange else { return Err(Error::internal("keys of an edge without")) };
        let mut partitioner = hash_partitioner(plan, edge, key, groups)?;
        let mut by_sender: BTreeMap<u32, Vec<&[InFlight]>> = BTreeMap::new();
        for channel in channels {
            by_sender.entry(channel.sender).or_default().push(&channel.elements);
        }
        let input = edge.input;
        for (sender, channels) in by_sender {
            for element in merged(&channels) {
                match element {
                    InFlight::Rows(batch) => partitioner.split(batch, edge.receivers as usize, |receiver, part| {
                        let element = Element::Batch(part);
                        self.push(id, receiver as u32, Replayed { input, sender: sender % edge.senders, element });
                    })?,
                    // Of other senders than those that there are, who will say how far they are.
                    InFlight::Watermark(_) if !same_senders => {}
                    InFlight::Watermark(watermark) => {
                        for receiver in 0..edge.receivers {
                            self.push(id, receiver, Replayed { input, sender, element: Element::Watermark(watermark) });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn by_number(&mut self, id: NodeId, edge: &Edge, channels: Vec<Channel>) {
        for Channel { input, sender, receiver, elements } in channels {
            let receiver = receiver % edge.receivers;
            let senders: Vec<u32> = (0..edge.senders).filter(|sender| edge.connects(*sender, receiver)).collect();
            let Some(&sender) = senders.get(sender as usize % senders.len().max(1)) else { continue };
            // Without the watermarks: the channel is another one now, with one of its own.
            let rows = elements.into_iter().filter(|element| matches!(element, InFlight::Rows(_)));
            for element in rows {
                self.push(id, receiver, Replayed { input, sender, element: element_of(element) });
            }
        }
    }

    fn with_state(&mut self, id: NodeId, edge: &Edge, operator: &OperatorState, channels: &[Channel]) {
        for receiver in 0..edge.receivers {
            let Some(origin) = operator.broadcast_of(receiver) else { continue };
            for Channel { input, sender, elements, .. } in channels.iter().filter(|c| c.receiver == origin.index) {
                let (input, sender) = (*input, sender % edge.senders.max(1));
                // Without the watermarks, as above.
                let rows = elements.iter().filter(|element| matches!(element, InFlight::Rows(_)));
                for element in rows {
                    self.push(id, receiver, Replayed { input, sender, element: element_of(element.clone()) });
                }
            }
        }
    }

    fn push(&mut self, id: NodeId, receiver: u32, replayed: Replayed) {
        self.0.entry((id, receiver)).or_default().push(replayed);
    }
}

fn element_of(element: InFlight) -> Element {
    match element {
        InFlight::Rows(batch) => Element::Batch(batch),
        InFlight::Watermark(watermark) => Element::Watermark(watermark),
    }
}

/// The operators to which something was in flight, and their nodes.
fn operators<'a>(start: &'a Start, plan: &PhysicalPlan) -> Result<Vec<(&'a RestoredJob, &'a OperatorState, NodeId)>> {
    let Some(from) = &start.from else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for operator in from.manifest.operators.iter().filter(|o| o.subtasks.iter().any(|s| s.in_flight.is_some())) {
        match plan.graph().iter().find(|(_, node)| node.uid == operator.uid) {
            Some((id, _)) => found.push((from, operator, id)),
            None if from.allow_non_restored => {}
            None => {
                let message = format!(
                    "{from:?} has rows in flight to operator '{}' (uid '{}'), which the job does not have",
                    operator.name, operator.uid,
                );
                return Err(Error::invalid(message).mend(OTHER_CODE));
            }
        }
    }
    Ok(found)
}

fn edge<'a>(
    plan: &'a PhysicalPlan,
    from: &RestoredJob,
    operator: &OperatorState,
    id: NodeId,
    input: InputIndex,
) -> Result<&'a Edge> {
    plan.edges().iter().find(|edge| edge.to == id && edge.input == input).ok_or_else(|| {
        let message = format!("{from:?} has rows in flight to {input} of '{}', which has no such input", operator.name);
        Error::invalid(message).mend(OTHER_CODE)
    })
}

/// How many subtasks sent on an edge.
fn senders(from: &RestoredJob, plan: &PhysicalPlan, edge: &Edge) -> Option<u32> {
    let uid = &plan.graph().node(edge.from).ok()?.uid;
    from.manifest.operators.iter().find(|operator| operator.uid == *uid).map(|operator| operator.parallelism)
}

/// How what was in flight on an edge comes to those that there are now; or why it can't.
fn way(
    from: &RestoredJob,
    operator: &OperatorState,
    plan: &PhysicalPlan,
    edge: &Edge,
    groups: MaxParallelism,
) -> Result<Way> {
    let node = plan.graph().node(edge.to)?;
    let same_senders = senders(from, plan, edge) == Some(edge.senders);
    let same_receivers = operator.parallelism == edge.receivers;
    let keyed = matches!(edge.exchange, Exchange::Hash(_));
    let same_keys = same_receivers && (!keyed || from.manifest.max_parallelism == groups.get());
    if same_senders && same_keys {
        return Ok(Way::Same);
    }
    let refuse = |why: &str| {
        let message = format!(
            "{from:?} was taken unaligned, with rows in flight to '{}' at parallelism {}, and can't be gone on from at \
             parallelism {}: {why}",
            operator.name, operator.parallelism, edge.receivers,
        );
        let mend = format!(
            "Go on at parallelism {}, with {} key groups, and take a savepoint: it has nothing in flight, and can be \
             gone on from at any parallelism.",
            operator.parallelism, from.manifest.max_parallelism,
        );
        Err(Error::invalid(message).mend(mend))
    };
    let windows = matches!(node.kind, NodeKind::Window { .. } | NodeKind::WindowJoin { .. });
    match &edge.exchange {
        Exchange::Hash(_) if windows && !same_keys && !same_watermarks(operator) => {
            refuse("some of its subtasks have fired windows that others have not")
        }
        Exchange::Hash(_) => Ok(Way::ByKey),
        Exchange::Broadcast if !same_receivers && operator.broadcast_of(0).is_some() => Ok(Way::WithState),
        Exchange::Broadcast if !same_receivers => refuse("each of its subtasks gets every row once"),
        Exchange::Forward | Exchange::Rebalance
            if matches!(node.kind, NodeKind::AssignEventTime(_)) && edge.receivers < operator.parallelism =>
        {
            refuse("rows of which one subtask is ahead of another in event time would come late")
        }
        Exchange::Forward | Exchange::Rebalance | Exchange::Broadcast => Ok(Way::ByNumber),
    }
}

/// Whether all subtasks that had not ended were at one watermark.
fn same_watermarks(operator: &OperatorState) -> bool {
    let mut running = operator.subtasks.iter().map(|s| s.watermark).filter(|w| *w < Watermark::MAX.0);
    let first = running.next();
    running.all(|watermark| Some(watermark) == first)
}

fn read(from: &RestoredJob, in_flight: &InFlightState, receiver: u32) -> Result<Vec<Channel>> {
    let path = &in_flight.file.path;
    let contents = decode_in_flight(path, from.files.read(&in_flight.file)?)?;
    let rows = |elements: &[InFlight]| -> u64 {
        let batches = elements.iter().map(|e| if let InFlight::Rows(batch) = e { batch.rows() as u64 } else { 0 });
        batches.sum()
    };
    let announced = in_flight.channels.iter().map(|channel| channel.rows);
    if !announced.eq(contents.iter().map(|elements| rows(elements))) {
        return Err(Error::invalid(format!(
            "the file of in-flight rows '{path}' has other rows than the checkpoint names"
        ))
        .mend("Go on from another checkpoint or a savepoint."));
    }
    let channels = in_flight.channels.iter().zip(contents);
    let channels = channels.map(|(channel, elements)| Channel {
        input: InputIndex(channel.input),
        sender: channel.sender,
        receiver,
        elements,
    });
    Ok(channels.collect())
}

/// The columns of an edge are those that the code reads, so other code may have others.
fn check_columns(plan: &PhysicalPlan, edge: &Edge, operator: &OperatorState, channels: &[Channel]) -> Result<()> {
    let fields = plan.graph().fields(edge.from, edge.port)?;
    let fits = |batch: &Batch| {
        let types = fields.iter().map(|field| arrow_type(&field.field.data_type));
        batch.columns().len() == fields.len() && batch.columns().iter().zip(types).all(|(c, t)| *c.data_type() == t)
    };
    let mut batches = channels.iter().flat_map(|channel| &channel.elements).filter_map(|element| match element {
        InFlight::Rows(batch) => Some(batch),
        InFlight::Watermark(_) => None,
    });
    if batches.all(fits) {
        return Ok(());
    }
    let message = format!("the rows that were in flight to '{}' have other columns than its input now", operator.name);
    Err(Error::invalid(message).mend(OTHER_CODE))
}

/// What one sender has sent to several receivers, of which each has taken another part, as one sequence again. It tells
/// all of them its watermarks, so these say how the rows lie to each other.
fn merged(channels: &[&[InFlight]]) -> Vec<InFlight> {
    // By the watermark behind them.
    let mut segments: BTreeMap<Watermark, Vec<Batch>> = BTreeMap::new();
    for channel in channels {
        let (mut rows, mut reached) = (Vec::new(), Watermark::MIN);
        for element in *channel {
            match element {
                InFlight::Rows(batch) => rows.push(batch.clone()),
                InFlight::Watermark(watermark) if *watermark > reached => {
                    reached = *watermark;
                    segments.entry(reached).or_default().append(&mut rows);
                }
                // It changes nothing for who has heard of a later one.
                InFlight::Watermark(_) => {}
            }
        }
        segments.entry(Watermark::MAX).or_default().append(&mut rows);
    }
    let segment = |(watermark, rows): (Watermark, Vec<Batch>)| {
        let rows = rows.into_iter().map(InFlight::Rows);
        rows.chain((watermark < Watermark::MAX).then_some(InFlight::Watermark(watermark)))
    };
    segments.into_iter().flat_map(segment).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn rows(value: i64) -> InFlight {
        InFlight::Rows(Batch::new(1, vec![Arc::new(Int64Array::from(vec![value]))], None).unwrap())
    }

    fn text(elements: &[InFlight]) -> String {
        let word = |element: &InFlight| match element {
            InFlight::Rows(batch) => batch.column(0).unwrap().as_primitive::<Int64Type>().value(0).to_string(),
            InFlight::Watermark(watermark) => format!("w{watermark}"),
        };
        elements.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_watermark_comes_behind_all_rows_that_were_before_it() {
        let said = |ms| InFlight::Watermark(Watermark(ms));
        let slow = [rows(1), said(10), rows(2), said(20), rows(3)];
        let fast = [rows(4), said(20), rows(5)];
        assert_eq!(text(&merged(&[&slow, &fast])), "1 w10 2 4 w20 3 5");
        // A watermark that says less than one before it, as a restart may bring it, does not turn the order round.
        let again = [rows(6), said(20), rows(7), said(10), rows(8)];
        assert_eq!(text(&merged(&[&again])), "6 w20 7 8");
    }
}
