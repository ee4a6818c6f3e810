//! What became of an operation, as its job shows it: also of one that a coordinator before this one began. Pure.
//!
//! Of those, what the job was told for good goes on (a stop, rescaling), and whether it was stopped with a savepoint is in its
//! log; a checkpoint or savepoint that only the other coordinator waited for has failed.

use tidemill_coordinator::Job;
use tidemill_coordinator::operations::{BegunOperation, Done, OperationKind, replaced};
use tidemill_coordinator::view::{JobState, JobView};
use tidemill_core::{Error, ErrorKind};

/// A job, as operations see it.
pub struct Seen {
    pub view: JobView,
    /// How many slots it is to have.
    pub wanted: u32,
    /// Whether it is to be stopped.
    pub stops: bool,
}

impl Seen {
    /// As it is now.
    pub fn of(job: &Job) -> Self {
        // First: what is wanted is not forgotten before it is done.
        let (wanted, stops) = (job.wanted_parallelism(), job.is_stopping());
        Self { view: job.summary(), wanted, stops }
    }
}

/// How it ended. `None`: it is under way. `seen`: its job, if that is known.
pub fn outcome(begun: &BegunOperation, seen: Option<&Seen>) -> Option<Result<Done, Error>> {
    let (kind, wanted) = (begun.operation.kind, &begun.wanted);
    let failed = |what: String| Some(Err(Error::new(ErrorKind::Retry, what)));
    let Some(Seen { view, wanted: slots, stops }) = seen else {
        return failed(format!("there is no job '{}' any more", begun.operation.job));
    };
    if view.state == JobState::FailedToRecover {
        return failed(format!("this coordinator can't go on with the job {}", view.id));
    }
    match (kind, &wanted.savepoint, wanted.parallelism) {
        (OperationKind::Checkpoint | OperationKind::Savepoint, ..) => Some(Err(replaced(kind))),
        (OperationKind::Stop, Some(location), _) => match &view.savepoint {
            Some(saved) if view.state == JobState::Finished && is_same(saved, location) => {
                Some(Ok(Done { location: Some(saved.clone()), ..Done::default() }))
            }
            _ if view.state.is_final() => failed(ended(view)),
            // The log did not say that it was stopped, so it goes on.
            _ if view.state == JobState::Running => Some(Err(replaced(kind))),
            _ => None,
        },
        (OperationKind::Stop, None, _) => match view.state {
            JobState::Finished => Some(Ok(Done::default())),
            state if state.is_final() => failed(ended(view)),
            _ if *stops => None,
            _ => Some(Err(replaced(kind))),
        },
        (OperationKind::Rescale, _, parallelism) => {
            let parallelism = parallelism.unwrap_or(*slots);
            match view.state {
                state if state.is_final() => failed(ended(view)),
                _ if *slots != parallelism => failed(format!(
                    "the job is to have {slots} slots, not {parallelism}: another rescaling took its place, or the coordinator was replaced before it was accepted"
                )),
                JobState::Running if view.parallelism == parallelism => {
                    Some(Ok(Done { parallelism: Some(parallelism), ..Done::default() }))
                }
                _ => None,
            }
        }
    }
}

fn ended(view: &JobView) -> String {
    let why = view.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("the job ended before as {}{why}", view.state)
}

fn is_same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tidemill_coordinator::operations::{Operation, Wanted};

    use super::*;

    fn begun(kind: OperationKind, savepoint: Option<&str>, parallelism: Option<u32>) -> BegunOperation {
        let operation: Operation =
            serde_json::from_value(json!({"id": "1-0", "kind": kind, "job": "j", "state": "RUNNING", "started_ms": 1}))
                .unwrap();
        BegunOperation { operation, wanted: Wanted { savepoint: savepoint.map(ToOwned::to_owned), parallelism } }
    }

    /// At two slots.
    fn seen(state: JobState, savepoint: Option<&str>, wanted: u32, stops: bool) -> Seen {
        let view = json!({
            "id": "j", "name": "j", "state": state, "reason": "so", "artifact": "a", "parallelism": 2, "submitted_ms": 1,
            "restarts": 0, "exceptions": [], "vertices": [], "savepoint": savepoint,
        });
        Seen { view: serde_json::from_value(view).unwrap(), wanted, stops }
    }

    /// `None`: it is under way.
    #[track_caller]
    fn check(begun: &BegunOperation, seen: &Seen, expected: Option<Result<&Done, &str>>) {
        let found = outcome(begun, Some(seen)).map(|outcome| outcome.map_err(|error| error.to_string()));
        match (&found, expected) {
            (None, None) => {}
            (Some(Ok(found)), Some(Ok(done))) => assert_eq!(found, done),
            (Some(Err(text)), Some(Err(words))) => assert!(text.contains(words), "not '{words}': {text}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn what_only_the_coordinator_before_waited_for_has_failed() {
        for kind in [OperationKind::Checkpoint, OperationKind::Savepoint] {
            let (begun, seen) = (begun(kind, Some("/s"), None), seen(JobState::Running, None, 2, false));
            check(&begun, &seen, Some(Err("the coordinator was replaced before it was finished")));
        }
        let error = outcome(&begun(OperationKind::Stop, None, None), None).unwrap().unwrap_err().to_string();
        assert!(error.contains("no job 'j'"), "{error}");
    }

    #[test]
    fn a_stop_that_the_job_was_told_goes_on() {
        let stop = begun(OperationKind::Stop, None, None);
        check(&stop, &seen(JobState::Running, None, 2, true), None);
        check(&stop, &seen(JobState::Restarting, None, 2, true), None);
        check(&stop, &seen(JobState::Finished, None, 2, true), Some(Ok(&Done::default())));
        check(&stop, &seen(JobState::Failed, None, 2, true), Some(Err("the job ended before as FAILED: so")));
        check(&stop, &seen(JobState::Running, None, 2, false), Some(Err("replaced")));
        check(&stop, &seen(JobState::FailedToRecover, None, 2, true), Some(Err("can't go on with the job j")));
    }

    #[test]
    fn a_stop_with_a_savepoint_is_done_if_the_log_says_so() {
        let stop = begun(OperationKind::Stop, Some("/s/"), None);
        let done = Done { location: Some("/s".to_owned()), ..Done::default() };
        // Nobody has looked into the log yet.
        check(&stop, &seen(JobState::Created, None, 2, false), None);
        check(&stop, &seen(JobState::Finished, Some("/s"), 2, false), Some(Ok(&done)));
        check(&stop, &seen(JobState::Finished, Some("/other"), 2, false), Some(Err("as FINISHED")));
        check(&stop, &seen(JobState::Canceled, None, 2, false), Some(Err("as CANCELED")));
        check(&stop, &seen(JobState::Running, None, 2, false), Some(Err("at another place")));
    }

    #[test]
    fn a_rescaling_that_the_job_was_told_goes_on() {
        let (larger, same) =
            (begun(OperationKind::Rescale, None, Some(4)), begun(OperationKind::Rescale, None, Some(2)));
        check(&larger, &seen(JobState::Running, None, 4, false), None);
        check(&larger, &seen(JobState::Running, None, 2, false), Some(Err("to have 2 slots, not 4")));
        check(&same, &seen(JobState::Restarting, None, 2, false), None);
        let done = Done { parallelism: Some(2), ..Done::default() };
        check(&same, &seen(JobState::Running, None, 2, false), Some(Ok(&done)));
        check(&same, &seen(JobState::Failed, None, 2, false), Some(Err("as FAILED")));
    }
}
