//! The interval join: rows with equal keys and `left.time + lower <= right.time <= left.time + upper` are paired as
//! soon as the second of them arrives.
//!
//! Rows wait in *buckets* of time, per side. A row that arrives probes those buckets of the other side which its
//! interval overlaps, and is then put into its own. When the watermark says that no partner of any row of a bucket can
//! come any more, the bucket is dropped, with its index: that is all that purging costs.
//!
//! State is the rows, bucket by bucket. Cache is each bucket's index; it is made (and caught up with the rows) when the
//! bucket is probed, so a side that nobody probes, because its rows are dropped at once, costs no index.
//!
//! A pair's timestamp is the later of the two. A row is late when it is not after the watermark.

#![allow(clippy::indexing_slicing, reason = "rows are numbered by the index that found them, and times are per row")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::array::UInt32Array;
use arrow::buffer::ScalarBuffer;
use tidemill_core::ids::{InputIndex, Port};
use tidemill_core::keys::Keys;
use tidemill_core::operator::{Operator, Output, Progress};
use tidemill_core::plan::NodeKind;
use tidemill_core::snapshot::{SnapshotKind, StateSnapshot};
use tidemill_core::time::Watermark;
use tidemill_core::{Batch, Error, Result};

use super::emit::{interleave_columns, take_columns};
use super::grid::{Grid, Split};
use super::index::{Bounds, Cursor, KeyIndex, Pairs};
use super::{Build, Common, STEPS_PER_CALL, Side, Sides, locate, node_of};

/// An interval has about so many buckets. More are smaller: less is kept too long, more has to be probed.
const BUCKETS: u64 = 8;
/// Buckets are not shorter: a batch of a fast stream spans tens of milliseconds, and each bucket costs a probe.
const MIN_BUCKET_MS: u64 = 100;

/// An `interval_join` node.
pub fn build(build: Build<'_>) -> Result<Box<dyn Operator>> {
    let NodeKind::IntervalJoin { lower_ms, upper_ms } = node_of(&build)?.kind else {
        return Err(Error::internal("a node that is no interval join"));
    };
    let watermark = build.begin.watermark;
    let mut common = Common::new(build)?;
    let grid = Grid::new((upper_ms.abs_diff(lower_ms) / BUCKETS).max(MIN_BUCKET_MS), 0);
    let mut buckets: Sides<BTreeMap<i64, Bucket>> = Sides::default();
    for side in Side::BOTH {
        let log = *common.logs.of(side);
        for namespace in common.state.log_namespaces(log) {
            let bucket = buckets.of_mut(side).entry(grid.cell_in(namespace)).or_default();
            for (batch, _) in common.state.rows(log, namespace)? {
                bucket.note(batch.timestamps().map_or(&[][..], |t| t));
            }
        }
    }
    let partners = Sides {
        left: Reach { from: lower_ms, to: upper_ms },
        right: Reach { from: upper_ms.saturating_neg(), to: lower_ms.saturating_neg() },
    };
    Ok(Box::new(IntervalJoin {
        common,
        grid,
        partners,
        buckets,
        cache_bytes: 0,
        watermark,
        probing: None,
        pairs: Pairs::default(),
    }))
}

struct IntervalJoin {
    common: Common,
    grid: Grid,
    /// Where the partners of a row are, counted from its time.
    partners: Sides<Reach>,
    buckets: Sides<BTreeMap<i64, Bucket>>,
    /// Bytes of all buckets' caches.
    cache_bytes: usize,
    watermark: Watermark,
    /// The batch that is being paired.
    probing: Option<Probing>,
    pairs: Pairs,
}

/// A span of time, relative to a row's, inclusive.
#[derive(Clone, Copy, Debug, Default)]
struct Reach {
    from: i64,
    to: i64,
}

/// What is known of a bucket beside its rows in the log.
#[derive(Debug, Default)]
struct Bucket {
    /// The times that its rows have; `None`: no row.
    span: Option<(i64, i64)>,
    /// Over the first so many rows, and their times.
    index: KeyIndex,
    times: Vec<i64>,
}

/// A batch that is being paired. It is put into its buckets afterwards.
struct Probing {
    side: Side,
    /// Its rows by bucket; the first is being paired.
    parts: VecDeque<Part>,
    /// The bucket of the other side that is being probed; `None`: the first one.
    bucket: Option<i64>,
    cursor: Cursor,
}

/// Rows of one bucket that have arrived.
struct Part {
    bucket: i64,
    rows: Batch,
    times: ScalarBuffer<i64>,
    span: (i64, i64),
    keys: Keys,
}

/// Pairs, from there on, are with rows of this bucket.
struct Found {
    bucket: i64,
    start: usize,
}

