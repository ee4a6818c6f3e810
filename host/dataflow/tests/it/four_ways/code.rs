//! The user code of the jobs: by the node's name. Its answers do not depend on the order of rows within what event time
//! allows, so that all ways of running a job must agree.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringViewArray, TimestampMillisecondArray};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use tidemill_core::ids::{Port, SubtaskId};
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::plan::Node;
use tidemill_core::user::*;
use tidemill_core::{Batch, Result};

/// Rows with these values are poisonous, to `transform`, `process` and `accumulate`.
pub const REFUSED: i64 = 13;
pub const TRAPS: i64 = 14;

/// After the last row of any input.
pub const LAST: i64 = 1_000_000;
/// How long a row of `settle` waits, in processing time.
const SETTLES_AFTER_MS: i64 = 40;

pub struct Code;

impl UserCodeFactory for Code {
    fn open(&self, _subtask: &SubtaskId, node: &Node, _metrics: &Arc<TaskMetrics>) -> Result<Box<dyn UserCode>> {
        Ok(Box::new(Instance { name: node.name.clone() }))
    }
}

struct Instance {
    name: String,
}

/// What is kept of a key: numbers by number, as text.
type Kept = BTreeMap<i64, i64>;

fn read(states: &[ArrayRef], key: usize) -> Kept {
    let texts = states[0].as_string_view();
    if texts.is_null(key) {
        return Kept::new();
    }
    let pairs = texts.value(key).split(',').map(|pair| pair.split_once(':').unwrap());
    pairs.map(|(at, n)| (at.parse().unwrap(), n.parse().unwrap())).collect()
}

fn write(kept: &BTreeMap<u32, Kept>, effects: &mut Effects) {
    let text = |kept: &Kept| {
        let pairs: Vec<_> = kept.iter().map(|(at, n)| format!("{at}:{n}")).collect();
        (!pairs.is_empty()).then(|| pairs.join(","))
    };
    let values: ArrayRef = Arc::new(kept.values().map(text).collect::<StringViewArray>());
    let keys = kept.keys().copied().collect::<Vec<_>>().into();
    effects.states.push(StateUpdate { state: 0, keys, values });
}

fn set_timers(domain: TimeDomain, timers: Vec<(u32, i64)>, effects: &mut Effects) {
    let (keys, timestamps): (Vec<u32>, Vec<i64>) = timers.into_iter().unzip();
    effects.timers.push(TimerUpdate { domain, delete: false, keys: keys.into(), timestamps: timestamps.into() });
}

/// New rows on port 0.
fn emit(rows: &[(i64, i64, i64)], effects: &mut Effects) {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|r| Some(r.0)).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| Some(r.1)).collect::<TimestampMillisecondArray>()),
        Arc::new(rows.iter().map(|r| Some(r.2)).collect::<Int64Array>()),
    ];
    let timestamps = Some(rows.iter().map(|r| r.1).collect());
    let new = EmittedRows::New { rows: rows.len(), timestamps };
    effects.emissions.push(Emission { port: Port(0), rows: new, columns });
}

fn ints(column: &ArrayRef) -> &[i64] {
    column.as_primitive::<Int64Type>().values()
}

fn poison(values: &[i64]) -> Result<(), UserFailure> {
    if values.contains(&TRAPS) {
        return Err(UserFailure::Trap("wasm trap: unreachable".into()));
    }
    let bad = values.iter().enumerate().filter(|(_, v)| **v == REFUSED);
    let bad: Vec<_> = bad.map(|(row, _)| (row as u32, "it is refused".to_owned())).collect();
    if bad.is_empty() { Ok(()) } else { Err(UserFailure::Rows(bad)) }
}

impl Instance {
    /// The key's bucket of event time closes at this time.
    fn bucket(&self, t: i64) -> i64 {
        (t.div_euclid(100) + 1) * 100
    }
}

/// The states of `collect`.
const LIST: usize = 0;
const COUNT: usize = 1;
const MAP: usize = 2;

