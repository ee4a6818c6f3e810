//! A bucket of an object store that speaks S3.
//!
//! Credentials, region and endpoint are the process's settings ([`S3Settings`]), or come from the environment, under the names
//! that the tools of AWS use: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, and those of web
//! identities and of the metadata service. A plain `http://` endpoint is accepted, since naming it is a choice.
//!
//! [`Blobs::put_new`] is a `PUT` with `If-None-Match: *`, of which the store lets one win. A store that ignores the
//! header is found out by the probe of the checkpoints' store.
//!
//! Calls block. Their futures run on threads of this module, so that they may come from any thread.

mod settings;
mod unfinished;
mod uploads;

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig};
use tidemill_core::error::{Error, Result};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;

use crate::{BlobError, BlobWriter, Blobs, Listed, PutNew, Trouble, at_path};

pub use settings::{S3Addressing, S3Credentials, S3Settings};
pub use unfinished::Unfinished;
pub use uploads::{Completion, PendingUpload, Upload, Uploads};

/// Threads that wait for answers of object stores, for the whole process.
const IO_THREADS: usize = 2;

/// A part of an upload; the store's least is 5 MiB, and it takes 10,000 parts.
const PART_BYTES: usize = 16 << 20;

/// Parts of one upload that are under way at once.
const PARTS_AT_ONCE: usize = 4;

/// How long one request may take, and how long it is repeated.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
const RETRY_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What gives machines of AWS their credentials.
const METADATA_SERVICE: &str = "http://169.254.169.254/";

/// A prefix in a bucket. Clones are the same.
#[derive(Clone)]
pub struct S3 {
    store: Arc<AmazonS3>,
    prefix: Path,
    location: String,
}

impl S3 {
    /// The bucket and prefix of `s3://BUCKET/PREFIX`, as this process's settings and its environment say. Nothing is asked of
    /// the store yet.
    pub fn open(url: &str) -> Result<Self> {
        let environment = std::env::vars_os();
        let known = environment.filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            name.starts_with("AWS_").then_some((name, value))
        });
        Self::open_with(url, &S3Settings::of_this_process(), known)
    }

    /// The same with an environment. Names that mean nothing here are passed over.
    pub fn with_settings(url: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        Self::open_with(url, &S3Settings::default(), environment)
    }

    /// The same with settings; what they don't say is the environment's.
    pub fn open_with(
        url: &str,
        settings: &S3Settings,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        let wrong = |why: &str| Error::invalid(format!("'{url}': {why}")).mend("name it s3://BUCKET/PREFIX");
        let (_, rest) = url.split_once("://").ok_or_else(|| wrong("this is no URL"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(wrong("it names no bucket"));
        }
        let prefix = Path::parse(prefix.trim_matches('/')).map_err(|e| wrong(&e.to_string()))?;
        let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
        for (name, value) in settings.over(environment, bucket) {
            let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() else { continue };
            if matches!(key, AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint) && value.starts_with("http:")
            {
                builder = builder.with_allow_http(true);
            }
            builder = builder.with_config(key, value);
        }
        let options = ClientOptions::new().with_timeout(REQUEST_LIMIT).with_connect_timeout(CONNECT_LIMIT);
        let options =
            match builder.get_config_value(&AmazonS3ConfigKey::Client(object_store::ClientConfigKey::AllowHttp)) {
                Some(allow) if allow == "true" => options.with_allow_http(true),
                _ => options,
            };
        let retry = RetryConfig { retry_timeout: RETRY_LIMIT, ..RetryConfig::default() };
        // Of this process; that another library chose one before is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = builder.with_client_options(options).with_retry(retry).build().map_err(|e| {
            Error::invalid(format!("'{url}' can't be opened: {e}"))
                .mend("set s3-region, s3-endpoint and the like, or AWS_REGION, AWS_ENDPOINT_URL")
        })?;
        Ok(Self { store: Arc::new(store), prefix, location: url.trim_end_matches('/').to_owned() })
    }

    /// The blobs of a folder and of all folders in it, by their paths in that folder; in no order.
    pub fn list_below(&self, folder: &str) -> Result<Vec<Listed>, BlobError> {
        let (store, root) = (Arc::clone(&self.store), self.path(folder));
        let within = root.clone();
        let listed = wait(async move {
            let named = store.list(Some(&root)).map_ok(|object| (object.location, object.size));
            named.try_collect::<Vec<_>>().await
        })?;
        match listed {
            Ok(found) => Ok(found
                .into_iter()
                .filter_map(|(key, bytes)| Some(Listed { name: below(&within, key.as_ref())?, bytes }))
                .collect()),
            Err(e) if is_absent(&e) => Ok(Vec::new()),
            Err(e) => Err(self.failed("listing", folder, &e)),
        }
    }

    /// The key of a path: as it stands, or escaped where it has characters that the store's client does not take.
    fn path(&self, path: &str) -> Path {
        let parts = || path.split('/').filter(|part| !part.is_empty());
        let whole = std::iter::once(self.prefix.as_ref()).filter(|p| !p.is_empty()).chain(parts()).collect::<Vec<_>>();
        let escaped = || parts().fold(self.prefix.clone(), |whole, part| whole.join(part));
        Path::parse(whole.join("/")).unwrap_or_else(|_| escaped())
    }

    fn failed(&self, doing: &str, path: &str, error: &object_store::Error) -> BlobError {
        failed(doing, &at_path(&self.location, path), error)
    }
}

