//! TLS between the processes of a cluster, with certificates on both sides: who has none of the cluster's is not heard.

use std::path::{Path, PathBuf};

use tidemill_core::{Error, Result};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// The name that every certificate of a cluster is for, whatever its machine is called.
pub const DOMAIN: &str = "tidemill-cluster";

/// The certificates of a process.
#[derive(Clone, Debug)]
pub struct Tls {
    authority: Certificate,
    identity: Identity,
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
        Ok(Self {
            authority: Certificate::from_pem(read(&files.authority)?),
            identity: Identity::from_pem(read(&files.certificate)?, read(&files.key)?),
        })
    }

    /// For a process that listens.
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity.clone()).client_ca_root(self.authority.clone())
    }

    /// For a process that connects.
    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.identity.clone())
            .ca_certificate(self.authority.clone())
            .domain_name(DOMAIN)
    }
}
