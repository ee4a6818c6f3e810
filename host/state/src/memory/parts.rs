//! Tables, logs and timers by name, without a job: what a chain of snapshot files comes to.
//!
//! A restored state takes its parts out of here when it is declared; merging a chain into a new base and reading one
//! without its job begin here too.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{Int64Type, Schema};
use tidemill_core::ids::MaxParallelism;
use tidemill_core::keys::{KeyCodec, Keys};
use tidemill_core::snapshot::KeyGroupRange;
use tidemill_core::state::{NO_SLOT, Namespace, Slot, ValueSpec};
use tidemill_core::{Batch, Error, Result};

use super::frozen::{About, Copies, FrozenPart, FrozenState, InPieces, PartAbout};
use super::log::Log;
use super::space::Space;
use super::table::Table;
use super::timers::Timers;
use crate::format::{Block, Change, Part, PartKind, PortableFile, codec_of, values_of};

/// Which keys are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) key_groups: KeyGroupRange,
    /// By which they are counted.
    pub(crate) max_parallelism: MaxParallelism,
}

impl Wanted {
    /// Whether a range of key groups, counted by another maximum perhaps, may have some of them.
    pub(crate) fn overlaps(&self, range: KeyGroupRange, of: u16) -> bool {
        of != self.max_parallelism.get() || self.key_groups.overlaps(range)
    }

    /// Whether it has no others.
    fn covers(&self, range: KeyGroupRange, of: u16) -> bool {
        let inside = self.key_groups.first <= range.first && range.last <= self.key_groups.last;
        of == self.max_parallelism.get() && inside
    }

    /// About which share of a range's keys they are.
    pub(crate) fn share(&self, range: KeyGroupRange, of: u16) -> f64 {
        if of != self.max_parallelism.get() {
            return 0.0;
        }
        let first = range.first.max(self.key_groups.first);
        let common = (range.last.min(self.key_groups.last) + 1).saturating_sub(first);
        f64::from(common) / (f64::from(range.last - range.first) + 1.0)
    }

    /// Those in a range of key groups; `None` if they all are.
    fn among(&self, range: KeyGroupRange, of: u16) -> Option<Wanted> {
        let inside = range.first <= self.key_groups.first && self.key_groups.last <= range.last;
        if of == self.max_parallelism.get() && inside {
            return None;
        }
        MaxParallelism::new(of).map(|max_parallelism| Wanted { key_groups: range, max_parallelism })
    }

    fn has(&self, hash: u64) -> bool {
        self.key_groups.contains(self.max_parallelism.key_group(hash))
    }
}

/// Everything of one operator.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) about: Arc<About>,
    /// Leave out all other parts.
    pub(crate) only: Option<(PartKind, String)>,
    pub(crate) tables: BTreeMap<String, Table>,
    pub(crate) logs: BTreeMap<String, Log>,
    pub(crate) event_timers: Timers,
    pub(crate) processing_timers: Timers,
}

/// A file among the files of a state.
pub(crate) struct Placed<'a> {
    pub(crate) file: &'a PortableFile,
    /// All files of the state are so many times as large as this one: to make room once.
    pub(crate) growth: f64,
    /// The next one is a base, too, as this one is: of other keys, so nothing has to be found before it.
    pub(crate) more: bool,
}

impl Parts {
    pub(crate) fn new(about: Arc<About>) -> Self {
        let fixed = about.codec.is_fixed();
        let (event_timers, processing_timers) = (Timers::new(fixed), Timers::new(fixed));
        Self { about, only: None, tables: BTreeMap::new(), logs: BTreeMap::new(), event_timers, processing_timers }
    }

