//! Entries of which all values are over are left out when RocksDB compacts its files: that runs anyway, and looks at
//! every entry from time to time.
//!
//! What is left out was on disk only, or is resident and counts there: a resident entry that was accessed since is changed,
//! and written anew. So the filter never has to know what is in memory. What it can't decide it keeps.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rocksdb::CompactionDecision;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use tidemill_core::state::ValueColumn;

use super::layout::{PartId, each_value};
use crate::format::PartKind;
use crate::memory::table::{Expiring, Table};

const NAME: &CStr = c"values that are over";

/// Which tables have values that expire, and what time it is. Shared by a state, and the filters of its database.
#[derive(Debug)]
pub(super) struct Expiry {
    now: AtomicI64,
    tables: RwLock<BTreeMap<PartId, Shape>>,
}

/// How the values of a table lie, and which of them expire.
#[derive(Clone, Debug)]
struct Shape {
    /// Per column, whether it has bytes of its own.
    encoded: Vec<bool>,
    expiring: Vec<Expiring>,
}

impl Default for Expiry {
    fn default() -> Self {
        Self { now: AtomicI64::new(i64::MIN), tables: RwLock::default() }
    }
}

impl Expiry {
    /// It is so late, in milliseconds UTC.
    pub(super) fn set_now(&self, now: i64) {
        self.now.store(now, Ordering::Relaxed);
    }

    /// Entries of a table are of this shape from now on.
    pub(super) fn declare(&self, table: &Table) {
        if table.expiring.is_empty() {
            return;
        }
        let encoded = table.columns.iter().map(|column| matches!(column.new_column(), ValueColumn::Encoded(_)));
        let shape = Shape { encoded: encoded.collect(), expiring: table.expiring.clone() };
        let id = PartId::new(PartKind::Table, &table.name);
        self.tables.write().unwrap_or_else(PoisonError::into_inner).insert(id, shape);
    }
}

impl Shape {
    /// Whether all values of an entry are over. Bytes that can't be read are not.
    fn is_over(&self, value: &[u8], now: i64) -> bool {
        // A value and its time are looked at together; what is neither keeps the entry.
        let mut left = Vec::with_capacity(self.encoded.len());
        let mut over = Vec::with_capacity(2);
        let read = each_value(value, &self.encoded, |column, bytes| {
            left.push(column);
            let Some(expiring) = self.expiring.iter().find(|expiring| expiring.time == column) else { return };
            let at = bytes.try_into().map_or(i64::MAX, i64::from_le_bytes);
            if expiring.last_access.is_over(at, now) {
                over.extend([expiring.value, expiring.time]);
            }
        });
        read.is_ok() && !left.is_empty() && left.iter().all(|column| over.contains(column))
    }
}

/// Makes a filter for each compaction.
pub(super) struct Filters(pub(super) Arc<Expiry>);

/// Of one compaction: with what was declared, and the time, when it began.
pub(super) struct Filter {
    now: i64,
    tables: BTreeMap<PartId, Shape>,
}

impl CompactionFilterFactory for Filters {
    type Filter = Filter;

    fn create(&mut self, _: CompactionFilterContext) -> Filter {
        let tables = self.0.tables.read().unwrap_or_else(PoisonError::into_inner).clone();
        Filter { now: self.0.now.load(Ordering::Relaxed), tables }
    }

    fn name(&self) -> &CStr {
        NAME
    }
}

