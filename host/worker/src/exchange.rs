//! What slots of two workers send each other: one connection for all jobs, with credit in bytes for each channel.
//!
//! A sender may have so many bytes of rows under way as the queue between two slots of one process may hold. What the
//! receiver has taken out of its queue it gives back as credit. Barriers, watermarks and ends need no credit, and rows
//! before a barrier go without: a barrier that waited for credit would wait for what a slow operator takes.
//!
//! Of two workers, the one with the smaller name connects. When the connection breaks, every execution that has slots at
//! both ends fails: what was under way is lost, and only going back to a checkpoint brings it again.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use tidemill_core::connector::Waker;
use tidemill_core::time::Watermark;
use tidemill_core::{Error, Result};
use tidemill_dataflow::JobSettings;
use tidemill_dataflow::element::Element;
use tidemill_dataflow::exchange::queue::{QueueReceiver, QueueSender};
use tidemill_dataflow::physical::PhysicalPlan;
use tidemill_dataflow::slice::{Channel, Wire};
use tidemill_rpc::proto::exchange_client::ExchangeClient;
use tidemill_rpc::proto::exchange_server::{Exchange, ExchangeServer};
use tidemill_rpc::proto::{Frame, Open, frame};
use tidemill_rpc::rows::{self, RowsWriter, wire_schema};
use tidemill_rpc::tls::Tls;
use tidemill_rpc::{MAX_MESSAGE_BYTES, barrier};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::attend::chain;
use crate::deployment::broken;

/// Frames that were taken from queues and are not on their way. Few: they are beyond all credit.
const FRAMES: usize = 4;
/// How many frames of a channel go before another channel's turn.
const TURN: usize = 8;
/// What the transport may have under way: the channels have bounds of their own.
const WINDOW_BYTES: u32 = 16 << 20;
/// A worker that is alive answers at once; one that is not is found to be gone by the coordinator, too.
const CONNECT: Duration = Duration::from_secs(3);

/// The connections of this worker to others.
pub struct Plane {
    me: String,
    tls: Option<Tls>,
    peers: Mutex<HashMap<String, Arc<Peer>>>,
}

/// Another worker.
pub struct Peer {
    worker: String,
    wake: Arc<Notify>,
    links: Mutex<HashMap<u64, Arc<Links>>>,
    /// Whether a connection is there or being made.
    connected: Mutex<bool>,
}

/// What an execution has with another worker.
struct Links {
    execution: u64,
    outs: Mutex<Vec<Out>>,
    ins: Mutex<HashMap<Channel, In>>,
    trouble: Box<dyn Fn(Error) + Send + Sync>,
}

/// What a slot here sends.
struct Out {
    channel: Channel,
    queue: QueueReceiver,
    writer: RowsWriter,
    bound: u64,
    /// Bytes that were sent and for which no credit came back.
    under_way: u64,
}

/// What a slot here is sent.
struct In {
    queue: QueueSender,
    schema: SchemaRef,
    bound: u64,
    received: u64,
    granted: u64,
}

impl Plane {
    /// Of this worker.
    pub fn new(me: String, tls: Option<Tls>) -> Self {
        Self { me, tls, peers: Mutex::default() }
    }

    /// Another worker, or this one: then nothing is ever sent.
    pub fn peer(&self, worker: &str) -> Arc<Peer> {
        lock(&self.peers).entry(worker.to_owned()).or_insert_with(|| Arc::new(Peer::new(worker))).clone()
    }

