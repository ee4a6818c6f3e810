//! Event-time windows by key: tumbling, sliding and session windows with built-in and user aggregates.
//!
//! What all kinds share is here: which rows are let in, late rows, and how results become rows. Tumbling and sliding
//! windows are made of panes (`panes`); session windows grow and merge (`sessions`).
//!
//! A window fires when the watermark reaches its last millisecond (a session: its end, see `sessions`). It is kept for the allowed lateness; a row that comes
//! within it changes the result, and the window fires again at once, for the row's key, with the full new result (once
//! per key, window and batch). A row that is later than that for all its windows goes to the late port, or is counted
//! and dropped.
//!
//! Invariant: every timestamp that is let in is within ±[`TIME_LIMIT_MS`] (see [`super::admit`]).

mod merged;
mod panes;
mod sessions;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{ArrayRef, TimestampMillisecondArray, UInt32Array};
use arrow::buffer::ScalarBuffer;
use tidemill_core::graph::key_of;
use tidemill_core::ids::Port;
use tidemill_core::keys::{KeyCodec, KeyData, Keys};
use tidemill_core::memory::{Account, Owner};
use tidemill_core::operator::{Operator, OperatorContext, Output};
use tidemill_core::state::KeyedState;
use tidemill_core::types::{arrow_schema, arrow_type};
use tidemill_core::{Batch, Error, Result};
use tidemill_plan::{NodeKind, Origin, OutputField, Windows};

use super::Build;
pub use super::admit::TIME_LIMIT_MS;
use super::admit::{admit, bounds};
use super::aggregate::Aggregates;
use crate::record::RecordText;

/// Makes a window operator.
pub fn build(build: Build<'_>) -> Result<Box<dyn Operator>> {
    let (windows, common, aggregates, state) = parts(build)?;
    Ok(match windows {
        Windows::Tumbling { size_ms, offset_ms } => {
            Box::new(panes::PaneWindows::new(common, aggregates, state, size_ms, size_ms, offset_ms)?)
        }
        Windows::Sliding { size_ms, slide_ms, offset_ms } => {
            Box::new(panes::PaneWindows::new(common, aggregates, state, size_ms, slide_ms, offset_ms)?)
        }
        Windows::Session { gap_ms } => Box::new(sessions::SessionWindows::new(common, aggregates, state, gap_ms)?),
    })
}

/// What a window operator is made of.
fn parts(build: Build<'_>) -> Result<(Windows, Common, Aggregates, Box<dyn KeyedState>)> {
    let node = build.graph.node(build.id)?;
    let NodeKind::Window { windows, allowed_lateness_ms, late_port, aggregates } = &node.kind else {
        return Err(Error::internal(format!("'{}' is not a window", node.name)));
    };
    let fields = build.graph.input_fields(node, 0)?;
    let input = node.inputs.first().ok_or_else(|| Error::internal("a window without input"))?;
    let key = key_of(&input.exchange).unwrap_or_default();
    let key: Vec<usize> = key.iter().map(|&c| c as usize).collect();
    let main = node.outputs.first().map_or(&[][..], |o| &o.fields);
    let late = late_port.map(|p| (Port(p), node.outputs.get(p as usize).map_or(&[][..], |o| &o.fields)));
    let common = Common {
        result: main.iter().map(|f| ResultColumn::new(f.origin, &key)).collect::<Result<_>>()?,
        late: late.map(|(port, fields)| (port, fields.iter().filter_map(|f| input_column(f.origin)).collect())),
        text: RecordText::new(arrow_schema(fields.iter().map(|f| &f.field))),
        fields: fields.to_vec(),
        lateness_ms: i64::try_from(*allowed_lateness_ms).unwrap_or(i64::MAX),
        watermark: build.begin.watermark.0,
        caches: Account::new(&build.context.memory, Owner::State),
        context: build.context.clone(),
        key,
    };
    let state = build.open_state(common.codec()?)?;
    let read = |index| main.iter().any(|f| f.origin == Origin::Aggregate(index));
    let aggregates = Aggregates::new(aggregates, read, fields, &input.reads, build.user)?;
    Ok((*windows, common, aggregates, state))
}

/// What all kinds of windows share.
struct Common {
    context: OperatorContext,
    /// The key's columns in the input.
    key: Vec<usize>,
    result: Vec<ResultColumn>,
    /// The late port and the columns of the input that it has.
    late: Option<(Port, Vec<usize>)>,
    /// Of the input.
    fields: Vec<OutputField>,
    text: RecordText,
    lateness_ms: i64,
    watermark: i64,
    /// Of what is derived from the state.
    caches: Account,
}

/// Where a column of the result comes from.
#[derive(Clone, Copy, Debug)]
enum ResultColumn {
    /// A column of the key, by its position in the key.
    Key(usize),
    Start,
    End,
    Aggregate(usize),
}

impl ResultColumn {
    fn new(origin: Origin, key: &[usize]) -> Result<Self> {
        Ok(match origin {
            Origin::WindowStart => Self::Start,
            Origin::WindowEnd => Self::End,
            Origin::Aggregate(index) => Self::Aggregate(index as usize),
            Origin::Input { column, .. } => {
                let position = key.iter().position(|&k| k == column as usize);
                Self::Key(position.ok_or_else(|| Error::internal("a window's result with a column beside the key"))?)
            }
            Origin::New => return Err(Error::internal("a new column in a window's result")),
        })
    }
}

