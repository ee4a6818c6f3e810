//! The import `collections`: lists and maps, changed by items and entries, and read while the call runs.
//!
//! Changes are checked and staged as all effects are. What is read is bounded before it is put together: a guest may name
//! the same key a million times.

use arrow::array::ArrayRef;
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::Field as ArrowField;
use tidemill_core::user::{CollectionChange, CollectionUpdate};
use wasmtime::component::{Linker, WasmList};

use crate::contract::interface;
use crate::crossing::{AnsweredColumn, GuestColumn};
use crate::host::{Check, Context, bytes_of, keys_of, raw, refuse, state_of};
use crate::lift::{Violation, read_columns, read_indices};
use crate::lower::Lowering;
use crate::shape::{Kind, StateShape};
use crate::state::HostState;

type Columns = Vec<GuestColumn>;

/// Defines it.
pub(crate) fn link(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    let mut collections = linker.instance(&interface("collections"))?;
    collections.func_wrap("append", |context: Context<'_>, (state, keys, items): (u32, _, Columns)| {
        refuse("collections.append", change(context, state as usize, &keys, Change::Append(&items)))
    })?;
    collections.func_wrap(
        "insert",
        |context: Context<'_>, (state, keys, map_keys, values): (u32, _, Columns, Columns)| {
            refuse("collections.insert", change(context, state as usize, &keys, Change::Insert(&map_keys, &values)))
        },
    )?;
    collections.func_wrap("remove", |context: Context<'_>, (state, keys, map_keys): (u32, _, Columns)| {
        refuse("collections.remove", change(context, state as usize, &keys, Change::Remove(&map_keys)))
    })?;
    collections.func_wrap("clear", |context: Context<'_>, (state, keys): (u32, _)| {
        refuse("collections.clear", change(context, state as usize, &keys, Change::Clear))
    })?;
    collections.func_wrap("read", |context: Context<'_>, (state, keys): (u32, _)| {
        Ok((refuse("collections.read", read(context, state as usize, &keys))?,))
    })?;
    collections.func_wrap("get", |context: Context<'_>, (state, keys, map_keys): (u32, _, Columns)| {
        Ok((refuse("collections.get", get(context, state as usize, &keys, &map_keys))?,))
    })
}

