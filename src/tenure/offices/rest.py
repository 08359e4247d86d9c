"""How deeply an idle office rests: the tiers, and when it sinks to the next. Pure.

    awake       everything runs
    paused      its processes are frozen in memory: back in milliseconds, takes no processor
    hibernated  its processes lie on disk as a memory image: nothing runs, they go on after it woke
    stopped     only the volume is there: its processes are gone
    archived    nothing of it is here: it lies in S3, as an export; never by itself

Any use brings it back. Only what nobody uses sinks (`tenure.use`), and nothing that is lost in sinking is more than a
process that could be started again; by default nothing is lost at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

PAUSE_AFTER_S = 300.0
HIBERNATE_AFTER_S = 1800.0
LEASE_S_MAX = 7 * 86_400.0


class Tier(StrEnum):
    AWAKE = "awake"
    PAUSED = "paused"
    HIBERNATED = "hibernated"
    STOPPED = "stopped"
    ARCHIVED = "archived"

    @property
    def depth(self) -> int:
        return list(Tier).index(self)


@dataclass(frozen=True)
class RestPolicy:
    """After how many idle seconds an office sinks to each tier; None: never by itself."""

    pause_after_s: float | None = PAUSE_AFTER_S
    hibernate_after_s: float | None = HIBERNATE_AFTER_S
    stop_after_s: float | None = None

    def but(self, own: Mapping[str, float]) -> RestPolicy:
        """This policy with some of an agent's own: seconds by field, 0 for never."""
        return replace(self, **{name: seconds or None for name, seconds in own.items()})


@dataclass(frozen=True)
class Lease:
    """Until when an office stays awake though nobody uses it, and why."""

    until: datetime
    reason: str


def due(tier: Tier, idle_s: float, policy: RestPolicy, *, barred: frozenset[Tier] = frozenset()) -> Tier | None:
    """The tier that an office should sink to now: the deepest whose time has come, deeper than where it is and not
    `barred`. None: it stays."""
    after = {
        Tier.PAUSED: policy.pause_after_s,
        Tier.HIBERNATED: policy.hibernate_after_s,
        Tier.STOPPED: policy.stop_after_s,
    }
    reached = [
        wanted
        for wanted, after_s in after.items()
        if after_s is not None and idle_s >= after_s and wanted.depth > tier.depth and wanted not in barred
    ]
    return max(reached, key=lambda wanted: wanted.depth, default=None)
