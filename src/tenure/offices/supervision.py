"""When something is done about an office that runs: the decision. Pure.

Two signals that know nothing of each other: whether `officed` answers at the door, and what the host's kernel says of the
sandbox (does it run, does it get on, is it at a limit). One of them alone never ends anything: an office may be silent because
it is busy, or because the whole machine is; and one that stands still may just have nothing to do. What cannot harm (hanging
up idle connections, so that `officed` dials anew) is done at less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tenure.offices.sandboxes.base import SandboxState

STANDSTILL = 0.1
"""Below this part of the processors that it may use an office is not so busy that it could not answer. (gVisor with a stopped
`officed` takes 0.03 of one, measured.)"""
MEMORY_FULL = 0.97
RUNAWAY_CPUS = 0.3
"""A full house of processes that uses more than this is taken for a runaway; one that waits is a pool of workers."""
RESTARTS_MAX = 3
RESTART_PERIOD_S = 1800.0
"""As in OTP: one more within the period, and the supervisor gives up and asks a person."""


@dataclass(frozen=True)
class Patience:
    """How long a state must last before something is done about it, in seconds. With a busy host all is `busy_factor`
    times as long."""

    reconnect_s: float = 15.0
    kill_s: float = 30.0
    restart_s: float = 60.0
    ask_s: float = 900.0
    """Silent though it gets on: nothing is ended then, but a person should look."""
    gap_s: float = 30.0
    """Looks that lie further apart are not about the same state: the supervisor itself may have stood still."""
    looks: int = 3
    """That many at least."""
    busy_factor: float = 3.0
    answer_s: float = 5.0
    """How long one answer may take."""


@dataclass(frozen=True)
class Look:
    """One office as seen at the moment `at` (seconds that only grow)."""

    at: float
    sandbox: SandboxState
    answered: bool | None = None
    """Whether `officed` answered; None: it was not asked, or there was no line to ask on."""
    cpu_s: float = 0.0
    """Processor time since it started."""
    cpus: float = 1.0
    """How many processors it may use."""
    memory: float = 0.0
    """Of the limit."""
    no_room: bool = False
    """Whether it is at its process limit, so that no program of the agent's can start another: that was tried."""
    host_busy: bool = False


Predicate = Callable[[Look], bool]


class Action(StrEnum):
    NOTHING = "nothing"
    RECONNECT = "reconnect"
    KILL_LARGEST = "kill-largest"
    """Ends the process that holds most memory, from outside."""
    KILL_GROUP = "kill-group"
    """Ends the group that most processes belong to, from inside."""
    RESTART = "restart"
    CLEAN_UP = "clean-up"
    ASK = "ask"
    GIVE_UP = "give-up"


@dataclass(frozen=True)
class Act:
    """Something that was done at the moment `at`."""

    at: float
    action: Action


@dataclass(frozen=True)
class Verdict:
    action: Action
    reason: str


def decide(looks: Sequence[Look], acts: Sequence[Act], now: float, patience: Patience) -> Verdict:
    """What to do about an office that was seen so, the oldest look first, after what was done already."""
    if not looks or now - looks[-1].at > patience.gap_s:
        return Verdict(Action.NOTHING, "not looked at lately")
    last = looks[-1]
    if last.sandbox is SandboxState.DEAD:
        return Verdict(Action.CLEAN_UP, _death(looks))
    if last.sandbox is not SandboxState.RUNNING:
        return Verdict(Action.NOTHING, f"it is {last.sandbox}")
    if last.answered is None:
        return Verdict(Action.NOTHING, "it could not be asked")
    same = _since(looks, patience.gap_s, lambda look: look.answered is last.answered)
    if last.answered:
        return _of_answering(same, acts, now, patience)
    return _of_silent(same, acts, now, patience)


def _of_answering(same: Sequence[Look], acts: Sequence[Act], now: float, patience: Patience) -> Verdict:
    """It is well, unless nothing else can be started in it any more."""
    full = _mostly_full(same)
    if _lasts(full, now, patience.kill_s, patience) and _cpus(full) >= RUNAWAY_CPUS:
        told = f"it is full of processes for {now - full[0].at:.0f} s, which leave no room for another"
        if not _done(acts, Action.KILL_GROUP, full[0].at):
            return Verdict(Action.KILL_GROUP, told)
        if _lasts(full, now, patience.ask_s, patience) and not _done(acts, Action.ASK, full[0].at):
            return Verdict(Action.ASK, f"{told}; no group of them stands out")
    return Verdict(Action.NOTHING, "it answers")


