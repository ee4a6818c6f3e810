//! The reader of one subtask for sources of text: a thread reads and decodes, the slot takes batches when it wants them.
//!
//! A connector says how a split is opened ([`OpenSplits`]) and what of it a checkpoint keeps ([`SplitPosition`]); the rest
//! is here. Invariant: `open` says of every unfinished split where it stands after the last batch that the slot took; what
//! the thread has read ahead is not in it, and is read again after a restore (where the connector can).

use std::collections::VecDeque;
use std::io::{self, Read};
use std::thread;

use arrow::datatypes::SchemaRef;
use tidemill_core::Batch;
use tidemill_core::connector::{ReaderPoll, SourceContext, SourceReader, Split, SplitId, Waker};
use tidemill_core::error::{Error, Result};
use tidemill_core::ids::Epoch;
use tidemill_core::memory::Account;

use crate::buffers::Buffers;
use crate::format::{Chunk, Chunker, Cursor, Decoded, Decoder, Piece, Rejects};
use crate::options::{ByteSize, Key};
use crate::queue::{Popped, Queue};

/// The option of sources that says how far their threads may be ahead.
pub const PREFETCH_BYTES: Key<ByteSize> = Key::new("prefetch-bytes", "What each slot may read ahead.").or("16 MiB");

/// Where a split stands: what a checkpoint keeps of it.
pub trait SplitPosition: Clone + Send + 'static {
    /// The split's name for the life of the job.
    fn id(&self) -> SplitId;

    /// The split that begins where this one stands.
    fn to_split(&self) -> Result<Split>;

    /// From what `to_split` made, or the connector's enumerator.
    fn from_split(split: &Split) -> Result<Self>;

    /// The next record begins at this byte and line of the text, both counted from 0.
    fn moved(&mut self, byte: u64, line: u64);
}

/// Opens splits, in the reading thread. May block.
pub trait OpenSplits: Send + 'static {
    /// Where its splits stand.
    type Position: SplitPosition;

    /// Opens a split where it stands, to read these columns. `None`: there is nothing in it.
    fn open(&mut self, position: &mut Self::Position, schema: &SchemaRef) -> Result<Option<TextSplit<Self::Position>>>;
}

/// The progress since the last call, for [`ReaderPoll::Batch`].
pub type Advance<P> = Box<dyn FnMut(&P) -> u64>;

/// A split that is being read.
pub struct TextSplit<P> {
    /// Its text from where it stands.
    pub chunks: Chunker<Box<dyn Read + Send>>,
    /// Makes rows of it.
    pub decoder: Decoder,
    /// What to say when reading fails.
    pub failed: Box<dyn Fn(&io::Error) -> Error>,
    /// How far it came.
    pub advance: Advance<P>,
}

/// Starts a reader whose thread has this name. It may read so many bytes ahead of the slot.
pub fn reader<O: OpenSplits>(
    name: String,
    splits: O,
    prefetch_bytes: usize,
    context: SourceContext,
) -> Result<TextReader<O::Position>> {
    let work = Queue::new(usize::MAX, Waker::new(|| {}));
    let out = Queue::new(prefetch_bytes, context.waker.clone());
    let buffers = Buffers::from(&context);
    let thread = ReadThread {
        splits,
        text: buffers.account(),
        buffers,
        schema: context.schema.clone(),
        batch_rows: context.batch_rows.max(1),
        work: work.clone(),
        out: out.clone(),
    };
    thread::Builder::new()
        .name(name)
        .spawn(move || thread.run())
        .map_err(|e| Error::internal(format!("starting a reading thread failed: {e}")))?;
    Ok(TextReader { context, open: VecDeque::new(), no_more: false, work, out })
}

/// The slot's side of it.
pub struct TextReader<P: SplitPosition> {
    context: SourceContext,
    /// In the order in which they are read, so that the one that is looked for is the first.
    open: VecDeque<(SplitId, P)>,
    no_more: bool,
    work: Queue<P>,
    out: Queue<Item<P>>,
}

/// What the thread hands to the slot.
enum Item<P> {
    /// Counted until the slot has them.
    Rows {
        split: SplitId,
        batch: Batch,
        rejects: Rejects,
        after: P,
        progress: u64,
        held: Account,
    },
    Finished(SplitId),
    Failed(Error),
}

