//! From the bytes that a guest hands over to Arrow arrays: everything is checked, then copied once.
//!
//! Invariant: an array that comes out of here is a valid Arrow array of the field's type and length, without nulls where
//! the field has none. A complaint names the column and says exactly what is wrong; the guest's author reads it.

#![allow(clippy::indexing_slicing, reason = "per-row loops over offsets whose bounds are checked just before")]

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, ListArray, PrimitiveArray, StructArray, make_view};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType as ArrowType, Date32Type, Field as ArrowField, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMillisecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};

use crate::shape::flat_columns;
use crate::trusted;

/// What a guest did that the contract forbids. The message reads on from "the component broke the contract: ".
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

pub(crate) fn violation<T>(message: impl Into<String>) -> Result<T, Violation> {
    Err(Violation(message.into()))
}

/// The buffers of one flattened column, in the guest's memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RawColumn<'a> {
    pub(crate) validity: &'a [u8],
    pub(crate) offsets: &'a [u8],
    pub(crate) values: &'a [u8],
}

impl RawColumn<'_> {
    pub(crate) fn bytes(&self) -> usize {
        self.validity.len() + self.offsets.len() + self.values.len()
    }
}

/// Reads the arrays of `fields`, each with `rows` values, from flattened columns: exactly those.
pub(crate) fn read_columns(
    fields: &[ArrowField],
    rows: usize,
    columns: &[RawColumn<'_>],
) -> Result<Vec<ArrayRef>, Violation> {
    let expected: usize = fields.iter().map(|f| flat_columns(f.data_type())).sum();
    if columns.len() != expected {
        let names: Vec<_> = fields.iter().map(|f| f.name().as_str()).collect();
        return violation(format!(
            "{} columns where {expected} are expected ({})",
            columns.len(),
            if names.is_empty() { "there are none to make".into() } else { format!("for {}", names.join(", ")) }
        ));
    }
    let mut rest = columns.iter();
    fields.iter().map(|field| read(field, rows, &mut rest, None)).collect()
}

/// Reads one array. `outer` is the validity of what it is nested in: where that is null, a null is no fault.
fn read(
    field: &ArrowField,
    rows: usize,
    columns: &mut std::slice::Iter<'_, RawColumn<'_>>,
    outer: Option<&NullBuffer>,
) -> Result<ArrayRef, Violation> {
    let Some(raw) = columns.next() else { return violation("too few columns") };
    let at = |what: Violation| Violation(format!("column '{}': {what}", field.name()));
    let nulls = read_validity(raw.validity, rows).map_err(at)?;
    if !field.is_nullable() {
        check_no_nulls(nulls.as_ref(), outer).map_err(at)?;
    }
    let plain = |values: Result<ArrayRef, Violation>| {
        if raw.offsets.is_empty() { values } else { violation(format!("offsets for a {}", field.data_type())) }
    };
    match field.data_type() {
        ArrowType::Boolean => plain(booleans(raw.values, rows, nulls)),
        ArrowType::Int8 => plain(primitive::<Int8Type>(raw.values, rows, nulls)),
        ArrowType::Int16 => plain(primitive::<Int16Type>(raw.values, rows, nulls)),
        ArrowType::Int32 => plain(primitive::<Int32Type>(raw.values, rows, nulls)),
        ArrowType::Int64 => plain(primitive::<Int64Type>(raw.values, rows, nulls)),
        ArrowType::UInt8 => plain(primitive::<UInt8Type>(raw.values, rows, nulls)),
        ArrowType::UInt16 => plain(primitive::<UInt16Type>(raw.values, rows, nulls)),
        ArrowType::UInt32 => plain(primitive::<UInt32Type>(raw.values, rows, nulls)),
        ArrowType::UInt64 => plain(primitive::<UInt64Type>(raw.values, rows, nulls)),
        ArrowType::Float32 => plain(primitive::<Float32Type>(raw.values, rows, nulls)),
        ArrowType::Float64 => plain(primitive::<Float64Type>(raw.values, rows, nulls)),
        ArrowType::Date32 => plain(primitive::<Date32Type>(raw.values, rows, nulls)),
        ArrowType::Timestamp(TimeUnit::Millisecond, None) => {
            plain(primitive::<TimestampMillisecondType>(raw.values, rows, nulls))
        }
        ArrowType::Utf8View => text(raw, rows, nulls),
        ArrowType::BinaryView => bytes(raw, rows, nulls),
        ArrowType::Struct(fields) => {
            let nested = plain(no_values(raw, &field.data_type().to_string()).and_then(|()| {
                let mut children = Vec::with_capacity(fields.len());
                let masked = NullBuffer::union(nulls.as_ref(), outer);
                for child in fields {
                    children.push(read(child, rows, columns, masked.as_ref())?);
                }
                let array = StructArray::try_new(fields.clone(), children, nulls);
                Ok(Arc::new(array.map_err(|e| Violation(e.to_string()))?) as ArrayRef)
            }));
            return nested.map_err(at);
        }
        ArrowType::List(item) => {
            let nested = no_values(raw, "list").and_then(|()| {
                let offsets = read_offsets(raw.offsets, rows)?;
                let length = offsets.last().map_or(0, |&o| o as usize);
                let values = read(item, length, columns, None)?;
                let array = ListArray::try_new(Arc::clone(item), OffsetBuffer::new(offsets), values, nulls);
                Ok(Arc::new(array.map_err(|e| Violation(e.to_string()))?) as ArrayRef)
            });
            return nested.map_err(at);
        }
        other => violation(format!("the host has no layout for {other}")),
    }
    .map_err(at)
}

fn read_validity(bytes: &[u8], rows: usize) -> Result<Option<NullBuffer>, Violation> {
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() != rows.div_ceil(8) {
        return violation(format!(
            "its validity has {} bytes; {rows} values need {} (or none at all)",
            bytes.len(),
            rows.div_ceil(8)
        ));
    }
    let nulls = NullBuffer::new(BooleanBuffer::new(Buffer::from(bytes), 0, rows));
    Ok((nulls.null_count() > 0).then_some(nulls))
}

fn check_no_nulls(nulls: Option<&NullBuffer>, outer: Option<&NullBuffer>) -> Result<(), Violation> {
    let Some(nulls) = nulls else { return Ok(()) };
    let fault = (0..nulls.len()).find(|&row| nulls.is_null(row) && outer.is_none_or(|o| o.is_valid(row)));
    match fault {
        Some(row) => violation(format!("it is declared without nulls, but value {row} is null")),
        None => Ok(()),
    }
}

fn check_length(values: &[u8], expected: usize, rows: usize) -> Result<(), Violation> {
    if values.len() == expected {
        return Ok(());
    }
    violation(format!("its values have {} bytes; {rows} values need {expected}", values.len()))
}

fn booleans(values: &[u8], rows: usize, nulls: Option<NullBuffer>) -> Result<ArrayRef, Violation> {
    check_length(values, rows.div_ceil(8), rows)?;
    Ok(Arc::new(BooleanArray::new(BooleanBuffer::new(Buffer::from(values), 0, rows), nulls)))
}

fn primitive<T: ArrowPrimitiveType>(
    values: &[u8],
    rows: usize,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef, Violation> {
    check_length(values, rows * size_of::<T::Native>(), rows)?;
    Ok(Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::new(Buffer::from(values), 0, rows), nulls)))
}

