//! TLS between the processes of a cluster, with certificates on both sides: who has none of the cluster's is not heard.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tidemill_core::{Error, Result};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// The name that every certificate of a cluster is for, whatever its machine is called.
pub const DOMAIN: &str = "tidemill-cluster";

/// The certificates of a process.
#[derive(Clone)]
pub struct Tls {
    authority: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Where they are: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the authority that signed all certificates of the cluster.
    pub authority: PathBuf,
    /// The process's own certificate, for [`DOMAIN`].
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Tls {
    /// Reads them.
    pub fn read(files: &TlsFiles) -> Result<Self> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|e| {
                Error::invalid(format!("the certificate file {} can't be read: {e}", path.display()))
                    .mend("`tidemill certs` makes a set of them for trying it.")
            })
        };
        Ok(Self { authority: read(&files.authority)?, certificate: read(&files.certificate)?, key: read(&files.key)? })
    }

    /// For a process that listens.
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity()).client_ca_root(Certificate::from_pem(&self.authority))
    }

    /// For a process that connects.
    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.identity())
            .ca_certificate(Certificate::from_pem(&self.authority))
            .domain_name(DOMAIN)
    }

    fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificate, &self.key)
    }

    /// For a process that listens, without HTTP.
    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone());
        let clients = clients.build().map_err(|e| wrong("authority", &e))?;
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|e| Error::internal(format!("TLS: {e}")))?.with_client_cert_verifier(clients);
        let config = config.with_single_cert(self.chain()?, self.private()?).map_err(|e| wrong("certificate", &e))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// For a process that connects, without HTTP; and the name that the other has to prove.
    pub fn connector(&self) -> Result<(TlsConnector, ServerName<'static>)> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|e| Error::internal(format!("TLS: {e}")))?.with_root_certificates(self.roots()?);
        let config =
            config.with_client_auth_cert(self.chain()?, self.private()?).map_err(|e| wrong("certificate", &e))?;
        let name = ServerName::try_from(DOMAIN).map_err(|e| Error::internal(e.to_string()))?;
        Ok((TlsConnector::from(Arc::new(config)), name))
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.authority) {
            roots.add(certificate.map_err(|e| wrong("authority", &e))?).map_err(|e| wrong("authority", &e))?;
        }
        Ok(roots)
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .map_err(|e| wrong("certificate", &e))
    }

    fn private(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(&self.key).map_err(|e| wrong("key", &e))
    }
}

fn wrong(what: &str, why: &dyn fmt::Display) -> Error {
    Error::invalid(format!("the {what} of this process can't be used: {why}"))
        .mend("Name PEM files; `tidemill certs` makes a set of them for trying it.")
}
