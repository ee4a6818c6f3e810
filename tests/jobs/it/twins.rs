//! The same test of an operator, natively and in the sandbox: equal rows in, in equal batches, equal rows out after each
//! of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;
use tidemill::prelude::*;
use tidemill_testkit::{Harness, json};
use tidemill_wasm::WasmCode;

use crate::guests;
use crate::support::Random;

/// Both ways of running an example.
struct Twins {
    native: Harness,
    sandbox: Harness,
    source: &'static str,
    sink: &'static str,
}

impl Twins {
    /// Feeds both, and compares what comes out.
    fn push(&mut self, rows: &[Value]) -> Vec<Value> {
        for twin in [&mut self.native, &mut self.sandbox] {
            twin.push(self.source, rows).unwrap();
        }
        self.compare(&format!("{rows:?}"))
    }

    fn end(&mut self) -> Vec<Value> {
        for twin in [&mut self.native, &mut self.sandbox] {
            twin.end().unwrap();
        }
        self.compare("the end")
    }

    fn compare(&mut self, after: &str) -> Vec<Value> {
        let native = self.native.rows(self.sink).unwrap();
        assert_eq!(native, self.sandbox.rows(self.sink).unwrap(), "left natively, right in the sandbox, after {after}");
        native
    }
}

/// Runs an example both ways, `seeds` times, over batches of up to `largest` rows; all that came out, per run.
fn run(
    (name, code): (&'static str, fn(&mut Flow)),
    (source, sink): (&'static str, &'static str),
    row: impl Fn(&Random) -> Value,
    mut check: impl FnMut(&[Value], &[Value]),
) {
    let component = guests::example(name);
    for seed in 0..20 {
        let random = Random::new(seed);
        let wasm = Arc::new(WasmCode::new(component.clone(), vec![]));
        let sandbox = Harness::with_code(component.plan().unwrap(), wasm).unwrap();
        let mut twins = Twins { native: Harness::new(name, code).unwrap(), sandbox, source, sink };
        let (mut given, mut got) = (Vec::new(), Vec::new());
        for _ in 0..random.below(30) {
            let rows: Vec<Value> = (0..random.below(8)).map(|_| row(&random)).collect();
            got.extend(twins.push(&rows));
            given.extend(rows);
        }
        got.extend(twins.end());
        check(&given, &got);
    }
}

#[test]
fn word_count() {
    const PIECES: [&str; 12] = ["To", " be", " or", " ", "", "é", "ß", " 漢字", "-", " BE", "\n", " to"];
    let line = |random: &Random| {
        let pieces = (0..random.below(9)).map(|_| PIECES[random.below(PIECES.len() as u64) as usize]);
        json!({ "line": pieces.collect::<String>() })
    };
    run(("word-count", word_count::word_count), ("lines", "counts"), line, |given, got| {
        let mut counts: HashMap<String, i64> = HashMap::new();
        let mut expected = Vec::new();
        for line in given {
            let words = line["line"].as_str().unwrap().split(|c: char| !c.is_alphanumeric());
            for word in words.filter(|w| !w.is_empty()).map(str::to_lowercase) {
                let count = counts.entry(word.clone()).or_default();
                *count += 1;
                expected.push(json!({ "word": word, "count": *count }));
            }
        }
        assert_eq!(got, expected);
    });
}

#[test]
fn arrival_alerts() {
    let flight = |random: &Random| {
        let maybe = |rarity, value: i64| (!random.one_in(rarity)).then_some(value);
        let carrier = ["UA", "DL", ""][random.below(3) as usize];
        // Days apart, so that the watermark, which allows for 30 hours, fires timers long before the end.
        json!({
            "time_hour": 1_372_636_800_000_i64 + random.below(24 * 14) as i64 * 3_600_000,
            "minute": random.below(60),
            "dep_delay": maybe(6, random.below(300) as i64 - 30),
            "air_time": maybe(3, 200 + random.below(300) as i64),
            "carrier": carrier,
            "flight": random.below(3),
            "tailnum": maybe(5, random.below(2) as i64).map(|n| format!("N{n}")),
        })
    };
    let mut alerts = 0;
    run(("arrival-alerts", arrival_alerts::arrival_alerts), ("flights", "alerts"), flight, |given, got| {
        let departed = given.iter().filter(|f| !f["dep_delay"].is_null()).count();
        assert!(got.len() <= departed, "{} alerts for {departed} departures", got.len());
        alerts += got.len();
    });
    assert!(alerts > 100, "{alerts} alerts show little");
}

/// Lists, maps and values that expire, the clock standing still: some ids come again.
#[test]
fn visitors() {
    let click = |random: &Random| {
        let visitor = ["ada", "bob", "", "a visitor with a name that is longer than what lies in a view"];
        let page = ["/", "/a", "/books/about/something/with/a/long/path", "/é"];
        let pick = |of: [&'static str; 4]| of[random.below(4) as usize];
        json!({ "id": random.below(60), "visitor": pick(visitor), "page": pick(page) })
    };
    run(("visitors", visitors::visitors), ("clicks", "visits"), click, |given, got| {
        let (mut seen, mut pages) = (HashSet::new(), HashMap::<(&str, &str), i64>::new());
        let mut last = HashMap::<&str, Vec<&str>>::new();
        let mut expected = Vec::new();
        for click in given.iter().filter(|click| seen.insert(click["id"].as_i64())) {
            let (visitor, page) = (click["visitor"].as_str().unwrap(), click["page"].as_str().unwrap());
            let times = pages.entry((visitor, page)).or_default();
            *times += 1;
            let last = last.entry(visitor).or_default();
            last.push(page);
            last.drain(..last.len().saturating_sub(3));
            expected.push(json!({ "visitor": visitor, "page": page, "times": *times, "trail": last.join(" > ") }));
        }
        assert_eq!(got, expected);
    });
}

/// An operator list, and the end of the input.
#[test]
fn bundles() {
    let message = |random: &Random| {
        let text = ["é", "a text that is longer than what lies in a view"];
        let from = ["ada", "bob"][random.below(2) as usize];
        json!({ "from": from, "text": text[random.below(2) as usize] })
    };
    let mut smaller = 0;
    run(("bundles", bundles::bundles), ("messages", "bundles"), message, |given, got| {
        let said =
            |message: &Value| format!("{}: {}", message["from"].as_str().unwrap(), message["text"].as_str().unwrap());
        let said: Vec<String> = given.iter().map(said).collect();
        let bundle = |texts: &[String]| json!({ "messages": texts.len(), "texts": texts.join("; ") });
        assert_eq!(got, said.chunks(4).map(bundle).collect::<Vec<_>>());
        smaller += usize::from(given.len() % 4 > 0);
    });
    assert!(smaller > 5, "{smaller} runs ended with something left");
}

/// Holds everything to the end, in a stream with event time, and what comes out is in a window.
fn held_to_the_end(flow: &mut Flow) {
    #[derive(Row)]
    struct Number {
        n: i64,
        at: Timestamp,
    }
    #[derive(Row)]
    struct Held {
        n: i64,
        end: Timestamp,
    }
    struct Holding(OperatorListState<i64>);
    impl Process for Holding {
        type In = Number;
        type Out = Number;

        fn process(&mut self, row: Number, ctx: &mut UnkeyedContext<'_, Number>) -> Result<(), RowError> {
            self.0.push(ctx, row.n);
            Ok(())
        }

        fn on_end(&mut self, ctx: &mut UnkeyedContext<'_, Number>) -> Result<(), RowError> {
            let (held, at) = (self.0.to_vec(ctx), ctx.timestamp().ok_or(RowError::new("no time"))?);
            held.into_iter().for_each(|n| ctx.emit(Number { n, at }));
            Ok(())
        }
    }
    let numbers = flow.source::<Number>("numbers").watermark(|n| n.at, BoundedOutOfOrderness::millis(0));
    let held = numbers.process(|s| Holding(s.operator_list("held")));
    let window = held.key_by(|_| ()).window(Tumbling::secs(1)).late_to("late").aggregate(|n| Sum(n.n));
    window.map(|w| Held { n: w.value, end: w.end }).sink("sums");
}

#[test]
fn the_end_of_the_input_has_the_event_time_that_was_reached() {
    for (watermark, end) in [(None, "1970-01-01T00:00:01"), (Some(2_500), "1970-01-01T00:00:03")] {
        let mut job = Harness::new("held", held_to_the_end).unwrap();
        job.push("numbers", &[json!({ "n": 1, "at": 700 }), json!({ "n": 2, "at": 300 })]).unwrap();
        if let Some(watermark) = watermark {
            job.watermark(watermark).unwrap();
        }
        assert!(job.rows("sums").unwrap().is_empty());
        job.end().unwrap();
        assert_eq!(job.rows("sums").unwrap(), [json!({ "n": 3, "end": end })]);
    }
}

/// A job of two operators of which one refuses rows.
fn halves(flow: &mut Flow) {
    #[derive(Row)]
    struct Number {
        n: i64,
        at: Timestamp,
    }
    #[derive(Row)]
    struct Total {
        sum: i64,
        end: Timestamp,
    }
    let halve = |row: Number| {
        if row.n % 2 == 1 {
            return Err(RowError::new("it is odd"));
        }
        Ok(Number { n: row.n / 2, at: row.at })
    };
    flow.source::<Number>("numbers")
        .watermark(|n| n.at, BoundedOutOfOrderness::secs(1))
        .try_map(halve)
        .key_by(|_| ())
        .window(Tumbling::secs(1))
        .aggregate(|n| Sum(n.n))
        .map(|w| Total { sum: w.value, end: w.end })
        .sink("sums");
}

#[test]
fn event_time_moves_by_hand_and_dead_letters_are_read() {
    let number = |n: i64| json!({ "n": n, "at": n * 100 });
    let mut job = Harness::new("halves", halves).unwrap().with_dead_letters().unwrap();
    job.push("numbers", &[number(2), number(3), number(4), number(12)]).unwrap();
    let letters = job.dead_letters().unwrap();
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(
        (&letters[0]["reason"], &letters[0]["event_time"]),
        (&json!("it is odd"), &json!("1970-01-01T00:00:00.300"))
    );
    assert!(job.dead_letters().unwrap().is_empty(), "they are read once");
    job.watermark(998).unwrap();
    assert!(job.rows("sums").unwrap().is_empty(), "the window is open to its last millisecond");
    job.watermark(999).unwrap();
    assert_eq!(job.rows("sums").unwrap(), [json!({ "sum": 3, "end": "1970-01-01T00:00:01" })]);
    job.watermark(500).unwrap();
    job.push("numbers", &[number(6)]).unwrap();
    job.end().unwrap();
    assert_eq!(job.rows("sums").unwrap(), [json!({ "sum": 6, "end": "1970-01-01T00:00:02" })], "600 ms is late");
    let error = job.watermark(5_000).unwrap_err().to_string();
    assert!(error.contains("its input ended"), "{error}");
}

#[test]
fn without_dead_letters_the_first_row_that_fails_is_an_error() {
    let mut job = Harness::new("halves", halves).unwrap();
    let error = job.push("numbers", &[json!({ "n": 3, "at": 1 })]).unwrap_err().to_string();
    assert!(error.contains("it is odd"), "{error}");
    let error = job.dead_letters().unwrap_err().to_string();
    assert!(error.contains(".with_dead_letters()"), "{error}");
}
