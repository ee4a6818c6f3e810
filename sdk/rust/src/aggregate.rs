//! What is computed of a window: built-in aggregates, which run natively in the host, and aggregators of the user's.

use tidemill_plan::{AggregateFunction, DataType};

use crate::abi::{BatchView, ColumnView, Failure, HostCalls, NodeRuntime, number_at};
use crate::flow::Graph;
use crate::row::{Col, EmitRow, One, Row};
use crate::stage::{Columns, Reads};
use crate::stream::find_columns;
use crate::time::{Date, Timestamp};
use crate::value::{Cursor, Owned, Value, Writer};

/// An aggregator of the user's, for windows. It runs in the sandbox, on batches; its accumulators are kept by the host.
///
/// ```
/// use tidemill::prelude::*;
///
/// #[derive(Row)]
/// struct Price { price: i64 }
///
/// #[derive(Row, Clone)]
/// struct Range { low: i64, high: i64 }
///
/// struct Spread;
///
/// impl Aggregator for Spread {
///     type In = Price; // only these columns are read
///     type Accumulator = Range;
///     type Output = i64;
///
///     fn create(&self) -> Range {
///         Range { low: i64::MAX, high: i64::MIN }
///     }
///     fn add(&self, range: &mut Range, row: Price) {
///         range.low = range.low.min(row.price);
///         range.high = range.high.max(row.price);
///     }
///     fn merge(&self, range: &mut Range, other: Range) {
///         range.low = range.low.min(other.low);
///         range.high = range.high.max(other.high);
///     }
///     fn finish(&self, range: Range) -> i64 {
///         range.high - range.low
///     }
/// }
/// ```
pub trait Aggregator: Send + 'static {
    /// The columns it reads; found in the stream by name. `()` reads none.
    type In: EmitRow;
    /// What it keeps per key and window.
    type Accumulator: Owned;
    /// What it gives.
    type Output: Owned;

    /// Of no rows.
    fn create(&self) -> Self::Accumulator;

    /// Adds a row.
    fn add(&self, accumulator: &mut Self::Accumulator, row: <Self::In as Row>::View<'_>);

    /// Adds what another accumulator has. Panes and sessions merge in order of time.
    fn merge(&self, accumulator: &mut Self::Accumulator, other: Self::Accumulator);

    /// The result.
    fn finish(&self, accumulator: Self::Accumulator) -> Self::Output;
}

/// Number of rows, as an `i64`. Alone: `.aggregate(Count)`; among others: `.aggregate(|b| (Count(b), Max(b.price)))`.
#[allow(non_snake_case, reason = "it stands beside Max, Min, Sum and Avg")]
pub fn Count<C>(_columns: C) -> CountRows {
    CountRows
}

/// What [`Count`] gives.
#[derive(Clone, Copy, Debug)]
pub struct CountRows;

/// Largest value of a column; absent values are left out.
#[derive(Clone, Copy, Debug)]
pub struct Max<T>(pub Col<T>);

/// Smallest value of a column; absent values are left out.
#[derive(Clone, Copy, Debug)]
pub struct Min<T>(pub Col<T>);

/// Sum of a column, as an `i64`, `u64` or `f64`; absent values are left out. An overflow fails the job.
#[derive(Clone, Copy, Debug)]
pub struct Sum<T>(pub Col<T>);

/// Mean of a column, as an `f64`; absent values are left out.
#[derive(Clone, Copy, Debug)]
pub struct Avg<T>(pub Col<T>);

/// A type with a largest and smallest value.
#[diagnostic::on_unimplemented(
    message = "there is no largest or smallest `{Self}` for a built-in aggregate",
    note = "Max and Min are for integers, floats, `Timestamp`, `Date` and `Option` of these; for others write an `Aggregator`"
)]
pub trait Ordered: Value {}

/// A type that can be added.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a number, so it has no sum or mean",
    note = "Sum and Avg are for integers, floats and `Option` of these; for others write an `Aggregator`"
)]
pub trait Number: Value {
    /// The type of its sum.
    type Sum: Value;
    /// The type of its mean.
    type Mean: Value;
}

macro_rules! numbers {
    ($($sum:ty: $($number:ty)*;)*) => {$($(
        impl Ordered for $number {}
        impl Number for $number {
            type Sum = $sum;
            type Mean = f64;
        }
    )*)*};
}

numbers! {
    i64: i8 i16 i32 i64;
    u64: u8 u16 u32 u64;
    f64: f32 f64;
}

impl Ordered for Timestamp {}
impl Ordered for Date {}
impl<T: Ordered> Ordered for Option<T> {}

impl<T: Number> Number for Option<T> {
    type Sum = Option<T::Sum>;
    type Mean = Option<T::Mean>;
}

