//! Rows: structs whose fields are columns, and the handles by which a job names columns to the host.
//!
//! A [`Row`] type stands for a *kind* of row (`Bid<'static>`); `View<'a>` is one row as user code sees it (`Bid<'a>`),
//! with text borrowed from the batch. `Columns` has a handle per column: closures that name a key or an event time
//! run over those, once, when the job is planned, so that the host knows the column and does the work natively.

use std::marker::PhantomData;

use tidemill_plan::Field;

use crate::value::{Cursor, Value, Writer};

/// A kind of row. Derive it: `#[derive(Row)] struct Bid<'a> { auction: i64, channel: &'a str }`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a row",
    label = "not a row",
    note = "put `#[derive(Row)]` on the struct; inside types write its lifetime as `'static`"
)]
pub trait Row: 'static {
    /// One row in a batch.
    type View<'a>;
    /// Finds the rows of a batch.
    type Reader<'a>: Clone;
    /// A handle per column.
    type Columns: Copy;

    /// How many columns.
    const WIDTH: usize;

    /// The handles, of columns that stand at these places.
    fn handles(places: &mut Places<'_>) -> Self::Columns;

    /// Takes its columns off the front.
    fn reader<'a>(columns: &mut Cursor<'_, 'a>, rows: usize) -> Self::Reader<'a>;

    /// A row.
    fn view<'a>(reader: &Self::Reader<'a>, row: usize) -> Self::View<'a>;
}

/// A kind of row that user code can emit.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be emitted as a row",
    note = "put `#[derive(Row)]` on a struct and emit that"
)]
pub trait EmitRow: Row {
    /// Collects rows.
    type Writer: Writer;

    /// Names and types of the columns.
    fn fields() -> Vec<Field>;

    /// Appends a row.
    fn write(writer: &mut Self::Writer, row: &Self::View<'_>);
}

/// One row, of a kind. `Bid<'a>` is a row of the kind `Bid<'static>`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a row",
    label = "this must be a struct that derives `Row`",
    note = "a map gives a row: put `#[derive(Row)]` on a struct and return that"
)]
pub trait IntoRow {
    /// Its kind.
    type Row: EmitRow;

    /// The row as the kind's view.
    fn into_view<'v>(self) -> <Self::Row as Row>::View<'v>
    where
        Self: 'v;
}

/// A handle of a column with values of type `T`.
#[derive(Debug)]
pub struct Col<T> {
    index: u32,
    value: PhantomData<fn() -> T>,
}

impl<T> Clone for Col<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Col<T> {}

impl<T> Col<T> {
    /// Its index in the port's fields.
    pub(crate) fn index(self) -> u32 {
        self.index
    }
}

/// Where the columns of a row stand in a port.
#[derive(Debug)]
pub struct Places<'p>(std::slice::Iter<'p, u32>);

impl<'p> Places<'p> {
    /// In this order.
    pub fn new(places: &'p [u32]) -> Self {
        Self(places.iter())
    }

    /// The handle of the next column.
    pub fn column<T>(&mut self) -> Col<T> {
        Col { index: self.0.next().copied().unwrap_or(u32::MAX), value: PhantomData }
    }
}

/// A row of one column, seen as its value.
#[derive(Debug)]
pub struct One<T>(PhantomData<T>);

impl<T: Value> Row for One<T> {
    type View<'a> = T::View<'a>;
    type Reader<'a> = T::Reader<'a>;
    type Columns = Col<T>;

    const WIDTH: usize = 1;

    fn handles(places: &mut Places<'_>) -> Col<T> {
        places.column()
    }

    fn reader<'a>(columns: &mut Cursor<'_, 'a>, rows: usize) -> T::Reader<'a> {
        columns.field::<T>(rows)
    }

    #[inline(always)]
    fn view<'a>(reader: &T::Reader<'a>, row: usize) -> T::View<'a> {
        T::get(reader, row)
    }
}

macro_rules! tuples {
    ($(($($row:ident $at:tt),*))*) => {$(
        /// The columns of each, one after the other.
        impl<$($row: Row),*> Row for ($($row,)*) {
            type View<'a> = ($($row::View<'a>,)*);
            type Reader<'a> = ($($row::Reader<'a>,)*);
            type Columns = ($($row::Columns,)*);

            const WIDTH: usize = 0 $(+ $row::WIDTH)*;

            #[allow(clippy::unused_unit, reason = "the empty tuple is one of the cases")]
            fn handles(_places: &mut Places<'_>) -> Self::Columns {
                ($($row::handles(_places),)*)
            }

            #[allow(clippy::unused_unit, reason = "the empty tuple is one of the cases")]
            fn reader<'a>(_columns: &mut Cursor<'_, 'a>, _rows: usize) -> Self::Reader<'a> {
                ($($row::reader(_columns, _rows),)*)
            }

            #[inline(always)]
            #[allow(clippy::unused_unit, reason = "the empty tuple is one of the cases")]
            fn view<'a>(_reader: &Self::Reader<'a>, _row: usize) -> Self::View<'a> {
                ($($row::view(&_reader.$at, _row),)*)
            }
        }
    )*};
}

tuples! {
    ()
    (A 0)
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
    (A 0, B 1, C 2, D 3, E 4)
    (A 0, B 1, C 2, D 3, E 4, F 5)
}

/// A struct in one column: its own validity, then its fields.
#[derive(Debug, Default)]
pub struct StructWriter<W>(pub W);

impl<W: Writer> Writer for StructWriter<W> {
    fn reserve(&mut self, rows: usize) {
        self.0.reserve(rows);
    }

    fn push_absent(&mut self) {
        self.0.push_absent();
    }

    fn columns<'a>(&'a self, out: &mut Vec<crate::abi::ColumnView<'a>>) {
        out.push(crate::abi::ColumnView::default());
        self.0.columns(out);
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

impl EmitRow for () {
    type Writer = NoColumns;

    fn fields() -> Vec<Field> {
        Vec::new()
    }

    fn write(_writer: &mut NoColumns, _row: &()) {}
}

/// Collects rows of no column.
#[derive(Debug, Default)]
pub struct NoColumns;

impl Writer for NoColumns {
    fn reserve(&mut self, _rows: usize) {}
    fn push_absent(&mut self) {}
    fn columns<'a>(&'a self, _out: &mut Vec<crate::abi::ColumnView<'a>>) {}
    fn clear(&mut self) {}
}
