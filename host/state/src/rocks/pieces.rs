//! Pieces of row logs as bytes: an Arrow stream of the namespace's keys, timestamps and columns.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{Int64Type, Schema, SchemaRef};
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::writer::StreamWriter;
use tidemill_core::keys::{KeyCodec, Keys};
use tidemill_core::{Batch, Error, Result};

use super::layout::damaged;
use crate::format::schema;
use crate::memory::frozen::{About, PartAbout};

/// Encodes rows with the columns of their keys.
pub(super) fn encode(about: &About, part: &PartAbout, rows: &Batch, keys: Vec<ArrayRef>) -> Result<Vec<u8>> {
    let mut columns = keys;
    let times = rows.timestamps();
    let times: Int64Array = match times {
        Some(times) => times.iter().map(|&time| Some(time)).collect(),
        None => std::iter::repeat_n(None, rows.rows()).collect(),
    };
    columns.push(Arc::new(times));
    columns.extend(rows.columns().iter().cloned());
    let schema = piece_schema(about, part)?;
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &schema)?;
    writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
    writer.finish()?;
    drop(writer);
    Ok(bytes)
}

/// The rows and keys of a piece.
pub(super) fn decode(codec: &KeyCodec, bytes: &[u8]) -> Result<(Batch, Keys)> {
    let mut decoder = StreamDecoder::new();
    let mut buffer = arrow::buffer::Buffer::from(bytes);
    let batch = decoder.decode(&mut buffer)?.ok_or_else(damaged)?;
    let mut columns = batch.columns().iter().cloned();
    let keys: Vec<ArrayRef> = columns.by_ref().take(codec.types().len()).collect();
    let keys = codec.encode(batch.num_rows(), &keys)?;
    let times = columns.next().ok_or_else(damaged)?;
    let times = times.as_primitive_opt::<Int64Type>().ok_or_else(damaged)?;
    let times = (times.null_count() == 0).then(|| times.values().clone());
    Ok((Batch::new(batch.num_rows(), columns.collect(), times)?, keys))
}

/// The columns of a log's part without the namespace, which is in the key.
fn piece_schema(about: &About, part: &PartAbout) -> Result<SchemaRef> {
    let all = schema(part.kind, &about.codec, &part.values);
    let columns: Vec<usize> = (1..all.fields().len()).collect();
    let schema: Schema = all.project(&columns).map_err(Error::from)?;
    Ok(Arc::new(schema))
}
