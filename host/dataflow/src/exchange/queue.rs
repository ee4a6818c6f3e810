//! A queue between two slots: one sender, one receiver, bounded in bytes.
//!
//! It never refuses: the sender asks [`QueueSender::is_full`] before it begins a piece of work, and what that piece
//! emits is kept. So control elements always fit, and no operator is stopped in the middle of an emission. The overshoot
//! is what one call emits. For the same reason a barrier is at the receiver as soon as it is sent: the receiver of an
//! unaligned checkpoint finds it behind the rows that it overtakes.
//!
//! A lock per batch is not measurable; the counts beside it make the frequent questions ("anything there?", "full?")
//! free of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidemill_core::connector::Waker;
use tidemill_core::ids::Epoch;

use crate::element::Element;

/// A queue of at most about `bound_bytes` (above 0) of rows, and who sleeps at either end.
pub fn queue(bound_bytes: usize, sender: Waker, receiver: Waker) -> (QueueSender, QueueReceiver) {
    between(bound_bytes, sender, Receiver::Slot(receiver))
}

/// As `queue`, to a slot of another process: what carries elements there is at the receiving end.
pub fn queue_to_carrier(bound_bytes: usize, sender: Waker, carrier: Arc<Flush>) -> (QueueSender, QueueReceiver) {
    between(bound_bytes, sender, Receiver::Carrier(carrier))
}

fn between(bound_bytes: usize, sender: Waker, receiver: Receiver) -> (QueueSender, QueueReceiver) {
    let shared = Arc::new(Shared {
        elements: Mutex::default(),
        len: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        bound: bound_bytes.max(1),
        sender,
        receiver,
    });
    (QueueSender(shared.clone()), QueueReceiver(shared))
}

#[derive(Debug)]
struct Shared {
    elements: Mutex<VecDeque<(Element, usize)>>,
    len: AtomicUsize,
    bytes: AtomicUsize,
    bound: usize,
    sender: Waker,
    receiver: Receiver,
}

/// Who is at the receiving end.
#[derive(Debug)]
enum Receiver {
    Slot(Waker),
    Carrier(Arc<Flush>),
}

/// When what carries elements to another process is woken: when enough waits for it, when something waits that must not,
/// and when the sending slot says so. Waking it for each element costs more than the way itself.
#[derive(Debug)]
pub struct Flush {
    carrier: Waker,
    enough: usize,
    /// Bytes that it was not woken for, and one for each element.
    waiting: AtomicUsize,
}

impl Flush {
    /// Of this carrier, for which so many bytes are enough.
    pub fn new(carrier: Waker, enough: usize) -> Self {
        Self { carrier, enough, waiting: AtomicUsize::new(0) }
    }

    /// Wakes it, if anything waits.
    pub fn now(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.waiting.store(0, Ordering::Relaxed);
            self.carrier.wake();
        }
    }

    /// These bytes came; `at_once`: they must not wait.
    fn add(&self, bytes: usize, at_once: bool) {
        let before = self.waiting.fetch_add(bytes + 1, Ordering::Relaxed);
        if at_once || before + bytes >= self.enough {
            self.now();
        }
    }
}

/// The end of the slot that sends.
#[derive(Debug)]
pub struct QueueSender(Arc<Shared>);

impl QueueSender {
    /// Appends and wakes the receiver.
    pub fn push(&self, element: Element) {
        let bytes = element.bytes();
        self.push_counted(element, bytes);
    }

    /// As `push`, of an element that counts so many bytes.
    pub fn push_counted(&self, element: Element, bytes: usize) {
        let shared = &self.0;
        shared.bytes.fetch_add(bytes, Ordering::AcqRel);
        let at_once = !matches!(element, Element::Batch(_) | Element::Watermark(_));
        let mut elements = shared.elements.lock().unwrap_or_else(PoisonError::into_inner);
        elements.push_back((element, bytes));
        shared.len.store(elements.len(), Ordering::Release);
        drop(elements);
        match &shared.receiver {
            Receiver::Slot(slot) => slot.wake(),
            Receiver::Carrier(flush) => flush.add(bytes, at_once),
        }
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Acquire)
    }

    /// What shows how much that is.
    pub fn gauge(&self) -> QueueGauge {
        QueueGauge(self.0.clone())
    }

    /// Whether the sender should stop until it is woken.
    pub fn is_full(&self) -> bool {
        self.0.bytes.load(Ordering::Acquire) >= self.0.bound
    }
}