impl CompactionFilter for Filter {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        let shape = PartId::of(key).and_then(|id| self.tables.get(&id));
        match shape.is_some_and(|shape| shape.is_over(value, self.now)) {
            true => CompactionDecision::Remove,
            false => CompactionDecision::Keep,
        }
    }

    fn name(&self) -> &CStr {
        NAME
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, TimestampMillisecondArray};
    use arrow::datatypes::{DataType, TimeUnit};
    use tidemill_core::keys::KeyCodec;
    use tidemill_core::snapshot::StateSpec;
    use tidemill_core::state::{KeyedState, LastAccess, Namespace, ValueSpec};

    use super::super::state::RocksState;
    use super::super::{RocksBackend, RocksSettings};
    use super::*;

    fn values() -> [ValueSpec; 4] {
        let time = DataType::Timestamp(TimeUnit::Millisecond, None);
        let of = |of: &str, ttl_ms| Some(LastAccess { of: of.into(), ttl_ms, begin_ms: 0 });
        [
            ValueSpec::new("text", DataType::Utf8View),
            ValueSpec::new("n", DataType::Int64),
            ValueSpec { last_access: of("text", 10), ..ValueSpec::new("t", time.clone()) },
            ValueSpec { last_access: of("n", 20), ..ValueSpec::new("u", time) },
        ]
    }

    fn shape() -> Shape {
        let table = Table::new("values", &values()).unwrap();
        let expiry = Expiry::default();
        expiry.declare(&table);
        let shapes = expiry.tables.read().unwrap();
        shapes.get(&PartId::new(PartKind::Table, "values")).unwrap().clone()
    }

    /// An entry as it lies on disk: a text and a number, each with a time.
    fn entry(text: Option<i64>, number: Option<i64>) -> Vec<u8> {
        let (a, b) = (u8::from(text.is_some()), u8::from(number.is_some()));
        let mut bytes = vec![a | b << 1 | a << 2 | b << 3];
        if text.is_some() {
            bytes.extend([3, 0, 0, 0, b'a', b'b', b'c']);
        }
        bytes.extend(number.iter().flat_map(|_| 7_i64.to_le_bytes()));
        bytes.extend(text.iter().chain(&number).flat_map(|at| at.to_le_bytes()));
        bytes
    }

    #[test]
    fn an_entry_goes_when_its_last_value_is_over() {
        let shape = shape();
        for (text, number, over_at) in
            [(Some(100), None, 110), (None, Some(100), 120), (Some(100), Some(100), 120), (Some(150), Some(100), 160)]
        {
            let entry = entry(text, number);
            assert!(!shape.is_over(&entry, over_at - 1), "{text:?} {number:?}");
            assert!(shape.is_over(&entry, over_at), "{text:?} {number:?}");
        }
        assert!(!shape.is_over(&entry(None, None), i64::MAX), "it has no value that could be over");
    }

    #[test]
    fn what_can_not_be_read_stays() {
        let whole = entry(Some(0), Some(0));
        assert!(shape().is_over(&whole, i64::MAX));
        for cut in 0..whole.len() {
            assert!(!shape().is_over(&whole[..cut], i64::MAX), "cut at {cut}");
        }
        let mut without_time = entry(Some(0), None);
        without_time[0] &= !4;
        without_time.truncate(without_time.len() - 8);
        assert!(!shape().is_over(&without_time, i64::MAX), "a value without a time");
    }

    #[test]
    fn a_compaction_leaves_out_what_is_over_and_nothing_else() {
        let path = std::env::temp_dir().join("tidemill-tests-of-expiry");
        let backend = RocksBackend::new(RocksSettings::new(16 << 20, path));
        let spec = StateSpec::empty(KeyCodec::new(&[DataType::Int64], false).unwrap());
        let mut state = RocksState::open(Arc::clone(&backend.0), spec).unwrap();
        let table = state.table("values", values().into()).unwrap();
        state.declared().unwrap();
        let keys = state.codec().encode(100, &[Arc::new(Int64Array::from_iter_values(0..100))]).unwrap();
        let mut slots = Vec::new();
        state.resolve(table, Namespace::GLOBAL, &keys, &mut slots).unwrap();
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..100));
        let times: ArrayRef = Arc::new(TimestampMillisecondArray::from_iter_values(0..100));
        state.write(table, Namespace::GLOBAL, 1, &slots, &numbers).unwrap();
        state.write(table, Namespace::GLOBAL, 3, &slots, &times).unwrap();
        state.commit().unwrap();
        assert_eq!(state.compact().unwrap(), 100, "nobody said what time it is");
        state.clean_up(49, 0).unwrap();
        assert_eq!(state.compact().unwrap(), 70, "those of 0 to 29 are over");
        // What was accessed since is written anew, whatever a compaction did to it.
        let (some, later): (&[u32], ArrayRef) =
            (&slots[..10], Arc::new(TimestampMillisecondArray::from_iter_values(50..60)));
        state.write(table, Namespace::GLOBAL, 3, some, &later).unwrap();
        state.commit().unwrap();
        assert_eq!(state.compact().unwrap(), 80);
    }
}
