//! Lists and maps of one key, as flat bytes: how many pieces, where each ends, then the pieces in the row format of
//! `arrow-row`. A list's pieces are its items. A map's are key, value, key, value, ascending by the keys' bytes, each
//! key once, so that one is found by halving.
//!
//! A change makes new bytes in one pass over the old. Invariant: what is empty is no bytes at all, and none.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeListArray, MapArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, Fields};
use arrow_row::{RowConverter, Rows, SortField};
use tidemill_core::state::Slot;
use tidemill_core::{Error, Result};

/// Ends are 32-bit numbers. Far above what callers allow of one key.
const MAX_BYTES: usize = 1 << 30;

/// How the lists or maps of a column are encoded.
#[derive(Debug)]
pub(crate) enum Collection {
    List { item: RowConverter, field: FieldRef },
    Map { key: RowConverter, value: RowConverter, entries: FieldRef, fields: Fields, sorted: bool },
}

/// The pieces of encoded bytes.
#[derive(Clone, Copy)]
struct Pieces<'a> {
    ends: &'a [[u8; 4]],
    bytes: &'a [u8],
}

impl<'a> Pieces<'a> {
    fn of(encoded: &'a [u8]) -> Result<Self> {
        if encoded.is_empty() {
            return Ok(Self { ends: &[], bytes: &[] });
        }
        let (count, rest) = encoded.split_first_chunk::<4>().ok_or_else(damaged)?;
        let ends = (u32::from_le_bytes(*count) as usize).checked_mul(4);
        let (ends, bytes) = ends.and_then(|ends| rest.split_at_checked(ends)).ok_or_else(damaged)?;
        Ok(Self { ends: ends.as_chunks().0, bytes })
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn end(&self, piece: usize) -> Result<usize> {
        self.ends.get(piece).map(|end| u32::from_le_bytes(*end) as usize).ok_or_else(damaged)
    }

    fn get(&self, piece: usize) -> Result<&'a [u8]> {
        let start = piece.checked_sub(1).map_or(Ok(0), |before| self.end(before))?;
        self.bytes.get(start..self.end(piece)?).ok_or_else(damaged)
    }

    /// Among the entries of a map.
    fn find(&self, key: &[u8]) -> Result<Option<&'a [u8]>> {
        let (mut low, mut high) = (0, self.len() / 2);
        while low < high {
            let middle = low.midpoint(high);
            match self.get(2 * middle)?.cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return self.get(2 * middle + 1).map(Some),
            }
        }
        Ok(None)
    }
}

/// Makes encoded bytes, piece by piece.
#[derive(Default)]
struct Builder {
    ends: Vec<[u8; 4]>,
    bytes: Vec<u8>,
}

impl Builder {
    /// All pieces of these.
    fn from(pieces: Pieces<'_>) -> Self {
        Self { ends: pieces.ends.to_vec(), bytes: pieces.bytes.to_vec() }
    }

    fn push(&mut self, piece: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(piece);
        if self.bytes.len() > MAX_BYTES {
            let message = format!("a list or map of one key takes more than {MAX_BYTES} bytes");
            return Err(Error::new(tidemill_core::ErrorKind::Limit, message).mend("Keep less of one key."));
        }
        self.ends.push((self.bytes.len() as u32).to_le_bytes());
        Ok(())
    }

    fn finish(self) -> Box<[u8]> {
        if self.ends.is_empty() {
            return Box::default();
        }
        let mut encoded = Vec::with_capacity(4 + self.ends.len() * 4 + self.bytes.len());
        encoded.extend_from_slice(&(self.ends.len() as u32).to_le_bytes());
        encoded.extend_from_slice(self.ends.as_flattened());
        encoded.extend_from_slice(&self.bytes);
        encoded.into()
    }
}

impl Collection {
    /// Of a column of this type, if it is one of lists or maps.
    pub(crate) fn new(data_type: &DataType) -> Result<Option<Self>, arrow::error::ArrowError> {
        let rows = |t: &DataType| RowConverter::new(vec![SortField::new(t.clone())]);
        Ok(Some(match data_type {
            DataType::LargeList(field) => Self::List { item: rows(field.data_type())?, field: Arc::clone(field) },
            DataType::Map(entries, sorted) => {
                let DataType::Struct(fields) = entries.data_type() else { return Ok(None) };
                let [key, value] = fields.as_ref() else { return Ok(None) };
                let (key, value) = (rows(key.data_type())?, rows(value.data_type())?);
                Self::Map { key, value, entries: Arc::clone(entries), fields: fields.clone(), sorted: *sorted }
            }
            _ => return Ok(None),
        }))
    }

