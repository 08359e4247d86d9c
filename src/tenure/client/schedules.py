"""Schedules in both SDKs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tenure.client import trigger_calls as calls
from tenure.client.transport import AsyncTransport, Transport
from tenure.client.views import playbook_text, refusing
from tenure.wire import RunCheck, triggers
from tenure.wire.intervals import seconds_of


def schedule_request(
    name: str,
    agent: str,
    goal: str | None,
    cron: str | None,
    tz: str,
    every: str | float | None,
    at: datetime | None,
    playbook: str | Path | None,
    inputs: Mapping[str, Any] | None,
    checks: Sequence[RunCheck],
    more: Mapping[str, Any],
) -> triggers.ScheduleRequest:
    """`every` is an interval as "15m", or seconds; `playbook` a path, or the text. Raises `InvalidArgument`."""
    what: dict[str, Any] = {}
    if goal is not None:
        what["goal"] = goal
    if playbook is not None:
        what["playbook"], file = playbook_text(playbook)
        what |= {"playbook_name": file} if file else {}
    if inputs:
        what["inputs"] = dict(inputs)
    if checks:
        what["accept"] = [check.model_dump(mode="json", exclude_defaults=True) for check in checks]
    every_s = seconds_of(every) if isinstance(every, str) else None if every is None else int(every)
    given = {"name": name, "agent": agent, "cron": cron, "tz": tz, "every_s": every_s, "at": at}
    with refusing():
        return triggers.ScheduleRequest.model_validate({**given, "what": what, **more})


class Schedules:
    """What agents have begun at times of their own. Schedules are named by id, or by name where only one agent has one of it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        name: str,
        agent: str,
        goal: str | None = None,
        *,
        cron: str | None = None,
        tz: str = "UTC",
        every: str | float | None = None,
        at: datetime | None = None,
        playbook: str | Path | None = None,
        inputs: Mapping[str, Any] | None = None,
        checks: Sequence[RunCheck] = (),
        **more: Any,
    ) -> triggers.Schedule:
        """From now on `goal` is begun by `cron` (in the time zone `tz`), `every` so often ("15m", or seconds), or once,
        `at` a time. `more` are fields of `ScheduleRequest`: `missed`, `overlap`, `jitter_s`, `failures_max`; `kind` and `what`
        for what is no goal. Raises `InvalidArgument`, `AlreadyExists`, `NotFound`, `PlaybookError`."""
        request = schedule_request(name, agent, goal, cron, tz, every, at, playbook, inputs, checks, more)
        return self._transport.send(calls.create_schedule(request))

    def list(self, agent: str | None = None) -> list[triggers.Schedule]:
        return self._transport.send(calls.list_schedules(agent)).schedules

    def get(self, schedule: str, agent: str | None = None) -> triggers.Schedule:
        """With the next five times. Raises `NotFound`, and `Conflict` when several agents have one of that name."""
        return self._transport.send(calls.get_schedule(schedule, agent))

    def firings(self, schedule: str, agent: str | None = None, *, limit: int = 50) -> list[triggers.Firing]:
        """What became of its due times, the latest first."""
        return self._transport.send(calls.list_firings(schedule, agent, limit)).firings

    def pause(self, schedule: str, agent: str | None = None) -> triggers.Schedule:
        return self._transport.send(calls.pause_schedule(schedule, agent))

    def resume(self, schedule: str, agent: str | None = None) -> triggers.Schedule:
        """Due times of the pause are not made up for."""
        return self._transport.send(calls.resume_schedule(schedule, agent))

    def run(self, schedule: str, agent: str | None = None) -> triggers.Firing:
        """Begins it now, whatever goes on."""
        return self._transport.send(calls.run_schedule(schedule, agent))

    def delete(self, schedule: str, agent: str | None = None) -> None:
        """With its history; what it began goes on."""
        self._transport.send(calls.delete_schedule(schedule, agent))


class AsyncSchedules:
    """See `Schedules`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        agent: str,
        goal: str | None = None,
        *,
        cron: str | None = None,
        tz: str = "UTC",
        every: str | float | None = None,
        at: datetime | None = None,
        playbook: str | Path | None = None,
        inputs: Mapping[str, Any] | None = None,
        checks: Sequence[RunCheck] = (),
        **more: Any,
    ) -> triggers.Schedule:
        request = schedule_request(name, agent, goal, cron, tz, every, at, playbook, inputs, checks, more)
        return await self._transport.send(calls.create_schedule(request))

    async def list(self, agent: str | None = None) -> list[triggers.Schedule]:
        return (await self._transport.send(calls.list_schedules(agent))).schedules

    async def get(self, schedule: str, agent: str | None = None) -> triggers.Schedule:
        return await self._transport.send(calls.get_schedule(schedule, agent))

    async def firings(self, schedule: str, agent: str | None = None, *, limit: int = 50) -> list[triggers.Firing]:
        return (await self._transport.send(calls.list_firings(schedule, agent, limit))).firings

    async def pause(self, schedule: str, agent: str | None = None) -> triggers.Schedule:
        return await self._transport.send(calls.pause_schedule(schedule, agent))

    async def resume(self, schedule: str, agent: str | None = None) -> triggers.Schedule:
        return await self._transport.send(calls.resume_schedule(schedule, agent))

    async def run(self, schedule: str, agent: str | None = None) -> triggers.Firing:
        return await self._transport.send(calls.run_schedule(schedule, agent))

    async def delete(self, schedule: str, agent: str | None = None) -> None:
        await self._transport.send(calls.delete_schedule(schedule, agent))
