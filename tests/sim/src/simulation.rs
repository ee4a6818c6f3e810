//! One seed, one cluster with its jobs: their events, one after the other, until the jobs are over and everything was checked.
//!
//! Invariant: what happens follows from the seed alone. There is one thread, one source of chance, and no look at the
//! real time.

mod event;
mod plan;

mod connections;
mod faults;
mod masters;
mod processes;
mod users;
mod workers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use crate::coordinator::CoordinatorProcess;
use crate::network::{Network, ProcessId};
use crate::outside::{Outside, Verdict};
use crate::sabotage::Sabotage;
use crate::store::Stores;
use crate::worker::WorkerProcess;
use crate::world::World;
use event::{Event, Scheduled};
use plan::{Plan, Planned};
use users::User;

/// After the faults have ended, jobs that take longer than this are stuck, in milliseconds.
const PATIENCE_MS: i64 = 300_000;
/// How long the cluster goes on after its jobs are over: what was delayed may still come.
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
    /// Why a job did not come to its end, if one did not.
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
        verdict: if stuck.is_none() { simulation.check() } else { Verdict::default() },
        stuck,
        faults: world.injected(),
        digest: world.digest(),
        last_events: world.last_events(),
    }
}

struct Simulation {
    world: Arc<World>,
    plan: Plan,
    stores: Arc<Stores>,
    jobs: Arc<Vec<Arc<Outside>>>,
    users: Vec<User>,
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
    /// When all jobs were over.
    over_ms: Option<i64>,
    failed: Option<String>,
}

impl Simulation {
    fn new(world: &Arc<World>) -> Self {
        let plan = Plan::draw(world);
        world.note(&format!("{:?} on {:?}", plan.jobs, plan.workers));
        world.set_store_faults(plan.store_faults);
        let (network, queue, workers, coordinators, stopped) = Default::default();
        let outside = |of: &Planned| Outside::new(of.input, of.held_back, of.job.kind.sinks());
        let jobs = Arc::new(plan.jobs.iter().map(outside).collect());
        let users = plan.jobs.iter().enumerate().map(|(job, planned)| User::new(job, planned)).collect();
        let mut this = Self {
            world: world.clone(),
            plan,
            stores: Stores::new(world),
            jobs,
            users,
            network,
            queue,
            scheduled: 0,
            processes: 0,
            workers,
            coordinators,
            current: None,
            stopped,
            slow_until_ms: 0,
            over_ms: None,
            failed: None,
        };
        this.after(0, Event::StartCoordinator);
        for host in (1..).take(this.plan.workers.len()) {
            this.soon(100, Event::StartWorker(host));
        }
        for user in 0..this.users.len() {
            this.soon(if user == 0 { 20 } else { 6_000 }, Event::User(user));
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
                let users: Vec<String> = self.users.iter().map(User::state).collect();
                let state = self.coordinators.values().map(CoordinatorProcess::state).collect::<Vec<_>>().join("; ");
                let rows: usize = self.jobs.iter().map(|outside| outside.visible()).sum();
                return Some(format!("it is not over: {}; {state}; {rows} rows are written", users.join(", ")));
            }
            self.happen(event);
            if self.failed.is_some() {
                break;
            }
        }
        match (self.over_ms, self.failed.take()) {
            (_, Some(failed)) => Some(failed),
            (None, None) => Some("nothing is left to happen".to_owned()),
            (Some(_), None) => self.taken(),
        }
    }

    /// What is wrong with what was written.
    fn check(&self) -> Verdict {
        let mut verdict = Verdict::default();
        for (outside, user) in self.jobs.iter().zip(&self.users) {
            verdict += outside.check(!user.cancelled());
        }
        verdict
    }

    /// What is still taken though all jobs are over, if anything is.
    fn taken(&self) -> Option<String> {
        let coordinators = self.coordinators.values().map(CoordinatorProcess::taken);
        let taken: String = coordinators.chain(self.workers.values().map(WorkerProcess::taken)).collect();
        (!taken.is_empty()).then(|| format!("all jobs are over, and slots are taken: {taken}"))
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
            Event::Open(_, deployments, opening) => deployments.open(*opening),
            Event::StepSlot(id, key, at) => self.step_slot(id, key, at),
            Event::Write(id, key) => self.workers.get_mut(&id).into_iter().for_each(|worker| worker.write(key)),
            Event::Dial(id, dial) => self.dial(id, dial),
            Event::User(user) => self.user(user),
            Event::Fault => self.fault(),
            Event::Calm => self.calm(),
            Event::End(id) => self.bury(id),
        }
        process.into_iter().for_each(|process| self.afterwards(process));
    }

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
}
