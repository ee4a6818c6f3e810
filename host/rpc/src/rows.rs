//! Rows on their way from one worker to another: Arrow's IPC format, without the schema, which both ends know from the
//! plan. They are written once; the reader's columns are the bytes that arrived, where these are aligned.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow_ipc::reader::read_record_batch;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use bytes::Bytes;
use tidemill_core::{Batch, Error, Result};

use crate::proto;

/// The schema of an edge's rows on the wire, of the types of its columns.
pub fn wire_schema(columns: impl IntoIterator<Item = DataType>) -> SchemaRef {
    let columns = columns.into_iter().enumerate();
    let columns = columns.map(|(at, of)| Field::new(format!("column{at}"), of, true));
    let timestamp = Field::new("timestamp", DataType::Int64, true);
    Arc::new(Schema::new([timestamp].into_iter().chain(columns).collect::<Vec<_>>()))
}

/// Writes batches of one edge.
pub struct RowsWriter {
    schema: SchemaRef,
    generator: IpcDataGenerator,
    dictionaries: DictionaryTracker,
    options: IpcWriteOptions,
    context: IpcWriteContext,
}

impl RowsWriter {
    /// For rows of this schema (see [`wire_schema`]).
    pub fn new(schema: SchemaRef) -> Self {
        let (generator, options, context) = Default::default();
        Self { schema, generator, dictionaries: DictionaryTracker::new(false), options, context }
    }

    /// A batch as a message. `bytes`: what it counts for credit.
    pub fn write(&mut self, batch: &Batch, bytes: u64) -> Result<proto::Rows> {
        let times: ArrayRef = match batch.timestamps() {
            Some(times) => Arc::new(Int64Array::new(times.clone(), None)),
            None => Arc::new(Int64Array::new_null(batch.rows())),
        };
        let arrays = [times].into_iter().chain(batch.columns().iter().cloned()).collect();
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), arrays)?;
        let (_, encoded) = self.generator.encode(&rows, &mut self.dictionaries, &self.options, &mut self.context)?;
        Ok(proto::Rows {
            header: Bytes::from(encoded.ipc_message),
            body: Bytes::from(encoded.arrow_data),
            timed: batch.timestamps().is_some(),
            bytes,
        })
    }
}

/// A batch out of a message.
pub fn read(schema: &SchemaRef, rows: &proto::Rows) -> Result<Batch> {
    let wrong = |what: &str| Error::invalid(format!("rows of another worker {what}"));
    let message = arrow_ipc::root_as_message(&rows.header).map_err(|e| wrong(&format!("have a broken header: {e}")))?;
    let header = message.header_as_record_batch().ok_or_else(|| wrong("are no record batch"))?;
    // The decoder takes places in the body at their word.
    let places = header.buffers().into_iter().flatten();
    let end = |place: &arrow_ipc::Buffer| place.offset().checked_add(place.length());
    let length = i64::try_from(rows.body.len()).unwrap_or(i64::MAX);
    if places.into_iter().any(|p| p.offset() < 0 || p.length() < 0 || end(p).is_none_or(|end| end > length)) {
        return Err(wrong("point beyond their end"));
    }
    let body = Buffer::from(rows.body.clone());
    // Where it takes something at its word after all, it panics.
    let read = catch_unwind(AssertUnwindSafe(|| {
        read_record_batch(&body, header, Arc::clone(schema), &HashMap::new(), None, &message.version())
    }));
    let read = read.map_err(|_| wrong("are no record batch of their edge"))?;
    let read = read.map_err(|e| wrong(&format!("can't be read: {e}")))?;
    let (times, columns) = read.columns().split_first().ok_or_else(|| wrong("have no columns"))?;
    let times = times.as_primitive_opt::<Int64Type>().ok_or_else(|| wrong("have no timestamps"))?;
    if rows.timed && times.null_count() > 0 {
        return Err(wrong("lack timestamps"));
    }
    Batch::new(read.num_rows(), columns.to_vec(), rows.timed.then(|| times.values().clone()))
}

#[cfg(test)]
mod tests {
    use arrow::array::{StringArray, TimestampMillisecondArray};

    use super::*;

    fn batch() -> Batch {
        let words: ArrayRef =
            Arc::new(StringArray::from(vec![Some("a"), None, Some("long enough to count"), Some("")]));
        let times: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![1, 2, 3, 4]));
        let stamps = Some(vec![10i64, 20, 30, 40].into());
        Batch::new(4, vec![words, times], stamps).unwrap()
    }

    fn types(batch: &Batch) -> Vec<DataType> {
        batch.columns().iter().map(|column| column.data_type().clone()).collect()
    }

    #[test]
    fn rows_arrive_as_they_were_also_slices_and_rows_without_time() {
        let whole = batch();
        let schema = wire_schema(types(&whole));
        let untimed = whole.clone().with_timestamps(None).unwrap();
        let mut writer = RowsWriter::new(schema.clone());
        for batch in [whole.clone(), whole.slice(1, 2), untimed, whole.slice(3, 0)] {
            let read = read(&schema, &writer.write(&batch, 1).unwrap()).unwrap();
            assert_eq!(read.rows(), batch.rows());
            assert_eq!(read.columns(), batch.columns());
            assert_eq!(read.timestamps(), batch.timestamps());
        }
    }

    #[test]
    fn whatever_is_cut_or_changed_is_an_error_or_rows() {
        let batch = batch();
        let schema = wire_schema(types(&batch));
        let good = RowsWriter::new(schema.clone()).write(&batch, 1).unwrap();
        for at in 0..good.header.len() {
            let cut = proto::Rows { header: good.header.slice(..at), ..good.clone() };
            _ = read(&schema, &cut);
            for bit in [0x01, 0x80] {
                let mut header = good.header.to_vec();
                header[at] ^= bit;
                _ = read(&schema, &proto::Rows { header: header.into(), ..good.clone() });
            }
        }
        for at in 0..good.body.len() {
            // Its end is padding.
            if let Ok(rows) = read(&schema, &proto::Rows { body: good.body.slice(..at), ..good.clone() }) {
                assert_eq!(rows.columns(), batch.columns());
            }
        }
        assert!(read(&schema, &proto::Rows { body: good.body.slice(..good.body.len() / 2), ..good.clone() }).is_err());
        let other = wire_schema([DataType::Int64]);
        assert!(read(&other, &good).is_err() || read(&other, &good).unwrap().columns().len() == 1);
    }
}
