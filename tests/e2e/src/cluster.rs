//! A job in a cluster whose processes are killed, stand still for a while, or are replaced one after the other: workers, the
//! coordinator, at random and at failpoints; whose links are cut, if they have machines of their own; it is rescaled
//! meanwhile. What it wrote is compared at the end.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tidemill_core::failpoint::Failpoint;

use crate::check;
use crate::feed::Feed;
use crate::links::{self, Links};
use crate::plan::Plan;
use crate::process::{Binary, Process};
use crate::random::Random;
use crate::scenario::{Outcome, Place};

/// Of each worker.
const SLOTS: u64 = 2;
/// Nothing takes so long but a job that hangs.
const HANGS: Duration = Duration::from_secs(90);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What can kill a worker, and what a coordinator, that is started armed.
const OF_WORKERS: [Failpoint; 9] = [
    Failpoint::StateRestored,
    Failpoint::PartWritten,
    Failpoint::FreezeDue,
    Failpoint::PartSynced,
    Failpoint::PartPrepared,
    Failpoint::FreezeDone,
    Failpoint::SnapshotDue,
    Failpoint::SnapshotUnsynced,
    Failpoint::SnapshotWritten,
];
const OF_COORDINATORS: [Failpoint; 12] = [
    Failpoint::BeginLogged,
    Failpoint::RecoverUncommitted,
    Failpoint::RecoverCommitted,
    Failpoint::SinksBegun,
    Failpoint::BarrierSent,
    Failpoint::ClaimDue,
    Failpoint::ClaimWon,
    Failpoint::CommitDue,
    Failpoint::CommitRenamed,
    Failpoint::CommitDone,
    Failpoint::CommitMarked,
    Failpoint::LastCommitted,
];

/// A failpoint, and at which time it kills.
type Armed = Option<(Failpoint, u64)>;

/// A cluster with a job.
pub struct Cluster<'a> {
    /// As on the coordinator's machine.
    binary: Binary,
    /// Of the machines, if each process has one of its own; what processes are told of certificates then.
    links: Option<&'a Links>,
    tls: Vec<String>,
    folder: &'a Path,
    listen: String,
    rest: String,
    api: String,
    coordinator: Process,
    coordinator_armed: Armed,
    workers: Vec<(Process, Armed)>,
    processes: u64,
    random: Random,
    outcome: Outcome,
}

/// Where the processes of a cluster run.
#[derive(Clone, Copy)]
pub struct Machines<'a> {
    /// How many workers there are.
    pub workers: u64,
    /// Between them, if each process has a machine of its own.
    pub links: Option<&'a Links>,
}

/// Runs the job of a plan, with so many kills as that has steps, on so many workers.
pub fn run(
    binary: &Binary,
    plan: &Plan,
    component: &Path,
    folder: &Path,
    place: &Place,
    set: &[String],
    machines: Machines<'_>,
) -> Result<Outcome> {
    let manifest = folder.join("tidemill.toml");
    fs::write(&manifest, plan.job.manifest(folder, component, &plan.settings))?;
    let mut feed = (!plan.job.ends()).then(|| Feed::new(folder, plan.settings.records)).transpose()?;
    let mut cluster = Cluster::start(binary, folder, Random::new(plan.seed, 1), machines)?;
    let mut words = vec!["submit", "--json", "--detach", "--cluster", cluster.api.as_str(), "--parallelism", "3"];
    let manifest = manifest.display().to_string();
    words.extend(["--manifest", &manifest]);
    let mut set = set.to_vec();
    set.push(format!("checkpoints.location='{}/checkpoints'", place.location));
    let restart = ["strategy=\"fixed-delay\"", "attempts=1000", "delay=\"20 ms\""];
    set.extend(restart.map(|key| format!("restart.{key}")));
    words.extend(set.iter().flat_map(|set| ["--set", set.as_str()]));
    let job = cluster.json(&words)?;
    let id = job.get("id").and_then(Value::as_str).context("the job has an id")?.to_owned();
    if let Err(failure) = cluster.disturb(plan, &id, feed.as_mut()).and_then(|()| cluster.finish(plan, &id, feed)) {
        cluster.outcome.failure = Some(format!("{failure:#}"));
        return Ok(cluster.outcome);
    }
    let found = check::found(plan.job, folder)?;
    cluster.outcome.difference = check::compare(&plan.job.expected(plan.settings.records), &found);
    Ok(cluster.outcome)
}

