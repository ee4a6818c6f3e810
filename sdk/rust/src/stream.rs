//! Streams: what a job is built from.
//!
//! A stream is a port of a node, and a chain of row functions over it that is not a node yet ([`crate::stage`]). The
//! chain becomes one `transform` node when something else follows: a key, a sink, a union.

use std::rc::Rc;

use tidemill_plan::{Exchange, Input, NodeKind, Origin, Output, OutputField};

use crate::abi::RowError;
use crate::flow::{Graph, Label, SharedGraph};
use crate::keyed::{KeyColumns, KeyedStream};
use crate::row::{Col, EmitRow, IntoRow, Places, Row};
use crate::stage::{Always, And, Direct, Emitter, FlatMap, Map, Reads, Select, Selected, Stage};
use crate::time::{BoundedOutOfOrderness, Timestamp};

/// Rows of kind `R` on their way.
#[derive(Debug)]
#[must_use = "a stream that leads nowhere does nothing: end it with `.sink(\"name\")`"]
pub struct Stream<R: Row, S: Stage<Out = R> = Direct<R>> {
    pub(crate) graph: SharedGraph,
    pub(crate) node: u32,
    pub(crate) port: u32,
    exchange: Exchange,
    label: Label,
    pub(crate) stage: S,
}

/// Using a stream twice.
impl<R: Row> Clone for Stream<R> {
    fn clone(&self) -> Self {
        let columns = self.stage.columns().to_vec();
        Self { exchange: self.exchange.clone(), ..Self::direct(Rc::clone(&self.graph), self.node, self.port, columns) }
    }
}

impl<R: Row> Stream<R> {
    pub(crate) fn direct(graph: SharedGraph, node: u32, port: u32, columns: Vec<u32>) -> Self {
        let label = Label::default();
        Self { graph, node, port, exchange: Exchange::Forward, label, stage: Direct::new(columns) }
    }

    pub(crate) fn columns(&self) -> &[u32] {
        self.stage.columns()
    }

    /// As the input of another node.
    pub(crate) fn input(&self) -> Input {
        Input { node: self.node, port: self.port, exchange: self.exchange.clone(), reads: Vec::new() }
    }

    /// A side output of the operator that this stream comes from, by its name: what a process function declared with
    /// [`crate::process::States::side`], or `late` after a window.
    pub fn side<T: EmitRow>(&self, name: &str) -> Stream<T> {
        let found = {
            let mut graph = self.graph.borrow_mut();
            let node = graph.nodes.get(self.node as usize);
            let port = node.and_then(|n| n.outputs.iter().position(|o| o.name == name));
            let operator = node.map_or_else(String::new, |n| n.name.clone());
            match port {
                Some(port) => {
                    let what = format!("the side output '{name}' of '{operator}'");
                    (port as u32, find_columns::<T>(&mut graph, self.node, port as u32, &what))
                }
                None => {
                    graph.error(format!("operator '{operator}' has no side output '{name}'"));
                    (0, (0..T::WIDTH as u32).collect())
                }
            }
        };
        Stream::direct(Rc::clone(&self.graph), self.node, found.0, found.1)
    }
}

/// The columns of a row kind in a port, by name.
pub(crate) fn find_columns<T: EmitRow>(graph: &mut Graph, node: u32, port: u32, what: &str) -> Vec<u32> {
    let mut columns = Vec::new();
    let mut errors = Vec::new();
    let fields = graph.fields(node, port);
    for wanted in T::fields() {
        let found = fields.iter().position(|f| f.field.name == wanted.name);
        match found.and_then(|i| Some((i, &fields.get(i)?.field))) {
            Some((_, field)) if field.data_type != wanted.data_type => errors.push(format!(
                "column '{}' is read as {}, but {what} has it as {}",
                wanted.name, wanted.data_type, field.data_type
            )),
            Some((_, field)) if field.nullable && !wanted.nullable => {
                errors.push(format!("column '{}' of {what} can be absent: read it as an Option", wanted.name));
            }
            Some((index, _)) => columns.push(index as u32),
            None => {
                let names: Vec<&str> = fields.iter().map(|f| f.field.name.as_str()).collect();
                errors.push(format!("{what} has no column '{}'; it has {}", wanted.name, names.join(", ")));
            }
        }
    }
    errors.into_iter().for_each(|e| graph.error(e));
    columns
}

