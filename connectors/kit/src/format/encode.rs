//! Columns to text: JSON lines, CSV, or the one text column as raw lines.
//!
//! Written row by row straight into one byte vector, since a general writer spends most of its time on what a flat row
//! does not need. Nested columns (JSON only) are rare, and are left to `arrow-json`.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, RecordBatch, RecordBatchOptions, StringViewArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, SchemaRef, TimeUnit,
    TimestampMillisecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use tidemill_core::Batch;
use tidemill_core::error::{Error, Result};

use super::time;
use crate::options::{Key, OptionSpec, Options};

const FORMAT: Key<String> =
    Key::new("format", "How a row is written: a JSON object, CSV fields, or the only column as it is.")
        .or("json")
        .one_of(&["json", "csv", "lines"]);
const DELIMITER: Key<char> = Key::new("delimiter", "CSV: what stands between two fields.").or(",");
const HEADER: Key<bool> = Key::new("header", "CSV: whether the first line names the columns.").or("true");
const NULL: Key<String> = Key::new("null", "CSV: how null is written.").or("");
const TIMESTAMPS: Key<String> =
    Key::new("timestamps", "Whether timestamps are written as ISO 8601 text or as milliseconds since 1970.")
        .or("iso")
        .one_of(&["iso", "ms"]);

/// How rows are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodeFormat {
    kind: Kind,
    delimiter: u8,
    header: bool,
    null: String,
    iso: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Json,
    Csv,
    Lines,
}

impl EncodeFormat {
    /// JSON lines with the default options.
    pub fn json() -> Self {
        Self { kind: Kind::Json, delimiter: b',', header: true, null: String::new(), iso: true }
    }

    /// The options that choose a format, for a sink's declaration.
    pub fn options() -> Vec<OptionSpec> {
        vec![FORMAT.spec(), DELIMITER.spec(), HEADER.spec(), NULL.spec(), TIMESTAMPS.spec()]
    }

    /// From options that were declared with [`EncodeFormat::options`].
    pub fn from_options(options: &Options) -> Result<Self> {
        let kind = match options.need(&FORMAT)?.as_str() {
            "csv" => Kind::Csv,
            "lines" => Kind::Lines,
            _ => Kind::Json,
        };
        let delimiter = super::delimiter(options, &DELIMITER)?;
        let null = options.need(&NULL)?;
        if null.contains(['"', '\n', '\r', char::from(delimiter)]) {
            return Err(options.error(&NULL, "it may not contain the delimiter, a quote or a line break"));
        }
        let iso = options.need(&TIMESTAMPS)? == "iso";
        Ok(Self { kind, delimiter, header: options.need(&HEADER)?, null, iso })
    }

    /// The usual end of a file's name.
    pub fn extension(&self) -> &'static str {
        match self.kind {
            Kind::Json => "jsonl",
            Kind::Csv => "csv",
            Kind::Lines => "txt",
        }
    }

    /// An encoder for these columns, or why they can't be written so.
    pub fn encoder(&self, schema: &SchemaRef) -> Result<Encoder> {
        let nested = schema.fields().iter().find(|f| f.data_type().is_nested());
        match self.kind {
            Kind::Csv | Kind::Lines if nested.is_some() => {
                let name = nested.map(|f| f.name().as_str()).unwrap_or_default();
                return Err(Error::invalid(format!(
                    "column '{name}' is nested, which format \"csv\" or \"lines\" can't write"
                ))
                .mend("use format = \"json\", or map the rows to flat columns"));
            }
            Kind::Lines if !matches!(schema.fields().as_ref(), [f] if *f.data_type() == DataType::Utf8View) => {
                return Err(Error::invalid(format!(
                    "format \"lines\" writes one text column, not {} columns",
                    schema.fields().len()
                ))
                .mend("use format = \"json\" or \"csv\", or map the rows to one text column"));
            }
            _ => {}
        }
        if let Some(field) = schema.fields().iter().find(|f| !f.data_type().is_nested() && !is_written(f.data_type())) {
            return Err(Error::internal(format!("column '{}' has the type {}", field.name(), field.data_type())));
        }
        let mut keys = Vec::with_capacity(schema.fields().len());
        for (i, field) in schema.fields().iter().enumerate() {
            let mut key = vec![if i == 0 { b'{' } else { b',' }];
            json_text(field.name().as_bytes(), &mut key);
            key.push(b':');
            keys.push(key);
        }
        Ok(Encoder { format: self.clone(), schema: schema.clone(), keys, nested: nested.is_some() })
    }
}

/// Writes batches of one schema.
#[derive(Debug)]
pub struct Encoder {
    format: EncodeFormat,
    schema: SchemaRef,
    /// What stands before each value of a JSON object.
    keys: Vec<Vec<u8>>,
    nested: bool,
}