def _of_silent(same: Sequence[Look], acts: Sequence[Act], now: float, patience: Patience) -> Verdict:
    began = same[0].at
    if not _lasts(same, now, patience.reconnect_s, patience):
        return Verdict(Action.NOTHING, "silent, but not for long")
    if not _done(acts, Action.RECONNECT, began):
        return Verdict(Action.RECONNECT, f"its door is silent for {now - began:.0f} s")
    full = _since(same, patience.gap_s, lambda look: look.memory >= MEMORY_FULL)
    if _lasts(full, now, patience.kill_s, patience) and not _done(acts, Action.KILL_LARGEST, now - patience.kill_s):
        return Verdict(Action.KILL_LARGEST, "its door is silent, and it is at its memory limit")
    idle = _since_standstill(same, patience.gap_s)
    if idle and _lasts(idle, now, patience.restart_s, patience):
        return _restart(acts, now, f"its door is silent, and it stands still for {now - idle[0].at:.0f} s")
    if _lasts(same, now, patience.ask_s, patience) and not _done(acts, Action.ASK, began):
        return Verdict(
            Action.ASK, f"its door is silent for {now - began:.0f} s, though it gets on: a restart would end its work"
        )
    return Verdict(Action.NOTHING, "silent, but it gets on: it is busy")


def _restart(acts: Sequence[Act], now: float, reason: str) -> Verdict:
    lately = [act for act in acts if act.action is Action.RESTART and act.at > now - RESTART_PERIOD_S]
    if len(lately) >= RESTARTS_MAX:
        return Verdict(
            Action.GIVE_UP, f"{reason}; it was restarted {len(lately)} times in {RESTART_PERIOD_S / 60:.0f} minutes"
        )
    return Verdict(Action.RESTART, reason)


def _lasts(state: Sequence[Look], now: float, wanted_s: float, patience: Patience) -> bool:
    """Whether it was so for long enough, and seen often enough."""
    if len(state) < patience.looks:
        return False
    factor = patience.busy_factor if any(look.host_busy for look in state) else 1.0
    return now - state[0].at >= wanted_s * factor


def _since(looks: Sequence[Look], gap_s: float, holds: Predicate) -> Sequence[Look]:
    """The last looks of a row for which `holds`, on a sandbox that ran, without a gap."""
    first = len(looks)
    while first > 0 and holds(looks[first - 1]) and looks[first - 1].sandbox is SandboxState.RUNNING:
        if first < len(looks) and looks[first].at - looks[first - 1].at > gap_s:
            break
        first -= 1
    return looks[first:]


def _since_standstill(looks: Sequence[Look], gap_s: float) -> Sequence[Look]:
    """The last looks of a row between any two of which the processor was hardly used."""
    first = len(looks) - 1
    while first > 0 and looks[first].at - looks[first - 1].at <= gap_s:
        passed_s = looks[first].at - looks[first - 1].at
        used_s = looks[first].cpu_s - looks[first - 1].cpu_s
        if used_s < 0 or used_s > STANDSTILL * looks[first].cpus * passed_s:
            break
        first -= 1
    return looks[first:] if first < len(looks) - 1 else ()


def _mostly_full(looks: Sequence[Look]) -> Sequence[Look]:
    """The longest last part of `looks` that begins without room and had none in most of its looks: of a runaway, too, one
    process ends now and then, and a new one of its own takes the place."""
    longest, full = 0, 0
    for count, look in enumerate(reversed(looks), start=1):
        full += look.no_room
        if look.no_room and 2 * full > count:
            longest = count
    return looks[len(looks) - longest :]


def _cpus(looks: Sequence[Look]) -> float:
    """Processors used on average from the first to the last."""
    passed_s = looks[-1].at - looks[0].at
    return (looks[-1].cpu_s - looks[0].cpu_s) / passed_s if passed_s > 0 else 0.0


def _done(acts: Sequence[Act], action: Action, since: float) -> bool:
    return any(act.action is action and act.at >= since for act in acts)


def _death(looks: Sequence[Look]) -> str:
    before = next((look for look in reversed(looks) if look.sandbox is SandboxState.RUNNING), None)
    if before is not None and before.memory >= MEMORY_FULL - 0.1:
        return f"its sandbox ended; a moment before it was at {before.memory:.0%} of its memory limit"
    return "its sandbox ended by itself"
