//! Streams divided by key.

use tidemill_plan::{Exchange, Input};

use crate::join::JoinPair;
use crate::row::{Col, One, Row};
use crate::stage::Stage;
use crate::stream::Stream;
use crate::value::Value;
use crate::window::{WindowKind, WindowedStream};

/// What a key is made of: one column, or a tuple of columns; `()` is one key for all.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be a key",
    label = "not a column",
    note = "a key is a column or a tuple of columns, named and not computed: `|b| b.auction`, `|b| (b.origin, b.hour)`. \
            Compute a key in a `.map` before"
)]
pub trait KeyColumns {
    /// The key's type.
    type Key: Key;

    /// The indices of its columns.
    #[doc(hidden)]
    fn columns(self) -> Vec<u32>;
}

/// A type of key.
pub trait Key: 'static {
    /// Its columns.
    type Row: Row;
}

impl<T: Value> Key for T {
    type Row = One<T>;
}

impl<T: Value> KeyColumns for Col<T> {
    type Key = T;

    fn columns(self) -> Vec<u32> {
        vec![self.index()]
    }
}

macro_rules! tuples {
    ($(($($key:ident $at:tt),*))*) => {$(
        impl<$($key: Value),*> Key for ($($key,)*) {
            type Row = ($(One<$key>,)*);
        }

        impl<$($key: Value),*> KeyColumns for ($(Col<$key>,)*) {
            type Key = ($($key,)*);

            fn columns(self) -> Vec<u32> {
                vec![$(self.$at.index()),*]
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

/// One key, as user code sees it.
pub type KeyView<'a, K> = <<K as Key>::Row as Row>::View<'a>;

/// A stream divided by key.
#[derive(Debug)]
#[must_use = "a keyed stream does nothing by itself: go on with `.window(...)`, `.process(...)`"]
pub struct KeyedStream<K: Key, R: Row> {
    pub(crate) stream: Stream<R>,
    pub(crate) key: Vec<u32>,
    pub(crate) marker: std::marker::PhantomData<fn() -> K>,
}

impl<K: Key, R: Row> KeyedStream<K, R> {
    pub(crate) fn new(stream: Stream<R>, key: Vec<u32>) -> Self {
        Self { stream, key, marker: std::marker::PhantomData }
    }

    /// Gathers the rows of each key into windows of event time.
    pub fn window<W: WindowKind>(self, windows: W) -> WindowedStream<K, R> {
        WindowedStream::new(self, windows.windows())
    }

    pub(crate) fn input(&self, reads: Vec<u32>) -> Input {
        Input { exchange: Exchange::Hash(self.key.clone()), reads, ..self.stream.input() }
    }
}

impl<R: Row, S: Stage<Out = R>> Stream<R, S> {
    /// Gathers all rows into windows of event time, not divided by key: all of it runs in one subtask.
    pub fn window_all<W: WindowKind>(self, windows: W) -> WindowedStream<(), R> {
        self.key_by(|_| ()).window(windows)
    }

    /// Brings together rows of both streams: go on with `.on(|l| l.id, |r| r.id)`.
    pub fn join<R2: Row, S2: Stage<Out = R2>>(self, right: Stream<R2, S2>) -> JoinPair<R, R2> {
        JoinPair::new(self.share(), right.share())
    }
}
