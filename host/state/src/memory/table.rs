//! A table: a space per namespace.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_core::state::{Namespace, ValueSpec};
use tidemill_core::{Error, Result};

use super::frozen::FrozenPart;
use super::space::Space;
use crate::column::ColumnCodec;

/// So many dropped spaces of a table are kept for reuse: a pane that ends and one that begins, and some slack.
const SPARE_SPACES: usize = 2;

#[derive(Debug)]
pub(crate) struct Table {
    pub(super) name: String,
    pub(super) columns: Vec<ColumnCodec>,
    pub(super) spaces: BTreeMap<Namespace, Space>,
    pub(super) spare: Vec<Space>,
    /// Namespaces that earlier snapshots have and that were dropped since the latest.
    dropped: BTreeSet<Namespace>,
}

impl Table {
    pub(super) fn new(name: &str, values: &[ValueSpec]) -> Result<Self> {
        let columns = values.iter().map(ColumnCodec::new).collect::<Result<_>>()?;
        let (spaces, spare, dropped) = Default::default();
        Ok(Self { name: name.to_owned(), columns, spaces, spare, dropped })
    }

    /// What its values are called and of which types they are.
    pub(super) fn values(&self) -> Vec<ValueSpec> {
        let spec = |c: &ColumnCodec| ValueSpec { name: c.name().to_owned(), data_type: c.data_type().clone() };
        self.columns.iter().map(spec).collect()
    }

    /// The space of a namespace, made where there is none.
    pub(super) fn space(&mut self, namespace: Namespace, fixed: bool) -> &mut Space {
        let (spare, columns) = (&mut self.spare, &self.columns);
        let space = || spare.pop().unwrap_or_else(|| Space::new(fixed, columns));
        self.spaces.entry(namespace).or_insert_with(space)
    }

    pub(super) fn existing(&mut self, namespace: Namespace) -> Result<&mut Space> {
        let name = &self.name;
        let absent = || Error::internal(format!("slots of a namespace that table '{name}' does not have"));
        self.spaces.get_mut(&namespace).ok_or_else(absent)
    }

    pub(super) fn column(&self, value: usize) -> Result<&ColumnCodec> {
        let absent = || Error::internal(format!("value {value} of table '{}'", self.name));
        self.columns.get(value).ok_or_else(absent)
    }

    pub(super) fn drop_space(&mut self, namespace: Namespace) {
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
    pub(super) fn drop_if_empty(&mut self, namespace: Namespace) {
        if namespace != Namespace::GLOBAL && self.spaces.get(&namespace).is_some_and(|s| s.len() == 0) {
            self.drop_space(namespace);
        }
    }

    /// The next snapshot is the first.
    pub(super) fn forget_snapshots(&mut self) {
        self.dropped.clear();
        self.spaces.values_mut().for_each(Space::forget_snapshots);
    }

    /// Snapshots have everything as it is.
    pub(super) fn settle(&mut self) {
        self.dropped.clear();
        self.spaces.values_mut().for_each(Space::settle);
    }

    /// What changed since the latest snapshot.
    pub(super) fn freeze(&mut self, fixed: bool) -> FrozenPart {
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
