//! Uploads that another process may complete: the parts are sent, what describes them is kept anywhere, and whoever has
//! that makes the object visible.
//!
//! Invariants: nobody sees an object before [`S3::complete`], and its bytes are then those that were sent. No more parts
//! are under way at once than [`Uploads`] was told, over all of its uploads.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::{MultipartId, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, Semaphore};

use super::{S3, is_absent, runtime, says, unavailable, wait};
use crate::BlobError;

/// Uploads are completed in groups of this number, each at once: the store answers in its own time.
const COMPLETED_AT_ONCE: usize = 16;

/// What is neither an upload nor an object is looked for again, after this time, then twice of it, and so on: for six
/// seconds in all, before it is taken for lost.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_millis(3_200);

/// Begins uploads, which share what may be under way at once.
pub struct Uploads {
    s3: S3,
    permits: Arc<Semaphore>,
}

/// An upload that is being sent. Dropped before [`Upload::finish`], it is aborted.
pub struct Upload {
    s3: S3,
    permits: Arc<Semaphore>,
    path: String,
    key: Path,
    /// Begun with the first part, by whichever part comes first to the store.
    id: Arc<OnceCell<MultipartId>>,
    parts: Vec<mpsc::Receiver<object_store::Result<PartId>>>,
    bytes: u64,
}

/// An upload all of whose parts are with the store: enough for any process to complete it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PendingUpload {
    /// Of the object, relative to the location.
    pub path: String,
    /// The store's name of the upload.
    pub id: String,
    /// What the store answered to each part, in their order.
    pub parts: Vec<String>,
    /// Of the whole object.
    pub bytes: u64,
}

/// How an upload stands after [`S3::complete`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Completion {
    /// The object is there, since now or since before.
    Done,
    /// There is neither the upload nor an object: the store (or someone) has aborted it, and its bytes are gone.
    Lost,
    /// There is no upload, and an object of another length.
    Replaced {
        /// Its length.
        bytes: u64,
    },
}

impl S3 {
    /// For uploads of which so many parts may be under way at once.
    pub fn uploads(&self, parts_at_once: usize) -> Uploads {
        Uploads { s3: self.clone(), permits: Arc::new(Semaphore::new(parts_at_once.max(1))) }
    }

    /// Makes the objects of uploads visible, as far as they are not; answers in their order. To do it again, also from
    /// several processes at once, changes nothing.
    pub fn complete(&self, pending: &[PendingUpload]) -> Result<Vec<Completion>, BlobError> {
        let mut answers = Vec::with_capacity(pending.len());
        for group in pending.chunks(COMPLETED_AT_ONCE) {
            let asked = group.iter().map(|upload| self.ask_to_complete(upload)).collect::<Result<Vec<_>, _>>()?;
            for (upload, answer) in group.iter().zip(asked) {
                let answer = answer.recv().map_err(|_| unavailable(DROPPED.to_owned()))?;
                answers.push(answer.map_err(|e| self.failed("completing the upload of", &upload.path, &e))?);
            }
        }
        Ok(answers)
    }

    /// Gives an upload up. That there is none is no error.
    pub fn abort(&self, path: &str, id: &str) -> Result<(), BlobError> {
        let (store, key, upload) = (Arc::clone(&self.store), self.path(path), id.to_owned());
        match wait(async move { store.abort_multipart(&key, &upload).await })? {
            Ok(()) => Ok(()),
            Err(e) if is_absent(&e) => Ok(()),
            Err(e) => Err(self.failed("aborting the upload of", path, &e)),
        }
    }

    fn ask_to_complete(&self, upload: &PendingUpload) -> Result<Answer<Completion>, BlobError> {
        let (store, key) = (Arc::clone(&self.store), self.path(&upload.path));
        let PendingUpload { id, parts, bytes, .. } = upload.clone();
        spawn(async move {
            let parts: Vec<PartId> = parts.into_iter().map(|content_id| PartId { content_id }).collect();
            let mut wait = FIRST_WAIT;
            loop {
                match store.complete_multipart(&key, &id, parts.clone()).await {
                    Ok(_) => {}
                    // Completed before, maybe by a request whose answer was lost; or aborted.
                    Err(e) if is_absent(&e) || says(&e, "NoSuchUpload") => {}
                    Err(e) => return Err(e),
                }
                // Also after a success: so that it may be repeated, some stores report one whatever object is there.
                match store.head(&key).await {
                    Ok(object) if object.size == bytes => return Ok(Completion::Done),
                    Ok(object) => return Ok(Completion::Replaced { bytes: object.size }),
                    Err(e) if !is_absent(&e) => return Err(e),
                    Err(_) if wait > LAST_WAIT => return Ok(Completion::Lost),
                    // Another process may be completing it at this moment: not all stores do so in one step.
                    Err(_) => tokio::time::sleep(wait).await,
                }
                wait *= 2;
            }
        })
    }
}

