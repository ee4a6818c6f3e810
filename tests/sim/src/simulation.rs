//! One seed, one whole job: the events of a cluster, one after the other, until the job is over and everything was checked.
//!
//! Invariant: what happens follows from the seed alone. There is one thread, one source of chance, and no look at the
//! real time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use prost::Message;
use tidemill_checkpoint::Start;
use tidemill_coordinator::{SILENCE, Submission, ToldWorker};
use tidemill_rpc::proto::{self, Frame, FromWorker, ToWorker, from_worker as says, to_worker as tells};
use tidemill_worker::deployment::Deployments;
use tidemill_worker::exchange::{Connection, Peer};

use crate::connectors::Simulated;
use crate::coordinator::CoordinatorProcess;
use crate::job::{self, JobPlan};
use crate::network::{ConnectionId, Kind, Network, Packet, ProcessId, Side};
use crate::outside::{Input, Target, Verdict};
use crate::sabotage::Sabotage;
use crate::store::Stores;
use crate::worker::{After, Dial, WorkerProcess};
use crate::world::{Machine, World};

/// After the faults have ended, a job that takes longer than this is stuck, in milliseconds.
const PATIENCE_MS: i64 = 300_000;
/// How long the cluster goes on after the job is over: what was delayed may still come.
const AFTERMATH_MS: i64 = 30_000;
/// No process sleeps longer, as in production.
const LONGEST_SLEEP_MS: i64 = 1_000;
/// How often a worker says that it is there.
const BEAT_MS: i64 = 500;
/// How much of a connection between workers is under way before it takes no more.
const UNDER_WAY: usize = 24;

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which.
    pub seed: u64,
    /// What is wrong with what was written.
    pub verdict: Verdict,
    /// Why the job did not come to its end, if it did not.
    pub stuck: Option<String>,
    /// The faults, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// A digest of all that happened, and how many events that were.
    pub digest: (u64, u64),
    /// The last events.
    pub last_events: Vec<String>,
}

impl Outcome {
    /// Whether everything is as it must be.
    pub fn is_good(&self) -> bool {
        self.verdict.is_good() && self.stuck.is_none()
    }
}

/// Simulates a seed, with a bug put back if one is named. `shown`: how many of the last events are wanted.
pub fn simulate(seed: u64, sabotage: Option<Sabotage>, shown: usize) -> Outcome {
    let world = World::new(seed, sabotage, shown);
    let mut simulation = Simulation::new(&world);
    let stuck = simulation.run();
    Outcome {
        seed,
        verdict: if stuck.is_none() { simulation.target.check(&simulation.plan.input) } else { Verdict::default() },
        stuck,
        faults: world.injected(),
        digest: world.digest(),
        last_events: world.last_events(),
    }
}

/// What a seed's cluster and job are like.
struct Plan {
    /// The slots of each worker.
    workers: Vec<u32>,
    job: JobPlan,
    input: Input,
    /// Until when things go wrong, in milliseconds from the beginning.
    faults_ms: i64,
    /// How long it is between two faults, at most, in milliseconds.
    pause_ms: i64,
    /// How likely it is that a request to the store fails; 0: it never does.
    store_faults: u64,
}

impl Plan {
    fn draw(world: &World) -> Self {
        let mut dice = world.dice();
        let mut number = |low: i64, high: i64| dice.between(low, high);
        let workers: Vec<u32> = (0..number(2, 5)).map(|_| small(number(1, 3))).collect();
        let slots: u32 = workers.iter().sum();
        let job = JobPlan {
            parallelism: small(number(2, i64::from(slots.min(4)) + 1)),
            exchange_bytes: number(64, 2_000).unsigned_abs(),
            interval_ms: number(200, 1_500).unsigned_abs(),
            timeout_ms: number(2_000, 10_000).unsigned_abs(),
            aligned_timeout_ms: (number(0, 2) == 0).then(|| number(0, 300).unsigned_abs()),
            tolerable_failures: number(0, 4).unsigned_abs(),
            retained: number(1, 4).unsigned_abs(),
        };
        let input =
            Input { splits: small(number(2, 9)), records: small(number(20, 201)), keys: number(1, 40).unsigned_abs() };
        // Where much goes wrong, no job gets far; where little does, what goes wrong has more to spoil.
        let (faults_ms, pause_ms) = (number(8_000, 40_000), number(300, 8_000));
        let store_faults = number(0, 6).unsigned_abs();
        Self { workers, job, input, faults_ms, pause_ms, store_faults }
    }
}

