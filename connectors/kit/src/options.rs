//! Options: each is declared once, as a constant, and from the declaration come parsing, documentation and defaults.
//!
//! Invariant: [`Options`] holds only declared options, each of its declared type; required ones are there. A connector
//! that reads one which it did not declare has a defect and is told so.

mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use tidemill_core::error::{Error, Result};
use toml::Value;

pub use value::{ByteSize, OptionValue};

use crate::suggest;

/// What is known of an option, whatever its type.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// As it is written in the manifest; lower case, words joined by `-`.
    pub name: &'static str,
    /// What a value looks like, for people: `whole number`, `duration such as "10 s"`.
    pub expected: &'static str,
    /// The value if it is absent, as it would be typed.
    pub default: Option<&'static str>,
    /// Whether it must be there.
    pub required: bool,
    /// Whether its value may not be shown.
    pub secret: bool,
    /// The only values that are allowed, if there are only some.
    pub choices: &'static [&'static str],
    /// One or two sentences for people.
    pub doc: &'static str,
    check: fn(&Value) -> Result<(), String>,
}

/// An option and the type of its value. Declare it as a constant.
#[derive(Clone, Copy, Debug)]
pub struct Key<T> {
    spec: OptionSpec,
    value: PhantomData<fn() -> T>,
}

impl<T: OptionValue> Key<T> {
    /// An option that may be absent.
    pub const fn new(name: &'static str, doc: &'static str) -> Self {
        let spec = OptionSpec {
            name,
            expected: T::EXPECTED,
            default: None,
            required: false,
            secret: false,
            choices: &[],
            doc,
            check: check::<T>,
        };
        Self { spec, value: PhantomData }
    }

    /// It must be there.
    pub const fn required(mut self) -> Self {
        self.spec.required = true;
        self
    }

    /// Its value if it is absent, as it would be typed (texts without quotes, lists as TOML).
    pub const fn or(mut self, default: &'static str) -> Self {
        self.spec.default = Some(default);
        self
    }

    /// Its value may not be shown.
    pub const fn secret(mut self) -> Self {
        self.spec.secret = true;
        self
    }

    /// Only these values are allowed (texts).
    pub const fn one_of(mut self, choices: &'static [&'static str]) -> Self {
        self.spec.choices = choices;
        self
    }

    /// The declaration, for [`Options::parse`] and for documentation.
    pub const fn spec(&self) -> OptionSpec {
        self.spec
    }
}

/// The options of one source or sink, checked.
#[derive(Clone)]
pub struct Options {
    /// Whose they are, for messages: `source 'bids' (connector 'files')`.
    owner: String,
    specs: Vec<OptionSpec>,
    values: BTreeMap<String, Value>,
}

impl Options {
    /// Checks a table against the declarations. Errors name the owner, the option, what was found and what is expected.
    pub fn parse(owner: impl Into<String>, specs: &[OptionSpec], table: &toml::Table) -> Result<Self> {
        let owner = owner.into();
        for (name, value) in table {
            let Some(spec) = specs.iter().find(|s| s.name == name) else {
                return Err(unknown_option(&owner, name, specs));
            };
            check_value(&owner, spec, value)?;
        }
        if let Some(missing) = specs.iter().find(|s| s.required && !table.contains_key(s.name)) {
            return Err(Error::invalid(format!("{owner}: option '{}' is missing", missing.name))
                .mend(format!("add {} = <{}>: {}", missing.name, missing.expected, missing.doc)));
        }
        let values = table.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Ok(Self { owner, specs: specs.to_vec(), values })
    }

    /// Whose options they are, for messages.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Whether the option was typed.
    pub fn is_given<T: OptionValue>(&self, key: &Key<T>) -> bool {
        self.values.contains_key(key.spec.name)
    }

    /// The value of an option without default: absent or what was typed.
    pub fn get<T: OptionValue>(&self, key: &Key<T>) -> Result<Option<T>> {
        let spec = &key.spec;
        if !self.specs.iter().any(|s| s.name == spec.name) {
            return Err(Error::internal(format!("{} reads the undeclared option '{}'", self.owner, spec.name)));
        }
        let parsed = match (self.values.get(spec.name), spec.default) {
            (Some(value), _) => T::from_toml(value),
            (None, Some(default)) => T::from_default(default),
            (None, None) => return Ok(None),
        };
        parsed.map(Some).map_err(|reason| Error::internal(format!("{}: option '{}': {reason}", self.owner, spec.name)))
    }

    /// The value of an option that is required or has a default.
    pub fn need<T: OptionValue>(&self, key: &Key<T>) -> Result<T> {
        self.get(key)?.ok_or_else(|| {
            Error::internal(format!("{}: option '{}' has neither value nor default", self.owner, key.spec.name))
        })
    }

    /// An error about the value of an option.
    pub fn error<T>(&self, key: &Key<T>, reason: impl fmt::Display) -> Error {
        Error::invalid(format!("{}: option '{}': {reason}", self.owner, key.spec.name))
    }

    /// An error of something that does not know whose options it was made from: the owner is put before its message.
    pub fn place(&self, error: Error) -> Error {
        error.prefixed(&self.owner)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = |name: &str| self.specs.iter().any(|s| s.name == name && s.secret);
        let mut map = f.debug_map();
        for (name, value) in &self.values {
            if secret(name) {
                map.entry(name, &"<secret>");
            } else {
                map.entry(name, value);
            }
        }
        map.finish()
    }
}

