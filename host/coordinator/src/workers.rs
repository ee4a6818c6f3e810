//! The workers that attend, and what they say.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tidemill_core::{Error, ErrorKind, Result};
use tidemill_rpc::proto::coordinator_server::{Coordinator as Serves, CoordinatorServer};
use tidemill_rpc::proto::{self, FromWorker, ToWorker, from_worker as says, to_worker as tells};
use tidemill_rpc::tls::Tls;
use tidemill_rpc::{MAX_MESSAGE_BYTES, VERSION, to_worker};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::view::WorkerView;
use crate::{Coordinator, lock};

/// How often workers say that they are there, and bring figures.
const BEAT: Duration = Duration::from_millis(500);
/// A worker that says nothing for so long is gone, though its connection may stand.
const SILENCE: Duration = Duration::from_secs(10);

/// All that are there.
#[derive(Default)]
pub struct Workers {
    all: Mutex<BTreeMap<String, Arc<Worker>>>,
    changed: Condvar,
}

/// A worker that attends.
pub struct Worker {
    pub id: String,
    pub address: String,
    slots: u32,
    memory_bytes: u64,
    resident_bytes: AtomicU64,
    used: Mutex<u32>,
    say: UnboundedSender<Result<ToWorker, Status>>,
}

impl Worker {
    /// Says something to it. If it is gone, that is noticed elsewhere.
    pub fn say(&self, says: tells::Says) {
        _ = self.say.send(Ok(to_worker(says)));
    }
}

impl Workers {
    /// Takes slots, spread over the workers; slot by slot. An error says what is missing.
    pub fn take(&self, slots: u32) -> Result<Vec<Arc<Worker>>> {
        let all = lock(&self.all);
        let mut free: Vec<(u32, &Arc<Worker>)> =
            all.values().map(|worker| (worker.slots - *lock(&worker.used), worker)).collect();
        let there: u32 = free.iter().map(|(free, _)| free).sum();
        if there < slots {
            let message = format!("{slots} slots are needed, and {there} of {} are free", self.slots(&all));
            return Err(Error::new(ErrorKind::Retry, message)
                .mend("Start more workers, stop other jobs, or give the job a smaller parallelism."));
        }
        let mut taken = Vec::new();
        for _ in 0..slots {
            // From whoever has most left.
            let Some((left, worker)) = free.iter_mut().max_by_key(|(left, _)| *left) else { break };
            *left -= 1;
            *lock(&worker.used) += 1;
            taken.push(worker.clone());
        }
        Ok(taken)
    }

    /// Gives slots back.
    pub fn give_back(&self, slots: &[Arc<Worker>]) {
        let all = lock(&self.all);
        for worker in slots {
            let mut used = lock(&worker.used);
            *used = used.saturating_sub(1);
        }
        drop(all);
        self.changed.notify_all();
    }

