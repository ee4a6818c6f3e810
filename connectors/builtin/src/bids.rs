//! The source `bids`: an auction house's events, computed and not read, for benchmarks, demos and tests.
//!
//! Event i depends on i and the options alone, so that every system that is compared sees the same events, and a split
//! is restored from one number. Only the columns that somebody reads are computed. With P splits, split k makes the
//! events k, k + P, k + 2P, ...; a split keeps its stride when the job is restored at another parallelism.

mod columns;
mod draw;
mod texts;

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use serde::{Deserialize, Serialize};
use tidemill_connector_kit::{Connector, Key, OptionSpec, Options, Setup};
use tidemill_core::Batch;
use tidemill_core::connector::{
    Boundedness, Discovery, ReaderPoll, Source, SourceContext, SourceReader, Split, SplitEnumerator, SplitId,
};
use tidemill_core::error::{Error, Result};
use tidemill_core::ids::Epoch;
use tidemill_core::time::Timestamp;

use columns::Column;
use draw::Shape;

const RECORDS: Key<u64> = Key::new("records", "How many events to make, over all splits; without it there is no end.");
const AUCTIONS: Key<u64> = Key::new("auctions", "How many auctions there are.").or("100000");
const BIDDERS: Key<u64> = Key::new("bidders", "How many bidders there are.").or("100000");
const RATE: Key<u64> = Key::new("rate", "Events per second of event time.").or("100000");
const MIXED: Key<bool> = Key::new(
    "mixed",
    "Whether every 16th event is an auction (kind = 1; auction is its id, bidder its seller) and not a bid (kind = 0).",
)
.or("false");
const PACE: Key<u64> =
    Key::new("pace", "Events per second of real time, over all splits; without it as fast as they are taken.");

/// Keys are drawn from 31 bits of a hash.
const MAX_KEYS: u64 = 1 << 31;
/// Keeps `i * 1000` within 64 bits for any event that can be reached.
const MAX_RECORDS: u64 = 1 << 53;
/// As [`MAX_RECORDS`]: a rate beyond it is a mistake.
const MAX_RATE: u64 = 1 << 40;
/// A paced reader gives this many batches a second, so that a live display moves smoothly.
const PACED_BATCHES_PER_SECOND: u64 = 20;

/// The connector.
#[derive(Clone, Copy, Debug)]
pub struct Bids;

impl Connector for Bids {
    fn name(&self) -> &'static str {
        "bids"
    }

    fn doc(&self) -> &'static str {
        "Makes the bids of an auction house: auction, bidder, price, channel, url, date_time, extra; with `mixed` also \
         kind. The columns `id` and `seller` are other names of auction and bidder."
    }

    fn source_options(&self) -> Option<Vec<OptionSpec>> {
        Some(vec![RECORDS.spec(), AUCTIONS.spec(), BIDDERS.spec(), RATE.spec(), MIXED.spec(), PACE.spec()])
    }

    fn source(&self, setup: Setup) -> Result<Arc<dyn Source>> {
        let options = &setup.options;
        let settings = Settings {
            records: bounded(options, &RECORDS, 0, MAX_RECORDS)?,
            auctions: needed(options, &AUCTIONS, 1, MAX_KEYS)?,
            bidders: needed(options, &BIDDERS, 1, MAX_KEYS)?,
            rate: needed(options, &RATE, 1, MAX_RATE)?,
            mixed: options.need(&MIXED)?,
            pace: bounded(options, &PACE, 1, MAX_RATE)?,
        };
        let owner = options.owner().to_owned();
        columns_of(&setup.schema, &settings, &owner)?;
        Ok(Arc::new(BidsSource { settings, owner, shape: Shape::new(&settings) }))
    }
}

/// The parameters of the generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many events there are; `None`: no end.
    pub records: Option<u64>,
    /// Auctions are numbered below this.
    pub auctions: u64,
    /// Bidders are numbered below this.
    pub bidders: u64,
    /// Events per second of event time.
    pub rate: u64,
    /// Whether every 16th event is an auction.
    pub mixed: bool,
    /// Events per second of processing time.
    pub pace: Option<u64>,
}

fn bounded(options: &Options, key: &Key<u64>, least: u64, most: u64) -> Result<Option<u64>> {
    let value = options.get(key)?;
    match value {
        Some(n) if !(least..=most).contains(&n) => {
            Err(options.error(key, format!("{n} is not between {least} and {most}")))
        }
        _ => Ok(value),
    }
}

fn needed(options: &Options, key: &Key<u64>, least: u64, most: u64) -> Result<u64> {
    bounded(options, key, least, most)?.map_or_else(|| options.need(key), Ok)
}

fn columns_of(schema: &SchemaRef, settings: &Settings, owner: &str) -> Result<Vec<Column>> {
    schema
        .fields()
        .iter()
        .map(|field| {
            let column = Column::named(field.name(), settings.mixed)
                .map_err(|mend| Error::invalid(format!("{owner}: it makes no column '{}'", field.name())).mend(mend))?;
            if *field.data_type() != column.data_type() {
                return Err(Error::invalid(format!(
                    "{owner}: column '{}' is {} here, and the job declares it as {}",
                    field.name(),
                    column.data_type(),
                    field.data_type()
                ))
                .mend(format!("declare '{}' as {}", field.name(), column.type_name())));
            }
            Ok(column)
        })
        .collect()
}

struct BidsSource {
    settings: Settings,
    owner: String,
    shape: Shape,
}

