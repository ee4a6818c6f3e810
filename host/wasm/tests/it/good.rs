//! What the contract promises: every type there and back, effects as they were meant, failures as they were said.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int8Array, Int16Array,
    Int32Array, Int64Array, ListArray, StringViewArray, StructArray, TimestampMillisecondArray, UInt8Array,
    UInt16Array, UInt32Array, UInt64Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType as ArrowType, Field as ArrowField, Int64Type};
use tidemill_core::Batch;
use tidemill_core::types::arrow_type;
use tidemill_core::user::{
    CollectionChange, DueTimers, Effects, EmittedRows, KeySet, ReadCollections, TimeDomain, UserFailure,
};
use tidemill_plan::{DataType, Origin, OutputField};

use crate::guests::*;

fn nested(rows: usize) -> ArrayRef {
    // list<struct<a: utf8?, b: list<int64>>>, with nulls on each level.
    let lengths: Vec<usize> = (0..rows).map(|i| i % 3).collect();
    let inner = lengths.iter().sum::<usize>();
    let texts: StringViewArray = (0..inner).map(|i| (i % 4 != 1).then(|| format!("text number {i}"))).collect();
    let numbers = ListArray::from_iter_primitive::<Int64Type, _, _>(
        (0..inner).map(|i| Some((0..i % 4).map(|n| Some(n as i64)).collect::<Vec<_>>())),
    );
    let numbers = ListArray::new(
        Arc::new(ArrowField::new("item", ArrowType::Int64, true)),
        numbers.offsets().clone(),
        numbers.values().clone(),
        None,
    );
    let list = ArrowType::List(Arc::new(ArrowField::new("item", ArrowType::Int64, true)));
    let fields = vec![ArrowField::new("a", ArrowType::Utf8View, true), ArrowField::new("b", list, false)];
    let nulls = NullBuffer::from((0..inner).map(|i| i % 5 != 0).collect::<Vec<_>>());
    let structs = StructArray::new(fields.into(), vec![Arc::new(texts), Arc::new(numbers)], Some(nulls));
    let item = Arc::new(ArrowField::new("item", structs.data_type().clone(), true));
    let nulls = NullBuffer::from((0..rows).map(|i| i % 7 != 3).collect::<Vec<_>>());
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(lengths), Arc::new(structs), Some(nulls)))
}

/// An array of each type, with nulls.
fn arrays(rows: usize) -> Vec<(DataType, ArrayRef)> {
    fn all<T, A: FromIterator<Option<T>> + Array + 'static>(rows: usize, f: impl Fn(usize) -> T) -> ArrayRef {
        Arc::new((0..rows).map(|i| (i % 3 != 2).then(|| f(i))).collect::<A>())
    }
    let text = |i: usize| "größer".chars().cycle().take(i % 20).collect::<String>();
    let inner = DataType::Struct(vec![
        field("a", DataType::Utf8, true),
        field("b", DataType::List(Box::new(field("item", DataType::Int64, true))), false),
    ]);
    vec![
        (DataType::Boolean, all::<_, BooleanArray>(rows, |i| i % 5 == 0)),
        (DataType::Int8, all::<_, Int8Array>(rows, |i| i as i8)),
        (DataType::Int16, all::<_, Int16Array>(rows, |i| i as i16)),
        (DataType::Int32, all::<_, Int32Array>(rows, |i| i as i32 - 50)),
        (DataType::Int64, all::<_, Int64Array>(rows, |i| i as i64 - 50)),
        (DataType::UInt8, all::<_, UInt8Array>(rows, |i| i as u8)),
        (DataType::UInt16, all::<_, UInt16Array>(rows, |i| i as u16)),
        (DataType::UInt32, all::<_, UInt32Array>(rows, |i| i as u32)),
        (DataType::UInt64, all::<_, UInt64Array>(rows, |i| i as u64)),
        (DataType::Float32, all::<_, Float32Array>(rows, |i| i as f32 / 3.0)),
        (DataType::Float64, all::<_, Float64Array>(rows, |i| i as f64 / 3.0)),
        (DataType::Timestamp, all::<_, TimestampMillisecondArray>(rows, |i| i as i64)),
        (DataType::Date, all::<_, Date32Array>(rows, |i| i as i32)),
        (DataType::Utf8, all::<_, StringViewArray>(rows, text)),
        (DataType::Binary, all::<_, BinaryViewArray>(rows, |i| vec![i as u8; i % 20])),
        (DataType::List(Box::new(field("item", inner, true))), nested(rows)),
    ]
}

