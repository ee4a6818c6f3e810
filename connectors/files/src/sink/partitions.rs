//! Into which folder a row goes: `column=value/`, as Hive, Spark and what reads like them expect.
//!
//! Invariant: whatever a row holds, each part of a folder's name is one plain name: it has no separator, is neither `.`
//! nor `..`, and is no longer than a file system takes. A row that would need a longer one fails the job before anything
//! depends on it, since a folder that can't be made would hold up the commit of a complete checkpoint.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::datatypes::{
    DataType, Date32Type, Int8Type, Int16Type, Int32Type, Int64Type, SchemaRef, TimeUnit, TimestampMillisecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use tidemill_connector_kit::format::{format_date, format_timestamp};
use tidemill_connector_kit::suggest;
use tidemill_core::Batch;
use tidemill_core::error::{Error, Result};

/// Stands for null, and for an empty text: `column=` alone is refused by readers.
const NULL: &str = "__HIVE_DEFAULT_PARTITION__";
/// What file systems take as a name.
const MAX_NAME_BYTES: usize = 255;
/// All parts of a folder's name together. With the sink's own path it must stay under 4096, which is what Linux takes.
const MAX_FOLDER_BYTES: usize = 2_048;

/// The partitions of one schema.
#[derive(Clone, Debug)]
pub(super) struct Partitions {
    columns: Vec<Column>,
    /// The columns that are written into the files.
    written: Vec<usize>,
    schema: SchemaRef,
}

#[derive(Clone, Debug)]
struct Column {
    name: String,
    index: usize,
    /// The column's name, escaped, and `=`.
    prefix: String,
}

impl Partitions {
    /// By these columns of the schema. Unless they are to be kept, files have the others only.
    pub(super) fn new(schema: &SchemaRef, by: &[String], keep: bool) -> Result<Self> {
        let mut columns: Vec<Column> = Vec::new();
        for name in by {
            let Some((index, field)) = schema.fields().iter().enumerate().find(|(_, f)| f.name() == name) else {
                let names = || schema.fields().iter().map(|f| f.name().as_str());
                let mend = format!("{}columns: {}", suggest::did_you_mean(name, names()), suggest::list(names()));
                return Err(Error::invalid(format!("'partition-by': there is no column '{name}'")).mend(mend));
            };
            if !is_partition_type(field.data_type()) {
                let message = format!("'partition-by': column '{name}' has the type {}", field.data_type());
                return Err(Error::invalid(message)
                    .mend("name columns of texts, whole numbers, booleans, dates or timestamps, or map it to one"));
            }
            if columns.iter().any(|c| c.index == index) {
                return Err(Error::invalid(format!("'partition-by': column '{name}' is named twice"))
                    .mend("name each column once"));
            }
            let mut prefix = String::new();
            escape(name, &mut prefix);
            prefix.push('=');
            columns.push(Column { name: name.clone(), index, prefix });
        }
        let is_written = |i: &usize| keep || columns.iter().all(|c| c.index != *i);
        let written: Vec<usize> = (0..schema.fields().len()).filter(is_written).collect();
        if written.is_empty() {
            return Err(Error::invalid("'partition-by': no column is left for the files")
                .mend("name fewer columns, or set keep-partition-columns = true"));
        }
        let schema = Arc::new(schema.project(&written)?);
        Ok(Self { columns, written, schema })
    }

    /// What is written into the files.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The rows of each folder, in their order; of each only what is written.
    pub(super) fn divide(&self, batch: &Batch) -> Result<Vec<(String, Batch)>> {
        let values = self.columns.iter().map(|c| Ok((c, batch.column(c.index)?))).collect::<Result<Vec<_>>>()?;
        let mut folders: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        let mut folder = String::new();
        for (row, at) in (0..batch.rows()).zip(0_u32..) {
            folder.clear();
            for (column, values) in &values {
                column.push(values, row, &mut folder)?;
            }
            match folders.get_mut(&folder) {
                Some(rows) => rows.push(at),
                None => _ = folders.insert(folder.clone(), vec![at]),
            }
        }
        let written = batch.project(&self.written)?;
        let whole = folders.len() == 1;
        let rows = |rows| if whole { Ok(written.clone()) } else { written.take(&UInt32Array::from(rows)) };
        folders.into_iter().map(|(folder, indices)| Ok((folder, rows(indices)?))).collect()
    }
}

