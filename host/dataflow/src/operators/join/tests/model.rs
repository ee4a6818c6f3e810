//! Random input in random order against nested loops.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringViewArray};
use arrow::buffer::ScalarBuffer;
use tidemill_core::Batch;
use tidemill_core::plan::{DataType, Field, NodeKind, Windows};

use super::driver::{Join, Random, Side, int, texts};
use crate::operators::admit::TIME_LIMIT_MS;

/// What the rows are joined by.
#[derive(Clone, Copy, Debug, PartialEq)]
enum KeyKind {
    Int,
    NullableInt,
    Text,
    TextAndInt,
}

#[derive(Clone, Debug)]
struct Row {
    input: u32,
    id: i64,
    time: i64,
    /// `None`: null.
    key: Option<i64>,
    /// The watermark when it arrived.
    watermark: i64,
}

impl Row {
    fn note(&self) -> String {
        if self.id % 3 == 0 { format!("n{}", self.id) } else { format!("a note too long to be inline: {}", self.id) }
    }

    fn text_key(&self) -> Option<String> {
        self.key.map(|k| format!("a key that is too long to be inline {k}"))
    }

    /// Whether it is set aside.
    fn is_absurd(&self) -> bool {
        self.time.unsigned_abs() > TIME_LIMIT_MS as u64
    }
}

struct Case {
    kind: NodeKind,
    keys: KeyKind,
    rows: Vec<Row>,
    batch_rows: usize,
    room: usize,
    /// Batch ends and watermarks, by number of rows before them.
    watermarks: Vec<(usize, i64)>,
    largest_batch: u64,
    seed: u64,
}

impl Case {
    fn random(seed: u64, kind: NodeKind) -> Self {
        let mut random = Random(seed.wrapping_mul(1_000_003));
        let keys = [KeyKind::Int, KeyKind::NullableInt, KeyKind::Text, KeyKind::TextAndInt][random.below(4) as usize];
        let base = match random.below(12) {
            0 => i64::MIN,
            1 => i64::MAX - 120,
            2 => -TIME_LIMIT_MS - 60,
            3 => TIME_LIMIT_MS - 60,
            _ => random.below(1_000) as i64 - 500,
        };
        let (count, distinct, disorder) = (random.below(220) as usize, 1 + random.below(20), 1 + random.below(60));
        let (mut rows, mut watermarks) = (Vec::new(), Vec::new());
        let mut watermark = i64::MIN;
        for id in 0..count {
            // Mostly forward, in the end 120 ms away from where it began, in disorder.
            let time =
                base.saturating_add((id as u64 * 120 / count as u64).saturating_sub(random.below(disorder)) as i64);
            let null = keys != KeyKind::Int && random.below(10) == 0;
            let key = (!null).then(|| random.below(distinct) as i64);
            rows.push(Row { input: random.below(2) as u32, id: id as i64, time, key, watermark });
            if random.below(12) == 0 {
                watermark = watermark.max(time.saturating_sub(random.below(50) as i64));
                watermarks.push((id + 1, watermark));
            }
        }
        watermarks.push((count, i64::MAX));
        let batch_rows = 1 + random.below(40) as usize;
        let (room, largest_batch) = (random.below(3) as usize, 1 + random.below(60));
        Self { kind, keys, rows, batch_rows, room, watermarks, largest_batch, seed }
    }

