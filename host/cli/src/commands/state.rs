//! `tidemill state`: what checkpoints and savepoints keep, read without the job's code.

mod describe;
mod rows;

use std::sync::Arc;

use anyhow::Context as _;
use tidemill_checkpoint::manifest::{Manifest as Checkpoint, OperatorState};
use tidemill_checkpoint::{Store, savepoint};
use tidemill_core::Error;
use tidemill_core::snapshot::SnapshotFiles;

use super::manifest_path;
use crate::args::{StateCommand, StateFromArgs, StateProjectArgs};
use crate::failure::Outcome;
use crate::screen::print;
use tidemill_job::{Manifest, job_name};

pub fn run(command: &StateCommand) -> Outcome {
    match command {
        StateCommand::List(args) => {
            print(&describe::list(&store(args)?.checkpoints()?));
            Ok(())
        }
        StateCommand::Inspect(args) => {
            let found = find(&args.from)?;
            print(&if args.json { describe::json(&found)? } else { describe::text(&found)? });
            Ok(())
        }
        StateCommand::Query(args) => rows::query(args),
        StateCommand::Export(args) => rows::export(args),
    }
}

/// A checkpoint or savepoint.
struct Found {
    /// What it is, for people.
    title: String,
    checkpoint: Checkpoint,
    files: Arc<dyn SnapshotFiles>,
}

impl Found {
    /// The operator of a uid or name.
    fn operator(&self, named: &str) -> Result<&OperatorState, Error> {
        let operators = &self.checkpoint.operators;
        let found = operators.iter().find(|o| o.uid == named).or_else(|| operators.iter().find(|o| o.name == named));
        found.ok_or_else(|| {
            let keeps =
                operators.iter().filter(|o| o.subtasks.iter().any(|s| s.state.is_some() || !s.broadcast.is_empty()));
            let known: Vec<String> = keeps.map(|o| format!("{} ({})", o.uid, o.name)).collect();
            Error::invalid(format!("{} has no operator '{named}'", self.title))
                .mend(format!("Operators with state, by uid and name: {}.", known.join(", ")))
        })
    }
}

fn find(args: &StateFromArgs) -> anyhow::Result<Found> {
    let number: Option<u64> = args.from.parse().ok();
    if args.from != "latest" && number.is_none() {
        let found = savepoint::read(&args.from)?;
        let title = format!("the savepoint in {}", args.from);
        return Ok(Found { title, checkpoint: found.manifest, files: found.files });
    }
    let store = store(&args.project)?;
    let found = match number {
        Some(number) => store.load(number)?,
        None => store.checkpoints()?.into_iter().next().context("the job has no checkpoint yet")?,
    };
    let title = format!("checkpoint {}", found.number);
    Ok(Found { title, checkpoint: found.manifest, files: store.files() })
}

/// The store that a project's manifest names.
fn store(args: &StateProjectArgs) -> anyhow::Result<Store> {
    let manifest = Manifest::read(&manifest_path(&args.project), &[], &|name| std::env::var(name).ok())?;
    let Some(checkpoints) = &manifest.checkpoints else {
        return Err(Error::invalid(format!("{} has no [checkpoints] section", manifest.path.display()))
            .mend("Name a savepoint with --from FOLDER, or the project of a job that takes checkpoints.")
            .into());
    };
    Ok(Store::open(&checkpoints.location, &job_name(&manifest)?)?)
}
