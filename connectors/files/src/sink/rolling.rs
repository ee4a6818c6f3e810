//! When a part file is closed before its checkpoint.
//!
//! At a checkpoint every file is closed, so these rules only cut smaller what lies between two. That is why none goes by
//! time unless it is asked for: a row is visible no sooner for it. Flink has it so where it rolls at checkpoints.

/// The rules. Times are the injected clock's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rolling {
    /// A file of this size is complete.
    pub(super) bytes: u64,
    /// So long after its first row a file is complete.
    pub(super) after_ms: Option<i64>,
    /// So long after its last row a file is complete.
    pub(super) idle_ms: Option<i64>,
}

impl Rolling {
    /// Whether time has a say.
    pub(super) fn goes_by_time(&self) -> bool {
        self.after_ms.is_some() || self.idle_ms.is_some()
    }

    /// At what time a file is to be closed, if time has a say. A clock that was set back makes it later, never earlier.
    pub(super) fn due(&self, first_ms: i64, last_ms: i64) -> Option<i64> {
        let after = self.after_ms.map(|ms| first_ms.saturating_add(ms));
        let idle = self.idle_ms.map(|ms| last_ms.saturating_add(ms));
        after.into_iter().chain(idle).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_counts() {
        let due = |after_ms, idle_ms| Rolling { bytes: 1, after_ms, idle_ms }.due(100, 150);
        assert_eq!(due(None, None), None);
        assert_eq!(due(Some(60), None), Some(160));
        assert_eq!(due(None, Some(20)), Some(170));
        assert_eq!(due(Some(60), Some(5)), Some(155));
        assert_eq!(due(Some(i64::MAX), None), Some(i64::MAX));
    }
}
