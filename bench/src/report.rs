//! The report of `make bench`: one page that stands alone, with tables, bars and the ratios between the twins.
//!
//! It shows medians of runs that alternated between the twins, because the ratio of two neighbouring runs is worth more
//! than any figure of a noisy machine.

use std::fmt::Write;

use crate::measure::Measured;

/// What the peers reach on this kind of machine, in million records per second: Apache Flink 2.3, DataStream, one slot.
const FLINK: &[(&str, f64)] = &[
    ("q0", 13.0),
    ("q1", 13.1),
    ("q2", 15.1),
    ("wc", 1.5),
    ("q5", 0.15),
    ("q7", 0.78),
    ("session", 0.15),
    ("q8", 0.43),
    ("q8i", 0.33),
    ("json", 0.4),
];

/// Medians of one query.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// The query.
    pub query: String,
    /// Median steady rate per twin: sandbox, native, hand; and sandbox on two slots.
    pub sandbox: f64,
    /// See `sandbox`.
    pub native: f64,
    /// See `sandbox`.
    pub hand: f64,
    /// See `sandbox`.
    pub two_slots: f64,
    /// Median of the ratios of neighbouring runs: time in the sandbox by time of the native twin.
    pub tax: f64,
    /// Peak memory of the sandbox twin in MiB.
    pub peak_rss_mb: f64,
    /// Whether all runs gave one answer.
    pub agree: bool,
}

