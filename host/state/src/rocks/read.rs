//! From a database back to parts in memory: of some key groups, whatever the number of groups was.
//!
//! Savepoints, rescales and changes of a table's values go this way; what is in memory at once is one range of groups.
#![allow(clippy::indexing_slicing, reason = "spans are made here, from what they index")]

use rocksdb::{DB, ReadOptions};
use tidemill_core::ids::MaxParallelism;
use tidemill_core::keys::Keys;
use tidemill_core::state::Namespace;
use tidemill_core::{Batch, Result};

use super::inventory::{Inventory, Stored};
use super::layout::{HEAD, LEAD, PartId, damaged, keys_of, read_value};
use super::local::failed;
use super::pieces;
use crate::format::PartKind;
use crate::memory::log::Log;
use crate::memory::parts::Parts;
use crate::memory::table::Table;

/// Entries that are looked up together.
const PIECE: usize = 4_096;

/// Adds what the database has of the parts' key groups. The parts' tables and logs are there, and of its shape.
pub(super) fn read(db: &DB, inventory: &Inventory, counted: MaxParallelism, parts: &mut Parts) -> Result<()> {
    for ((kind, name), stored) in &inventory.parts {
        let only = parts.only.as_ref();
        if only.is_some_and(|(only, called)| only != kind || called != name) {
            continue;
        }
        let id = PartId::new(*kind, name);
        match kind {
            PartKind::Table => {
                let mut table = parts.tables.remove(name).ok_or_else(damaged)?;
                let read = read_table(db, id, stored, counted, parts, &mut table);
                parts.tables.insert(name.clone(), table);
                read?;
            }
            PartKind::Log => {
                let mut log = parts.logs.remove(name).ok_or_else(damaged)?;
                let read = read_log(db, id, stored, parts, &mut log);
                parts.logs.insert(name.clone(), log);
                read?;
            }
            PartKind::EventTimers | PartKind::ProcessingTimers => read_timers(db, id, *kind, parts)?,
        }
    }
    Ok(())
}

/// Calls with each entry of a range, until it answers `false`.
pub(super) fn each(db: &DB, from: &[u8], to: &[u8], mut act: impl FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()> {
    let mut read = ReadOptions::default();
    read.set_iterate_upper_bound(to);
    read.set_verify_checksums(false);
    let mut entries = db.raw_iterator_opt(read);
    entries.seek(from);
    while let Some((key, value)) = entries.item() {
        if !act(key, value)? {
            return Ok(());
        }
        entries.next();
    }
    entries.status().map_err(|e| failed("reading", db.path(), &e))
}

/// Entries that wait to be looked up together.
#[derive(Default)]
struct Waiting {
    keys: Vec<Vec<u8>>,
    values: Vec<Vec<u8>>,
}

fn read_table(
    db: &DB,
    id: PartId,
    stored: &Stored,
    counted: MaxParallelism,
    parts: &Parts,
    table: &mut Table,
) -> Result<()> {
    let about = &parts.about;
    let same = counted == about.max_parallelism;
    for &namespace in stored.namespaces.keys() {
        let (mut from, mut to) = (id.range(namespace).0.to_vec(), id.range(namespace).1);
        if same {
            (to, from) = (from.clone(), from);
            from.extend_from_slice(&about.key_groups.first.to_be_bytes());
            match about.key_groups.last.checked_add(1) {
                Some(next) => to.extend_from_slice(&next.to_be_bytes()),
                None => to = id.range(namespace).1,
            }
        }
        let mut waiting = Waiting::default();
        each(db, &from, &to, |key, value| {
            waiting.keys.push(key.get(HEAD..).ok_or_else(damaged)?.to_vec());
            waiting.values.push(value.to_vec());
            if waiting.keys.len() == PIECE {
                put(parts, table, Namespace(namespace), std::mem::take(&mut waiting))?;
            }
            Ok(true)
        })?;
        put(parts, table, Namespace(namespace), waiting)?;
    }
    Ok(())
}

fn put(parts: &Parts, table: &mut Table, namespace: Namespace, entries: Waiting) -> Result<()> {
    let about = &parts.about;
    let keys = keys_of(&about.codec, entries.keys.iter().map(Vec::as_slice))?;
    let wanted = wanted(parts, &keys);
    if wanted.is_empty() {
        return Ok(());
    }
    let space = table.space(namespace, about.codec.is_fixed());
    let mut slots = Vec::new();
    space.resolve(&keys, Some(&wanted), &mut slots)?;
    for (&row, &slot) in wanted.iter().zip(&slots) {
        let owned = read_value(&entries.values[row as usize], &mut space.values, slot)?;
        space.grew(owned as isize);
    }
    Ok(())
}

/// The rows whose keys are of the parts' key groups.
fn wanted(parts: &Parts, keys: &Keys) -> Vec<u32> {
    let about = &parts.about;
    let has = |hash: u64| about.key_groups.contains(about.max_parallelism.key_group(hash));
    (0u32..).zip(&keys.hashes).filter(|(_, hash)| has(**hash)).map(|(row, _)| row).collect()
}

fn read_log(db: &DB, id: PartId, stored: &Stored, parts: &Parts, log: &mut Log) -> Result<()> {
    for &namespace in stored.namespaces.keys() {
        for (rows, keys) in read_pieces(db, id, namespace, u64::MAX, parts)? {
            let wanted = wanted(parts, &keys);
            if !wanted.is_empty() {
                let keys = parts.about.codec.take(&keys, &wanted)?;
                log.append(Namespace(namespace), rows.take(&wanted.into())?, keys)?;
            }
        }
    }
    Ok(())
}

fn read_pieces(db: &DB, id: PartId, namespace: i64, first: u64, parts: &Parts) -> Result<Vec<(Batch, Keys)>> {
    pieces_of(db, id, namespace, first, &parts.about.codec)
}

/// The first pieces of a namespace of a log.
pub(super) fn pieces_of(
    db: &DB,
    id: PartId,
    namespace: i64,
    first: u64,
    codec: &tidemill_core::keys::KeyCodec,
) -> Result<Vec<(Batch, Keys)>> {
    let (from, to) = id.range(namespace);
    let mut pieces = Vec::new();
    each(db, &from, &to, |key, value| {
        let number = key.get(LEAD..).and_then(|n| n.try_into().ok()).map(u64::from_be_bytes).ok_or_else(damaged)?;
        if number >= first {
            return Ok(false);
        }
        pieces.push(pieces::decode(codec, value)?);
        Ok(true)
    })?;
    Ok(pieces)
}

fn read_timers(db: &DB, id: PartId, kind: PartKind, parts: &mut Parts) -> Result<()> {
    let (from, to) = id.all();
    let (mut keys, mut times) = (Vec::<Vec<u8>>::new(), Vec::new());
    each(db, &from, &to, |key, _| {
        let (time, rest) = id.split(key).ok_or_else(damaged)?;
        keys.push(rest.get(HEAD - LEAD..).ok_or_else(damaged)?.to_vec());
        times.push(time);
        Ok(true)
    })?;
    for (keys, times) in keys.chunks(PIECE).zip(times.chunks(PIECE)) {
        let keys = keys_of(&parts.about.codec, keys.iter().map(Vec::as_slice))?;
        let wanted = wanted(parts, &keys);
        let times: Vec<i64> = wanted.iter().map(|&row| times[row as usize]).collect();
        let timers = if kind == PartKind::EventTimers { &mut parts.event_timers } else { &mut parts.processing_timers };
        timers.set(&keys, &wanted, &times)?;
    }
    Ok(())
}
