#!/usr/bin/env python3
"""Expected answers of the "flight delays" example, computed without the engine.

Usage:
    flight_answers.py INPUT [--out DIR] [--summary FILE] [--deadline MIN]
                            [--bound MIN] [--allowed-lateness MIN]

INPUT is a flights CSV or a zip holding one. --out writes the answers as CSV
files into DIR, --summary writes the totals as JSON (they are always printed).
Python 3 standard library only.

Events
    A row with dep_delay = "NA" is a cancelled flight: no event, ignored by
    every answer. Every other row is one departure. All times are UTC, whole
    minutes:
        scheduled = time_hour + minute
        departed  = scheduled + dep_delay       (event time of the departure)
        arrived   = departed + air_time         (event time of the arrival;
                                                 air_time = "NA": no arrival)
    The arrival instant is defined by this formula alone; arr_time, arr_delay
    and sched_arr_time are not used. A row is flat-mapped to its departure and
    then, if air_time is known, its arrival, in file order.

(a) departures-per-origin-hour.csv: origin,window_start,flights
    Departures counted per origin in tumbling windows of 1 hour,
    [start, start + 1 h), aligned to the epoch, by `departed`.
    Windows without a departure have no line. Sorted by origin, window_start.

(b) delay-per-carrier-day.csv: carrier,window_start,flights,mean_delay
    Departures per carrier in tumbling windows of 1 day (UTC midnight to
    midnight), by `departed`. mean_delay = (sum of dep_delay as an integer) /
    flights, one division of 64-bit floats, shortest decimal form that reads
    back to the same float. Sorted by carrier, window_start.

(c) arrival-alerts.csv: carrier,flight,tailnum,scheduled,departed,deadline
    arrival-alerts-per-carrier.csv: carrier,alerts,no_arrival,arrived_late
    Key of a flight: (carrier, flight, tailnum, scheduled); it is unique (the
    script fails if it is not). With X = --deadline minutes (360 by default),
    deadline = departed + X. A departed flight raises exactly one alert unless
    it has an arrival with arrived <= deadline (equivalently: alert if and only
    if air_time = "NA" or air_time > X). The alert's event time is the deadline.
        no_arrival:   air_time = "NA";    arrived_late: air_time > X.
    As a keyed streaming job with one event-time timer per flight:
        on departure: set an event-time timer at departed + X;
        on arrival:   if the flight has state and arrived <= departed + X,
                      delete the timer and the state, otherwise do nothing;
        on timer:     emit the alert, clear the state.
    At the end of the input the watermark moves to the end of time, so every
    timer left fires. No air_time in the 2013 data is exactly 360, so with the
    default X the treatment of equality does not show.
    arrival-alerts.csv is sorted by deadline, carrier, flight, tailnum.
    arrival-alerts-per-carrier.csv lists every carrier that departed, also
    those with 0 alerts.

Lateness
    The answers are those of a run in which nothing is late. What is late in
    a run depends on when watermarks are emitted, but never beyond this: a
    watermark that trails the largest event time seen so far by `bound` is at
    most M - bound, M being the running maximum of event times in file order.
    lateness of an event = M - its event time, so
        bound >= max(lateness) + 1 minute
    is enough, however the records are batched and whether an event equal to
    the watermark counts as late or not. The summary's `sufficient_bound`
    gives this bound (`any_record`), and the smaller one with which no
    record misses its window (watermark < window end) or its timer (watermark
    < deadline). For (a) and (b), bound + allowed lateness may be compared
    with it instead: a window may then fire more than once, and the last
    result per key and window is the answer. For (c) only the bound counts.
    Split among several readers, each tracking its own maximum, combined by
    minimum, the input needs no larger bound: a part in file order is never
    more out of order than the whole.
    `rows`: event times are those of departures (watermarks made where rows
    are read). `events`: departures and arrivals (watermarks made after the
    flat map). With --bound (and --allowed-lateness) the script exits with
    status 1 if they are not enough for `any_record` of `events`.
"""

import argparse
import collections
import csv
import datetime
import hashlib
import io
import itertools
import json
import os
import sys
import zipfile