impl<P: SplitPosition> SourceReader for TextReader<P> {
    fn add_splits(&mut self, splits: Vec<Split>) -> Result<()> {
        for split in splits {
            let position = P::from_split(&split)?;
            self.work.push(position.clone(), 0);
            self.open.push_back((split.id, position));
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
            Popped::Item(Item::Rows { split, batch, rejects, after, progress, held: _held }) => {
                if let Some((_, position)) = self.open.iter_mut().find(|(id, _)| *id == split) {
                    *position = after;
                }
                self.context.metrics.records_skipped.add(rejects.skipped);
                Ok(ReaderPoll::Batch { split, batch, rejected: rejects.letters, progress })
            }
            Popped::Item(Item::Finished(split)) => {
                if let Some(at) = self.open.iter().position(|(id, _)| *id == split) {
                    self.open.remove(at);
                }
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

impl<P: SplitPosition> Drop for TextReader<P> {
    /// The thread ends at its next batch. One that waits for input for ever is not waited for.
    fn drop(&mut self) {
        self.work.close();
        self.out.close();
    }
}

struct ReadThread<O: OpenSplits> {
    splits: O,
    buffers: Buffers,
    /// Of the text that is being decoded.
    text: Account,
    schema: SchemaRef,
    batch_rows: usize,
    work: Queue<O::Position>,
    out: Queue<Item<O::Position>>,
}

/// The slot has gone: nothing more is to be read.
struct Gone;

impl<O: OpenSplits> ReadThread<O> {
    fn run(mut self) {
        let guard = CloseOnExit(self.out.clone());
        while let Some(position) = self.work.pop_blocking() {
            let id = position.id();
            let read = self.read(position);
            self.text.note(0);
            let item = match read {
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

    fn read(&mut self, mut position: O::Position) -> Result<Result<(), Gone>> {
        let Some(mut split) = self.splits.open(&mut position, &self.schema)? else { return Ok(Ok(())) };
        loop {
            let piece = split.chunks.next_piece().map_err(|e| (split.failed)(&e))?;
            let sent = match piece {
                None => return Ok(Ok(())),
                Some(Piece::Records(chunk)) => {
                    self.text.hold(chunk.text().len() + split.chunks.rest_bytes())?;
                    self.send_chunk(&mut split.decoder, &chunk, &mut position, &mut split.advance)?
                }
                Some(Piece::TooLong { offset, line, bytes, start }) => {
                    let rejects = split.decoder.too_long(offset, line, bytes, &start)?;
                    position.moved(offset + bytes, line + 1);
                    let progress = (split.advance)(&position);
                    self.send(self.no_rows()?, rejects, &position, 0, progress)?
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
        position: &mut O::Position,
        advance: &mut Advance<O::Position>,
    ) -> Result<bool> {
        let mut cursor = Cursor::default();
        while cursor.at < chunk.text().len() {
            let from = cursor.at;
            let Decoded { batch, rejects } = decoder.decode(chunk, &mut cursor, self.batch_rows)?;
            position.moved(chunk.offset() + cursor.at as u64, chunk.line() + cursor.line);
            // The texts stay in the chunk, so its bytes count; of the columns all are fixed in width.
            let bytes = cursor.at - from + batch.rows() * 16 * batch.columns().len();
            if !self.send(batch, rejects, position, bytes, advance(position))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn send(
        &self,
        batch: Batch,
        rejects: Rejects,
        position: &O::Position,
        bytes: usize,
        progress: u64,
    ) -> Result<bool> {
        let letters: usize = rejects.letters.iter().map(|l| l.record.len() + l.reason.len()).sum();
        let held = self.buffers.holding(bytes + letters)?;
        let item = Item::Rows { split: position.id(), batch, rejects, after: position.clone(), progress, held };
        Ok(self.out.push_blocking(item, bytes + letters))
    }

    fn no_rows(&self) -> Result<Batch> {
        let columns = self.schema.fields().iter().map(|f| arrow::array::new_empty_array(f.data_type())).collect();
        Batch::new(0, columns, None)
    }
}

/// However the thread ends, also by a defect, the slot does not wait for it for ever.
struct CloseOnExit<P>(Queue<Item<P>>);

impl<P> Drop for CloseOnExit<P> {
    fn drop(&mut self) {
        self.0.close();
    }
}
