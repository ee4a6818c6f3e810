//! The connections to workers.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tidemill_core::{Error, Result};
use tidemill_rpc::MAX_MESSAGE_BYTES;
use tidemill_rpc::proto::coordinator_server::{Coordinator as Serves, CoordinatorServer};
use tidemill_rpc::proto::{FromWorker, ToWorker, from_worker as says};
use tidemill_rpc::tls::Tls;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::Coordinator;
use crate::workers::{SILENCE, ToldWorker};

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
        let (say, told) = mpsc::unbounded_channel();
        let says = move |told| {
            // If it is gone, that is noticed elsewhere.
            _ = say.send(match told {
                ToldWorker::Says(message) => Ok(*message),
                ToldWorker::GivenUp => Err(Status::unavailable("the coordinator has given this worker up")),
            });
        };
        let worker = self.0.hello(hello, says).map_err(|refused| Status::failed_precondition(refused.message()))?;
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
            coordinator.gone(&worker, &why);
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(told))))
    }
}