fn small(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(1)
}

/// What can happen.
enum Event {
    /// Something arrives at an end of a connection.
    Arrive(ConnectionId, Side),
    /// Nothing came through a connection for long: the process at this end looks whether it gives it up.
    Silence(ConnectionId, Side),
    StartCoordinator,
    /// The masters of a coordinator's jobs are stepped.
    StepMasters(ProcessId, i64),
    StartWorker(u32),
    /// A worker connects to the coordinator.
    Attend(ProcessId),
    Beat(ProcessId, ConnectionId),
    /// A worker makes slots ready.
    Open(ProcessId, Arc<Deployments>, Box<proto::Open>),
    StepSlot(ProcessId, u64, i64),
    /// A worker writes what slots froze.
    Write(ProcessId, u64),
    /// A worker connects to another one.
    Dial(ProcessId, Dial),
    Fault,
    /// Nothing goes wrong any more.
    Calm,
    /// A process that should be gone already is ended.
    End(ProcessId),
}

impl Event {
    /// Who does it, where that is one process.
    fn process(&self) -> Option<ProcessId> {
        match self {
            Self::StepMasters(process, _)
            | Self::Attend(process)
            | Self::Beat(process, _)
            | Self::Open(process, ..)
            | Self::StepSlot(process, ..)
            | Self::Write(process, _)
            | Self::Dial(process, ..) => Some(*process),
            _ => None,
        }
    }
}

/// Of events at the same time, chance takes one.
struct Scheduled {
    order: (i64, u64, u64),
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

struct Simulation {
    world: Arc<World>,
    plan: Plan,
    stores: Arc<Stores>,
    target: Arc<Target>,
    network: Network,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    processes: u64,
    workers: BTreeMap<ProcessId, WorkerProcess>,
    coordinators: BTreeMap<ProcessId, CoordinatorProcess>,
    /// The coordinator that workers reach, if there is one.
    current: Option<ProcessId>,
    /// Processes that are stopped, and until when.
    stopped: BTreeMap<ProcessId, i64>,
    /// Until when the whole network is slow.
    slow_until_ms: i64,
    submitted: bool,
    /// When the job was over.
    over_ms: Option<i64>,
    failed: Option<String>,
}

impl Simulation {
    fn new(world: &Arc<World>) -> Self {
        let plan = Plan::draw(world);
        world.note(&format!("{:?} {:?} on {:?}", plan.job, plan.input, plan.workers));
        world.set_store_faults(plan.store_faults);
        let (network, queue, workers, coordinators, stopped) = Default::default();
        let mut this = Self {
            world: world.clone(),
            plan,
            stores: Stores::new(world),
            target: Target::new(),
            network,
            queue,
            scheduled: 0,
            processes: 0,
            workers,
            coordinators,
            current: None,
            stopped,
            slow_until_ms: 0,
            submitted: false,
            over_ms: None,
            failed: None,
        };
        this.after(0, Event::StartCoordinator);
        for host in (1..).take(this.plan.workers.len()) {
            this.soon(100, Event::StartWorker(host));
        }
        this.after(this.plan.faults_ms, Event::Calm);
        this.soon(2_000, Event::Fault);
        this
    }

    /// To the end; why there was none, if there was none.
    fn run(&mut self) -> Option<String> {
        while let Some(Reverse(Scheduled { order: (at, ..), event })) = self.queue.pop() {
            self.world.advance(at);
            self.stores.settle();
            if self.over_ms.is_some_and(|over| at > over + AFTERMATH_MS) {
                break;
            }
            if self.world.elapsed_ms() > self.plan.faults_ms + PATIENCE_MS {
                let state = self.coordinators.values().map(CoordinatorProcess::state).collect::<Vec<_>>().join("; ");
                return Some(format!("it is not over: {state}; {} rows are written", self.target.visible()));
            }
            self.happen(event);
        }
        match (self.over_ms, self.failed.take()) {
            (_, Some(failed)) => Some(failed),
            (None, None) => Some("nothing is left to happen".to_owned()),
            (Some(_), None) => None,
        }
    }

