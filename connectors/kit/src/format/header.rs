//! The first record of a stream, where it names the fields, without reading more of the stream than is needed.

use std::io::{self, BufRead};

use tidemill_core::error::{Error, ErrorKind, Result};

use super::DecodeFormat;

impl DecodeFormat {
    /// Takes the header from the start of a stream, which then stands at its first record. `place` names the stream in
    /// messages (`file 'x.csv'`), `failed` says what a failure to read it is.
    pub fn read_header(
        &self,
        input: &mut dyn BufRead,
        place: &str,
        failed: &dyn Fn(&io::Error) -> Error,
    ) -> Result<Vec<u8>> {
        let limit = self.max_record_bytes();
        let mut header = Vec::new();
        loop {
            let buffer = match input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(|e| failed(&e))?,
            };
            let length = memchr::memchr(b'\n', buffer).map_or(buffer.len(), |at| at + 1);
            header.extend_from_slice(buffer.get(..length).unwrap_or_default());
            input.consume(length);
            let ends = header.last() == Some(&b'\n') && !(self.has_quoted_breaks() && quotes(&header) % 2 == 1);
            if length == 0 || ends {
                break;
            }
            if header.len() > limit {
                let message = format!("{place}: the first line is longer than max-record-bytes ({limit})");
                return Err(Error::new(ErrorKind::Limit, message).mend(
                    "check that it is a CSV file with a header (else set header = false), or raise max-record-bytes",
                ));
            }
        }
        if header.trim_ascii().is_empty() {
            return Err(Error::invalid(format!("{place}: the first line is empty and not a header"))
                .mend("add a header, or set header = false"));
        }
        Ok(header)
    }
}

fn quotes(text: &[u8]) -> usize {
    memchr::memchr_iter(b'"', text).count()
}
