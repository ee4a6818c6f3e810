//! What must not happen: a step without end, a panic at the ends of time, a row without time that passes.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringViewArray};
use arrow::buffer::ScalarBuffer;
use tidemill_core::ids::InputIndex;
use tidemill_core::memory::{Owner, ProcessMemory};
use tidemill_core::operator::Progress;
use tidemill_core::plan::{DataType, Field, NodeKind, Windows};
use tidemill_core::time::Watermark;
use tidemill_core::{Batch, ErrorKind};

use super::driver::{Join, Side, int};
use crate::operators::admit::TIME_LIMIT_MS;

const TUMBLING: NodeKind = NodeKind::WindowJoin { windows: Windows::Tumbling { size_ms: 1_000, offset_ms: 0 } };
const INTERVAL: NodeKind = NodeKind::IntervalJoin { lower_ms: -1_000, upper_ms: 1_000 };

fn join(kind: NodeKind) -> Join {
    let side = || Side { fields: vec![int("key"), int("value")], key: vec![0] };
    Join::new(kind, side(), side(), &[(0, 1), (1, 1)], 1_000)
}

fn batch(times: Vec<i64>) -> Batch {
    let key: ArrayRef = Arc::new(Int64Array::from(vec![7; times.len()]));
    let value: ArrayRef = Arc::new(Int64Array::from_iter_values(0..times.len() as i64));
    Batch::new(times.len(), vec![key, value], Some(ScalarBuffer::from(times))).unwrap()
}

#[test]
fn a_hot_key_is_paired_in_bounded_pieces() {
    for kind in [TUMBLING, INTERVAL] {
        let mut join = join(kind.clone());
        join.out.discard = true;
        for _ in 0..25 {
            join.rows(0, batch(vec![5; 4_000]));
        }
        // 100,000 by 100,000 rows: the first calls of ten thousand million pairs.
        let mut progress = if kind == TUMBLING {
            for _ in 0..25 {
                join.rows(1, batch(vec![5; 4_000]));
            }
            join.operator.on_watermark(Watermark(2_000), &mut join.out).unwrap()
        } else {
            join.operator.process(InputIndex(1), batch(vec![5; 4_000]), &mut join.out).unwrap()
        };
        let held = join.metrics.state_bytes.get();
        for call in 0..40 {
            join.out.room = usize::from(call % 2 == 0);
            let before = join.out.rows;
            join.out.in_call = 0;
            assert_eq!(progress, Progress::More);
            progress = join.operator.resume(&mut join.out).unwrap();
            let emitted = join.out.rows - before;
            assert!(emitted > 0, "no progress");
            assert!(emitted <= if call % 2 == 0 { 1_000 } else { 200_000 }, "{emitted} rows in one call");
        }
        assert_eq!(join.metrics.state_bytes.get(), held);
    }
}

#[test]
fn a_warm_key_is_paired_completely() {
    for kind in [TUMBLING, INTERVAL] {
        let mut join = join(kind);
        (join.out.discard, join.out.room) = (true, 1);
        join.rows(0, batch(vec![5; 1_500]));
        join.rows(1, batch(vec![6; 1_300]));
        join.watermark(i64::MAX);
        assert_eq!(join.out.rows, 1_500 * 1_300);
    }
}

#[test]
fn the_ends_of_time_do_not_overflow() {
    let absurd = [i64::MIN, i64::MIN + 1, -TIME_LIMIT_MS - 1, TIME_LIMIT_MS + 1, i64::MAX - 1, i64::MAX];
    let times = [&absurd[..], &[-TIME_LIMIT_MS, -TIME_LIMIT_MS + 1, -1, 0, TIME_LIMIT_MS - 1, TIME_LIMIT_MS]].concat();
    let year = 366 * 24 * 3_600_000;
    let kinds = [
        TUMBLING,
        NodeKind::WindowJoin { windows: Windows::Tumbling { size_ms: 1, offset_ms: i64::MIN } },
        NodeKind::WindowJoin { windows: Windows::Sliding { size_ms: 9, slide_ms: 1, offset_ms: i64::MAX } },
        NodeKind::WindowJoin { windows: Windows::Sliding { size_ms: year, slide_ms: year / 2, offset_ms: -1 } },
        INTERVAL,
        NodeKind::IntervalJoin { lower_ms: -(year as i64), upper_ms: -(year as i64) },
        NodeKind::IntervalJoin { lower_ms: 0, upper_ms: year as i64 },
    ];
    for kind in kinds {
        for watermark in [i64::MIN + 1, 0, i64::MAX - 1] {
            let mut join = join(kind.clone());
            join.rows(0, batch(times.clone()));
            join.rows(1, batch(times.clone()));
            join.watermark(watermark);
            join.rows(1, batch(times.clone()));
            join.watermark(i64::MAX);
            let late = join.metrics.records_late.get();
            join.rows(0, batch(times.clone()));
            assert_eq!(join.metrics.state_entries.get(), 0, "{kind:?}");
            assert_eq!(join.metrics.records_late.get() - late, 6, "all rows after the end are late, {kind:?}");
            assert_eq!(join.out.letters.len(), 4 * absurd.len(), "{kind:?}");
            assert!(join.out.letters[0].reason.contains("millions of years"), "{:?}", join.out.letters[0]);
            assert_eq!(join.out.letters[0].record, r#"{"key":7,"value":0}"#);
        }
    }
}

/// A watermark before the end of the first window that an i64 could hold made rows late that no window had: that of a
/// window before all time was cut off at the first millisecond.
#[test]
fn rows_at_the_ends_of_time_are_set_aside_and_not_late() {
    let kinds = [NodeKind::WindowJoin { windows: Windows::Tumbling { size_ms: 14, offset_ms: -12 } }, INTERVAL];
    for (kind, text) in kinds.iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let key = if text { Field::new("key", DataType::Utf8, true) } else { int("key") };
        let side = || Side { fields: vec![key.clone(), int("value")], key: vec![0] };
        let mut join = Join::new(kind.clone(), side(), side(), &[(0, 1), (1, 1)], 1_000);
        let batch = |times: [i64; 4]| {
            let key: ArrayRef = match text {
                true => Arc::new(StringViewArray::from_iter_values(["a key that is longer than a view"; 4])),
                false => Arc::new(Int64Array::from(vec![7; 4])),
            };
            let value: ArrayRef = Arc::new(Int64Array::from_iter_values(0..4));
            Batch::new(4, vec![key, value], Some(ScalarBuffer::from(times.to_vec()))).unwrap()
        };
        join.watermark(i64::MIN + 1);
        for input in [0, 1] {
            join.rows(input, batch([i64::MIN, i64::MIN + 2, -TIME_LIMIT_MS, TIME_LIMIT_MS]));
        }
        assert_eq!((join.out.letters.len(), join.metrics.records_late.get()), (4, 0), "{kind:?}");
        join.watermark(i64::MAX - 1);
        assert_eq!(join.out.rows, 2, "each with its like, {kind:?}");
    }
}

