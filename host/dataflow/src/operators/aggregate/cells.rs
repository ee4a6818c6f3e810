//! Accumulators of one column, out of state: what is gathered, combined and put back.
//!
//! Invariant: values and presence have the same length; an absent value is 0.
#![allow(clippy::indexing_slicing, reason = "slots were answered by the namespace whose columns are read and written")]

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, PrimitiveArray, UInt32Array};
use arrow::buffer::NullBuffer;
use arrow::compute;
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimestampMillisecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use tidemill_core::state::{NO_SLOT, Slot, ValueColumn};
use tidemill_core::{Error, Result};

use super::fold::{max_float, min_float};
use super::{Combine, wrong_kind};

/// Accumulators of some groups.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the kinds of tidemill_core::state::ValueColumn")]
pub(in crate::operators) enum Cells {
    Int {
        values: Vec<i64>,
        present: Vec<bool>,
    },
    UInt {
        values: Vec<u64>,
        present: Vec<bool>,
    },
    Float {
        values: Vec<f64>,
        present: Vec<bool>,
    },
    /// Of user aggregators: null = none.
    Array(ArrayRef),
}

impl Cells {
    /// The values at these slots.
    pub(super) fn gather(from: &ValueColumn, present: &[bool], slots: &[Slot]) -> Result<Self> {
        fn take<N: Copy + Default>(from: &[N], present: &[bool], slots: &[Slot]) -> (Vec<N>, Vec<bool>) {
            if slots.contains(&NO_SLOT) {
                let at = |slot: Slot| (slot != NO_SLOT).then_some(slot as usize);
                let values = slots.iter().map(|&s| at(s).map_or(N::default(), |s| from[s])).collect();
                return (values, slots.iter().map(|&s| at(s).is_some_and(|s| present[s])).collect());
            }
            let values = slots.iter().map(|&s| from[s as usize]).collect();
            (values, slots.iter().map(|&s| present[s as usize]).collect())
        }
        Ok(match from {
            ValueColumn::Int(from) => {
                let (values, present) = take(from, present, slots);
                Self::Int { values, present }
            }
            ValueColumn::UInt(from) => {
                let (values, present) = take(from, present, slots);
                Self::UInt { values, present }
            }
            ValueColumn::Float(from) => {
                let (values, present) = take(from, present, slots);
                Self::Float { values, present }
            }
            ValueColumn::Encoded(_) => return Err(wrong_kind(from)),
        })
    }

    /// Those with these indices ([`super::NONE`]: none), in this order.
    pub(super) fn take(&self, indices: &[u32]) -> Result<Self> {
        fn take<N: Copy + Default>(values: &[N], present: &[bool], indices: &[u32]) -> (Vec<N>, Vec<bool>) {
            let value = |&i: &u32| values.get(i as usize).copied().unwrap_or_default();
            let there = |&i: &u32| present.get(i as usize).copied().unwrap_or_default();
            (indices.iter().map(value).collect(), indices.iter().map(there).collect())
        }
        Ok(match self {
            Self::Int { values, present } => {
                let (values, present) = take(values, present, indices);
                Self::Int { values, present }
            }
            Self::UInt { values, present } => {
                let (values, present) = take(values, present, indices);
                Self::UInt { values, present }
            }
            Self::Float { values, present } => {
                let (values, present) = take(values, present, indices);
                Self::Float { values, present }
            }
            Self::Array(array) => {
                let indices: UInt32Array = indices.iter().map(|&i| (i != super::NONE).then_some(i)).collect();
                Self::Array(compute::take(array, &indices, None)?)
            }
        })
    }

    /// Appends others of the same kind.
    pub(super) fn append(&mut self, other: Self) -> Result<()> {
        match (self, other) {
            (Self::Int { values, present }, Self::Int { values: more, present: there }) => {
                values.extend(more);
                present.extend(there);
            }
            (Self::UInt { values, present }, Self::UInt { values: more, present: there }) => {
                values.extend(more);
                present.extend(there);
            }
            (Self::Float { values, present }, Self::Float { values: more, present: there }) => {
                values.extend(more);
                present.extend(there);
            }
            (Self::Array(array), Self::Array(more)) => *array = compute::concat(&[array.as_ref(), more.as_ref()])?,
            _ => return Err(Error::internal("accumulators of two kinds")),
        }
        Ok(())
    }