    fn happen(&mut self, event: Event) {
        let process = match &event {
            Event::Arrive(connection, side) | Event::Silence(connection, side) => {
                self.network.get(*connection).map(|connection| connection.process(*side))
            }
            event => event.process(),
        };
        // A process that is stopped does it when it goes on.
        if let Some(until) = process.and_then(|process| self.stopped.get(&process).copied()) {
            if until > self.world.now_ms() {
                let wait = until - self.world.now_ms() + self.draw(0, 20);
                return self.after(wait, event);
            }
            process.into_iter().for_each(|process| _ = self.stopped.remove(&process));
        }
        if process.is_some_and(|process| self.machine(process).is_none()) {
            return;
        }
        match event {
            Event::Arrive(connection, side) => self.arrive(connection, side),
            Event::Silence(connection, side) => self.silence(connection, side),
            Event::StartCoordinator => self.start_coordinator(),
            Event::StepMasters(id, at) => self.step_masters(id, at),
            Event::StartWorker(host) => self.start_worker(host),
            Event::Attend(id) => self.attend(id),
            Event::Beat(id, connection) => self.beat(id, connection),
            Event::Open(_, deployments, open) => deployments.open(*open),
            Event::StepSlot(id, key, at) => self.step_slot(id, key, at),
            Event::Write(id, key) => self.workers.get_mut(&id).into_iter().for_each(|worker| worker.write(key)),
            Event::Dial(id, dial) => self.dial(id, dial),
            Event::Fault => self.fault(),
            Event::Calm => self.calm(),
            Event::End(id) => self.bury(id),
        }
        process.into_iter().for_each(|process| self.afterwards(process));
    }

    // Time and chance.

    fn after(&mut self, ms: i64, event: Event) {
        self.scheduled += 1;
        let tie = self.world.dice().draw();
        let order = (self.world.now_ms() + ms.max(0), tie, self.scheduled);
        self.queue.push(Reverse(Scheduled { order, event }));
    }

    /// Some time before so long.
    fn soon(&mut self, below_ms: i64, event: Event) {
        let ms = self.draw(0, below_ms);
        self.after(ms, event);
    }

    fn draw(&self, low: i64, high: i64) -> i64 {
        self.world.dice().between(low, high)
    }

    // Processes.

    fn new_process(&mut self, name: &str) -> (ProcessId, Arc<Machine>) {
        self.processes += 1;
        let ahead_ms = self.draw(-2_000, 2_000);
        let name = format!("{name}-{:03}", self.processes);
        self.world.note(&format!("{name} starts"));
        (ProcessId(self.processes), Machine::new(&self.world, name, ahead_ms))
    }

    fn connector(&self, machine: &Arc<Machine>) -> Simulated {
        Simulated { machine: machine.clone(), input: self.plan.input, target: self.target.clone() }
    }

    fn start_coordinator(&mut self) {
        if self.current.is_some() {
            return;
        }
        let (id, machine) = self.new_process("coordinator");
        let environment = job::environment(&machine, &self.stores, self.connector(&machine));
        // Each on a machine of its own, which the one before may still be on its own.
        let started = CoordinatorProcess::start(machine.clone(), 1_000 + small(self.processes as i64), environment);
        let started = started.and_then(|coordinator| {
            if !std::mem::replace(&mut self.submitted, true) {
                coordinator.submit(Submission {
                    definition: job::definition(&self.plan.job),
                    parallelism: None,
                    from: Start::default(),
                    allow_non_restored: false,
                })?;
                self.world.set_faults(true);
            }
            Ok(coordinator)
        });
        match started {
            Ok(coordinator) if machine.is_alive() => {
                self.coordinators.insert(id, coordinator);
                self.current = Some(id);
                self.afterwards(id);
                self.wake_masters(id);
                self.look_for_the_end(id);
            }
            Ok(_) => self.soon(2_000, Event::StartCoordinator),
            Err(error) => {
                self.world.note(&format!("{} can't start: {}", machine.name, error.message()));
                self.soon(2_000, Event::StartCoordinator);
            }
        }
    }

    fn start_worker(&mut self, host: u32) {
        if self.workers.values().any(|worker| worker.host == host) {
            return;
        }
        let slots = self.plan.workers.get(host as usize - 1).copied().unwrap_or(1);
        let (id, machine) = self.new_process("worker");
        let environment = job::environment(&machine, &self.stores, self.connector(&machine));
        self.workers.insert(id, WorkerProcess::new(machine, host, slots, environment));
        self.soon(50, Event::Attend(id));
    }

