//! Keyed state with absent entries: the contract, over resident columns and a database.
#![allow(clippy::indexing_slicing, reason = "slots and rows come from the space and keys that they index")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{ArrayRef, new_null_array};
use arrow::datatypes::DataType;
use tidemill_core::keys::{KeyCodec, Keys};
use tidemill_core::memory::Owner;
use tidemill_core::snapshot::{SnapshotKind, StateSnapshot, StateSpec};
use tidemill_core::state::{KeyedState, LogId, NO_SLOT, Namespace, Slot, TableId, ValueSpec, Values};
use tidemill_core::user::TimeDomain;
use tidemill_core::{Batch, Error, Result};

use super::Shared;
use super::inventory::{Count, Inventory, Stored};
use super::layout::{HEAD, LEAD, PartId, damaged, keys_of, order_of, push_key, read_value};
use super::local::Local;
use super::read::{each, pieces_of, read};
use super::restore::{Opened, restore};
use super::snapshot::{RocksSnapshot, Uploads, buckets};
use super::timers::DiskTimers;
use crate::format::{PartKind, divided};
use crate::memory::evolve;
use crate::memory::frozen::{About, FrozenState, InPieces, no_time, not_frozen};
use crate::memory::log::Log;
use crate::memory::parts::{self, Parts, log_values, same_values};
use crate::memory::space::{OnDisk, Space};
use crate::memory::table::Table;

/// Where a scan of a namespace is.
enum Cursor {
    /// Everything is resident, and stays so until the scan is over.
    Slots,
    /// Behind this key.
    Disk(Vec<u8>),
}

pub(super) struct RocksState {
    about: Arc<About>,
    shared: Arc<Shared>,
    local: Arc<Local>,
    uploads: Arc<Uploads>,
    tables: Vec<Table>,
    logs: Vec<Log>,
    event_timers: DiskTimers,
    processing_timers: DiskTimers,
    /// What was restored and is not declared yet.
    restored: Inventory,
    allow_non_restored: bool,
    /// Number of snapshots taken.
    frozen: u64,
    freezing: Freezing,
    /// Keys that a database which was not written yet may still have are remembered until it is.
    remembers: bool,
    reported: usize,
    /// What the database held in memory when entries became absent last.
    table_bytes: usize,
    scans: BTreeMap<(usize, Namespace), Cursor>,
    /// The slots of the latest scan, ascending.
    pinned: Option<(usize, Namespace, Vec<Slot>)>,
    lookup: Lookup,
}

/// The latest snapshot, until it is taken off.
enum Freezing {
    Nothing,
    /// Some of it is to be copied.
    Begun(FrozenState, Box<RocksSnapshot>),
    /// All is copied and queued.
    Queued(Box<RocksSnapshot>),
}

/// A key that is looked up.
#[derive(Clone, Copy)]
struct Sought {
    order: u128,
    start: usize,
    end: usize,
    /// What it is for.
    of: u32,
}

/// Keys of one namespace that are looked up together.
#[derive(Default)]
struct Lookup {
    bytes: Vec<u8>,
    keys: Vec<Sought>,
}

impl Lookup {
    fn clear(&mut self) {
        self.bytes.clear();
        self.keys.clear();
    }

    fn push(&mut self, table: PartId, namespace: Namespace, about: &About, hash: u64, of: u32) -> &mut Vec<u8> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&table.lead(namespace.0));
        self.bytes.extend_from_slice(&about.max_parallelism.key_group(hash).0.to_be_bytes());
        self.keys.push(Sought { order: 0, start, end: start, of });
        &mut self.bytes
    }

    /// Takes the key that was pushed, or leaves it out if it is known to be gone.
    fn done(&mut self, gone: &[std::collections::HashSet<Box<[u8]>>; 2]) {
        let end = self.bytes.len();
        let Some(last) = self.keys.last_mut() else { return };
        (last.order, last.end) = (order_of(&self.bytes[last.start + LEAD..end]), end);
        let key = &self.bytes[last.start + HEAD..end];
        if gone.iter().any(|gone| !gone.is_empty() && gone.contains(key)) {
            self.bytes.truncate(last.start);
            self.keys.pop();
        }
    }

    /// Reads them.
    fn read(&mut self, local: &Local, mut found: impl FnMut(u32, &[u8]) -> Result<()>) -> Result<()> {
        let bytes = &self.bytes;
        let key = |sought: &Sought| &bytes[sought.start..sought.end];
        self.keys.sort_unstable_by(|a, b| a.order.cmp(&b.order).then_with(|| key(a).cmp(key(b))));
        let keys: Vec<&[u8]> = self.keys.iter().map(key).collect();
        local.get(&keys, |i, value| value.map_or(Ok(()), |value| found(self.keys[i].of, value)))
    }
}