    /// Takes the ends of channels to slots of other workers. `trouble` is told when the way there is gone.
    pub fn join(
        self: &Arc<Self>,
        open: &Open,
        settings: &JobSettings,
        plan: &PhysicalPlan,
        wires: Vec<Wire>,
        trouble: impl Fn(Error) + Clone + Send + Sync + 'static,
    ) -> Result<()> {
        let bound = settings.exchange_bytes as u64;
        let mut by_worker: HashMap<&str, (Vec<Out>, HashMap<Channel, In>)> = HashMap::new();
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
                    let out = Out { channel, queue, writer: RowsWriter::new(schema), bound, under_way: 0 };
                    by_worker.entry(worker_of(channel.receiver)?).or_default().0.push(out);
                }
                Wire::In(_, queue) => {
                    let of = In { queue, schema, bound, received: 0, granted: 0 };
                    by_worker.entry(worker_of(channel.sender)?).or_default().1.insert(channel, of);
                }
            }
        }
        for (worker, (outs, ins)) in by_worker {
            let links = Links {
                execution: open.execution,
                outs: Mutex::new(outs),
                ins: Mutex::new(ins),
                trouble: Box::new(trouble.clone()),
            };
            let peer = self.peer(worker);
            lock(&peer.links).insert(open.execution, Arc::new(links));
            let address = open.places.iter().find(|place| place.worker == worker);
            let address = address.map(|place| place.exchange_address.clone()).unwrap_or_default();
            if self.me.as_str() < worker && !std::mem::replace(&mut *lock(&peer.connected), true) {
                let this = self.clone();
                tokio::runtime::Handle::current().spawn(async move {
                    let why = match this.dial(&peer, &address).await {
                        Ok(()) => "it was closed".to_owned(),
                        Err(why) => why,
                    };
                    peer.broke(&why);
                });
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

    /// Connects to another worker and stays until the connection breaks.
    async fn dial(&self, peer: &Arc<Peer>, address: &str) -> Result<(), String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|e| chain(&e))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_keep_alive_interval(CONNECT)
            .keep_alive_timeout(CONNECT);
        let endpoint = match &self.tls {
            Some(tls) => endpoint.tls_config(tls.client()).map_err(|e| chain(&e))?,
            None => endpoint,
        };
        let channel = endpoint.connect().await.map_err(|e| chain(&e))?;
        let mut client = ExchangeClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (send, frames) = mpsc::channel(FRAMES);
        let introduction = Frame { content: Some(frame::Content::Worker(self.me.clone())), ..Frame::default() };
        send.send(introduction).await.map_err(|e| e.to_string())?;
        let incoming = client.exchange(ReceiverStream::new(frames)).await.map_err(|e| e.message().to_owned())?;
        peer.talk(send, incoming.into_inner(), Ok).await
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

    /// Sends and receives until the connection breaks.
    async fn talk<T: Send + 'static>(
        self: &Arc<Self>,
        send: mpsc::Sender<T>,
        mut incoming: Streaming<Frame>,
        wrap: impl Fn(Frame) -> Result<T, String> + Send,
    ) -> Result<(), String> {
        let sending = async {
            loop {
                let links: Vec<Arc<Links>> = lock(&self.links).values().cloned().collect();
                let mut frames = Vec::new();
                links.iter().for_each(|links| links.due(&mut frames));
                if frames.is_empty() {
                    self.wake.notified().await;
                }
                for frame in frames {
                    if send.send(wrap(frame)?).await.is_err() {
                        return Ok(());
                    }
                }
            }
        };
        let receiving = async {
            while let Some(frame) = incoming.message().await.map_err(|e| e.message().to_owned())? {
                self.received(frame);
            }
            Ok(())
        };
        tokio::select! {
            ended = sending => ended,
            ended = receiving => ended,
        }
    }

    fn received(&self, frame: Frame) {
        // Of an execution that is no more: stale.
        let Some(links) = lock(&self.links).get(&frame.execution).cloned() else { return };
        match links.received(frame) {
            Ok(true) => self.wake.notify_one(),
            Ok(false) => {}
            Err(error) => (links.trouble)(error),
        }
    }

    /// The connection is no more, and what was under way is lost.
    fn broke(&self, why: &str) {
        *lock(&self.connected) = false;
        let lost: Vec<Arc<Links>> = lock(&self.links).drain().map(|(_, links)| links).collect();
        lost.iter().for_each(|links| (links.trouble)(broken(&self.worker, why)));
    }
}

impl Links {
    /// Adds what can be sent now.
    fn due(&self, frames: &mut Vec<Frame>) {
        let frame = |channel: Channel, content| Frame {
            execution: self.execution,
            edge: channel.edge,
            sender: channel.sender,
            receiver: channel.receiver,
            content: Some(content),
        };
        for (channel, of) in lock(&self.ins).iter_mut() {
            if let Some(credit) = of.credit() {
                frames.push(frame(*channel, frame::Content::Credit(credit)));
            }
        }
        for out in lock(&self.outs).iter_mut() {
            for _ in 0..TURN {
                match out.next() {
                    Ok(Some(content)) => frames.push(frame(out.channel, content)),
                    Ok(None) => break,
                    Err(error) => {
                        (self.trouble)(error);
                        break;
                    }
                }
            }
        }
    }

