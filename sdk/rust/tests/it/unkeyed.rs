//! Code without a key and operator lists: its plan, and what it asks of the host.

use tidemill::abi::{BatchView, Failure, KeySetView, NodeRuntime, TimeDomain, TimersView};
use tidemill::plan::{Exchange, NodeKind, Redistribution, StateKind};
use tidemill::prelude::*;
use tidemill::value::Writer as _;

use crate::host::{CLOCK, Notes, bytes_i64, code, columns, job};

#[derive(Row)]
struct Reading {
    sensor: i64,
    value: i64,
}

#[derive(Row)]
struct Seen {
    held: i64,
}

#[derive(Row)]
struct Rule {
    number: i64,
}

struct Buffer {
    held: OperatorListState<i64>,
    known: OperatorListState<i64>,
    odd: Side<Seen>,
}

impl Process for Buffer {
    type In = Reading;
    type Out = Seen;

    /// By the value: 0 clears, 1 replaces the list by its sensor, 7 is an error, 9 reads; others are pushed.
    fn process(&mut self, row: Reading, ctx: &mut UnkeyedContext<'_, Seen>) -> Result<(), RowError> {
        match row.value {
            0 => self.held.clear(ctx),
            1 => self.held.set(ctx, [row.sensor]),
            7 => {
                self.held.push(ctx, 70);
                return Err(RowError::new("seven"));
            }
            9 => {
                let mut sum = 0;
                self.held.for_each(ctx, |item| sum += item);
                assert_eq!(sum, self.held.to_vec(ctx).iter().sum::<i64>());
                ctx.emit(Seen { held: sum });
            }
            value => {
                self.held.extend(ctx, [value, value + 100]);
                self.known.push(ctx, row.sensor);
                ctx.side(&self.odd, Seen { held: value });
            }
        }
        Ok(())
    }

    fn on_end(&mut self, ctx: &mut UnkeyedContext<'_, Seen>) -> Result<(), RowError> {
        let held = ctx.timestamp().map_or(-1, |time| time.millis());
        ctx.emit(Seen { held });
        let held = self.held.iter(ctx).sum();
        ctx.emit(Seen { held });
        Ok(())
    }
}

struct Told {
    rules: BroadcastState<i64, i64>,
    held: OperatorListState<i64>,
}

impl BroadcastProcess for Told {
    type In = Reading;
    type Broadcast = Rule;
    type Out = Seen;
    const TIMESTAMPS: bool = false;

    fn process(&mut self, row: Reading, ctx: &mut UnkeyedContext<'_, Seen>) -> Result<(), RowError> {
        if row.value == 7 {
            return Err(RowError::new("seven"));
        }
        self.held.push(ctx, row.value);
        Ok(())
    }

    fn process_broadcast(&mut self, rule: Rule, ctx: &mut BroadcastContext<'_, Seen>) -> Result<(), RowError> {
        self.held.push(ctx, -rule.number);
        self.rules.insert(ctx, rule.number, 1);
        Ok(())
    }

    fn on_end(&mut self, ctx: &mut UnkeyedContext<'_, Seen>) -> Result<(), RowError> {
        let held = self.held.iter(ctx).sum();
        ctx.emit(Seen { held });
        Ok(())
    }
}

/// Nothing is kept.
struct Through;

impl Process for Through {
    type In = Rule;
    type Out = Seen;
    const TIMESTAMPS: bool = false;

    fn process(&mut self, row: Rule, ctx: &mut UnkeyedContext<'_, Seen>) -> Result<(), RowError> {
        if row.number == 7 {
            return Err(RowError::new("seven"));
        }
        ctx.emit(Seen { held: row.number });
        Ok(())
    }
}

fn built() -> tidemill::flow::Built {
    job(|flow| {
        let readings = flow.source::<Reading>("readings").filter(|r| r.sensor > 0).share();
        let buffered = readings.clone().process(|s| Buffer {
            known: s.union_list("known"),
            held: s.operator_list("held"),
            odd: s.side("odd"),
        });
        let buffered = buffered.uid("buffer");
        buffered.side::<Seen>("odd").sink("odd");
        buffered.sink("a");
        let told = readings.with_broadcast(flow.source::<Rule>("rules"));
        told.process(|s| Told { held: s.operator_list("held"), rules: s.broadcast("rules") }).uid("told").sink("b");
        flow.source::<Rule>("more").process(|_| Through).uid("through").sink("c");
    })
}

const NO_KEYS: KeySetView<'_> = KeySetView { keys: 0, key_of_row: &[], states: &[] };

fn call<V: IntoRow>(code: &mut dyn NodeRuntime, input: u32, rows: Vec<V>) -> Result<String, Failure> {
    let count = rows.len();
    let writer = columns(rows);
    let mut views = Vec::new();
    writer.columns(&mut views);
    let batch = BatchView { rows: count, timestamps: &[], columns: &views };
    let mut host = Notes::default();
    code.process(CLOCK, input, &batch, &NO_KEYS, &mut host)?;
    Ok(host.0)
}

