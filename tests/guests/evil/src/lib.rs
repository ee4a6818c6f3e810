//! A guest that misbehaves in every way the contract forbids, and behaves in a few.
//!
//! The job's parameter `do` names the deed, if need be with the export that does it (`finish:trap`); `plan` has no
//! parameters, so its deed is written into the module's bytes (`PLAN_DEED`) by the test. The columns that come in go out as they are, so the same guest serves every schema.

use std::hint::black_box;
use std::sync::Mutex;

wit_bindgen::generate!({ path: "../../../wit", world: "job" });

use exports::tidemill::job::{aggregate, keyed, lifecycle, transform};
use tidemill::job::types::{Batch, Clock, Column, Failure, KeySet, Level, RowFailure, Subtask, TimeDomain};
use tidemill::job::{collections, logging, output, state};

struct Evil;

export!(Evil);

/// Deed of `plan`: the 16 bytes after the mark.
static PLAN_DEED: [u8; 32] = *b"the deed of plan:good           ";
static DEED: Mutex<String> = Mutex::new(String::new());

/// The deed of a call of `export`. `EXPORT:DEED` is done in calls of that export alone; in others all is well.
fn deed(export: &str) -> String {
    let deed = DEED.lock().unwrap().clone();
    match deed.split_once(':') {
        Some((of, deed)) if of == export => deed.to_owned(),
        Some(_) => "good".to_owned(),
        None => deed,
    }
}