/// The declarations as a Markdown table.
pub fn documentation(specs: &[OptionSpec]) -> String {
    let mut text = String::from("| option | value | default | meaning |\n| --- | --- | --- | --- |\n");
    for spec in specs {
        let default = match (spec.required, spec.default) {
            (true, _) => "required".to_owned(),
            (_, Some(default)) => format!("`{}`", default.replace('|', "\\|")),
            (_, None) => String::new(),
        };
        let value = if spec.choices.is_empty() {
            spec.expected.to_owned()
        } else {
            spec.choices.iter().map(|c| format!("`\"{c}\"`")).collect::<Vec<_>>().join(" or ")
        };
        let secret = if spec.secret { " Its value is never shown." } else { "" };
        let doc = spec.doc.replace('|', "\\|");
        text.push_str(&format!("| `{}` | {value} | {default} | {doc}{secret} |\n", spec.name));
    }
    text
}

fn check<T: OptionValue>(value: &Value) -> Result<(), String> {
    T::from_toml(value).map(|_| ())
}

fn check_value(owner: &str, spec: &OptionSpec, value: &Value) -> Result<()> {
    let found = if spec.secret { format!("a {}", value.type_str()) } else { value::describe(value) };
    if let Err(reason) = (spec.check)(value) {
        let reason = if spec.secret || reason.is_empty() { String::new() } else { format!(" ({reason})") };
        return Err(Error::invalid(format!(
            "{owner}: option '{}' is {found} where a {} is expected{reason}",
            spec.name, spec.expected
        ))
        .mend(spec.doc));
    }
    match value.as_str() {
        Some(text) if !spec.choices.is_empty() && !spec.choices.contains(&text) => {
            Err(Error::invalid(format!("{owner}: option '{}' is {found}", spec.name)).mend(format!(
                "{}it is one of: {}",
                suggest::did_you_mean(text, spec.choices.iter().copied()),
                suggest::list(spec.choices.iter().copied())
            )))
        }
        _ => Ok(()),
    }
}

fn unknown_option(owner: &str, name: &str, specs: &[OptionSpec]) -> Error {
    let names = || specs.iter().map(|s| s.name);
    let hint = suggest::did_you_mean(name, names());
    let list = if specs.is_empty() {
        "it has no options".to_owned()
    } else {
        format!("its options are: {}", suggest::list(names()))
    };
    Error::invalid(format!("{owner}: unknown option '{name}'")).mend(format!("{hint}{list}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PATH: Key<String> = Key::new("path", "Where the file is.").required();
    const EVERY: Key<Duration> = Key::new("every", "How often.").or("10 s");
    const SIZE: Key<ByteSize> = Key::new("size", "How much.").or("64 MiB");
    const COUNT: Key<u64> = Key::new("count", "How many.");
    const MODE: Key<String> = Key::new("mode", "How.").or("fail").one_of(&["fail", "skip"]);
    const PASSWORD: Key<String> = Key::new("password", "The password.").secret();
    const NULLS: Key<Vec<String>> = Key::new("null", "What means null.").or("['']");

    fn specs() -> Vec<OptionSpec> {
        vec![PATH.spec(), EVERY.spec(), SIZE.spec(), COUNT.spec(), MODE.spec(), PASSWORD.spec(), NULLS.spec()]
    }

    fn parse(text: &str) -> Result<Options> {
        Options::parse("source 'in' (connector 'x')", &specs(), &text.parse().unwrap())
    }

    fn message(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn values_and_defaults_have_their_types() {
        let options = parse("path = 'a'\nevery = '1 m 30 s'\ncount = 7").unwrap();
        assert_eq!(options.need(&PATH).unwrap(), "a");
        assert_eq!(options.need(&EVERY).unwrap(), Duration::from_secs(90));
        assert_eq!(options.need(&SIZE).unwrap(), ByteSize(64 << 20));
        assert_eq!(options.get(&COUNT).unwrap(), Some(7));
        assert_eq!(options.need(&MODE).unwrap(), "fail");
        assert_eq!(options.get(&PASSWORD).unwrap(), None);
        assert_eq!(options.need(&NULLS).unwrap(), [""]);
        assert_eq!(
            parse("path = 'a'\nnull = 'NA'").unwrap().need(&NULLS).unwrap(),
            ["NA"],
            "one text is a list of one"
        );
    }

    #[test]
    fn wrong_options_are_named_with_the_mend() {
        let text = message("path = 'a'\ncuont = 3");
        assert!(text.contains("source 'in' (connector 'x'): unknown option 'cuont'"), "{text}");
        assert!(text.contains("did you mean 'count'?") && text.contains("path, every, size"), "{text}");
        let text = message("path = 'a'\nevery = 'soon'");
        assert!(text.contains("option 'every' is \"soon\" where a duration such as \"10 s\" is expected"), "{text}");
        assert!(message("path = 'a'\ncount = -1").contains("'count' is -1 where a whole number"));
        assert!(message("path = 'a'\nsize = '3 apples'").contains("size in bytes such as \"64 MiB\""));
        assert!(message("path = 7").contains("option 'path' is 7 where a text is expected"));
        let text = message("path = 'a'\nmode = 'skp'");
        assert!(text.contains("option 'mode' is \"skp\"") && text.contains("did you mean 'skip'?"), "{text}");
        assert!(message("").contains("option 'path' is missing"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = message("path = 'a'\npassword = 12345");
        assert!(text.contains("'password' is a integer") && !text.contains("12345"), "{text}");
        let options = parse("path = 'a'\npassword = 'hunter2'").unwrap();
        assert!(!format!("{options:?}").contains("hunter2"));
    }

    #[test]
    fn documentation_has_a_line_per_option() {
        let text = documentation(&specs());
        assert!(text.contains("| `path` | text | required | Where the file is. |"), "{text}");
        assert!(text.contains("| `mode` | `\"fail\"` or `\"skip\"` | `fail` | How. |"), "{text}");
        assert_eq!(text.lines().count(), specs().len() + 2);
    }
}