    fn host(&self, process: ProcessId) -> Option<u32> {
        let worker = self.workers.get(&process).map(|worker| worker.host);
        worker.or_else(|| self.coordinators.get(&process).map(|coordinator| coordinator.host))
    }

    fn machine(&self, process: ProcessId) -> Option<&Arc<Machine>> {
        let worker = self.workers.get(&process).map(|worker| &worker.machine);
        worker.or_else(|| self.coordinators.get(&process).map(|coordinator| &coordinator.machine))
    }

    /// A process is no more, and what it had of connections ends.
    fn bury(&mut self, process: ProcessId) {
        let Some(machine) = self.machine(process) else { return };
        machine.kill();
        self.world.note(&format!("{} is dead", machine.name));
        for (connection, side) in self.network.of(process) {
            self.end_other(connection, side);
        }
        self.stopped.remove(&process);
        if let Some(worker) = self.workers.remove(&process) {
            self.soon(5_000, Event::StartWorker(worker.host));
        }
        if self.coordinators.remove(&process).is_some() && self.current == Some(process) {
            self.current = None;
            self.soon(4_000, Event::StartCoordinator);
        }
        self.network.forget();
    }

    /// What follows when a process has done something: what it said is sent, and what it wants is begun.
    fn afterwards(&mut self, process: ProcessId) {
        let Some(machine) = self.machine(process).cloned() else { return };
        let waited = machine.take_waited_ms();
        if let Some(coordinator) = self.coordinators.get_mut(&process) {
            let said = coordinator.take_outbox();
            coordinator.busy_ms = coordinator.busy_ms.max(self.world.now_ms() + waited);
            for (connection, told) in said {
                match told {
                    ToldWorker::Says(message) => {
                        let packet = Packet::Message(message.encode_to_vec());
                        self.send(connection, Side::Caller, packet, waited);
                    }
                    ToldWorker::GivenUp => self.end_other(connection, Side::Called),
                }
            }
        }
        if self.workers.contains_key(&process) {
            self.after_worker(process, waited);
        }
        if !machine.is_alive() {
            self.bury(process);
        }
    }

    fn after_worker(&mut self, process: ProcessId, waited: i64) {
        let Some(worker) = self.workers.get_mut(&process) else { return };
        let (said, dials) = (worker.take_outbox(), worker.take_dials());
        let (unwritten, mut peers) = (worker.begin_writing(), worker.peers.clone().into_iter().collect::<Vec<_>>());
        for (connection, message) in said {
            self.send(connection, Side::Called, Packet::Message(message.encode_to_vec()), waited);
        }
        for dial in dials {
            self.soon(30, Event::Dial(process, dial));
        }
        for run in unwritten {
            self.soon(100, Event::Write(process, run));
        }
        // Where two connections are to one peer, either may come first.
        if self.draw(0, 2) == 0 {
            peers.reverse();
        }
        for (connection, (peer, number)) in peers {
            self.pump(process, connection, &peer, number, waited);
        }
    }

    /// Sends what a worker has for another one, while the connection takes it.
    fn pump(&mut self, process: ProcessId, connection: ConnectionId, peer: &Peer, number: Connection, waited: i64) {
        loop {
            let Some(of) = self.network.get(connection) else { return };
            let Some(side) = of.side(process).filter(|side| of.is_open(*side)) else { return };
            if of.arriving(side.other()) >= UNDER_WAY {
                return;
            }
            let Some(frames) = peer.due(number) else {
                return self.ended(connection, side, "a newer one came");
            };
            if frames.is_empty() {
                return;
            }
            for frame in frames {
                self.send(connection, side.other(), Packet::Message(frame.encode_to_vec()), waited);
            }
        }
    }

    // The network.

    fn send(&mut self, connection: ConnectionId, to: Side, packet: Packet, waited: i64) {
        let sends = self.network.get(connection).is_some_and(|connection| connection.send(to, packet));
        if sends {
            let delay = self.delay();
            self.after(waited + delay, Event::Arrive(connection, to));
        }
    }

    fn delay(&self) -> i64 {
        if self.slow_until_ms > self.world.now_ms() {
            return self.draw(0, 1_500);
        }
        if self.world.goes_wrong("delay", 20) { self.draw(5, 400) } else { self.draw(0, 4) }
    }

