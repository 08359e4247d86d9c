"""The recovery ladder, pure: which rung may be entered for a failure, given what was spent already.

Two ladders in one order: a step's own rungs (retry, self-correct) and the office's (reconnect, restart, restore, rebuild),
ending in the same last one, a person. A rung is entered while it has budget left; a spent rung is never returned to, and the
climb goes down again only after verified progress: a step's rungs end with the step, the office's counters begin anew when
some step succeeded for the first time (one that a restore undid gained that ground before).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from tenure.work.failures import FailureClass
from tenure.work.plan import RETRY_DELAY_S_MAX, PlanStep, Retry

SELF_CORRECTIONS_MAX = 2
RECONNECTS_MAX = 2
RESTARTS_MAX = 2
RESTORES_MAX = 2
"""Each goes back further than the one before."""
REBUILDS_MAX = 1
JITTER = 0.5
"""Part of a delay that is random: spreads branches that failed together."""


class Rung(IntEnum):
    RETRY = 0
    SELF_CORRECT = 1
    RECONNECT = 4
    RESTART = 5
    RESTORE = 6
    REBUILD = 7
    ASK = 8

    @property
    def of_office(self) -> bool:
        return Rung.RECONNECT <= self <= Rung.REBUILD


_OWN = (Rung.RETRY, Rung.SELF_CORRECT)
_RUNGS: dict[FailureClass, tuple[Rung, ...]] = {
    FailureClass.COMMAND: _OWN,
    FailureClass.TIMEOUT: _OWN,
    FailureClass.VERIFICATION: (*_OWN, Rung.RESTORE),
    FailureClass.DATABASE: _OWN,
    FailureClass.LOST: _OWN,
    FailureClass.INTERNAL: (Rung.RETRY,),
    FailureClass.MODEL: _OWN,
    FailureClass.CONTEXT: (),
    FailureClass.STUCK: (),
    FailureClass.BUDGET: (),
    FailureClass.DENIED: (),
    FailureClass.DOOR: (Rung.RECONNECT, Rung.RESTART, Rung.RESTORE, Rung.REBUILD),
    FailureClass.SANDBOX: (Rung.RESTART, Rung.RESTORE, Rung.REBUILD),
    FailureClass.AUTHENTICATION: (),
    FailureClass.USAGE: (),
    # A restart frees what deleted files and runaway programs hold, a restore what was written since.
    FailureClass.DISK_FULL: (Rung.RESTART, Rung.RESTORE),
}
_RISKY = frozenset({FailureClass.COMMAND, FailureClass.TIMEOUT})
"""What a risky step leaves behind when it ends so may be what keeps it from succeeding."""


@dataclass(frozen=True)
class Spent:
    """How often rungs were entered: by the step since it began or was answered for, by the office since a step succeeded."""

    step: Mapping[Rung, int] = field(default_factory=dict[Rung, int])
    office: Mapping[Rung, int] = field(default_factory=dict[Rung, int])

    def of(self, rung: Rung) -> int:
        return (self.office if rung.of_office else self.step).get(rung, 0)

    def level(self, *, office: bool) -> int:
        """The highest rung entered, -1 when none was."""
        return max((rung for rung, count in (self.office if office else self.step).items() if count), default=-1)


def budget(rung: Rung, step: PlanStep) -> int:
    """How often `rung` may be entered for `step`."""
    match rung:
        case Rung.RETRY:
            return step.retry.attempts
        case Rung.SELF_CORRECT:
            return SELF_CORRECTIONS_MAX if step.on_error is not None else 0
        case Rung.RECONNECT:
            return RECONNECTS_MAX
        case Rung.RESTART:
            return RESTARTS_MAX
        case Rung.RESTORE:
            return RESTORES_MAX
        case Rung.REBUILD:
            return REBUILDS_MAX
        case Rung.ASK:
            return 1


def next_rung(kind: FailureClass, step: PlanStep, spent: Spent, *, can_restore: bool = False) -> Rung:
    """The lowest rung that can help, is not below the level reached, and has budget; else a person. `can_restore`: there is a
    snapshot to go back to."""
    rungs = _RUNGS[kind]
    if step.risky and kind in _RISKY:
        rungs += (Rung.RESTORE,)
    for rung in rungs:
        if rung is Rung.RESTORE and not can_restore:
            continue
        if kind is FailureClass.DISK_FULL and rung is Rung.RESTART and spent.of(rung):
            continue  # it frees what it can at the first time
        if rung >= spent.level(office=rung.of_office) and spent.of(rung) < budget(rung, step):
            return rung
    return Rung.ASK


def retry_delay_s(retry: Retry, earlier: int, randomness: float) -> float:
    """Seconds before the next retry, after `earlier` ones. `randomness` lies in [0, 1): the delay between the half and the
    whole of `delay_s * backoff ** earlier`."""
    whole = min(retry.delay_s * retry.backoff ** min(earlier, 64), RETRY_DELAY_S_MAX)
    return whole * (1 - JITTER + JITTER * randomness)
