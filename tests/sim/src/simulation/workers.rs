//! What workers do.

use prost::Message;
use tidemill_coordinator::SILENCE;

use super::event::Event;
use super::{BEAT_MS, LONGEST_SLEEP_MS, Simulation};
use crate::network::{ConnectionId, Kind, Packet, ProcessId, Side};
use crate::worker::{After, Dial};

impl Simulation {
    pub(super) fn attend(&mut self, id: ProcessId) {
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

    pub(super) fn beat(&mut self, id: ProcessId, connection: ConnectionId) {
        let Some(worker) = self.workers.get(&id).filter(|worker| worker.attending == Some(connection)) else { return };
        worker.beat(connection);
        self.after(BEAT_MS, Event::Beat(id, connection));
    }

    pub(super) fn dial(&mut self, id: ProcessId, dial: Dial) {
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

    pub(super) fn step_slot(&mut self, id: ProcessId, key: u64, at: i64) {
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

    pub(super) fn schedule_slot(&mut self, id: ProcessId, key: u64, at: i64) {
        let next = self.workers.get_mut(&id).and_then(|worker| worker.next_step(key));
        if let Some(next) = next {
            *next = at;
            self.after(at - self.world.now_ms(), Event::StepSlot(id, key, at));
        }
    }

    /// Something happened at a worker: its slots look.
    pub(super) fn wake_slots(&mut self, id: ProcessId) {
        let now = self.world.now_ms();
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let asleep: Vec<u64> = worker.stepped().filter(|(_, next)| **next > now + 3).map(|(key, _)| key).collect();
        for key in asleep {
            let at = now + self.draw(0, 3);
            self.schedule_slot(id, key, at);
        }
    }
}
