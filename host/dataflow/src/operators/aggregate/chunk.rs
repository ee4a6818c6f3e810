//! Accumulators of some groups outside of state: what is combined, finished and put back.
//!
//! Invariant: all columns have the same number of groups.

use tidemill_core::Result;

use super::Cells;

/// No group, for [`Chunk::take`].
pub(in crate::operators) const NONE: u32 = u32::MAX;

/// Accumulators, one [`Cells`] per accumulator column.
#[derive(Clone, Debug, Default)]
pub(in crate::operators) struct Chunk {
    pub(super) columns: Vec<Cells>,
}

impl Chunk {
    /// The groups with these indices ([`NONE`]: one without accumulators), in this order.
    pub(in crate::operators) fn take(&self, groups: &[u32]) -> Result<Self> {
        Ok(Self { columns: self.columns.iter().map(|cells| cells.take(groups)).collect::<Result<_>>()? })
    }

    /// The groups of both. One that was made without columns has no group.
    pub(in crate::operators) fn append(&mut self, other: Self) -> Result<()> {
        if self.columns.is_empty() {
            *self = other;
            return Ok(());
        }
        self.columns.iter_mut().zip(other.columns).try_for_each(|(cells, more)| cells.append(more))
    }

    /// Bytes held.
    pub(in crate::operators) fn memory_bytes(&self) -> usize {
        self.columns.iter().map(Cells::memory_bytes).sum()
    }
}
