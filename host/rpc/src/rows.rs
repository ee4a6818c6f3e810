//! Rows on their way from one worker to another: Arrow's IPC format, without the schema, which both ends know from the
//! plan. They are written once; the reader's columns are the bytes that arrived, where these are aligned.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow_ipc::reader::read_record_batch;
use arrow_ipc::writer::StreamEncoder;
use bytes::{Buf as _, Bytes};
use tidemill_core::{Batch, Error, Result};

/// The schema of an edge's rows on the wire.
#[derive(Clone, Debug)]
pub struct WireSchema {
    /// The timestamp, then the columns.
    timed: SchemaRef,
    /// The columns alone, of rows without time.
    untimed: SchemaRef,
}

impl WireSchema {
    /// Of columns of these types.
    pub fn new(columns: impl IntoIterator<Item = DataType>) -> Self {
        let columns = columns.into_iter().enumerate();
        let columns: Vec<Field> = columns.map(|(at, of)| Field::new(format!("column{at}"), of, true)).collect();
        let timestamp = Field::new("timestamp", DataType::Int64, true);
        let timed = Arc::new(Schema::new([timestamp].into_iter().chain(columns.clone()).collect::<Vec<_>>()));
        // Of no columns at all, how many rows there are would not arrive.
        let untimed = if columns.is_empty() { Arc::clone(&timed) } else { Arc::new(Schema::new(columns)) };
        Self { timed, untimed }
    }

    fn of(&self, timed: bool) -> &SchemaRef {
        if timed { &self.timed } else { &self.untimed }
    }

    /// Whether the timestamp is there in rows with time, or without.
    fn has_times(&self, timed: bool) -> bool {
        timed || Arc::ptr_eq(&self.timed, &self.untimed)
    }
}

/// Writes batches of one edge.
pub struct RowsWriter {
    schema: WireSchema,
    timed: Option<StreamEncoder>,
    untimed: Option<StreamEncoder>,
}

impl RowsWriter {
    /// For rows of this schema.
    pub fn new(schema: WireSchema) -> Self {
        Self { schema, timed: None, untimed: None }
    }

    /// A batch as the pieces of a message, most of which are its columns.
    pub fn write(&mut self, batch: &Batch) -> Result<Vec<Buffer>> {
        let timed = batch.timestamps().is_some();
        let times: Option<ArrayRef> = match batch.timestamps() {
            Some(times) => Some(Arc::new(Int64Array::new(times.clone(), None))),
            None if self.schema.has_times(false) => Some(Arc::new(Int64Array::new_null(batch.rows()))),
            None => None,
        };
        let arrays = times.into_iter().chain(batch.columns().iter().cloned()).collect();
        let schema = self.schema.of(timed);
        let rows = RecordBatch::try_new(Arc::clone(schema), arrays)?;
        let encoder = if timed { &mut self.timed } else { &mut self.untimed };
        let encoder = match encoder {
            Some(encoder) => encoder,
            None => {
                let mut new = StreamEncoder::try_new(schema)?;
                // With its first batch it writes the schema.
                new.encode(&RecordBatch::new_empty(Arc::clone(schema)))?;
                encoder.insert(new)
            }
        };
        Ok(encoder.encode(&rows)?)
    }
}

/// A batch out of a message. `timed`: whether its rows have time.
pub fn read(schema: &WireSchema, timed: bool, rows: &Bytes) -> Result<Batch> {
    let wrong = |what: &str| Error::invalid(format!("rows of another worker {what}"));
    let (header, body) = parts(rows).ok_or_else(|| wrong("are cut off"))?;
    let message = arrow_ipc::root_as_message(&header).map_err(|e| wrong(&format!("have a broken header: {e}")))?;
    let header = message.header_as_record_batch().ok_or_else(|| wrong("are no record batch"))?;
    // The decoder takes places in the body at their word.
    let places = header.buffers().into_iter().flatten();
    let end = |place: &arrow_ipc::Buffer| place.offset().checked_add(place.length());
    let length = i64::try_from(body.len()).unwrap_or(i64::MAX);
    if places.into_iter().any(|p| p.offset() < 0 || p.length() < 0 || end(p).is_none_or(|end| end > length)) {
        return Err(wrong("point beyond their end"));
    }
    let body = Buffer::from(body);
    // Where it takes something at its word after all, it panics.
    let read = catch_unwind(AssertUnwindSafe(|| {
        read_record_batch(&body, header, Arc::clone(schema.of(timed)), &HashMap::new(), None, &message.version())
    }));
    let read = read.map_err(|_| wrong("are no record batch of their edge"))?;
    let read = read.map_err(|e| wrong(&format!("can't be read: {e}")))?;
    if !schema.has_times(timed) {
        return Batch::new(read.num_rows(), read.columns().to_vec(), None);
    }
    let (times, columns) = read.columns().split_first().ok_or_else(|| wrong("have no columns"))?;
    let times = times.as_primitive_opt::<Int64Type>().ok_or_else(|| wrong("have no timestamps"))?;
    if timed && times.null_count() > 0 {
        return Err(wrong("lack timestamps"));
    }
    Batch::new(read.num_rows(), columns.to_vec(), timed.then(|| times.values().clone()))
}

