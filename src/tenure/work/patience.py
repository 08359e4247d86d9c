"""Hands that wait for a server that is away, so that a restart of it is a pause and not a failure of any step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from pydantic import JsonValue

from tenure.errors import ServerUnreachable
from tenure.faultpoints import reach
from tenure.work.hands import (
    Command,
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

FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0

T = TypeVar("T")


class PatientHands(Hands):
    """Repeats every call until the server answers: all of them are keyed or harmless to repeat. `before` is called before
    each try, and may raise to end the waiting (a worker checks there that it still holds its run)."""

    def __init__(self, hands: Hands, before: Callable[[], None]) -> None:
        self._hands = hands
        self._before = before

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        pause_s = FIRST_PAUSE_S
        while True:
            self._before()
            try:
                return await call()
            except ServerUnreachable:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LAST_PAUSE_S)

    async def start_command(self, agent: str, key: str, command: Command) -> CommandStatus:
        def start() -> Awaitable[CommandStatus]:
            reach("effect.start.before")  # the last moment: after the check that the run is still held
            return self._hands.start_command(agent, key, command)

        return await self._patiently(start)

    async def command_status(self, agent: str, key: str, *, wait_s: float = 0.0) -> CommandStatus:
        return await self._patiently(lambda: self._hands.command_status(agent, key, wait_s=wait_s))

    async def stop_command(self, agent: str, key: str) -> None:
        await self._patiently(lambda: self._hands.stop_command(agent, key))

    async def forget_command(self, agent: str, key: str) -> None:
        await self._patiently(lambda: self._hands.forget_command(agent, key))

    async def open_signals(self, agent: str, key: str, checkpoint: JsonValue = None) -> None:
        await self._patiently(lambda: self._hands.open_signals(agent, key, checkpoint))

    async def signals(self, agent: str, key: str) -> Signals:
        return await self._patiently(lambda: self._hands.signals(agent, key))

    async def open_program(
        self, agent: str, argv: tuple[str, ...], *, env: dict[str, str] | None = None, cwd: str | None = None
    ) -> OpenProgram:
        # Patient until it runs; one whose connection breaks is gone with it.
        return await self._patiently(lambda: self._hands.open_program(agent, argv, env=env, cwd=cwd))

    async def sql(
        self, agent: str, statement: str, *, key: str | None = None, rows_max: int = 1000, read_only: bool = False
    ) -> SqlResult:
        return await self._patiently(
            lambda: self._hands.sql(agent, statement, key=key, rows_max=rows_max, read_only=read_only)
        )

    async def ask_data(
        self, agent: str, question: str, arguments: Mapping[str, JsonValue], *, key: str | None = None
    ) -> dict[str, Any]:
        return await self._patiently(lambda: self._hands.ask_data(agent, question, arguments, key=key))

    async def put_object(self, agent: str, path: str, bucket: str, name: str, *, key: str) -> dict[str, Any]:
        return await self._patiently(lambda: self._hands.put_object(agent, path, bucket, name, key=key))

    async def write_object(self, agent: str, bucket: str, name: str, data: bytes, *, key: str) -> dict[str, Any]:
        return await self._patiently(lambda: self._hands.write_object(agent, bucket, name, data, key=key))

    async def read_object(self, agent: str, bucket: str, name: str, *, bytes_max: int = 65536) -> bytes | None:
        return await self._patiently(lambda: self._hands.read_object(agent, bucket, name, bytes_max=bytes_max))

    async def object_to_file(self, agent: str, bucket: str, name: str, path: str, *, key: str) -> int:
        return await self._patiently(lambda: self._hands.object_to_file(agent, bucket, name, path, key=key))

    async def list_objects(
        self, agent: str, bucket: str | None = None, prefix: str = "", *, limit: int = 1000
    ) -> list[dict[str, Any]]:
        return await self._patiently(lambda: self._hands.list_objects(agent, bucket, prefix, limit=limit))

    async def delete_object(self, agent: str, bucket: str, name: str, *, key: str) -> bool:
        return await self._patiently(lambda: self._hands.delete_object(agent, bucket, name, key=key))

    async def notify(self, agent: str, subject: str, body: str, *, key: str, run_id: str | None = None) -> None:
        await self._patiently(lambda: self._hands.notify(agent, subject, body, key=key, run_id=run_id))

    async def read_file(self, agent: str, path: str, *, bytes_max: int = 65536) -> bytes | None:
        return await self._patiently(lambda: self._hands.read_file(agent, path, bytes_max=bytes_max))

    async def take_snapshot(
        self, agent: str, key: str, *, run_id: str, node: str, before: bool, verified: bool, seq: int
    ) -> TakenSnapshot:
        return await self._patiently(
            lambda: self._hands.take_snapshot(
                agent, key, run_id=run_id, node=node, before=before, verified=verified, seq=seq
            )
        )

    async def keep_snapshot(self, agent: str, name: str, *, key: str) -> str:
        return await self._patiently(lambda: self._hands.keep_snapshot(agent, name, key=key))

    async def start_run(self, agent: str, goal: str, *, key: str, parent: str | None = None) -> RunStatus:
        return await self._patiently(lambda: self._hands.start_run(agent, goal, key=key, parent=parent))

    async def run_status(self, run_id: str) -> RunStatus:
        return await self._patiently(lambda: self._hands.run_status(run_id))

    async def cancel_run(self, run_id: str) -> RunStatus:
        return await self._patiently(lambda: self._hands.cancel_run(run_id))

    async def create_schedule(self, agent: str, name: str, goal: str, when: When, *, key: str) -> ScheduledGoal:
        return await self._patiently(lambda: self._hands.create_schedule(agent, name, goal, when, key=key))

    async def list_schedules(self, agent: str) -> list[ScheduledGoal]:
        return await self._patiently(lambda: self._hands.list_schedules(agent))

    async def delete_schedule(self, agent: str, name: str, *, key: str) -> bool:
        return await self._patiently(lambda: self._hands.delete_schedule(agent, name, key=key))

    async def reconnect(self, agent: str) -> None:
        await self._patiently(lambda: self._hands.reconnect(agent))

    async def restart(self, agent: str) -> None:
        await self._patiently(lambda: self._hands.restart(agent))

    async def restore(self, agent: str, snapshot: str, *, key: str, run_id: str) -> str:
        return await self._patiently(lambda: self._hands.restore(agent, snapshot, key=key, run_id=run_id))

    async def rebuild(self, agent: str) -> str:
        return await self._patiently(lambda: self._hands.rebuild(agent))

    async def probe(self, agent: str) -> bool:
        self._before()
        return await self._hands.probe(agent)
