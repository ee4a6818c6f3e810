//! Integers of 8 bytes in fewer: those of one column of a batch are mostly near each other, so that what they are above a
//! common base takes one, two or four bytes. What that saves and costs: `docs/decisions/0016-packed-integers.md`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, Int64Array, PrimitiveArray, make_array};
use arrow::datatypes::{DataType, UInt8Type, UInt16Type, UInt32Type};
use tidemill_core::{Error, Result};

use crate::proto::Packed;

/// Of fewer rows, nothing is packed: it would save less than saying so takes.
const MIN_ROWS: usize = 64;

/// As it is.
const PLAIN: Packed = Packed { width: 0, base: 0 };

/// Whether values of this type are integers of 8 bytes.
fn is_long(of: &DataType) -> bool {
    use DataType::{Date64, Duration, Int64, Time64, Timestamp, UInt64};
    matches!(of, Int64 | UInt64 | Timestamp(..) | Date64 | Time64(_) | Duration(_))
}

/// The same bits as values of another type.
fn retyped(array: &dyn Array, to: DataType) -> Result<ArrayRef> {
    Ok(make_array(array.to_data().into_builder().data_type(to).build()?))
}

/// A column in as few bytes as its values need, and how to read it.
pub(crate) fn pack(column: &ArrayRef) -> Result<(Packed, ArrayRef)> {
    let as_it_is = || Ok((PLAIN, Arc::clone(column)));
    if !is_long(column.data_type()) || column.len() < MIN_ROWS {
        return as_it_is();
    }
    let longs = retyped(column, DataType::Int64)?;
    let longs: &Int64Array = longs.as_primitive();
    let Some(&first) = longs.values().first() else { return as_it_is() };
    // Which bits are in use if the base is so much below the first value that this is in the middle of what fits.
    let (mut one, mut two, mut four) = (0u64, 0u64, 0u64);
    for &value in longs.values() {
        let above = value.wrapping_sub(first) as u64;
        one |= above.wrapping_add(1 << 7);
        two |= above.wrapping_add(1 << 15);
        four |= above.wrapping_add(1 << 31);
    }
    if one >> 8 == 0 {
        Ok(narrow::<UInt8Type>(longs, first, |above| above as u8))
    } else if two >> 16 == 0 {
        Ok(narrow::<UInt16Type>(longs, first, |above| above as u16))
    } else if four >> 32 == 0 {
        Ok(narrow::<UInt32Type>(longs, first, |above| above as u32))
    } else {
        as_it_is()
    }
}

/// Values as what they are above a base that is half of what fits below the first of them.
fn narrow<T: ArrowPrimitiveType>(longs: &Int64Array, first: i64, cut: impl Fn(i64) -> T::Native) -> (Packed, ArrayRef) {
    let width = size_of::<T::Native>() as u32;
    let base = first.wrapping_sub(1 << (8 * width - 1));
    let above: Vec<T::Native> = longs.values().iter().map(|value| cut(value.wrapping_sub(base))).collect();
    (Packed { width, base }, Arc::new(PrimitiveArray::<T>::new(above.into(), longs.nulls().cloned())))
}

/// The type that a column of this type has on the wire.
///
/// # Errors
/// It can't be packed so.
pub(crate) fn wire_type(of: &DataType, packed: &Packed) -> Result<DataType> {
    match packed.width {
        0 => Ok(of.clone()),
        1 if is_long(of) => Ok(DataType::UInt8),
        2 if is_long(of) => Ok(DataType::UInt16),
        4 if is_long(of) => Ok(DataType::UInt32),
        width => Err(Error::invalid(format!("a column of type {of} can't take {width} bytes a value"))),
    }
}

/// A column of this type out of what is on the wire, which has the type that goes with it.
pub(crate) fn unpack(column: &ArrayRef, packed: &Packed, to: &DataType) -> Result<ArrayRef> {
    match column.data_type() {
        DataType::UInt8 if packed.width == 1 => widen::<UInt8Type>(column, packed.base, to),
        DataType::UInt16 if packed.width == 2 => widen::<UInt16Type>(column, packed.base, to),
        DataType::UInt32 if packed.width == 4 => widen::<UInt32Type>(column, packed.base, to),
        _ => Ok(Arc::clone(column)),
    }
}

