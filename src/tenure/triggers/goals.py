"""The kind "goal": a run of the schedule's agent, by a playbook or by the agent's brain."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from pydantic import ValidationError

from tenure import wire
from tenure.brains.playbook import PlaybookBrain
from tenure.errors import InvalidArgument, NotFound
from tenure.triggers.schedule import ScheduleRecord
from tenure.wire.triggers import GoalWhat
from tenure.work.accept import check_of
from tenure.work.plan import Check
from tenure.work.thoughts import BrainSettings

OVER = frozenset({wire.RunState.SUCCEEDED, wire.RunState.FAILED, wire.RunState.CANCELLED})


class Brains(Protocol):
    async def get(self, agent: str) -> BrainSettings | None: ...


class Runs(Protocol):
    async def create(
        self,
        *,
        agent: str,
        goal: str,
        playbook: str,
        playbook_name: str | None,
        inputs: Mapping[str, Any],
        settings: BrainSettings | None = None,
        key: str | None = None,
    ) -> Any: ...

    async def create_thinking(
        self,
        *,
        agent: str,
        goal: str,
        settings: BrainSettings,
        inputs: Mapping[str, Any] | None = None,
        accept: tuple[Check, ...] = (),
        key: str | None = None,
    ) -> Any: ...

    async def get(self, run_id: str) -> Any: ...


class GoalAction:
    """See `tenure.triggers.actions.Action`."""

    kind = "goal"

    def __init__(self, runs: Runs, brains: Brains) -> None:
        self._runs, self._brains = runs, brains

    async def check(self, agent: str, what: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            goal = GoalWhat.model_validate(dict(what))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidArgument(f"what.{where}: {first['msg']}.") from None
        if goal.playbook is not None:
            if goal.accept:
                raise InvalidArgument(
                    "A run by a playbook is judged by the playbook's own checks.",
                    hint="Write them as `verify` of its steps.",
                )
            PlaybookBrain(goal.playbook, goal.playbook_name or "playbook").plan(goal.goal, dict(goal.inputs))
        else:
            await self._brain(agent)
        return goal.model_dump(mode="json", exclude_defaults=True)

    async def fire(self, schedule: ScheduleRecord, due_at: datetime, key: str) -> str:
        del due_at
        goal = GoalWhat.model_validate(dict(schedule.what))
        if goal.playbook is not None:
            made = await self._runs.create(
                agent=schedule.agent,
                goal=goal.goal,
                playbook=goal.playbook,
                playbook_name=goal.playbook_name,
                inputs=goal.inputs,
                settings=await self._brains.get(schedule.agent),
                key=key,
            )
        else:
            made = await self._runs.create_thinking(
                agent=schedule.agent,
                goal=goal.goal,
                settings=await self._brain(schedule.agent),
                inputs=goal.inputs,
                accept=tuple(check_of(check) for check in goal.accept),
                key=key,
            )
        return str(made.id)

    async def is_over(self, began: str) -> bool:
        try:
            return (await self._runs.get(began)).state in OVER
        except NotFound:
            return True

    async def _brain(self, agent: str) -> BrainSettings:
        settings = await self._brains.get(agent)
        if settings is None:
            raise InvalidArgument(
                f"{agent} has no brain of its own yet, so a schedule needs a playbook.",
                hint=f"`tenure brain set {agent} --model PROVIDER:MODEL` gives it one; docs/playbooks.md is about playbooks.",
            )
        return settings