#[test]
fn every_type_comes_back_as_it_went() {
    let rows = 1_000;
    let arrays = arrays(rows);
    let fields = arrays.iter().enumerate().map(|(i, (data_type, _))| OutputField {
        field: field(&format!("c{i}"), data_type.clone(), true),
        origin: Origin::New,
    });
    let node = transform(fields.collect());
    for deed in ["echo", "echo-forward"] {
        let mut code = open(deed, &node);
        // Slices start inside bytes and lists; one has no row.
        for (offset, length) in [(0, rows), (3, 500), (8, 64), (999, 1), (17, 0)] {
            let columns: Vec<ArrayRef> = arrays.iter().map(|(_, a)| a.slice(offset, length)).collect();
            let effects = call(&mut *code, &Batch::new(length, columns.clone(), None).unwrap()).unwrap();
            let back = &effects.emissions[0].columns;
            assert_eq!(back.len(), columns.len());
            for ((data_type, _), (sent, got)) in arrays.iter().zip(columns.iter().zip(back)) {
                assert_eq!(got.data_type(), &arrow_type(data_type));
                assert_eq!(sent, got, "{data_type} {deed} {offset}+{length}");
                got.to_data().validate_full().unwrap();
            }
        }
    }
}

#[test]
fn a_filter_forwards_rows_and_a_map_adds_columns() {
    let (mut code, metrics) = try_open("good", &transform(vec![inherited("id", DataType::Int64)])).unwrap();
    check_neighbour(&mut *code);
    check_neighbour(&mut *code);
    assert_eq!(metrics.crossings.get(), 3, "open and two batches");
    assert_eq!(metrics.bytes_copied.get(), 2 * (4 * 8 + 2 * 4), "four numbers in, two row indices out");

    let fields = vec![inherited("id", DataType::Int64), new("euro", DataType::Float64)];
    let mut code = open("euro", &transform(fields));
    let effects = call(&mut *code, &batch(vec![ids(&[100, 200])])).unwrap();
    let emission = &effects.emissions[0];
    assert!(matches!(emission.rows, EmittedRows::All));
    assert_eq!(emission.columns.len(), 1, "only what the code makes");
    assert_eq!(*emission.columns[0], Float64Array::from(vec![90.8, 181.6]));
}

#[test]
fn the_clock_and_timestamps_arrive() {
    let mut code = open("clock", &transform(vec![new("t", DataType::Int64)]));
    let effects = call(&mut *code, &batch(vec![ids(&[1])])).unwrap();
    assert_eq!(*effects.emissions[0].columns[0], Int64Array::from(vec![5, 7, 0]));

    let mut code = open("echo", &transform(vec![new("t", DataType::Int64)]));
    let with_times = batch(vec![ids(&[1, 2])]).with_timestamps(Some(vec![30, 40].into())).unwrap();
    let effects = call(&mut *code, &with_times).unwrap();
    let EmittedRows::New { rows: 2, timestamps: Some(times) } = &effects.emissions[0].rows else { panic!() };
    assert_eq!(times[..], [30, 40]);
}

#[test]
fn state_comes_with_the_batch_and_goes_back() {
    let mut code = open("good", &process(vec![new("n", DataType::Int64)]));
    let states: [ArrayRef; 1] = [Arc::new(Int64Array::from(vec![Some(10), None, Some(30)]))];
    let keys = KeySet { keys: 3, key_of_row: &[0, 1, 0, 2], states: &states, collections: None };
    let mut effects = Effects::default();
    code.process(CLOCK, 0, &batch(vec![ids(&[7, 8, 7, 9])]), &keys, &mut effects).unwrap();
    assert_eq!(*effects.emissions[0].columns[0], Int64Array::from(vec![11, 1, 12, 31]));
    assert_eq!(effects.states[0].keys[..], [0, 1, 2]);
    assert_eq!(*effects.states[0].values, Int64Array::from(vec![12, 1, 31]));

    let mut code = open("remove", &process(vec![]));
    let mut effects = Effects::default();
    code.process(CLOCK, 0, &batch(vec![ids(&[7, 8, 7, 9])]), &keys, &mut effects).unwrap();
    assert_eq!(effects.states[0].values.null_count(), 3);

    let mut code = open("timers", &process(vec![]));
    let mut effects = Effects::default();
    code.process(CLOCK, 0, &batch(vec![ids(&[7, 8, 7, 9])]), &keys, &mut effects).unwrap();
    let [set, delete] = &effects.timers[..] else { panic!("{effects:?}") };
    assert_eq!((set.domain, set.delete, &set.timestamps[..]), (TimeDomain::Event, false, &[0, 1_000, 2_000][..]));
    assert_eq!((delete.domain, delete.delete, &delete.keys[..]), (TimeDomain::Processing, true, &[0][..]));
}

