//! What the contract forbids: each deed ends in a message that says what was wrong, leaves no effect, and neither the
//! same operator's next call nor a neighbour notices.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::buffer::ScalarBuffer;
use tidemill_core::user::{DueTimers, Effects, KeySet, ReadCollections, TimeDomain, UserCode, UserFailure};
use tidemill_core::{Error, ErrorKind};
use tidemill_plan::{DataType, Node};

use crate::guests::*;

/// As the engine would say it.
fn message(failure: UserFailure) -> String {
    let UserFailure::Trap(message) = failure else { panic!("not a trap: {failure:?}") };
    Error::new(ErrorKind::UserCode, message).at(&subtask(), "transform").to_string()
}

#[track_caller]
fn check(message: &str, expected: &[&str]) {
    assert!(message.starts_with("job 'evil', operator 'deed' (1/1)"), "{message}");
    for part in expected {
        assert!(message.contains(part), "'{part}' is missing in:\n{message}");
    }
}

fn numbers() -> Node {
    transform(vec![new("n", DataType::Int64)])
}

fn texts() -> Node {
    transform(vec![new("s", DataType::Utf8)])
}

fn bare() -> Node {
    transform(vec![])
}

#[test]
fn transforms() {
    let list = || DataType::List(Box::new(field("item", DataType::Int64, false)));
    let cases: Vec<(&str, Node, &[&str])> = vec![
        ("loop", numbers(), &["longer than 200 ms", "raise limits.call-time", "at evil::anywhere (evil.wasm"]),
        ("memory", numbers(), &["out of memory", "limits.memory is 67108864"]),
        ("recurse", numbers(), &["recursed", "limits.stack_bytes", "evil::recurse"]),
        ("trap", numbers(), &["trapped", "unreachable", "evil::anywhere"]),
        ("divide", numbers(), &["trapped"]),
        ("wild", numbers(), &["trapped", "out of bounds memory access"]),
        ("panic", numbers(), &["trapped", "it said: panicked at src/lib.rs", "the sky is falling"]),
        ("port", numbers(), &["the component broke the contract: output.forward: port 7 of a node with 1 (main)"]),
        ("no-columns", numbers(), &["output.emit: port 'main': 0 columns where 1 are expected (for n)"]),
        ("many-columns", numbers(), &["1000 columns where 1 are expected"]),
        ("emit-inherited", transform(vec![inherited("id", DataType::Int64)]), &["use output.forward"]),
        ("row-lie-long", numbers(), &["column 'n': its values have 32 bytes; 1004 values need 8032"]),
        ("row-lie-short", numbers(), &["its values have 32 bytes; 3 values need 24"]),
        ("billion-rows", bare(), &["more than 8388608 rows in one call", "limits.emitted-rows"]),
        ("forward-billions", bare(), &["in one call", "raise limits."]),
        ("timestamps", numbers(), &["its timestamps have 3 bytes; 4 of them need 32"]),
        ("offsets-of-number", numbers(), &["column 'n': offsets for a Int64"]),
        ("validity-length", numbers(), &["its validity has 1000 bytes; 4 values need 1"]),
        ("null", numbers(), &["column 'n': it is declared without nulls, but value 1 is null"]),
        ("index", bare(), &["output.forward: port 'main': its rows name 4, but there are only 4"]),
        ("index-max", bare(), &["its rows name 4294967295, but there are only 4"]),
        ("index-bytes", bare(), &["3 bytes, which is no multiple of 4"]),
        ("offsets-fall", texts(), &["column 's': its offsets fall from 3 to 1 at value 1"]),
        ("offsets-start", texts(), &["its first offset is 1, not 0"]),
        ("offsets-negative", texts(), &["its offsets fall from 0 to -1 at value 0"]),
        ("offsets-beyond", texts(), &["its last offset is 400, but there are 4 bytes"]),
        ("offsets-short", texts(), &["its offsets have 8 bytes; 2 values need 12"]),
        ("utf8", texts(), &["column 's': value 1 is not UTF-8 (at byte 2"]),
        ("utf8-split", texts(), &["value 1 starts inside a character (offset 1)"]),
        ("list-child", transform(vec![new("l", list())]), &["column 'l': column 'item'", "16 bytes; 5 values need 40"]),
        ("huge-emit", numbers(), &["broke the contract", "more than 8388608 bytes", "raise limits.transfer"]),
        ("emit-forever", numbers(), &["more than 8388608 bytes", "raise limits.transfer"]),
        ("empty-emits", numbers(), &["more than 8388608 bytes"]),
        ("put", numbers(), &["state.put: only calls of keyed have keys"]),
        ("timer", numbers(), &["state.set-timers: only calls of keyed have keys"]),
        ("rows-range", numbers(), &["fails for row 4 of a call with 4 rows"]),
        ("rows-none", numbers(), &["fails for single rows, but names none"]),
    ];
    let mut neighbour = open("good", &bare());
    for (deed, node, expected) in cases {
        let mut code = open(deed, &node);
        for _ in 0..2 {
            let mut effects = Effects::default();
            let answer = code.transform(CLOCK, 0, &batch(vec![ids(&[1, 2, 3, 4])]), &mut effects);
            let failure = answer.expect_err(deed);
            assert!(effects.emissions.is_empty(), "{deed}: effects of a failed call");
            let message = message(failure);
            check(&message, expected);
        }
        check_neighbour(&mut *neighbour);
    }
}