impl<R: Row, Sel: Select> Stream<R, Selected<R, Sel>> {
    /// Keeps the rows for which `predicate` is true, reading only the columns of `V`, which are found by name.
    /// For rows of many columns of which the filter needs few.
    pub fn filter_on<V: EmitRow, F>(self, predicate: F) -> Stream<R, Selected<R, And<Sel, V, F>>>
    where
        F: Fn(&V::View<'_>) -> bool + Send + 'static,
    {
        let columns = find_columns::<V>(&mut self.graph.borrow_mut(), self.node, self.port, "the stream");
        self.then(|stage| stage.and::<V, F>(columns, predicate))
    }
}

impl<R: Row, S: Stage<Out = R>> Stream<R, S> {
    /// Keeps the rows for which `predicate` is true.
    pub fn filter<F>(self, predicate: F) -> Stream<R, S::Filtered<F>>
    where
        F: Fn(&R::View<'_>) -> bool + Send + 'static,
    {
        self.then(|stage| stage.filter(predicate))
    }

    /// Makes a row of each row. What it returns owns its text; to pass on borrowed text see [`Stream::flat_map`].
    pub fn map<U, F>(self, function: F) -> Stream<U::Row, impl Stage<Out = U::Row>>
    where
        U: IntoRow + 'static,
        F: Fn(R::View<'_>) -> U + Send + 'static,
    {
        self.then(|stage| Map::new(stage, move |row: R::View<'_>| Always(function(row))))
    }

    /// Makes a row of each row, or nothing.
    pub fn filter_map<U, F>(self, function: F) -> Stream<U::Row, Map<S, F, Option<U>>>
    where
        U: IntoRow + 'static,
        F: Fn(R::View<'_>) -> Option<U> + Send + 'static,
    {
        self.then(|stage| Map::new(stage, function))
    }

    /// Makes a row of each row, or says why it can't: then the row goes to the dead letters.
    pub fn try_map<U, F>(self, function: F) -> Stream<U::Row, Map<S, F, Result<U, RowError>>>
    where
        U: IntoRow + 'static,
        F: Fn(R::View<'_>) -> Result<U, RowError> + Send + 'static,
    {
        self.then(|stage| Map::new(stage, function))
    }

    /// Makes any number of rows of each row; they may borrow its text:
    /// `|line, out| line.text.split(' ').for_each(|word| out.emit(Word { word }))`.
    pub fn flat_map<U, F>(self, function: F) -> Stream<U, FlatMap<S, F, U>>
    where
        U: EmitRow,
        F: Fn(R::View<'_>, &mut Emitter<'_, U>) + Send + 'static,
    {
        self.then(|stage| FlatMap::new(stage, function))
    }

    /// Takes event time from a column, with watermarks for rows that come out of order. Directly after a source it
    /// is done for each split of the source by itself, which is best.
    pub fn watermark<C: TimeColumn>(
        self,
        column: impl FnOnce(R::Columns) -> C,
        bound: BoundedOutOfOrderness,
    ) -> Stream<R> {
        let stream = self.share();
        let column = column(R::handles(&mut Places::new(stream.columns())));
        let own = bound.event_time(column.column());
        {
            let mut graph = stream.graph.borrow_mut();
            if let Some(NodeKind::Source { event_time: event_time @ None, .. }) =
                graph.node_mut(stream.node).map(|n| &mut n.kind)
            {
                *event_time = Some(own);
                drop(graph);
                return stream;
            }
        }
        stream.passing(NodeKind::AssignEventTime(own), "watermark")
    }

    /// Divides the stream by key, for windows, process functions and joins.
    pub fn key_by<K: KeyColumns>(self, key: impl FnOnce(R::Columns) -> K) -> KeyedStream<K::Key, R> {
        let stream = self.share();
        let key = key(R::handles(&mut Places::new(stream.columns()))).columns();
        KeyedStream::new(stream, key)
    }

    /// The rows of both.
    pub fn union<S2: Stage<Out = R>>(self, other: Stream<R, S2>) -> Stream<R> {
        let (first, second) = (self.share(), other.share());
        let columns = first.columns().to_vec();
        let graph = Rc::clone(&first.graph);
        let node = {
            let mut graph = graph.borrow_mut();
            let outputs = vec![passing(&graph, &first)];
            graph.add(Label::default().or("union"), vec![first.input(), second.input()], outputs, NodeKind::Union, None)
        };
        Stream::direct(graph, node, 0, columns)
    }

    /// Spreads the rows evenly over the subtasks of what follows.
    pub fn rebalance(self) -> Stream<R> {
        Stream { exchange: Exchange::Rebalance, ..self.share() }
    }

    /// Sends every row to every subtask of what follows.
    pub fn broadcast(self) -> Stream<R> {
        Stream { exchange: Exchange::Broadcast, ..self.share() }
    }

    /// Rows to outside. The job's manifest binds `binding` to a connector.
    pub fn sink(self, binding: &str) -> Sink {
        let stream = self.share();
        let graph = Rc::clone(&stream.graph);
        let kind = NodeKind::Sink { binding: binding.to_owned() };
        let label = Label::of(&format!("sink-{binding}"), binding);
        let node = graph.borrow_mut().add(label, vec![stream.input()], Vec::new(), kind, None);
        Sink { graph, node }
    }

    /// Ends the chain of functions here, so that the stream can be used several times (`clone`) without running them
    /// each time.
    pub fn share(self) -> Stream<R> {
        let Self { graph, node, port, exchange, label, stage } = self;
        if let Some(columns) = stage.identity() {
            let columns = columns.to_vec();
            return Stream { exchange, ..Stream::direct(graph, node, port, columns) };
        }
        let mut names = Vec::new();
        stage.describe(&mut names);
        let (node, columns) = {
            let mut graph = graph.borrow_mut();
            let mut reads = Reads::new(graph.fields(node, port));
            let made = stage.into_node(&mut reads);
            let reads = reads.into_columns();
            let input = Input { node, port, exchange, reads };
            let kind = NodeKind::Transform { reads_timestamps: false };
            let label = label.or(&names.join("+"));
            (graph.add(label, vec![input], made.outputs, kind, Some(made.runtime)), made.columns)
        };
        Stream::direct(graph, node, 0, columns)
    }

    /// Names the operator across versions of the job: its state is matched by this. For a chain of functions, names
    /// the chain.
    pub fn uid(mut self, uid: &str) -> Self {
        match self.last_node() {
            Some(node) => set(&self.graph, node, |n| n.uid = uid.to_owned()),
            None => self.label.uid = Some(uid.to_owned()),
        }
        self
    }

    /// Names the operator for people.
    pub fn name(mut self, name: &str) -> Self {
        match self.last_node() {
            Some(node) => set(&self.graph, node, |n| n.name = name.to_owned()),
            None => self.label.name = Some(name.to_owned()),
        }
        self
    }

    /// How many subtasks the operator has, if not as many as the job.
    pub fn parallelism(mut self, parallelism: u32) -> Self {
        match self.last_node() {
            Some(node) => set(&self.graph, node, |n| n.parallelism = Some(parallelism)),
            None => self.label.parallelism = Some(parallelism),
        }
        self
    }

    fn last_node(&self) -> Option<u32> {
        self.stage.identity().is_some().then_some(self.node)
    }

    fn then<U: Row, T: Stage<Out = U>>(self, adapt: impl FnOnce(S) -> T) -> Stream<U, T> {
        let Self { graph, node, port, exchange, label, stage } = self;
        Stream { graph, node, port, exchange, label, stage: adapt(stage) }
    }
}

impl<R: Row> Stream<R> {
    /// A node that hands on all columns.
    fn passing(self, kind: NodeKind, base: &str) -> Stream<R> {
        let graph = Rc::clone(&self.graph);
        let columns = self.columns().to_vec();
        let node = {
            let mut graph = graph.borrow_mut();
            let outputs = vec![passing(&graph, &self)];
            graph.add(Label::default().or(base), vec![self.input()], outputs, kind, None)
        };
        Stream::direct(graph, node, 0, columns)
    }
}

fn passing<R: Row>(graph: &Graph, stream: &Stream<R>) -> Output {
    let fields = graph.fields(stream.node, stream.port).iter().enumerate();
    let fields = fields
        .map(|(i, f)| OutputField { field: f.field.clone(), origin: Origin::Input { input: 0, column: i as u32 } });
    Output { name: "main".to_owned(), fields: fields.collect() }
}

fn set(graph: &SharedGraph, node: u32, change: impl FnOnce(&mut tidemill_plan::Node)) {
    if let Some(node) = graph.borrow_mut().node_mut(node) {
        change(node);
    }
}

/// A column that can hold event time.
#[diagnostic::on_unimplemented(
    message = "event time is a column of type `Timestamp`, not `{Self}`",
    label = "not a timestamp column",
    note = "declare the field as `Timestamp` (the source's connector converts it) and name it: `|b| b.date_time`"
)]
pub trait TimeColumn {
    /// Its index.
    #[doc(hidden)]
    fn column(self) -> u32;
}

impl TimeColumn for Col<Timestamp> {
    fn column(self) -> u32 {
        self.index()
    }
}

/// A row without one is malformed.
impl TimeColumn for Col<Option<Timestamp>> {
    fn column(self) -> u32 {
        self.index()
    }
}

/// The end of a stream.
#[derive(Debug)]
pub struct Sink {
    graph: SharedGraph,
    node: u32,
}

impl Sink {
    /// Names the sink across versions of the job.
    pub fn uid(self, uid: &str) -> Self {
        set(&self.graph, self.node, |n| n.uid = uid.to_owned());
        self
    }

    /// Names the sink for people.
    pub fn name(self, name: &str) -> Self {
        set(&self.graph, self.node, |n| n.name = name.to_owned());
        self
    }

    /// How many subtasks it has, if not as many as the job.
    pub fn parallelism(self, parallelism: u32) -> Self {
        set(&self.graph, self.node, |n| n.parallelism = Some(parallelism));
        self
    }
}