impl RocksState {
    pub(super) fn open(shared: Arc<Shared>, spec: StateSpec) -> Result<Self> {
        let about = Arc::new(About {
            operator: spec.operator,
            codec: spec.codec,
            key_groups: spec.key_groups,
            max_parallelism: spec.max_parallelism,
            now: no_time(),
        });
        let folder = shared.folder()?;
        let opened = match &spec.restored {
            Some(from) => restore(&about, &shared, folder, from)?,
            None => Opened {
                local: Local::open(folder, &shared)?,
                inventory: Inventory::default(),
                uploads: Uploads::default(),
            },
        };
        let fixed = about.codec.is_fixed();
        shared.states.fetch_add(1, Ordering::Relaxed);
        let mut state = Self {
            about,
            shared,
            local: Arc::new(opened.local),
            uploads: Arc::new(opened.uploads),
            tables: Vec::new(),
            logs: Vec::new(),
            event_timers: DiskTimers::new(PartKind::EventTimers, fixed),
            processing_timers: DiskTimers::new(PartKind::ProcessingTimers, fixed),
            restored: opened.inventory,
            allow_non_restored: spec.restored.is_some_and(|from| from.allow_non_restored),
            frozen: 0,
            freezing: Freezing::Nothing,
            remembers: false,
            reported: 0,
            table_bytes: 0,
            scans: BTreeMap::new(),
            pinned: None,
            lookup: Lookup::default(),
        };
        for (kind, domain) in
            [(PartKind::EventTimers, TimeDomain::Event), (PartKind::ProcessingTimers, TimeDomain::Processing)]
        {
            if let Some(stored) = state.restored.parts.remove(&(kind, String::new())) {
                let timers = stored.namespaces.values().map(|count| count.entries).sum();
                state.timers(domain).restored(timers);
                state.fill(domain)?;
            }
        }
        Ok(state)
    }

    fn at(&mut self, table: TableId) -> Result<&mut Table> {
        self.tables.get_mut(table.0).ok_or_else(|| Error::internal(format!("table {} is not declared", table.0)))
    }

    fn log_at(&mut self, log: LogId) -> Result<&mut Log> {
        self.logs.get_mut(log.0).ok_or_else(|| Error::internal(format!("log {} is not declared", log.0)))
    }

    fn timers(&mut self, domain: TimeDomain) -> &mut DiskTimers {
        match domain {
            TimeDomain::Event => &mut self.event_timers,
            TimeDomain::Processing => &mut self.processing_timers,
        }
    }

    fn check_name(&self, name: &str) -> Result<()> {
        let mut names = self.tables.iter().map(|t| t.name.as_str()).chain(self.logs.iter().map(Log::name));
        if names.any(|other| other == name) {
            return Err(Error::internal(format!("the operator declares the state '{name}' twice")));
        }
        Ok(())
    }

    /// The restored table of this name, adapted on disk if its values were declared otherwise.
    fn restored_table(&mut self, table: &mut Table, values: &[ValueSpec]) -> Result<()> {
        let key = (PartKind::Table, table.name.clone());
        let Some(stored) = self.restored.parts.remove(&key) else { return Ok(()) };
        if !same_values(&stored.values, &table.values()) {
            self.adapt(&stored, table, values)?;
        }
        for (namespace, count) in stored.namespaces {
            if count.entries > 0 {
                let space = table.space(Namespace(namespace), self.about.codec.is_fixed());
                space.settle();
                space.disk = Some(OnDisk::all(count.entries));
            }
        }
        Ok(())
    }

    fn adapt(&self, stored: &Stored, table: &Table, values: &[ValueSpec]) -> Result<()> {
        let name = table.name.clone();
        let namespaces = stored.namespaces.clone();
        let part = Stored { values: stored.values.clone(), namespaces };
        let inventory = Inventory { parts: BTreeMap::from([((PartKind::Table, name.clone()), part)]) };
        for range in divided(self.about.key_groups, buckets(self.local.db())) {
            let about = Arc::new(self.about.of(range)?);
            let mut parts = Parts::new(Arc::clone(&about));
            parts.tables.insert(name.clone(), Table::new(&name, &stored.values)?);
            read(self.local.db(), &inventory, about.max_parallelism, &mut parts)?;
            let Some(read) = parts.tables.remove(&name) else { continue };
            let adapted = evolve::table(&about.operator, read, Table::new(&name, values)?)?;
            parts.tables.insert(name.clone(), adapted);
            self.local.apply(Some(&parts.freeze()))?;
        }
        Ok(())
    }

