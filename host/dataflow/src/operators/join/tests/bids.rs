//! The benchmark's windowed join and interval join: 2,000,000 events, whose answers are known.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::Int64Type;
use tidemill_core::Batch;
use tidemill_core::plan::{NodeKind, Windows};

use super::driver::{Join, Side, int, mix};

const Q8: NodeKind = NodeKind::WindowJoin { windows: Windows::Tumbling { size_ms: 10_000, offset_ms: 0 } };
const Q8I: NodeKind = NodeKind::IntervalJoin { lower_ms: -10_000, upper_ms: 0 };

/// Bids (auction, price) and auctions (id, seller), and the watermark after them, for each batch of events.
fn events(records: u64, batch_rows: u64) -> Vec<([Batch; 2], i64)> {
    let batch = |columns: [Vec<i64>; 2], times: Vec<i64>| {
        let columns = columns.map(|c| Arc::new(Int64Array::from(c)) as ArrayRef).to_vec();
        Batch::new(times.len(), columns, Some(ScalarBuffer::from(times))).unwrap()
    };
    let mut batches = Vec::new();
    for first in (0..records).step_by(batch_rows as usize) {
        let mut columns: [[Vec<i64>; 2]; 2] = Default::default();
        let mut times: [Vec<i64>; 2] = Default::default();
        for i in first..(first + batch_rows).min(records) {
            let h = mix(i);
            let auction = ((h >> 33) % 100_000) as i64;
            let side = usize::from(i & 15 == 15);
            let value = if side == 1 { (mix(h) >> 33) % 100_000 } else { 1 + (h & 0xFFFF_FFFF) % 10_000_000 };
            columns[side][0].push(auction);
            columns[side][1].push(value as i64);
            times[side].push((1_700_000_000_000 + i * 1000 / 100_000) as i64);
        }
        let watermark = times.iter().flatten().max().unwrap() - 1;
        let [bids, auctions] = columns;
        let [bid_times, auction_times] = times;
        batches.push(([batch(bids, bid_times), batch(auctions, auction_times)], watermark));
    }
    batches
}

/// Number of pairs and sum of price + seller; and the seconds that it took.
fn run(kind: NodeKind, events: &[([Batch; 2], i64)]) -> (usize, i64, f64) {
    let bids = Side { fields: vec![int("auction"), int("price")], key: vec![0] };
    let auctions = Side { fields: vec![int("id"), int("seller")], key: vec![0] };
    let mut join = Join::new(kind, bids, auctions, &[(0, 1), (1, 1)], 4_096);
    let start = Instant::now();
    for ([bids, auctions], watermark) in events {
        join.rows(0, bids.clone());
        join.rows(1, auctions.clone());
        join.watermark(*watermark);
    }
    join.watermark(i64::MAX);
    let seconds = start.elapsed().as_secs_f64();
    let sum = |batch: &Batch| -> i64 {
        batch.columns().iter().map(|c| c.as_primitive::<Int64Type>().values().iter().sum::<i64>()).sum()
    };
    assert_eq!(join.metrics.records_late.get(), 0);
    assert_eq!(join.metrics.state_entries.get(), 0);
    (join.out.rows, join.out.batches.iter().map(sum).sum(), seconds)
}

#[test]
fn the_answers_of_q8_and_q8i_are_right() {
    for batch_rows in [4_096, 500] {
        let events = events(2_000_000, batch_rows);
        let (rows, sum, _) = run(Q8, &events);
        assert_eq!((rows, sum), (1_172_345, 5_918_608_419_280), "q8, batches of {batch_rows}");
        let (rows, sum, _) = run(Q8I, &events);
        assert_eq!((rows, sum), (879_555, 4_439_287_139_298), "q8i, batches of {batch_rows}");
    }
}

#[test]
#[ignore = "measures; asserts nothing"]
fn nanoseconds_per_record() {
    let events = events(2_000_000, 4_096);
    for (name, kind) in [("q8", Q8), ("q8i", Q8I)] {
        let best = (0..7).map(|_| run(kind.clone(), &events).2).fold(f64::MAX, f64::min);
        println!("{name}: {:.1} ns per input record", best * 1e9 / 2e6);
    }
}
