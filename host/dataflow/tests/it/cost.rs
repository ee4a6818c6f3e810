//! What the engine itself costs, without user code: `cargo test --release -p tidemill-dataflow cost -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::ArrayRef;
use tidemill_core::Batch;
use tidemill_core::connector::*;
use tidemill_core::ids::Epoch;
use tidemill_core::plan::Exchange;
use tidemill_core::{Error, Result};
use tidemill_dataflow::run;

use crate::support::*;

const BATCHES: u64 = 200_000;
const ROWS: usize = 4_096;

/// The same batch again and again, in as many splits as there are readers.
struct Repeat;
struct RepeatSplits(u32);
struct RepeatReader {
    split: Option<SplitId>,
    batch: Batch,
    left: u64,
}

impl Source for Repeat {
    fn boundedness(&self) -> Boundedness {
        Boundedness::Bounded
    }

    fn enumerator(&self, parallelism: u32) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(RepeatSplits(parallelism)))
    }

    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>> {
        let rows: Vec<Row> = (0..ROWS as i64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64), i)).collect();
        let batch = batch(&rows, context.schema.fields().len());
        let left = BATCHES / u64::from(context.subtask.parallelism);
        Ok(Box::new(RepeatReader { split: None, batch, left }))
    }
}

impl SplitEnumerator for RepeatSplits {
    fn discover(&mut self) -> Result<Discovery> {
        let split = |i| Split { id: SplitId(format!("{i}")), description: vec![] };
        Ok(Discovery { splits: (0..self.0).map(split).collect(), again_after_ms: None })
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(vec![])
    }

    fn restore(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

impl SourceReader for RepeatReader {
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()> {
        self.split = splits.into_iter().next().map(|s| s.id);
        Ok(())
    }

    fn no_more_splits(&mut self) {}

    fn poll(&mut self) -> Result<ReaderPoll> {
        let Some(split) = self.split.clone() else { return Ok(ReaderPoll::Pending(None)) };
        if self.left == 0 {
            return Ok(ReaderPoll::Finished);
        }
        self.left -= 1;
        // New arrays over the same buffers, as a reader would make.
        let columns: Vec<ArrayRef> = self.batch.columns().iter().map(|c| c.slice(0, ROWS)).collect();
        Ok(ReaderPoll::Batch {
            split,
            batch: Batch::new(ROWS, columns, None)?,
            rejected: vec![],
            progress: ROWS as u64,
        })
    }

    fn snapshot(&mut self, _epoch: Epoch) -> Result<Vec<Split>> {
        Ok(vec![])
    }
}

struct Blackhole;

impl Sink for Blackhole {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn writer(&self, _: SinkContext) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(Self))
    }

    fn committer(&self) -> Result<Box<dyn SinkCommitter>> {
        Ok(Box::new(Self))
    }
}

impl SinkWriter for Blackhole {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        if batch.is_empty() { Err(Error::internal("empty")) } else { Ok(()) }
    }

    fn prepare(&mut self, _: Epoch) -> Result<Vec<Committable>> {
        Ok(vec![])
    }
}

impl SinkCommitter for Blackhole {
    fn commit(&mut self, _: &[Committable]) -> Result<()> {
        Ok(())
    }
}

fn measure(what: &str, exchange: Exchange, parallelism: u32, event_time_too: bool, transform: bool) {
    let mut plan = PlanBuilder::new();
    let mut from = plan.source("in", if event_time_too { event_time(0, None) } else { None });
    if transform {
        from = plan.transform("map", from, Exchange::Forward);
    }
    plan.sink("out", from, exchange);
    let mut spec = job(plan, parallelism, vec![]).spec;
    spec.sources.insert("in".into(), Arc::new(Repeat));
    spec.sinks.insert("out".into(), Arc::new(Blackhole));
    spec.settings.exchange_bytes = 4 << 20;
    let start = Instant::now();
    let report = run(spec).unwrap().wait().unwrap();
    let elapsed = start.elapsed();
    let rows: u64 = report.tasks.iter().filter(|t| t.kind == "sink").map(|t| t.metrics.records_in.get()).sum();
    let per_batch = elapsed.as_nanos() as u64 / BATCHES;
    println!("{what:<40} {per_batch:>7} ns per batch {:>8.3} ns per row", elapsed.as_nanos() as f64 / rows as f64);
}

#[test]
#[ignore = "a measurement"]
fn cost_of_the_engine() {
    measure("source to sink", Exchange::Forward, 1, false, false);
    measure("with event time", Exchange::Forward, 1, true, false);
    measure("through a forwarding closure", Exchange::Forward, 1, true, true);
    measure("source to sink, 2 slots", Exchange::Forward, 2, false, false);
    measure("hash to 2 slots", Exchange::Hash(vec![0]), 2, false, false);
    measure("hash to 2 slots, with event time", Exchange::Hash(vec![0]), 2, true, false);
    measure("hash to 4 slots, with event time", Exchange::Hash(vec![0]), 4, true, false);
}