    /// A process ends its side of a connection: the other is to hear of that, perhaps not of what was said before.
    fn end_other(&mut self, connection: ConnectionId, side: Side) {
        let lose = self.draw(0, 2) == 0;
        let Some(of) = self.network.get(connection) else { return };
        if !of.is_open(side) {
            return;
        }
        if of.close(side) {
            if lose {
                of.lose(side.other());
            }
            of.end_arrives(side.other());
            let delay = self.delay();
            self.after(delay, Event::Arrive(connection, side.other()));
        }
    }

    fn arrive(&mut self, connection: ConnectionId, side: Side) {
        let now = self.world.now_ms();
        let Some(of) = self.network.get(connection) else { return };
        let (kind, here, there) = (of.kind, of.process(side), of.process(side.other()));
        // A process that is dead has left its machine behind.
        let hosts = self.host(here).zip(self.host(there));
        if let Some(until) = hosts.and_then(|(a, b)| self.network.parted(a, b, now)) {
            let wait = until - now + self.draw(1, 50);
            return self.after(wait, Event::Arrive(connection, side));
        }
        let packet = self.network.get(connection).and_then(|of| of.arrive(side, now));
        match (packet, kind, side) {
            (None, ..) => {}
            (Some(Packet::End), ..) => self.ended(connection, side, "the connection ended"),
            (Some(Packet::Message(bytes)), Kind::Exchange, _) => self.frame(here, connection, &bytes),
            (Some(Packet::Message(bytes)), Kind::Attend, Side::Called) => self.from_worker(here, connection, &bytes),
            (Some(Packet::Message(bytes)), Kind::Attend, Side::Caller) => self.to_worker(here, connection, &bytes),
        }
        // There may be room for more now.
        if kind == Kind::Exchange
            && let Some((peer, number)) =
                self.workers.get(&there).and_then(|worker| worker.peers.get(&connection)).cloned()
        {
            self.pump(there, connection, &peer, number, 0);
        }
    }

    fn frame(&mut self, id: ProcessId, connection: ConnectionId, bytes: &[u8]) {
        let peer = self.workers.get(&id).and_then(|worker| worker.peers.get(&connection)).cloned();
        match Frame::decode(bytes) {
            Ok(frame) => peer.into_iter().for_each(|(peer, number)| peer.received(number, frame.clone())),
            Err(error) => self.failed = Some(format!("a frame can't be read: {error}")),
        }
        self.wake_slots(id);
    }

    fn from_worker(&mut self, id: ProcessId, connection: ConnectionId, bytes: &[u8]) {
        let Some(coordinator) = self.coordinators.get_mut(&id) else { return };
        let said = FromWorker::decode(bytes).map_err(|e| e.to_string());
        if let Ok(FromWorker { says: Some(says) }) = &said
            && !matches!(says, says::Says::Beat(_) | says::Says::Counters(_))
        {
            self.world.note(&format!("{} hears {:.160}", coordinator.machine.name, format!("{says:?}")));
        }
        let heard = said.and_then(|said| coordinator.said(connection, said).map_err(|e| e.to_string()));
        if let Err(error) = heard {
            self.failed = Some(format!("what a worker says can't be heard: {error}"));
        }
        self.wake_masters(id);
    }

    fn to_worker(&mut self, id: ProcessId, connection: ConnectionId, bytes: &[u8]) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let message = match ToWorker::decode(bytes) {
            Ok(message) => message,
            Err(error) => return self.failed = Some(format!("what a worker is told can't be read: {error}")),
        };
        self.world.note(&format!("{} hears {:.160}", worker.machine.name, format!("{:?}", message.says)));
        if matches!(message.says, Some(tells::Says::Welcome(_))) {
            worker.welcome(connection);
            return self.soon(BEAT_MS, Event::Beat(id, connection));
        }
        if let Some((deployments, open)) = worker.told(message) {
            self.soon(60, Event::Open(id, deployments, Box::new(open)));
        }
        self.wake_slots(id);
    }

    /// A process hears of the end of a connection, or gives it up.
    fn ended(&mut self, connection: ConnectionId, side: Side, why: &str) {
        let Some(of) = self.network.get(connection) else { return };
        let (kind, here) = (of.kind, of.process(side));
        self.end_other(connection, side);
        let name = self.machine(here).map(|machine| machine.name.clone()).unwrap_or_default();
        self.world.note(&format!("{name}: connection {}: {why}", connection.0));
        match (kind, side) {
            (Kind::Exchange, _) => {
                let peer = self.workers.get_mut(&here).and_then(|worker| worker.peers.remove(&connection));
                peer.into_iter().for_each(|(peer, number)| peer.broke(number, why));
            }
            (Kind::Attend, Side::Called) => {
                self.coordinators.get_mut(&here).into_iter().for_each(|c| c.gone(connection, why));
                self.wake_masters(here);
            }
            (Kind::Attend, Side::Caller) => {
                if let Some(worker) = self.workers.get_mut(&here).filter(|w| w.attending == Some(connection)) {
                    worker.dismissed();
                    self.soon(500, Event::Attend(here));
                }
            }
        }
        self.network.forget();
        self.wake_slots(here);
    }

