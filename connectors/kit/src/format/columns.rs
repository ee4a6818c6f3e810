//! Columns that grow by a value at a time, from text.
//!
//! Texts are not copied: a view points into the chunk from which it was decoded, unless it had escapes, or unless the
//! texts are so small a part of the chunk that keeping it alive would waste memory.
//! Invariant: between two records all columns have the same length; a failed record is cut off again.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewArray, BooleanArray, NullBufferBuilder, PrimitiveArray, make_view};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Field, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimeUnit, TimestampMillisecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use tidemill_core::error::{Error, Result};

use super::time;
use super::views::text_array;

/// Views no longer than this hold their text themselves.
const INLINE_BYTES: usize = 12;
/// Shown of a value in a message.
const SHOWN: usize = 60;
/// A chunk is kept alive for its texts where they are at least a fourth of it.
const KEPT_FRACTION: usize = 4;

/// Where a text stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// At this offset of the chunk.
    Chunk(usize),
    /// Elsewhere: it has to be copied.
    Elsewhere,
}

/// A growing column.
#[derive(Debug)]
pub(super) struct Column {
    name: String,
    nullable: bool,
    data: Data,
    nulls: NullBufferBuilder,
    /// Texts that do not stand in the chunk as they are.
    side: Vec<u8>,
    /// Length of all texts that their views do not hold.
    long_bytes: usize,
}

#[derive(Debug)]
enum Data {
    Bool(Vec<bool>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Text(Vec<u128>),
    Bytes(Vec<u128>),
    Timestamp(Vec<i64>),
    Date(Vec<i32>),
}

macro_rules! each {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            Data::Bool($v) => $body,
            Data::I8($v) => $body,
            Data::I16($v) => $body,
            Data::I32($v) => $body,
            Data::I64($v) => $body,
            Data::U8($v) => $body,
            Data::U16($v) => $body,
            Data::U32($v) => $body,
            Data::U64($v) => $body,
            Data::F32($v) => $body,
            Data::F64($v) => $body,
            Data::Text($v) => $body,
            Data::Bytes($v) => $body,
            Data::Timestamp($v) => $body,
            Data::Date($v) => $body,
        }
    };
}

