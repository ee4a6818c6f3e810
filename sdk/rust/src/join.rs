//! Joins: the host brings together rows with equal keys, the user's function makes rows of the pairs.

use std::rc::Rc;
use std::time::Duration;

use tidemill_plan::{NodeKind, Origin, Output};

use crate::flow::Label;
use crate::keyed::{KeyColumns, KeyedStream};
use crate::row::{EmitRow, IntoRow, Row};
use crate::stage::{Emitter, Stage};
use crate::stream::Stream;
use crate::time::millis_i64;
use crate::window::{Fields, JoinWindowKind};

/// Two streams that are to be joined.
#[derive(Debug)]
#[must_use = "a join does nothing by itself: go on with `.on(|l| l.id, |r| r.id)`"]
pub struct JoinPair<L: Row, R: Row> {
    left: Stream<L>,
    right: Stream<R>,
}

impl<L: Row, R: Row> JoinPair<L, R> {
    pub(crate) fn new(left: Stream<L>, right: Stream<R>) -> Self {
        Self { left, right }
    }

    /// By which keys: rows come together if these are equal.
    pub fn on<KL: KeyColumns, KR: KeyColumns<Key = KL::Key>>(
        self,
        left: impl FnOnce(L::Columns) -> KL,
        right: impl FnOnce(R::Columns) -> KR,
    ) -> JoinOn<L, R, KL> {
        JoinOn { left: self.left.key_by(left), right: self.right.key_by(right) }
    }
}

/// Two streams divided by the same key.
#[derive(Debug)]
#[must_use = "a join does nothing by itself: go on with `.window(...)` or `.interval(lower, upper)`"]
pub struct JoinOn<L: Row, R: Row, K: KeyColumns> {
    left: KeyedStream<K::Key, L>,
    right: KeyedStream<K::Key, R>,
}

impl<L: Row, R: Row, K: KeyColumns> JoinOn<L, R, K> {
    /// Pairs of rows that are in the same window.
    pub fn window<W: JoinWindowKind>(self, windows: W) -> Joined<L, R> {
        self.joined(NodeKind::WindowJoin { windows: windows.windows() }, "window-join")
    }

    /// Pairs of rows with `left.time + lower <= right.time <= left.time + upper`.
    pub fn interval(self, lower: impl Into<Offset>, upper: impl Into<Offset>) -> Joined<L, R> {
        let (lower_ms, upper_ms) = (lower.into().0, upper.into().0);
        self.joined(NodeKind::IntervalJoin { lower_ms, upper_ms }, "interval-join")
    }

    fn joined(self, kind: NodeKind, base: &str) -> Joined<L, R> {
        let Self { left, right } = self;
        let graph = Rc::clone(&left.stream.graph);
        let node = {
            let mut graph = graph.borrow_mut();
            let mut fields = Fields::default();
            let sides = [
                (&left.stream.node, left.stream.port, left.stream.columns()),
                (&right.stream.node, right.stream.port, right.stream.columns()),
            ];
            for (input, (node, port, columns)) in sides.into_iter().enumerate() {
                for &column in columns {
                    if let Some(field) = graph.fields(*node, port).get(column as usize) {
                        fields.add(field.field.clone(), Origin::Input { input: input as u32, column });
                    }
                }
            }
            let outputs = vec![Output { name: "main".to_owned(), fields: fields.0 }];
            let inputs = vec![left.input(Vec::new()), right.input(Vec::new())];
            graph.add(Label::default().or(base), inputs, outputs, kind, None)
        };
        Joined { pairs: Stream::direct(graph, node, 0, (0..(L::WIDTH + R::WIDTH) as u32).collect()) }
    }
}

/// A distance in time that may be negative, in milliseconds: from a duration, or `before(secs(10))`.
#[derive(Clone, Copy, Debug)]
pub struct Offset(i64);

impl From<Duration> for Offset {
    fn from(duration: Duration) -> Self {
        Self(millis_i64(duration))
    }
}

/// So much earlier: `.interval(before(secs(10)), secs(0))`.
pub fn before(duration: Duration) -> Offset {
    Offset(-millis_i64(duration))
}

/// Pairs of rows.
#[derive(Debug)]
#[must_use = "pairs that lead nowhere do nothing: go on with `.map(|l, r| ...)`"]
pub struct Joined<L: Row, R: Row> {
    pairs: Stream<(L, R)>,
}

impl<L: Row, R: Row> Joined<L, R> {
    /// Makes a row of each pair.
    pub fn map<U, F>(self, function: F) -> Stream<U::Row, impl Stage<Out = U::Row>>
    where
        U: IntoRow + 'static,
        F: Fn(L::View<'_>, R::View<'_>) -> U + Send + 'static,
    {
        self.pairs.map(move |pair: (L::View<'_>, R::View<'_>)| function(pair.0, pair.1))
    }

    /// Makes any number of rows of each pair; they may borrow from it.
    pub fn flat_map<U, F>(self, function: F) -> Stream<U, impl Stage<Out = U>>
    where
        U: EmitRow,
        F: Fn(L::View<'_>, R::View<'_>, &mut Emitter<'_, U>) + Send + 'static,
    {
        self.pairs.flat_map(move |pair: (L::View<'_>, R::View<'_>), out: &mut Emitter<'_, U>| {
            function(pair.0, pair.1, out);
        })
    }

    /// The pairs as rows, for `.filter(|(l, r)| ...)` and for a sink, with the columns of both.
    pub fn pairs(self) -> Stream<(L, R)> {
        self.pairs
    }

    /// Names the join across versions of the job: its state is matched by this.
    pub fn uid(self, uid: &str) -> Self {
        Self { pairs: self.pairs.uid(uid) }
    }

    /// Names the join for people.
    pub fn name(self, name: &str) -> Self {
        Self { pairs: self.pairs.name(name) }
    }
}
