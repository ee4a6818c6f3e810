//! What flows on an edge: rows, and what is said about them.

use std::collections::VecDeque;

use tidemill_core::Batch;
use tidemill_core::ids::Epoch;
use tidemill_core::snapshot::SnapshotKind;
use tidemill_core::time::Watermark;

/// One element of a stream.
#[derive(Clone, Debug)]
pub enum Element {
    /// Rows.
    Batch(Batch),
    /// No row at or below this time follows.
    Watermark(Watermark),
    /// The sender no longer (or again) takes part in watermarks. Rows and watermarks say "again" too.
    Idle(bool),
    /// What came before belongs to this checkpoint, what follows does not.
    Barrier(Barrier),
    /// Nothing follows. After a [`Watermark::MAX`] the input has ended; without one the job was stopped, and what is
    /// open (windows, timers) does not fire.
    End,
}

/// Divides a stream into what belongs to a checkpoint and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// Which checkpoint.
    pub epoch: Epoch,
    /// What is to be frozen.
    pub kind: SnapshotKind,
    /// Whether sources end behind it: the job is stopped with this checkpoint.
    pub stops: bool,
}

impl Element {
    /// Bytes for accounting. Only rows count, so that control elements always fit.
    pub fn bytes(&self) -> usize {
        match self {
            // At least 1, so that a full queue is never an empty one and its receiver is always woken.
            Self::Batch(batch) => batch.bytes().max(1),
            _ => 0,
        }
    }

    /// Whether it is the barrier of this checkpoint or one before it.
    pub fn is_barrier_up_to(&self, epoch: Epoch) -> bool {
        matches!(self, Self::Barrier(barrier) if barrier.epoch <= epoch)
    }
}

/// The elements that wait before an operator, from all its channels, in order of arrival. It belongs to one slot.
///
/// A channel that is *blocked* has delivered the barrier for which the operator waits on other channels: what follows
/// on it is held, and counted apart, so that channels which still owe the barrier are not held up by it.
#[derive(Debug, Default)]
pub struct Inbox {
    elements: VecDeque<Waiting>,
    bytes: usize,
    held: VecDeque<Waiting>,
    held_bytes: usize,
    /// The channels that are blocked.
    blocked: Vec<u32>,
}

#[derive(Debug)]
struct Waiting {
    channel: u32,
    element: Element,
    bytes: usize,
}

impl Inbox {
    /// Bytes at which those before it should stop. An operator is run before anything upstream of it is, so this only
    /// bounds what one call emits: about a batch of wide rows, to stay in the second-level cache.
    const FULL_BYTES: usize = 256 << 10;

    /// Appends an element of a channel.
    pub fn push(&mut self, channel: u32, element: Element) {
        let bytes = element.bytes();
        let waiting = Waiting { channel, element, bytes };
        if self.is_blocked(channel) {
            self.held_bytes += bytes;
            self.held.push_back(waiting);
        } else {
            self.bytes += bytes;
            self.elements.push_back(waiting);
        }
    }

    /// The oldest element of a channel that is not blocked, and its channel.
    pub fn pop(&mut self) -> Option<(u32, Element)> {
        let Waiting { channel, element, bytes } = self.elements.pop_front()?;
        self.bytes -= bytes;
        Some((channel, element))
    }

    /// Whether nothing waits that may be popped.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Whether a channel's sender should stop.
    pub fn is_full(&self, channel: u32) -> bool {
        let bytes = if self.is_blocked(channel) { self.held_bytes } else { self.bytes };
        bytes >= Self::FULL_BYTES
    }

    /// Whether a channel is blocked.
    pub fn is_blocked(&self, channel: u32) -> bool {
        // Nearly always empty, and never long.
        self.blocked.contains(&channel)
    }

    /// Holds what this channel has brought and will bring.
    pub fn block(&mut self, channel: u32) {
        self.blocked.push(channel);
        for waiting in std::mem::take(&mut self.elements) {
            if waiting.channel == channel {
                self.bytes -= waiting.bytes;
                self.held_bytes += waiting.bytes;
                self.held.push_back(waiting);
            } else {
                self.elements.push_back(waiting);
            }
        }
    }

