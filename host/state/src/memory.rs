//! State in memory: everything is always resident, so `commit` only looks at the limit.
//!
//! A namespace of a table is a `Space` of its own, so that dropping one costs nothing per entry; the memory of the few
//! that were dropped last is used again by the next ones, as panes and windows follow each other with similar sizes.

pub(crate) mod bits;
mod chain;
pub(crate) mod evolve;
pub(crate) mod frozen;
pub(crate) mod log;
pub(crate) mod parts;
mod restore;
pub(crate) mod space;
pub(crate) mod table;
pub(crate) mod timers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, new_null_array};
use arrow::datatypes::DataType;
use tidemill_core::keys::{KeyCodec, KeyData, Keys};
use tidemill_core::memory::{JobMemory, Owner};
use tidemill_core::snapshot::{SnapshotKind, StateSnapshot, StateSpec};
use tidemill_core::state::{KeyedState, LogId, NO_SLOT, Namespace, Slot, StateBackend, TableId, ValueSpec, Values};
use tidemill_core::user::TimeDomain;
use tidemill_core::{Batch, Error, ErrorKind, Result};

pub use self::chain::SnapshotLimits;
use self::chain::{Chain, MemorySnapshot};
use self::frozen::{About, FrozenState, InPieces};
use self::log::Log;
use self::space::Space;
use self::table::Table;
use self::timers::Timers;

/// Keeps the state of all operators of a job in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryBackend {
    /// Bytes that all states together may hold.
    limit: Option<usize>,
    used: Arc<AtomicUsize>,
    snapshots: SnapshotLimits,
    /// Where else it is counted.
    account: Option<Arc<JobMemory>>,
}

impl MemoryBackend {
    /// Without a limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// All states that are opened here may hold this many bytes together. It is looked at after each batch.
    pub fn with_limit(bytes: usize) -> Self {
        Self { limit: Some(bytes), ..Self::default() }
    }

    /// The same with other limits of the files that snapshots are written to.
    pub fn snapshots(self, snapshots: SnapshotLimits) -> Self {
        Self { snapshots, ..self }
    }

    /// The same, counted in this account.
    pub fn accounted(self, account: Arc<JobMemory>) -> Self {
        Self { account: Some(account), ..self }
    }

    /// Bytes that the states held at their latest commits.
    pub fn memory_bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

impl StateBackend for MemoryBackend {
    fn open(&self, spec: StateSpec) -> Result<Box<dyn KeyedState>> {
        let about = Arc::new(About {
            operator: spec.operator,
            codec: spec.codec,
            key_groups: spec.key_groups,
            max_parallelism: spec.max_parallelism,
            now: frozen::no_time(),
        });
        let restored = spec.restored.as_ref().map(|from| restore::restore(&about, from)).transpose()?;
        let fixed = about.codec.is_fixed();
        let mut state = MemoryState {
            about,
            tables: Vec::new(),
            logs: Vec::new(),
            event_timers: Timers::new(fixed),
            processing_timers: Timers::new(fixed),
            backend: self.clone(),
            reported: 0,
            chain: Arc::new(Chain::new(self.snapshots, Vec::new())),
            frozen: 0,
            freezing: None,
            restored: None,
        };
        if let Some(mut restored) = restored {
            std::mem::swap(&mut state.event_timers, &mut restored.parts.event_timers);
            std::mem::swap(&mut state.processing_timers, &mut restored.parts.processing_timers);
            state.restored = Some(restored);
        }
        Ok(Box::new(state))
    }
}

#[derive(Debug)]
struct MemoryState {
    about: Arc<About>,
    tables: Vec<Table>,
    logs: Vec<Log>,
    event_timers: Timers,
    processing_timers: Timers,
    backend: MemoryBackend,
    /// What of the backend's `used` is this state's.
    reported: usize,
    chain: Arc<Chain>,
    /// Number of snapshots taken.
    frozen: u64,
    /// The latest, while it is being copied.
    freezing: Option<(SnapshotKind, FrozenState)>,
    /// What was restored and is not declared yet, until everything is.
    restored: Option<restore::Restored>,
}

impl MemoryState {
    fn at(&mut self, table: TableId) -> Result<&mut Table> {
        self.tables.get_mut(table.0).ok_or_else(|| Error::internal(format!("table {} is not declared", table.0)))
    }

    fn log_at(&mut self, log: LogId) -> Result<&mut Log> {
        self.logs.get_mut(log.0).ok_or_else(|| Error::internal(format!("log {} is not declared", log.0)))
    }

