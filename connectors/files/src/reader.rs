//! The reader of one subtask: a thread reads and decodes, the slot takes batches when it wants them.
//!
//! Invariant: `open` says of every unfinished split where it stands after the last batch that the slot took; what the
//! thread has read ahead is not in it, and is read again after a restore.

use std::sync::atomic::Ordering;
use std::thread;

use arrow::datatypes::SchemaRef;
use tidemill_connector_kit::format::{Chunk, Cursor, DecodeFormat, Decoded, Decoder, Piece, Rejects};
use tidemill_connector_kit::queue::{Popped, Queue};
use tidemill_core::Batch;
use tidemill_core::connector::{ReaderPoll, SourceContext, SourceReader, Split, SplitId, Waker};
use tidemill_core::error::{Error, Result};
use tidemill_core::ids::Epoch;

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
pub(crate) fn reader(decoding: Decoding, context: SourceContext) -> Result<FilesReader> {
    let work = Queue::new(usize::MAX, Waker::new(|| {}));
    let out = Queue::new(decoding.prefetch_bytes, context.waker.clone());
    let thread = ReadThread {
        decoding,
        schema: context.schema.clone(),
        batch_rows: context.batch_rows.max(1),
        work: work.clone(),
        out: out.clone(),
    };
    thread::Builder::new()
        .name(format!("files-read-{}", context.subtask.index.0))
        .spawn(move || thread.run())
        .map_err(|e| Error::internal(format!("starting a reading thread failed: {e}")))?;
    Ok(FilesReader { context, open: Vec::new(), no_more: false, work, out })
}

pub(crate) struct FilesReader {
    context: SourceContext,
    open: Vec<(SplitId, Position)>,
    no_more: bool,
    work: Queue<Position>,
    out: Queue<Item>,
}

/// What the thread hands to the slot.
enum Item {
    Rows { split: SplitId, batch: Batch, rejects: Rejects, after: Position, progress: u64 },
    Finished(SplitId),
    Failed(Error),
}

impl SourceReader for FilesReader {
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()> {
        for split in splits {
            let position = Position::from_split(&split)?;
            self.work.push(position.clone(), 0);
            self.open.push((split.id, position));
        }
        Ok(())
    }

    fn no_more_splits(&mut self) {
        self.no_more = true;
    }

    fn poll(&mut self) -> Result<ReaderPoll> {
        if self.open.is_empty() && self.no_more {
            return Ok(ReaderPoll::Finished);
        }
        match self.out.pop() {
            Popped::Item(Item::Rows { split, batch, rejects, after, progress }) => {
                if let Some((_, position)) = self.open.iter_mut().find(|(id, _)| *id == split) {
                    *position = after;
                }
                self.context.metrics.records_skipped.add(rejects.skipped);
                Ok(ReaderPoll::Batch { split, batch, rejected: rejects.letters, progress })
            }
            Popped::Item(Item::Finished(split)) => {
                self.open.retain(|(id, _)| *id != split);
                Ok(ReaderPoll::SplitFinished(split))
            }
            Popped::Item(Item::Failed(error)) => Err(error),
            Popped::Empty => Ok(ReaderPoll::Pending(None)),
            Popped::Closed => Err(Error::internal("the reading thread has ended")),
        }
    }

    fn snapshot(&mut self, _epoch: Epoch) -> Result<Vec<Split>> {
        self.open.iter().map(|(_, position)| position.to_split()).collect()
    }
}

impl Drop for FilesReader {
    fn drop(&mut self) {
        self.work.close();
        self.out.close();
    }
}

struct ReadThread {
    decoding: Decoding,
    schema: SchemaRef,
    batch_rows: usize,
    work: Queue<Position>,
    out: Queue<Item>,
}

/// The slot has gone: nothing more is to be read.
struct Gone;

impl ReadThread {
    fn run(self) {
        let guard = CloseOnExit(self.out.clone());
        while let Some(position) = self.work.pop_blocking() {
            let id = position.id();
            let item = match self.read(position) {
                Ok(Ok(())) => Item::Finished(id),
                Ok(Err(Gone)) => return,
                Err(error) => Item::Failed(error),
            };
            let failed = matches!(item, Item::Failed(_));
            if !self.out.push_blocking(item, 0) || failed {
                return;
            }
        }
        drop(guard);
    }

    fn read(&self, mut position: Position) -> Result<Result<(), Gone>> {
        let mut done = Done { before: progress_of(&position), disk: 0, compressed: is_compressed(&position.path) };
        let Stream { mut chunks, header, read } = stream::open(&mut position, &self.decoding.format)?;
        let place = match position.start {
            0 => format!("file '{}'", position.path.display()),
            // How many lines stand before the part is not known.
            start => format!("file '{}', in the part that begins at byte {start}", position.path.display()),
        };
        let Decoding { format, declared, .. } = &self.decoding;
        let mut decoder = format.decoder(place, declared, &self.schema, header.as_deref())?;
        loop {
            let piece = chunks.next_piece().map_err(|e| io_error("reading", &position.path, &e))?;
            let sent = match piece {
                None => return Ok(Ok(())),
                Some(Piece::Records(chunk)) => {
                    self.send_chunk(&mut decoder, &chunk, &mut position, &mut |p| done.advance(p, &read))?
                }
                Some(Piece::TooLong { offset, line, bytes, start }) => {
                    let rejects = decoder.too_long(offset, line, bytes, &start)?;
                    (position.next, position.line) = (Some(offset + bytes), line + 1);
                    let progress = done.advance(&position, &read);
                    self.send(self.no_rows()?, rejects, &position, 0, progress)
                }
            };
            if !sent {
                return Ok(Err(Gone));
            }
        }
    }

    fn send_chunk(
        &self,
        decoder: &mut Decoder,
        chunk: &Chunk,
        position: &mut Position,
        advance: &mut dyn FnMut(&Position) -> u64,
    ) -> Result<bool> {
        let mut cursor = Cursor::default();
        while cursor.at < chunk.text().len() {
            let from = cursor.at;
            let Decoded { batch, rejects } = decoder.decode(chunk, &mut cursor, self.batch_rows)?;
            (position.next, position.line) = (Some(chunk.offset() + cursor.at as u64), chunk.line() + cursor.line);
            // The texts stay in the chunk, so its bytes count; of the columns all are fixed in width.
            let bytes = cursor.at - from + batch.rows() * 16 * batch.columns().len();
            if !self.send(batch, rejects, position, bytes, advance(position)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn send(&self, batch: Batch, rejects: Rejects, position: &Position, bytes: usize, progress: u64) -> bool {
        let letters: usize = rejects.letters.iter().map(|l| l.record.len() + l.reason.len()).sum();
        let item = Item::Rows { split: position.id(), batch, rejects, after: position.clone(), progress };
        self.out.push_blocking(item, bytes + letters)
    }

    fn no_rows(&self) -> Result<Batch> {
        let columns = self.schema.fields().iter().map(|f| arrow::array::new_empty_array(f.data_type())).collect();
        Batch::new(0, columns, None)
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
    fn advance(&mut self, position: &Position, read: &std::sync::atomic::AtomicU64) -> u64 {
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

/// However the thread ends, also by a defect, the slot does not wait for it for ever.
struct CloseOnExit(Queue<Item>);

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        self.0.close();
    }
}
