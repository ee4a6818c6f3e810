//! The portable format of snapshots: a file, as bytes, and what it says about itself (`docs/state-format.md`).
//!
//! Not here: which files make up a state and how they are merged (`restore`), and where they are (the store).
//!
//! Invariant: whatever the bytes are, reading ends in content of the announced shape or in an error that names the file.

mod read;
mod write;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use tidemill_core::keys::KeyCodec;
use tidemill_core::snapshot::KeyGroupRange;
use tidemill_core::state::{LastAccess, ValueSpec};
use tidemill_core::{Error, Result};

use crate::framed::{Magic, Place};

pub(crate) use self::read::PortableFile;
pub(crate) use self::write::{Layout, alone, batches, concatenated, divided, write_files};

/// Opens and closes a file.
const MAGIC: &Magic = b"TMSTATE1";

/// What a part of an operator's state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartKind {
    /// A table: entries by namespace and key.
    Table,
    /// A row log: rows by namespace.
    Log,
    /// Timers of event time.
    EventTimers,
    /// Timers of processing time.
    ProcessingTimers,
}

/// What a file says about itself, at its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Footer {
    pub(crate) operator: String,
    /// By which the key groups are counted.
    pub(crate) max_parallelism: u16,
    /// Whose keys are in the file.
    pub(crate) key_groups: KeyGroupRange,
    /// Number of key columns.
    pub(crate) keys: usize,
    /// It needs no file of an earlier snapshot.
    pub(crate) base: bool,
    /// The file belongs to a savepoint, which is to stay whole on its own.
    pub(crate) savepoint: bool,
    pub(crate) parts: Vec<Part>,
}

/// What a file has of a part.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    pub(crate) kind: PartKind,
    pub(crate) name: String,
    /// An Arrow stream without rows.
    pub(crate) schema: Place,
    /// In the order in which they are applied.
    pub(crate) blocks: Vec<Block>,
}

/// Rows of a range of key groups, an Arrow stream.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Block {
    pub(crate) change: Change,
    pub(crate) key_groups: KeyGroupRange,
    pub(crate) rows: u64,
    pub(crate) place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    /// Namespaces of which nothing is there.
    Dropped,
    /// Entries that are there no more.
    Removed,
    /// Entries that are there, with their values.
    Put,
}

/// The columns of a part: of an entry in `Put` blocks; `Removed` blocks have those up to the key, `Dropped` ones the first.
pub(crate) fn schema(kind: PartKind, codec: &KeyCodec, values: &[ValueSpec]) -> SchemaRef {
    let lead = match kind {
        PartKind::Table | PartKind::Log => "namespace",
        PartKind::EventTimers | PartKind::ProcessingTimers => "time",
    };
    let mut fields = vec![Field::new(lead, DataType::Int64, false)];
    let keys = codec.types().iter().enumerate();
    fields.extend(keys.map(|(i, t)| Field::new(format!("key{i}"), t.clone(), !codec.is_fixed())));
    fields.extend((kind == PartKind::Log).then(|| Field::new("timestamp", DataType::Int64, true)));
    fields.extend(values.iter().map(value_field));
    Arc::new(Schema::new(fields))
}

/// In the metadata of a column of last accesses: the name of the value that it is about.
const LAST_ACCESS_OF: &str = "tidemill.last_access_of";

/// And how long that lives after it, in milliseconds.
const TTL_MS: &str = "tidemill.ttl_ms";

fn value_field(value: &ValueSpec) -> Field {
    let field = Field::new(&value.name, value.data_type.clone(), true);
    let Some(last) = &value.last_access else { return field };
    let metadata = [(LAST_ACCESS_OF, last.of.clone()), (TTL_MS, last.ttl_ms.to_string())];
    let metadata: std::collections::HashMap<String, String> =
        metadata.map(|(key, value)| (key.to_owned(), value)).into();
    field.with_metadata(metadata)
}

/// How long the value lives whose last accesses a column has. What is not as we write it says nothing.
pub(crate) fn last_access_of(field: &Field) -> Option<LastAccess> {
    let of = field.metadata().get(LAST_ACCESS_OF)?.clone();
    let ttl_ms = field.metadata().get(TTL_MS)?.parse().ok().filter(|ttl| *ttl > 0)?;
    let time = matches!(field.data_type(), DataType::Timestamp(arrow::datatypes::TimeUnit::Millisecond, None));
    time.then_some(LastAccess { of, ttl_ms, begin_ms: i64::MAX })
}

/// How many of a part's columns a block has.
pub(crate) fn width(change: Change, keys: usize, schema: &Schema) -> usize {
    match change {
        Change::Dropped => 1,
        Change::Removed => 1 + keys,
        Change::Put => schema.fields().len(),
    }
}

/// The columns of a part's values back from its schema.
pub(crate) fn values_of(kind: PartKind, keys: usize, schema: &Schema) -> Vec<ValueSpec> {
    let before = 1 + keys + usize::from(kind == PartKind::Log);
    let values = schema.fields().iter().skip(before);
    let spec = |f: &Arc<Field>| ValueSpec {
        last_access: last_access_of(f),
        ..ValueSpec::new(f.name(), f.data_type().clone())
    };
    values.map(spec).collect()
}

/// The codec of the keys back from a part's schema.
pub(crate) fn codec_of(keys: usize, schema: &Schema) -> Result<KeyCodec> {
    let fields: Vec<_> = schema.fields().iter().skip(1).take(keys).collect();
    if fields.len() < keys {
        return Err(Error::invalid("it has a part without all of its key columns"));
    }
    let types: Vec<DataType> = fields.iter().map(|f| f.data_type().clone()).collect();
    KeyCodec::new(&types, fields.iter().any(|f| f.is_nullable()))
}
