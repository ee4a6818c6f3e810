//! Windows over event time: which there are, and what comes out of them.

use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

use tidemill_plan::{Aggregate as PlanAggregate, Field, NodeKind, Origin, Output, OutputField, Windows};

use crate::aggregate::{AggregateNode, Aggregates, InputPort};
use crate::flow::Label;
use crate::keyed::{Key, KeyedStream};
use crate::row::{Col, Places, Row};
use crate::stage::Reads;
use crate::stream::Stream;
use crate::time::{self, Timestamp, millis_i64, millis_u64};
use crate::value::{Cursor, Value};

/// A kind of window.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no kind of window",
    note = "windows are `Tumbling::secs(10)`, `Sliding::secs(10, 2)`, `Session::gap_secs(30)`"
)]
pub trait WindowKind {
    /// As the plan has it.
    #[doc(hidden)]
    fn windows(self) -> Windows;
}

/// A kind of window that a join can have.
#[diagnostic::on_unimplemented(
    message = "a join can't have windows of kind `{Self}`",
    note = "a join has `Tumbling` or `Sliding` windows, or an `.interval(lower, upper)`"
)]
pub trait JoinWindowKind: WindowKind {}

impl JoinWindowKind for Tumbling {}
impl JoinWindowKind for Sliding {}

/// Windows of one size, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Tumbling {
    size: Duration,
    offset_ms: i64,
}

/// Windows of one size that begin every `slide`.
#[derive(Clone, Copy, Debug)]
pub struct Sliding {
    size: Duration,
    slide: Duration,
    offset_ms: i64,
}

/// Windows that end when a key has had no rows for a gap.
///
/// Rows that are exactly the gap apart are in one session. So a session `[start, end)` fires when the watermark reaches
/// `end`, one millisecond later than in Flink: only then can no row come any more that belongs to it, and the same rows
/// give the same sessions whatever their batches and the parallelism. Its result has `end` as its timestamp; those of
/// other windows have their last millisecond, `end - 1`.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    gap: Duration,
}

impl WindowKind for Tumbling {
    fn windows(self) -> Windows {
        Windows::Tumbling { size_ms: millis_u64(self.size), offset_ms: self.offset_ms }
    }
}

impl WindowKind for Sliding {
    fn windows(self) -> Windows {
        let (size_ms, slide_ms) = (millis_u64(self.size), millis_u64(self.slide));
        Windows::Sliding { size_ms, slide_ms, offset_ms: self.offset_ms }
    }
}

impl WindowKind for Session {
    fn windows(self) -> Windows {
        Windows::Session { gap_ms: millis_u64(self.gap) }
    }
}

impl Tumbling {
    /// Of this size.
    pub const fn of(size: Duration) -> Self {
        Self { size, offset_ms: 0 }
    }

    /// Shifts where they begin; without, they are aligned to 1970-01-01 UTC.
    pub fn offset(self, offset: Duration) -> Self {
        Self { offset_ms: millis_i64(offset), ..self }
    }
}

impl Sliding {
    /// Of this size, every `slide`. The size must be a multiple of the slide.
    pub const fn of(size: Duration, slide: Duration) -> Self {
        Self { size, slide, offset_ms: 0 }
    }

    /// Shifts where they begin; without, they are aligned to 1970-01-01 UTC.
    pub fn offset(self, offset: Duration) -> Self {
        Self { offset_ms: millis_i64(offset), ..self }
    }
}

impl Session {
    /// That end after this gap.
    pub const fn gap(gap: Duration) -> Self {
        Self { gap }
    }

    /// That end after a gap of so many milliseconds.
    pub const fn gap_millis(gap: u64) -> Self {
        Self::gap(time::millis(gap))
    }

    /// That end after a gap of so many seconds.
    pub const fn gap_secs(gap: u64) -> Self {
        Self::gap(time::secs(gap))
    }

    /// That end after a gap of so many minutes.
    pub const fn gap_mins(gap: u64) -> Self {
        Self::gap(time::mins(gap))
    }