HOUR = 60
DAY = 24 * HOUR
EPOCH = datetime.datetime(1970, 1, 1)

Flight = collections.namedtuple(
    "Flight", "year month carrier flight tailnum origin scheduled departed delay air_time"
)


def open_text(path):
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        names = [n for n in archive.namelist() if n.endswith(".csv")]
        if len(names) != 1:
            sys.exit("%s: expected exactly one .csv inside, found %d" % (path, len(names)))
        return io.TextIOWrapper(archive.open(names[0]), encoding="utf-8", newline="")
    return open(path, encoding="utf-8", newline="")


def minutes(iso):
    delta = datetime.datetime.strptime(iso, "%Y-%m-%dT%H:%M:%SZ") - EPOCH
    return delta.days * DAY + delta.seconds // 60


def iso(minute):
    return (EPOCH + datetime.timedelta(minutes=minute)).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(path):
    """All departed flights in file order, and the number of rows."""
    hours, flights, rows = {}, [], 0
    with open_text(path) as text:
        for row in csv.DictReader(text):
            rows += 1
            if row["dep_delay"] == "NA":
                continue
            hour = row["time_hour"]
            if hour not in hours:
                hours[hour] = minutes(hour)
            scheduled = hours[hour] + int(row["minute"])
            delay = int(row["dep_delay"])
            air_time = None if row["air_time"] == "NA" else int(row["air_time"])
            flights.append(
                Flight(
                    int(row["year"]), int(row["month"]), row["carrier"], int(row["flight"]),
                    row["tailnum"], row["origin"], scheduled, scheduled + delay, delay, air_time,
                )
            )
    keys = {(f.carrier, f.flight, f.tailnum, f.scheduled) for f in flights}
    if len(keys) != len(flights):
        sys.exit("%s: the key of a flight is not unique" % path)
    return flights, rows


def events_of(flight, arrivals):
    yield flight.departed
    if arrivals and flight.air_time is not None:
        yield flight.departed + flight.air_time