impl Column {
    /// An empty column, or `None` where the type is nested.
    pub(super) fn new(field: &Field) -> Option<Self> {
        let data = match field.data_type() {
            DataType::Boolean => Data::Bool(Vec::new()),
            DataType::Int8 => Data::I8(Vec::new()),
            DataType::Int16 => Data::I16(Vec::new()),
            DataType::Int32 => Data::I32(Vec::new()),
            DataType::Int64 => Data::I64(Vec::new()),
            DataType::UInt8 => Data::U8(Vec::new()),
            DataType::UInt16 => Data::U16(Vec::new()),
            DataType::UInt32 => Data::U32(Vec::new()),
            DataType::UInt64 => Data::U64(Vec::new()),
            DataType::Float32 => Data::F32(Vec::new()),
            DataType::Float64 => Data::F64(Vec::new()),
            DataType::Utf8View => Data::Text(Vec::new()),
            DataType::BinaryView => Data::Bytes(Vec::new()),
            DataType::Timestamp(TimeUnit::Millisecond, None) => Data::Timestamp(Vec::new()),
            DataType::Date32 => Data::Date(Vec::new()),
            _ => return None,
        };
        Some(Self {
            name: field.name().clone(),
            nullable: field.is_nullable(),
            data,
            nulls: NullBufferBuilder::new(0),
            side: Vec::new(),
            long_bytes: 0,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_nullable(&self) -> bool {
        self.nullable
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self.data, Data::Text(_))
    }

    pub(super) fn len(&self) -> usize {
        each!(&self.data, v => v.len())
    }

    /// Makes room for a batch.
    pub(super) fn reserve(&mut self, rows: usize) {
        each!(&mut self.data, v => v.reserve(rows));
    }

    /// Cuts off what a failed record left behind.
    pub(super) fn truncate(&mut self, rows: usize) {
        each!(&mut self.data, v => v.truncate(rows));
        self.nulls.truncate(rows);
    }

    /// A null, or why there can't be one.
    pub(super) fn push_null(&mut self) -> Result<(), String> {
        if !self.nullable {
            return Err(format!("field '{}' is null, and its column is not nullable", self.name));
        }
        each!(&mut self.data, v => v.push(Default::default()));
        self.nulls.append_null();
        Ok(())
    }

    pub(super) fn push_bool(&mut self, value: bool) -> Result<(), String> {
        match &mut self.data {
            Data::Bool(v) => v.push(value),
            _ => return Err(self.mismatch(if value { b"true" } else { b"false" })),
        }
        self.nulls.append_non_null();
        Ok(())
    }

    /// A number as it is written.
    #[inline]
    pub(super) fn push_number(&mut self, token: &[u8]) -> Result<(), String> {
        let pushed = match &mut self.data {
            Data::I64(v) | Data::Timestamp(v) => push(v, integer(token)),
            Data::I8(v) => push(v, integer(token).and_then(|n| n.try_into().ok())),
            Data::I16(v) => push(v, integer(token).and_then(|n| n.try_into().ok())),
            Data::I32(v) | Data::Date(v) => push(v, integer(token).and_then(|n| n.try_into().ok())),
            Data::U8(v) => push(v, integer(token).and_then(|n| n.try_into().ok())),
            Data::U16(v) => push(v, integer(token).and_then(|n| n.try_into().ok())),
            Data::U32(v) => push(v, integer(token).and_then(|n| n.try_into().ok())),
            Data::U64(v) => push(v, unsigned(token)),
            Data::F32(v) => push(v, std::str::from_utf8(token).ok().and_then(|t| t.parse().ok())),
            Data::F64(v) => push(v, std::str::from_utf8(token).ok().and_then(|t| t.parse().ok())),
            Data::Bool(_) | Data::Text(_) | Data::Bytes(_) => false,
        };
        if !pushed {
            return Err(self.mismatch(token));
        }
        self.nulls.append_non_null();
        Ok(())
    }

    /// A text as JSON has it: for text columns, and for all that JSON writes as a text.
    #[inline]
    pub(super) fn push_text(&mut self, text: &[u8], place: Place) -> Result<(), String> {
        match &mut self.data {
            Data::Text(views) => {
                if text.len() <= INLINE_BYTES {
                    views.push(make_view(text, 0, 0));
                } else {
                    self.long_bytes += text.len();
                    let (block, at) = match place {
                        Place::Chunk(at) => (0, at),
                        Place::Elsewhere => (1, self.side.len()),
                    };
                    if block == 1 {
                        self.side.extend_from_slice(text);
                    }
                    views.push(make_view(text, block, at as u32));
                }
                self.nulls.append_non_null();
                return Ok(());
            }
            Data::Timestamp(v) => match time::parse_timestamp(text) {
                Some(ms) => v.push(ms),
                None => return Err(self.mismatch(text)),
            },
            Data::Date(v) => match time::parse_date(text) {
                Some(day) => v.push(day),
                None => return Err(self.mismatch(text)),
            },
            Data::Bytes(views) => {
                let start = self.side.len();
                if !unhex(text, &mut self.side) {
                    return Err(self.mismatch(text));
                }
                views.push(make_view(self.side.get(start..).unwrap_or_default(), 0, start as u32));
            }
            _ => return Err(format!("{} (a text)", self.mismatch(text))),
        }
        self.nulls.append_non_null();
        Ok(())
    }

    /// A field of a format that has no types.
    #[inline]
    pub(super) fn push_field(&mut self, text: &[u8], place: Place) -> Result<(), String> {
        match &self.data {
            Data::Text(_) | Data::Bytes(_) => self.push_text(text, place),
            Data::Timestamp(_) | Data::Date(_) => {
                let digits = text.strip_prefix(b"-").unwrap_or(text);
                let number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
                if number { self.push_number(text) } else { self.push_text(text, place) }
            }
            Data::Bool(_) => match text {
                b"true" | b"TRUE" | b"True" | b"1" => self.push_bool(true),
                b"false" | b"FALSE" | b"False" | b"0" => self.push_bool(false),
                _ => Err(self.mismatch(text)),
            },
            _ => self.push_number(text),
        }
    }

    /// Why a value does not fit.
    pub(super) fn mismatch(&self, found: &[u8]) -> String {
        let (found, more) = match found.get(..SHOWN) {
            Some(start) => (start, "..."),
            None => (found, ""),
        };
        format!("field '{}' is `{}{more}`, which is no {}", self.name, String::from_utf8_lossy(found), self.expected())
    }

    fn expected(&self) -> &'static str {
        match self.data {
            Data::Bool(_) => "boolean",
            Data::I8(_) => "8-bit integer",
            Data::I16(_) => "16-bit integer",
            Data::I32(_) => "32-bit integer",
            Data::I64(_) => "64-bit integer",
            Data::U8(_) => "unsigned 8-bit integer",
            Data::U16(_) => "unsigned 16-bit integer",
            Data::U32(_) => "unsigned 32-bit integer",
            Data::U64(_) => "unsigned 64-bit integer",
            Data::F32(_) | Data::F64(_) => "number",
            Data::Text(_) => "text",
            Data::Bytes(_) => "text of hexadecimal digits",
            Data::Timestamp(_) => "timestamp (ISO 8601, or milliseconds since 1970)",
            Data::Date(_) => "date (ISO 8601)",
        }
    }

    fn finish(&mut self, chunk: &Buffer, keep_chunk: bool) -> Result<ArrayRef> {
        let nulls = std::mem::replace(&mut self.nulls, NullBufferBuilder::new(0)).finish();
        let side = std::mem::take(&mut self.side);
        self.long_bytes = 0;
        macro_rules! primitive {
            ($v:expr, $type:ty) => {
                Arc::new(PrimitiveArray::<$type>::new(values::<$type>($v), nulls))
            };
        }
        Ok(match &mut self.data {
            Data::Bool(v) => Arc::new(BooleanArray::new(std::mem::take(v).into(), nulls)),
            Data::I8(v) => primitive!(v, Int8Type),
            Data::I16(v) => primitive!(v, Int16Type),
            Data::I32(v) => primitive!(v, Int32Type),
            Data::I64(v) => primitive!(v, Int64Type),
            Data::U8(v) => primitive!(v, UInt8Type),
            Data::U16(v) => primitive!(v, UInt16Type),
            Data::U32(v) => primitive!(v, UInt32Type),
            Data::U64(v) => primitive!(v, UInt64Type),
            Data::F32(v) => primitive!(v, Float32Type),
            Data::F64(v) => primitive!(v, Float64Type),
            Data::Timestamp(v) => primitive!(v, TimestampMillisecondType),
            Data::Date(v) => primitive!(v, Date32Type),
            Data::Bytes(v) => {
                let (views, side) = (ScalarBuffer::from(std::mem::take(v)), Buffer::from_vec(side));
                Arc::new(BinaryViewArray::try_new(views, [side], nulls).map_err(Error::from)?)
            }
            Data::Text(v) => {
                let mut views = std::mem::take(v);
                let buffers = if keep_chunk {
                    vec![chunk.clone(), Buffer::from_vec(side)]
                } else {
                    compact(&mut views, chunk, &side)?
                };
                text_array(views, buffers, nulls)
            }
        })
    }
}

/// The finished columns; afterwards they are empty.
pub(super) fn finish(columns: &mut [Column], chunk: &Buffer) -> Result<Vec<ArrayRef>> {
    let long: usize = columns.iter().map(|c| c.long_bytes).sum();
    let keep_chunk = long * KEPT_FRACTION >= chunk.len() && long > 0;
    columns.iter_mut().map(|column| column.finish(chunk, keep_chunk)).collect()
}

fn values<T: ArrowPrimitiveType>(values: &mut Vec<T::Native>) -> ScalarBuffer<T::Native> {
    ScalarBuffer::from(std::mem::take(values))
}

/// Copies the long texts together, so that neither chunk nor side buffer is needed.
fn compact(views: &mut [u128], chunk: &Buffer, side: &[u8]) -> Result<Vec<Buffer>> {
    let mut bytes = Vec::new();
    for view in views {
        let (length, block, offset) = (*view as u32, (*view >> 64) as u32, (*view >> 96) as u32);
        if length as usize <= INLINE_BYTES {
            continue;
        }
        let from = if block == 0 { chunk.as_slice() } else { side };
        let (start, end) = (offset as usize, offset as usize + length as usize);
        let text = from.get(start..end).ok_or_else(|| Error::internal("a view outside its chunk"))?;
        *view = make_view(text, 0, bytes.len() as u32);
        bytes.extend_from_slice(text);
    }
    Ok(if bytes.is_empty() { Vec::new() } else { vec![Buffer::from_vec(bytes)] })
}

#[inline]
fn push<T>(values: &mut Vec<T>, value: Option<T>) -> bool {
    value.map(|value| values.push(value)).is_some()
}

/// A decimal integer.
#[inline]
fn integer(token: &[u8]) -> Option<i64> {
    let (negative, digits) = match token {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let magnitude = unsigned(digits)?;
    if negative { 0_i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() }
}

#[inline]
fn unsigned(digits: &[u8]) -> Option<u64> {
    // 19 digits can't overflow 64 bits.
    if digits.is_empty() || digits.len() > 19 {
        return std::str::from_utf8(digits).ok()?.parse().ok();
    }
    let mut value = 0_u64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + u64::from(digit);
    }
    Some(value)
}

fn unhex(text: &[u8], out: &mut Vec<u8>) -> bool {
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    let (pairs, rest) = text.as_chunks::<2>();
    rest.is_empty()
        && pairs.iter().all(|[high, low]| match (digit(*high), digit(*low)) {
            (Some(high), Some(low)) => {
                out.push(high << 4 | low);
                true
            }
            _ => false,
        })
}
