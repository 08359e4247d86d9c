"""Which automatic snapshots go. Pure: the clock and the runs that are not over are arguments.

A rule keeps the newest snapshot of each hour and each day, so what one pruning removes no later one would have wanted:
it does not matter how often one prunes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tenure.offices.models import SnapshotRecord

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
VERIFIED_KEPT = 2
"""Of each run that is not over: as often the recovery ladder may go back, each time further."""


@dataclass(frozen=True)
class Retention:
    """What stays of an agent's automatic snapshots: whatever one of the rules wants."""

    last: int = 10
    """The newest; those of steps and the others (before a restore, of a fork) are counted apart, so that a long run does not
    push out what undoes a restore."""
    hourly: int = 24
    """The newest of each of so many hours (of UTC), the current one included."""
    daily: int = 7
    """The same of days."""


def outdated(
    taken: Sequence[SnapshotRecord], rules: Retention, now: datetime, open_runs: Collection[str]
) -> list[SnapshotRecord]:
    """Of an agent's whole snapshots, those that go, the oldest first. Never one that somebody asked for, nor the
    newest verified ones of a run in `open_runs`: the ladder may yet go back to them."""
    newest_first = sorted(taken, key=lambda one: (one.created_at, one.id), reverse=True)
    automatic = [one for one in newest_first if one.kind.is_automatic]
    kept: set[str] = set()
    for of_steps in (True, False):
        kept |= {one.id for one in [one for one in automatic if one.kind.is_of_step is of_steps][: rules.last]}
    for period, periods in ((HOUR, rules.hourly), (DAY, rules.daily)):
        newest: dict[int, str] = {}
        for one in automatic:
            ago = _period(now, period) - _period(one.created_at, period)  # negative when the clock was set back
            if ago < periods:
                newest.setdefault(ago, one.id)
        kept |= set(newest.values())
    for run in open_runs:
        kept |= {one.id for one in verified(newest_first, run)[:VERIFIED_KEPT]}
    return [one for one in reversed(automatic) if one.id not in kept]


def verified(newest_first: Sequence[SnapshotRecord], run: str) -> list[SnapshotRecord]:
    """Those of `run` to which it may go back."""
    return [one for one in newest_first if one.step and one.step.verified and one.step.run == run]


def _period(at: datetime, period: timedelta) -> int:
    """Number of the hour or day that `at` lies in."""
    return (at - datetime.fromtimestamp(0, UTC)) // period
