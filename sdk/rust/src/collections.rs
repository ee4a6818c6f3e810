//! Lists and maps by key. They do not come with a batch: what the code changes goes to the host at the end of the call, and
//! what it reads is asked for, for several keys at once where that can be foreseen.
//!
//! What is read from the host is as it was before the call, so a cell lays over it what the call has changed.

use std::collections::BTreeMap;

use crate::abi::{ColumnView, HostCalls, OwnedColumn, number_at};
use crate::cells::Handle;
use crate::process::{Context, Prefetch, StateCell};
use crate::row::EmitRow;
use crate::value::{Cursor, Owned, Value, Writer};

/// The lists of so many keys are read at once: the key of the row and those that come next in the batch.
const READ_AHEAD: usize = 32;

/// A state with a list per key. Its functions are about the key of the row (or timer) of the call.
pub struct ListState<T: Owned>(pub(crate) Handle<ListCell<T>>);

impl<T: Owned> ListState<T> {
    /// Appends an item. Reads nothing.
    #[inline]
    pub fn push<O: EmitRow>(&self, ctx: &mut Context<'_, O>, item: T) {
        let (key, cell, _) = ctx.list(&self.0);
        if let Some(cell) = cell {
            cell.push(key, item);
        }
    }

    /// The items, in order.
    pub fn iter<'c, O: EmitRow>(&self, ctx: &'c mut Context<'_, O>) -> impl Iterator<Item = &'c T> + use<'c, T, O> {
        let (key, cell, host) = ctx.list(&self.0);
        cell.into_iter().flat_map(move |cell| cell.iter(key, &mut *host))
    }

    /// The items, in order, each a copy.
    pub fn to_vec<O: EmitRow>(&self, ctx: &mut Context<'_, O>) -> Vec<T> {
        self.iter(ctx).cloned().collect()
    }

    /// Replaces the list. Reads nothing.
    pub fn set<O: EmitRow>(&self, ctx: &mut Context<'_, O>, items: impl IntoIterator<Item = T>) {
        self.clear(ctx);
        items.into_iter().for_each(|item| self.push(ctx, item));
    }

    /// Removes all items, and with them what the host stores. Reads nothing.
    pub fn clear<O: EmitRow>(&self, ctx: &mut Context<'_, O>) {
        let (key, cell, _) = ctx.list(&self.0);
        if let Some(cell) = cell {
            cell.clear(key);
        }
    }
}

/// The lists of one state, by key number.
pub(crate) struct ListCell<T: Owned> {
    state: u32,
    lists: Vec<List<T>>,
    /// The keys whose lists changed, in the order of their first change.
    touched: Vec<u32>,
    writer: T::Writer,
}

struct List<T> {
    /// What was there before the call, once it is known.
    before: Option<Vec<T>>,
    /// That is removed.
    cleared: bool,
    pushed: Vec<T>,
    touched: bool,
}

impl<T: Owned> ListCell<T> {
    pub(crate) fn new(state: u32) -> Self {
        Self { state, lists: Vec::new(), touched: Vec::new(), writer: Default::default() }
    }

    #[inline]
    pub(crate) fn push(&mut self, key: usize, item: T) {
        if let Some(list) = self.touch(key) {
            list.pushed.push(item);
        }
    }

    pub(crate) fn clear(&mut self, key: usize) {
        if let Some(list) = self.touch(key) {
            list.pushed.clear();
            (list.before, list.cleared) = (Some(Vec::new()), true);
        }
    }

