//! Aggregates over groups of rows, held as accumulators in columns of keyed state.
//!
//! Each aggregate of the plan becomes one or two *accumulator columns* of a state table (a count; a sum and the number
//! of its values; what a user's aggregator keeps). Four things are done with accumulators, always for many groups at a
//! time: rows are added in place ([`Aggregates::add`]), they are read into a [`Chunk`], chunks are combined pairwise,
//! and a chunk is finished into result columns. Windows are made of these four alone.
//!
//! Invariant: accumulators of the same rows are equal however the rows were cut into chunks. Only sums of floats depend
//! on the order of additions, by rounding; and a sum of integers overflows, which fails the job, when one of the partial
//! sums does, so not necessarily in every order.

mod cells;
mod chunk;
mod fold;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, UInt32Array, new_null_array};
use arrow::buffer::NullBuffer;
use arrow::compute;
use arrow::datatypes::DataType as ArrowType;
use arrow::error::ArrowError;
use tidemill_core::state::{KeyedState, Namespace, Slot, TableId, ValueColumn, ValueSpec, Values};
use tidemill_core::types::arrow_type;
use tidemill_core::user::{UserCode, UserFailure};
use tidemill_core::{Batch, Error, ErrorKind, Result};
use tidemill_plan::{Aggregate, AggregateFunction, OutputField};

pub(super) use self::cells::Cells;
pub(super) use self::chunk::{Chunk, NONE};

/// The aggregates of a node.
pub(super) struct Aggregates {
    columns: Vec<Column>,
    results: Vec<Outcome>,
    /// The columns of the input that user code is given.
    reads: Vec<usize>,
    user: Option<Box<dyn UserCode>>,
}

/// One accumulator column.
struct Column {
    spec: ValueSpec,
    feed: Feed,
    combine: Combine,
}

/// What a row adds to an accumulator.
#[derive(Clone, Copy, Debug)]
enum Feed {
    /// One.
    Row,
    /// One, if this column has a value.
    Present(usize),
    /// The value of this column.
    Value(usize),
    /// What the user's aggregator makes of it.
    User(u32),
}

/// How two accumulators become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Combine {
    /// Their sum.
    Add,
    /// The smaller.
    Min,
    /// The larger.
    Max,
    /// What this aggregator of the user makes of them.
    User(u32),
}

/// How an aggregate's result is made from accumulator columns.
enum Outcome {
    /// Nobody reads it.
    Unread,
    /// The value of a column, as this type.
    Value(usize, ArrowType),
    /// The quotient of a column and the next one.
    Mean(usize),
    /// What this aggregator of the user makes of a column.
    User(usize, u32, ArrowType),
}

/// The rows that user aggregators took, staged: nothing is stored yet.
pub(super) struct Staged {
    /// Accumulator column, and its new values per distinct slot.
    columns: Vec<(usize, ArrayRef)>,
    slots: Vec<Slot>,
}

impl Aggregates {
    /// From the plan. `read` tells whether anything reads the result of the aggregate with this index; others are not
    /// computed. `fields` are those of the input, `reads` what of it user code is given.
    pub(super) fn new(
        aggregates: &[Aggregate],
        read: impl Fn(u32) -> bool,
        fields: &[OutputField],
        reads: &[u32],
        user: Option<Box<dyn UserCode>>,
    ) -> Result<Self> {
        let reads = reads.iter().map(|&c| c as usize).collect();
        let mut made = Self { columns: Vec::new(), results: Vec::new(), reads, user };
        for (index, aggregate) in aggregates.iter().enumerate() {
            let index = index as u32;
            let outcome = if read(index) { made.declare(index, aggregate, fields)? } else { Outcome::Unread };
            made.results.push(outcome);
        }
        Ok(made)
    }

    /// The input ended.
    pub(super) fn close(&mut self) -> Result<()> {
        self.user.as_mut().map_or(Ok(()), |user| user.close())
    }

