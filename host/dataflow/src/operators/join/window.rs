//! The window join: rows with equal keys in the same tumbling or sliding window are paired when the window ends.
//!
//! Rows wait in *panes*: the pieces, one slide long, into which sliding windows cut time (a tumbling window is one
//! pane). A row is stored once, in its pane, however many windows share it. When the watermark passes the end of a
//! window, a hash index is built over the side with fewer rows in it, and the rows of the other side probe it, pane by
//! pane. A pane is dropped with the last window that has it.
//!
//! Cost: a row is handled once per window it is in, a pair once per window it is in. A pair's timestamp is the last
//! millisecond of its window. A row is late when the last window that has it has fired.

use std::collections::BTreeMap;

use arrow::array::UInt32Array;
use arrow::buffer::ScalarBuffer;
use tidemill_core::ids::{InputIndex, Port};
use tidemill_core::operator::{Operator, Output, Progress};
use tidemill_core::plan::{NodeKind, Windows};
use tidemill_core::snapshot::{SnapshotKind, StateSnapshot};
use tidemill_core::state::{KeyedState, LogId};
use tidemill_core::time::Watermark;
use tidemill_core::{Batch, Error, Result};

use super::emit::take_columns;
use super::grid::{Grid, Split};
use super::index::{Bounds, Cursor, KeyIndex, Pairs};
use super::{Build, Common, STEPS_PER_CALL, Side, Sides, node_of};

/// Pieces of the log are probed together up to this many rows, so that small input batches do not make small output
/// batches.
const CHUNK_ROWS: usize = 16_384;

/// A `window_join` node.
pub fn build(build: Build<'_>) -> Result<Box<dyn Operator>> {
    let (size_ms, slide_ms, offset_ms) = match node_of(&build)?.kind {
        NodeKind::WindowJoin { windows: Windows::Tumbling { size_ms, offset_ms } } => (size_ms, size_ms, offset_ms),
        NodeKind::WindowJoin { windows: Windows::Sliding { size_ms, slide_ms, offset_ms } } => {
            (size_ms, slide_ms, offset_ms)
        }
        _ => return Err(Error::internal("a node that is no window join")),
    };
    let watermark = build.begin.watermark;
    let mut common = Common::new(build)?;
    let panes = Grid::new(slide_ms, offset_ms);
    let mut counts: Sides<BTreeMap<i64, usize>> = Sides::default();
    for side in Side::BOTH {
        let log = *common.logs.of(side);
        for namespace in common.state.log_namespaces(log) {
            let rows = common.state.rows(log, namespace)?.iter().map(|(batch, _)| batch.rows()).sum();
            counts.of_mut(side).insert(panes.cell_in(namespace), rows);
        }
    }
    let older_panes = i64::try_from(size_ms / slide_ms.max(1)).unwrap_or(i64::MAX).max(1) - 1;
    let pairs = Pairs::default();
    let over = panes.last_over(watermark);
    Ok(Box::new(WindowJoin { common, panes, older_panes, counts, over, fired: over, firing: None, pairs }))
}

/// Windows are numbered by their last pane. Those that would end after the end of time do not exist.
struct WindowJoin {
    common: Common,
    panes: Grid,
    /// Panes of a window beside its last one.
    older_panes: i64,
    /// Rows per pane that has some: a cache of what is in the logs.
    counts: Sides<BTreeMap<i64, usize>>,
    /// The last window that the watermark has passed.
    over: Option<i64>,
    /// The last window that has fired (with all before it). Below `over` only while firing is under way.
    fired: Option<i64>,
    firing: Option<Firing>,
    pairs: Pairs,
}

/// A window that fires.
struct Firing {
    window: i64,
    /// The side that probes.
    probing: Side,
    /// Over the other side, and the rows of that side.
    index: KeyIndex,
    indexed: Batch,
    /// Panes of the probing side that are still to probe, the next one last.
    panes: Vec<i64>,
    /// The first piece of that pane's log which no chunk has had yet.
    next_piece: usize,
    chunk: Option<Chunk>,
}

/// Pieces of a pane's log that probe together.
struct Chunk {
    pane: i64,
    /// The rows of all pieces.
    rows: Batch,
    /// The piece to probe, the number of its first row in `rows`, and where its probe stands.
    piece: usize,
    base: usize,
    cursor: Cursor,
    /// The piece after the last.
    end: usize,
}

