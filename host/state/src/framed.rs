//! The frame of our files: streams, then a footer in JSON that says what they are, and its length; opened and closed by eight
//! bytes that name the format.
//!
//! Invariant: whatever the bytes are, reading ends in bytes that have their checksum or in words that say what is wrong.

use arrow::buffer::Buffer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidemill_core::{Error, Result};
use xxhash_rust::xxh3::xxh3_64;

/// Opens and closes a file.
pub(crate) type Magic = [u8; 8];

/// Streams begin at multiples of this, so that their buffers are used where they are.
const ALIGNMENT: usize = 64;

/// Where a stream is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// XXH3 (64 bits) of these bytes. A file has a checksum as a whole where it is referred to; this one keeps bytes that
    /// are not a stream away from the decoder, which trusts lengths within them.
    pub(crate) xxh3: u64,
}

/// Where the next stream begins.
pub(crate) fn align(file: &mut Vec<u8>) -> usize {
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.len()
}

/// The stream from there to the end.
pub(crate) fn placed(file: &[u8], offset: usize) -> Place {
    let stream = file.get(offset..).unwrap_or_default();
    Place { offset: offset as u64, bytes: stream.len() as u64, xxh3: xxh3_64(stream) }
}

/// Ends a file that begins with this magic and has its streams.
pub(crate) fn seal(file: &mut Vec<u8>, magic: &Magic, footer: &impl Serialize) -> Result<()> {
    let footer = serde_json::to_vec(footer).map_err(|e| Error::internal(format!("the footer of a file: {e}")))?;
    file.extend_from_slice(&footer);
    file.extend_from_slice(&(footer.len() as u64).to_le_bytes());
    file.extend_from_slice(magic);
    Ok(())
}

/// The footer of a file; `not_one` is said of what is none.
pub(crate) fn footer<T: DeserializeOwned>(file: &[u8], magic: &Magic, not_one: &str) -> Result<T, String> {
    let inner = file.strip_prefix(magic).and_then(|b| b.strip_suffix(magic)).ok_or(not_one)?;
    let (inner, length) = inner.split_last_chunk::<8>().ok_or(not_one)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let start = inner.len().checked_sub(length).ok_or("announces a footer that is longer than itself")?;
    let footer = inner.get(start..).unwrap_or_default();
    serde_json::from_slice(footer).map_err(|e| format!("has a footer that can't be read: {e}"))
}

/// A stream of a file.
pub(crate) fn at(file: &Buffer, place: Place) -> Result<Buffer, String> {
    let (offset, bytes) = (usize::try_from(place.offset), usize::try_from(place.bytes));
    match (offset, bytes) {
        (Ok(offset), Ok(bytes)) if offset.checked_add(bytes).is_some_and(|end| end <= file.len()) => {
            let stream = file.slice_with_length(offset, bytes);
            if xxh3_64(&stream) == place.xxh3 { Ok(stream) } else { Err("is damaged".to_owned()) }
        }
        _ => Err("points beyond its end".to_owned()),
    }
}