    fn declare(&mut self, index: u32, aggregate: &Aggregate, fields: &[OutputField]) -> Result<Outcome> {
        let input = |column: u32| {
            let field = fields.get(column as usize);
            field.map(|f| arrow_type(&f.field.data_type)).ok_or_else(|| misfit(&aggregate.name))
        };
        let first = self.columns.len();
        let mut column = |suffix: &str, data_type: ArrowType, feed, combine| {
            let name = format!("{index}.{}{suffix}", aggregate.name);
            self.columns.push(Column { spec: ValueSpec::new(name, data_type), feed, combine });
        };
        Ok(match &aggregate.function {
            AggregateFunction::Count => {
                column("", ArrowType::Int64, Feed::Row, Combine::Add);
                Outcome::Value(first, ArrowType::Int64)
            }
            AggregateFunction::Sum(c) => {
                let sum = sum_type(&input(*c)?).ok_or_else(|| misfit(&aggregate.name))?;
                column("", sum.clone(), Feed::Value(*c as usize), Combine::Add);
                Outcome::Value(first, sum)
            }
            AggregateFunction::Min(c) => {
                column("", input(*c)?, Feed::Value(*c as usize), Combine::Min);
                Outcome::Value(first, input(*c)?)
            }
            AggregateFunction::Max(c) => {
                column("", input(*c)?, Feed::Value(*c as usize), Combine::Max);
                Outcome::Value(first, input(*c)?)
            }
            AggregateFunction::Avg(c) => {
                let sum = sum_type(&input(*c)?).ok_or_else(|| misfit(&aggregate.name))?;
                column(".sum", sum, Feed::Value(*c as usize), Combine::Add);
                column(".count", ArrowType::Int64, Feed::Present(*c as usize), Combine::Add);
                Outcome::Mean(first)
            }
            AggregateFunction::User { accumulator, output } => {
                column("", arrow_type(accumulator), Feed::User(index), Combine::User(index));
                Outcome::User(first, index, arrow_type(output))
            }
        })
    }

