//! The imports of a component: what it emits, stores, schedules and says. Read in place in its memory, checked, and
//! staged as [`tidemill_core::user::Effects`] until the call succeeds.

use arrow::array::ArrayRef;
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::Field as ArrowField;
use tidemill_core::ids::Port;
use tidemill_core::user::{self, Emission, EmittedRows, StateUpdate, TimerUpdate};
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, WasmList};

use crate::contract::interface;
use crate::crossing::{GuestColumn, Level, TimeDomain};
use crate::lift::{RawColumn, Violation, read_columns, read_i64s, read_indices, violation};
use crate::shape::{Kind, PortShape, StateShape};
use crate::state::{Call, HostState};

pub(crate) type Context<'a> = StoreContextMut<'a, HostState>;
pub(crate) type Check<T = ()> = Result<T, Violation>;

/// Defines the imports of the contract.
pub(crate) fn link(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    let mut output = linker.instance(&interface("output"))?;
    output.func_wrap("forward", |context: Context<'_>, (port, rows, columns): (u32, Option<_>, Vec<_>)| {
        refuse("output.forward", forward(context, port, rows.as_ref(), &columns))
    })?;
    output.func_wrap("emit", |context: Context<'_>, (port, rows, timestamps, columns): (u32, u32, _, Vec<_>)| {
        refuse("output.emit", emit(context, port, rows as usize, &timestamps, &columns))
    })?;
    let mut state = linker.instance(&interface("state"))?;
    state.func_wrap("put", |context: Context<'_>, (state, keys, values): (u32, _, Vec<_>)| {
        refuse("state.put", put(context, state as usize, &keys, &values))
    })?;
    state.func_wrap("set-timers", |context: Context<'_>, (domain, keys, timestamps): (_, _, _)| {
        refuse("state.set-timers", timers(context, domain, false, &keys, &timestamps))
    })?;
    state.func_wrap("delete-timers", |context: Context<'_>, (domain, keys, timestamps): (_, _, _)| {
        refuse("state.delete-timers", timers(context, domain, true, &keys, &timestamps))
    })?;
    crate::collections::link(linker)?;
    let mut logging = linker.instance(&interface("logging"))?;
    logging.func_wrap("log", |mut context: Context<'_>, (level, message): (Level, wasmtime::component::WasmStr)| {
        // Cut before it is copied: a long message costs the host nothing.
        let text = message.to_str(&context)?;
        let text = text.get(..text.floor_char_boundary(context.data().limits.log_bytes)).unwrap_or_default().to_owned();
        context.data_mut().log(level, &text);
        Ok(())
    })
}

pub(crate) fn refuse<T>(function: &str, result: Check<T>) -> wasmtime::Result<T> {
    result.map_err(|Violation(what)| wasmtime::Error::new(Violation(format!("{function}: {what}"))))
}

pub(crate) fn raw<'a>(context: &'a Context<'_>, columns: &[GuestColumn]) -> Vec<RawColumn<'a>> {
    columns.iter().map(|c| c.raw(context)).collect()
}

