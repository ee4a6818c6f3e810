//! Text in chunks of whole records, cut out of a byte stream.
//!
//! Invariant: a chunk ends where a record ends (or the stream does), and no record is longer than the limit: one that is
//! does not enter memory whole, it becomes a [`Piece::TooLong`] and the stream goes on after it.

use std::io::{self, Read};

use arrow::buffer::Buffer;

/// Bytes of a chunk to aim at: a few thousand records, so that a batch is one chunk, and small enough for the cache.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Shown of a record that is set aside for being too long.
const TOO_LONG_SHOWN: usize = 1_024;

/// Whole records.
#[derive(Clone, Debug)]
pub struct Chunk {
    text: Buffer,
    utf8: bool,
    offset: u64,
    line: u64,
}

impl Chunk {
    /// From whole records. `offset` and `line` (from 0) say where in the stream they begin.
    pub fn new(mut text: Vec<u8>, offset: u64, line: u64) -> Self {
        // Columns keep the text alive, and queues count its bytes: a few lines of a slow pipe must not hold a whole
        // buffer each.
        if text.capacity() / 2 > text.len() {
            text.shrink_to_fit();
        }
        let utf8 = simdutf8::basic::from_utf8(&text).is_ok();
        Self { text: Buffer::from_vec(text), utf8, offset, line }
    }

    /// The records.
    pub fn text(&self) -> &Buffer {
        &self.text
    }

    /// Whether all of it is valid UTF-8; if not, records have to be checked one by one.
    pub fn is_utf8(&self) -> bool {
        self.utf8
    }

    /// Where in the stream it begins, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many lines of the stream stand before it.
    pub fn line(&self) -> u64 {
        self.line
    }
}

/// What comes out of a stream.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Whole records.
    Records(Chunk),
    /// A record longer than the limit: where it begins, how long it is, and its first bytes.
    TooLong {
        /// In bytes.
        offset: u64,
        /// Lines before it.
        line: u64,
        /// With its line break.
        bytes: u64,
        /// Its first bytes.
        start: Vec<u8>,
    },
}

/// Cuts a byte stream into chunks.
#[derive(Debug)]
pub struct Chunker<R> {
    input: R,
    /// The beginning of a record whose end was not read yet.
    rest: Vec<u8>,
    offset: u64,
    line: u64,
    /// Bytes of the stream after which no new record is begun.
    end: u64,
    max_record_bytes: usize,
    chunk_bytes: usize,
    /// Whether a line break within quotes belongs to the record (CSV).
    quoted_breaks: bool,
    ended: bool,
}

impl<R: Read> Chunker<R> {
    /// From a stream that stands at `offset` bytes and `line` lines, both counted from 0. Records longer than
    /// `max_record_bytes` are not read.
    pub fn new(input: R, offset: u64, line: u64, max_record_bytes: usize) -> Self {
        Self {
            input,
            rest: Vec::new(),
            offset,
            line,
            end: u64::MAX,
            max_record_bytes,
            chunk_bytes: CHUNK_BYTES,
            quoted_breaks: false,
            ended: false,
        }
    }

    /// Stops before the first record that begins at or after this many bytes.
    pub fn ending_at(mut self, end: u64) -> Self {
        self.end = end;
        self
    }

    /// Aims at chunks of another size.
    pub fn with_chunk_bytes(mut self, bytes: usize) -> Self {
        self.chunk_bytes = bytes.max(1);
        self
    }

    /// Lets records go on over line breaks that stand within double quotes.
    pub fn with_quoted_breaks(mut self, quoted_breaks: bool) -> Self {
        self.quoted_breaks = quoted_breaks;
        self
    }

    /// What was read and is in no piece yet, in bytes.
    pub fn rest_bytes(&self) -> usize {
        self.rest.capacity()
    }

