"""Schedules that an agent makes for itself: goals for later, and again and again."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import Field

from tenure.brains.tools.goals import GOAL_CHARS_MAX
from tenure.brains.tools.tool import Arguments, Call, Refused, Tool, done
from tenure.wire.intervals import seconds_of
from tenure.work.hands import ScheduledGoal, When
from tenure.work.thoughts import CallResult

NAME_PATTERN = "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"


class Create(Arguments):
    name: str = Field(pattern=NAME_PATTERN, description="A name for it: lower-case letters, digits and '-'.")
    goal: str = Field(
        min_length=1,
        max_length=GOAL_CHARS_MAX,
        description="What is to be reached each time. Whoever works on it knows nothing but this.",
    )
    cron: str = Field(
        default="",
        max_length=200,
        description="When: minute hour day month weekday, like '0 3 * * 1-5'. Or `every`, or `at`.",
    )
    tz: str = Field(default="UTC", max_length=64, description="Time zone of `cron`, like Europe/Berlin.")
    every: str = Field(default="", max_length=20, description="How often: 15m, 2h, 1d; 5m at least.")
    at: str = Field(default="", max_length=40, description="Once: a time like 2026-11-23T03:00Z.")


class Named(Arguments):
    name: str = Field(pattern=NAME_PATTERN, description="As it was given to schedule_create.")


class Nothing(Arguments):
    pass


async def create(call: Call, wanted: Create) -> CallResult:
    if sum(bool(when) for when in (wanted.cron, wanted.every, wanted.at)) != 1:
        raise Refused("Nothing was done: give exactly one of cron, every and at.")
    when = When(
        cron=wanted.cron or None,
        tz=wanted.tz,
        every_s=seconds_of(wanted.every) if wanted.every else None,
        at=_moment(wanted.at) if wanted.at else None,
    )
    made = await call.hands.create_schedule(call.agent, wanted.name, wanted.goal, when, key=call.key)
    return done(f"{_told(made)}\nEach time begins a run of its own.")


async def listed(call: Call, wanted: Nothing) -> CallResult:
    del wanted
    found = await call.hands.list_schedules(call.agent)
    return done("\n".join(_told(one) for one in found) or "There are no schedules of this agent.")


async def delete(call: Call, wanted: Named) -> CallResult:
    if await call.hands.delete_schedule(call.agent, wanted.name, key=call.key):
        return done(f"The schedule {wanted.name} is deleted. What it began goes on.")
    return done(f"There is no schedule {wanted.name} (any more).")


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(f"Nothing was done: {text!r} is no time. Write it like 2026-11-23T03:00Z.") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _told(one: ScheduledGoal) -> str:
    following = f", next at {one.next_at:%Y-%m-%dT%H:%MZ}" if one.next_at else ""
    return f"{one.name}: {one.when}, {one.state}{following}: {one.goal}"


TOOLS = (
    Tool("schedule_create", "Have a goal of this agent worked on later, once or again and again.", Create, create),
    Tool("schedule_list", "The schedules of this agent.", Nothing, listed, reads=True),
    Tool("schedule_delete", "Delete a schedule that this agent made.", Named, delete),
)
