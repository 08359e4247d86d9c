"""When the copy of an office that is kept elsewhere is due, what it continues, and which older ones go. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

EVERY_S_MIN, EVERY_S_MAX = 60.0, 366 * 86400.0
FULL_EVERY_DEFAULT = 24
"""So many exports make a chain, of which the first is whole."""
FULL_EVERY_MAX = 1000
CHAINS_KEPT_DEFAULT = 3
CHAINS_KEPT_MAX = 1000
RETRY_FIRST_S, RETRY_MAX_S = 60.0, 3600.0
FAILURES_TOLD = 3
"""After so many in a row a person is told."""


@dataclass(frozen=True)
class ExportRecord:
    """An export's row in the control database."""

    id: str
    agent: str
    base: str | None
    destination: str
    """An s3:// address; empty for one that went to a client."""
    state: str
    """ "running", "done" or "failed"."""
    key_id: str | None
    scheduled: bool
    size_bytes: int | None
    error: str | None
    created_at: datetime
    """When the office was as in it; of one that failed, when it began."""
    finished_at: datetime | None


@dataclass(frozen=True)
class ScheduleRecord:
    """An agent's schedule: a row in the control database."""

    agent: str
    destination: str
    every_s: float
    full_every: int
    chains_kept: int
    key_id: str | None
    next_at: datetime
    failures: int
    """In a row."""
    last_error: str | None
    created_at: datetime


def after_success(planned: datetime, now: datetime, every_s: float) -> datetime:
    """The next time: in the rhythm of before, without those that were missed meanwhile."""
    period = timedelta(seconds=every_s)
    return planned + (max(0, (now - planned) // period) + 1) * period


def after_failure(now: datetime, failures: int, every_s: float) -> datetime:
    """When to try again, after so many failures in a row (at least 1): ever later, but not more seldom than it is due."""
    pause_s = min(RETRY_FIRST_S * 2 ** min(failures - 1, 30), RETRY_MAX_S, every_s)
    return now + timedelta(seconds=pause_s)


def chains(exports: Sequence[ExportRecord]) -> list[list[ExportRecord]]:
    """Scheduled exports that are done, the oldest first: each chain begins with a whole one, and each of the rest continues the
    one before. What continues nothing that is there is a chain of its own."""
    found: list[list[ExportRecord]] = []
    for one in exports:
        if found and one.base is not None and found[-1][-1].id == one.base:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def base_for_next(exports: Sequence[ExportRecord], schedule: ScheduleRecord) -> str | None:
    """What the next one continues; None when it is to be whole."""
    made = chains(exports)
    if not made or len(made[-1]) >= schedule.full_every or made[-1][0].base is not None:
        return None
    last = made[-1][-1]
    same_place = all(one.destination.startswith(schedule.destination) for one in made[-1])
    return last.id if same_place and last.key_id == schedule.key_id else None


def outdated(exports: Sequence[ExportRecord], schedule: ScheduleRecord) -> list[ExportRecord]:
    """Those that go: all of the chains before the last `chains_kept`; none before what continues it."""
    return [one for chain in chains(exports)[: -schedule.chains_kept] for one in reversed(chain)]