impl Uploads {
    /// An upload to a path that nobody else ever writes to: an object that is there is replaced. Nothing is asked of the
    /// store before the first part.
    pub fn begin(&self, path: &str) -> Upload {
        Upload {
            s3: self.s3.clone(),
            permits: Arc::clone(&self.permits),
            path: path.to_owned(),
            key: self.s3.path(path),
            id: Arc::default(),
            parts: Vec::new(),
            bytes: 0,
        }
    }
}

impl Upload {
    /// Sends the next part, in the background. All parts but the last have the same length, of at least 5 MiB, which is
    /// what stores demand. Blocks while too many are under way; whether one failed is known in the end.
    pub fn send(&mut self, part: Vec<u8>) -> Result<(), BlobError> {
        self.send_with(part, ())
    }

    /// The same; `until_sent` is dropped when the part is with the store, or given up.
    pub fn send_with(&mut self, part: Vec<u8>, until_sent: impl Send + 'static) -> Result<(), BlobError> {
        let permits = Arc::clone(&self.permits);
        let permit = wait(permits.acquire_owned())?.map_err(|_| unavailable(DROPPED.to_owned()))?;
        let (store, key) = (Arc::clone(&self.s3.store), self.key.clone());
        let (id, index) = (Arc::clone(&self.id), self.parts.len());
        self.bytes += part.len() as u64;
        self.parts.push(spawn(async move {
            let id = id.get_or_try_init(|| store.create_multipart(&key)).await?;
            let sent = store.put_part(&key, id, index, part.into()).await;
            drop((permit, until_sent));
            sent
        })?);
        Ok(())
    }

    /// How many bytes were handed over.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Waits until the store has every part. At least one must have been sent.
    pub fn finish(mut self) -> Result<PendingUpload, BlobError> {
        let mut parts = Vec::with_capacity(self.parts.len());
        for sent in &self.parts {
            let sent = sent.recv().map_err(|_| unavailable(DROPPED.to_owned()))?;
            parts.push(sent.map_err(|e| self.s3.failed("writing", &self.path, &e))?.content_id);
        }
        let id = self.id.get().cloned().ok_or_else(|| unavailable(format!("'{}': no part was sent", self.path)))?;
        self.parts.clear();
        Ok(PendingUpload { path: self.path.clone(), id, parts, bytes: self.bytes })
    }
}

impl Drop for Upload {
    /// Parts that nobody completes cost money and are not listed. That this fails is not worth a word: whoever sent them
    /// looks for what is left of earlier attempts, and buckets have rules for such uploads.
    fn drop(&mut self) {
        if self.parts.is_empty() {
            return;
        }
        let (store, key, id) = (Arc::clone(&self.s3.store), self.key.clone(), Arc::clone(&self.id));
        let parts = std::mem::take(&mut self.parts);
        let Ok(runtime) = runtime() else { return };
        runtime.spawn_blocking(move || {
            // A part that arrives after the abort would be kept.
            parts.iter().for_each(|part| _ = part.recv());
            let Some(id) = id.get().cloned() else { return };
            let _ = wait(async move { store.abort_multipart(&key, &id).await });
        });
    }
}

type Answer<T> = mpsc::Receiver<object_store::Result<T>>;

const DROPPED: &str = "a request to the object store was dropped";

/// Runs a future in the background.
fn spawn<T: Send + 'static>(
    future: impl Future<Output = object_store::Result<T>> + Send + 'static,
) -> Result<Answer<T>, BlobError> {
    let (give, take) = mpsc::sync_channel(1);
    runtime()?.spawn(async move {
        let _ = give.send(future.await);
    });
    Ok(take)
}
