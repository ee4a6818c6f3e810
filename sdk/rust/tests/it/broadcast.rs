//! Code that knows rows of a broadcast stream: its plan, and what it asks of the host.

use tidemill::abi::{BatchView, Failure, KeySetView, NodeRuntime};
use tidemill::plan::{Exchange, NodeKind};
use tidemill::prelude::*;
use tidemill::value::Writer as _;

use crate::host::{CLOCK, Notes, bytes_u32, code, columns, job};

#[derive(Row)]
struct Reading {
    sensor: i64,
    value: i64,
}

#[derive(Row)]
struct Rule {
    number: i64,
    most: i64,
}

#[derive(Row)]
struct Seen {
    found: i64,
}

/// Entries of rules: `most` is put; below 0 the rule is removed; 0 clears all; 7 is an error.
fn change(rules: &BroadcastState<i64, i64>, rule: &Rule, ctx: &mut BroadcastContext<'_, Seen>) -> Result<(), RowError> {
    match rule.most {
        7 => return Err(RowError::new("no rule")),
        0 => rules.clear(ctx),
        most if most < 0 => rules.remove(ctx, &rule.number),
        most => rules.insert(ctx, rule.number, most),
    }
    let found = rules.get(ctx, &rule.number).unwrap_or(-1);
    ctx.emit(Seen { found });
    Ok(())
}

struct Keyed(BroadcastState<i64, i64>, ValueState<i64>);

impl KeyedBroadcastProcess for Keyed {
    type Key = i64;
    type In = Reading;
    type Broadcast = Rule;
    type Out = Seen;
    const TIMESTAMPS: bool = false;

    fn process(&mut self, row: Reading, ctx: &mut Context<'_, Seen>) -> Result<(), RowError> {
        self.1.set(ctx, row.value);
        let found = self.0.get(ctx, &row.value).unwrap_or(-1);
        ctx.emit(Seen { found });
        Ok(())
    }

    fn process_broadcast(&mut self, rule: Rule, ctx: &mut BroadcastContext<'_, Seen>) -> Result<(), RowError> {
        change(&self.0, &rule, ctx)
    }
}

struct Unkeyed(BroadcastState<i64, i64>);

impl BroadcastProcess for Unkeyed {
    type In = Reading;
    type Broadcast = Rule;
    type Out = Seen;

    fn process(&mut self, row: Reading, ctx: &mut UnkeyedContext<'_, Seen>) -> Result<(), RowError> {
        if row.value == 7 {
            return Err(RowError::new("no reading"));
        }
        let found = self.0.to_vec(ctx).iter().map(|(_, most)| most).sum();
        ctx.emit(Seen { found });
        Ok(())
    }

    fn process_broadcast(&mut self, rule: Rule, ctx: &mut BroadcastContext<'_, Seen>) -> Result<(), RowError> {
        change(&self.0, &rule, ctx)
    }
}

fn built() -> tidemill::flow::Built {
    job(|flow| {
        let rules = flow.source::<Rule>("rules");
        flow.source::<Reading>("readings")
            .key_by(|r| r.sensor)
            .with_broadcast(rules.clone())
            .process(|s| Keyed(s.broadcast("rules"), s.value("last")))
            .uid("keyed")
            .sink("a");
        let unkeyed = flow.source::<Reading>("more").with_broadcast(rules.filter(|r| r.number > 0));
        unkeyed.process(|s| Unkeyed(s.broadcast("rules"))).uid("unkeyed").sink("b");
    })
}

/// What a call asks of the host. `key_of_row`: as many keys as it says, from 0; none if it is empty.
fn call<V: IntoRow>(
    code: &mut dyn NodeRuntime,
    input: u32,
    rows: Vec<V>,
    key_of_row: &[u32],
) -> Result<String, Failure> {
    let count = rows.len();
    let writer = columns(rows);
    let mut views = Vec::new();
    writer.columns(&mut views);
    let batch = BatchView { rows: count, timestamps: &[], columns: &views };
    let keys = key_of_row.iter().max().map_or(0, |last| *last as usize + 1);
    let values = vec![0; keys * 8];
    let absent = vec![0; keys.div_ceil(8)];
    let last = tidemill::abi::ColumnView { validity: &absent, offsets: &[], values: &values };
    let key_of_row = bytes_u32(key_of_row);
    let keys = KeySetView { keys, key_of_row: &key_of_row, states: &[last] };
    // A broadcast state has the index 1 beside one value, and 0 alone.
    let mut host = Notes(String::new(), vec![0, 1]);
    code.process(CLOCK, input, &batch, &keys, &mut host)?;
    Ok(host.0)
}