    /// That end after a gap of so many hours.
    pub const fn gap_hours(gap: u64) -> Self {
        Self::gap(time::hours(gap))
    }
}

macro_rules! units {
    ($($unit:ident)*) => {
        impl Tumbling {
            $(#[doc = concat!("Of so many ", stringify!($unit), ".")]
            pub const fn $unit(size: u64) -> Self {
                Self::of(time::$unit(size))
            })*
        }

        impl Sliding {
            $(#[doc = concat!("Of so many ", stringify!($unit), ", beginning every so many ", stringify!($unit), ".")]
            pub const fn $unit(size: u64, slide: u64) -> Self {
                Self::of(time::$unit(size), time::$unit(slide))
            })*
        }
    };
}

units! { millis secs mins hours days }

/// A stream divided by key and window.
#[derive(Debug)]
#[must_use = "windows do nothing by themselves: go on with `.aggregate(Count)`"]
pub struct WindowedStream<K: Key, R: Row> {
    keyed: KeyedStream<K, R>,
    windows: Windows,
    allowed_lateness_ms: u64,
    late: bool,
    late_binding: Option<String>,
}

impl<K: Key, R: Row> WindowedStream<K, R> {
    pub(crate) fn new(keyed: KeyedStream<K, R>, windows: Windows) -> Self {
        Self { keyed, windows, allowed_lateness_ms: 0, late: false, late_binding: None }
    }

    /// For this long after its end a window takes late rows, and gives its result again with each.
    pub fn allowed_lateness(self, lateness: Duration) -> Self {
        Self { allowed_lateness_ms: millis_u64(lateness), ..self }
    }

    /// Sends rows that are too late for every window to a sink. Without this they are counted and dropped.
    pub fn late_to(self, binding: &str) -> Self {
        Self { late: true, late_binding: Some(binding.to_owned()), ..self }
    }

    /// Keeps rows that are too late for every window, as the side output `late` of the result:
    /// `let late = result.side::<Bid>("late")`.
    pub fn keep_late(self) -> Self {
        Self { late: true, ..self }
    }

    /// Computes something of each window: `.aggregate(Count)`, `.aggregate(|b| Max(b.price))`,
    /// `.aggregate(|b| (Count(b), Avg(b.delay)))`, or an [`crate::Aggregator`] of your own: `.aggregate(|_| Mine)`.
    pub fn aggregate<A: Aggregates>(
        self,
        aggregates: impl FnOnce(R::Columns) -> A,
    ) -> Stream<WindowedRow<K::Row, A::Out>> {
        let Self { keyed, windows, allowed_lateness_ms, late, late_binding } = self;
        let aggregates = aggregates(R::handles(&mut Places::new(keyed.stream.columns())));
        let graph = Rc::clone(&keyed.stream.graph);
        let (source, port) = (keyed.stream.node, keyed.stream.port);
        let node = {
            let mut graph = graph.borrow_mut();
            let parts = aggregates.parts(&mut InputPort { graph: &mut graph, node: source, port });
            let mut code = AggregateNode::default();
            let mut reads = Reads::new(graph.fields(source, port));
            let mut main = Fields::default();
            for &column in &keyed.key {
                let field = graph.fields(source, port).get(column as usize).map(|f| f.field.clone());
                let field = field.unwrap_or_else(|| Field::new("key", tidemill_plan::DataType::Int64, false));
                main.add(field, Origin::Input { input: 0, column });
            }
            let mut functions = Vec::new();
            for (index, part) in parts.into_iter().enumerate() {
                let column = part.column.and_then(|c| graph.fields(source, port).get(c as usize));
                let of = column.map_or_else(String::new, |c| format!("_{}", c.field.name));
                let name = format!("{}{of}", part.name);
                main.add(Field::new(&name, part.data_type, part.nullable), Origin::Aggregate(index as u32));
                functions.push(PlanAggregate { name, function: part.function });
                code.add(part.code, &mut reads);
            }
            main.add(Field::new("window_start", Timestamp::data_type(), false), Origin::WindowStart);
            main.add(Field::new("window_end", Timestamp::data_type(), false), Origin::WindowEnd);
            let mut outputs = vec![Output { name: "main".to_owned(), fields: main.0 }];
            if late {
                let mut fields = Fields::default();
                for &column in keyed.stream.columns() {
                    if let Some(field) = graph.fields(source, port).get(column as usize) {
                        fields.add(field.field.clone(), Origin::Input { input: 0, column });
                    }
                }
                outputs.push(Output { name: "late".to_owned(), fields: fields.0 });
            }
            let input = keyed.input(reads.into_columns());
            let late_port = late.then_some(1);
            let kind = NodeKind::Window { windows, allowed_lateness_ms, late_port, aggregates: functions };
            graph.add(Label::default().or("window"), vec![input], outputs, kind, code.into_runtime())
        };
        if let Some(binding) = late_binding {
            Stream::<R>::direct(Rc::clone(&graph), node, 1, (0..R::WIDTH as u32).collect()).sink(&binding);
        }
        let width = WindowedRow::<K::Row, A::Out>::WIDTH as u32;
        Stream::direct(graph, node, 0, (0..width).collect())
    }
}