pub(crate) fn bytes_of(columns: &[RawColumn<'_>]) -> usize {
    columns.iter().map(RawColumn::bytes).sum()
}

fn port_of(state: &HostState, port: u32) -> Check<&PortShape> {
    let ports = &state.shape.ports;
    ports.get(port as usize).ok_or_else(|| {
        let names: Vec<_> = ports.iter().map(|p| p.name.as_str()).collect();
        Violation(format!("port {port} of a node with {} ({})", ports.len(), names.join(", ")))
    })
}

fn forward(mut context: Context<'_>, port: u32, rows: Option<&WasmList<u8>>, columns: &[GuestColumn]) -> Check {
    let data = context.data();
    let shape = port_of(data, port)?;
    let at = |what: Violation| Violation(format!("port '{}': {what}", shape.name));
    let input_rows = match &data.call {
        Call::Transform { rows } | Call::Process { rows, .. } => *rows,
        Call::Timers { .. } if shape.inherits => {
            return Err(at(Violation("it has columns copied from input rows, and timers have no input row".into())));
        }
        Call::Timers { rows, .. } => *rows,
        Call::Aggregate { .. } => return violation("a call of aggregate answers by output.emit on port 0"),
        Call::Quiet => return violation("there is nothing to emit in this call"),
    };
    let raw = raw(&context, columns);
    let bytes = rows.map_or(0, WasmList::len) + bytes_of(&raw);
    let count = rows.map_or(input_rows, |rows| rows.len() / 4);
    let rows = rows.map(|rows| read_indices("rows", rows.as_le_slice(&context), input_rows)).transpose().map_err(at)?;
    let columns = read_columns(&shape.new, count, &raw).map_err(at)?;
    let rows = rows.map_or(EmittedRows::All, EmittedRows::Of);
    let state = context.data_mut();
    state.charge(bytes, count)?;
    state.effects.emissions.push(Emission { port: Port(port), rows, columns });
    Ok(())
}

fn emit(mut context: Context<'_>, port: u32, rows: usize, timestamps: &WasmList<u8>, columns: &[GuestColumn]) -> Check {
    // Before anything is allocated for it: the number of rows is what the guest says.
    let raw_columns = raw(&context, columns);
    let bytes = timestamps.len() + bytes_of(&raw_columns);
    drop(raw_columns);
    context.data_mut().charge(bytes, rows)?;

    let raw = raw(&context, columns);
    let data = context.data();
    let (times, columns) = match &data.call {
        Call::Aggregate { groups, result } => (None, aggregate(data, port, rows, *groups, result, timestamps, &raw)?),
        Call::Quiet => return violation("there is nothing to emit in this call"),
        call => {
            let shape = port_of(data, port)?;
            let at = |what: Violation| Violation(format!("port '{}': {what}", shape.name));
            if shape.inherits {
                return Err(at(Violation("it has columns copied from input rows: use output.forward".into())));
            }
            let times = emitted_times(call, rows, timestamps.as_le_slice(&context)).map_err(at)?;
            (times, read_columns(&shape.new, rows, &raw).map_err(at)?)
        }
    };
    let rows = EmittedRows::New { rows, timestamps: times };
    context.data_mut().effects.emissions.push(Emission { port: Port(port), rows, columns });
    Ok(())
}

fn emitted_times(call: &Call, rows: usize, timestamps: &[u8]) -> Check<Option<ScalarBuffer<i64>>> {
    if !timestamps.is_empty() {
        return read_i64s("timestamps", timestamps, rows).map(Some);
    }
    Ok(match call {
        Call::Timers { only: Some(time), .. } => Some(vec![*time; rows].into()),
        _ => None,
    })
}

fn aggregate(
    state: &HostState,
    port: u32,
    rows: usize,
    groups: usize,
    result: &ArrowField,
    timestamps: &WasmList<u8>,
    columns: &[RawColumn<'_>],
) -> Check<Vec<ArrayRef>> {
    if !state.effects.emissions.is_empty() {
        return violation("a call of aggregate answers once, and this is the second time");
    }
    if port != 0 || timestamps.len() != 0 {
        return violation("a call of aggregate answers on port 0, without timestamps");
    }
    if rows != groups {
        return violation(format!("{rows} results for {groups} groups"));
    }
    read_columns(std::slice::from_ref(result), rows, columns)
}

/// How many keys the call has.
pub(crate) fn keys_of(call: &Call) -> Check<usize> {
    match call {
        Call::Process { keys, .. } | Call::Timers { keys, .. } => Ok(*keys),
        _ => violation("only calls of keyed have keys"),
    }
}

pub(crate) fn state_of(data: &HostState, state: usize) -> Check<&StateShape> {
    let declared = data.shape.states.len();
    data.shape.states.get(state).ok_or_else(|| Violation(format!("state {state} of a node that declares {declared}")))
}

fn put(mut context: Context<'_>, state: usize, keys: &WasmList<u8>, values: &[GuestColumn]) -> Check {
    let data = context.data();
    let known = keys_of(&data.call)?;
    let StateShape { field, kind } = state_of(data, state)?;
    if !matches!(kind, Kind::Value) {
        return violation(format!("state '{}' is a list or map: use collections", field.name()));
    }
    let at = |what: Violation| Violation(format!("state '{}': {what}", field.name()));
    let raw = raw(&context, values);
    let bytes = keys.len() + bytes_of(&raw);
    let keys = read_indices("keys", keys.as_le_slice(&context), known).map_err(at)?;
    let mut values = read_columns(std::slice::from_ref(field), keys.len(), &raw).map_err(at)?;
    let name = field.name().clone();
    let data = context.data_mut();
    if let Some(key) = data.distinct.duplicate(&keys, known) {
        return violation(format!("state '{name}': key {key} is stored twice in one call of put"));
    }
    data.charge(bytes, 0)?;
    if let Some(values) = values.pop() {
        data.effects.states.push(StateUpdate { state, keys, values });
    }
    Ok(())
}

fn timers(
    mut context: Context<'_>,
    domain: TimeDomain,
    delete: bool,
    keys: &WasmList<u8>,
    timestamps: &WasmList<u8>,
) -> Check {
    let known = keys_of(&context.data().call)?;
    let bytes = keys.len() + timestamps.len();
    let keys = read_indices("keys", keys.as_le_slice(&context), known)?;
    let timestamps = read_i64s("timestamps", timestamps.as_le_slice(&context), keys.len())?;
    let domain = match domain {
        TimeDomain::EventTime => user::TimeDomain::Event,
        TimeDomain::ProcessingTime => user::TimeDomain::Processing,
    };
    let data = context.data_mut();
    data.charge(bytes, 0)?;
    data.effects.timers.push(TimerUpdate { domain, delete, keys, timestamps });
    Ok(())
}
