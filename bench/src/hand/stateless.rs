//! The queries that need no time: `q0`, `q1`, `q2` and the running count `wc`.
//!
//! Each computes only the fields it reads; `q0` reads all of them. The invariant: an event leaves before the next comes
//! (a batch before the next batch in `q0`).

#![allow(
    clippy::indexing_slicing,
    reason = "the table of `wc` has one entry per key, and a drawn key is less than the number of keys"
)]

use std::hint::black_box;

use super::generate::{Columns, Generator, KeyDraw, mix, price};
use crate::query::{Answer, Parameters};

/// All seven columns, batch by batch, into memory; sum of the prices.
#[must_use]
pub fn q0(parameters: &Parameters) -> Answer {
    let mut generator = Generator::new(parameters);
    let mut columns = Columns::default();
    let mut answer = Answer::default();
    while generator.next_batch(&mut columns) {
        // The sink: whoever takes the batch may read all of it, so that no column can be optimised away.
        let batch = black_box(&columns);
        answer.records += batch.rows() as u64;
        answer.checksum = batch.price.iter().fold(answer.checksum, |sum, price| sum.wrapping_add(*price as u64));
    }
    answer
}

/// Price times 0.908; sum of the floors.
#[must_use]
pub fn q1(parameters: &Parameters) -> Answer {
    let mut answer = Answer::default();
    for event in 0..parameters.records() {
        let euro = f64::from(price(mix(event))) * 0.908;
        // The conversion cuts towards zero, which is the floor because no price is negative.
        answer.add(euro as i32 as u64);
    }
    answer
}

/// The events whose auction is a multiple of 123; sum of the auctions.
#[must_use]
pub fn q2(parameters: &Parameters) -> Answer {
    let auctions = KeyDraw::new(parameters.auctions());
    let mut answer = Answer::default();
    let drawn = (0..parameters.records()).map(|event| auctions.draw(mix(event)));
    for auction in drawn.filter(|auction| auction % 123 == 0) {
        answer.add(u64::from(auction));
    }
    answer
}

/// How often the auction of each event has been seen so far; sum of these numbers.
#[must_use]
pub fn wc(parameters: &Parameters) -> Answer {
    let auctions = KeyDraw::new(parameters.auctions());
    let mut counts = vec![0_u64; parameters.auctions() as usize];
    let mut answer = Answer::default();
    for event in 0..parameters.records() {
        let count = &mut counts[auctions.draw(mix(event)) as usize];
        *count += 1;
        answer.add(*count);
    }
    answer
}