    /// All items, in order.
    pub(crate) fn iter(&mut self, key: usize, host: &mut dyn HostCalls) -> impl Iterator<Item = &T> + use<'_, T> {
        self.read(key, host);
        let list = self.lists.get(key);
        list.into_iter().flat_map(|list| list.before.iter().flatten().chain(&list.pushed))
    }

    fn touch(&mut self, key: usize) -> Option<&mut List<T>> {
        let list = self.lists.get_mut(key)?;
        if !list.touched {
            list.touched = true;
            self.touched.push(key as u32);
        }
        Some(list)
    }

    fn read(&mut self, key: usize, host: &mut dyn HostCalls) {
        if self.lists.get(key).is_none_or(|list| list.before.is_some()) {
            return;
        }
        let ahead = self.lists.iter().enumerate().skip(key).filter(|(_, list)| list.before.is_none()).take(READ_AHEAD);
        let keys: Vec<u32> = ahead.map(|(key, _)| key as u32).collect();
        let read = host.read(self.state, &keys);
        let views: Vec<ColumnView<'_>> = read.iter().map(OwnedColumn::view).collect();
        let mut columns = Cursor::all(&views);
        let offsets = columns.take().offsets;
        let items = T::reader(&mut columns, end_before(offsets, keys.len()));
        for (i, &key) in keys.iter().enumerate() {
            if let Some(list) = self.lists.get_mut(key as usize) {
                let range = end_before(offsets, i)..end_before(offsets, i + 1);
                list.before = Some(range.map(|at| T::get(&items, at)).collect());
            }
        }
    }
}

impl<T: Owned> StateCell for ListCell<T> {
    fn number(&mut self, state: u32) {
        self.state = state;
    }

    fn load(&mut self, _columns: &mut Cursor<'_, '_>, keys: usize) {
        self.lists.clear();
        self.lists.resize_with(keys, || List { before: None, cleared: false, pushed: Vec::new(), touched: false });
        self.touched.clear();
    }

    fn flush(&mut self, state: u32, host: &mut dyn HostCalls) {
        let (mut cleared, mut keys) = (Vec::new(), Vec::new());
        self.writer.clear();
        for &key in &self.touched {
            let Some(list) = self.lists.get(key as usize) else { continue };
            cleared.extend(list.cleared.then_some(key));
            for item in &list.pushed {
                keys.push(key);
                T::push(&mut self.writer, item);
            }
        }
        if !cleared.is_empty() {
            host.clear(state, &cleared);
        }
        if !keys.is_empty() {
            let mut columns = Vec::new();
            self.writer.columns(&mut columns);
            host.append(state, &keys, &columns);
        }
    }
}

/// Where the items of the lists before this one end.
fn end_before(offsets: &[u8], list: usize) -> usize {
    number_at(offsets.as_chunks::<4>().0, list)
}

/// A state with a map per key. Its functions are about the key of the row (or timer) of the call.
pub struct MapState<K: Owned + Ord, V: Owned>(pub(crate) Handle<MapCell<K, V>>);

impl<K: Owned + Ord, V: Owned> MapState<K, V> {
    /// The value of an entry, if there is one. Asks the host, unless the entry was named before the batch
    /// ([`MapState::prefetch`]) or is known already.
    pub fn get<O: EmitRow>(&self, ctx: &mut Context<'_, O>, key: &K) -> Option<V> {
        let (of, cell, host) = ctx.map(&self.0);
        cell.and_then(|cell| cell.get(of, key, host)).cloned()
    }

    /// Whether there is an entry. Reads as `get` does.
    pub fn contains<O: EmitRow>(&self, ctx: &mut Context<'_, O>, key: &K) -> bool {
        let (of, cell, host) = ctx.map(&self.0);
        cell.and_then(|cell| cell.get(of, key, host)).is_some()
    }

    /// Sets the value of an entry. Reads nothing.
    pub fn insert<O: EmitRow>(&self, ctx: &mut Context<'_, O>, key: K, value: V) {
        let (of, cell, _) = ctx.map(&self.0);
        if let Some(cell) = cell {
            cell.insert(of, key, value);
        }
    }

    /// Removes an entry, if there is one. Reads nothing.
    pub fn remove<O: EmitRow>(&self, ctx: &mut Context<'_, O>, key: &K) {
        let (of, cell, _) = ctx.map(&self.0);
        if let Some(cell) = cell {
            cell.remove(of, key);
        }
    }

