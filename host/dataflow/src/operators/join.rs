//! Joins of two streams by key and event time: over windows, and over intervals.
//!
//! Both collect pairs of row numbers and then copy columns, a batch at a time. Both stop in the middle of whatever they
//! do once the output is full, so that a key with very many rows on both sides neither blocks the slot nor fills the
//! memory.
//!
//! What is *state* (survives, lives in [`KeyedState`] row logs): of each row its key, and those columns that the output
//! has. What is *cache* (is lost, and made anew from the state when it is missing): hash indexes and counts. The
//! watermark is neither; whoever restores an operator hands it the watermark that it had before any row.
//!
//! A row with a null in its key joins nothing, as in SQL: it is dropped. A row that is late is counted and dropped. A
//! row without event time can't be joined at all and fails the job; one whose time is absurd is set aside, as windows do.

mod emit;
mod grid;
mod index;
pub mod interval;
pub mod window;

#[cfg(test)]
mod tests;

use arrow::array::Array;
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::datatypes::DataType;
use tidemill_core::graph::{JobGraph, key_of};
use tidemill_core::ids::{InputIndex, NodeId, SubtaskId};
use tidemill_core::keys::KeyCodec;
use tidemill_core::memory::{Account, Owner};
use tidemill_core::operator::{Operator, Output};
use tidemill_core::plan::{Node, NodeKind, Origin};
use tidemill_core::state::{KeyedState, LogId};
use tidemill_core::types::{arrow_schema, arrow_type};
use tidemill_core::{Batch, Error, Result};

use super::Build;
use super::admit::admit;
use crate::record::RecordText;

/// Steps of work (rows that probe or are looked at) between two returns to the driver, where nothing is emitted: about
/// a millisecond.
const STEPS_PER_CALL: usize = 1 << 17;

/// A `window_join` or `interval_join` node.
pub fn build(build: Build<'_>) -> Result<Box<dyn Operator>> {
    match build.graph.node(build.id)?.kind {
        NodeKind::IntervalJoin { .. } => interval::build(build),
        _ => window::build(build),
    }
}

/// One of the two inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Left, Self::Right];

    fn of(input: InputIndex) -> Result<Self> {
        match input.0 {
            0 => Ok(Self::Left),
            1 => Ok(Self::Right),
            _ => Err(Error::internal(format!("{input} of a join"))),
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

/// A value for each side.
#[derive(Clone, Debug, Default)]
struct Sides<T> {
    left: T,
    right: T,
}

impl<T> Sides<T> {
    fn of(&self, side: Side) -> &T {
        match side {
            Side::Left => &self.left,
            Side::Right => &self.right,
        }
    }

    fn of_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Left => &mut self.left,
            Side::Right => &mut self.right,
        }
    }

    /// From a value for the one side and a value for the other.
    fn with(side: Side, own: T, other: T) -> Self {
        match side {
            Side::Left => Self { left: own, right: other },
            Side::Right => Self { left: other, right: own },
        }
    }
}

/// What is read of one input.
#[derive(Clone, Debug, Default)]
struct Columns {
    /// The key.
    key: Vec<usize>,
    /// What the output has of it: what is kept.
    kept: Vec<usize>,
    /// Types of the kept columns.
    types: Vec<DataType>,
}

/// What is kept of each side, and how a pair becomes a row of the output.
#[derive(Debug)]
struct Layout {
    columns: Sides<Columns>,
    /// Per output column: the side, and the place among its kept columns.
    output: Vec<(Side, usize)>,
}

impl Layout {
    fn new(graph: &JobGraph, node: &Node) -> Result<Self> {
        let mut layout = Self { columns: Sides::default(), output: Vec::new() };
        for (index, side) in Side::BOTH.into_iter().enumerate() {
            let key = node.inputs.get(index).and_then(|i| key_of(&i.exchange));
            let key = key.ok_or_else(|| Error::internal(format!("input {index} of '{}' has no key", node.uid)))?;
            layout.columns.of_mut(side).key = key.iter().map(|&c| c as usize).collect();
        }
        let fields = node.outputs.first().map(|o| o.fields.as_slice()).unwrap_or_default();
        for field in fields {
            let Origin::Input { input, column } = field.origin else {
                return Err(Error::internal(format!("column '{}' of a join has no input", field.field.name)));
            };
            let side = Side::of(InputIndex(input))?;
            let from = graph.input_fields(node, input as usize)?.get(column as usize);
            let from = from.ok_or_else(|| Error::internal(format!("column {column} of input {input}")))?;
            let columns = layout.columns.of_mut(side);
            let known = columns.kept.iter().position(|&kept| kept == column as usize);
            let place = known.unwrap_or_else(|| {
                columns.kept.push(column as usize);
                columns.types.push(arrow_type(&from.field.data_type));
                columns.kept.len() - 1
            });
            layout.output.push((side, place));
        }
        Ok(layout)
    }
}

