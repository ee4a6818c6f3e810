//! `tidemill cluster start|status|stop`: a coordinator and workers as processes of this machine, for trying a cluster.
//!
//! They are this binary, detached from the terminal, with a run folder of their own: what runs is in `cluster.json`, what
//! each process says in a log beside it. One command at a time works in a run folder. Whatever it finds there, a command
//! ends no process that it can't tell to be one of its cluster.

mod processes;
mod record;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use tidemill_coordinator::view::{JobView, Overview};
use tidemill_core::Error;
use tidemill_job::component::user_folder;

use self::processes::{Running, end};
use self::record::{Record, RunFolder};
use super::build::say;
use super::cluster::{json_text, print_table};
use crate::api::Api;
use crate::args::{ClusterStartArgs, LocalArgs, LocalCommand};
use crate::failure::{Failure, Outcome};
use crate::screen::print;
use crate::units;

/// A process starts in well under a second; a busy machine is given this long.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often what is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub fn run(command: &LocalCommand) -> Outcome {
    match command {
        LocalCommand::Start(args) => start(args),
        LocalCommand::Status(args) => status(args),
        LocalCommand::Stop(args) => stop(args),
    }
}

/// Starts what does not run yet, and waits until all workers are registered.
fn start(args: &ClusterStartArgs) -> Outcome {
    let folder = RunFolder::enter(&args.local)?;
    let mut record = match folder.read()? {
        Some(found) if found.coordinator.as_ref().is_some_and(Running::runs) => as_it_runs(found, args)?,
        found => anew(found, args, &folder)?,
    };
    record.workers.retain(Running::runs);
    let at_first = record.processes().count();
    let mut fresh = Fresh::default();
    if !record.coordinator.as_ref().is_some_and(Running::runs) {
        let (listen, rest) = (record.listen.to_string(), record.rest.to_string());
        let words = ["coordinator", "--storage", &record.storage, "--listen", &listen, "--rest", &rest];
        record.coordinator = Some(fresh.spawn("coordinator", &words, &folder)?);
        folder.write(&record)?;
    }
    while record.workers.len() < args.workers as usize {
        let name = record.free_name();
        let (listen, slots) = (record.listen.to_string(), record.slots.to_string());
        let words = ["worker", "--coordinator", &listen, "--slots", &slots, "--memory", &record.memory];
        record.workers.push(fresh.spawn(&name, &words, &folder)?);
        // Before the next one, so that whatever happens `stop` ends all that were started.
        folder.write(&record)?;
    }
    wait_until_ready(&record, &mut fresh)?;
    if args.local.json {
        print(&json_text(&record)?);
        return Ok(());
    }
    let (workers, slots) = (record.workers.len(), record.workers.len() as u64 * u64::from(record.slots));
    let verb = if record.processes().count() > at_first { "started" } else { "running" };
    let count = if workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") };
    say(verb, &format!("a coordinator and {count} with {slots} slots"));
    if workers > args.workers as usize {
        say("workers", &format!("are more than {}: they ran already", args.workers));
    }
    say("api", &record.api());
    say("storage", &record.storage);
    say("logs", &folder.path().join("*.log").display().to_string());
    if record.rest != ClusterStartArgs::DEFAULT_REST {
        say("note", &format!("for other commands: export TIDEMILL_CLUSTER={}", record.api()));
    }
    Ok(())
}

/// A cluster that runs can't be given other addresses or another storage.
fn as_it_runs(found: Record, args: &ClusterStartArgs) -> anyhow::Result<Record> {
    let ports = [(args.port, found.listen), (args.rest_port, found.rest)];
    let moved = ports.iter().any(|(port, now)| port.is_some_and(|port| port != now.port()));
    let other = args.storage.as_ref().map(|storage| super::control::absolute(storage)).transpose()?;
    if moved || other.is_some_and(|other| other != found.storage) {
        let (api, storage) = (found.api(), &found.storage);
        return Err(Error::invalid(format!(
            "a cluster runs already, with its API on {api} and its storage in {storage}"
        ))
        .mend("Stop it with `tidemill cluster stop`, or start another one beside it with --folder FOLDER.")
        .into());
    }
    // What more workers are given.
    Ok(Record {
        slots: args.slots.unwrap_or(found.slots),
        memory: args.memory.clone().unwrap_or(found.memory.clone()),
        ..found
    })
}