    /// Applies the changes that a file has, after those of the files before it.
    pub(crate) fn apply(&mut self, placed: &Placed<'_>) -> Result<()> {
        let wanted = Wanted { key_groups: self.about.key_groups, max_parallelism: self.about.max_parallelism };
        let footer = &placed.file.footer;
        let wants =
            |part: &Part| self.only.as_ref().is_none_or(|(kind, name)| *kind == part.kind && *name == part.name);
        let parts: Vec<&Part> = footer.parts.iter().filter(|part| wants(part)).collect();
        for part in parts {
            let schema = placed.file.schema(part)?;
            self.check(placed.file, part, &schema)?;
            let mut growth = placed.growth;
            for block in &part.blocks {
                if !wanted.overlaps(block.key_groups, footer.max_parallelism) {
                    continue;
                }
                if block.change == Change::Dropped {
                    let dropped = placed.file.rows(&schema, block)?;
                    self.drop_namespaces(part, &dropped, wanted.among(block.key_groups, footer.max_parallelism))?;
                    continue;
                }
                let all = wanted.covers(block.key_groups, footer.max_parallelism);
                for batch in placed.file.rows(&schema, block)? {
                    let rows = Rows::new(&self.about.codec, &batch, (!all).then_some(wanted))?;
                    // Makes room once, at the first block of a part, for all that follow.
                    let room = (block.rows as f64 * std::mem::replace(&mut growth, 0.0)) as usize;
                    let room = room * part.blocks.len();
                    let put = Put { base: footer.base, room };
                    self.apply_rows(part, block, rows, put).map_err(|e| placed.file.wrong(e.message()))?;
                }
            }
        }
        if !placed.more {
            let spaces = self.tables.values_mut().flat_map(|table| table.spaces.values_mut());
            spaces.for_each(Space::index_appended);
        }
        Ok(())
    }

    /// All as a snapshot that needs no other.
    pub(crate) fn freeze(&mut self) -> FrozenState {
        let fixed = self.about.codec.is_fixed();
        let timers = [&mut self.event_timers, &mut self.processing_timers];
        let parts = freeze(self.tables.values_mut(), self.logs.values_mut(), timers, fixed);
        let state = FrozenState { about: Arc::clone(&self.about), whole: true, parts };
        let timers = [&mut self.event_timers, &mut self.processing_timers];
        let copies = copy_all(self.tables.values_mut(), timers);
        InPieces { state, copies }.join()
    }

    /// A file's part is of the codec's keys, and of the shape of those before it. Makes it where it is the first.
    fn check(&mut self, file: &PortableFile, part: &Part, schema: &Schema) -> Result<()> {
        let codec = codec_of(file.footer.keys, schema).map_err(|e| file.wrong(e.message()))?;
        let here = &self.about.codec;
        if codec.types() != here.types() || codec.is_fixed() != here.is_fixed() {
            return Err(self.other_key(&codec));
        }
        let values = values_of(part.kind, file.footer.keys, schema);
        let before = match part.kind {
            PartKind::Table => {
                let absent = !self.tables.contains_key(&part.name);
                if absent {
                    let table = Table::new(&part.name, &values).map_err(|e| file.wrong(e.message()))?;
                    self.tables.insert(part.name.clone(), table);
                }
                self.tables.get(&part.name).map(Table::values)
            }
            PartKind::Log => {
                let types = values.iter().map(|v| v.data_type.clone()).collect();
                let log = self.logs.entry(part.name.clone()).or_insert_with(|| Log::new(&part.name, types));
                Some(log_values(log))
            }
            PartKind::EventTimers | PartKind::ProcessingTimers => Some(Vec::new()),
        };
        if before.as_ref().is_none_or(|before| !same_values(before, &values)) {
            return Err(file.wrong(format!("has other values in '{}' than a file before it", part.name)));
        }
        Ok(())
    }

    fn other_key(&self, stored: &KeyCodec) -> Error {
        let same_types = stored.types() == self.about.codec.types();
        let told = |codec: &KeyCodec| {
            let types: Vec<_> = codec.types().iter().map(ToString::to_string).collect();
            // Types that are alike are kept otherwise where there may be nulls.
            let nulls = match (same_types, codec.is_fixed()) {
                (false, _) => "",
                (true, true) => " without nulls",
                (true, false) => " with nulls",
            };
            format!("({}{nulls})", types.join(", "))
        };
        Error::invalid(format!(
            "the key of operator '{}' is {} now; its restored state is kept by {}",
            self.about.operator,
            told(&self.about.codec),
            told(stored)
        ))
        .mend("Keep the key's columns and types, or give the operator another uid, and so begin without its state.")
    }

