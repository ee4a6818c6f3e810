//! Part files in a bucket of an object store.
//!
//! A part file is an upload to its final key, which shows nothing before it is completed: `prepare` waits until the store
//! has all its bytes, and names key and upload in a committable; `commit` completes it. The key has a name in it that is
//! drawn anew for each writer, so no key is given twice, and which attempt at which job began the upload.
//!
//! What an attempt began and nobody completes is not listed as an object, but paid for: the next attempt aborts it. Where
//! the store does not say what is unfinished, that is left to the bucket's own rule.

use std::collections::BTreeMap;
use std::mem;

use serde::{Deserialize, Serialize};
use tidemill_blobs::{Blobs as _, Completion, PendingUpload, S3, Trouble, Upload, Uploads, at_path};
use tidemill_connector_kit::Buffers;
use tidemill_core::connector::{Attempt, Committable, SinkCommitter};
use tidemill_core::error::{Error, Result};
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::Epoch;

use super::place::{Place, attempt_of, attempt_prefix, committable, read};
use super::{Existing, folder, is_part, outside};

/// Stores refuse smaller parts, but for the last one.
pub(super) const MIN_PART_BYTES: u64 = 5 << 20;
/// And more than so many of one object.
pub(super) const MAX_PARTS: u64 = 10_000;
/// Parts of one writer that are under way at once, and so in memory beside those that are gathered.
const PARTS_AT_ONCE: usize = 4;

/// Deals with the part files of another run.
pub(super) fn start_anew(s3: &S3, existing: Existing) -> Result<()> {
    if existing == Existing::Keep {
        return Ok(());
    }
    let listed = s3.list_below("")?.into_iter().map(|l| l.name);
    let parts: Vec<String> = listed.filter(|name| is_part(file_name(name)) && !outside(name)).collect();
    match (existing, parts.iter().min()) {
        (Existing::Fail, Some(part)) => Err(folder::existing_error(&at_path(s3.location(), part))),
        (Existing::Delete, Some(_)) => Ok(s3.delete_all(&parts)?),
        _ => Ok(()),
    }
}