/// No coordinator runs: what is to run, with what is given and else as it was before.
fn anew(found: Option<Record>, args: &ClusterStartArgs, folder: &RunFolder) -> anyhow::Result<Record> {
    let before = found.as_ref();
    // Workers whose coordinator died wait for it at its address.
    let kept: Vec<Running> = before.map(|of| of.workers.clone()).unwrap_or_default();
    let address = |port: Option<u16>, before: Option<SocketAddr>, default: SocketAddr| match port {
        Some(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        None => before.unwrap_or(default),
    };
    let listen = address(args.port, before.map(|of| of.listen), ClusterStartArgs::DEFAULT_LISTEN);
    let rest = address(args.rest_port, before.map(|of| of.rest), ClusterStartArgs::DEFAULT_REST);
    let workers_reach = before.is_none_or(|of| of.listen == listen);
    if !workers_reach {
        kept.iter().filter(|worker| worker.runs()).for_each(|worker| end(std::slice::from_ref(worker)));
    }
    let storage = match &args.storage {
        Some(storage) => super::control::absolute(storage)?,
        None => before.map_or_else(|| folder.path().join("storage").display().to_string(), |of| of.storage.clone()),
    };
    Ok(Record {
        listen: free(listen, "--port")?,
        rest: free(rest, "--rest-port")?,
        storage,
        slots: args.slots.or(before.map(|of| of.slots)).unwrap_or(ClusterStartArgs::DEFAULT_SLOTS),
        memory: args.memory.clone().or(before.map(|of| of.memory.clone())).unwrap_or_else(|| "1GiB".to_owned()),
        coordinator: None,
        workers: if workers_reach { kept } else { Vec::new() },
    })
}

/// An address that nobody listens on; any, for port 0. Who takes it in between is found when the coordinator can't.
fn free(address: SocketAddr, flag: &str) -> anyhow::Result<SocketAddr> {
    let bound = TcpListener::bind(address).and_then(|listener| listener.local_addr());
    bound.map_err(|e| {
        Error::invalid(format!("port {} of this machine can't be listened on: {e}", address.port()))
            .mend(format!(
                "Stop who listens there (maybe another cluster), or choose another port with {flag} PORT; 0: any."
            ))
            .into()
    })
}

/// Processes that this command started: who of them ends is noticed.
#[derive(Default)]
struct Fresh(Vec<processes::Child>);

impl Fresh {
    fn spawn(&mut self, name: &str, words: &[&str], folder: &RunFolder) -> anyhow::Result<Running> {
        let child = processes::spawn(name, words, folder.path())?;
        let running = child.running.clone();
        self.0.push(child);
        Ok(running)
    }

    /// One that ended is an error, with its last words.
    fn all_run(&mut self) -> anyhow::Result<()> {
        for child in &mut self.0 {
            child.still_runs()?;
        }
        Ok(())
    }
}

fn wait_until_ready(record: &Record, fresh: &mut Fresh) -> Outcome {
    let (api, begin) = (Api::at(&record.api(), None, None)?, Instant::now());
    loop {
        fresh.all_run().map_err(Failure::job)?;
        let overview = api.answer::<Overview>(api.get("overview"));
        if overview.as_ref().is_ok_and(|of| of.workers >= record.workers.len() as u64) {
            return Ok(());
        }
        if begin.elapsed() > READY_WITHIN {
            let seconds = READY_WITHIN.as_secs();
            let problem = match overview {
                Ok(of) => format!("{} of {} workers registered within {seconds} s", of.workers, record.workers.len()),
                Err(error) => format!("the coordinator did not answer within {seconds} s: {error}"),
            };
            let mend = "Look at the logs in the run folder (`tidemill cluster status`), then `tidemill cluster stop`.";
            return Err(Failure::job(Error::invalid(problem).mend(mend)));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What runs, by its pids.
fn status(args: &LocalArgs) -> Outcome {
    let folder = RunFolder::enter(args)?;
    let Some(record) = folder.read()? else { return Err(none(folder.path())) };
    let state = |of: &Running| if of.runs() { "running" } else { "gone" };
    if args.json {
        let process = |of: &Running| json!({"name": of.name, "pid": of.pid, "state": state(of), "log": of.log});
        let processes: Vec<_> = record.processes().map(process).collect();
        let document = json!({"api": record.api(), "storage": record.storage, "processes": processes});
        print(&json_text(&document)?);
        return Ok(());
    }
    print(&format!("api      {}\nstorage  {}\n\n", record.api(), record.storage));
    if record.processes().next().is_none() {
        say("stopped", "nothing runs; `tidemill cluster start` starts it as it was");
        return Ok(());
    }
    let rows = record
        .processes()
        .map(|of| vec![of.name.clone(), state(of).to_owned(), of.log.display().to_string(), of.pid.to_string()]);
    print_table(&["process", "state", "log", "pid"], rows, 3);
    Ok(())
}

/// Ends what runs: the coordinator first, so that it does not see its workers die and jobs fail.
fn stop(args: &LocalArgs) -> Outcome {
    let folder = RunFolder::enter(args)?;
    let Some(record) = folder.read()? else { return Err(none(folder.path())) };
    let left = unfinished(&record);
    let running = record.processes().filter(|of| of.runs()).count();
    record.coordinator.iter().for_each(|of| end(std::slice::from_ref(of)));
    end(&record.workers);
    folder.write(&Record { coordinator: None, workers: Vec::new(), ..record })?;
    if args.json {
        print(&json_text(&json!({"ended": running, "unfinished_jobs": left}))?);
        return Ok(());
    }
    say("stopped", &if running == 1 { "1 process".to_owned() } else { format!("{running} processes") });
    if left > 0 {
        let jobs = if left == 1 { "1 job".to_owned() } else { format!("{} jobs", units::count(left)) };
        say("jobs", &format!("{jobs} did not end: `tidemill cluster start` goes on with them"));
    }
    Ok(())
}

/// How many jobs have not ended; none, if nobody can tell.
fn unfinished(record: &Record) -> u64 {
    let Ok(api) = Api::at(&record.api(), None, None) else { return 0 };
    let jobs: Vec<JobView> = api.answer(api.get("jobs")).unwrap_or_default();
    jobs.iter().filter(|job| !job.state.is_final()).count() as u64
}

fn none(folder: &Path) -> Failure {
    Error::invalid(format!("no cluster was started from {}", folder.display()))
        .mend("Start one with `tidemill cluster start`, or name its run folder with --folder FOLDER.")
        .into()
}

/// The user's folder for what programs keep while and after they run.
fn state_folder() -> anyhow::Result<PathBuf> {
    let state = user_folder("XDG_STATE_HOME", ".local/state");
    let state =
        state.context("there is no HOME to keep the cluster's run folder in\n  mend: Name one: --folder FOLDER.")?;
    Ok(state.join("tidemill"))
}

/// Makes a folder that only its user can enter.
fn private_folder(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("the folder {} can't be made", path.display()))
}
