//! What slots of two workers send each other: one connection for all jobs, with credit in bytes for each channel.
//!
//! A sender may have so many bytes of rows under way as the queue between two slots of one process may hold. What the
//! receiver has taken out of its queue it gives back as credit. Barriers, watermarks and ends need no credit, and rows
//! before a barrier go without: a barrier that waited for credit would wait for what a slow operator takes.
//!
//! Of two workers, the one with the smaller name connects. When the connection breaks, every execution that has slots at
//! both ends fails: what was under way is lost, and only going back to a checkpoint brings it again.

mod connection;
mod links;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemill_core::connector::Waker;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_dataflow::JobSettings;
use tidemill_dataflow::physical::PhysicalPlan;
use tidemill_dataflow::slice::Wire;
use tidemill_rpc::proto::{Frame, Open};
use tidemill_rpc::rows::wire_schema;
use tokio::sync::Notify;

pub use connection::{dial, serve};
use links::{Ends, Links};

/// The connections of this worker to others.
pub struct Plane {
    me: String,
    dial: Box<dyn Fn(Arc<Peer>, String) + Send + Sync>,
    peers: Mutex<BTreeMap<String, Arc<Peer>>>,
}

/// Another worker.
pub struct Peer {
    worker: String,
    wake: Arc<Notify>,
    links: Mutex<BTreeMap<u64, Arc<Links>>>,
    /// Whether a connection is there or being made.
    connected: Mutex<bool>,
}

impl Plane {
    /// Of this worker. `dial` connects to another one at an address; it does not wait for that.
    pub fn new(me: String, dial: impl Fn(Arc<Peer>, String) + Send + Sync + 'static) -> Self {
        Self { me, dial: Box::new(dial), peers: Mutex::default() }
    }

    /// Another worker, or this one: then nothing is ever sent.
    pub fn peer(&self, worker: &str) -> Arc<Peer> {
        lock(&self.peers).entry(worker.to_owned()).or_insert_with(|| Arc::new(Peer::new(worker))).clone()
    }

    /// Takes the ends of channels to slots of other workers. `trouble` is told when the way there is gone.
    pub fn join(
        &self,
        open: &Open,
        settings: &JobSettings,
        plan: &PhysicalPlan,
        wires: Vec<Wire>,
        trouble: impl Fn(Error) + Clone + Send + Sync + 'static,
    ) -> Result<()> {
        let bound = settings.exchange_bytes as u64;
        let mut by_worker: BTreeMap<&str, Ends> = BTreeMap::new();
        let worker_of = |slot: u32| {
            let place = open.places.iter().find(|place| place.slot == slot);
            place.map(|place| place.worker.as_str()).ok_or_else(|| Error::internal(format!("slot {slot} is nowhere")))
        };
        for wire in wires {
            let (Wire::Out(channel, _) | Wire::In(channel, _)) = &wire;
            let channel = *channel;
            let edge = plan.edges().get(channel.edge as usize);
            let edge = edge.ok_or_else(|| Error::internal(format!("the plan has no edge {}", channel.edge)))?;
            let schema = plan.graph().schema(edge.from, edge.port)?;
            let schema = wire_schema(schema.fields().iter().map(|field| field.data_type().clone()));
            match wire {
                Wire::Out(_, queue) => {
                    by_worker.entry(worker_of(channel.receiver)?).or_default().send(channel, queue, schema, bound);
                }
                Wire::In(_, queue) => {
                    by_worker.entry(worker_of(channel.sender)?).or_default().receive(channel, queue, schema, bound);
                }
            }
        }
        for (worker, ends) in by_worker {
            let peer = self.peer(worker);
            lock(&peer.links).insert(open.execution, Arc::new(Links::new(open.execution, ends, trouble.clone())));
            let address = open.places.iter().find(|place| place.worker == worker);
            let address = address.map(|place| place.exchange_address.clone()).unwrap_or_default();
            if self.me.as_str() < worker && !std::mem::replace(&mut *lock(&peer.connected), true) {
                (self.dial)(peer, address);
            }
        }
        Ok(())
    }

    /// An execution has nothing here any more.
    pub fn leave(&self, execution: u64) {
        let mut peers = lock(&self.peers);
        for peer in peers.values() {
            lock(&peer.links).remove(&execution);
        }
        // Workers come and go; those that are gone leave nothing behind.
        peers.retain(|_, peer| *lock(&peer.connected) || !lock(&peer.links).is_empty() || Arc::strong_count(peer) > 1);
    }
}

impl Peer {
    fn new(worker: &str) -> Self {
        let (wake, links, connected) = Default::default();
        Self { worker: worker.to_owned(), wake, links, connected }
    }

    /// What wakes whoever sends there.
    pub fn waker(&self) -> Waker {
        let wake = self.wake.clone();
        Waker::new(move || wake.notify_one())
    }

    /// What can be sent now. Woken by [`Peer::waker`], there may be more.
    pub fn due(&self) -> Vec<Frame> {
        let links: Vec<Arc<Links>> = lock(&self.links).values().cloned().collect();
        let mut frames = Vec::new();
        links.iter().for_each(|links| links.due(&mut frames));
        frames
    }

    /// It sent something.
    pub fn received(&self, frame: Frame) {
        // Of an execution that is no more: stale.
        let Some(links) = lock(&self.links).get(&frame.execution).cloned() else { return };
        match links.received(frame) {
            Ok(true) => self.wake.notify_one(),
            Ok(false) => {}
            Err(error) => links.trouble(error),
        }
    }

    /// It connected to this worker.
    pub fn connected(&self) {
        *lock(&self.connected) = true;
    }

    /// The connection is no more, or could not be made, and what was under way is lost.
    pub fn broke(&self, why: &str) {
        *lock(&self.connected) = false;
        let lost = std::mem::take(&mut *lock(&self.links));
        for links in lost.values() {
            let message = format!("the connection to {} broke: {why}", self.worker);
            links.trouble(Error::new(ErrorKind::Lost, message));
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
