"""What is tried when an office does not boot, in order of what it costs. Pure: see `next_step`.

    again     the same once more: some causes pass by themselves
    mend      give back what the image can lend; nothing of the agent's is touched
    test      boot a clone of the image beside it: when that fails too, it is the machine, and no office's content is to blame
    restore   the newest snapshot that is known to boot; what is there is kept as a snapshot first
    rebuild   a new root with the agent's work; what is there is kept as a snapshot first
    ask       a person: nothing is tried any more until somebody acts or the cause changes

Losing newer work (`restore`) is justified only by damage to what the office holds, on a machine that is known to be sound, and
never under a run that is at work: its journal would be ahead of its office, so that is for the run's own ladder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from tenure.offices.boot import Failure, Stage
from tenure.offices.history import OfficeEvent, What
from tenure.offices.models import SnapshotKind, SnapshotRecord

REPLACEMENTS_MAX = 2
REPLACEMENT_PERIOD = timedelta(hours=1)
"""So often may an office's volume be replaced by itself."""
EPISODES_MAX = 4
EPISODE_PERIOD = timedelta(minutes=10)
"""So often may an office fall ill before a person is asked, however well each repair went."""
CANDIDATES_MAX = 3
"""Snapshots that are tried."""
HOST_CODES = frozenset({"setup"})
"""Codes of errors that say themselves that the machine lacks something."""


class Step(StrEnum):
    AGAIN = "again"
    MEND = "mend"
    TEST = "test"
    RESTORE = "restore"
    REBUILD = "rebuild"
    ASK = "ask"
    LEAVE = "leave"
    """Fail, and leave it to the run that is at work."""


@dataclass(frozen=True)
class Case:
    """What is known when the next step is chosen."""

    failure: Failure
    tried: tuple[Step, ...] = ()
    host_sound: bool | None = None
    candidates: int = 0
    """Snapshots that were not tried yet."""
    at_work: bool = False
    """Whether a run of the agent is at work."""
    has_volume: bool = True
    replacements: int = 0
    """How often the volume was replaced in the last `REPLACEMENT_PERIOD`."""
    episodes: int = 0
    """How often the office fell ill in the last `EPISODE_PERIOD`, this time included."""


@dataclass(frozen=True)
class Choice:
    step: Step
    reason: str


def next_step(case: Case) -> Choice:
    """The cheapest step that was not tried and may help."""
    failure, tried = case.failure, case.tried
    if failure.code in HOST_CODES:
        return Choice(Step.ASK, "the machine lacks something that no office can give it")
    if case.episodes > EPISODES_MAX:
        minutes = EPISODE_PERIOD.total_seconds() / 60
        return Choice(Step.ASK, f"it failed {case.episodes} times in {minutes:.0f} minutes, however it was repaired")
    if not case.has_volume:
        return _bring_back(case)
    if _is_anothers(failure):
        return Choice(Step.ASK, "the volume says that it is another agent's")
    seen = failure.stage is Stage.CHECK and bool(failure.evidence.get("damage"))
    if Step.AGAIN not in tried and not seen:
        return Choice(Step.AGAIN, "some causes pass by themselves")
    if failure.stage in (Stage.LOCATE, Stage.FURNISH) or (failure.stage is Stage.CHECK and not seen):
        return Choice(Step.ASK, "no damage was seen: the cause is outside of the office")
    if Step.MEND not in tried and not seen:
        return Choice(Step.MEND, "what the image can lend costs nothing")
    if case.at_work:
        return Choice(Step.LEAVE, "a run is at work: its ladder decides what of its work is put back")
    if case.host_sound is None:
        return Choice(Step.TEST, "is it this office, or the machine?")
    if not case.host_sound:
        return Choice(Step.ASK, "an office of the plain image does not boot either: it is the machine")
    if case.replacements >= REPLACEMENTS_MAX:
        return Choice(Step.ASK, f"its volume was replaced {case.replacements} times in an hour already")
    if case.candidates:
        return Choice(Step.RESTORE, "what the office holds is damaged, and the machine is sound")
    if Step.REBUILD not in tried and _is_of_root(failure):
        return Choice(Step.REBUILD, "the root is damaged, and no snapshot that boots is left")
    return Choice(Step.ASK, "nothing that could be tried is left")


def _bring_back(case: Case) -> Choice:
    """Of an office without a volume: there is no newer work that a restore could lose."""
    if case.candidates:
        return Choice(Step.RESTORE, "the volume is gone, and a snapshot of it is there")
    return Choice(Step.ASK, "the volume is gone, and no snapshot of it is there that boots")


def _is_anothers(failure: Failure) -> bool:
    damage = failure.evidence.get("damage")
    return isinstance(damage, list) and any("the volume of" in str(what) for what in damage)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _is_of_root(failure: Failure) -> bool:
    """Whether a new root may help: a rebuild keeps database and objects as they are."""
    if failure.stage is Stage.CHECK:
        damage = failure.evidence.get("damage")
        return isinstance(damage, list) and all(str(what).startswith("rootfs/") for what in damage)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return failure.stage in (Stage.SANDBOX, Stage.DOOR, Stage.PROBE)


def candidates(taken: Sequence[SnapshotRecord]) -> list[SnapshotRecord]:
    """Which of an agent's snapshots (the oldest first) are worth a trial, the best first: the newest, since they lose least,
    and the newest that a run verified. What somebody went away from, or what was broken, is kept before a restore: not those."""
    whole = [one for one in reversed(taken) if one.kind is not SnapshotKind.BEFORE_RESTORE]
    verified = next((one for one in whole if one.step is not None and one.step.verified), None)
    chosen = whole[: CANDIDATES_MAX - 1]
    if verified is not None and verified not in chosen:
        return [*chosen, verified]
    return whole[:CANDIDATES_MAX]


@dataclass(frozen=True)
class Lately:
    """What the history says of the recent past."""

    replacements: int = 0
    episodes: int = 0

    @classmethod
    def of(cls, events: Sequence[OfficeEvent], now: datetime) -> Lately:
        """Counts since somebody acted last, if that was in the period."""
        since = max((event.at for event in events if event.what == What.CLEARED), default=None)

        def count(kinds: tuple[What, ...], period: timedelta) -> int:
            begin = now - period if since is None else max(since, now - period)
            return sum(event.what in kinds and event.at > begin for event in events)

        return cls(count((What.RESTORED, What.REBUILT), REPLACEMENT_PERIOD), count((What.FAILED,), EPISODE_PERIOD))