    /// Runs the join; sorted rows of the output as text, and how many were late.
    fn run(&self) -> (Vec<String>, u64) {
        let side = || {
            let text = |name: &str| Field::new(name, DataType::Utf8, true);
            let (key_field, key) = match self.keys {
                KeyKind::Int => (int("key"), vec![2]),
                KeyKind::NullableInt => (Field::new("key", DataType::Int64, true), vec![2]),
                KeyKind::Text => (text("key"), vec![2]),
                KeyKind::TextAndInt => (text("key"), vec![2, 3]),
            };
            Side { fields: vec![text("note"), int("id"), key_field, int("second"), int("useless")], key }
        };
        let output = [(1, 1), (0, 1), (0, 0), (1, 2), (1, 0)];
        let mut join = Join::new(self.kind.clone(), side(), side(), &output, self.batch_rows);
        join.out.room = self.room;
        let mut random = Random(self.seed);
        let mut at = 0;
        for &(end, watermark) in &self.watermarks {
            while at < end {
                let input = self.rows[at].input;
                let limit = random.below(self.largest_batch) as usize + 1;
                let rows: Vec<&Row> =
                    self.rows[at..end].iter().take(limit).take_while(|row| row.input == input).collect();
                at += rows.len();
                join.rows(input, self.batch(&rows));
            }
            join.watermark(watermark);
        }
        assert!(join.out.batches.iter().all(|b| b.rows() <= self.batch_rows));
        let absurd = self.rows.iter().filter(|row| row.is_absurd()).count();
        assert_eq!(join.out.letters.len(), absurd, "rows set aside, seed {}", self.seed);
        let mut lines: Vec<String> = join.out.batches.iter().flat_map(lines).collect();
        lines.sort();
        if self.watermarks.last().is_some_and(|w| w.1 == i64::MAX) {
            assert_eq!(join.metrics.state_entries.get(), 0, "rows are left when the input has ended");
        }
        (lines, join.metrics.records_late.get())
    }

    fn batch(&self, rows: &[&Row]) -> Batch {
        let ints = |value: &dyn Fn(&Row) -> Option<i64>| -> ArrayRef {
            Arc::new(Int64Array::from_iter(rows.iter().map(|row| value(row))))
        };
        let key: ArrayRef = match self.keys {
            KeyKind::Int | KeyKind::NullableInt => ints(&|row| row.key),
            _ => Arc::new(StringViewArray::from_iter(rows.iter().map(|row| row.text_key()))),
        };
        let columns = vec![
            Arc::new(StringViewArray::from_iter_values(rows.iter().map(|row| row.note()))),
            ints(&|row| Some(row.id)),
            key,
            ints(&|row| Some(row.key.unwrap_or(0) % 2)),
            ints(&|_| Some(1)),
        ];
        let times: Vec<i64> = rows.iter().map(|row| row.time).collect();
        Batch::new(rows.len(), columns, Some(ScalarBuffer::from(times))).unwrap()
    }

    fn line(&self, time: i64, left: &Row, right: &Row) -> String {
        let key = match self.keys {
            KeyKind::Int | KeyKind::NullableInt => right.key.map(|k| k.to_string()),
            _ => right.text_key(),
        };
        format!("{time} {} {} {} {} {}", right.id, left.id, left.note(), key.unwrap_or_default(), right.note())
    }

    /// All rows of the left side that are not late with all of the right that have the same key.
    fn pairs<'a>(&'a self, late: impl Fn(&Row) -> bool + 'a) -> impl Iterator<Item = (&'a Row, &'a Row)> + 'a {
        let taken: Vec<&Row> = self.rows.iter().filter(|row| row.key.is_some() && !late(row)).collect();
        let taken: Vec<&Row> = taken.into_iter().filter(|row| !row.is_absurd()).collect();
        let left: Vec<&Row> = taken.iter().copied().filter(|row| row.input == 0).collect();
        left.into_iter().flat_map(move |l| {
            let right: Vec<&Row> = taken.iter().copied().filter(|r| r.input == 1 && r.key == l.key).collect();
            right.into_iter().map(move |r| (l, r))
        })
    }
}

fn lines(batch: &Batch) -> Vec<String> {
    let columns: Vec<Vec<String>> = batch.columns().iter().map(texts).collect();
    let times = batch.timestamps().unwrap();
    let line = |row: usize| {
        let values: Vec<&str> = columns.iter().map(|c| c[row].as_str()).collect();
        format!("{} {}", times[row], values.join(" "))
    };
    (0..batch.rows()).map(line).collect()
}

