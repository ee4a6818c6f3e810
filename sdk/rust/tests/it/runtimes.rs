//! The code of nodes against hand-made batches.

use tidemill::abi::{BatchView, Failure, KeySetView, NodeRuntime, TimeDomain, TimersView};
use tidemill::prelude::*;
use tidemill::value::Writer;

use crate::host::{CLOCK, Notes, bytes_i64, bytes_u32, code, columns, job, transform};

#[derive(Row)]
struct Line<'a> {
    text: &'a str,
}

#[derive(Row)]
struct Word<'a> {
    word: &'a str,
    length: i64,
}

#[derive(Row)]
struct Bid {
    auction: i64,
    price: Option<i64>,
}

fn bids(rows: &[(i64, Option<i64>)]) -> Vec<Bid> {
    rows.iter().map(|&(auction, price)| Bid { auction, price }).collect()
}

#[test]
fn filters_answer_row_numbers_only() {
    let built = job(|flow| {
        flow.source::<Bid>("bids").filter(|b| b.auction > 1).filter(|b| b.price.is_some()).sink("out");
    });
    let mut code = code(built, "filter");
    let mut run = |rows| transform(code.as_mut(), bids(rows)).expect("ok");
    assert_eq!(run(&[(1, Some(1)), (2, None), (3, Some(5))]), "forward 0 of [2]: \n");
    assert_eq!(run(&[(2, Some(1)), (3, Some(5))]), "forward 0 of all: \n");
    assert_eq!(run(&[(0, None)]), "");
    assert_eq!(run(&[]), "");
}

#[test]
fn a_map_of_every_row_forwards_all() {
    let built = job(|flow| {
        let doubled = |b: Bid| Bid { auction: b.auction * 2, price: b.price.map(|p| -p) };
        flow.source::<Bid>("bids").map(doubled).sink("out");
    });
    let mut code = code(built, "map");
    let out = transform(code.as_mut(), bids(&[(1, Some(7)), (2, None), (3, Some(9))]));
    assert_eq!(out.expect("ok"), "forward 0 of all: [2, 4, 6] 101?[-7, 0, -9]\n");
}

#[test]
fn a_flat_map_lends_text_and_numbers_its_rows() {
    let built = job(|flow| {
        flow.source::<Line>("lines")
            .flat_map(|line, out| {
                for word in line.text.split(' ').filter(|w| !w.is_empty()) {
                    out.emit(Word { word, length: word.len() as i64 });
                }
            })
            .filter(|w| w.length > 1)
            .sink("out");
    });
    let mut code = code(built, "flat-map+filter");
    let lines = ["to be", "", "or not a be"].map(|text| Line { text }).into();
    let out = transform(code.as_mut(), lines).expect("ok");
    assert_eq!(out, "forward 0 of [0, 0, 2, 2, 2]: [\"to\", \"be\", \"or\", \"not\", \"be\"] [2, 2, 2, 3, 2]\n");
}

#[test]
fn rows_that_fail_are_named_and_nothing_is_emitted() {
    let built = job(|flow| {
        let parse = |line: Line<'_>| Ok(Bid { auction: line.text.parse()?, price: None });
        flow.source::<Line>("lines").try_map(parse).sink("out");
    });
    let mut code = code(built, "map");
    let failure = transform(code.as_mut(), ["1", "x", "3", ""].map(|text| Line { text }).into()).expect_err("two fail");
    let reasons = [(1, "invalid digit found in string"), (3, "cannot parse integer from empty string")];
    assert_eq!(failure, Failure::Rows(reasons.map(|(row, why)| (row, why.to_owned())).into()));
}

/// Counts bids per auction; alerts at 3; forgets an auction 1 s after its last bid; refuses negative prices.
struct Counter {
    bids: ValueState<i64>,
    last: ValueState<Timestamp>,
    alerts: Side<Word<'static>>,
}

impl KeyedProcess for Counter {
    type Key = i64;
    type In = Bid;
    type Out = Bid;