fn no_values(raw: &RawColumn<'_>, what: &str) -> Result<(), Violation> {
    if raw.values.is_empty() { Ok(()) } else { violation(format!("values for a {what} itself")) }
}

/// n + 1 offsets, from 0, never decreasing.
fn read_offsets(bytes: &[u8], rows: usize) -> Result<ScalarBuffer<i32>, Violation> {
    let expected = (rows + 1) * 4;
    if bytes.len() != expected {
        return violation(format!("its offsets have {} bytes; {rows} values need {expected}", bytes.len()));
    }
    let offsets = ScalarBuffer::<i32>::new(Buffer::from(bytes), 0, rows + 1);
    if offsets[0] != 0 {
        return violation(format!("its first offset is {}, not 0", offsets[0]));
    }
    // The fold has no early exit, so that it is vectorised; the fault is searched for only when there is one.
    let rising = offsets.windows(2).fold(true, |all, pair| all & (pair[0] <= pair[1]));
    if !rising {
        let row = offsets.windows(2).position(|pair| pair[0] > pair[1]).unwrap_or_default();
        return violation(format!("its offsets fall from {} to {} at value {row}", offsets[row], offsets[row + 1]));
    }
    Ok(offsets)
}

fn text_offsets(raw: &RawColumn<'_>, rows: usize) -> Result<ScalarBuffer<i32>, Violation> {
    let offsets = read_offsets(raw.offsets, rows)?;
    if offsets[rows] as usize != raw.values.len() {
        return violation(format!("its last offset is {}, but there are {} bytes", offsets[rows], raw.values.len()));
    }
    Ok(offsets)
}

