//! Named cases of the contract of keyed state.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Array, Int16Array, Int64Array, StringViewArray,
    TimestampMillisecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use tidemill_core::Batch;
use tidemill_core::keys::{KeyCodec, Keys};
use tidemill_core::memory::{Owner, ProcessMemory};
use tidemill_core::snapshot::StateSpec;
use tidemill_core::state::{KeyedState, NO_SLOT, Namespace, StateBackend, TableId, ValueSpec};
use tidemill_core::user::TimeDomain;
use tidemill_state::MemoryBackend;

use crate::backends::Backend;
use crate::on_each_backend;

const NS: Namespace = Namespace::GLOBAL;

fn state_of(backend: &Backend, types: &[DataType]) -> Box<dyn KeyedState> {
    backend.backend.open(StateSpec::empty(KeyCodec::new(types, types.len() > 1).unwrap())).unwrap()
}

on_each_backend!(
    what_is_written_is_read_and_null_takes_it_away,
    every_type_of_value_comes_back,
    keys_come_back_as_columns,
    a_scan_in_pieces_meets_every_entry_once,
    namespaces_are_apart_sorted_and_dropped_whole,
    keys_that_come_and_go_take_no_more_memory,
    a_log_keeps_rows_in_order_and_lets_go_of_foreign_buffers,
);

fn ints(state: &dyn KeyedState, keys: &[i64]) -> Keys {
    state.codec().encode(keys.len(), &[Arc::new(Int64Array::from(keys.to_vec())) as ArrayRef]).unwrap()
}

fn table(state: &mut dyn KeyedState, data_type: DataType) -> TableId {
    state.table("count", vec![ValueSpec::new("n", data_type)]).unwrap()
}

fn array(values: Vec<Option<i64>>) -> ArrayRef {
    Arc::new(Int64Array::from(values))
}

fn what_is_written_is_read_and_null_takes_it_away(backend: Backend) {
    let mut state = state_of(&backend, &[DataType::Int64]);
    let t = table(&mut *state, DataType::Int64);
    let keys = ints(&*state, &[7, 8, 7, 9]);
    let mut slots = Vec::new();
    state.resolve(t, NS, &keys, &mut slots).unwrap();
    assert_eq!(slots[0], slots[2]);
    state.write(t, NS, 0, &[slots[0], slots[1]], &array(vec![Some(70), Some(80)])).unwrap();
    let expected = array(vec![Some(70), Some(80), Some(70), None]);
    assert_eq!(&state.read(t, NS, 0, &slots).unwrap(), &expected);
    state.write(t, NS, 0, &[slots[0]], &array(vec![None])).unwrap();
    assert_eq!(&state.read(t, NS, 0, &slots[..2]).unwrap(), &array(vec![None, Some(80)]));
    assert_eq!(&state.read(t, NS, 0, &[NO_SLOT, slots[1]]).unwrap(), &array(vec![None, Some(80)]));
    state.remove_vacant(t, NS, &slots).unwrap();
    assert_eq!(state.len(t, NS), 1, "7 and 9 have no value");
    let mut found = Vec::new();
    state.find(t, NS, &keys, &mut found).unwrap();
    assert_eq!(found, [NO_SLOT, slots[1], NO_SLOT, NO_SLOT]);
}

fn every_type_of_value_comes_back(backend: Backend) {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int16Array::from(vec![Some(-3), None])),
        Arc::new(UInt64Array::from(vec![Some(u64::MAX), None])),
        Arc::new(Float32Array::from(vec![Some(0.1), None])),
        Arc::new(BooleanArray::from(vec![Some(true), None])),
        Arc::new(TimestampMillisecondArray::from(vec![Some(-1), None])),
        Arc::new(StringViewArray::from(vec![Some("a text of more than twelve bytes"), None])),
    ];
    for column in columns {
        let mut state = state_of(&backend, &[DataType::Int64]);
        let t = table(&mut *state, column.data_type().clone());
        let mut slots = Vec::new();
        let keys = ints(&*state, &[1, 2]);
        state.resolve(t, NS, &keys, &mut slots).unwrap();
        state.write(t, NS, 0, &slots, &column).unwrap();
        assert_eq!(&state.read(t, NS, 0, &slots).unwrap(), &column);
        let wrong: ArrayRef = Arc::new(arrow::array::NullArray::new(2));
        assert!(state.write(t, NS, 0, &slots, &wrong).is_err(), "another type is refused");
    }
}

