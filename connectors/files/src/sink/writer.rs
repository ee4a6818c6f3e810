//! The writer of one subtask: the slot hands batches over, a thread encodes them and writes files.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tidemill_connector_kit::Buffers;
use tidemill_connector_kit::queue::{Popped, Queue};
use tidemill_core::Batch;
use tidemill_core::connector::{Committable, SinkReady, SinkWriter, Waker};
use tidemill_core::error::{Error, Result};
use tidemill_core::ids::Epoch;
use tidemill_core::memory::Account;
use tidemill_core::time::{Clock, Timestamp};

use super::parts::PartFiles;
use super::place::Place;

/// How long the thread waits for rows before it looks whether a file is due. Not longer, since only the injected clock
/// knows the time, and that may go faster than this wait.
const LOOK_EVERY: Duration = Duration::from_millis(500);

enum Command {
    /// Rows, counted until they are written, and when they came: rolling does not depend on when the thread gets to them.
    Write(Batch, Timestamp, Account),
    /// Closes and syncs what is open; the answer names all files since the last time.
    Prepare(Epoch, mpsc::Sender<Result<Option<Committable>>>),
}

/// The slot's side.
pub(super) struct FilesWriter {
    queue: Queue<Command>,
    buffers: Buffers,
    clock: Arc<dyn Clock>,
    /// Why the thread gave up.
    failure: Arc<Mutex<Option<Error>>>,
}

impl FilesWriter {
    pub(super) fn start(
        mut files: PartFiles<impl Place>,
        subtask: u32,
        buffer_bytes: usize,
        waker: Waker,
        clock: Arc<dyn Clock>,
        buffers: Buffers,
    ) -> Result<Self> {
        let queue = Queue::new(buffer_bytes.max(1), waker);
        let failure = Arc::new(Mutex::new(None));
        let (theirs, their_failure, their_clock) = (queue.clone(), failure.clone(), clock.clone());
        let name = format!("files-write-{subtask}");
        thread::Builder::new()
            .name(name)
            .spawn(move || {
                let guard = CloseOnExit(theirs);
                if let Err(error) = run(&mut files, &guard.0, &*their_clock) {
                    *their_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            })
            .map_err(|e| Error::internal(format!("starting a writing thread failed: {e}")))?;
        Ok(Self { queue, buffers, clock, failure })
    }

    fn failure(&self) -> Error {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failure.unwrap_or_else(|| Error::internal("the writing thread has ended"))
    }
}

impl SinkWriter for FilesWriter {
    fn ready(&mut self) -> Result<SinkReady> {
        Ok(if self.queue.is_full() { SinkReady::Full } else { SinkReady::Ready })
    }

    fn write(&mut self, batch: &Batch) -> Result<()> {
        // Texts may share buffers with other batches; counting them whole errs on the side of less memory.
        let bytes = batch.bytes();
        let command = Command::Write(batch.clone(), self.clock.now(), self.buffers.holding(bytes)?);
        if self.queue.push(command, bytes) { Ok(()) } else { Err(self.failure()) }
    }

    fn prepare(&mut self, epoch: Epoch) -> Result<Vec<Committable>> {
        let (answer, answered) = mpsc::channel();
        if !self.queue.push(Command::Prepare(epoch, answer), 0) {
            return Err(self.failure());
        }
        let prepared = answered.recv().map_err(|_| self.failure())??;
        Ok(Vec::from_iter(prepared))
    }
}

impl Drop for FilesWriter {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// The thread's side.
fn run(files: &mut PartFiles<impl Place>, queue: &Queue<Command>, clock: &dyn Clock) -> Result<()> {
    loop {
        let popped = if files.waits_for_time() {
            queue.pop_waiting(LOOK_EVERY)
        } else {
            queue.pop_blocking().map_or(Popped::Closed, Popped::Item)
        };
        match popped {
            Popped::Item(Command::Write(batch, now, _held)) => files.write(&batch, now.0)?,
            Popped::Item(Command::Prepare(epoch, answer)) => {
                // A slot that does not wait for the answer has gone, and its files with it.
                let _ = answer.send(files.prepare(epoch));
            }
            Popped::Empty => files.roll(clock.now().0)?,
            Popped::Closed => return Ok(()),
        }
    }
}

/// However the thread ends, also by a defect, the slot gets an error instead of waiting: for an answer, too, whose
/// question still stands in the queue.
struct CloseOnExit(Queue<Command>);

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        self.0.close();
        while let Popped::Item(_) = self.0.pop() {}
    }
}