    /// What a channel has brought and what was not taken, in order.
    pub fn waiting(&self, channel: u32) -> impl Iterator<Item = &Element> {
        // All of a channel is in one of the two.
        let all = self.held.iter().chain(&self.elements);
        all.filter(move |waiting| waiting.channel == channel).map(|waiting| &waiting.element)
    }

    /// Drops the barriers of checkpoints up to this one: they were passed.
    pub fn drop_barriers(&mut self, up_to: Epoch) {
        self.held.retain(|waiting| !waiting.element.is_barrier_up_to(up_to));
        self.elements.retain(|waiting| !waiting.element.is_barrier_up_to(up_to));
    }

    /// Lets go of everything that is held. It is older than what else its channels bring.
    pub fn unblock(&mut self) {
        self.blocked.clear();
        self.bytes += std::mem::take(&mut self.held_bytes);
        let mut elements = std::mem::take(&mut self.held);
        elements.append(&mut self.elements);
        self.elements = elements;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watermarks(inbox: &mut Inbox) -> Vec<(u32, i64)> {
        let next = std::iter::from_fn(|| inbox.pop());
        next.map(|(channel, element)| match element {
            Element::Watermark(watermark) => (channel, watermark.0),
            other => panic!("{other:?}"),
        })
        .collect()
    }

    #[test]
    fn a_blocked_channel_is_held_and_keeps_its_order() {
        let mut inbox = Inbox::default();
        let say = |inbox: &mut Inbox, channel, ms| inbox.push(channel, Element::Watermark(Watermark(ms)));
        say(&mut inbox, 0, 1);
        say(&mut inbox, 1, 2);
        inbox.block(0);
        say(&mut inbox, 0, 3);
        say(&mut inbox, 1, 4);
        assert_eq!(watermarks(&mut inbox), [(1, 2), (1, 4)]);
        say(&mut inbox, 1, 5);
        inbox.unblock();
        say(&mut inbox, 0, 6);
        assert_eq!(watermarks(&mut inbox), [(0, 1), (0, 3), (1, 5), (0, 6)]);
    }

    #[test]
    fn barriers_that_were_passed_are_dropped_wherever_they_are() {
        let barrier = |epoch| Barrier { epoch: Epoch(epoch), kind: SnapshotKind::Incremental, stops: false };
        let mut inbox = Inbox::default();
        for (channel, epoch) in [(0, 4), (1, 5), (0, 5), (1, 6)] {
            inbox.push(channel, Element::Barrier(barrier(epoch)));
            inbox.push(channel, Element::Watermark(Watermark(epoch as i64)));
        }
        inbox.block(0);
        inbox.push(0, Element::Watermark(Watermark(7)));
        let of = |inbox: &Inbox, channel| inbox.waiting(channel).map(|e| format!("{e:?}")).collect::<Vec<_>>().len();
        assert_eq!((of(&inbox, 0), of(&inbox, 1)), (5, 4));
        inbox.unblock();
        inbox.drop_barriers(Epoch(5));
        let kept = std::iter::from_fn(|| inbox.pop()).map(|(channel, element)| match element {
            Element::Watermark(watermark) => (channel, watermark.0),
            Element::Barrier(barrier) => (channel, -(barrier.epoch.0 as i64)),
            other => panic!("{other:?}"),
        });
        assert_eq!(kept.collect::<Vec<_>>(), [(0, 4), (0, 5), (0, 7), (1, 5), (1, -6), (1, 6)]);
    }

    #[test]
    fn what_is_held_does_not_make_other_channels_full() {
        let mut inbox = Inbox::default();
        inbox.block(0);
        let batch =
            Batch::new(1 << 16, vec![std::sync::Arc::new(arrow::array::Int64Array::from(vec![0; 1 << 16]))], None);
        inbox.push(0, Element::Batch(batch.unwrap()));
        assert!(inbox.is_full(0) && !inbox.is_full(1) && inbox.is_empty());
        inbox.unblock();
        assert!(inbox.is_full(0) && inbox.is_full(1) && !inbox.is_empty());
    }
}
