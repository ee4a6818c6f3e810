//! The input of the job `files`: tables (CSV) and objects (JSON lines) in turn, one file after the other while it runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::jobs::PER_FILE;
use crate::reference::{Fate, fate, key, text};

/// Writes files when they are due.
#[derive(Debug)]
pub struct Feed {
    folder: PathBuf,
    records: u64,
    next: u64,
}

impl Feed {
    /// Of so many records in all.
    pub fn new(folder: &Path, records: u64) -> Result<Self> {
        for source in ["in-tables", "in-objects"] {
            let folder = folder.join(source);
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        Ok(Self { folder: folder.to_owned(), records, next: 0 })
    }

    /// Whether all files are there.
    pub fn is_done(&self) -> bool {
        self.next >= self.records
    }

    /// Writes the next file, if there is one. It appears whole.
    pub fn write(&mut self) -> Result<()> {
        if self.is_done() {
            return Ok(());
        }
        let (first, number) = (self.next, self.next / PER_FILE);
        let object = number % 2 == 1;
        let mut content = if object { String::new() } else { "id,key,text\n".to_owned() };
        for id in first..(first + PER_FILE).min(self.records) {
            content += &record(id, object);
            content.push('\n');
        }
        let (source, extension) = if object { ("in-objects", "json") } else { ("in-tables", "csv") };
        let name = format!("{number:06}.{extension}");
        let hidden = self.folder.join(source).join(format!(".{name}"));
        fs::write(&hidden, content)?;
        fs::rename(&hidden, self.folder.join(source).join(name))?;
        self.next += PER_FILE;
        Ok(())
    }
}

fn record(id: u64, object: bool) -> String {
    let (key, text) = (key(id), text(id));
    match (object, fate(id, object)) {
        (true, Fate::Broken) => format!("{{\"id\": broken-{id}., \"key\": {key}}}"),
        (true, _) => serde_json::json!({ "id": id, "key": key, "text": text }).to_string(),
        (false, _) => format!("{id},{key},\"{}\"", text.replace('"', "\"\"")),
    }
}