/// What one item of the list has: the bucket, and the value.
const ITEM: i64 = 1_000;

fn change(state: usize, keys: &[u32], change: CollectionChange, effects: &mut Effects) {
    effects.collections.push(CollectionUpdate { state, keys: keys.to_vec().into(), change });
}

fn numbers(numbers: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(numbers))
}

impl Instance {
    /// Appends values to a list, counts rows by bucket in a map (of those buckets that the batch has, it asks for what was
    /// there), and counts rows in a value.
    fn collect(&self, batch: &Batch, keys: &KeySet<'_>, effects: &mut Effects) {
        let values = ints(&batch.columns()[2]);
        let times = batch.columns()[1].as_primitive::<TimestampMillisecondType>();
        let buckets: Vec<i64> = (0..batch.rows()).map(|row| self.bucket(times.value(row))).collect();
        let items = buckets.iter().zip(values).map(|(bucket, value)| bucket * ITEM + value);
        change(LIST, keys.key_of_row, CollectionChange::Append(numbers(items)), effects);
        set_timers(TimeDomain::Event, keys.key_of_row.iter().copied().zip(buckets.iter().copied()).collect(), effects);

        let mut of_buckets = BTreeMap::<(u32, i64), i64>::new();
        keys.key_of_row.iter().zip(&buckets).for_each(|(&k, &b)| *of_buckets.entry((k, b)).or_default() += 1);
        let (of, map_keys): (Vec<u32>, Vec<i64>) = of_buckets.keys().copied().unzip();
        let map_keys = numbers(map_keys);
        let reader = keys.collections.as_ref().unwrap();
        let before = reader.get(MAP, &of, &map_keys, usize::MAX).unwrap().unwrap();
        let counts = before.as_primitive::<Int64Type>().iter().zip(of_buckets.values());
        let values = numbers(counts.map(|(before, now)| before.unwrap_or(0) + now));
        change(MAP, &of, CollectionChange::Insert { map_keys, values }, effects);

        let mut counts: Vec<i64> = keys.states[0].as_primitive::<Int64Type>().iter().map(|c| c.unwrap_or(0)).collect();
        keys.key_of_row.iter().for_each(|&key| counts[key as usize] += 1);
        let keys = (0..keys.keys as u32).collect::<Vec<_>>().into();
        effects.states.push(StateUpdate { state: COUNT, keys, values: numbers(counts) });
    }
}

