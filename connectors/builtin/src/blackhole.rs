//! The sink `blackhole`: takes rows, counts them, and keeps nothing; for benchmarks and for trying a job out.
//!
//! With [`Blackhole::with_checksum`] it also sums columns, so that a benchmark can tell that what it measured was right.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, AsArray, PrimitiveArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit,
    TimestampMillisecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use tidemill_connector_kit::{Connector, NothingToCommit, OptionSpec, Setup};
use tidemill_core::Batch;
use tidemill_core::connector::{Committable, Guarantee, Sink, SinkCommitter, SinkContext, SinkWriter};
use tidemill_core::error::{Error, Result};
use tidemill_core::ids::Epoch;

/// The connector.
#[derive(Clone, Copy, Debug)]
pub struct Blackhole;

impl Blackhole {
    /// A sink that adds up these terms over all rows of all its writers, and what it added up so far.
    pub fn with_checksum(terms: Vec<Term>) -> (Arc<dyn Sink>, Arc<Totals>) {
        let totals = Arc::new(Totals::default());
        (Arc::new(BlackholeSink { terms, totals: totals.clone() }), totals)
    }
}

impl Connector for Blackhole {
    fn name(&self) -> &'static str {
        "blackhole"
    }

    fn doc(&self) -> &'static str {
        "Takes rows and keeps none of them."
    }

    fn sink_options(&self) -> Option<Vec<OptionSpec>> {
        Some(Vec::new())
    }

    fn sink(&self, _setup: Setup) -> Result<Arc<dyn Sink>> {
        Ok(Self::with_checksum(Vec::new()).0)
    }
}

/// A part of a checksum: one number per row, from a numeric column. Nulls count 0; of floating-point numbers the floor
/// is taken. All sums wrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// The column's value.
    Sum(String),
    /// The square of the column's value.
    Square(String),
}

impl Term {
    /// The column's value.
    pub fn sum(column: impl Into<String>) -> Self {
        Self::Sum(column.into())
    }

    /// The square of the column's value.
    pub fn square(column: impl Into<String>) -> Self {
        Self::Square(column.into())
    }

    fn column(&self) -> &str {
        match self {
            Self::Sum(column) | Self::Square(column) => column,
        }
    }
}

/// What all writers of one blackhole took.
#[derive(Debug, Default)]
pub struct Totals {
    records: AtomicU64,
    checksum: AtomicU64,
}

impl Totals {
    /// Rows up to now.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// The wrapping sum of all terms up to now.
    pub fn checksum(&self) -> u64 {
        self.checksum.load(Ordering::Relaxed)
    }
}

struct BlackholeSink {
    terms: Vec<Term>,
    totals: Arc<Totals>,
}

impl Sink for BlackholeSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn writer(&self, context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        let mut terms = Vec::with_capacity(self.terms.len());
        for term in &self.terms {
            let (index, field) = context.schema.column_with_name(term.column()).ok_or_else(|| {
                let names = context.schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
                Error::invalid(format!("blackhole: there is no column '{}' to add up", term.column()))
                    .mend(format!("the columns are: {names}"))
            })?;
            let add = adder(field.data_type(), matches!(term, Term::Square(_))).ok_or_else(|| {
                let (name, data_type) = (field.name(), field.data_type());
                Error::invalid(format!("blackhole: column '{name}' is {data_type}, which can't be added up"))
                    .mend("name a numeric column")
            })?;
            terms.push((index, add));
        }
        Ok(Box::new(Writer { terms, totals: self.totals.clone() }))
    }

    fn committer(&self) -> Result<Box<dyn SinkCommitter>> {
        Ok(Box::new(NothingToCommit))
    }
}

type Adder = fn(&dyn Array) -> u64;

struct Writer {
    terms: Vec<(usize, Adder)>,
    totals: Arc<Totals>,
}

