"""Named points at which a test can kill, stop or break this process: before and after every journal write and effect.

A point is reached by name and occurrence, such as `journal.append.before/step_started/load`; nothing happens unless it
was armed. `TENURE_FAULT="POINT:NTH:ACTION"`, several with commas between, arms a process (this is no setting of the
product, hence it is read here); `TENURE_FAULT_LOG` names a file in which a fault records that it fired: a fault that never landed
looks like a clean run. With `TENURE_FAULT_TRACE` every point reached is written to that file.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Action(StrEnum):
    KILL = "kill"
    """SIGKILL to this process: nothing of it runs any more, no `finally` either."""
    STOP = "stop"
    """SIGSTOP to this process: it goes on where it was when somebody continues it."""
    RAISE = "raise"
    """Raises `Broken`, as a bug at this place would."""


class Broken(RuntimeError):
    """What an armed point raises."""


@dataclass
class _Points:
    armed: dict[tuple[str, int], Action] = field(default_factory=dict[tuple[str, int], Action])
    """By point and occurrence."""
    log: Path | None = None
    trace: Path | None = None
    counts: Counter[str] = field(default_factory=Counter[str])


_points = _Points()


def arm(point: str, nth: int, action: Action, *, log: Path | None = None) -> None:
    """Makes the `nth` (from 1) reaching of `point` do `action`, and disarms every other point."""
    global _points
    _points = _Points({(point, nth): action}, log, _points.trace)


def disarm() -> None:
    global _points
    _points = _Points()


def arm_from_environment() -> None:
    """Called once by a process. Does nothing unless the variables are set."""
    trace = os.environ.get("TENURE_FAULT_TRACE")
    _points.trace = Path(trace) if trace else None
    log = os.environ.get("TENURE_FAULT_LOG")
    _points.log = Path(log) if log else None
    for setting in os.environ.get("TENURE_FAULT", "").split(","):
        if setting:
            point, nth, action = setting.rsplit(":", 2)
            _points.armed[point, int(nth)] = Action(action)


def reach(point: str) -> None:
    """Does nothing, unless this occurrence of `point` was armed."""
    if not _points.armed and _points.trace is None:
        return
    _points.counts[point] += 1
    if _points.trace is not None:
        _append(_points.trace, f"{point}:{_points.counts[point]}")
    nth = _points.counts[point]
    action = _points.armed.get((point, nth))
    if action is not None:
        if _points.log is not None:
            _append(_points.log, f"{point}:{nth}:{action}")
        match action:
            case Action.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.STOP:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Action.RAISE:
                raise Broken(f"armed at {point}")


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
