//! The writer of one subtask: the slot hands batches over, a thread encodes them and writes files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::mem;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tidemill_connector_kit::format::Encoder;
use tidemill_connector_kit::queue::{Popped, Queue};
use tidemill_core::Batch;
use tidemill_core::connector::{Committable, SinkReady, SinkWriter, Waker};
use tidemill_core::error::{Error, Result};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::Epoch;
use tidemill_core::time::{Clock, Timestamp};

use super::rolling::Rolling;
use super::{PREFIX, Prepared};
use crate::find::io_error;

/// Bytes per write: large enough that the system call is a small part of it.
const WRITE_BYTES: usize = 256 << 10;
/// Hidden names that are tried: each crashed attempt may have left some behind.
const MAX_HIDDEN: u64 = 1_000_000;
/// How long the thread waits for rows before it looks whether a file is due. Not longer, since only the injected clock
/// knows the time, and that may go faster than this wait.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) folder: PathBuf,
    /// How its hidden names begin; no other attempt, node or subtask has the same.
    pub(super) hidden_prefix: String,
    pub(super) subtask: u32,
    pub(super) extension: &'static str,
    pub(super) rolling: Rolling,
    pub(super) buffer_bytes: usize,
}

enum Command {
    /// Rows, and when they came: rolling does not depend on when the thread gets to them.
    Write(Batch, Timestamp),
    /// Closes and syncs what is open; the answer names all files since the last time.
    Prepare(Epoch, mpsc::Sender<Result<Prepared>>),
}

/// The slot's side.
pub(super) struct FilesWriter {
    queue: Queue<Command>,
    clock: Arc<dyn Clock>,
    /// Why the thread gave up.
    failure: Arc<Mutex<Option<Error>>>,
}

impl FilesWriter {
    pub(super) fn start(settings: Settings, encoder: Encoder, waker: Waker, clock: Arc<dyn Clock>) -> Result<Self> {
        let queue = Queue::new(settings.buffer_bytes.max(1), waker);
        let failure = Arc::new(Mutex::new(None));
        let (theirs, their_failure, their_clock) = (queue.clone(), failure.clone(), clock.clone());
        let mut files = PartFiles { settings, encoder, open: None, text: Vec::new(), closed: Vec::new(), hidden: 0 };
        thread::Builder::new()
            .name(format!("files-write-{}", files.settings.subtask))
            .spawn(move || {
                let guard = CloseOnExit(theirs);
                if let Err(error) = files.run(&guard.0, &*their_clock) {
                    *their_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            })
            .map_err(|e| Error::internal(format!("starting a writing thread failed: {e}")))?;
        Ok(Self { queue, clock, failure })
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
        let command = Command::Write(batch.clone(), self.clock.now());
        if self.queue.push(command, batch.bytes()) { Ok(()) } else { Err(self.failure()) }
    }

    fn prepare(&mut self, epoch: Epoch) -> Result<Vec<Committable>> {
        let (answer, answered) = mpsc::channel();
        if !self.queue.push(Command::Prepare(epoch, answer), 0) {
            return Err(self.failure());
        }
        let prepared = answered.recv().map_err(|_| self.failure())??;
        if prepared.files.is_empty() { Ok(Vec::new()) } else { Ok(vec![prepared.committable()?]) }
    }
}

impl Drop for FilesWriter {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// The thread's side.
struct PartFiles {
    settings: Settings,
    encoder: Encoder,
    open: Option<Open>,
    /// Encoded and not yet written.
    text: Vec<u8>,
    /// Hidden names of files that are complete and synced, since the last `prepare`.
    closed: Vec<String>,
    /// Number of the next hidden name.
    hidden: u64,
}

struct Open {
    name: String,
    file: File,
    bytes: u64,
    /// When its first and its last rows came.
    first_ms: i64,
    last_ms: i64,
}

impl PartFiles {
    fn run(&mut self, queue: &Queue<Command>, clock: &dyn Clock) -> Result<()> {
        loop {
            let popped = if self.due().is_some() {
                queue.pop_waiting(LOOK_EVERY)
            } else {
                queue.pop_blocking().map_or(Popped::Closed, Popped::Item)
            };
            match popped {
                Popped::Item(Command::Write(batch, now)) => self.write(&batch, now.0)?,
                Popped::Item(Command::Prepare(epoch, answer)) => {
                    // A slot that does not wait for the answer has gone, and its files with it.
                    let _ = answer.send(self.prepare(epoch));
                }
                Popped::Empty => self.roll(clock.now().0)?,
                Popped::Closed => return Ok(()),
            }
        }
    }

