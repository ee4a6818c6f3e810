//! The source: options, splits, and what is refused before the job runs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemill_connector_kit::format::DecodeFormat;
use tidemill_connector_kit::reading::{PREFETCH_BYTES, SplitPosition};
use tidemill_connector_kit::{ByteSize, Key, OptionSpec, Setup};
use tidemill_core::connector::{Boundedness, Discovery, Source, SourceContext, SourceReader, SplitEnumerator};
use tidemill_core::error::{Error, Result};

use crate::find::{Found, Search};
use crate::position::Position;
use crate::reader::{self, Decoding};
use crate::stream::{format_extension, is_compressed, read_header};

const PATH: Key<Vec<String>> =
    Key::new("path", "A file, a folder, or a list of them; relative to the manifest's folder.").required();
const PATTERN: Key<String> =
    Key::new("pattern", "Which files of a folder are read, by name: `*` is any text, `?` any character.").or("*");
const RECURSIVE: Key<bool> = Key::new("recursive", "Whether the folders in a folder are read too.").or("false");
const DISCOVER_EVERY: Key<Duration> = Key::new(
    "discover-every",
    "How often to look for new files; without it the source ends with the files that are there at the start.",
);
const SPLIT_BYTES: Key<ByteSize> = Key::new(
    "split-bytes",
    "A file is read in several parts at once if they are at least this large (only where there are several slots).",
)
.or("16 MiB");

/// More parts of a file than this give nothing but work.
const MAX_PARTS: u64 = 1_024;

pub(crate) fn options() -> Vec<OptionSpec> {
    let own = [
        PATH.spec(),
        PATTERN.spec(),
        RECURSIVE.spec(),
        DISCOVER_EVERY.spec(),
        SPLIT_BYTES.spec(),
        PREFETCH_BYTES.spec(),
    ];
    own.into_iter().chain(DecodeFormat::options()).collect()
}

pub(crate) fn source(setup: Setup) -> Result<Arc<dyn Source>> {
    let options = &setup.options;
    let paths: Vec<PathBuf> = options.need(&PATH)?.iter().map(|p| setup.base.join(p)).collect();
    if paths.is_empty() {
        return Err(options.error(&PATH, "the list is empty"));
    }
    let search = Search { paths, pattern: Some(options.need(&PATTERN)?), recursive: options.need(&RECURSIVE)? };
    let discover_every = options.get(&DISCOVER_EVERY)?;
    let found = search.files().map_err(|e| options.place(e))?;
    if found.is_empty() && discover_every.is_none() {
        return Err(options
            .error(&PATH, "there is no file")
            .mend("check path and pattern, or set discover-every to wait for files"));
    }
    let extension = found.first().map(|f| &f.path).or(search.paths.first()).and_then(|p| format_extension(p));
    let format = DecodeFormat::from_options(options, extension.as_deref())?;
    format.check(&setup.schema).map_err(|e| options.place(e))?;
    check_header(&format, &setup, found.first()).map_err(|e| options.place(e))?;
    let decoding =
        Decoding { format, declared: setup.schema.clone(), prefetch_bytes: options.need(&PREFETCH_BYTES)?.as_usize() };
    let split_bytes = options.need(&SPLIT_BYTES)?.0.max(1);
    let total = discover_every.is_none().then(|| found.iter().map(|f| f.bytes).sum());
    let owner = options.owner().to_owned();
    Ok(Arc::new(FilesSource { search, discover_every, decoding, split_bytes, total, owner }))
}

/// Finds out before the job runs whether the first file has the columns.
fn check_header(format: &DecodeFormat, setup: &Setup, first: Option<&Found>) -> Result<()> {
    let Some(file) = first.filter(|_| format.has_header()) else { return Ok(()) };
    let header = read_header(&file.path, format)?;
    let place = format!("file '{}'", file.path.display());
    format.decoder(place, &setup.schema, &setup.schema, Some(&header)).map(|_| ())
}

struct FilesSource {
    search: Search,
    discover_every: Option<Duration>,
    decoding: Decoding,
    split_bytes: u64,
    total: Option<u64>,
    owner: String,
}

impl Source for FilesSource {
    fn boundedness(&self) -> Boundedness {
        if self.discover_every.is_none() { Boundedness::Bounded } else { Boundedness::Unbounded }
    }

    fn enumerator(&self, parallelism: u32) -> Result<Box<dyn SplitEnumerator>> {
        let format = &self.decoding.format;
        Ok(Box::new(FilesEnumerator {
            search: self.search.clone(),
            again_after_ms: self.discover_every.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX).max(1)),
            // Where a record may have line breaks, its beginning can't be found from the middle of a file.
            max_parts: if format.has_quoted_breaks() { 1 } else { u64::from(parallelism.max(1)).min(MAX_PARTS) },
            split_bytes: self.split_bytes,
            seen: BTreeSet::new(),
            owner: self.owner.clone(),
        }))
    }

    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(reader::reader(self.decoding.clone(), context)?))
    }

    fn total(&self) -> Option<u64> {
        self.total
    }
}

struct FilesEnumerator {
    search: Search,
    again_after_ms: Option<u64>,
    max_parts: u64,
    split_bytes: u64,
    seen: BTreeSet<PathBuf>,
    owner: String,
}

/// What a checkpoint keeps of an enumerator.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    files: BTreeSet<PathBuf>,
}

impl SplitEnumerator for FilesEnumerator {
    fn discover(&mut self) -> Result<Discovery> {
        let mut splits = Vec::new();
        for file in self.search.files().map_err(|e| e.prefixed(&self.owner))? {
            if !self.seen.insert(file.path.clone()) {
                continue;
            }
            let parts = if is_compressed(&file.path) { 1 } else { (file.bytes / self.split_bytes).min(self.max_parts) };
            for part in Position::parts(&file, parts) {
                splits.push(part.to_split().map_err(|e| e.prefixed(&self.owner))?);
            }
        }
        Ok(Discovery { splits, again_after_ms: self.again_after_ms })
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        let seen = Seen { files: self.seen.clone() };
        serde_json::to_vec(&seen).map_err(|e| Error::internal(format!("{}: {e}", self.owner)))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        let seen: Seen = serde_json::from_slice(snapshot)
            .map_err(|e| Error::invalid(format!("{}: the list of files already read is damaged: {e}", self.owner)))?;
        self.seen = seen.files;
        Ok(())
    }
}
