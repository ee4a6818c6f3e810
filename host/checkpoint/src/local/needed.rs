//! Which copies of a job's files may still be needed here. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Of one attempt at a job.
#[derive(Debug, Default)]
pub(super) struct Needed {
    /// What the attempt began from, until a checkpoint of its own is complete.
    restored: BTreeSet<String>,
    /// The newest complete checkpoint.
    completed: u64,
    /// What the checkpoints of each task name, by epoch: of the newest complete one, and of all that are later.
    tasks: BTreeMap<(u32, u32), BTreeMap<u64, BTreeSet<String>>>,
}

impl Needed {
    /// Of an attempt that begins from the checkpoint of an epoch, which names these.
    pub(super) fn new(epoch: u64, restored: BTreeSet<String>) -> Self {
        Self { restored, completed: epoch, tasks: BTreeMap::new() }
    }

    /// Whether the attempt began from it.
    pub(super) fn restored(&self, name: &str) -> bool {
        self.restored.contains(name)
    }

    /// A task's state of a checkpoint is written.
    pub(super) fn written(&mut self, task: (u32, u32), epoch: u64, names: BTreeSet<String>) {
        self.tasks.entry(task).or_default().insert(epoch, names);
    }

    /// A checkpoint is complete. Of a task that wrote nothing for it, what it wrote last stands.
    pub(super) fn completed(&mut self, epoch: u64) {
        self.restored.clear();
        self.completed = self.completed.max(epoch);
        for of in self.tasks.values_mut() {
            let Some((&newest, names)) = of.range(..=epoch).next_back() else { continue };
            // A savepoint has files of its own, and what comes after it goes on from the checkpoint before.
            let before = of.range(..newest).next_back().filter(|(_, before)| before.is_disjoint(names));
            let oldest = before.map_or(newest, |(before, _)| *before);
            of.retain(|at, _| *at >= oldest);
        }
    }

    /// Whether a file of an epoch may be needed. One of a checkpoint in the making may not be named yet.
    pub(super) fn wants(&self, name: &str, epoch: u64) -> bool {
        let named = || self.tasks.values().flat_map(BTreeMap::values).any(|names| names.contains(name));
        epoch > self.completed || self.restored(name) || named()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: (u32, u32) = (3, 0);

    fn names(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_the_newest_checkpoint_names_is_needed_and_what_only_older_ones_did_is_not() {
        let mut needed = Needed::default();
        needed.written(TASK, 1, names(&["a", "b"]));
        needed.completed(1);
        needed.written(TASK, 2, names(&["b", "c"]));
        assert!(needed.wants("a", 1), "until the next is complete");
        needed.completed(2);
        assert!(!needed.wants("a", 1));
        assert!(needed.wants("b", 1) && needed.wants("c", 2));
        assert!(needed.wants("d", 3), "somebody may be writing it");
        assert!(!needed.wants("e", 2), "nobody names it");
    }

    #[test]
    fn what_a_task_wrote_last_stands_for_it() {
        let mut needed = Needed::default();
        needed.written(TASK, 1, names(&["a"]));
        needed.written((4, 0), 2, names(&["b"]));
        needed.completed(2);
        needed.completed(3);
        assert!(needed.wants("a", 1) && needed.wants("b", 2));
    }

    #[test]
    fn a_savepoint_does_not_take_the_place_of_what_the_next_checkpoint_goes_on_from() {
        let mut needed = Needed::default();
        needed.written(TASK, 1, names(&["a", "b"]));
        needed.completed(1);
        needed.written(TASK, 2, names(&["savepoint"]));
        needed.completed(2);
        assert!(needed.wants("a", 1) && needed.wants("savepoint", 2));
        needed.written(TASK, 3, names(&["a", "c"]));
        needed.completed(3);
        needed.written(TASK, 4, names(&["a", "d"]));
        needed.completed(4);
        assert!(!needed.wants("b", 1) && !needed.wants("savepoint", 2) && needed.wants("a", 1));
    }

    #[test]
    fn what_an_attempt_began_from_is_needed_until_a_checkpoint_of_its_own_is_complete() {
        let mut needed = Needed::new(7, names(&["a", "b"]));
        assert!(needed.wants("a", 5) && needed.wants("b", 7) && !needed.wants("c", 7));
        needed.written(TASK, 8, names(&["b"]));
        needed.completed(8);
        assert!(!needed.wants("a", 5) && needed.wants("b", 7));
    }
}