    /// What changed since the freeze before. The entries of tables are still to be copied.
    fn begin_freezing(&mut self) -> FrozenState {
        let fixed = self.about.codec.is_fixed();
        let timers = [&mut self.event_timers.resident, &mut self.processing_timers.resident];
        let parts = parts::freeze(self.tables.iter_mut(), self.logs.iter_mut(), timers, fixed);
        FrozenState { about: Arc::clone(&self.about), whole: false, parts }
    }

    /// Copies a part of what was frozen; queues it once all is copied.
    fn go_on_freezing(&mut self, entries: usize) {
        match std::mem::replace(&mut self.freezing, Freezing::Nothing) {
            Freezing::Begun(state, snapshot) => {
                let timers = [&mut self.event_timers.resident, &mut self.processing_timers.resident];
                self.freezing = match parts::copy_some(self.tables.iter_mut(), timers, entries) {
                    Some(copies) => {
                        self.local.queue(snapshot.number, InPieces { state, copies }, Arc::clone(&snapshot.wanted));
                        Freezing::Queued(snapshot)
                    }
                    None => Freezing::Begun(state, snapshot),
                };
            }
            other => self.freezing = other,
        }
    }

    /// Before anything is written or becomes absent, what was frozen earlier is queued.
    fn finish_freezing(&mut self) {
        while matches!(self.freezing, Freezing::Begun(..)) {
            self.go_on_freezing(usize::MAX);
        }
    }

    /// Writes everything that the database does not have yet. Before a commit, what is resolved may still be written to,
    /// so it stays changed.
    fn flush(&mut self, committed: bool) -> Result<()> {
        self.finish_freezing();
        let spaces = |tables: &mut Vec<Table>, stays: bool| {
            let disks = tables.iter_mut().flat_map(|t| t.spaces.values_mut()).filter_map(|s| s.disk.as_mut());
            disks.for_each(|disk| disk.stays_changed = stays);
        };
        spaces(&mut self.tables, !committed);
        let state = self.begin_freezing();
        let timers = [&mut self.event_timers.resident, &mut self.processing_timers.resident];
        let copies = parts::copy_all(self.tables.iter_mut(), timers);
        let frozen = InPieces { state, copies }.join();
        spaces(&mut self.tables, false);
        self.local.apply(Some(&frozen).filter(|frozen| !frozen.is_empty()))?;
        self.forget_gone();
        Ok(())
    }

    /// The database has all that was frozen, and so not what is remembered to be gone.
    fn forget_gone(&mut self) {
        for disk in self.tables.iter_mut().flat_map(|t| t.spaces.values_mut()).filter_map(|s| s.disk.as_mut()) {
            disk.gone[1].clear();
        }
        self.remembers = false;
    }

    /// Resident bytes, were everything in memory that could be given away.
    fn resident_bytes(&self) -> usize {
        let entries = self.tables.iter().flat_map(|t| t.spaces.values()).map(Space::entry_bytes).sum::<usize>();
        let timers = self.event_timers.resident.memory_bytes() + self.processing_timers.resident.memory_bytes();
        entries + timers + self.logs.iter().map(Log::memory_bytes).sum::<usize>()
    }

    /// Makes entries absent until this state takes so many bytes.
    fn shrink(&mut self, target: usize) -> Result<()> {
        self.table_bytes = self.local.table_bytes();
        self.finish_freezing();
        self.local.apply(None)?;
        self.forget_gone();
        // First what was not used since it was written last; there is nothing to write for that.
        self.evict_entries(target);
        if self.resident_bytes() <= target {
            return Ok(());
        }
        self.flush(true)?;
        let others = self.resident_bytes().saturating_sub(self.logs.iter().map(Log::memory_bytes).sum());
        for log in &mut self.logs {
            log.evict(target.saturating_sub(others).max(target / 4));
        }
        let timers = self.shared.settings.resident_timers;
        self.event_timers.evict(timers);
        self.processing_timers.evict(timers);
        self.evict_entries(target);
        Ok(())
    }

