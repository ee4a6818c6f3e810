//! What slots of two workers send each other: one connection for all jobs, with credit in bytes for each channel.
//!
//! A sender may have so many bytes of rows under way as the queue between two slots of one process may hold. What the
//! receiver has taken out of its queue it gives back as credit. Barriers, watermarks and ends need no credit, and rows
//! before a barrier go without: a barrier that waited for credit would wait for what a slow operator takes.
//!
//! Of two workers, the one with the smaller name connects. When the connection breaks, every execution that has slots at
//! both ends fails: what was under way is lost, and only going back to a checkpoint brings it again.
//!
//! The ends of a connection see its end at different times, so a worker may be connected to anew by one of which the
//! connection before seems to stand. Invariant: only the newest connection to a peer is used, and no execution uses two.
//! Else rows could be lost in the old one while a barrier passes through the new one.

mod connection;
mod links;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemill_core::connector::Waker;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_dataflow::JobSettings;
use tidemill_dataflow::physical::PhysicalPlan;
use tidemill_dataflow::slice::Wire;
use tidemill_rpc::frames::{Inbound, Outbound};
use tidemill_rpc::proto::Open;
use tidemill_rpc::rows::WireSchema;
use tokio::sync::Notify;

pub use connection::{dial, serve};
use links::{Ends, Links};

/// The connections of this worker to others.
pub struct Plane {
    me: String,
    dial: Box<dyn Fn(Arc<Peer>, Connection, String) + Send + Sync>,
    peers: Mutex<BTreeMap<String, Arc<Peer>>>,
}

/// Another worker.
pub struct Peer {
    worker: String,
    wake: Arc<Notify>,
    links: Mutex<BTreeMap<u64, Arc<Links>>>,
    newest: Mutex<Newest>,
}

/// The newest connection to a peer.
#[derive(Default)]
struct Newest {
    number: u64,
    /// Whether it is there or being made.
    stands: bool,
}

/// Which connection to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection(u64);

impl Newest {
    fn next(&mut self) -> Connection {
        (self.number, self.stands) = (self.number + 1, true);
        Connection(self.number)
    }

    fn is(&self, connection: Connection) -> bool {
        self.stands && self.number == connection.0
    }
}

impl Plane {
    /// Of this worker. `dial` connects to another one at an address; it does not wait for that.
    pub fn new(me: String, dial: impl Fn(Arc<Peer>, Connection, String) + Send + Sync + 'static) -> Self {
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
            let schema = WireSchema::new(schema.fields().iter().map(|field| field.data_type().clone()));
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
            let mut newest = lock(&peer.newest);
            let dials = (self.me.as_str() < worker && !newest.stands).then(|| newest.next());
            drop(newest);
            if let Some(connection) = dials {
                (self.dial)(peer, connection, address);
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
        peers.retain(|_, peer| {
            lock(&peer.newest).stands || !lock(&peer.links).is_empty() || Arc::strong_count(peer) > 1
        });
    }
}

impl Peer {
    fn new(worker: &str) -> Self {
        let (wake, links, newest) = Default::default();
        Self { worker: worker.to_owned(), wake, links, newest }
    }

    /// What wakes whoever sends there.
    pub fn waker(&self) -> Waker {
        let wake = self.wake.clone();
        Waker::new(move || wake.notify_one())
    }

    /// It connected to this worker. Executions that used the connection before fail.
    pub fn connected(&self) -> Connection {
        let (mut newest, mut links) = (lock(&self.newest), lock(&self.links));
        let lost: Vec<Arc<Links>> =
            links.extract_if(.., |_, links| links.were_used()).map(|(_, links)| links).collect();
        let connection = newest.next();
        drop((newest, links));
        self.lose(&lost, "it connected again");
        // Whoever sends through the one before is to see that it is not the newest any more.
        self.wake.notify_waiters();
        self.wake.notify_one();
        connection
    }

    /// What can be sent now through a connection. Woken by [`Peer::waker`], there may be more. `None`: it is not to be used
    /// any more.
    pub fn due(&self, connection: Connection) -> Option<Vec<Outbound>> {
        // Whoever connects anew waits: what is taken here is taken for this connection.
        let newest = lock(&self.newest);
        if !newest.is(connection) {
            return None;
        }
        let links: Vec<Arc<Links>> = lock(&self.links).values().cloned().collect();
        let mut frames = Vec::new();
        links.iter().for_each(|links| links.due(&mut frames));
        Some(frames)
    }

    /// It sent something through a connection.
    pub fn received(&self, connection: Connection, inbound: Inbound) {
        let newest = lock(&self.newest);
        if !newest.is(connection) {
            return;
        }
        // Of an execution that is no more: stale.
        let Some(links) = lock(&self.links).get(&inbound.frame.execution).cloned() else { return };
        let received = links.received(inbound);
        drop(newest);
        match received {
            Ok(true) => self.wake.notify_one(),
            Ok(false) => {}
            Err(error) => links.trouble(error),
        }
    }

    /// A connection is no more, or could not be made, and what was under way is lost.
    pub fn broke(&self, connection: Connection, why: &str) {
        let mut newest = lock(&self.newest);
        if !newest.is(connection) {
            return;
        }
        newest.stands = false;
        let lost = std::mem::take(&mut *lock(&self.links));
        drop(newest);
        self.lose(&lost.into_values().collect::<Vec<_>>(), why);
    }