impl Operator for IntervalJoin {
    fn process(&mut self, input: InputIndex, batch: Batch, out: &mut dyn Output) -> Result<Progress> {
        let side = Side::of(input)?;
        let input = self.common.read(side, batch, out)?;
        let late_upto = (self.watermark > Watermark::MIN).then_some(self.watermark.0);
        let split = Split::new(&input.times, input.key_nulls.as_ref(), late_upto, &self.grid);
        self.common.count_late(split.late);
        let mut parts = VecDeque::with_capacity(split.cells.len());
        for (bucket, set) in split.cells {
            let (rows, key) = (set.of(&input.kept)?, set.of(&input.key)?);
            let keys = self.common.codec().encode(key.rows(), key.columns())?;
            let times = rows.timestamps().cloned().unwrap_or_default();
            let Some(span) = span_of(&times) else { continue };
            parts.push_back(Part { bucket, rows, times, span, keys });
        }
        self.probing = Some(Probing { side, parts, bucket: None, cursor: Cursor::default() });
        self.go_on(out)
    }

    fn freeze(&mut self, kind: SnapshotKind) -> Result<bool> {
        self.common.state.freeze(kind).map(|()| true)
    }

    fn copy_frozen(&mut self) -> Result<Option<Box<dyn StateSnapshot>>> {
        self.common.state.copy_frozen()
    }

    fn on_watermark(&mut self, watermark: Watermark, _out: &mut dyn Output) -> Result<Progress> {
        self.watermark = self.watermark.max(watermark);
        for side in Side::BOTH {
            let log = *self.common.logs.of(side);
            while let Some((&bucket, _)) = self.buckets.of(side).first_key_value()
                && self.is_done(side, bucket)
            {
                let dropped = self.buckets.of_mut(side).remove(&bucket);
                self.cache_bytes -= dropped.map_or(0, |bucket| bucket.memory_bytes());
                self.common.state.drop_rows(log, self.grid.namespace(bucket))?;
            }
        }
        self.common.state.commit()?;
        self.common.show_state(self.cache_bytes)?;
        Ok(Progress::Done)
    }

    fn resume(&mut self, out: &mut dyn Output) -> Result<Progress> {
        self.go_on(out)
    }
}

impl IntervalJoin {
    /// Whether no partner of any row of the bucket can come any more.
    fn is_done(&self, side: Side, bucket: i64) -> bool {
        self.grid.last_of(bucket).saturating_add(self.partners.of(side).to) <= self.watermark.0
    }

    /// Goes on until the batch is paired and put away, or until the output is full.
    fn go_on(&mut self, out: &mut dyn Output) -> Result<Progress> {
        let mut steps = STEPS_PER_CALL;
        loop {
            let Some(probing) = &self.probing else { return Ok(Progress::Done) };
            if probing.parts.is_empty() {
                self.probing = None;
                self.common.state.commit()?;
                self.common.show_state(self.cache_bytes)?;
                return Ok(Progress::Done);
            }
            if self.pair(&mut steps, out)? {
                self.put_away()?;
            }
            if out.is_full() || steps == 0 {
                return Ok(Progress::More);
            }
        }
    }

