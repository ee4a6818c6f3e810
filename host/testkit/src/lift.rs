//! From the buffers that user code hands over to Arrow arrays. Copied once, as in the sandbox, and checked as Arrow
//! checks: the code is the user's own, so a fault here is one of the SDK, and the message only has to find it.

use std::slice;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryViewArray, BooleanArray, ListArray, PrimitiveArray, StringViewArray, StructArray, make_view,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType as ArrowType, Date32Type, Field as ArrowField, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, TimestampMillisecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use tidemill::abi::ColumnView;

/// The arrays of these fields, each with `rows` values.
pub(crate) fn arrays(fields: &[ArrowField], rows: usize, columns: &[ColumnView<'_>]) -> Result<Vec<ArrayRef>, String> {
    let mut rest = columns.iter();
    let arrays = fields.iter().map(|f| array(f, rows, &mut rest)).collect::<Result<Vec<_>, _>>()?;
    if rest.next().is_some() {
        return Err(format!("{} columns for {} fields", columns.len(), fields.len()));
    }
    Ok(arrays)
}

fn array(field: &ArrowField, rows: usize, columns: &mut slice::Iter<'_, ColumnView<'_>>) -> Result<ArrayRef, String> {
    let column = columns.next().ok_or_else(|| format!("no column for '{}'", field.name()))?;
    let nulls = nulls(column.validity, rows)?;
    let fault = |e: arrow::error::ArrowError| format!("column '{}': {e}", field.name());
    Ok(match field.data_type() {
        ArrowType::Boolean => {
            check(column.values.len(), rows.div_ceil(8), field)?;
            Arc::new(BooleanArray::new(BooleanBuffer::new(Buffer::from(column.values), 0, rows), nulls))
        }
        ArrowType::Int8 => primitive::<Int8Type>(column, rows, nulls, field)?,
        ArrowType::Int16 => primitive::<Int16Type>(column, rows, nulls, field)?,
        ArrowType::Int32 => primitive::<Int32Type>(column, rows, nulls, field)?,
        ArrowType::Int64 => primitive::<Int64Type>(column, rows, nulls, field)?,
        ArrowType::UInt8 => primitive::<UInt8Type>(column, rows, nulls, field)?,
        ArrowType::UInt16 => primitive::<UInt16Type>(column, rows, nulls, field)?,
        ArrowType::UInt32 => primitive::<UInt32Type>(column, rows, nulls, field)?,
        ArrowType::UInt64 => primitive::<UInt64Type>(column, rows, nulls, field)?,
        ArrowType::Float32 => primitive::<Float32Type>(column, rows, nulls, field)?,
        ArrowType::Float64 => primitive::<Float64Type>(column, rows, nulls, field)?,
        ArrowType::Date32 => primitive::<Date32Type>(column, rows, nulls, field)?,
        ArrowType::Timestamp(_, _) => primitive::<TimestampMillisecondType>(column, rows, nulls, field)?,
        ArrowType::Utf8View => {
            let (views, data) = views(column, rows, field)?;
            Arc::new(StringViewArray::try_new(views, data, nulls).map_err(fault)?)
        }
        ArrowType::BinaryView => {
            let (views, data) = views(column, rows, field)?;
            Arc::new(BinaryViewArray::try_new(views, data, nulls).map_err(fault)?)
        }
        ArrowType::Struct(fields) => {
            let children = fields.iter().map(|f| array(f, rows, columns)).collect::<Result<Vec<_>, _>>()?;
            Arc::new(StructArray::try_new(fields.clone(), children, nulls).map_err(fault)?)
        }
        ArrowType::List(item) => {
            let offsets = offsets(column, rows, field)?;
            let values = array(item, offsets.last().map_or(0, |&o| o as usize), columns)?;
            Arc::new(ListArray::try_new(Arc::clone(item), OffsetBuffer::new(offsets), values, nulls).map_err(fault)?)
        }
        other => return Err(format!("user code can't make a column of type {other}")),
    })
}

fn nulls(validity: &[u8], rows: usize) -> Result<Option<NullBuffer>, String> {
    if validity.is_empty() {
        return Ok(None);
    }
    if validity.len() != rows.div_ceil(8) {
        return Err(format!("a validity of {} bytes for {rows} values", validity.len()));
    }
    Ok(Some(NullBuffer::new(BooleanBuffer::new(Buffer::from(validity), 0, rows))))
}

fn check(bytes: usize, expected: usize, field: &ArrowField) -> Result<(), String> {
    if bytes == expected {
        return Ok(());
    }
    Err(format!("column '{}' has {bytes} bytes where {expected} are expected", field.name()))
}

fn primitive<T: ArrowPrimitiveType>(
    column: &ColumnView<'_>,
    rows: usize,
    nulls: Option<NullBuffer>,
    field: &ArrowField,
) -> Result<ArrayRef, String> {
    check(column.values.len(), rows * size_of::<T::Native>(), field)?;
    Ok(Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::new(Buffer::from(column.values), 0, rows), nulls)))
}

fn offsets(column: &ColumnView<'_>, rows: usize, field: &ArrowField) -> Result<ScalarBuffer<i32>, String> {
    check(column.offsets.len(), (rows + 1) * 4, field)?;
    Ok(ScalarBuffer::new(Buffer::from(column.offsets), 0, rows + 1))
}

fn views(
    column: &ColumnView<'_>,
    rows: usize,
    field: &ArrowField,
) -> Result<(ScalarBuffer<u128>, Vec<Buffer>), String> {
    let offsets = offsets(column, rows, field)?;
    let mut views: Vec<u128> = Vec::with_capacity(rows);
    let mut outside = false;
    for (start, end) in offsets.iter().zip(offsets.iter().skip(1)) {
        let value = column.values.get(*start as usize..*end as usize);
        let value = value.ok_or_else(|| format!("column '{}' has an offset out of its bytes", field.name()))?;
        outside |= value.len() > 12; // up to 12 bytes lie in the view itself
        views.push(make_view(value, 0, *start as u32));
    }
    let data = if outside { vec![Buffer::from(column.values)] } else { Vec::new() };
    Ok((views.into(), data))
}
