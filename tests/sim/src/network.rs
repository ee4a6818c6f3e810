//! The network: connections between processes, which keep the order of what is sent through one of them and of nothing
//! else. They break, of which either end hears at a time of its own, and partitions hold up what is sent.

use std::collections::{BTreeMap, VecDeque};

/// Names a process for good; one that is started again is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u64);

/// Names a connection for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Of who connected.
    Caller = 0,
    /// Of who was connected to.
    Called = 1,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Caller => Self::Called,
            Self::Called => Self::Caller,
        }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A worker attends at a coordinator.
    Attend,
    /// Two workers exchange rows.
    Exchange,
}

/// What goes through a connection.
#[derive(Debug)]
pub enum Packet {
    /// A message, as its bytes.
    Message(Vec<u8>),
    /// The end of it.
    End,
}

/// A connection.
pub struct Connection {
    /// What it is for.
    pub kind: Kind,
    ends: [End; 2],
    /// Whether what is sent arrives.
    whole: bool,
}

struct End {
    process: ProcessId,
    /// Whether the process there believes that it stands.
    open: bool,
    /// What is on its way there.
    arriving: VecDeque<Packet>,
    /// When something from there arrived last.
    heard_ms: i64,
}

impl Connection {
    /// The process at an end.
    pub fn process(&self, side: Side) -> ProcessId {
        self.end(side).process
    }

    /// The end at which a process is.
    pub fn side(&self, process: ProcessId) -> Option<Side> {
        [Side::Caller, Side::Called].into_iter().find(|side| self.process(*side) == process)
    }

    /// Whether the process at an end believes that it stands.
    pub fn is_open(&self, side: Side) -> bool {
        self.end(side).open
    }

    /// How much is on its way to an end.
    pub fn arriving(&self, side: Side) -> usize {
        self.end(side).arriving.len()
    }

    /// When something arrived at an end for the last time.
    pub fn heard_ms(&self, side: Side) -> i64 {
        self.end(side).heard_ms
    }

    /// Puts something on its way to an end. Whether it may arrive.
    pub fn send(&mut self, to: Side, packet: Packet) -> bool {
        let sends = self.whole && self.is_open(to.other());
        if sends {
            self.end_mut(to).arriving.push_back(packet);
        }
        sends
    }

    /// What arrives next at an end, if there is anything and the end still stands.
    pub fn arrive(&mut self, side: Side, now_ms: i64) -> Option<Packet> {
        let end = self.end_mut(side);
        let packet = end.arriving.pop_front().filter(|_| end.open)?;
        end.heard_ms = now_ms;
        Some(packet)
    }

    /// The process at an end closes it, or is gone. Whether the other end is to hear of that.
    pub fn close(&mut self, side: Side) -> bool {
        self.end_mut(side).open = false;
        self.end_mut(side).arriving.clear();
        self.is_open(side.other())
    }

    /// What is on its way to an end is lost.
    pub fn lose(&mut self, to: Side) {
        self.end_mut(to).arriving.clear();
    }

    /// It breaks: nothing arrives any more.
    pub fn break_apart(&mut self) {
        self.whole = false;
        self.lose(Side::Caller);
        self.lose(Side::Called);
    }

    /// The end of it is on its way to an end, whatever became of it.
    pub fn end_arrives(&mut self, to: Side) {
        self.end_mut(to).arriving.push_back(Packet::End);
    }

    fn end(&self, side: Side) -> &End {
        let [caller, called] = &self.ends;
        match side {
            Side::Caller => caller,
            Side::Called => called,
        }
    }

    fn end_mut(&mut self, side: Side) -> &mut End {
        let [caller, called] = &mut self.ends;
        match side {
            Side::Caller => caller,
            Side::Called => called,
        }
    }
}

/// All connections, and which machines can't reach each other.
#[derive(Default)]
pub struct Network {
    connections: BTreeMap<ConnectionId, Connection>,
    next: u64,
    /// Pairs of machines, the smaller first, and until when.
    partitions: BTreeMap<(u32, u32), i64>,
}

impl Network {
    /// A new connection.
    pub fn connect(&mut self, kind: Kind, caller: ProcessId, called: ProcessId, now_ms: i64) -> ConnectionId {
        let end = |process| End { process, open: true, arriving: VecDeque::new(), heard_ms: now_ms };
        self.next += 1;
        let id = ConnectionId(self.next);
        self.connections.insert(id, Connection { kind, ends: [end(caller), end(called)], whole: true });
        id
    }

    /// A connection, while any end stands.
    pub fn get(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(&id)
    }

    /// Those at which a process is, and at which end.
    pub fn of(&self, process: ProcessId) -> Vec<(ConnectionId, Side)> {
        self.connections.iter().filter_map(|(id, of)| Some((*id, of.side(process)?))).collect()
    }

    /// All.
    pub fn all(&self) -> Vec<ConnectionId> {
        self.connections.keys().copied().collect()
    }

    /// Forgets those that stand for nobody.
    pub fn forget(&mut self) {
        self.connections.retain(|_, of| of.is_open(Side::Caller) || of.is_open(Side::Called));
    }

    /// Two machines can't reach each other until then.
    pub fn part(&mut self, a: u32, b: u32, until_ms: i64) {
        self.partitions.insert((a.min(b), a.max(b)), until_ms);
    }

    /// Until when two machines can't reach each other, if they can't now.
    pub fn parted(&self, a: u32, b: u32, now_ms: i64) -> Option<i64> {
        self.partitions.get(&(a.min(b), a.max(b))).copied().filter(|until| *until > now_ms)
    }
}
