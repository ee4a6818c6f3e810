//! Where a port's elements go: inboxes of the same slot and queues to others.

use std::sync::Arc;

use tidemill_core::ids::{Epoch, Port, SubtaskId};
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::operator::{DeadLetter, Output};
use tidemill_core::time::Watermark;
use tidemill_core::{Batch, Error, Result};

use crate::element::{Element, Inbox};
use crate::exchange::partition::Partitioner;
use crate::exchange::queue::QueueSender;
use crate::letters::Letters;

/// One receiver.
pub enum Target {
    /// A cell of this slice.
    Local { cell: usize, channel: u32 },
    /// A cell of another slot.
    Remote(QueueSender),
}

impl Target {
    fn push(&self, element: Element, inboxes: &mut [Inbox]) -> Result<()> {
        match self {
            Self::Local { cell, channel } => inboxes
                .get_mut(*cell)
                .ok_or_else(|| Error::internal(format!("cell {cell} has no inbox")))?
                .push(*channel, element),
            Self::Remote(queue) => queue.push(element),
        }
        Ok(())
    }

    fn is_full(&self, inboxes: &[Inbox]) -> bool {
        match self {
            Self::Local { cell, channel } => inboxes.get(*cell).is_some_and(|inbox| inbox.is_full(*channel)),
            Self::Remote(queue) => queue.is_full(),
        }
    }
}

/// One edge, as a sending subtask sees it.
pub struct Route {
    pub partitioner: Partitioner,
    /// At least one.
    pub targets: Vec<Target>,
}

impl Route {
    fn send(&mut self, batch: Batch, inboxes: &mut [Inbox]) -> Result<()> {
        if let [only] = self.targets.as_slice() {
            return only.push(Element::Batch(batch), inboxes);
        }
        let targets = &self.targets;
        match &mut self.partitioner {
            Partitioner::Turn(next) => {
                let at = *next % targets.len();
                *next = at + 1;
                targets.get(at).map_or(Ok(()), |target| target.push(Element::Batch(batch), inboxes))
            }
            Partitioner::Broadcast => {
                targets.iter().try_for_each(|target| target.push(Element::Batch(batch.clone()), inboxes))
            }
            Partitioner::Hash(by_hash) => {
                let mut result = Ok(());
                by_hash.split(batch, targets.len(), |to, part| {
                    if let Some(target) = targets.get(to) {
                        let pushed = target.push(Element::Batch(part), inboxes);
                        result = std::mem::replace(&mut result, Ok(())).and(pushed);
                    }
                })?;
                result
            }
        }
    }
}

/// All routes of a cell: per port, its edges.
#[derive(Default)]
pub struct Routes(pub Vec<Vec<Route>>);

impl Routes {
    /// Whether any receiver is over its bound.
    pub fn is_full(&self, inboxes: &[Inbox]) -> bool {
        self.0.iter().flatten().flat_map(|route| &route.targets).any(|target| target.is_full(inboxes))
    }
}

/// The output of a cell during a call.
pub struct Emitter<'a> {
    pub routes: &'a mut Routes,
    pub inboxes: &'a mut [Inbox],
    pub letters: &'a mut Letters,
    pub subtask: &'a Arc<SubtaskId>,
    pub metrics: &'a TaskMetrics,
    /// The checkpoint whose barrier the cell has passed last.
    pub passed: Epoch,
    /// Whether anything was emitted.
    pub emitted: bool,
    /// Bytes that it may still emit although receivers are full, for a barrier that overtakes.
    pub past_full: Option<usize>,
}

impl Emitter<'_> {
    /// The checkpoint to which belongs what the cell does now.
    pub fn next_epoch(&self) -> Epoch {
        Epoch(self.passed.0 + 1)
    }

    /// Says something to all receivers of all ports.
    pub fn control(&mut self, element: &Element) -> Result<()> {
        let targets = self.routes.0.iter().flatten().flat_map(|route| &route.targets);
        for target in targets {
            target.push(element.clone(), self.inboxes)?;
        }
        Ok(())
    }

    /// Hands on a watermark and shows it.
    pub fn watermark(&mut self, watermark: Watermark) -> Result<()> {
        self.metrics.watermark.store(watermark.0, std::sync::atomic::Ordering::Relaxed);
        self.control(&Element::Watermark(watermark))
    }
}

impl Output for Emitter<'_> {
    fn emit(&mut self, port: Port, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.emitted = true;
        if let Some(left) = &mut self.past_full {
            *left = left.saturating_sub(batch.bytes());
        }
        self.metrics.records_out.add(batch.rows() as u64);
        self.metrics.bytes_out.add(batch.bytes() as u64);
        let routes = self.routes.0.get_mut(port.index());
        let routes = routes.ok_or_else(|| Error::internal(format!("rows for {port}, which does not exist")))?;
        let Some((last, others)) = routes.split_last_mut() else { return Ok(()) };
        for route in others {
            route.send(batch.clone(), self.inboxes)?;
        }
        last.send(batch, self.inboxes)
    }

    fn is_full(&self) -> bool {
        match self.past_full {
            Some(left) => left == 0,
            None => self.routes.is_full(self.inboxes) || self.letters.is_full(self.passed),
        }
    }

    fn dead_letter(&mut self, letter: DeadLetter) -> Result<()> {
        self.metrics.records_dead_lettered.add(1);
        self.letters.add(self.subtask, self.passed, letter)
    }
}