fn keyed_call(code: &mut dyn UserCode) -> Result<Effects, UserFailure> {
    let states: [ArrayRef; 1] = [ids(&[10, 20])];
    let keys = KeySet { keys: 2, key_of_row: &[0, 1, 0], states: &states, collections: None };
    let mut effects = Effects::default();
    code.process(CLOCK, 0, &batch(vec![ids(&[1, 2, 3])]), &keys, &mut effects).map(|()| effects)
}

#[test]
fn keyed() {
    let cases: [(&str, &[&str]); 9] = [
        ("state", &["state.put: state 9 of a node that declares 1"]),
        ("key", &["state 'count': its keys name 2, but there are only 2"]),
        ("key-twice", &["state.put: state 'count': key 0 is stored twice in one call of put"]),
        ("values", &["state 'count': column 'count': its values have 1 bytes; 2 values need 16"]),
        ("timer-key", &["state.set-timers: its keys name 2"]),
        ("timer-times", &["its timestamps have 8 bytes; 2 of them need 16"]),
        ("put-forever", &["state.put", "raise limits.transfer"]),
        ("timers-forever", &["state.set-timers", "raise limits.transfer"]),
        ("trap", &["unreachable", "keyed"]),
    ];
    let mut neighbour = open("good", &bare());
    for (deed, expected) in cases {
        let mut code = open(deed, &process(vec![new("n", DataType::Int64)]));
        let message = message(keyed_call(&mut *code).expect_err(deed));
        check(&message, expected);
        check_neighbour(&mut *neighbour);
    }
}

#[test]
fn collections() {
    let cases: [(&str, &[&str]); 23] = [
        ("put-list", &["state.put: state 'items' is a list or map: use collections"]),
        ("list-of-value", &["collections.append: state 'count': it is no list"]),
        ("list-of-map", &["state 'entries': it is no list"]),
        ("list-state", &["collections.append: state 9 of a node that declares 3"]),
        ("list-key", &["state 'items': its keys name 2, but there are only 2"]),
        ("list-keys-bytes", &["its keys have 3 bytes, which is no multiple of 4"]),
        ("list-items", &["column 'items': its values have 1 bytes; 2 values need 16"]),
        ("list-columns", &["0 columns where 1 are expected (for items)"]),
        ("list-forever", &["collections.append", "raise limits.transfer"]),
        ("map-of-list", &["collections.insert: state 'items': it is no map"]),
        ("map-null-key", &["column 'key of entries': it is declared without nulls, but value 0 is null"]),
        ("map-values", &["column 'entries': its values have 8 bytes; 2 values need 16"]),
        ("map-remove", &["collections.remove: state 'entries': its keys name 2"]),
        ("clear-value", &["collections.clear: state 'count': it is a value", "use state.put"]),
        ("clear-key", &["its keys name 4294967295"]),
        ("clear-forever", &["collections.clear", "raise limits.transfer"]),
        ("read-value", &["collections.read: state 'count': it is a value"]),
        ("read-key", &["collections.read: state 'items': its keys name 2"]),
        ("read-often", &["state 'items': it reads more than 8388608 bytes in one call", "read fewer keys at once"]),
        ("read-forever", &["collections.read", "raise limits.transfer"]),
        ("get-often", &["state 'entries': it reads more than 8388608 bytes in one call"]),
        ("get-list", &["collections.get: state 'items': it is no map"]),
        ("get-keys", &["collections.get: state 'entries': column 'key of entries': its values have 8 bytes"]),
    ];
    let mut neighbour = open("good", &bare());
    let states: [ArrayRef; 1] = [ids(&[10, 20])];
    for (deed, expected) in cases {
        let mut code = open(deed, &collecting(vec![]));
        let collections: Option<Arc<dyn ReadCollections>> = Some(Arc::new(Collections));
        let keys = KeySet { keys: 2, key_of_row: &[0, 1, 0], states: &states, collections };
        let mut effects = Effects::default();
        let answer = code.process(CLOCK, 0, &batch(vec![ids(&[1, 2, 3])]), &keys, &mut effects);
        check(&message(answer.expect_err(deed)), expected);
        assert!(effects.collections.is_empty(), "{deed}: effects of a failed call");
        check_neighbour(&mut *neighbour);
    }
    let mut effects = Effects::default();
    for (deed, expected) in
        [("append", "collections.append: state 0 of a node"), ("read", "collections.read: state 0 of a node")]
    {
        let mut code = open(deed, &numbers());
        let answer = code.transform(CLOCK, 0, &batch(vec![ids(&[1])]), &mut effects);
        check(&message(answer.expect_err(deed)), &[expected]);
    }
    // A host that has nothing to read from says so.
    let mut code = open("read-forever", &collecting(vec![]));
    let keys = KeySet { keys: 2, key_of_row: &[0, 1, 0], states: &states, collections: None };
    let answer = code.process(CLOCK, 0, &batch(vec![ids(&[1, 2, 3])]), &keys, &mut effects);
    check(&message(answer.expect_err("it reads")), &["there is nothing to read in this call"]);
}

