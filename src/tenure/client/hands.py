"""`HttpHands`: the `Hands` of a worker, over the server's HTTP API.

A worker outlives its server by design, so a request that fails because the server is being restarted is sent again
where a second one cannot do harm: every keyed effect and every question is `repeatable`. One that is not is sent again
only when it never left this process. A door that does not answer is not tried again here: that is rung 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import JsonValue

from tenure import wire
from tenure.client import calls, data_calls, open_program, trigger_calls
from tenure.client.attach import AttachRequest
from tenure.client.calls import Call
from tenure.client.endpoint import Endpoint
from tenure.client.transport import AsyncTransport
from tenure.errors import Conflict, NotFound, ServerUnreachable, TenureError
from tenure.identity.tokens import worker_token_file
from tenure.settings import Settings
from tenure.work.hands import (
    Command,
    CommandState,
    CommandStatus,
    Hands,
    OpenProgram,
    RunStatus,
    ScheduledGoal,
    Signals,
    SqlResult,
    TakenSnapshot,
    When,
)
from tenure.work.schedules import goal_request, scheduled_goal
from tenure.work.subgoals import status_of_run

T = TypeVar("T")

RETRY_WAITS_S = (0.1, 0.3, 1.0, 2.0)
"""Waits before each repetition: long enough for a server's restart, short enough not to hide that it is gone."""
PROBE_S = 10.0


