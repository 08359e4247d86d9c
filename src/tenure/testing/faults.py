"""Faults of an office, on order: wraps any `Hands` and breaks the calls that a test names.

Kinds of faults that real offices have: the call never arrived (`before=True`: nothing happened), or its answer was lost
(`before=False`: it happened, and the caller does not know).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import JsonValue

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

T = TypeVar("T")


@dataclass
class Fault:
    """Breaks the next `times` calls of `method` (and, when `key` is given, only those whose key contains it)."""

    method: str
    error: Callable[[], Exception]
    times: int = 1
    before: bool = True
    key: str = ""
    fired: int = 0
    """How often it broke a call: a fault that never landed looks like a clean run, so assert it."""


@dataclass
class FaultyHands(Hands):
    hands: Hands
    faults: list[Fault] = field(default_factory=list[Fault])
    calls: list[str] = field(default_factory=list[str])
    """`method` or `method key` of every call, in order."""

    def add(self, method: str, error: Callable[[], Exception], **options: Any) -> Fault:
        fault = Fault(method, error, **options)
        self.faults.append(fault)
        return fault

    async def _call(self, method: str, key: str, call: Callable[[], Awaitable[T]]) -> T:
        self.calls.append(f"{method} {key}".strip())
        fault = next(
            (f for f in self.faults if f.method == method and f.fired < f.times and (not f.key or f.key in key)), None
        )
        if fault is None:
            return await call()
        fault.fired += 1
        if not fault.before:
            done = await call()
            if isinstance(done, OpenProgram):  # it ends with the connection
                await done.close()
        raise fault.error()

    async def start_command(self, agent: str, key: str, command: Command) -> CommandStatus:
        return await self._call("start_command", key, lambda: self.hands.start_command(agent, key, command))

    async def command_status(self, agent: str, key: str, *, wait_s: float = 0.0) -> CommandStatus:
        return await self._call("command_status", key, lambda: self.hands.command_status(agent, key, wait_s=wait_s))

    async def stop_command(self, agent: str, key: str) -> None:
        await self._call("stop_command", key, lambda: self.hands.stop_command(agent, key))

    async def forget_command(self, agent: str, key: str) -> None:
        await self._call("forget_command", key, lambda: self.hands.forget_command(agent, key))

    async def open_signals(self, agent: str, key: str, checkpoint: JsonValue = None) -> None:
        await self._call("open_signals", key, lambda: self.hands.open_signals(agent, key, checkpoint))

    async def signals(self, agent: str, key: str) -> Signals:
        return await self._call("signals", key, lambda: self.hands.signals(agent, key))

    async def open_program(
        self, agent: str, argv: tuple[str, ...], *, env: dict[str, str] | None = None, cwd: str | None = None
    ) -> OpenProgram:
        return await self._call("open_program", "", lambda: self.hands.open_program(agent, argv, env=env, cwd=cwd))

    async def sql(
        self, agent: str, statement: str, *, key: str | None = None, rows_max: int = 1000, read_only: bool = False
    ) -> SqlResult:
        def ask() -> Awaitable[SqlResult]:
            return self.hands.sql(agent, statement, key=key, rows_max=rows_max, read_only=read_only)

        return await self._call("sql", key or "", ask)

    async def ask_data(
        self, agent: str, question: str, arguments: Mapping[str, JsonValue], *, key: str | None = None
    ) -> dict[str, Any]:
        return await self._call("ask_data", key or "", lambda: self.hands.ask_data(agent, question, arguments, key=key))

    async def put_object(self, agent: str, path: str, bucket: str, name: str, *, key: str) -> dict[str, Any]:
        return await self._call("put_object", key, lambda: self.hands.put_object(agent, path, bucket, name, key=key))

    async def write_object(self, agent: str, bucket: str, name: str, data: bytes, *, key: str) -> dict[str, Any]:
        return await self._call(
            "write_object", key, lambda: self.hands.write_object(agent, bucket, name, data, key=key)
        )

    async def read_object(self, agent: str, bucket: str, name: str, *, bytes_max: int = 65536) -> bytes | None:
        return await self._call(
            "read_object", "", lambda: self.hands.read_object(agent, bucket, name, bytes_max=bytes_max)
        )

    async def object_to_file(self, agent: str, bucket: str, name: str, path: str, *, key: str) -> int:
        return await self._call(
            "object_to_file", key, lambda: self.hands.object_to_file(agent, bucket, name, path, key=key)
        )

    async def list_objects(
        self, agent: str, bucket: str | None = None, prefix: str = "", *, limit: int = 1000
    ) -> list[dict[str, Any]]:
        return await self._call("list_objects", "", lambda: self.hands.list_objects(agent, bucket, prefix, limit=limit))

    async def delete_object(self, agent: str, bucket: str, name: str, *, key: str) -> bool:
        return await self._call("delete_object", key, lambda: self.hands.delete_object(agent, bucket, name, key=key))

    async def notify(self, agent: str, subject: str, body: str, *, key: str, run_id: str | None = None) -> None:
        await self._call("notify", key, lambda: self.hands.notify(agent, subject, body, key=key, run_id=run_id))

    async def read_file(self, agent: str, path: str, *, bytes_max: int = 65536) -> bytes | None:
        return await self._call("read_file", "", lambda: self.hands.read_file(agent, path, bytes_max=bytes_max))

    async def take_snapshot(
        self, agent: str, key: str, *, run_id: str, node: str, before: bool, verified: bool, seq: int
    ) -> TakenSnapshot:
        def take() -> Awaitable[TakenSnapshot]:
            return self.hands.take_snapshot(
                agent, key, run_id=run_id, node=node, before=before, verified=verified, seq=seq
            )

        return await self._call("take_snapshot", key, take)

    async def keep_snapshot(self, agent: str, name: str, *, key: str) -> str:
        return await self._call("keep_snapshot", key, lambda: self.hands.keep_snapshot(agent, name, key=key))

    async def start_run(self, agent: str, goal: str, *, key: str, parent: str | None = None) -> RunStatus:
        return await self._call("start_run", key, lambda: self.hands.start_run(agent, goal, key=key, parent=parent))

    async def run_status(self, run_id: str) -> RunStatus:
        return await self._call("run_status", "", lambda: self.hands.run_status(run_id))

    async def cancel_run(self, run_id: str) -> RunStatus:
        return await self._call("cancel_run", "", lambda: self.hands.cancel_run(run_id))

    async def create_schedule(self, agent: str, name: str, goal: str, when: When, *, key: str) -> ScheduledGoal:
        return await self._call(
            "create_schedule", key, lambda: self.hands.create_schedule(agent, name, goal, when, key=key)
        )

    async def list_schedules(self, agent: str) -> list[ScheduledGoal]:
        return await self._call("list_schedules", "", lambda: self.hands.list_schedules(agent))

    async def delete_schedule(self, agent: str, name: str, *, key: str) -> bool:
        return await self._call("delete_schedule", key, lambda: self.hands.delete_schedule(agent, name, key=key))

    async def reconnect(self, agent: str) -> None:
        await self._call("reconnect", "", lambda: self.hands.reconnect(agent))

    async def restart(self, agent: str) -> None:
        await self._call("restart", "", lambda: self.hands.restart(agent))

    async def restore(self, agent: str, snapshot: str, *, key: str, run_id: str) -> str:
        return await self._call("restore", key, lambda: self.hands.restore(agent, snapshot, key=key, run_id=run_id))

    async def rebuild(self, agent: str) -> str:
        return await self._call("rebuild", "", lambda: self.hands.rebuild(agent))

    async def probe(self, agent: str) -> bool:
        return await self._call("probe", "", lambda: self.hands.probe(agent))