impl Blobs for S3 {
    fn location(&self) -> &str {
        &self.location
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn put_new(&self, path: &str, content: &[u8]) -> Result<PutNew, BlobError> {
        let (store, target) = (Arc::clone(&self.store), self.path(path));
        let payload = PutPayload::from(content.to_vec());
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match wait(async move { store.put_opts(&target, payload, options).await })? {
            Ok(_) => Ok(PutNew::Done),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(PutNew::Exists)
            }
            Err(e) => {
                let failed = self.failed("writing", path, &e);
                // A request without an answer may have arrived.
                Err(BlobError { in_doubt: failed.trouble == Trouble::Unavailable, ..failed })
            }
        }
    }

    fn create(&self, path: &str) -> Result<Box<dyn BlobWriter>, BlobError> {
        let store: Arc<dyn ObjectStore> = Arc::clone(&self.store) as _;
        let upload = BufWriter::with_capacity(store, self.path(path), PART_BYTES).with_max_concurrency(PARTS_AT_ONCE);
        let whole_path = at_path(&self.location, path);
        Ok(Box::new(S3Writer { upload: Some(upload), piece: Vec::new(), whole_path }))
    }

    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send>>, BlobError> {
        let (store, target) = (Arc::clone(&self.store), self.path(path));
        match wait(async move { store.get(&target).await })? {
            Ok(got) => Ok(Some(Box::new(S3Reader { rest: Some(got.into_stream()), piece: VecDeque::new() }))),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(self.failed("reading", path, &e)),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, BlobError> {
        let (store, target) = (Arc::clone(&self.store), self.path(folder));
        match wait(async move { store.list_with_delimiter(Some(&target)).await })? {
            Ok(found) => {
                let direct = found.objects.into_iter();
                let named = direct.filter_map(|o| Some((o.location.filename()?.to_owned(), o.size)));
                Ok(named.map(|(name, bytes)| Listed { name, bytes }).collect())
            }
            Err(e) if is_absent(&e) => Ok(Vec::new()),
            Err(e) => Err(self.failed("listing", folder, &e)),
        }
    }

    fn delete(&self, path: &str) -> Result<(), BlobError> {
        let (store, target) = (Arc::clone(&self.store), self.path(path));
        match wait(async move { store.delete(&target).await })? {
            Ok(()) => Ok(()),
            Err(e) if is_absent(&e) => Ok(()),
            Err(e) => Err(self.failed("deleting", path, &e)),
        }
    }

    fn delete_all(&self, paths: &[String]) -> Result<(), BlobError> {
        let Some(first) = paths.first() else { return Ok(()) };
        let store = Arc::clone(&self.store);
        let targets: Vec<_> = paths.iter().map(|path| Ok(self.path(path))).collect();
        let deleted = wait(async move {
            // A request for a thousand keys at a time.
            let answers = store.delete_stream(futures_util::stream::iter(targets).boxed()).collect::<Vec<_>>().await;
            answers.into_iter().filter_map(Result::err).find(|e| !is_absent(e))
        })?;
        deleted.map_or(Ok(()), |e| Err(self.failed("deleting", first, &e)))
    }
}

/// An upload: one request if it is small, parts otherwise.
struct S3Writer {
    /// `None` while a future has it, and after it ended.
    upload: Option<BufWriter>,
    piece: Vec<u8>,
    whole_path: String,
}

impl S3Writer {
    /// Does something with the upload, on the threads of this module.
    fn with<F>(&mut self, act: impl FnOnce(BufWriter, Vec<u8>) -> F) -> io::Result<()>
    where
        F: Future<Output = (BufWriter, io::Result<()>)> + Send + 'static,
    {
        let upload = self.upload.take().ok_or_else(|| io::Error::other("the upload has ended"))?;
        let piece = std::mem::take(&mut self.piece);
        let (upload, done) = wait(act(upload, piece)).map_err(io::Error::other)?;
        self.upload = Some(upload);
        done
    }

    fn send_piece(&mut self) -> io::Result<()> {
        self.with(|mut upload, piece| async move {
            let done = upload.put(piece.into()).await.map_err(io::Error::from);
            (upload, done)
        })
    }
}

impl Write for S3Writer {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(piece);
        if self.piece.len() >= PART_BYTES {
            self.send_piece()?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_piece()
    }
}

impl BlobWriter for S3Writer {
    fn finish(mut self: Box<Self>) -> Result<(), BlobError> {
        let done = self.send_piece().and_then(|()| {
            self.with(|mut upload, _| async move {
                let done = upload.shutdown().await;
                (upload, done)
            })
        });
        match done {
            Ok(()) => {
                self.upload = None;
                Ok(())
            }
            Err(e) => Err(upload_failed(&self.whole_path, &e)),
        }
    }
}

impl Drop for S3Writer {
    /// Parts of an upload that nobody completes cost money and are not listed. That this fails is not worth a word:
    /// buckets have rules for such uploads.
    fn drop(&mut self) {
        if let (Some(mut upload), Ok(runtime)) = (self.upload.take(), runtime()) {
            runtime.spawn(async move {
                let _ = upload.abort().await;
            });
        }
    }
}

/// A key's path below another.
fn below(folder: &Path, key: &str) -> Option<String> {
    let rest = key.strip_prefix(folder.as_ref())?;
    Some(rest.strip_prefix('/').unwrap_or(rest).to_owned())
}

type Pieces = BoxStream<'static, object_store::Result<Bytes>>;

/// The answer to a request, as it comes in.
struct S3Reader {
    /// `None` at its end.
    rest: Option<Pieces>,
    piece: VecDeque<u8>,
}

impl Read for S3Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let Some(mut rest) = self.rest.take() else { return Ok(0) };
            let (rest, next) = wait(async move {
                let next = rest.next().await;
                (rest, next)
            })
            .map_err(io::Error::other)?;
            match next {
                Some(Ok(piece)) => {
                    self.rest = Some(rest);
                    self.piece = Vec::from(piece).into();
                }
                Some(Err(e)) => return Err(e.into()),
                None => return Ok(0),
            }
        }
        self.piece.read(into)
    }
}