impl Encoder {
    /// Appends what stands before the first row of a file: the names of the columns, for CSV.
    pub fn header(&self, out: &mut Vec<u8>) {
        if self.format.kind != Kind::Csv || !self.format.header {
            return;
        }
        for (i, field) in self.schema.fields().iter().enumerate() {
            if i > 0 {
                out.push(self.format.delimiter);
            }
            csv_text(field.name().as_bytes(), &self.format, out);
        }
        out.push(b'\n');
    }

    /// Appends the rows of a batch, each with its line break.
    pub fn encode(&self, batch: &Batch, out: &mut Vec<u8>) -> Result<()> {
        if batch.columns().len() != self.schema.fields().len() {
            let (found, expected) = (batch.columns().len(), self.schema.fields().len());
            return Err(Error::internal(format!("a batch of {found} columns where {expected} are written")));
        }
        if self.nested {
            return self.encode_nested(batch, out);
        }
        let cells = batch.columns().iter().map(Cells::new).collect::<Result<Vec<_>>>()?;
        match self.format.kind {
            Kind::Json => self.encode_json(batch.rows(), &cells, out),
            Kind::Csv => self.encode_csv(batch.rows(), &cells, out),
            Kind::Lines => encode_lines(batch.rows(), &cells, out),
        }
        Ok(())
    }

    fn encode_json(&self, rows: usize, cells: &[Cells<'_>], out: &mut Vec<u8>) {
        for row in 0..rows {
            for (key, cells) in self.keys.iter().zip(cells) {
                out.extend_from_slice(key);
                if cells.is_null(row) {
                    out.extend_from_slice(b"null");
                } else {
                    self.json_value(&cells.values, row, out);
                }
            }
            out.extend_from_slice(if self.keys.is_empty() { b"{}\n" } else { b"}\n" });
        }
    }

    #[inline]
    fn json_value(&self, values: &Values<'_>, row: usize, out: &mut Vec<u8>) {
        match values {
            Values::Text(texts) => json_text(texts.value(row).as_bytes(), out),
            Values::Bytes(bytes) => {
                out.push(b'"');
                hex(bytes.value(row), out);
                out.push(b'"');
            }
            Values::Timestamp(_) | Values::Date(_) if self.format.iso => {
                let start = out.len();
                out.push(b'"');
                if !values.push_time(row, out) {
                    out.truncate(start);
                    values.push_plain(row, out);
                    return;
                }
                out.push(b'"');
            }
            // JSON has neither infinities nor "not a number".
            Values::F32(v) if v.get(row).is_some_and(|v| !v.is_finite()) => out.extend_from_slice(b"null"),
            Values::F64(v) if v.get(row).is_some_and(|v| !v.is_finite()) => out.extend_from_slice(b"null"),
            _ => values.push_plain(row, out),
        }
    }

    fn encode_csv(&self, rows: usize, cells: &[Cells<'_>], out: &mut Vec<u8>) {
        for row in 0..rows {
            for (i, cells) in cells.iter().enumerate() {
                if i > 0 {
                    out.push(self.format.delimiter);
                }
                match &cells.values {
                    _ if cells.is_null(row) => out.extend_from_slice(self.format.null.as_bytes()),
                    Values::Text(texts) => csv_text(texts.value(row).as_bytes(), &self.format, out),
                    Values::Bytes(bytes) => hex(bytes.value(row), out),
                    values => {
                        if !(self.format.iso && values.push_time(row, out)) {
                            values.push_plain(row, out);
                        }
                    }
                }
            }
            out.push(b'\n');
        }
    }

    fn encode_nested(&self, batch: &Batch, out: &mut Vec<u8>) -> Result<()> {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.rows()));
        let records = RecordBatch::try_new_with_options(self.schema.clone(), batch.columns().to_vec(), &options)?;
        let mut writer = arrow_json::WriterBuilder::new()
            .with_explicit_nulls(true)
            .build::<_, arrow_json::writer::LineDelimited>(out);
        writer.write(&records)?;
        writer.finish()?;
        Ok(())
    }
}

/// A column as it is read row by row.
struct Cells<'a> {
    nulls: Option<&'a NullBuffer>,
    values: Values<'a>,
}

