//! The records of `wit/tidemill.wit` as they are lowered into and lifted out of a guest. Names and order of fields are
//! the contract's; the engine compares them with the component's types when it links.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Lower, WasmList};

use crate::lift::RawColumn;

#[derive(Clone, Copy, Debug, ComponentType, Lower)]
#[component(record)]
pub(crate) struct Column<'a> {
    pub(crate) validity: &'a [u8],
    pub(crate) offsets: &'a [u8],
    pub(crate) values: &'a [u8],
}

/// A column that an import answers.
#[derive(Clone, Debug, ComponentType, Lower)]
#[component(record)]
pub(crate) struct AnsweredColumn {
    pub(crate) validity: Vec<u8>,
    pub(crate) offsets: Vec<u8>,
    pub(crate) values: Vec<u8>,
}

impl From<Column<'_>> for AnsweredColumn {
    fn from(column: Column<'_>) -> Self {
        let Column { validity, offsets, values } = column;
        Self { validity: validity.to_vec(), offsets: offsets.to_vec(), values: values.to_vec() }
    }
}

#[derive(Clone, Copy, Debug, ComponentType, Lower)]
#[component(record)]
pub(crate) struct Batch<'a> {
    pub(crate) rows: u32,
    pub(crate) timestamps: &'a [u8],
    pub(crate) columns: &'a [Column<'a>],
}

#[derive(Clone, Copy, Debug, ComponentType, Lower)]
#[component(record)]
pub(crate) struct KeySet<'a> {
    pub(crate) keys: u32,
    #[component(name = "key-of-row")]
    pub(crate) key_of_row: &'a [u8],
    pub(crate) states: &'a [Column<'a>],
}

#[derive(Clone, Copy, Debug, ComponentType, Lower)]
#[component(record)]
pub(crate) struct Clock {
    pub(crate) watermark: i64,
    #[component(name = "processing-time")]
    pub(crate) processing_time: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lower, Lift)]
#[component(enum)]
#[repr(u8)]
pub(crate) enum TimeDomain {
    #[component(name = "event-time")]
    EventTime,
    #[component(name = "processing-time")]
    ProcessingTime,
}

#[derive(Clone, Copy, Debug, ComponentType, Lower)]
#[component(record)]
pub(crate) struct Subtask {
    pub(crate) node: u32,
    pub(crate) index: u32,
    pub(crate) parallelism: u32,
    pub(crate) seed: u64,
}

#[derive(Clone, Debug, ComponentType, Lift)]
#[component(record)]
pub(crate) struct RowFailure {
    pub(crate) row: u32,
    pub(crate) reason: String,
}

#[derive(Clone, Debug, ComponentType, Lift)]
#[component(variant)]
pub(crate) enum Failure {
    #[component(name = "retry")]
    Retry(String),
    #[component(name = "rows")]
    Rows(Vec<RowFailure>),
    #[component(name = "fatal")]
    Fatal(String),
}

#[derive(Clone, Copy, Debug, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "lifted from the guest by the derived code, never written here")]
pub(crate) enum Level {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

impl From<Level> for tidemill_core::log::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Debug => Self::Debug,
            Level::Info => Self::Info,
            Level::Warn => Self::Warn,
            Level::Error => Self::Error,
        }
    }
}

/// A column that a guest hands over, still in its memory.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct GuestColumn {
    validity: WasmList<u8>,
    offsets: WasmList<u8>,
    values: WasmList<u8>,
}

impl GuestColumn {
    /// The bytes, in place.
    pub(crate) fn raw<'a, T: 'static>(&self, store: &'a StoreContextMut<'_, T>) -> RawColumn<'a> {
        RawColumn {
            validity: self.validity.as_le_slice(store),
            offsets: self.offsets.as_le_slice(store),
            values: self.values.as_le_slice(store),
        }
    }
}

pub(crate) type Answer = (Result<(), Failure>,);
