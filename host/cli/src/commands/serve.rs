//! `tidemill coordinator` and `tidemill worker`: the processes of a cluster.

use std::net::SocketAddr;
use std::num::NonZero;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use tidemill_coordinator::operations::OperationSettings;
use tidemill_coordinator::{Coordinator, CoordinatorSettings, LogSettings, SlotSettings, WhenFull};
use tidemill_core::Error;
use tidemill_rest::Settings;
use tidemill_rest::access::{Access, Tokens};
use tidemill_rest::listen::{CertificateFiles, Encrypted};
use tidemill_rpc::tls::{Tls, TlsFiles};
use tidemill_worker::{LocalRecoverySettings, LocalRecoveryWhen, WorkerSettings};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::Notify;

use super::build::say;
use super::registry;
use crate::args::{CoordinatorArgs, LocalRecoveryArg, TlsArgs, WhenFullArg, WorkerArgs};
use crate::failure::{Failure, Outcome};

/// How long a process that was told to end waits for what it has under way.
const LINGER: Duration = Duration::from_secs(1);

pub fn coordinator(args: &CoordinatorArgs) -> Outcome {
    let tls = tls(&args.tls)?;
    let access = args.tokens.as_deref().map(Tokens::read).transpose()?.map_or(Access::Local, Access::Tokens);
    let certificate = match (args.rest_certificate.clone(), args.rest_key.clone()) {
        (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
        _ => None,
    };
    check_addresses(args, &access, certificate.is_some(), tls.is_some())?;
    let storage = super::control::absolute(&args.storage)?;
    let settings = Settings { access, configuration: args.shown.clone() };
    let when_full = match args.when_full {
        WhenFullArg::Wait => WhenFull::Wait,
        WhenFullArg::Refuse => WhenFull::Refuse,
    };
    let told = CoordinatorSettings {
        slots: SlotSettings { when_full, standby: args.standby_slots },
        operations: OperationSettings { kept: args.operations_kept, age_ms: millis(args.operations_age) },
        logs: LogSettings {
            every_ms: millis(args.logs_every).unsigned_abs(),
            size_bytes: args.logs_size.0,
            age_ms: millis(args.logs_age),
        },
    };
    let stop = stop_on_signal()?;
    serve(async {
        let (workers, address) = listen(args.listen, "for workers").await?;
        let (rest, api) = listen(args.rest, "for the API").await?;
        let start = move || Coordinator::start(&storage, Arc::new(registry()), told);
        let started = tokio::task::spawn_blocking(start).await;
        let coordinator = started.context("the coordinator can't start")??;
        let serving = tidemill_coordinator::serve(coordinator.clone(), workers, tls.as_ref())?;
        let router = tidemill_rest::router(coordinator.clone(), settings);
        let (scheme, answering) = answer(rest, router, certificate.as_ref())?;
        say("coordinator", &format!("for workers on {address}, with the API on {scheme}://{api}/api/v1"));
        tokio::select! {
            ended = serving => ended.map_err(Failure::job),
            ended = answering => ended.map_err(Failure::job),
            () = stop.notified() => {
                // The last seconds of logs; where that takes too long, they are lost.
                let write = tokio::task::spawn_blocking(move || coordinator.write_logs());
                _ = tokio::time::timeout(LINGER, write).await;
                Ok(())
            }
        }
    })
}

/// What is reached from other machines has to know who asks.
fn check_addresses(args: &CoordinatorArgs, access: &Access, rest_tls: bool, tls: bool) -> Result<(), Error> {
    let (rest, listen) = (args.rest, args.listen);
    if !rest.ip().is_loopback() && matches!(access, Access::Local) {
        return Err(Error::invalid(format!("the API may not listen on {rest}: whoever reaches it may run jobs"))
            .mend("Give --tokens FILE, or listen on 127.0.0.1."));
    }
    if !rest.ip().is_loopback() && !rest_tls {
        tracing::warn!(
            "the API on {rest} is not encrypted, and neither are the tokens that are sent to it; give --rest-certificate and --rest-key, unless something before it speaks TLS"
        );
    }
    if !tls && !listen.ip().is_loopback() {
        return Err(Error::invalid(format!("workers on other machines reach {listen} without certificates"))
            .mend("Give --tls-authority, --tls-certificate and --tls-key, or listen on 127.0.0.1."));
    }
    Ok(())
}

type Answering = Pin<Box<dyn Future<Output = std::io::Result<()>>>>;

/// Answers at the API until the process ends; with the scheme of its URL.
fn answer(
    listener: TcpListener,
    router: Router,
    certificate: Option<&CertificateFiles>,
) -> Result<(&'static str, Answering), Error> {
    Ok(match certificate {
        Some(files) => ("https", Box::pin(axum::serve(Encrypted::new(listener, files)?, router).into_future())),
        None => ("http", Box::pin(axum::serve(listener, router).into_future())),
    })
}

pub fn worker(args: &WorkerArgs) -> Outcome {
    let when = match args.local_recovery {
        LocalRecoveryArg::Auto => LocalRecoveryWhen::Auto,
        LocalRecoveryArg::Always => LocalRecoveryWhen::Always,
        LocalRecoveryArg::Never => LocalRecoveryWhen::Never,
    };
    let folder = args.local_recovery_folder.clone();
    let folder = folder.unwrap_or_else(|| std::env::temp_dir().join("tidemill-local-recovery"));
    let settings = WorkerSettings {
        coordinator: args.coordinator.clone(),
        slots: args.slots,
        memory_bytes: args.memory.0,
        local_recovery: LocalRecoverySettings { when, folder, limit_bytes: args.local_recovery_size.0 },
        listen: args.listen,
        advertise: args.advertise.clone(),
        tls: tls(&args.tls)?,
    };
    if settings.tls.is_none() && !args.listen.ip().is_loopback() {
        return Err(Error::invalid(format!("others reach {} without certificates", args.listen))
            .mend("Give --tls-authority, --tls-certificate and --tls-key, or listen on 127.0.0.1.")
            .into());
    }
    let stop = stop_on_signal()?;
    let mut network = Builder::new_multi_thread();
    // Slots compute; rows that arrive for a slot that is busy need not interrupt one.
    network.worker_threads(network_threads()).on_thread_start(tidemill_system::let_others_compute);
    serve_on(&mut network, async {
        say("worker", &format!("with {} slots for the coordinator at {}", args.slots, args.coordinator));
        tidemill_worker::run(settings, Arc::new(registry()), async move { stop.notified().await }).await?;
        Ok(())
    })
}

/// How many threads carry a worker's rows over the network. Few: a thread per core would take the cores from the slots
/// in turn, and wake one another for each batch.
fn network_threads() -> usize {
    (std::thread::available_parallelism().map_or(1, NonZero::get) / 4).max(1)
}

fn serve(process: impl Future<Output = Outcome>) -> Outcome {
    serve_on(&mut Builder::new_multi_thread(), process)
}

/// Runs a process to its end. What still waits then (for a savepoint, for slots to end) does not hold it up for long:
/// what matters is in the storage.
fn serve_on(runtime: &mut Builder, process: impl Future<Output = Outcome>) -> Outcome {
    let runtime = runtime.enable_all().build().context("no threads for the network could be started")?;
    let ended = runtime.block_on(process);
    runtime.shutdown_timeout(LINGER);
    ended
}

async fn listen(address: SocketAddr, what: &str) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.map_err(|e| {
        Error::invalid(format!("can't listen on {address} {what}: {e}"))
            .mend("End what listens there, or name another address (`tidemill coordinator --help`).")
    })?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Ctrl-C, SIGTERM and SIGHUP end a process cleanly.
fn stop_on_signal() -> anyhow::Result<Arc<Notify>> {
    let stop = Arc::new(Notify::new());
    let stopping = stop.clone();
    ctrlc::set_handler(move || stopping.notify_one()).context("signals can't be caught")?;
    Ok(stop)
}

fn millis(of: Duration) -> i64 {
    i64::try_from(of.as_millis()).unwrap_or(i64::MAX)
}

fn tls(args: &TlsArgs) -> Result<Option<Tls>, Error> {
    let TlsArgs { tls_authority, tls_certificate, tls_key } = args;
    let (Some(authority), Some(certificate), Some(key)) = (tls_authority, tls_certificate, tls_key) else {
        return Ok(None);
    };
    let files = TlsFiles { authority: authority.clone(), certificate: certificate.clone(), key: key.clone() };
    Tls::read(&files).map(Some)
}
