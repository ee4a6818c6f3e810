//! What is in flight on the channels to a subtask when a barrier overtakes it: taken from the queues, written to a file
//! of the checkpoint, and read again.
//!
//! Ends and idleness are not kept: whoever goes on from the checkpoint is told of them again by those that send.

use std::sync::Arc;

use tidemill_checkpoint::manifest::{ChannelState, InFlightState};
use tidemill_core::Result;
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::{InputIndex, Port};
use tidemill_core::memory::{Account, JobMemory, Owner};
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

/// What a barrier overtook on the channels to a subtask, in memory until it is written.
#[derive(Debug, Default)]
pub struct Overtaken {
    contents: Vec<ChannelContent>,
    /// Queues are bounded, and so is what was in them: it is not refused. What still stands there counts there as well.
    held: Option<Account>,
}

impl Overtaken {
    /// What is counted there until this is dropped.
    pub fn new(contents: Vec<ChannelContent>, memory: &Arc<JobMemory>) -> Self {
        let elements = contents.iter().flat_map(|content| &content.elements);
        let bytes = elements.map(|element| match element {
            InFlight::Rows(batch) => batch.bytes(),
            InFlight::Watermark(_) => 0,
        });
        let bytes = bytes.sum();
        let held = (bytes > 0).then(|| {
            let account = Account::new(memory, Owner::Exchange);
            account.note(bytes);
            account
        });
        Self { contents, held }
    }

    /// Whether it is nothing.
    pub fn is_empty(&self) -> bool {
        self.contents.is_empty()
    }
}

/// Writes what was in flight to a subtask. `None` of nothing.
pub fn write(overtaken: Overtaken, files: &dyn SnapshotFiles) -> Result<Option<InFlightState>> {
    // Counted until it is written.
    let Overtaken { contents, held: _held } = overtaken;
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use arrow::array::{ArrayRef, Int64Array};
    use tidemill_core::memory::ProcessMemory;
    use tidemill_core::snapshot::FileRef;
    use tidemill_core::{Batch, Error};

    use super::*;

    /// Looks at the account while the file is written.
    struct Looks(Arc<ProcessMemory>, std::sync::Mutex<u64>);

    impl SnapshotFiles for Looks {
        fn write(&self, name: &str, bytes: Vec<u8>) -> Result<FileRef> {
            *self.1.lock().unwrap() = self.0.held().of(Owner::Exchange);
            Ok(FileRef { path: name.to_owned(), bytes: bytes.len() as u64, checksum: String::new() })
        }

        fn write_file(&self, _name: &str, _content: &Path) -> Result<FileRef> {
            Err(Error::internal("not here"))
        }

        fn read(&self, _file: &FileRef) -> Result<Vec<u8>> {
            Err(Error::internal("not here"))
        }

        fn read_to(&self, _file: &FileRef, _to: &Path) -> Result<()> {
            Err(Error::internal("not here"))
        }
    }

    #[test]
    fn rows_in_flight_are_counted_until_they_are_written() {
        let process = ProcessMemory::new(Some(1));
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1_000));
        let batch = Batch::new(1_000, vec![column], None).unwrap();
        let bytes = batch.bytes() as u64;
        let elements = [Element::Batch(batch), Element::Watermark(Watermark(7))];
        let channel = ChannelId { input: InputIndex(0), from: "a".into(), port: Port(0), sender: 0 };
        let content = ChannelContent::of(&channel, elements.iter()).unwrap();
        let overtaken = Overtaken::new(vec![content], &process.job("a"));
        assert_eq!(process.held().of(Owner::Exchange), bytes);
        let files = Looks(process.clone(), std::sync::Mutex::default());
        assert!(write(overtaken, &files).unwrap().is_some());
        assert_eq!((*files.1.lock().unwrap(), process.held().total()), (bytes, 0));
    }
}
