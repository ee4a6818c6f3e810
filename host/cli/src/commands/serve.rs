//! `tidemill coordinator` and `tidemill worker`: the processes of a cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tidemill_coordinator::Coordinator;
use tidemill_core::Error;
use tidemill_rpc::tls::{Tls, TlsFiles};
use tidemill_worker::WorkerSettings;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use super::build::say;
use super::registry;
use crate::args::{CoordinatorArgs, TlsArgs, WorkerArgs};
use crate::failure::{Failure, Outcome};

pub fn coordinator(args: &CoordinatorArgs) -> Outcome {
    let tls = tls(&args.tls)?;
    if !args.rest.ip().is_loopback() {
        return Err(Error::invalid(format!(
            "the API may not listen on {}: whoever reaches it may run jobs",
            args.rest
        ))
        .mend("Listen on 127.0.0.1, and put what checks users before it where others need it.")
        .into());
    }
    if tls.is_none() && !args.listen.ip().is_loopback() {
        return Err(Error::invalid(format!("workers on other machines reach {} without certificates", args.listen))
            .mend("Give --tls-authority, --tls-certificate and --tls-key, or listen on 127.0.0.1.")
            .into());
    }
    let storage = super::control::absolute(&args.storage)?;
    let stop = stop_on_ctrl_c()?;
    runtime()?.block_on(async {
        let (workers, address) = listen(args.listen, "for workers").await?;
        let (rest, api) = listen(args.rest, "for the API").await?;
        let started = tokio::task::spawn_blocking(move || Coordinator::start(&storage, Arc::new(registry()))).await;
        let coordinator = started.context("the coordinator can't start")??;
        let serving = tidemill_coordinator::serve(coordinator.clone(), workers, tls.as_ref())?;
        say("coordinator", &format!("for workers on {address}, with the API on http://{api}/api/v1"));
        let api = axum::serve(rest, tidemill_rest::router(coordinator)).into_future();
        tokio::select! {
            ended = serving => ended.map_err(Failure::job),
            ended = api => ended.map_err(Failure::job),
            () = stop.notified() => Ok(()),
        }
    })
}

pub fn worker(args: &WorkerArgs) -> Outcome {
    let settings = WorkerSettings {
        coordinator: args.coordinator.clone(),
        slots: args.slots,
        memory_bytes: args.memory.0,
        listen: args.listen,
        advertise: args.advertise.clone(),
        tls: tls(&args.tls)?,
    };
    if settings.tls.is_none() && !args.listen.ip().is_loopback() {
        return Err(Error::invalid(format!("others reach {} without certificates", args.listen))
            .mend("Give --tls-authority, --tls-certificate and --tls-key, or listen on 127.0.0.1.")
            .into());
    }
    let stop = stop_on_ctrl_c()?;
    runtime()?.block_on(async {
        say("worker", &format!("with {} slots for the coordinator at {}", args.slots, args.coordinator));
        tidemill_worker::run(settings, Arc::new(registry()), async move { stop.notified().await }).await
    })?;
    Ok(())
}

fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build().context("no threads for the network could be started")
}

async fn listen(address: SocketAddr, what: &str) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("can't listen on {address} {what}"))?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

fn stop_on_ctrl_c() -> anyhow::Result<Arc<Notify>> {
    let stop = Arc::new(Notify::new());
    let stopping = stop.clone();
    ctrlc::set_handler(move || stopping.notify_one()).context("Ctrl-C can't be caught")?;
    Ok(stop)
}

fn tls(args: &TlsArgs) -> Result<Option<Tls>, Error> {
    let TlsArgs { tls_authority, tls_certificate, tls_key } = args;
    let (Some(authority), Some(certificate), Some(key)) = (tls_authority, tls_certificate, tls_key) else {
        return Ok(None);
    };
    let files = TlsFiles { authority: authority.clone(), certificate: certificate.clone(), key: key.clone() };
    Tls::read(&files).map(Some)
}