    fn process(&mut self, bid: Bid, ctx: &mut Context<'_, Bid>) -> Result<(), RowError> {
        let bids = self.bids.get(ctx).unwrap_or(0) + 1;
        self.bids.set(ctx, bids);
        if bid.price.is_some_and(|p| p < 0) {
            return Err(RowError::new(format!(
                "price {:?} at {:?}",
                bid.price,
                ctx.timestamp().map(Timestamp::millis)
            )));
        }
        let now = ctx.timestamp().unwrap_or_default();
        if let Some(last) = self.last.get(ctx) {
            ctx.delete_event_timer(last + secs(1));
        }
        self.last.set(ctx, now);
        ctx.set_event_timer(now + secs(1));
        ctx.emit(Bid { auction: bid.auction, price: Some(bids) });
        if bids == 3 {
            ctx.side(&self.alerts, Word { word: "hot", length: bid.auction });
        }
        Ok(())
    }

    fn on_timer(&mut self, key: i64, timestamp: Timestamp, ctx: &mut Context<'_, Bid>) -> Result<(), RowError> {
        ctx.emit(Bid { auction: key, price: Some(timestamp.millis() + ctx.watermark().millis()) });
        self.bids.clear(ctx);
        self.last.clear(ctx);
        Ok(())
    }
}

fn counter() -> Box<dyn NodeRuntime> {
    let built = job(|flow| {
        flow.source::<Bid>("bids")
            .key_by(|b| b.auction)
            .process(|s| Counter { bids: s.value("bids"), last: s.value("last"), alerts: s.side("alerts") })
            .sink("out");
    });
    code(built, "process")
}

#[derive(Row)]
struct States {
    bids: Option<i64>,
    last: Option<Timestamp>,
}

fn process(
    code: &mut dyn NodeRuntime,
    rows: &[(i64, Option<i64>, i64)],
    states: Vec<States>,
) -> Result<String, Failure> {
    let mut keys: Vec<i64> = Vec::new();
    let mut key_of_row = Vec::new();
    for (auction, ..) in rows {
        let at = keys.iter().position(|k| k == auction).unwrap_or_else(|| {
            keys.push(*auction);
            keys.len() - 1
        });
        key_of_row.push(at as u32);
    }
    let (rows, states) = (rows.to_vec(), columns(states));
    let timestamps = bytes_i64(&rows.iter().map(|r| r.2).collect::<Vec<_>>());
    let batch = columns(bids(&rows.iter().map(|r| (r.0, r.1)).collect::<Vec<_>>()));
    let (mut batch_columns, mut state_columns) = (Vec::new(), Vec::new());
    batch.columns(&mut batch_columns);
    states.columns(&mut state_columns);
    let key_of_row = bytes_u32(&key_of_row);
    let keys = KeySetView { keys: keys.len(), key_of_row: &key_of_row, states: &state_columns };
    let mut host = Notes::default();
    let view = BatchView { rows: rows.len(), timestamps: &timestamps, columns: &batch_columns };
    code.process(CLOCK, 0, &view, &keys, &mut host)?;
    Ok(host.0)
}

