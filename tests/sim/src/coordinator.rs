//! A coordinator's process: the real coordinator and the masters of its jobs, stepped by the simulation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tidemill_coordinator::{Coordinator, CoordinatorSettings, Due, JobMaster, ToldWorker, Worker};
use tidemill_core::Result;
use tidemill_core::time::Timestamp;
use tidemill_job::{Components, Environment};
use tidemill_rpc::proto::{FromWorker, from_worker as says};

use crate::network::ConnectionId;
use crate::world::{Machine, lock};

/// Where it keeps what must survive it.
const STORAGE: &str = "/cluster";

/// See the module.
pub struct CoordinatorProcess {
    /// What it has of its machine.
    pub machine: Arc<Machine>,
    /// Which machine.
    pub host: u32,
    /// When its masters are stepped next.
    pub next_ms: i64,
    /// Until when they wait for the store.
    pub busy_ms: i64,
    coordinator: Arc<Coordinator>,
    /// Those that were started and were not stepped yet.
    started: Arc<Mutex<Vec<JobMaster>>>,
    masters: Vec<JobMaster>,
    outbox: Arc<Mutex<Vec<(ConnectionId, ToldWorker)>>>,
    workers: BTreeMap<ConnectionId, Arc<Worker>>,
}

impl CoordinatorProcess {
    /// A new one, which goes on with the jobs that it finds.
    pub fn start(machine: Arc<Machine>, host: u32, environment: Environment) -> Result<Self> {
        let started: Arc<Mutex<Vec<JobMaster>>> = Arc::default();
        let starts = started.clone();
        let components = Arc::new(Components::new((environment.place)(STORAGE)?));
        let run = move |master| {
            lock(&starts).push(master);
            Ok(())
        };
        let coordinator = Coordinator::with(STORAGE, environment, components, CoordinatorSettings::default(), run)?;
        let (masters, outbox, workers) = Default::default();
        Ok(Self { machine, host, next_ms: i64::MAX, busy_ms: 0, coordinator, started, masters, outbox, workers })
    }

    /// What users ask.
    pub fn users(&self) -> &Arc<Coordinator> {
        &self.coordinator
    }

    /// Slots that nobody gives back though no job needs them, for people. Empty: there are none.
    pub fn taken(&self) -> String {
        let workers = self.coordinator.workers().into_iter().filter(|worker| worker.free_slots != worker.slots);
        workers.map(|of| format!("{} of {} has {}", of.slots - of.free_slots, of.slots, of.id)).collect()
    }

    /// Where its jobs are, for people.
    pub fn state(&self) -> String {
        let of = |master: &JobMaster| {
            let view = master.job().view();
            let (name, why) = (view.name, view.reason.unwrap_or_default().replace('\n', " "));
            format!("{name} at {} is {} ({why})", view.parallelism, view.state)
        };
        self.masters.iter().map(of).collect::<Vec<_>>().join(", ")
    }

    /// A worker says something.
    pub fn said(&mut self, connection: ConnectionId, message: FromWorker) -> Result<()> {
        if let Some(says::Says::Hello(hello)) = message.says {
            let (outbox, machine) = (self.outbox.clone(), self.machine.clone());
            let say = move |told| {
                if machine.is_alive() {
                    lock(&outbox).push((connection, told));
                }
            };
            let worker = self.coordinator.hello(hello, say)?;
            self.workers.insert(connection, worker);
        } else if let Some(worker) = self.workers.get(&connection) {
            self.coordinator.said(worker, message);
        }
        Ok(())
    }

    /// A worker is gone.
    pub fn gone(&mut self, connection: ConnectionId, why: &str) {
        if let Some(worker) = self.workers.remove(&connection) {
            self.coordinator.gone(&worker, why);
        }
    }

    /// Each of its masters hears so much at most of what was said to it, and does what is due. When something is due next,
    /// if that is known, and whether they have heard everything.
    pub fn step(&mut self, hears: i64) -> (Option<Timestamp>, bool) {
        self.masters.append(&mut lock(&self.started));
        let (mut next, mut heard_all) = (None, true);
        for master in &mut self.masters {
            let mut hears = hears;
            loop {
                if hears == 0 {
                    heard_all = false;
                    break;
                }
                if !master.hear() {
                    break;
                }
                hears -= 1;
            }
            if let Due::At(at) = master.tick() {
                next = Some(next.map_or(at, |next: Timestamp| next.min(at)));
            }
        }
        (next, heard_all)
    }

    /// What it wants to say to workers.
    pub fn take_outbox(&mut self) -> Vec<(ConnectionId, ToldWorker)> {
        std::mem::take(&mut *lock(&self.outbox))
    }
}
