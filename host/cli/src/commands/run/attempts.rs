//! Which attempt at a job is this process's, and whether another process has begun a newer one.
//!
//! Who starts a process wants the job to run there, so its first attempt takes the job from whoever has it. Those after it are
//! begun by nobody but a restart strategy: they must not take the job back from a process that was started meanwhile, or
//! the two would go on for ever taking it from each other.

use std::cell::Cell;

use tidemill_checkpoint::{Begun, Start, Store};
use tidemill_core::{Error, ErrorKind, Result};

/// The attempts of this process at a job.
pub(super) struct Attempts {
    store: Store,
    /// The newest one of this process. `None`: there was none, or whether it was begun could not be found out.
    own: Option<u64>,
}

impl Attempts {
    /// At the job whose checkpoints these are.
    pub(super) fn new(store: Store) -> Self {
        Self { store, own: None }
    }

    /// The job's checkpoints.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Begins the next one. An error of the kind `Fenced`: another process has begun one since this process's own, and goes on
    /// having the job.
    pub(super) fn begin(&mut self, start: &Start, now_ms: i64) -> Result<Begun> {
        let asked = Cell::new(0);
        let begun = self.store.begin_as(
            || {
                asked.set(asked.get() + 1);
                self.not_overtaken().map(|()| start.clone())
            },
            now_ms,
        );
        match &begun {
            Ok(Begun::Run(owner)) => self.own = Some(owner.generation()),
            Ok(Begun::Commit(_) | Begun::Over(_)) => {}
            // It is asked for the second time before the log is written to: the newest may be this one, although nobody said so.
            Err(error) if asked.get() > 1 && error.kind() != ErrorKind::Fenced => self.own = None,
            Err(_) => {}
        }
        begun
    }

    /// What an attempt failed with. Of one that another process has overtaken, whatever it needs may be gone, so that says
    /// nothing: that it was overtaken does.
    pub(super) fn failed(&self, error: Error) -> Error {
        self.overtaken().unwrap_or_default().unwrap_or(error)
    }

    fn not_overtaken(&self) -> Result<()> {
        self.overtaken()?.map_or(Ok(()), Err)
    }