enum Values<'a> {
    Bool(&'a BooleanArray),
    I8(&'a [i8]),
    I16(&'a [i16]),
    I32(&'a [i32]),
    I64(&'a [i64]),
    U8(&'a [u8]),
    U16(&'a [u16]),
    U32(&'a [u32]),
    U64(&'a [u64]),
    F32(&'a [f32]),
    F64(&'a [f64]),
    Text(&'a StringViewArray),
    Bytes(&'a BinaryViewArray),
    Timestamp(&'a [i64]),
    Date(&'a [i32]),
}

fn is_written(data_type: &DataType) -> bool {
    use DataType::*;
    matches!(
        data_type,
        Boolean
            | Int8
            | Int16
            | Int32
            | Int64
            | UInt8
            | UInt16
            | UInt32
            | UInt64
            | Float32
            | Float64
            | Utf8View
            | BinaryView
            | Date32
            | Timestamp(TimeUnit::Millisecond, _)
    )
}

impl<'a> Cells<'a> {
    fn new(column: &'a ArrayRef) -> Result<Self> {
        let values = match column.data_type() {
            DataType::Boolean => Values::Bool(column.as_boolean()),
            DataType::Int8 => Values::I8(column.as_primitive::<Int8Type>().values()),
            DataType::Int16 => Values::I16(column.as_primitive::<Int16Type>().values()),
            DataType::Int32 => Values::I32(column.as_primitive::<Int32Type>().values()),
            DataType::Int64 => Values::I64(column.as_primitive::<Int64Type>().values()),
            DataType::UInt8 => Values::U8(column.as_primitive::<UInt8Type>().values()),
            DataType::UInt16 => Values::U16(column.as_primitive::<UInt16Type>().values()),
            DataType::UInt32 => Values::U32(column.as_primitive::<UInt32Type>().values()),
            DataType::UInt64 => Values::U64(column.as_primitive::<UInt64Type>().values()),
            DataType::Float32 => Values::F32(column.as_primitive::<Float32Type>().values()),
            DataType::Float64 => Values::F64(column.as_primitive::<Float64Type>().values()),
            DataType::Utf8View => Values::Text(column.as_string_view()),
            DataType::BinaryView => Values::Bytes(column.as_binary_view()),
            DataType::Date32 => Values::Date(column.as_primitive::<Date32Type>().values()),
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                Values::Timestamp(column.as_primitive::<TimestampMillisecondType>().values())
            }
            other => return Err(Error::internal(format!("a column of type {other} can't be written as text"))),
        };
        Ok(Self { nulls: column.nulls(), values })
    }

    #[inline]
    fn is_null(&self, row: usize) -> bool {
        self.nulls.is_some_and(|nulls| nulls.is_null(row))
    }
}

impl Values<'_> {
    /// Appends numbers and booleans, and times as numbers.
    #[inline]
    fn push_plain(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::I64(v) | Self::Timestamp(v) => integer(v, row, out),
            Self::I8(v) => integer(v, row, out),
            Self::I16(v) => integer(v, row, out),
            Self::I32(v) | Self::Date(v) => integer(v, row, out),
            Self::U8(v) => integer(v, row, out),
            Self::U16(v) => integer(v, row, out),
            Self::U32(v) => integer(v, row, out),
            Self::U64(v) => integer(v, row, out),
            Self::F32(v) => float(v, row, out),
            Self::F64(v) => float(v, row, out),
            Self::Bool(v) => out.extend_from_slice(if v.value(row) { b"true" } else { b"false" }),
            Self::Text(_) | Self::Bytes(_) => {}
        }
    }

    /// Appends a timestamp or date as text; false if it is none, or too far away to be written so.
    #[inline]
    fn push_time(&self, row: usize, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Timestamp(v) => v.get(row).is_some_and(|&ms| time::format_timestamp(ms, out)),
            Self::Date(v) => v.get(row).is_some_and(|&day| time::format_date(day, out)),
            _ => false,
        }
    }
}

#[inline]
fn integer<T: itoa::Integer + Copy>(values: &[T], row: usize, out: &mut Vec<u8>) {
    if let Some(value) = values.get(row) {
        out.extend_from_slice(itoa::Buffer::new().format(*value).as_bytes());
    }
}

#[inline]
fn float<T: ryu::Float + Copy>(values: &[T], row: usize, out: &mut Vec<u8>) {
    if let Some(value) = values.get(row) {
        out.extend_from_slice(ryu::Buffer::new().format(*value).as_bytes());
    }
}

fn encode_lines(rows: usize, cells: &[Cells<'_>], out: &mut Vec<u8>) {
    for row in 0..rows {
        if let Some(Cells { values: Values::Text(texts), nulls }) = cells.first()
            && !nulls.is_some_and(|n| n.is_null(row))
        {
            // A line break in the text would make two records of one.
            let start = out.len();
            out.extend_from_slice(texts.value(row).as_bytes());
            for byte in out.iter_mut().skip(start).filter(|b| **b == b'\n') {
                *byte = b' ';
            }
        }
        out.push(b'\n');
    }
}

/// Appends a JSON string. Most texts have nothing to escape, which is found out a register at a time.
#[inline]
fn json_text(text: &[u8], out: &mut Vec<u8>) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    if text.iter().fold(false, |any, &b| any | (b < 0x20) | (b == b'"') | (b == b'\\')) {
        json_escape(text, out);
    } else {
        out.extend_from_slice(text);
    }
    out.push(b'"');
}

#[cold]
fn json_escape(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => {
                out.extend_from_slice(b"\\u00");
                hex(&[byte], out);
            }
            _ => out.push(byte),
        }
    }
}

/// Appends a CSV field (RFC 4180), quoted where it must be, or where it would read as null.
#[inline]
fn csv_text(text: &[u8], format: &EncodeFormat, out: &mut Vec<u8>) {
    let special =
        text.iter().fold(false, |any, &b| any | (b == b'"') | (b == b'\n') | (b == b'\r') | (b == format.delimiter));
    if !special && text != format.null.as_bytes() {
        out.extend_from_slice(text);
        return;
    }
    out.push(b'"');
    for &byte in text {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    let digit = |n: u8| if n < 10 { b'0' + n } else { b'a' + n - 10 };
    for &byte in bytes {
        out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int64Array, ListArray, TimestampMillisecondArray};
    use arrow::datatypes::{Field, Schema};
    use std::sync::Arc;

    fn batch() -> (SchemaRef, Batch) {
        let schema = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("na\"me", DataType::Utf8View, true),
            Field::new("share", DataType::Float64, false),
            Field::new("at", DataType::Timestamp(TimeUnit::Millisecond, None), false),
            Field::new("raw", DataType::BinaryView, false),
        ]));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![Some(-7), None, Some(i64::MAX)])),
            Arc::new(StringViewArray::from(vec![Some("plain"), Some("a,\"b\"\n\u{1}\\é"), None])),
            Arc::new(Float64Array::from(vec![0.5, f64::NAN, 1e300])),
            Arc::new(TimestampMillisecondArray::from(vec![1_357_034_400_000, -1, i64::MAX])),
            Arc::new(BinaryViewArray::from(vec![&b"\x00\xff"[..], b"", b"\x10"])),
        ];
        (schema, Batch::new(3, columns, None).unwrap())
    }

    fn text(options: &str, schema: &SchemaRef, batch: &Batch) -> String {
        let options = Options::parse("sink 'x'", &EncodeFormat::options(), &options.parse().unwrap()).unwrap();
        let encoder = EncodeFormat::from_options(&options).unwrap().encoder(schema).unwrap();
        let mut out = Vec::new();
        encoder.header(&mut out);
        encoder.encode(batch, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_escapes_and_is_read_by_others() {
        let (schema, batch) = batch();
        let text = text("", &schema, &batch);
        let rows = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()).collect::<Vec<_>>();
        assert_eq!(
            rows[0],
            serde_json::json!({"id": -7, "na\"me": "plain", "share": 0.5, "at": "2013-01-01T10:00:00.000Z", "raw": "00ff"})
        );
        assert_eq!(rows[1]["na\"me"], "a,\"b\"\n\u{1}\\é");
        assert_eq!(rows[1]["share"], serde_json::Value::Null, "NaN");
        assert_eq!(rows[2]["at"], i64::MAX, "too far away for a date");
        assert_eq!(rows[2]["share"], 1e300);
    }

    #[test]
    fn csv_quotes_what_it_must() {
        let (schema, batch) = batch();
        let text = text("format = 'csv'\ndelimiter = ';'\nnull = 'NA'\ntimestamps = 'ms'", &schema, &batch);
        let expected = "id;\"na\"\"me\";share;at;raw\n\
                        -7;plain;0.5;1357034400000;00ff\n\
                        NA;\"a,\"\"b\"\"\n\u{1}\\é\";NaN;-1;\n\
                        9223372036854775807;NA;1e300;9223372036854775807;10\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn nested_columns_need_json() {
        let list = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1), None])])) as ArrayRef;
        let schema = Arc::new(Schema::new(vec![Field::new("l", list.data_type().clone(), true)]));
        let batch = Batch::new(1, vec![list], None).unwrap();
        assert_eq!(text("", &schema, &batch), "{\"l\":[1,null]}\n");
        let options = Options::parse("sink 'x'", &EncodeFormat::options(), &"format = 'csv'".parse().unwrap()).unwrap();
        let error = EncodeFormat::from_options(&options).unwrap().encoder(&schema).unwrap_err().to_string();
        assert!(error.contains("column 'l'") && error.contains("format = \"json\""), "{error}");
    }
}
