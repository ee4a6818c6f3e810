//! Rows on their way from one worker to another: Arrow's IPC format, without the schema, which both ends know from the
//! plan. They are written once. Integers of 8 bytes are packed; of other columns, the reader's are the bytes that arrived,
//! where these are aligned.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow_ipc::reader::read_record_batch;
use arrow_ipc::writer::StreamEncoder;
use bytes::{Buf as _, Bytes};
use tidemill_core::{Batch, Error, Result};

use crate::packed;
use crate::proto::Packed;

/// So many ways of packing the columns of an edge are remembered.
const MAX_WAYS: usize = 64;
/// Of more columns, none is packed: saying how would not fit in a frame.
const MAX_PACKED: usize = 1 << 10;

/// The schema of an edge's rows.
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

    /// With the types that packed columns have on the wire.
    fn packed(&self, timed: bool, packed: &[Packed]) -> Result<SchemaRef> {
        let schema = self.of(timed);
        if packed.is_empty() {
            return Ok(Arc::clone(schema));
        }
        if packed.len() != schema.fields().len() {
            return Err(Error::invalid(format!("{} packed columns, of {}", packed.len(), schema.fields().len())));
        }
        let fields = schema.fields().iter().zip(packed).map(|(field, packed)| {
            let wire = packed::wire_type(field.data_type(), packed)?;
            Ok(Field::new(field.name(), wire, true))
        });
        Ok(Arc::new(Schema::new(fields.collect::<Result<Vec<_>>>()?)))
    }

    /// Whether the timestamp is there in rows with time, or without.
    fn has_times(&self, timed: bool) -> bool {
        timed || Arc::ptr_eq(&self.timed, &self.untimed)
    }
}

/// Writes batches of one edge.
pub struct RowsWriter {
    schema: WireSchema,
    /// By whether rows have time, and the widths of packed columns.
    encoders: HashMap<(bool, Vec<u32>), (SchemaRef, StreamEncoder)>,
}

/// Rows as they are sent.
pub struct Written {
    /// How each column is packed; empty, if none is.
    pub packed: Vec<Packed>,
    /// The pieces of the message, most of which are columns.
    pub pieces: Vec<Buffer>,
}

impl RowsWriter {
    /// For rows of this schema.
    pub fn new(schema: WireSchema) -> Self {
        Self { schema, encoders: HashMap::new() }
    }

    /// A batch as a message.
    pub fn write(&mut self, batch: &Batch) -> Result<Written> {
        let timed = batch.timestamps().is_some();
        let times: Option<ArrayRef> = match batch.timestamps() {
            Some(times) => Some(Arc::new(Int64Array::new(times.clone(), None))),
            None if self.schema.has_times(false) => Some(Arc::new(Int64Array::new_null(batch.rows()))),
            None => None,
        };
        let columns: Vec<ArrayRef> = times.into_iter().chain(batch.columns().iter().cloned()).collect();
        let (packed, columns) = pack(columns)?;
        let way = (timed, packed.iter().map(|packed| packed.width).collect());
        if self.encoders.len() >= MAX_WAYS && !self.encoders.contains_key(&way) {
            self.encoders.clear();
        }
        let (schema, encoder) = match self.encoders.entry(way) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let schema = self.schema.packed(timed, &packed)?;
                let mut encoder = StreamEncoder::try_new(&schema)?;
                // With its first batch it writes the schema.
                encoder.encode(&RecordBatch::new_empty(Arc::clone(&schema)))?;
                new.insert((schema, encoder))
            }
        };
        let pieces = encoder.encode(&RecordBatch::try_new(Arc::clone(schema), columns)?)?;
        Ok(Written { packed, pieces })
    }
}

/// The columns as they are sent, and how each is packed, if one is.
fn pack(columns: Vec<ArrayRef>) -> Result<(Vec<Packed>, Vec<ArrayRef>)> {
    if columns.len() > MAX_PACKED {
        return Ok((Vec::new(), columns));
    }
    let (packed, columns): (Vec<_>, _) = columns.iter().map(packed::pack).collect::<Result<_>>()?;
    let any = packed.iter().any(|packed: &Packed| packed.width > 0);
    Ok((if any { packed } else { Vec::new() }, columns))
}