    /// The next piece; `None` at the end. Blocks as reading does.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        let mut text = std::mem::take(&mut self.rest);
        let mut searched = 0;
        loop {
            if self.offset >= self.end {
                return Ok(None);
            }
            // What was read before may hold whole records: they must not wait for more input.
            let mut whole = self.whole_records(&text, &mut searched);
            if whole == 0 && !self.ended {
                self.fill(&mut text)?;
                whole = self.whole_records(&text, &mut searched);
            }
            if self.ended {
                whole = text.len();
            }
            if self.offset == 0 && text.starts_with(b"\xEF\xBB\xBF") {
                text.drain(..3);
                self.offset = 3;
                whole = whole.saturating_sub(3);
            }
            if whole > 0 {
                self.rest = text.split_off(whole);
                return Ok(Some(self.take(text)));
            }
            if self.ended {
                return Ok(None);
            }
            if text.len() > self.max_record_bytes {
                return self.skip_record(text).map(Some);
            }
        }
    }

    /// Reads once or more until there is a chunk's worth of new bytes, or no more to be had without waiting long.
    fn fill(&mut self, text: &mut Vec<u8>) -> io::Result<()> {
        let before = text.len();
        let wanted = self.chunk_bytes.saturating_sub(before).max(self.chunk_bytes / 4).max(1);
        text.reserve(wanted);
        match read_some(&mut self.input, text, wanted)? {
            0 => self.ended = true,
            _ => debug_assert!(text.len() > before),
        }
        Ok(())
    }

    /// Length of the whole records at the start of the text.
    fn whole_records(&self, text: &[u8], searched: &mut usize) -> usize {
        if !self.quoted_breaks {
            let whole = memchr::memrchr(b'\n', text.get(*searched..).unwrap_or_default());
            let from = std::mem::replace(searched, text.len());
            return whole.map_or(0, |at| from + at + 1);
        }
        let (mut quoted, mut whole) = (false, 0);
        for at in memchr::memchr2_iter(b'\n', b'"', text) {
            match text.get(at) {
                Some(b'"') => quoted = !quoted,
                _ if !quoted => whole = at + 1,
                _ => {}
            }
        }
        whole
    }

    /// Makes the piece of whole records; cuts off those that begin after the end, and those that are too long.
    fn take(&mut self, mut text: Vec<u8>) -> Piece {
        let left = self.end - self.offset;
        if left < text.len() as u64
            && let Some(last) = (left as usize).checked_sub(1)
        {
            let tail = text.get(last..).unwrap_or_default();
            let end = memchr::memchr(b'\n', tail).map_or(text.len(), |at| last + at + 1);
            text.truncate(end);
            self.rest = Vec::new();
            self.ended = true;
        }
        let (offset, line) = (self.offset, self.line);
        let mut start = 0;
        if text.len() > self.max_record_bytes {
            while start < text.len() {
                let tail = text.get(start..).unwrap_or_default();
                let length = record_length(tail, self.quoted_breaks);
                if length > self.max_record_bytes + 1 {
                    return self.split_at_long(text, start, length);
                }
                start += length;
            }
        }
        self.offset += text.len() as u64;
        self.line += lines_in(&text);
        Piece::Records(Chunk::new(text, offset, line))
    }

    /// The text has a record that is too long: what is before it comes first, then itself, then what is after it.
    fn split_at_long(&mut self, mut text: Vec<u8>, start: usize, length: usize) -> Piece {
        let (offset, line) = (self.offset, self.line);
        let cut = if start == 0 { length } else { start };
        let mut after = text.split_off(cut);
        after.append(&mut self.rest);
        self.rest = after;
        self.offset += text.len() as u64;
        self.line += lines_in(&text);
        if start > 0 {
            return Piece::Records(Chunk::new(text, offset, line));
        }
        let bytes = text.len() as u64;
        text.truncate(TOO_LONG_SHOWN);
        Piece::TooLong { offset, line, bytes, start: text }
    }

    /// Reads on to the next line break without keeping what is before it.
    fn skip_record(&mut self, mut text: Vec<u8>) -> io::Result<Piece> {
        let (offset, line) = (self.offset, self.line);
        let start = text.get(..TOO_LONG_SHOWN).unwrap_or(&text).to_vec();
        let mut bytes = text.len() as u64;
        loop {
            text.clear();
            if read_some(&mut self.input, &mut text, self.chunk_bytes)? == 0 {
                self.ended = true;
                break;
            }
            if let Some(at) = memchr::memchr(b'\n', &text) {
                self.rest = text.split_off(at + 1);
                bytes += text.len() as u64;
                break;
            }
            bytes += text.len() as u64;
        }
        self.offset += bytes;
        self.line += 1;
        Ok(Piece::TooLong { offset, line, bytes, start })
    }
}