/// The windows of some result rows.
enum Spans<'a> {
    /// One for all.
    One { start: i64, end: i64 },
    /// Sessions, one each.
    Each { starts: &'a [i64], ends: &'a [i64] },
}

impl Common {
    /// A codec for the key; state and scratch have one each.
    fn codec(&self) -> Result<KeyCodec> {
        let fields: Vec<_> = self.key.iter().filter_map(|&k| self.fields.get(k)).map(|f| &f.field).collect();
        let types: Vec<_> = fields.iter().map(|f| arrow_type(&f.data_type)).collect();
        KeyCodec::new(&types, fields.iter().any(|f| f.nullable))
    }

    /// The keys of a batch.
    fn keys(&self, state: &dyn KeyedState, batch: &Batch) -> Result<Keys> {
        let columns = self.key.iter().map(|&k| batch.column(k).cloned()).collect::<Result<Vec<_>>>()?;
        state.codec().encode(batch.rows(), &columns)
    }

    /// The batch with its smallest and largest timestamp, without rows whose timestamp is absurd. None: no row is left.
    fn admit(&self, batch: Batch, out: &mut dyn Output) -> Result<Option<(Batch, i64, i64)>> {
        if batch.is_empty() {
            return Ok(None);
        }
        if batch.timestamps().is_none() {
            return Err(Error::invalid("its rows have no event time, which windows are made of")
                .mend("Assign event time before the window, with `.watermark(...)` on the source or the stream.")
                .at(&self.context.subtask, "process"));
        }
        let (batch, low, high) = admit(batch, &self.text, out)?;
        Ok((!batch.is_empty()).then_some((batch, low, high)))
    }

    /// Counts what is kept. An error: the process has no room for the caches.
    fn show_state(&self, state: &dyn KeyedState, cache_bytes: usize) -> Result<()> {
        let metrics = &self.context.metrics;
        metrics.state_entries.set(state.entries());
        metrics.state_bytes.set((state.memory_bytes() + cache_bytes) as u64);
        self.caches.hold(cache_bytes)
    }

    /// Whether nothing is kept any more of a window with this end.
    fn is_expired(&self, window_end: i64) -> bool {
        window_end - 1 + self.lateness_ms <= self.watermark
    }

    /// Whether a window with this end has fired.
    fn is_fired(&self, window_end: i64) -> bool {
        window_end - 1 <= self.watermark
    }

    /// Rows that are too late for all their windows.
    fn emit_late(&self, batch: &Batch, mut rows: Vec<u32>, out: &mut dyn Output) -> Result<()> {
        self.context.metrics.records_late.add(rows.len() as u64);
        let Some((port, columns)) = self.late.as_ref().filter(|_| !rows.is_empty()) else { return Ok(()) };
        rows.sort_unstable();
        out.emit(*port, batch.project(columns)?.take(&UInt32Array::from(rows))?)
    }

    /// Sets a row aside that can't be processed.
    fn set_aside(&self, batch: &Batch, row: usize, reason: String, out: &mut dyn Output) -> Result<()> {
        out.dead_letter(self.text.letter(batch, row, reason))
    }

    /// Emits results: rows with this key, these windows and these results of the aggregates.
    fn emit_result(
        &self,
        rows: usize,
        key: &[ArrayRef],
        spans: &Spans<'_>,
        results: &[Option<ArrayRef>],
        out: &mut dyn Output,
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        let missing = || Error::internal("a column is missing in a window's result");
        let columns = self.result.iter().map(|column| match column {
            ResultColumn::Key(position) => key.get(*position).cloned().ok_or_else(missing),
            ResultColumn::Start => Ok(spans.starts(rows)),
            ResultColumn::End => Ok(spans.ends(rows)),
            ResultColumn::Aggregate(index) => results.get(*index).cloned().flatten().ok_or_else(missing),
        });
        // What the watermark has to reach for them to fire, so they are not late for what follows.
        let timestamps = match spans {
            Spans::One { end, .. } => vec![end - 1; rows].into(),
            Spans::Each { ends, .. } => ScalarBuffer::from(ends.to_vec()),
        };
        out.emit(Port(0), Batch::new(rows, columns.collect::<Result<_>>()?, Some(timestamps))?)
    }
}

impl Spans<'_> {
    fn starts(&self, rows: usize) -> ArrayRef {
        times(match self {
            Self::One { start, .. } => vec![*start; rows],
            Self::Each { starts, .. } => starts.to_vec(),
        })
    }

    fn ends(&self, rows: usize) -> ArrayRef {
        times(match self {
            Self::One { end, .. } => vec![*end; rows],
            Self::Each { ends, .. } => ends.to_vec(),
        })
    }
}

/// Key columns back from encoded keys.
fn key_columns(codec: &KeyCodec, keys: &Keys) -> Result<Vec<ArrayRef>> {
    match &keys.data {
        KeyData::Fixed(values) => codec.decode_fixed(values),
        KeyData::Rows(rows) => codec.decode_rows(rows.iter()),
    }
}

fn times(values: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMillisecondArray::new(values.into(), None))
}

fn input_column(origin: Origin) -> Option<usize> {
    match origin {
        Origin::Input { column, .. } => Some(column as usize),
        _ => None,
    }
}
