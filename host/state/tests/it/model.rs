//! Random operations on a backend and on a model of `BTreeMap`s, which must agree after each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringViewArray};
use arrow::datatypes::{DataType, Int64Type};
use proptest::prelude::*;
use tidemill_core::keys::{KeyCodec, Keys};
use tidemill_core::snapshot::StateSpec;
use tidemill_core::state::{KeyedState, NO_SLOT, Namespace, TableId, ValueSpec};
use tidemill_core::user::TimeDomain;

use crate::backends::{self, Backend};

#[derive(Clone, Debug)]
enum Op {
    Write { namespace: i64, keys: Vec<i64>, value: Option<i64> },
    Add { namespace: i64, keys: Vec<i64> },
    Remove { namespace: i64, keys: Vec<i64> },
    Vacate { namespace: i64, keys: Vec<i64> },
    Drop { namespace: i64 },
    SetTimers { timers: Vec<(i64, i64)> },
    DeleteTimers { timers: Vec<(i64, i64)> },
    Fire { up_to: i64, limit: usize },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let keys = || prop::collection::vec(0i64..40, 0..30);
    let namespace = || 0i64..4;
    let timers = || prop::collection::vec((0i64..20, 0i64..6), 0..40);
    let op = prop_oneof![
        4 => (namespace(), keys(), prop::option::weighted(0.8, any::<i64>()))
            .prop_map(|(namespace, keys, value)| Op::Write { namespace, keys, value }),
        1 => (namespace(), keys()).prop_map(|(namespace, keys)| Op::Add { namespace, keys }),
        2 => (namespace(), keys()).prop_map(|(namespace, keys)| Op::Remove { namespace, keys }),
        2 => (namespace(), keys()).prop_map(|(namespace, keys)| Op::Vacate { namespace, keys }),
        1 => namespace().prop_map(|namespace| Op::Drop { namespace }),
        3 => timers().prop_map(|timers| Op::SetTimers { timers }),
        2 => timers().prop_map(|timers| Op::DeleteTimers { timers }),
        2 => (0i64..6, 0usize..30).prop_map(|(up_to, limit)| Op::Fire { up_to, limit }),
    ];
    prop::collection::vec(op, 0..60)
}

/// Entries by namespace and key, and timers by time and order of setting.
#[derive(Default)]
struct Model {
    entries: BTreeMap<(i64, i64), Option<i64>>,
    timers: BTreeMap<(i64, u64), i64>,
    sequence: u64,
    /// Timers of one time fire in the order they were set.
    ordered: bool,
}

impl Model {
    fn timer(&self, key: i64, time: i64) -> Option<(i64, u64)> {
        self.timers.iter().find(|((t, _), k)| *t == time && **k == key).map(|(at, _)| *at)
    }
}

/// How keys look: one fixed column, or a text beside it.
fn encode(state: &dyn KeyedState, keys: &[i64]) -> Keys {
    let numbers: ArrayRef = Arc::new(Int64Array::from(keys.to_vec()));
    if state.codec().is_fixed() {
        return state.codec().encode(keys.len(), &[numbers]).unwrap();
    }
    let text: ArrayRef = Arc::new(StringViewArray::from_iter_values(keys.iter().map(|k| "k".repeat(*k as usize))));
    state.codec().encode(keys.len(), &[text, numbers]).unwrap()
}

fn decode(state: &dyn KeyedState, keys: &Keys) -> Vec<i64> {
    let columns = match &keys.data {
        tidemill_core::keys::KeyData::Fixed(values) => state.codec().decode_fixed(values).unwrap(),
        tidemill_core::keys::KeyData::Rows(rows) => state.codec().decode_rows(rows.iter()).unwrap(),
    };
    columns.last().unwrap().as_primitive::<Int64Type>().values().to_vec()
}