impl Operator for WindowJoin {
    fn process(&mut self, input: InputIndex, batch: Batch, out: &mut dyn Output) -> Result<Progress> {
        let side = Side::of(input)?;
        let input = self.common.read(side, batch, out)?;
        let split = Split::new(&input.times, input.key_nulls.as_ref(), self.late_upto(), &self.panes);
        self.common.count_late(split.late);
        let log = *self.common.logs.of(side);
        // A pane says all that a window needs to know of time.
        let kept = input.kept.with_timestamps(None)?;
        for (pane, rows) in split.cells {
            let (kept, key) = (rows.of(&kept)?, rows.of(&input.key)?);
            let keys = self.common.codec().encode(key.rows(), key.columns())?;
            *self.counts.of_mut(side).entry(pane).or_default() += kept.rows();
            self.common.state.append(log, self.panes.namespace(pane), kept, keys)?;
        }
        self.common.state.commit()?;
        self.common.show_state(0)?;
        Ok(Progress::Done)
    }

    fn freeze(&mut self, kind: SnapshotKind) -> Result<bool> {
        self.common.state.freeze(kind).map(|()| true)
    }

    fn copy_frozen(&mut self) -> Result<Option<Box<dyn StateSnapshot>>> {
        self.common.state.copy_frozen()
    }

    fn on_watermark(&mut self, watermark: Watermark, out: &mut dyn Output) -> Result<Progress> {
        self.over = self.over.max(self.panes.last_over(watermark));
        self.fire(out)
    }

    fn resume(&mut self, out: &mut dyn Output) -> Result<Progress> {
        self.fire(out)
    }
}

impl WindowJoin {
    /// The last time at which a row is late.
    fn late_upto(&self) -> Option<i64> {
        match self.over? {
            i64::MAX => Some(i64::MAX),
            window => Some(self.panes.last_of(window.saturating_sub(self.older_panes))),
        }
    }

    /// Goes on until the windows that are over have fired, or until the output is full.
    fn fire(&mut self, out: &mut dyn Output) -> Result<Progress> {
        let mut steps = STEPS_PER_CALL;
        loop {
            if self.firing.is_none() {
                let Some(window) = self.next_window() else {
                    self.fired = self.over;
                    self.drop_panes()?;
                    return Ok(Progress::Done);
                };
                self.firing = Some(self.start(window, &mut steps)?);
            }
            if self.probe(&mut steps, out)? {
                self.fired = self.firing.take().map(|firing| firing.window);
                self.drop_panes()?;
            }
            if out.is_full() || steps == 0 {
                return Ok(Progress::More);
            }
        }
    }

    /// The first window that is over, has not fired and has rows on both sides.
    fn next_window(&self) -> Option<i64> {
        let over = self.over?;
        let mut window = match self.fired {
            Some(fired) => fired.checked_add(1)?,
            None => i64::MIN,
        };
        loop {
            let first = window.saturating_sub(self.older_panes);
            let left = *self.counts.left.range(first..).next()?.0;
            let right = *self.counts.right.range(first..).next()?.0;
            let both = left.max(right);
            if both <= window {
                return (window <= over).then_some(window);
            }
            window = both;
        }
    }

    /// The panes of a window in which a side has rows, and how many.
    fn panes_of(&self, window: i64, side: Side) -> impl DoubleEndedIterator<Item = (i64, usize)> {
        let first = window.saturating_sub(self.older_panes);
        self.counts.of(side).range(first..=window).map(|(&pane, &rows)| (pane, rows))
    }

    /// Indexes the smaller side of a window.
    fn start(&mut self, window: i64, steps: &mut usize) -> Result<Firing> {
        let rows = |side| self.panes_of(window, side).map(|(_, rows)| rows).sum::<usize>();
        let probing = if rows(Side::Left) < rows(Side::Right) { Side::Right } else { Side::Left };
        let panes = self.panes_of(window, probing).map(|(pane, _)| pane).rev().collect();
        let indexed: Vec<i64> = self.panes_of(window, probing.other()).map(|(pane, _)| pane).collect();
        let log = *self.common.logs.of(probing.other());
        let mut index = KeyIndex::default();
        let mut parts = Vec::new();
        for pane in indexed {
            for (batch, keys) in self.common.state.rows(log, self.panes.namespace(pane))? {
                index.insert(keys, 0).map_err(|e| e.at(&self.common.context.subtask, "join"))?;
                parts.push(batch.clone());
            }
        }
        *steps = steps.saturating_sub(index.len());
        let indexed = Batch::concat(&parts)?.ok_or_else(|| Error::internal("a window without rows fires"))?;
        self.common.show_state(index.memory_bytes() + indexed.bytes())?;
        Ok(Firing { window, probing, index, indexed, panes, next_piece: 0, chunk: None })
    }

