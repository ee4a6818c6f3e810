//! The connections themselves: frames both ways over TCP, with TLS where the cluster has certificates.
//!
//! Whoever has nothing to send says so every few seconds. Who says nothing at all is gone, or can't be reached.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tidemill_core::{Error, Result};
use tidemill_rpc::frames::{Inbound, LENGTHS_BYTES, Lengths, Outbound, Outgoing};
use tidemill_rpc::proto::{Frame, frame};
use tidemill_rpc::tls::Tls;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::{Connection, Peer, Plane};

/// A worker that is alive answers at once; one that is not is found to be gone by the coordinator, too.
const CONNECT: Duration = Duration::from_secs(3);
/// After which a side that has nothing to send says so.
const PING: Duration = Duration::from_secs(2);
/// After which a side that says nothing is gone.
const SILENCE: Duration = Duration::from_secs(6);
/// So many may be connecting at once; the next ones wait in the system's queue.
const INTRODUCTIONS: usize = 256;
/// After what the system says when it has no more file descriptors.
const RETRY: Duration = Duration::from_millis(100);
/// Small frames are read together.
const READ_BYTES: usize = 64 << 10;
/// No worker is called by more.
const NAME_BYTES: usize = 256;

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

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
    let acceptor = tls.map(Tls::acceptor).transpose()?;
    Ok(async move {
        let room = Arc::new(Semaphore::new(INTRODUCTIONS));
        loop {
            let permit = room.clone().acquire_owned().await;
            let permit = permit.map_err(|e| Error::internal(format!("listening to other workers: {e}")))?;
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!("a connection of another worker can't be taken: {e}");
                    sleep(RETRY).await;
                    continue;
                }
            };
            let (plane, acceptor) = (plane.clone(), acceptor.clone());
            tokio::spawn(async move {
                let introduced = timeout(SILENCE, introduced(stream, acceptor)).await;
                drop(permit);
                match introduced {
                    Ok(Ok((worker, incoming, writer))) => {
                        let peer = plane.peer(&worker);
                        let connection = peer.connected();
                        let ended = talk(&peer, connection, incoming, writer).await;
                        peer.broke(connection, &reason(ended));
                    }
                    Ok(Err(why)) => tracing::debug!("{from} is no worker of this cluster: {why}"),
                    Err(_) => tracing::debug!("{from} did not say who it is"),
                }
            });
        }
    })
}

/// Hears who connected.
async fn introduced(stream: TcpStream, acceptor: Option<TlsAcceptor>) -> Result<(String, Incoming, Writer), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (reader, writer) = match acceptor {
        Some(acceptor) => halves(tokio::io::split(acceptor.accept(stream).await.map_err(|e| e.to_string())?)),
        None => halves(stream.into_split()),
    };
    let mut incoming = Incoming::new(reader);
    let first = incoming.next().await?.ok_or("it said nothing")?;
    match first.frame.content {
        Some(frame::Content::Worker(worker)) if worker.len() <= NAME_BYTES => Ok((worker, incoming, writer)),
        _ => Err("the first frame has to say who sends".to_owned()),
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
    let connecting = async {
        let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let Some(tls) = tls else { return Ok(halves(stream.into_split())) };
        let (connector, name) = tls.connector().map_err(|e| e.to_string())?;
        let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
        Ok::<_, String>(halves(tokio::io::split(stream)))
    };
    let connected = timeout(CONNECT, connecting).await;
    let (reader, mut writer) = connected.map_err(|_| format!("{address} did not answer"))??;
    let mut outgoing = Outgoing::default();
    put(&mut outgoing, frame_of(frame::Content::Worker(me.to_owned())))?;
    write(&mut writer, &mut outgoing).await?;
    talk(peer, connection, Incoming::new(reader), writer).await
}

fn halves<R, W>((reader, writer): (R, W)) -> (Reader, Writer)
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    (Box::new(reader), Box::new(writer))
}

/// Sends and receives until the connection breaks.
async fn talk(peer: &Peer, connection: Connection, mut incoming: Incoming, mut writer: Writer) -> Result<(), String> {
    let sending = async {
        let mut outgoing = Outgoing::default();
        loop {
            let Some(frames) = peer.due(connection) else { return Ok(()) };
            if frames.is_empty() {
                if timeout(PING, peer.wake.notified()).await.is_ok() {
                    continue;
                }
                put(&mut outgoing, frame_of(frame::Content::Ping(true)))?;
            }
            frames.into_iter().try_for_each(|frame| put(&mut outgoing, frame))?;
            write(&mut writer, &mut outgoing).await?;
        }
    };
    let receiving = async {
        while let Some(inbound) = incoming.next().await? {
            if !matches!(inbound.frame.content, Some(frame::Content::Ping(_))) {
                peer.received(connection, inbound);
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = sending => ended,
        ended = receiving => ended,
    }
}

fn frame_of(content: frame::Content) -> Outbound {
    Frame { content: Some(content), ..Frame::default() }.into()
}

fn put(outgoing: &mut Outgoing, frame: Outbound) -> Result<(), String> {
    outgoing.put(frame).map_err(|e| e.to_string())
}

async fn write(writer: &mut Writer, outgoing: &mut Outgoing) -> Result<(), String> {
    while outgoing.has_remaining() {
        if writer.write_buf(outgoing).await.map_err(|e| e.to_string())? == 0 {
            return Err("it takes nothing any more".to_owned());
        }
    }
    writer.flush().await.map_err(|e| e.to_string())
}

/// Frames that arrive.
struct Incoming {
    reader: BufReader<Reader>,
    head: BytesMut,
}

impl Incoming {
    fn new(reader: Reader) -> Self {
        Self { reader: BufReader::with_capacity(READ_BYTES, reader), head: BytesMut::new() }
    }

    /// The next frame. `None`: the other side closed the connection.
    async fn next(&mut self) -> Result<Option<Inbound>, String> {
        let cut_off = || Err("it ended in the middle of a frame".to_owned());
        self.head.clear();
        match fill(&mut self.reader, &mut self.head, LENGTHS_BYTES).await? {
            0 => return Ok(None),
            LENGTHS_BYTES => {}
            _ => return cut_off(),
        }
        let Lengths { message, rows } = Lengths::read(&*self.head).map_err(|e| e.to_string())?;
        self.head.clear();
        let mut body = BytesMut::with_capacity(rows);
        if fill(&mut self.reader, &mut self.head, message).await? < message
            || fill(&mut self.reader, &mut body, rows).await? < rows
        {
            return cut_off();
        }
        Inbound::decode(&*self.head, body.freeze()).map(Some).map_err(|e| e.to_string())
    }
}

/// Reads so many bytes, or fewer before the end.
async fn fill(reader: &mut BufReader<Reader>, into: &mut BytesMut, bytes: usize) -> Result<usize, String> {
    let mut rest = reader.take(bytes as u64);
    while rest.limit() > 0 {
        let read = timeout(SILENCE, rest.read_buf(into)).await;
        let read = read.map_err(|_| format!("nothing came for {} s", SILENCE.as_secs()))?;
        if read.map_err(|e| e.to_string())? == 0 {
            break;
        }
    }
    Ok(into.len())
}

/// Why a connection is no more.
fn reason(ended: Result<(), String>) -> String {
    match ended {
        Ok(()) => "it was closed".to_owned(),
        Err(why) => why,
    }
}
