"""What a firing begins, by kind. A room that can be begun by a schedule registers an action of its own:

    actions = Actions()                       # the server's, made in `tenure.server.build`
    actions.register(GoalAction(...))         # kind "goal": a run
    actions.register(PipelineAction(...))     # kind "pipeline": of `tenure.data.ingest`

and from then on `POST /v1/schedules` with that kind, and with `what` as the action understands it, makes schedules of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from tenure.errors import InvalidArgument
from tenure.triggers.schedule import ScheduleRecord


class Action(Protocol):
    """Begins something. Holds no state of schedules."""

    @property
    def kind(self) -> str:
        """What schedules call it: a word of lower-case letters."""
        ...

    async def check(self, agent: str, what: Mapping[str, Any]) -> Mapping[str, Any]:
        """`what` as it is to be kept with the schedule, JSON. Raises `InvalidArgument` and its like when it cannot be begun.
        Called once, when a schedule is made; the agent exists."""
        ...

    async def fire(self, schedule: ScheduleRecord, due_at: datetime, key: str) -> str:
        """Begins it and returns its id, not waiting for its end; within `schedules.FIRE_S`. **Once by key**: called again with
        the same key, also by another server after a crash at any point, it begins nothing and returns the first one's id.
        Raises `TenureError`: a retryable one is tried again, any other is a failure of this firing."""
        ...

    async def is_over(self, began: str) -> bool:
        """Whether what `fire` began under this id has ended, or is gone."""
        ...


class Actions:
    """The actions that there are."""

    def __init__(self, *actions: Action) -> None:
        self._by_kind = {action.kind: action for action in actions}

    def register(self, action: Action) -> None:
        """Takes the place of an earlier one of its kind."""
        self._by_kind[action.kind] = action

    def of(self, kind: str) -> Action:
        """Raises `InvalidArgument`."""
        found = self._by_kind.get(kind)
        if found is None:
            raise InvalidArgument(
                f"{kind[:40]!r} is nothing that a schedule begins.", hint=f"One of: {', '.join(sorted(self._by_kind))}."
            )
        return found