    /// The lists or maps of an array, encoded; of an absent or empty one no bytes.
    pub(crate) fn encode(&self, array: &ArrayRef) -> Result<Vec<Box<[u8]>>> {
        let range = |i: usize, start: usize, end: usize| if array.is_valid(i) { start..end } else { 0..0 };
        match self {
            Self::List { item, .. } => {
                let lists = array.as_list_opt::<i64>().ok_or_else(other_type)?;
                let items = item.convert_columns(std::slice::from_ref(lists.values()))?;
                let ends = lists.offsets().iter().zip(lists.offsets().iter().skip(1)).enumerate();
                ends.map(|(i, (&start, &end))| {
                    let mut builder = Builder::default();
                    range(i, start as usize, end as usize).try_for_each(|at| builder.push(items.row(at).as_ref()))?;
                    Ok(builder.finish())
                })
                .collect()
            }
            Self::Map { key, value, .. } => {
                let maps = array.as_map_opt().ok_or_else(other_type)?;
                let keys = key.convert_columns(std::slice::from_ref(maps.keys()))?;
                let values = value.convert_columns(std::slice::from_ref(maps.values()))?;
                let ends = maps.offsets().iter().zip(maps.offsets().iter().skip(1)).enumerate();
                ends.map(|(i, (&start, &end))| {
                    let order: Vec<u32> = range(i, start as usize, end as usize).map(|at| at as u32).collect();
                    changed(&[], &order, &keys, Some(&values))
                })
                .collect()
            }
        }
    }

    /// An array of these lists or maps.
    pub(crate) fn decode<'a>(&self, encoded: impl Iterator<Item = Option<&'a [u8]>>) -> Result<ArrayRef> {
        let (mut ends, mut there, mut all, mut pieces) = (vec![0_usize], Vec::new(), 0, Vec::new());
        for encoded in encoded {
            there.push(encoded.is_some());
            let of_one = Pieces::of(encoded.unwrap_or_default())?;
            all += of_one.len();
            ends.push(all);
            pieces.push(of_one);
        }
        let nulls = there.contains(&false).then(|| NullBuffer::from(there));
        let every = |step: usize, first: usize| -> Result<Vec<&'a [u8]>> {
            let of_one =
                |pieces: &Pieces<'a>| (first..pieces.len()).step_by(step).map(|i| (*pieces, i)).collect::<Vec<_>>();
            pieces.iter().flat_map(of_one).map(|(pieces, i)| pieces.get(i)).collect()
        };
        match self {
            Self::List { item, field } => {
                let ends: ScalarBuffer<i64> = ends.iter().map(|&end| end as i64).collect();
                let items = parsed(item, every(1, 0)?)?;
                Ok(Arc::new(LargeListArray::try_new(Arc::clone(field), OffsetBuffer::new(ends), items, nulls)?))
            }
            Self::Map { key, value, entries, fields, sorted } => {
                let end = |&end: &usize| i32::try_from(end / 2).map_err(|_| too_many());
                let ends: ScalarBuffer<i32> = ends.iter().map(end).collect::<Result<Vec<_>>>()?.into();
                let columns = vec![parsed(key, every(2, 0)?)?, parsed(value, every(2, 1)?)?];
                let pairs = StructArray::try_new(fields.clone(), columns, None)?;
                let (entries, ends) = (Arc::clone(entries), OffsetBuffer::new(ends));
                Ok(Arc::new(MapArray::try_new(entries, ends, pairs, nulls, *sorted)?))
            }
        }
    }

    /// Appends item `i` to the list at `slots[i]`. Answers by how many bytes all grew.
    pub(crate) fn append(
        &self,
        lists: &mut [Box<[u8]>],
        present: &mut [bool],
        slots: &[Slot],
        items: &ArrayRef,
    ) -> Result<isize> {
        let Self::List { item, .. } = self else { return Err(other_type()) };
        let items = item.convert_columns(std::slice::from_ref(items))?;
        replace(lists, present, slots, items.num_rows(), |list, rows| {
            let mut builder = Builder::from(Pieces::of(list)?);
            rows.iter().try_for_each(|&row| builder.push(items.row(row as usize).as_ref()))?;
            Ok(builder.finish())
        })
    }

    /// Changes the entry `map_keys[i]` of the map at `slots[i]`; without `values` removes it. Answers as `append`.
    pub(crate) fn change(
        &self,
        maps: &mut [Box<[u8]>],
        present: &mut [bool],
        slots: &[Slot],
        map_keys: &ArrayRef,
        values: Option<&ArrayRef>,
    ) -> Result<isize> {
        let Self::Map { key, value, .. } = self else { return Err(other_type()) };
        let keys = key.convert_columns(std::slice::from_ref(map_keys))?;
        let values = values.map(|values| value.convert_columns(std::slice::from_ref(values))).transpose()?;
        if values.as_ref().is_some_and(|values| values.num_rows() != keys.num_rows()) {
            return Err(other_type());
        }
        replace(maps, present, slots, keys.num_rows(), |map, rows| changed(map, rows, &keys, values.as_ref()))
    }

    /// The value of the entry `map_keys[i]` of each map; null where there is none. `None`: they take more than `limit`
    /// bytes.
    pub(crate) fn find<'a>(
        &self,
        maps: impl Iterator<Item = &'a [u8]>,
        map_keys: &ArrayRef,
        limit: usize,
    ) -> Result<Option<ArrayRef>> {
        let Self::Map { key, value, fields, .. } = self else { return Err(other_type()) };
        let keys = key.convert_columns(std::slice::from_ref(map_keys))?;
        let found = maps.zip(keys.iter()).map(|(map, key)| Pieces::of(map)?.find(key.as_ref()));
        let found = found.collect::<Result<Vec<_>>>()?;
        if found.iter().flatten().map(|value| value.len()).sum::<usize>() > limit {
            return Ok(None);
        }
        let absent = arrow::array::new_null_array(fields.last().ok_or_else(other_type)?.data_type(), 1);
        let absent = value.convert_columns(&[absent])?;
        let absent = absent.row(0);
        parsed(value, found.into_iter().map(|value| value.unwrap_or(absent.as_ref())).collect()).map(Some)
    }
}

