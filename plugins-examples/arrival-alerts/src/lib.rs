//! Raises an alert for each flight that departed and did not arrive in time, with a timer per flight.

use tidemill::prelude::*;

/// The columns of the flights that are read.
#[derive(Row)]
pub struct Flight<'a> {
    time_hour: Timestamp,
    minute: i64,
    dep_delay: Option<i64>,
    air_time: Option<i64>,
    carrier: &'a str,
    flight: i64,
    tailnum: Option<&'a str>,
}

/// A flight departs, or arrives.
#[derive(Row, Clone, Copy)]
pub struct Movement<'a> {
    carrier: &'a str,
    flight: i64,
    tailnum: &'a str,
    scheduled: Timestamp,
    arrival: bool,
    at: Timestamp,
}

/// A flight that did not arrive by its deadline.
#[derive(Row)]
pub struct Alert {
    carrier: String,
    flight: i64,
    tailnum: String,
    scheduled: Timestamp,
    departed: Timestamp,
    deadline: Timestamp,
}

/// The job. A row of the input becomes a departure and, if the flight is known to have arrived, an arrival.
#[tidemill::job]
pub fn arrival_alerts(flow: &mut Flow) {
    let allowed = mins(flow.param_or("allowed-minutes", 360));
    flow.source::<Flight>("flights")
        .flat_map::<Movement, _>(|f, out| {
            let Some(delay) = f.dep_delay else { return };
            let (carrier, flight, tailnum) = (f.carrier, f.flight, f.tailnum.unwrap_or_default());
            let scheduled = f.time_hour + mins(f.minute as u64);
            let departed = Timestamp::from_millis(scheduled.millis() + delay * 60_000); // early, if it is negative
            let departure = Movement { carrier, flight, tailnum, scheduled, arrival: false, at: departed };
            out.emit(departure);
            if let Some(air_time) = f.air_time {
                out.emit(Movement { arrival: true, at: departed + mins(air_time as u64), ..departure });
            }
        })
        .watermark(|m| m.at, BoundedOutOfOrderness::of(hours(30)))
        .key_by(|m| (m.carrier, m.flight, m.tailnum, m.scheduled))
        .process(|states| Watch { departed: states.value("departed"), allowed })
        .sink("alerts");
}

/// Waits for the arrival of each flight that departed.
pub struct Watch {
    departed: ValueState<Timestamp>,
    allowed: Duration,
}

impl KeyedProcess for Watch {
    type Key = (&'static str, i64, &'static str, Timestamp);
    type In = Movement<'static>;
    type Out = Alert;

    fn process(&mut self, row: Movement<'_>, ctx: &mut Context<'_, Alert>) -> Result<(), RowError> {
        if !row.arrival {
            self.departed.set(ctx, row.at);
            ctx.set_event_timer(row.at + self.allowed);
        } else if let Some(departed) = self.departed.get(ctx)
            && row.at <= departed + self.allowed
        {
            ctx.delete_event_timer(departed + self.allowed);
            self.departed.clear(ctx);
        }
        Ok(())
    }

    fn on_timer(
        &mut self,
        (carrier, flight, tailnum, scheduled): (&str, i64, &str, Timestamp),
        deadline: Timestamp,
        ctx: &mut Context<'_, Alert>,
    ) -> Result<(), RowError> {
        if let Some(departed) = self.departed.get(ctx) {
            let (carrier, tailnum) = (carrier.to_owned(), tailnum.to_owned());
            ctx.emit(Alert { carrier, flight, tailnum, scheduled, departed, deadline });
            self.departed.clear(ctx);
        }
        Ok(())
    }
}