    /// Emits at most one batch of the pairs of the first part; whether none of them are left.
    fn pair(&mut self, steps: &mut usize, out: &mut dyn Output) -> Result<bool> {
        let Some(probing) = &mut self.probing else { return Ok(true) };
        let Some(part) = probing.parts.front() else { return Ok(true) };
        let other = probing.side.other();
        let log = *self.common.logs.of(other);
        let reach = *self.partners.of(probing.side);
        let (first, last) = (part.span.0.saturating_add(reach.from), part.span.1.saturating_add(reach.to));
        let mut bounds = Bounds { pairs: self.common.batch_rows(), steps: *steps };
        let mut found = Vec::new();
        let start = probing.bucket.unwrap_or_else(|| self.grid.cell_of(first));
        let last_bucket = self.grid.cell_of(last);
        let mut all = true;
        for (&cell, bucket) in self.buckets.of_mut(other).range_mut(start..) {
            if cell > last_bucket {
                break;
            }
            if probing.bucket != Some(cell) {
                (probing.bucket, probing.cursor) = (Some(cell), Cursor::default());
            }
            if bucket.span.is_none_or(|(min, max)| max < first || min > last) {
                continue;
            }
            let pieces = self.common.state.rows(log, self.grid.namespace(cell))?;
            self.cache_bytes -= bucket.memory_bytes();
            bucket.catch_up(pieces).map_err(|e| e.at(&self.common.context.subtask, "join"))?;
            self.cache_bytes += bucket.memory_bytes();
            found.push(Found { bucket: cell, start: self.pairs.len() });
            let accept = |probe: u32, row: u32| reach.has(part.times[probe as usize], bucket.times[row as usize]);
            all = bucket.index.probe(&part.keys, 0, &mut probing.cursor, &mut bounds, &mut self.pairs, accept);
            if !all {
                break;
            }
        }
        *steps = bounds.steps;
        if self.pairs.len() > 0 {
            let batch = self.emit(&found)?;
            self.pairs.clear();
            out.emit(Port(0), batch)?;
        }
        Ok(all)
    }
    /// The collected pairs as a batch of the output.
    fn emit(&mut self, found: &[Found]) -> Result<Batch> {
        let Some((side, part)) = self.probing.as_ref().and_then(|p| Some((p.side, p.parts.front()?))) else {
            return Err(Error::internal("pairs of no batch"));
        };
        let log = *self.common.logs.of(side.other());
        let mut gather = Gather::default();
        let mut times = Vec::with_capacity(self.pairs.len());
        for (at, Found { bucket, start }) in found.iter().enumerate() {
            let end = found.get(at + 1).map_or(self.pairs.len(), |next| next.start);
            let rows = &self.pairs.found[*start..end];
            gather.add(self.common.state.rows(log, self.grid.namespace(*bucket))?, rows);
            let Some(bucket) = self.buckets.of(side.other()).get(bucket) else { continue };
            let probed = &self.pairs.probe[*start..end];
            times.extend(probed.iter().zip(rows).map(|(&p, &f)| part.times[p as usize].max(bucket.times[f as usize])));
        }
        let probe = take_columns(&part.rows, &UInt32Array::from(std::mem::take(&mut self.pairs.probe)))?;
        let columns = interleave_columns(&gather.batches, &gather.rows)?;
        self.common.layout.output(&Sides::with(side, probe, columns), times.into())
    }

    /// Puts the first part into its bucket, now that it is paired.
    fn put_away(&mut self) -> Result<()> {
        let Some(probing) = &mut self.probing else { return Ok(()) };
        (probing.bucket, probing.cursor) = (None, Cursor::default());
        let side = probing.side;
        let Some(part) = probing.parts.pop_front() else { return Ok(()) };
        if self.is_done(side, part.bucket) {
            return Ok(());
        }
        self.buckets.of_mut(side).entry(part.bucket).or_default().note(&part.times);
        let log = *self.common.logs.of(side);
        self.common.state.append(log, self.grid.namespace(part.bucket), part.rows, part.keys)
    }
}

impl Reach {
    /// Whether a partner's time is within the reach of a row's. (A distance that overflows is beyond every reach.)
    #[inline]
    fn has(&self, time: i64, partner: i64) -> bool {
        partner.checked_sub(time).is_some_and(|distance| self.from <= distance && distance <= self.to)
    }
}

impl Bucket {
    /// Takes note of rows that are in the log.
    fn note(&mut self, times: &[i64]) {
        if let Some((min, max)) = span_of(times) {
            let (old_min, old_max) = self.span.unwrap_or((min, max));
            self.span = Some((min.min(old_min), max.max(old_max)));
        }
    }

    /// Indexes the rows that are not yet.
    fn catch_up(&mut self, pieces: &[(Batch, Arc<Keys>)]) -> Result<()> {
        let mut first = 0;
        for (batch, keys) in pieces {
            let end = first + batch.rows();
            if let Some(known) = self.index.len().checked_sub(first).filter(|_| self.index.len() < end) {
                self.index.insert(keys, known)?;
                let times = batch.timestamps().ok_or_else(|| Error::internal("rows were kept without their times"))?;
                self.times.extend_from_slice(&times[known..]);
            }
            first = end;
        }
        Ok(())
    }

    fn memory_bytes(&self) -> usize {
        self.index.memory_bytes() + self.times.capacity() * 8
    }
}

/// Rows out of many pieces, with only those pieces that have some.
#[derive(Default)]
struct Gather {
    batches: Vec<Batch>,
    /// Index into `batches`, and row of it.
    rows: Vec<(usize, usize)>,
}

impl Gather {
    /// Adds these rows, numbered over all pieces.
    fn add(&mut self, pieces: &[(Batch, Arc<Keys>)], rows: &[u32]) {
        let mut starts = Vec::with_capacity(pieces.len());
        pieces.iter().fold(0, |start, (batch, _)| {
            starts.push(start);
            start + batch.rows()
        });
        let mut places = vec![usize::MAX; pieces.len()];
        for &row in rows {
            let (piece, row) = locate(&starts, row as usize);
            if places[piece] == usize::MAX {
                places[piece] = self.batches.len();
                self.batches.push(pieces[piece].0.clone());
            }
            self.rows.push((places[piece], row));
        }
    }
}

fn span_of(times: &[i64]) -> Option<(i64, i64)> {
    Some((*times.iter().min()?, *times.iter().max()?))
}