impl<'a> Cluster<'a> {
    fn start(binary: &Binary, folder: &'a Path, random: Random, machines: Machines<'a>) -> Result<Self> {
        let Machines { workers, links } = machines;
        let (listen, rest) = match links {
            // Of a machine of its own, every port is free.
            Some(_) => (links::COORDINATOR.to_owned(), "127.0.0.1:7401".to_owned()),
            None => (free_address()?, free_address()?),
        };
        let binary = links.map_or_else(|| binary.clone(), |links| binary.within(&links.machine(0)));
        let tls = if links.is_some() { certificates(&binary, folder)? } else { Vec::new() };
        let coordinator = coordinator(&binary, folder, &listen, &rest, &tls, None, 0)?;
        let api = format!("http://{rest}");
        let outcome = Outcome::default();
        let mut cluster = Self {
            binary,
            links,
            tls,
            folder,
            listen,
            rest,
            api,
            coordinator,
            coordinator_armed: None,
            workers: Vec::new(),
            processes: 0,
            random,
            outcome,
        };
        for at in 0..workers {
            let worker = cluster.worker(at, None)?;
            cluster.workers.push((worker, None));
        }
        let begin = Instant::now();
        while cluster.json(&["workers", "--json", "--cluster", &cluster.api.clone()]).is_err() {
            if begin.elapsed() > HANGS {
                bail!("the coordinator does not answer: {}", cluster.coordinator.said().trim());
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(cluster)
    }

    fn worker(&mut self, at: u64, failpoint: Armed) -> Result<Process> {
        self.processes += 1;
        let said = self.folder.join(format!("worker-{:03}.txt", self.processes));
        let slots = SLOTS.to_string();
        let listen = self.links.map_or("127.0.0.1:0".to_owned(), |_| format!("{}:0", links::address(at + 1)));
        let mut words = vec!["worker", "--slots", &slots, "--coordinator", &self.listen, "--listen", &listen];
        words.extend(self.tls.iter().map(String::as_str));
        match self.links {
            Some(links) => self.binary.within(&links.machine(at + 1)).serve(&words, failpoint, said),
            None => self.binary.serve(&words, failpoint, said),
        }
    }

    /// Kills, stops and rescales, until the plan is through or the job over.
    fn disturb(&mut self, plan: &Plan, id: &str, mut feed: Option<&mut Feed>) -> Result<()> {
        for _ in 0..plan.steps.len() {
            let until = Instant::now() + Duration::from_millis(self.random.between(100, 900));
            while Instant::now() < until {
                feed.as_mut().map_or(Ok(()), |feed| feed.write())?;
                thread::sleep(LOOK_EVERY);
            }
            self.bury()?;
            match self.random.between(0, 9) {
                0 | 1 => {
                    // Who was armed may be dead by now.
                    self.outcome.kills += u64::from(self.coordinator.ended()?.is_none());
                    self.coordinator.kill()?;
                    let armed = self.draw(&OF_COORDINATORS);
                    self.revive(armed)?;
                }
                2 => {
                    let parallelism = self.random.between(1, 4).to_string();
                    let api = self.api.clone();
                    // It is refused while the job is being started, and when nobody is there.
                    _ = self.binary.output(&["rescale", id, "--parallelism", &parallelism, "--cluster", &api])?;
                }
                3 => self.pause()?,
                4 if self.random.one_in(4) => self.replace_all()?,
                5 | 6 if self.links.is_some() => self.cut()?,
                _ => {
                    let last = self.workers.len() as u64 - 1;
                    let at = usize::try_from(self.random.between(0, last))?;
                    let armed = self.draw(&OF_WORKERS);
                    let fresh = self.worker(at as u64, armed)?;
                    let place = self.workers.get_mut(at).context("a worker")?;
                    let (mut old, _) = std::mem::replace(place, (fresh, armed));
                    self.outcome.kills += u64::from(old.ended()?.is_none());
                    old.kill()?;
                }
            }
        }
        Ok(())
    }

    /// Has a worker, or the coordinator, stand still: for less time than it takes until it is given up, and rarely for more.
    fn pause(&mut self) -> Result<()> {
        let at = usize::try_from(self.random.between(0, self.workers.len() as u64))?;
        let ms = if self.random.one_in(6) { 11_000 } else { self.random.between(100, 3_000) };
        let process = self.workers.get(at).map_or(&self.coordinator, |(worker, _)| worker);
        process.stand_still()?;
        thread::sleep(Duration::from_millis(ms));
        process.go_on()?;
        self.outcome.pauses += 1;
        Ok(())
    }

    /// Cuts the link of a machine, or the way between two, for less time than it takes until somebody is given up, and rarely
    /// for more.
    fn cut(&mut self) -> Result<()> {
        let Some(links) = self.links else { return Ok(()) };
        let last = self.workers.len() as u64;
        let (one, other) = (self.random.between(0, last), self.random.between(0, last));
        let ms = if self.random.one_in(5) { 13_000 } else { self.random.between(100, 7_000) };
        let cut = if one == other { links.isolate(one)? } else { links.part(one, other)? };
        thread::sleep(Duration::from_millis(ms));
        cut.mend()?;
        self.outcome.cuts += 1;
        Ok(())
    }

    /// A rolling restart: every process is told to end, and the next one is started in its place.
    fn replace_all(&mut self) -> Result<()> {
        for at in 0..self.workers.len() {
            let fresh = self.worker(at as u64, None)?;
            let place = self.workers.get_mut(at).context("a worker")?;
            let (mut old, _) = std::mem::replace(place, (fresh, None));
            ended_well(&mut old)?;
            thread::sleep(Duration::from_millis(self.random.between(0, 500)));
        }
        ended_well(&mut self.coordinator)?;
        self.revive(None)?;
        self.outcome.rolled += 1;
        Ok(())
    }

    fn draw(&mut self, of: &[Failpoint]) -> Armed {
        if !self.random.one_in(2) {
            return None;
        }
        let at = usize::try_from(self.random.between(0, of.len() as u64 - 1)).ok()?;
        Some((*of.get(at)?, self.random.between(1, 4)))
    }

    /// Replaces who died of a failpoint.
    fn bury(&mut self) -> Result<()> {
        if self.coordinator.ended()?.is_some() {
            self.outcome.kills += 1;
            self.outcome.hit.extend(self.coordinator_armed.map(|(at, _)| at));
            self.revive(None)?;
        }
        for at in 0..self.workers.len() {
            let Some((worker, armed)) = self.workers.get_mut(at) else { continue };
            if let Some(status) = worker.ended()? {
                if !crate::process::was_killed(status) {
                    bail!("a worker ended ({status}): {}", worker.said().trim());
                }
                self.outcome.kills += 1;
                self.outcome.hit.extend(armed.map(|(at, _)| at));
                let fresh = self.worker(at as u64, None)?;
                self.workers.get_mut(at).map(|place| std::mem::replace(place, (fresh, None)));
            }
        }
        Ok(())
    }

    fn revive(&mut self, armed: Armed) -> Result<()> {
        self.processes += 1;
        self.coordinator_armed = armed;
        let (binary, folder, tls) = (&self.binary, self.folder, &self.tls);
        self.coordinator = coordinator(binary, folder, &self.listen, &self.rest, tls, armed, self.processes)?;
        Ok(())
    }

    /// Until the job has ended, or has written what it must and was stopped.
    fn finish(&mut self, plan: &Plan, id: &str, mut feed: Option<Feed>) -> Result<()> {
        let expected = plan.job.expected(plan.settings.records);
        let must: usize = expected.values().map(Vec::len).sum();
        let (begin, api) = (Instant::now(), self.api.clone());
        let mut stopped = false;
        loop {
            self.bury()?;
            feed.as_mut().map_or(Ok(()), Feed::write)?;
            let status = self.json(&["status", id, "--json", "--cluster", &api]).unwrap_or_default();
            match status.get("state").and_then(Value::as_str) {
                Some("FINISHED") => return Ok(()),
                Some("FAILED" | "CANCELED") => bail!("the job ended: {status}"),
                _ if begin.elapsed() > HANGS => bail!("the job hangs: {status}"),
                _ => {}
            }
            if feed.as_ref().is_some_and(Feed::is_done) && !stopped {
                let found = check::found(plan.job, self.folder)?;
                if found.values().map(Vec::len).sum::<usize>() >= must {
                    stopped = self.binary.output(&["stop", "--job", id, "--cluster", &api])?.status.success();
                }
            }
            thread::sleep(LOOK_EVERY * 5);
        }
    }

    fn json(&self, words: &[&str]) -> Result<Value> {
        let output = self.binary.output(words)?;
        if !output.status.success() {
            bail!("tidemill {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

fn coordinator(
    binary: &Binary,
    folder: &Path,
    listen: &str,
    rest: &str,
    tls: &[String],
    armed: Armed,
    number: u64,
) -> Result<Process> {
    let storage = folder.join("storage").display().to_string();
    let said = folder.join(format!("coordinator-{number:03}.txt"));
    let mut words = vec!["coordinator", "--storage", &storage, "--listen", listen, "--rest", rest];
    words.extend(tls.iter().map(String::as_str));
    binary.serve(&words, armed, said)
}

/// Makes a set of certificates: what processes are told of it.
fn certificates(binary: &Binary, folder: &Path) -> Result<Vec<String>> {
    let certificates = folder.join("certificates").display().to_string();
    let made = binary.output(&["certs", &certificates])?;
    if !made.status.success() {
        bail!("no certificates: {}", String::from_utf8_lossy(&made.stderr).trim());
    }
    let files = [("authority", "authority.pem"), ("certificate", "cluster.pem"), ("key", "cluster.key")];
    Ok(files.into_iter().flat_map(|(of, file)| [format!("--tls-{of}"), format!("{certificates}/{file}")]).collect())
}

/// Ends a process as a user does, unless a failpoint killed it before.
fn ended_well(process: &mut Process) -> Result<()> {
    let status = process.terminate()?;
    if !status.success() && !crate::process::was_killed(status) {
        bail!("a process that was told to end did so badly ({status}): {}", process.said().trim());
    }
    Ok(())
}

/// An address that is free now, and is taken again by who comes after who took it.
fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