fn text(raw: &RawColumn<'_>, rows: usize, nulls: Option<NullBuffer>) -> Result<ArrayRef, Violation> {
    let offsets = text_offsets(raw, rows)?;
    if !raw.values.is_ascii() {
        check_utf8(raw.values, &offsets)?;
    }
    let (views, data) = views(raw.values, &offsets);
    Ok(trusted::string_views(views, data, nulls))
}

fn check_utf8(values: &[u8], offsets: &[i32]) -> Result<(), Violation> {
    let text = match std::str::from_utf8(values) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to() as i32;
            let row = offsets.partition_point(|&o| o <= at).saturating_sub(1);
            return violation(format!("value {row} is not UTF-8 (at byte {at} of the values)"));
        }
    };
    match offsets.iter().position(|&o| !text.is_char_boundary(o as usize)) {
        Some(row) => violation(format!("value {row} starts inside a character (offset {})", offsets[row])),
        None => Ok(()),
    }
}

fn bytes(raw: &RawColumn<'_>, rows: usize, nulls: Option<NullBuffer>) -> Result<ArrayRef, Violation> {
    let offsets = text_offsets(raw, rows)?;
    let (views, data) = views(raw.values, &offsets);
    Ok(trusted::binary_views(views, data, nulls))
}

/// Views of all values; the data is kept only if a value does not fit into its view.
fn views(values: &[u8], offsets: &[i32]) -> (Vec<u128>, Buffer) {
    const INLINE: usize = 12;
    let mut outside = false;
    let mut views = Vec::with_capacity(offsets.len().saturating_sub(1));
    for pair in offsets.windows(2) {
        let value = &values[pair[0] as usize..pair[1] as usize];
        outside |= value.len() > INLINE;
        views.push(make_view(value, 0, pair[0] as u32));
    }
    (views, if outside { Buffer::from(values) } else { Buffer::from(&[]) })
}

/// Reads s64s.
pub(crate) fn read_i64s(what: &str, bytes: &[u8], rows: usize) -> Result<ScalarBuffer<i64>, Violation> {
    if bytes.len() != rows * 8 {
        return violation(format!("its {what} have {} bytes; {rows} of them need {}", bytes.len(), rows * 8));
    }
    Ok(ScalarBuffer::new(Buffer::from(bytes), 0, rows))
}

/// Reads u32s that must all be below `bound`.
pub(crate) fn read_indices(what: &str, bytes: &[u8], bound: usize) -> Result<ScalarBuffer<u32>, Violation> {
    if !bytes.len().is_multiple_of(4) {
        return violation(format!("its {what} have {} bytes, which is no multiple of 4", bytes.len()));
    }
    let count = bytes.len() / 4;
    let indices = ScalarBuffer::<u32>::new(Buffer::from(bytes), 0, count);
    let largest = indices.iter().copied().fold(0, u32::max);
    if count > 0 && largest as usize >= bound {
        return violation(format!("its {what} name {largest}, but there are only {bound}"));
    }
    Ok(indices)
}
