//! Which files a path means.
//!
//! Hidden files (`.x`, `_x`) in a folder are never meant: that is how writers name what is not finished. A folder
//! `_x=1` is a partition by the column `_x`, and not hidden.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tidemill_core::error::{Error, ErrorKind, Result};

/// More files than this under one path are refused: their names alone would fill memory.
const MAX_FILES: usize = 1_000_000;

/// A file to read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// When it was modified, in nanoseconds since 1970.
    pub(crate) modified_ns: i64,
}

impl Found {
    fn new(path: &Path, metadata: &fs::Metadata) -> Result<Self> {
        let modified = metadata.modified().map_err(|e| io_error("looking at", path, &e))?;
        Ok(Self { path: path.to_owned(), bytes: metadata.len(), modified_ns: since_1970_ns(modified) })
    }
}

fn since_1970_ns(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

/// What is looked for.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    pub(crate) paths: Vec<PathBuf>,
    /// A pattern for the names of files in folders.
    pub(crate) pattern: Option<String>,
    pub(crate) recursive: bool,
}

impl Search {
    /// The files that are there now, sorted by path.
    pub(crate) fn files(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for path in &self.paths {
            let metadata = fs::metadata(path).map_err(|e| io_error("looking for", path, &e))?;
            if metadata.is_dir() {
                self.folder(path, &mut found)?;
            } else {
                found.push(Found::new(path, &metadata)?);
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    fn folder(&self, root: &Path, found: &mut Vec<Found>) -> Result<()> {
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(|e| io_error("listing", &folder, &e))? {
                let path = entry.map_err(|e| io_error("listing", &folder, &e))?.path();
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                if name.starts_with('.') || (name.starts_with('_') && !name.contains('=')) {
                    continue;
                }
                // A link to a folder is not followed: it could lead around in a circle.
                let link = fs::symlink_metadata(&path).map_err(|e| io_error("looking at", &path, &e))?;
                if link.is_dir() {
                    if self.recursive {
                        folders.push(path);
                    }
                    continue;
                }
                let metadata = fs::metadata(&path).map_err(|e| io_error("looking at", &path, &e))?;
                if metadata.is_file() && self.pattern.as_ref().is_none_or(|p| matches(p, &name)) {
                    found.push(Found::new(&path, &metadata)?);
                }
                if found.len() > MAX_FILES {
                    return Err(Error::new(
                        ErrorKind::Limit,
                        format!("there are more than {MAX_FILES} files under '{}'", root.display()),
                    )
                    .mend("name a smaller folder, or a pattern"));
                }
            }
        }
        Ok(())
    }
}

/// An error of the file system, with what was being done.
pub(crate) fn io_error(doing: &str, path: &Path, error: &std::io::Error) -> Error {
    let base = Error::invalid(format!("{doing} '{}' failed: {error}", path.display()));
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            base.mend("check the path (a relative one is relative to the manifest's folder)")
        }
        std::io::ErrorKind::PermissionDenied => base.mend("give the user of this process the right to do so"),
        std::io::ErrorKind::StorageFull => base.mend("make room on the disk"),
        std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory => {
            base.mend("a file stands where a folder is needed: remove it, or choose another path")
        }
        std::io::ErrorKind::ReadOnlyFilesystem => base.mend("choose a path on a disk that can be written"),
        _ => base,
    }
}

/// Whether a name matches a pattern of `*` (any text), `?` (any character) and characters that stand for themselves.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some('?') => (p, n) = (p + 1, n + 1),
            Some(c) if name.get(n) == Some(c) => (p, n) = (p + 1, n + 1),
            _ => match star {
                // Let the last star take one character more.
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, n) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("*.csv", "a.csv", true),
            ("*.csv", "a.csv.gz", false),
            ("part-?-*.json*", "part-1-2.jsonl", true),
            ("part-?-*.json*", "part-11-2.jsonl", false),
            ("*", "", true),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXcXb", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn folders_are_searched_sorted_and_without_hidden_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.csv", "a.csv", ".hidden.csv", "_unfinished.csv", "c.txt", "sub/d.csv"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let names = |recursive, pattern: &str| {
            let search = Search { paths: vec![folder.path().to_owned()], pattern: Some(pattern.to_owned()), recursive };
            let found = search.files().unwrap();
            found.iter().map(|f| f.path.file_name().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(false, "*.csv"), ["a.csv", "b.csv"]);
        assert_eq!(names(true, "*"), ["a.csv", "b.csv", "c.txt", "d.csv"]);
        let missing = Search { paths: vec![folder.path().join("no")], pattern: None, recursive: true };
        let error = missing.files().unwrap_err().to_string();
        assert!(error.contains("no' failed") && error.contains("check the path"), "{error}");
    }
}
