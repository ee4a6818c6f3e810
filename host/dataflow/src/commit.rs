//! Makes visible what the sinks of a job prepared: all of a sink in one call, the dead letters last.

use std::collections::BTreeMap;

use tidemill_core::connector::{Committable, SinkCommitter};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::{Error, Result};

use crate::slice::{CommitTarget, Prepared};

/// Commits what all slices prepared.
pub fn commit(
    committers: &mut BTreeMap<CommitTarget, Box<dyn SinkCommitter>>,
    prepared: impl IntoIterator<Item = Prepared>,
) -> Result<()> {
    let mut by_target: BTreeMap<CommitTarget, Vec<Committable>> = BTreeMap::new();
    for Prepared { target, committables } in prepared {
        by_target.entry(target).or_default().extend(committables);
    }
    for (target, committables) in by_target.into_iter().filter(|(_, committables)| !committables.is_empty()) {
        let committer = committers.get_mut(&target);
        committer.ok_or_else(|| Error::internal(format!("no committer for {target:?}")))?.commit(&committables)?;
        Failpoint::CommitSinkDone.reach();
    }
    Ok(())
}
