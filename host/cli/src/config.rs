//! The settings of the processes of a cluster: from a YAML file (`--config`), from the environment, from the command line;
//! what comes later in this list wins.
//!
//! Settings are defined once, as the arguments in `args`: a file's key is an argument's long name, and its value is taken as
//! if it had been typed where neither the command line nor the environment has one. So help, checks, messages and
//! `docs/configuration.md` come from the same place. No setting is a secret: secrets are in files that settings name.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory as _};
use serde_json::{Map, json};
use tidemill_connector_kit::suggest::{did_you_mean, list};
use yaml_serde::{Mapping, Value};

use crate::args::Cli;

/// The processes that have settings.
const PROCESSES: [&str; 2] = ["coordinator", "worker"];
/// No file of settings is larger.
const LARGEST_FILE: u64 = 1 << 20;

/// The command line with what a process's file adds to it.
pub fn completed(words: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    if !words.iter().any(|word| PROCESSES.iter().any(|process| word == process)) {
        return Ok(words);
    }
    // What is wrong with the command line is said when it is read for good; it may be wrong only for want of the file.
    let Ok(matches) = Cli::command().ignore_errors(true).try_get_matches_from(&words) else { return Ok(words) };
    let Some((process, matches)) = matches.subcommand().filter(|(name, _)| PROCESSES.contains(name)) else {
        return Ok(words);
    };
    let Some(path) = matches.get_one::<PathBuf>("config") else { return Ok(words) };
    let root = Cli::command();
    let Some(command) = root.find_subcommand(process) else { return Ok(words) };
    let mut words = words;
    for (key, value) in read(path)? {
        let context = || format!("the settings in {}", path.display());
        let key = key.as_str().with_context(context)?.to_owned();
        let argument = argument(command, &key).with_context(context)?;
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text,
            Value::Bool(value) => value.to_string(),
            Value::Number(value) => value.to_string(),
            _ => Err(anyhow!("'{key}' takes one value\n  mend: docs/configuration.md shows it."))
                .with_context(context)?,
        };
        let source = matches.value_source(argument.get_id().as_str());
        if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            words.push(format!("--{key}={text}").into());
        }
    }
    Ok(words)
}

fn read(path: &Path) -> anyhow::Result<Mapping> {
    let unreadable = || format!("the settings can't be read from {}", path.display());
    if fs::metadata(path).with_context(unreadable)?.len() > LARGEST_FILE {
        return Err(anyhow!("it has more than {LARGEST_FILE} bytes")).with_context(unreadable);
    }
    let text = fs::read_to_string(path).with_context(unreadable)?;
    // Nothing but comments is a file as well.
    let read: Option<Mapping> = yaml_serde::from_str(&text)
        .map_err(|e| anyhow!("it is not YAML with one value per key: {e}\n  mend: docs/configuration.md shows it."))
        .with_context(unreadable)?;
    Ok(read.unwrap_or_default())
}

/// The argument of a key.
fn argument<'a>(command: &'a Command, key: &str) -> anyhow::Result<&'a Arg> {
    let known: Vec<&Arg> = settings(command).collect();
    let found = known.iter().find(|argument| argument.get_long() == Some(key));
    found.copied().with_context(|| {
        let names = || known.iter().filter_map(|argument| argument.get_long());
        format!("there is no key '{key}'\n  mend: {}The keys are: {}.", did_you_mean(key, names()), list(names()))
    })
}

/// The arguments that are settings: those that may also come from the environment.
fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| argument.get_env().is_some() && argument.get_long() != Some("config"))
}

/// The settings that a process runs with, and where each comes from.
pub fn effective(process: &str, matches: &ArgMatches) -> serde_json::Value {
    let root = Cli::command();
    let mut all = Map::new();
    for argument in root.find_subcommand(process).into_iter().flat_map(settings) {
        let id = argument.get_id().as_str();
        let Some(value) = matches.get_raw(id).and_then(|mut values| values.next()) else { continue };
        let from = match matches.value_source(id) {
            Some(ValueSource::EnvVariable) => "environment",
            Some(ValueSource::DefaultValue) => "default",
            _ => "given",
        };
        let key = argument.get_long().unwrap_or(id).to_owned();
        all.insert(key, json!({"value": value.to_string_lossy(), "from": from}));
    }
    serde_json::Value::Object(all)
}

/// All settings as Markdown, for `docs/configuration.md`.
pub fn documentation() -> String {
    let mut text = HEAD.to_owned();
    let root = Cli::command();
    for process in PROCESSES {
        let Some(command) = root.find_subcommand(process) else { continue };
        // Writing to a String does not fail.
        _ = write!(text, "\n## `tidemill {process}`\n\n| key | environment | default | |\n| --- | --- | --- | --- |\n");
        for argument in settings(command) {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let default: Vec<String> =
                argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
            let (key, variable) = (argument.get_long().unwrap_or_default(), argument.get_env().unwrap_or_default());
            let (variable, default) = (variable.to_string_lossy(), default.join(" "));
            _ = writeln!(text, "| `{key}` | `{variable}` | {default} | {help} |");
        }
    }
    text
}

const HEAD: &str = "\
# Configuration

Coordinator and workers each take a YAML file, one value per key: `tidemill coordinator --config FILE`, `tidemill worker
--config FILE` (or `TIDEMILL_COORDINATOR_CONFIG`, `TIDEMILL_WORKER_CONFIG`).

    storage: s3://bucket/tidemill
    listen: 10.0.0.1:6123
    tls-authority: /etc/tidemill/authority.pem
    tls-certificate: /etc/tidemill/cluster.pem
    tls-key: /etc/tidemill/cluster.key

Environment variables win over the file, the command line over both: each key is also a flag, `--storage`. An unknown key is
refused. No setting is a secret; secrets are in the files that settings name. What a coordinator runs with, and where each
setting came from, is shown at `GET /api/v1/configuration`.

(This page is made by `tidemill configuration`; a test compares.)
";
