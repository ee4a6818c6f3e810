//! What was in flight to a subtask when the barrier of an unaligned checkpoint overtook it: a file, as bytes.
//!
//! It stands here because this crate owns Arrow streams in files. Its frame is that of the portable format of state
//! (`docs/state-format.md`).
//!
//! Invariant: whatever the bytes are, decoding ends in content of the announced shape or in an error that names the file.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow_ipc::CompressionType;
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use serde::{Deserialize, Serialize};
use tidemill_core::time::Watermark;
use tidemill_core::{Batch, Error, Result};

use crate::format::alone;
use crate::framed::{self, Magic, Place};

/// Opens and closes a file.
const MAGIC: &Magic = b"TMFLOAT1";

/// An element that was in flight.
#[derive(Clone, Debug)]
pub enum InFlight {
    /// Rows.
    Rows(Batch),
    /// No row at or below this time follows.
    Watermark(Watermark),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Footer {
    channels: Vec<Channel>,
}

/// What a file has of a channel.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Channel {
    /// The rows, a record batch per batch: the timestamp, then the columns. None: there are no rows.
    rows: Option<Place>,
    elements: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Entry {
    /// The stream's next batch; whether its rows have timestamps.
    Rows { timed: bool },
    /// In milliseconds UTC.
    Watermark(i64),
}

/// The content of channels as a file. All rows of a channel must have the same columns.
pub fn encode_in_flight(channels: &[Vec<InFlight>]) -> Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    let mut footer = Footer { channels: Vec::with_capacity(channels.len()) };
    for channel in channels {
        let batches = channel.iter().filter_map(|element| match element {
            InFlight::Rows(batch) => Some(batch),
            InFlight::Watermark(_) => None,
        });
        let rows = write_rows(&mut bytes, batches)?;
        let elements = channel.iter().map(|element| match element {
            InFlight::Rows(batch) => Entry::Rows { timed: batch.timestamps().is_some() },
            InFlight::Watermark(watermark) => Entry::Watermark(watermark.0),
        });
        footer.channels.push(Channel { rows, elements: elements.collect() });
    }
    framed::seal(&mut bytes, MAGIC, &footer)?;
    Ok(bytes)
}

/// The content of the channels back from a file; `path` is for messages.
pub fn decode_in_flight(path: &str, content: Vec<u8>) -> Result<Vec<Vec<InFlight>>> {
    let bytes = Buffer::from_vec(content);
    decode(&bytes).map_err(|what| {
        Error::invalid(format!("the file of in-flight rows '{path}' {what}"))
            .mend("Restore from another checkpoint, or with the version of Tidemill that wrote this one.")
    })
}

fn write_rows<'a>(bytes: &mut Vec<u8>, batches: impl Iterator<Item = &'a Batch>) -> Result<Option<Place>> {
    let mut batches = batches.peekable();
    let Some(first) = batches.peek() else { return Ok(None) };
    let columns = first.columns().iter().enumerate();
    let columns = columns.map(|(i, column)| Field::new(format!("column{i}"), column.data_type().clone(), true));
    let fields: Vec<Field> = [Field::new("timestamp", DataType::Int64, true)].into_iter().chain(columns).collect();
    let schema = Arc::new(Schema::new(fields));
    let offset = framed::align(bytes);
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut writer = StreamWriter::try_new_with_options(&mut *bytes, &schema, options)?;
    for batch in batches {
        let times: ArrayRef = match batch.timestamps() {
            Some(times) => Arc::new(Int64Array::new(times.clone(), None)),
            None => Arc::new(Int64Array::new_null(batch.rows())),
        };
        // Written whole, and without what its buffers hold of other rows.
        let arrays = [times].into_iter().chain(batch.columns().iter().map(alone)).collect();
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), arrays)?)?;
    }
    writer.finish()?;
    drop(writer);
    Ok(Some(framed::placed(bytes, offset)))
}

fn decode(bytes: &Buffer) -> Result<Vec<Vec<InFlight>>, String> {
    let footer: Footer = framed::footer(bytes, MAGIC, "is not one, or of another version")?;
    footer.channels.iter().map(|channel| channel.read(bytes)).collect()
}

