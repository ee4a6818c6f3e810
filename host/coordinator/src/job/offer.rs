//! Slots of a job that run since before this coordinator: workers say so one after another, when they register.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemill_rpc::proto::{Running, signal};

use crate::workers::{Worker, Workers};

/// An execution that may be taken over, if all its slots are found.
pub struct Offer {
    pub execution: u64,
    /// Of the attempt; 0: the job takes no checkpoints.
    pub generation: u64,
    pub parallelism: u32,
    slots: BTreeMap<u32, Arc<Worker>>,
}

impl Offer {
    /// Of which nothing is found yet.
    pub fn new(running: &Running) -> Self {
        let Running { execution, generation, parallelism, .. } = *running;
        Self { execution, generation, parallelism, slots: BTreeMap::new() }
    }

    /// Adds what runs on a worker. Whether it belongs to this.
    pub fn add(&mut self, worker: &Arc<Worker>, running: &Running) -> bool {
        let belongs = self.execution == running.execution && running.slots.iter().all(|slot| *slot < self.parallelism);
        if belongs {
            self.slots.extend(running.slots.iter().map(|slot| (*slot, worker.clone())));
        }
        belongs
    }

    /// All its slots, if they are there.
    pub fn complete(&self, workers: &Workers) -> Option<Vec<Arc<Worker>>> {
        let all = self.slots.len() as u64 == u64::from(self.parallelism);
        (all && self.slots.values().all(|worker| workers.has(worker))).then(|| self.slots())
    }

    /// Those that are there.
    pub fn slots(&self) -> Vec<Arc<Worker>> {
        self.slots.values().cloned().collect()
    }

    /// Ends what runs: another attempt is made.
    pub fn decline(self, workers: &Workers) {
        self.end(workers, signal::What::Cancel(true));
    }

    /// Tells its slots that everything is committed.
    pub fn committed(self, workers: &Workers) {
        self.end(workers, signal::What::Verdict(true));
    }

    fn end(self, workers: &Workers, what: signal::What) {
        let slots = self.slots();
        slots.iter().for_each(|worker| worker.signal(self.execution, what));
        workers.give_back(&slots);
    }
}
