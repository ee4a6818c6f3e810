//! Which rows operators of event time take: those whose time can be reckoned with.
//!
//! Invariant: every timestamp that is let in is within ±[`TIME_LIMIT_MS`], so that no sum of a time, a size or gap and a
//! lateness overflows, and no window or bucket is cut off by the ends of what an i64 can hold.

use arrow::array::UInt32Array;
use tidemill_core::operator::Output;
use tidemill_core::{Batch, Result};

use crate::record::RecordText;

/// Rows further from 1970 than this (73 million years) are set aside by windows and joins: such a time is a mistake, and
/// adding a window's size to it could overflow.
pub const TIME_LIMIT_MS: i64 = 1 << 61;

/// The batch with its smallest and largest timestamp, without rows whose timestamp is absurd: these are set aside.
pub(super) fn admit(batch: Batch, text: &RecordText, out: &mut dyn Output) -> Result<(Batch, i64, i64)> {
    let timestamps = batch.timestamps().map_or(&[][..], |t| t);
    let (low, high) = bounds(timestamps);
    if low >= -TIME_LIMIT_MS && high <= TIME_LIMIT_MS {
        return Ok((batch, low, high));
    }
    let (good, bad): (Vec<u32>, Vec<u32>) = (0..batch.rows() as u32)
        .partition(|&r| timestamps.get(r as usize).is_some_and(|t| t.unsigned_abs() <= TIME_LIMIT_MS as u64));
    for row in bad {
        out.dead_letter(text.letter(&batch, row as usize, "its timestamp is millions of years away".to_owned()))?;
    }
    let batch = batch.take(&UInt32Array::from(good))?;
    let (low, high) = bounds(batch.timestamps().map_or(&[][..], |t| t));
    Ok((batch, low, high))
}

/// The smallest and the largest of some timestamps.
pub(super) fn bounds(timestamps: &[i64]) -> (i64, i64) {
    timestamps.iter().fold((i64::MAX, i64::MIN), |(low, high), &t| (low.min(t), high.max(t)))
}
