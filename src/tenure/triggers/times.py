"""When a schedule is due: by cron, every so often, or once. Pure: nothing here looks at a clock.

All instants are aware datetimes. In a time zone with daylight saving, cron times follow Debian's cron: a job of a fixed time
that falls into the hour that is skipped is due at that hour's end, and one in the hour that comes twice is due the first time
only; jobs of every hour or every so many minutes (`*` in the hour or minute) follow the clock on the wall through both. (Where
the clock changes by half an hour, on Lord Howe Island, minutes of that hour may be left out; no time is ever due twice.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from tenure.errors import InvalidArgument

EVERY_S_MIN = 60
EVERY_S_MAX = 366 * 86400
CRON_CHARS_MAX = 200
CRON_FIELDS = 5
GAPS_LOOKED_AT = 600
"""Due times from which the least gap of a cron expression is taken: more than two days of one that is due every 5 minutes."""
_WINDOW = timedelta(days=2)
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}\Z")


@dataclass(frozen=True)
class Cron:
    """Five fields, in the time zone `tz` (an IANA name)."""

    expression: str
    tz: str = "UTC"


@dataclass(frozen=True)
class Every:
    """Every so many seconds, counted from `since`, not from when the last one was done: so it never drifts."""

    seconds: int
    since: datetime


@dataclass(frozen=True)
class At:
    """Once."""

    at: datetime


Times = Cron | Every | At


def check_times(times: Times) -> Times:
    """The times themselves, when they make sense. Raises `InvalidArgument`."""
    match times:
        case Cron(expression, tz):
            zone_of(tz)
            _check_cron(expression)
            if next_after(times, datetime(2026, 1, 1, tzinfo=UTC)) is None:
                raise InvalidArgument(f"The cron expression {expression!r} is never due.")
        case Every(seconds, _):
            if not EVERY_S_MIN <= seconds <= EVERY_S_MAX:
                raise InvalidArgument(f"An interval is between {EVERY_S_MIN} and {EVERY_S_MAX} seconds.")
        case At(at):
            if at.tzinfo is None:
                raise InvalidArgument("The time has no time zone.", hint="Write it like 2026-11-23T03:00Z.")
    return times


def zone_of(name: str) -> tzinfo:
    """Raises `InvalidArgument`. UTC is `datetime.UTC`, which is quicker than its entry in the database of zones."""
    if name == "UTC":
        return UTC
    try:
        if not _ZONE.match(name):
            raise ValueError
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise InvalidArgument(
            f"There is no time zone {name[:60]!r}.", hint="Give an IANA name: Europe/Berlin, America/New_York, UTC."
        ) from None


def _check_cron(expression: str) -> None:
    hint = "Five fields: minute hour day-of-month month day-of-week, like '0 3 * * 1-5'."
    if len(expression) > CRON_CHARS_MAX or len(expression.split()) != CRON_FIELDS:
        raise InvalidArgument(f"{expression[:60]!r} is no cron expression.", hint=hint)
    try:
        CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC))
    except (CronSimError, ValueError, AssertionError, TypeError) as error:
        raise InvalidArgument(f"{expression[:60]!r} is no cron expression: {error}.", hint=hint) from None


def after(times: Times, moment: datetime) -> Iterator[datetime]:
    """All due times later than `moment`, in order, in UTC, none twice."""
    match times:
        case Cron(expression, tz):
            last = moment.astimezone(UTC)
            for found in CronSim(expression, moment.astimezone(zone_of(tz))):
                # In an hour that comes twice it begins with the first of them, which may be over; and what falls into an hour
                # that is skipped may be due when another is.
                if (due := found.astimezone(UTC)) > last:
                    last = due
                    yield due
        case Every(seconds, since):
            step = timedelta(seconds=seconds)
            count = max((moment - since) // step, 0) + 1
            while True:
                yield (since + count * step).astimezone(UTC)
                count += 1
        case At(at):
            if at > moment:
                yield at.astimezone(UTC)


def next_after(times: Times, moment: datetime) -> datetime | None:
    """The first due time later than `moment`; None when there is none."""
    return next(after(times, moment), None)


def upcoming(times: Times, moment: datetime, count: int) -> list[datetime]:
    """The next `count` due times, or fewer."""
    return list(islice(after(times, moment), count))


def last_due(times: Times, first: datetime, now: datetime) -> datetime:
    """The latest due time that is not later than `now`; `first` is one. Takes about as long whether that was minutes ago or
    years."""
    window = _WINDOW
    while (start := now - window) > first:
        found = None
        for due in after(times, start):
            if due > now:
                break
            found = due
        if found is not None:
            return found
        window *= 8
    found = first
    for due in after(times, first):
        if due > now:
            break
        found = due
    return found


def least_gap_s(times: Times, moment: datetime) -> float:
    """The shortest time between two due times in a row, in seconds; infinite for what is due once."""
    if isinstance(times, Every):
        return float(times.seconds)
    found = upcoming(times, moment, GAPS_LOOKED_AT)
    return min(((later - earlier).total_seconds() for earlier, later in pairwise(found)), default=float("inf"))
