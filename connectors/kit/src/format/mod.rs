//! Records as text: JSON lines, CSV and raw lines, to columns and back.
//!
//! Decoding takes chunks of whole records and gives batches of exactly the columns that are asked for; one malformed
//! record never takes its neighbours with it. Encoding appends to a byte vector. In reading order:

mod chunk;
mod columns;
mod csv;
mod decode;
mod encode;
mod header;
mod json;
mod nested;
mod time;
mod views;

pub use chunk::{CHUNK_BYTES, Chunk, Chunker, Piece};
pub use decode::{Cursor, DecodeFormat, Decoded, Decoder, Rejects};
pub use encode::{EncodeFormat, Encoder};
pub use time::{format_date, format_timestamp, parse_date, parse_timestamp};

use tidemill_core::error::Result;

use crate::options::{Key, Options};

/// A CSV delimiter: one ASCII character that can't be taken for anything else.
fn delimiter(options: &Options, key: &Key<char>) -> Result<u8> {
    let character = options.need(key)?;
    match u8::try_from(character) {
        Ok(byte) if byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"\"\r\n-.+".contains(&byte) => Ok(byte),
        _ => Err(options
            .error(key, format!("{character:?} can't stand between fields"))
            .mend("use one ASCII character, as in delimiter = \";\" or \"\\t\"")),
    }
}