/// Aborts what earlier attempts at this job began and never committed.
pub(super) fn clean_up(s3: &S3, attempt: &Attempt<'_>) -> Result<()> {
    let unfinished = match s3.unfinished() {
        Ok(unfinished) => unfinished,
        Err(error) if matches!(error.trouble, Trouble::Denied | Trouble::Unfit) => {
            tracing::warn!("uploads of earlier attempts are left to the rules of the bucket: {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    for upload in unfinished {
        let earlier = attempt_of(attempt.job, file_name(&upload.path));
        if earlier.is_some_and(|number| number < attempt.number) {
            s3.abort(&upload.path, &upload.id)?;
            Failpoint::SinkDeleted.reach();
        }
    }
    Ok(())
}

/// How the names of one writer's part files begin; `nonce` is nobody else's.
pub(super) fn writer_prefix(job: &str, attempt: u64, subtask: u32, nonce: &str) -> String {
    format!("{}{subtask}-{nonce}-", attempt_prefix(job, attempt))
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// The bucket, for the writer of one subtask.
pub(super) struct Bucket {
    uploads: Uploads,
    /// Where parts are counted that are under way.
    buffers: Buffers,
    part_bytes: usize,
    /// What its names begin with; no other writer has the same.
    prefix: String,
    extension: &'static str,
    /// Number of the next name.
    number: u64,
}

impl Bucket {
    /// For names that begin with this [`writer_prefix`].
    pub(super) fn new(s3: &S3, part_bytes: usize, prefix: String, extension: &'static str, buffers: Buffers) -> Self {
        Self { uploads: s3.uploads(PARTS_AT_ONCE), buffers, part_bytes, prefix, extension, number: 0 }
    }

    fn send(&self, part: &mut Upload, text: Vec<u8>) -> Result<()> {
        let held = self.buffers.holding(text.len())?;
        Ok(part.send_with(text, held)?)
    }
}

impl Place for Bucket {
    type Part = Upload;

    fn piece_bytes(&self, _many: bool) -> usize {
        self.part_bytes
    }

    fn create(&mut self, folder: &str) -> Result<Upload> {
        let file = format!("{}{}.{}", self.prefix, self.number, self.extension);
        self.number += 1;
        let begun = self.uploads.begin(&if folder.is_empty() { file } else { format!("{folder}/{file}") });
        Failpoint::PartCreated.reach();
        Ok(begun)
    }

    fn write(&mut self, part: &mut Upload, text: &mut Vec<u8>) -> Result<()> {
        while text.len() >= self.part_bytes {
            let rest = text.split_off(self.part_bytes);
            self.send(part, mem::replace(text, rest))?;
            Failpoint::PartWritten.reach();
        }
        Ok(())
    }

    fn written(part: &Upload) -> u64 {
        part.bytes()
    }

    /// Does not wait for the store: that all files are sent together is what makes `prepare` short.
    fn close(&mut self, part: &mut Upload, mut text: Vec<u8>) -> Result<()> {
        self.write(part, &mut text)?;
        Failpoint::PartUnsynced.reach();
        if !text.is_empty() {
            self.send(part, text)?;
        }
        Ok(())
    }

    fn prepare(&mut self, _epoch: Epoch, parts: Vec<Upload>) -> Result<Option<Committable>> {
        let mut uploads = Vec::with_capacity(parts.len());
        for part in parts {
            uploads.push(part.finish()?);
            Failpoint::PartSynced.reach();
        }
        Failpoint::PartPrepared.reach();
        if uploads.is_empty() { Ok(None) } else { Sent { uploads }.committable().map(Some) }
    }
}

/// The uploads of one `prepare`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sent {
    pub(super) uploads: Vec<PendingUpload>,
}

impl Sent {
    pub(super) fn committable(&self) -> Result<Committable> {
        committable(self)
    }

    pub(super) fn from_committable(committable: &Committable) -> Result<Self> {
        let sent: Self = read(committable, "a bucket")?;
        match sent.uploads.iter().find(|upload| outside(&upload.path)) {
            Some(PendingUpload { path, .. }) => {
                Err(Error::invalid(format!("a committable of the files sink names '{path}', outside its folder")))
            }
            None => Ok(sent),
        }
    }
}

pub(super) struct BucketCommitter {
    pub(super) s3: S3,
}

impl SinkCommitter for BucketCommitter {
    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        for committable in committables {
            let uploads = Sent::from_committable(committable)?.uploads;
            let answers = self.s3.complete(&uploads)?;
            let lost: BTreeMap<&str, Completion> = uploads
                .iter()
                .zip(answers)
                .filter(|(_, answer)| *answer != Completion::Done)
                .map(|(upload, answer)| (upload.path.as_str(), answer))
                .collect();
            if let Some((path, answer)) = lost.first_key_value() {
                return Err(lost_error(&at_path(self.s3.location(), path), *answer, lost.len()));
            }
            Failpoint::CommitRenamed.reach();
        }
        Ok(())
    }
}

/// What can't be committed any more. It is the user's to mend: the job stops rather than going on without the rows.
fn lost_error(key: &str, how: Completion, files: usize) -> Error {
    let mend = "Restart the job from an earlier checkpoint or savepoint, if there is one whose output was not committed \
                yet; and let the bucket's rule abort incomplete uploads only after longer than the job is ever down \
                (AbortIncompleteMultipartUpload: 7 days or more).";
    let more = if files > 1 { format!(" (and {} more files)", files - 1) } else { String::new() };
    let why = match how {
        Completion::Replaced { bytes } => {
            format!("its upload is gone, and there is an object of {bytes} bytes which someone else wrote")
        }
        _ => "its upload is gone and there is no such object: the store aborted it, or someone deleted the object"
            .to_owned(),
    };
    Error::invalid(format!("the rows of a checkpoint are lost: '{key}'{more}: {why}")).mend(mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_which_attempt_at_which_job_began_it() {
        let name = format!("{}3.jsonl", writer_prefix("mine", 7, 0, "00ff"));
        assert!(is_part(&name));
        assert_eq!(attempt_of("mine", &name), Some(7));
        assert_eq!(attempt_of("other", &name), None);
        assert_eq!(attempt_of("mine", "part-0-7-1.jsonl"), None);
    }
}
