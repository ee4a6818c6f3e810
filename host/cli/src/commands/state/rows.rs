//! Rows of an operator's state: shown, or written to a file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use anyhow::Context as _;
use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{Field, Schema};
use arrow_json::LineDelimitedWriter;
use parquet::arrow::ArrowWriter;
use tidemill_core::snapshot::StateHandle;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_state::{PartInfo, PartKind, StateReader};

use super::{Found, find};
use crate::args::{StateExportArgs, StatePartArgs, StateQueryArgs};
use crate::commands::build::say;
use crate::failure::Outcome;
use crate::screen::print;
use crate::units;

pub(super) fn query(args: &StateQueryArgs) -> Outcome {
    let found = find(&args.part.from)?;
    let (reader, shown) = reader(&found, &args.part)?;
    let Meant { part, columns } = part(&reader, &args.part)?;
    let key = (!args.key.is_empty()).then(|| key(part, &args.key)).transpose()?;
    let mut left = args.limit.unwrap_or(usize::MAX);
    let written = reader.rows(part.kind, &part.name, key.as_deref(), &mut |batch| {
        let batch = shown.batch(&batch.project(&columns)?)?.slice(0, batch.num_rows().min(left));
        left -= batch.num_rows();
        print(&String::from_utf8_lossy(&json_lines(&batch)?));
        // The rest need not be read; the error says so, and is none.
        if left == 0 { Err(Error::new(ErrorKind::Limit, "enough")) } else { Ok(()) }
    });
    match written {
        Err(_) if left == 0 => Ok(()),
        other => Ok(other?),
    }
}

pub(super) fn export(args: &StateExportArgs) -> Outcome {
    let found = find(&args.part.from)?;
    let (reader, shown) = reader(&found, &args.part)?;
    let Meant { part, columns } = part(&reader, &args.part)?;
    let to = &args.to;
    let file = File::create_new(to).with_context(|| format!("making {}", to.display()))?;
    let mut rows = 0_u64;
    let failed = |e: String| Error::invalid(format!("writing {}: {e}", to.display()));
    match to.extension().and_then(|e| e.to_str()) {
        Some("json" | "jsonl" | "ndjson") => {
            let mut file = BufWriter::new(file);
            reader.rows(part.kind, &part.name, None, &mut |batch| {
                rows += batch.num_rows() as u64;
                file.write_all(&json_lines(&shown.batch(&batch.project(&columns)?)?)?)
                    .map_err(|e| failed(e.to_string()))
            })?;
            file.flush().map_err(|e| failed(e.to_string()))?;
        }
        Some("parquet") => {
            let schema = shown.schema(&part.schema.project(&columns)?);
            let mut writer = ArrowWriter::try_new(file, Arc::new(schema), None)?;
            reader.rows(part.kind, &part.name, None, &mut |batch| {
                rows += batch.num_rows() as u64;
                writer.write(&shown.batch(&batch.project(&columns)?)?).map_err(|e| failed(e.to_string()))
            })?;
            writer.close()?;
        }
        _ => {
            let error = Error::invalid(format!("{}: it is not said how to write it", to.display()));
            return Err(error.mend("Name a file that ends in .json or .parquet.").into());
        }
    }
    say("exported", &format!("{} rows to {}", units::count(rows), to.display()));
    Ok(())
}

/// As it is typed.
pub(super) fn kind_name(kind: PartKind) -> &'static str {
    match kind {
        PartKind::Table => "table",
        PartKind::Log => "log",
        PartKind::EventTimers => "event-timers",
        PartKind::ProcessingTimers => "processing-timers",
    }
}

/// What the columns of an operator list are called for people.
pub(super) const LIST_COLUMNS: [&str; 3] = ["subtask", "place", "item"];

/// Whose rows are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// Of keys, or of a broadcast state.
    AsKept,
    /// Of an operator list, whose namespaces are the subtasks and whose keys the places of items.
    List,
}

impl Shown {
    /// The columns with the names that they have for people.
    fn schema(self, schema: &Schema) -> Schema {
        let names: &[&str] = if self == Self::List { &LIST_COLUMNS } else { &[] };
        let named = schema.fields().iter().enumerate().map(|(at, field)| match names.get(at) {
            Some(name) => Arc::new(field.as_ref().clone().with_name(*name)),
            None => Arc::clone(field),
        });
        Schema::new(named.collect::<Vec<_>>())
    }

