//! A table: a space per namespace.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::ArrayRef;
use tidemill_core::state::{LastAccess, NO_SLOT, Namespace, Slot, ValueColumn, ValueSpec, Values};
use tidemill_core::{Error, Result};

use super::frozen::{FrozenPart, TableCopies};
use super::space::{OnDisk, Space};
use crate::column::ColumnCodec;

/// So many dropped spaces of a table are kept for reuse: a pane that ends and one that begins, and some slack.
const SPARE_SPACES: usize = 2;

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) columns: Vec<ColumnCodec>,
    /// Those of the values that expire.
    pub(crate) expiring: Vec<Expiring>,
    pub(crate) spaces: BTreeMap<Namespace, Space>,
    pub(crate) spare: Vec<Space>,
    /// Namespaces that earlier snapshots have and that were dropped since the latest.
    dropped: BTreeSet<Namespace>,
    /// Namespaces that the latest snapshot waits for, last first. Some may be gone.
    uncopied: Vec<Namespace>,
    /// What was copied for it.
    copies: TableCopies,
    /// Entries may be on disk only.
    pub(crate) backed: bool,
}

/// A value that expires.
#[derive(Clone, Debug)]
pub(crate) struct Expiring {
    /// Its column.
    pub(crate) value: usize,
    /// The column of its last accesses.
    pub(crate) time: usize,
    pub(crate) last_access: LastAccess,
}

impl Table {
    pub(crate) fn new(name: &str, values: &[ValueSpec]) -> Result<Self> {
        let columns = values.iter().map(ColumnCodec::new).collect::<Result<_>>()?;
        let expiring = expiring(name, values)?;
        let (spaces, spare, dropped, uncopied, copies) = Default::default();
        let name = name.to_owned();
        Ok(Self { name, columns, expiring, spaces, spare, dropped, uncopied, copies, backed: false })
    }

    /// What its values are called and of which types they are.
    pub(crate) fn values(&self) -> Vec<ValueSpec> {
        self.columns.iter().map(ColumnCodec::spec).collect()
    }

    /// Whether another table's values live as long.
    pub(crate) fn expires_as(&self, other: &Self) -> bool {
        let lives = |table: &Self| -> Vec<(String, i64)> {
            table.expiring.iter().map(|e| (e.last_access.of.clone(), e.last_access.ttl_ms)).collect()
        };
        lives(self) == lives(other)
    }

    /// Removes values that are over, of up to `looks` resident entries, going on where the call before ended.
    pub(crate) fn clean_up(&mut self, now: i64, looks: usize) {
        if self.expiring.is_empty() {
            return;
        }
        let mut empty = Vec::new();
        for (namespace, space) in &mut self.spaces {
            space.clean_up(&self.expiring, now, looks);
            empty.extend((space.len() == 0).then_some(*namespace));
        }
        empty.into_iter().for_each(|namespace| self.drop_if_empty(namespace));
    }

    /// The space of a namespace, made where there is none.
    pub(crate) fn space(&mut self, namespace: Namespace, fixed: bool) -> &mut Space {
        let (spare, columns, backed) = (&mut self.spare, &self.columns, self.backed);
        let space = || {
            let mut space = spare.pop().unwrap_or_else(|| Space::new(fixed, columns));
            space.disk = backed.then(OnDisk::default);
            space
        };
        self.spaces.entry(namespace).or_insert_with(space)
    }

    pub(crate) fn existing(&mut self, namespace: Namespace) -> Result<&mut Space> {
        let name = &self.name;
        let absent = || Error::internal(format!("slots of a namespace that table '{name}' does not have"));
        self.spaces.get_mut(&namespace).ok_or_else(absent)
    }

    pub(crate) fn column(&self, value: usize) -> Result<&ColumnCodec> {
        let absent = || Error::internal(format!("value {value} of table '{}'", self.name));
        self.columns.get(value).ok_or_else(absent)
    }

    /// Sets the values of a column at these slots.
    pub(crate) fn write(
        &mut self,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        values: &ArrayRef,
    ) -> Result<()> {
        self.change(namespace, value, slots, |column, to, present| column.write(to, present, slots, values))
    }

    /// Appends to lists.
    pub(crate) fn append_items(
        &mut self,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        items: &ArrayRef,
    ) -> Result<()> {
        self.change(namespace, value, slots, |column, to, present| column.append(to, present, slots, items))
    }

    /// Changes or removes entries of maps.
    pub(crate) fn change_entries(
        &mut self,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        map_keys: &ArrayRef,
        values: Option<&ArrayRef>,
    ) -> Result<()> {
        self.change(namespace, value, slots, |column, to, present| column.change(to, present, slots, map_keys, values))
    }

