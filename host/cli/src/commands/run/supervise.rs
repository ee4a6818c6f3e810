//! Runs a job attempt after attempt: begins each from where the log of its checkpoints says, and starts it again after a
//! failure that may pass, as the restart strategy decides.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tidemill_checkpoint::restart::{Restart, Restarts};
use tidemill_checkpoint::{Begun, Origin, Owner, Start, Store};
use tidemill_core::time::{Clock as _, SystemClock};
use tidemill_core::{Error, ErrorKind};
use tidemill_dataflow::{Ending, JobSpec};
use tidemill_job::{Manifest, checkpoints, manifest, sources_total};

use super::attempts::Attempts;
use super::{interrupts, watch};
use crate::args::RunArgs;
use crate::commands::build::say;
use crate::control::{self, Running};
use crate::failure::{Failure, INTERRUPTED, Outcome};
use crate::screen::Screen;

/// Runs the job to its end.
pub fn run(spec: &JobSpec, manifest: &Manifest, args: &RunArgs, screen: &Screen) -> Outcome {
    let interrupts = interrupts()?;
    let running = Running::default();
    let _server = control::listen(&manifest.path, running.clone())?;
    let Some(settings) = &manifest.checkpoints else {
        if args.start.from.is_some() {
            return Err(Error::invalid("--from needs checkpoints, and the manifest has none")
                .mend("Give it a [checkpoints] section with a location.")
                .into());
        }
        let handle = tidemill_dataflow::run(spec.clone())?;
        running.set(Some(handle.control()));
        let ended = watch(handle, sources_total(&spec.sources), &interrupts, args.format, screen);
        return said(ended.map_err(Failure::job)?, None);
    };
    let attempts = Attempts::new(Store::open(&settings.location, &spec.name)?);
    let mut supervisor =
        Supervisor { spec, settings, args, screen, attempts, running, interrupts: &interrupts, ran: false };
    supervisor.run(manifest)
}

struct Supervisor<'a> {
    spec: &'a JobSpec,
    settings: &'a manifest::Checkpoints,
    args: &'a RunArgs,
    screen: &'a Screen,
    attempts: Attempts,
    running: Running,
    interrupts: &'a AtomicU32,
    /// Whether an attempt came to run.
    ran: bool,
}

impl Supervisor<'_> {
    fn run(&mut self, manifest: &Manifest) -> Outcome {
        let mut restarts = Restarts::new(manifest.restart.clone(), now_ms().unsigned_abs());
        let mut start = self.args.start.start();
        loop {
            let error = match self.attempt(&start) {
                Ok(ending) => return said(ending, Some(self.attempts.store())),
                Err(error) => error,
            };
            // What is wrong with what was typed is said as that.
            if !self.ran && error.kind() != ErrorKind::Retry {
                return Err(error.into());
            }
            let Some(wait) = restart_after(&mut restarts, &error) else { return Err(Failure::job(error)) };
            if !self.wait(wait) {
                return Err(Failure::said(INTERRUPTED));
            }
            start = Start::Recover;
        }
    }

    /// Begins an attempt and runs it to its end.
    fn attempt(&mut self, start: &Start) -> Result<Ending, Error> {
        match self.attempts.begin(start, now_ms())? {
            Begun::Run(owner) => self.run_owned(*owner).map_err(|error| self.attempts.failed(error)),
            Begun::Over(_) => Ok(Ending::Stopped),
            Begun::Commit(checkpoint) => {
                tidemill_dataflow::commit_ended(self.spec, self.attempts.store(), &checkpoint)?;
                say("committed", "what the run before had written when it came to its end");
                Ok(Ending::Finished)
            }
        }
    }

    fn run_owned(&mut self, owner: Owner) -> Result<Ending, Error> {
        self.announce(&owner);
        let checkpoints = checkpoints(self.settings, self.attempts.store().clone(), owner);
        let spec = self.spec.clone();
        let handle = tidemill_dataflow::run_with(spec, Some(checkpoints), self.args.start.allow_non_restored)?;
        self.ran = true;
        self.running.set(Some(handle.control()));
        let ended = watch(handle, sources_total(&self.spec.sources), self.interrupts, self.args.format, self.screen);
        self.running.set(None);
        ended
    }

    /// Says from where the attempt goes on.
    fn announce(&self, owner: &Owner) {
        let Some(restored) = owner.restored() else {
            if self.args.start.from.is_some() && !self.ran {
                say("starting", &format!("anew: there is no checkpoint in {} yet", self.settings.location));
            }
            return;
        };
        let from = match &restored.origin {
            Origin::Checkpoint(number) => format!("checkpoint {number}"),
            Origin::Savepoint(location) => format!("the savepoint in {location}"),
        };
        say("going on", &format!("from {from} of epoch {}", restored.manifest.epoch));
    }

    /// Waits before the next attempt; false: Ctrl-C ended the wait.
    fn wait(&self, wait: Duration) -> bool {
        let (begin, seen) = (Instant::now(), self.interrupts.load(Ordering::SeqCst));
        while let Some(left) = wait.checked_sub(begin.elapsed()) {
            if self.interrupts.load(Ordering::SeqCst) > seen {
                return false;
            }
            std::thread::park_timeout(left);
        }
        true
    }
}

/// How long to wait before the next attempt; `None`: there is none. Only what may pass by itself is worth one: the same
/// code fails on the same record again.
pub(super) fn restart_after(restarts: &mut Restarts, error: &Error) -> Option<Duration> {
    if !matches!(error.kind(), ErrorKind::Retry | ErrorKind::Lost | ErrorKind::Internal) {
        return None;
    }
    match restarts.failed(now_ms().unsigned_abs(), &error.to_string()) {
        Restart::After(ms) => {
            say("failed", &error.to_string());
            say("restarting", &format!("in {ms} ms (failure {} of this run)", restarts.history().count()));
            Some(Duration::from_millis(ms))
        }
        Restart::GiveUp(why) => {
            say("giving up", &why);
            None
        }
    }
}

/// The last words.
fn said(ending: Ending, store: Option<&Store>) -> Outcome {
    match (ending, store) {
        (Ending::Cancelled, _) => Err(Failure::said(INTERRUPTED)),
        (Ending::Stopped, Some(_)) => {
            say("stopped", "with a checkpoint; go on with `tidemill run --from latest`");
            Ok(())
        }
        (Ending::Stopped, None) => {
            say(
                "stopped",
                "what was read is written; open windows and timers did not fire (with [checkpoints] they would be kept)",
            );
            Ok(())
        }
        (Ending::Finished, _) => Ok(()),
    }
}

fn now_ms() -> i64 {
    SystemClock.now().0
}
