//! A job in a cluster whose processes are killed, or stand still for a while: workers, the coordinator, at random and at
//! failpoints; it is rescaled meanwhile. What it wrote is compared at the end.

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
    binary: &'a Binary,
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

/// Runs the job of a plan, with so many kills as that has steps, on so many workers.
pub fn run(
    binary: &Binary,
    plan: &Plan,
    component: &Path,
    folder: &Path,
    place: &Place,
    set: &[String],
    workers: u64,
) -> Result<Outcome> {
    let manifest = folder.join("tidemill.toml");
    fs::write(&manifest, plan.job.manifest(folder, component, &plan.settings))?;
    let mut feed = (!plan.job.ends()).then(|| Feed::new(folder, plan.settings.records)).transpose()?;
    let mut cluster = Cluster::start(binary, folder, Random::new(plan.seed, 1), workers)?;
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
    fn start(binary: &'a Binary, folder: &'a Path, random: Random, workers: u64) -> Result<Self> {
        let (listen, rest) = (free_address()?, free_address()?);
        let coordinator = coordinator(binary, folder, &listen, &rest, None, 0)?;
        let api = format!("http://{rest}");
        let outcome = Outcome::default();
        let mut cluster = Self {
            binary,
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
        for _ in 0..workers {
            let worker = cluster.worker(None)?;
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

    fn worker(&mut self, failpoint: Armed) -> Result<Process> {
        self.processes += 1;
        let said = self.folder.join(format!("worker-{:03}.txt", self.processes));
        let slots = SLOTS.to_string();
        self.binary.serve(&["worker", "--slots", &slots, "--coordinator", &self.listen], failpoint, said)
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
                _ => {
                    let last = self.workers.len() as u64 - 1;
                    let at = usize::try_from(self.random.between(0, last))?;
                    let armed = self.draw(&OF_WORKERS);
                    let fresh = self.worker(armed)?;
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
                let fresh = self.worker(None)?;
                self.workers.get_mut(at).map(|place| std::mem::replace(place, (fresh, None)));
            }
        }
        Ok(())
    }

    fn revive(&mut self, armed: Armed) -> Result<()> {
        self.processes += 1;
        self.coordinator_armed = armed;
        self.coordinator = coordinator(self.binary, self.folder, &self.listen, &self.rest, armed, self.processes)?;
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

fn coordinator(binary: &Binary, folder: &Path, listen: &str, rest: &str, armed: Armed, number: u64) -> Result<Process> {
    let storage = folder.join("storage").display().to_string();
    let said = folder.join(format!("coordinator-{number:03}.txt"));
    binary.serve(&["coordinator", "--storage", &storage, "--listen", listen, "--rest", rest], armed, said)
}

/// An address that is free now, and is taken again by who comes after who took it.
fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
