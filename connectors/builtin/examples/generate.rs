//! Measures the bids generator alone: `cargo run --release -p tidemill-connector-builtin --example generate -- price`.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use tidemill_connector_builtin::Bids;
use tidemill_connector_kit::{Binding, Registry, conformance};
use tidemill_core::connector::{ReaderPoll, Waker};
use tidemill_core::error::Result;

const RECORDS: u64 = 50_000_000;

fn main() -> Result<()> {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        names = ["auction", "bidder", "price", "channel", "url", "date_time", "extra"].map(str::to_owned).to_vec();
    }
    let field = |name: &String| match name.as_str() {
        "channel" | "url" | "extra" => Field::new(name, DataType::Utf8View, false),
        "date_time" => Field::new(name, DataType::Timestamp(TimeUnit::Millisecond, None), false),
        _ => Field::new(name, DataType::Int64, false),
    };
    let schema = Arc::new(Schema::new(names.iter().map(field).collect::<Vec<_>>()));
    let mut registry = Registry::new();
    registry.register(Bids);
    let options = toml::Table::from_iter([("records".to_owned(), toml::Value::Integer(RECORDS as i64))]);
    let binding = Binding { name: "bids", schema: &schema, options: &options, base: Path::new(".") };
    let source = registry.source("bids", binding)?;
    for _ in 0..3 {
        let mut reader = source.reader(conformance::source_context(schema.clone(), 4_096, Waker::new(|| {})))?;
        reader.add_splits(source.enumerator(1)?.discover()?.splits)?;
        reader.no_more_splits();
        let (start, mut rows) = (Instant::now(), 0);
        loop {
            match reader.poll()? {
                ReaderPoll::Batch { batch, .. } => rows += batch.rows(),
                ReaderPoll::Finished => break,
                ReaderPoll::SplitFinished(_) | ReaderPoll::Pending(_) => {}
            }
        }
        println!("{}: {:.1} M records/s", names.join(", "), rows as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    Ok(())
}