    /// All entries, by key. Reads the whole map.
    pub fn iter<'c, O: EmitRow>(
        &self,
        ctx: &'c mut Context<'_, O>,
    ) -> impl Iterator<Item = (&'c K, &'c V)> + use<'c, K, V, O> {
        let (of, cell, host) = ctx.map(&self.0);
        cell.into_iter().flat_map(move |cell| cell.iter(of, &mut *host))
    }

    /// Removes all entries, and with them what the host stores. Reads nothing.
    pub fn clear<O: EmitRow>(&self, ctx: &mut Context<'_, O>) {
        let (of, cell, _) = ctx.map(&self.0);
        if let Some(cell) = cell {
            cell.clear(of);
        }
    }

    /// Names an entry that the row's turn will ask for: those of a batch are read at once.
    pub fn prefetch(&self, rows: &mut Prefetch<'_>, key: K) {
        let (of, cell) = rows.map(&self.0);
        if let Some(cell) = cell {
            cell.wanted.push((of as u32, key));
        }
    }
}

/// The maps of one state, by key number.
pub(crate) struct MapCell<K: Owned + Ord, V: Owned> {
    state: u32,
    maps: Vec<Map<K, V>>,
    /// The keys whose maps changed, in the order of their first change.
    touched: Vec<u32>,
    /// Entries to be read before the first row has its turn.
    wanted: Vec<(u32, K)>,
    keys: K::Writer,
    values: V::Writer,
}

struct Map<K, V> {
    /// What is known of it.
    entries: BTreeMap<K, Entry<V>>,
    /// That is all there is.
    whole: bool,
    /// What was there before the call is removed.
    cleared: bool,
    touched: bool,
}

struct Entry<V> {
    value: Option<V>,
    /// By this call.
    changed: bool,
}

impl<K: Owned + Ord, V: Owned> MapCell<K, V> {
    pub(crate) fn new(state: u32) -> Self {
        let (maps, touched, wanted) = Default::default();
        Self { state, maps, touched, wanted, keys: Default::default(), values: Default::default() }
    }

    pub(crate) fn insert(&mut self, of: usize, key: K, value: V) {
        if let Some(map) = self.touch(of) {
            map.entries.insert(key, Entry { value: Some(value), changed: true });
        }
    }

    pub(crate) fn remove(&mut self, of: usize, key: &K) {
        let Some(map) = self.touch(of) else { return };
        if map.cleared {
            map.entries.remove(key);
        } else {
            map.entries.insert(key.clone(), Entry { value: None, changed: true });
        }
    }

    pub(crate) fn clear(&mut self, of: usize) {
        if let Some(map) = self.touch(of) {
            map.entries.clear();
            (map.cleared, map.whole) = (true, true);
        }
    }

