//! What was typed: the manifest's text and the `--set` options as one tree whose every key and value knows its place.
//!
//! Nothing here knows what a key means; that is `meaning`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tidemill_core::Error;
use toml::Value;
use toml::de::{DeTable, DeValue};

/// Where something was typed.
#[derive(Clone, Debug)]
pub enum Place {
    /// Bytes of the manifest.
    File(Range<usize>),
    /// A `--set` option, as typed.
    Set(String),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Place,
    pub place: Place,
    pub node: Node,
}

/// A table or any other value.
#[derive(Clone, Debug)]
pub enum Node {
    Table(Table),
    Value(Value),
}

pub type Table = BTreeMap<String, Entry>;

/// The manifest's text, for quoting from it.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    pub fn new(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), text }
    }

    /// Parses the text.
    pub fn parse(&self) -> Result<Table, Error> {
        let parsed = DeTable::parse(&self.text).map_err(|e| {
            let place = Place::File(e.span().unwrap_or_default());
            self.error(&place, format!("this is not TOML: {}", e.message()))
                .mend("Correct it there; https://toml.io shows how TOML is written.")
        })?;
        Ok(convert(parsed.get_ref()))
    }

    /// An error about a place, quoting it.
    pub fn error(&self, place: &Place, message: impl AsRef<str>) -> Error {
        Error::invalid(format!("{}: {}{}", self.locate(place), message.as_ref(), self.quote(place)))
    }

    /// The same error with the place and the quotation.
    pub fn wrap(&self, place: &Place, error: &Error) -> Error {
        let full = error.to_string();
        let located = self.error(place, error.message());
        match full.split_once("\n  mend: ") {
            Some((_, mend)) => located.mend(mend),
            None => located,
        }
    }

    /// `tidemill.toml:7`.
    pub fn locate(&self, place: &Place) -> String {
        match place {
            Place::Set(typed) => format!("--set {typed}"),
            Place::File(range) => {
                let before = self.text.get(..range.start).unwrap_or(&self.text);
                format!("{}:{}", self.path.display(), before.matches('\n').count() + 1)
            }
        }
    }

    /// The line of a place with a mark below, as compilers do.
    fn quote(&self, place: &Place) -> String {
        let Place::File(range) = place else { return String::new() };
        let start = range.start.min(self.text.len());
        let Some((before, after)) = self.text.split_at_checked(start) else { return String::new() };
        let number = before.matches('\n').count() + 1;
        let head = before.rsplit('\n').next().unwrap_or_default();
        let tail = after.split('\n').next().unwrap_or_default();
        let gutter = " ".repeat(number.to_string().len());
        let indent = " ".repeat(head.chars().count());
        let marked = after.get(..range.len()).unwrap_or(tail).chars().count();
        let marks = "^".repeat(marked.clamp(1, tail.chars().count().max(1)));
        format!("\n  {gutter} |\n  {number} | {head}{tail}\n  {gutter} | {indent}{marks}")
    }
}

/// Puts `KEY.KEY=VALUE` into a tree. A value that is not TOML is a text, so that quotes are seldom needed.
pub fn set(table: &mut Table, typed: &str) -> Result<(), Error> {
    let mend = "Write it as --set sources.NAME.path=file.csv";
    let wrong = |why: &str| Error::invalid(format!("--set {typed}: {why}")).mend(mend);
    let (path, value) = typed.split_once('=').ok_or_else(|| wrong("there is no '='"))?;
    let keys = split_path(path).ok_or_else(|| wrong("the name before '=' is not one"))?;
    let parsed = format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
    let value = parsed.unwrap_or_else(|| Value::String(value.to_owned()));
    let place = Place::Set(typed.to_owned());
    let (last, sections) = keys.split_last().ok_or_else(|| wrong("the name before '=' is empty"))?;
    let mut at = table;
    for key in sections {
        let entry = at.entry(key.clone()).or_insert_with(|| Entry {
            key: place.clone(),
            place: place.clone(),
            node: Node::Table(Table::new()),
        });
        match &mut entry.node {
            Node::Table(inner) => at = inner,
            Node::Value(_) => return Err(wrong(&format!("'{key}' is a value, it has nothing inside"))),
        }
    }
    let node = match value {
        Value::Table(inner) => Node::Table(from_table(inner, &place)),
        other => Node::Value(other),
    };
    at.insert(last.clone(), Entry { key: place.clone(), place: place.clone(), node });
    Ok(())
}

/// `a.b."c.d"` into its keys, by TOML's own rules.
fn split_path(path: &str) -> Option<Vec<String>> {
    let mut table = format!("{path} = 0").parse::<toml::Table>().ok()?;
    let mut keys = Vec::new();
    loop {
        let (key, value) = table.into_iter().next()?;
        keys.push(key);
        match value {
            Value::Table(inner) => table = inner,
            _ => return Some(keys),
        }
    }
}

fn from_table(table: toml::Table, place: &Place) -> Table {
    let entry = |value| Entry {
        key: place.clone(),
        place: place.clone(),
        node: match value {
            Value::Table(inner) => Node::Table(from_table(inner, place)),
            other => Node::Value(other),
        },
    };
    table.into_iter().map(|(key, value)| (key, entry(value))).collect()
}

fn convert(table: &DeTable<'_>) -> Table {
    let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let node = match value.get_ref() {
            DeValue::Table(inner) => Node::Table(convert(inner)),
            other => Node::Value(plain(other)),
        };
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        (name.to_string(), Entry { key: Place::File(key.span()), place: Place::File(value.span()), node })
    };
    table.iter().map(entry).collect()
}

/// A value without places. What does not fit its type (a number of 30 digits) becomes a text, which is then refused
/// where a number is expected, with its place.
fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix())
            .map_or_else(|_| Value::String(n.as_str().to_owned()), Value::Integer),
        DeValue::Float(x) => x.as_str().parse().map_or_else(|_| Value::String(x.as_str().to_owned()), Value::Float),
        DeValue::Boolean(b) => Value::Boolean(*b),
        DeValue::Datetime(t) => Value::Datetime(*t),
        DeValue::Array(items) => Value::Array(items.iter().map(|i| plain(i.get_ref())).collect()),
        DeValue::Table(table) => {
            Value::Table(table.iter().map(|(k, v)| (k.get_ref().to_string(), plain(v.get_ref()))).collect())
        }
    }
}

impl Node {
    /// As a TOML value, without places.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Value(value) => value.clone(),
            Self::Table(table) => {
                Value::Table(table.iter().map(|(key, entry)| (key.clone(), entry.node.to_value())).collect())
            }
        }
    }
}
