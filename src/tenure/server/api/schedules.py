"""Schedules: goals, and what else can be begun, at times of their own."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from tenure.identity.authorize import Resource
from tenure.names import check_name
from tenure.server.access import Caller, Has, of_own, owned_by, requires
from tenure.server.checks import check_id, check_json, check_text
from tenure.triggers.schedule import ScheduleRecord
from tenure.triggers.schedules import shown
from tenure.triggers.store import HISTORY_MAX
from tenure.wire import triggers as wire

router = APIRouter(prefix="/v1/schedules", tags=["schedules"])

FIRINGS_DEFAULT = 50
OfAgent = Annotated[str | None, Query(description="Where several agents have one of that name")]


async def of_new_schedule(body: wire.ScheduleRequest) -> Resource:
    return Resource("schedule", owner=check_name(body.agent))


async def named_schedule(schedule: str, has: Has, agent: OfAgent = None) -> ScheduleRecord:
    """By id or name. Raises `NotFound`, `Conflict`."""
    wanted = check_id(schedule, "schedule")
    return await has.triggers.schedules.get(wanted, None if agent is None else check_name(agent))


Named = Annotated[ScheduleRecord, Depends(named_schedule)]


async def of_schedule(found: Named) -> Resource:
    return Resource("schedule", owner=found.agent, name=found.id)


@router.post(
    "", status_code=201, response_model=wire.Schedule, dependencies=[requires("schedule:create", of_new_schedule)]
)
async def create_schedule(body: wire.ScheduleRequest, has: Has, caller: Caller) -> Any:
    """From now on something is begun whenever it is due. What an agent asks for, through its brain's tools, has the limits of an
    agent."""
    check_json("what", body.what)
    for field in ("cron", "tz", "kind", "key"):
        if (value := getattr(body, field)) is not None:
            check_text(field, value)
    await has.offices.need(body.agent)
    schedules = has.triggers.schedules
    return shown(schedules, await schedules.create(body, caller))


@router.get("", response_model=wire.ScheduleList, dependencies=[requires("schedule:list", of_own("schedule"))])
async def list_schedules(has: Has, caller: Caller, agent: str | None = None) -> Any:
    """By agent and name."""
    if agent is not None:
        check_name(agent)
    schedules = has.triggers.schedules
    return {"schedules": [shown(schedules, one) for one in await schedules.list(owned_by(caller) or agent)]}


@router.get("/{schedule}", response_model=wire.Schedule, dependencies=[requires("schedule:read", of_schedule)])
async def get_schedule(found: Named, has: Has) -> Any:
    """With the next five times."""
    return shown(has.triggers.schedules, found)


@router.get(
    "/{schedule}/firings", response_model=wire.FiringList, dependencies=[requires("schedule:read", of_schedule)]
)
async def list_firings(
    found: Named, has: Has, limit: Annotated[int, Query(ge=1, le=HISTORY_MAX)] = FIRINGS_DEFAULT
) -> Any:
    """What became of its due times, the latest first."""
    return {"firings": await has.triggers.schedules.firings(found, limit)}


@router.post("/{schedule}/pause", response_model=wire.Schedule, dependencies=[requires("schedule:update", of_schedule)])
async def pause_schedule(found: Named, has: Has) -> Any:
    """Nothing of it is begun until it is resumed; what was begun goes on."""
    schedules = has.triggers.schedules
    return shown(schedules, await schedules.pause(found))


@router.post(
    "/{schedule}/resume", response_model=wire.Schedule, dependencies=[requires("schedule:update", of_schedule)]
)
async def resume_schedule(found: Named, has: Has) -> Any:
    """From now on: due times of the pause are not made up for."""
    schedules = has.triggers.schedules
    return shown(schedules, await schedules.resume(found))


@router.post(
    "/{schedule}/run",
    status_code=201,
    response_model=wire.Firing,
    dependencies=[requires("schedule:run", of_schedule)],
)
async def run_schedule(found: Named, has: Has) -> Any:
    """Begins it at once, whatever goes on; its due times stay as they are."""
    return await has.triggers.schedules.run_now(found)


@router.delete("/{schedule}", status_code=204, dependencies=[requires("schedule:delete", of_schedule)])
async def delete_schedule(found: Named, has: Has, caller: Caller) -> None:
    """With its history; what it began goes on."""
    await has.triggers.schedules.delete(found, caller)
