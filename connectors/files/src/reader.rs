//! How a part of a file is read: opened, decoded, and counted for the progress bar. The rest is the kit's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use tidemill_connector_kit::format::DecodeFormat;
use tidemill_connector_kit::reading::{self, OpenSplits, TextReader, TextSplit};
use tidemill_core::connector::SourceContext;
use tidemill_core::error::Result;

use crate::find::io_error;
use crate::position::Position;
use crate::stream::{self, Stream, is_compressed};

/// What is needed to decode a file.
#[derive(Clone, Debug)]
pub(crate) struct Decoding {
    pub(crate) format: DecodeFormat,
    pub(crate) declared: SchemaRef,
    pub(crate) prefetch_bytes: usize,
}

/// Starts a reader.
pub(crate) fn reader(decoding: Decoding, context: SourceContext) -> Result<TextReader<Position>> {
    let name = format!("files-read-{}", context.subtask.index.0);
    let prefetch_bytes = decoding.prefetch_bytes;
    reading::reader(name, decoding, prefetch_bytes, context)
}

impl OpenSplits for Decoding {
    type Position = Position;

    fn open(&mut self, position: &mut Position, schema: &SchemaRef) -> Result<Option<TextSplit<Position>>> {
        let mut done = Done { before: progress_of(position), disk: 0, compressed: is_compressed(&position.path) };
        let Stream { chunks, header, read } = stream::open(position, &self.format)?;
        let place = match position.start {
            0 => format!("file '{}'", position.path.display()),
            // How many lines stand before the part is not known.
            start => format!("file '{}', in the part that begins at byte {start}", position.path.display()),
        };
        let decoder = self.format.decoder(place, &self.declared, schema, header.as_deref())?;
        let path = position.path.clone();
        Ok(Some(TextSplit {
            chunks,
            decoder,
            failed: Box::new(move |e| io_error("reading", &path, e)),
            advance: Box::new(move |position| done.advance(position, &read)),
        }))
    }
}

/// How much of the source's total was counted.
struct Done {
    before: u64,
    disk: u64,
    compressed: bool,
}

impl Done {
    /// The progress since the last call: bytes on the disk.
    fn advance(&mut self, position: &Position, read: &Arc<AtomicU64>) -> u64 {
        if self.compressed {
            let disk = read.load(Ordering::Relaxed);
            return disk - std::mem::replace(&mut self.disk, disk);
        }
        let now = progress_of(position);
        now.saturating_sub(std::mem::replace(&mut self.before, now))
    }
}