/// One aggregate.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no aggregate",
    label = "not an aggregate",
    note = "aggregates are `Count`, `|b| Max(b.price)` (Min, Sum, Avg), `|b| (Count(b), Avg(b.delay))`, or a type that \
            implements `Aggregator`: `|_| Mine`"
)]
pub trait Aggregate {
    /// The type of its result.
    type Out: Value;

    /// As a part of a node.
    #[doc(hidden)]
    fn part(self, port: &mut InputPort<'_>) -> Part;
}

/// The port that a window reads.
#[doc(hidden)]
pub struct InputPort<'g> {
    pub(crate) graph: &'g mut Graph,
    pub(crate) node: u32,
    pub(crate) port: u32,
}

/// One or more aggregates.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no aggregate",
    label = "not an aggregate",
    note = "aggregates are `Count`, `|b| Max(b.price)` (Min, Sum, Avg), `|b| (Count(b), Avg(b.delay))`, or a type that \
            implements `Aggregator`: `|_| Mine`"
)]
pub trait Aggregates {
    /// The columns of the results.
    type Out: Row;

    /// As parts of a node.
    #[doc(hidden)]
    fn parts(self, port: &mut InputPort<'_>) -> Vec<Part>;
}

/// What an aggregate adds to a window node.
#[doc(hidden)]
pub struct Part {
    pub(crate) name: String,
    pub(crate) column: Option<u32>,
    pub(crate) function: AggregateFunction,
    pub(crate) data_type: DataType,
    pub(crate) nullable: bool,
    pub(crate) code: Option<Box<dyn Code>>,
}

impl Part {
    fn native<T: Value>(name: &str, column: Option<u32>, function: AggregateFunction) -> Self {
        let data_type = T::data_type();
        Self { name: name.to_owned(), column, function, data_type, nullable: T::NULLABLE, code: None }
    }
}

impl Aggregate for CountRows {
    type Out = i64;

    fn part(self, _port: &mut InputPort<'_>) -> Part {
        Part::native::<i64>("count", None, AggregateFunction::Count)
    }
}

macro_rules! natives {
    ($($name:ident $text:literal $bound:ident -> $out:ty;)*) => {$(
        impl<T: $bound> Aggregate for $name<T> {
            type Out = $out;

            fn part(self, _port: &mut InputPort<'_>) -> Part {
                let column = self.0.index();
                Part::native::<$out>($text, Some(column), AggregateFunction::$name(column))
            }
        }
    )*};
}

natives! {
    Max "max" Ordered -> T;
    Min "min" Ordered -> T;
    Sum "sum" Number -> T::Sum;
    Avg "avg" Number -> T::Mean;
}

impl<A: Aggregator> Aggregate for A {
    type Out = A::Output;

    fn part(self, port: &mut InputPort<'_>) -> Part {
        let path = std::any::type_name::<A>();
        let name = path.rsplit("::").next().unwrap_or(path).to_owned();
        let columns = find_columns::<A::In>(port.graph, port.node, port.port, "the stream");
        let function =
            AggregateFunction::User { accumulator: A::Accumulator::data_type(), output: A::Output::data_type() };
        let data_type = A::Output::data_type();
        let code = Box::new(UserCode::new(self, columns));
        Part { name, column: None, function, data_type, nullable: A::Output::NULLABLE, code: Some(code) }
    }
}

impl<A: Aggregate> Aggregates for A {
    type Out = One<A::Out>;

    fn parts(self, port: &mut InputPort<'_>) -> Vec<Part> {
        vec![self.part(port)]
    }
}

macro_rules! tuples {
    ($(($($name:ident $at:tt),*))*) => {$(
        impl<$($name: Aggregate),*> Aggregates for ($($name,)*) {
            type Out = ($(One<$name::Out>,)*);

            fn parts(self, port: &mut InputPort<'_>) -> Vec<Part> {
                vec![$(self.$at.part(port)),*]
            }
        }
    )*};
}

tuples! {
    (A 0)
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
    (A 0, B 1, C 2, D 3, E 4)
    (A 0, B 1, C 2, D 3, E 4, F 5)
}

/// The user aggregators of a window node, by the index of their aggregate.
#[derive(Default)]
pub(crate) struct AggregateNode {
    codes: Vec<Option<Box<dyn Code>>>,
}

impl AggregateNode {
    pub(crate) fn add(&mut self, code: Option<Box<dyn Code>>, reads: &mut Reads<'_>) {
        self.codes.push(code.map(|mut code| {
            code.bind(reads);
            code
        }));
    }

    pub(crate) fn into_runtime(self) -> Option<Box<dyn NodeRuntime>> {
        self.codes.iter().any(Option::is_some).then(|| Box::new(self) as Box<dyn NodeRuntime>)
    }