    /// Takes what was sent; whether there may be something to send now.
    fn received(&self, frame: Frame) -> Result<bool> {
        let channel = Channel { edge: frame.edge, sender: frame.sender, receiver: frame.receiver };
        let unknown = || Error::internal(format!("another worker names {channel:?}, which is not here"));
        if let Some(frame::Content::Credit(bytes)) = frame.content {
            let mut outs = lock(&self.outs);
            let out = outs.iter_mut().find(|out| out.channel == channel).ok_or_else(unknown)?;
            out.under_way = out.under_way.saturating_sub(bytes);
            return Ok(true);
        }
        let mut ins = lock(&self.ins);
        let of = ins.get_mut(&channel).ok_or_else(unknown)?;
        let (element, bytes) = match frame.content {
            Some(frame::Content::Rows(rows)) => (Element::Batch(rows::read(&of.schema, &rows)?), rows.bytes),
            Some(frame::Content::Watermark(ms)) => (Element::Watermark(Watermark(ms)), 0),
            Some(frame::Content::Idle(idle)) => (Element::Idle(idle), 0),
            Some(frame::Content::Barrier(barrier)) => (Element::Barrier(barrier.into()), 0),
            Some(frame::Content::End(_)) => (Element::End, 0),
            Some(frame::Content::Credit(_) | frame::Content::Worker(_)) | None => return Err(unknown()),
        };
        of.received = of.received.saturating_add(bytes);
        of.queue.push_counted(element, usize::try_from(bytes).unwrap_or(usize::MAX));
        Ok(of.owes() >= of.bound.div_ceil(4))
    }
}

impl Out {
    /// The next that may be sent.
    fn next(&mut self) -> Result<Option<frame::Content>> {
        let out_of_credit = self.under_way >= self.bound;
        let held = out_of_credit
            && self.queue.look(|waiting| {
                let rows = matches!(waiting.front(), Some((Element::Batch(_), _)));
                rows && !waiting.iter().any(|(element, _)| matches!(element, Element::Barrier(_)))
            });
        if held {
            return Ok(None);
        }
        let Some(element) = self.queue.pop() else { return Ok(None) };
        Ok(Some(match element {
            Element::Batch(batch) => {
                let bytes = batch.bytes().max(1) as u64;
                self.under_way = self.under_way.saturating_add(bytes);
                frame::Content::Rows(self.writer.write(&batch, bytes)?)
            }
            Element::Watermark(watermark) => frame::Content::Watermark(watermark.0),
            Element::Idle(idle) => frame::Content::Idle(idle),
            Element::Barrier(of) => frame::Content::Barrier(barrier(of)),
            Element::End => frame::Content::End(true),
        }))
    }
}

impl In {
    /// What the slot took and for which no credit was given back.
    fn owes(&self) -> u64 {
        (self.received - self.granted).saturating_sub(self.queue.bytes() as u64)
    }

    /// Credit to give back, if it is worth a message.
    fn credit(&mut self) -> Option<u64> {
        let owes = self.owes();
        if owes < self.bound.div_ceil(4) {
            return None;
        }
        self.granted += owes;
        Some(owes)
    }
}

/// Listens to other workers.
pub fn serve(
    plane: Arc<Plane>,
    listener: TcpListener,
    tls: Option<&Tls>,
) -> Result<impl Future<Output = Result<()>> + use<>> {
    let mut server = Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keepalive_interval(Some(CONNECT))
        .http2_keepalive_timeout(Some(CONNECT));
    if let Some(tls) = tls {
        server = server.tls_config(tls.server()).map_err(|e| Error::invalid(format!("the certificates: {e}")))?;
    }
    let service = ExchangeServer::new(Listening(plane))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let serving = server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
    Ok(async move { serving.await.map_err(|e| Error::internal(format!("listening to other workers: {}", chain(&e)))) })
}

struct Listening(Arc<Plane>);

type Frames = Pin<Box<dyn tokio_stream::Stream<Item = Result<Frame, Status>> + Send>>;

#[tonic::async_trait]
impl Exchange for Listening {
    type ExchangeStream = Frames;

    async fn exchange(&self, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?;
        let Some(frame::Content::Worker(worker)) = first.and_then(|frame| frame.content) else {
            return Err(Status::invalid_argument("the first frame has to say who sends"));
        };
        let peer = self.0.peer(&worker);
        *lock(&peer.connected) = true;
        let (send, frames) = mpsc::channel(FRAMES);
        tokio::spawn(async move {
            let why = match peer.talk(send, incoming, |frame| Ok(Ok(frame))).await {
                Ok(()) => "it was closed".to_owned(),
                Err(why) => why,
            };
            peer.broke(&why);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