    /// `among` says which keys' entries; `None`: all.
    fn drop_namespaces(&mut self, part: &Part, dropped: &[RecordBatch], among: Option<Wanted>) -> Result<()> {
        let codec = &self.about.codec;
        let columns = dropped.iter().filter_map(|batch| batch.columns().first()?.as_primitive_opt::<Int64Type>());
        for &namespace in columns.flat_map(|column| column.values()) {
            let namespace = Namespace(namespace);
            match (part.kind, among) {
                (PartKind::Table, _) => {
                    if let Some(table) = self.tables.get_mut(&part.name) {
                        drop_entries(table, namespace, codec, among)?;
                    }
                }
                (PartKind::Log, None) => {
                    if let Some(log) = self.logs.get_mut(&part.name) {
                        log.drop_rows(namespace);
                    }
                }
                (PartKind::Log, Some(among)) => {
                    if let Some(log) = self.logs.get_mut(&part.name) {
                        log.drop_some_rows(namespace, codec, |hash| among.has(hash))?;
                    }
                }
                (PartKind::EventTimers, _) => drop_timers(&mut self.event_timers, codec, among)?,
                (PartKind::ProcessingTimers, _) => drop_timers(&mut self.processing_timers, codec, among)?,
            }
        }
        Ok(())
    }

    fn apply_rows(&mut self, part: &Part, block: &Block, rows: Rows, put: Put) -> Result<()> {
        if rows.keys.is_empty() {
            return Ok(());
        }
        let fixed = self.about.codec.is_fixed();
        match part.kind {
            PartKind::Table => {
                let table = self.tables.get_mut(&part.name).ok_or_else(|| absent(&part.name))?;
                rows.runs(&self.about.codec, |namespace, keys, values| match block.change {
                    Change::Put => put_entries(table, Namespace(namespace), fixed, &keys, values, put),
                    Change::Removed => remove_entries(table, Namespace(namespace), &keys),
                    Change::Dropped => Ok(()),
                })
            }
            PartKind::Log => {
                let log = self.logs.get_mut(&part.name).ok_or_else(|| absent(&part.name))?;
                let codec = &self.about.codec;
                rows.runs(codec, |namespace, keys, values| append_rows(log, namespace, codec, keys, values))
            }
            PartKind::EventTimers => change_timers(&mut self.event_timers, block.change, &rows),
            PartKind::ProcessingTimers => change_timers(&mut self.processing_timers, block.change, &rows),
        }
    }
}

/// What changed of tables, logs, and timers of event and processing time; what was put is still to be copied.
pub(crate) fn freeze<'a>(
    tables: impl Iterator<Item = &'a mut Table>,
    logs: impl Iterator<Item = &'a mut Log>,
    [event, processing]: [&mut Timers; 2],
    fixed: bool,
) -> Vec<(PartAbout, FrozenPart)> {
    let of_table = |table: &mut Table| {
        let about = PartAbout { kind: PartKind::Table, name: table.name.clone(), values: table.values() };
        (about, table.freeze(fixed))
    };
    let of_log = |log: &mut Log| {
        let about = PartAbout { kind: PartKind::Log, name: log.name().to_owned(), values: log_values(log) };
        (about, log.freeze(fixed))
    };
    let of_timers = |(kind, timers): (PartKind, &mut Timers)| {
        (PartAbout { kind, name: String::new(), values: Vec::new() }, timers.freeze(fixed))
    };
    let timers = [(PartKind::EventTimers, event), (PartKind::ProcessingTimers, processing)];
    tables.map(of_table).chain(logs.map(of_log)).chain(timers.map(of_timers)).collect()
}

/// Copies about so many `entries` of what was frozen. `Some`: all of it.
pub(crate) fn copy_some<'a>(
    tables: impl Iterator<Item = &'a mut Table>,
    timers: [&mut Timers; 2],
    mut entries: usize,
) -> Option<Copies> {
    let (mut tables, [event, processing]) = (tables.collect::<Vec<_>>(), timers);
    let complete = tables.iter_mut().all(|table| table.copy_some(&mut entries))
        && event.copy_some(&mut entries)
        && processing.copy_some(&mut entries);
    let take = || Copies {
        tables: tables.into_iter().map(Table::take_copies).collect(),
        timers: [event.take_copies(), processing.take_copies()],
    };
    complete.then(take)
}

