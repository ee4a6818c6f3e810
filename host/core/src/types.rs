//! The plan's types as Arrow types.
//!
//! Text and bytes are *views* inside the host (`Utf8View`, `BinaryView`): a row that is filtered, exchanged or joined
//! moves 16 bytes per text, not the text. Only at the sandbox's boundary are they laid out classically.

use std::sync::Arc;

use arrow::datatypes::{DataType as ArrowType, Field as ArrowField, Fields, Schema, SchemaRef, TimeUnit};
use tidemill_plan::{DataType, Field, State, StateKind};

/// The Arrow type in which the host holds a plan type.
pub fn arrow_type(data_type: &DataType) -> ArrowType {
    match data_type {
        DataType::Boolean => ArrowType::Boolean,
        DataType::Int8 => ArrowType::Int8,
        DataType::Int16 => ArrowType::Int16,
        DataType::Int32 => ArrowType::Int32,
        DataType::Int64 => ArrowType::Int64,
        DataType::UInt8 => ArrowType::UInt8,
        DataType::UInt16 => ArrowType::UInt16,
        DataType::UInt32 => ArrowType::UInt32,
        DataType::UInt64 => ArrowType::UInt64,
        DataType::Float32 => ArrowType::Float32,
        DataType::Float64 => ArrowType::Float64,
        DataType::Utf8 => ArrowType::Utf8View,
        DataType::Binary => ArrowType::BinaryView,
        DataType::Timestamp => ArrowType::Timestamp(TimeUnit::Millisecond, None),
        DataType::Date => ArrowType::Date32,
        DataType::Struct(fields) => ArrowType::Struct(fields.iter().map(arrow_field).collect::<Fields>()),
        DataType::List(item) => ArrowType::List(Arc::new(arrow_field(item))),
    }
}

/// The Arrow field of a plan field.
pub fn arrow_field(field: &Field) -> ArrowField {
    ArrowField::new(&field.name, arrow_type(&field.data_type), field.nullable)
}

/// The Arrow schema of plan fields.
pub fn arrow_schema<'a>(fields: impl IntoIterator<Item = &'a Field>) -> SchemaRef {
    Arc::new(Schema::new(fields.into_iter().map(arrow_field).collect::<Fields>()))
}

/// The Arrow type in which a state of a key is kept, in memory and in snapshots. Lists and maps are told apart from values by
/// it: no plan type is a `LargeList` or a `Map`. (Of a broadcast state each entry is kept for itself, of an operator list each
/// item.)
pub fn state_type(state: &State) -> ArrowType {
    let value = || arrow_type(&state.data_type);
    match &state.kind {
        StateKind::Value => value(),
        StateKind::List | StateKind::OperatorList { .. } => {
            ArrowType::LargeList(Arc::new(ArrowField::new("item", value(), true)))
        }
        StateKind::Map { key } | StateKind::Broadcast { key } => {
            let entry = map_entry(arrow_type(key), value());
            ArrowType::Map(Arc::new(ArrowField::new("entries", ArrowType::Struct(entry), false)), true)
        }
    }
}

/// The fields of a map's entries.
pub fn map_entry(key: ArrowType, value: ArrowType) -> Fields {
    vec![ArrowField::new("key", key, false), ArrowField::new("value", value, true)].into()
}

/// What the column is called that has the times of a state's last accesses.
pub fn last_access_name(state: &str) -> String {
    format!("{state}.last_access")
}
