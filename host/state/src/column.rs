//! The resident values of one column: from and to Arrow arrays, by slot.
//!
//! Invariant: a column's values and their presence have the same length, the number of slots of their namespace; a slot
//! that has no value holds 0 or nothing.
#![allow(clippy::indexing_slicing, reason = "slots were answered by the same namespace; checking again costs a branch")]

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, PrimitiveArray, new_null_array};
use arrow::buffer::{BooleanBuffer, NullBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit,
    TimestampMillisecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_row::{RowConverter, SortField};
use tidemill_core::state::{LastAccess, NO_SLOT, Slot, ValueColumn, ValueSpec};
use tidemill_core::{Error, Result};

use crate::collection::Collection;

/// How the values of a declared column are held.
#[derive(Debug)]
pub(crate) struct ColumnCodec {
    name: String,
    data_type: DataType,
    last_access: Option<LastAccess>,
    /// For types that are held encoded, but for lists and maps that can be changed by items and entries.
    rows: Option<RowConverter>,
    /// For those.
    collection: Option<Collection>,
}

macro_rules! held {
    ($macro:ident) => {
        $macro! {
            Int: i64 {
                Int8 => Int8Type, Int16 => Int16Type, Int32 => Int32Type, Int64 => Int64Type, Date32 => Date32Type
            }
            UInt: u64 { UInt8 => UInt8Type, UInt16 => UInt16Type, UInt32 => UInt32Type, UInt64 => UInt64Type }
            Float: f64 { Float32 => Float32Type, Float64 => Float64Type }
        }
    };
}

const MILLISECONDS: DataType = DataType::Timestamp(TimeUnit::Millisecond, None);

impl ColumnCodec {
    pub(crate) fn new(spec: &ValueSpec) -> Result<Self> {
        let refused = |e| {
            Error::invalid(format!("the state '{}' can't be of type {}: {e}", spec.name, spec.data_type))
                .mend("Give the state another type.")
        };
        let collection = Collection::new(&spec.data_type).map_err(refused)?;
        let encoded = collection.is_none() && matches!(new_column(&spec.data_type), ValueColumn::Encoded(_));
        let rows = encoded.then(|| RowConverter::new(vec![SortField::new(spec.data_type.clone())])).transpose();
        let rows = rows.map_err(refused)?;
        let ValueSpec { name, data_type, last_access } = spec.clone();
        Ok(Self { name, data_type, last_access, rows, collection })
    }

    /// As it was declared.
    pub(crate) fn spec(&self) -> ValueSpec {
        let (name, data_type) = (self.name.clone(), self.data_type.clone());
        ValueSpec { name, data_type, last_access: self.last_access.clone() }
    }

    pub(crate) fn data_type(&self) -> &DataType {
        &self.data_type
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A column without slots.
    pub(crate) fn new_column(&self) -> ValueColumn {
        new_column(&self.data_type)
    }

    /// The values at these slots; null where there is none.
    pub(crate) fn read(&self, column: &ValueColumn, present: &[bool], slots: &[Slot]) -> Result<ArrayRef> {
        let nulls = nulls_at(present, slots);
        macro_rules! arrays {
            ($($kind:ident: $native:ty { $($variant:ident => $t:ty),* })*) => {
                match (&self.data_type, column) {
                    $($((DataType::$variant, ValueColumn::$kind(values)) => {
                        gather::<$t, $native>(values, slots, nulls, |v| v as <$t as ArrowPrimitiveType>::Native)
                    })*)*
                    (t, ValueColumn::Int(values)) if *t == MILLISECONDS => {
                        gather::<TimestampMillisecondType, i64>(values, slots, nulls, |v| v)
                    }
                    (DataType::Boolean, ValueColumn::UInt(values)) => {
                        let bits = BooleanBuffer::collect_bool(slots.len(), |i| {
                            slots[i] != NO_SLOT && values[slots[i] as usize] != 0
                        });
                        Arc::new(BooleanArray::new(bits, nulls))
                    }
                    (_, ValueColumn::Encoded(values)) => return self.decode(values, present, slots),
                    (t, _) => return Err(Error::internal(format!("state '{}' of type {t} is held wrongly", self.name))),
                }
            };
        }
        Ok(held!(arrays))
    }

    /// Sets the values at these slots; a null takes the value away. Returns by how many bytes the encoded values
    /// (which own memory of their own) grew.
    pub(crate) fn write(
        &self,
        column: &mut ValueColumn,
        present: &mut [bool],
        slots: &[Slot],
        values: &ArrayRef,
    ) -> Result<isize> {
        if *values.data_type() != self.data_type || values.len() != slots.len() {
            return Err(Error::internal(format!(
                "state '{}' of type {} is given {} values of type {} for {} keys",
                self.name,
                self.data_type,
                values.len(),
                values.data_type(),
                slots.len()
            )));
        }
        macro_rules! scatters {
            ($($kind:ident: $native:ty { $($variant:ident => $t:ty),* })*) => {
                match (&self.data_type, column) {
                    $($((DataType::$variant, ValueColumn::$kind(to)) => {
                        scatter::<$t, $native>(to, present, slots, values.as_primitive(), |v| v as $native);
                    })*)*
                    (t, ValueColumn::Int(to)) if *t == MILLISECONDS => {
                        scatter::<TimestampMillisecondType, i64>(to, present, slots, values.as_primitive(), |v| v);
                    }
                    (DataType::Boolean, ValueColumn::UInt(to)) => {
                        for (value, &slot) in values.as_boolean().iter().zip(slots) {
                            to[slot as usize] = u64::from(value.unwrap_or(false));
                            present[slot as usize] = value.is_some();
                        }
                    }
                    (_, ValueColumn::Encoded(to)) => return self.encode(to, present, slots, values),
                    (t, _) => return Err(Error::internal(format!("state '{}' of type {t} is held wrongly", self.name))),
                }
            };
        }
        held!(scatters);
        Ok(0)
    }

    /// Appends to lists; answers as `write`.
    pub(crate) fn append(
        &self,
        column: &mut ValueColumn,
        present: &mut [bool],
        slots: &[Slot],
        items: &ArrayRef,
    ) -> Result<isize> {
        match (&self.collection, column) {
            (Some(lists), ValueColumn::Encoded(all)) => lists.append(all, present, slots, items),
            _ => Err(self.no_collection()),
        }
    }

    /// Changes or removes entries of maps; answers as `write`.
    pub(crate) fn change(
        &self,
        column: &mut ValueColumn,
        present: &mut [bool],
        slots: &[Slot],
        map_keys: &ArrayRef,
        values: Option<&ArrayRef>,
    ) -> Result<isize> {
        match (&self.collection, column) {
            (Some(maps), ValueColumn::Encoded(all)) => maps.change(all, present, slots, map_keys, values),
            _ => Err(self.no_collection()),
        }
    }

    /// The values of entries of the maps at these slots. `None`: they take more than `limit` bytes.
    pub(crate) fn find(
        &self,
        column: &ValueColumn,
        slots: &[Slot],
        map_keys: &ArrayRef,
        limit: usize,
    ) -> Result<Option<ArrayRef>> {
        let (Some(maps), ValueColumn::Encoded(all)) = (&self.collection, column) else {
            return Err(self.no_collection());
        };
        if slots.len() != map_keys.len() {
            return Err(self.no_collection());
        }
        maps.find(slots.iter().map(|&slot| all.get(slot as usize).map_or(&[] as &[u8], |one| one)), map_keys, limit)
    }

    fn no_collection(&self) -> Error {
        let message = format!("state '{}' of type {} has no such items or entries", self.name, self.data_type);
        Error::internal(message)
    }

    fn decode(&self, values: &[Box<[u8]>], present: &[bool], slots: &[Slot]) -> Result<ArrayRef> {
        self.decode_all(slots.iter().map(|&slot| {
            let there = slot != NO_SLOT && present[slot as usize];
            there.then(|| values[slot as usize].as_ref())
        }))
    }

    /// An array of these encoded values.
    pub(crate) fn decode_all<'a>(&self, values: impl Iterator<Item = Option<&'a [u8]>>) -> Result<ArrayRef> {
        if let Some(collection) = &self.collection {
            return collection.decode(values);
        }
        let Some(converter) = &self.rows else {
            return Err(Error::internal(format!("state '{}' has no encoding", self.name)));
        };
        let missing = || new_null_array(&self.data_type, 1);
        let null = converter.convert_columns(&[missing()])?;
        let parser = converter.parser();
        let rows = values.map(|value| value.map_or_else(|| null.row(0), |bytes| parser.parse(bytes)));
        let mut arrays = converter.convert_rows(rows)?;
        arrays.pop().ok_or_else(|| Error::internal(format!("state '{}' decodes to nothing", self.name)))
    }

    fn encode(&self, to: &mut [Box<[u8]>], present: &mut [bool], slots: &[Slot], values: &ArrayRef) -> Result<isize> {
        let mut grown = 0;
        let mut set = |slot: Slot, bytes: Box<[u8]>, there: bool| {
            grown += bytes.len() as isize - to[slot as usize].len() as isize;
            to[slot as usize] = bytes;
            present[slot as usize] = there;
        };
        if let Some(collection) = &self.collection {
            for (bytes, &slot) in collection.encode(values)?.into_iter().zip(slots) {
                let there = !bytes.is_empty();
                set(slot, bytes, there);
            }
            return Ok(grown);
        }
        let Some(converter) = &self.rows else {
            return Err(Error::internal(format!("state '{}' has no encoding", self.name)));
        };
        let rows = converter.convert_columns(std::slice::from_ref(values))?;
        for (i, &slot) in slots.iter().enumerate() {
            let there = values.is_valid(i);
            set(slot, if there { rows.row(i).as_ref().into() } else { Box::default() }, there);
        }
        Ok(grown)
    }
}

/// Makes a column this many slots long.
pub(crate) fn grow(column: &mut ValueColumn, slots: usize) {
    match column {
        ValueColumn::Int(values) => values.resize(slots, 0),
        ValueColumn::UInt(values) => values.resize(slots, 0),
        ValueColumn::Float(values) => values.resize(slots, 0.0),
        ValueColumn::Encoded(values) => values.resize(slots, Box::default()),
    }
}

/// Bytes that encoded values own.
pub(crate) fn owned_bytes(column: &ValueColumn) -> usize {
    match column {
        ValueColumn::Encoded(values) => values.iter().map(|v| v.len()).sum(),
        _ => 0,
    }
}

/// Makes room for more slots.
pub(crate) fn reserve(column: &mut ValueColumn, slots: usize) {
    match column {
        ValueColumn::Int(values) => values.reserve(slots),
        ValueColumn::UInt(values) => values.reserve(slots),
        ValueColumn::Float(values) => values.reserve(slots),
        ValueColumn::Encoded(values) => values.reserve(slots),
    }
}

/// Copies the values at these slots to the end of another column of the same kind.
pub(crate) fn copy(from: &ValueColumn, slots: &[Slot], to: &mut ValueColumn) {
    fn all<T: Clone>(from: &[T], slots: &[Slot], to: &mut Vec<T>) {
        to.extend(slots.iter().map(|&slot| from[slot as usize].clone()));
    }
    match (from, to) {
        (ValueColumn::Int(from), ValueColumn::Int(to)) => all(from, slots, to),
        (ValueColumn::UInt(from), ValueColumn::UInt(to)) => all(from, slots, to),
        (ValueColumn::Float(from), ValueColumn::Float(to)) => all(from, slots, to),
        (ValueColumn::Encoded(from), ValueColumn::Encoded(to)) => all(from, slots, to),
        _ => {}
    }
}

/// Takes a value away; returns how many bytes of its own it had.
pub(crate) fn vacate(column: &mut ValueColumn, slot: Slot) -> usize {
    let slot = slot as usize;
    match column {
        ValueColumn::Int(values) => values[slot] = 0,
        ValueColumn::UInt(values) => values[slot] = 0,
        ValueColumn::Float(values) => values[slot] = 0.0,
        ValueColumn::Encoded(values) => return std::mem::take(&mut values[slot]).len(),
    }
    0
}

/// Takes all slots away, and keeps the memory.
pub(crate) fn clear(column: &mut ValueColumn) {
    match column {
        ValueColumn::Int(values) => values.clear(),
        ValueColumn::UInt(values) => values.clear(),
        ValueColumn::Float(values) => values.clear(),
        ValueColumn::Encoded(values) => values.clear(),
    }
}

/// Gives back the memory beyond its slots.
pub(crate) fn shrink(column: &mut ValueColumn) {
    match column {
        ValueColumn::Int(values) => values.shrink_to_fit(),
        ValueColumn::UInt(values) => values.shrink_to_fit(),
        ValueColumn::Float(values) => values.shrink_to_fit(),
        ValueColumn::Encoded(values) => values.shrink_to_fit(),
    }
}

/// Moves all values.
pub(crate) fn append(from: &mut ValueColumn, to: &mut ValueColumn) {
    match (from, to) {
        (ValueColumn::Int(from), ValueColumn::Int(to)) => to.append(from),
        (ValueColumn::UInt(from), ValueColumn::UInt(to)) => to.append(from),
        (ValueColumn::Float(from), ValueColumn::Float(to)) => to.append(from),
        (ValueColumn::Encoded(from), ValueColumn::Encoded(to)) => to.append(from),
        _ => {}
    }
}

/// Bytes that a column holds, without those that encoded values own.
pub(crate) fn bytes(column: &ValueColumn) -> usize {
    match column {
        ValueColumn::Int(values) => values.capacity() * 8,
        ValueColumn::UInt(values) => values.capacity() * 8,
        ValueColumn::Float(values) => values.capacity() * 8,
        ValueColumn::Encoded(values) => values.capacity() * size_of::<Box<[u8]>>(),
    }
}

fn new_column(data_type: &DataType) -> ValueColumn {
    macro_rules! columns {
        ($($kind:ident: $native:ty { $($variant:ident => $t:ty),* })*) => {
            match data_type {
                $($(DataType::$variant)|* => ValueColumn::$kind(Vec::new()),)*
                DataType::Boolean => ValueColumn::UInt(Vec::new()),
                t if *t == MILLISECONDS => ValueColumn::Int(Vec::new()),
                _ => ValueColumn::Encoded(Vec::new()),
            }
        };
    }
    held!(columns)
}

fn nulls_at(present: &[bool], slots: &[Slot]) -> Option<NullBuffer> {
    let there = |slot: Slot| slot != NO_SLOT && present[slot as usize];
    if slots.iter().all(|&slot| there(slot)) {
        return None;
    }
    Some(NullBuffer::new(BooleanBuffer::collect_bool(slots.len(), |i| there(slots[i]))))
}

fn gather<T: ArrowPrimitiveType, N: Copy + Default>(
    values: &[N],
    slots: &[Slot],
    nulls: Option<NullBuffer>,
    convert: impl Fn(N) -> T::Native,
) -> ArrayRef {
    let gathered: ScalarBuffer<T::Native> = match nulls {
        None => slots.iter().map(|&slot| convert(values[slot as usize])).collect(),
        Some(_) => slots.iter().map(|&slot| convert(values.get(slot as usize).copied().unwrap_or_default())).collect(),
    };
    Arc::new(PrimitiveArray::<T>::new(gathered, nulls))
}

fn scatter<T: ArrowPrimitiveType, N: Copy + Default>(
    to: &mut [N],
    present: &mut [bool],
    slots: &[Slot],
    values: &PrimitiveArray<T>,
    convert: impl Fn(T::Native) -> N,
) {
    if values.null_count() == 0 {
        for (&value, &slot) in values.values().iter().zip(slots) {
            to[slot as usize] = convert(value);
            present[slot as usize] = true;
        }
        return;
    }
    for (value, &slot) in values.iter().zip(slots) {
        to[slot as usize] = value.map_or_else(N::default, &convert);
        present[slot as usize] = value.is_some();
    }
}
