//! A worker's process: the real deployments, slots and channels, stepped by the simulation.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use tidemill_core::Error;
use tidemill_core::time::Timestamp;
use tidemill_dataflow::driver::{SlotEvent, SlotStep, SlotWriter, Slots};
use tidemill_dataflow::snapshot::Unwritten;
use tidemill_job::Environment;
use tidemill_rpc::from_worker;
use tidemill_rpc::proto::{self, FromWorker, from_worker as says};
use tidemill_worker::deployment::{Deployments, Opening, Work};
use tidemill_worker::exchange::{Connection, Peer, Plane};

use crate::network::ConnectionId;
use crate::world::{Machine, lock};

/// After so long without a coordinator, a worker ends what runs, as in production.
const ALONE_MS: i64 = 300_000;

/// See the module.
pub struct WorkerProcess {
    /// What it has of its machine.
    pub machine: Arc<Machine>,
    /// Which machine.
    pub host: u32,
    /// How many slots it offers.
    pub slots: u32,
    /// Its connection to a coordinator, if there is one or it is being made.
    pub attending: Option<ConnectionId>,
    /// The peers to which it is connected.
    pub peers: BTreeMap<ConnectionId, (Arc<Peer>, Connection)>,
    plane: Arc<Plane>,
    asked: Arc<Mutex<Vec<Dial>>>,
    outbox: Arc<Mutex<Vec<(ConnectionId, FromWorker)>>>,
    deployments: Arc<Deployments>,
    /// Since when there is no coordinator, if there is none.
    alone_ms: Option<i64>,
    runs: BTreeMap<u64, Run>,
    stepped: BTreeMap<u64, Stepped>,
    next: u64,
}

/// The slots of an execution that run here.
struct Run {
    execution: u64,
    running: usize,
    errors: Vec<Error>,
    events: Box<dyn Fn(SlotEvent)>,
    writer: SlotWriter,
    frozen: Arc<Mutex<VecDeque<Unwritten>>>,
    /// Whether something is about to be written.
    writing: bool,
}

struct Stepped {
    run: u64,
    step: Box<dyn FnMut() -> SlotStep>,
    /// When it is stepped next.
    next_ms: i64,
}

/// A connection to another worker that is to be made.
pub struct Dial {
    /// To whom.
    pub peer: Arc<Peer>,
    /// Which it is to be.
    pub connection: Connection,
    /// Where.
    pub address: String,
}

/// What came of the step of a slot.
pub enum After {
    /// It goes on.
    Again,
    /// It waits, until this time at the latest.
    Wait(Option<Timestamp>),
    /// It is over.
    Over,
}

impl WorkerProcess {
    /// A new one.
    pub fn new(machine: Arc<Machine>, host: u32, slots: u32, environment: Environment) -> Self {
        let asked: Arc<Mutex<Vec<Dial>>> = Arc::default();
        let asks = asked.clone();
        let plane = Plane::new(machine.name.clone(), move |peer, connection, address| {
            lock(&asks).push(Dial { peer, connection, address });
        });
        let (attending, peers, outbox, runs, stepped, next) = Default::default();
        let plane = Arc::new(plane);
        let deployments = Arc::new(Deployments::new(environment, plane.clone(), None));
        let alone_ms = Some(machine.world.now_ms());
        Self {
            machine,
            host,
            slots,
            attending,
            peers,
            plane,
            asked,
            outbox,
            deployments,
            alone_ms,
            runs,
            stepped,
            next,
        }
    }

    /// What it says first to a coordinator.
    pub fn hello(&self) -> FromWorker {
        from_worker(says::Says::Hello(proto::Hello {
            worker: self.machine.name.clone(),
            slots: self.slots,
            memory_bytes: 1 << 30,
            exchange_address: self.machine.name.clone(),
            version: tidemill_rpc::VERSION.to_owned(),
            running: self.deployments.all_running(),
            kept: Vec::new(),
        }))
    }

    /// What runs in it, for people. Empty: nothing does.
    pub fn taken(&self) -> String {
        let of = |running: proto::Running| format!("{} runs {}; ", self.machine.name, running.job);
        self.deployments.all_running().into_iter().map(of).collect()
    }

    /// It is welcome at the coordinator.
    pub fn welcome(&mut self, connection: ConnectionId) {
        let (outbox, machine) = (self.outbox.clone(), self.machine.clone());
        let say = move |message| {
            if machine.is_alive() {
                lock(&outbox).push((connection, message));
            }
        };
        self.deployments.connected(say);
        self.alone_ms = None;
    }

