//! What the manifest means.
//!
//! Invariant: in a [`Manifest`] every key is a known one and every value has its type. Options of connectors are checked
//! by the connectors' own declarations, when the job's schemas are known ([`Manifest::check_options`] needs none).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidemill_checkpoint::restart::Strategy;
use tidemill_connector_kit::suggest;
use tidemill_connector_kit::{ByteSize, Key, OptionSpec, OptionValue, Options, Registry};
use tidemill_core::Error;
use tidemill_core::ids::MaxParallelism;
use toml::Value;

use super::keys;
use super::tree::{self, Entry, Node, Place, Source, Table};
use super::variables::substitute;

/// The manifest's file name.
pub const FILE_NAME: &str = "tidemill.toml";
/// More slots than this in one process are a mistake: each is a thread.
const MAX_SLOTS: u64 = 1_024;
/// A batch of more rows leaves every cache; the row indices of the contract are 32 bits.
const MAX_BATCH_ROWS: u64 = 1 << 20;
const SECTIONS: [&str; 9] =
    ["job", "params", "sources", "sinks", "dead-letter", "checkpoints", "restart", "state", "limits"];

/// A manifest.
#[derive(Debug)]
pub struct Manifest {
    /// Where it is.
    pub path: PathBuf,
    /// Its folder, to which its paths are relative.
    pub folder: PathBuf,
    /// `[job]`.
    pub job: Job,
    /// What the job's code is given.
    pub params: Vec<(String, String)>,
    /// `[sources.NAME]`.
    pub sources: BTreeMap<String, Binding>,
    /// `[sinks.NAME]`.
    pub sinks: BTreeMap<String, Binding>,
    /// `[dead-letter]`.
    pub dead_letter: Option<Binding>,
    /// None: no checkpoints are taken.
    pub checkpoints: Option<Checkpoints>,
    /// `[restart]`.
    pub restart: Strategy,
    /// `[state]`.
    pub state: State,
    /// `[limits]`.
    pub limits: Limits,
    source: Source,
}

/// `[job]`.
#[derive(Debug)]
pub struct Job {
    /// The job's name, if it is not to be the plan's.
    pub name: Option<String>,
    /// Relative to nothing: resolved.
    pub component: PathBuf,
    /// Slots.
    pub parallelism: u32,
    /// Rows per batch to aim at.
    pub batch_rows: usize,
    /// Key groups.
    pub max_parallelism: MaxParallelism,
    /// Bound of each queue between two slots.
    pub exchange_bytes: usize,
}

/// `[checkpoints]`.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    /// A folder (resolved), or the URL of a bucket.
    pub location: String,
    /// From the start of one to the start of the next.
    pub interval: Duration,
    /// At least, from the end of one to the start of the next.
    pub min_pause: Duration,
    /// After this long, one is given up.
    pub timeout: Duration,
    /// None: checkpoints are always aligned.
    pub aligned_timeout: Option<Duration>,
    /// How many in a row may fail before the job does.
    pub tolerable_failures: u32,
    /// How many are kept.
    pub retained: usize,
}

/// `[state]`.
#[derive(Debug)]
pub struct State {
    /// How much memory it may take; none: any.
    pub memory_bytes: Option<usize>,
    /// The folder of state on disk; none: state is in memory.
    pub disk: Option<PathBuf>,
}

/// `[limits]`.
#[derive(Debug)]
pub struct Limits {
    /// Of an instance.
    pub memory_bytes: usize,
    /// Of a call.
    pub call_time: Duration,
    /// That cross the boundary in a call.
    pub transfer_bytes: u64,
    /// Of a call.
    pub emitted_rows: u64,
    /// Of a component.
    pub component_bytes: usize,
    /// Of a component.
    pub compile_time: Duration,
}

/// A connector with its options.
#[derive(Debug)]
pub struct Binding {
    /// The connector's name.
    pub connector: String,
    /// Variables replaced; without the key `connector`.
    pub options: toml::Table,
    /// The section's header.
    place: Place,
    connector_place: Place,
    entries: Vec<(String, Place)>,
}

/// Which way a binding goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Into the job.
    Source,
    /// Out of it.
    Sink,
}

