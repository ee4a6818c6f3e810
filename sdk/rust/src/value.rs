//! Values of columns: how each type is read from and written to Arrow's layout.
//!
//! A [`Value`] type names a column type; `View<'a>` is what one value looks like in a batch (text is borrowed from it).
//! Readers check once per batch that their buffers are as long as the batch, so that the compiler can drop the checks
//! per row. Writers append.
#![allow(clippy::indexing_slicing, reason = "the hot loops: readers are made for rows 0..n and are asked for those")]

mod option;
mod text;

use tidemill_plan::DataType;

use crate::abi::ColumnView;
use crate::time::{Date, Timestamp};

pub use option::{OptionReader, OptionWriter};
pub use text::{Offsets, TextReader, TextWriter};

/// A type that can be a column of a row, a state or an accumulator.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be a column of a row",
    label = "not a column type",
    note = "columns are i8 to i64, u8 to u64, f32, f64, bool, &str, String, &[u8], Vec<u8>, Timestamp, Date, \
            structs that derive `Row`, and `Option` of these"
)]
pub trait Value: 'static {
    /// A value as it stands in a batch.
    type View<'a>;
    /// Finds the values in a batch.
    type Reader<'a>: Clone;
    /// Collects values for a batch.
    type Writer: Writer;

    /// Whether it can be absent.
    const NULLABLE: bool = false;

    /// The column's type.
    fn data_type() -> DataType;

    /// Takes the column (flattened) off the front.
    fn reader<'a>(columns: &mut Cursor<'_, 'a>, rows: usize) -> Self::Reader<'a>;

    /// The value of a row.
    fn get<'a>(reader: &Self::Reader<'a>, row: usize) -> Self::View<'a>;

    /// Appends a value.
    fn push(writer: &mut Self::Writer, view: &Self::View<'_>);
}

/// A value that outlives its batch: what states and accumulators are made of.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be kept as state",
    note = "state and accumulators own their data: use `String` for `&str`, `Vec<u8>` for `&[u8]`, and structs that \
            derive `Row` without a lifetime"
)]
pub trait Owned: for<'a> Value<View<'a> = Self> + Clone + Send {}

impl<T: for<'a> Value<View<'a> = T> + Clone + Send> Owned for T {}

/// Collects one column.
pub trait Writer: Default + Send {
    /// Makes room.
    fn reserve(&mut self, rows: usize);
    /// Appends a value of no meaning, where an enclosing value is absent.
    fn push_absent(&mut self);
    /// Shows what was collected.
    fn columns<'a>(&'a self, out: &mut Vec<ColumnView<'a>>);
    /// Forgets what was collected.
    fn clear(&mut self);
}

/// Walks over flattened columns: those of a row stand where they stand, those below a struct follow it.
#[derive(Debug)]
pub struct Cursor<'c, 'a> {
    columns: &'c [ColumnView<'a>],
    starts: &'c [u32],
    at: usize,
}

impl<'c, 'a> Cursor<'c, 'a> {
    /// For a row whose columns start at these indices.
    pub fn new(columns: &'c [ColumnView<'a>], starts: &'c [u32]) -> Self {
        Self { columns, starts, at: 0 }
    }

    /// For columns one after the other.
    pub fn all(columns: &'c [ColumnView<'a>]) -> Self {
        Self { columns, starts: &[], at: 0 }
    }

    /// The next column of the row (or struct).
    pub fn field<T: Value>(&mut self, rows: usize) -> T::Reader<'a> {
        // Below a struct there are no starts: what is nested follows.
        let starts = std::mem::take(&mut self.starts);
        let Some((first, rest)) = starts.split_first() else { return T::reader(self, rows) };
        self.at = *first as usize;
        let reader = T::reader(self, rows);
        self.starts = rest;
        reader
    }

    /// The next column without passing it.
    pub fn peek(&self) -> ColumnView<'a> {
        self.columns.get(self.at).copied().unwrap_or_default()
    }

    /// The next column. Panics if there is none: the host sends what the plan reads.
    pub fn take(&mut self) -> ColumnView<'a> {
        let column = self.columns[self.at];
        self.at += 1;
        column
    }
}

/// How many flattened columns a type has.
pub fn flat_width(data_type: &DataType) -> usize {
    match data_type {
        DataType::Struct(fields) => 1 + fields.iter().map(|f| flat_width(&f.data_type)).sum::<usize>(),
        DataType::List(item) => 1 + flat_width(&item.data_type),
        _ => 1,
    }
}

/// Collects fixed-width values.
#[derive(Debug)]
pub struct FixedWriter<const N: usize>(Vec<[u8; N]>);

