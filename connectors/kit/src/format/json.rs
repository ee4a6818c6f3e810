//! A JSON object per line to flat columns.
//!
//! Lines of one stream mostly have the same fields in the same order, so each key is first compared with the one that
//! stood at this place in the line before; texts without escapes are not copied. The whole line is checked, also the
//! fields that nobody reads.

use std::collections::HashMap;

use super::columns::{Column, Place};

/// Deeper values are refused; nobody reads them, and their brackets are remembered in 64 bits.
const MAX_DEPTH: u32 = 64;

/// Finds the columns of a line's fields.
#[derive(Debug)]
pub(super) struct JsonRecord {
    columns: HashMap<Vec<u8>, usize>,
    /// The keys of the line before, with their quotes, and their columns.
    expected: Vec<(Vec<u8>, Option<usize>)>,
    /// Where escapes are resolved.
    scratch: Vec<u8>,
}

/// Keys of a line that are remembered; a hostile line can't fill memory.
const MAX_EXPECTED: usize = 1_000;

impl JsonRecord {
    pub(super) fn new(columns: &[Column]) -> Self {
        let columns = columns.iter().enumerate().map(|(i, c)| (c.name().as_bytes().to_vec(), i)).collect();
        Self { columns, expected: Vec::new(), scratch: Vec::new() }
    }

    /// Appends a line's values to the columns, which have `row` values; the line begins at `base` of its chunk.
    /// After an error the columns may be longer.
    pub(super) fn decode(
        &mut self,
        line: &[u8],
        base: usize,
        columns: &mut [Column],
        row: usize,
    ) -> Result<(), String> {
        let mut at = space(line, 0);
        if line.get(at) != Some(&b'{') {
            return Err("it is no JSON object: it does not begin with `{`".to_owned());
        }
        at = space(line, at + 1);
        if line.get(at) == Some(&b'}') {
            at += 1;
        } else {
            let mut place = 0;
            loop {
                let column = self.key(line, &mut at, place)?;
                match column.and_then(|i| columns.get_mut(i)) {
                    Some(column) if column.len() > row => {
                        return Err(format!("field '{}' is there twice", column.name()));
                    }
                    Some(column) => self.value(line, &mut at, base, column)?,
                    None => skip(line, &mut at)?,
                }
                at = space(line, at);
                match line.get(at) {
                    Some(b',') => at = space(line, at + 1),
                    Some(b'}') => break,
                    other => return Err(unexpected(other, at, "`,` or `}`")),
                }
                place += 1;
            }
            at += 1;
        }
        at = space(line, at);
        if at < line.len() {
            return Err(unexpected(line.get(at), at, "the end of the line"));
        }
        for column in columns.iter_mut().filter(|c| c.len() == row) {
            if !column.is_nullable() {
                return Err(format!("field '{}' is missing, and its column is not nullable", column.name()));
            }
            column.push_null()?;
        }
        Ok(())
    }

    /// Reads a key and its colon; the column that it names.
    #[inline]
    fn key(&mut self, line: &[u8], at: &mut usize, place: usize) -> Result<Option<usize>, String> {
        let rest = line.get(*at..).unwrap_or_default();
        let column = match self.expected.get(place) {
            Some((key, column)) if rest.starts_with(key) => {
                *at += key.len();
                *column
            }
            _ => self.new_key(line, at, place)?,
        };
        *at = space(line, *at);
        if line.get(*at) != Some(&b':') {
            return Err(unexpected(line.get(*at), *at, "`:`"));
        }
        *at = space(line, *at + 1);
        Ok(column)
    }

    fn new_key(&mut self, line: &[u8], at: &mut usize, place: usize) -> Result<Option<usize>, String> {
        if line.get(*at) != Some(&b'"') {
            return Err(unexpected(line.get(*at), *at, "a field's name in quotes"));
        }
        let start = *at;
        let (text, escaped) = string(line, at)?;
        if escaped {
            unescape(text, &mut self.scratch)?;
            return Ok(self.columns.get(&self.scratch).copied());
        }
        let column = self.columns.get(text).copied();
        let expected = (line.get(start..*at).unwrap_or_default().to_vec(), column);
        let known = self.expected.len();
        match self.expected.get_mut(place) {
            Some(old) => *old = expected,
            None if place == known && place < MAX_EXPECTED => self.expected.push(expected),
            None => {}
        }
        Ok(column)
    }