    fn evict_entries(&mut self, target: usize) {
        let all = self.resident_bytes();
        let excess = all.saturating_sub(target);
        let entries: usize = self.tables.iter().flat_map(|t| t.spaces.values()).map(Space::entry_bytes).sum();
        if excess == 0 || entries == 0 {
            return;
        }
        let share = (excess as f64 / entries as f64).min(1.0);
        for (index, table) in self.tables.iter_mut().enumerate() {
            for (namespace, space) in &mut table.spaces {
                if matches!(self.scans.get(&(index, *namespace)), Some(Cursor::Slots)) {
                    continue;
                }
                let pinned = match &self.pinned {
                    Some((table, ns, slots)) if *table == index && ns == namespace => slots.as_slice(),
                    _ => &[],
                };
                let want = (space.resident() as f64 * share).ceil() as usize;
                space.evict(want, pinned);
            }
        }
    }

    /// Reads the entries that were added just now, as far as they are on disk.
    fn load_added(&mut self, table: TableId, namespace: Namespace) -> Result<()> {
        let table = self.tables.get_mut(table.0).ok_or_else(damaged)?;
        let id = PartId::new(PartKind::Table, &table.name);
        let Some(space) = table.spaces.get_mut(&namespace) else { return Ok(()) };
        let Some(disk) = space.disk.as_ref().filter(|disk| disk.absent > 0 && !disk.added.is_empty()) else {
            return Ok(());
        };
        self.lookup.clear();
        for &slot in &disk.added {
            let key = self.lookup.push(id, namespace, &self.about, space.key_hash(slot), slot);
            space.disk_key(slot, key);
            self.lookup.done(&disk.gone);
        }
        self.lookup.read(&self.local, |slot, value| {
            let owned = read_value(value, &mut space.values, slot)?;
            space.loaded(slot, owned);
            Ok(())
        })
    }

    fn resolve_some(
        &mut self,
        table: TableId,
        namespace: Namespace,
        keys: &Keys,
        rows: Option<&[u32]>,
        slots: &mut Vec<Slot>,
    ) -> Result<()> {
        let fixed = self.about.codec.is_fixed();
        let space = self.at(table)?.space(namespace, fixed);
        space.resolve(keys, rows, slots)?;
        if space.absent() > 0 { self.load_added(table, namespace) } else { Ok(()) }
    }

    /// Adds entries that were read, as far as they are not resident. A slot per key.
    fn add_read(
        space: &mut Space,
        keys: &Keys,
        rows: Option<&[u32]>,
        values: &[&[u8]],
        slots: &mut Vec<Slot>,
    ) -> Result<()> {
        space.slots_of(keys, rows, slots)?;
        let added = space.disk.as_mut().map(|disk| std::mem::take(&mut disk.added)).unwrap_or_default();
        // They were added in the order of their first keys.
        let mut next = added.iter().peekable();
        for (&slot, value) in slots.iter().zip(values) {
            if next.next_if(|added| **added == slot).is_some() {
                let owned = read_value(value, &mut space.values, slot)?;
                space.loaded(slot, owned);
            }
        }
        Ok(())
    }

    /// Looks for absent entries.
    fn find_absent(&mut self, table: TableId, namespace: Namespace, keys: &Keys, slots: &mut [Slot]) -> Result<()> {
        let table = self.tables.get_mut(table.0).ok_or_else(damaged)?;
        let id = PartId::new(PartKind::Table, &table.name);
        let Some(space) = table.spaces.get_mut(&namespace) else { return Ok(()) };
        let Some(disk) = &space.disk else { return Ok(()) };
        self.lookup.clear();
        for (row, _) in slots.iter().enumerate().filter(|(_, slot)| **slot == NO_SLOT) {
            push_key(keys, row, self.lookup.push(id, namespace, &self.about, keys.hashes[row], row as u32));
            self.lookup.done(&disk.gone);
        }
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        self.lookup.read(&self.local, |row, value| {
            rows.push(row);
            values.push(value.to_vec());
            Ok(())
        })?;
        let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        let mut found = Vec::new();
        Self::add_read(space, keys, Some(&rows), &values, &mut found)?;
        rows.iter().zip(found).for_each(|(&row, slot)| slots[row as usize] = slot);
        Ok(())
    }