    /// Whether a process gives up a connection through which nothing comes.
    fn silence(&mut self, connection: ConnectionId, side: Side) {
        let now = self.world.now_ms();
        let Some(of) = self.network.get(connection).filter(|of| of.is_open(side)) else { return };
        let (kind, here, there, heard) = (of.kind, of.process(side), of.process(side.other()), of.heard_ms(side));
        if (kind, side) == (Kind::Attend, Side::Called) {
            // Workers say that they are there.
            let longest = i64::try_from(SILENCE.as_millis()).unwrap_or(i64::MAX);
            if now - heard >= longest {
                return self.ended(connection, side, "it said nothing for long");
            }
            return self.after(heard + longest - now, Event::Silence(connection, side));
        }
        // The others are asked by the transport, which answers while the process there runs and can be reached.
        let parted = self.host(here).zip(self.host(there)).and_then(|(a, b)| self.network.parted(a, b, now));
        let stopped = self.stopped.get(&there).is_some_and(|until| *until > now);
        if parted.is_some() || stopped {
            return self.ended(connection, side, "it did not answer");
        }
    }

    /// Whoever waits for a process now, or can't reach it, will notice.
    fn await_silence(&mut self, connection: ConnectionId) {
        let Some(of) = self.network.get(connection) else { return };
        match of.kind {
            Kind::Exchange => {
                for side in [Side::Caller, Side::Called] {
                    let after = self.draw(3_000, 6_000);
                    self.after(after, Event::Silence(connection, side));
                }
            }
            Kind::Attend => {
                let after = self.draw(5_000, 10_000);
                self.after(after, Event::Silence(connection, Side::Caller));
            }
        }
    }

    // Workers.