fn keys_come_back_as_columns(backend: Backend) {
    let types = [DataType::Utf8View, DataType::Timestamp(TimeUnit::Millisecond, None)];
    let mut state = state_of(&backend, &types);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringViewArray::from(vec![Some("JFK"), None, Some("LGA")])),
        Arc::new(TimestampMillisecondArray::from(vec![Some(5), Some(6), None])),
    ];
    let t = table(&mut *state, DataType::Int64);
    let keys = state.codec().encode(3, &columns).unwrap();
    let mut slots = Vec::new();
    state.resolve(t, NS, &keys, &mut slots).unwrap();
    assert_eq!(state.key_columns(t, NS, &slots).unwrap(), columns);
    assert_eq!(state.keys(t, NS, &slots).unwrap().hashes, keys.hashes);
}

fn a_scan_in_pieces_meets_every_entry_once(backend: Backend) {
    let mut state = state_of(&backend, &[DataType::Int64]);
    let t = table(&mut *state, DataType::Int64);
    let keys = ints(&*state, &(0..100).collect::<Vec<_>>());
    let mut slots = Vec::new();
    state.resolve(t, NS, &keys, &mut slots).unwrap();
    let gone: Vec<_> = slots.iter().copied().filter(|s| s % 3 == 0).collect();
    state.remove(t, NS, &gone).unwrap();
    let (mut seen, mut after, mut piece) = (Vec::new(), None, Vec::new());
    loop {
        state.scan(t, NS, after, 7, &mut piece).unwrap();
        let Some(&last) = piece.last() else { break };
        seen.extend_from_slice(&piece);
        after = Some(last);
    }
    seen.sort_unstable();
    let mut left: Vec<_> = slots.into_iter().filter(|s| s % 3 != 0).collect();
    left.sort_unstable();
    assert_eq!(seen, left);
}

fn namespaces_are_apart_sorted_and_dropped_whole(backend: Backend) {
    let mut state = state_of(&backend, &[DataType::Int64]);
    let t = table(&mut *state, DataType::Int64);
    let keys = ints(&*state, &[1, 2, 3]);
    let mut slots = Vec::new();
    for namespace in [30, -10, 20] {
        state.resolve(t, Namespace(namespace), &keys, &mut slots).unwrap();
        state.write(t, Namespace(namespace), 0, &slots, &array(vec![Some(namespace); 3])).unwrap();
    }
    assert_eq!(state.namespaces(t), [Namespace(-10), Namespace(20), Namespace(30)]);
    state.drop_namespace(t, Namespace(20)).unwrap();
    assert_eq!(state.namespaces(t), [Namespace(-10), Namespace(30)]);
    state.resolve_rows(t, Namespace(40), &keys, &[2, 0, 2], &mut slots).unwrap();
    assert_eq!(state.len(t, Namespace(40)), 2);
    assert_eq!(slots[0], slots[2]);
    assert_eq!(state.read(t, Namespace(40), 0, &slots).unwrap().null_count(), 3, "reused memory holds no old values");
    assert_eq!(state.read(t, Namespace(30), 0, &[0]).unwrap().as_primitive::<Int64Type>().value(0), 30);
}

fn keys_that_come_and_go_take_no_more_memory(backend: Backend) {
    for types in [vec![DataType::Int64], vec![DataType::Int64, DataType::Int64]] {
        let mut state = state_of(&backend, &types);
        let t = table(&mut *state, DataType::Utf8View);
        let mut slots = Vec::new();
        let mut round = |state: &mut dyn KeyedState, i: i64| {
            let column: ArrayRef = Arc::new(Int64Array::from_iter_values(i * 500..(i + 1) * 500));
            let keys = state.codec().encode(500, &vec![column; types.len()]).unwrap();
            state.resolve(t, NS, &keys, &mut slots).unwrap();
            let text: ArrayRef = Arc::new(StringViewArray::from(vec!["some text that is long"; 500]));
            state.write(t, NS, 0, &slots, &text).unwrap();
            let times = vec![i; 500];
            let of: Vec<u32> = (0..500).collect();
            state.set_timers(TimeDomain::Event, &keys, &of, &times).unwrap();
            state.delete_timers(TimeDomain::Event, &keys, &of, &times).unwrap();
            // All but one per round go, so that the space is never empty.
            state.remove(t, NS, &slots[1..]).unwrap();
            state.commit().unwrap();
            state.memory_bytes()
        };
        let early = (0..10).map(|i| round(&mut *state, i)).max().unwrap();
        let late = (10..200).map(|i| round(&mut *state, i)).max().unwrap();
        assert!(late < 2 * early, "{early} bytes after 10 rounds, {late} after 200");
        assert_eq!(state.entries(), 200);
    }
}