impl<const N: usize> Default for FixedWriter<N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<const N: usize> Writer for FixedWriter<N> {
    fn reserve(&mut self, rows: usize) {
        self.0.reserve(rows);
    }

    fn push_absent(&mut self) {
        self.0.push([0; N]);
    }

    fn columns<'a>(&'a self, out: &mut Vec<ColumnView<'a>>) {
        out.push(ColumnView { values: self.0.as_flattened(), ..ColumnView::default() });
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

macro_rules! fixed {
    ($($type:ty, $bytes:literal, $data_type:ident, $of:expr, $to:expr;)*) => {$(
        impl Value for $type {
            type View<'a> = Self;
            type Reader<'a> = &'a [[u8; $bytes]];
            type Writer = FixedWriter<$bytes>;

            fn data_type() -> DataType {
                DataType::$data_type
            }

            fn reader<'a>(columns: &mut Cursor<'_, 'a>, rows: usize) -> Self::Reader<'a> {
                &columns.take().values.as_chunks::<$bytes>().0[..rows]
            }

            #[inline(always)]
            fn get<'a>(reader: &Self::Reader<'a>, row: usize) -> Self::View<'a> {
                $of(reader[row])
            }

            #[inline(always)]
            fn push(writer: &mut Self::Writer, view: &Self) {
                writer.0.push($to(*view));
            }
        }
    )*};
}

fixed! {
    i8, 1, Int8, i8::from_le_bytes, i8::to_le_bytes;
    i16, 2, Int16, i16::from_le_bytes, i16::to_le_bytes;
    i32, 4, Int32, i32::from_le_bytes, i32::to_le_bytes;
    i64, 8, Int64, i64::from_le_bytes, i64::to_le_bytes;
    u8, 1, UInt8, u8::from_le_bytes, u8::to_le_bytes;
    u16, 2, UInt16, u16::from_le_bytes, u16::to_le_bytes;
    u32, 4, UInt32, u32::from_le_bytes, u32::to_le_bytes;
    u64, 8, UInt64, u64::from_le_bytes, u64::to_le_bytes;
    f32, 4, Float32, f32::from_le_bytes, f32::to_le_bytes;
    f64, 8, Float64, f64::from_le_bytes, f64::to_le_bytes;
    Timestamp, 8, Timestamp, |b| Timestamp::from_millis(i64::from_le_bytes(b)), |t: Timestamp| t.millis().to_le_bytes();
    Date, 4, Date, |b| Date::from_days(i32::from_le_bytes(b)), |d: Date| d.days().to_le_bytes();
}

/// Bits, least significant first.
#[derive(Debug, Default)]
pub struct Bits {
    bytes: Vec<u8>,
    len: usize,
}

impl Bits {
    /// Appends one.
    #[inline(always)]
    pub fn push(&mut self, bit: bool) {
        if self.len.is_multiple_of(8) {
            self.bytes.push(u8::from(bit));
        } else if let Some(last) = self.bytes.last_mut() {
            *last |= u8::from(bit) << (self.len % 8);
        }
        self.len += 1;
    }

    /// All, padded to a whole byte.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.len = 0;
    }

    fn reserve(&mut self, bits: usize) {
        self.bytes.reserve(bits.div_ceil(8));
    }
}

#[inline(always)]
fn bit(bytes: &[u8], index: usize) -> bool {
    bytes[index / 8] >> (index % 8) & 1 == 1
}

impl Writer for Bits {
    fn reserve(&mut self, rows: usize) {
        Bits::reserve(self, rows);
    }

    fn push_absent(&mut self) {
        self.push(false);
    }

    fn columns<'a>(&'a self, out: &mut Vec<ColumnView<'a>>) {
        out.push(ColumnView { values: &self.bytes, ..ColumnView::default() });
    }

    fn clear(&mut self) {
        Bits::clear(self);
    }
}

impl Value for bool {
    type View<'a> = bool;
    type Reader<'a> = &'a [u8];
    type Writer = Bits;

    fn data_type() -> DataType {
        DataType::Boolean
    }

    fn reader<'a>(columns: &mut Cursor<'_, 'a>, rows: usize) -> &'a [u8] {
        &columns.take().values[..rows.div_ceil(8)]
    }

    #[inline(always)]
    fn get<'a>(reader: &Self::Reader<'a>, row: usize) -> Self::View<'a> {
        bit(reader, row)
    }

    #[inline(always)]
    fn push(writer: &mut Bits, view: &bool) {
        writer.push(*view);
    }
}