    fn attend(&mut self, id: ProcessId) {
        let now = self.world.now_ms();
        let Some(worker) = self.workers.get(&id).filter(|worker| worker.attending.is_none()) else { return };
        let hello = worker.hello();
        let reached = self.current.filter(|to| {
            let hosts = self.host(id).zip(self.host(*to));
            hosts.is_some_and(|(a, b)| self.network.parted(a, b, now).is_none())
        });
        let Some(to) = reached else {
            worker.alone();
            return self.soon(2_000, Event::Attend(id));
        };
        let connection = self.network.connect(Kind::Attend, id, to, now);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.attending = Some(connection);
        }
        self.send(connection, Side::Called, Packet::Message(hello.encode_to_vec()), 0);
        let longest = i64::try_from(SILENCE.as_millis()).unwrap_or(i64::MAX);
        self.after(longest, Event::Silence(connection, Side::Called));
        if self.stopped.contains_key(&to) {
            self.await_silence(connection);
        }
    }

    fn beat(&mut self, id: ProcessId, connection: ConnectionId) {
        let Some(worker) = self.workers.get(&id).filter(|worker| worker.attending == Some(connection)) else { return };
        worker.beat(connection);
        self.after(BEAT_MS, Event::Beat(id, connection));
    }

    fn dial(&mut self, id: ProcessId, dial: Dial) {
        let Dial { peer, connection: number, address } = dial;
        let now = self.world.now_ms();
        let Some(worker) = self.workers.get(&id) else { return };
        let (host, name) = (worker.host, worker.machine.name.clone());
        let called = self.workers.iter().find(|(_, worker)| worker.machine.name == address);
        let called = called.map(|(called, worker)| (*called, worker.host));
        let reached = called
            .filter(|(called, at)| self.network.parted(host, *at, now).is_none() && !self.stopped.contains_key(called));
        let Some((called, _)) = reached else {
            self.world.note(&format!("{name} can't connect to {address}"));
            return peer.broke(number, "it does not answer");
        };
        let connection = self.network.connect(Kind::Exchange, id, called, now);
        self.world.note(&format!("{name} connects to {address}: connection {}", connection.0));
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.peers.insert(connection, (peer, number));
        }
        if let Some(worker) = self.workers.get_mut(&called) {
            worker.connected(connection, &name);
        }
        self.afterwards(called);
    }

    fn step_slot(&mut self, id: ProcessId, key: u64, at: i64) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.next_step(key).is_none_or(|next| *next != at) {
            return;
        }
        let after = worker.step(key);
        let machine = worker.machine.clone();
        let (now, waited) = (self.world.now_ms(), machine.waited_ms());
        let next = match after {
            After::Again => {
                self.world.note(&format!("{} slot {key}", machine.name));
                self.wake_slots(id);
                now + self.draw(0, 2)
            }
            After::Wait(until) => {
                let latest = now + LONGEST_SLEEP_MS;
                until.map_or(latest, |until| machine.true_ms(until)).clamp(now + 1, latest)
            }
            After::Over => {
                self.world.note(&format!("{} slot {key} is over", machine.name));
                return self.wake_slots(id);
            }
        };
        self.schedule_slot(id, key, next + waited);
    }

    fn schedule_slot(&mut self, id: ProcessId, key: u64, at: i64) {
        let next = self.workers.get_mut(&id).and_then(|worker| worker.next_step(key));
        if let Some(next) = next {
            *next = at;
            self.after(at - self.world.now_ms(), Event::StepSlot(id, key, at));
        }
    }

    /// Something happened at a worker: its slots look.
    fn wake_slots(&mut self, id: ProcessId) {
        let now = self.world.now_ms();
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let asleep: Vec<u64> = worker.stepped().filter(|(_, next)| **next > now + 3).map(|(key, _)| key).collect();
        for key in asleep {
            let at = now + self.draw(0, 3);
            self.schedule_slot(id, key, at);
        }
    }

    // Coordinators.

    /// Something was said to the masters of a coordinator's jobs, maybe.
    fn wake_masters(&mut self, id: ProcessId) {
        let (now, delay) = (self.world.now_ms(), self.draw(0, 4));
        let Some(coordinator) = self.coordinators.get_mut(&id) else { return };
        // While they wait for the store, they do nothing else.
        let at = (now + delay).max(coordinator.busy_ms);
        if coordinator.next_ms > at {
            coordinator.next_ms = at;
            self.after(at - now, Event::StepMasters(id, at));
        }
    }

    fn step_masters(&mut self, id: ProcessId, at: i64) {
        let hears = self.draw(1, 5);
        let Some(coordinator) = self.coordinators.get_mut(&id).filter(|coordinator| coordinator.next_ms == at) else {
            return;
        };
        let (due, heard_all) = coordinator.step(hears);
        let machine = coordinator.machine.clone();
        let (now, waited) = (self.world.now_ms(), machine.waited_ms());
        let latest = now + LONGEST_SLEEP_MS;
        let next = match (due, heard_all) {
            (_, false) => now + 1,
            (Some(due), true) => machine.true_ms(due).clamp(now + 1, latest),
            (None, true) => latest,
        };
        let next = next + waited;
        coordinator.next_ms = next;
        self.after(next - now, Event::StepMasters(id, next));
        self.look_for_the_end(id);
    }

    fn look_for_the_end(&mut self, id: ProcessId) {
        let coordinator = self.coordinators.get(&id).filter(|of| of.machine.is_alive() && self.current == Some(id));
        let Some((state, reason)) = coordinator.and_then(CoordinatorProcess::ended) else { return };
        if self.over_ms.is_some() {
            return;
        }
        self.world.note(&format!("the job is {state}"));
        self.over_ms = Some(self.world.now_ms());
        self.world.set_faults(false);
        if state != "FINISHED" {
            self.failed = Some(format!("the job is {state}: {}", reason.unwrap_or_default()));
        }
    }

    // Faults.

    fn fault(&mut self) {
        if self.over_ms.is_some() || self.world.elapsed_ms() >= self.plan.faults_ms {
            return;
        }
        let (pause, kind) = (self.plan.pause_ms, self.draw(0, 100));
        self.soon(pause, Event::Fault);
        match kind {
            0..20 => self.kill_worker(),
            20..30 => self.kill_coordinator(),
            30..38 => self.stop_worker(),
            38..44 => self.stop_coordinator(),
            44..54 => self.replace_coordinator(),
            54..72 => self.break_connection(),
            72..86 => self.part_machines(),
            86..91 => self.slow_network(),
            _ => self.set_clock(),
        }
    }

    fn calm(&mut self) {
        self.world.note("nothing goes wrong any more");
        self.world.set_faults(false);
    }

    fn any_worker(&self) -> Option<ProcessId> {
        let all: Vec<ProcessId> = self.workers.keys().copied().collect();
        self.world.dice().pick(&all).copied()
    }

    fn kill_worker(&mut self) {
        if let Some(id) = self.any_worker() {
            self.world.count("worker_killed");
            self.bury(id);
        }
    }

    fn kill_coordinator(&mut self) {
        if let Some(id) = self.current {
            self.world.count("coordinator_killed");
            self.bury(id);
        }
    }

    fn stop(&mut self, id: ProcessId, ms: i64) {
        let name = self.machine(id).map(|machine| machine.name.clone()).unwrap_or_default();
        self.world.note(&format!("{name} is stopped for {ms} ms"));
        self.stopped.insert(id, self.world.now_ms() + ms);
        for (connection, _) in self.network.of(id) {
            self.await_silence(connection);
        }
    }

    fn stop_worker(&mut self) {
        if let Some(id) = self.any_worker() {
            self.world.count("worker_stopped");
            let ms = self.draw(50, 20_000);
            self.stop(id, ms);
        }
    }

    fn stop_coordinator(&mut self) {
        if let Some(id) = self.current {
            self.world.count("coordinator_stopped");
            let ms = self.draw(50, 12_000);
            self.stop(id, ms);
        }
    }

    /// The machine of the coordinator stands still and can't be reached, so another one is started; then it goes on.
    fn replace_coordinator(&mut self) {
        let Some(id) = self.current.take() else { return };
        self.world.count("coordinator_replaced");
        let ms = self.draw(1_000, 20_000);
        self.stop(id, ms);
        let until = self.world.now_ms() + ms;
        let here = self.host(id).unwrap_or_default();
        let others: Vec<u32> = self.workers.values().map(|worker| worker.host).collect();
        others.into_iter().for_each(|host| self.network.part(here, host, until));
        self.soon(3_000, Event::StartCoordinator);
        // Whatever has started the other one sees to it that this one ends, some time.
        let lives = ms + self.draw(0, 5_000);
        self.after(lives, Event::End(id));
    }

    fn break_connection(&mut self) {
        let all = self.network.all();
        let Some(connection) = self.world.dice().pick(&all).copied() else { return };
        self.world.count("connection_broken");
        self.world.note(&format!("connection {} breaks", connection.0));
        let noticed = [self.draw(0, 4_000), self.draw(0, 4_000)];
        let Some(of) = self.network.get(connection) else { return };
        of.break_apart();
        for (side, after) in [Side::Caller, Side::Called].into_iter().zip(noticed) {
            let Some(of) = self.network.get(connection) else { return };
            of.end_arrives(side);
            self.after(after, Event::Arrive(connection, side));
        }
    }

    fn part_machines(&mut self) {
        let mut hosts: Vec<u32> = self.workers.values().map(|worker| worker.host).collect();
        hosts.extend(self.current.and_then(|id| self.host(id)));
        let (a, b) = {
            let mut dice = self.world.dice();
            (dice.pick(&hosts).copied(), dice.pick(&hosts).copied())
        };
        let Some((a, b)) = a.zip(b).filter(|(a, b)| a != b) else { return };
        self.world.count("partition");
        let ms = self.draw(50, 15_000);
        self.world.note(&format!("machines {a} and {b} can't reach each other for {ms} ms"));
        self.network.part(a, b, self.world.now_ms() + ms);
        for connection in self.network.all() {
            self.await_silence(connection);
        }
    }

    fn slow_network(&mut self) {
        self.world.count("network_slow");
        self.slow_until_ms = self.world.now_ms() + self.draw(200, 4_000);
    }

    fn set_clock(&mut self) {
        let all: Vec<ProcessId> = self.workers.keys().chain(self.coordinators.keys()).copied().collect();
        let Some(id) = self.world.dice().pick(&all).copied() else { return };
        let longest = if self.draw(0, 3) == 0 { 3_600_000 } else { 5_000 };
        let by = self.draw(-longest, longest);
        if let Some(machine) = self.machine(id) {
            self.world.count("clock_set");
            self.world.note(&format!("the clock of {} is set by {by} ms", machine.name));
            machine.set_clock(by);
        }
    }
}