impl Source for BidsSource {
    fn boundedness(&self) -> Boundedness {
        if self.settings.records.is_some() { Boundedness::Bounded } else { Boundedness::Unbounded }
    }

    fn enumerator(&self, parallelism: u32) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(BidsEnumerator { stride: u64::from(parallelism.max(1)), reported: false }))
    }

    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>> {
        let columns = columns_of(&context.schema, &self.settings, &self.owner)?;
        Ok(Box::new(BidsReader {
            settings: self.settings,
            shape: self.shape,
            columns,
            context,
            splits: VecDeque::new(),
            no_more: false,
            pace: None,
        }))
    }

    fn total(&self) -> Option<u64> {
        self.settings.records
    }
}

struct BidsEnumerator {
    stride: u64,
    reported: bool,
}

impl SplitEnumerator for BidsEnumerator {
    fn discover(&mut self) -> Result<Discovery> {
        let first = if std::mem::replace(&mut self.reported, true) { self.stride } else { 0 };
        let splits = (first..self.stride).map(|k| Position { next: k, first: k, stride: self.stride }.split());
        Ok(Discovery { splits: splits.collect::<Result<_>>()?, again_after_ms: None })
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(vec![u8::from(self.reported)])
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.reported = snapshot == [1];
        Ok(())
    }
}

/// Where a split stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    next: u64,
    first: u64,
    stride: u64,
}

impl Position {
    fn split(self) -> Result<Split> {
        let id = SplitId(format!("events {}, {}, ...", self.first, self.first + self.stride));
        let description = serde_json::to_vec(&self).map_err(|e| Error::internal(e.to_string()))?;
        Ok(Split { id, description })
    }

    fn from_split(split: &Split) -> Result<Self> {
        let position: Self = serde_json::from_slice(&split.description)
            .map_err(|e| Error::invalid(format!("the position of split '{}' is no position: {e}", split.id.0)))?;
        if position.stride == 0
            || position.first >= position.stride
            || position.next % position.stride != position.first
        {
            return Err(Error::invalid(format!("the position of split '{}' contradicts itself", split.id.0)));
        }
        Ok(position)
    }
}

struct BidsReader {
    settings: Settings,
    shape: Shape,
    columns: Vec<Column>,
    context: SourceContext,
    /// Read in turn, a batch each, so that their times rise together.
    splits: VecDeque<(SplitId, Position)>,
    no_more: bool,
    pace: Option<Pace>,
}

/// What a paced reader may have made by now.
struct Pace {
    start: Timestamp,
    made: u64,
}

impl SourceReader for BidsReader {
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()> {
        for split in splits {
            let position = Position::from_split(&split)?;
            self.splits.push_back((split.id, position));
        }
        Ok(())
    }

    fn no_more_splits(&mut self) {
        self.no_more = true;
    }

    fn poll(&mut self) -> Result<ReaderPoll> {
        let Some((_, position)) = self.splits.front() else {
            return Ok(if self.no_more { ReaderPoll::Finished } else { ReaderPoll::Pending(None) });
        };
        let end = self.settings.records.unwrap_or(MAX_RECORDS);
        let left = end.saturating_sub(position.next).div_ceil(position.stride);
        if left == 0 {
            let id = self.splits.pop_front().map(|(id, _)| id);
            return Ok(id.map_or(ReaderPoll::Pending(None), ReaderPoll::SplitFinished));
        }
        let rows = match self.allowed() {
            Ok(allowed) => allowed.min(left) as usize,
            Err(when) => return Ok(ReaderPoll::Pending(Some(when))),
        };
        let Some((id, mut position)) = self.splits.pop_front() else { return Ok(ReaderPoll::Pending(None)) };
        let columns = columns::compute(&self.shape, &self.columns, position.next, position.stride, rows)?;
        position.next += rows as u64 * position.stride;
        self.splits.push_back((id.clone(), position));
        if let Some(pace) = &mut self.pace {
            pace.made += rows as u64;
        }
        let batch = Batch::new(rows, columns, None)?;
        Ok(ReaderPoll::Batch { split: id, batch, rejected: Vec::new(), progress: rows as u64 })
    }

    fn snapshot(&mut self, _epoch: Epoch) -> Result<Vec<Split>> {
        self.splits.iter().map(|(id, p)| p.split().map(|s| Split { id: id.clone(), ..s })).collect()
    }
}

impl BidsReader {
    /// How many rows the next batch may have, or when to ask again.
    fn allowed(&mut self) -> Result<u64, Timestamp> {
        let batch_rows = self.context.batch_rows.max(1) as u64;
        let Some(pace) = self.settings.pace else { return Ok(batch_rows) };
        let share = u128::from(pace).div_ceil(u128::from(self.context.subtask.parallelism.max(1)));
        let now = self.context.clock.now();
        let state = self.pace.get_or_insert(Pace { start: now, made: 0 });
        let elapsed_ms = u128::try_from(now.0.saturating_sub(state.start.0)).unwrap_or(0);
        let due = u64::try_from(elapsed_ms * share / 1_000).unwrap_or(u64::MAX);
        let worthwhile = (share as u64 / PACED_BATCHES_PER_SECOND).clamp(1, batch_rows);
        if due.saturating_sub(state.made) >= worthwhile {
            return Ok((due - state.made).min(batch_rows));
        }
        let when_ms = (u128::from(state.made + worthwhile) * 1_000).div_ceil(share);
        Err(Timestamp(state.start.0.saturating_add(i64::try_from(when_ms).unwrap_or(i64::MAX))))
    }
}

#[cfg(test)]
mod tests;