/// Length of the first record with its line break.
pub(super) fn record_length(text: &[u8], quoted_breaks: bool) -> usize {
    if !quoted_breaks {
        return memchr::memchr(b'\n', text).map_or(text.len(), |at| at + 1);
    }
    let mut quoted = false;
    for at in memchr::memchr2_iter(b'\n', b'"', text) {
        match text.get(at) {
            Some(b'"') => quoted = !quoted,
            _ if !quoted => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn lines_in(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

/// Reads up to `wanted` bytes once; 0 at the end.
fn read_some(input: &mut impl Read, text: &mut Vec<u8>, wanted: usize) -> io::Result<usize> {
    loop {
        // `Take` + `read_to_end` would wait for all of it, which a pipe that is fed line by line does not have.
        let before = text.len();
        text.resize(before + wanted, 0);
        let read = input.read(text.get_mut(before..).unwrap_or_default());
        let kept = read.as_ref().map_or(0, |n| (*n).min(wanted));
        text.truncate(before + kept);
        match read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|_| kept),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time, as a pipe does.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(buffer.len()).min(self.0.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn pieces(mut chunker: Chunker<Trickle<'_>>) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(piece) = chunker.next_piece().unwrap() {
            out.push(match piece {
                Piece::Records(c) => {
                    format!("{}/{}:{}", c.offset(), c.line(), String::from_utf8_lossy(c.text().as_slice()))
                }
                Piece::TooLong { offset, line, bytes, start } => {
                    format!("{offset}/{line}!{bytes}:{}", String::from_utf8_lossy(&start))
                }
            });
        }
        out
    }

    #[test]
    fn chunks_are_whole_lines_whatever_the_reads_are() {
        let text = b"a\nbb\n\nccc\nd";
        for step in 1..12 {
            for chunk in 1..12 {
                let out = pieces(Chunker::new(Trickle(text, step), 0, 0, 100).with_chunk_bytes(chunk));
                let joined: String = out.iter().map(|p| p.split_once(':').unwrap().1).collect();
                assert_eq!(joined.as_bytes(), text, "{step} {chunk}");
                for piece in &out[..out.len() - 1] {
                    assert!(piece.ends_with('\n'), "{out:?}");
                }
            }
        }
    }

    #[test]
    fn a_record_over_the_limit_is_named_and_the_others_live() {
        let text = b"a\nxxxxxxxxxxxxxxxxxxxx\nb\nyyyyyyyyyyyyyyy";
        for step in [1, 7, 100] {
            for chunk in [1, 8, 100] {
                let out = pieces(Chunker::new(Trickle(text, step), 0, 0, 8).with_chunk_bytes(chunk));
                let all = out.join("|");
                assert!(out.iter().any(|p| p.starts_with("2/1!21:xxx")), "{step} {chunk} {all}");
                assert!(all.contains(":a\n") && all.contains("23/2:b\n"), "{step} {chunk} {all}");
                assert!(out.last().unwrap().starts_with("25/3!15:yyy"), "{step} {chunk} {all}");
            }
        }
    }

    #[test]
    fn a_range_ends_after_the_record_that_begins_in_it() {
        let text = b"aa\nbb\ncc\n";
        for (end, expected) in [(1, "aa\n"), (3, "aa\n"), (4, "aa\nbb\n"), (9, "aa\nbb\ncc\n"), (99, "aa\nbb\ncc\n")] {
            for step in [1, 2, 100] {
                for chunk in [1, 4, 100] {
                    let out =
                        pieces(Chunker::new(Trickle(text, step), 0, 0, 100).with_chunk_bytes(chunk).ending_at(end));
                    let joined: String = out.iter().map(|p| p.split_once(':').unwrap().1).collect();
                    assert_eq!(joined, expected, "{end} {step} {chunk}");
                }
            }
        }
        assert!(pieces(Chunker::new(Trickle(text, 9), 0, 0, 100).ending_at(0)).is_empty());
    }

    #[test]
    fn quoted_line_breaks_belong_to_the_record_if_asked_for() {
        let text = b"a,\"b\nc\"\nd\n";
        for step in [1, 4, 100] {
            let out = pieces(Chunker::new(Trickle(text, step), 0, 0, 100).with_chunk_bytes(5).with_quoted_breaks(true));
            assert!(!out.iter().any(|p| p.ends_with("b\n")), "{out:?}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        for step in [1, 2, 100] {
            let out = pieces(Chunker::new(Trickle(b"\xEF\xBB\xBFa\n", step), 0, 0, 100));
            let joined: String = out.iter().map(|p| p.split_once(':').unwrap().1).collect();
            assert_eq!(joined, "a\n");
        }
    }
}
