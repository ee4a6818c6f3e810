//! What goes through connections, and what becomes of them.

use bytes::{Buf as _, Bytes};
use prost::Message;
use tidemill_coordinator::SILENCE;
use tidemill_rpc::frames::{Inbound, LENGTHS_BYTES, Lengths, Outgoing};
use tidemill_rpc::proto::{FromWorker, ToWorker, from_worker as says, to_worker as tells};
use tidemill_worker::exchange::{Connection, Peer};

use super::event::Event;
use super::{BEAT_MS, Simulation, UNDER_WAY};
use crate::network::{ConnectionId, Kind, Packet, ProcessId, Side};

/// A frame out of its bytes.
fn inbound(bytes: &[u8]) -> tidemill_core::Result<Inbound> {
    let mut rest = Bytes::copy_from_slice(bytes);
    let lengths = Lengths::read(rest.split_to(LENGTHS_BYTES.min(rest.len())))?;
    let message = rest.split_to(lengths.message.min(rest.len()));
    Inbound::decode(message, rest)
}

impl Simulation {
    pub(super) fn send(&mut self, connection: ConnectionId, to: Side, packet: Packet, waited: i64) {
        let sends = self.network.get(connection).is_some_and(|connection| connection.send(to, packet));
        if sends {
            let delay = self.delay();
            self.after(waited + delay, Event::Arrive(connection, to));
        }
    }

    /// Sends what a worker has for another one, while the connection takes it.
    pub(super) fn pump(
        &mut self,
        process: ProcessId,
        connection: ConnectionId,
        peer: &Peer,
        number: Connection,
        waited: i64,
    ) {
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
                let mut outgoing = Outgoing::default();
                if let Err(error) = outgoing.put(frame) {
                    return self.failed = Some(error.to_string());
                }
                let bytes = outgoing.copy_to_bytes(outgoing.remaining());
                self.send(connection, side.other(), Packet::Message(bytes.into()), waited);
            }
        }
    }

    pub(super) fn delay(&self) -> i64 {
        if self.slow_until_ms > self.world.now_ms() {
            return self.draw(0, 1_500);
        }
        if self.world.goes_wrong("delay", 20) { self.draw(5, 400) } else { self.draw(0, 4) }
    }

    /// A process ends its side of a connection: the other is to hear of that, perhaps not of what was said before.
    pub(super) fn end_other(&mut self, connection: ConnectionId, side: Side) {
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

    pub(super) fn arrive(&mut self, connection: ConnectionId, side: Side) {
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
            (Some(Packet::Message(bytes)), Kind::Attend, Side::Called) => self.hear_worker(here, connection, &bytes),
            (Some(Packet::Message(bytes)), Kind::Attend, Side::Caller) => self.tell_worker(here, connection, &bytes),
        }
        // There may be room for more now.
        if kind == Kind::Exchange
            && let Some((peer, number)) =
                self.workers.get(&there).and_then(|worker| worker.peers.get(&connection)).cloned()
        {
            self.pump(there, connection, &peer, number, 0);
        }
    }

    pub(super) fn frame(&mut self, id: ProcessId, connection: ConnectionId, bytes: &[u8]) {
        let peer = self.workers.get(&id).and_then(|worker| worker.peers.get(&connection)).cloned();
        match inbound(bytes) {
            Ok(inbound) => peer.into_iter().for_each(|(peer, number)| peer.received(number, inbound.clone())),
            Err(error) => self.failed = Some(format!("a frame can't be read: {error}")),
        }
        self.wake_slots(id);
    }

    pub(super) fn hear_worker(&mut self, id: ProcessId, connection: ConnectionId, bytes: &[u8]) {
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

    pub(super) fn tell_worker(&mut self, id: ProcessId, connection: ConnectionId, bytes: &[u8]) {
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
        if let Some((deployments, opening)) = worker.told(message) {
            self.soon(60, Event::Open(id, deployments, opening));
        }
        self.wake_slots(id);
    }

    /// A process hears of the end of a connection, or gives it up.
    pub(super) fn ended(&mut self, connection: ConnectionId, side: Side, why: &str) {
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
    pub(super) fn silence(&mut self, connection: ConnectionId, side: Side) {
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
            self.ended(connection, side, "it did not answer");
        }
    }

    /// Whoever waits for a process now, or can't reach it, will notice.
    pub(super) fn await_silence(&mut self, connection: ConnectionId) {
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
}
