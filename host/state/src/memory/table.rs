//! A table: a space per namespace.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::ArrayRef;
use tidemill_core::state::{Namespace, Slot, ValueSpec};
use tidemill_core::{Error, Result};

use super::frozen::FrozenPart;
use super::space::{OnDisk, Space};
use crate::column::ColumnCodec;

/// So many dropped spaces of a table are kept for reuse: a pane that ends and one that begins, and some slack.
const SPARE_SPACES: usize = 2;

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) columns: Vec<ColumnCodec>,
    pub(crate) spaces: BTreeMap<Namespace, Space>,
    pub(crate) spare: Vec<Space>,
    /// Namespaces that earlier snapshots have and that were dropped since the latest.
    dropped: BTreeSet<Namespace>,
    /// Entries may be on disk only.
    pub(crate) backed: bool,
}

impl Table {
    pub(crate) fn new(name: &str, values: &[ValueSpec]) -> Result<Self> {
        let columns = values.iter().map(ColumnCodec::new).collect::<Result<_>>()?;
        let (spaces, spare, dropped) = Default::default();
        Ok(Self { name: name.to_owned(), columns, spaces, spare, dropped, backed: false })
    }

    /// What its values are called and of which types they are.
    pub(crate) fn values(&self) -> Vec<ValueSpec> {
        let spec = |c: &ColumnCodec| ValueSpec { name: c.name().to_owned(), data_type: c.data_type().clone() };
        self.columns.iter().map(spec).collect()
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
        let absent = || Error::internal(format!("value {value} of table '{}'", self.name));
        let column = self.columns.get(value).ok_or_else(absent)?;
        let space = self.spaces.get_mut(&namespace).ok_or_else(absent)?;
        let resident = space.values.columns.get_mut(value).zip(space.values.present.get_mut(value));
        let (to, present) = resident.ok_or_else(absent)?;
        let grown = column.write(to, present, slots, values)?;
        space.grew(grown);
        space.written(slots);
        Ok(())
    }

    pub(crate) fn drop_space(&mut self, namespace: Namespace) {
        if let Some(mut space) = self.spaces.remove(&namespace) {
            if space.is_stored() {
                self.dropped.insert(namespace);
            }
            if self.spare.len() < SPARE_SPACES {
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

    /// What changed since the latest snapshot.
    pub(crate) fn freeze(&mut self, fixed: bool) -> FrozenPart {
        let mut part = FrozenPart::new(fixed);
        for (namespace, space) in &mut self.spaces {
            if space.freeze(namespace.0, &mut part.removed, &mut part.put) {
                self.dropped.insert(*namespace);
            }
        }
        part.dropped = std::mem::take(&mut self.dropped).into_iter().map(|namespace| namespace.0).collect();
        part
    }
}