fn readings(rows: &[(i64, i64)]) -> Vec<Reading> {
    rows.iter().map(|&(sensor, value)| Reading { sensor, value }).collect()
}

fn end(code: &mut dyn NodeRuntime, time: i64) -> String {
    let timestamps = bytes_i64(&[time]);
    let timers = TimersView { domain: TimeDomain::Event, timestamps: &timestamps, key_columns: &[], keys: NO_KEYS };
    let mut host = Notes::default();
    code.on_timers(CLOCK, &timers, &mut host).unwrap();
    host.0
}

#[test]
fn the_plan_has_one_input_without_a_key_and_lists_with_what_becomes_of_them() {
    let built = built();
    let node = |uid: &str| built.plan.nodes.iter().find(|node| node.uid == uid).expect("it is there");
    let states = |uid: &str| match &node(uid).kind {
        NodeKind::Process { states, .. } => states.iter().map(|s| (s.name.clone(), s.kind.clone())).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let list = |name: &str, redistribution| (name.to_owned(), StateKind::OperatorList { redistribution });
    assert_eq!(states("buffer"), [list("known", Redistribution::Union), list("held", Redistribution::Split)]);
    assert_eq!(states("told")[0], list("held", Redistribution::Split));
    assert!(matches!(states("told")[1].1, StateKind::Broadcast { .. }));
    let exchanges = |uid: &str| node(uid).inputs.iter().map(|input| input.exchange.clone()).collect::<Vec<_>>();
    assert_eq!(exchanges("buffer"), [Exchange::Forward]);
    assert_eq!(exchanges("told"), [Exchange::Forward, Exchange::Broadcast]);
    assert_eq!((exchanges("through"), states("through").len()), (vec![Exchange::Forward], 0));
}

#[test]
fn what_is_pushed_is_not_read_and_what_is_read_is_read_once() {
    let mut code = code(built(), "buffer");
    let notes = call(code.as_mut(), 0, readings(&[(1, 4), (2, 5)])).unwrap();
    let expected = "forward 1 of all: [4, 5]\nappend 0 to [0, 0]: [1, 2]\nappend 1 to [0, 0, 0, 0]: [4, 104, 5, 105]\n";
    assert_eq!(notes, expected);
    // There is [0, 1] before the call; a row sees what those before it did.
    let notes = call(code.as_mut(), 0, readings(&[(1, 9), (2, 5), (1, 9)])).unwrap();
    assert!(notes.starts_with("read 1 of [0]\nforward 0 of [0, 2]: [1, 111]\n"), "{notes}");
    assert_eq!(notes.matches("read").count(), 1, "{notes}");
    let notes = call(code.as_mut(), 0, readings(&[(1, 5), (1, 0), (3, 1), (1, 9)])).unwrap();
    assert!(notes.starts_with("forward 0 of [3]: [3]\n") && notes.ends_with("clear 1 of [0]\nappend 1 to [0]: [3]\n"));
}

#[test]
fn rows_behind_a_bad_one_wait_where_they_would_see_what_it_left_half_done() {
    let failed = |uid: &str, failed: Result<String, Failure>| match failed {
        Err(Failure::Rows(rows)) => rows.into_iter().map(|(row, _)| row).collect::<Vec<_>>(),
        other => panic!("{uid}: {other:?}"),
    };
    let bad = readings(&[(1, 5), (1, 7), (1, 7)]);
    assert_eq!(failed("buffer", call(code(built(), "buffer").as_mut(), 0, bad)), [1]);
    let bad = readings(&[(1, 5), (1, 7), (1, 7)]);
    assert_eq!(failed("told", call(code(built(), "told").as_mut(), 0, bad)), [1]);
    let bad = [1, 7, 7].map(|number| Rule { number }).into();
    assert_eq!(failed("through", call(code(built(), "through").as_mut(), 0, bad)), [1, 2]);
}

#[test]
fn the_end_emits_what_is_held() {
    let mut code_of_buffer = code(built(), "buffer");
    assert_eq!(end(code_of_buffer.as_mut(), 55), "read 1 of [0]\nforward 0 of [0, 0]: [55, 1]\n");
    // A stream without event time has none at its end.
    assert_eq!(end(code_of_buffer.as_mut(), i64::MAX), "read 1 of [0]\nforward 0 of [0, 0]: [-1, 1]\n");
    let mut code = code(built(), "told");
    assert_eq!(end(code.as_mut(), 55), "read 0 of [0]\nforward 0 of all: [1]\n");
    let rules = vec![Rule { number: 3 }];
    let notes = call(code.as_mut(), 1, rules).unwrap();
    assert_eq!(notes, "append 0 to [0]: [-3]\ninsert 1 of [0]: [3] -> [1]\n");
}
