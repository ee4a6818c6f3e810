//! Departures per airport and hour, and the mean delay per airline and day, by the time the flights *actually* left.
//!
//! The input is sorted by schedule, so by actual departure it is out of order by up to a day: a flight delayed past
//! midnight stands a day ahead of its neighbours. Windows over event time put each where it belongs.

use tidemill::prelude::*;

/// The columns of the flights that are read.
#[derive(Row)]
pub struct Flight<'a> {
    time_hour: Timestamp,
    minute: i64,
    dep_delay: Option<i64>,
    origin: &'a str,
    carrier: &'a str,
}

/// A flight that left.
#[derive(Row)]
pub struct Departure {
    origin: String,
    carrier: String,
    delay: i64,
    departed: Timestamp,
}

/// Flights that left an airport in an hour.
#[derive(Row)]
pub struct PerHour {
    origin: String,
    window_start: Timestamp,
    flights: i64,
}

/// An airline's day: how many flights left, and how late on average, in minutes.
#[derive(Row)]
pub struct PerCarrier {
    carrier: String,
    window_start: Timestamp,
    flights: i64,
    mean_delay: f64,
}

/// The job.
#[tidemill::job]
pub fn flight_delays(flow: &mut Flow) {
    let departures = flow
        .source::<Flight>("flights")
        .filter_map(|f| {
            let delay = f.dep_delay?; // a cancelled flight never left
            let departed = f.time_hour + mins(f.minute as u64);
            let departed = Timestamp::from_millis(departed.millis() + delay * 60_000);
            Some(Departure { origin: f.origin.to_owned(), carrier: f.carrier.to_owned(), delay, departed })
        })
        .watermark(|d| d.departed, BoundedOutOfOrderness::of(hours(30)));

    departures
        .clone()
        .key_by(|d| d.origin)
        .window(Tumbling::hours(1))
        .late_to("too-late")
        .aggregate(Count)
        .map(|w| PerHour { origin: w.key.to_owned(), window_start: w.start, flights: w.value })
        .sink("per-hour");

    departures
        .key_by(|d| d.carrier)
        .window(Tumbling::days(1))
        .aggregate(|d| (Count(d), Avg(d.delay)))
        .map(|w| PerCarrier {
            carrier: w.key.to_owned(),
            window_start: w.start,
            flights: w.value.0,
            mean_delay: w.value.1,
        })
        .sink("per-carrier");
}