/// Shows how much stands in a queue, to whoever is at neither end.
#[derive(Clone, Debug)]
pub struct QueueGauge(Arc<Shared>);

impl QueueGauge {
    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

/// The end of the slot that receives.
#[derive(Debug)]
pub struct QueueReceiver(Arc<Shared>);

impl QueueReceiver {
    /// The oldest element. Wakes the sender when half of the bound is free again: it will come back with more than
    /// one batch to add, and it sleeps only when the queue was full, so it can't miss this.
    pub fn pop(&self) -> Option<Element> {
        let shared = &self.0;
        if self.is_empty() {
            return None;
        }
        let mut elements = shared.elements.lock().unwrap_or_else(PoisonError::into_inner);
        let (element, bytes) = elements.pop_front()?;
        shared.len.store(elements.len(), Ordering::Release);
        drop(elements);
        let before = shared.bytes.fetch_sub(bytes, Ordering::AcqRel);
        let half = shared.bound.div_ceil(2);
        if before >= half && before - bytes < half {
            shared.sender.wake();
        }
        Some(element)
    }

    /// Looks at what is there, oldest first. The sender waits meanwhile.
    pub fn look<T>(&self, at: impl FnOnce(&VecDeque<(Element, usize)>) -> T) -> T {
        at(&self.0.elements.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Drops the barriers of checkpoints up to this one: they were passed.
    pub fn drop_barriers(&self, up_to: Epoch) {
        let mut elements = self.0.elements.lock().unwrap_or_else(PoisonError::into_inner);
        elements.retain(|(element, _)| !element.is_barrier_up_to(up_to));
        self.0.len.store(elements.len(), Ordering::Release);
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.0.len.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};
    use tidemill_core::Batch;
    use tidemill_core::time::Watermark;

    use super::*;

    fn batch(rows: usize) -> Element {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![0; rows]));
        Element::Batch(Batch::new(rows, vec![column], None).unwrap())
    }

    #[test]
    fn it_fills_with_rows_only_and_wakes_the_sender_when_half_is_free() {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        let sender = Waker::new(move || _ = count.fetch_add(1, Ordering::Relaxed));
        let one = batch(64).bytes();
        let (tx, rx) = queue(4 * one, sender, Waker::new(|| ()));
        for _ in 0..100 {
            tx.push(Element::Watermark(Watermark(1)));
        }
        assert!(!tx.is_full(), "control elements always fit");
        for _ in 0..4 {
            assert!(!tx.is_full());
            tx.push(batch(64));
        }
        assert!(tx.is_full());
        for _ in 0..102 {
            assert!(rx.pop().is_some());
        }
        assert_eq!(woken.load(Ordering::Relaxed), 0, "half is still taken");
        assert!(rx.pop().is_some());
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        assert!(!tx.is_full());
        assert!(rx.pop().is_some() && rx.pop().is_none());
        assert_eq!(woken.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_carrier_is_woken_for_enough_for_what_must_not_wait_and_when_told() {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        let carrier = Waker::new(move || _ = count.fetch_add(1, Ordering::Relaxed));
        let flush = Arc::new(Flush::new(carrier, 3 * batch(64).bytes()));
        let (tx, rx) = queue_to_carrier(1 << 20, Waker::new(|| ()), flush.clone());
        let woken = || woken.load(Ordering::Relaxed);
        flush.now();
        assert_eq!(woken(), 0, "nothing waits");
        tx.push(batch(64));
        tx.push(Element::Watermark(Watermark(1)));
        assert_eq!(woken(), 0);
        flush.now();
        flush.now();
        assert_eq!(woken(), 1);
        (0..3).for_each(|_| tx.push(batch(64)));
        assert_eq!(woken(), 2, "enough waits");
        tx.push(batch(64));
        tx.push(Element::End);
        assert_eq!(woken(), 3, "an end does not wait");
        assert_eq!(std::iter::from_fn(|| rx.pop()).count(), 7);
    }

    #[test]
    fn a_batch_over_the_bound_is_kept_and_its_removal_wakes() {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        let (tx, rx) = queue(1, Waker::new(move || _ = count.fetch_add(1, Ordering::Relaxed)), Waker::new(|| ()));
        tx.push(batch(1_000));
        assert!(tx.is_full());
        assert!(rx.pop().is_some());
        assert!(!tx.is_full());
        assert_eq!(woken.load(Ordering::Relaxed), 1);
    }
}