/// What both joins have: who they are, what they read, where they keep rows.
struct Common {
    context: tidemill_core::operator::OperatorContext,
    layout: Layout,
    state: Box<dyn KeyedState>,
    logs: Sides<LogId>,
    /// For rows that are set aside.
    texts: Sides<RecordText>,
    /// Of what is derived from the state.
    caches: Account,
}

impl Common {
    fn new(build: Build<'_>) -> Result<Self> {
        let node = build.graph.node(build.id)?;
        let layout = Layout::new(build.graph, node)?;
        let mut state = build.open_state(build.graph.key_codec(node, 0)?)?;
        let left = state.log("left", layout.columns.left.types.clone())?;
        let right = state.log("right", layout.columns.right.types.clone())?;
        state.declared()?;
        let text = |index| -> Result<RecordText> {
            Ok(RecordText::new(arrow_schema(build.graph.input_fields(node, index)?.iter().map(|f| &f.field))))
        };
        let texts = Sides { left: text(0)?, right: text(1)? };
        let caches = Account::new(&build.context.memory, Owner::State);
        Ok(Self { context: build.context, layout, state, logs: Sides { left, right }, texts, caches })
    }

    /// Pairs to emit at once.
    fn batch_rows(&self) -> usize {
        self.context.batch_rows.clamp(1, 1 << 20)
    }

    fn codec(&self) -> &KeyCodec {
        self.state.codec()
    }

    /// The parts of an input batch: event times, the key's columns and which of them are null, the kept columns. Rows
    /// whose time is absurd are set aside.
    fn read(&self, side: Side, batch: Batch, out: &mut dyn Output) -> Result<Input> {
        let (batch, _, _) = admit(batch, self.texts.of(side), out)?;
        let Some(times) = batch.timestamps().cloned() else {
            return Err(no_event_time(&self.context.subtask, side));
        };
        let columns = self.layout.columns.of(side);
        let key = batch.project(&columns.key)?.with_timestamps(None)?;
        let nulls = key.columns().iter().filter(|c| c.null_count() > 0);
        let key_nulls = nulls.fold(None, |all, column| NullBuffer::union(all.as_ref(), column.nulls()));
        Ok(Input { times, key, key_nulls, kept: batch.project(&columns.kept)? })
    }

    fn count_late(&self, rows: u64) {
        if rows > 0 {
            self.context.metrics.records_late.add(rows);
        }
    }

    /// Counts what is kept. An error: the process has no room for the caches.
    fn show_state(&self, cache_bytes: usize) -> Result<()> {
        let metrics = &self.context.metrics;
        metrics.state_entries.set(self.state.entries());
        metrics.state_bytes.set((self.state.memory_bytes() + cache_bytes) as u64);
        self.caches.hold(cache_bytes)
    }
}

/// A batch that came in, taken apart.
struct Input {
    times: ScalarBuffer<i64>,
    key: Batch,
    key_nulls: Option<NullBuffer>,
    kept: Batch,
}

fn no_event_time(subtask: &SubtaskId, side: Side) -> Error {
    let side = match side {
        Side::Left => "left",
        Side::Right => "right",
    };
    Error::invalid(format!("the rows of the join's {side} input have no event time"))
        .mend("Give that input's source an event time column, or assign event time before the join.")
        .at(subtask, "join")
}

/// The rows of pieces that stand one after the other, by number.
fn locate(starts: &[usize], row: usize) -> (usize, usize) {
    let piece = starts.partition_point(|&start| start <= row).saturating_sub(1);
    (piece, row - starts.get(piece).copied().unwrap_or(0))
}

/// The node, for the operators' constructors.
fn node_of<'a>(build: &Build<'a>) -> Result<&'a Node> {
    let id: NodeId = build.id;
    build.graph.node(id)
}