def disorder(flights, arrivals, deadline):
    """Lateness (running maximum of event time minus event time) in file order."""
    lateness = []
    top = hourly = daily = timer = -(10 ** 12)
    for f in flights:
        for number, time in enumerate(events_of(f, arrivals)):
            top = max(top, time)
            lateness.append(top - time)
            if number == 0:
                hourly = max(hourly, top - (time // HOUR + 1) * HOUR)
                daily = max(daily, top - (time // DAY + 1) * DAY)
                timer = max(timer, top - (time + deadline))
    ordered = sorted(lateness)
    count = len(ordered)

    def percentile(p):  # nearest rank, p in tenths of a percent
        return ordered[max(0, -(-p * count // 1000) - 1)]

    return {
        "events": count,
        "late_events": sum(1 for x in ordered if x > 0),
        "lateness_minutes": {
            "p50": percentile(500),
            "p90": percentile(900),
            "p95": percentile(950),
            "p99": percentile(990),
            "p99.9": percentile(999),
            "max": ordered[-1],
        },
        "sufficient_bound": {
            "any_record": ordered[-1] + 1,
            "a_hourly_windows": max(0, hourly + 1),
            "b_daily_windows": max(0, daily + 1),
            "c_timers": max(0, timer + 1),
        },
    }


def hourly_departures(flights):
    counts = collections.Counter((f.origin, f.departed // HOUR * HOUR) for f in flights)
    return [(origin, iso(start), n) for (origin, start), n in sorted(counts.items())]


def daily_delays(flights):
    sums = collections.defaultdict(lambda: [0, 0])
    for f in flights:
        cell = sums[f.carrier, f.departed // DAY * DAY]
        cell[0] += 1
        cell[1] += f.delay
    return [
        (carrier, iso(start), n, repr(total / n))
        for (carrier, start), (n, total) in sorted(sums.items())
    ]


def arrival_alerts(flights, deadline):
    alerts, per_carrier = [], {f.carrier: [0, 0, 0] for f in flights}
    for f in flights:
        if f.air_time is None or f.air_time > deadline:
            alerts.append((f.departed + deadline, f.carrier, f.flight, f.tailnum, f))
            cell = per_carrier[f.carrier]
            cell[0] += 1
            cell[1 if f.air_time is None else 2] += 1
    alerts.sort()
    lines = [
        (f.carrier, f.flight, f.tailnum, iso(f.scheduled), iso(f.departed), iso(due))
        for due, _, _, _, f in alerts
    ]
    return lines, [(carrier, *cell) for carrier, cell in sorted(per_carrier.items())]


def render(header, lines):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header.split(","))
    writer.writerows(lines)
    return out.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("input")
    parser.add_argument("--out")
    parser.add_argument("--summary")
    parser.add_argument("--deadline", type=int, default=360)
    parser.add_argument("--bound", type=int)
    parser.add_argument("--allowed-lateness", type=int, default=0)
    args = parser.parse_args()

    flights, rows = read(args.input)
    if not flights:
        sys.exit("%s: no departed flight" % args.input)
    hourly = hourly_departures(flights)
    daily = daily_delays(flights)
    alerts, alerts_per_carrier = arrival_alerts(flights, args.deadline)
    files = {
        "departures-per-origin-hour.csv": render("origin,window_start,flights", hourly),
        "delay-per-carrier-day.csv": render("carrier,window_start,flights,mean_delay", daily),
        "arrival-alerts.csv": render(
            "carrier,flight,tailnum,scheduled,departed,deadline", alerts
        ),
        "arrival-alerts-per-carrier.csv": render(
            "carrier,alerts,no_arrival,arrived_late", alerts_per_carrier
        ),
    }

    in_file_order = {
        "rows": disorder(flights, False, args.deadline),
        "events": disorder(flights, True, args.deadline),
    }
    by_month = sorted(flights, key=lambda f: (f.year, f.month))  # stable
    months = [key for key, _ in itertools.groupby((f.year, f.month) for f in flights)]
    summary = {
        "input": {
            "rows": rows,
            "cancelled": rows - len(flights),
            "departures": len(flights),
            "arrivals": sum(1 for f in flights if f.air_time is not None),
            "first_departure": iso(min(f.departed for f in flights)),
            "last_departure": iso(max(f.departed for f in flights)),
            "months_in_file_order": [month for _, month in months],
        },
        "disorder_in_file_order": in_file_order,
        "disorder_with_months_in_calendar_order": {
            "rows": disorder(by_month, False, args.deadline),
            "events": disorder(by_month, True, args.deadline),
        },
        "a_departures_per_origin_hour": {
            "lines": len(hourly),
            "flights": sum(line[2] for line in hourly),
            "flights_per_origin": dict(sorted(collections.Counter(f.origin for f in flights).items())),
            "largest_window": max(line[2] for line in hourly),
        },
        "b_delay_per_carrier_day": {
            "lines": len(daily),
            "flights": sum(line[2] for line in daily),
            "sum_of_delay_minutes": sum(f.delay for f in flights),
            "mean_delay": sum(f.delay for f in flights) / len(flights),
        },
        "c_arrival_alerts": {
            "deadline_minutes": args.deadline,
            "alerts": len(alerts),
            "no_arrival": sum(line[2] for line in alerts_per_carrier),
            "arrived_late": sum(line[3] for line in alerts_per_carrier),
            "alerts_per_carrier": {line[0]: line[1] for line in alerts_per_carrier},
        },
        "sha256": {
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()
        },
    }
    text = json.dumps(summary, indent=2) + "\n"
    sys.stdout.write(text)
    if args.summary:
        with open(args.summary, "w", encoding="utf-8", newline="") as out:
            out.write(text)
    if args.out:
        os.makedirs(args.out, exist_ok=True)
        for name, body in files.items():
            with open(os.path.join(args.out, name), "w", encoding="utf-8", newline="") as out:
                out.write(body)
    if args.bound is not None:
        need = in_file_order["events"]["sufficient_bound"]["any_record"]
        have = args.bound + args.allowed_lateness
        if have < need:
            sys.exit("bound + allowed lateness = %d min, %d needed: records may be late" % (have, need))


if __name__ == "__main__":
    main()