/// Copies all of it.
pub(crate) fn copy_all<'a>(tables: impl Iterator<Item = &'a mut Table>, timers: [&mut Timers; 2]) -> Copies {
    let (mut tables, [event, processing]) = (tables.collect::<Vec<_>>(), timers);
    loop {
        let tables = tables.iter_mut().map(|table| &mut **table);
        if let Some(copies) = copy_some(tables, [&mut *event, &mut *processing], usize::MAX) {
            return copies;
        }
    }
}

/// A log's columns have no names.
pub(crate) fn log_values(log: &Log) -> Vec<ValueSpec> {
    let columns = log.columns().iter().enumerate();
    columns.map(|(i, t)| ValueSpec::new(format!("column{i}"), t.clone())).collect()
}

pub(crate) fn same_values(one: &[ValueSpec], other: &[ValueSpec]) -> bool {
    let pairs = || one.iter().zip(other);
    one.len() == other.len() && pairs().all(|(a, b)| a.name == b.name && a.data_type == b.data_type)
}

/// Rows of a block, their keys encoded.
struct Rows {
    leads: Int64Array,
    keys: Keys,
    values: Vec<ArrayRef>,
}

impl Rows {
    fn new(codec: &KeyCodec, batch: &RecordBatch, only: Option<Wanted>) -> Result<Self> {
        let mut columns = batch.columns().iter().cloned();
        let leads = columns.next().ok_or_else(|| Error::invalid("has a block without columns"))?;
        let keys: Vec<ArrayRef> = columns.by_ref().take(codec.types().len()).collect();
        let mut values: Vec<ArrayRef> = columns.collect();
        if codec.is_fixed() && keys.iter().any(|k| k.null_count() > 0) || leads.null_count() > 0 {
            return Err(Error::invalid("has a null where there can't be one"));
        }
        let mut keys = codec.encode(batch.num_rows(), &keys)?;
        let mut leads = leads;
        if let Some(wanted) = only {
            let rows = (0u32..).zip(&keys.hashes).filter(|(_, hash)| wanted.has(**hash)).map(|(row, _)| row);
            let rows: Vec<u32> = rows.collect();
            keys = codec.take(&keys, &rows)?;
            let rows = UInt32Array::from(rows);
            leads = arrow::compute::take(&leads, &rows, None)?;
            values = values.iter().map(|v| arrow::compute::take(v, &rows, None)).collect::<Result<_, _>>()?;
        }
        let leads = leads.as_primitive_opt::<Int64Type>().ok_or_else(|| Error::invalid("has no namespaces"))?.clone();
        Ok(Self { leads, keys, values })
    }

    /// Pieces of one namespace.
    fn runs(self, codec: &KeyCodec, mut each: impl FnMut(i64, Keys, &[ArrayRef]) -> Result<()>) -> Result<()> {
        let leads = self.leads.values();
        let mut runs: Vec<(i64, u32, u32)> = Vec::new();
        for (row, &lead) in (0u32..).zip(leads) {
            match runs.last_mut() {
                Some((last, _, n)) if *last == lead => *n += 1,
                _ => runs.push((lead, row, 1)),
            }
        }
        if let [(lead, ..)] = runs.as_slice() {
            return each(*lead, self.keys, &self.values);
        }
        for (lead, start, n) in runs {
            let rows: Vec<u32> = (start..start + n).collect();
            let values: Vec<ArrayRef> = self.values.iter().map(|v| v.slice(start as usize, n as usize)).collect();
            each(lead, codec.take(&self.keys, &rows)?, &values)?;
        }
        Ok(())
    }
}

/// How entries are put.
#[derive(Clone, Copy)]
struct Put {
    /// By a file that continues no other: it has its keys once, and they are not here yet.
    base: bool,
    /// To make room for so many, if there are none.
    room: usize,
}