/// What a guest wants to change, still in its memory.
enum Change<'a> {
    Append(&'a [GuestColumn]),
    Insert(&'a [GuestColumn], &'a [GuestColumn]),
    Remove(&'a [GuestColumn]),
    Clear,
}

/// Complaints name the state.
fn at(field: &ArrowField) -> impl Fn(Violation) -> Violation {
    move |what| Violation(format!("state '{}': {}", field.name(), what.0))
}

fn list(shape: &StateShape) -> Check<&ArrowField> {
    match shape.kind {
        Kind::List | Kind::OperatorList => Ok(&shape.field),
        _ => Err(at(&shape.field)(Violation("it is no list".into()))),
    }
}

/// The fields of its keys and values.
fn map(shape: &StateShape) -> Check<(&ArrowField, &ArrowField)> {
    match &shape.kind {
        Kind::Map(key) | Kind::Broadcast(key) => Ok((key, &shape.field)),
        _ => Err(at(&shape.field)(Violation("it is no map".into()))),
    }
}

fn list_or_map(shape: &StateShape) -> Check<&ArrowField> {
    match shape.kind {
        Kind::Value => {
            Err(at(&shape.field)(Violation("it is a value, which comes with the call: use state.put".into())))
        }
        _ => Ok(&shape.field),
    }
}

/// One column of `rows` values.
fn column(context: &Context<'_>, field: &ArrowField, rows: usize, columns: &[GuestColumn]) -> Check<ArrayRef> {
    let mut read = read_columns(std::slice::from_ref(field), rows, &raw(context, columns))?;
    read.pop().ok_or_else(|| Violation("too few columns".into()))
}

/// Key numbers of the call; a state without a key has the number 0 alone.
fn keys_in(context: &Context<'_>, shape: &StateShape, keys: &WasmList<u8>) -> Check<ScalarBuffer<u32>> {
    let of_call = keys_of(&context.data().call)?;
    let known = if matches!(shape.kind, Kind::Broadcast(_) | Kind::OperatorList) { 1 } else { of_call };
    read_indices("keys", keys.as_le_slice(context), known).map_err(at(&shape.field))
}

fn change(mut context: Context<'_>, state: usize, keys: &WasmList<u8>, wanted: Change<'_>) -> Check {
    let shape = state_of(context.data(), state)?;
    let of_keys = keys_in(&context, shape, keys)?;
    let rows = of_keys.len();
    let mut bytes = keys.len();
    let mut read = |field: &ArrowField, columns: &[GuestColumn]| {
        bytes += bytes_of(&raw(&context, columns));
        column(&context, field, rows, columns).map_err(at(&shape.field))
    };
    let change = match wanted {
        Change::Append(items) => CollectionChange::Append(read(list(shape)?, items)?),
        Change::Insert(map_keys, values) => {
            let (key, value) = map(shape)?;
            CollectionChange::Insert { map_keys: read(key, map_keys)?, values: read(value, values)? }
        }
        Change::Remove(map_keys) => CollectionChange::Remove(read(map(shape)?.0, map_keys)?),
        Change::Clear => list_or_map(shape).map(|_| CollectionChange::Clear)?,
    };
    let data = context.data_mut();
    data.charge(bytes, 0)?;
    data.effects.collections.push(CollectionUpdate { state, keys: of_keys, change });
    Ok(())
}

fn read(mut context: Context<'_>, state: usize, keys: &WasmList<u8>) -> Check<Vec<AnsweredColumn>> {
    let shape = state_of(context.data(), state)?;
    let field = list_or_map(shape)?;
    let of_keys = keys_in(&context, shape, keys)?;
    let name = field.name().clone();
    let data = context.data_mut();
    data.charge(keys.len(), 0)?;
    let limit = usize::try_from(data.left_to_transfer()).unwrap_or(usize::MAX);
    let reader = data.collections.clone().ok_or_else(|| Violation("there is nothing to read in this call".into()))?;
    answer(data, &name, reader.read(state, &of_keys, limit))
}

fn get(
    mut context: Context<'_>,
    state: usize,
    keys: &WasmList<u8>,
    map_keys: &[GuestColumn],
) -> Check<Vec<AnsweredColumn>> {
    let shape = state_of(context.data(), state)?;
    let (key, value) = map(shape)?;
    let of_keys = keys_in(&context, shape, keys)?;
    let bytes = keys.len() + bytes_of(&raw(&context, map_keys));
    let map_keys = column(&context, key, of_keys.len(), map_keys).map_err(at(value))?;
    let name = value.name().clone();
    let data = context.data_mut();
    data.charge(bytes, 0)?;
    let limit = usize::try_from(data.left_to_transfer()).unwrap_or(usize::MAX);
    let reader = data.collections.clone().ok_or_else(|| Violation("there is nothing to read in this call".into()))?;
    answer(data, &name, reader.get(state, &of_keys, &map_keys, limit))
}

/// What was read, as the guest is given it.
fn answer(
    data: &mut HostState,
    name: &str,
    read: tidemill_core::Result<Option<ArrayRef>>,
) -> Check<Vec<AnsweredColumn>> {
    let at = |what: String| Violation(format!("state '{name}': {what}"));
    let array = read.map_err(|e| at(e.message().to_owned()))?.ok_or_else(|| at(too_much(data)))?;
    let mut lowering = Lowering::default();
    lowering.add(&array).map_err(at)?;
    let columns: Vec<AnsweredColumn> = lowering.columns().into_iter().map(AnsweredColumn::from).collect();
    let bytes: usize = columns.iter().map(|c| c.validity.len() + c.offsets.len() + c.values.len()).sum();
    if bytes as u64 > data.left_to_transfer() {
        return Err(at(too_much(data)));
    }
    data.charge(bytes, 0)?;
    Ok(columns)
}

fn too_much(data: &HostState) -> String {
    format!(
        "it reads more than {} bytes in one call, with what it hands over; read fewer keys at once, use smaller batches, \
         or raise limits.transfer",
        data.limits.transfer_bytes
    )
}
