"""Runs that a run, or a program in an office, starts: once per key, and not without end."""

from __future__ import annotations

import hashlib

from tenure import wire
from tenure.work.hands import RunStatus

OPEN_SUBGOALS_MAX = 64
"""Of one agent: runs that were started this way and are not over. Agents that give each other goals in a circle end here."""
TOLD_CHARS_MAX = 4000


def subgoal_id(agent: str, key: str) -> str:
    """The id of the run that was, or will be, started by `key` for `agent`."""
    return f"run_{hashlib.sha256(f'{agent}/{key}'.encode()).hexdigest()[:12]}"


def status_of_run(run: wire.Run) -> RunStatus:
    """The run as who started it sees it."""
    over = run.state in (wire.RunState.SUCCEEDED, wire.RunState.FAILED, wire.RunState.CANCELLED)
    told = run.question or run.error or run.summary
    return RunStatus(run.id, run.agent, run.goal, run.state.value, over, told[:TOLD_CHARS_MAX], run.parent)
