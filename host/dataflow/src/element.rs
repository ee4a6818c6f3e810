//! What flows on an edge: rows, and what is said about them.

use std::collections::VecDeque;

use tidemill_core::Batch;
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
    /// Nothing follows. After a [`Watermark::MAX`] the input has ended; without one the job was stopped, and what is
    /// open (windows, timers) does not fire.
    End,
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
}

/// The elements that wait before an operator, from all its channels, in order of arrival. It belongs to one slot.
#[derive(Debug, Default)]
pub struct Inbox {
    elements: VecDeque<(u32, Element, usize)>,
    bytes: usize,
}

impl Inbox {
    /// Bytes at which those before it should stop. An operator is run before anything upstream of it is, so this only
    /// bounds what one call emits: about a batch of wide rows, to stay in the second-level cache.
    const FULL_BYTES: usize = 256 << 10;

    /// Appends an element of a channel.
    pub fn push(&mut self, channel: u32, element: Element) {
        let bytes = element.bytes();
        self.bytes += bytes;
        self.elements.push_back((channel, element, bytes));
    }

    /// The oldest element and its channel.
    pub fn pop(&mut self) -> Option<(u32, Element)> {
        let (channel, element, bytes) = self.elements.pop_front()?;
        self.bytes -= bytes;
        Some((channel, element))
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Whether those before it should stop.
    pub fn is_full(&self) -> bool {
        self.bytes >= Self::FULL_BYTES
    }
}