fn put_entries(
    table: &mut Table,
    namespace: Namespace,
    fixed: bool,
    keys: &Keys,
    values: &[ArrayRef],
    Put { base, room }: Put,
) -> Result<()> {
    let name = table.name.clone();
    table.space(namespace, fixed);
    let space = table.spaces.get_mut(&namespace).ok_or_else(|| absent(&name))?;
    if space.len() == 0 && room > keys.len() && namespace == Namespace::GLOBAL {
        space.reserve(room);
    }
    let mut slots = Vec::new();
    if base {
        space.append(keys, &mut slots)?;
    } else {
        space.resolve(keys, None, &mut slots)?;
    }
    let mut grown = 0;
    let resident = space.values.columns.iter_mut().zip(&mut space.values.present);
    for ((codec, array), (column, present)) in table.columns.iter().zip(values).zip(resident) {
        grown += codec.write(column, present, &slots, array)?;
    }
    space.grew(grown);
    Ok(())
}

fn remove_entries(table: &mut Table, namespace: Namespace, keys: &Keys) -> Result<()> {
    if let Some(space) = table.spaces.get_mut(&namespace) {
        space.index_appended();
        let mut slots = Vec::new();
        space.find(keys, &mut slots)?;
        slots.retain(|&slot| slot != NO_SLOT);
        space.remove(&slots);
        table.drop_if_empty(namespace);
    }
    Ok(())
}

/// Those of some key groups, or all.
fn drop_entries(table: &mut Table, namespace: Namespace, codec: &KeyCodec, among: Option<Wanted>) -> Result<()> {
    let Some(among) = among else {
        table.drop_space(namespace);
        return Ok(());
    };
    if let Some(space) = table.spaces.get_mut(&namespace) {
        space.index_appended();
        let mut slots = Vec::new();
        space.scan(None, usize::MAX, &mut slots);
        let hashes = space.keys(codec, &slots)?.hashes;
        let gone: Vec<Slot> = slots.into_iter().zip(hashes).filter(|(_, h)| among.has(*h)).map(|(s, _)| s).collect();
        space.remove(&gone);
        table.drop_if_empty(namespace);
    }
    Ok(())
}

fn append_rows(log: &mut Log, namespace: i64, codec: &KeyCodec, keys: Keys, values: &[ArrayRef]) -> Result<()> {
    let (times, columns) = values.split_first().ok_or_else(|| Error::invalid("has log rows without timestamps"))?;
    let times = times.as_primitive_opt::<Int64Type>().ok_or_else(|| Error::invalid("has other timestamps"))?;
    if times.null_count() == 0 || times.null_count() == times.len() {
        let timestamps = (times.null_count() == 0).then(|| times.values().clone());
        return log.append(Namespace(namespace), Batch::new(keys.len(), columns.to_vec(), timestamps)?, keys);
    }
    for timed in [false, true] {
        let rows: Vec<u32> = (0..keys.len() as u32).filter(|&row| times.is_valid(row as usize) == timed).collect();
        let rows = UInt32Array::from(rows);
        let some = values.iter().map(|v| arrow::compute::take(v, &rows, None)).collect::<Result<Vec<_>, _>>()?;
        append_rows(log, namespace, codec, codec.take(&keys, rows.values())?, &some)?;
    }
    Ok(())
}

fn change_timers(timers: &mut Timers, change: Change, rows: &Rows) -> Result<()> {
    let of: Vec<u32> = (0..rows.keys.len() as u32).collect();
    match change {
        Change::Put => timers.set(&rows.keys, &of, rows.leads.values()),
        Change::Removed => timers.delete(&rows.keys, &of, rows.leads.values()),
        Change::Dropped => Ok(()),
    }
}

fn drop_timers(timers: &mut Timers, codec: &KeyCodec, among: Option<Wanted>) -> Result<()> {
    let (keys, times) = timers.due(codec, i64::MAX, usize::MAX)?;
    let gone = (0u32..).zip(keys.hashes.iter().zip(&times));
    let gone = gone.filter(|(_, (hash, _))| among.is_none_or(|among| among.has(**hash)));
    let (of, times): (Vec<u32>, Vec<i64>) = gone.map(|(row, (_, time))| (row, *time)).unzip();
    timers.delete(&keys, &of, &times)
}

fn absent(name: &str) -> Error {
    Error::internal(format!("'{name}' is not among the restored parts"))
}