impl Manifest {
    /// Reads a manifest and applies the `--set` options.
    pub fn read(path: &Path, set: &[String], lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            let message = match e.kind() {
                std::io::ErrorKind::NotFound => format!("there is no {}", path.display()),
                _ => format!("{} can't be read: {e}", path.display()),
            };
            Error::invalid(message)
                .mend("Go to the folder of a project, or name one. `tidemill new my-job` makes a new one.")
        })?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self::parse(path, text, folder, set, lookup)
    }

    /// The same of a text. `path` is for messages; paths in the manifest are relative to `folder`.
    pub fn parse(
        path: &Path,
        text: String,
        folder: &Path,
        set: &[String],
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        let source = Source::new(path, text);
        let mut table = source.parse()?;
        set.iter().try_for_each(|typed| tree::set(&mut table, typed))?;
        Reader { source: &source, folder, lookup }.manifest(path, table)
    }

    /// Checks the connectors and the names and types of their options, without asking the connectors for anything.
    pub fn check_options(&self, registry: &Registry) -> Result<(), Error> {
        for (name, binding) in &self.sources {
            self.check_binding(registry, Side::Source, name, binding)?;
        }
        for (name, binding) in &self.sinks {
            self.check_binding(registry, Side::Sink, name, binding)?;
        }
        match &self.dead_letter {
            Some(binding) => self.check_binding(registry, Side::Sink, "dead-letter", binding),
            None => Ok(()),
        }
    }

    /// The same error with the place of a binding, quoting its section.
    pub fn wrap(&self, binding: &Binding, error: &Error) -> Error {
        self.source.wrap(&binding.place, error)
    }

    /// An error about a binding, quoting its section.
    pub fn error_at(&self, binding: &Binding, message: &str) -> Error {
        self.source.error(&binding.place, message)
    }

    fn check_binding(&self, registry: &Registry, side: Side, name: &str, binding: &Binding) -> Result<(), Error> {
        let what = side.name();
        let specs_of = |c: &dyn tidemill_connector_kit::Connector| match side {
            Side::Source => c.source_options(),
            Side::Sink => c.sink_options(),
        };
        let able = || registry.iter().filter(|c| specs_of(*c).is_some()).map(|c| c.name());
        let Some(connector) = registry.iter().find(|c| c.name() == binding.connector) else {
            let message = format!("{what} '{name}': there is no connector '{}'", binding.connector);
            let hint = suggest::did_you_mean(&binding.connector, able());
            let mend = format!("{hint}Connectors for a {what}: {}. See `tidemill connectors`.", suggest::list(able()));
            return Err(self.source.error(&binding.connector_place, message).mend(mend));
        };
        let Some(specs) = specs_of(connector) else {
            let message = format!("{what} '{name}': the connector '{}' can't be a {what}", binding.connector);
            let mend = format!("Connectors for a {what}: {}. See `tidemill connectors`.", suggest::list(able()));
            return Err(self.source.error(&binding.connector_place, message).mend(mend));
        };
        let owner = format!("{what} '{name}' (connector '{}')", binding.connector);
        for (key, place) in &binding.entries {
            let value = binding.options.get(key).cloned().unwrap_or(Value::Boolean(false));
            check_one(&owner, &specs, key, value).map_err(|e| self.source.wrap(place, &e))?;
        }
        Options::parse(owner, &specs, &binding.options).map_err(|e| self.source.wrap(&binding.place, &e))?;
        Ok(())
    }
}

impl Side {
    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Sink => "sink",
        }
    }
}

/// Checks one option by itself, so that an error can be put to its place.
fn check_one(owner: &str, specs: &[OptionSpec], key: &str, value: Value) -> Result<(), Error> {
    let table = toml::Table::from_iter([(key.to_owned(), value)]);
    let own: Vec<OptionSpec> = specs.iter().filter(|s| s.name == key).copied().collect();
    Options::parse(owner, if own.is_empty() { specs } else { &own }, &table).map(|_| ())
}