#[test]
fn lists_and_maps_are_read_during_the_call_and_what_changed_goes_back() {
    let mut code = open("collect", &collecting(vec![new("n", DataType::Int64)]));
    let states: [ArrayRef; 1] = [ids(&[10, 20])];
    let collections: Option<Arc<dyn ReadCollections>> = Some(Arc::new(Collections));
    let keys = KeySet { keys: 2, key_of_row: &[0, 1, 0], states: &states, collections };
    let mut effects = Effects::default();
    code.process(CLOCK, 0, &batch(vec![ids(&[1, 2, 3])]), &keys, &mut effects).unwrap();
    assert_eq!(*effects.emissions[0].columns[0], Int64Array::from(vec![4; 3]), "0, 1 and 1, 2 were read");
    let of: Vec<(usize, Vec<u32>)> = effects.collections.iter().map(|c| (c.state, c.keys.to_vec())).collect();
    assert_eq!(of, [(2, vec![0]), (1, vec![1, 1, 0]), (2, vec![1]), (1, vec![0])], "in the order of the calls");
    let changes: Vec<_> = effects.collections.iter().map(|c| &c.change).collect();
    let [
        CollectionChange::Insert { map_keys, values },
        CollectionChange::Append(items),
        CollectionChange::Remove(gone),
        CollectionChange::Clear,
    ] = changes[..]
    else {
        panic!("{changes:?}")
    };
    assert_eq!((map_keys.as_ref(), values.as_ref()), (ids(&[8]).as_ref(), ids(&[70]).as_ref()), "what `get` answered");
    assert_eq!((items.as_ref(), gone.as_ref()), (ids(&[5, 6, 7]).as_ref(), ids(&[7]).as_ref()));
}

#[test]
fn rows_of_one_timer_have_its_time() {
    let mut code = open("good", &process(vec![new("key", DataType::Int64)]));
    for (times, expected) in [(vec![9], Some(vec![9])), (vec![8, 9], None)] {
        let keys: Vec<u32> = (0..times.len() as u32).collect();
        let key_columns: [ArrayRef; 1] = [ids(&times)];
        let states: [ArrayRef; 1] = [ids(&times)];
        let timestamps = ScalarBuffer::from(times.clone());
        let due = DueTimers {
            domain: TimeDomain::Event,
            timestamps: &timestamps,
            key_columns: &key_columns,
            keys: KeySet { keys: keys.len(), key_of_row: &keys, states: &states, collections: None },
        };
        let mut effects = Effects::default();
        code.on_timers(CLOCK, &due, &mut effects).unwrap();
        let EmittedRows::New { rows, timestamps } = &effects.emissions[0].rows else { panic!() };
        assert_eq!(*rows, times.len());
        assert_eq!(timestamps.as_ref().map(|t| t.to_vec()), expected);
    }
}

#[test]
fn aggregators_accumulate_merge_and_finish() {
    let mut code = open("good", &window());
    let none: ArrayRef = Arc::new(Int64Array::from(vec![None, Some(100)]));
    let sums = code.accumulate(0, &[0, 1, 0], &batch(vec![ids(&[1, 2, 3])]), &none).unwrap();
    assert_eq!(*sums, Int64Array::from(vec![4, 102]));
    let merged = code.merge(0, &sums, &sums).unwrap();
    assert_eq!(*merged, Int64Array::from(vec![8, 204]));
    assert_eq!(*code.finish(0, &merged).unwrap(), Int64Array::from(vec![8, 204]));
}

#[test]
fn failures_are_what_the_guest_said() {
    let rows = batch(vec![ids(&[2, 3, 5])]);
    let mut code = open("odd", &transform(vec![]));
    let Err(UserFailure::Rows(failed)) = call(&mut *code, &rows) else { panic!() };
    assert_eq!(failed, [(1, "3 is odd".to_owned()), (2, "5 is odd".to_owned())]);
    let good = call(&mut *code, &batch(vec![ids(&[2])])).unwrap();
    assert_eq!(good.emissions.len(), 1, "only what the good call emitted");
    assert!(matches!(call(&mut *open("retry", &transform(vec![])), &rows), Err(UserFailure::Retry(m)) if m == "busy"));
    assert!(matches!(call(&mut *open("fatal", &transform(vec![])), &rows), Err(UserFailure::Fatal(m)) if m == "never"));
}

#[test]
fn after_a_trap_the_next_call_comes_to_a_fresh_instance() {
    let mut code = open("once", &transform(vec![]));
    let held = code.memory_bytes();
    assert!(held >= 1 << 16, "{held}");
    assert!(matches!(call(&mut *code, &batch(vec![ids(&[13])])), Err(UserFailure::Trap(_))));
    assert_eq!(code.memory_bytes(), 0, "the instance is gone");
    // The old instance would answer "fatal" now.
    call(&mut *code, &batch(vec![ids(&[1])])).unwrap();
    assert!(code.memory_bytes() > 0);
}