fn runtime() -> Result<&'static Runtime, BlobError> {
    static RUNTIME: OnceLock<io::Result<Runtime>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(IO_THREADS).thread_name("objects").enable_all().build()
    });
    made.as_ref().map_err(|e| unavailable(format!("no threads for the object store: {e}")))
}

/// Runs a future to its end.
fn wait<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Result<T, BlobError> {
    let (give, take) = mpsc::sync_channel(1);
    runtime()?.spawn(async move {
        let _ = give.send(future.await);
    });
    take.recv().map_err(|_| unavailable("a request to the object store was dropped".to_owned()))
}

fn unavailable(message: String) -> BlobError {
    BlobError { trouble: Trouble::Unavailable, in_doubt: true, message }
}

/// The object is not there; that the bucket isn't is another matter.
fn is_absent(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. }) && !says(error, "NoSuchBucket")
}

/// The answers of stores differ in their status codes; the code in the text is the standard's.
fn says(error: &object_store::Error, code: &str) -> bool {
    error.to_string().contains(code)
}

fn failed(doing: &str, whole_path: &str, error: &object_store::Error) -> BlobError {
    use object_store::Error as Object;
    let trouble = match error {
        _ if says(error, "NoSuchBucket") => Trouble::NoSuchPlace,
        // Listings have a kind of error of their own for everything.
        _ if says(error, METADATA_SERVICE) || says(error, "403 Forbidden") => Trouble::Denied,
        _ if says(error, "InvalidPart") || says(error, "EntityTooSmall") => Trouble::Other,
        _ if says(error, "QuotaExceeded") || says(error, "507 Insufficient Storage") => Trouble::Full,
        Object::PermissionDenied { .. } | Object::Unauthenticated { .. } => Trouble::Denied,
        Object::NotImplemented { .. } | Object::NotSupported { .. } => Trouble::Unfit,
        _ if says(error, "NotImplemented") => Trouble::Unfit,
        Object::Generic { .. } => Trouble::Unavailable,
        _ => Trouble::Other,
    };
    let mut message = format!("{doing} '{whole_path}': {}", chain(error));
    if says(error, METADATA_SERVICE) {
        message
            .push_str("; there is neither s3-credentials nor AWS_ACCESS_KEY_ID, so this machine's metadata service was asked for credentials");
    }
    BlobError { trouble, in_doubt: false, message }
}

fn upload_failed(whole_path: &str, error: &io::Error) -> BlobError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<object_store::Error>()) {
        Some(error) => failed("writing", whole_path, error),
        None => crate::io_failed("writing", whole_path, error),
    }
}

/// An error with its causes, those left out that repeat what was said.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !said.contains(&words) {
            said = format!("{said}: {words}");
        }
        next = cause.source();
    }
    said
}
