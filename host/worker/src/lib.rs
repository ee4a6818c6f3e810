//! A worker: offers slots to a coordinator, and runs there what it is told to.
//!
//! It keeps nothing that matters. When the connection to the coordinator breaks, whatever runs goes on, and the worker
//! registers again: a new coordinator takes over what runs, one that was there all the time has given it up and ends it.
//! In reading order:

mod attend;
pub mod deployment;
pub mod exchange;
mod held;
mod local;
mod logs;
mod voice;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_connector_kit::Registry;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_rpc::tls::Tls;
use tokio::net::TcpListener;

use crate::attend::{Attendant, Parted};
use crate::exchange::Plane;
pub use crate::local::{LocalRecovery, LocalRecoverySettings, LocalRecoveryWhen};

/// What a worker is told when it is started.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Where the coordinator is: host:port.
    pub coordinator: String,
    /// How many slots it offers.
    pub slots: u32,
    /// How much memory jobs may hold here, in bytes.
    pub memory_bytes: u64,
    /// Copies of checkpoints on its own disk.
    pub local_recovery: LocalRecoverySettings,
    /// Where other workers connect.
    pub listen: SocketAddr,
    /// What others are told of where that is, if it is not what it listens on: host:port.
    pub advertise: Option<String>,
    /// Its certificates. None: what is between processes is not encrypted.
    pub tls: Option<Tls>,
}

/// Attends at the coordinator until `stop`. An error: it could never, or was refused.
pub async fn run(settings: WorkerSettings, registry: Arc<Registry>, stop: impl Future<Output = ()>) -> Result<()> {
    let listener = TcpListener::bind(settings.listen).await.map_err(|e| {
        Error::invalid(format!("the worker can't listen on {}: {e}", settings.listen))
            .mend("Name a free port of this machine, or port 0 for any.")
    })?;
    let bound = listener.local_addr().map_err(|e| Error::internal(format!("where the worker listens: {e}")))?;
    let address = settings.advertise.clone().unwrap_or_else(|| bound.to_string());
    let id = name();
    let local = Arc::new(LocalRecovery::new(settings.local_recovery.clone())?);
    let copies = local.clone();
    let plane = Arc::new(Plane::new(id.clone(), exchange::dial(id.clone(), settings.tls.clone())));
    let served = exchange::serve(plane.clone(), listener, settings.tls.as_ref())?;
    let attending = async {
        let mut attendant = Attendant::new(settings, id, address, plane, registry, local);
        let (mut wait, mut heard) = (FIRST_WAIT, Instant::now());
        loop {
            let Parted { registered, why } = attendant.attend().await;
            if why.kind() == ErrorKind::Invalid {
                return Err(why);
            }
            if registered {
                (wait, heard) = (FIRST_WAIT, Instant::now());
            } else if heard.elapsed() > ALONE {
                attendant.cancel_all();
            }
            tracing::warn!("{why}; trying again in {} ms", wait.as_millis());
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    };
    let ended = tokio::select! {
        ended = attending => ended,
        served = served => served,
        () = stop => Ok(()),
    };
    copies.end();
    ended
}

const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// What runs is ended when there was no coordinator for so long: what its sinks prepare piles up meanwhile.
const ALONE: Duration = Duration::from_secs(300);

/// Of this process; another one never has it.
fn name() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("worker-{}-{:x}", std::process::id(), since.as_micros())
}