/// Fields with names that differ.
#[derive(Default)]
pub(crate) struct Fields(pub(crate) Vec<OutputField>);

impl Fields {
    pub(crate) fn add(&mut self, mut field: Field, origin: Origin) {
        let base = field.name.clone();
        let mut number = 1;
        while self.0.iter().any(|f| f.field.name == field.name) {
            number += 1;
            field.name = format!("{base}_{number}");
        }
        self.0.push(OutputField { field, origin });
    }
}

/// The result of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windowed<K, V> {
    /// Whose window.
    pub key: K,
    /// What was computed of it; a tuple if it was several things.
    pub value: V,
    /// When it began, inclusive.
    pub start: Timestamp,
    /// When it ended, exclusive. The result's own timestamp is 1 ms before.
    pub end: Timestamp,
}

/// Handles of the columns of a window's result.
#[derive(Clone, Copy, Debug)]
pub struct WindowedColumns<K, V> {
    /// The column (or columns) of the key.
    pub key: K,
    /// The column (or columns) of the result.
    pub value: V,
    /// When the window began.
    pub start: Col<Timestamp>,
    /// When the window ended.
    pub end: Col<Timestamp>,
}

/// The kind of row that windows give: a [`Windowed`] each.
#[derive(Debug)]
pub struct WindowedRow<K, V>(PhantomData<fn() -> (K, V)>);

impl<K: Row, V: Row> Row for WindowedRow<K, V> {
    type View<'a> = Windowed<K::View<'a>, V::View<'a>>;
    type Reader<'a> = WindowedReader<K::Reader<'a>, V::Reader<'a>, <Timestamp as Value>::Reader<'a>>;
    type Columns = WindowedColumns<K::Columns, V::Columns>;

    const WIDTH: usize = K::WIDTH + V::WIDTH + 2;

    fn handles(places: &mut Places<'_>) -> Self::Columns {
        WindowedColumns {
            key: K::handles(places),
            value: V::handles(places),
            start: places.column(),
            end: places.column(),
        }
    }

    fn reader<'a>(columns: &mut Cursor<'_, 'a>, rows: usize) -> Self::Reader<'a> {
        WindowedReader {
            key: K::reader(columns, rows),
            value: V::reader(columns, rows),
            start: columns.field::<Timestamp>(rows),
            end: columns.field::<Timestamp>(rows),
        }
    }

    #[inline(always)]
    fn view<'a>(reader: &Self::Reader<'a>, row: usize) -> Self::View<'a> {
        Windowed {
            key: K::view(&reader.key, row),
            value: V::view(&reader.value, row),
            start: Timestamp::get(&reader.start, row),
            end: Timestamp::get(&reader.end, row),
        }
    }
}

/// Finds window results in a batch.
#[derive(Clone, Copy, Debug)]
pub struct WindowedReader<K, V, T> {
    key: K,
    value: V,
    start: T,
    end: T,
}