fn widen<T: ArrowPrimitiveType<Native: Into<i64>>>(column: &ArrayRef, base: i64, to: &DataType) -> Result<ArrayRef> {
    let above = column.as_primitive::<T>();
    let longs: Vec<i64> = above.values().iter().map(|&above| base.wrapping_add(above.into())).collect();
    retyped(&Int64Array::new(longs.into(), above.nulls().cloned()), to.clone())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, TimestampMicrosecondArray, UInt64Array};
    use arrow::buffer::NullBuffer;
    use arrow::datatypes::TimeUnit;

    use super::*;

    /// Packs and unpacks; answers the width.
    fn round_trip(column: ArrayRef) -> u32 {
        let (packed, narrow) = pack(&column).unwrap();
        assert_eq!(*narrow.data_type(), wire_type(column.data_type(), &packed).unwrap());
        assert_eq!(unpack(&narrow, &packed, column.data_type()).unwrap().as_ref(), column.as_ref());
        packed.width
    }

    fn longs(values: impl IntoIterator<Item = i64>) -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(values))
    }

    #[test]
    fn values_take_what_their_distances_need() {
        for (reach, width) in [(7, 1), (15, 2), (31, 4)] {
            let (down, up) = (-(1i64 << reach), (1i64 << reach) - 1);
            for first in [0, 1_700_000_000_000, i64::MAX, i64::MIN, -5] {
                let near = |offset: i64| (0..100).map(move |i| first.wrapping_add(if i == 0 { 0 } else { offset }));
                assert_eq!(round_trip(longs(near(down))), width, "{first} and {down}");
                assert_eq!(round_trip(longs(near(up))), width, "{first} and {up}");
                let next = if width == 4 { 0 } else { width * 2 };
                assert_eq!(round_trip(longs(near(down - 1))), next, "{first} and one below {down}");
                assert_eq!(round_trip(longs(near(up + 1))), next, "{first} and one above {up}");
            }
        }
        assert_eq!(round_trip(longs((0..100).map(|i| if i % 2 == 0 { i64::MIN } else { i64::MAX - 1 }))), 1);
        assert_eq!(round_trip(longs((0..100).map(|i: i64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64)))), 0);
    }

    #[test]
    fn a_column_keeps_its_type_its_nulls_and_its_place_in_a_longer_one() {
        let nulls: NullBuffer = (0..200).map(|i| i % 3 > 0).collect();
        let times = TimestampMicrosecondArray::new((0..200).collect::<Vec<i64>>().into(), Some(nulls));
        assert_eq!(round_trip(Arc::new(times.clone().with_timezone("Europe/Zurich"))), 2);
        assert_eq!(round_trip(Arc::new(times.slice(50, 70))), 1);
        assert_eq!(round_trip(Arc::new(UInt64Array::from_iter_values((0..100).map(|i| u64::MAX - i)))), 1);
        assert_eq!(round_trip(Arc::new(UInt64Array::from_iter_values((0..100).map(|i| (1 << 63) - 50 + i)))), 1);
    }

    #[test]
    fn few_rows_and_other_types_stay_as_they_are() {
        assert_eq!(round_trip(longs(0..MIN_ROWS as i64)), 1);
        assert_eq!(round_trip(longs(0..MIN_ROWS as i64 - 1)), 0);
        assert_eq!(round_trip(longs([])), 0);
        assert_eq!(round_trip(Arc::new(Float64Array::from(vec![1.5; 100]))), 0);
    }

    #[test]
    fn what_nobody_packs_is_refused() {
        let long = DataType::Timestamp(TimeUnit::Millisecond, None);
        for (of, width) in [(&long, 3), (&long, 8), (&DataType::Utf8, 1), (&DataType::Float64, 4)] {
            let error = wire_type(of, &Packed { width, base: 0 }).unwrap_err();
            assert!(error.to_string().contains(&format!("{width} bytes a value")), "{error}");
        }
    }
}