class HttpHands(Hands):
    """Owns its connections: close it (or use it in `async with`) in the event loop that uses it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._transport = AsyncTransport(endpoint)

    @classmethod
    def from_settings(cls, settings: Settings) -> HttpHands:
        """With the worker's own token, so that the server's log tells its calls from the owner's."""
        endpoint = Endpoint.find(settings)
        token_file = worker_token_file(settings)
        return cls(replace(endpoint, token=token_file.read_text().strip()) if token_file.exists() else endpoint)

    async def __aenter__(self) -> HttpHands:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

    async def start_command(self, agent: str, key: str, command: Command) -> CommandStatus:
        request = wire.CommandRequest(
            script=command.script,
            env=command.env,
            cwd=command.cwd,
            user=command.user,
            timeout_s=command.timeout_s,
        )
        return _status(await self._send(calls.start_command(agent, key, request)))

    async def command_status(self, agent: str, key: str, *, wait_s: float = 0.0) -> CommandStatus:
        return _status(await self._send(calls.command_status(agent, key, wait_s)))

    async def stop_command(self, agent: str, key: str) -> None:
        await self._send(calls.stop_command(agent, key))

    async def forget_command(self, agent: str, key: str) -> None:
        await self._send(calls.forget_command(agent, key))

    async def open_signals(self, agent: str, key: str, checkpoint: JsonValue = None) -> None:
        await self._send(calls.open_signals(agent, key, wire.SignalsRequest(checkpoint=checkpoint)))

    async def signals(self, agent: str, key: str) -> Signals:
        return Signals(**(await self._send(calls.signals(agent, key))).model_dump())

    async def open_program(
        self, agent: str, argv: tuple[str, ...], *, env: dict[str, str] | None = None, cwd: str | None = None
    ) -> OpenProgram:
        request = AttachRequest(argv=list(argv), env=env or {}, cwd=cwd)
        return await open_program.open_program(self._transport.endpoint, agent, request)

    async def sql(
        self, agent: str, statement: str, *, key: str | None = None, rows_max: int = 1000, read_only: bool = False
    ) -> SqlResult:
        request = wire.SqlRequest(statement=statement, key=key, rows_max=rows_max, read_only=read_only)
        found = await self._send(calls.sql(agent, request))
        return SqlResult(found.columns, found.rows, found.status, found.truncated, found.repeated)

    async def ask_data(
        self, agent: str, question: str, arguments: Mapping[str, JsonValue], *, key: str | None = None
    ) -> dict[str, Any]:
        call = data_calls.question(data_calls.of_agent(agent), question, arguments, key)
        return (await self._send(call)).model_dump(mode="json")

    async def put_object(self, agent: str, path: str, bucket: str, name: str, *, key: str) -> dict[str, Any]:
        request = wire.ObjectFromFileRequest(path=path, bucket=bucket, name=name, key=key)
        found = await self._send(calls.object_from_file(agent, request))
        return found.model_dump(include={"bucket", "name", "size_bytes", "sha256"})

    async def write_object(self, agent: str, bucket: str, name: str, data: bytes, *, key: str) -> dict[str, Any]:
        found = await self._send(replace(calls.put_object(agent, bucket, name, data, None), repeatable=True))
        return found.model_dump(include={"bucket", "name", "size_bytes", "sha256"})

    async def read_object(self, agent: str, bucket: str, name: str, *, bytes_max: int = 65536) -> bytes | None:
        read = b""
        try:
            async with self._transport.stream(calls.get_object(agent, bucket, name)) as response:
                async for chunk in response.aiter_bytes():
                    read += chunk
                    if len(read) >= bytes_max:
                        break
        except NotFound:
            await self._send(calls.get_agent(agent))  # Raises NotFound when it was the agent that is missing.
            return None
        return read[:bytes_max]

    async def object_to_file(self, agent: str, bucket: str, name: str, path: str, *, key: str) -> int:
        request = wire.FileFromObjectRequest(bucket=bucket, name=name, path=path)
        return (await self._send(calls.file_from_object(agent, request))).size_bytes

    async def list_objects(
        self, agent: str, bucket: str | None = None, prefix: str = "", *, limit: int = 1000
    ) -> list[dict[str, Any]]:
        found = await self._send(calls.list_objects(agent, bucket, prefix, limit))
        return [one.model_dump(include={"bucket", "name", "size_bytes"}) for one in found.objects]

    async def delete_object(self, agent: str, bucket: str, name: str, *, key: str) -> bool:
        try:
            await self._send(replace(calls.delete_object(agent, bucket, name), repeatable=True))
        except NotFound:
            await self._send(calls.get_agent(agent))  # Raises NotFound when it was the agent that is missing.
            return False
        return True

    async def notify(self, agent: str, subject: str, body: str, *, key: str, run_id: str | None = None) -> None:
        request = wire.MessageRequest(agent=agent, subject=subject, body=body, key=key, run_id=run_id)
        await self._send(calls.leave_message(request))

    async def read_file(self, agent: str, path: str, *, bytes_max: int = 65536) -> bytes | None:
        try:
            return await self._send(calls.read_file(agent, path, bytes_max))
        except NotFound:
            await self._send(calls.get_agent(agent))  # Raises NotFound when it was the agent that is missing.
            return None

    async def take_snapshot(
        self, agent: str, key: str, *, run_id: str, node: str, before: bool, verified: bool, seq: int
    ) -> TakenSnapshot:
        mark = wire.StepMark(run=run_id, node=node, verified=verified)
        request = wire.SnapshotRequest(kind="before-step" if before else "after-step", step=mark, key=key)
        found = await self._send(calls.take_snapshot(agent, request))
        # Not `seq`: when it was taken before a crash, the journal was shorter. (0 for a run that was over by then.)
        return TakenSnapshot(found.id, found.runs.get(run_id, 0), found.step is not None and found.step.verified)

    async def keep_snapshot(self, agent: str, name: str, *, key: str) -> str:
        request = wire.SnapshotRequest(name=name, key=key)
        return (await self._send(calls.take_snapshot(agent, request))).id

    async def start_run(self, agent: str, goal: str, *, key: str, parent: str | None = None) -> RunStatus:
        request = wire.SubgoalRequest(agent=agent, goal=goal, key=key, parent=parent)
        return status_of_run(await self._send(calls.start_subgoal(request)))

    async def run_status(self, run_id: str) -> RunStatus:
        return status_of_run(await self._send(calls.get_run(run_id)))

    async def cancel_run(self, run_id: str) -> RunStatus:
        try:
            return status_of_run(await self._send(replace(calls.cancel_run(run_id), repeatable=True)))
        except Conflict:  # it is over
            return await self.run_status(run_id)

    async def create_schedule(self, agent: str, name: str, goal: str, when: When, *, key: str) -> ScheduledGoal:
        request = goal_request(agent, name, goal, when, key)
        return scheduled_goal(await self._send(trigger_calls.create_schedule(request)))

    async def list_schedules(self, agent: str) -> list[ScheduledGoal]:
        await self._send(calls.get_agent(agent))  # raises NotFound
        return [scheduled_goal(one) for one in (await self._send(trigger_calls.list_schedules(agent))).schedules]

    async def delete_schedule(self, agent: str, name: str, *, key: str) -> bool:
        try:
            await self._send(replace(trigger_calls.delete_schedule(name, agent), repeatable=True))
        except NotFound:
            await self._send(calls.get_agent(agent))  # Raises NotFound when it was the agent that is missing.
            return False
        return True

    async def reconnect(self, agent: str) -> None:
        await self._send(calls.reconnect(agent))

    async def restart(self, agent: str) -> None:
        await self._send(calls.restart(agent))

    async def restore(self, agent: str, snapshot: str, *, key: str, run_id: str) -> str:
        request = wire.RestoreRequest(by_run=run_id, key=key)
        return (await self._send(calls.restore_snapshot(agent, snapshot, request))).before.id

    async def rebuild(self, agent: str) -> str:
        return (await self._send(calls.rebuild(agent))).before.id

    async def probe(self, agent: str) -> bool:
        try:
            return (await self._transport.send(calls.probe(agent).within(PROBE_S))).ok
        except TenureError:
            return False

    async def _send(self, call: Call[T]) -> T:
        for wait_s in RETRY_WAITS_S:
            try:
                return await self._transport.send(call)
            except ServerUnreachable as error:
                if not (call.repeatable or error.details.get("sent") is False):
                    raise
            await asyncio.sleep(wait_s)
        return await self._transport.send(call)


def _status(found: wire.CommandStatus) -> CommandStatus:
    return CommandStatus(
        state=CommandState(found.state),
        exit_code=found.exit_code,
        timed_out=found.timed_out,
        output=found.output,
        output_bytes=found.output_bytes,
        duration_s=found.duration_s,
    )
