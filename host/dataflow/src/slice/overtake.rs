//! Unaligned checkpoints: barriers that overtake what stands before them (`docs/decisions/0007-unaligned.md`).
//!
//! A barrier is sent behind rows into queues that never refuse, so it is at its receiver at once, however full they are.
//! A cell may therefore pass it as soon as it stands on every channel that did not end: what stands before it is all that
//! will ever come of this checkpoint, and is kept with it. The rows themselves stay where they are, and are taken later.
//! So the barriers of a job get through all its slots without a single row being taken.

use tidemill_core::Result;
use tidemill_core::ids::Epoch;
use tidemill_core::snapshot::SnapshotKind;

use super::cell::CellStep;
use super::{Origin, Slice, Waits};
use crate::element::{Barrier, Element};
use crate::exchange::queue::QueueReceiver;
use crate::in_flight::{ChannelContent, Overtaken};

impl Slice {
    /// Has the next cell pass the barrier, or get ready for it; whether one did.
    pub(super) fn overtake(&mut self, epoch: Epoch, waits: &mut Waits) -> Result<bool> {
        if self.read_news()? {
            return Ok(true);
        }
        let mut behind = false;
        // Those that send come first.
        for at in 0..self.cells.len() {
            if self.cells[at].has_ended() || self.cells[at].passed() >= epoch {
                continue;
            }
            behind = true;
            if self.cells[at].is_source() || !self.stands_on_all_channels(at, epoch) {
                continue;
            }
            if !self.cells[at].is_pending() {
                return self.pass_overtaking(at, epoch).map(|()| true);
            }
            match self.cells[at].finish(epoch, &*self.clock, &mut self.inboxes, &mut self.letters)? {
                Some(CellStep::Ran) => return Ok(true),
                Some(CellStep::Waits(until)) => waits.until(Some(until)),
                None => waits.blocked = true,
            }
        }
        if !behind {
            self.overtaken = epoch;
        }
        Ok(false)
    }

    fn pass_overtaking(&mut self, at: usize, epoch: Epoch) -> Result<()> {
        let in_flight = Overtaken::new(self.in_flight(at, epoch), &self.memory);
        let barrier = Barrier { epoch, kind: SnapshotKind::Incremental, stops: false };
        let snapshot = self.cells[at].overtake(barrier, in_flight, &mut self.inboxes, &mut self.letters)?;
        self.inboxes[at].unblock();
        self.inboxes[at].drop_barriers(epoch);
        for origin in &self.origins {
            if let Origin::Queue { from, cell, .. } = origin
                && *cell == at
            {
                from.drop_barriers(epoch);
            }
        }
        self.passed(at, snapshot)
    }

    /// Whether nothing more can come that belongs before the barrier: it, or the end, stands on every channel that owes it.
    fn stands_on_all_channels(&self, at: usize, epoch: Epoch) -> bool {
        let channels = 0..self.cells[at].channels().len() as u32;
        let mut owing = channels.filter(|&channel| self.cells[at].owes(channel, epoch));
        owing.all(|channel| {
            self.inboxes[at].waiting(channel).any(|element| closes(element, epoch))
                || self
                    .queue(at, channel)
                    .is_some_and(|queue| queue.look(|all| all.iter().any(|(e, _)| closes(e, epoch))))
        })
    }

    /// What stands before the barrier on each channel.
    fn in_flight(&self, at: usize, epoch: Epoch) -> Vec<ChannelContent> {
        let mut contents = Vec::new();
        for (channel, id) in (0..).zip(self.cells[at].channels()) {
            // Behind a barrier that was taken, nothing belongs before it.
            if !self.cells[at].owes(channel, epoch) {
                continue;
            }
            let inbox = &self.inboxes[at];
            let before = |element: &&Element| !closes(element, epoch);
            contents.extend(match self.queue(at, channel) {
                Some(queue) => queue.look(|all| {
                    let all = inbox.waiting(channel).chain(all.iter().map(|(element, _)| element));
                    ChannelContent::of(id, all.take_while(before))
                }),
                None => ChannelContent::of(id, inbox.waiting(channel).take_while(before)),
            });
        }
        contents
    }

    /// The way of a channel from another slot.
    fn queue(&self, at: usize, of: u32) -> Option<&QueueReceiver> {
        self.origins.iter().find_map(|origin| match origin {
            Origin::Queue { from, cell, channel } if *cell == at && *channel == of => Some(from),
            _ => None,
        })
    }
}

/// Whether an element says that nothing follows on its channel that belongs before the barrier.
fn closes(element: &Element, epoch: Epoch) -> bool {
    match element {
        Element::Barrier(barrier) => barrier.epoch == epoch,
        Element::End => true,
        _ => false,
    }
}