    fn batch(self, batch: &RecordBatch) -> Result<RecordBatch> {
        let schema = Arc::new(self.schema(batch.schema_ref()));
        Ok(RecordBatch::try_new(schema, batch.columns().to_vec())?)
    }
}

/// Of the broadcast state of this name, if there is one: one subtask's, since all have the same. Of the operator list of this
/// name: those of all subtasks. Else of keyed state.
fn reader(found: &Found, args: &StatePartArgs) -> Result<(StateReader, Shown)> {
    let operator = found.operator(&args.operator)?;
    let lists = operator.list_names();
    let list = match &args.part {
        Some(name) => lists.contains(name.as_str()).then_some(name.as_str()),
        // An operator with lists has no key.
        None => lists.first().copied().filter(|_| lists.len() == 1 && operator.broadcast_of(0).is_none()),
    };
    if let Some(name) = list {
        let handles: Vec<StateHandle> = operator.lists_of(name).map(|(_, list)| list.state.clone()).collect();
        return Ok((StateReader::open(&handles, found.files.clone())?, Shown::List));
    }
    let keyed: Vec<StateHandle> = operator.subtasks.iter().filter_map(|s| s.state.clone()).collect();
    let broadcast = operator.broadcast_of(0).map_or(&[][..], |subtask| &subtask.broadcast);
    let meant = match &args.part {
        Some(name) => broadcast.iter().find(|b| b.name == *name),
        None => broadcast.first().filter(|_| keyed.is_empty() && broadcast.len() == 1),
    };
    if meant.is_none() && keyed.is_empty() && !(broadcast.is_empty() && lists.is_empty()) {
        let names: Vec<&str> = broadcast.iter().map(|b| b.name.as_str()).chain(lists).collect();
        let error = Error::invalid(format!("operator '{}' has states without a key only", args.operator));
        return Err(error.mend(format!("Name one of: {}.", names.join(", "))));
    }
    let handles = meant.map_or(keyed, |broadcast| vec![broadcast.state.clone()]);
    Ok((StateReader::open(&handles, found.files.clone())?, Shown::AsKept))
}

/// A part of an operator's state, and which of its columns are wanted.
struct Meant<'a> {
    part: &'a PartInfo,
    columns: Vec<usize>,
}

/// What is meant: by the name of a part, by its kind, by the name of one value in it (then with its key alone, and if it
/// expires the time of its last access), or the only part that has rows.
fn part<'a>(reader: &'a StateReader, args: &StatePartArgs) -> Result<Meant<'a>> {
    let meant: Vec<&PartInfo> = match &args.part {
        Some(name) => reader.parts().filter(|p| p.name == *name || kind_name(p.kind) == name).collect(),
        None => reader.parts().filter(|p| p.written > 0).collect(),
    };
    if let [part] = meant.as_slice() {
        return Ok(Meant { part, columns: (0..part.schema.fields().len()).collect() });
    }
    let valued = |part: &'a PartInfo| {
        let (at, name) = values(part).find(|(_, name)| Some(*name) == args.part.as_deref())?;
        let last_accesses = part.last_accesses(name).map(|(at, _)| at);
        Some(Meant { part, columns: (1..=part.keys).chain([at]).chain(last_accesses).collect() })
    };
    if let Some(meant) = reader.parts().find_map(valued) {
        return Ok(meant);
    }
    let parts = reader.parts().map(|p| if p.name.is_empty() { kind_name(p.kind) } else { p.name.as_str() });
    let all: Vec<&str> = parts.chain(reader.parts().flat_map(values).map(|(_, name)| name)).collect();
    let message = match &args.part {
        Some(name) => format!("operator '{}' has no state '{name}'", args.operator),
        None => format!("operator '{}' has not just one state", args.operator),
    };
    Err(Error::invalid(message).mend(format!("Name one of: {}.", all.join(", "))))
}