impl Channel {
    fn read(&self, bytes: &Buffer) -> Result<Vec<InFlight>, String> {
        let mut batches = self.rows.map_or_else(|| Ok(Vec::new()), |place| record_batches(bytes, place))?.into_iter();
        let mut elements = Vec::with_capacity(self.elements.len().min(bytes.len()));
        for entry in &self.elements {
            elements.push(match entry {
                Entry::Watermark(ms) => InFlight::Watermark(Watermark(*ms)),
                Entry::Rows { timed } => {
                    let batch = batches.next().ok_or("has fewer batches than it announces")?;
                    InFlight::Rows(batch_of(&batch, *timed)?)
                }
            });
        }
        if batches.next().is_some() {
            return Err("has more batches than it announces".to_owned());
        }
        Ok(elements)
    }
}

fn record_batches(bytes: &Buffer, place: Place) -> Result<Vec<RecordBatch>, String> {
    let mut stream = framed::at(bytes, place)?;
    let (mut decoder, mut batches) = (StreamDecoder::new(), Vec::new());
    while !stream.is_empty() {
        let decoded = decoder.decode(&mut stream).map_err(|e| format!("has rows that can't be read: {e}"))?;
        batches.extend(decoded);
    }
    Ok(batches)
}

fn batch_of(batch: &RecordBatch, timed: bool) -> Result<Batch, String> {
    let (times, columns) = batch.columns().split_first().ok_or("has rows without a timestamp")?;
    let times = times.as_primitive_opt::<Int64Type>().filter(|times| !timed || times.null_count() == 0);
    let times = times.ok_or("has rows without a timestamp")?;
    let timestamps: Option<ScalarBuffer<i64>> = timed.then(|| times.values().clone());
    Batch::new(batch.num_rows(), columns.to_vec(), timestamps).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use arrow::array::StringViewArray;

    use super::*;

    fn content() -> Vec<Vec<InFlight>> {
        let texts = |n: usize| -> ArrayRef {
            Arc::new(
                (0..n)
                    .map(|i| (i % 3 != 0).then(|| format!("a text that is not inlined {i}")))
                    .collect::<StringViewArray>(),
            )
        };
        let timed = Batch::new(100, vec![texts(100)], Some((0..100).collect())).unwrap().slice(40, 5);
        let untimed = Batch::new(2, vec![texts(2)], None).unwrap();
        let bare = Batch::new(7, vec![], Some(vec![1; 7].into())).unwrap();
        vec![
            vec![InFlight::Rows(timed), InFlight::Watermark(Watermark(-5)), InFlight::Rows(untimed)],
            vec![InFlight::Watermark(Watermark(9))],
            vec![InFlight::Rows(bare)],
        ]
    }

    fn text(channels: &[Vec<InFlight>]) -> String {
        let words = channels.iter().flatten().map(|element| match element {
            InFlight::Rows(rows) => format!("{:?} {:?}", rows.columns(), rows.timestamps().map(|t| t.to_vec())),
            InFlight::Watermark(watermark) => watermark.to_string(),
        });
        words.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_is_written_is_read_in_order_with_times_and_types() {
        let bytes = encode_in_flight(&content()).unwrap();
        assert_eq!(text(&decode_in_flight("f", bytes.clone()).unwrap()), text(&content()));
        // A slice is written as the rows that it has.
        let whole = Batch::new(100, vec![Arc::new(Int64Array::from(vec![0; 100]))], None).unwrap();
        let cut = encode_in_flight(&[vec![InFlight::Rows(whole.slice(3, 1))]]).unwrap();
        assert!(cut.len() < 1_200, "{}", cut.len());
        assert_eq!(decode_in_flight("f", encode_in_flight(&[]).unwrap()).unwrap().len(), 0);
    }

    #[test]
    fn no_damage_panics_and_what_is_cut_is_noticed() {
        let bytes = encode_in_flight(&content()).unwrap();
        for length in 0..bytes.len() {
            assert!(decode_in_flight("f", bytes[..length].to_vec()).is_err(), "cut to {length}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x41;
            // What is not found here, such as a time in the footer, the checksum of the whole file finds.
            if let Err(error) = decode_in_flight("f", flipped) {
                assert!(error.to_string().contains("'f'"), "{error}");
            }
        }
    }
}