    /// The next entries of a namespace in the order of the disk.
    fn scan_disk(
        &mut self,
        table: TableId,
        namespace: Namespace,
        after: Option<Vec<u8>>,
        limit: usize,
        slots: &mut Vec<Slot>,
    ) -> Result<Option<Vec<u8>>> {
        let table = self.tables.get_mut(table.0).ok_or_else(damaged)?;
        let (mut from, to) = (Vec::new(), PartId::new(PartKind::Table, &table.name).range(namespace.0).1);
        match after {
            Some(last) => {
                from.extend_from_slice(&last);
                from.push(0);
            }
            None => from.extend_from_slice(&PartId::new(PartKind::Table, &table.name).range(namespace.0).0),
        }
        let Some(space) = table.spaces.get_mut(&namespace) else { return Ok(None) };
        let Some(disk) = &space.disk else { return Ok(None) };
        let (mut keys, mut values, mut last) = (Vec::new(), Vec::new(), None);
        each(self.local.db(), &from, &to, |key, value| {
            let own = key.get(HEAD..).ok_or_else(damaged)?;
            if !disk.gone.iter().any(|gone| gone.contains(own)) {
                keys.push(own.to_vec());
                values.push(value.to_vec());
                last = Some(key.to_vec());
            }
            Ok(keys.len() < limit)
        })?;
        let keys = keys_of(&self.about.codec, keys.iter().map(Vec::as_slice))?;
        let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        Self::add_read(space, &keys, None, &values, slots)?;
        Ok(last)
    }

    /// Loads timers while those in memory are used up.
    fn fill(&mut self, domain: TimeDomain) -> Result<()> {
        while self.timers(domain).is_short() {
            self.advance(domain)?;
        }
        Ok(())
    }

    fn advance(&mut self, domain: TimeDomain) -> Result<()> {
        self.flush(false)?;
        let wanted = (self.shared.settings.resident_timers / 2).max(1);
        let (local, about) = (Arc::clone(&self.local), Arc::clone(&self.about));
        self.timers(domain).advance(local.db(), &about.codec, wanted)
    }

    fn inventory(&self) -> Inventory {
        let mut inventory = Inventory::default();
        for table in &self.tables {
            let count = |space: &Space| Count { entries: space.len() as u64, rows: 0 };
            let namespaces = table.spaces.iter().map(|(ns, space)| (ns.0, count(space))).collect();
            let stored = Stored { values: table.values(), namespaces };
            inventory.parts.insert((PartKind::Table, table.name.clone()), stored);
        }
        for log in &self.logs {
            let namespaces = log.counts().map(|(ns, entries, rows)| (ns.0, Count { entries, rows })).collect();
            let stored = Stored { values: log_values(log), namespaces };
            inventory.parts.insert((PartKind::Log, log.name().to_owned()), stored);
        }
        for (kind, timers) in
            [(PartKind::EventTimers, &self.event_timers), (PartKind::ProcessingTimers, &self.processing_timers)]
        {
            let namespaces = BTreeMap::from([(0, Count { entries: timers.len(), rows: 0 })]);
            inventory.parts.insert((kind, String::new()), Stored { values: Vec::new(), namespaces });
        }
        inventory
    }
}

impl KeyedState for RocksState {
    fn codec(&self) -> &KeyCodec {
        &self.about.codec
    }

    fn table(&mut self, name: &str, values: Vec<ValueSpec>) -> Result<TableId> {
        self.check_name(name)?;
        let mut table = Table::new(name, &values)?;
        table.backed = true;
        self.restored_table(&mut table, &values)?;
        self.local.expiry().declare(&table);
        self.tables.push(table);
        Ok(TableId(self.tables.len() - 1))
    }

    fn declared(&mut self) -> Result<()> {
        let left: Vec<String> = self
            .restored
            .parts
            .iter()
            .map(|((kind, name), _)| format!("{} '{name}'", if *kind == PartKind::Log { "log" } else { "table" }))
            .collect();
        if !left.is_empty() && !self.allow_non_restored {
            return Err(Error::invalid(format!(
                "the restored state of operator '{}' has what the operator does not declare (any more): {}",
                self.about.operator,
                left.join(", ")
            ))
            .mend("Declare it again, or drop it by restoring with --allow-non-restored."));
        }
        for (kind, name) in std::mem::take(&mut self.restored).parts.into_keys() {
            let (from, to) = PartId::new(kind, &name).all();
            let mut changes = super::changes::Changes::default();
            changes.dropped.push((from.to_vec(), to));
            self.local.write(changes)?;
        }
        Ok(())
    }

    fn resolve(&mut self, table: TableId, namespace: Namespace, keys: &Keys, slots: &mut Vec<Slot>) -> Result<()> {
        self.resolve_some(table, namespace, keys, None, slots)
    }

    fn resolve_rows(
        &mut self,
        table: TableId,
        namespace: Namespace,
        keys: &Keys,
        rows: &[u32],
        slots: &mut Vec<Slot>,
    ) -> Result<()> {
        if rows.iter().any(|&row| row as usize >= keys.len()) {
            return Err(Error::internal("a row index outside the keys of its batch"));
        }
        self.resolve_some(table, namespace, keys, Some(rows), slots)
    }

