//! The connection to the coordinator: what it says is done, and what happens here is said.

use std::sync::Arc;
use std::time::Duration;

use tidemill_blobs as blobs;
use tidemill_connector_kit::Registry;
use tidemill_core::memory::ProcessMemory;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_dataflow::driver::SlotEvent;
use tidemill_job::{Components, Environment};
use tidemill_rpc::proto::coordinator_client::CoordinatorClient;
use tidemill_rpc::proto::{self, Welcome, from_worker as says, to_worker as tells};
use tidemill_rpc::{MAX_MESSAGE_BYTES, VERSION, from_worker};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

use crate::WorkerSettings;
use crate::deployment::{Deployments, Work};
use crate::exchange::Plane;
use crate::local::LocalRecovery;

/// How long the coordinator may take to answer at first.
const CONNECT: Duration = Duration::from_secs(5);
/// A coordinator that does not answer for so long is gone, though nothing said so: its machine may be. It is asked as often.
const SILENCE: Duration = Duration::from_secs(5);

/// A worker as coordinators see it, one after another.
pub struct Attendant {
    settings: WorkerSettings,
    id: String,
    address: String,
    plane: Arc<Plane>,
    registry: Arc<Registry>,
    /// The account of this process, whichever cluster it belongs to.
    memory: Arc<ProcessMemory>,
    local: Arc<LocalRecovery>,
    /// What runs here, and the storage of the cluster to which it belongs.
    deployments: Option<(String, Arc<Deployments>)>,
}

/// How the connection to a coordinator ended.
pub struct Parted {
    /// Whether it had come so far that the worker was registered.
    pub registered: bool,
    /// Why it ended.
    pub why: Error,
}

impl Attendant {
    /// Nothing runs yet.
    pub fn new(
        settings: WorkerSettings,
        id: String,
        address: String,
        plane: Arc<Plane>,
        registry: Arc<Registry>,
        local: Arc<LocalRecovery>,
    ) -> Self {
        let memory = ProcessMemory::new(Some(settings.memory_bytes));
        Self { settings, id, address, plane, registry, memory, local, deployments: None }
    }

    /// Until the connection ends. What runs, runs on.
    pub async fn attend(&mut self) -> Parted {
        let (told, say, welcome) = match self.register().await {
            Ok(registered) => registered,
            Err(why) => return Parted { registered: false, why },
        };
        let deployments = match self.deployments(&welcome.storage) {
            Ok(deployments) => deployments,
            Err(why) => return Parted { registered: false, why },
        };
        let says = say.clone();
        // If nobody hears it, the connection is broken, which is noticed below.
        deployments.connected(move |message| _ = says.send(message));
        let beats = tokio::spawn(beat(say, deployments.clone(), welcome.beat_every_ms));
        let why = listen(told, &deployments).await;
        beats.abort();
        deployments.disconnected();
        Parted { registered: true, why: self.gone(&why) }
    }

    /// Nobody came to take over what runs.
    pub fn cancel_all(&self) {
        self.deployments.iter().for_each(|(_, deployments)| deployments.cancel_all());
    }

