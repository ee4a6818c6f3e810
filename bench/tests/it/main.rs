//! The twins of the bids benchmark against each other and against what was published.
//!
//! What holds them together: the hand loops and the reference share no arithmetic, so where they agree on many inputs,
//! both do what `bids.md` says, or the same mistake was made twice, which the published answers would show.

mod engine;

use std::collections::BTreeSet;

use tidemill_bench::hand::{self, Columns, Generator};
use tidemill_bench::query::{Answer, MAX_KEYS, MAX_RATE, MAX_RECORDS, PUBLISHED_RECORDS, Parameters, Query};
use tidemill_bench::reference;

const EVENT_0: &str = "95516,22455,5550768,channel-2237,https://www.nexmark.com/hmkl/iabi/ldik/item.htm?query=1,1700000000000,zxriwrglahetdmckvigniffedpfetvwruewsqozlqvedxypcsqzryixvecwdqbatnoqdgsgnvmexjyhgawwrukivwrjfhihmv";

/// Runs every query on both twins.
fn check(records: u64, auctions: u64, bidders: u64, rate: u64) -> anyhow::Result<()> {
    let parameters = Parameters::new(records, auctions, bidders, rate)?;
    let events = reference::events(&parameters);
    for query in Query::ALL {
        assert_eq!(
            hand::run(query, &parameters),
            reference::run(query, &events),
            "{} with {parameters:?}: left the hand twin, right the reference",
            query.name()
        );
    }
    Ok(())
}

/// All rows that the hand twin's generator makes, as text.
fn hand_rows(parameters: &Parameters) -> Vec<String> {
    let mut generator = Generator::new(parameters);
    let mut columns = Columns::default();
    let mut rows = Vec::new();
    while generator.next_batch(&mut columns) {
        rows.extend((0..columns.rows()).map(|row| generator.csv_row(&columns, row).unwrap_or_default()));
    }
    rows
}

#[test]
fn hand_and_reference_agree() {
    for auctions in [7, 1000, 100_000] {
        for bidders in [7, 1000, 100_000] {
            for rate in [1, 100, 5000, 100_000] {
                check(20_000, auctions, bidders, rate).unwrap();
            }
        }
    }
}

#[test]
fn they_agree_on_uneven_rates_and_tiny_domains() {
    // Rates that do not divide a second leave a remainder from one event to the next.
    check(5_000, 1, 1, 3).unwrap();
    check(5_000, 13, 17, 7).unwrap();
    check(5_000, 101, 5_003, 333).unwrap();
    check(5_000, 2, 3, 999).unwrap();
    check(5_000, 3, 2, 1001).unwrap();
    check(5_000, 5, 11, MAX_RATE).unwrap();
}

#[test]
fn they_agree_at_both_ends_of_the_input() {
    for records in [0, 1, 15, 16, 17, 4095, 4096, 4097] {
        check(records, 10, 10, 1).unwrap();
        check(records, 10, 10, 1000).unwrap();
    }
}

#[test]
fn q5_agrees_while_windows_turn_from_few_keys_to_many() {
    // 20 to 50,000 bids per pane over as many keys: both ways of sliding, and each after the other in one run.
    for rate in [10, 40, 100, 400, 2_000, 25_000] {
        let parameters = Parameters::new(100_000, 1_000, 1, rate).unwrap();
        assert_eq!(hand::q5(&parameters), reference::q5(&reference::events(&parameters)), "rate {rate}");
    }
}

#[test]
fn event_0_is_the_published_line() {
    let parameters = Parameters::new(1, 100_000, 100_000, 100_000).unwrap();
    assert_eq!(hand_rows(&parameters), [EVENT_0]);
    assert_eq!(reference::Event::new(0, &parameters).csv(), EVENT_0);
}