fn a_log_keeps_rows_in_order_and_lets_go_of_foreign_buffers(backend: Backend) {
    let mut state = state_of(&backend, &[DataType::Int64]);
    let log = state.log("left", vec![DataType::Utf8View]).unwrap();
    let long = "x".repeat(1000);
    let texts: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..1000).map(|i| format!("{i}{long}"))));
    let rows = Batch::new(1000, vec![texts], None).unwrap();
    for i in [3, 500] {
        let keys = ints(&*state, &[1]);
        state.append(log, NS, rows.slice(i, 1), keys).unwrap();
    }
    let kept: Vec<_> = state.rows(log, NS).unwrap().iter().map(|(b, _)| b.column(0).unwrap().clone()).collect();
    assert!(kept[0].as_string_view().value(0).starts_with("3x"));
    assert!(kept[1].as_string_view().value(0).starts_with("500x"));
    assert!(state.memory_bytes() < 50_000, "{} bytes for two rows of 1 kB", state.memory_bytes());
    assert_eq!(state.log_namespaces(log), [NS]);
    state.drop_rows(log, NS).unwrap();
    assert!(state.rows(log, NS).unwrap().is_empty());
    assert_eq!(state.entries(), 0);
    let keys = ints(&*state, &[1, 2]);
    assert!(state.append(log, NS, rows.slice(0, 1), keys).is_err(), "a key per row");
}

#[test]
fn what_is_held_is_in_the_account_of_the_job() {
    let process = ProcessMemory::new(Some(1 << 20));
    let backend = MemoryBackend::new().accounted(process.job("counts"));
    let open = || backend.open(StateSpec::empty(KeyCodec::new(&[DataType::Int64], false).unwrap())).unwrap();
    let (mut state, mut other) = (open(), open());
    let tables = [&mut state, &mut other].map(|state| table(&mut **state, DataType::Int64));
    let grow = |state: &mut dyn KeyedState, table, keys: i64| {
        let keys = ints(state, &(0..keys).collect::<Vec<_>>());
        state.resolve(table, NS, &keys, &mut Vec::new()).unwrap();
        state.commit()
    };
    grow(&mut *state, tables[0], 1_000).unwrap();
    grow(&mut *other, tables[1], 1_000).unwrap();
    let held = || process.held().of(Owner::State) as usize;
    assert_eq!(held(), state.memory_bytes() + other.memory_bytes());
    let refused = grow(&mut *state, tables[0], 100_000).unwrap_err();
    assert_eq!(refused.kind(), tidemill_core::ErrorKind::Limit);
    assert!(refused.message().contains("job 'counts' holds"), "{refused}");
    assert_eq!(held(), state.memory_bytes() + other.memory_bytes());
    drop(state);
    assert_eq!(held(), other.memory_bytes());
    drop((other, backend));
    assert_eq!(process.held().total(), 0);
}

#[test]
fn the_limit_names_the_bytes() {
    let backend = MemoryBackend::with_limit(100_000);
    let mut state = backend.open(StateSpec::empty(KeyCodec::new(&[DataType::Int64], false).unwrap())).unwrap();
    let t = table(&mut *state, DataType::Int64);
    state.commit().unwrap();
    let keys = ints(&*state, &(0..10_000).collect::<Vec<_>>());
    state.resolve(t, NS, &keys, &mut Vec::new()).unwrap();
    let error = state.commit().unwrap_err();
    assert_eq!(error.kind(), tidemill_core::ErrorKind::Limit);
    assert!(error.message().contains("100000 are allowed"), "{error}");
    assert!(backend.memory_bytes() > 100_000);
    drop(state);
    assert_eq!(backend.memory_bytes(), 0);
}