#[test]
fn a_window_join_pairs_what_nested_loops_pair() {
    let mut pairs = 0;
    for seed in 0..600 {
        let mut random = Random(seed);
        let (slide, offset) = (2 + random.below(30), random.below(40) as i64 - 20);
        let panes = [1, 1, 2, 3, 7][random.below(5) as usize];
        let size = slide * panes;
        let kind = if panes == 1 {
            Windows::Tumbling { size_ms: size, offset_ms: offset }
        } else {
            Windows::Sliding { size_ms: size, slide_ms: slide, offset_ms: offset }
        };
        let case = Case::random(seed, NodeKind::WindowJoin { windows: kind });
        let last = |start: i128| (start + i128::from(size) - 1).min(i64::MAX.into()) as i64;
        let fired = |row: &Row, start: i128| row.watermark != i64::MIN && last(start) <= row.watermark;
        let late = |row: &Row| window_starts(row, size, slide, offset).into_iter().all(|start| fired(row, start));
        let mut expected: Vec<String> = Vec::new();
        for (l, r) in case.pairs(late) {
            let (of_l, of_r) = (window_starts(l, size, slide, offset), window_starts(r, size, slide, offset));
            for start in of_l.into_iter().filter(|start| of_r.contains(start)) {
                if !fired(l, start) && !fired(r, start) {
                    expected.push(case.line(last(start), l, r));
                }
            }
        }
        expected.sort();
        let (got, counted) = case.run();
        assert_eq!(got, expected, "seed {seed}, {:?}, keys {:?}", case.kind, case.keys);
        assert_eq!(
            counted,
            case.rows.iter().filter(|row| late(row) && !row.is_absurd()).count() as u64,
            "late, seed {seed}"
        );
        pairs += got.len();
    }
    assert!(pairs > 100_000, "{pairs} pairs are too few to say anything");
}

/// The starts of the windows that a row is in.
fn window_starts(row: &Row, size: u64, slide: u64, offset: i64) -> Vec<i128> {
    let (size, slide, offset) = (i128::from(size), i128::from(slide), i128::from(offset));
    let last_start = (i128::from(row.time) - offset).div_euclid(slide) * slide + offset;
    (0..size / slide).map(|i| last_start - i * slide).collect()
}

#[test]
fn an_interval_join_pairs_what_nested_loops_pair() {
    let mut pairs = 0;
    for seed in 0..900 {
        let mut random = Random(seed + 77);
        // Buckets are at least 100 ms long: wide intervals for several buckets, over times that are stretched.
        let stretch = [1, 1, 50][random.below(3) as usize];
        let lower = (random.below(120) as i64 - 60) * stretch;
        let upper = lower + random.below(80) as i64 * stretch;
        let mut case = Case::random(seed, NodeKind::IntervalJoin { lower_ms: lower, upper_ms: upper });
        if stretch > 1 {
            case.rows.iter_mut().for_each(|row| {
                row.time = row.time.saturating_mul(stretch);
                row.watermark =
                    if row.watermark == i64::MIN { i64::MIN } else { row.watermark.saturating_mul(stretch) };
            });
            case.watermarks.iter_mut().for_each(|w| w.1 = w.1.saturating_mul(stretch));
        }
        let late = |row: &Row| row.time <= row.watermark && row.watermark != i64::MIN;
        let mut expected: Vec<String> = Vec::new();
        for (l, r) in case.pairs(late) {
            let distance = i128::from(r.time) - i128::from(l.time);
            if i128::from(lower) <= distance && distance <= i128::from(upper) {
                expected.push(case.line(l.time.max(r.time), l, r));
            }
        }
        expected.sort();
        let (got, counted) = case.run();
        assert_eq!(got, expected, "seed {seed}, {:?}, keys {:?}", case.kind, case.keys);
        assert_eq!(
            counted,
            case.rows.iter().filter(|row| late(row) && !row.is_absurd()).count() as u64,
            "late, seed {seed}"
        );
        pairs += got.len();
    }
    assert!(pairs > 50_000, "{pairs} pairs are too few to say anything");
}