#[test]
fn state_is_read_once_and_changes_go_back_once_per_key() {
    let states =
        vec![States { bids: Some(1), last: Some(Timestamp::from_millis(10)) }, States { bids: None, last: None }];
    let rows = [(7, None, 20), (8, None, 21), (7, None, 30)];
    let out = process(counter().as_mut(), &rows, states).expect("ok");
    let expected = "\
forward 0 of all: [7, 8, 7] [2, 1, 3]
forward 1 of [2]: [\"hot\"] [7]
put 0 of [0, 1]: [3, 1]
put 1 of [0, 1]: [30, 21]
delete Event [0, 0] at [1010, 1020]
set Event [1, 0] at [1021, 1030]
";
    assert_eq!(out, expected);
}

#[test]
fn a_failed_row_takes_nothing_with_it_and_hides_later_rows_of_its_key() {
    let states = || vec![States { bids: None, last: None }, States { bids: None, last: None }];
    let rows = [(7, Some(-1), 5), (8, None, 6), (7, Some(-2), 7), (8, Some(-3), 8)];
    let mut code = counter();
    let failure = process(code.as_mut(), &rows, states()).expect_err("rows fail");
    let reasons = [(0, "price Some(-1) at Some(5)"), (3, "price Some(-3) at Some(8)")];
    assert_eq!(failure, Failure::Rows(reasons.map(|(row, why)| (row, why.to_owned())).into()));
    // What the failed call counted is forgotten.
    let out = process(code.as_mut(), &[(7, None, 9)], vec![States { bids: None, last: None }]).expect("ok");
    assert!(out.contains("put 0 of [0]: [1]"), "{out}");
}

#[test]
fn timers_come_with_their_key_and_time_and_can_clear_state() {
    let states = columns(vec![States { bids: Some(4), last: None }, States { bids: Some(9), last: None }]);
    let mut state_columns = Vec::new();
    states.columns(&mut state_columns);
    let (timestamps, key_of_timer, keys) = (bytes_i64(&[100, 200, 300]), bytes_u32(&[1, 0, 1]), bytes_i64(&[70, 80]));
    let key_columns = [tidemill::abi::ColumnView { values: &keys, ..Default::default() }];
    let timers = TimersView {
        domain: TimeDomain::Event,
        timestamps: &timestamps,
        key_columns: &key_columns,
        keys: KeySetView { keys: 2, key_of_row: &key_of_timer, states: &state_columns },
    };
    let mut host = Notes::default();
    counter().on_timers(CLOCK, &timers, &mut host).expect("ok");
    let expected = "\
forward 0 of all: [80, 70, 80] [5100, 5200, 5300]
put 0 of [1, 0]: 0?[0, 0]
put 1 of [1, 0]: 0?[0, 0]
";
    assert_eq!(host.0, expected);
}

/// Rows are commands; what is read shows in the rows that go out.
struct Collector {
    items: ListState<i64>,
    entries: MapState<i64, i64>,
}

#[derive(Debug, Row)]
struct Command {
    key: i64,
    what: i64,
    with: i64,
}

#[derive(Debug, Row)]
struct Seen {
    sum: i64,
}

impl KeyedProcess for Collector {
    type Key = i64;
    type In = Command;
    type Out = Seen;
    const TIMESTAMPS: bool = false;
    const PREFETCH: bool = true;

    fn prefetch(&self, command: Command, rows: &mut Prefetch<'_>) {
        if command.what == 7 {
            self.entries.prefetch(rows, command.with);
        }
    }

    fn process(&mut self, command: Command, ctx: &mut Context<'_, Seen>) -> Result<(), RowError> {
        let with = command.with;
        let sum = match command.what {
            0 => {
                self.items.push(ctx, with);
                0
            }
            1 => self.items.iter(ctx).sum(),
            2 => {
                self.items.clear(ctx);
                0
            }
            3 => {
                self.entries.insert(ctx, with, with * 10);
                0
            }
            4 => {
                self.entries.remove(ctx, &with);
                0
            }
            5 => self.entries.iter(ctx).map(|(key, value)| key + value).sum(),
            6 => {
                self.entries.clear(ctx);
                0
            }
            7 | 8 => self.entries.get(ctx, &with).unwrap_or(-1),
            _ => return Err(RowError::new("no such command")),
        };
        ctx.emit(Seen { sum });
        Ok(())
    }
}

/// What the code does with these commands, each of a key number.
fn collect(commands: &[(u32, i64, i64)]) -> Result<String, Failure> {
    let built = job(|flow| {
        flow.source::<Command>("commands")
            .key_by(|c| c.key)
            .process(|s| Collector { items: s.list("items"), entries: s.map("entries") })
            .sink("seen");
    });
    let mut code = code(built, "process");
    let rows = columns(commands.iter().map(|&(key, what, with)| Command { key: key.into(), what, with }).collect());
    let mut views = Vec::new();
    rows.columns(&mut views);
    let keys = commands.iter().map(|c| c.0 + 1).max().unwrap_or(0) as usize;
    let key_of_row = bytes_u32(&commands.iter().map(|c| c.0).collect::<Vec<_>>());
    let keys = KeySetView { keys, key_of_row: &key_of_row, states: &[] };
    let mut host = Notes(String::new(), vec![1]);
    let batch = BatchView { rows: commands.len(), timestamps: &[], columns: &views };
    code.process(CLOCK, 0, &batch, &keys, &mut host)?;
    Ok(host.0)
}

#[test]
fn changes_of_lists_are_deltas_and_reading_is_for_several_keys() {
    // Appending reads nothing.
    let notes = collect(&[(0, 0, 5), (1, 0, 6), (0, 0, 7)]).unwrap();
    assert_eq!(notes, "forward 0 of all: [0, 0, 0]\nappend 0 to [0, 0, 1]: [5, 7, 6]\n");
    // Of key n the host has [n, n + 1]; what the call did lies over it.
    let notes = collect(&[(0, 0, 5), (0, 1, 0), (1, 1, 0), (2, 2, 0), (2, 1, 0), (2, 0, 9), (2, 1, 0)]).unwrap();
    let expected = "\
read 0 of [0, 1, 2]
forward 0 of all: [0, 6, 3, 0, 0, 0, 9]
clear 0 of [2]
append 0 to [0, 2]: [5, 9]
";
    assert_eq!(notes, expected);
    // A list that was cleared is known: nothing is read, and nothing of before the clearing is appended.
    let notes = collect(&[(0, 0, 5), (0, 2, 0), (0, 1, 0), (0, 0, 6)]).unwrap();
    assert_eq!(notes, "forward 0 of all: [0, 0, 0, 0]\nclear 0 of [0]\nappend 0 to [0]: [6]\n");
}

#[test]
fn changes_of_maps_are_deltas_and_what_was_named_before_is_read_at_once() {
    // Even entries are there: k -> k + 100.
    let notes = collect(&[(0, 7, 2), (1, 7, 3), (0, 7, 2), (0, 8, 4), (0, 8, 4)]).unwrap();
    let expected = "\
get 1 of [0, 1]: [2, 3]
get 1 of [0]: [4]
forward 0 of all: [102, -1, 102, 104, 104]
";
    assert_eq!(notes, expected);
    let notes = collect(&[(0, 3, 1), (0, 8, 1), (0, 4, 2), (0, 8, 2), (0, 4, 1), (1, 3, 5), (1, 3, 5)]).unwrap();
    let expected = "\
forward 0 of all: [0, 10, 0, -1, 0, 0, 0]
insert 1 of [1]: [5] -> [50]
remove 1 of [0, 0]: [1, 2]
";
    assert_eq!(notes, expected);
    // Of key 0 the host has {0: 100, 1: 101}.
    let notes = collect(&[(0, 3, 1), (0, 5, 0), (0, 6, 0), (0, 8, 0), (0, 3, 4), (0, 4, 9), (0, 5, 0)]).unwrap();
    let expected = "\
read 1 of [0]
forward 0 of all: [0, 111, 0, -1, 0, 0, 44]
clear 1 of [0]
insert 1 of [0]: [4] -> [40]
";
    assert_eq!(notes, expected);
}

#[test]
fn a_call_that_fails_changes_no_list_and_no_map() {
    let failure = collect(&[(0, 0, 5), (1, 9, 0), (0, 3, 5)]).unwrap_err();
    assert_eq!(failure, Failure::Rows(vec![(1, "no such command".to_owned())]));
    let notes = collect(&[(0, 0, 5), (0, 3, 5)]).unwrap();
    assert!(notes.contains("append") && notes.contains("insert"), "{notes}");
}

#[test]
fn kinds_of_state_and_their_time_to_live_are_in_the_plan() {
    struct Expiring(ValueState<i64>);
    impl KeyedProcess for Expiring {
        type Key = i64;
        type In = Command;
        type Out = Seen;
        fn process(&mut self, command: Command, ctx: &mut Context<'_, Seen>) -> Result<(), RowError> {
            self.0.set(ctx, command.with);
            Ok(())
        }
    }
    let built = job(|flow| {
        let keyed = flow.source::<Command>("commands").key_by(|c| c.key);
        keyed.process(|s| Expiring(s.value_with_ttl("v", Ttl::after_access(secs(2))))).sink("a");
        flow.source::<Command>("more")
            .key_by(|c| c.key)
            .process(|s| Collector { items: s.list("items"), entries: s.map("entries") })
            .sink("b");
    });
    let kinds: Vec<String> = built
        .plan
        .nodes
        .iter()
        .filter_map(|node| match &node.kind {
            tidemill::plan::NodeKind::Process { states, .. } => Some(serde_json::to_string(states).expect("JSON")),
            _ => None,
        })
        .collect();
    let expected = [
        r#"[{"name":"v","kind":"value","data_type":"int64","ttl":{"duration_ms":2000,"update":"on_read_and_write"}}]"#,
        r#"[{"name":"items","kind":"list","data_type":"int64"},{"name":"entries","kind":{"map":{"key":"int64"}},"data_type":"int64"}]"#,
    ];
    assert_eq!(kinds, expected);
}

struct Longest;

#[derive(Debug, Row, Clone)]
struct Best {
    word: String,
    rows: i64,
}

impl Aggregator for Longest {
    type In = Line<'static>;
    type Accumulator = Best;
    type Output = Option<String>;
    fn create(&self) -> Best {
        Best { word: String::new(), rows: 0 }
    }
    fn add(&self, best: &mut Best, line: Line<'_>) {
        best.rows += 1;
        if line.text.len() > best.word.len() {
            best.word = line.text.to_owned();
        }
    }
    fn merge(&self, best: &mut Best, other: Best) {
        best.rows += other.rows;
        if other.word.len() > best.word.len() {
            best.word = other.word;
        }
    }
    fn finish(&self, best: Best) -> Option<String> {
        (best.rows > 1).then_some(best.word)
    }
}

#[test]
fn a_user_aggregator_keeps_structs_and_sees_null_as_none_yet() {
    let built = job(|flow| {
        flow.source::<Line>("lines").window_all(Tumbling::secs(1)).aggregate(|_| Longest).sink("out");
    });
    let mut code = code(built, "window");
    let lines = columns(["ab", "c", "def"].map(|text| Line { text }).into());
    let mut views = Vec::new();
    lines.columns(&mut views);
    let batch = BatchView { rows: 3, timestamps: &[], columns: &views };
    #[derive(Debug, Row)]
    struct Before {
        best: Option<Best>,
    }
    let before = columns(vec![Before { best: None }, Before { best: Some(Best { word: "longer".into(), rows: 5 }) }]);
    let mut accumulators = Vec::new();
    before.columns(&mut accumulators);
    let mut host = Notes::default();
    let groups = bytes_u32(&[0, 1, 0]);
    code.accumulate(0, 2, &groups, &batch, &accumulators, &mut host).expect("ok");
    assert_eq!(host.0, "emit 0 2 at []: [] [\"def\", \"longer\"] [2, 6]\n");

    let (left, right) =
        (columns(vec![Best { word: "a".into(), rows: 1 }]), columns(vec![Best { word: "bb".into(), rows: 2 }]));
    let none = tidemill::abi::ColumnView::default();
    let (mut l, mut r) = (vec![none], vec![none]);
    left.columns(&mut l);
    right.columns(&mut r);
    let mut host = Notes::default();
    code.merge(0, 1, &l, &r, &mut host).expect("ok");
    code.finish(0, 1, &l, &mut host).expect("ok");
    assert_eq!(host.0, "emit 0 1 at []: [] [\"bb\"] [3]\nemit 0 1 at []: 0?[\"\"]\n");
    assert!(matches!(code.finish(1, 1, &l, &mut Notes::default()), Err(Failure::Fatal(_))));
}