    #[inline]
    fn value(&mut self, line: &[u8], at: &mut usize, base: usize, column: &mut Column) -> Result<(), String> {
        match line.get(*at) {
            Some(b'"') => {
                let start = *at + 1;
                let (text, escaped) = string(line, at)?;
                if escaped {
                    unescape(text, &mut self.scratch)?;
                    column.push_text(&self.scratch, Place::Elsewhere)
                } else {
                    column.push_text(text, Place::Chunk(base + start))
                }
            }
            Some(b'-' | b'0'..=b'9') => column.push_number(number(line, at)?),
            Some(b'n') => literal(line, at, b"null").and_then(|()| column.push_null()),
            Some(b't') => literal(line, at, b"true").and_then(|()| column.push_bool(true)),
            Some(b'f') => literal(line, at, b"false").and_then(|()| column.push_bool(false)),
            Some(b'{' | b'[') => Err(column.mismatch(line.get(*at..).unwrap_or_default())),
            other => Err(unexpected(other, *at, "a value")),
        }
    }
}

/// Position of the next byte that is no white space.
#[inline(always)]
fn space(line: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\r' | b'\n') = line.get(at) {
        at += 1;
    }
    at
}

/// The text between the quote at `at` and the next one that ends it, as it stands, and whether it has escapes.
#[inline]
fn string<'a>(line: &'a [u8], at: &mut usize) -> Result<(&'a [u8], bool), String> {
    let start = *at + 1;
    let mut end = start;
    let mut escaped = false;
    loop {
        let rest = line.get(end..).unwrap_or_default();
        let Some(found) = memchr::memchr2(b'"', b'\\', rest) else {
            return Err(format!("the text that begins at byte {} has no end", *at + 1));
        };
        end += found;
        if line.get(end) == Some(&b'"') {
            *at = end + 1;
            return Ok((line.get(start..end).unwrap_or_default(), escaped));
        }
        escaped = true;
        end += 2;
    }
}

/// The number at `at`, checked as JSON writes numbers.
#[inline]
fn number<'a>(line: &'a [u8], at: &mut usize) -> Result<&'a [u8], String> {
    let start = *at;
    let digits = |at: &mut usize| {
        let first = *at;
        while line.get(*at).is_some_and(u8::is_ascii_digit) {
            *at += 1;
        }
        *at > first
    };
    *at += usize::from(line.get(*at) == Some(&b'-'));
    let mut valid = digits(at);
    if line.get(*at) == Some(&b'.') {
        *at += 1;
        valid &= digits(at);
    }
    if let Some(b'e' | b'E') = line.get(*at) {
        *at += 1;
        *at += usize::from(matches!(line.get(*at), Some(b'+' | b'-')));
        valid &= digits(at);
    }
    if !valid {
        return Err(unexpected(line.get(*at), *at, "a digit"));
    }
    Ok(line.get(start..*at).unwrap_or_default())
}

#[inline]
fn literal(line: &[u8], at: &mut usize, text: &'static [u8]) -> Result<(), String> {
    if !line.get(*at..).unwrap_or_default().starts_with(text) {
        return Err(unexpected(line.get(*at), *at, "a value"));
    }
    *at += text.len();
    Ok(())
}

