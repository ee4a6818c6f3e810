//! What a connector has in memory, counted in the account of its job, and refused where the process has no room for it.
//!
//! Each buffer has an [`Account`], which is told once per batch what is in it, or goes with what it stands for: an item of
//! a queue, a part on its way to a store. What is refused fails the reader or writer with the refusal, which says who
//! holds what; the job ends with it, and no other.

use std::sync::Arc;

use tidemill_core::connector::{SinkContext, SourceContext};
use tidemill_core::error::Result;
use tidemill_core::memory::{Account, JobMemory, Owner};

/// Opens accounts for the buffers of one reader or writer.
#[derive(Clone, Debug)]
pub struct Buffers(Arc<JobMemory>);

impl Buffers {
    /// Of a buffer that is empty yet.
    pub fn account(&self) -> Account {
        Account::new(&self.0, Owner::Connectors)
    }

    /// Of something that takes so many bytes. An error: the process has no room for it.
    pub fn holding(&self, bytes: usize) -> Result<Account> {
        Account::holding(&self.0, Owner::Connectors, bytes)
    }
}

impl From<&SourceContext> for Buffers {
    fn from(context: &SourceContext) -> Self {
        Self(context.memory.clone())
    }
}

impl From<&SinkContext> for Buffers {
    fn from(context: &SinkContext) -> Self {
        Self(context.memory.clone())
    }
}
