//! A job that a coordinator before this one had: it goes on, or is shown as it is, and what can't be read of one is said there.
//!
//! Invariant: nothing that is kept of a job is changed because this coordinator can't go on with it. One that can (of another
//! version, with a connector that is missing here, after a file was put back) does, as if this one had not been.

use std::sync::Arc;

use tidemill_core::{Error, ErrorKind, Result};

use super::{Job, JobMaster};
use crate::Coordinator;
use crate::storage::{Accepted, Found, Kept};
use crate::view::{JobState, JobView};

/// The job, and its master, if it goes on. An error may pass.
pub(crate) fn recover(coordinator: &Arc<Coordinator>, found: Found) -> Result<(Arc<Job>, Option<JobMaster>)> {
    let Found { id, accepted, begun, wishes, end } = found;
    let job = |accepted: Result<Accepted>, view: JobView| {
        let now_ms = coordinator.environment.now_ms();
        (Job::without_master(coordinator.storage.clone(), accepted, view, now_ms), None)
    };
    let why = match (&accepted, wishes, end) {
        (_, _, Ok(Some(end))) => return Ok(job(accepted, end)),
        (Ok(accepted), Ok(wishes), Ok(None)) => {
            let kept = Kept { accepted: accepted.clone(), begun, wishes };
            match JobMaster::again(coordinator.clone(), kept) {
                Ok((job, master)) => return Ok((job, Some(master))),
                Err(error) if error.kind() == ErrorKind::Invalid => error.prefixed(&coordinator.storage.file_of(&id)),
                Err(error) => return Err(error),
            }
        }
        (Err(error), ..) => error.clone(),
        (_, Err(error), _) | (_, _, Err(error)) => error,
    };
    tracing::error!("the job {id} can't be gone on with: {why}");
    let view = view(&id, accepted.as_ref().ok(), &why);
    Ok(job(accepted, view))
}

/// Why a job can't be gone on with, and what to do about it.
pub(super) fn reason(id: &str, why: &Error) -> String {
    let mut text = why.text();
    text.push_str(if text.contains("\n  mend: ") { " " } else { "\n  mend: " });
    text.push_str(&format!(
        "A coordinator that can go on with it does, as nothing that is kept of it was changed. Or give it up: `tidemill cancel {id}` takes it off the list, and its checkpoints stay."
    ));
    text
}

fn view(id: &str, accepted: Option<&Accepted>, why: &Error) -> JobView {
    let submitted_ms = id.get(..12).and_then(|ms| i64::from_str_radix(ms, 16).ok()).unwrap_or_default();
    let definition = accepted.map(|accepted| &accepted.definition);
    JobView {
        id: id.to_owned(),
        name: definition.and_then(|definition| definition.name()).unwrap_or_default(),
        state: JobState::FailedToRecover,
        reason: Some(reason(id, why)),
        artifact: definition.map(|definition| definition.artifact.clone()).unwrap_or_default(),
        parallelism: accepted.and_then(|accepted| accepted.parallelism).unwrap_or_default(),
        submitted_ms,
        ended_ms: None,
        restarts: 0,
        attempt: None,
        exceptions: Vec::new(),
        vertices: Vec::new(),
        checkpoints: None,
        savepoint: None,
    }
}
