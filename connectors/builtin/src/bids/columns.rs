//! The columns of a run of events, each computed by a loop of its own over the hashes of a block that fits the L1 cache.
//!
//! Invariant: every view lies within the buffers of its column, and is ASCII.

#![allow(
    clippy::indexing_slicing,
    reason = "the innermost loops; blocks are cut to one length first, and pool and tables are larger than any index that \
              the masks of the generator let through (tested with the largest)"
)]

use std::sync::Arc;

use arrow::array::{ArrayRef, Int8Array, PrimitiveArray};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Int64Type, TimeUnit, TimestampMillisecondType};
use tidemill_core::error::Result;

use super::draw::{EventClock, Shape, Tables, channel_of, mix};
use super::texts::texts;

/// Events per block: two arrays of hashes and one output column stay in the first-level cache.
const BLOCK: usize = 512;

/// A column that the generator makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Kind,
    Auction,
    Bidder,
    Price,
    Channel,
    Url,
    DateTime,
    Extra,
}

impl Column {
    /// By the name that a job gives it; the error is the mend.
    pub(super) fn named(name: &str, mixed: bool) -> Result<Self, String> {
        match name {
            "kind" if mixed => Ok(Self::Kind),
            "kind" => Err("set the option mixed = true: only then are there auctions beside the bids".to_owned()),
            "auction" | "id" => Ok(Self::Auction),
            "bidder" | "seller" => Ok(Self::Bidder),
            "price" => Ok(Self::Price),
            "channel" => Ok(Self::Channel),
            "url" => Ok(Self::Url),
            "date_time" => Ok(Self::DateTime),
            "extra" => Ok(Self::Extra),
            _ => Err(
                "its columns are: auction (or id), bidder (or seller), price, channel, url, date_time, extra; with \
                      mixed = true also kind"
                    .to_owned(),
            ),
        }
    }

    pub(super) fn data_type(self) -> DataType {
        match self {
            Self::Kind => DataType::Int8,
            Self::Auction | Self::Bidder | Self::Price => DataType::Int64,
            Self::Channel | Self::Url | Self::Extra => DataType::Utf8View,
            Self::DateTime => DataType::Timestamp(TimeUnit::Millisecond, None),
        }
    }

    pub(super) fn type_name(self) -> &'static str {
        match self {
            Self::Kind => "an 8-bit integer (i8)",
            Self::Auction | Self::Bidder | Self::Price => "a 64-bit integer (i64)",
            Self::Channel | Self::Url | Self::Extra => "a text",
            Self::DateTime => "a timestamp",
        }
    }

    fn needs_second_hash(self) -> bool {
        matches!(self, Self::Bidder | Self::Channel | Self::Url | Self::Extra)
    }

    fn needs_hash(self) -> bool {
        !matches!(self, Self::Kind | Self::DateTime)
    }
}

/// The given columns of the events `first`, `first + stride`, ..., `rows` of them.
pub(super) fn compute(
    shape: &Shape,
    columns: &[Column],
    first: u64,
    stride: u64,
    rows: usize,
) -> Result<Vec<ArrayRef>> {
    let mut out: Vec<Values> = columns.iter().map(|c| Values::new(*c, rows)).collect();
    let (hash, second) = (columns.iter().any(|c| c.needs_hash()), columns.iter().any(|c| c.needs_second_hash()));
    let mut clock = EventClock::new(first, stride, shape.rate);
    let mut hashes = ([0_u64; BLOCK], [0_u64; BLOCK], [0_u32; BLOCK]);
    for start in (0..rows).step_by(BLOCK) {
        let length = BLOCK.min(rows - start);
        let event = first.wrapping_add((start as u64).wrapping_mul(stride));
        let (h, g, channel) = (&mut hashes.0[..length], &mut hashes.1[..length], &mut hashes.2[..length]);
        if hash {
            for (i, h) in h.iter_mut().enumerate() {
                *h = mix(event.wrapping_add((i as u64).wrapping_mul(stride)));
            }
        }
        if second {
            for (g, h) in g.iter_mut().zip(h.iter()) {
                *g = mix(*h);
            }
        }
        if columns.iter().any(|c| matches!(c, Column::Channel | Column::Url)) {
            for (channel, g) in channel.iter_mut().zip(g.iter()) {
                *channel = channel_of(*g) as u32;
            }
        }
        let block = Block { event, stride, h, g, channel };
        let clock_before = clock;
        for (column, values) in columns.iter().zip(&mut out) {
            // Each time column starts from the same tick; there may be none, or two.
            let mut ticks = clock_before;
            values.extend(shape, *column, &block, &mut ticks);
            if *column == Column::DateTime {
                clock = ticks;
            }
        }
    }
    Ok(columns.iter().zip(out).map(|(column, values)| values.finish(*column)).collect())
}