/// Medians of the runs of one query.
pub fn summarise(query: &str, runs: &[Measured]) -> Row {
    let of = |twin: &str, slots: u32| -> Vec<&Measured> {
        runs.iter().filter(|r| r.query == query && r.twin == twin && r.slots == slots).collect()
    };
    let rate = |runs: &[&Measured]| median(runs.iter().map(|r| r.steady_rps).collect());
    let (sandbox, native, hand) = (of("sandbox", 1), of("native", 1), of("hand", 1));
    // A run that was over before there was a steady rate has none, and so no ratio.
    let pairs = sandbox.iter().zip(&native).filter(|(s, n)| s.steady_rps > 0.0 && n.steady_rps > 0.0);
    let taxes = pairs.map(|(s, n)| n.steady_rps / s.steady_rps).collect();
    let mut answers = runs.iter().filter(|r| r.query == query).map(|r| (r.out_records, r.checksum));
    let first = answers.next();
    Row {
        query: query.to_owned(),
        sandbox: rate(&sandbox),
        native: rate(&native),
        hand: rate(&hand),
        two_slots: rate(&of("sandbox", 2)),
        tax: median(taxes),
        peak_rss_mb: median(sandbox.iter().map(|r| r.peak_rss_mb).collect()),
        agree: answers.all(|a| Some(a) == first),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The table as plain text, for a terminal.
pub fn text(rows: &[Row]) -> String {
    let mut out = String::from(
        "query      sandbox   native     hand  2 slots   M records/s    tax  2/1 slots  of hand   peak MiB  answers\n",
    );
    for r in rows {
        let _ = writeln!(
            out,
            "{:<9} {:>8} {:>8} {:>8} {:>8}               {:>6} {:>9} {:>8} {:>10.0}  {}",
            r.query,
            million(r.sandbox),
            million(r.native),
            million(r.hand),
            million(r.two_slots),
            ratio(r.tax),
            ratio(r.two_slots / r.sandbox),
            ratio(r.sandbox / r.hand),
            r.peak_rss_mb,
            if r.agree { "agree" } else { "DIFFER" },
        );
    }
    out
}

/// The page.
pub fn html(rows: &[Row], records: u64) -> String {
    let mut out = String::from(HEAD);
    let _ = writeln!(
        out,
        "<p>Medians of alternating runs over {} records, in <b>million records per second</b>; one slot unless said. \
         A dash: not measured, or over too soon to be. <b>Tax</b> is the time in the \
         sandbox by the time of the same code linked natively into the same engine. <b>Hand</b> is a plain \
         single-threaded loop without any engine: the limit. <b>Flink</b> is 2.3, DataStream, one slot, measured on \
         this kind of machine.</p>",
        grouped(records),
    );
    out.push_str(
        "<table><tr><th>query<th>sandbox<th>native<th>hand<th>Flink<th>two slots<th>tax<th>two slots / one\
         <th>sandbox / hand<th>sandbox / Flink<th>peak MiB<th>answers</tr>\n",
    );
    for r in rows {
        let flink = FLINK.iter().find(|(q, _)| *q == r.query).map_or(f64::NAN, |(_, m)| m * 1e6);
        let _ = writeln!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{:.0}<td>{}</tr>",
            r.query,
            million(r.sandbox),
            million(r.native),
            million(r.hand),
            million(flink),
            million(r.two_slots),
            ratio(r.tax),
            ratio(r.two_slots / r.sandbox),
            ratio(r.sandbox / r.hand),
            ratio(r.sandbox / flink),
            r.peak_rss_mb,
            if r.agree { "agree" } else { "<b>differ</b>" },
        );
    }
    out.push_str("</table>\n<h2>Million records per second, one slot (logarithmic)</h2>\n");
    scale(&mut out);
    rows.iter().for_each(|r| bars(&mut out, r));
    out.push_str("</body></html>\n");
    out
}

/// Where the bars begin, and how long the scale is, in pixels.
const LEFT: f64 = 80.0;
/// See `LEFT`.
const LENGTH: f64 = 520.0;
/// What the scale is marked with, in millions.
const DECADES: [f64; 5] = [0.1, 1.0, 10.0, 100.0, 1_000.0];

/// The place of a rate on the scale.
fn at(rate: f64) -> f64 {
    LEFT + (rate / 1e5).log10().clamp(0.0, 4.0) / 4.0 * LENGTH
}

/// The marks above the bars.
fn scale(out: &mut String) {
    out.push_str("<svg width=\"760\" height=\"18\" role=\"img\">");
    for m in DECADES {
        let _ =
            write!(out, "<text class=\"value\" text-anchor=\"middle\" x=\"{:.0}\" y=\"14\">{m}</text>", at(m * 1e6));
    }
    out.push_str("</svg>\n");
}

/// `200,000`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}

/// The bars of one query, on one logarithmic scale from 0.1 to 1000 million.
fn bars(out: &mut String, row: &Row) {
    let flink = FLINK.iter().find(|(q, _)| *q == row.query).map_or(f64::NAN, |(_, m)| m * 1e6);
    let _ = write!(out, "<svg width=\"760\" height=\"92\" role=\"img\"><text x=\"0\" y=\"50\">{}</text>", row.query);
    DECADES.iter().for_each(|m| _ = write!(out, "<path class=\"grid\" d=\"M{0:.0} 0V92\"/>", at(m * 1e6)));
    let twins = [("sandbox", row.sandbox), ("native", row.native), ("hand", row.hand), ("flink", flink)];
    for (i, (name, rate)) in twins.into_iter().enumerate().filter(|(_, (_, rate))| rate.is_finite() && *rate > 0.0) {
        let width = (at(rate) - LEFT).max(2.0);
        let y = 8 + i * 20;
        let _ = write!(
            out,
            "<rect class=\"{name}\" x=\"80\" y=\"{y}\" width=\"{width:.0}\" height=\"16\" rx=\"2\"/>\
             <text class=\"value\" x=\"{:.0}\" y=\"{}\">{name} {}</text>",
            86.0 + width,
            y + 13,
            million(rate),
        );
    }
    out.push_str("</svg>\n");
}

fn million(rate: f64) -> String {
    let m = rate / 1e6;
    match m {
        _ if !m.is_finite() || m <= 0.0 => "-".to_owned(),
        _ if m >= 10.0 => format!("{m:.0}"),
        _ if m >= 1.0 => format!("{m:.1}"),
        _ => format!("{m:.2}"),
    }
}

fn ratio(ratio: f64) -> String {
    if ratio.is_finite() && ratio > 0.0 { format!("{ratio:.2}") } else { "-".to_owned() }
}

const HEAD: &str =
    "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Tidemill benchmarks</title><style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1b2733; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #dde3e9; }
th:first-child, td:first-child { text-align: left; font-weight: 600; }
svg text { font-size: 13px; fill: #1b2733; font-weight: 600; } svg text.value { font-weight: 400; fill: #51606e; }
.sandbox { fill: #0b7285; } .native { fill: #66b2bf; } .hand { fill: #c9d3dc; } .flink { fill: #e8590c; }
svg { display: block; } .grid { stroke: #e9eef2; fill: none; }
</style></head><body><h1>Tidemill benchmarks</h1>
";
