//! What must come out, computed slowly and without anything of the engine: not its generator, not its windows, not even
//! its hash. The jobs' definitions, written down once more.

use std::collections::BTreeMap;

/// A row: its values as texts, in the order of the columns.
pub type Row = Vec<String>;

/// The rows of each sink.
pub type Outputs = BTreeMap<&'static str, Vec<Row>>;

/// The bids generator's parameters.
pub const AUCTIONS: u64 = 150;
/// As above.
pub const BIDDERS: u64 = 400;
/// Events per second of event time: one in a millisecond, so that its time is an event's number.
pub const RATE: u64 = 1_000;

/// How far apart a session's bids may be.
const GAP_MS: i64 = 300;
/// The generator's start lies at a whole second, but not at a whole two seconds and a half; all windows here divide it.
const START_MS: i64 = 1_700_000_000_000;

/// One event.
#[derive(Clone, Copy, Debug)]
struct Event {
    id: i64,
    auction: i64,
    bidder: i64,
    price: i64,
}

/// Event i, by the definition of the published benchmark.
fn events(records: u64) -> Vec<Event> {
    let event = |id: u64| {
        let h = mix(id);
        let g = mix(h);
        Event {
            id: id as i64,
            auction: ((h >> 33) % AUCTIONS) as i64,
            bidder: ((g >> 33) % BIDDERS) as i64,
            price: (1 + (h & 0xFFFF_FFFF) % 10_000_000) as i64,
        }
    };
    (0..records).map(event).collect()
}

fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn row<const N: usize>(values: [i64; N]) -> Row {
    values.iter().map(i64::to_string).collect()
}

/// The running counts of keys: (key, 1), (key, 2), ...
fn counts(keys: impl Iterator<Item = i64>) -> Vec<(i64, i64)> {
    let mut seen: BTreeMap<i64, i64> = BTreeMap::new();
    let count = |key| {
        let n = seen.entry(key).or_default();
        *n += 1;
        (key, *n)
    };
    keys.map(count).collect()
}

/// The job `keyed`.
pub fn keyed(records: u64) -> Outputs {
    let events = events(records);
    let auctions = counts(events.iter().map(|e| e.auction));
    let ranks = counts(auctions.iter().map(|(_, n)| *n));
    let mut blocks: BTreeMap<(i64, i64), (i64, i64)> = BTreeMap::new();
    for event in &events {
        let block = blocks.entry((event.auction, event.id / 1_000)).or_default();
        *block = (block.0 + 1, block.1 + event.id);
    }
    let fired = blocks.into_iter().filter(|(_, (rows, _))| *rows != 3);
    BTreeMap::from([
        ("pass", events.iter().map(|e| row([e.id, e.auction, e.price])).collect()),
        ("counts", auctions.iter().map(|(key, n)| row([*key, *n])).collect()),
        ("ranks", ranks.iter().map(|(key, n)| row([*key, *n])).collect()),
        ("blocks", fired.map(|((key, second), (rows, ids))| row([key, second, rows, ids])).collect()),
    ])
}

/// The job `windows`.
pub fn windows(records: u64) -> Outputs {
    let events = events(records);
    let mut tumbling: BTreeMap<(i64, i64), (i64, i64)> = BTreeMap::new();
    let mut sliding: BTreeMap<(i64, i64), (i64, i64)> = BTreeMap::new();
    for event in &events {
        let start = floor(event.id, 1_000);
        let window = tumbling.entry((event.auction, start)).or_default();
        *window = (window.0 + 1, window.1 + event.price);
        for back in [0, 500, 1_000, 1_500] {
            let window = sliding.entry((event.auction, floor(event.id, 500) - back)).or_default();
            *window = (window.0 + 1, window.1 + event.id);
        }
    }
    let rows = |windows: BTreeMap<(i64, i64), (i64, i64)>, size: i64| {
        windows.into_iter().map(|((key, start), (rows, sum))| row([key, start, start + size, rows, sum])).collect()
    };
    BTreeMap::from([
        ("tumbling", rows(tumbling, 1_000)),
        ("sliding", rows(sliding, 2_000)),
        ("sessions", sessions(&events)),
        ("in-time or late", events.iter().map(|e| row([e.id])).collect()),
    ])
}

/// The start of the window of this size in which an event lies, counted from the generator's start.
fn floor(id: i64, size: i64) -> i64 {
    let time = START_MS + id;
    time - time.rem_euclid(size) - START_MS
}