/// A broadcast state has one key, number 0, however many the call has, and also if it has none.
#[test]
fn broadcast_states() {
    let call = |keys: usize, key_of_row: &[u32], counts: &[i64]| {
        let mut code = open("map-remove", &sharing(vec![]));
        let states: [ArrayRef; 1] = [ids(counts)];
        let collections: Option<Arc<dyn ReadCollections>> = Some(Arc::new(Collections));
        let keys = KeySet { keys, key_of_row, states: &states, collections };
        let mut effects = Effects::default();
        code.process(CLOCK, 0, &batch(vec![ids(&[1, 2, 3])]), &keys, &mut effects).map(|()| effects.collections)
    };
    let refused = message(call(2, &[0, 1, 0], &[10, 20]).expect_err("key 2"));
    check(&refused, &["collections.remove: state 'entries': its keys name 2, but there are only 1"]);
    let removed = call(0, &[], &[]).expect("key 0");
    assert!(matches!(&removed[..], [update] if update.state == 2 && update.keys[..] == [0]), "{removed:?}");
}

/// So has an operator list.
#[test]
fn operator_lists() {
    let cases: [(&str, &str); 7] = [
        ("list-key", "collections.append: state 'items': its keys name 1, but there are only 1"),
        ("list-items", "column 'items': its values have 1 bytes"),
        ("list-forever", "raise limits.transfer"),
        ("map-of-list", "collections.insert: state 'items': it is no map"),
        ("read-key", "collections.read: state 'items': its keys name 1, but there are only 1"),
        ("read-often", "state 'items': it reads more than 8388608 bytes in one call"),
        ("get-list", "collections.get: state 'items': it is no map"),
    ];
    for (deed, expected) in cases {
        let mut code = open(deed, &listing(vec![]));
        let states: [ArrayRef; 1] = [ids(&[10])];
        let collections: Option<Arc<dyn ReadCollections>> = Some(Arc::new(Collections));
        let keys = KeySet { keys: 1, key_of_row: &[0, 0, 0], states: &states, collections };
        let mut effects = Effects::default();
        let answer = code.process(CLOCK, 0, &batch(vec![ids(&[1, 2, 3])]), &keys, &mut effects);
        check(&message(answer.expect_err(deed)), &[expected]);
        assert!(effects.collections.is_empty(), "{deed}: effects of a failed call");
    }
}

#[test]
fn timers() {
    let key_columns: [ArrayRef; 1] = [ids(&[1])];
    let timestamps = ScalarBuffer::from(vec![9]);
    let due = DueTimers {
        domain: TimeDomain::Event,
        timestamps: &timestamps,
        key_columns: &key_columns,
        keys: KeySet { keys: 1, key_of_row: &[0], states: &[ids(&[1])], collections: None },
    };
    for (deed, node, expected) in [
        ("trap", process(vec![]), "unreachable"),
        ("forward", process(vec![inherited("id", DataType::Int64)]), "timers have no input row"),
        ("good", process(vec![inherited("id", DataType::Int64)]), "use output.forward"),
        ("good", process(vec![new("s", DataType::Utf8)]), "column 's': its offsets have 0 bytes; 1 values need 8"),
    ] {
        let mut code = open(deed, &node);
        let mut effects = Effects::default();
        check(&message(code.on_timers(CLOCK, &due, &mut effects).expect_err(deed)), &[expected]);
    }
}

