use std::collections::BTreeSet;
use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int8Type, Int64Type, Schema, TimestampMillisecondType};
use tidemill_connector_kit::conformance::{self, HandClock};
use tidemill_connector_kit::format::EncodeFormat;
use tidemill_connector_kit::{Binding, Registry};
use tidemill_core::connector::Waker;
use tidemill_core::ids::Epoch;

use super::*;

const ALL: [&str; 7] = ["auction", "bidder", "price", "channel", "url", "date_time", "extra"];

fn schema(names: &[&str]) -> SchemaRef {
    let field = |name: &&str| Field::new(*name, Column::named(name, true).unwrap().data_type(), false);
    Arc::new(Schema::new(names.iter().map(field).collect::<Vec<_>>()))
}

fn source_of(options: &str, schema: &SchemaRef) -> Result<Arc<dyn Source>> {
    let mut registry = Registry::new();
    registry.register(Bids);
    let options = options.parse().unwrap();
    registry.source("bids", Binding { name: "bids", schema, options: &options, base: Path::new(".") })
}

/// All batches of all splits, read by one reader.
fn read(options: &str, names: &[&str], parallelism: u32, batch_rows: usize) -> Vec<Batch> {
    let source = source_of(options, &schema(names)).unwrap();
    let mut reader = source.reader(conformance::source_context(schema(names), batch_rows, Waker::new(|| {}))).unwrap();
    reader.add_splits(source.enumerator(parallelism).unwrap().discover().unwrap().splits).unwrap();
    reader.no_more_splits();
    let mut batches = Vec::new();
    loop {
        match reader.poll().unwrap() {
            ReaderPoll::Batch { batch, .. } => batches.push(batch),
            ReaderPoll::SplitFinished(_) => {}
            ReaderPoll::Pending(_) => panic!("it never waits"),
            ReaderPoll::Finished => return batches,
        }
    }
}

fn longs(batches: &[Batch], column: usize) -> Vec<i64> {
    batches.iter().flat_map(|b| b.columns()[column].as_primitive::<Int64Type>().values().to_vec()).collect()
}

#[test]
fn event_0_is_the_published_one() {
    let batches = read("records = 1", &ALL, 1, 4096);
    let options = Options::parse("x", &EncodeFormat::options(), &"format = 'csv'\ntimestamps = 'ms'".parse().unwrap());
    let encoder = EncodeFormat::from_options(&options.unwrap()).unwrap().encoder(&schema(&ALL)).unwrap();
    let mut text = Vec::new();
    encoder.encode(&batches[0], &mut text).unwrap();
    assert_eq!(
        String::from_utf8(text).unwrap(),
        "95516,22455,5550768,channel-2237,https://www.nexmark.com/hmkl/iabi/ldik/item.htm?query=1,1700000000000,\
         zxriwrglahetdmckvigniffedpfetvwruewsqozlqvedxypcsqzryixvecwdqbatnoqdgsgnvmexjyhgawwrukivwrjfhihmv\n"
    );
}

#[test]
fn the_published_sums_come_out() {
    for (parallelism, batch_rows) in [(1, 4096), (3, 1000)] {
        let batches = read("records = 2000000", &["price", "auction"], parallelism, batch_rows);
        let (prices, auctions) = (longs(&batches, 0), longs(&batches, 1));
        assert_eq!(prices.iter().sum::<i64>(), 9_994_249_365_480);
        let kept = auctions.iter().filter(|a| *a % 123 == 0);
        assert_eq!((kept.clone().count(), kept.sum::<i64>()), (16_178, 800_978_091));
    }
}

/// Every column, computed as the definition says it, one event at a time.
#[test]
fn all_columns_are_as_defined_for_odd_parameters() {
    let names = ["auction", "bidder", "date_time", "kind", "channel", "url", "extra", "seller", "date_time"];
    let source = "records = 20000\nauctions = 1\nbidders = 2147483648\nrate = 7\nmixed = true";
    for (parallelism, batch_rows) in [(1_u64, 513), (3, 7)] {
        let batches = read(source, &names[..8], parallelism as u32, batch_rows);
        let mut seen = BTreeSet::new();
        for batch in batches {
            let times = batch.columns()[2].as_primitive::<TimestampMillisecondType>().values();
            let bidders = batch.columns()[1].as_primitive::<Int64Type>().values();
            for row in 0..batch.rows() {
                // Events are told apart by their time and, within one, by being the next.
                let i = (0..)
                    .map(|n| ((times[row] as u64 - draw::START_MS) * 7).div_ceil(1000) + n)
                    .find(|i| !seen.contains(i));
                let i = i.unwrap();
                seen.insert(i);
                let h = draw::mix(i);
                let g = draw::mix(h);
                assert_eq!(batch.columns()[0].as_primitive::<Int64Type>().value(row), 0);
                assert_eq!(bidders[row], (g >> 33) as i64, "event {i}");
                assert_eq!(batch.columns()[7].as_primitive::<Int64Type>().value(row), bidders[row]);
                assert_eq!(batch.columns()[3].as_primitive::<Int8Type>().value(row), i8::from(i & 15 == 15));
                let channel = if g & 1 == 0 {
                    ["Google", "Facebook", "Baidu", "Apple"][(g >> 1 & 3) as usize].to_owned()
                } else {
                    format!("channel-{}", ((g >> 3) & 0xFFFF) % 10_000)
                };
                assert_eq!(batch.columns()[4].as_string_view().value(row), channel);
                assert_eq!(batch.columns()[6].as_string_view().value(row).len() as u64, 90 + (h & 0xFF) % 21);
            }
        }
        assert_eq!(seen.len(), 20_000);
    }
}

