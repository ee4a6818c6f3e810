//! From Arrow arrays to the buffers that a guest is given, without copying where the layouts agree.
//!
//! They differ for text (views in the host, offsets and bytes in the contract), for bits that do not start at a byte,
//! and for lists that do not start at offset 0. Those are laid out in scratch buffers that are used again and again.

#![allow(clippy::indexing_slicing, reason = "per-row loops over buffers that are sized just before")]

use arrow::array::{Array, AsArray};
use arrow::buffer::{BooleanBuffer, Buffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowNativeType, DataType as ArrowType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimeUnit, TimestampMillisecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};

use crate::crossing::Column;

/// Bytes for the guest: an Arrow buffer as it is, or scratch.
#[derive(Debug, Default)]
enum Bytes {
    #[default]
    Empty,
    Arrow(Buffer),
    Scratch {
        buffer: Vec<u8>,
        length: usize,
    },
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Arrow(buffer) => buffer.as_slice(),
            Self::Scratch { buffer, length } => &buffer[..*length],
        }
    }
}

#[derive(Debug, Default)]
struct Lowered {
    validity: Bytes,
    offsets: Bytes,
    values: Bytes,
}

/// Columns made ready for one call.
#[derive(Debug, Default)]
pub(crate) struct Lowering {
    columns: Vec<Lowered>,
    /// Scratch buffers that are free. Their length is what was ever initialised, so that nothing is zeroed twice.
    free: Vec<Vec<u8>>,
}

impl Lowering {
    /// Forgets the columns of the call before.
    pub(crate) fn clear(&mut self) {
        for column in self.columns.drain(..) {
            for bytes in [column.validity, column.offsets, column.values] {
                if let Bytes::Scratch { buffer, .. } = bytes {
                    self.free.push(buffer);
                }
            }
        }
    }

    /// Adds an array, flattened. The error says why it can't cross.
    pub(crate) fn add(&mut self, array: &dyn Array) -> Result<(), String> {
        let validity = match array.nulls().filter(|n| n.null_count() > 0) {
            Some(nulls) => bits(nulls.inner()),
            None => Bytes::Empty,
        };
        let at = self.columns.len();
        self.columns.push(Lowered { validity, ..Lowered::default() });
        let (offsets, values) = match array.data_type() {
            ArrowType::Boolean => (Bytes::Empty, bits(array.as_boolean().values())),
            ArrowType::Utf8View | ArrowType::BinaryView => self.views(array)?,
            ArrowType::Struct(_) => {
                for child in array.as_struct().columns() {
                    self.add(child)?;
                }
                (Bytes::Empty, Bytes::Empty)
            }
            ArrowType::List(_) => {
                let list = array.as_list::<i32>();
                let offsets = list.offsets();
                let (first, last) = (offsets[0], offsets[list.len()]);
                self.add(&list.values().slice(first as usize, (last - first) as usize))?;
                (self.rebased(offsets, first), Bytes::Empty)
            }
            other => {
                let values = fixed_width(array).ok_or_else(|| format!("a column of type {other} can't cross"))?;
                (Bytes::Empty, Bytes::Arrow(values))
            }
        };
        self.columns[at].offsets = offsets;
        self.columns[at].values = values;
        Ok(())
    }

    /// The columns for the call.
    pub(crate) fn columns(&self) -> Vec<Column<'_>> {
        self.columns.iter().map(column_of).collect()
    }

    fn scratch(&mut self, length: usize) -> Vec<u8> {
        let mut buffer = self.free.pop().unwrap_or_default();
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        buffer
    }

    fn rebased(&mut self, offsets: &[i32], first: i32) -> Bytes {
        let length = offsets.len() * 4;
        let mut buffer = self.scratch(length);
        for (to, offset) in buffer.chunks_exact_mut(4).zip(offsets) {
            to.copy_from_slice(&(offset - first).to_le_bytes());
        }
        Bytes::Scratch { buffer, length }
    }

    /// Text or bytes: offsets and values from views.
    fn views(&mut self, array: &dyn Array) -> Result<(Bytes, Bytes), String> {
        /// A value that lies in its view has at most 12 bytes; all 12 are copied, which is faster than asking.
        const INLINE: usize = 12;
        let (views, data): (&[u128], &[Buffer]) = match array.data_type() {
            ArrowType::Utf8View => (array.as_string_view().views(), array.as_string_view().data_buffers()),
            _ => (array.as_binary_view().views(), array.as_binary_view().data_buffers()),
        };
        let total: u64 = views.iter().map(|&view| u64::from(view as u32)).sum();
        if total > i32::MAX as u64 {
            return Err(format!("a text column of {total} bytes in one batch; 2 GiB can cross. Use smaller batches."));
        }
        let offsets_length = (views.len() + 1) * 4;
        let mut offsets = self.scratch(offsets_length);
        let mut values = self.scratch(total as usize + INLINE);
        offsets[..4].fill(0);
        let mut end = 0usize;
        for (&view, to) in views.iter().zip(offsets[4..].chunks_exact_mut(4)) {
            let length = view as u32 as usize;
            if length <= INLINE {
                values[end..end + INLINE].copy_from_slice(&view.to_le_bytes()[4..]);
            } else {
                let (buffer, start) = ((view >> 64) as u32 as usize, (view >> 96) as u32 as usize);
                values[end..end + length].copy_from_slice(&data[buffer][start..start + length]);
            }
            end += length;
            to.copy_from_slice(&(end as i32).to_le_bytes());
        }
        Ok((Bytes::Scratch { buffer: offsets, length: offsets_length }, Bytes::Scratch { buffer: values, length: end }))
    }
}

fn column_of(c: &Lowered) -> Column<'_> {
    Column { validity: c.validity.as_slice(), offsets: c.offsets.as_slice(), values: c.values.as_slice() }
}

fn bits(bits: &BooleanBuffer) -> Bytes {
    // Shares the buffer where the bits start at a byte, else shifts them into a new one.
    Bytes::Arrow(bits.sliced().slice_with_length(0, bits.len().div_ceil(8)))
}

fn fixed_width(array: &dyn Array) -> Option<Buffer> {
    fn of<T: ArrowNativeType>(values: &ScalarBuffer<T>) -> Option<Buffer> {
        Some(values.inner().clone())
    }
    match array.data_type() {
        ArrowType::Int8 => of(array.as_primitive::<Int8Type>().values()),
        ArrowType::Int16 => of(array.as_primitive::<Int16Type>().values()),
        ArrowType::Int32 => of(array.as_primitive::<Int32Type>().values()),
        ArrowType::Int64 => of(array.as_primitive::<Int64Type>().values()),
        ArrowType::UInt8 => of(array.as_primitive::<UInt8Type>().values()),
        ArrowType::UInt16 => of(array.as_primitive::<UInt16Type>().values()),
        ArrowType::UInt32 => of(array.as_primitive::<UInt32Type>().values()),
        ArrowType::UInt64 => of(array.as_primitive::<UInt64Type>().values()),
        ArrowType::Float32 => of(array.as_primitive::<Float32Type>().values()),
        ArrowType::Float64 => of(array.as_primitive::<Float64Type>().values()),
        ArrowType::Date32 => of(array.as_primitive::<Date32Type>().values()),
        ArrowType::Timestamp(TimeUnit::Millisecond, _) => of(array.as_primitive::<TimestampMillisecondType>().values()),
        _ => None,
    }
}