    /// The accumulator columns, for declaring a table.
    pub(super) fn specs(&self) -> impl Iterator<Item = ValueSpec> + '_ {
        self.columns.iter().map(|c| c.spec.clone())
    }

    /// How many accumulator columns there are.
    pub(super) fn width(&self) -> usize {
        self.columns.len()
    }

    /// Whether any aggregate is the user's code.
    pub(super) fn runs_user_code(&self) -> bool {
        self.columns.iter().any(|c| matches!(c.feed, Feed::User(_)))
    }

    /// Adds rows to the built-in accumulators, which are the table's columns from `base` on: `slots` has one per row.
    /// `rows`: which rows of the batch these are; none = all.
    pub(super) fn add(
        &self,
        values: &mut Values,
        base: usize,
        batch: &Batch,
        rows: Option<&[u32]>,
        slots: &[Slot],
    ) -> Result<()> {
        for (i, column) in self.columns.iter().enumerate() {
            let target = values.columns.get_mut(base + i).zip(values.present.get_mut(base + i));
            let (to, present) = target.ok_or_else(|| Error::internal("a table without its accumulators"))?;
            let overflowed = match column.feed {
                Feed::User(_) => false,
                Feed::Row => fold::count(to, present, None, rows, slots)?,
                Feed::Present(c) => fold::count(to, present, batch.column(c)?.nulls(), rows, slots)?,
                Feed::Value(c) => fold::values(to, present, batch.column(c)?, rows, slots, column.combine)?,
            };
            if overflowed {
                return Err(overflow(&column.spec.name));
            }
        }
        Ok(())
    }

    /// Calls the user's aggregators with rows, whose accumulators are at `slots` (one per row), and stores nothing.
    /// `fresh`: as if no group had an accumulator yet.
    pub(super) fn stage(
        &mut self,
        state: &mut dyn KeyedState,
        at: At,
        batch: &Batch,
        slots: &[Slot],
        fresh: bool,
    ) -> Result<Staged, StageFailure> {
        let input = batch.project(&self.reads)?;
        let (group_of_row, groups) = group(slots);
        let mut staged = Vec::new();
        for (i, column) in self.columns.iter().enumerate() {
            let Feed::User(aggregator) = column.feed else { continue };
            let before = match fresh {
                true => new_null_array(&column.spec.data_type, groups.len()),
                false => state.read(at.table, at.namespace, at.base + i, &groups)?,
            };
            let user = self.user.as_mut().ok_or_else(no_user_code)?;
            let after = user.accumulate(aggregator, &group_of_row, &input, &before).map_err(StageFailure::User)?;
            expect(&after, groups.len(), &column.spec.data_type)?;
            staged.push((i, after));
        }
        Ok(Staged { columns: staged, slots: groups })
    }

    /// Stores what was staged.
    pub(super) fn store(&self, state: &mut dyn KeyedState, at: At, staged: &Staged) -> Result<()> {
        for (i, values) in &staged.columns {
            state.write(at.table, at.namespace, at.base + i, &staged.slots, values)?;
        }
        Ok(())
    }

    /// The accumulators at these slots ([`tidemill_core::state::NO_SLOT`]: none).
    pub(super) fn gather(&self, state: &mut dyn KeyedState, at: At, slots: &[Slot]) -> Result<Chunk> {
        let mut columns = Vec::with_capacity(self.columns.len());
        for (i, column) in self.columns.iter().enumerate() {
            if let Combine::User(_) = column.combine {
                columns.push(Cells::Array(state.read(at.table, at.namespace, at.base + i, slots)?));
                continue;
            }
            let values = state.values(at.table, at.namespace)?;
            let source = values.columns.get(at.base + i).zip(values.present.get(at.base + i));
            let (from, present) = source.ok_or_else(|| Error::internal("a table without its accumulators"))?;
            columns.push(Cells::gather(from, present, slots)?);
        }
        Ok(Chunk { columns })
    }

    /// Overwrites the accumulators at these slots, none of which appears twice.
    pub(super) fn put(&self, state: &mut dyn KeyedState, at: At, slots: &[Slot], chunk: &Chunk) -> Result<()> {
        for (i, cells) in chunk.columns.iter().enumerate() {
            if let Cells::Array(array) = cells {
                state.write(at.table, at.namespace, at.base + i, slots, array)?;
                continue;
            }
            let values = state.values(at.table, at.namespace)?;
            let target = values.columns.get_mut(at.base + i).zip(values.present.get_mut(at.base + i));
            let (to, present) = target.ok_or_else(|| Error::internal("a table without its accumulators"))?;
            cells.scatter(to, present, slots)?;
        }
        Ok(())
    }

    /// Calls the user's aggregators with rows: each is added to the accumulator, in the chunk, of its group.
    pub(super) fn accumulate(
        &mut self,
        batch: &Batch,
        group_of_row: &[u32],
        chunk: &mut Chunk,
    ) -> Result<(), StageFailure> {
        let input = batch.project(&self.reads)?;
        for (column, cells) in self.columns.iter().zip(&mut chunk.columns) {
            let (Feed::User(aggregator), Cells::Array(array)) = (column.feed, cells) else { continue };
            let user = self.user.as_mut().ok_or_else(no_user_code)?;
            let after = user.accumulate(aggregator, group_of_row, &input, array).map_err(StageFailure::User)?;
            expect(&after, array.len(), &column.spec.data_type)?;
            *array = after;
        }
        Ok(())
    }

    /// As `put`, only the accumulators of user aggregators.
    pub(super) fn put_user(&self, state: &mut dyn KeyedState, at: At, slots: &[Slot], chunk: &Chunk) -> Result<()> {
        for (i, cells) in chunk.columns.iter().enumerate() {
            if let Cells::Array(array) = cells {
                state.write(at.table, at.namespace, at.base + i, slots, array)?;
            }
        }
        Ok(())
    }

    /// Combines accumulators pairwise; where one has none, it is the other.
    pub(super) fn combine(&mut self, left: Chunk, right: &Chunk) -> Result<Chunk> {
        self.try_combine(left, right).map_err(|failure| match failure {
            StageFailure::Engine(error) => error,
            StageFailure::User(failure) => failed("merge", failure),
        })
    }

    /// As `combine`, where a failure of the user's code can be blamed on rows.
    pub(super) fn try_combine(&mut self, left: Chunk, right: &Chunk) -> Result<Chunk, StageFailure> {
        let mut columns = Vec::with_capacity(self.columns.len());
        for ((column, left), right) in self.columns.iter().zip(left.columns).zip(&right.columns) {
            columns.push(match (left, right, column.combine) {
                (Cells::Array(left), Cells::Array(right), Combine::User(aggregator)) => {
                    let user = self.user.as_mut().ok_or_else(no_user_code)?;
                    Cells::Array(merge_arrays(user.as_mut(), aggregator, &column.spec, &left, right)?)
                }
                (mut left, right, combine) => {
                    if left.absorb(right, combine)? {
                        return Err(overflow(&column.spec.name).into());
                    }
                    left
                }
            });
        }
        Ok(Chunk { columns })
    }

    /// The results: per aggregate of the plan, a column (none for one that nobody reads).
    pub(super) fn finish(&mut self, chunk: &Chunk) -> Result<Vec<Option<ArrayRef>>> {
        let cells = |i: &usize| chunk.columns.get(*i).ok_or_else(|| Error::internal("a missing accumulator"));
        let mut results = Vec::with_capacity(self.results.len());
        for outcome in &self.results {
            results.push(match outcome {
                Outcome::Unread => None,
                Outcome::Value(i, data_type) => Some(cells(i)?.to_array(data_type)?),
                Outcome::Mean(i) => Some(mean(cells(i)?, cells(&(i + 1))?)?),
                Outcome::User(i, aggregator, data_type) => {
                    let Cells::Array(accumulators) = cells(i)? else { return Err(no_user_code()) };
                    let user = self.user.as_mut().ok_or_else(no_user_code)?;
                    let finished = user.finish(*aggregator, accumulators).map_err(|f| failed("finish", f))?;
                    expect(&finished, accumulators.len(), data_type)?;
                    Some(finished)
                }
            });
        }
        Ok(results)
    }
}