    fn lose(&self, lost: &[Arc<Links>], why: &str) {
        for links in lost {
            let message = format!("the connection to {} broke: {why}", self.worker);
            links.trouble(Error::new(ErrorKind::Lost, message));
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use arrow::array::{ArrayRef, Int64Array};
    use arrow::datatypes::DataType;
    use tidemill_core::Batch;
    use tidemill_core::time::Watermark;
    use tidemill_dataflow::element::Element;
    use tidemill_dataflow::exchange::queue::{QueueSender, queue};
    use tidemill_dataflow::slice::Channel;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Rows were taken for a connection that had ended unseen, and the barrier behind them for the one after it.
    #[test]
    fn an_execution_uses_one_connection_and_only_the_newest() {
        let plane = Plane::new("a".to_owned(), |_, _, _| ());
        let peer = plane.peer("b");
        let (tell, troubles) = channel();
        let link = |execution: u64| -> QueueSender {
            let (sends, sent) = queue(1_000, Waker::new(|| ()), peer.waker());
            let (channel, mut ends) = (Channel { edge: 0, sender: 0, receiver: 1 }, Ends::default());
            ends.send(channel, sent, WireSchema::new([]), 1_000);
            let tell = tell.clone();
            let links = Links::new(execution, ends, move |error| _ = tell.send((execution, error.kind())));
            lock(&peer.links).insert(execution, Arc::new(links));
            sends
        };
        let first = peer.connected();
        link(1).push(Element::Watermark(Watermark(1)));
        assert_eq!(peer.due(first).unwrap().len(), 1);
        // Not used yet: it will use the next one.
        let sends = link(2);
        let second = peer.connected();
        assert_eq!(troubles.try_iter().collect::<Vec<_>>(), [(1, ErrorKind::Lost)]);
        sends.push(Element::Watermark(Watermark(2)));
        assert!(peer.due(first).is_none());
        peer.broke(first, "late");
        assert_eq!(peer.due(second).unwrap().len(), 1);
        peer.broke(second, "it did");
        assert!(peer.due(second).is_none());
        assert_eq!(troubles.try_iter().collect::<Vec<_>>(), [(2, ErrorKind::Lost)]);
    }

    /// Nothing takes so long but what hangs.
    const HANGS: std::time::Duration = std::time::Duration::from_secs(30);

    /// A plane that listens on loopback, and where.
    async fn listening(name: &str) -> (Arc<Plane>, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let plane = Arc::new(Plane::new(name.to_owned(), dial(name.to_owned(), None)));
        tokio::spawn(serve(plane.clone(), listener, None).unwrap());
        (plane, address)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn elements_go_over_a_connection_and_its_end_is_told() {
        let ((a, _), (b, address)) = (listening("a").await, listening("b").await);
        let (tell, troubles) = channel();
        let (channel, schema) = (Channel { edge: 0, sender: 0, receiver: 1 }, WireSchema::new([DataType::Int64]));
        let links = |ends| {
            let tell = tell.clone();
            Arc::new(Links::new(7, ends, move |error: Error| _ = tell.send(error.kind())))
        };
        let (to_b, mut ends) = (a.peer("b"), Ends::default());
        let (sends, sent) = queue(1 << 20, Waker::new(|| ()), to_b.waker());
        ends.send(channel, sent, schema.clone(), 1 << 20);
        lock(&to_b.links).insert(7, links(ends));
        let (from_a, mut ends) = (b.peer("a"), Ends::default());
        let (woken, mut wakes) = tokio::sync::mpsc::unbounded_channel();
        let (came, receives) = queue(1 << 20, from_a.waker(), Waker::new(move || _ = woken.send(())));
        ends.receive(channel, came, schema, 1 << 20);
        lock(&from_a.links).insert(7, links(ends));

        // Whoever is no worker holds up nobody.
        let mut stranger = tokio::net::TcpStream::connect(&address).await.unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(stranger.read(&mut [0; 1]).await.unwrap_or(0), 0);

        let connection = lock(&to_b.newest).next();
        (a.dial)(to_b.clone(), connection, address);
        let column: ArrayRef = Arc::new(Int64Array::from((0..10_000).collect::<Vec<i64>>()));
        let rows = Batch::new(10_000, vec![column], None).unwrap();
        sends.push(Element::Batch(rows.clone()));
        sends.push(Element::End);
        let mut arrived = Vec::new();
        while arrived.len() < 2 {
            let woken = tokio::time::timeout(HANGS, wakes.recv()).await;
            woken.expect("what was sent never arrives").unwrap();
            arrived.extend(std::iter::from_fn(|| receives.pop()));
        }
        assert!(matches!(&arrived[0], Element::Batch(batch) if batch.columns() == rows.columns()));
        assert!(matches!(arrived[1], Element::End));
        // One end gives the connection up, and the other hears of it.
        to_b.broke(connection, "it is tried");
        to_b.wake.notify_one();
        let kinds: Vec<_> = tokio::task::spawn_blocking(move || troubles.iter().take(2).collect()).await.unwrap();
        assert_eq!(kinds, [ErrorKind::Lost, ErrorKind::Lost]);
    }
}