    fn find(&mut self, table: TableId, namespace: Namespace, keys: &Keys, slots: &mut Vec<Slot>) -> Result<()> {
        let Some(space) = self.at(table)?.spaces.get(&namespace) else {
            slots.clear();
            slots.resize(keys.len(), NO_SLOT);
            return Ok(());
        };
        space.find(keys, slots)?;
        let absent = space.absent() > 0 && slots.contains(&NO_SLOT);
        if absent { self.find_absent(table, namespace, keys, slots) } else { Ok(()) }
    }

    fn values(&mut self, table: TableId, namespace: Namespace) -> Result<&mut Values> {
        let fixed = self.about.codec.is_fixed();
        Ok(&mut self.at(table)?.space(namespace, fixed).values)
    }

    fn read(&mut self, table: TableId, namespace: Namespace, value: usize, slots: &[Slot]) -> Result<ArrayRef> {
        let table = self.at(table)?;
        let column = table.column(value)?;
        let resident =
            table.spaces.get(&namespace).and_then(|s| s.values.columns.get(value).zip(s.values.present.get(value)));
        match resident {
            Some((values, present)) => column.read(values, present, slots),
            None => Ok(new_null_array(column.data_type(), slots.len())),
        }
    }

    fn write(
        &mut self,
        table: TableId,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        values: &ArrayRef,
    ) -> Result<()> {
        self.at(table)?.write(namespace, value, slots, values)
    }

    fn append_items(
        &mut self,
        table: TableId,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        items: &ArrayRef,
    ) -> Result<()> {
        self.at(table)?.append_items(namespace, value, slots, items)
    }

    fn change_entries(
        &mut self,
        table: TableId,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        map_keys: &ArrayRef,
        values: Option<&ArrayRef>,
    ) -> Result<()> {
        self.at(table)?.change_entries(namespace, value, slots, map_keys, values)
    }

    fn find_entries(
        &mut self,
        table: TableId,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        map_keys: &ArrayRef,
        limit: usize,
    ) -> Result<Option<ArrayRef>> {
        self.at(table)?.find_entries(namespace, value, slots, map_keys, limit)
    }

    fn collection_bytes(
        &mut self,
        table: TableId,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        bytes: &mut Vec<usize>,
    ) -> Result<()> {
        self.at(table)?.collection_bytes(namespace, value, slots, bytes);
        Ok(())
    }

    fn clean_up(&mut self, now: i64, looks: usize) -> Result<()> {
        self.about.now.store(now, Ordering::Relaxed);
        self.local.expiry().set_now(now);
        self.tables.iter_mut().for_each(|table| table.clean_up(now, looks));
        Ok(())
    }

    fn scan(
        &mut self,
        table: TableId,
        namespace: Namespace,
        after: Option<Slot>,
        limit: usize,
        slots: &mut Vec<Slot>,
    ) -> Result<()> {
        slots.clear();
        let at = (table.0, namespace);
        let Some(space) = self.at(table)?.spaces.get(&namespace) else {
            self.scans.remove(&at);
            self.pinned = None;
            return Ok(());
        };
        let absent = space.absent() > 0;
        let cursor = match (after.and(self.scans.remove(&at)), after) {
            (Some(cursor), _) => Some(cursor),
            // A scan that was over, or whose cursor got lost: what is left is after this slot.
            (None, _) if !absent => Some(Cursor::Slots),
            (None, Some(slot)) => {
                let mut lookup = Lookup::default();
                let id = PartId::new(PartKind::Table, &self.at(table)?.name);
                let about = Arc::clone(&self.about);
                if let Some(space) = self.at(table)?.spaces.get(&namespace) {
                    space.disk_key(slot, lookup.push(id, namespace, &about, space.key_hash(slot), 0));
                }
                Some(Cursor::Disk(lookup.bytes))
            }
            (None, None) => None,
        };
        let next = match cursor {
            Some(Cursor::Slots) => {
                if let Some(space) = self.at(table)?.spaces.get(&namespace) {
                    space.scan(after, limit, slots);
                }
                Some(Cursor::Slots)
            }
            Some(Cursor::Disk(last)) => self.scan_disk(table, namespace, Some(last), limit, slots)?.map(Cursor::Disk),
            None => {
                self.flush(false)?;
                self.scan_disk(table, namespace, None, limit, slots)?.map(Cursor::Disk)
            }
        };
        if let Some(next) = next.filter(|_| !slots.is_empty()) {
            self.scans.insert(at, next);
        }
        let mut pinned = slots.clone();
        pinned.sort_unstable();
        self.pinned = Some((table.0, namespace, pinned));
        Ok(())
    }

