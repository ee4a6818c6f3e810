//! Names for clusters that are asked often: where each is, and how to ask it, in a file of the user's.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tidemill_connector_kit::suggest::{did_you_mean, list};
use tidemill_core::Error;
use tidemill_job::component::user_folder;

/// The file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contexts {
    /// The one that is meant where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    pub contexts: BTreeMap<String, Context>,
}

/// A cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Context {
    /// Where its API is.
    pub cluster: String,
    /// The file with the token. The token itself is not kept here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The authority of its API's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<PathBuf>,
}

impl Contexts {
    /// Of this user. None are there before one was added.
    pub fn read() -> anyhow::Result<Self> {
        match path() {
            Some(path) => Self::read_from(&path),
            None => Ok(Self::default()),
        }
    }

    fn read_from(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e).with_context(|| format!("{shown} can't be read")),
        };
        toml::from_str(&text).with_context(|| {
            format!("{shown} can't be read\n  mend: Correct it, or delete it and add the contexts again.")
        })
    }

    /// Replaces the file in one step.
    pub fn write(&self) -> anyhow::Result<()> {
        let path = path().context("there is no HOME to keep contexts in")?;
        self.write_to(&path)
    }

    fn write_to(&self, path: &Path) -> anyhow::Result<()> {
        let fresh = path.with_extension("new");
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(toml::to_string(self).map_err(std::io::Error::other)?.as_bytes())?;
            fs::rename(&fresh, path)
        };
        write().with_context(|| format!("{} can't be written", path.display()))
    }

    /// By its name.
    pub fn get(&self, name: &str) -> Result<&Context, Error> {
        let names = || self.contexts.keys().map(String::as_str);
        self.contexts.get(name).ok_or_else(|| {
            let known = match self.contexts.is_empty() {
                true => "Add it with `tidemill context add`.".to_owned(),
                false => format!("{}There are: {}.", did_you_mean(name, names()), list(names())),
            };
            Error::invalid(format!("there is no context '{name}'")).mend(known)
        })
    }

    /// The one that is meant where none is named, if one was chosen.
    pub fn current(&self) -> Result<Option<&Context>, Error> {
        self.current.as_deref().map(|name| self.get(name)).transpose()
    }
}

/// Where the file is; None: the user has no home.
fn path() -> Option<PathBuf> {
    Some(user_folder("XDG_CONFIG_HOME", ".config")?.join("tidemill/contexts.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/contexts.toml");
        assert_eq!(Contexts::read_from(&path).unwrap(), Contexts::default());
        let context = Context { cluster: "https://x".to_owned(), token_file: Some("/t".into()), authority: None };
        let contexts =
            Contexts { current: Some("prod".to_owned()), contexts: BTreeMap::from([("prod".to_owned(), context)]) };
        contexts.write_to(&path).unwrap();
        assert_eq!(Contexts::read_from(&path).unwrap(), contexts);
        assert_eq!(contexts.current().unwrap().unwrap().cluster, "https://x");
        assert!(contexts.get("prd").unwrap_err().to_string().contains("did you mean 'prod'"));
    }
}
