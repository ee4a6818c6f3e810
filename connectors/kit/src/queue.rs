//! A bounded queue between a slot, which must not block, and a thread of a connector, which may.
//!
//! Bounded in bytes, not items: a batch may be small or large. Invariant: at most one item beyond the limit is held, since
//! an item is always taken once there is any room (else one larger than the limit could never pass).

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemill_core::connector::Waker;

/// What a look at the queue gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Popped<T> {
    /// The next item.
    Item(T),
    /// Nothing yet.
    Empty,
    /// Nothing any more.
    Closed,
}

/// A handle on the queue; both sides hold one, and whoever leaves closes it.
#[derive(Debug)]
pub struct Queue<T>(Arc<Shared<T>>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// For the side that may block.
    changed: Condvar,
    /// For the side that may not.
    waker: Waker,
    limit_bytes: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    closed: bool,
}

impl<T> Queue<T> {
    /// A queue that is full from so many bytes on. The waker wakes the slot after every change that it may wait for.
    pub fn new(limit_bytes: usize, waker: Waker) -> Self {
        let state = Mutex::new(State { items: VecDeque::new(), bytes: 0, closed: false });
        Self(Arc::new(Shared { state, changed: Condvar::new(), waker, limit_bytes }))
    }

    /// From a thread: waits for room. False if the queue is closed: nobody wants the item any more.
    pub fn push_blocking(&self, item: T, bytes: usize) -> bool {
        let mut state = self.lock();
        while !state.closed && state.bytes >= self.0.limit_bytes {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return false;
        }
        state.bytes += bytes;
        state.items.push_back((item, bytes));
        drop(state);
        self.0.waker.wake();
        true
    }

    /// From the slot: always takes the item, unless the queue is closed. Look at [`Queue::is_full`] before.
    pub fn push(&self, item: T, bytes: usize) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.bytes += bytes;
        state.items.push_back((item, bytes));
        self.0.changed.notify_all();
        true
    }

    /// Whether there is no room.
    pub fn is_full(&self) -> bool {
        self.lock().bytes >= self.0.limit_bytes
    }

    /// From the slot.
    pub fn pop(&self) -> Popped<T> {
        let mut state = self.lock();
        match state.items.pop_front() {
            Some((item, bytes)) => {
                state.bytes -= bytes;
                self.0.changed.notify_all();
                Popped::Item(item)
            }
            None if state.closed => Popped::Closed,
            None => Popped::Empty,
        }
    }

    /// From a thread: waits for an item. `None` if the queue is closed and empty.
    pub fn pop_blocking(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(item) = self.take(&mut state) {
                drop(state);
                return Some(self.room_made(item));
            }
            if state.closed {
                return None;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// From a thread that has something else to look after: waits for an item, but no longer than so. `Empty` may come
    /// earlier.
    pub fn pop_waiting(&self, longest: Duration) -> Popped<T> {
        let mut state = self.lock();
        if state.items.is_empty() && !state.closed {
            state = self.0.changed.wait_timeout(state, longest).unwrap_or_else(PoisonError::into_inner).0;
        }
        match self.take(&mut state) {
            Some(item) => {
                drop(state);
                Popped::Item(self.room_made(item))
            }
            None if state.closed => Popped::Closed,
            None => Popped::Empty,
        }
    }

    /// The next item, and whether there is room since it was taken.
    fn take(&self, state: &mut State<T>) -> Option<(T, bool)> {
        let (item, bytes) = state.items.pop_front()?;
        let was_full = state.bytes >= self.0.limit_bytes;
        state.bytes -= bytes;
        Some((item, was_full && state.bytes < self.0.limit_bytes))
    }

    /// Wakes the slot, without the lock.
    fn room_made(&self, (item, room): (T, bool)) -> T {
        if room {
            self.0.waker.wake();
        }
        item
    }

    /// No more items; those that are there can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.changed.notify_all();
        self.0.waker.wake();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_holds_the_thread_back_until_there_is_room() {
        let queue = Queue::new(10, Waker::new(|| {}));
        let theirs = queue.clone();
        let thread = std::thread::spawn(move || {
            let pushed = (0..100).take_while(|n| theirs.push_blocking(*n, 4)).count();
            theirs.close();
            pushed
        });
        let mut seen = Vec::new();
        loop {
            match queue.pop() {
                Popped::Item(n) => seen.push(n),
                Popped::Empty => std::thread::yield_now(),
                Popped::Closed => break,
            }
            assert!(queue.lock().bytes < 10 + 4);
        }
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        assert_eq!(thread.join().unwrap(), 100);
    }

    #[test]
    fn closing_frees_a_thread_that_waits() {
        let queue = Queue::new(1, Waker::new(|| {}));
        assert!(queue.push_blocking(1, 1) && queue.is_full());
        let theirs = queue.clone();
        let thread = std::thread::spawn(move || theirs.push_blocking(2, 1));
        queue.close();
        assert!(!thread.join().unwrap());
        assert_eq!((queue.pop_blocking(), queue.pop_blocking()), (Some(1), None));
    }

    #[test]
    fn waiting_for_a_while_gives_what_there_is_and_wakes_as_waiting_for_ever_does() {
        let woken = Arc::new(Mutex::new(0));
        let count = woken.clone();
        let queue = Queue::new(4, Waker::new(move || *count.lock().unwrap() += 1));
        assert_eq!(queue.pop_waiting(Duration::ZERO), Popped::Empty);
        assert!(queue.push(1, 4) && queue.push(2, 4));
        assert_eq!(queue.pop_waiting(Duration::MAX), Popped::Item(1));
        assert_eq!(*woken.lock().unwrap(), 0, "it is still full");
        assert_eq!(queue.pop_waiting(Duration::MAX), Popped::Item(2));
        assert_eq!(*woken.lock().unwrap(), 1);
        queue.close();
        assert_eq!(queue.pop_waiting(Duration::MAX), Popped::Closed);
    }
}