/// A record that reaches beyond the end of its part belongs to it, but the bytes are counted where they stand.
fn progress_of(position: &Position) -> u64 {
    position.next.unwrap_or(position.start).min(position.end.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::sync::mpsc;

    use arrow::array::AsArray;
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tidemill_connector_kit::{Binding, Registry, conformance};
    use tidemill_core::ErrorKind;
    use tidemill_core::connector::{ReaderPoll, Source, Split, Waker};
    use tidemill_core::ids::Epoch;
    use tidemill_core::memory::{Owner, ProcessMemory};

    use super::*;

    const ROWS: i64 = 5_000;

    fn gz(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn source(folder: &std::path::Path, file: &str) -> Arc<dyn Source> {
        let mut registry = Registry::new();
        crate::register(&mut registry);
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let options = format!("path = '{file}'\nsplit-bytes = '1 KiB'").parse().unwrap();
        registry.source("files", Binding { name: "in", schema: &schema, options: &options, base: folder }).unwrap()
    }

    /// Reads so many batches, or to the end: the numbers, the progress, and where it stands.
    fn read(source: &Arc<dyn Source>, splits: Vec<Split>, batches: usize) -> Result<(Vec<i64>, u64, Vec<Split>)> {
        let (wake, woken) = mpsc::channel();
        let waker = Waker::new(move || _ = wake.send(()));
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let mut reader = source.reader(conformance::source_context(schema, 512, waker))?;
        reader.add_splits(splits)?;
        reader.no_more_splits();
        let (mut numbers, mut total, mut seen) = (Vec::new(), 0, 0);
        while seen < batches {
            match reader.poll()? {
                ReaderPoll::Batch { batch, progress, .. } => {
                    seen += 1;
                    total += progress;
                    numbers.extend(batch.columns()[0].as_primitive::<Int64Type>().values());
                }
                ReaderPoll::SplitFinished(_) => {}
                ReaderPoll::Pending(_) => woken.recv().unwrap(),
                ReaderPoll::Finished => break,
            }
        }
        Ok((numbers, total, reader.snapshot(Epoch(1))?))
    }

    #[test]
    fn a_compressed_file_is_read_as_if_it_were_plain() {
        let folder = tempfile::tempdir().unwrap();
        let text: String = (0..ROWS).map(|n| format!("{n},x\n")).collect();
        // Two members, as `cat a.gz b.gz` makes.
        let (head, tail) = text.split_at(text.find("2500,").unwrap());
        let bytes = [gz(&format!("n,other\n{head}")), gz(tail)].concat();
        fs::write(folder.path().join("x.csv.gz"), &bytes).unwrap();
        fs::write(folder.path().join("x.csv"), format!("n,other\n{text}")).unwrap();
        for (file, size, parts) in [("x.csv.gz", bytes.len(), 1), ("x.csv", text.len() + 8, 4)] {
            let source = source(folder.path(), file);
            let splits = source.enumerator(4).unwrap().discover().unwrap().splits;
            assert_eq!(splits.len(), parts, "{file}: what is compressed has no parts");
            let (numbers, progress, left) = read(&source, splits.clone(), usize::MAX).unwrap();
            assert_eq!(numbers, (0..ROWS).collect::<Vec<_>>(), "{file}");
            assert!(left.is_empty());
            assert_eq!((source.total(), progress), (Some(size as u64), size as u64), "{file}");
            // From where a checkpoint found it.
            let (mut first, _, left) = read(&source, splits, 3).unwrap();
            let (rest, ..) = read(&source, left.clone(), usize::MAX).unwrap();
            first.extend(rest);
            assert_eq!(first, numbers, "{file}");
            // A file that was cut meanwhile.
            let short = if file.ends_with("gz") { gz("n,other\n1,x\n") } else { b"n,other\n1,x\n".to_vec() };
            fs::write(folder.path().join(file), short).unwrap();
            let error = read(&source, left, usize::MAX).unwrap_err().to_string();
            assert!(error.contains(file) && error.contains("but the checkpoint has read"), "{error}");
        }
    }

    #[test]
    fn what_is_read_ahead_is_counted_and_refused_where_there_is_no_room_for_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x.csv"), format!("n\n{}", "7\n".repeat(ROWS as usize))).unwrap();
        let source = source(folder.path(), "x.csv");
        let splits = source.enumerator(1).unwrap().discover().unwrap().splits;
        let read = |process: &Arc<ProcessMemory>| {
            let (wake, woken) = mpsc::channel();
            let waker = Waker::new(move || _ = wake.send(()));
            let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
            let context = conformance::source_context(schema, 512, waker);
            let mut reader = source.reader(SourceContext { memory: process.job("a"), ..context }).unwrap();
            reader.add_splits(splits.clone()).unwrap();
            reader.no_more_splits();
            let (mut rows, mut most) = (0, 0);
            loop {
                most = most.max(process.held().of(Owner::Connectors));
                match reader.poll()? {
                    ReaderPoll::Batch { batch, .. } => rows += batch.rows(),
                    ReaderPoll::SplitFinished(_) => {}
                    ReaderPoll::Pending(_) => woken.recv().unwrap(),
                    ReaderPoll::Finished => return Ok((rows, most)),
                }
            }
        };
        let process = ProcessMemory::new(Some(1 << 20));
        let (rows, most) = read(&process).unwrap();
        assert!(rows == ROWS as usize && (512 * 8..1 << 20).contains(&most), "{most}");
        let held = process.held().of(Owner::Connectors);
        assert_eq!(held, 0, "the slot has all of it");
        let refused: tidemill_core::Error = read(&ProcessMemory::new(Some(1_000))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Limit);
        for words in ["job 'a' holds", "(connectors ", "smaller buffers"] {
            assert!(refused.to_string().contains(words), "{refused}");
        }
    }

    #[test]
    fn a_damaged_compressed_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = gz(&(0..ROWS).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>());
        bytes.truncate(bytes.len() / 2);
        fs::write(folder.path().join("x.json.gz"), bytes).unwrap();
        let source = source(folder.path(), "x.json.gz");
        let splits = source.enumerator(1).unwrap().discover().unwrap().splits;
        let error = read(&source, splits, usize::MAX).unwrap_err().to_string();
        assert!(error.contains("reading") && error.contains("x.json.gz"), "{error}");
    }
}