fn apply(state: &mut dyn KeyedState, table: TableId, model: &mut Model, op: Op) {
    let mut slots = Vec::new();
    match op {
        Op::Write { namespace, keys, value } => {
            let distinct: Vec<i64> = keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
            let encoded = encode(state, &distinct);
            state.resolve(table, Namespace(namespace), &encoded, &mut slots).unwrap();
            let values: ArrayRef = Arc::new(Int64Array::from(vec![value; distinct.len()]));
            state.write(table, Namespace(namespace), 0, &slots, &values).unwrap();
            let text = value.map(|v| v.to_string());
            let texts: ArrayRef = Arc::new(StringViewArray::from(vec![text; distinct.len()]));
            state.write(table, Namespace(namespace), 1, &slots, &texts).unwrap();
            model.entries.extend(distinct.into_iter().map(|key| ((namespace, key), value)));
        }
        Op::Add { namespace, keys } => {
            let encoded = encode(state, &keys);
            state.resolve(table, Namespace(namespace), &encoded, &mut slots).unwrap();
            for key in keys {
                model.entries.entry((namespace, key)).or_default();
            }
        }
        Op::Remove { namespace, keys } => {
            find_existing(state, table, namespace, &keys, &mut slots);
            if !slots.is_empty() {
                state.remove(table, Namespace(namespace), &slots).unwrap();
            }
            for key in keys {
                model.entries.remove(&(namespace, key));
            }
        }
        Op::Vacate { namespace, keys } => {
            find_existing(state, table, namespace, &keys, &mut slots);
            if !slots.is_empty() {
                state.remove_vacant(table, Namespace(namespace), &slots).unwrap();
            }
            model.entries.retain(|(n, k), value| *n != namespace || !keys.contains(k) || value.is_some());
        }
        Op::Drop { namespace } => {
            state.drop_namespace(table, Namespace(namespace)).unwrap();
            model.entries.retain(|(n, _), _| *n != namespace);
        }
        Op::SetTimers { timers } => {
            let (keys, times): (Vec<_>, Vec<_>) = timers.iter().copied().unzip();
            let of: Vec<u32> = (0..keys.len() as u32).collect();
            let encoded = encode(state, &keys);
            state.set_timers(TimeDomain::Event, &encoded, &of, &times).unwrap();
            for (key, time) in timers {
                if model.timer(key, time).is_none() {
                    model.timers.insert((time, model.sequence), key);
                    model.sequence += 1;
                }
            }
        }
        Op::DeleteTimers { timers } => {
            let (keys, times): (Vec<_>, Vec<_>) = timers.iter().copied().unzip();
            let of: Vec<u32> = (0..keys.len() as u32).collect();
            let encoded = encode(state, &keys);
            state.delete_timers(TimeDomain::Event, &encoded, &of, &times).unwrap();
            for (key, time) in timers {
                if let Some(at) = model.timer(key, time) {
                    model.timers.remove(&at);
                }
            }
        }
        Op::Fire { up_to, limit } => {
            let (keys, times) = state.due_timers(TimeDomain::Event, up_to, limit).unwrap();
            let due: Vec<_> = model.timers.range(..(up_to + 1, 0)).take(limit).map(|(at, key)| (*at, *key)).collect();
            assert_eq!(times, due.iter().map(|((time, _), _)| *time).collect::<Vec<_>>());
            let fired = decode(state, &keys);
            if model.ordered {
                assert_eq!(fired, due.iter().map(|(_, key)| *key).collect::<Vec<_>>());
            }
            let of: Vec<u32> = (0..keys.len() as u32).collect();
            state.delete_timers(TimeDomain::Event, &keys, &of, &times).unwrap();
            for (key, time) in fired.into_iter().zip(times) {
                let at = model.timer(key, time).unwrap();
                model.timers.remove(&at);
            }
        }
    }
}

