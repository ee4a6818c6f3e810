//! What a state begins with: the parts of earlier snapshots, and whether their chain goes on.

use std::sync::Arc;

use tidemill_core::failpoint::Failpoint;
use tidemill_core::snapshot::{FileRef, RestoredState, StateHandle};
use tidemill_core::{Error, Result};

use super::chain::ChainFile;
use super::evolve;
use super::frozen::About;
use super::log::Log;
use super::parts::{Parts, Placed, Wanted, log_values, same_values};
use super::table::Table;
use crate::format::PortableFile;
use crate::helpers::both;

/// While a larger file is applied, one is read by another thread.
const READ_AHEAD: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct Restored {
    pub(super) parts: Parts,
    /// The files that the next snapshot continues. None after a rescale, a savepoint or a change of what is declared:
    /// the next snapshot is the first of a chain.
    chain: Option<Vec<ChainFile>>,
    allow_non_restored: bool,
}

/// Reads what of the snapshots is wanted.
pub(super) fn restore(about: &Arc<About>, from: &RestoredState) -> Result<Restored> {
    let wanted = Wanted { key_groups: about.key_groups, max_parallelism: about.max_parallelism };
    let mut parts = Parts::new(Arc::clone(about));
    let mut chain = Vec::new();
    for handle in &from.handles {
        if handle.format != StateHandle::PORTABLE {
            return Err(Error::invalid(format!(
                "the state of operator '{}' is kept in the format '{}', which state in memory can't read",
                about.operator, handle.format
            ))
            .mend("Restore with the backend that wrote it, or from a savepoint."));
        }
        if wanted.overlaps(handle.key_groups, from.max_parallelism.get()) {
            chain.extend(apply(&mut parts, wanted, from, handle)?);
        }
    }
    let same_keys = |handle: &StateHandle| handle.key_groups == about.key_groups;
    Failpoint::StateRestored.reach();
    let goes_on = from.max_parallelism == about.max_parallelism
        && matches!(from.handles.as_slice(), [one] if same_keys(one))
        && chain.iter().all(|(_, savepoint)| !savepoint);
    let chain = goes_on.then(|| chain.into_iter().map(|(file, _)| file).collect());
    Ok(Restored { parts, chain, allow_non_restored: from.allow_non_restored })
}

/// Applies the files of a handle; answers them, and whether each is a savepoint's.
fn apply(
    parts: &mut Parts,
    wanted: Wanted,
    from: &RestoredState,
    handle: &StateHandle,
) -> Result<Vec<(ChainFile, bool)>> {
    let operator = parts.about.operator.clone();
    let all: u64 = handle.files.iter().map(|file| file.bytes).sum();
    let share = wanted.share(handle.key_groups, from.max_parallelism.get());
    let mut growth = share * all as f64;
    let mut applied = Vec::with_capacity(handle.files.len());
    let mut files = handle.files.iter();
    let mut read_next = || files.next().map(|file| read(from, &operator, file)).transpose();
    let (mut this, mut next) = (read_next()?, read_next()?);
    while let Some((file, content)) = this {
        let more = content.footer.base && next.as_ref().is_some_and(|(_, next)| next.footer.base);
        let growth = std::mem::replace(&mut growth, 0.0) / file.bytes.max(1) as f64;
        // What it waits for a disk or a store, and what it looks for damage, it does while the one before is applied.
        let (mut after, mut done) = (Ok(None), Ok(()));
        both(
            file.bytes > READ_AHEAD,
            || after = read_next(),
            || {
                done = parts.apply(&Placed { file: &content, growth, more });
            },
        );
        done?;
        let (key_groups, base) = (content.footer.key_groups, content.footer.base);
        applied.push((ChainFile { file: file.clone(), key_groups, base }, content.footer.savepoint));
        (this, next) = (next, after?);
    }
    Ok(applied)
}

fn read<'a>(from: &RestoredState, operator: &str, file: &'a FileRef) -> Result<(&'a FileRef, PortableFile)> {
    let content = from.files.read(file).map_err(|e| e.prefixed(&format!("restoring operator '{operator}'")))?;
    let read = PortableFile::parse(&file.path, content)?;
    let (theirs, ours) = (read.footer.max_parallelism, from.max_parallelism.get());
    if theirs != ours {
        return Err(read.wrong(format!("counts {theirs} key groups instead of {ours}")));
    }
    Ok((file, read))
}

impl Restored {
    /// The restored table of this name, with the values that are declared now; or the declared one, empty.
    pub(super) fn table(&mut self, declared: Table) -> Result<Table> {
        let Some(mut stored) = self.parts.tables.remove(&declared.name) else { return Ok(declared) };
        if same_values(&stored.values(), &declared.values()) {
            if !stored.expires_as(&declared) {
                // Files say how long values live: those of before must not be merged by what they say.
                self.chain = None;
            }
            (stored.columns, stored.expiring) = (declared.columns, declared.expiring);
            return Ok(stored);
        }
        self.chain = None;
        evolve::table(&self.parts.about.operator, stored, declared)
    }

    /// As `table`, for a log.
    pub(super) fn log(&mut self, declared: Log) -> Result<Log> {
        let Some(stored) = self.parts.logs.remove(declared.name()) else { return Ok(declared) };
        if same_values(&log_values(&stored), &log_values(&declared)) {
            return Ok(stored);
        }
        Err(evolve::other_log(&self.parts.about.operator, &stored, &declared))
    }

    /// Everything is declared. Answers the chain that goes on.
    pub(super) fn finish(mut self) -> Result<Option<Vec<ChainFile>>> {
        let tables = self.parts.tables.values().map(|t| format!("table '{}'", t.name));
        let left: Vec<String> = tables.chain(self.parts.logs.values().map(|l| format!("log '{}'", l.name()))).collect();
        if !left.is_empty() {
            self.chain = None;
            if !self.allow_non_restored {
                return Err(Error::invalid(format!(
                    "the restored state of operator '{}' has what the operator does not declare (any more): {}",
                    self.parts.about.operator,
                    left.join(", ")
                ))
                .mend("Declare it again, or drop it by restoring with --allow-non-restored."));
            }
        }
        Ok(self.chain)
    }
}
