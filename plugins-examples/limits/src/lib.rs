//! Readings of sensors against limits that change while the job runs. Where sensors are, and what the limits of rooms are,
//! is broadcast: every subtask has it, whichever readings come to it.

use tidemill::prelude::*;

/// What a sensor says.
#[derive(Row)]
pub struct Reading {
    sensor: i64,
    value: i64,
}

/// Where a sensor is. Without a room: nowhere any more.
#[derive(Row)]
pub struct Sensor<'a> {
    sensor: i64,
    room: Option<&'a str>,
}

/// What a value in a room may be at most.
#[derive(Row)]
pub struct Limit<'a> {
    room: &'a str,
    most: i64,
}

/// A value in a room, and the how manieth beyond the limit in a row.
#[derive(Row)]
pub struct InRoom {
    room: String,
    value: i64,
    times: i64,
}

#[tidemill::job]
pub fn limits(flow: &mut Flow) {
    let (sensors, limits) = (flow.source::<Sensor>("sensors"), flow.source::<Limit>("limits"));
    let readings = flow.source::<Reading>("readings").with_broadcast(sensors);
    let located = readings.process(|s| Locate { rooms: s.broadcast("rooms"), lost: s.side("lost") }).uid("locate");
    located.side::<Reading>("lost").sink("lost");
    let watched = located.key_by(|l| l.room).with_broadcast(limits);
    watched.process(|s| Watch { limits: s.broadcast("limits"), times: s.value("times") }).uid("watch").sink("alarms");
}

/// Without a key: finds the room of a reading.
pub struct Locate {
    rooms: BroadcastState<i64, String>,
    lost: Side<Reading>,
}

impl BroadcastProcess for Locate {
    type In = Reading;
    type Broadcast = Sensor<'static>;
    type Out = InRoom;

    fn process(&mut self, reading: Reading, ctx: &mut UnkeyedContext<'_, InRoom>) -> Result<(), RowError> {
        match self.rooms.get(ctx, &reading.sensor) {
            Some(room) => ctx.emit(InRoom { room, value: reading.value, times: 0 }),
            None => ctx.side(&self.lost, reading),
        }
        Ok(())
    }

    fn process_broadcast(&mut self, row: Sensor<'_>, ctx: &mut BroadcastContext<'_, InRoom>) -> Result<(), RowError> {
        match row.room {
            Some(room) => self.rooms.insert(ctx, row.sensor, room.to_owned()),
            None => self.rooms.remove(ctx, &row.sensor),
        }
        Ok(())
    }
}

/// By room: counts values beyond the limit.
pub struct Watch {
    limits: BroadcastState<String, i64>,
    times: ValueState<i64>,
}

impl KeyedBroadcastProcess for Watch {
    type Key = String;
    type In = InRoom;
    type Broadcast = Limit<'static>;
    type Out = InRoom;

    fn process(&mut self, row: InRoom, ctx: &mut Context<'_, InRoom>) -> Result<(), RowError> {
        if self.limits.get(ctx, &row.room).is_none_or(|most| row.value <= most) {
            self.times.clear(ctx);
            return Ok(());
        }
        let times = self.times.get(ctx).unwrap_or(0) + 1;
        self.times.set(ctx, times);
        ctx.emit(InRoom { times, ..row });
        Ok(())
    }

    fn process_broadcast(&mut self, row: Limit<'_>, ctx: &mut BroadcastContext<'_, InRoom>) -> Result<(), RowError> {
        self.limits.insert(ctx, row.room.to_owned(), row.most);
        Ok(())
    }
}
