//! Named places at which a test has the process killed: every edge of the checkpoint protocol, listed once, here.
//!
//! A failpoint is armed by the binary, from the environment variable `TIDEMILL_FAILPOINT`: `NAME`, or `NAME:3` for the
//! third time that the process comes there. The process then sends SIGKILL to itself, so nothing more runs: no
//! destructor, no flush, no answer to anyone. `tests/e2e/audit` does so, with the binary that is shipped: compiled out
//! by a feature, they would be tested in another build than the one that runs, and everything would be built twice.
//!
//! Invariant: none is on the path of a batch. Where one is not armed it costs a load and a branch, per file or per
//! checkpoint. The armed one is this crate's only static: it belongs to the process, like the signal, and handing it
//! through every layer would change all signatures for the sake of a test.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, raise};

use crate::error::{Error, Result};

/// Where the binary looks for what is to be armed.
pub const VARIABLE: &str = "TIDEMILL_FAILPOINT";

static ARMED: OnceLock<Armed> = OnceLock::new();

struct Armed {
    at: Failpoint,
    /// How often it is still passed unharmed.
    spared: AtomicU32,
}

macro_rules! failpoints {
    ($($variant:ident = $name:literal: $doc:literal)*) => {
        /// A place at which the process can be killed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Failpoint {
            $(#[doc = $doc] $variant,)*
        }

        impl Failpoint {
            /// All, in the order in which a job comes to them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Where it is.
            pub fn place(self) -> &'static str {
                match self { $(Self::$variant => $doc,)* }
            }
        }
    };
}

failpoints! {
    BeginProbed = "begin-probed": "The store was tried; the log was not read yet."
    BeginLogged = "begin-logged": "The attempt's entry is in the log; nothing was restored."
    EndedCommitted = "ended-committed": "What an ended job had left to commit is committed, and not marked."
    RecoverUncommitted = "recover-uncommitted": "Before what the restored checkpoint's sinks prepared is committed again."
    RecoverCommitted = "recover-committed": "It is committed again, and not marked."
    SinkDeleted = "sink-deleted": "A sink deleted one of the files that earlier attempts left behind."
    SinksBegun = "sinks-begun": "All sinks have begun; no state was read."
    StateRestored = "state-restored": "The state of one operator subtask was read; nothing runs yet."
    InFlightRestored = "in-flight-restored": "What had been in flight to one operator subtask was read; nothing runs yet."
    PartCreated = "part-created": "A part file is there, and empty."
    PartWritten = "part-written": "Some of a part file's rows are written."
    BarrierDue = "barrier-due": "A checkpoint is due; no barrier was sent."
    BarrierSent = "barrier-sent": "The barrier was sent to one source."
    OvertakeDue = "overtake-due": "A checkpoint is to turn unaligned; no slot knows."
    OvertakeSaid = "overtake-said": "The slots were told that a checkpoint is unaligned."
    FreezeDue = "freeze-due": "A task handed the barrier on, and has frozen nothing."
    PartUnsynced = "part-unsynced": "A part file is whole, and not synced."
    PartSynced = "part-synced": "A part file is synced, and still hidden."
    PartPrepared = "part-prepared": "A sink knows its part files' final names, and has told nobody."
    FreezeDone = "freeze-done": "A task froze its state, and has told nobody."
    CopyDue = "copy-due": "A task froze its state, and has copied none or some of it."
    OvertakeDone = "overtake-done": "A barrier overtook what stood before a task, and nobody was told."
    InFlightDue = "in-flight-due": "Before what was in flight to a task is written."
    InFlightWritten = "in-flight-written": "What was in flight to a task is written, its state is not."
    SnapshotDue = "snapshot-due": "Before a task's frozen state is written."
    SnapshotUnsynced = "snapshot-unsynced": "A snapshot file is written, and not synced."
    SnapshotWritten = "snapshot-written": "A task's frozen state is written, and nobody knows."
    ClaimDue = "claim-due": "Everything is acknowledged, and the checkpoint is not claimed."
    PutStaged = "put-staged": "An entry, a marker or a manifest is whole under a hidden name."
    PutLinked = "put-linked": "It has its name; the hidden one is still there, and the folder not synced."
    InFlightClaimed = "in-flight-claimed": "A checkpoint with rows in flight is claimed, and its claimer does not know."
    ClaimWon = "claim-won": "The checkpoint is claimed, and its claimer does not know."
    CommitDue = "commit-due": "The claim is known; nothing is committed."
    CommitRenamed = "commit-renamed": "One part file of a commit is visible, others may not be; the folder is not synced."
    CommitSinkDone = "commit-sink-done": "One sink has committed; others may not have."
    CommitDone = "commit-done": "All is committed, and not marked."
    CommitMarked = "commit-marked": "The marker is there; nobody was told."
    SavepointDue = "savepoint-due": "Before a savepoint is copied out of its checkpoint."
    SavepointCopied = "savepoint-copied": "One of a savepoint's files is copied; it has no manifest."
    SavepointDone = "savepoint-done": "A savepoint is whole; who asked does not know."
    EntryDeleted = "entry-deleted": "Garbage collection deleted a log entry."
    MarkerDeleted = "marker-deleted": "Garbage collection deleted a marker."
    FileDeleted = "file-deleted": "Garbage collection deleted a snapshot file."
    LastCommitted = "last-committed": "A job's last checkpoint is complete; the slots do not know."
}

impl Failpoint {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|failpoint| failpoint.name() == name)
    }

    /// The process is here. If the failpoint is armed and its time has come, this does not return.
    #[inline]
    pub fn reach(self) {
        if let Some(armed) = ARMED.get()
            && armed.at == self
        {
            armed.reached();
        }
    }
}

impl Armed {
    #[cold]
    fn reached(&self) {
        let spared = self.spared.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |spared| spared.checked_sub(1));
        if spared.is_err() {
            _ = raise(Signal::SIGKILL);
            // Not reached where signals are what they are on Unix.
            std::process::abort();
        }
    }
}

/// Arms what a text names, for the rest of the process's life.
pub fn arm(text: &str) -> Result<()> {
    let mend = || format!("{VARIABLE} is NAME or NAME:TIMES; tests/e2e/audit --list shows the names");
    let wrong = |why: String| Error::invalid(format!("{VARIABLE}={text}: {why}")).mend(mend());
    let (name, times) = text.split_once(':').unwrap_or((text, "1"));
    let at = Failpoint::named(name).ok_or_else(|| wrong(format!("there is no failpoint '{name}'")))?;
    let times: u32 = times.parse().map_err(|_| wrong(format!("'{times}' is not a number")))?;
    let spared = times.checked_sub(1).ok_or_else(|| wrong("it is never reached zero times".to_owned()))?;
    let armed = Armed { at, spared: AtomicU32::new(spared) };
    ARMED.set(armed).map_err(|_| Error::internal("a failpoint is armed already"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_wrong_ones_are_refused() {
        for failpoint in Failpoint::ALL {
            assert_eq!(Failpoint::named(failpoint.name()), Some(*failpoint));
        }
        for (text, why) in [("claim", "no failpoint 'claim'"), ("claim-won:x", "'x'"), ("claim-won:0", "zero times")] {
            let error = arm(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        // Nothing is armed: this returns.
        Failpoint::ClaimWon.reach();
    }
}