/// A bucket is over: emits the sum of its values and, as of another time, their number; takes it out of list and map.
fn collected(timers: &DueTimers<'_>, effects: &mut Effects) {
    let (key_column, keys) = (ints(&timers.key_columns[0]), timers.keys.key_of_row);
    let reader = timers.keys.collections.as_ref().unwrap();
    let lists = reader.read(LIST, keys, usize::MAX).unwrap().unwrap();
    let maps = reader.read(MAP, keys, usize::MAX).unwrap().unwrap();
    let counts = timers.keys.states[0].as_primitive::<Int64Type>();
    let (mut rows, mut left, mut of, mut new_counts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (i, (&key, &at)) in keys.iter().zip(timers.timestamps).enumerate() {
        let items = lists.as_list::<i32>().value(i);
        let (over, rest): (Vec<i64>, Vec<i64>) = ints(&items).iter().copied().partition(|item| item / ITEM == at);
        let entries = maps.as_list::<i32>().value(i);
        let entries = entries.as_struct();
        let entry = ints(entries.column(0)).iter().position(|bucket| *bucket == at).expect("the map has the bucket");
        assert_eq!(ints(entries.column(1))[entry], over.len() as i64, "the map counts what the list has");
        let k = key_column[key as usize];
        rows.push((k, at, over.iter().map(|item| item % ITEM).sum()));
        rows.push((k, at + 1, over.len() as i64));
        of.extend(rest.iter().map(|_| key));
        left.extend(rest.iter().copied());
        let count = counts.value(key as usize) - over.len() as i64;
        assert_eq!(count, rest.len() as i64, "the count is that of the list");
        new_counts.push((count > 0).then_some(count));
    }
    change(LIST, keys, CollectionChange::Clear, effects);
    change(LIST, &of, CollectionChange::Append(numbers(left)), effects);
    change(MAP, keys, CollectionChange::Remove(numbers(timers.timestamps.iter().copied())), effects);
    let values: ArrayRef = Arc::new(Int64Array::from(new_counts));
    effects.states.push(StateUpdate { state: COUNT, keys: keys.to_vec().into(), values });
    emit(&rows, effects);
}

/// Which state has the rules, of a node with a key.
const RULES: usize = 1;

/// What rows of the broadcast input say is added up, by key.
fn learn(state: usize, batch: &Batch, keys: &KeySet<'_>, effects: &mut Effects) {
    let mut sums = BTreeMap::<i64, i64>::new();
    let (rules, values) = (ints(&batch.columns()[0]), ints(&batch.columns()[2]));
    rules.iter().zip(values).for_each(|(rule, value)| *sums.entry(*rule).or_default() += value);
    let map_keys = numbers(sums.keys().copied());
    let of = vec![0; sums.len()];
    let reader = keys.collections.as_ref().unwrap();
    let before = reader.get(state, &of, &map_keys, usize::MAX).unwrap().unwrap();
    let sums = before.as_primitive::<Int64Type>().iter().zip(sums.values()).map(|(b, sum)| b.unwrap_or(0) + sum);
    let values = numbers(sums);
    change(state, &of, CollectionChange::Insert { map_keys, values }, effects);
}

/// A number that tells of all rules.
fn checksum(state: usize, keys: &KeySet<'_>) -> i64 {
    let lists = keys.collections.as_ref().unwrap().read(state, &[0], usize::MAX).unwrap().unwrap();
    let entries = lists.as_list::<i32>().value(0);
    let entries = entries.as_struct();
    let pairs = ints(entries.column(0)).iter().zip(ints(entries.column(1)));
    pairs.map(|(rule, value)| (rule + 1) * 1_000_003 * value).sum()
}

impl Instance {
    /// Rows of the first input: sums values by key until the end; then, and after all rows of the second input, the sum is
    /// emitted, and what all rules are.
    fn judge(&self, input: u32, batch: &Batch, keys: &KeySet<'_>, effects: &mut Effects) -> Result<(), UserFailure> {
        let state = if self.name == "judge" { RULES } else { 0 };
        if input == 1 {
            assert_eq!(keys.keys, 0);
            learn(state, batch, keys, effects);
            // Of the rest of such a batch nothing may be left either.
            return poison(ints(&batch.columns()[2]));
        }
        assert!(checksum(state, keys) >= 0);
        let port = Port(u32::from(self.name == "judge"));
        effects.emissions.push(Emission { port, rows: EmittedRows::All, columns: vec![] });
        if self.name != "judge" {
            return Ok(());
        }
        let mut kept = BTreeMap::<u32, Kept>::new();
        for (value, &key) in ints(&batch.columns()[2]).iter().zip(keys.key_of_row) {
            let of_key = kept.entry(key).or_insert_with(|| read(keys.states, key as usize));
            *of_key.entry(0).or_default() += value;
        }
        set_timers(TimeDomain::Event, kept.keys().map(|key| (*key, LAST)).collect(), effects);
        write(&kept, effects);
        Ok(())
    }

    fn judged(&self, timers: &DueTimers<'_>, effects: &mut Effects) {
        let (key_column, rules) = (ints(&timers.key_columns[0]), checksum(RULES, &timers.keys));
        let mut rows = Vec::new();
        for &key in timers.keys.key_of_row {
            let k = key_column[key as usize];
            rows.push((k, LAST, read(timers.keys.states, key as usize)[&0]));
            rows.push((k, LAST + 1, rules));
        }
        emit(&rows, effects);
    }
}

/// The states of `buffer`.
const HELD: usize = 0;
const KNOWN: usize = 1;

/// So many rows are held at most.
const MOST_HELD: usize = 40;

/// What is known is emitted with keys from here on.
pub const KNOWN_KEYS: i64 = 1_000;

fn texts(state: usize, keys: &KeySet<'_>) -> Vec<String> {
    let lists = keys.collections.as_ref().unwrap().read(state, &[0], usize::MAX).unwrap().unwrap();
    lists.as_list::<i32>().value(0).as_string_view().iter().map(|text| text.unwrap().to_owned()).collect()
}

fn row_of(text: &str) -> (i64, i64, i64) {
    let numbers: Vec<i64> = text.split(':').map(|number| number.parse().unwrap()).collect();
    (numbers[0], numbers[1], numbers[2])
}

fn known_row(text: &str) -> (i64, i64, i64) {
    let (k, t, v) = row_of(text);
    (KNOWN_KEYS + k, t, v)
}

fn set_list(state: usize, items: &[String], clear: bool, effects: &mut Effects) {
    if clear {
        change(state, &[0], CollectionChange::Clear, effects);
    }
    let items: ArrayRef = Arc::new(StringViewArray::from_iter_values(items));
    change(state, &vec![0; items.len()], CollectionChange::Append(items), effects);
}

/// Holds rows until there are some, and remembers each: what it knows twice (since lists were united) it forgets once.
fn buffer(batch: &Batch, keys: &KeySet<'_>, effects: &mut Effects) -> Result<(), UserFailure> {
    assert_eq!(keys.keys, 0);
    let (k, values) = (ints(&batch.columns()[0]), ints(&batch.columns()[2]));
    let times = batch.columns()[1].as_primitive::<TimestampMillisecondType>();
    let rows: Vec<String> = (0..batch.rows()).map(|i| format!("{}:{}:{}", k[i], times.value(i), values[i])).collect();
    // Before what is poisonous shows: nothing of it may be left.
    let (mut held, mut known) = (texts(HELD, keys), texts(KNOWN, keys));
    held.extend(rows.iter().cloned());
    if held.len() > MOST_HELD {
        emit(&held.iter().map(|row| row_of(row)).collect::<Vec<_>>(), effects);
        change(HELD, &[0], CollectionChange::Clear, effects);
    } else {
        set_list(HELD, &rows, false, effects);
    }
    known.extend(rows);
    known.sort_unstable();
    known.dedup();
    set_list(KNOWN, &known, true, effects);
    poison(values)
}

impl UserCode for Instance {
    fn transform(&mut self, _: CallClock, _: u32, batch: &Batch, effects: &mut Effects) -> Result<(), UserFailure> {
        poison(ints(&batch.columns()[2]))?;
        effects.emissions.push(Emission { port: Port(0), rows: EmittedRows::All, columns: vec![] });
        Ok(())
    }

    /// `settle`: counts rows until the clock has gone on; `collect`, `judge`: see there; else: sums values by bucket of event time.
    fn process(
        &mut self,
        clock: CallClock,
        input: u32,
        batch: &Batch,
        keys: &KeySet<'_>,
        effects: &mut Effects,
    ) -> Result<(), UserFailure> {
        if self.name.starts_with("judge") {
            return self.judge(input, batch, keys, effects);
        }
        if self.name == "buffer" {
            return buffer(batch, keys, effects);
        }
        let values = ints(&batch.columns()[2]);
        if self.name == "collect" {
            // Before what is poisonous shows: nothing of it may be left.
            self.collect(batch, keys, effects);
        }
        poison(values)?;
        if self.name == "collect" {
            effects.emissions.push(Emission { port: Port(1), rows: EmittedRows::All, columns: vec![] });
            return Ok(());
        }
        let times = batch.columns()[1].as_primitive::<TimestampMillisecondType>();
        let (mut kept, mut timers) = (BTreeMap::<u32, Kept>::new(), Vec::new());
        for (row, &key) in keys.key_of_row.iter().enumerate() {
            let of_key = kept.entry(key).or_insert_with(|| read(keys.states, key as usize));
            let (domain_at, bucket) = match self.name.as_str() {
                "settle" => (clock.processing_time.0 + SETTLES_AFTER_MS, 0),
                _ => (self.bucket(times.value(row)), self.bucket(times.value(row))),
            };
            *of_key.entry(bucket).or_default() += values[row];
            timers.push((key, domain_at));
        }
        let domain = if self.name == "settle" { TimeDomain::Processing } else { TimeDomain::Event };
        if domain == TimeDomain::Processing {
            // What is left at the end shows that a timer was lost.
            set_timers(TimeDomain::Event, timers.iter().map(|(key, _)| (*key, LAST)).collect(), effects);
        }
        set_timers(domain, timers, effects);
        write(&kept, effects);
        effects.emissions.push(Emission { port: Port(1), rows: EmittedRows::All, columns: vec![] });
        Ok(())
    }

    /// Emits what is kept, and forgets it: of the timer's bucket, or all. A bucket's timer sets one more, twice.
    fn on_timers(&mut self, _: CallClock, timers: &DueTimers<'_>, effects: &mut Effects) -> Result<(), UserFailure> {
        if self.name == "collect" {
            collected(timers, effects);
            return Ok(());
        }
        if self.name == "judge" {
            self.judged(timers, effects);
            return Ok(());
        }
        if self.name == "buffer" {
            assert_eq!((timers.timestamps.len(), timers.keys.keys), (1, 0), "the end");
            let known = texts(KNOWN, &timers.keys).into_iter().map(|row| known_row(&row));
            emit(&texts(HELD, &timers.keys).iter().map(|row| row_of(row)).chain(known).collect::<Vec<_>>(), effects);
            return Ok(());
        }
        let key_column = ints(&timers.key_columns[0]);
        let (mut kept, mut rows, mut next) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (&key, &at) in timers.keys.key_of_row.iter().zip(timers.timestamps) {
            let mut of_key = read(timers.keys.states, key as usize);
            let k = key_column[key as usize];
            if self.name == "settle" {
                // What settled, by the clock, and what had not at the end.
                let time = if timers.domain == TimeDomain::Event { LAST } else { 0 };
                let sum: i64 = of_key.values().sum();
                if !of_key.is_empty() {
                    rows.push((k, time, sum));
                }
                of_key.clear();
            } else {
                match of_key.remove(&at) {
                    Some(sum) => {
                        rows.push((k, at, sum));
                        next.push((key, at + 33));
                    }
                    // Not a bucket's: its echo.
                    None => rows.push((k, at, -1)),
                }
            }
            kept.insert(key, of_key);
        }
        set_timers(TimeDomain::Event, next, effects);
        write(&kept, effects);
        emit(&rows, effects);
        Ok(())
    }

    /// The sum of squares.
    fn accumulate(
        &mut self,
        _: u32,
        group_of_row: &[u32],
        batch: &Batch,
        accumulators: &ArrayRef,
    ) -> Result<ArrayRef, UserFailure> {
        let values = ints(&batch.columns()[0]);
        poison(values)?;
        let accumulators = accumulators.as_primitive::<Int64Type>();
        let mut sums: Vec<Option<i64>> = accumulators.iter().collect();
        for (&group, value) in group_of_row.iter().zip(values) {
            let sum = &mut sums[group as usize];
            *sum = Some(sum.unwrap_or(0) + value * value);
        }
        Ok(Arc::new(Int64Array::from(sums)))
    }

    fn merge(&mut self, _: u32, left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        let sums = ints(left).iter().zip(ints(right)).map(|(l, r)| Some(l + r));
        Ok(Arc::new(sums.collect::<Int64Array>()))
    }

    fn finish(&mut self, _: u32, accumulators: &ArrayRef) -> Result<ArrayRef, UserFailure> {
        Ok(accumulators.clone())
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}