fn readings(rows: &[(i64, i64)]) -> Vec<Reading> {
    rows.iter().map(|&(sensor, value)| Reading { sensor, value }).collect()
}

fn rules(rows: &[(i64, i64)]) -> Vec<Rule> {
    rows.iter().map(|&(number, most)| Rule { number, most }).collect()
}

#[test]
fn the_plan_has_broadcast_states_behind_the_others_and_a_broadcast_input() {
    let built = built();
    let node = |uid: &str| built.plan.nodes.iter().find(|node| node.uid == uid).expect("it is there");
    let states = |uid: &str| match &node(uid).kind {
        NodeKind::Process { states, reads_timestamps } => {
            (states.iter().map(|s| s.name.clone()).collect::<Vec<_>>(), *reads_timestamps)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(states("keyed"), (vec!["last".to_owned(), "rules".to_owned()], false));
    assert_eq!(states("unkeyed"), (vec!["rules".to_owned()], true));
    let exchanges = |uid: &str| node(uid).inputs.iter().map(|input| input.exchange.clone()).collect::<Vec<_>>();
    assert_eq!(exchanges("keyed"), [Exchange::Hash(vec![0]), Exchange::Broadcast]);
    assert_eq!(exchanges("unkeyed"), [Exchange::Forward, Exchange::Broadcast]);
}

#[test]
fn rows_with_a_key_read_and_rows_of_the_broadcast_stream_change() {
    let mut code = code(built(), "keyed");
    // Each entry is asked for once; even ones are there: k -> k + 100.
    let notes = call(code.as_mut(), 0, readings(&[(1, 4), (1, 4), (2, 5)]), &[0, 0, 1]).unwrap();
    let expected = "get 1 of [0]: [4]\nget 1 of [0]: [5]\nforward 0 of all: [104, 104, -1]\nput 0 of [0, 1]: [4, 5]\n";
    assert_eq!(notes, expected);
    // A row sees what those before it did, and what goes back is the outcome.
    let changes = rules(&[(2, 30), (2, 31), (4, -1), (6, 1), (6, -1)]);
    let notes = call(code.as_mut(), 1, changes, &[]).unwrap();
    let expected = "forward 0 of all: [30, 31, -1, 1, -1]\ninsert 1 of [0]: [2] -> [31]\nremove 1 of [0, 0]: [4, 6]\n";
    assert_eq!(notes, expected);
    let notes = call(code.as_mut(), 1, rules(&[(2, 30), (1, 0), (3, 9)]), &[]).unwrap();
    let expected = "forward 0 of all: [30, -1, 9]\nclear 1 of [0]\ninsert 1 of [0]: [3] -> [9]\n";
    assert_eq!(notes, expected);
}

#[test]
fn without_a_key_the_whole_map_is_read_once_and_a_bad_row_holds_up_no_other() {
    let mut code = code(built(), "unkeyed");
    let notes = call(code.as_mut(), 0, readings(&[(1, 1), (1, 2)]), &[]).unwrap();
    assert_eq!(notes, "read 0 of [0]\nforward 0 of all: [201, 201]\n");
    let failure = call(code.as_mut(), 0, readings(&[(1, 7), (1, 2), (1, 7)]), &[]).unwrap_err();
    let named = |row| (row, "no reading".to_owned());
    assert_eq!(failure, Failure::Rows(vec![named(0), named(2)]));
    // Of the broadcast stream, rows behind a bad one would see what it left half done: they are tried in the next call.
    let failure = call(code.as_mut(), 1, rules(&[(1, 5), (1, 7), (1, 7)]), &[]).unwrap_err();
    assert_eq!(failure, Failure::Rows(vec![(1, "no rule".to_owned())]));
}