impl SinkWriter for Writer {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        let mut checksum = 0_u64;
        for (index, add) in &self.terms {
            checksum = checksum.wrapping_add(add(batch.column(*index)?));
        }
        self.totals.checksum.fetch_add(checksum, Ordering::Relaxed);
        self.totals.records.fetch_add(batch.rows() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<Committable>> {
        Ok(Vec::new())
    }
}

/// A number as the checksum takes it.
trait Summand: Copy {
    fn summand(self) -> u64;
}

macro_rules! summands {
    ($($integer:ty),*) => { $(impl Summand for $integer {
        #[inline(always)]
        fn summand(self) -> u64 {
            self as u64
        }
    })* };
}

summands!(i8, i16, i32, i64, u8, u16, u32, u64);

impl Summand for f32 {
    #[inline(always)]
    fn summand(self) -> u64 {
        f64::from(self).summand()
    }
}

impl Summand for f64 {
    #[inline(always)]
    fn summand(self) -> u64 {
        // Cut towards zero and step down where that was upwards: `floor` is a library call on the plainest CPUs.
        let cut = self as i64;
        (cut - i64::from(cut as Self > self)) as u64
    }
}

fn adder(data_type: &DataType, square: bool) -> Option<Adder> {
    let pick = |sum: Adder, squares: Adder| Some(if square { squares } else { sum });
    macro_rules! of {
        ($type:ty) => {
            pick(total::<$type, false>, total::<$type, true>)
        };
    }
    match data_type {
        DataType::Int8 => of!(Int8Type),
        DataType::Int16 => of!(Int16Type),
        DataType::Int32 => of!(Int32Type),
        DataType::Int64 => of!(Int64Type),
        DataType::UInt8 => of!(UInt8Type),
        DataType::UInt16 => of!(UInt16Type),
        DataType::UInt32 => of!(UInt32Type),
        DataType::UInt64 => of!(UInt64Type),
        DataType::Float32 => of!(Float32Type),
        DataType::Float64 => of!(Float64Type),
        DataType::Timestamp(TimeUnit::Millisecond, _) => of!(TimestampMillisecondType),
        _ => None,
    }
}

fn total<T: ArrowPrimitiveType, const SQUARE: bool>(column: &dyn Array) -> u64
where
    T::Native: Summand,
{
    let number = |value: T::Native| {
        let n = value.summand();
        if SQUARE { n.wrapping_mul(n) } else { n }
    };
    let Some(column) = column.as_primitive_opt::<T>() else { return 0 };
    if column.null_count() == 0 {
        return column.values().iter().fold(0, |sum, &value| sum.wrapping_add(number(value)));
    }
    PrimitiveArray::iter(column).flatten().fold(0, |sum, value| sum.wrapping_add(number(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Float64Array, Int64Array, StringViewArray};
    use arrow::datatypes::{Field, Schema};

    fn context() -> SinkContext {
        let schema = Schema::new(vec![
            Field::new("n", DataType::Int64, true),
            Field::new("euro", DataType::Float64, false),
            Field::new("name", DataType::Utf8View, false),
        ]);
        tidemill_connector_kit::conformance::sink_context(Arc::new(schema))
    }

    #[test]
    fn terms_add_up_over_writers() {
        let (sink, totals) = Blackhole::with_checksum(vec![Term::square("n"), Term::sum("euro")]);
        for _ in 0..2 {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(Int64Array::from(vec![Some(-3), None, Some(4)])),
                Arc::new(Float64Array::from(vec![1.9, -0.5, 2.0])),
                Arc::new(StringViewArray::from(vec!["a", "b", "c"])),
            ];
            sink.writer(context()).unwrap().write(&Batch::new(3, columns, None).unwrap()).unwrap();
        }
        assert_eq!((totals.records(), totals.checksum()), (6, 2 * (9 + 16 + 1 - 1 + 2)));
    }

    #[test]
    fn what_can_not_be_added_up_is_named() {
        for (column, expected) in [("m", "the columns are: n, euro, name"), ("name", "name a numeric column")] {
            let (sink, _) = Blackhole::with_checksum(vec![Term::sum(column)]);
            let error = sink.writer(context()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(&format!("'{column}'")) && error.contains(expected), "{error}");
        }
    }
}
