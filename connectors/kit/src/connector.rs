//! What a connector is to the host, and the registry in which a manifest's names are looked up.
//!
//! Life of a connector: registered once when the process starts; asked for a source or sink per binding of a job, with
//! options that were already checked against its declaration. It must not touch the outside world at registration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use tidemill_core::connector::{Committable, Sink, SinkCommitter, Source};
use tidemill_core::error::{Error, Result};

use crate::options::{self, OptionSpec, Options};
use crate::suggest;

/// A kind of outside system that can be read or written.
pub trait Connector: Send + Sync {
    /// Its name in manifests.
    fn name(&self) -> &'static str;

    /// One or two sentences for people.
    fn doc(&self) -> &'static str;

    /// The options of its sources; `None`: it can't be read.
    fn source_options(&self) -> Option<Vec<OptionSpec>> {
        None
    }

    /// The options of its sinks; `None`: it can't be written.
    fn sink_options(&self) -> Option<Vec<OptionSpec>> {
        None
    }

    /// A source, called only where there are `source_options`. Wrong options and schemas are refused here, before the
    /// job runs. May look at the outside world briefly (does the folder exist), may block for it.
    fn source(&self, setup: Setup) -> Result<Arc<dyn Source>> {
        Err(Error::internal(format!("{}: connector '{}' makes no sources", setup.options.owner(), self.name())))
    }

    /// A sink; as `source`.
    fn sink(&self, setup: Setup) -> Result<Arc<dyn Sink>> {
        Err(Error::internal(format!("{}: connector '{}' makes no sinks", setup.options.owner(), self.name())))
    }
}

/// What a manifest says about one source or sink of a job.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// Its name in the job, for messages.
    pub name: &'a str,
    /// The columns as the job declares them, before pruning.
    pub schema: &'a SchemaRef,
    /// Its options, without the key that names the connector.
    pub options: &'a toml::Table,
    /// What relative paths are relative to: the folder of the manifest.
    pub base: &'a Path,
}

/// A binding whose options were checked: what a connector is given.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The columns as the job declares them. Readers may be asked for fewer.
    pub schema: SchemaRef,
    /// The options.
    pub options: Options,
    /// What relative paths are relative to.
    pub base: PathBuf,
}

/// The connectors of a process, by name.
#[derive(Default)]
pub struct Registry {
    connectors: BTreeMap<&'static str, Box<dyn Connector>>,
}

impl Registry {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a connector; one of the same name is replaced.
    pub fn register(&mut self, connector: impl Connector + 'static) {
        self.connectors.insert(connector.name(), Box::new(connector));
    }

    /// The source that a manifest binds.
    pub fn source(&self, connector: &str, binding: Binding<'_>) -> Result<Arc<dyn Source>> {
        let (found, setup) = self.set_up(Side::Source, connector, binding)?;
        found.source(setup)
    }

    /// The sink that a manifest binds.
    pub fn sink(&self, connector: &str, binding: Binding<'_>) -> Result<Arc<dyn Sink>> {
        let (found, setup) = self.set_up(Side::Sink, connector, binding)?;
        found.sink(setup)
    }

    /// All connectors, by name.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Connector> {
        self.connectors.values().map(|c| c.as_ref())
    }

    /// All connectors with their options, as Markdown.
    pub fn documentation(&self) -> String {
        let mut text = String::new();
        for connector in self.iter() {
            text.push_str(&format!("## {}\n\n{}\n", connector.name(), connector.doc()));
            for side in [Side::Source, Side::Sink] {
                if let Some(specs) = side.options(connector) {
                    text.push_str(&format!("\nAs a {}:\n\n{}", side.name(), options::documentation(&specs)));
                }
            }
            text.push('\n');
        }
        text
    }

    fn set_up(&self, side: Side, name: &str, binding: Binding<'_>) -> Result<(&dyn Connector, Setup)> {
        let owner = format!("{} '{}' (connector '{name}')", side.name(), binding.name);
        let able = || self.iter().filter(|c| side.options(*c).is_some()).map(|c| c.name());
        let list = || format!("connectors for a {}: {}", side.name(), suggest::list(able()));
        let Some(connector) = self.connectors.get(name) else {
            return Err(Error::invalid(format!("{} '{}': there is no connector '{name}'", side.name(), binding.name))
                .mend(format!("{}{}", suggest::did_you_mean(name, able()), list())));
        };
        let Some(specs) = side.options(connector.as_ref()) else {
            return Err(Error::invalid(format!("{owner}: it can't be used as a {}", side.name())).mend(list()));
        };
        let options = Options::parse(owner, &specs, binding.options)?;
        let setup = Setup { schema: binding.schema.clone(), options, base: binding.base.to_owned() };
        Ok((connector.as_ref(), setup))
    }
}

/// The committer of a sink whose rows are visible as soon as they are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct NothingToCommit;

impl SinkCommitter for NothingToCommit {
    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        match committables {
            [] => Ok(()),
            _ => Err(Error::internal("a sink without committables was given some")),
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Sink,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Sink => "sink",
        }
    }

    fn options(self, connector: &dyn Connector) -> Option<Vec<OptionSpec>> {
        match self {
            Self::Source => connector.source_options(),
            Self::Sink => connector.sink_options(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Key;
    use arrow::datatypes::Schema;

    struct Nothing;

    const SIZE: Key<u64> = Key::new("size", "How much.").or("3");

    impl Connector for Nothing {
        fn name(&self) -> &'static str {
            "nothing"
        }
        fn doc(&self) -> &'static str {
            "Nothing at all."
        }
        fn source_options(&self) -> Option<Vec<OptionSpec>> {
            Some(vec![SIZE.spec()])
        }
    }

    fn message(side: Side, connector: &str, table: &str) -> String {
        let mut registry = Registry::new();
        registry.register(Nothing);
        let schema = Arc::new(Schema::empty());
        let options = table.parse().unwrap();
        let binding = Binding { name: "in", schema: &schema, options: &options, base: Path::new(".") };
        match side {
            Side::Source => registry.source(connector, binding).map(|_| ()).unwrap_err().to_string(),
            Side::Sink => registry.sink(connector, binding).map(|_| ()).unwrap_err().to_string(),
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_there_is() {
        let text = message(Side::Source, "nothin", "");
        assert!(text.contains("source 'in': there is no connector 'nothin'"), "{text}");
        assert!(text.contains("did you mean 'nothing'? connectors for a source: nothing"), "{text}");
        assert!(message(Side::Sink, "nothing", "").contains("can't be used as a sink"));
        assert!(message(Side::Source, "nothing", "sise = 3").contains("did you mean 'size'?"));
    }

    #[test]
    fn documentation_names_connectors_and_options() {
        let mut registry = Registry::new();
        registry.register(Nothing);
        let text = registry.documentation();
        assert!(text.contains("## nothing") && text.contains("As a source:") && text.contains("| `size` |"), "{text}");
    }
}
