//! `json`: newline-delimited JSON in, the lines with a price below 5,000,000 out; and the generator of its input.
//!
//! The loop knows the order of the fields, reads the price where it must be and copies the kept lines as they are: the
//! least that any program has to do. The invariant: a line that does not begin with the three numbers in their order is
//! an error that names the line, never a line silently dropped.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::generate::{Columns, Generator, string};
use crate::query::{Answer, Parameters};

/// Prices from here on are dropped.
const PRICE_LIMIT: u64 = 5_000_000;

/// Bytes of a read or a write: large enough that the system call is a small part of it.
const BUFFER_BYTES: usize = 1 << 20;

/// Reads lines from `input` and writes those with a price below 5,000,000 to `output`; sum of their prices.
///
/// # Errors
/// When reading or writing fails, or a line is not an event.
pub fn json(mut input: impl BufRead, mut output: impl Write) -> Result<Answer> {
    let mut answer = Answer::default();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        if input.read_until(b'\n', &mut line).with_context(|| format!("reading line {number}"))? == 0 {
            break;
        }
        let price = price_of(&line).with_context(|| {
            format!("line {number} does not begin with auction, bidder and price: {}", String::from_utf8_lossy(&line))
        })?;
        if price < PRICE_LIMIT {
            answer.add(price);
            if line.last() != Some(&b'\n') {
                line.push(b'\n');
            }
            output.write_all(&line).with_context(|| format!("writing line {number}"))?;
        }
    }
    output.flush().context("writing the last lines")?;
    Ok(answer)
}

/// As [`json`], from the file `input` to the file `output`, which is overwritten.
///
/// # Errors
/// When a file can't be opened, and as [`json`].
pub fn json_files(input: &Path, output: &Path) -> Result<Answer> {
    let source = File::open(input).with_context(|| format!("opening {}", input.display()))?;
    let sink = File::create(output).with_context(|| format!("creating {}", output.display()))?;
    json(BufReader::with_capacity(BUFFER_BYTES, source), BufWriter::with_capacity(BUFFER_BYTES, sink))
        .with_context(|| format!("filtering {} into {}", input.display(), output.display()))
}

/// Writes the events of `parameters` as one JSON object per line, fields in order, the time as milliseconds since 1970.
///
/// # Errors
/// When writing fails.
pub fn write_json(parameters: &Parameters, mut output: impl Write) -> Result<()> {
    let mut generator = Generator::new(parameters);
    let mut columns = Columns::default();
    while generator.next_batch(&mut columns) {
        let (urls, pool) = (generator.url_bytes(), generator.extra_bytes());
        let numbers = columns.auction.iter().zip(&columns.bidder).zip(&columns.price).zip(&columns.date_time);
        let strings = columns.channel.iter().zip(&columns.url).zip(&columns.extra);
        for ((((auction, bidder), price), date_time), ((channel, url), extra)) in numbers.zip(strings) {
            let (channel, url, extra) = (string(*channel, &[]), string(*url, urls), string(*extra, pool));
            let (Some(channel), Some(url), Some(extra)) = (channel, url, extra) else {
                anyhow::bail!("the generator made a view that is not within its buffer");
            };
            // Letters, digits and `-:/.?=` only, so that there is nothing to escape.
            writeln!(
                output,
                r#"{{"auction":{auction},"bidder":{bidder},"price":{price},"channel":"{channel}","url":"{url}","date_time":{date_time},"extra":"{extra}"}}"#
            )
            .context("writing an event as JSON")?;
        }
    }
    output.flush().context("writing the last events as JSON")
}

/// As [`write_json`], to the file `path`, which is overwritten.
///
/// # Errors
/// When the file can't be created or written.
pub fn write_json_file(parameters: &Parameters, path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    write_json(parameters, BufWriter::with_capacity(BUFFER_BYTES, file))
        .with_context(|| format!("writing {}", path.display()))
}

/// The price of a line, None if it does not begin as an event does.
#[inline]
fn price_of(line: &[u8]) -> Option<u64> {
    let (_auction, rest) = number(line.strip_prefix(br#"{"auction":"#)?)?;
    let (_bidder, rest) = number(rest.strip_prefix(br#","bidder":"#)?)?;
    let (price, rest) = number(rest.strip_prefix(br#","price":"#)?)?;
    rest.starts_with(br#","channel":""#).then_some(price)
}

/// The decimal number at the beginning of `text`, and what follows it.
#[inline]
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    let mut rest = text;
    while let Some((digit @ b'0'..=b'9', after)) = rest.split_first() {
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
        rest = after;
    }
    (rest.len() < text.len()).then_some((value, rest))
}
