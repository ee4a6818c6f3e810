//! `tidemill context`: names for clusters.

use anyhow::Context as _;
use tidemill_core::Error;

use super::build::say;
use super::cluster::{json_text, print_table};
use crate::args::{ContextAddArgs, ContextCommand};
use crate::contexts::{Context, Contexts};
use crate::failure::Outcome;
use crate::screen::print;

pub fn run(command: &ContextCommand) -> Outcome {
    let mut contexts = Contexts::read()?;
    match command {
        ContextCommand::List { json } => show(&contexts, *json)?,
        ContextCommand::Add(args) => {
            contexts.contexts.insert(args.name.clone(), context(args)?);
            // The first one is likely to be meant.
            contexts.current.get_or_insert_with(|| args.name.clone());
            contexts.write()?;
            say("added", &format!("{} for {}", args.name, args.cluster));
        }
        ContextCommand::Use { name } => {
            let cluster = contexts.get(name)?.cluster.clone();
            contexts.current = Some(name.clone());
            contexts.write()?;
            say("using", &format!("{name}, {cluster}"));
        }
        ContextCommand::Remove { name } => {
            contexts.get(name)?;
            contexts.contexts.remove(name);
            contexts.current.take_if(|current| current == name);
            contexts.write()?;
            say("removed", name);
        }
    }
    Ok(())
}

fn context(args: &ContextAddArgs) -> anyhow::Result<Context> {
    if !args.cluster.starts_with("http://") && !args.cluster.starts_with("https://") {
        return Err(Error::invalid(format!("'{}' is no URL of a cluster", args.cluster))
            .mend("Give it as https://HOST:PORT or http://HOST:PORT.")
            .into());
    }
    let absolute = |file: &Option<std::path::PathBuf>| file.as_ref().map(std::path::absolute).transpose();
    Ok(Context {
        cluster: args.cluster.clone(),
        token_file: absolute(&args.token_file).context("the token's file")?,
        authority: absolute(&args.authority).context("the authority's file")?,
    })
}

fn show(contexts: &Contexts, json: bool) -> anyhow::Result<()> {
    if json {
        print(&json_text(contexts)?);
        return Ok(());
    }
    let rows = contexts.contexts.iter().map(|(name, of)| {
        let mark = if contexts.current.as_ref() == Some(name) { "*" } else { "" };
        let file =
            |of: &Option<std::path::PathBuf>| of.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
        vec![mark.to_owned(), name.clone(), of.cluster.clone(), file(&of.token_file), file(&of.authority)]
    });
    print_table(&["", "context", "cluster", "token file", "authority"], rows, 5);
    Ok(())
}
