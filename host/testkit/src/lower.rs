//! From Arrow arrays to the buffers that user code reads: shared where the layouts agree.
//!
//! They differ for text (views in the host, offsets and bytes in the contract), for bits that do not start at a byte,
//! and for lists that do not start at offset 0.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::{BooleanBuffer, Buffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowNativeType, DataType as ArrowType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimeUnit, TimestampMillisecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use tidemill::abi::ColumnView;

/// Columns made ready for one call, flattened depth first.
#[derive(Default)]
pub(crate) struct Lowered(Vec<Column>);

#[derive(Default)]
struct Column {
    validity: Option<Buffer>,
    offsets: Option<Buffer>,
    values: Option<Buffer>,
}

impl Lowered {
    /// Of these arrays. The error says what can't be read by user code.
    pub(crate) fn of(arrays: &[ArrayRef]) -> Result<Self, String> {
        let mut lowered = Self::default();
        arrays.iter().try_for_each(|array| lowered.add(array))?;
        Ok(lowered)
    }

    /// As user code sees them.
    pub(crate) fn views(&self) -> Vec<ColumnView<'_>> {
        fn bytes(buffer: &Option<Buffer>) -> &[u8] {
            buffer.as_ref().map_or(&[], |b| b.as_slice())
        }
        let columns = self.0.iter();
        columns
            .map(|c| ColumnView { validity: bytes(&c.validity), offsets: bytes(&c.offsets), values: bytes(&c.values) })
            .collect()
    }

    fn add(&mut self, array: &dyn Array) -> Result<(), String> {
        let nulls = array.nulls().filter(|n| n.null_count() > 0);
        let mut column = Column { validity: nulls.map(|n| bits(n.inner())), ..Column::default() };
        let mut children: Vec<ArrayRef> = Vec::new();
        match array.data_type() {
            ArrowType::Boolean => column.values = Some(bits(array.as_boolean().values())),
            ArrowType::Utf8View => {
                let array = array.as_string_view();
                (column.offsets, column.values) = text(array.views(), array.iter().map(|v| v.map(str::as_bytes)))?;
            }
            ArrowType::BinaryView => {
                let array = array.as_binary_view();
                (column.offsets, column.values) = text(array.views(), array.iter())?;
            }
            ArrowType::Struct(_) => children.extend(array.as_struct().columns().iter().cloned()),
            ArrowType::List(_) => {
                let list = array.as_list::<i32>();
                let ends: &[i32] = list.offsets();
                let (first, last) =
                    (ends.first().copied().unwrap_or_default(), ends.last().copied().unwrap_or_default());
                let offsets: Vec<i32> = list.offsets().iter().map(|o| o - first).collect();
                column.offsets = Some(Buffer::from_vec(offsets));
                children.push(list.values().slice(first as usize, (last - first) as usize));
            }
            other => {
                column.values =
                    Some(fixed_width(array).ok_or_else(|| format!("user code can't read a column of type {other}"))?);
            }
        }
        self.0.push(column);
        children.iter().try_for_each(|child| self.add(child))
    }
}

fn bits(bits: &BooleanBuffer) -> Buffer {
    // Shares the buffer where the bits start at a byte, else shifts them into a new one.
    bits.sliced()
}

type Text = (Option<Buffer>, Option<Buffer>);

/// A view begins with the length of its text.
fn text<'a>(views: &[u128], texts: impl Iterator<Item = Option<&'a [u8]>>) -> Result<Text, String> {
    let total = views.iter().map(|&view| u64::from(view as u32)).sum::<u64>();
    if total > i32::MAX as u64 {
        return Err(format!("a text column of {total} bytes in one batch; 2 GiB are possible"));
    }
    let mut offsets: Vec<i32> = Vec::with_capacity(views.len() + 1);
    let mut values: Vec<u8> = Vec::with_capacity(total as usize);
    offsets.push(0);
    for text in texts {
        values.extend_from_slice(text.unwrap_or_default());
        offsets.push(values.len() as i32);
    }
    Ok((Some(Buffer::from_vec(offsets)), Some(Buffer::from_vec(values))))
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