struct Block<'a> {
    event: u64,
    stride: u64,
    h: &'a [u64],
    g: &'a [u64],
    channel: &'a [u32],
}

enum Values {
    Bytes(Vec<i8>),
    Longs(Vec<i64>),
    Views(Vec<u128>),
}

impl Values {
    fn new(column: Column, rows: usize) -> Self {
        match column {
            Column::Kind => Self::Bytes(Vec::with_capacity(rows)),
            Column::Channel | Column::Url | Column::Extra => Self::Views(Vec::with_capacity(rows)),
            _ => Self::Longs(Vec::with_capacity(rows)),
        }
    }

    fn extend(&mut self, shape: &Shape, column: Column, block: &Block<'_>, clock: &mut EventClock) {
        match self {
            Self::Bytes(kinds) => kinds.extend((0..block.h.len()).map(|i| {
                let event = block.event.wrapping_add((i as u64).wrapping_mul(block.stride));
                i8::from(event & 15 == 15)
            })),
            Self::Longs(longs) => match column {
                Column::Auction => longs.extend(block.h.iter().map(|&h| shape.auctions.draw(h))),
                Column::Bidder => longs.extend(block.g.iter().map(|&g| shape.bidders.draw(g))),
                Column::DateTime => longs.extend(block.h.iter().map(|_| clock.tick())),
                _ => longs.extend(block.h.iter().map(|&h| i64::from(1 + (h as u32) % 10_000_000))),
            },
            Self::Views(views) => match column {
                Column::Channel => {
                    let table = &Tables::shared().channels[..];
                    views.extend(block.channel.iter().map(|&c| table[c as usize]));
                }
                Column::Url => {
                    let table = &Tables::shared().urls[..];
                    views.extend(block.channel.iter().map(|&c| table[c as usize]));
                }
                _ => {
                    let pool = Tables::shared().pool.as_slice();
                    views.extend(block.h.iter().zip(block.g).map(|(&h, &g)| extra(pool, h, g)));
                }
            },
        }
    }

    fn finish(self, column: Column) -> ArrayRef {
        match self {
            Self::Bytes(kinds) => Arc::new(Int8Array::from(kinds)),
            Self::Longs(longs) if column == Column::DateTime => primitive::<TimestampMillisecondType>(longs),
            Self::Longs(longs) => primitive::<Int64Type>(longs),
            Self::Views(views) => match column {
                Column::Channel => texts(views, None),
                Column::Url => texts(views, Some(&Tables::shared().url_bytes)),
                _ => texts(views, Some(&Tables::shared().pool)),
            },
        }
    }
}

fn primitive<T: ArrowPrimitiveType<Native = i64>>(values: Vec<i64>) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(values.into(), None))
}

/// The view of an event's `extra`: length, 4 bytes of prefix, buffer 0, offset, as Arrow lays it out.
#[inline(always)]
fn extra(pool: &[u8], h: u64, g: u64) -> u128 {
    let offset = ((g >> 19) & 0x3FFF) * 3;
    let length = 90 + (h & 0xFF) % 21;
    let at = offset as usize;
    let prefix = u32::from_le_bytes([pool[at], pool[at + 1], pool[at + 2], pool[at + 3]]);
    u128::from(length | (u64::from(prefix) << 32)) | (u128::from(offset) << 96)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringViewArray;
    use arrow::buffer::Buffer;

    #[test]
    fn the_largest_extra_lies_within_the_pool() {
        let tables = Tables::shared();
        // The largest offset with the largest length: h & 0xFF = 20 gives 110.
        let view = extra(tables.pool.as_slice(), 20, 0x3FFF << 19);
        let (length, offset) = (view as u32, (view >> 96) as u32);
        assert_eq!((length, offset), (110, 49_149));
        assert!((offset + length) as usize <= tables.pool.len());
        let views = StringViewArray::try_new(vec![view].into(), [tables.pool.clone()], None);
        assert_eq!(views.unwrap().value(0).len(), 110);
        for (table, bytes) in [(&tables.channels, None), (&tables.urls, Some(tables.url_bytes.clone()))] {
            let buffers: Vec<Buffer> = bytes.into_iter().collect();
            assert_eq!(table.len(), 10_004);
            StringViewArray::try_new(table.clone().into(), buffers, None).unwrap();
        }
    }
}
