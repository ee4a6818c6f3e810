//! A row as text for people: in dead letters and errors.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Map, Value};
use tidemill_core::Batch;
use tidemill_core::operator::DeadLetter;
use tidemill_core::time::Timestamp;

/// A record in a dead letter is cut here: enough to recognise and usually to replay it, and a flood of letters with
/// long texts stays bounded.
const MAX_RECORD_BYTES: usize = 8 << 10;
/// A reason is cut here; the backtrace of a trap is the longest.
const MAX_REASON_BYTES: usize = 4 << 10;

/// Writes rows of one schema as JSON.
#[derive(Clone, Debug)]
pub struct RecordText {
    schema: SchemaRef,
}

impl RecordText {
    /// For batches with these columns.
    pub fn new(schema: SchemaRef) -> Self {
        Self { schema }
    }

    /// A row as a JSON object of its columns: numbers, booleans and text as such, times in milliseconds, what is
    /// nested as text. Cut where it is very long.
    pub fn json(&self, batch: &Batch, row: usize) -> String {
        let mut object = Map::new();
        for (field, column) in self.schema.fields().iter().zip(batch.columns()) {
            object.insert(field.name().clone(), value(column, row));
        }
        cut(Value::Object(object).to_string(), MAX_RECORD_BYTES)
    }

    /// A dead letter of a row.
    pub fn letter(&self, batch: &Batch, row: usize, reason: String) -> DeadLetter {
        DeadLetter {
            reason: cut(reason, MAX_REASON_BYTES),
            record: self.json(batch, row),
            timestamp: batch.timestamps().and_then(|t| t.get(row).copied()).map(Timestamp),
        }
    }
}

fn value(column: &ArrayRef, row: usize) -> Value {
    if row >= column.len() || column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Boolean => Value::Bool(column.as_boolean().value(row)),
        DataType::Utf8View => Value::String(column.as_string_view().value(row).to_owned()),
        DataType::Timestamp(_, _) => {
            Value::from(column.as_primitive::<arrow::datatypes::TimestampMillisecondType>().value(row))
        }
        number => {
            let text = ArrayFormatter::try_new(column, &FormatOptions::default()).map(|f| f.value(row).to_string());
            let text = text.unwrap_or_else(|error| format!("<{error}>"));
            if number.is_numeric() {
                text.parse().map_or(Value::String(text), Value::Number)
            } else {
                Value::String(text)
            }
        }
    }
}

fn cut(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let end = (0..=bytes).rev().find(|&i| text.is_char_boundary(i)).unwrap_or_default();
        let left_out = text.len() - end;
        text.truncate(end);
        text.push_str(&format!("... ({left_out} bytes cut)"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array, StringViewArray};
    use tidemill_core::plan;
    use tidemill_core::types::arrow_schema;

    use super::*;

    #[test]
    fn a_row_is_json_and_never_too_long() {
        let field = |name: &str, t| plan::Field::new(name, t, true);
        let fields =
            [field("n", plan::DataType::Int64), field("f", plan::DataType::Float64), field("t", plan::DataType::Utf8)];
        let long = "ü".repeat(MAX_RECORD_BYTES);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![Some(-1), None])),
            Arc::new(Float64Array::from(vec![0.5, f64::NAN])),
            Arc::new(StringViewArray::from(vec!["a \"b\"", long.as_str()])),
        ];
        let batch = Batch::new(2, columns, None).unwrap();
        let text = RecordText::new(arrow_schema(&fields));
        assert_eq!(text.json(&batch, 0), r#"{"f":0.5,"n":-1,"t":"a \"b\""}"#);
        let cut = text.json(&batch, 1);
        assert!(cut.starts_with(r#"{"f":"NaN","n":null"#) && cut.len() < MAX_RECORD_BYTES + 64, "{}", cut.len());
    }
}