    /// When the open file is to be closed, if time has a say.
    fn due(&self) -> Option<i64> {
        self.open.as_ref().and_then(|open| self.settings.rolling.due(open.first_ms, open.last_ms))
    }

    /// Closes what is due.
    fn roll(&mut self, now_ms: i64) -> Result<()> {
        if self.due().is_some_and(|due| now_ms >= due) { self.close() } else { Ok(()) }
    }

    fn write(&mut self, batch: &Batch, now_ms: i64) -> Result<()> {
        self.roll(now_ms)?;
        if batch.is_empty() {
            return Ok(());
        }
        if self.open.is_none() {
            self.open = Some(self.create(now_ms)?);
            self.encoder.header(&mut self.text);
        }
        self.encoder.encode(batch, &mut self.text)?;
        if let Some(open) = &mut self.open {
            open.last_ms = now_ms;
        }
        if self.text.len() >= WRITE_BYTES {
            self.flush()?;
        }
        if self.open.as_ref().is_some_and(|o| o.bytes + self.text.len() as u64 >= self.settings.rolling.bytes) {
            self.close()?;
        }
        Ok(())
    }

    fn prepare(&mut self, epoch: Epoch) -> Result<Prepared> {
        self.close()?;
        let mut files = Vec::new();
        let mut number = 0;
        for hidden in mem::take(&mut self.closed) {
            // Names of an earlier run that was told to keep its files are passed over.
            let name = loop {
                let Settings { subtask, extension, folder, .. } = &self.settings;
                let name = format!("{PREFIX}{subtask}-{}-{number}.{extension}", epoch.0);
                number += 1;
                if !folder.join(&name).exists() {
                    break name;
                }
            };
            files.push((hidden, name));
        }
        Failpoint::PartPrepared.reach();
        Ok(Prepared { files })
    }

    /// A new hidden file. `create_new` sees to it that no other attempt has it.
    fn create(&mut self, now_ms: i64) -> Result<Open> {
        loop {
            let name = format!("{}{}.unfinished", self.settings.hidden_prefix, self.hidden);
            self.hidden += 1;
            let path = self.settings.folder.join(&name);
            match File::create_new(&path) {
                Ok(file) => {
                    Failpoint::PartCreated.reach();
                    return Ok(Open { name, file, bytes: 0, first_ms: now_ms, last_ms: now_ms });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.hidden < MAX_HIDDEN => {}
                Err(e) => return Err(io_error("creating", &path, &e)),
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(open) = &mut self.open {
            let path = || self.settings.folder.join(&open.name);
            open.file.write_all(&self.text).map_err(|e| io_error("writing", &path(), &e))?;
            Failpoint::PartWritten.reach();
            open.bytes += self.text.len() as u64;
            self.text.clear();
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.flush()?;
        if let Some(open) = self.open.take() {
            Failpoint::PartUnsynced.reach();
            open.file.sync_all().map_err(|e| io_error("syncing", &self.settings.folder.join(&open.name), &e))?;
            Failpoint::PartSynced.reach();
            self.closed.push(open.name);
        }
        Ok(())
    }
}

impl Drop for PartFiles {
    /// What was never prepared is of no use to anyone.
    fn drop(&mut self) {
        let open = self.open.take().map(|open| open.name);
        for name in self.closed.drain(..).chain(open) {
            // If it can't be deleted it stays hidden, and does no harm.
            let _ = fs::remove_file(self.settings.folder.join(name));
        }
    }
}

/// However the thread ends, also by a defect, the slot gets an error instead of waiting.
struct CloseOnExit(Queue<Command>);

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        self.0.close();
    }
}