    /// The connection to the coordinator is no more.
    pub fn dismissed(&mut self) {
        self.attending = None;
        if self.alone_ms.is_none() {
            self.deployments.disconnected();
            self.alone_ms = Some(self.machine.world.now_ms());
        }
    }

    /// It finds no coordinator: what runs is ended when that is so for long.
    pub fn alone(&self) {
        if self.alone_ms.is_some_and(|since| self.machine.world.now_ms() - since > ALONE_MS) {
            self.deployments.cancel_all();
        }
    }

    /// The coordinator says something; slots that are to be made, if it is that.
    pub fn told(&mut self, message: proto::ToWorker) -> Option<(Arc<Deployments>, Box<Opening>)> {
        match self.deployments.told(message)? {
            Work::Open(opening) => Some((self.deployments.clone(), opening)),
            Work::Run(execution, slots) => {
                self.run(execution, slots);
                None
            }
        }
    }

    /// Says what is said every so often.
    pub fn beat(&self, connection: ConnectionId) {
        let beat = proto::Beat { resident_bytes: 1, memory: Some(self.deployments.memory()) };
        lock(&self.outbox).push((connection, from_worker(says::Says::Beat(beat))));
        self.deployments.report();
    }

    /// Another worker connected.
    pub fn connected(&mut self, connection: ConnectionId, from: &str) {
        let peer = self.plane.peer(from);
        let number = peer.connected();
        self.peers.insert(connection, (peer, number));
    }

    /// What it wants to say to coordinators.
    pub fn take_outbox(&mut self) -> Vec<(ConnectionId, FromWorker)> {
        std::mem::take(&mut *lock(&self.outbox))
    }

    /// To whom it wants to be connected.
    pub fn take_dials(&mut self) -> Vec<Dial> {
        std::mem::take(&mut *lock(&self.asked))
    }

    /// Its slots, and when each is stepped.
    pub fn stepped(&mut self) -> impl Iterator<Item = (u64, &mut i64)> {
        self.stepped.iter_mut().map(|(key, slot)| (*key, &mut slot.next_ms))
    }

    /// When a slot is stepped, to be changed.
    pub fn next_step(&mut self, key: u64) -> Option<&mut i64> {
        self.stepped.get_mut(&key).map(|slot| &mut slot.next_ms)
    }

    /// Steps a slot.
    pub fn step(&mut self, key: u64) -> After {
        let Some(slot) = self.stepped.get_mut(&key) else { return After::Over };
        let outcome = match (slot.step)() {
            SlotStep::Again => return After::Again,
            SlotStep::Wait(until) => return After::Wait(until),
            SlotStep::Over(outcome) => outcome,
        };
        let run = slot.run;
        self.stepped.remove(&key);
        if let Some(run) = self.runs.get_mut(&run) {
            run.running = run.running.saturating_sub(1);
            run.errors.extend(outcome.err());
            if run.running == 0 {
                self.deployments.left(run.execution, &run.errors);
            }
        }
        self.runs.retain(|_, run| run.running > 0 || !lock(&run.frozen).is_empty());
        After::Over
    }

    /// Those of its executions for which the writing of something is to begin.
    pub fn begin_writing(&mut self) -> Vec<u64> {
        let begins = |(key, run): (&u64, &mut Run)| {
            let begins = !run.writing && !lock(&run.frozen).is_empty();
            run.writing |= begins;
            begins.then_some(*key)
        };
        self.runs.iter_mut().filter_map(begins).collect()
    }

    /// Writes the oldest of what the slots of an execution froze.
    pub fn write(&mut self, key: u64) {
        let Some(run) = self.runs.get_mut(&key) else { return };
        run.writing = false;
        let oldest = lock(&run.frozen).pop_front();
        if let Some(oldest) = oldest {
            (run.events)(run.writer.write(oldest));
        }
    }

    fn run(&mut self, execution: u64, slots: Slots) {
        let Some(events) = self.deployments.events(execution) else { return };
        let frozen: Arc<Mutex<VecDeque<Unwritten>>> = Arc::default();
        let freezes = frozen.clone();
        let (slots, writer) = slots.by_hand(events.clone(), move |unwritten| lock(&freezes).push_back(unwritten));
        self.next += 1;
        let run = self.next;
        let (running, errors) = (slots.len(), Vec::new());
        let events = Box::new(events);
        self.runs.insert(run, Run { execution, running, errors, events, writer, frozen, writing: false });
        for mut slot in slots {
            self.next += 1;
            self.stepped.insert(self.next, Stepped { run, step: Box::new(move || slot.step()), next_ms: i64::MAX });
        }
    }
}