#[test]
fn a_row_without_event_time_is_refused_by_name() {
    for kind in [TUMBLING, INTERVAL] {
        let mut join = join(kind);
        let batch = batch(vec![1]).with_timestamps(None).unwrap();
        let error = join.operator.process(InputIndex(1), batch, &mut join.out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let text = error.to_string();
        assert!(text.contains("operator 'pairs'") && text.contains("right") && text.contains("mend:"), "{text}");
    }
}

#[test]
fn few_pairs_do_not_keep_a_window_of_text() {
    for kind in [TUMBLING, INTERVAL] {
        let side = || Side { fields: vec![int("key"), Field::new("text", DataType::Utf8, false)], key: vec![0] };
        let mut join = Join::new(kind, side(), side(), &[(0, 1), (1, 1)], 1_000);
        let batch = |step: i64| {
            let key: ArrayRef = Arc::new(Int64Array::from_iter_values((0..4_000).map(|i| i * step)));
            let text: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..4_000).map(|i| format!("{i:0>500}"))));
            Batch::new(4_000, vec![key, text], Some(ScalarBuffer::from(vec![1; 4_000]))).unwrap()
        };
        join.rows(0, batch(1));
        join.rows(1, batch(1_000));
        join.watermark(i64::MAX);
        assert_eq!(join.out.rows, 4);
        let bytes: usize = join.out.batches.iter().map(Batch::bytes).sum();
        assert!(bytes < 100_000, "{bytes} bytes are kept by 4 pairs");
    }
}

#[test]
fn what_joins_keep_beside_their_state_is_counted_and_bounded() {
    for kind in [TUMBLING, INTERVAL] {
        // The rows themselves are not counted in it here.
        let memory = ProcessMemory::new(Some(1 << 20));
        let side = || Side { fields: vec![int("key"), int("value")], key: vec![0] };
        let mut join = Join::within(memory.job("j"), kind.clone(), side(), side(), &[(0, 1), (1, 1)], 1_000);
        (join.out.discard, join.out.room) = (true, 1);
        let held = || memory.held().of(Owner::State);
        join.rows(0, batch(vec![5; 1_000]));
        join.rows(1, batch(vec![6; 100]));
        let caches = if kind == TUMBLING {
            assert_eq!(held(), 0, "nothing fires");
            let progress = join.operator.on_watermark(Watermark(2_000), &mut join.out).unwrap();
            assert_eq!(progress, Progress::More);
            let caches = held();
            join.watermark(2_000);
            caches
        } else {
            held()
        };
        assert!((1_000..100_000).contains(&caches), "{kind:?}: {caches}");
        join.watermark(10_000);
        assert_eq!(held(), 0, "{kind:?}: all is over");
        // Of both sides more than there is room for.
        let rows = || batch(vec![20_005; 200_000]);
        let mut call = join.operator.process(InputIndex(0), rows(), &mut join.out);
        for step in 0..3_000 {
            call = match (call, step) {
                (Ok(Progress::More), _) => join.operator.resume(&mut join.out),
                (Ok(Progress::Done), 0..2) => {
                    let few = if kind == TUMBLING { 200_000 } else { 1 };
                    join.operator.process(InputIndex(1), batch(vec![20_006; few]), &mut join.out)
                }
                (Ok(Progress::Done), _) => join.operator.on_watermark(Watermark(22_000), &mut join.out),
                (refused, _) => {
                    call = refused;
                    break;
                }
            };
        }
        assert_eq!(call.unwrap_err().kind(), ErrorKind::Limit, "{kind:?}");
        drop(join);
        assert_eq!(held(), 0);
    }
}