    fn keys(&mut self, table: TableId, namespace: Namespace, slots: &[Slot]) -> Result<Keys> {
        let about = Arc::clone(&self.about);
        self.at(table)?.existing(namespace)?.keys(&about.codec, slots)
    }

    fn key_columns(&mut self, table: TableId, namespace: Namespace, slots: &[Slot]) -> Result<Vec<ArrayRef>> {
        let keys = self.keys(table, namespace, slots)?;
        self.about.codec.decode(&keys)
    }

    fn remove_vacant(&mut self, table: TableId, namespace: Namespace, slots: &[Slot]) -> Result<()> {
        let table = self.at(table)?;
        table.existing(namespace)?.remove_vacant(slots);
        table.drop_if_empty(namespace);
        Ok(())
    }

    fn remove(&mut self, table: TableId, namespace: Namespace, slots: &[Slot]) -> Result<()> {
        let table = self.at(table)?;
        table.existing(namespace)?.remove(slots);
        table.drop_if_empty(namespace);
        Ok(())
    }

    fn drop_namespace(&mut self, table: TableId, namespace: Namespace) -> Result<()> {
        self.scans.remove(&(table.0, namespace));
        self.at(table)?.drop_space(namespace);
        Ok(())
    }

    fn namespaces(&self, table: TableId) -> Vec<Namespace> {
        let spaces = self.tables.get(table.0).into_iter().flat_map(|t| &t.spaces);
        spaces.filter(|(_, space)| space.len() > 0).map(|(namespace, _)| *namespace).collect()
    }

    fn len(&self, table: TableId, namespace: Namespace) -> usize {
        self.tables.get(table.0).and_then(|t| t.spaces.get(&namespace)).map_or(0, Space::len)
    }

    fn log(&mut self, name: &str, columns: Vec<DataType>) -> Result<LogId> {
        self.check_name(name)?;
        let mut log = Log::new(name, columns);
        if let Some(stored) = self.restored.parts.remove(&(PartKind::Log, name.to_owned())) {
            if !same_values(&stored.values, &log_values(&log)) {
                let types = stored.values.iter().map(|v| v.data_type.clone()).collect();
                return Err(evolve::other_log(&self.about.operator, &Log::new(name, types), &log));
            }
            for (namespace, count) in stored.namespaces {
                log.set_absent(Namespace(namespace), count.entries, count.rows);
            }
        }
        self.logs.push(log);
        Ok(LogId(self.logs.len() - 1))
    }

    fn append(&mut self, log: LogId, namespace: Namespace, rows: Batch, keys: Keys) -> Result<()> {
        self.log_at(log)?.append(namespace, rows, keys)
    }

    fn rows(&mut self, log: LogId, namespace: Namespace) -> Result<&[(Batch, Arc<Keys>)]> {
        let (local, about) = (Arc::clone(&self.local), Arc::clone(&self.about));
        let log = self.log_at(log)?;
        let absent = log.absent(namespace);
        if absent > 0 {
            let id = PartId::new(PartKind::Log, log.name());
            log.loaded(namespace, pieces_of(local.db(), id, namespace.0, absent, &about.codec)?);
        }
        Ok(log.rows(namespace))
    }

    fn drop_rows(&mut self, log: LogId, namespace: Namespace) -> Result<()> {
        self.log_at(log)?.drop_rows(namespace);
        Ok(())
    }

    fn log_namespaces(&self, log: LogId) -> Vec<Namespace> {
        self.logs.get(log.0).map(Log::namespaces).unwrap_or_default()
    }

    fn set_timers(&mut self, domain: TimeDomain, keys: &Keys, of: &[u32], timestamps: &[i64]) -> Result<()> {
        self.timers(domain).resident.set(keys, of, timestamps)
    }

    fn delete_timers(&mut self, domain: TimeDomain, keys: &Keys, of: &[u32], timestamps: &[i64]) -> Result<()> {
        self.timers(domain).resident.delete(keys, of, timestamps)?;
        self.fill(domain)
    }

    fn due_timers(&mut self, domain: TimeDomain, up_to: i64, limit: usize) -> Result<(Keys, Vec<i64>)> {
        let about = Arc::clone(&self.about);
        loop {
            let (keys, times) = self.timers(domain).due(&about.codec, up_to, limit)?;
            let more = self.timers(domain).resident.horizon.is_some_and(|horizon| horizon <= up_to);
            if times.len() >= limit || !more {
                return Ok((keys, times));
            }
            self.advance(domain)?;
        }
    }