/// A batch out of a message. `timed`: whether its rows have time. `packed`: how each column is packed; empty, if none is.
pub fn read(schema: &WireSchema, timed: bool, packed: &[Packed], rows: &Bytes) -> Result<Batch> {
    let wrong = |what: &str| Error::invalid(format!("rows of another worker {what}"));
    let on_the_wire = schema.packed(timed, packed).map_err(|e| wrong(&format!("have {}", e.message())))?;
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
        read_record_batch(&body, header, on_the_wire, &HashMap::new(), None, &message.version())
    }));
    let read = read.map_err(|_| wrong("are no record batch of their edge"))?;
    let read = read.map_err(|e| wrong(&format!("can't be read: {e}")))?;
    let mut columns = read.columns().to_vec();
    for ((column, packed), field) in columns.iter_mut().zip(packed).zip(schema.of(timed).fields()) {
        *column = packed::unpack(column, packed, field.data_type())?;
    }
    if !schema.has_times(timed) {
        return Batch::new(read.num_rows(), columns, None);
    }
    let times = columns.first().and_then(|times| times.as_primitive_opt::<Int64Type>());
    let times = times.ok_or_else(|| wrong("have no timestamps"))?.clone();
    if timed && times.null_count() > 0 {
        return Err(wrong("lack timestamps"));
    }
    let columns = columns.into_iter().skip(1).collect();
    Batch::new(read.num_rows(), columns, timed.then(|| times.values().clone()))
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
    use arrow::array::{Float64Array, StringArray, TimestampMillisecondArray};

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

    fn message(writer: &mut RowsWriter, batch: &Batch) -> (Vec<Packed>, Bytes) {
        let Written { packed, pieces } = writer.write(batch).unwrap();
        (packed, pieces.iter().flat_map(|piece| piece.to_vec()).collect())
    }

    /// Rows of which two columns can be packed, and the timestamps.
    fn long_batch(rows: i64, apart: i64) -> Batch {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values((0..rows).map(|row| row * apart)));
        let words: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|row| row.to_string())));
        let times: ArrayRef = Arc::new(TimestampMillisecondArray::from_iter_values(0..rows));
        let stamps = (0..rows).map(|row| 1_700_000_000_000 + row).collect::<Vec<i64>>();
        Batch::new(rows as usize, vec![numbers, words, times], Some(stamps.into())).unwrap()
    }

    fn assert_same(read: &Batch, batch: &Batch) {
        assert_eq!(read.rows(), batch.rows());
        assert_eq!(read.columns(), batch.columns());
        assert_eq!(read.timestamps(), batch.timestamps());
    }

    #[test]
    fn rows_arrive_as_they_were_also_slices_and_rows_without_time() {
        let whole = batch();
        let schema = WireSchema::new(types(&whole));
        let untimed = whole.clone().with_timestamps(None).unwrap();
        let mut writer = RowsWriter::new(schema.clone());
        for batch in [whole.clone(), whole.slice(1, 2), untimed, whole.slice(3, 0)] {
            let timed = batch.timestamps().is_some();
            let (packed, message) = message(&mut writer, &batch);
            assert_same(&read(&schema, timed, &packed, &message).unwrap(), &batch);
        }
    }

    #[test]
    fn packed_rows_arrive_as_they_were_however_they_are_packed() {
        let schema = WireSchema::new(types(&long_batch(1, 1)));
        let mut writer = RowsWriter::new(schema.clone());
        for (apart, widths) in [(1, [2, 2, 0, 2]), (1 << 20, [2, 4, 0, 2]), (1 << 40, [2, 0, 0, 2]), (1, [2, 2, 0, 2])]
        {
            let batch = long_batch(1_000, apart);
            let (packed, message) = message(&mut writer, &batch);
            assert_eq!(packed.iter().map(|packed| packed.width).collect::<Vec<_>>(), widths);
            assert_same(&read(&schema, true, &packed, &message).unwrap(), &batch);
        }
        let untimed = long_batch(1_000, 1).with_timestamps(None).unwrap();
        let (packed, message) = message(&mut writer, &untimed);
        assert_eq!(packed.len(), 3);
        assert_same(&read(&schema, false, &packed, &message).unwrap(), &untimed);
    }

    #[test]
    fn more_ways_of_packing_than_are_remembered_go_on() {
        let types = vec![DataType::Int64; 7];
        let schema = WireSchema::new(types);
        let mut writer = RowsWriter::new(schema.clone());
        for way in 0..2 * MAX_WAYS {
            let column = |bit: usize| -> ArrayRef {
                let apart = if way >> bit & 1 == 1 { 1 << 40 } else { 1 };
                Arc::new(Int64Array::from_iter_values((0..100).map(|row| row * apart)))
            };
            let batch = Batch::new(100, (0..7).map(column).collect(), None).unwrap();
            let (packed, message) = message(&mut writer, &batch);
            assert_same(&read(&schema, false, &packed, &message).unwrap(), &batch);
            assert!(writer.encoders.len() <= MAX_WAYS);
        }
    }

    #[test]
    fn packing_that_does_not_fit_the_rows_is_an_error_or_rows() {
        let batch = long_batch(1_000, 1);
        let schema = WireSchema::new(types(&batch));
        let (packed, message) = message(&mut RowsWriter::new(schema.clone()), &batch);
        let refused = |packed: &[Packed]| read(&schema, true, packed, &message).unwrap_err().to_string();
        assert!(refused(&packed[1..]).contains("have 3 packed columns, of 4"));
        let mut changed = packed.clone();
        changed[1].width = 3;
        assert!(refused(&changed).contains("can't take 3 bytes"));
        changed = packed.clone();
        changed[2].width = 1;
        assert!(refused(&changed).contains("type Utf8"));
        for (column, width) in (0..4).flat_map(|column| [(column, 0), (column, 1), (column, 4)]) {
            let mut changed = packed.clone();
            changed[column].width = width;
            if let Ok(rows) = read(&schema, true, &changed, &message) {
                assert_eq!(rows.rows(), 1_000);
            }
        }
    }

    #[test]
    fn rows_without_columns_arrive_by_their_number() {
        let schema = WireSchema::new([]);
        let mut writer = RowsWriter::new(schema.clone());
        for times in [None, Some(vec![7i64, 8, 9].into())] {
            let batch = Batch::new(3, Vec::new(), times).unwrap();
            let timed = batch.timestamps().is_some();
            let (packed, message) = message(&mut writer, &batch);
            let read = read(&schema, timed, &packed, &message).unwrap();
            assert_eq!((read.rows(), read.timestamps()), (3, batch.timestamps()));
        }
    }

    #[test]
    fn columns_that_are_not_packed_are_not_copied_on_either_side() {
        let values: ArrayRef = Arc::new(Float64Array::from_iter_values((0..1_000).map(f64::from)));
        let batch = Batch::new(1_000, vec![values.clone()], None).unwrap();
        let schema = WireSchema::new(types(&batch));
        let place = |array: &ArrayRef| array.to_data().buffers()[0].as_ptr();
        let Written { packed, pieces } = RowsWriter::new(schema.clone()).write(&batch).unwrap();
        assert!(packed.is_empty());
        assert!(pieces.iter().any(|piece| piece.as_ptr() == place(&values)));
        let arrived: Bytes = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        let read = read(&schema, false, &[], &arrived).unwrap();
        assert!(arrived.as_ptr_range().contains(&place(&read.columns()[0])));
    }

    #[test]
    fn whatever_is_cut_or_changed_is_an_error_or_rows() {
        let batch = batch();
        let schema = WireSchema::new(types(&batch));
        let (_, good) = message(&mut RowsWriter::new(schema.clone()), &batch);
        let header = good.len() - parts(&good).unwrap().1.len();
        for at in 0..header {
            assert!(read(&schema, true, &[], &good.slice(..at)).is_err());
            for bit in [0x01, 0x80] {
                let mut changed = good.to_vec();
                changed[at] ^= bit;
                _ = read(&schema, true, &[], &changed.into());
            }
        }
        for at in header..good.len() {
            // Its end is padding.
            if let Ok(rows) = read(&schema, true, &[], &good.slice(..at)) {
                assert_eq!(rows.columns(), batch.columns());
            }
        }
        assert!(read(&schema, true, &[], &good.slice(..header + (good.len() - header) / 2)).is_err());
        let other = WireSchema::new([DataType::Int64]);
        let other = read(&other, true, &[], &good);
        assert!(other.is_err() || other.unwrap().columns().len() == 1);
    }
}
