"""Named points at which a test can kill, stop or break this process: before and after every journal write and effect.

A point is reached by name and occurrence, such as `journal.append.before/step_started/load`; nothing happens unless it
was armed. `TENURE_FAULT="POINT:NTH:ACTION"` arms one in a worker process (this is no setting of the product, hence
it is read here); `TENURE_FAULT_LOG` names a file in which a fault records that it fired: a fault that never landed
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
    target: str = ""
    nth: int = 1
    action: Action = Action.KILL
    log: Path | None = None
    trace: Path | None = None
    counts: Counter[str] = field(default_factory=Counter[str])


_points = _Points()


def arm(point: str, nth: int, action: Action, *, log: Path | None = None) -> None:
    """Makes the `nth` (from 1) reaching of `point` do `action`. One point at a time."""
    global _points
    _points = _Points(point, nth, action, log, _points.trace)


def disarm() -> None:
    global _points
    _points = _Points()


def arm_from_environment() -> None:
    """Called once by a worker process. Does nothing unless the variables are set."""
    trace = os.environ.get("TENURE_FAULT_TRACE")
    _points.trace = Path(trace) if trace else None
    if setting := os.environ.get("TENURE_FAULT"):
        point, nth, action = setting.rsplit(":", 2)
        log = os.environ.get("TENURE_FAULT_LOG")
        arm(point, int(nth), Action(action), log=Path(log) if log else None)


def reach(point: str) -> None:
    """Does nothing, unless this occurrence of `point` was armed."""
    if not _points.target and _points.trace is None:
        return
    _points.counts[point] += 1
    if _points.trace is not None:
        _append(_points.trace, f"{point}:{_points.counts[point]}")
    if point == _points.target and _points.counts[point] == _points.nth:
        if _points.log is not None:
            _append(_points.log, f"{point}:{_points.nth}:{_points.action}")
        match _points.action:
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
