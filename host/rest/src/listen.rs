//! TLS for the API: handshakes of their own, so that who does not finish his holds up nobody.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tidemill_core::{Error, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Who takes longer is not served.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// So many are under way at once; the next ones wait in the system's queue.
const HANDSHAKES: usize = 256;
/// After what the system says when it has no more file descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// The certificate of the API: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, with those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A listener whose connections are encrypted.
pub struct Encrypted {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl Encrypted {
    /// On a socket, with a certificate.
    pub fn new(listener: TcpListener, files: &CertificateFiles) -> Result<Self> {
        let acceptor = acceptor(files)?;
        let address = listener.local_addr().map_err(|e| Error::internal(format!("where the API listens: {e}")))?;
        let (done, ready) = mpsc::channel(HANDSHAKES);
        tokio::spawn(accept(listener, acceptor, done));
        Ok(Self { address, ready })
    }
}

impl Listener for Encrypted {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // Whoever accepts goes on for as long as this is there.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, done: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>) {
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    while let Ok(permit) = room.clone().acquire_owned().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = done.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!("the API can't take a connection: {e}");
                sleep(RETRY).await;
                continue;
            }
        };
        let (handshake, done) = (acceptor.accept(stream), done.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE, handshake).await {
                Ok(Ok(stream)) => _ = done.send((stream, peer)).await,
                Ok(Err(e)) => tracing::debug!("{peer} does not speak TLS with the API: {e}"),
                Err(_) => tracing::debug!("{peer} did not finish its TLS handshake with the API"),
            }
            drop(permit);
        });
    }
}

fn acceptor(files: &CertificateFiles) -> Result<TlsAcceptor> {
    let unreadable = |what: &str, path: &PathBuf, e: &dyn std::fmt::Display| {
        Error::invalid(format!("the {what} of the API, {}, can't be used: {e}", path.display()))
            .mend("Name PEM files; `tidemill certs` makes a set of them for trying it.")
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|e| unreadable("certificate", &files.certificate, &e))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| unreadable("key", &files.key, &e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| Error::internal(format!("TLS: {e}")))?.with_no_client_auth();
    let config = config.with_single_cert(chain, key).map_err(|e| unreadable("certificate", &files.certificate, &e))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
