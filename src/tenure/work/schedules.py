"""Schedules as an agent asks for them and sees them: goals for itself."""

from __future__ import annotations

from pydantic import ValidationError

from tenure.errors import InvalidArgument
from tenure.wire.triggers import Schedule, ScheduleRequest
from tenure.work.hands import ScheduledGoal, When


def goal_request(agent: str, name: str, goal: str, when: When, key: str) -> ScheduleRequest:
    """Raises `InvalidArgument`."""
    given = {"cron": when.cron, "tz": when.tz, "every_s": when.every_s, "at": when.at}
    try:
        return ScheduleRequest.model_validate(
            {"name": name, "agent": agent, **given, "what": {"goal": goal}, "key": key}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidArgument(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}.") from None


def scheduled_goal(one: Schedule) -> ScheduledGoal:
    when = When(one.cron, one.tz, one.every_s, one.at)
    goal = str(one.what.get("goal", one.kind))
    return ScheduledGoal(one.id, one.name, goal, str(when), one.state, one.next_at)
