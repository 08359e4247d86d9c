"""Runs that a run, or a program in an office, starts: once per key, and not without end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tenure import wire
from tenure.work.hands import RunStatus
from tenure.work.plan import Plan, PlanStep, Work

OPEN_SUBGOALS_MAX = 64
"""Of one agent: runs that were started this way and are not over. Agents that give each other goals in a circle end here."""
TOLD_CHARS_MAX = 4000


def subgoal_id(agent: str, key: str) -> str:
    """The id of the run that was, or will be, started by `key` for `agent`."""
    return f"run_{hashlib.sha256(f'{agent}/{key}'.encode()).hexdigest()[:12]}"


def status_of_run(run: wire.Run) -> RunStatus:
    """The run as who started it sees it."""
    over = run.state in (wire.RunState.SUCCEEDED, wire.RunState.FAILED, wire.RunState.CANCELLED)
    told = run.question or run.error or ""
    return RunStatus(run.id, run.agent, run.goal, run.state.value, over, told[:TOLD_CHARS_MAX])


class ThinkingBrain:
    """A `Brain` without a plan of its own: one step, in which the agent's brain does what the goal says."""

    @property
    def name(self) -> str:
        return "thinking"

    def plan(self, goal: str, inputs: Mapping[str, Any]) -> Plan:
        return Plan(steps=(PlanStep(id="work", effect=Work(instructions=goal)),), inputs=dict(inputs))