/// Where accumulators are: a namespace of a table, and its first accumulator column.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) table: TableId,
    pub(super) namespace: Namespace,
    pub(super) base: usize,
}

/// Why rows could not be staged.
pub(super) enum StageFailure {
    /// The user's code failed.
    User(UserFailure),
    /// The engine did.
    Engine(Error),
}

impl From<ArrowError> for StageFailure {
    fn from(error: ArrowError) -> Self {
        Self::Engine(error.into())
    }
}

impl From<Error> for StageFailure {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

/// An error of user code for which no row can be made responsible.
pub(super) fn failed(call: &str, failure: UserFailure) -> Error {
    let reason = match failure {
        UserFailure::Retry(reason) | UserFailure::Fatal(reason) | UserFailure::Trap(reason) => reason,
        UserFailure::Engine(error) => return error,
        UserFailure::Rows(rows) => rows.into_iter().next().map_or_else(String::new, |(_, reason)| reason),
    };
    Error::new(ErrorKind::UserCode, format!("the user's aggregator failed in '{call}': {reason}"))
        .mend("Correct the aggregator; accumulators can't be set aside as rows can.")
}

/// Numbers the distinct slots in order of appearance: the number of each row's, and the slots.
pub(super) fn group(slots: &[Slot]) -> (Vec<u32>, Vec<Slot>) {
    let mut numbers = hashbrown::HashMap::with_capacity_and_hasher(slots.len(), SlotHash);
    let mut distinct = Vec::new();
    let of_row = slots.iter().map(|&slot| {
        *numbers.entry(slot).or_insert_with(|| {
            distinct.push(slot);
            distinct.len() as u32 - 1
        })
    });
    (of_row.collect(), distinct)
}

/// Slots are dense, so a multiplication spreads them well enough.
#[derive(Clone, Copy)]
struct SlotHash;

impl std::hash::BuildHasher for SlotHash {
    type Hasher = SlotHasher;

    fn build_hasher(&self) -> SlotHasher {
        SlotHasher(0)
    }
}

struct SlotHasher(u64);

impl std::hash::Hasher for SlotHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u32(b.into()));
    }

    fn write_u32(&mut self, slot: u32) {
        self.0 = (self.0 ^ u64::from(slot)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
    }
}