    fn next_timer(&self, domain: TimeDomain) -> Option<i64> {
        match domain {
            TimeDomain::Event => self.event_timers.resident.first(),
            TimeDomain::Processing => self.processing_timers.resident.first(),
        }
    }

    fn commit(&mut self) -> Result<()> {
        let bytes = self.resident_bytes();
        let others = self.shared.used.fetch_add(bytes.wrapping_sub(self.reported), Ordering::Relaxed);
        let all = others.wrapping_sub(self.reported).wrapping_add(bytes);
        let before = std::mem::replace(&mut self.reported, bytes);
        let refused = self.shared.account.resize(Owner::State, before as u64, bytes as u64).err();
        let behind = self.local.is_behind() || matches!(self.freezing, Freezing::Begun(..));
        if self.remembers && !behind {
            self.forget_gone();
        }
        // Its part of the limit, or what others leave of it; the indexes of the files are in it too.
        let limit = self.shared.resident_bytes;
        let others = all.saturating_sub(bytes);
        let states = self.shared.states.load(Ordering::Relaxed).max(1);
        let share = (limit / states).max(limit.saturating_sub(others));
        let share = share - self.table_bytes.min(share / 2);
        // While a snapshot is being written, a little more is better than waiting for it.
        let patience = if behind { share / 4 } else { 0 };
        if bytes > share + patience {
            self.shrink(share / 8 * 5)?;
        } else if refused.is_some() {
            self.shrink(bytes / 8 * 5)?;
        }
        // The process has no more: what is on disk does with less. Only what can't is refused.
        let Some(refused) = refused else { return Ok(()) };
        let less = self.resident_bytes();
        if less >= bytes {
            self.shared.account.ends();
            return Err(refused);
        }
        self.reported = less;
        self.shared.used.fetch_sub(bytes - less, Ordering::Relaxed);
        self.shared.account.give_back(Owner::State, (bytes - less) as u64);
        Ok(())
    }

    fn freeze(&mut self, kind: SnapshotKind) -> Result<()> {
        self.finish_freezing();
        let state = self.begin_freezing();
        self.frozen += 1;
        self.remembers = true;
        let snapshot = Box::new(RocksSnapshot {
            about: Arc::clone(&self.about),
            shared: Arc::clone(&self.shared),
            local: Arc::clone(&self.local),
            uploads: Arc::clone(&self.uploads),
            number: self.frozen,
            kind,
            inventory: self.inventory(),
            wanted: Arc::new(AtomicBool::new(true)),
        });
        self.freezing = Freezing::Begun(state, snapshot);
        Ok(())
    }

    fn copy_frozen(&mut self) -> Result<Option<Box<dyn StateSnapshot>>> {
        self.go_on_freezing(self.shared.settings.copied_at_once);
        match std::mem::replace(&mut self.freezing, Freezing::Nothing) {
            Freezing::Nothing => Err(not_frozen()),
            Freezing::Queued(snapshot) => Ok(Some(snapshot)),
            begun @ Freezing::Begun(..) => {
                self.freezing = begun;
                Ok(None)
            }
        }
    }

    fn entries(&self) -> u64 {
        let entries: usize = self.tables.iter().flat_map(|t| t.spaces.values()).map(Space::len).sum();
        let timers = self.event_timers.len() + self.processing_timers.len();
        entries as u64 + timers + self.logs.iter().map(Log::len).sum::<u64>()
    }

    fn memory_bytes(&self) -> usize {
        let spaces = self.tables.iter().flat_map(|t| t.spaces.values().chain(&t.spare));
        let tables: usize = spaces.map(Space::memory_bytes).sum();
        let logs: usize = self.logs.iter().map(Log::memory_bytes).sum();
        tables + logs + self.event_timers.resident.memory_bytes() + self.processing_timers.resident.memory_bytes()
    }
}

impl Drop for RocksState {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(self.reported, Ordering::Relaxed);
        self.shared.account.give_back(Owner::State, self.reported as u64);
        self.shared.states.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl RocksState {
    /// Writes everything, compacts the database, and counts what it has.
    pub(super) fn compact(&mut self) -> Result<usize> {
        self.flush(true)?;
        let db = self.local.db();
        db.compact_range::<&[u8], &[u8]>(None, None);
        let mut entries = 0;
        each(db, &[], &[0xff; 64], |_, _| {
            entries += 1;
            Ok(true)
        })?;
        Ok(entries)
    }
}