    fn timers(&mut self, domain: TimeDomain) -> &mut Timers {
        match domain {
            TimeDomain::Event => &mut self.event_timers,
            TimeDomain::Processing => &mut self.processing_timers,
        }
    }

    fn forget_snapshots(&mut self) {
        self.tables.iter_mut().for_each(Table::forget_snapshots);
        self.logs.iter_mut().for_each(Log::forget_snapshots);
        self.event_timers.forget_snapshots();
        self.processing_timers.forget_snapshots();
    }

    fn check_name(&self, name: &str) -> Result<()> {
        let mut names = self.tables.iter().map(|t| t.name.as_str()).chain(self.logs.iter().map(Log::name));
        if names.any(|other| other == name) {
            return Err(Error::internal(format!("the operator declares the state '{name}' twice")));
        }
        Ok(())
    }
}

impl KeyedState for MemoryState {
    fn codec(&self) -> &KeyCodec {
        &self.about.codec
    }

    fn table(&mut self, name: &str, values: Vec<ValueSpec>) -> Result<TableId> {
        self.check_name(name)?;
        let declared = Table::new(name, &values)?;
        let table = match &mut self.restored {
            Some(restored) => restored.table(declared)?,
            None => declared,
        };
        self.tables.push(table);
        Ok(TableId(self.tables.len() - 1))
    }

    fn resolve(&mut self, table: TableId, namespace: Namespace, keys: &Keys, slots: &mut Vec<Slot>) -> Result<()> {
        let fixed = self.about.codec.is_fixed();
        self.at(table)?.space(namespace, fixed).resolve(keys, None, slots)
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
        let fixed = self.about.codec.is_fixed();
        self.at(table)?.space(namespace, fixed).resolve(keys, Some(rows), slots)
    }

    fn find(&mut self, table: TableId, namespace: Namespace, keys: &Keys, slots: &mut Vec<Slot>) -> Result<()> {
        match self.at(table)?.spaces.get(&namespace) {
            Some(space) => space.find(keys, slots),
            None => {
                slots.clear();
                slots.resize(keys.len(), NO_SLOT);
                Ok(())
            }
        }
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
        if let Some(space) = self.at(table)?.spaces.get(&namespace) {
            space.scan(after, limit, slots);
        }
        Ok(())
    }

    fn keys(&mut self, table: TableId, namespace: Namespace, slots: &[Slot]) -> Result<Keys> {
        let table = self
            .tables
            .get_mut(table.0)
            .ok_or_else(|| Error::internal(format!("table {} is not declared", table.0)))?;
        table.existing(namespace)?.keys(&self.about.codec, slots)
    }

    fn key_columns(&mut self, table: TableId, namespace: Namespace, slots: &[Slot]) -> Result<Vec<ArrayRef>> {
        match self.keys(table, namespace, slots)?.data {
            KeyData::Fixed(values) => self.about.codec.decode_fixed(&values),
            KeyData::Rows(rows) => self.about.codec.decode_rows(rows.iter()),
        }
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
        let declared = Log::new(name, columns);
        let log = match &mut self.restored {
            Some(restored) => restored.log(declared)?,
            None => declared,
        };
        self.logs.push(log);
        Ok(LogId(self.logs.len() - 1))
    }

    fn append(&mut self, log: LogId, namespace: Namespace, rows: Batch, keys: Keys) -> Result<()> {
        self.log_at(log)?.append(namespace, rows, keys)
    }

    fn rows(&mut self, log: LogId, namespace: Namespace) -> Result<&[(Batch, Arc<Keys>)]> {
        Ok(self.log_at(log)?.rows(namespace))
    }

    fn drop_rows(&mut self, log: LogId, namespace: Namespace) -> Result<()> {
        self.log_at(log)?.drop_rows(namespace);
        Ok(())
    }

    fn log_namespaces(&self, log: LogId) -> Vec<Namespace> {
        self.logs.get(log.0).map(Log::namespaces).unwrap_or_default()
    }

    fn set_timers(&mut self, domain: TimeDomain, keys: &Keys, of: &[u32], timestamps: &[i64]) -> Result<()> {
        self.timers(domain).set(keys, of, timestamps)
    }

    fn delete_timers(&mut self, domain: TimeDomain, keys: &Keys, of: &[u32], timestamps: &[i64]) -> Result<()> {
        self.timers(domain).delete(keys, of, timestamps)
    }

