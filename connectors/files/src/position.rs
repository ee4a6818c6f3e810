//! Where in a file a split begins, ends, and stands: what a checkpoint keeps of it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tidemill_connector_kit::reading::SplitPosition;
use tidemill_core::connector::{Split, SplitId};
use tidemill_core::error::{Error, Result};

use crate::find::Found;

/// A part of a file. Its records are those that begin at `start` or later and before `end`. Offsets count the bytes of
/// the file's text, which for a compressed file are not the bytes on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Position {
    pub(crate) path: PathBuf,
    pub(crate) start: u64,
    /// `None`: the end of the file.
    pub(crate) end: Option<u64>,
    /// The record to read next begins here. `None`: nothing was read yet.
    pub(crate) next: Option<u64>,
    /// Lines from `start` to `next`.
    pub(crate) line: u64,
}

impl Position {
    /// A file in so many parts of equal size, nothing read yet.
    pub(crate) fn parts(file: &Found, parts: u64) -> Vec<Self> {
        let parts = parts.max(1);
        let cut = |i: u64| (u128::from(file.bytes) * u128::from(i) / u128::from(parts)) as u64;
        (0..parts)
            .map(|i| Self {
                path: file.path.clone(),
                start: cut(i),
                end: (i + 1 < parts).then(|| cut(i + 1)),
                next: None,
                line: 0,
            })
            .collect()
    }
}

impl SplitPosition for Position {
    fn id(&self) -> SplitId {
        let path = self.path.display();
        SplitId(match (self.start, self.end) {
            (0, None) => path.to_string(),
            (start, None) => format!("{path} from byte {start}"),
            (start, Some(end)) => format!("{path} from byte {start} to {end}"),
        })
    }

    fn to_split(&self) -> Result<Split> {
        let description = serde_json::to_vec(self).map_err(|e| {
            Error::invalid(format!("the path '{}' can't be written into a checkpoint: {e}", self.path.display()))
                .mend("give the file a name in UTF-8")
        })?;
        Ok(Split { id: self.id(), description })
    }

    fn from_split(split: &Split) -> Result<Self> {
        let position: Self = serde_json::from_slice(&split.description)
            .map_err(|e| Error::invalid(format!("the position of split '{}' is no position: {e}", split.id.0)))?;
        let ordered = position.end.is_none_or(|end| end >= position.start)
            && position.next.is_none_or(|next| next >= position.start);
        if !ordered {
            return Err(Error::invalid(format!("the position of split '{}' contradicts itself", split.id.0)));
        }
        Ok(position)
    }

    fn moved(&mut self, byte: u64, line: u64) {
        (self.next, self.line) = (Some(byte), line);
    }
}