/// The header and the body of an encapsulated message: a mark of 4 bytes, how long the header is, the header.
fn parts(message: &Bytes) -> Option<(Bytes, Bytes)> {
    let mut rest = message.clone();
    let mark = rest.try_get_u32_le().ok()?;
    let header = usize::try_from(rest.try_get_i32_le().ok()?).ok()?;
    (mark == u32::MAX && header <= rest.len()).then(|| (rest.split_to(header), rest))
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

    fn message(writer: &mut RowsWriter, batch: &Batch) -> Bytes {
        writer.write(batch).unwrap().iter().flat_map(|piece| piece.to_vec()).collect()
    }

    #[test]
    fn rows_arrive_as_they_were_also_slices_and_rows_without_time() {
        let whole = batch();
        let schema = WireSchema::new(types(&whole));
        let untimed = whole.clone().with_timestamps(None).unwrap();
        let mut writer = RowsWriter::new(schema.clone());
        for batch in [whole.clone(), whole.slice(1, 2), untimed, whole.slice(3, 0)] {
            let timed = batch.timestamps().is_some();
            let read = read(&schema, timed, &message(&mut writer, &batch)).unwrap();
            assert_eq!(read.rows(), batch.rows());
            assert_eq!(read.columns(), batch.columns());
            assert_eq!(read.timestamps(), batch.timestamps());
        }
    }

    #[test]
    fn rows_without_columns_arrive_by_their_number() {
        let schema = WireSchema::new([]);
        let mut writer = RowsWriter::new(schema.clone());
        for times in [None, Some(vec![7i64, 8, 9].into())] {
            let batch = Batch::new(3, Vec::new(), times).unwrap();
            let timed = batch.timestamps().is_some();
            let read = read(&schema, timed, &message(&mut writer, &batch)).unwrap();
            assert_eq!((read.rows(), read.timestamps()), (3, batch.timestamps()));
        }
    }

    #[test]
    fn columns_are_not_copied_on_either_side() {
        let values: ArrayRef = Arc::new(Int64Array::from((0..1_000).collect::<Vec<i64>>()));
        let batch = Batch::new(1_000, vec![values.clone()], None).unwrap();
        let schema = WireSchema::new(types(&batch));
        let place = |array: &ArrayRef| array.to_data().buffers()[0].as_ptr();
        let pieces = RowsWriter::new(schema.clone()).write(&batch).unwrap();
        assert!(pieces.iter().any(|piece| piece.as_ptr() == place(&values)));
        let arrived: Bytes = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        let read = read(&schema, false, &arrived).unwrap();
        assert!(arrived.as_ptr_range().contains(&place(&read.columns()[0])));
    }

    #[test]
    fn whatever_is_cut_or_changed_is_an_error_or_rows() {
        let batch = batch();
        let schema = WireSchema::new(types(&batch));
        let good = message(&mut RowsWriter::new(schema.clone()), &batch);
        let header = good.len() - parts(&good).unwrap().1.len();
        for at in 0..header {
            assert!(read(&schema, true, &good.slice(..at)).is_err());
            for bit in [0x01, 0x80] {
                let mut changed = good.to_vec();
                changed[at] ^= bit;
                _ = read(&schema, true, &changed.into());
            }
        }
        for at in header..good.len() {
            // Its end is padding.
            if let Ok(rows) = read(&schema, true, &good.slice(..at)) {
                assert_eq!(rows.columns(), batch.columns());
            }
        }
        assert!(read(&schema, true, &good.slice(..header + (good.len() - header) / 2)).is_err());
        let other = WireSchema::new([DataType::Int64]);
        let other = read(&other, true, &good);
        assert!(other.is_err() || other.unwrap().columns().len() == 1);
    }
}