struct Reader<'a> {
    source: &'a Source,
    folder: &'a Path,
    lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl Reader<'_> {
    fn manifest(&self, path: &Path, table: Table) -> Result<Manifest, Error> {
        let mut sections = BTreeMap::new();
        for (name, entry) in table {
            let known = SECTIONS.into_iter().find(|s| same(s, &name));
            let Some(known) = known else {
                let mend = format!(
                    "{}A manifest has the sections {}.",
                    suggest::did_you_mean(&name, SECTIONS),
                    SECTIONS.map(|s| format!("[{s}]")).join(", ")
                );
                return Err(self.source.error(&entry.key, format!("unknown section '{name}'")).mend(mend));
            };
            sections.insert(known, self.section(known, entry)?);
        }
        let mut take = |name| sections.remove(name).unwrap_or_default();
        let (params, limits) = (self.params(take("params"))?, self.limits(take("limits"))?);
        let (sources, sinks) = (self.bindings("sources", take("sources"))?, self.bindings("sinks", take("sinks"))?);
        let job = self.job(take("job"))?;
        let (restart, state) = (take("restart"), self.state(take("state"))?);
        let checkpoints = sections.remove("checkpoints").map(|section| self.checkpoints(section)).transpose()?;
        let restart = self.restart(restart, checkpoints.is_some())?;
        let dead_letter = sections.remove("dead-letter");
        let dead_letter = dead_letter.map(|section| self.binding("dead-letter", section)).transpose()?;
        let (path, folder) = (path.to_owned(), self.folder.to_owned());
        Ok(Manifest {
            path,
            folder,
            job,
            params,
            sources,
            sinks,
            dead_letter,
            checkpoints,
            restart,
            state,
            limits,
            source: self.source.clone(),
        })
    }

    fn section(&self, name: &str, entry: Entry) -> Result<Section, Error> {
        match entry.node {
            Node::Table(table) => Ok(Section { place: Some(entry.key), table }),
            Node::Value(value) => Err(self
                .source
                .error(&entry.place, format!("'{name}' is a {} where a section is expected", value.type_str()))
                .mend(format!("Write it as [{name}] with its keys below."))),
        }
    }

    /// The values of a section whose keys are declared.
    fn options(&self, name: &str, specs: &[OptionSpec], section: Section) -> Result<(Options, Places), Error> {
        let mut table = toml::Table::new();
        let mut places = Places::new();
        for (key, entry) in section.table {
            let key = specs.iter().find(|s| same(s.name, &key)).map_or(key, |s| s.name.to_owned());
            let value = entry.node.to_value();
            let unknown = !specs.iter().any(|s| s.name == key);
            let place = if unknown { &entry.key } else { &entry.place };
            check_one(name, specs, &key, value.clone()).map_err(|e| self.source.wrap(place, &e))?;
            places.insert(key.clone(), entry.place);
            table.insert(key, value);
        }
        Ok((Options::parse(name, specs, &table)?, places))
    }

    fn job(&self, section: Section) -> Result<Job, Error> {
        let (options, places) = self.options("[job]", &keys::job(), section)?;
        let bounded = |key: &Key<u64>, max: u64| {
            let value = options.need(key)?;
            if (1..=max).contains(&value) {
                return Ok(value);
            }
            let name = key.spec().name;
            let message = format!("[job]: '{name}' is {value}; 1 to {max} are possible");
            let error =
                places.get(name).map_or_else(|| Error::invalid(&message), |place| self.source.error(place, &message));
            let more =
                if name == "parallelism" && value > max { " More slots need a larger max-parallelism." } else { "" };
            Err(error.mend(format!("Choose one of these, or leave it out for the default.{more}")))
        };
        let name = options.get(&keys::NAME)?;
        let max_parallelism = bounded(&keys::MAX_PARALLELISM, 32_768)?;
        let groups = u16::try_from(max_parallelism).ok().and_then(MaxParallelism::new);
        Ok(Job {
            component: self.component(options.get(&keys::COMPONENT)?, name.as_deref()),
            parallelism: bounded(&keys::PARALLELISM, MAX_SLOTS.min(max_parallelism))? as u32,
            batch_rows: bounded(&keys::BATCH_ROWS, MAX_BATCH_ROWS)? as usize,
            max_parallelism: groups.unwrap_or(MaxParallelism::DEFAULT),
            exchange_bytes: options.need(&keys::EXCHANGE)?.as_usize(),
            name,
        })
    }

    fn component(&self, typed: Option<PathBuf>, job: Option<&str>) -> PathBuf {
        if let Some(path) = typed {
            return self.folder.join(path);
        }
        let folder_name = || {
            let full = std::path::absolute(self.folder).ok()?;
            Some(full.file_name()?.to_string_lossy().into_owned())
        };
        let name = job.map(str::to_owned).or_else(folder_name).unwrap_or_else(|| "job".to_owned());
        self.folder.join("target/tidemill").join(format!("{}.wasm", name.replace(['/', '\\'], "-")))
    }

    fn checkpoints(&self, section: Section) -> Result<Checkpoints, Error> {
        let place = section.place.clone();
        let at = |error: Error| place.as_ref().map_or(error.clone(), |place| self.source.wrap(place, &error));
        let (options, places) = self.options("[checkpoints]", &keys::checkpoints(), section).map_err(at)?;
        let wrong = |name: &str, message: &str| {
            let error = format!("[checkpoints]: '{name}' {message}");
            places.get(name).map_or_else(|| Error::invalid(&error), |place| self.source.error(place, &error))
        };
        let interval = options.need(&keys::INTERVAL)?;
        if interval.as_millis() == 0 {
            return Err(wrong("interval", "is below a millisecond").mend("Leave it out for the default."));
        }
        let retained = options.need(&keys::RETAINED)?;
        if retained == 0 {
            return Err(wrong("retained", "is 0, but the newest checkpoint is always kept").mend("Choose 1 or more."));
        }
        let location = options.need(&keys::LOCATION)?;
        let aligned_timeout = aligned_timeout(options.get(&keys::UNALIGNED)?, options.get(&keys::ALIGNED_TIMEOUT)?);
        Ok(Checkpoints {
            location: if location.contains("://") {
                location
            } else {
                self.folder.join(location).display().to_string()
            },
            interval,
            min_pause: options.need(&keys::MIN_PAUSE)?,
            timeout: options.need(&keys::TIMEOUT)?,
            aligned_timeout,
            tolerable_failures: u32::try_from(options.need(&keys::TOLERABLE_FAILURES)?).unwrap_or(u32::MAX),
            retained: usize::try_from(retained).unwrap_or(usize::MAX),
        })
    }

    fn restart(&self, section: Section, with_checkpoints: bool) -> Result<Strategy, Error> {
        let (options, _) = self.options("[restart]", &keys::restart(), section)?;
        let ms = |key: &Key<Duration>| -> Result<u64, Error> {
            Ok(u64::try_from(options.need(key)?.as_millis()).unwrap_or(u64::MAX))
        };
        let count = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let default = if with_checkpoints { "exponential-delay" } else { "none" };
        Ok(match options.get(&keys::STRATEGY)?.as_deref().unwrap_or(default) {
            "fixed-delay" => Strategy::FixedDelay {
                attempts: count(options.get(&keys::ATTEMPTS)?.unwrap_or(1)),
                delay_ms: ms(&keys::DELAY)?,
            },
            "exponential-delay" => Strategy::ExponentialDelay {
                initial_backoff_ms: ms(&keys::INITIAL_BACKOFF)?,
                max_backoff_ms: ms(&keys::MAX_BACKOFF)?,
                multiplier: options.need(&keys::BACKOFF_MULTIPLIER)?,
                reset_after_ms: ms(&keys::RESET_AFTER)?,
                jitter: options.need(&keys::JITTER)?,
                attempts: options.get(&keys::ATTEMPTS)?.map(count),
            },
            "failure-rate" => Strategy::FailureRate {
                max_failures: count(options.need(&keys::MAX_FAILURES)?),
                interval_ms: ms(&keys::FAILURE_INTERVAL)?,
                delay_ms: ms(&keys::DELAY)?,
            },
            _ => Strategy::None,
        })
    }

    fn state(&self, section: Section) -> Result<State, Error> {
        let (options, _) = self.options("[state]", &keys::state(), section)?;
        let memory_bytes = options.get(&keys::STATE_MEMORY)?.map(|bytes| bytes.as_usize());
        let folder = match options.get(&keys::STATE_PATH)? {
            Some(path) => self.folder.join(path),
            None => std::env::temp_dir().join("tidemill-state"),
        };
        let disk = (options.need(&keys::STATE_BACKEND)? == "rocksdb").then_some(folder);
        Ok(State { memory_bytes, disk })
    }

    fn limits(&self, section: Section) -> Result<Limits, Error> {
        let (options, places) = self.options("[limits]", &keys::limits(), section)?;
        for (name, place) in &places {
            let zero = |n: u64| n == 0;
            let none = match name.as_str() {
                "memory" => zero(options.need::<ByteSize>(&keys::MEMORY)?.0),
                "transfer" => zero(options.need::<ByteSize>(&keys::TRANSFER)?.0),
                "component" => zero(options.need::<ByteSize>(&keys::COMPONENT_BYTES)?.0),
                "call-time" => options.need::<Duration>(&keys::CALL_TIME)?.as_millis() == 0,
                "compile-time" => options.need::<Duration>(&keys::COMPILE_TIME)?.as_millis() == 0,
                _ => zero(options.need::<u64>(&keys::EMITTED_ROWS)?),
            };
            if none {
                let message = format!("[limits]: '{name}' is nothing at all, which no job can do with");
                return Err(self.source.error(place, message).mend("Leave it out for the default."));
            }
        }
        Ok(Limits {
            memory_bytes: options.need(&keys::MEMORY)?.as_usize(),
            call_time: options.need(&keys::CALL_TIME)?,
            transfer_bytes: options.need(&keys::TRANSFER)?.0,
            emitted_rows: options.need(&keys::EMITTED_ROWS)?,
            component_bytes: options.need(&keys::COMPONENT_BYTES)?.as_usize(),
            compile_time: options.need(&keys::COMPILE_TIME)?,
        })
    }

    fn params(&self, section: Section) -> Result<Vec<(String, String)>, Error> {
        let text = |(name, entry): (String, Entry)| match &entry.node {
            Node::Value(Value::String(text)) => Ok((name, text.clone())),
            Node::Value(value @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_))) => {
                Ok((name, value.to_string()))
            }
            other => {
                let kind = other.to_value().type_str();
                let message = format!("[params]: '{name}' is a {kind}; a parameter is a text, a number or a boolean");
                Err(self.source.error(&entry.place, message).mend("The job's code gets parameters as texts."))
            }
        };
        section.table.into_iter().map(text).collect()
    }

    fn bindings(&self, sections: &str, section: Section) -> Result<BTreeMap<String, Binding>, Error> {
        let one = |(name, entry): (String, Entry)| {
            let title = format!("{sections}.{name}");
            let section = self.section(&title, entry)?;
            Ok((name, self.binding(&title, section)?))
        };
        section.table.into_iter().map(one).collect()
    }

    fn binding(&self, title: &str, section: Section) -> Result<Binding, Error> {
        let place = section.place.unwrap_or(Place::File(0..0));
        let mut binding = Binding {
            connector: String::new(),
            options: toml::Table::new(),
            connector_place: place.clone(),
            place,
            entries: Vec::new(),
        };
        for (key, entry) in section.table {
            let value = substitute(entry.node.to_value(), self.lookup).map_err(|why| {
                let mend = "Set it, or write $${ for a ${ that is meant as it stands.";
                self.source.error(&entry.place, format!("[{title}]: '{key}': {why}")).mend(mend)
            })?;
            if key == "connector" {
                binding.connector = String::from_toml(&value).map_err(|_| {
                    self.source.error(&entry.place, format!("[{title}]: 'connector' is the name of one, a text"))
                })?;
                binding.connector_place = entry.place;
            } else {
                // An unknown option is found by its key, a wrong value by its place; on one line they show alike.
                binding.entries.push((key.clone(), entry.key));
                binding.options.insert(key, value);
            }
        }
        if binding.connector.is_empty() {
            let mend = "Add connector = \"files\", or another one: `tidemill connectors` shows them.";
            return Err(self.source.error(&binding.place, format!("[{title}] names no connector")).mend(mend));
        }
        Ok(binding)
    }
}

#[derive(Default)]
struct Section {
    place: Option<Place>,
    table: Table,
}

type Places = BTreeMap<String, Place>;

/// Keys are written with `-`; `_` is taken for it.
fn same(known: &str, typed: &str) -> bool {
    known == typed || known == typed.replace('_', "-")
}

/// After how long a checkpoint turns unaligned, by `unaligned` and `aligned-timeout`; none: never.
fn aligned_timeout(unaligned: Option<bool>, after: Option<Duration>) -> Option<Duration> {
    match unaligned {
        Some(false) => None,
        Some(true) => Some(after.unwrap_or_default()),
        None => after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_alone_is_enough_and_can_be_switched_off() {
        let after = Some(Duration::from_secs(30));
        assert_eq!(aligned_timeout(None, None), None);
        assert_eq!(aligned_timeout(None, after), after);
        assert_eq!(aligned_timeout(Some(true), None), Some(Duration::ZERO));
        assert_eq!(aligned_timeout(Some(true), after), after);
        assert_eq!(aligned_timeout(Some(false), after), None);
    }
}
