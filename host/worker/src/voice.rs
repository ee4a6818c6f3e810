//! How what runs here speaks to the coordinator, also over the time when there is none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemill_rpc::from_worker;
use tidemill_rpc::proto::{self, from_worker as says, news};

use crate::held::Held;

type Say = Box<dyn Fn(proto::FromWorker) + Send + Sync>;

/// The way to the coordinator, while there is one. What is said without goes nowhere.
#[derive(Default)]
pub struct Line(Mutex<Option<Say>>);

impl Line {
    /// Says something.
    pub fn say(&self, says: says::Says) {
        if let Some(say) = lock(&self.0).as_ref() {
            say(from_worker(says));
        }
    }

    /// From now on there is this one.
    pub fn connected(&self, say: impl Fn(proto::FromWorker) + Send + Sync + 'static) {
        *lock(&self.0) = Some(Box::new(say));
    }

    /// There is none any more.
    pub fn broke(&self) {
        *lock(&self.0) = None;
    }
}

/// What one execution says. It holds what no checkpoint keeps yet, and its master may change.
pub struct Voice {
    line: Arc<Line>,
    state: Mutex<State>,
}

struct State {
    held: Held,
    /// Whether there is a master that hears it.
    heard: bool,
}

impl Voice {
    /// Of an execution whose master waits for it.
    pub fn new(line: Arc<Line>) -> Self {
        Self { line, state: Mutex::new(State { held: Held::default(), heard: true }) }
    }

    /// Says something that the master has to know, whoever that is.
    pub fn say(&self, says: says::Says) {
        let mut state = lock(&self.state);
        state.held.said(&says);
        if state.heard {
            self.line.say(says);
        }
    }

    /// Says something that is out of date when there is another master.
    pub fn mention(&self, says: says::Says) {
        if lock(&self.state).heard {
            self.line.say(says);
        }
    }

    /// Whether there is a master that hears it.
    pub fn is_heard(&self) -> bool {
        lock(&self.state).heard
    }

    /// A reader is about to be told something; whether it is new to it.
    pub fn told(&self, reader: (u32, u32), item: &news::Item) -> bool {
        lock(&self.state).held.told(reader, item)
    }

    /// A checkpoint is complete.
    pub fn completed(&self, epoch: u64) {
        lock(&self.state).held.completed(epoch);
    }

    /// There is no master any more.
    pub fn unheard(&self) {
        lock(&self.state).heard = false;
    }

    /// There is one again: it hears what was held, and what follows. `unfinished`: as in [`Held::readers`].
    pub fn resumed(&self, execution: u64, unfinished: impl Fn((u32, u32)) -> u32) {
        let mut state = lock(&self.state);
        let readers = state.held.readers(unfinished);
        self.line.say(says::Says::Resumed(proto::Resumed { execution, readers }));
        state.held.all_said().for_each(|says| self.line.say(says.clone()));
        state.heard = true;
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
