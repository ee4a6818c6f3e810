//! `tidemill connectors`: what the connectors' own declarations say.

use std::fmt::Write as _;

use console::style;
use tidemill_connector_kit::{Connector, OptionSpec, Registry, suggest};
use tidemill_core::Error;

use super::registry;
use crate::args::ConnectorsArgs;
use crate::failure::Outcome;
use crate::report::{Align, table, wrap};
use crate::screen::print;
use tidemill_job::manifest;

/// Columns of text, so that it reads well in any terminal.
const WIDTH: usize = 100;

pub fn run(args: &ConnectorsArgs) -> Outcome {
    let registry = registry();
    if args.markdown {
        print(&format!("{}\n# Connectors\n\n{}", manifest::documentation(), registry.documentation()));
        return Ok(());
    }
    match &args.name {
        Some(name) => print(&one(&registry, name)?),
        None => print(&all(&registry)),
    }
    Ok(())
}

fn all(registry: &Registry) -> String {
    let row = |c: &dyn Connector| {
        vec![style(c.name()).bold().to_string(), sides(c).to_owned(), first_line(c.doc()).to_owned()]
    };
    let lines = table(&[Align::Left; 3], &registry.iter().map(row).collect::<Vec<_>>());
    format!("{}\n\nOptions of one: tidemill connectors NAME\n", lines.join("\n"))
}

fn one(registry: &Registry, name: &str) -> Result<String, Error> {
    let names = || registry.iter().map(|c| c.name());
    let Some(connector) = registry.iter().find(|c| c.name() == name) else {
        let mend = format!("{}There are: {}.", suggest::did_you_mean(name, names()), suggest::list(names()));
        return Err(Error::invalid(format!("there is no connector '{name}'")).mend(mend));
    };
    let mut text = format!("{}\n{}\n", style(connector.name()).bold(), wrap(connector.doc(), 2, WIDTH));
    let sides = [("sources", "NAME", connector.source_options()), ("sinks", "NAME", connector.sink_options())];
    for (section, name_of, specs) in sides {
        let Some(specs) = specs else { continue };
        let _ = writeln!(text, "\n[{section}.{name_of}]\nconnector = \"{}\"", connector.name());
        specs.iter().for_each(|spec| text.push_str(&option(spec)));
    }
    Ok(text)
}

fn option(spec: &OptionSpec) -> String {
    let expected = match spec.choices {
        [] => spec.expected.to_owned(),
        choices => choices.iter().map(|c| format!("\"{c}\"")).collect::<Vec<_>>().join(" or "),
    };
    let default = match (spec.required, spec.default) {
        (true, _) => ", required".to_owned(),
        (false, Some("")) | (false, None) => String::new(),
        (false, Some(default)) => format!(", if absent: {default}"),
    };
    let secret = if spec.secret { " Its value is never shown." } else { "" };
    let doc = wrap(&format!("{}{secret}", spec.doc), 21, WIDTH);
    format!("{:<20} {expected}{default}\n{doc}\n", style(spec.name).cyan())
}

fn sides(connector: &dyn Connector) -> &'static str {
    match (connector.source_options().is_some(), connector.sink_options().is_some()) {
        (true, true) => "source, sink",
        (true, false) => "source",
        _ => "sink",
    }
}

fn first_line(doc: &str) -> &str {
    doc.split_once(". ").map_or(doc, |(first, _)| first).trim_end_matches('.')
}
