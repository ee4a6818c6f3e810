//! The words that all twins of the benchmark share: parameters, queries, answers.
//!
//! Plain data without any arithmetic of the benchmark, so that sharing it can't hide a mistake. The invariant: a
//! [`Parameters`] value is within the limits below, so that no twin has to check again for a division by zero or for a
//! table that outgrows memory.

use anyhow::{Result, ensure};

/// Most records of one run. Event times then stay far from the end of their range (2^35 seconds at one record per
/// second), and the auctions of the mixed stream, every 16th event, can be numbered with 32 bits.
pub const MAX_RECORDS: u64 = 1 << 35;

/// Most distinct auctions or bidders: the hand twin keeps its state in tables indexed by the key, up to 16 bytes each, and
/// 2 GiB of them is as much as a benchmark machine has to spare.
pub const MAX_KEYS: u64 = 1 << 27;

/// Most records per second of event time: a count within ten seconds then fits in 32 bits.
pub const MAX_RATE: u64 = 1 << 28;

/// The input of a query: how many events, over how many keys, how fast in event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    records: u64,
    auctions: u64,
    bidders: u64,
    rate: u64,
}

impl Parameters {
    /// Events 0 to `records`, with `auctions` and `bidders` distinct keys and `rate` events per second of event time.
    ///
    /// # Errors
    /// When a number is zero (but `records` may be) or over its limit.
    pub fn new(records: u64, auctions: u64, bidders: u64, rate: u64) -> Result<Self> {
        ensure!(records <= MAX_RECORDS, "records = {records}, the most is {MAX_RECORDS}");
        for (name, keys) in [("auctions", auctions), ("bidders", bidders)] {
            ensure!((1..=MAX_KEYS).contains(&keys), "{name} = {keys}, must be between 1 and {MAX_KEYS}");
        }
        ensure!((1..=MAX_RATE).contains(&rate), "rate = {rate}, must be between 1 and {MAX_RATE}");
        Ok(Self { records, auctions, bidders, rate })
    }

    /// The parameters of the published figures of `query`: 100,000 auctions, bidders and events per second, but 400,000
    /// bidders for the session query.
    ///
    /// # Errors
    /// When there are more `records` than [`MAX_RECORDS`].
    pub fn published(query: Query, records: u64) -> Result<Self> {
        let bidders = if query == Query::Session { 400_000 } else { 100_000 };
        Self::new(records, 100_000, bidders, 100_000)
    }

    /// Number of events.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Number of distinct auctions, A.
    #[must_use]
    pub fn auctions(&self) -> u64 {
        self.auctions
    }

    /// Number of distinct bidders, B.
    #[must_use]
    pub fn bidders(&self) -> u64 {
        self.bidders
    }

    /// Events per second of event time, R.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate
    }
}

/// What a query gave: how many records came out, and the wrapping sum that its definition names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Output records.
    pub records: u64,
    /// Wrapping sum over the output records.
    pub checksum: u64,
}

impl Answer {
    /// Counts one output record that contributes `value` to the checksum.
    #[inline]
    pub fn add(&mut self, value: u64) {
        self.records += 1;
        self.checksum = self.checksum.wrapping_add(value);
    }
}

/// The queries over generated events. `json`, which reads a file, stands beside them in each twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Query {
    /// All seven columns from source to sink.
    Q0,
    /// Map: price to euro.
    Q1,
    /// Filter: one auction in 123.
    Q2,
    /// Running count per auction.
    Wc,
    /// Largest count per auction in sliding windows of 10 s every 2 s.
    Q5,
    /// As `Q5`; where there is an engine, the count is the user's aggregator.
    Q5u,
    /// Largest price per bidder in tumbling windows of 10 s.
    Q7,
    /// Count per bidder in sessions with a gap of 10 s.
    Session,
    /// Join of bids and auctions in tumbling windows of 10 s.
    Q8,
    /// Join of bids with the auctions of the 10 s before.
    Q8i,
}

impl Query {
    /// All of them, in the order of the published tables.
    pub const ALL: [Self; 10] =
        [Self::Q0, Self::Q1, Self::Q2, Self::Wc, Self::Q5, Self::Q5u, Self::Q7, Self::Session, Self::Q8, Self::Q8i];

    /// Its name in tables and on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q0 => "q0",
            Self::Q1 => "q1",
            Self::Q2 => "q2",
            Self::Wc => "wc",
            Self::Q5 => "q5",
            Self::Q5u => "q5u",
            Self::Q7 => "q7",
            Self::Session => "session",
            Self::Q8 => "q8",
            Self::Q8i => "q8i",
        }
    }

    /// The query of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|query| query.name() == name)
    }

    /// The published answer for [`PUBLISHED_RECORDS`] records with [`Parameters::published`], which two independent
    /// programs gave, one of them Apache Flink 2.3.
    #[must_use]
    pub fn published_answer(self) -> Answer {
        let (records, checksum) = match self {
            Self::Q0 => (2_000_000, 9_994_249_365_480),
            Self::Q1 => (2_000_000, 9_074_777_428_322),
            Self::Q2 => (16_178, 800_978_091),
            Self::Wc => (2_000_000, 22_000_459),
            Self::Q5 | Self::Q5u => (14, 286),
            Self::Q7 => (199_994, 1_799_541_313_214),
            Self::Session => (449_235, 11_614_354),
            Self::Q8 => (1_172_345, 5_918_608_419_280),
            Self::Q8i => (879_555, 4_439_287_139_298),
        };
        Answer { records, checksum }
    }
}

/// The number of records of the published answers.
pub const PUBLISHED_RECORDS: u64 = 2_000_000;