#[test]
fn both_generators_make_the_same_columns() {
    for (auctions, bidders, rate) in [(99_991, 1_234, 333), (MAX_KEYS, MAX_KEYS - 1, 1), (1, 2, MAX_RATE)] {
        let parameters = Parameters::new(20_000, auctions, bidders, rate).unwrap();
        let events = reference::events(&parameters);
        assert_eq!(hand_rows(&parameters), events.iter().map(reference::Event::csv).collect::<Vec<_>>());
        let channels: BTreeSet<&str> = events.iter().map(|event| event.channel.as_str()).collect();
        assert!(channels.len() > 5_000 && channels.contains("Baidu"), "the sample must show most of the dictionary");
    }
}

#[test]
fn the_published_answers_hold() {
    for query in Query::ALL {
        let parameters = Parameters::published(query, PUBLISHED_RECORDS).unwrap();
        assert_eq!(hand::run(query, &parameters), query.published_answer(), "{}", query.name());
    }
}

#[test]
fn json_agrees_byte_by_byte() {
    let parameters = Parameters::new(20_000, 1_000, 1_000, 100_000).unwrap();
    let events = reference::events(&parameters);
    let mut input = Vec::new();
    hand::write_json(&parameters, &mut input).unwrap();
    let lines: Vec<String> = String::from_utf8(input.clone()).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines, events.iter().map(reference::Event::json).collect::<Vec<_>>());

    let mut output = Vec::new();
    let answer = hand::json(input.as_slice(), &mut output).unwrap();
    let (expected, kept) = reference::json(&events);
    assert_eq!(answer, expected);
    assert!((9_000..11_000).contains(&answer.records), "half of the prices lie below the limit");
    assert_eq!(String::from_utf8(output).unwrap(), kept.iter().map(|line| format!("{line}\n")).collect::<String>());
}

#[test]
fn json_keeps_a_last_line_without_its_newline() {
    let mut input = Vec::new();
    hand::write_json(&Parameters::new(50, 10, 10, 1).unwrap(), &mut input).unwrap();
    let mut whole = Vec::new();
    let answer = hand::json(input.as_slice(), &mut whole).unwrap();
    let mut cut = Vec::new();
    assert_eq!(hand::json(input.trim_ascii_end(), &mut cut).unwrap(), answer);
    assert_eq!(cut, whole);
}

#[test]
fn json_names_the_line_that_is_no_event() {
    let good = r#"{"auction":1,"bidder":2,"price":3,"channel":"Apple"}"#;
    assert_eq!(hand::json(good.as_bytes(), Vec::new()).unwrap(), Answer { records: 1, checksum: 3 });
    for bad in [
        "",
        "{}",
        r#"{"bidder":2,"auction":1,"price":3,"channel":"Apple"}"#,
        r#"{"auction":1,"bidder":2,"price":,"channel":"Apple"}"#,
        r#"{"auction":1,"bidder":2,"price":-3,"channel":"Apple"}"#,
        r#"{"auction":1,"bidder":2,"price":99999999999999999999,"channel":"Apple"}"#,
        r#"{"auction":1,"bidder":2,"price":3.5,"channel":"Apple"}"#,
    ] {
        let error = hand::json(format!("{good}\n{bad}\n").as_bytes(), Vec::new()).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{bad}: {error}");
    }
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    for (parameters, name) in [
        (Parameters::new(MAX_RECORDS + 1, 1, 1, 1), "records"),
        (Parameters::new(1, 0, 1, 1), "auctions"),
        (Parameters::new(1, 1, MAX_KEYS + 1, 1), "bidders"),
        (Parameters::new(1, 1, 1, 0), "rate"),
        (Parameters::new(1, 1, 1, MAX_RATE + 1), "rate"),
    ] {
        assert!(parameters.unwrap_err().to_string().starts_with(name));
    }
}

#[test]
fn queries_are_found_by_their_names() {
    for query in Query::ALL {
        assert_eq!(Query::from_name(query.name()), Some(query));
    }
    assert_eq!(Query::from_name("q3"), None);
}
