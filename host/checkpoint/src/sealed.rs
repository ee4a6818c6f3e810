//! Documents that say themselves what they are: a line of JSON with format, version, length and checksum, then the body,
//! JSON too.
//!
//! Invariant: a body is only handed out if it is whole, and of a version that this program knows.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::checksum;

#[derive(Serialize, Deserialize)]
struct Seal {
    format: String,
    version: u32,
    bytes: u64,
    checksum: String,
}

/// What a seal says about the version, readable whatever else that version put in it.
#[derive(Deserialize)]
struct Version {
    format: String,
    version: u32,
}

/// Why a document can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It ends too early, or too late.
    Length {
        /// How long the body is.
        is: u64,
        /// How long it was written.
        written: u64,
    },
    /// Its bytes are not those that were written.
    Checksum,
    /// It was written by a newer program.
    Newer(u32),
    /// It is something else.
    NotThis(String),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { is, written } => write!(f, "it is damaged: {is} bytes long instead of {written}"),
            Self::Checksum => f.write_str("it is damaged: its checksum does not fit"),
            Self::Newer(version) => write!(f, "it has version {version}, which a newer Tidemill wrote"),
            Self::NotThis(why) => write!(f, "it is damaged or something else: {why}"),
        }
    }
}

/// Seals a body.
pub fn seal(format: &str, version: u32, body: &[u8]) -> Vec<u8> {
    let seal = Seal { format: format.to_owned(), version, bytes: body.len() as u64, checksum: checksum::of(body) };
    // Writing strings and numbers to memory has no way to fail.
    let mut sealed = serde_json::to_vec(&seal).unwrap_or_default();
    sealed.push(b'\n');
    sealed.extend_from_slice(body);
    sealed
}

/// The body of a document of this format, up to this version.
pub fn open<'a>(format: &str, version: u32, sealed: &'a [u8]) -> Result<&'a [u8], Damage> {
    let end = sealed.iter().position(|b| *b == b'\n').unwrap_or(sealed.len());
    let (line, rest) = sealed.split_at(end);
    let not_this = |e: serde_json::Error| Damage::NotThis(e.to_string());
    let found: Version = serde_json::from_slice(line).map_err(not_this)?;
    if found.format != format {
        return Err(Damage::NotThis(format!("a '{}' where a '{format}' is expected", found.format)));
    }
    if found.version > version {
        return Err(Damage::Newer(found.version));
    }
    let seal: Seal = serde_json::from_slice(line).map_err(not_this)?;
    let body = rest.get(1..).unwrap_or_default();
    if body.len() as u64 != seal.bytes {
        return Err(Damage::Length { is: body.len() as u64, written: seal.bytes });
    }
    if checksum::of(body) != seal.checksum {
        return Err(Damage::Checksum);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_truncation_and_no_flipped_bit_goes_unnoticed() {
        let sealed = seal("log", 1, br#"{"number":1}"#);
        assert_eq!(open("log", 1, &sealed), Ok(&br#"{"number":1}"#[..]));
        for length in 0..sealed.len() {
            assert!(open("log", 1, &sealed[..length]).is_err(), "cut to {length} bytes");
        }
        let body = sealed.iter().position(|b| *b == b'\n').unwrap() + 1;
        for at in body..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 4;
            assert_eq!(open("log", 1, &flipped), Err(Damage::Checksum));
        }
    }

    #[test]
    fn a_newer_version_is_named_whatever_it_looks_like() {
        let newer = br#"{"format":"log","version":7,"zstd":true}"#;
        assert_eq!(open("log", 1, newer), Err(Damage::Newer(7)));
        assert!(matches!(open("savepoint", 1, newer), Err(Damage::NotThis(_))));
    }
}
