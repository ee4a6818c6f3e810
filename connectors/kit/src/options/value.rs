//! The types that an option's value can have: how they are typed and what they mean.

use std::path::PathBuf;
use std::time::Duration;

use toml::Value;

/// A value that an option can have.
pub trait OptionValue: Sized {
    /// What it looks like, for people, to stand after "a".
    const EXPECTED: &'static str;

    /// From what was typed. The error is a reason, or empty where there is nothing to add to "expected".
    fn from_toml(value: &Value) -> Result<Self, String>;

    /// From a default, which is written as it would be typed; texts need no quotes.
    fn from_default(text: &str) -> Result<Self, String> {
        match text.parse::<Value>() {
            Ok(value) if !value.is_str() => Self::from_toml(&value),
            _ => Self::from_toml(&Value::String(text.to_owned())),
        }
    }
}

/// A number of bytes, typed as `"64 MiB"` or as a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// As a length in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl OptionValue for String {
    const EXPECTED: &'static str = "text";

    fn from_toml(value: &Value) -> Result<Self, String> {
        value.as_str().map(str::to_owned).ok_or_else(String::new)
    }

    fn from_default(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl OptionValue for PathBuf {
    const EXPECTED: &'static str = "path";

    fn from_toml(value: &Value) -> Result<Self, String> {
        value.as_str().filter(|s| !s.is_empty()).map(PathBuf::from).ok_or_else(String::new)
    }

    fn from_default(text: &str) -> Result<Self, String> {
        Ok(PathBuf::from(text))
    }
}

impl OptionValue for char {
    const EXPECTED: &'static str = "single character";

    fn from_toml(value: &Value) -> Result<Self, String> {
        let mut chars = value.as_str().ok_or_else(String::new)?.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) => Ok(c),
            _ => Err(String::new()),
        }
    }

    fn from_default(text: &str) -> Result<Self, String> {
        Self::from_toml(&Value::String(text.to_owned()))
    }
}

impl OptionValue for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_toml(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(String::new)
    }
}

impl OptionValue for u64 {
    const EXPECTED: &'static str = "whole number, 0 or more";

    fn from_toml(value: &Value) -> Result<Self, String> {
        value.as_integer().and_then(|n| Self::try_from(n).ok()).ok_or_else(String::new)
    }
}

impl OptionValue for i64 {
    const EXPECTED: &'static str = "whole number";

    fn from_toml(value: &Value) -> Result<Self, String> {
        value.as_integer().ok_or_else(String::new)
    }
}

impl OptionValue for f64 {
    const EXPECTED: &'static str = "number";

    fn from_toml(value: &Value) -> Result<Self, String> {
        let integer = value.as_integer().map(|n| n as Self);
        value.as_float().or(integer).filter(|n| n.is_finite()).ok_or_else(String::new)
    }
}

impl OptionValue for Duration {
    const EXPECTED: &'static str = "duration such as \"10 s\"";

    fn from_toml(value: &Value) -> Result<Self, String> {
        let text = value.as_str().ok_or_else(String::new)?;
        humantime::parse_duration(text).map_err(|e| e.to_string())
    }
}

impl OptionValue for ByteSize {
    const EXPECTED: &'static str = "size in bytes such as \"64 MiB\"";

    fn from_toml(value: &Value) -> Result<Self, String> {
        match value {
            Value::Integer(n) => u64::try_from(*n).map(Self).map_err(|_| String::new()),
            Value::String(text) => {
                text.parse::<bytesize::ByteSize>().map(|size| Self(size.as_u64())).map_err(|e| e.to_string())
            }
            _ => Err(String::new()),
        }
    }
}

impl OptionValue for Vec<String> {
    const EXPECTED: &'static str = "text or list of texts";

    fn from_toml(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Ok(vec![text.clone()]),
            Value::Array(items) => {
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or_else(String::new)
            }
            _ => Err(String::new()),
        }
    }
}

/// What was typed, for messages; long values only by their beginning.
pub(super) fn describe(value: &Value) -> String {
    const SHOWN: usize = 60;
    let text = match value {
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
