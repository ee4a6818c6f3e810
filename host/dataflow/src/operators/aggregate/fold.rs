//! The inner loops that add rows to accumulators in place: one random access per row, no branch that depends on data
//! where it can be avoided.
//!
//! Invariant: `slots` has one slot per row, all of them resolved in the namespace whose columns are written.
#![allow(clippy::indexing_slicing, reason = "slots were resolved in these columns, rows lie within their batch")]

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimestampMillisecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use tidemill_core::state::{Slot, ValueColumn};
use tidemill_core::{Error, Result};

use super::{Combine, wrong_kind};

/// Counts rows (that are not null). A count can't overflow: that many rows do not exist.
pub(super) fn count(
    to: &mut ValueColumn,
    present: &mut [bool],
    nulls: Option<&NullBuffer>,
    rows: Option<&[u32]>,
    slots: &[Slot],
) -> Result<bool> {
    let ValueColumn::Int(to) = to else { return Err(wrong_kind(to)) };
    match nulls {
        None => {
            for &slot in slots {
                to[slot as usize] += 1;
                present[slot as usize] = true;
            }
        }
        Some(nulls) => {
            for (i, &slot) in slots.iter().enumerate() {
                let row = rows.map_or(i, |rows| rows[i] as usize);
                to[slot as usize] += i64::from(nulls.is_valid(row));
                present[slot as usize] = true;
            }
        }
    }
    Ok(false)
}

/// Adds the values of a column; whether one of the sums overflowed.
pub(super) fn values(
    to: &mut ValueColumn,
    present: &mut [bool],
    column: &ArrayRef,
    rows: Option<&[u32]>,
    slots: &[Slot],
    combine: Combine,
) -> Result<bool> {
    macro_rules! fold {
        ($t:ty, $kind:ident, $native:ty, $ops:ident) => {{
            let ValueColumn::$kind(to) = to else { return Err(wrong_kind(to)) };
            let array = column.as_primitive::<$t>();
            let rows = Rows { values: array.values(), nulls: array.nulls(), rows, slots };
            Ok($ops(to, present, rows, |v: <$t as ArrowPrimitiveType>::Native| v as $native, combine))
        }};
    }
    match column.data_type() {
        DataType::Int8 => fold!(Int8Type, Int, i64, ints),
        DataType::Int16 => fold!(Int16Type, Int, i64, ints),
        DataType::Int32 => fold!(Int32Type, Int, i64, ints),
        DataType::Int64 => fold!(Int64Type, Int, i64, ints),
        DataType::Date32 => fold!(Date32Type, Int, i64, ints),
        DataType::Timestamp(_, _) => fold!(TimestampMillisecondType, Int, i64, ints),
        DataType::UInt8 => fold!(UInt8Type, UInt, u64, uints),
        DataType::UInt16 => fold!(UInt16Type, UInt, u64, uints),
        DataType::UInt32 => fold!(UInt32Type, UInt, u64, uints),
        DataType::UInt64 => fold!(UInt64Type, UInt, u64, uints),
        DataType::Float32 => fold!(Float32Type, Float, f64, floats),
        DataType::Float64 => fold!(Float64Type, Float, f64, floats),
        other => Err(Error::internal(format!("an aggregate over {other}"))),
    }
}

/// The larger of two floats in the total order of IEEE 754, in which NaN is above all numbers: the same whatever the
/// order of the rows.
pub(super) fn max_float(a: f64, b: f64) -> f64 {
    if a.total_cmp(&b).is_ge() { a } else { b }
}

/// As [`max_float`], the smaller.
pub(super) fn min_float(a: f64, b: f64) -> f64 {
    if a.total_cmp(&b).is_le() { a } else { b }
}

/// The rows to add.
#[derive(Clone, Copy)]
struct Rows<'a, V> {
    values: &'a [V],
    nulls: Option<&'a NullBuffer>,
    /// Which rows of the batch; none = all.
    rows: Option<&'a [u32]>,
    slots: &'a [Slot],
}

fn ints<V: Copy>(
    to: &mut [i64],
    present: &mut [bool],
    rows: Rows<'_, V>,
    convert: impl Fn(V) -> i64,
    combine: Combine,
) -> bool {
    let mut overflowed = false;
    match combine {
        Combine::Min => each(to, present, rows, |a, v| a.min(v), convert),
        Combine::Max => each(to, present, rows, |a, v| a.max(v), convert),
        _ => {
            let add = |a: i64, v| {
                let (sum, over) = a.overflowing_add(v);
                overflowed |= over;
                sum
            };
            each(to, present, rows, add, convert);
        }
    }
    overflowed
}

fn uints<V: Copy>(
    to: &mut [u64],
    present: &mut [bool],
    rows: Rows<'_, V>,
    convert: impl Fn(V) -> u64,
    combine: Combine,
) -> bool {
    let mut overflowed = false;
    match combine {
        Combine::Min => each(to, present, rows, |a, v| a.min(v), convert),
        Combine::Max => each(to, present, rows, |a, v| a.max(v), convert),
        _ => {
            let add = |a: u64, v| {
                let (sum, over) = a.overflowing_add(v);
                overflowed |= over;
                sum
            };
            each(to, present, rows, add, convert);
        }
    }
    overflowed
}

fn floats<V: Copy>(
    to: &mut [f64],
    present: &mut [bool],
    rows: Rows<'_, V>,
    convert: impl Fn(V) -> f64,
    combine: Combine,
) -> bool {
    match combine {
        Combine::Min => each(to, present, rows, min_float, convert),
        Combine::Max => each(to, present, rows, max_float, convert),
        _ => each(to, present, rows, |a, v| a + v, convert),
    }
    false
}

fn each<N: Copy, V: Copy>(
    to: &mut [N],
    present: &mut [bool],
    rows: Rows<'_, V>,
    mut combine: impl FnMut(N, N) -> N,
    convert: impl Fn(V) -> N,
) {
    let Rows { values, nulls, rows, slots } = rows;
    let mut one = |value: V, slot: Slot| {
        let slot = slot as usize;
        let value = convert(value);
        to[slot] = if present[slot] { combine(to[slot], value) } else { value };
        present[slot] = true;
    };
    match (rows, nulls) {
        (None, None) => values.iter().zip(slots).for_each(|(&value, &slot)| one(value, slot)),
        (None, Some(nulls)) => {
            let valid = nulls.iter().zip(values.iter().zip(slots)).filter(|(valid, _)| *valid);
            valid.for_each(|(_, (&value, &slot))| one(value, slot));
        }
        (Some(rows), None) => rows.iter().zip(slots).for_each(|(&row, &slot)| one(values[row as usize], slot)),
        (Some(rows), Some(nulls)) => {
            let valid = rows.iter().zip(slots).filter(|(row, _)| nulls.is_valid(**row as usize));
            valid.for_each(|(&row, &slot)| one(values[row as usize], slot));
        }
    }
}
