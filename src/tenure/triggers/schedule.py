"""A schedule, its firings, and which of its due times are fired. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Any

from tenure.triggers.times import Times, after, last_due, next_after

ON_TIME_S = 60.0
"""A due time that was found no later than this was not missed."""
TAKEN_MAX = 100
"""Due times of one schedule that are taken at once; the rest follows."""
FIRING_KEY = "schedule"


class Missed(StrEnum):
    """What becomes of the due times at which no server ran."""

    ONE = "one"
    """The last of them is fired, for all."""
    ALL = "all"
    """Each is fired, in order."""
    NONE = "none"
    """None is."""


class Overlap(StrEnum):
    """What becomes of a due time at which what the last one began is not over."""

    SKIP = "skip"
    QUEUE = "queue"
    ALLOW = "allow"


class FiringState(StrEnum):
    DUE = "due"
    """Its time has come; nobody begins it yet."""
    STARTING = "starting"
    """A server begins it, and is to be done with that by `until`."""
    BEGUN = "begun"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class ScheduleRecord:
    """A schedule as it is in its row."""

    id: str
    name: str
    agent: str
    kind: str
    what: Mapping[str, Any]
    """For the action of its kind."""
    times: Times
    missed: Missed
    overlap: Overlap
    jitter_s: int
    failures_max: int
    """So many firings in a row that do not begin pause it."""
    created_by: str
    """As `str(Principal)`."""
    created_at: datetime
    next_at: datetime | None
    """None: it is never due again, or paused."""
    failures: int = 0
    """In a row."""
    paused_at: datetime | None = None
    reason: str = ""
    """Why it is paused."""

    @property
    def state(self) -> str:
        if self.paused_at is not None:
            return "paused"
        return "active" if self.next_at is not None else "over"


@dataclass(frozen=True)
class Firing:
    """One due time of a schedule. There is one row for each, whatever dies: the due time is its key."""

    schedule: str
    due_at: datetime
    fire_at: datetime
    """Not before then: the due time and its jitter, or when the next attempt is made."""
    state: FiringState = FiringState.DUE
    missed_since: datetime | None = None
    """It stands for all due times from this one on, which were missed."""
    manual: bool = False
    """Somebody asked for it; it is begun whatever goes on."""
    attempts: int = 0
    until: datetime | None = None
    began: str = ""
    """Id of what it began."""
    told: str = ""
    """Why it was skipped, or did not begin."""
    settled_at: datetime | None = None
    again: bool = False
    """Somebody claimed it before, and died or was too slow: it may have begun."""

    @property
    def key(self) -> str:
        """What it begins is begun once by it."""
        return f"{FIRING_KEY}.{self.schedule}.{self.due_at.timestamp():.6f}"


@dataclass(frozen=True)
class Taken:
    """What becomes of a schedule whose time has come."""

    firings: tuple[Firing, ...] = field(default=())
    next_at: datetime | None = None


def take(schedule: ScheduleRecord, now: datetime) -> Taken:
    """Which due times are to be fired, of a schedule whose `next_at` is not later than `now`; and when it is due next, which is
    not later than `now` when there were too many to take."""
    first = schedule.next_at
    assert first is not None
    assert first <= now
    if schedule.missed is Missed.ALL:
        found = [first]
        for due in islice(after(schedule.times, first), TAKEN_MAX):
            if due > now:
                break
            found.append(due)
        found = found[:TAKEN_MAX]
        return Taken(tuple(_firing(schedule, due) for due in found), next_after(schedule.times, found[-1]))
    last = last_due(schedule.times, first, now)
    next_at = next_after(schedule.times, now)
    if schedule.missed is Missed.NONE and (now - last).total_seconds() > ON_TIME_S:
        return Taken((), next_at)
    since = first if first < last else None
    return Taken((_firing(schedule, last, since if schedule.missed is Missed.ONE else None),), next_at)


def _firing(schedule: ScheduleRecord, due: datetime, since: datetime | None = None) -> Firing:
    jitter = timedelta(seconds=jitter_s(schedule.id, due, schedule.jitter_s))
    return Firing(schedule.id, due, due + jitter, missed_since=since)


def jitter_s(schedule: str, due: datetime, up_to_s: int) -> float:
    """How long after its due time it is begun: always the same for this one, spread evenly over all of them."""
    if not up_to_s:
        return 0.0
    digest = hashlib.sha256(f"{schedule}/{due.timestamp():.6f}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * up_to_s