    fn code(&mut self, aggregator: u32) -> Result<&mut Box<dyn Code>, Failure> {
        let code = self.codes.get_mut(aggregator as usize).and_then(Option::as_mut);
        code.ok_or_else(|| {
            Failure::Fatal(format!("the host called aggregator {aggregator}, which is none of the job's"))
        })
    }
}

impl NodeRuntime for AggregateNode {
    fn accumulate(
        &mut self,
        aggregator: u32,
        groups: usize,
        group_of_row: &[u8],
        batch: &BatchView<'_>,
        accumulators: &[ColumnView<'_>],
        host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        self.code(aggregator)?.accumulate(groups, group_of_row, batch, accumulators, host);
        Ok(())
    }

    fn merge(
        &mut self,
        aggregator: u32,
        groups: usize,
        left: &[ColumnView<'_>],
        right: &[ColumnView<'_>],
        host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        self.code(aggregator)?.merge(groups, left, right, host);
        Ok(())
    }

    fn finish(
        &mut self,
        aggregator: u32,
        groups: usize,
        accumulators: &[ColumnView<'_>],
        host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        self.code(aggregator)?.finish(groups, accumulators, host);
        Ok(())
    }
}

/// One user aggregator over columns.
pub(crate) trait Code: Send {
    fn bind(&mut self, reads: &mut Reads<'_>);
    fn accumulate(
        &mut self,
        groups: usize,
        group_of_row: &[u8],
        batch: &BatchView<'_>,
        accumulators: &[ColumnView<'_>],
        host: &mut dyn HostCalls,
    );
    fn merge(&mut self, groups: usize, left: &[ColumnView<'_>], right: &[ColumnView<'_>], host: &mut dyn HostCalls);
    fn finish(&mut self, groups: usize, accumulators: &[ColumnView<'_>], host: &mut dyn HostCalls);
}

struct UserCode<A: Aggregator> {
    aggregator: A,
    columns: Columns<A::In>,
    /// Scratch, empty between calls.
    groups: Vec<Option<A::Accumulator>>,
    accumulators: <A::Accumulator as Value>::Writer,
    results: <A::Output as Value>::Writer,
}

impl<A: Aggregator> UserCode<A> {
    fn new(aggregator: A, columns: Vec<u32>) -> Self {
        Self {
            aggregator,
            columns: Columns::new(columns),
            groups: Vec::new(),
            accumulators: Default::default(),
            results: Default::default(),
        }
    }

    fn emit_accumulators(&mut self, groups: usize, host: &mut dyn HostCalls) {
        let mut columns = Vec::new();
        self.accumulators.columns(&mut columns);
        host.emit(0, groups as u32, &[], &columns);
    }
}

impl<A: Aggregator> Code for UserCode<A> {
    fn bind(&mut self, reads: &mut Reads<'_>) {
        self.columns.bind(reads);
    }

    fn accumulate(
        &mut self,
        groups: usize,
        group_of_row: &[u8],
        batch: &BatchView<'_>,
        accumulators: &[ColumnView<'_>],
        host: &mut dyn HostCalls,
    ) {
        let before = <Option<A::Accumulator>>::reader(&mut Cursor::all(accumulators), groups);
        let create = |before: Option<A::Accumulator>| Some(before.unwrap_or_else(|| self.aggregator.create()));
        self.groups.clear();
        self.groups.extend((0..groups).map(|g| create(<Option<A::Accumulator>>::get(&before, g))));
        let reader = self.columns.reader(batch);
        let group_of_row = group_of_row.as_chunks::<4>().0;
        for row in 0..batch.rows {
            if let Some(Some(group)) = self.groups.get_mut(number_at(group_of_row, row)) {
                self.aggregator.add(group, A::In::view(&reader, row));
            }
        }
        self.accumulators.clear();
        for group in self.groups.iter().flatten() {
            A::Accumulator::push(&mut self.accumulators, group);
        }
        self.emit_accumulators(groups, host);
    }

    fn merge(&mut self, groups: usize, left: &[ColumnView<'_>], right: &[ColumnView<'_>], host: &mut dyn HostCalls) {
        let left = A::Accumulator::reader(&mut Cursor::all(left), groups);
        let right = A::Accumulator::reader(&mut Cursor::all(right), groups);
        self.accumulators.clear();
        for group in 0..groups {
            let mut merged = A::Accumulator::get(&left, group);
            self.aggregator.merge(&mut merged, A::Accumulator::get(&right, group));
            A::Accumulator::push(&mut self.accumulators, &merged);
        }
        self.emit_accumulators(groups, host);
    }

    fn finish(&mut self, groups: usize, accumulators: &[ColumnView<'_>], host: &mut dyn HostCalls) {
        let reader = A::Accumulator::reader(&mut Cursor::all(accumulators), groups);
        self.results.clear();
        for group in 0..groups {
            let result = self.aggregator.finish(A::Accumulator::get(&reader, group));
            A::Output::push(&mut self.results, &result);
        }
        let mut columns = Vec::new();
        self.results.columns(&mut columns);
        host.emit(0, groups as u32, &[], &columns);
    }
}