    /// All entries, by key.
    pub(crate) fn iter(
        &mut self,
        of: usize,
        host: &mut dyn HostCalls,
    ) -> impl Iterator<Item = (&K, &V)> + use<'_, K, V> {
        self.read(of, host);
        let entries = self.maps.get(of).into_iter().flat_map(|map| &map.entries);
        entries.filter_map(|(key, entry)| entry.value.as_ref().map(|value| (key, value)))
    }

    fn touch(&mut self, key: usize) -> Option<&mut Map<K, V>> {
        let map = self.maps.get_mut(key)?;
        if !map.touched {
            map.touched = true;
            self.touched.push(key as u32);
        }
        Some(map)
    }

    pub(crate) fn get(&mut self, of: usize, key: &K, host: &mut dyn HostCalls) -> Option<&V> {
        let map = self.maps.get(of)?;
        if !map.whole && !map.entries.contains_key(key) {
            self.fetch_all(&[(of as u32, key.clone())], host);
        }
        self.maps.get(of)?.entries.get(key)?.value.as_ref()
    }

    /// Reads entries, and keeps those that are not known.
    fn fetch_all(&mut self, wanted: &[(u32, K)], host: &mut dyn HostCalls) {
        self.keys.clear();
        wanted.iter().for_each(|(_, key)| K::push(&mut self.keys, key));
        let mut columns = Vec::new();
        self.keys.columns(&mut columns);
        let of: Vec<u32> = wanted.iter().map(|(of, _)| *of).collect();
        let read = host.get(self.state, &of, &columns);
        let views: Vec<ColumnView<'_>> = read.iter().map(OwnedColumn::view).collect();
        let values = <Option<V>>::reader(&mut Cursor::all(&views), wanted.len());
        for (row, (of, key)) in wanted.iter().enumerate() {
            if let Some(map) = self.maps.get_mut(*of as usize).filter(|map| !map.whole) {
                let entry = || Entry { value: <Option<V>>::get(&values, row), changed: false };
                map.entries.entry(key.clone()).or_insert_with(entry);
            }
        }
    }

    fn read(&mut self, of: usize, host: &mut dyn HostCalls) {
        let Some(map) = self.maps.get_mut(of).filter(|map| !map.whole) else { return };
        let read = host.read(self.state, &[of as u32]);
        let views: Vec<ColumnView<'_>> = read.iter().map(OwnedColumn::view).collect();
        let mut columns = Cursor::all(&views);
        let entries = end_before(columns.take().offsets, 1);
        // The struct of both; it has nothing of its own.
        columns.take();
        let keys = K::reader(&mut columns, entries);
        let values = V::reader(&mut columns, entries);
        for row in 0..entries {
            let entry = || Entry { value: Some(V::get(&values, row)), changed: false };
            map.entries.entry(K::get(&keys, row)).or_insert_with(entry);
        }
        map.whole = true;
    }
}

impl<K: Owned + Ord, V: Owned> StateCell for MapCell<K, V> {
    fn number(&mut self, state: u32) {
        self.state = state;
    }

    fn load(&mut self, _columns: &mut Cursor<'_, '_>, keys: usize) {
        self.maps.clear();
        let map = || Map { entries: BTreeMap::new(), whole: false, cleared: false, touched: false };
        self.maps.resize_with(keys, map);
        self.touched.clear();
        self.wanted.clear();
    }

    fn fetch(&mut self, host: &mut dyn HostCalls) {
        let mut wanted = std::mem::take(&mut self.wanted);
        if !wanted.is_empty() {
            wanted.sort_unstable();
            wanted.dedup();
            self.fetch_all(&wanted, host);
        }
    }

    fn flush(&mut self, state: u32, host: &mut dyn HostCalls) {
        let maps: Vec<(u32, &Map<K, V>)> =
            self.touched.iter().filter_map(|&of| Some((of, self.maps.get(of as usize)?))).collect();
        let cleared: Vec<u32> = maps.iter().filter(|(_, map)| map.cleared).map(|(of, _)| *of).collect();
        if !cleared.is_empty() {
            host.clear(state, &cleared);
        }
        for insert in [true, false] {
            let changed =
                maps.iter().flat_map(|(of, map)| map.entries.iter().map(move |(key, entry)| (*of, key, entry)));
            let changed = changed.filter(|(.., entry)| entry.changed && entry.value.is_some() == insert);
            let mut of = Vec::new();
            self.keys.clear();
            self.values.clear();
            for (key_number, key, entry) in changed {
                of.push(key_number);
                K::push(&mut self.keys, key);
                if let Some(value) = &entry.value {
                    V::push(&mut self.values, value);
                }
            }
            if of.is_empty() {
                continue;
            }
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            self.keys.columns(&mut keys);
            self.values.columns(&mut values);
            match insert {
                true => host.insert(state, &of, &keys, &values),
                false => host.remove(state, &of, &keys),
            }
        }
    }
}
