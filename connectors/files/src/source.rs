//! The source: options, splits, and what is refused before the job runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemill_connector_kit::format::DecodeFormat;
use tidemill_connector_kit::reading::{PREFETCH_BYTES, SplitPosition};
use tidemill_connector_kit::{ByteSize, Key, OptionSpec, Setup};
use tidemill_core::connector::{Boundedness, Discovery, Source, SourceContext, SourceReader, SplitEnumerator};
use tidemill_core::error::{Error, Result};

use crate::find::{Found, Search};
use crate::position::Position;
use crate::reader::{self, Decoding};
use crate::seen::Seen;
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
const REMEMBER_FILES: Key<u64> = Key::new(
    "remember-files",
    "How many names of files that were read a checkpoint keeps. Where there are more, what was modified no later than the \
     ones forgotten counts as read.",
)
.or("100000");
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
        REMEMBER_FILES.spec(),
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
    let remember_files = usize::try_from(options.need(&REMEMBER_FILES)?).unwrap_or(usize::MAX).max(1);
    let total = discover_every.is_none().then(|| found.iter().map(|f| f.bytes).sum());
    let owner = options.owner().to_owned();
    Ok(Arc::new(FilesSource { search, discover_every, decoding, split_bytes, remember_files, total, owner }))
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
    remember_files: usize,
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
            remember_files: self.remember_files,
            seen: Seen::default(),
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
    remember_files: usize,
    seen: Seen,
    owner: String,
}

impl SplitEnumerator for FilesEnumerator {
    fn discover(&mut self) -> Result<Discovery> {
        let mut splits = Vec::new();
        let there = self.search.files().map_err(|e| e.prefixed(&self.owner))?;
        for file in self.seen.update(there, self.remember_files) {
            let parts = if is_compressed(&file.path) { 1 } else { (file.bytes / self.split_bytes).min(self.max_parts) };
            for part in Position::parts(&file, parts) {
                splits.push(part.to_split().map_err(|e| e.prefixed(&self.owner))?);
            }
        }
        Ok(Discovery { splits, again_after_ms: self.again_after_ms })
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(&self.seen).map_err(|e| Error::internal(format!("{}: {e}", self.owner)))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.seen = serde_json::from_slice(snapshot)
            .map_err(|e| Error::invalid(format!("{}: the list of files already read is damaged: {e}", self.owner)))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use arrow::datatypes::{DataType, Field, Schema};
    use tidemill_connector_kit::{Binding, Registry};

    use super::*;

    const HOUR_S: u64 = 3_600;

    fn enumerator(folder: &Path, remember: u64) -> Box<dyn SplitEnumerator> {
        let mut registry = Registry::new();
        crate::register(&mut registry);
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let options = format!("path = '.'\nformat = 'json'\ndiscover-every = '1 s'\nremember-files = {remember}");
        let options = options.parse().unwrap();
        let binding = Binding { name: "in", schema: &schema, options: &options, base: folder };
        registry.source("files", binding).unwrap().enumerator(1).unwrap()
    }

    fn put(folder: &Path, name: &str, hours: u64) {
        let file = File::create(folder.join(name)).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(hours * HOUR_S)).unwrap();
    }

    /// A log folder over a long time: the checkpoint stays small, and a restart reads nothing again.
    #[test]
    fn a_checkpoint_does_not_grow_with_the_files_that_were_read() {
        let folder = tempfile::tempdir().unwrap();
        let (mut snapshot, mut longest, mut reported) = (None::<Vec<u8>>, 0, 0);
        for hours in 1..200 {
            put(folder.path(), &format!("{hours}.jsonl"), hours);
            if hours > 50 {
                fs::remove_file(folder.path().join(format!("{}.jsonl", hours - 50))).unwrap();
            }
            let mut enumerator = enumerator(folder.path(), 20);
            if let Some(snapshot) = &snapshot {
                enumerator.restore(snapshot).unwrap();
            }
            reported += enumerator.discover().unwrap().splits.len();
            assert!(enumerator.discover().unwrap().splits.is_empty());
            let bytes = enumerator.snapshot().unwrap();
            longest = longest.max(bytes.len());
            snapshot = Some(bytes);
        }
        assert_eq!(reported, 199);
        let entry = folder.path().join("./100.jsonl").as_os_str().len() + 30;
        assert!(longest < 20 * entry + 100, "{longest}");
    }
}
