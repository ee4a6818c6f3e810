//! What goes wrong.

use super::Simulation;
use super::event::Event;
use crate::network::{ProcessId, Side};

impl Simulation {
    pub(super) fn fault(&mut self) {
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

    pub(super) fn calm(&mut self) {
        self.world.note("nothing goes wrong any more");
        self.world.set_faults(false);
    }

    pub(super) fn any_worker(&self) -> Option<ProcessId> {
        let all: Vec<ProcessId> = self.workers.keys().copied().collect();
        self.world.dice().pick(&all).copied()
    }

    pub(super) fn kill_worker(&mut self) {
        if let Some(id) = self.any_worker() {
            self.world.count("worker_killed");
            self.bury(id);
        }
    }

    pub(super) fn kill_coordinator(&mut self) {
        if let Some(id) = self.current {
            self.world.count("coordinator_killed");
            self.bury(id);
        }
    }

    pub(super) fn stop(&mut self, id: ProcessId, ms: i64) {
        let name = self.machine(id).map(|machine| machine.name.clone()).unwrap_or_default();
        self.world.note(&format!("{name} is stopped for {ms} ms"));
        self.stopped.insert(id, self.world.now_ms() + ms);
        for (connection, _) in self.network.of(id) {
            self.await_silence(connection);
        }
    }

    pub(super) fn stop_worker(&mut self) {
        if let Some(id) = self.any_worker() {
            self.world.count("worker_stopped");
            let ms = self.draw(50, 20_000);
            self.stop(id, ms);
        }
    }

    pub(super) fn stop_coordinator(&mut self) {
        if let Some(id) = self.current {
            self.world.count("coordinator_stopped");
            let ms = self.draw(50, 12_000);
            self.stop(id, ms);
        }
    }

    /// The machine of the coordinator stands still and can't be reached, so another one is started; then it goes on.
    pub(super) fn replace_coordinator(&mut self) {
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

    pub(super) fn break_connection(&mut self) {
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

    pub(super) fn part_machines(&mut self) {
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

    pub(super) fn slow_network(&mut self) {
        self.world.count("network_slow");
        self.slow_until_ms = self.world.now_ms() + self.draw(200, 4_000);
    }

    pub(super) fn set_clock(&mut self) {
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