fn sessions(events: &[Event]) -> Vec<Row> {
    let mut by_bidder: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for event in events {
        by_bidder.entry(event.bidder).or_default().push(event.id);
    }
    let mut rows = Vec::new();
    for (bidder, ids) in by_bidder {
        // In order of time. Sessions that touch are one.
        let mut open: Option<(i64, i64, i64, i64)> = None;
        for id in ids {
            open = Some(match open {
                Some((start, end, n, sum)) if id <= end => (start, id + GAP_MS, n + 1, sum + id),
                closed => {
                    rows.extend(closed.map(|(start, end, n, sum)| row([bidder, start, end, n, sum])));
                    (id, id + GAP_MS, 1, id)
                }
            });
        }
        rows.extend(open.map(|(start, end, n, sum)| row([bidder, start, end, n, sum])));
    }
    rows
}

/// The job `joins`: in the mixed stream every 16th event is an auction.
pub fn joins(records: u64) -> Outputs {
    let events = events(records);
    let mut auctions: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for event in events.iter().filter(|e| e.id % 16 == 15) {
        auctions.entry(event.auction).or_default().push(event.id);
    }
    let bids = || events.iter().filter(|e| e.id % 16 != 15);
    let of = |auction: i64| auctions.get(&auction).map(Vec::as_slice).unwrap_or_default().iter();
    let pairs = |fits: &dyn Fn(i64, i64) -> bool| {
        let pairs = bids().flat_map(|bid| of(bid.auction).map(|auction| (bid.id, *auction)));
        pairs.filter(|(bid, auction)| fits(*bid, *auction)).map(|(bid, auction)| row([bid, auction])).collect()
    };
    BTreeMap::from([
        ("window-join", pairs(&|bid, auction| floor(bid, 1_000) == floor(auction, 1_000))),
        ("interval-join", pairs(&|bid, auction| bid - 1_000 <= auction && auction <= bid)),
    ])
}

/// The job `broadcast`: of each auction with bids, at the end, how many, and what all subtasks know of all auctions.
pub fn broadcast(records: u64) -> Outputs {
    let events = events(records);
    let (auctions, bids): (Vec<&Event>, Vec<&Event>) = events.iter().partition(|e| e.id % 16 == 15);
    let known = auctions.iter().map(|e| (e.auction + 1) * e.id).sum();
    let mut rows: BTreeMap<i64, i64> = BTreeMap::new();
    bids.iter().for_each(|bid| *rows.entry(bid.auction).or_default() += 1);
    BTreeMap::from([
        ("told", bids.iter().map(|bid| row([bid.id])).collect()),
        ("known", rows.into_iter().map(|(key, rows)| row([key, rows, known])).collect()),
    ])
}

/// The job `lists`: each bid once, and every 16th of those that were known to the end.
pub fn lists(records: u64) -> Outputs {
    let events = events(records);
    let known = events.iter().filter(|e| e.id % 16 == 0);
    BTreeMap::from([
        ("held", events.iter().map(|e| row([e.id])).collect()),
        ("known", known.map(|e| row([e.id])).collect()),
    ])
}

/// What a record of the files is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It can't be decoded.
    Broken,
    /// The job's code refuses it.
    Refused,
    /// It passes.
    Good,
}

/// What becomes of a record in a file of objects or of tables.
pub fn fate(id: u64, object: bool) -> Fate {
    match (object && id % 50 == 13, id % 101 == 7) {
        (true, _) => Fate::Broken,
        (false, true) => Fate::Refused,
        (false, false) => Fate::Good,
    }
}

/// A record's key.
pub fn key(id: u64) -> u64 {
    mix(id) % 97
}

/// A record's text, with what CSV and JSON have to escape.
pub fn text(id: u64) -> String {
    format!("no. {id}, \"quoted\"")
}

/// The job `files`, for files with so many records each, tables and objects in turn.
pub fn files(records: u64, per_file: u64) -> Outputs {
    let is_object = |id: u64| (id / per_file) % 2 == 1;
    let good: Vec<u64> = (0..records).filter(|id| fate(*id, is_object(*id)) == Fate::Good).collect();
    let bad = (0..records).filter(|id| fate(*id, is_object(*id)) != Fate::Good);
    let counted = counts(good.iter().map(|id| key(*id) as i64));
    BTreeMap::from([
        ("pass", good.iter().map(|id| vec![id.to_string(), key(*id).to_string(), text(*id)]).collect()),
        ("counts", counted.into_iter().map(|(key, n)| row([key, n])).collect()),
        ("timed", good.iter().map(|id| vec![id.to_string()]).collect()),
        ("dead letters", bad.map(|id| vec![id.to_string()]).collect()),
    ])
}