    fn due_timers(&mut self, domain: TimeDomain, up_to: i64, limit: usize) -> Result<(Keys, Vec<i64>)> {
        let timers = match domain {
            TimeDomain::Event => &self.event_timers,
            TimeDomain::Processing => &self.processing_timers,
        };
        timers.due(&self.about.codec, up_to, limit)
    }

    fn next_timer(&self, domain: TimeDomain) -> Option<i64> {
        match domain {
            TimeDomain::Event => self.event_timers.first(),
            TimeDomain::Processing => self.processing_timers.first(),
        }
    }

    fn commit(&mut self) -> Result<()> {
        let bytes = self.memory_bytes();
        let others = self.backend.used.fetch_add(bytes.wrapping_sub(self.reported), Ordering::Relaxed);
        let all = others.wrapping_sub(self.reported).wrapping_add(bytes);
        let before = std::mem::replace(&mut self.reported, bytes);
        if let Some(account) = self.backend.account.as_ref().filter(|_| before != bytes) {
            account.resize(Owner::State, before as u64, bytes as u64).inspect_err(|_| account.ends())?;
        }
        match self.backend.limit {
            Some(limit) if all > limit => Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "keyed state takes {all} bytes of memory ({bytes} of them this operator's); {limit} are allowed"
                ),
            )
            .mend("Raise the limit on state, keep state for fewer keys, or clear it when it is no longer needed.")),
            _ => Ok(()),
        }
    }

    fn declared(&mut self) -> Result<()> {
        let Some(restored) = self.restored.take() else { return Ok(()) };
        if let Some(files) = restored.finish()? {
            self.chain = Arc::new(Chain::new(self.backend.snapshots, files));
            self.tables.iter_mut().for_each(Table::settle);
            self.logs.iter_mut().for_each(Log::settle);
            self.event_timers.settle();
            self.processing_timers.settle();
        }
        // What was restored is there before anything is committed.
        self.commit()
    }

    fn freeze(&mut self, kind: SnapshotKind) -> Result<()> {
        while self.freezing.is_some() {
            // Nobody waits for it any more, but the next one has what changed since.
            drop(self.copy_frozen()?);
        }
        let whole = self.chain.take_whole();
        if whole {
            self.forget_snapshots();
        }
        let fixed = self.about.codec.is_fixed();
        let timers = [&mut self.event_timers, &mut self.processing_timers];
        let parts = parts::freeze(self.tables.iter_mut(), self.logs.iter_mut(), timers, fixed);
        self.frozen += 1;
        self.freezing = Some((kind, FrozenState { about: Arc::clone(&self.about), whole, parts }));
        Ok(())
    }

    fn copy_frozen(&mut self) -> Result<Option<Box<dyn StateSnapshot>>> {
        let Some((kind, state)) = self.freezing.take() else { return Err(frozen::not_frozen()) };
        let (timers, entries) =
            ([&mut self.event_timers, &mut self.processing_timers], self.backend.snapshots.copied_at_once);
        let Some(copies) = parts::copy_some(self.tables.iter_mut(), timers, entries) else {
            self.freezing = Some((kind, state));
            return Ok(None);
        };
        let (chain, number, frozen) = (Arc::clone(&self.chain), self.frozen, Some(InPieces { state, copies }));
        Ok(Some(Box::new(MemorySnapshot { chain, number, kind, frozen })))
    }

    fn entries(&self) -> u64 {
        let entries: usize = self.tables.iter().flat_map(|t| t.spaces.values()).map(Space::len).sum();
        let timers = self.event_timers.len() + self.processing_timers.len();
        (entries + timers) as u64 + self.logs.iter().map(Log::len).sum::<u64>()
    }

    fn memory_bytes(&self) -> usize {
        let spaces = self.tables.iter().flat_map(|t| t.spaces.values().chain(&t.spare));
        let tables: usize = spaces.map(Space::memory_bytes).sum();
        let logs: usize = self.logs.iter().map(Log::memory_bytes).sum();
        tables + logs + self.event_timers.memory_bytes() + self.processing_timers.memory_bytes()
    }
}

impl Drop for MemoryState {
    fn drop(&mut self) {
        self.backend.used.fetch_sub(self.reported, Ordering::Relaxed);
        let account = self.backend.account.iter();
        account.for_each(|account| account.give_back(Owner::State, self.reported as u64));
    }
}