/// An array of values from their rows.
fn parsed(converter: &RowConverter, rows: Vec<&[u8]>) -> Result<ArrayRef> {
    let parser = converter.parser();
    let mut arrays = converter.convert_rows(rows.into_iter().map(|row| parser.parse(row)))?;
    arrays.pop().ok_or_else(damaged)
}

/// Makes new bytes for each of the slots, all of them before the first is replaced. `make` is given the rows of the slot
/// in order.
fn replace(
    all: &mut [Box<[u8]>],
    present: &mut [bool],
    slots: &[Slot],
    rows: usize,
    make: impl Fn(&[u8], &[u32]) -> Result<Box<[u8]>>,
) -> Result<isize> {
    if slots.len() != rows {
        return Err(other_type());
    }
    let slot_of = |row: u32| slots.get(row as usize).map_or(usize::MAX, |&slot| slot as usize);
    let mut order: Vec<u32> = (0..slots.len() as u32).collect();
    order.sort_by_key(|&row| slot_of(row));
    let mut made = Vec::new();
    for rows in order.chunk_by(|&a, &b| slot_of(a) == slot_of(b)) {
        let slot = rows.first().map_or(usize::MAX, |&row| slot_of(row));
        let before = all.get(slot).ok_or_else(other_type)?;
        made.push((slot, make(before, rows)?));
    }
    let mut grown = 0;
    for (slot, bytes) in made {
        let (Some(to), Some(present)) = (all.get_mut(slot), present.get_mut(slot)) else { return Err(other_type()) };
        grown += bytes.len() as isize - to.len() as isize;
        *present = !bytes.is_empty();
        *to = bytes;
    }
    Ok(grown)
}

/// A map with some entries changed; `rows` says which of the keys, of equal ones the later wins.
fn changed(map: &[u8], rows: &[u32], keys: &Rows, values: Option<&Rows>) -> Result<Box<[u8]>> {
    let mut order = rows.to_vec();
    order.sort_by(|&a, &b| keys.row(a as usize).cmp(&keys.row(b as usize)));
    let (before, mut at, mut builder) = (Pieces::of(map)?, 0, Builder::default());
    for equal in order.chunk_by(|&a, &b| keys.row(a as usize) == keys.row(b as usize)) {
        let Some(&row) = equal.last() else { continue };
        let key = keys.row(row as usize);
        let key: &[u8] = key.as_ref();
        while 2 * at < before.len() && before.get(2 * at)? < key {
            builder.push(before.get(2 * at)?)?;
            builder.push(before.get(2 * at + 1)?)?;
            at += 1;
        }
        if 2 * at < before.len() && before.get(2 * at)? == key {
            at += 1;
        }
        if let Some(values) = values {
            builder.push(key)?;
            builder.push(values.row(row as usize).as_ref())?;
        }
    }
    for piece in 2 * at..before.len() {
        builder.push(before.get(piece)?)?;
    }
    Ok(builder.finish())
}

fn damaged() -> Error {
    Error::internal("a list or map in keyed state that can't be read")
}

fn other_type() -> Error {
    Error::internal("a list or map in keyed state is used as what it is not")
}

fn too_many() -> Error {
    Error::internal("two billion entries of maps are read at once")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_bytes_are_an_error() {
        let mut builder = Builder::default();
        [b"ab".as_slice(), b"", b"cde"].iter().for_each(|piece| builder.push(piece).unwrap());
        let good = builder.finish();
        let pieces = Pieces::of(&good).unwrap();
        assert_eq!((0..3).map(|i| pieces.get(i).unwrap()).collect::<Vec<_>>(), [b"ab".as_slice(), b"", b"cde"]);
        for cut in 1..good.len() {
            let read = Pieces::of(&good[..cut]).and_then(|pieces| pieces.get(2));
            assert!(read.is_err(), "cut at {cut}");
        }
        let mut backwards = good.to_vec();
        backwards[4] = 9;
        let pieces = Pieces::of(&backwards).unwrap();
        assert!(pieces.get(0).is_err() && pieces.get(1).is_err());
    }
}