impl lifecycle::Guest for Evil {
    fn plan() -> Result<String, String> {
        let deed: Vec<u8> = (17..32).map(|i| unsafe { PLAN_DEED.as_ptr().add(i).read_volatile() }).collect();
        let source = r#"{"uid":"in","name":"in","outputs":[{"name":"out","fields":[{"field":{"name":"id","data_type":"int64"},"origin":"new"}]}],"kind":{"source":{"binding":"in"}}}"#;
        let sink = r#"{"uid":"out","name":"out","inputs":[{"node":0,"exchange":"forward"}],"kind":{"sink":{"binding":"out"}}}"#;
        let good = format!(r#"{{"version":1,"name":"evil","nodes":[{source},{sink}]}}"#);
        match std::str::from_utf8(&deed).unwrap().trim() {
            "good" => Ok(good),
            // With an operator in between: one that passes rows on, or one that counts them by key.
            "flow" => Ok(through(r#"{"transform":{}}"#, r#""forward""#, "")),
            "count" => {
                let states = r#"[{"name":"n","kind":"value","data_type":"int64"}]"#;
                let field = r#",{"field":{"name":"n","data_type":"int64"},"origin":"new"}"#;
                Ok(through(&format!(r#"{{"process":{{"states":{states}}}}}"#), r#"{"hash":[0]}"#, field))
            }
            "refuse" => Err("no job here".into()),
            "no-json" => Ok("{".into()),
            "unknown" => Ok(good.replace("\"version\"", "\"vision\":2,\"version\"")),
            "deep" => Ok("[".repeat(100_000)),
            "huge" => Ok("x".repeat(20 << 20)),
            "emit" => {
                output::emit(0, 0, &[], &[]);
                Ok(good)
            }
            other => {
                anywhere(other);
                Ok(good)
            }
        }
    }

    fn open(_subtask: Subtask, config: Vec<(String, String)>) -> Result<(), Failure> {
        let value = config.iter().find(|(k, _)| k == "do").map_or("good", |(_, v)| v.as_str());
        *DEED.lock().unwrap() = value.strip_prefix("open:").unwrap_or(value).to_owned();
        match value.strip_prefix("open:") {
            Some("fatal") => Err(Failure::Fatal("it will not open".into())),
            Some("retry") => Err(Failure::Retry("not yet".into())),
            Some("rows") => Err(Failure::Rows(vec![])),
            Some(other) => {
                anywhere(other);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn close() -> Result<(), Failure> {
        let deed = deed("close");
        match deed.as_str() {
            "fatal" => Err(Failure::Fatal("it will not close".into())),
            "rows" => Err(Failure::Rows(vec![])),
            "emit" => {
                output::emit(0, 0, &[], &[]);
                Ok(())
            }
            other => {
                anywhere(other);
                Ok(())
            }
        }
    }
}

/// A plan with an operator `deed` of this kind between source and sink, which adds this field.
fn through(kind: &str, exchange: &str, field: &str) -> String {
    let id = r#"{"name":"id","data_type":"int64"}"#;
    let source = format!(
        r#"{{"uid":"in","name":"in","outputs":[{{"name":"out","fields":[{{"field":{id},"origin":"new"}}]}}],"kind":{{"source":{{"binding":"in"}}}}}}"#
    );
    let deed = format!(
        r#"{{"uid":"deed","name":"deed","inputs":[{{"node":0,"exchange":{exchange},"reads":[0]}}],"outputs":[{{"name":"main","fields":[{{"field":{id},"origin":{{"input":{{"input":0,"column":0}}}}}}{field}]}}],"kind":{kind}}}"#
    );
    let sink =
        r#"{"uid":"out","name":"out","inputs":[{"node":1,"exchange":"forward"}],"kind":{"sink":{"binding":"out"}}}"#;
    format!(r#"{{"version":1,"name":"evil","nodes":[{source},{deed},{sink}]}}"#)
}

/// Deeds that can be done in any call.
fn anywhere(deed: &str) {
    match deed {
        "loop" => loop {
            black_box(0);
        },
        "memory" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(black_box(vec![1u8; 1 << 20]));
            }
        }
        "recurse" => {
            black_box(recurse(black_box(0)));
        }
        "trap" => core::arch::wasm32::unreachable(),
        "divide" => {
            black_box(1 / black_box(0));
        }
        "panic" => {
            std::panic::set_hook(Box::new(|info| logging::log(Level::Error, &info.to_string())));
            panic!("the sky is falling");
        }
        "wild" => unsafe { (black_box(0xffff_fff0usize) as *mut u8).write_volatile(1) },
        "log" => logging::log(Level::Warn, "it is \u{1b}[31mred\u{1b}[0m here"),
        "hold" => {
            static HELD: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
            let mut held = HELD.lock().unwrap();
            if held.is_empty() {
                held.push(black_box(vec![1; 8 << 20]));
            }
        }
        "log-flood" => {
            for i in 0..10_000 {
                logging::log(Level::Info, &format!("message {i}"));
            }
            logging::log(Level::Debug, &"é".repeat(1 << 20));
        }
        _ => {}
    }
}

#[inline(never)]
#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    recurse(depth + 1) + black_box(1)
}

fn raw<T: Copy>(values: &[T]) -> Vec<u8> {
    let bytes = std::mem::size_of_val(values);
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), bytes) }.to_vec()
}

fn plain<T: Copy>(values: &[T]) -> Column {
    Column { validity: vec![], offsets: vec![], values: raw(values) }
}

fn text(offsets: &[i32], values: &[u8]) -> Column {
    Column { validity: vec![], offsets: raw(offsets), values: values.to_vec() }
}

fn i64s(column: &Column) -> impl Iterator<Item = i64> {
    column.values.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()))
}

impl transform::Guest for Evil {
    fn process(clock: Clock, input: u32, batch: Batch) -> Result<(), Failure> {
        let deed = deed("process");
        let rows = batch.rows;
        anywhere(&deed);
        match deed.as_str() {
            // Good ones.
            "good" => {
                let kept: Vec<u32> =
                    i64s(&batch.columns[0]).zip(0..).filter(|(v, _)| v % 2 == 0).map(|(_, row)| row).collect();
                output::forward(0, Some(&raw(&kept)), &[]);
            }
            "euro" => {
                let values: Vec<f64> = i64s(&batch.columns[0]).map(|v| v as f64 * 0.908).collect();
                output::forward(0, None, &[plain(&values)]);
            }
            "nothing" => {}
            "log" | "hold" | "log-flood" => output::forward(0, None, &[]),
            "echo" => output::emit(0, rows, &batch.timestamps, &batch.columns),
            "echo-forward" => output::forward(0, None, &batch.columns),
            "clock" => {
                let seen = [clock.watermark, clock.processing_time, i64::from(input)];
                output::emit(0, 3, &[], &[plain(&seen)]);
            }
            // Ports and shapes.
            "port" => output::forward(7, None, &[]),
            "no-columns" => output::emit(0, rows, &[], &[]),
            "many-columns" => output::emit(0, rows, &[], &vec![plain(&[0u8]); 1_000]),
            "emit-inherited" => output::emit(0, rows, &[], &[plain(&vec![0f64; rows as usize])]),
            "row-lie-long" => output::emit(0, rows + 1_000, &[], &batch.columns),
            "row-lie-short" => output::emit(0, rows - 1, &[], &batch.columns),
            "billion-rows" => output::emit(0, u32::MAX, &[], &[]),
            "forward-billions" => (0..).for_each(|_| output::forward(0, None, &[])),
            "timestamps" => output::emit(0, rows, &[1, 2, 3], &batch.columns),
            "offsets-of-number" => {
                let mut column = batch.columns[0].clone();
                column.offsets = vec![0; 8];
                output::emit(0, rows, &[], &[column]);
            }
            "validity-length" => {
                let mut column = batch.columns[0].clone();
                column.validity = vec![0xff; 1_000];
                output::emit(0, rows, &[], &[column]);
            }
            "null" => {
                let mut column = batch.columns[0].clone();
                column.validity = vec![0xfd; rows.div_ceil(8) as usize];
                output::emit(0, rows, &[], &[column]);
            }
            // Rows.
            "index" => output::forward(0, Some(&raw(&[0u32, rows])), &[]),
            "index-max" => output::forward(0, Some(&raw(&[u32::MAX])), &[]),
            "index-bytes" => output::forward(0, Some(&[0, 0, 0]), &[]),
            // Text: two values each.
            "offsets-fall" => output::emit(0, 3, &[], &[text(&[0, 3, 1, 4], b"abcd")]),
            "offsets-start" => output::emit(0, 2, &[], &[text(&[1, 2, 4], b"abcd")]),
            "offsets-negative" => output::emit(0, 2, &[], &[text(&[0, -1, 4], b"abcd")]),
            "offsets-beyond" => output::emit(0, 2, &[], &[text(&[0, 2, 400], b"abcd")]),
            "offsets-short" => output::emit(0, 2, &[], &[text(&[0, 4], b"abcd")]),
            "utf8" => output::emit(0, 2, &[], &[text(&[0, 2, 4], b"ab\xff\xfe")]),
            "utf8-split" => output::emit(0, 2, &[], &[text(&[0, 1, 2], "é".as_bytes())]),
            "list-child" => {
                let list = Column { validity: vec![], offsets: raw(&[0i32, 1, 5]), values: vec![] };
                output::emit(0, 2, &[], &[list, plain(&[1i64, 2])]);
            }
            // Amounts.
            "huge-emit" => {
                let rows = 2 << 20;
                output::emit(0, rows, &[], &[plain(&vec![0i64; rows as usize])]);
            }
            "emit-forever" => loop {
                output::emit(0, rows, &[], &batch.columns);
            },
            "empty-emits" => loop {
                output::emit(0, 0, &[], &[plain::<i64>(&[])]);
            },
            // What only keyed code may do.
            "put" => state::put(0, &[], &[]),
            "timer" => state::set_timers(TimeDomain::EventTime, &[], &[]),
            "append" => collections::append(0, &[], &[]),
            "read" => _ = collections::read(0, &[]),
            // Failures.
            "odd" => {
                let odd = i64s(&batch.columns[0]).zip(0..).filter(|(v, _)| v % 2 != 0);
                let failed: Vec<_> = odd.map(|(v, row)| RowFailure { row, reason: format!("{v} is odd") }).collect();
                output::forward(0, None, &[]);
                if !failed.is_empty() {
                    return Err(Failure::Rows(failed));
                }
            }
            "rows-range" => return Err(Failure::Rows(vec![RowFailure { row: rows, reason: "beyond".into() }])),
            "rows-none" => return Err(Failure::Rows(vec![])),
            "retry" => return Err(Failure::Retry("busy".into())),
            "fatal" => return Err(Failure::Fatal("never".into())),
            "once" => {
                // Traps at 13, and shows that the next call comes to a fresh instance.
                if i64s(&batch.columns[0]).any(|v| v == 13) {
                    *DEED.lock().unwrap() = "fatal".into();
                    core::arch::wasm32::unreachable();
                }
                output::forward(0, None, &[]);
            }
            _ => {}
        }
        Ok(())
    }
}

impl keyed::Guest for Evil {
    fn process(_clock: Clock, _input: u32, batch: Batch, keys: KeySet) -> Result<(), Failure> {
        let mut deed = deed("keyed");
        anywhere(&deed);
        if DEED.lock().unwrap().starts_with("on-timers:") {
            deed = "timers".into();
        }
        let numbers: Vec<u32> = (0..keys.keys).collect();
        let values = || vec![plain(&vec![1i64; keys.keys as usize])];
        match deed.as_str() {
            "good" => {
                let mut counts: Vec<i64> = i64s(&keys.states[0]).collect();
                if !keys.states[0].validity.is_empty() {
                    for (key, count) in counts.iter_mut().enumerate() {
                        if keys.states[0].validity[key / 8] >> (key % 8) & 1 == 0 {
                            *count = 0;
                        }
                    }
                }
                let mut out = Vec::with_capacity(batch.rows as usize);
                for key in keys.key_of_row.chunks_exact(4) {
                    let count = &mut counts[u32::from_le_bytes(key.try_into().unwrap()) as usize];
                    *count += 1;
                    out.push(*count);
                }
                output::forward(0, None, &[plain(&out)]);
                state::put(0, &raw(&numbers), &[plain(&counts)]);
            }
            "state" => state::put(9, &[], &[]),
            "key" => state::put(0, &raw(&[keys.keys]), &[plain(&[1i64])]),
            "key-twice" => state::put(0, &raw(&[0u32, 1, 0]), &[plain(&[1i64, 2, 3])]),
            "values" => state::put(0, &raw(&numbers), &[plain(&[1u8])]),
            "remove" => {
                let gone = Column { validity: vec![0; keys.keys.div_ceil(8) as usize], ..values()[0].clone() };
                state::put(0, &raw(&numbers), &[gone]);
            }
            "timers" => {
                let times: Vec<i64> = numbers.iter().map(|n| i64::from(*n) * 1_000).collect();
                state::set_timers(TimeDomain::EventTime, &raw(&numbers), &raw(&times));
                state::delete_timers(TimeDomain::ProcessingTime, &raw(&numbers[..1]), &raw(&[5i64]));
            }
            "timer-key" => state::set_timers(TimeDomain::EventTime, &raw(&[keys.keys]), &raw(&[5i64])),
            "timer-times" => state::set_timers(TimeDomain::EventTime, &raw(&numbers), &raw(&[5i64])),
            "put-forever" => loop {
                state::put(0, &raw(&numbers), &values());
            },
            // Lists (1) and maps (2).
            "put-list" => state::put(1, &raw(&numbers), &values()),
            "list-of-value" => collections::append(0, &raw(&numbers), &values()),
            "list-of-map" => collections::append(2, &raw(&numbers), &values()),
            "list-state" => collections::append(9, &[], &[]),
            "list-key" => collections::append(1, &raw(&[0, keys.keys]), &values()),
            "list-keys-bytes" => collections::append(1, &[0, 0, 0], &values()),
            "list-items" => collections::append(1, &raw(&numbers), &[plain(&[1u8])]),
            "list-columns" => collections::append(1, &raw(&numbers), &[]),
            "list-forever" => loop {
                collections::append(1, &raw(&numbers), &values());
            },
            "map-of-list" => collections::insert(1, &raw(&numbers), &values(), &values()),
            "map-null-key" => {
                let null = Column { validity: vec![0xfe], ..values()[0].clone() };
                collections::insert(2, &raw(&numbers), &[null], &values());
            }
            "map-values" => collections::insert(2, &raw(&numbers), &values(), &[plain(&[1i64])]),
            "map-remove" => collections::remove(2, &raw(&[keys.keys]), &[plain(&[1i64])]),
            "clear-value" => collections::clear(0, &raw(&numbers)),
            "clear-key" => collections::clear(1, &raw(&[u32::MAX])),
            "clear-forever" => loop {
                collections::clear(1, &[]);
            },
            "read-value" => _ = collections::read(0, &raw(&numbers)),
            "read-key" => _ = collections::read(1, &raw(&[keys.keys])),
            "read-often" => _ = collections::read(1, &raw(&vec![0u32; 1 << 20])),
            "read-forever" => loop {
                black_box(collections::read(1, &raw(&numbers)));
            },
            "get-list" => _ = collections::get(1, &raw(&numbers), &values()),
            "get-keys" => _ = collections::get(2, &raw(&numbers), &[plain(&[1i64])]),
            "get-often" => {
                let (of, map_keys) = (vec![0u32; 300_000], plain(&vec![7i64; 300_000]));
                _ = collections::get(2, &raw(&of), &[map_keys]);
            }
            "collect" => {
                let lists = collections::read(1, &raw(&numbers));
                let read: Vec<i64> = i64s(&lists[1]).collect();
                output::forward(0, None, &[plain(&vec![read.iter().sum::<i64>(); batch.rows as usize])]);
                let found = collections::get(2, &raw(&[1u32]), &[plain(&[7i64])]);
                collections::insert(2, &raw(&[0u32]), &[plain(&[8i64])], &found);
                collections::append(1, &raw(&[1u32, 1, 0]), &[plain(&[5i64, 6, 7])]);
                collections::remove(2, &raw(&[1u32]), &[plain(&[7i64])]);
                collections::clear(1, &raw(&[0u32]));
            }
            "timers-forever" => loop {
                state::set_timers(TimeDomain::EventTime, &[], &[]);
            },
            _ => {}
        }
        Ok(())
    }

    fn on_timers(
        _clock: Clock,
        _domain: TimeDomain,
        timestamps: Vec<u8>,
        key_columns: Vec<Column>,
        _keys: KeySet,
    ) -> Result<(), Failure> {
        let deed = deed("on-timers");
        anywhere(&deed);
        let rows = (timestamps.len() / 8) as u32;
        match deed.as_str() {
            "good" => output::emit(0, rows, &[], &key_columns),
            "forward" => output::forward(0, None, &key_columns),
            _ => {}
        }
        Ok(())
    }
}

fn answer(deed: &str, groups: u32, values: &[i64]) {
    match deed {
        "silent" => {}
        "twice" => (0..2).for_each(|_| output::emit(0, groups, &[], &[plain(values)])),
        "fewer" => output::emit(0, groups - 1, &[], &[plain(&values[1..])]),
        "side" => output::emit(1, groups, &[], &[plain(values)]),
        "forwarded" => output::forward(0, None, &[plain(values)]),
        "none" => {
            let validity = vec![0; groups.div_ceil(8) as usize];
            output::emit(0, groups, &[], &[Column { validity, ..plain(values) }]);
        }
        _ => output::emit(0, groups, &[], &[plain(values)]),
    }
}

/// Sums of the first column.
impl aggregate::Guest for Evil {
    fn accumulate(
        _aggregator: u32,
        groups: u32,
        group_of_row: Vec<u8>,
        batch: Batch,
        accumulators: Vec<Column>,
    ) -> Result<(), Failure> {
        let deed = deed("accumulate");
        anywhere(&deed);
        let mut sums: Vec<i64> = i64s(&accumulators[0]).collect();
        for (group, sum) in sums.iter_mut().enumerate() {
            if accumulators[0].validity.get(group / 8).is_some_and(|bits| bits >> (group % 8) & 1 == 0) {
                *sum = 0;
            }
        }
        let groups_of = group_of_row.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
        for (group, value) in groups_of.zip(i64s(&batch.columns[0])) {
            sums[group as usize] += value;
        }
        answer(&deed, groups, &sums);
        Ok(())
    }

    fn merge(_aggregator: u32, groups: u32, left: Vec<Column>, right: Vec<Column>) -> Result<(), Failure> {
        let deed = deed("merge");
        anywhere(&deed);
        let sums: Vec<i64> = i64s(&left[0]).zip(i64s(&right[0])).map(|(l, r)| l + r).collect();
        answer(&deed, groups, &sums);
        Ok(())
    }

    fn finish(_aggregator: u32, groups: u32, accumulators: Vec<Column>) -> Result<(), Failure> {
        let deed = deed("finish");
        anywhere(&deed);
        answer(&deed, groups, &i64s(&accumulators[0]).collect::<Vec<_>>());
        Ok(())
    }
}
