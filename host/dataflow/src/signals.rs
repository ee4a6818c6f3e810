//! What the master of a job says to all its slots at once: flags, which the slots look at when they step.
//!
//! Where slots are in another process, a waker on this side carries what was said over, and the other side says it again.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use tidemill_core::connector::Waker;
use tidemill_core::ids::Epoch;

/// See the module. Nothing of it is ever taken back.
#[derive(Debug)]
pub struct Signals {
    stop: AtomicBool,
    cancel: AtomicBool,
    /// The latest checkpoint whose barriers overtake; 0: there was none.
    overtake: AtomicU64,
    /// The latest checkpoint that is complete; 0: there was none.
    completed: AtomicU64,
    verdict: AtomicU8,
    /// Of the slots.
    wakers: Vec<Waker>,
}

impl Signals {
    /// For slots that are woken so.
    pub fn new(wakers: Vec<Waker>) -> Self {
        let (stop, cancel, overtake, completed, verdict) = Default::default();
        Self { stop, cancel, overtake, completed, verdict, wakers }
    }

    /// Sources end where they are.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether that was said.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Everything ends at once.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether that was said.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    /// The barriers of this checkpoint, which are sent, overtake from now on.
    pub fn overtake(&self, epoch: Epoch) {
        self.overtake.store(epoch.0, Ordering::Release);
        self.wake();
    }

    /// The latest checkpoint of which that was said.
    pub fn overtaking(&self) -> Epoch {
        Epoch(self.overtake.load(Ordering::Acquire))
    }

    /// A checkpoint is complete, and what was prepared for it committed.
    pub fn complete(&self, epoch: Epoch) {
        self.completed.store(epoch.0, Ordering::Release);
        self.wake();
    }

    /// The latest checkpoint of which that was said.
    pub fn completed(&self) -> Epoch {
        Epoch(self.completed.load(Ordering::Acquire))
    }

    /// To slots that came to their end: whether everything that was prepared is committed.
    pub fn judge(&self, committed: bool) {
        self.verdict.store(1 + u8::from(committed), Ordering::Release);
        self.wake();
    }

    /// What was said of it, if something was.
    pub fn verdict(&self) -> Option<bool> {
        match self.verdict.load(Ordering::Acquire) {
            0 => None,
            said => Some(said == 2),
        }
    }

    fn wake(&self) {
        self.wakers.iter().for_each(Waker::wake);
    }
}