    async fn register(&self) -> Result<(Streaming<proto::ToWorker>, UnboundedSender<proto::FromWorker>, Welcome)> {
        let settings = &self.settings;
        let scheme = if settings.tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", settings.coordinator)).map_err(|e| {
            Error::invalid(format!("'{}' is no address of a coordinator: {e}", settings.coordinator))
                .mend("Give it as HOST:PORT.")
        })?;
        let endpoint = match &settings.tls {
            Some(tls) => {
                endpoint.tls_config(tls.client()).map_err(|e| Error::invalid(format!("the certificates: {e}")))?
            }
            None => endpoint,
        };
        let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
        let endpoint = endpoint.http2_keep_alive_interval(SILENCE).keep_alive_timeout(SILENCE);
        let channel = endpoint.connect().await.map_err(|e| self.gone(&chain(&e)))?;
        let mut coordinator = CoordinatorClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (say, said) = mpsc::unbounded_channel();
        let running = self.deployments.as_ref().map(|(_, deployments)| deployments.all_running());
        let hello = proto::Hello {
            worker: self.id.clone(),
            slots: settings.slots,
            memory_bytes: settings.memory_bytes,
            exchange_address: self.address.clone(),
            version: VERSION.to_owned(),
            running: running.unwrap_or_default(),
            kept: self.local.jobs(),
        };
        _ = say.send(from_worker(says::Says::Hello(hello)));
        let told = coordinator.attend(UnboundedReceiverStream::new(said)).await;
        let refused = |status: Status| match status.code() {
            Code::FailedPrecondition | Code::InvalidArgument => Error::invalid(status.message()),
            _ => self.gone(status.message()),
        };
        let mut told = told.map_err(refused)?.into_inner();
        let welcome = match told.message().await.map_err(refused)?.and_then(|first| first.says) {
            Some(tells::Says::Welcome(welcome)) => welcome,
            _ => return Err(self.gone("it gave no welcome")),
        };
        tracing::info!("registered at {} with {} slots", settings.coordinator, settings.slots);
        Ok((told, say, welcome))
    }

    /// Those of the cluster with this storage. What ran for another one is ended.
    fn deployments(&mut self, storage: &str) -> Result<Arc<Deployments>> {
        if let Some((_, deployments)) = self.deployments.as_ref().filter(|(of, _)| of == storage) {
            return Ok(deployments.clone());
        }
        self.cancel_all();
        let components = Components::within(blobs::at(storage)?, &self.memory);
        let mut environment = Environment::new(self.registry.clone(), components);
        environment.memory = self.memory.clone();
        let local = Some(self.local.clone());
        let deployments = Arc::new(Deployments::new(environment, self.plane.clone(), local));
        self.deployments = Some((storage.to_owned(), deployments.clone()));
        Ok(deployments)
    }

    fn gone(&self, why: &str) -> Error {
        let coordinator = &self.settings.coordinator;
        Error::new(ErrorKind::Retry, format!("no connection to the coordinator at {coordinator}: {why}"))
    }
}

/// Does what the coordinator says, until it says nothing any more: why.
async fn listen(mut told: Streaming<proto::ToWorker>, deployments: &Arc<Deployments>) -> String {
    loop {
        match told.message().await {
            Ok(Some(message)) => deployments.told(message).into_iter().for_each(|work| on_a_thread(deployments, work)),
            Ok(None) => return "it closed the connection".to_owned(),
            Err(status) => return status.message().to_owned(),
        }
    }
}

fn on_a_thread(deployments: &Arc<Deployments>, work: Work) {
    let deployments = deployments.clone();
    tokio::task::spawn_blocking(move || match work {
        Work::Open(opening) => deployments.open(*opening),
        Work::Run(execution, slots) => {
            let Some(events) = deployments.events(execution) else { return };
            let errors = match slots.start(events.clone()) {
                Ok(running) => running.join(),
                Err(error) => {
                    events(SlotEvent::Trouble(error));
                    Vec::new()
                }
            };
            deployments.left(execution, &errors);
        }
    });
}

/// What is said every so often.
async fn beat(say: UnboundedSender<proto::FromWorker>, deployments: Arc<Deployments>, every_ms: u64) {
    let mut ticks = tokio::time::interval(Duration::from_millis(every_ms.clamp(10, 60_000)));
    loop {
        ticks.tick().await;
        let memory = Some(deployments.memory());
        let beat = says::Says::Beat(proto::Beat { resident_bytes: resident_bytes(), memory });
        if say.send(from_worker(beat)).is_err() {
            return;
        }
        deployments.report();
    }
}

/// What the process has in memory, where the system says it.
fn resident_bytes() -> u64 {
    const PAGE: u64 = 4_096;
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.as_deref().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE
}

/// An error with what caused it: transport errors alone say next to nothing.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}