    /// The values of entries of maps.
    pub(crate) fn find_entries(
        &self,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        map_keys: &ArrayRef,
        limit: usize,
    ) -> Result<Option<ArrayRef>> {
        let column = self.column(value)?;
        match self.resident(namespace).and_then(|values| values.columns.get(value)) {
            Some(resident) => column.find(resident, slots, map_keys, limit),
            None => column.find(&column.new_column(), slots, map_keys, limit),
        }
    }

    /// Bytes of the lists or maps at these slots.
    pub(crate) fn collection_bytes(&self, namespace: Namespace, value: usize, slots: &[Slot], bytes: &mut Vec<usize>) {
        bytes.clear();
        let resident = self.resident(namespace).and_then(|values| values.columns.get(value));
        let of = |slot: Slot| match resident {
            Some(ValueColumn::Encoded(all)) if slot != NO_SLOT => all.get(slot as usize).map_or(0, |one| one.len()),
            _ => 0,
        };
        bytes.extend(slots.iter().map(|&slot| of(slot)));
    }

    fn resident(&self, namespace: Namespace) -> Option<&Values> {
        self.spaces.get(&namespace).map(|space| &space.values)
    }

    /// Changes the values of a column at these slots; `change` answers by how much they grew.
    fn change(
        &mut self,
        namespace: Namespace,
        value: usize,
        slots: &[Slot],
        change: impl FnOnce(&ColumnCodec, &mut ValueColumn, &mut [bool]) -> Result<isize>,
    ) -> Result<()> {
        let absent = || Error::internal(format!("value {value} of table '{}'", self.name));
        let column = self.columns.get(value).ok_or_else(absent)?;
        let space = self.spaces.get_mut(&namespace).ok_or_else(absent)?;
        space.change(slots);
        let resident = space.values.columns.get_mut(value).zip(space.values.present.get_mut(value));
        let (to, present) = resident.ok_or_else(absent)?;
        let grown = change(column, to, present)?;
        space.grew(grown);
        Ok(())
    }

    pub(crate) fn drop_space(&mut self, namespace: Namespace) {
        if let Some(mut space) = self.spaces.remove(&namespace) {
            if space.is_stored() {
                self.dropped.insert(namespace);
            }
            if space.is_frozen() {
                self.copies.dropped.push(space);
            } else if self.spare.len() < SPARE_SPACES {
                space.reset();
                self.spare.push(space);
            }
        }
    }

    /// A namespace without entries is none; the global one comes back at once, so it stays.
    pub(crate) fn drop_if_empty(&mut self, namespace: Namespace) {
        if namespace != Namespace::GLOBAL && self.spaces.get(&namespace).is_some_and(|s| s.len() == 0) {
            self.drop_space(namespace);
        }
    }

    /// The next snapshot is the first.
    pub(crate) fn forget_snapshots(&mut self) {
        self.dropped.clear();
        self.spaces.values_mut().for_each(Space::forget_snapshots);
    }

    /// Snapshots have everything as it is.
    pub(crate) fn settle(&mut self) {
        self.dropped.clear();
        self.spaces.values_mut().for_each(Space::settle);
    }

    /// What changed since the latest snapshot, but for what is put: that is copied by `copy_some`.
    pub(crate) fn freeze(&mut self, fixed: bool) -> FrozenPart {
        let mut part = FrozenPart::new(fixed);
        for (namespace, space) in &mut self.spaces {
            if space.freeze(namespace.0, &mut part.removed) {
                self.dropped.insert(*namespace);
            }
            self.uncopied.extend(space.is_frozen().then_some(*namespace));
        }
        part.dropped = std::mem::take(&mut self.dropped).into_iter().map(|namespace| namespace.0).collect();
        part
    }

    /// Copies about so many `entries` that the latest snapshot waits for, and takes them off. Whether all is copied.
    pub(crate) fn copy_some(&mut self, entries: &mut usize) -> bool {
        while let Some(namespace) = self.uncopied.last() {
            if let Some(space) = self.spaces.get_mut(namespace).filter(|space| space.is_frozen()) {
                if *entries == 0 {
                    return false;
                }
                match space.copy_some(entries) {
                    Some(mut copies) => self.copies.pieces.append(&mut copies),
                    None => return false,
                }
            }
            self.uncopied.pop();
        }
        true
    }

    /// What was copied for the latest snapshot.
    pub(crate) fn take_copies(&mut self) -> TableCopies {
        std::mem::take(&mut self.copies)
    }
}

/// The values whose last accesses are kept.
pub(crate) fn expiring(table: &str, values: &[ValueSpec]) -> Result<Vec<Expiring>> {
    let of = |(time, spec): (usize, &ValueSpec)| {
        let last_access = spec.last_access.clone()?;
        let value = values.iter().position(|value| value.name == last_access.of && value.last_access.is_none());
        let absent =
            || Error::invalid(format!("table '{table}' keeps last accesses of '{}', which it has not", spec.name));
        Some(value.ok_or_else(absent).map(|value| Expiring { value, time, last_access }))
    };
    values.iter().enumerate().filter_map(of).collect()
}
