//! The connections themselves: HTTP/2 streams of frames, both ways.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tidemill_core::{Error, Result};
use tidemill_rpc::MAX_MESSAGE_BYTES;
use tidemill_rpc::proto::exchange_client::ExchangeClient;
use tidemill_rpc::proto::exchange_server::{Exchange, ExchangeServer};
use tidemill_rpc::proto::{Frame, frame};
use tidemill_rpc::tls::Tls;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::{Connection, Peer, Plane};
use crate::attend::chain;

/// Frames that were taken from queues and are not on their way. Few: they are beyond all credit.
const FRAMES: usize = 4;
/// What the transport may have under way: the channels have bounds of their own.
const WINDOW_BYTES: u32 = 16 << 20;
/// A batch goes in one piece: the usual 16 KiB would make several of it, each read for itself.
const PIECE_BYTES: u32 = 1 << 20;
/// A worker that is alive answers at once; one that is not is found to be gone by the coordinator, too.
const CONNECT: Duration = Duration::from_secs(3);

/// Connects to other workers, for a plane of the worker that is called so. On the runtime in which it is called.
pub fn dial(me: String, tls: Option<Tls>) -> impl Fn(Arc<Peer>, Connection, String) + Send + Sync + 'static {
    let (me, tls) = (Arc::<str>::from(me), tls.map(Arc::new));
    move |peer, connection, address| {
        let (me, tls) = (me.clone(), tls.clone());
        tokio::runtime::Handle::current().spawn(async move {
            let ended = connect(&me, tls.as_deref(), &peer, connection, &address).await;
            peer.broke(connection, &reason(ended));
        });
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
        .max_frame_size(PIECE_BYTES)
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
        let connection = peer.connected();
        let (send, frames) = mpsc::channel(FRAMES);
        tokio::spawn(async move {
            let ended = talk(&peer, connection, send, incoming, |frame| Ok(Ok(frame))).await;
            peer.broke(connection, &reason(ended));
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }
}

/// Connects to another worker and stays until the connection breaks.
async fn connect(
    me: &str,
    tls: Option<&Tls>,
    peer: &Peer,
    connection: Connection,
    address: &str,
) -> Result<(), String> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|e| chain(&e))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(PIECE_BYTES)
        .http2_keep_alive_interval(CONNECT)
        .keep_alive_timeout(CONNECT);
    let endpoint = match tls {
        Some(tls) => endpoint.tls_config(tls.client()).map_err(|e| chain(&e))?,
        None => endpoint,
    };
    let channel = endpoint.connect().await.map_err(|e| chain(&e))?;
    let mut client = ExchangeClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (send, frames) = mpsc::channel(FRAMES);
    let introduction = Frame { content: Some(frame::Content::Worker(me.to_owned())), ..Frame::default() };
    send.send(introduction).await.map_err(|e| e.to_string())?;
    let incoming = client.exchange(ReceiverStream::new(frames)).await.map_err(|e| e.message().to_owned())?;
    talk(peer, connection, send, incoming.into_inner(), Ok).await
}

/// Sends and receives until the connection breaks.
async fn talk<T: Send + 'static>(
    peer: &Peer,
    connection: Connection,
    send: mpsc::Sender<T>,
    mut incoming: Streaming<Frame>,
    wrap: impl Fn(Frame) -> Result<T, String> + Send,
) -> Result<(), String> {
    let sending = async {
        loop {
            let Some(frames) = peer.due(connection) else { return Ok(()) };
            if frames.is_empty() {
                peer.wake.notified().await;
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
            peer.received(connection, frame);
        }
        Ok(())
    };
    tokio::select! {
        ended = sending => ended,
        ended = receiving => ended,
    }
}

/// Why a connection is no more.
fn reason(ended: Result<(), String>) -> String {
    match ended {
        Ok(()) => "it was closed".to_owned(),
        Err(why) => why,
    }
}
