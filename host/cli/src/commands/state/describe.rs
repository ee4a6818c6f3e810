//! Checkpoints as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use arrow::datatypes::{DataType, Field};
use serde_json::{Value, json};
use tidemill_checkpoint::Checkpoint;
use tidemill_checkpoint::manifest::{ManifestKind, OperatorState};
use tidemill_core::Result;
use tidemill_core::snapshot::StateHandle;
use tidemill_state::{PartInfo, PartKind, StateReader};

use super::Found;
use super::rows::LIST_COLUMNS;
use crate::report::{Align, table};
use crate::units;

/// One line per checkpoint, the newest first.
pub(super) fn list(checkpoints: &[Checkpoint]) -> String {
    let heads = ["checkpoint", "epoch", "attempt", "kind", "size", "in flight", "committed", "taken"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(checkpoints.iter().map(|c| {
        vec![
            c.number.to_string(),
            c.manifest.epoch.to_string(),
            c.manifest.generation.to_string(),
            kind(c.manifest.kind).to_owned(),
            units::bytes(c.manifest.files().map(|file| file.bytes).sum()),
            match c.manifest.in_flight_bytes() {
                0 => "-".to_owned(),
                bytes => units::bytes(bytes),
            },
            if c.committed { "yes" } else { "no" }.to_owned(),
            units::time_utc(c.manifest.created_ms),
        ]
    }));
    let (left, right) = (Align::Left, Align::Right);
    table(&[right, right, right, left, right, right, left, left], &rows).join("\n") + "\n"
}

/// What it keeps, for people.
pub(super) fn text(found: &Found) -> Result<String> {
    let checkpoint = &found.checkpoint;
    let mut text = format!(
        "{} of job '{}': {}, epoch {}, attempt {}, {} key groups, taken {}\n",
        found.title,
        checkpoint.job,
        kind(checkpoint.kind),
        checkpoint.epoch,
        checkpoint.generation,
        checkpoint.max_parallelism,
        units::time_utc(checkpoint.created_ms),
    );
    for operator in &checkpoint.operators {
        let _ = writeln!(text, "\n{} (uid {}) x{}", operator.name, operator.uid, operator.parallelism);
        if let Some(watermark) = watermark(operator) {
            let _ = writeln!(text, "  watermark  {}", units::time_utc(watermark));
        }
        let splits = operator.subtasks.iter().flat_map(|s| &s.splits);
        for split in splits {
            let _ = writeln!(text, "  split      {}", split.id);
        }
        for (channel, rows) in in_flight(operator) {
            let _ = writeln!(text, "  in flight  from {channel}: {} rows", units::count(rows));
        }
        for part in parts(found, operator)? {
            let schema = part.fields.iter().map(|(name, kind)| format!("{name} {kind}")).collect::<Vec<_>>().join(", ");
            let name = if part.name.is_empty() { String::new() } else { format!(" {}", part.name) };
            let _ = writeln!(text, "  {:<10}{name}: {} written; {schema}", part.kind, units::count(part.written));
        }
    }
    Ok(text)
}

/// The same for programs.
pub(super) fn json(found: &Found) -> Result<String> {
    let checkpoint = &found.checkpoint;
    let operators = checkpoint.operators.iter().map(|operator| {
        let parts = parts(found, operator)?.into_iter().map(|part| {
            let fields = part.fields.iter().map(|(name, kind)| json!({"name": name, "type": kind}));
            json!({"kind": part.kind, "name": part.name, "written": part.written, "fields": fields.collect::<Vec<_>>()})
        });
        Ok(json!({
            "uid": operator.uid,
            "name": operator.name,
            "parallelism": operator.parallelism,
            "watermark_ms": watermark(operator),
            "splits": operator.subtasks.iter().flat_map(|s| &s.splits).map(|s| &s.id).collect::<Vec<_>>(),
            "in_flight": in_flight(operator).iter().map(|(from, rows)| json!({"from": from, "rows": rows})).collect::<Vec<_>>(),
            "state": parts.collect::<Vec<Value>>(),
        }))
    });
    let document = json!({
        "job": checkpoint.job,
        "kind": checkpoint.kind,
        "epoch": checkpoint.epoch,
        "attempt": checkpoint.generation,
        "max_parallelism": checkpoint.max_parallelism,
        "created_ms": checkpoint.created_ms,
        "operators": operators.collect::<Result<Vec<Value>>>()?,
    });
    Ok(format!("{document:#}\n"))
}

/// A part of an operator's state.
struct Part {
    kind: &'static str,
    name: String,
    written: u64,
    fields: Vec<(String, String)>,
}

fn parts(found: &Found, operator: &OperatorState) -> Result<Vec<Part>> {
    let handles: Vec<StateHandle> = operator.subtasks.iter().filter_map(|s| s.state.clone()).collect();
    let mut parts = if handles.iter().any(|handle| handle.format != StateHandle::PORTABLE) {
        let (kind, name) = ("state", "in its backend's own format; make a savepoint to look into it".to_owned());
        vec![Part { kind, name, written: 0, fields: Vec::new() }]
    } else {
        parts_in(found, &handles, super::rows::kind_name)?
    };
    // All subtasks have the same.
    for state in operator.broadcast_of(0).into_iter().flat_map(|subtask| &subtask.broadcast) {
        parts.extend(parts_in(found, std::slice::from_ref(&state.state), |_| "broadcast")?);
    }
    for name in operator.list_names() {
        let lists: Vec<StateHandle> = operator.lists_of(name).map(|(_, list)| list.state.clone()).collect();
        let mut described = parts_in(found, &lists, |_| "list")?;
        for (field, name) in described.iter_mut().flat_map(|part| part.fields.iter_mut().zip(LIST_COLUMNS)) {
            name.clone_into(&mut field.0);
        }
        parts.append(&mut described);
    }
    Ok(parts)
}

fn parts_in(found: &Found, handles: &[StateHandle], kind: impl Fn(PartKind) -> &'static str) -> Result<Vec<Part>> {
    let reader = StateReader::open(handles, found.files.clone())?;
    // Every operator with state has timers that could be set.
    let timers = [PartKind::EventTimers, PartKind::ProcessingTimers];
    let parts = reader.parts().filter(|part| part.written > 0 || !timers.contains(&part.kind));
    let described = parts.map(|part| Part {
        kind: kind(part.kind),
        name: part.name.clone(),
        written: part.written,
        fields: part.schema.fields().iter().map(|f| (f.name().clone(), type_name(part, f))).collect(),
    });
    Ok(described.collect())
}

/// The type of a column, and how long its values live.
fn type_name(part: &PartInfo, field: &Field) -> String {
    let shown = match field.data_type() {
        DataType::LargeList(item) => format!("list of {}", item.data_type()),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) => {
                fields.iter().map(|f| f.data_type().to_string()).collect::<Vec<_>>().join(" to ")
            }
            other => other.to_string(),
        },
        other => other.to_string(),
    };
    let shown = if matches!(field.data_type(), DataType::Map(..)) { format!("map of {shown}") } else { shown };
    match part.last_accesses(field.name()) {
        Some((_, ttl_ms)) => format!("{shown} for {ttl_ms} ms"),
        None => shown,
    }
}

/// What was in flight to it: from where, and how many rows.
fn in_flight(operator: &OperatorState) -> Vec<(String, u64)> {
    let channels =
        operator.subtasks.iter().filter_map(|s| s.in_flight.as_ref()).flat_map(|in_flight| &in_flight.channels);
    let mut rows: BTreeMap<&str, u64> = BTreeMap::new();
    for channel in channels {
        *rows.entry(&channel.from).or_default() += channel.rows;
    }
    rows.into_iter().map(|(from, rows)| (from.to_owned(), rows)).collect()
}

/// The least of the subtasks'; `None`: there is none yet, or the input has ended.
fn watermark(operator: &OperatorState) -> Option<i64> {
    let least = operator.subtasks.iter().map(|s| s.watermark).min()?;
    (least != i64::MIN && least != i64::MAX).then_some(least)
}

fn kind(kind: ManifestKind) -> &'static str {
    match kind {
        ManifestKind::Checkpoint => "checkpoint",
        ManifestKind::Savepoint => "savepoint",
        ManifestKind::Stopped => "stopped",
        ManifestKind::Finished => "finished",
    }
}
