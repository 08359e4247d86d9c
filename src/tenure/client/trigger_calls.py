"""Requests of the API about schedules, see `calls`."""

from __future__ import annotations

from urllib.parse import quote

from tenure.client.calls import OFFICE_S, Call, nothing, parsed
from tenure.names import check_name
from tenure.wire import triggers as wire


def _schedule(schedule: str, *rest: str) -> str:
    return "/".join(["/v1/schedules", quote(schedule, safe=""), *rest])


def _of(agent: str | None) -> dict[str, str | int | float]:
    return {} if agent is None else {"agent": check_name(agent)}


def create_schedule(request: wire.ScheduleRequest) -> Call[wire.Schedule]:
    check_name(request.name, "schedule")
    check_name(request.agent)
    return Call("POST", "/v1/schedules", parsed(wire.Schedule), body=request, repeatable=request.key is not None)


def list_schedules(agent: str | None) -> Call[wire.ScheduleList]:
    return Call("GET", "/v1/schedules", parsed(wire.ScheduleList), _of(agent), repeatable=True)


def get_schedule(schedule: str, agent: str | None = None) -> Call[wire.Schedule]:
    return Call("GET", _schedule(schedule), parsed(wire.Schedule), _of(agent), repeatable=True)


def list_firings(schedule: str, agent: str | None = None, limit: int = 50) -> Call[wire.FiringList]:
    params = {**_of(agent), "limit": limit}
    return Call("GET", _schedule(schedule, "firings"), parsed(wire.FiringList), params, repeatable=True)


def pause_schedule(schedule: str, agent: str | None = None) -> Call[wire.Schedule]:
    return Call("POST", _schedule(schedule, "pause"), parsed(wire.Schedule), _of(agent), repeatable=True)


def resume_schedule(schedule: str, agent: str | None = None) -> Call[wire.Schedule]:
    return Call("POST", _schedule(schedule, "resume"), parsed(wire.Schedule), _of(agent), repeatable=True)


def run_schedule(schedule: str, agent: str | None = None) -> Call[wire.Firing]:
    return Call("POST", _schedule(schedule, "run"), parsed(wire.Firing), _of(agent), timeout_s=OFFICE_S)


def delete_schedule(schedule: str, agent: str | None = None) -> Call[None]:
    return Call("DELETE", _schedule(schedule), nothing, _of(agent))