#[test]
fn a_restored_split_goes_on_where_it_stood() {
    let names = ["price", "url"];
    let source = source_of("records = 10000", &schema(&names)).unwrap();
    let new_reader = || source.reader(conformance::source_context(schema(&names), 64, Waker::new(|| {}))).unwrap();
    let mut first = new_reader();
    first.add_splits(source.enumerator(3).unwrap().discover().unwrap().splits).unwrap();
    first.no_more_splits();
    let mut prices = 0;
    let mut add = |poll: ReaderPoll| match poll {
        ReaderPoll::Batch { batch, .. } => {
            prices += longs(&[batch], 0).iter().sum::<i64>();
            true
        }
        poll => !matches!(poll, ReaderPoll::Finished),
    };
    for _ in 0..10 {
        add(first.poll().unwrap());
    }
    let mut second = new_reader();
    second.add_splits(first.snapshot(Epoch(1)).unwrap()).unwrap();
    second.no_more_splits();
    while add(second.poll().unwrap()) {}
    let all = longs(&read("records = 10000", &["price"], 1, 4096), 0);
    assert_eq!(prices, all.iter().sum::<i64>());
}

#[test]
fn a_restored_enumerator_reports_nothing_again() {
    let source = source_of("records = 10", &schema(&["price"])).unwrap();
    let mut enumerator = source.enumerator(2).unwrap();
    assert_eq!(enumerator.discover().unwrap().splits.len(), 2);
    assert!(enumerator.discover().unwrap().splits.is_empty());
    let mut restored = source.enumerator(4).unwrap();
    restored.restore(&enumerator.snapshot().unwrap()).unwrap();
    assert!(restored.discover().unwrap().splits.is_empty());
}

#[test]
fn a_paced_source_gives_what_is_due() {
    let clock = Arc::new(HandClock::default());
    let source = source_of("pace = 1000", &schema(&["price"])).unwrap();
    assert_eq!(source.boundedness(), Boundedness::Unbounded);
    let context = conformance::source_context(schema(&["price"]), 4096, Waker::new(|| {}));
    let mut reader = source.reader(SourceContext { clock: clock.clone(), ..context }).unwrap();
    reader.add_splits(source.enumerator(1).unwrap().discover().unwrap().splits).unwrap();
    let mut poll = |ms| {
        clock.set(ms);
        match reader.poll().unwrap() {
            ReaderPoll::Batch { batch, .. } => Ok(batch.rows()),
            ReaderPoll::Pending(when) => Err(when.unwrap().0),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(poll(5_000), Err(5_050), "a twentieth of a second's events");
    assert_eq!(poll(5_050), Ok(50));
    assert_eq!(poll(5_051), Err(5_100));
    assert_eq!(poll(6_000), Ok(950));
}

#[test]
fn wrong_options_columns_and_positions_are_named() {
    let message = |options: &str, schema: SchemaRef| source_of(options, &schema).map(|_| ()).unwrap_err().to_string();
    assert!(message("auctions = 0", schema(&ALL)).contains("option 'auctions': 0 is not between 1 and 2147483648"));
    assert!(message("record = 0", schema(&ALL)).contains("did you mean 'records'?"));
    let text = message("", schema(&["kind"]));
    assert!(text.contains("source 'bids' (connector 'bids'): it makes no column 'kind'"), "{text}");
    assert!(text.contains("mixed = true"), "{text}");
    let wrong = Arc::new(Schema::new(vec![Field::new("price", DataType::Utf8View, false)]));
    assert!(message("", wrong).contains("declare 'price' as a 64-bit integer"));
    let source = source_of("", &schema(&ALL)).unwrap();
    let mut reader = source.reader(conformance::source_context(schema(&ALL), 10, Waker::new(|| {}))).unwrap();
    for description in [&b"{}"[..], b"{\"next\":1,\"first\":0,\"stride\":0}", b"{\"next\":4,\"first\":0,\"stride\":3}"]
    {
        let split = Split { id: SplitId("x".to_owned()), description: description.to_vec() };
        assert!(reader.add_splits(vec![split]).unwrap_err().to_string().contains("split 'x'"));
    }
}
