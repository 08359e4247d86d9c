"""When schedules are due: by cron in any time zone, through skipped and repeated hours; every so often without drift; once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tenure.errors import InvalidArgument
from tenure.triggers.schedule import Missed, Overlap, ScheduleRecord, jitter_s, take
from tenure.triggers.times import (
    At,
    Cron,
    Every,
    Times,
    after,
    check_times,
    last_due,
    least_gap_s,
    next_after,
    upcoming,
    zone_of,
)

MINUTE = timedelta(minutes=1)
# Around their changes of the clock: by an hour at night, by half an hour, at midnight, and never.
ZONES = {
    "Europe/Berlin": [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)],
    "America/New_York": [datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)],
    "Australia/Lord_Howe": [datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2026, 10, 3, 15, 30, tzinfo=UTC)],
    "Africa/Cairo": [datetime(2026, 4, 23, 22, tzinfo=UTC), datetime(2026, 10, 29, 21, tzinfo=UTC)],
    "Asia/Kolkata": [datetime(2026, 6, 1, tzinfo=UTC)],
    "UTC": [datetime(2026, 6, 1, tzinfo=UTC)],
}
WHOLE_HOURS = sorted(set(ZONES) - {"Australia/Lord_Howe"})
"""There the clock changes by half an hour, of which cronsim loses a part where the hour is given and the minute is not."""
moments = st.sampled_from([(zone, change) for zone in WHOLE_HOURS for change in ZONES[zone]])
minutes = st.one_of(
    st.just("*"),
    st.sampled_from(["*/5", "*/7", "*/30"]),
    st.lists(st.integers(0, 59), min_size=1, max_size=3, unique=True).map(lambda found: ",".join(map(str, found))),
)
hours = st.one_of(
    st.just("*"),
    st.sampled_from(["*/2", "0-4", "1-3"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True).map(lambda found: ",".join(map(str, found))),
)


def _set(field: str, top: int) -> set[int]:
    if field.startswith("*"):
        return set(range(0, top, int(field[2:] or 1) if "/" in field else 1))
    low, dash, high = field.partition("-")
    return set(range(int(low), int(high) + 1)) if dash else {int(one) for one in field.split(",")}


def due_by_the_book(minute: str, hour: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    """Every due time of `minute hour * * *`, found by looking at each minute there is."""
    tz = ZoneInfo(zone)
    at_minutes, at_hours = _set(minute, 60), _set(hour, 24)
    found: set[datetime] = set()
    if minute.startswith("*") or hour.startswith("*"):
        at = start
        while at <= end:
            local = at.astimezone(tz)
            if local.minute in at_minutes and local.hour in at_hours:
                found.add(at)
            at += MINUTE
    else:
        wall = (start - timedelta(days=1)).astimezone(tz).replace(tzinfo=None)
        while wall < (end + timedelta(days=1)).astimezone(tz).replace(tzinfo=None):
            if wall.minute in at_minutes and wall.hour in at_hours:
                local = wall.replace(tzinfo=tz)  # the first of two
                while local.astimezone(UTC).astimezone(tz).replace(tzinfo=None) != local.replace(tzinfo=None):
                    local = (local.replace(tzinfo=None) + MINUTE).replace(tzinfo=tz)  # skipped
                found.add(local.astimezone(UTC))
            wall += MINUTE
    return sorted(at for at in found if start < at <= end)


@settings(max_examples=60, deadline=None)
@given(moments, minutes, hours, st.integers(-300, 300))
@example(("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)), "30", "2", -20)
@example(("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC)), "30", "2", -90)
def test_cron_is_due_as_the_book_says_through_every_change_of_the_clock(
    moment: tuple[str, datetime], minute: str, hour: str, offset: int
) -> None:
    zone, change = moment
    start = change + offset * MINUTE
    end = start + timedelta(hours=30)
    times = Cron(f"{minute} {hour} * * *", zone)
    found: list[datetime] = []
    for due in after(times, start):
        if due > end:
            break
        found.append(due)
    assert found == due_by_the_book(minute, hour, zone, start, end)


def test_a_skipped_hour_is_made_up_for_and_a_repeated_one_counts_once() -> None:
    nightly = Cron("30 2 * * *", "Europe/Berlin")
    assert next_after(nightly, datetime(2026, 3, 28, 12, tzinfo=UTC)) == datetime(2026, 3, 29, 1, tzinfo=UTC)
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert next_after(nightly, datetime(2026, 10, 24, 12, tzinfo=UTC)) == first
    assert next_after(nightly, first) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)
    hourly = Cron("15 * * * *", "Europe/Berlin")
    assert upcoming(hourly, datetime(2026, 10, 24, 23, 30, tzinfo=UTC), 4) == [
        datetime(2026, 10, 25, hour, 15, tzinfo=UTC) for hour in range(4)
    ]


instants = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))
some_times = st.one_of(
    st.builds(lambda m, h, zone: Cron(f"{m} {h} * * *", zone), minutes, hours, st.sampled_from(sorted(ZONES))),
    st.builds(Every, st.integers(60, 100_000), instants),
    st.builds(At, instants),
)


@settings(max_examples=60, deadline=None)
@given(some_times, instants, st.integers(0, 50))
def test_each_due_time_follows_from_the_one_before_alone(times: Times, start: datetime, count: int) -> None:
    """So a server that begins anew at any of them goes on as if it had never stopped."""
    whole = upcoming(times, start, count)
    assert whole == sorted(set(whole))
    at, one_by_one = start, list[datetime]()
    while len(one_by_one) < count and (due := next_after(times, at)) is not None:
        one_by_one.append(due)
        at = due
    assert one_by_one == whole
    assert all(due > start for due in whole)


@settings(max_examples=60, deadline=None)
@given(st.integers(60, 100_000), instants, st.timedeltas(timedelta(0), timedelta(days=400)))
def test_every_counts_from_its_creation_and_never_drifts(seconds: int, since: datetime, later: timedelta) -> None:
    due = next_after(Every(seconds, since), since + later)
    assert due is not None
    assert (due - since) % timedelta(seconds=seconds) == timedelta(0)
    assert timedelta(0) < due - (since + later) <= timedelta(seconds=seconds)


@settings(max_examples=60, deadline=None)
@given(some_times, instants, st.timedeltas(timedelta(0), timedelta(days=40)))
def test_the_last_due_time_is_found_without_counting_all(times: Times, start: datetime, away: timedelta) -> None:
    first = next_after(times, start)
    assume(first is not None)
    assert first is not None
    now = first + away
    passed = first
    for due in after(times, first):
        if due > now:
            break
        passed = due
    assert last_due(times, first, now) == passed


def test_years_away_cost_no_more_than_days() -> None:
    times = Cron("* * * * *")
    first = datetime(2000, 1, 1, tzinfo=UTC)
    now = datetime(2030, 1, 1, 0, 0, 30, tzinfo=UTC)
    assert last_due(times, first, now) == datetime(2030, 1, 1, tzinfo=UTC)


# --- which are taken -------------------------------------------------------------------------------------------------------
def schedule(times: Times, next_at: datetime | None, missed: Missed = Missed.ONE, **more: object) -> ScheduleRecord:
    made = ScheduleRecord(
        "sch_1",
        "nightly",
        "analyst",
        "goal",
        {},
        times,
        missed,
        Overlap.SKIP,
        0,
        5,
        "owner",
        datetime(2026, 1, 1, tzinfo=UTC),
        next_at,
    )
    return made.__class__(**{**made.__dict__, **more})


@settings(max_examples=60, deadline=None)
@given(some_times, instants, st.timedeltas(timedelta(0), timedelta(days=3)))
def test_of_missed_times_all_one_or_none_are_taken(times: Times, start: datetime, away: timedelta) -> None:
    first = next_after(times, start)
    assume(first is not None)
    assert first is not None
    now = first + away
    every = [first, *(due for due in upcoming(times, first, 2000) if due <= now)]
    assume(len(every) < 2000)
    taken, at = list[datetime](), first
    while at is not None and at <= now:
        some = take(schedule(times, at, Missed.ALL), now)
        taken += [firing.due_at for firing in some.firings]
        assert some.firings
        at = some.next_at
    assert taken == every
    one = take(schedule(times, first), now)
    assert [(f.due_at, f.missed_since) for f in one.firings] == [(every[-1], first if len(every) > 1 else None)]
    none = take(schedule(times, first, Missed.NONE), now)
    assert [f.due_at for f in none.firings] == [due for due in every[-1:] if (now - due).total_seconds() <= 60]
    assert one.next_at == none.next_at == at == next_after(times, now)


def test_jitter_is_the_same_for_everybody_and_within_its_bounds() -> None:
    due = [datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in range(24)]
    waits = [jitter_s("sch_1", one, 600) for one in due]
    assert waits == [jitter_s("sch_1", one, 600) for one in due]
    assert all(0 <= wait < 600 for wait in waits)
    assert len(set(waits)) == 24
    assert waits != [jitter_s("sch_2", one, 600) for one in due]


# --- what makes no sense ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "times",
    [
        Cron("* * * *"),
        Cron("* * * * * *"),
        Cron("60 * * * *"),
        Cron("0 0 30 2 *"),
        Cron("a b c d e"),
        Cron("*/0 * * * *"),
        Cron("0 0 */31 2 2#5"),
        Cron("0 3 * * *", "Mars/Olympus"),
        Cron("0 3 * * *", "../../etc/passwd"),
        Cron("0 3 * * *", ""),
        Cron("0," * 200 + "0 * * * *"),
        Every(59, datetime(2026, 1, 1, tzinfo=UTC)),
        Every(10**10, datetime(2026, 1, 1, tzinfo=UTC)),
        At(datetime(2026, 1, 1)),
    ],
)
def test_times_that_make_no_sense_are_refused(times: Times) -> None:
    with pytest.raises(InvalidArgument):
        check_times(times)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789*/,-#LW MONJANé", max_size=30), st.text(max_size=20))
def test_whatever_is_given_is_due_sometime_or_refused(expression: str, zone: str) -> None:
    for tz in ("UTC", "Europe/Berlin", zone):
        try:
            times = check_times(Cron(expression, tz))
        except InvalidArgument:
            continue
        assert next_after(times, datetime(2026, 3, 29, tzinfo=UTC)) is not None


def test_the_least_gap_of_times_is_seen() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert least_gap_s(Cron("*/5 * * * *"), now) == 300
    assert least_gap_s(Cron("0,1 3 * * *"), now) == 60
    assert least_gap_s(Cron("0,59 * * * *"), now) == 60
    assert least_gap_s(Every(900, now), now) == 900
    assert least_gap_s(At(now), now) == float("inf")
    assert zone_of("UTC") is UTC
