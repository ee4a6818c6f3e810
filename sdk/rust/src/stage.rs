//! Chains of row functions: composed statically, run as one node, one crossing per batch.
//!
//! A chain begins with a *selection* of input rows (filters that read the rows as they arrive). As long as it is only
//! that, the node answers row numbers and no column leaves the sandbox. With the first map it becomes a chain that
//! makes rows. Every adapter is a generic struct that the compiler inlines, so that a chain is one loop.

use std::borrow::Cow;
use std::marker::PhantomData;

use tidemill_plan::{Origin, Output, OutputField};

use crate::abi::{BatchView, CallClock, Failure, HostCalls, NodeRuntime, RowError};
use crate::row::{EmitRow, IntoRow, Row};
use crate::value::{Cursor, Writer, flat_width};

/// A filter over rows of a kind.
pub trait Predicate<R: Row>: Fn(&R::View<'_>) -> bool + Send + 'static {}

impl<R: Row, F: Fn(&R::View<'_>) -> bool + Send + 'static> Predicate<R> for F {}

/// The next function of a chain.
pub trait Next<R: Row> {
    /// Takes a row.
    fn push(&mut self, row: R::View<'_>);
    /// The input row can't be processed.
    fn fail(&mut self, error: RowError);
}

/// A chain of row functions.
pub trait Stage: Send + Sized + 'static {
    /// What it hands on.
    type Out: Row;
    /// Finds what it reads in a batch.
    type Readers<'a>;
    /// With one more filter.
    type Filtered<F: Fn(&<Self::Out as Row>::View<'_>) -> bool + Send + 'static>: Stage<Out = Self::Out>;

    /// Whether each input row gives exactly one row.
    const ONE_TO_ONE: bool = false;

    /// If it does nothing at all: where the columns of the row stand in the input.
    fn identity(&self) -> Option<&[u32]> {
        None
    }

    /// Names its functions.
    fn describe(&self, names: &mut Vec<&'static str>);

    /// Declares the columns it reads.
    fn bind(&mut self, reads: &mut Reads<'_>);

    /// Finds what it reads in a batch.
    fn readers<'a>(&self, batch: &BatchView<'a>) -> Self::Readers<'a>;

    /// Runs for an input row.
    fn run<N: Next<Self::Out>>(&self, readers: &Self::Readers<'_>, row: usize, next: &mut N);

    /// Adds a filter.
    fn filter<F: Fn(&<Self::Out as Row>::View<'_>) -> bool + Send + 'static>(self, predicate: F) -> Self::Filtered<F>;

    /// As a node: its outputs, where the row's columns stand in them, and its code.
    fn into_node(self, reads: &mut Reads<'_>) -> Made;
}

/// A chain as a node.
pub struct Made {
    /// The node's outputs.
    pub outputs: Vec<Output>,
    /// Where the columns of the row stand in port 0.
    pub columns: Vec<u32>,
    /// The node's code.
    pub runtime: Box<dyn NodeRuntime>,
}

/// Collects the columns that a node reads; the same column is read once.
#[derive(Debug)]
pub struct Reads<'f> {
    fields: &'f [OutputField],
    columns: Vec<u32>,
    starts: Vec<u32>,
    width: u32,
}

impl<'f> Reads<'f> {
    /// Of a port with these fields.
    pub fn new(fields: &'f [OutputField]) -> Self {
        Self { fields, columns: Vec::new(), starts: Vec::new(), width: 0 }
    }

    /// Declares columns; where they start among the flattened columns of a batch.
    pub fn add(&mut self, columns: &[u32]) -> Vec<u32> {
        columns.iter().map(|&c| self.one(c)).collect()
    }

    /// The declared columns.
    pub fn into_columns(self) -> Vec<u32> {
        self.columns
    }

    fn one(&mut self, column: u32) -> u32 {
        if let Some((start, _)) = self.starts.iter().zip(&self.columns).find(|(_, c)| **c == column) {
            return *start;
        }
        let start = self.width;
        let field = self.fields.get(column as usize);
        self.width += field.map_or(1, |f| flat_width(&f.field.data_type)) as u32;
        self.columns.push(column);
        self.starts.push(start);
        start
    }

    fn passed_on(&self) -> Vec<OutputField> {
        let origin = |column: usize| Origin::Input { input: 0, column: column as u32 };
        let fields = self.fields.iter().enumerate();
        fields.map(|(i, f)| OutputField { field: f.field.clone(), origin: origin(i) }).collect()
    }
}

/// Which input rows go on.
pub trait Select: Send + 'static {
    /// Finds what it reads in a batch.
    type Readers<'a>;

    /// Whether all rows go on.
    const ALL: bool = false;

    /// Declares the columns it reads.
    fn bind(&mut self, reads: &mut Reads<'_>);

    /// Finds what it reads in a batch.
    fn readers<'a>(&self, batch: &BatchView<'a>) -> Self::Readers<'a>;

    /// Whether a row goes on.
    fn keep(&self, readers: &Self::Readers<'_>, row: usize) -> bool;
}

/// Every row.
#[derive(Clone, Copy, Debug)]
pub struct All;

impl Select for All {
    type Readers<'a> = ();

    const ALL: bool = true;

    fn bind(&mut self, _reads: &mut Reads<'_>) {}

    fn readers<'a>(&self, _batch: &BatchView<'a>) {}

    #[inline(always)]
    fn keep(&self, (): &(), _row: usize) -> bool {
        true
    }
}

/// Rows that a selection and a predicate keep.
#[derive(Debug)]
pub struct And<Sel, R, F> {
    select: Sel,
    columns: Columns<R>,
    predicate: F,
}

impl<Sel, R, F> Select for And<Sel, R, F>
where
    Sel: Select,
    R: Row,
    F: Fn(&R::View<'_>) -> bool + Send + 'static,
{
    type Readers<'a> = (Sel::Readers<'a>, R::Reader<'a>);

    fn bind(&mut self, reads: &mut Reads<'_>) {
        self.select.bind(reads);
        self.columns.bind(reads);
    }

    fn readers<'a>(&self, batch: &BatchView<'a>) -> Self::Readers<'a> {
        (self.select.readers(batch), self.columns.reader(batch))
    }

    #[inline(always)]
    fn keep(&self, (before, reader): &Self::Readers<'_>, row: usize) -> bool {
        self.select.keep(before, row) && (self.predicate)(&R::view(reader, row))
    }
}

/// The columns of a row kind in the node's input.
#[derive(Debug)]
pub struct Columns<R> {
    columns: Vec<u32>,
    starts: Vec<u32>,
    row: PhantomData<fn() -> R>,
}

impl<R: Row> Columns<R> {
    /// That stand at these places of the input port.
    pub fn new(columns: Vec<u32>) -> Self {
        Self { columns, starts: Vec::new(), row: PhantomData }
    }

    /// Declares them as read.
    pub fn bind(&mut self, reads: &mut Reads<'_>) {
        self.starts = reads.add(&self.columns);
    }

    /// Finds them in a batch.
    pub fn reader<'a>(&self, batch: &BatchView<'a>) -> R::Reader<'a> {
        R::reader(&mut Cursor::new(batch.columns, &self.starts), batch.rows)
    }
}

/// Input rows of kind `R`, or some of them.
#[derive(Debug)]
pub struct Selected<R, Sel> {
    select: Sel,
    columns: Columns<R>,
}

/// Input rows as they are.
pub type Direct<R> = Selected<R, All>;

impl<R: Row> Direct<R> {
    pub(crate) fn new(columns: Vec<u32>) -> Self {
        Self { select: All, columns: Columns::new(columns) }
    }
}

impl<R: Row, Sel: Select> Selected<R, Sel> {
    pub(crate) fn columns(&self) -> &[u32] {
        &self.columns.columns
    }

    /// Keeps the rows that a predicate over other columns of the input keeps.
    pub(crate) fn and<V: Row, F>(self, columns: Vec<u32>, predicate: F) -> Selected<R, And<Sel, V, F>> {
        Selected {
            select: And { select: self.select, columns: Columns::new(columns), predicate },
            columns: self.columns,
        }
    }
}

impl<R: Row, Sel: Select> Stage for Selected<R, Sel> {
    type Out = R;
    type Readers<'a> = (Sel::Readers<'a>, R::Reader<'a>);
    type Filtered<F: Fn(&R::View<'_>) -> bool + Send + 'static> = Selected<R, And<Sel, R, F>>;

    const ONE_TO_ONE: bool = Sel::ALL;

    fn identity(&self) -> Option<&[u32]> {
        Sel::ALL.then_some(self.columns())
    }

    fn describe(&self, names: &mut Vec<&'static str>) {
        if !Sel::ALL {
            names.push("filter");
        }
    }

    fn bind(&mut self, reads: &mut Reads<'_>) {
        self.select.bind(reads);
        self.columns.bind(reads);
    }

    fn readers<'a>(&self, batch: &BatchView<'a>) -> Self::Readers<'a> {
        (self.select.readers(batch), self.columns.reader(batch))
    }

    #[inline(always)]
    fn run<N: Next<R>>(&self, (select, reader): &Self::Readers<'_>, row: usize, next: &mut N) {
        if self.select.keep(select, row) {
            next.push(R::view(reader, row));
        }
    }

    fn filter<F: Fn(&R::View<'_>) -> bool + Send + 'static>(self, predicate: F) -> Self::Filtered<F> {
        let columns = self.columns.columns.clone();
        self.and::<R, F>(columns, predicate)
    }

    /// Only what the filters read crosses, and only row numbers come back.
    fn into_node(mut self, reads: &mut Reads<'_>) -> Made {
        self.select.bind(reads);
        Made {
            outputs: vec![Output { name: "main".to_owned(), fields: reads.passed_on() }],
            columns: self.columns.columns,
            runtime: Box::new(FilterNode { select: self.select, rows: Vec::new() }),
        }
    }
}

/// A node that selects rows.
struct FilterNode<Sel> {
    select: Sel,
    rows: Vec<u32>,
}

impl<Sel: Select> NodeRuntime for FilterNode<Sel> {
    fn transform(
        &mut self,
        _clock: CallClock,
        _input: u32,
        batch: &BatchView<'_>,
        host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        let readers = self.select.readers(batch);
        self.rows.clear();
        for row in 0..batch.rows {
            if self.select.keep(&readers, row) {
                self.rows.push(row as u32);
            }
        }
        match self.rows.len() {
            0 => {}
            all if all == batch.rows => host.forward(0, None, &[]),
            _ => host.forward(0, Some(&self.rows), &[]),
        }
        Ok(())
    }
}

macro_rules! making_rows {
    ($out:ty) => {
        type Out = $out;
        type Readers<'a> = S::Readers<'a>;
        type Filtered<P: Fn(&<$out as Row>::View<'_>) -> bool + Send + 'static> = Filtered<Self, P>;

        fn bind(&mut self, reads: &mut Reads<'_>) {
            self.stage.bind(reads);
        }

        fn readers<'a>(&self, batch: &BatchView<'a>) -> Self::Readers<'a> {
            self.stage.readers(batch)
        }

        fn filter<P: Fn(&<$out as Row>::View<'_>) -> bool + Send + 'static>(self, predicate: P) -> Filtered<Self, P> {
            Filtered { stage: self, predicate }
        }

        fn into_node(self, reads: &mut Reads<'_>) -> Made {
            map_node(self, reads)
        }
    };
}

/// A filter over rows that the chain made.
#[derive(Debug)]
pub struct Filtered<S, F> {
    stage: S,
    predicate: F,
}

impl<S, F> Stage for Filtered<S, F>
where
    S: Stage<Out: EmitRow>,
    F: Fn(&<S::Out as Row>::View<'_>) -> bool + Send + 'static,
{
    making_rows!(S::Out);

    fn describe(&self, names: &mut Vec<&'static str>) {
        self.stage.describe(names);
        names.push("filter");
    }

    #[inline(always)]
    fn run<N: Next<S::Out>>(&self, readers: &Self::Readers<'_>, row: usize, next: &mut N) {
        struct Adapter<'n, F, N>(&'n F, &'n mut N);
        impl<R: Row, F: Fn(&R::View<'_>) -> bool, N: Next<R>> Next<R> for Adapter<'_, F, N> {
            #[inline(always)]
            fn push(&mut self, row: R::View<'_>) {
                if (self.0)(&row) {
                    self.1.push(row);
                }
            }

            fn fail(&mut self, error: RowError) {
                self.1.fail(error);
            }
        }
        self.stage.run(readers, row, &mut Adapter(&self.predicate, next));
    }
}

/// How a function's answer goes on: as a row, as a row or nothing, as a row or a failure.
pub trait Answer {
    /// The row.
    type Row: IntoRow;
    /// Whether there always is one.
    const ALWAYS: bool = false;
    /// What the function is called.
    const NAME: &'static str;
    /// The row, or nothing, or why not.
    fn answer(self) -> Result<Option<Self::Row>, RowError>;
}

/// The answer of `map`.
#[derive(Debug)]
pub struct Always<U>(pub(crate) U);

impl<U: IntoRow> Answer for Always<U> {
    type Row = U;
    const ALWAYS: bool = true;
    const NAME: &'static str = "map";
    #[inline(always)]
    fn answer(self) -> Result<Option<U>, RowError> {
        Ok(Some(self.0))
    }
}

impl<U: IntoRow> Answer for Option<U> {
    type Row = U;
    const NAME: &'static str = "filter-map";
    #[inline(always)]
    fn answer(self) -> Result<Option<U>, RowError> {
        Ok(self)
    }
}

impl<U: IntoRow> Answer for Result<U, RowError> {
    type Row = U;
    const NAME: &'static str = "map";
    #[inline(always)]
    fn answer(self) -> Result<Option<U>, RowError> {
        self.map(Some)
    }
}

/// The kind of row that an answer has.
pub type AnswerRow<A> = <<A as Answer>::Row as IntoRow>::Row;

/// A function from row to row, or to nothing, or to a failure.
#[derive(Debug)]
pub struct Map<S, F, A> {
    stage: S,
    function: F,
    answer: PhantomData<fn() -> A>,
}

impl<S, F, A> Map<S, F, A> {
    pub(crate) fn new(stage: S, function: F) -> Self {
        Self { stage, function, answer: PhantomData }
    }
}

impl<S, F, A> Stage for Map<S, F, A>
where
    S: Stage,
    A: Answer + 'static,
    F: Fn(<S::Out as Row>::View<'_>) -> A + Send + 'static,
{
    making_rows!(AnswerRow<A>);

    const ONE_TO_ONE: bool = S::ONE_TO_ONE && A::ALWAYS;

    fn describe(&self, names: &mut Vec<&'static str>) {
        self.stage.describe(names);
        names.push(A::NAME);
    }

    #[inline(always)]
    fn run<N: Next<AnswerRow<A>>>(&self, readers: &Self::Readers<'_>, row: usize, next: &mut N) {
        struct Adapter<'n, F, N>(&'n F, &'n mut N);
        impl<R: Row, A: Answer, F: Fn(R::View<'_>) -> A, N: Next<AnswerRow<A>>> Next<R> for Adapter<'_, F, N> {
            #[inline(always)]
            fn push(&mut self, row: R::View<'_>) {
                match (self.0)(row).answer() {
                    Ok(Some(row)) => self.1.push(row.into_view()),
                    Ok(None) => {}
                    Err(error) => self.1.fail(error),
                }
            }

            fn fail(&mut self, error: RowError) {
                self.1.fail(error);
            }
        }
        self.stage.run(readers, row, &mut Adapter(&self.function, next));
    }
}

/// A function from row to any number of rows.
#[derive(Debug)]
pub struct FlatMap<S, F, U> {
    stage: S,
    function: F,
    row: PhantomData<fn() -> U>,
}

impl<S, F, U> FlatMap<S, F, U> {
    pub(crate) fn new(stage: S, function: F) -> Self {
        Self { stage, function, row: PhantomData }
    }
}

/// Where a flat-map puts its rows.
pub struct Emitter<'e, U: Row> {
    next: &'e mut dyn Next<U>,
}

impl<U: Row> Emitter<'_, U> {
    /// Emits a row; it may borrow from the row that came in.
    #[inline]
    pub fn emit<V: IntoRow<Row = U>>(&mut self, row: V)
    where
        U: EmitRow,
    {
        self.next.push(row.into_view());
    }

    /// The row that came in can't be processed: it is set aside with this reason, and nothing of it is emitted.
    pub fn fail(&mut self, reason: impl Into<String>) {
        self.next.fail(RowError::new(reason));
    }
}

impl<S, F, U> Stage for FlatMap<S, F, U>
where
    S: Stage,
    U: EmitRow,
    F: Fn(<S::Out as Row>::View<'_>, &mut Emitter<'_, U>) + Send + 'static,
{
    making_rows!(U);

    fn describe(&self, names: &mut Vec<&'static str>) {
        self.stage.describe(names);
        names.push("flat-map");
    }

    #[inline(always)]
    fn run<N: Next<U>>(&self, readers: &Self::Readers<'_>, row: usize, next: &mut N) {
        struct Adapter<'n, F, N, U>(&'n F, &'n mut N, PhantomData<U>);
        impl<R, F, N, U> Next<R> for Adapter<'_, F, N, U>
        where
            R: Row,
            U: Row,
            F: Fn(R::View<'_>, &mut Emitter<'_, U>),
            N: Next<U>,
        {
            #[inline(always)]
            fn push(&mut self, row: R::View<'_>) {
                (self.0)(row, &mut Emitter { next: self.1 });
            }

            fn fail(&mut self, error: RowError) {
                self.1.fail(error);
            }
        }
        self.stage.run(readers, row, &mut Adapter(&self.function, next, PhantomData));
    }
}

fn map_node<S: Stage<Out: EmitRow>>(mut stage: S, reads: &mut Reads<'_>) -> Made {
    stage.bind(reads);
    let fields = S::Out::fields().into_iter().map(|field| OutputField { field, origin: Origin::New }).collect();
    Made {
        outputs: vec![Output { name: "main".to_owned(), fields }],
        columns: (0..S::Out::WIDTH as u32).collect(),
        runtime: Box::new(MapNode { stage, made: Rows::<S::Out>::default() }),
    }
}

/// Rows on their way out, and which input rows they derive from.
pub(crate) struct Rows<R: EmitRow> {
    pub(crate) writer: R::Writer,
    /// So many rows at the beginning of the call gave one row each: as long as the next one does, no number is written.
    once: u32,
    /// The rows of the call from which these derive, unless that is said by `once`.
    rows: Vec<u32>,
}

impl<R: EmitRow> Default for Rows<R> {
    fn default() -> Self {
        Self { writer: R::Writer::default(), once: 0, rows: Vec::new() }
    }
}

impl<R: EmitRow> Rows<R> {
    pub(crate) fn clear(&mut self) {
        self.writer.clear();
        self.once = 0;
        self.rows.clear();
    }

    /// One more was written; it derives from this row of the call.
    #[inline(always)]
    pub(crate) fn note(&mut self, row: u32) {
        if !self.rows.is_empty() {
            self.rows.push(row);
        } else if row == self.once {
            self.once += 1;
        } else {
            self.begin_numbers(row);
        }
    }

    #[cold]
    fn begin_numbers(&mut self, row: u32) {
        self.rows.extend(0..self.once);
        self.rows.push(row);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.once == 0 && self.rows.is_empty()
    }

    /// The rows of a call of so many from which these derive; none: each gave one, in order.
    pub(crate) fn origins(&self, rows: usize) -> Option<Cow<'_, [u32]>> {
        match self.rows.is_empty() {
            true if self.once as usize == rows => None,
            true => Some(Cow::Owned((0..self.once).collect())),
            false => Some(Cow::Borrowed(&self.rows)),
        }
    }
}

/// A node that makes rows.
struct MapNode<S: Stage<Out: EmitRow>> {
    stage: S,
    made: Rows<S::Out>,
}

impl<S: Stage<Out: EmitRow>> NodeRuntime for MapNode<S> {
    fn transform(
        &mut self,
        _clock: CallClock,
        _input: u32,
        batch: &BatchView<'_>,
        host: &mut dyn HostCalls,
    ) -> Result<(), Failure> {
        self.made.clear();
        if S::ONE_TO_ONE {
            self.made.writer.reserve(batch.rows);
        }
        let readers = self.stage.readers(batch);
        let mut collect = Collect { made: &mut self.made, one_to_one: S::ONE_TO_ONE, row: 0, failures: Vec::new() };
        for row in 0..batch.rows {
            collect.row = row as u32;
            self.stage.run(&readers, row, &mut collect);
        }
        if !collect.failures.is_empty() {
            return Err(Failure::Rows(collect.failures));
        }
        if S::ONE_TO_ONE || !self.made.is_empty() {
            let mut columns = Vec::new();
            self.made.writer.columns(&mut columns);
            let origins = if S::ONE_TO_ONE { None } else { self.made.origins(batch.rows) };
            host.forward(0, origins.as_deref(), &columns);
        }
        Ok(())
    }
}

/// The end of a chain.
struct Collect<'c, R: EmitRow> {
    made: &'c mut Rows<R>,
    one_to_one: bool,
    row: u32,
    failures: Vec<(u32, String)>,
}

impl<R: EmitRow> Next<R> for Collect<'_, R> {
    #[inline(always)]
    fn push(&mut self, row: R::View<'_>) {
        R::write(&mut self.made.writer, &row);
        if !self.one_to_one {
            self.made.note(self.row);
        }
    }

    #[cold]
    fn fail(&mut self, error: RowError) {
        // A row that fails twice fails for the first reason.
        if self.failures.last().is_none_or(|(row, _)| *row != self.row) {
            self.failures.push((self.row, error.reason().to_owned()));
        }
    }
}