/// Goes over a value that nobody reads.
fn skip(line: &[u8], at: &mut usize) -> Result<(), String> {
    // Bit d: the bracket at depth d is a `{`.
    let (mut depth, mut objects) = (0_u32, 0_u64);
    loop {
        *at = space(line, *at);
        let mut closed = false;
        match line.get(*at) {
            Some(b'"') => drop(string(line, at)?),
            Some(b'-' | b'0'..=b'9') => drop(number(line, at)?),
            Some(b'n') => literal(line, at, b"null")?,
            Some(b't') => literal(line, at, b"true")?,
            Some(b'f') => literal(line, at, b"false")?,
            Some(open @ (b'{' | b'[')) => {
                if depth == MAX_DEPTH {
                    return Err(format!("it is nested more than {MAX_DEPTH} levels deep at byte {}", *at + 1));
                }
                let object = *open == b'{';
                objects = objects & !(1 << depth) | u64::from(object) << depth;
                depth += 1;
                *at = space(line, *at + 1);
                closed = line.get(*at) == Some(if object { &b'}' } else { &b']' });
                if !closed {
                    if object {
                        member_key(line, at)?;
                    }
                    continue;
                }
            }
            other => return Err(unexpected(other, *at, "a value")),
        }
        // A value ended, or an empty bracket is about to: close what ends here, then go to the next value.
        loop {
            if !closed {
                if depth == 0 {
                    return Ok(());
                }
                *at = space(line, *at);
            }
            let object = objects >> (depth - 1) & 1 == 1;
            match line.get(*at) {
                Some(b',') => {
                    *at = space(line, *at + 1);
                    if object {
                        member_key(line, at)?;
                    }
                    break;
                }
                Some(b'}') if object => {}
                Some(b']') if !object => {}
                other => return Err(unexpected(other, *at, if object { "`,` or `}`" } else { "`,` or `]`" })),
            }
            *at += 1;
            depth -= 1;
            closed = false;
        }
    }
}

fn member_key(line: &[u8], at: &mut usize) -> Result<(), String> {
    if line.get(*at) != Some(&b'"') {
        return Err(unexpected(line.get(*at), *at, "a field's name in quotes"));
    }
    string(line, at)?;
    *at = space(line, *at);
    if line.get(*at) != Some(&b':') {
        return Err(unexpected(line.get(*at), *at, "`:`"));
    }
    *at += 1;
    Ok(())
}

/// Resolves the escapes of a text.
#[cold]
fn unescape(text: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    out.clear();
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let (plain, escape) = rest.split_at(at);
        out.extend_from_slice(plain);
        rest = resolve(escape, out)?;
    }
    out.extend_from_slice(rest);
    Ok(())
}

/// Resolves the escape at the start of a text; what follows it.
fn resolve<'a>(text: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], String> {
    let [b'\\', escaped, rest @ ..] = text else { return Err("it ends within an escape".to_owned()) };
    out.push(match escaped {
        b'"' | b'\\' | b'/' => *escaped,
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'u' => {
            let half = || "it has half a surrogate pair".to_owned();
            let (mut code, mut rest) = hex4(rest)?;
            if (0xD800..0xDC00).contains(&code) {
                let (low, after) = hex4(rest.strip_prefix(b"\\u").ok_or_else(half)?)?;
                let low = (0xDC00..0xE000).contains(&low).then_some(low - 0xDC00).ok_or_else(half)?;
                (code, rest) = (0x1_0000 + ((code - 0xD800) << 10) + low, after);
            }
            let character = char::from_u32(code).ok_or_else(half)?;
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            return Ok(rest);
        }
        _ => return Err(format!("it has the unknown escape `\\{}`", escaped.escape_ascii())),
    });
    Ok(rest)
}

fn hex4(text: &[u8]) -> Result<(u32, &[u8]), String> {
    let (digits, rest) = text.split_at_checked(4).ok_or("it has an incomplete `\\u` escape")?;
    let code = digits.iter().try_fold(0, |code, b| char::from(*b).to_digit(16).map(|d| code << 4 | d));
    Ok((code.ok_or("it has an incomplete `\\u` escape")?, rest))
}

#[cold]
fn unexpected(found: Option<&u8>, at: usize, expected: &str) -> String {
    match found {
        Some(byte) => format!("byte {} is `{}` where {expected} is expected", at + 1, byte.escape_ascii()),
        None => format!("it ends where {expected} is expected"),
    }
}
