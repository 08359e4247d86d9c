"""The recovery ladder, pure: which rung may be entered for a failure, given what was spent already.

Three ladders in one order: a step's own rungs (retry, self-correct, another model), the run's (another plan), the office's
(reconnect, restart, restore, rebuild), ending in the same last one, a person. A rung is entered while it has budget left; a
spent rung is never returned to, and the climb goes down again only after verified progress: a step's rungs end with the step,
the others' counters begin anew when some step succeeded for the first time (one that a restore undid gained that ground
before).

A model that does not answer is no failure of the step: it is asked again, later or another one, on no rung's account.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from tenure.work.failures import FailureClass
from tenure.work.plan import RETRY_DELAY_S_MAX, PlanStep, Retry, Work

SELF_CORRECTIONS_MAX = 2
FED_BACK_MAX = 4
"""How often a brain that did a step's work is told what is wrong with it."""
REPLANS_MAX = 2
RECONNECTS_MAX = 2
RESTARTS_MAX = 2
RESTORES_MAX = 2
"""Each goes back further than the one before."""
REBUILDS_MAX = 1
JITTER = 0.5
"""Part of a delay that is random: spreads branches that failed together."""
MODEL_RETRIES_MAX = 60
"""Of models in a row, by one step: some hours, with the delay below."""
MODEL_TRIES_EACH = 3
"""Before another model is asked, where there is one."""
MODEL_DELAY_S = 2.0
MODEL_DELAY_S_MAX = 300.0
SHRINKS_MAX = 5
"""How often a conversation that is too long for the model is cut to half of what it was."""


class Rung(IntEnum):
    RETRY = 0
    SELF_CORRECT = 1
    OTHER = 2
    """Another model."""
    REPLAN = 3
    RECONNECT = 4
    RESTART = 5
    RESTORE = 6
    REBUILD = 7
    ASK = 8

    @property
    def of_office(self) -> bool:
        return Rung.RECONNECT <= self <= Rung.REBUILD

    @property
    def of_run(self) -> bool:
        """Whether its budget is the run's, not the step's."""
        return Rung.REPLAN <= self <= Rung.REBUILD


_OWN = (Rung.RETRY, Rung.SELF_CORRECT, Rung.OTHER, Rung.REPLAN)
_RUNGS: dict[FailureClass, tuple[Rung, ...]] = {
    FailureClass.COMMAND: _OWN,
    FailureClass.TIMEOUT: _OWN,
    FailureClass.VERIFICATION: (*_OWN, Rung.RESTORE),
    FailureClass.DATABASE: _OWN,
    FailureClass.LOST: _OWN,
    FailureClass.INTERNAL: (Rung.RETRY,),
    FailureClass.DOOR: (Rung.RECONNECT, Rung.RESTART, Rung.RESTORE, Rung.REBUILD),
    FailureClass.SANDBOX: (Rung.RESTART, Rung.RESTORE, Rung.REBUILD),
    FailureClass.AUTHENTICATION: (Rung.OTHER,),
    FailureClass.USAGE: (Rung.OTHER, Rung.REPLAN),
    # A restart frees what deleted files and runaway programs hold, a restore what was written since.
    FailureClass.DISK_FULL: (Rung.RESTART, Rung.RESTORE),
    FailureClass.STUCK: (Rung.SELF_CORRECT, Rung.OTHER, Rung.REPLAN),
    FailureClass.DENIED: (Rung.REPLAN,),
    FailureClass.BUDGET: (),
    FailureClass.MODEL: (),
    FailureClass.CONTEXT: (Rung.OTHER, Rung.REPLAN),
}
_RISKY = frozenset({FailureClass.COMMAND, FailureClass.TIMEOUT})
"""What a risky step leaves behind when it ends so may be what keeps it from succeeding."""


@dataclass(frozen=True)
class Mind:
    """What a run's brain can do about failures. `models` to choose from; `thinks`: it can mend steps and plan anew."""

    models: int = 0
    thinks: bool = False


@dataclass(frozen=True)
class Spent:
    """How often rungs were entered: by the step since it began or was answered for, by the run and its office since a step
    succeeded."""

    step: Mapping[Rung, int] = field(default_factory=dict[Rung, int])
    run: Mapping[Rung, int] = field(default_factory=dict[Rung, int])

    def of(self, rung: Rung) -> int:
        return (self.run if rung.of_run else self.step).get(rung, 0)

    def level(self, rung: Rung) -> int:
        """The highest rung entered of those that `rung` shares its account with, -1 when none was."""
        if rung is Rung.REPLAN:
            return -1  # another plan puts the steps on their lowest rung again
        entered = self.run if rung.of_office else self.step
        return max((one for one, count in entered.items() if count and one is not Rung.REPLAN), default=-1)


def budget(rung: Rung, step: PlanStep, mind: Mind | None = None) -> int:
    """How often `rung` may be entered for `step`."""
    mind = mind or Mind()
    works = isinstance(step.effect, Work)
    helps = isinstance(step.effect, Work) and step.effect.purpose != "work"
    match rung:
        case Rung.RETRY:
            return step.retry.attempts
        case Rung.SELF_CORRECT:
            if works:
                return FED_BACK_MAX
            return SELF_CORRECTIONS_MAX if step.on_error is not None or mind.thinks else 0
        case Rung.OTHER:
            return mind.models - 1 if works and mind.models > 1 else 0
        case Rung.REPLAN:
            return REPLANS_MAX if mind.thinks and not helps else 0
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


def next_rung(
    kind: FailureClass, step: PlanStep, spent: Spent, *, can_restore: bool = False, mind: Mind | None = None
) -> Rung:
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
        if rung is Rung.RETRY and kind is FailureClass.VERIFICATION and isinstance(step.effect, Work):
            continue  # what was done so far is not thrown away: the brain is told what is wrong with it
        if rung >= spent.level(rung) and spent.of(rung) < budget(rung, step, mind):
            return rung
    return Rung.ASK


def retry_delay_s(retry: Retry, earlier: int, randomness: float) -> float:
    """Seconds before the next retry, after `earlier` ones. `randomness` lies in [0, 1): the delay between the half and the
    whole of `delay_s * backoff ** earlier`."""
    whole = min(retry.delay_s * retry.backoff ** min(earlier, 64), RETRY_DELAY_S_MAX)
    return whole * (1 - JITTER + JITTER * randomness)


def model_delay_s(earlier: int, retry_after_s: float | None, randomness: float) -> float:
    """Seconds before models are asked again, after `earlier` failures in a row; never sooner than the provider wishes."""
    whole = min(MODEL_DELAY_S * 2 ** min(earlier, 16), MODEL_DELAY_S_MAX)
    return max(whole * (1 - JITTER + JITTER * randomness), retry_after_s or 0.0)
