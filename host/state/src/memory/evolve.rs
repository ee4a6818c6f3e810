//! A restored table whose values are declared otherwise now: adapted column by column, or refused with the difference.

use arrow::datatypes::DataType;
use tidemill_core::state::{ValueColumn, Values};
use tidemill_core::{Error, Result};

use super::log::Log;
use super::parts::log_values;
use super::space::Space;
use super::table::{Expiring, Table};
use crate::column::{self, ColumnCodec};

/// The stored entries with the declared values.
pub(crate) fn table(operator: &str, mut stored: Table, mut declared: Table) -> Result<Table> {
    let mut sources = Vec::with_capacity(declared.columns.len());
    for to in &declared.columns {
        let source = stored.columns.iter().position(|from| from.name() == to.name());
        if let Some(from) = source.and_then(|i| stored.columns.get(i))
            && from.data_type() != to.data_type()
            && !widens(from.data_type(), to.data_type())
        {
            return Err(refused(operator, &declared.name, from, to));
        }
        sources.push(source);
    }
    for space in stored.spaces.values_mut() {
        adapt(space, &sources, &declared.columns);
        for expiring in declared.expiring.iter().filter(|e| sources.get(e.time).is_some_and(Option::is_none)) {
            begin(space, expiring);
        }
    }
    declared.spaces = stored.spaces;
    Ok(declared)
}

/// Why a log's rows can't be used any more.
pub(crate) fn other_log(operator: &str, stored: &Log, declared: &Log) -> Error {
    let told = |log: &Log| log_values(log).iter().map(|v| v.data_type.to_string()).collect::<Vec<_>>().join(", ");
    Error::invalid(format!(
        "the rows that operator '{operator}' keeps in '{}' have columns of types ({}) in the restored state and ({}) now",
        declared.name(),
        told(stored),
        told(declared)
    ))
    .mend("Keep the columns of the operator's inputs, or give the operator another uid, and so begin without its state.")
}

fn refused(operator: &str, table: &str, from: &ColumnCodec, to: &ColumnCodec) -> Error {
    Error::invalid(format!(
        "the value '{}' of state '{table}' of operator '{operator}' is {} in the restored state and {} now",
        to.name(),
        from.data_type(),
        to.data_type()
    ))
    .mend(
        "Only a number can become a wider one. Keep the type, or give the value another name, and so begin without it.",
    )
}

/// Whether each value of one type is one of the other.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::{Float32, Float64, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64};
    match from {
        Int8 => matches!(to, Int16 | Int32 | Int64 | Float32 | Float64),
        Int16 => matches!(to, Int32 | Int64 | Float32 | Float64),
        Int32 => matches!(to, Int64 | Float64),
        UInt8 => matches!(to, UInt16 | UInt32 | UInt64 | Int16 | Int32 | Int64 | Float32 | Float64),
        UInt16 => matches!(to, UInt32 | UInt64 | Int32 | Int64 | Float32 | Float64),
        UInt32 => matches!(to, UInt64 | Int64 | Float64),
        Float32 => matches!(to, Float64),
        _ => false,
    }
}

fn adapt(space: &mut Space, sources: &[Option<usize>], declared: &[ColumnCodec]) {
    let old = std::mem::replace(&mut space.values, Values { columns: Vec::new(), present: Vec::new() });
    let mut old: Vec<_> = old.columns.into_iter().zip(old.present).map(Some).collect();
    for (source, codec) in sources.iter().zip(declared) {
        let mut to = codec.new_column();
        let taken = source.and_then(|i| old.get_mut(i)).and_then(Option::take);
        let present = match taken {
            Some((from, present)) => {
                to = converted(from, to);
                present
            }
            None => {
                column::grow(&mut to, space.slots());
                vec![false; space.slots()]
            }
        };
        space.values.columns.push(to);
        space.values.present.push(present);
    }
    let dropped = old.into_iter().flatten().map(|(column, _)| column::owned_bytes(&column)).sum::<usize>();
    space.grew(-(dropped as isize));
}

/// Values that were stored without the time of their last access have one now.
fn begin(space: &mut Space, Expiring { value, time, last_access }: &Expiring) {
    let Some(stored) = space.values.present.get(*value).cloned() else { return };
    let times = space.values.columns.get_mut(*time).zip(space.values.present.get_mut(*time));
    if let Some((ValueColumn::Int(times), present)) = times {
        times.iter_mut().zip(&stored).filter(|(_, stored)| **stored).for_each(|(at, _)| *at = last_access.begin_ms);
        *present = stored;
    }
}

/// The values in the kind of column that another type is held in.
fn converted(from: ValueColumn, like: ValueColumn) -> ValueColumn {
    use ValueColumn::{Float, Int, UInt};
    match (from, like) {
        (UInt(values), Int(_)) => Int(values.into_iter().map(|v| v as i64).collect()),
        (Int(values), Float(_)) => Float(values.into_iter().map(|v| v as f64).collect()),
        (UInt(values), Float(_)) => Float(values.into_iter().map(|v| v as f64).collect()),
        (same, _) => same,
    }
}