    /// Waits until there may be slots that were not there before, or for so long.
    pub fn wait(&self, longest: Duration) {
        let all = lock(&self.all);
        drop(self.changed.wait_timeout(all, longest).unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether a worker is there.
    pub fn has(&self, id: &str) -> bool {
        lock(&self.all).contains_key(id)
    }

    /// Wakes who waits.
    pub fn wake(&self) {
        self.changed.notify_all();
    }

    pub fn views(&self) -> Vec<WorkerView> {
        let all = lock(&self.all);
        let view = |worker: &Arc<Worker>| WorkerView {
            id: worker.id.clone(),
            address: worker.address.clone(),
            slots: worker.slots,
            free_slots: worker.slots - *lock(&worker.used),
            memory_bytes: worker.memory_bytes,
            resident_bytes: worker.resident_bytes.load(Ordering::Relaxed),
        };
        all.values().map(view).collect()
    }

    fn slots(&self, all: &BTreeMap<String, Arc<Worker>>) -> u32 {
        all.values().map(|worker| worker.slots).sum()
    }

    fn insert(&self, worker: Arc<Worker>) {
        lock(&self.all).insert(worker.id.clone(), worker);
        self.changed.notify_all();
    }

    fn remove(&self, id: &str) {
        lock(&self.all).remove(id);
    }
}

/// Listens to workers.
pub fn serve(
    coordinator: Arc<Coordinator>,
    listener: TcpListener,
    tls: Option<&Tls>,
) -> Result<impl Future<Output = Result<()>> + use<>> {
    let mut server = Server::builder().tcp_nodelay(true);
    if let Some(tls) = tls {
        server = server.tls_config(tls.server()).map_err(|e| Error::invalid(format!("the certificates: {e}")))?;
    }
    let service = CoordinatorServer::new(Listening(coordinator))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let serving = server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
    Ok(async move { serving.await.map_err(|e| Error::internal(format!("listening to workers: {e}"))) })
}

struct Listening(Arc<Coordinator>);

type Told = Pin<Box<dyn tokio_stream::Stream<Item = Result<ToWorker, Status>> + Send>>;

#[tonic::async_trait]
impl Serves for Listening {
    type AttendStream = Told;

    async fn attend(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Told>, Status> {
        let mut incoming = request.into_inner();
        let Some(says::Says::Hello(hello)) = incoming.message().await?.and_then(|first| first.says) else {
            return Err(Status::invalid_argument("a worker has to say hello first"));
        };
        if hello.version != VERSION {
            let (theirs, ours) = (hello.version, VERSION);
            let message = format!("the worker is of version {theirs}, the coordinator of {ours}: use one version");
            return Err(Status::failed_precondition(message));
        }
        let (say, told) = mpsc::unbounded_channel();
        let worker = Arc::new(Worker {
            id: hello.worker,
            address: hello.exchange_address,
            slots: hello.slots,
            memory_bytes: hello.memory_bytes,
            resident_bytes: AtomicU64::new(0),
            used: Mutex::new(0),
            say,
        });
        let beat_every_ms = u64::try_from(BEAT.as_millis()).unwrap_or(u64::MAX);
        let storage = self.0.storage.location().to_owned();
        worker.say(tells::Says::Welcome(proto::Welcome { beat_every_ms, storage }));
        tracing::info!("{} registered with {} slots", worker.id, worker.slots);
        self.0.workers.insert(worker.clone());
        let coordinator = self.0.clone();
        tokio::spawn(async move {
            let why = loop {
                match tokio::time::timeout(SILENCE, incoming.message()).await {
                    Ok(Ok(Some(message))) => coordinator.said(&worker, message),
                    Ok(Ok(None)) => break "it left".to_owned(),
                    Ok(Err(status)) => break status.message().to_owned(),
                    Err(_) => break format!("it has said nothing for {} s", SILENCE.as_secs()),
                }
            };
            tracing::warn!("{} is gone: {why}", worker.id);
            coordinator.gone(&worker, &why);
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(told))))
    }
}

impl Coordinator {
    fn said(&self, worker: &Arc<Worker>, message: FromWorker) {
        let Some(says) = message.says else { return };
        let execution = match &says {
            says::Says::Beat(beat) => {
                return worker.resident_bytes.store(beat.resident_bytes, Ordering::Relaxed);
            }
            says::Says::Hello(_) => return,
            says::Says::Opened(opened) => opened.execution,
            says::Says::Tasks(tasks) => tasks.execution,
            says::Says::Written(written) => written.execution,
            says::Says::SlotEnded(ended) => ended.execution,
            says::Says::SplitFinished(finished) => finished.execution,
            says::Says::Left(left) => left.execution,
            says::Says::Counters(counters) => counters.execution,
            says::Says::Trouble(trouble) => trouble.execution,
        };
        // Of one that is over: stale.
        if let Some(execution) = self.execution(execution) {
            execution.said(&worker.id, says);
        }
    }

    /// A worker is gone, and with it what ran there.
    fn gone(&self, worker: &Arc<Worker>, why: &str) {
        self.workers.remove(&worker.id);
        // What it would be told ends the connection, if that stands.
        _ = worker.say.send(Err(Status::unavailable("the coordinator has given this worker up")));
        let executions: Vec<_> = lock(&self.executions).values().cloned().collect();
        executions.iter().for_each(|execution| execution.gone(&worker.id, why));
    }
}