    fn overtaken(&self) -> Result<Option<Error>> {
        let Some(own) = self.own else { return Ok(None) };
        let newest = self.store.newest_generation()?;
        Ok(newest.filter(|newest| *newest != own).map(|newest| tidemill_dataflow::fenced(Some(newest))))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use tidemill_checkpoint::blobs::{BlobError, BlobWriter, Blobs, Listed, Memory, PutNew, Trouble};
    use tidemill_checkpoint::restart::{Restarts, Strategy};

    use super::super::supervise::restart_after;
    use super::*;

    /// Where all processes keep checkpoints, as one of them sees it.
    struct Shared {
        memory: Memory,
        /// Happens once, right before this process writes to the log.
        before: Mutex<Option<Box<dyn FnOnce() + Send>>>,
        /// This process's next write to the log arrives, and the store does not answer any more.
        mute: Mutex<Option<bool>>,
    }

    fn unavailable() -> BlobError {
        BlobError { trouble: Trouble::Unavailable, in_doubt: true, message: "no answer".to_owned() }
    }

    impl Blobs for Shared {
        fn location(&self) -> &str {
            "memory"
        }

        fn put_new(&self, path: &str, content: &[u8]) -> std::result::Result<PutNew, BlobError> {
            if path.starts_with("log/") {
                let before = self.before.lock().unwrap().take();
                before.into_iter().for_each(|before| before());
            }
            let answer = self.memory.put_new(path, content);
            let mut mute = self.mute.lock().unwrap();
            if path.starts_with("log/") && mute.is_some() {
                *mute = Some(true);
                return Err(unavailable());
            }
            answer
        }

        fn create(&self, path: &str) -> std::result::Result<Box<dyn BlobWriter>, BlobError> {
            self.memory.create(path)
        }

        fn open(&self, path: &str) -> std::result::Result<Option<Box<dyn Read + Send>>, BlobError> {
            if *self.mute.lock().unwrap() == Some(true) { Err(unavailable()) } else { self.memory.open(path) }
        }

        fn list(&self, folder: &str) -> std::result::Result<Vec<Listed>, BlobError> {
            self.memory.list(folder)
        }

        fn delete(&self, path: &str) -> std::result::Result<(), BlobError> {
            self.memory.delete(path)
        }
    }

    /// A process that may run the job.
    fn process(memory: &Memory) -> (Attempts, Arc<Shared>) {
        static PROCESSES: AtomicU64 = AtomicU64::new(0);
        let (process, next) = (PROCESSES.fetch_add(1, Ordering::Relaxed), AtomicU64::new(0));
        let (before, mute) = Default::default();
        let shared = Arc::new(Shared { memory: memory.clone(), before, mute });
        let nonces = move || format!("{process:08x}{:08x}", next.fetch_add(1, Ordering::Relaxed));
        (Attempts::new(Store::with(shared.clone(), "job", Arc::new(nonces))), shared)
    }

    /// The number of the attempt that is begun.
    fn begin(attempts: &mut Attempts, start: &Start) -> Result<u64> {
        match attempts.begin(start, 0)? {
            Begun::Run(owner) => Ok(owner.generation()),
            _ => panic!("nothing to run"),
        }
    }

    /// Whether the process of this error is over, and says so that its user knows why.
    fn says_that_another_runs_it(error: &Error, attempt: u64) {
        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("another process runs this job (attempt {attempt})")), "{text}");
        assert!(text.contains("Run a job in one process at a time"), "{text}");
        let mut restarts = Restarts::new(Strategy::EXPONENTIAL_DELAY, 0);
        assert_eq!(restart_after(&mut restarts, error), None, "it would take the job back");
    }

    /// It said what it missed because the other one had deleted it, or was started again.
    #[test]
    fn an_overtaken_process_says_so_whatever_it_failed_with_and_is_not_started_again() {
        let memory = Memory::default();
        let ((mut first, _), (mut second, _)) = (process(&memory), process(&memory));
        assert_eq!(begin(&mut first, &Start::Recover).unwrap(), 1);
        let lost = || Error::new(ErrorKind::Retry, "an upload is gone");
        let own = first.failed(lost());
        assert_eq!(own.to_string(), lost().to_string(), "nobody has overtaken it yet");
        assert!(restart_after(&mut Restarts::new(Strategy::EXPONENTIAL_DELAY, 0), &own).is_some());
        assert_eq!(begin(&mut second, &Start::GoOn).unwrap(), 2, "a process that was just started has the job");
        for kind in [ErrorKind::Retry, ErrorKind::Lost, ErrorKind::Invalid, ErrorKind::Internal, ErrorKind::Fenced] {
            says_that_another_runs_it(&first.failed(Error::new(kind, "an upload is gone")), 2);
        }
        assert_eq!(second.failed(lost()).to_string(), lost().to_string());
        assert_eq!(begin(&mut second, &Start::Recover).unwrap(), 3, "its own restarts are its own affair");
    }

    /// The first failed before the second was there, and took the job back when its wait was over.
    #[test]
    fn a_process_that_was_overtaken_while_it_waited_does_not_take_the_job_back() {
        let memory = Memory::default();
        let ((mut first, _), (mut second, _)) = (process(&memory), process(&memory));
        begin(&mut first, &Start::Recover).unwrap();
        begin(&mut second, &Start::GoOn).unwrap();
        says_that_another_runs_it(&begin(&mut first, &Start::Recover).unwrap_err(), 2);
        says_that_another_runs_it(&begin(&mut first, &Start::Recover).unwrap_err(), 2);
        assert_eq!(second.store().newest_generation().unwrap(), Some(2));
        assert!(second.not_overtaken().is_ok());
    }

    /// Two resume the job at once: whatever the first had read of the log is old when it writes there.
    #[test]
    fn of_two_that_go_on_at_once_the_one_that_was_only_started_again_gives_way() {
        let memory = Memory::default();
        let ((mut first, sees), (mut second, _)) = (process(&memory), process(&memory));
        begin(&mut first, &Start::Recover).unwrap();
        let at_once = move || assert_eq!(begin(&mut second, &Start::GoOn).unwrap(), 2);
        *sees.before.lock().unwrap() = Some(Box::new(at_once));
        says_that_another_runs_it(&begin(&mut first, &Start::Recover).unwrap_err(), 2);
        assert_eq!(first.store().newest_generation().unwrap(), Some(2));
    }

    /// Two that users start at once: each wants the job, and the later one has it.
    #[test]
    fn of_two_that_are_started_at_once_the_later_one_has_the_job() {
        let memory = Memory::default();
        let ((mut first, sees), (mut second, _)) = (process(&memory), process(&memory));
        let at_once = move || assert_eq!(begin(&mut second, &Start::GoOn).unwrap(), 1);
        *sees.before.lock().unwrap() = Some(Box::new(at_once));
        assert_eq!(begin(&mut first, &Start::GoOn).unwrap(), 2);
    }

    #[test]
    fn an_attempt_of_its_own_that_nobody_confirmed_is_not_taken_for_anothers() {
        let memory = Memory::default();
        let (mut first, sees) = process(&memory);
        begin(&mut first, &Start::Recover).unwrap();
        *sees.mute.lock().unwrap() = Some(false);
        let error = begin(&mut first, &Start::Recover).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
        *sees.mute.lock().unwrap() = None;
        assert_eq!(first.store().newest_generation().unwrap(), Some(2), "it arrived all the same");
        assert_eq!(begin(&mut first, &Start::Recover).unwrap(), 3);
    }
}