    /// Emits at most one batch of the window that fires; whether nothing of it is left.
    fn probe(&mut self, steps: &mut usize, out: &mut dyn Output) -> Result<bool> {
        let batch_rows = self.common.batch_rows();
        let Some(firing) = &mut self.firing else { return Ok(true) };
        let log = *self.common.logs.of(firing.probing);
        let state = self.common.state.as_mut();
        let Some(mut chunk) = firing.take_chunk(state, log, &self.panes)? else { return Ok(true) };
        let pieces = state.rows(log, self.panes.namespace(chunk.pane))?;
        let mut bounds = Bounds { pairs: batch_rows, steps: *steps };
        while let Some((_, keys)) = pieces.get(chunk.piece).filter(|_| chunk.piece < chunk.end) {
            let (base, cursor) = (chunk.base as u32, &mut chunk.cursor);
            if !firing.index.probe(keys, base, cursor, &mut bounds, &mut self.pairs, |_, _| true) {
                break;
            }
            chunk.base += keys.len();
            chunk.piece += 1;
            chunk.cursor = Cursor::default();
        }
        *steps = bounds.steps;
        if self.pairs.len() > 0 {
            let batch = firing.pair(&self.common, &chunk.rows, &mut self.pairs, &self.panes)?;
            out.emit(Port(0), batch)?;
        }
        if chunk.piece < chunk.end {
            firing.chunk = Some(chunk);
        }
        Ok(false)
    }

    /// Drops the panes whose last window has fired.
    fn drop_panes(&mut self) -> Result<()> {
        let Some(fired) = self.fired else { return Ok(()) };
        for side in Side::BOTH {
            let counts = self.counts.of_mut(side);
            while let Some((&pane, _)) = counts.first_key_value()
                && pane.saturating_add(self.older_panes) <= fired
            {
                counts.remove(&pane);
                self.common.state.drop_rows(*self.common.logs.of(side), self.panes.namespace(pane))?;
            }
        }
        self.common.state.commit()?;
        self.common.show_state(0)?;
        Ok(())
    }
}

impl Firing {
    /// The chunk under way, or the next one; `None` at the end.
    fn take_chunk(&mut self, state: &mut dyn KeyedState, log: LogId, panes: &Grid) -> Result<Option<Chunk>> {
        if let Some(chunk) = self.chunk.take() {
            return Ok(Some(chunk));
        }
        while let Some(&pane) = self.panes.last() {
            let pieces = state.rows(log, panes.namespace(pane))?;
            let mut parts = Vec::new();
            let mut rows = 0;
            for (batch, _) in pieces.iter().skip(self.next_piece) {
                if rows > 0 && rows + batch.rows() > CHUNK_ROWS {
                    break;
                }
                rows += batch.rows();
                parts.push(batch.clone());
            }
            let piece = self.next_piece;
            self.next_piece += parts.len();
            if let Some(rows) = Batch::concat(&parts)? {
                let cursor = Cursor::default();
                return Ok(Some(Chunk { pane, rows, piece, base: 0, cursor, end: self.next_piece }));
            }
            self.panes.pop();
            self.next_piece = 0;
        }
        Ok(None)
    }

    /// Pairs of rows of a chunk and of indexed rows as a batch of the output.
    fn pair(&self, common: &Common, chunk: &Batch, pairs: &mut Pairs, panes: &Grid) -> Result<Batch> {
        let rows = pairs.len();
        let probe = take_columns(chunk, &UInt32Array::from(std::mem::take(&mut pairs.probe)))?;
        let found = take_columns(&self.indexed, &UInt32Array::from(std::mem::take(&mut pairs.found)))?;
        let times = ScalarBuffer::from(vec![panes.last_of(self.window); rows]);
        common.layout.output(&Sides::with(self.probing, probe, found), times)
    }
}
