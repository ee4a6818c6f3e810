//! The connection to the coordinator: what it says is done, and what happens here is said.

use std::sync::Arc;
use std::time::Duration;

use tidemill_blobs as blobs;
use tidemill_connector_kit::Registry;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_dataflow::driver::SlotEvent;
use tidemill_job::{Components, Environment};
use tidemill_rpc::proto::coordinator_client::CoordinatorClient;
use tidemill_rpc::proto::{self, from_worker as says, to_worker as tells};
use tidemill_rpc::{MAX_MESSAGE_BYTES, VERSION, from_worker};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::WorkerSettings;
use crate::deployment::{Deployments, Work};
use crate::exchange::Plane;

/// How long the coordinator may take to answer at first.
const CONNECT: Duration = Duration::from_secs(5);
/// A coordinator that does not answer for so long is gone, though nothing said so: its machine may be. It is asked as often.
const SILENCE: Duration = Duration::from_secs(5);

/// Until the connection ends. Whatever ran is cancelled then.
pub async fn attend(
    settings: &WorkerSettings,
    id: &str,
    address: &str,
    plane: &Arc<Plane>,
    registry: &Arc<Registry>,
) -> Result<()> {
    let gone = |e: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Retry, format!("no connection to the coordinator at {}: {e}", settings.coordinator))
    };
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", settings.coordinator)).map_err(|e| {
        Error::invalid(format!("'{}' is no address of a coordinator: {e}", settings.coordinator))
            .mend("Give it as HOST:PORT.")
    })?;
    let endpoint = match &settings.tls {
        Some(tls) => endpoint.tls_config(tls.client()).map_err(|e| Error::invalid(format!("the certificates: {e}")))?,
        None => endpoint,
    };
    let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
    let endpoint = endpoint.http2_keep_alive_interval(SILENCE).keep_alive_timeout(SILENCE);
    let channel = endpoint.connect().await.map_err(|e| gone(&chain(&e)))?;
    let mut coordinator = CoordinatorClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (say, said) = mpsc::unbounded_channel();
    let hello = proto::Hello {
        worker: id.to_owned(),
        slots: settings.slots,
        memory_bytes: settings.memory_bytes,
        exchange_address: address.to_owned(),
        version: VERSION.to_owned(),
    };
    _ = say.send(from_worker(says::Says::Hello(hello)));
    let told = coordinator.attend(UnboundedReceiverStream::new(said)).await;
    let refused = |status: tonic::Status| match status.code() {
        Code::FailedPrecondition | Code::InvalidArgument => Error::invalid(status.message()),
        _ => gone(&status.message()),
    };
    let mut told = told.map_err(refused)?.into_inner();
    let welcome = match told.message().await.map_err(refused)?.and_then(|first| first.says) {
        Some(tells::Says::Welcome(welcome)) => welcome,
        _ => return Err(gone(&"it gave no welcome")),
    };
    tracing::info!("registered at {} with {} slots", settings.coordinator, settings.slots);
    let components = Components::new(blobs::at(&welcome.storage)?);
    let environment = Environment::new(registry.clone(), Arc::new(components));
    let says = say.clone();
    let deployments = Deployments::new(environment, plane.clone(), move |message| _ = says.send(message));
    let deployments = Arc::new(deployments);
    let beats = tokio::spawn(beat(say.clone(), deployments.clone(), welcome.beat_every_ms));
    let ended = loop {
        match told.message().await {
            Ok(Some(message)) => deployments.told(message).into_iter().for_each(|work| on_a_thread(&deployments, work)),
            Ok(None) => break Err(gone(&"it closed the connection")),
            Err(status) => break Err(gone(&status.message())),
        }
    };
    beats.abort();
    deployments.cancel_all();
    ended
}

fn on_a_thread(deployments: &Arc<Deployments>, work: Work) {
    let deployments = deployments.clone();
    tokio::task::spawn_blocking(move || match work {
        Work::Open(open) => deployments.open(open),
        Work::Run(execution, slots) => {
            let events = deployments.events(execution);
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
        let beat = says::Says::Beat(proto::Beat { resident_bytes: resident_bytes() });
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
