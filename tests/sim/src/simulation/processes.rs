//! Processes: how they start and end, and what follows when one has done something.

use std::sync::Arc;

use prost::Message;
use tidemill_coordinator::ToldWorker;

use super::Simulation;
use super::event::Event;
use super::plan::small;
use crate::connectors::Simulated;
use crate::coordinator::CoordinatorProcess;
use crate::job;
use crate::network::{Packet, ProcessId, Side};
use crate::worker::WorkerProcess;
use crate::world::Machine;

impl Simulation {
    pub(super) fn new_process(&mut self, name: &str) -> (ProcessId, Arc<Machine>) {
        self.processes += 1;
        let ahead_ms = self.draw(-2_000, 2_000);
        let name = format!("{name}-{:03}", self.processes);
        self.world.note(&format!("{name} starts"));
        (ProcessId(self.processes), Machine::new(&self.world, name, ahead_ms))
    }

    pub(super) fn connector(&self, machine: &Arc<Machine>) -> Simulated {
        Simulated { machine: machine.clone(), jobs: self.jobs.clone() }
    }

    pub(super) fn start_coordinator(&mut self) {
        if self.current.is_some() {
            return;
        }
        let (id, machine) = self.new_process("coordinator");
        let environment = job::environment(&machine, &self.stores, self.connector(&machine));
        // Each on a machine of its own, which the one before may still be on its own.
        let started = CoordinatorProcess::start(machine.clone(), 1_000 + small(self.processes as i64), environment);
        match started {
            Ok(coordinator) if machine.is_alive() => {
                self.coordinators.insert(id, coordinator);
                self.current = Some(id);
                self.afterwards(id);
                self.wake_masters(id);
            }
            Ok(_) => self.soon(2_000, Event::StartCoordinator),
            Err(error) => {
                self.world.note(&format!("{} can't start: {}", machine.name, error.message()));
                self.soon(2_000, Event::StartCoordinator);
            }
        }
    }

    pub(super) fn start_worker(&mut self, host: u32) {
        if self.workers.values().any(|worker| worker.host == host) {
            return;
        }
        let slots = self.plan.workers.get(host as usize - 1).copied().unwrap_or(1);
        let (id, machine) = self.new_process("worker");
        let environment = job::environment(&machine, &self.stores, self.connector(&machine));
        self.workers.insert(id, WorkerProcess::new(machine, host, slots, environment));
        self.soon(50, Event::Attend(id));
    }

    pub(super) fn host(&self, process: ProcessId) -> Option<u32> {
        let worker = self.workers.get(&process).map(|worker| worker.host);
        worker.or_else(|| self.coordinators.get(&process).map(|coordinator| coordinator.host))
    }

    pub(super) fn machine(&self, process: ProcessId) -> Option<&Arc<Machine>> {
        let worker = self.workers.get(&process).map(|worker| &worker.machine);
        worker.or_else(|| self.coordinators.get(&process).map(|coordinator| &coordinator.machine))
    }

    /// A process is no more, and what it had of connections ends.
    pub(super) fn bury(&mut self, process: ProcessId) {
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
    pub(super) fn afterwards(&mut self, process: ProcessId) {
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

    pub(super) fn after_worker(&mut self, process: ProcessId, waited: i64) {
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
}
