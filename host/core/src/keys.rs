//! Keys of rows, encoded once per batch: comparable, hashable, decodable.
//!
//! A key of one non-null fixed-width column is a u64; every other key is a row in the order-preserving format of
//! `arrow-row`. The hash is stable across versions and machines, since key groups are cut by it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray, new_empty_array};
use arrow::datatypes::{
    DataType, Date32Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMillisecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_row::{OwnedRow, Row, RowConverter, RowParser, Rows, SortField};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};

/// The keys of some rows.
#[derive(Debug)]
pub struct Keys {
    /// Encoded, one per row.
    pub data: KeyData,
    /// Stable hashes, one per row.
    pub hashes: Vec<u64>,
}

/// Encoded keys.
#[derive(Debug)]
pub enum KeyData {
    /// One fixed-width value, zero- or sign-extended to 64 bits.
    Fixed(Vec<u64>),
    /// Anything else.
    Rows(Rows),
}

impl Keys {
    /// Of no rows.
    pub fn none() -> Self {
        Self { data: KeyData::Fixed(Vec::new()), hashes: Vec::new() }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

/// Encodes and decodes keys of given column types.
#[derive(Debug)]
pub struct KeyCodec {
    types: Vec<DataType>,
    rows: Option<RowConverter>,
}

impl KeyCodec {
    /// For key columns of these types, in order; `nullable` tells whether any can be null. No column: all rows have
    /// the same key.
    pub fn new(types: &[DataType], nullable: bool) -> Result<Self> {
        let fixed = match types {
            [one] => !nullable && is_fixed(one),
            other => other.is_empty(),
        };
        let rows = if fixed {
            None
        } else {
            let fields = types.iter().cloned().map(SortField::new).collect();
            Some(RowConverter::new(fields).map_err(|e| {
                Error::invalid(format!("these columns can't be a key: {e}")).mend("Use another type for the key.")
            })?)
        };
        Ok(Self { types: types.to_vec(), rows })
    }

    /// Whether keys are [`KeyData::Fixed`].
    pub fn is_fixed(&self) -> bool {
        self.rows.is_none()
    }

    /// Types of the key columns.
    pub fn types(&self) -> &[DataType] {
        &self.types
    }

    /// The keys of `rows` rows with these key columns.
    pub fn encode(&self, rows: usize, columns: &[ArrayRef]) -> Result<Keys> {
        if let Some(converter) = &self.rows {
            let encoded = converter.convert_columns(columns)?;
            let hashes = encoded.iter().map(|row| xxh3_64(row.as_ref())).collect();
            return Ok(Keys { data: KeyData::Rows(encoded), hashes });
        }
        let values = match columns.first() {
            Some(column) => fixed_values(column)?,
            None => vec![0; rows],
        };
        let hashes = values.iter().map(|&v| hash_fixed(v)).collect();
        Ok(Keys { data: KeyData::Fixed(values), hashes })
    }

    /// Only the hashes of the keys, one per row, into `hashes` (which is cleared): all that an exchange needs.
    pub fn hash(&self, rows: usize, columns: &[ArrayRef], hashes: &mut Vec<u64>) -> Result<()> {
        hashes.clear();
        if let Some(converter) = &self.rows {
            let encoded = converter.convert_columns(columns)?;
            hashes.extend(encoded.iter().map(|row| hash_row(row.as_ref())));
            return Ok(());
        }
        match columns.first() {
            Some(column) if column.data_type() == &DataType::Int64 && column.null_count() == 0 => {
                // Without the detour over a vector of keys: this runs for every row that crosses slots.
                hashes.extend(column.as_primitive::<Int64Type>().values().iter().map(|&v| hash_fixed(v as u64)));
            }
            Some(column) => hashes.extend(fixed_values(column)?.into_iter().map(hash_fixed)),
            None => hashes.resize(rows, hash_fixed(0)),
        }
        Ok(())
    }

    /// Key columns back from keys.
    pub fn decode(&self, keys: &Keys) -> Result<Vec<ArrayRef>> {
        match &keys.data {
            KeyData::Fixed(values) => self.decode_fixed(values),
            KeyData::Rows(rows) => self.decode_rows(rows.iter()),
        }
    }

    /// Key columns back from fixed keys.
    pub fn decode_fixed(&self, values: &[u64]) -> Result<Vec<ArrayRef>> {
        self.types.iter().map(|t| fixed_array(t, values)).collect()
    }

    /// Key columns back from encoded rows.
    pub fn decode_rows<'a>(&self, rows: impl IntoIterator<Item = Row<'a>>) -> Result<Vec<ArrayRef>> {
        match &self.rows {
            Some(converter) => Ok(converter.convert_rows(rows)?),
            None => Err(Error::internal("fixed keys decoded as rows")),
        }
    }

    /// Reads row bytes that were stored; for [`KeyCodec::decode_rows`].
    pub fn parser(&self) -> Option<RowParser> {
        self.rows.as_ref().map(RowConverter::parser)
    }

    /// A buffer for encoded rows, for building [`KeyData::Rows`] by pushing.
    pub fn empty_rows(&self, capacity: usize, data_capacity: usize) -> Option<Rows> {
        self.rows.as_ref().map(|converter| converter.empty_rows(capacity, data_capacity))
    }

    /// The keys of some rows, in this order; an index may appear often.
    pub fn take(&self, keys: &Keys, rows: &[u32]) -> Result<Keys> {
        let outside = || Error::internal("a row index outside the keys of its batch");
        if rows.iter().any(|&row| row as usize >= keys.len()) {
            return Err(outside());
        }
        let hashes = rows.iter().filter_map(|&row| keys.hashes.get(row as usize).copied()).collect();
        let data = match &keys.data {
            KeyData::Fixed(values) => {
                KeyData::Fixed(rows.iter().filter_map(|&row| values.get(row as usize).copied()).collect())
            }
            KeyData::Rows(encoded) => {
                let bytes = rows.iter().map(|&row| encoded.row_len(row as usize)).sum();
                let mut taken = self.empty_rows(rows.len(), bytes).ok_or_else(outside)?;
                rows.iter().for_each(|&row| taken.push(encoded.row(row as usize)));
                KeyData::Rows(taken)
            }
        };
        Ok(Keys { data, hashes })
    }

    /// Key columns without rows.
    pub fn empty_columns(&self) -> Vec<ArrayRef> {
        self.types.iter().map(new_empty_array).collect()
    }
}

/// An encoded key that owns its bytes.
pub type OwnedKey = OwnedRow;

/// The stable hash of a fixed key: the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
#[inline]
pub fn hash_fixed(value: u64) -> u64 {
    let z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The stable hash of an encoded row's bytes.
#[inline]
pub fn hash_row(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

macro_rules! fixed_types {
    ($macro:ident) => {
        $macro! {
            Int8 => Int8Type, Int16 => Int16Type, Int32 => Int32Type, Int64 => Int64Type,
            UInt8 => UInt8Type, UInt16 => UInt16Type, UInt32 => UInt32Type, UInt64 => UInt64Type,
            Date32 => Date32Type
        }
    };
}

fn is_fixed(data_type: &DataType) -> bool {
    macro_rules! check {
        ($($variant:ident => $t:ty),*) => { matches!(data_type, $(DataType::$variant)|* | DataType::Timestamp(_, _)) };
    }
    fixed_types!(check)
}

fn fixed_values(column: &ArrayRef) -> Result<Vec<u64>> {
    macro_rules! values {
        ($($variant:ident => $t:ty),*) => {
            match column.data_type() {
                $(DataType::$variant => column.as_primitive::<$t>().values().iter().map(|&v| v as u64).collect(),)*
                DataType::Timestamp(_, _) => {
                    column.as_primitive::<TimestampMillisecondType>().values().iter().map(|&v| v as u64).collect()
                }
                other => return Err(Error::internal(format!("a fixed key of type {other}"))),
            }
        };
    }
    if column.null_count() > 0 {
        return Err(Error::internal("a null in a key column that is declared without nulls"));
    }
    Ok(fixed_types!(values))
}

fn fixed_array(data_type: &DataType, values: &[u64]) -> Result<ArrayRef> {
    macro_rules! arrays {
        ($($variant:ident => $t:ty),*) => {
            match data_type {
                $(DataType::$variant => Arc::new(PrimitiveArray::<$t>::from_iter_values(
                    values.iter().map(|&v| v as <$t as ArrowPrimitiveType>::Native),
                )) as ArrayRef,)*
                DataType::Timestamp(_, _) => Arc::new(PrimitiveArray::<TimestampMillisecondType>::from_iter_values(
                    values.iter().map(|&v| v as i64),
                )),
                other => return Err(Error::internal(format!("a fixed key of type {other}"))),
            }
        };
    }
    Ok(fixed_types!(arrays))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, StringViewArray};

    use super::*;

    #[test]
    fn fixed_keys_come_back() {
        let codec = KeyCodec::new(&[DataType::Int32], false).unwrap();
        let column: ArrayRef = Arc::new(Int32Array::from(vec![-1, 0, 7]));
        let keys = codec.encode(3, std::slice::from_ref(&column)).unwrap();
        let KeyData::Fixed(values) = &keys.data else { panic!("one int is a fixed key") };
        assert_eq!(codec.decode_fixed(values).unwrap(), vec![column.clone()]);
        let mut hashes = vec![1];
        codec.hash(3, &[column], &mut hashes).unwrap();
        assert_eq!(hashes, keys.hashes);
    }

    #[test]
    fn text_keys_come_back_and_equal_keys_hash_alike() {
        let codec = KeyCodec::new(&[DataType::Utf8View, DataType::Int32], true).unwrap();
        let text: ArrayRef = Arc::new(StringViewArray::from(vec![Some("a"), None, Some("a")]));
        let number: ArrayRef = Arc::new(Int32Array::from(vec![1, 2, 1]));
        let keys = codec.encode(3, &[text.clone(), number.clone()]).unwrap();
        assert_eq!(keys.hashes[0], keys.hashes[2]);
        assert_ne!(keys.hashes[0], keys.hashes[1]);
        let KeyData::Rows(rows) = &keys.data else { panic!("two columns are not a fixed key") };
        assert_eq!(codec.decode_rows(rows.iter()).unwrap(), vec![text.clone(), number.clone()]);
        let mut hashes = Vec::new();
        codec.hash(3, &[text, number], &mut hashes).unwrap();
        assert_eq!(hashes, keys.hashes);
    }

    #[test]
    fn taken_keys_are_those_of_the_rows() {
        let text: ArrayRef = Arc::new(StringViewArray::from(vec!["a", "bb", "ccc"]));
        let number: ArrayRef = Arc::new(Int32Array::from(vec![1, 2, 3]));
        for columns in [vec![number.clone()], vec![text, number]] {
            let types: Vec<_> = columns.iter().map(|c| c.data_type().clone()).collect();
            let codec = KeyCodec::new(&types, false).unwrap();
            let keys = codec.encode(3, &columns).unwrap();
            let taken = codec.take(&keys, &[2, 0, 2]).unwrap();
            assert_eq!(taken.hashes, [keys.hashes[2], keys.hashes[0], keys.hashes[2]]);
            let back = match &taken.data {
                KeyData::Fixed(values) => codec.decode_fixed(values).unwrap(),
                KeyData::Rows(rows) => codec.decode_rows(rows.iter()).unwrap(),
            };
            assert_eq!(back.last().unwrap().as_ref(), &Int32Array::from(vec![3, 1, 3]));
            assert!(codec.take(&keys, &[3]).is_err());
        }
    }

    #[test]
    fn no_key_column_is_one_key() {
        let codec = KeyCodec::new(&[], false).unwrap();
        let (keys, mut hashes) = (codec.encode(2, &[]).unwrap(), Vec::new());
        codec.hash(2, &[], &mut hashes).unwrap();
        assert_eq!((keys.hashes.len(), &keys.hashes), (2, &hashes));
    }
}