fn find_existing(state: &mut dyn KeyedState, table: TableId, namespace: i64, keys: &[i64], slots: &mut Vec<u32>) {
    let encoded = encode(state, keys);
    state.find(table, Namespace(namespace), &encoded, slots).unwrap();
    slots.retain(|&slot| slot != NO_SLOT);
}

fn check(state: &mut dyn KeyedState, table: TableId, model: &Model) {
    let namespaces: BTreeSet<i64> = model.entries.keys().map(|(n, _)| *n).collect();
    assert_eq!(state.namespaces(table), namespaces.iter().map(|&n| Namespace(n)).collect::<Vec<_>>());
    assert_eq!(state.next_timer(TimeDomain::Event), model.timers.keys().next().map(|(time, _)| *time));
    assert_eq!(state.next_timer(TimeDomain::Processing), None);
    if model.ordered {
        assert_eq!(state.entries(), (model.entries.len() + model.timers.len()) as u64);
    }
    for &n in &namespaces {
        let mut slots = Vec::new();
        state.scan(table, Namespace(n), None, usize::MAX, &mut slots).unwrap();
        assert_eq!(slots.len(), state.len(table, Namespace(n)));
        let keys = state.keys(table, Namespace(n), &slots).unwrap();
        let mut again = Vec::new();
        state.find(table, Namespace(n), &keys, &mut again).unwrap();
        assert_eq!(slots, again);
        let numbers = state.read(table, Namespace(n), 0, &slots).unwrap();
        let texts = state.read(table, Namespace(n), 1, &slots).unwrap();
        let found: BTreeMap<_, _> = decode(state, &keys)
            .into_iter()
            .enumerate()
            .map(|(i, key)| {
                let number = numbers.is_valid(i).then(|| numbers.as_primitive::<Int64Type>().value(i));
                let text = texts.is_valid(i).then(|| texts.as_string_view().value(i).to_owned());
                assert_eq!(text, number.map(|v| v.to_string()));
                ((n, key), number)
            })
            .collect();
        let expected = model.entries.range((n, i64::MIN)..=(n, i64::MAX)).map(|(k, v)| (*k, *v)).collect();
        assert_eq!(found, expected);
    }
}

fn agree(backend: &Backend, codec: KeyCodec, ops: Vec<Op>) {
    let mut state = backend.backend.open(StateSpec::empty(codec)).unwrap();
    let values = [("number", DataType::Int64), ("text", DataType::Utf8View)]
        .map(|(name, data_type)| ValueSpec::new(name, data_type));
    let table = state.table("t", values.into()).unwrap();
    let mut model = Model { ordered: backend.orders_timers, ..Model::default() };
    for op in ops {
        apply(&mut *state, table, &mut model, op);
        state.commit().unwrap();
        check(&mut *state, table, &model);
        // What was looked at may become absent again.
        state.commit().unwrap();
    }
}

fn fixed() -> KeyCodec {
    KeyCodec::new(&[DataType::Int64], false).unwrap()
}

fn rows() -> KeyCodec {
    KeyCodec::new(&[DataType::Utf8View, DataType::Int64], false).unwrap()
}

proptest! {
    #[test]
    fn fixed_keys_agree_with_a_model(ops in ops()) {
        agree(&backends::memory(), fixed(), ops);
    }

    #[test]
    fn row_keys_agree_with_a_model(ops in ops()) {
        agree(&backends::memory(), rows(), ops);
    }
}

#[cfg(feature = "rocksdb")]
proptest! {
    // A case makes and removes a database.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn state_on_disk_agrees_with_a_model(ops in ops(), text in any::<bool>()) {
        agree(&backends::disk(), if text { rows() } else { fixed() }, ops);
    }

    #[test]
    fn absent_state_agrees_with_a_model(ops in ops(), text in any::<bool>(), some in any::<bool>()) {
        let backend = if some { backends::small_disk() } else { backends::tiny_disk() };
        agree(&backend, if text { rows() } else { fixed() }, ops);
    }
}