#[test]
fn aggregators() {
    let state = || -> ArrayRef { ids(&[1, 2]) };
    for (deed, expected) in [
        ("silent", "returned without emitting"),
        ("twice", "answers once, and this is the second time"),
        ("fewer", "1 results for 2 groups"),
        ("side", "answers on port 0"),
        ("forwarded", "answers by output.emit"),
        ("none", "it is declared without nulls"),
        ("trap", "unreachable"),
        ("loop", "longer than 200 ms"),
    ] {
        let mut code = open(deed, &window());
        let failures = [
            code.accumulate(0, &[0, 1, 1], &batch(vec![ids(&[1, 2, 3])]), &state()),
            code.merge(0, &state(), &state()),
            code.finish(0, &state()),
        ];
        for failure in failures {
            check(&message(failure.expect_err(deed)), &[expected]);
        }
    }
}

#[test]
fn opening() {
    for (deed, kind, expected) in [
        ("open:trap", ErrorKind::UserCode, "unreachable"),
        ("open:loop", ErrorKind::UserCode, "raise limits.call-time"),
        ("open:memory", ErrorKind::UserCode, "limits.memory"),
        ("open:fatal", ErrorKind::UserCode, "it will not open"),
        ("open:retry", ErrorKind::Retry, "not yet"),
        ("open:rows", ErrorKind::UserCode, "open fails for single rows"),
    ] {
        let Err(error) = try_open(deed, &bare()) else { panic!("{deed} opens") };
        assert_eq!(error.kind(), kind, "{error}");
        check(&error.to_string(), &[expected, "open"]);
    }
}

#[test]
fn plans() {
    for (deed, expected) in [
        ("trap", "unreachable"),
        ("loop", "raise limits.call-time"),
        ("memory", "limits.memory"),
        ("recurse", "limits.stack_bytes"),
        ("refuse", "no job here"),
        ("no-json", "can't be read"),
        ("unknown", "unknown field `vision`"),
        ("deep", "can't be read"),
        ("huge", "raise limits.transfer"),
        ("emit", "there is nothing to emit in this call"),
    ] {
        let sandbox = if deed == "loop" { &HASTY } else { &SANDBOX };
        let component = sandbox.load("evil.wasm", &with_plan(deed)).unwrap();
        let message = component.plan().expect_err(deed).to_string();
        assert!(message.contains("evil.wasm") && message.contains(expected), "{deed}: {message}");
    }
}

#[test]
fn a_flood_of_messages_is_cut_and_counted() {
    let (mut code, metrics) = try_open("log-flood", &bare()).unwrap();
    call(&mut *code, &batch(vec![ids(&[1])])).unwrap();
    assert!(metrics.logs_dropped.get() > 8_000, "{}", metrics.logs_dropped.get());
}

#[test]
fn instances_can_be_dropped_by_another_thread() {
    let mut code = open("good", &bare());
    check_neighbour(&mut *code);
    let mut code = std::thread::spawn(move || {
        check_neighbour(&mut *code);
        code
    })
    .join()
    .unwrap();
    check_neighbour(&mut *code);
}

#[test]
fn closing_runs_once_and_says_what_went_wrong() {
    let close = |deed: &str| {
        let mut code = open(deed, &bare());
        call(&mut *code, &batch(vec![ids(&[1])])).unwrap();
        code.close().and_then(|()| code.close()).map_err(|e| e.at(&subtask(), "closing").to_string())
    };
    assert_eq!(close("good"), Ok(()));
    let cases: [(&str, &[&str]); 5] = [
        ("close:fatal", &["it will not close"]),
        ("close:rows", &["close fails for single rows"]),
        ("close:trap", &["trapped", "unreachable"]),
        ("close:loop", &["longer than 200 ms", "limits.call-time"]),
        ("close:emit", &["there is nothing to emit in this call"]),
    ];
    for (deed, expected) in cases {
        let message = close(deed).unwrap_err();
        check(&message, expected);
        assert!(message.contains("closing: ") && message.contains("mend: Correct the code"), "{message}");
    }
}

#[test]
fn an_instance_that_was_lost_is_not_made_again_to_be_closed() {
    let mut code = open("trap", &bare());
    call(&mut *code, &batch(vec![ids(&[1])])).unwrap_err();
    code.close().unwrap();
}
