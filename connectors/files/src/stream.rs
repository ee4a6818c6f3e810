//! A file opened at a position: its header, and from there its text.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use tidemill_connector_kit::format::{Chunker, DecodeFormat};
use tidemill_core::error::{Error, Result};

use crate::find::io_error;
use crate::position::Position;

/// Read from a compressed file at once.
const COMPRESSED_BUFFER_BYTES: usize = 128 << 10;
/// Read at once where a line break is looked for.
const SEARCH_BUFFER_BYTES: usize = 8 << 10;

/// A split that is being read.
pub(crate) struct Stream {
    pub(crate) chunks: Chunker<Box<dyn Read + Send>>,
    /// The first record of the file, where it names the fields.
    pub(crate) header: Option<Vec<u8>>,
    /// Bytes read from the disk.
    pub(crate) read: Arc<AtomicU64>,
}

/// Whether the file is compressed: then it can't be read in parts.
pub(crate) fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"))
}

/// The end of the file's name that says how it is written.
pub(crate) fn format_extension(path: &Path) -> Option<String> {
    let path = if is_compressed(path) { path.with_extension("") } else { path.to_owned() };
    path.extension().map(|e| e.to_string_lossy().to_lowercase())
}

/// The first record of a file, without reading more of it than is needed.
pub(crate) fn read_header(path: &Path, format: &DecodeFormat) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| io_error("opening", path, &e))?;
    let mut text = BufReader::with_capacity(SEARCH_BUFFER_BYTES, text_of(path, file, Arc::default()));
    let place = format!("file '{}'", path.display());
    format.read_header(&mut text, &place, &|e| io_error("reading", path, e))
}

/// Opens a split where it stands. The offset of the next record is put into the position.
pub(crate) fn open(position: &mut Position, format: &DecodeFormat) -> Result<Stream> {
    let path = position.path.clone();
    let failed = |doing: &'static str| move |e: io::Error| io_error(doing, &path, &e);
    let header = if format.has_header() { Some(read_header(&position.path, format)?) } else { None };
    let mut file = File::open(&position.path).map_err(failed("opening"))?;
    let read = Arc::new(AtomicU64::new(0));
    let path = position.path.clone();
    let failed = |e: io::Error| io_error("reading", &path, &e);
    let (next, text): (u64, Box<dyn Read + Send>) = if is_compressed(&position.path) {
        let next = position.next.unwrap_or(header.as_ref().map_or(0, |h| h.len() as u64));
        let mut text = text_of(&position.path, file, read.clone());
        let skipped = io::copy(&mut text.by_ref().take(next), &mut io::sink()).map_err(failed)?;
        reaches(&position.path, skipped, next)?;
        (next, text)
    } else {
        let next = match (position.next, &header) {
            (Some(next), _) => {
                reaches(&position.path, file.metadata().map_err(failed)?.len(), next)?;
                next
            }
            (None, Some(header)) if position.start == 0 => header.len() as u64,
            (None, _) => first_record(&mut file, position.start, position.end).map_err(failed)?,
        };
        file.seek(SeekFrom::Start(next)).map_err(failed)?;
        (next, Box::new(Counted { input: file, read: read.clone() }))
    };
    if position.next.is_none() && position.start == 0 {
        position.line = header.as_ref().map_or(0, |h| memchr_count(h));
    }
    position.next = Some(next);
    let chunks = Chunker::new(text, next, position.line, format.max_record_bytes())
        .ending_at(position.end.unwrap_or(u64::MAX))
        .with_quoted_breaks(format.has_quoted_breaks());
    Ok(Stream { chunks, header, read })
}

/// A file that is shorter than where it is to be read on is not the one that was read before: reading on would lose what
/// is in it without a word.
fn reaches(path: &Path, bytes: u64, next: u64) -> Result<()> {
    if bytes >= next {
        return Ok(());
    }
    let path = path.display();
    let message = format!("file '{path}' has {bytes} bytes of text, but the checkpoint has read {next} of it");
    Err(Error::invalid(message).mend("put the file back as it was; new content belongs into new files"))
}

/// Where the first record begins that begins at `start` or later.
fn first_record(file: &mut File, start: u64, end: Option<u64>) -> io::Result<u64> {
    let Some(before) = start.checked_sub(1) else { return Ok(0) };
    file.seek(SeekFrom::Start(before))?;
    let mut input = BufReader::with_capacity(SEARCH_BUFFER_BYTES, file);
    let mut at = before;
    loop {
        let buffer = input.fill_buf()?;
        if let Some(found) = buffer.iter().position(|b| *b == b'\n') {
            return Ok(at + found as u64 + 1);
        }
        let length = buffer.len();
        at += length as u64;
        if length == 0 || end.is_some_and(|end| at >= end) {
            return Ok(at);
        }
        input.consume(length);
    }
}

fn memchr_count(text: &[u8]) -> u64 {
    text.iter().filter(|b| **b == b'\n').count() as u64
}

/// The text of a file that stands at its beginning.
fn text_of(path: &Path, file: File, read: Arc<AtomicU64>) -> Box<dyn Read + Send> {
    let counted = Counted { input: file, read };
    if is_compressed(path) {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(COMPRESSED_BUFFER_BYTES, counted)))
    } else {
        Box::new(counted)
    }
}

/// Counts what is read.
struct Counted<R> {
    input: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.input.read(buffer)?;
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}