    /// Writes the values to these slots.
    pub(super) fn scatter(&self, to: &mut ValueColumn, to_present: &mut [bool], slots: &[Slot]) -> Result<()> {
        fn write<N: Copy>(to: &mut [N], to_present: &mut [bool], slots: &[Slot], values: &[N], present: &[bool]) {
            for ((&slot, &value), &there) in slots.iter().zip(values).zip(present) {
                to[slot as usize] = value;
                to_present[slot as usize] = there;
            }
        }
        match (self, to) {
            (Self::Int { values, present }, ValueColumn::Int(to)) => write(to, to_present, slots, values, present),
            (Self::UInt { values, present }, ValueColumn::UInt(to)) => write(to, to_present, slots, values, present),
            (Self::Float { values, present }, ValueColumn::Float(to)) => write(to, to_present, slots, values, present),
            (_, to) => return Err(wrong_kind(to)),
        }
        Ok(())
    }

    /// Combines with others of the same groups; whether a sum overflowed.
    pub(super) fn absorb(&mut self, other: &Self, combine: Combine) -> Result<bool> {
        let mut overflowed = false;
        match (self, other) {
            (Self::Int { values, present }, Self::Int { values: other, present: there }) => match combine {
                Combine::Min => pairs(values, present, other, there, |a, b| a.min(b)),
                Combine::Max => pairs(values, present, other, there, |a, b| a.max(b)),
                _ => pairs(values, present, other, there, |a, b| {
                    let (sum, over) = a.overflowing_add(b);
                    overflowed |= over;
                    sum
                }),
            },
            (Self::UInt { values, present }, Self::UInt { values: other, present: there }) => match combine {
                Combine::Min => pairs(values, present, other, there, |a, b| a.min(b)),
                Combine::Max => pairs(values, present, other, there, |a, b| a.max(b)),
                _ => pairs(values, present, other, there, |a, b| {
                    let (sum, over) = a.overflowing_add(b);
                    overflowed |= over;
                    sum
                }),
            },
            (Self::Float { values, present }, Self::Float { values: other, present: there }) => match combine {
                Combine::Min => pairs(values, present, other, there, min_float),
                Combine::Max => pairs(values, present, other, there, max_float),
                _ => pairs(values, present, other, there, |a, b| a + b),
            },
            _ => return Err(Error::internal("accumulators of two kinds")),
        }
        Ok(overflowed)
    }

    /// As a column of this type.
    pub(super) fn to_array(&self, data_type: &DataType) -> Result<ArrayRef> {
        macro_rules! array {
            ($t:ty, $values:ident, $present:ident) => {{
                let native = $values.iter().map(|&v| v as <$t as ArrowPrimitiveType>::Native);
                let nulls = $present.contains(&false).then(|| NullBuffer::from($present.as_slice()));
                Ok(Arc::new(PrimitiveArray::<$t>::new(native.collect(), nulls)))
            }};
        }
        match (data_type, self) {
            (DataType::Int8, Self::Int { values, present }) => array!(Int8Type, values, present),
            (DataType::Int16, Self::Int { values, present }) => array!(Int16Type, values, present),
            (DataType::Int32, Self::Int { values, present }) => array!(Int32Type, values, present),
            (DataType::Int64, Self::Int { values, present }) => array!(Int64Type, values, present),
            (DataType::Date32, Self::Int { values, present }) => array!(Date32Type, values, present),
            (DataType::Timestamp(_, _), Self::Int { values, present }) => {
                array!(TimestampMillisecondType, values, present)
            }
            (DataType::UInt8, Self::UInt { values, present }) => array!(UInt8Type, values, present),
            (DataType::UInt16, Self::UInt { values, present }) => array!(UInt16Type, values, present),
            (DataType::UInt32, Self::UInt { values, present }) => array!(UInt32Type, values, present),
            (DataType::UInt64, Self::UInt { values, present }) => array!(UInt64Type, values, present),
            (DataType::Float32, Self::Float { values, present }) => array!(Float32Type, values, present),
            (DataType::Float64, Self::Float { values, present }) => array!(Float64Type, values, present),
            (other, _) => Err(Error::internal(format!("an accumulator as {other}"))),
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Int { values, .. } => values.capacity() * 9,
            Self::UInt { values, .. } => values.capacity() * 9,
            Self::Float { values, .. } => values.capacity() * 9,
            Self::Array(array) => array.get_array_memory_size(),
        }
    }
}

fn pairs<N: Copy>(
    values: &mut [N],
    present: &mut [bool],
    other: &[N],
    there: &[bool],
    mut combine: impl FnMut(N, N) -> N,
) {
    for (((value, present), &other), &there) in values.iter_mut().zip(present).zip(other).zip(there) {
        if there {
            *value = if *present { combine(*value, other) } else { other };
            *present = true;
        }
    }
}