/// The columns of a table behind its namespace and key.
fn values(part: &PartInfo) -> impl Iterator<Item = (usize, &str)> {
    let columns = if part.kind == PartKind::Table { part.schema.fields().as_ref() } else { &[] };
    columns.iter().enumerate().skip(1 + part.keys).map(|(at, field)| (at, field.name().as_str()))
}

/// A key as it was typed.
fn key(part: &PartInfo, typed: &[String]) -> Result<Vec<ArrayRef>> {
    let fields = part.schema.fields().iter().skip(1).take(part.keys);
    if typed.len() != part.keys {
        let names: Vec<&str> = fields.map(|f| f.name().as_str()).collect();
        let message =
            format!("the key has {} columns ({}), and {} are given", part.keys, names.join(", "), typed.len());
        return Err(Error::invalid(message).mend("Give --key once per column, in this order."));
    }
    let column = |(field, text): (&Arc<arrow::datatypes::Field>, &String)| {
        let column: ArrayRef = Arc::new(StringArray::from(vec![text.as_str()]));
        let wrong =
            |why: String| Error::invalid(format!("'{text}' is no {} ({}){why}", field.data_type(), field.name()));
        let column = cast(&column, field.data_type()).map_err(|e| wrong(format!(": {e}")))?;
        if column.null_count() > 0 { Err(wrong(String::new())) } else { Ok(column) }
    };
    fields.zip(typed).map(column).collect()
}

fn json_lines(batch: &RecordBatch) -> Result<Vec<u8>> {
    let batch = &maps_as_lists(batch)?;
    let mut text = Vec::new();
    let mut writer = LineDelimitedWriter::new(&mut text);
    writer.write(batch)?;
    writer.finish()?;
    Ok(text)
}

/// Maps as lists of their entries: in JSON only texts are keys of objects.
fn maps_as_lists(batch: &RecordBatch) -> Result<RecordBatch> {
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let Some(maps) = column.as_map_opt() else {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
            continue;
        };
        let entry = Arc::new(Field::new("entry", maps.entries().data_type().clone(), false));
        let (offsets, entries) = (maps.offsets().clone(), Arc::new(maps.entries().clone()));
        let lists: ArrayRef = Arc::new(ListArray::try_new(entry, offsets, entries, maps.nulls().cloned())?);
        fields.push(Arc::new(Field::new(field.name(), lists.data_type().clone(), true)));
        columns.push(lists);
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, Int64Builder, MapBuilder};
    use arrow::datatypes::DataType;

    use super::*;

    #[test]
    fn an_operator_list_is_shown_by_subtask_and_place() {
        let number = |name: &str| Field::new(name, DataType::Int64, false);
        let schema = Arc::new(Schema::new(vec![number("namespace"), number("key"), number("value")]));
        let column = |numbers: Vec<i64>| -> ArrayRef { Arc::new(Int64Array::from(numbers)) };
        let columns = vec![column(vec![0, 2]), column(vec![7, 0]), column(vec![70, 71])];
        let batch = RecordBatch::try_new(schema, columns).unwrap();
        let text = |shown: Shown| String::from_utf8(json_lines(&shown.batch(&batch).unwrap()).unwrap()).unwrap();
        let list = "{\"subtask\":0,\"place\":7,\"item\":70}\n{\"subtask\":2,\"place\":0,\"item\":71}\n";
        assert_eq!(text(Shown::List), list);
        assert!(text(Shown::AsKept).starts_with("{\"namespace\":0,\"key\":7,"));
    }

    #[test]
    fn a_map_of_numbers_is_shown_by_its_entries() {
        let mut maps = MapBuilder::new(None, Int64Builder::new(), Int64Builder::new());
        maps.keys().append_slice(&[1, 2]);
        maps.values().append_slice(&[10, 20]);
        maps.append(true).unwrap();
        maps.append(false).unwrap();
        let maps: ArrayRef = Arc::new(maps.finish());
        let schema = Schema::new(vec![Field::new("pages", maps.data_type().clone(), true)]);
        let batch = RecordBatch::try_new(Arc::new(schema), vec![maps]).unwrap();
        let text = String::from_utf8(json_lines(&batch).unwrap()).unwrap();
        let shown = "{\"pages\":[{\"key\":1,\"value\":10},{\"key\":2,\"value\":20}]}\n{}\n";
        assert_eq!(text, shown);
    }
}