impl Column {
    /// Appends this column's part of a row's folder.
    fn push(&self, values: &ArrayRef, row: usize, folder: &mut String) -> Result<()> {
        if !folder.is_empty() {
            folder.push('/');
        }
        let start = folder.len();
        folder.push_str(&self.prefix);
        let before = folder.len();
        if !values.is_null(row) {
            push_value(values, row, folder)?;
        }
        if folder.len() == before {
            folder.push_str(NULL);
        }
        if folder.len() - start > MAX_NAME_BYTES || folder.len() > MAX_FOLDER_BYTES {
            return Err(Error::invalid(format!(
                "a value of the column '{}' gives a folder with a name of {} bytes, of at most {MAX_NAME_BYTES} (and \
                 {MAX_FOLDER_BYTES} with the folders around it)",
                self.name,
                folder.len() - start
            ))
            .mend("shorten the values before the sink, or partition by another column"));
        }
        Ok(())
    }
}

fn is_partition_type(data_type: &DataType) -> bool {
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
            | Utf8View
            | Date32
            | Timestamp(TimeUnit::Millisecond, _)
    )
}

fn push_value(values: &ArrayRef, row: usize, folder: &mut String) -> Result<()> {
    let written = match values.data_type() {
        DataType::Utf8View => {
            let text = values.as_string_view().value(row);
            // Else it could not be told from null.
            if let Some(rest) = text.strip_prefix('_').filter(|_| text == NULL) {
                folder.push_str("%5F");
                folder.push_str(rest);
            } else {
                escape(text, folder);
            }
            Ok(())
        }
        DataType::Boolean => write!(folder, "{}", values.as_boolean().value(row)),
        DataType::Int8 => write!(folder, "{}", values.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => write!(folder, "{}", values.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => write!(folder, "{}", values.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => write!(folder, "{}", values.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => write!(folder, "{}", values.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => write!(folder, "{}", values.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => write!(folder, "{}", values.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => write!(folder, "{}", values.as_primitive::<UInt64Type>().value(row)),
        DataType::Date32 => {
            let (day, mut text) = (values.as_primitive::<Date32Type>().value(row), Vec::new());
            push_time(format_date(day, &mut text), &text, i64::from(day), folder)
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            let (ms, mut text) = (values.as_primitive::<TimestampMillisecondType>().value(row), Vec::new());
            push_time(format_timestamp(ms, &mut text), &text, ms, folder)
        }
        other => return Err(Error::internal(format!("a column of type {other} can't name folders"))),
    };
    written.map_err(|e| Error::internal(e.to_string()))
}

/// A time as text, or as the number it is where it lies outside what the text can say.
fn push_time(is_text: bool, text: &[u8], number: i64, folder: &mut String) -> std::fmt::Result {
    if !is_text {
        return write!(folder, "{number}");
    }
    escape(&String::from_utf8_lossy(text), folder);
    Ok(())
}

/// Appends a text with `%XX` for what Hive writes so, and for a dot at the beginning, which would hide the folder of a
/// column. Letters beyond ASCII stay as they are: Hive and Spark take each `%XX` for a letter, not for a byte of one.
fn escape(text: &str, out: &mut String) {
    for (at, c) in text.char_indices() {
        let special = c.is_ascii_control() || "\"#%'*/:=?\\{[]^<>|".contains(c) || (at == 0 && c == '.');
        if special {
            out.push('%');
            for digit in [u32::from(c) >> 4, u32::from(c) & 15] {
                out.extend(char::from_digit(digit, 16).map(|d| d.to_ascii_uppercase()));
            }
        } else {
            out.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use arrow::array::{BooleanArray, Date32Array, Int64Array, StringViewArray, TimestampMillisecondArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;

    fn folder_of(text: &str) -> Result<String> {
        let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Utf8View, true)]));
        let partitions = Partitions::new(&schema, &["k".to_owned()], true)?;
        let values: ArrayRef = Arc::new(StringViewArray::from(vec![Some(text)]));
        let mut divided = partitions.divide(&Batch::new(1, vec![values], None)?)?;
        Ok(divided.remove(0).0)
    }

    #[test]
    fn hostile_values_stay_one_plain_name() {
        for (text, expected) in [
            ("../x", "k=%2E.%2Fx"),
            ("..", "k=%2E."),
            ("/etc/passwd", "k=%2Fetc%2Fpasswd"),
            ("a/b\\c", "k=a%2Fb%5Cc"),
            ("a=b", "k=a%3Db"),
            ("100%", "k=100%25"),
            ("%2F", "k=%252F"),
            ("a\0b\nc", "k=a%00b%0Ac"),
            ("", "k=__HIVE_DEFAULT_PARTITION__"),
            ("__HIVE_DEFAULT_PARTITION__", "k=%5F_HIVE_DEFAULT_PARTITION__"),
            ("Zürich 東京", "k=Zürich 東京"),
        ] {
            let folder = folder_of(text).unwrap();
            assert_eq!(folder, expected);
            let parts: Vec<_> = Path::new(&folder).components().collect();
            assert!(matches!(parts[..], [Component::Normal(name)] if name == folder.as_str()), "{folder}");
        }
    }

    #[test]
    fn a_value_that_makes_no_name_fails_before_anything_depends_on_it() {
        assert_eq!(folder_of(&"x".repeat(253)).unwrap().len(), 255);
        for text in ["x".repeat(254), "/".repeat(85), "ü".repeat(127)] {
            let error = folder_of(&text).unwrap_err().to_string();
            assert!(error.contains("column 'k'") && error.contains("shorten"), "{error}");
        }
    }

    #[test]
    fn rows_are_divided_in_their_order_and_lose_the_columns_that_name_folders() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("day", DataType::Date32, true),
            Field::new("n", DataType::Int64, false),
            Field::new("new", DataType::Boolean, true),
            Field::new("at", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        ]));
        let by = ["new", "day", "at"].map(str::to_owned);
        let batch = Batch::new(
            4,
            vec![
                Arc::new(Date32Array::from(vec![Some(0), None, Some(0), Some(i32::MAX)])),
                Arc::new(Int64Array::from(vec![1, 2, 3, 4])),
                Arc::new(BooleanArray::from(vec![Some(true), None, Some(true), Some(false)])),
                Arc::new(TimestampMillisecondArray::from(vec![0, 0, 0, 0])),
            ],
            None,
        )
        .unwrap();
        let partitions = Partitions::new(&schema, &by, false).unwrap();
        assert_eq!(partitions.schema().fields().iter().map(|f| f.name()).collect::<Vec<_>>(), ["n"]);
        let at = "at=1970-01-01T00%3A00%3A00.000Z";
        let null = NULL;
        let expected = [
            (format!("new=__HIVE_DEFAULT_PARTITION__/day={null}/{at}"), vec![2]),
            (format!("new=false/day={}/{at}", i32::MAX), vec![4]),
            (format!("new=true/day=1970-01-01/{at}"), vec![1, 3]),
        ];
        let numbers = |b: &Batch| b.columns()[0].as_primitive::<Int64Type>().values().to_vec();
        let divided = partitions.divide(&batch).unwrap();
        assert_eq!(divided.iter().map(|(f, b)| (f.clone(), numbers(b))).collect::<Vec<_>>(), expected);
        assert!(divided.iter().all(|(_, b)| b.columns().len() == 1));
        let kept = Partitions::new(&schema, &by, true).unwrap();
        assert_eq!(kept.divide(&batch).unwrap()[0].1.columns().len(), 4);
    }

    #[test]
    fn wrong_columns_are_named_with_the_mend() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("day", DataType::Utf8View, true),
            Field::new("price", DataType::Float64, true),
        ]));
        let message = |by: &[&str]| {
            let by: Vec<String> = by.iter().map(|n| (*n).to_owned()).collect();
            Partitions::new(&schema, &by, false).unwrap_err().to_string()
        };
        assert!(message(&["dya"]).contains("did you mean 'day'?"));
        assert!(message(&["price"]).contains("type Float64"));
        assert!(message(&["day", "day"]).contains("named twice"));
        let only = Arc::new(Schema::new(vec![Field::new("day", DataType::Utf8View, true)]));
        let error = Partitions::new(&only, &["day".to_owned()], false).unwrap_err().to_string();
        assert!(error.contains("keep-partition-columns"), "{error}");
    }
}
