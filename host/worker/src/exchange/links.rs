//! What an execution has with another worker: the channels between slots here and slots there. Elements of queues become
//! frames, and frames elements of queues; credit goes the other way.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::buffer::Buffer;
use tidemill_core::time::Watermark;
use tidemill_core::{Error, Result};
use tidemill_dataflow::element::Element;
use tidemill_dataflow::exchange::queue::{QueueReceiver, QueueSender};
use tidemill_dataflow::slice::Channel;
use tidemill_rpc::barrier;
use tidemill_rpc::frames::{Inbound, Outbound};
use tidemill_rpc::proto::{Frame, Rows, frame};
use tidemill_rpc::rows::{self, RowsWriter, WireSchema, Written};

use super::lock;

/// How many frames of a channel go before another channel's turn.
const TURN: usize = 8;

/// See the module.
pub struct Links {
    execution: u64,
    outs: Mutex<Vec<Out>>,
    ins: Mutex<BTreeMap<Channel, In>>,
    trouble: Box<dyn Fn(Error) + Send + Sync>,
    /// Whether anything went through a connection.
    used: AtomicBool,
}

/// The ends of an execution's channels with one other worker.
#[derive(Default)]
pub struct Ends {
    outs: Vec<Out>,
    ins: BTreeMap<Channel, In>,
}

impl Ends {
    /// Adds what a slot here sends, of which so many bytes may be under way.
    pub fn send(&mut self, channel: Channel, queue: QueueReceiver, schema: WireSchema, bound: u64) {
        self.outs.push(Out { channel, queue, writer: RowsWriter::new(schema), bound, under_way: 0 });
    }

    /// Adds what a slot here is sent.
    pub fn receive(&mut self, channel: Channel, queue: QueueSender, schema: WireSchema, bound: u64) {
        self.ins.insert(channel, In { queue, schema, bound, received: 0, granted: 0 });
    }
}

/// What a slot here sends.
struct Out {
    channel: Channel,
    queue: QueueReceiver,
    writer: RowsWriter,
    bound: u64,
    /// Bytes that were sent and for which no credit came back.
    under_way: u64,
}

/// What a slot here is sent.
struct In {
    queue: QueueSender,
    schema: WireSchema,
    bound: u64,
    received: u64,
    granted: u64,
}

impl Links {
    /// Of these ends. `trouble` is told what is wrong with what is sent.
    pub fn new(execution: u64, ends: Ends, trouble: impl Fn(Error) + Send + Sync + 'static) -> Self {
        let Ends { outs, ins } = ends;
        let (outs, ins, used) = (Mutex::new(outs), Mutex::new(ins), AtomicBool::new(false));
        Self { execution, outs, ins, trouble: Box::new(trouble), used }
    }

    /// Whether anything went through a connection.
    pub fn were_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Something is wrong with them.
    pub fn trouble(&self, error: Error) {
        (self.trouble)(error);
    }

    /// Adds what can be sent now.
    pub fn due(&self, frames: &mut Vec<Outbound>) {
        let before = frames.len();
        let frame = |channel: Channel, content, rows| Outbound {
            frame: Frame {
                execution: self.execution,
                edge: channel.edge,
                sender: channel.sender,
                receiver: channel.receiver,
                content: Some(content),
            },
            rows,
        };
        for (channel, of) in lock(&self.ins).iter_mut() {
            if let Some(credit) = of.credit() {
                frames.push(frame(*channel, frame::Content::Credit(credit), Vec::new()));
            }
        }
        for out in lock(&self.outs).iter_mut() {
            for _ in 0..TURN {
                match out.next() {
                    Ok(Some((content, rows))) => frames.push(frame(out.channel, content, rows)),
                    Ok(None) => break,
                    Err(error) => {
                        (self.trouble)(error);
                        break;
                    }
                }
            }
        }
        if frames.len() > before {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Takes what was sent; whether there may be something to send now.
    pub fn received(&self, inbound: Inbound) -> Result<bool> {
        let Inbound { frame, rows } = inbound;
        self.used.store(true, Ordering::Relaxed);
        let channel = Channel { edge: frame.edge, sender: frame.sender, receiver: frame.receiver };
        let unknown = || Error::internal(format!("another worker names {channel:?}, which is not here"));
        if let Some(frame::Content::Credit(bytes)) = frame.content {
            let mut outs = lock(&self.outs);
            let out = outs.iter_mut().find(|out| out.channel == channel).ok_or_else(unknown)?;
            out.under_way = out.under_way.saturating_sub(bytes);
            return Ok(true);
        }
        let mut ins = lock(&self.ins);
        let of = ins.get_mut(&channel).ok_or_else(unknown)?;
        let (element, bytes) = match frame.content {
            Some(frame::Content::Rows(of_rows)) => {
                (Element::Batch(rows::read(&of.schema, of_rows.timed, &of_rows.packed, &rows)?), of_rows.bytes)
            }
            Some(frame::Content::Watermark(ms)) => (Element::Watermark(Watermark(ms)), 0),
            Some(frame::Content::Idle(idle)) => (Element::Idle(idle), 0),
            Some(frame::Content::Barrier(barrier)) => (Element::Barrier(barrier.into()), 0),
            Some(frame::Content::End(_)) => (Element::End, 0),
            Some(frame::Content::Credit(_) | frame::Content::Worker(_) | frame::Content::Ping(_)) | None => {
                return Err(unknown());
            }
        };
        of.received = of.received.saturating_add(bytes);
        of.queue.push_counted(element, usize::try_from(bytes).unwrap_or(usize::MAX));
        Ok(of.owes() >= of.bound.div_ceil(4))
    }
}

impl Out {
    /// The next that may be sent, with its rows.
    fn next(&mut self) -> Result<Option<(frame::Content, Vec<Buffer>)>> {
        let out_of_credit = self.under_way >= self.bound;
        let held = out_of_credit
            && self.queue.look(|waiting| {
                let rows = matches!(waiting.front(), Some((Element::Batch(_), _)));
                rows && !waiting.iter().any(|(element, _)| matches!(element, Element::Barrier(_)))
            });
        if held {
            return Ok(None);
        }
        let Some(element) = self.queue.pop() else { return Ok(None) };
        let content = match element {
            Element::Batch(batch) => {
                let bytes = batch.bytes().max(1) as u64;
                self.under_way = self.under_way.saturating_add(bytes);
                let Written { packed, pieces } = self.writer.write(&batch)?;
                let rows = Rows { timed: batch.timestamps().is_some(), bytes, packed };
                return Ok(Some((frame::Content::Rows(rows), pieces)));
            }
            Element::Watermark(watermark) => frame::Content::Watermark(watermark.0),
            Element::Idle(idle) => frame::Content::Idle(idle),
            Element::Barrier(of) => frame::Content::Barrier(barrier(of)),
            Element::End => frame::Content::End(true),
        };
        Ok(Some((content, Vec::new())))
    }
}

impl In {
    /// What the slot took and for which no credit was given back.
    fn owes(&self) -> u64 {
        (self.received - self.granted).saturating_sub(self.queue.bytes() as u64)
    }

    /// Credit to give back, if it is worth a message.
    fn credit(&mut self) -> Option<u64> {
        let owes = self.owes();
        if owes < self.bound.div_ceil(4) {
            return None;
        }
        self.granted += owes;
        Some(owes)
    }
}
