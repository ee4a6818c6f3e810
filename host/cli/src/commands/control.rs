//! `tidemill savepoint` and `tidemill stop`: what is asked of a job that another process of this machine runs.

use std::path::Path;

use super::build::say;
use super::manifest_path;
use crate::args::{RunningArgs, SavepointArgs, StopArgs};
use crate::control::{self, Request};
use crate::failure::{Failure, Outcome};

pub fn savepoint(args: &SavepointArgs) -> Outcome {
    if let Some(job) = &args.running.job {
        return super::cluster::savepoint(&args.running.cluster, job, &args.location);
    }
    let location = absolute(&args.location)?;
    let said = ask(&args.running, &Request::Savepoint { location })?;
    say("savepoint", &said);
    Ok(())
}

pub fn stop(args: &StopArgs) -> Outcome {
    if let Some(job) = &args.running.job {
        return super::cluster::stop(&args.running.cluster, job, args.savepoint.as_deref());
    }
    let savepoint = args.savepoint.as_deref().map(absolute).transpose()?;
    let said = ask(&args.running, &Request::Stop { savepoint })?;
    let verb = if args.savepoint.is_some() { "stopped" } else { "stopping" };
    say(verb, &said);
    Ok(())
}

fn ask(running: &RunningArgs, request: &Request) -> Result<String, Failure> {
    control::ask(&manifest_path(&running.project), request).map_err(Failure::job)
}

/// The other process may have another working directory.
pub(super) fn absolute(location: &str) -> anyhow::Result<String> {
    if location.contains("://") {
        return Ok(location.to_owned());
    }
    Ok(std::path::absolute(Path::new(location))?.display().to_string())
}
