//! What is in flight on the channels to a subtask when a barrier overtakes it: taken from the queues, written to a file
//! of the checkpoint, and read again.
//!
//! Ends and idleness are not kept: whoever goes on from the checkpoint is told of them again by those that send.

use std::sync::Arc;

use tidemill_checkpoint::manifest::{ChannelState, InFlightState};
use tidemill_core::Result;
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::{InputIndex, Port};
use tidemill_core::snapshot::SnapshotFiles;
use tidemill_core::time::Watermark;
use tidemill_state::{InFlight, encode_in_flight};

use crate::element::Element;

/// A channel to a subtask: which input, and who sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelId {
    /// Which input.
    pub input: InputIndex,
    /// The uid of the sender's node.
    pub from: Arc<str>,
    /// By which port.
    pub port: Port,
    /// Which of its subtasks.
    pub sender: u32,
}

/// What a channel had brought that was not taken.
#[derive(Clone, Debug)]
pub struct ChannelContent {
    /// Which.
    pub channel: ChannelId,
    /// In order; at least one.
    pub elements: Vec<InFlight>,
}

impl ChannelContent {
    /// Of what stands before the barrier on a channel; `None`: nothing that is kept.
    pub fn of<'a>(channel: &ChannelId, elements: impl Iterator<Item = &'a Element>) -> Option<Self> {
        let kept = elements.filter_map(|element| match element {
            Element::Batch(batch) => Some(InFlight::Rows(batch.clone())),
            Element::Watermark(watermark) if *watermark < Watermark::MAX => Some(InFlight::Watermark(*watermark)),
            Element::Watermark(_) | Element::Idle(_) | Element::Barrier(_) | Element::End => None,
        });
        let elements: Vec<InFlight> = kept.collect();
        (!elements.is_empty()).then(|| Self { channel: channel.clone(), elements })
    }

    fn rows(&self) -> u64 {
        let rows = self.elements.iter().map(|element| match element {
            InFlight::Rows(batch) => batch.rows() as u64,
            InFlight::Watermark(_) => 0,
        });
        rows.sum()
    }
}

/// Writes what was in flight to a subtask. `None` of nothing.
pub fn write(contents: Vec<ChannelContent>, files: &dyn SnapshotFiles) -> Result<Option<InFlightState>> {
    if contents.is_empty() {
        return Ok(None);
    }
    Failpoint::InFlightDue.reach();
    let channels = contents.iter().map(|content| ChannelState {
        input: content.channel.input.0,
        from: content.channel.from.to_string(),
        port: content.channel.port.0,
        sender: content.channel.sender,
        rows: content.rows(),
    });
    let channels = channels.collect();
    let elements: Vec<Vec<InFlight>> = contents.into_iter().map(|content| content.elements).collect();
    let file = files.write("in-flight", encode_in_flight(&elements)?)?;
    Failpoint::InFlightWritten.reach();
    Ok(Some(InFlightState { file, channels }))
}