fn merge_arrays(
    user: &mut dyn UserCode,
    aggregator: u32,
    spec: &ValueSpec,
    left: &ArrayRef,
    right: &ArrayRef,
) -> Result<ArrayRef, StageFailure> {
    let len = left.len();
    if right.null_count() == len {
        return Ok(left.clone());
    }
    if left.null_count() == len {
        return Ok(right.clone());
    }
    let call = |user: &mut dyn UserCode, left: &ArrayRef, right: &ArrayRef| {
        let merged = user.merge(aggregator, left, right).map_err(StageFailure::User)?;
        expect(&merged, left.len(), &spec.data_type)?;
        Ok::<_, StageFailure>(merged)
    };
    if left.null_count() == 0 && right.null_count() == 0 {
        return call(user, left, right);
    }
    let both: UInt32Array = (0..len).filter(|&i| left.is_valid(i) && right.is_valid(i)).map(|i| i as u32).collect();
    if both.is_empty() {
        let from: Vec<_> = (0..len).map(|i| (usize::from(left.is_null(i)), i)).collect();
        return Ok(compute::interleave(&[left, right], &from)?);
    }
    let merged = call(user, &compute::take(left, &both, None)?, &compute::take(right, &both, None)?)?;
    let mut next = 0;
    let from: Vec<_> = (0..len)
        .map(|i| match (left.is_valid(i), right.is_valid(i)) {
            (true, true) => {
                next += 1;
                (2, next - 1)
            }
            (true, false) => (0, i),
            _ => (1, i),
        })
        .collect();
    Ok(compute::interleave(&[left, right, &merged], &from)?)
}

fn mean(sums: &Cells, counts: &Cells) -> Result<ArrayRef> {
    let Cells::Int { values: counts, .. } = counts else { return Err(Error::internal("a mean without its count")) };
    let divide = |sum: f64, count: i64| if count == 0 { 0.0 } else { sum / count as f64 };
    let means: Vec<f64> = match sums {
        Cells::Int { values, .. } => values.iter().zip(counts).map(|(&s, &c)| divide(s as f64, c)).collect(),
        Cells::UInt { values, .. } => values.iter().zip(counts).map(|(&s, &c)| divide(s as f64, c)).collect(),
        Cells::Float { values, .. } => values.iter().zip(counts).map(|(&s, &c)| divide(s, c)).collect(),
        Cells::Array(_) => return Err(Error::internal("a mean of encoded values")),
    };
    let nulls = counts.contains(&0).then(|| counts.iter().map(|&c| c != 0).collect::<NullBuffer>());
    Ok(Arc::new(Float64Array::new(means.into(), nulls)))
}

fn expect(array: &ArrayRef, len: usize, data_type: &ArrowType) -> Result<()> {
    if array.len() == len && array.data_type() == data_type {
        return Ok(());
    }
    let message =
        format!("an aggregator answered {} values of type {} for {len} of {data_type}", array.len(), array.data_type());
    Err(Error::internal(message))
}

fn sum_type(of: &ArrowType) -> Option<ArrowType> {
    use ArrowType::*;
    match of {
        Int8 | Int16 | Int32 | Int64 => Some(Int64),
        UInt8 | UInt16 | UInt32 | UInt64 => Some(UInt64),
        Float32 | Float64 => Some(Float64),
        _ => None,
    }
}

fn misfit(aggregate: &str) -> Error {
    Error::internal(format!("aggregate '{aggregate}' does not fit its column, although the plan was checked"))
}

fn no_user_code() -> Error {
    Error::internal("a user's aggregator without the user's code")
}

fn overflow(column: &str) -> Error {
    let name = column.split_once('.').map_or(column, |(_, name)| name);
    Error::invalid(format!("the aggregate '{name}' overflowed 64 bits"))
        .mend("Convert the column to a float before summing it, or use smaller windows.")
}

/// A column of the wrong kind for what is to be done with it.
fn wrong_kind(column: &ValueColumn) -> Error {
    let kind = match column {
        ValueColumn::Int(_) => "int",
        ValueColumn::UInt(_) => "uint",
        ValueColumn::Float(_) => "float",
        ValueColumn::Encoded(_) => "encoded",
    };
    Error::internal(format!("an accumulator held as {kind}"))
}
