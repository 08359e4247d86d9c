"""`OfficeHands`: `Hands` in the server itself, for programs of one office that use the tools through its own door.

They may do in their office what a run of its brain may, but for what is a run's alone (recoveries, snapshots of steps), and
nothing in another office: every call passes `authorize`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn

from pydantic import JsonValue

from tenure import wire
from tenure.data.query.plane import DataPlane
from tenure.errors import Conflict, Forbidden, NotFound
from tenure.identity.authorize import Principal, Resource, authorize
from tenure.names import check_bucket, check_name
from tenure.server import office_files
from tenure.server.api.inbox import OFFICE_KEYS, check_from_office
from tenure.server.api.objects import FILE_BYTES_MAX
from tenure.server.api.runs import chosen_brain
from tenure.server.checks import check_command, check_id, check_path, check_text
from tenure.server.data_questions import ask
from tenure.server.services import OfficeDatabase, Services
from tenure.triggers.schedules import shown
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
from tenure.work.schedules import goal_request, scheduled_goal
from tenure.work.subgoals import status_of_run

USER = "agent"
ACTION = "tool:use"


class OfficeHands(Hands):
    def __init__(self, services: Services, principal: Principal) -> None:
        self._has, self._principal = services, principal
        self._offices = services.offices

    def _check(self, agent: str, kind: str, name: str = "") -> str:
        authorize(self._principal, ACTION, Resource(kind, owner=agent, name=name))
        return agent

    # --- commands ----------------------------------------------------------------------------------------------------
    async def start_command(self, agent: str, key: str, command: Command) -> CommandStatus:
        check_command(script=command.script, env=command.env, cwd=command.cwd, user=command.user)
        return await self._offices.command_start(self._check(agent, "command"), key, command)

    async def command_status(self, agent: str, key: str, *, wait_s: float = 0.0) -> CommandStatus:
        return await self._offices.command_status(self._check(agent, "command"), key, wait_s=wait_s)

    async def stop_command(self, agent: str, key: str) -> None:
        await self._offices.command_stop(self._check(agent, "command"), key)

    async def forget_command(self, agent: str, key: str) -> None:
        await self._offices.command_forget(self._check(agent, "command"), key)

    # --- data --------------------------------------------------------------------------------------------------------
    async def sql(
        self, agent: str, statement: str, *, key: str | None = None, rows_max: int = 1000, read_only: bool = False
    ) -> SqlResult:
        check_text("statement", statement)
        database: OfficeDatabase = await self._offices.database(self._check(agent, "database"))
        return await database.execute(statement, key=key, rows_max=rows_max, read_only=read_only)

    async def ask_data(
        self, agent: str, question: str, arguments: Mapping[str, JsonValue], *, key: str | None = None
    ) -> dict[str, Any]:
        source = await self._offices.database(self._check(agent, "database"))
        return await ask(DataPlane(source, self._has.models, str(self._principal)), question, arguments, key=key)

    async def read_file(self, agent: str, path: str, *, bytes_max: int = 65536) -> bytes | None:
        try:
            chunks = await self._read(self._check(agent, "file"), path, bytes_max)
            return b"".join([chunk async for chunk in chunks])
        except NotFound:
            return None

    async def _read(self, agent: str, path: str, bytes_max: int) -> AsyncIterator[bytes]:
        return await office_files.read_file(self._offices, agent, USER, check_path(path), bytes_max)

    async def put_object(self, agent: str, path: str, bucket: str, name: str, *, key: str) -> dict[str, Any]:
        self._check(agent, "object", f"{bucket}/{name}")
        check_bucket(bucket)
        chunks = await self._read(agent, path, FILE_BYTES_MAX)
        store = await self._offices.objects(agent)
        return _described(await store.put(bucket, check_text("name", name), chunks))

    async def write_object(self, agent: str, bucket: str, name: str, data: bytes, *, key: str) -> dict[str, Any]:
        self._check(agent, "object", f"{bucket}/{name}")
        store = await self._offices.objects(agent)
        return _described(await store.put(check_bucket(bucket), check_text("name", name), _once(data)))

    async def read_object(self, agent: str, bucket: str, name: str, *, bytes_max: int = 65536) -> bytes | None:
        self._check(agent, "object", f"{bucket}/{name}")
        store = await self._offices.objects(agent)
        read = b""
        try:
            found = await store.open(check_bucket(bucket), check_text("name", name))
        except NotFound:
            return None
        async for chunk in (chunks := found.chunks()):
            read += chunk
            if len(read) >= bytes_max:
                break
        await getattr(chunks, "aclose")()  # noqa: B009 - generators have it: it closes the file
        return read[:bytes_max]

    async def object_to_file(self, agent: str, bucket: str, name: str, path: str, *, key: str) -> int:
        self._check(agent, "object", f"{bucket}/{name}")
        store = await self._offices.objects(agent)
        found = await store.open(check_bucket(bucket), check_text("name", name))
        size_bytes: int = found.info.size_bytes
        await office_files.write_file(self._offices, agent, USER, check_path(path), found.chunks(), size_bytes)
        return size_bytes

    async def list_objects(
        self, agent: str, bucket: str | None = None, prefix: str = "", *, limit: int = 1000
    ) -> list[dict[str, Any]]:
        store = await self._offices.objects(self._check(agent, "object"))
        checked = None if bucket is None else check_bucket(bucket)
        return [_described(one) for one in await store.list(checked, check_text("prefix", prefix), limit=limit)]

    async def delete_object(self, agent: str, bucket: str, name: str, *, key: str) -> bool:
        self._check(agent, "object", f"{bucket}/{name}")
        store = await self._offices.objects(agent)
        try:
            await store.delete(check_bucket(bucket), check_text("name", name))
        except NotFound:
            return False
        return True

    async def notify(self, agent: str, subject: str, body: str, *, key: str, run_id: str | None = None) -> None:
        message = wire.MessageRequest(agent=agent, subject=subject, body=body, run_id=run_id)
        await check_from_office(message, self._check(agent, "message"), self._has)
        await self._has.inbox.create(agent=agent, subject=subject, body=body, key=f"{OFFICE_KEYS}{key}", run_id=run_id)

    async def keep_snapshot(self, agent: str, name: str, *, key: str) -> str:
        return (await self._offices.snapshots.take(self._check(agent, "snapshot"), name, key=key)).id

    # --- runs --------------------------------------------------------------------------------------------------------
    async def start_run(self, agent: str, goal: str, *, key: str, parent: str | None = None) -> RunStatus:
        await self._offices.need(self._check(check_name(agent), "run"))
        settings = chosen_brain(await self._has.brains.get(agent), agent)
        made = await self._has.runs.create_subgoal(
            agent=agent, goal=check_text("goal", goal), key=f"{OFFICE_KEYS}{key}", settings=settings, parent=parent
        )
        return status_of_run(made)

    async def run_status(self, run_id: str) -> RunStatus:
        found = status_of_run(await self._has.runs.get(check_id(run_id, "run")))
        self._check(found.agent, "run", run_id)
        return found

    async def cancel_run(self, run_id: str) -> RunStatus:
        await self.run_status(run_id)
        try:
            return status_of_run(await self._has.runs.cancel(run_id))
        except Conflict:  # it is over
            return await self.run_status(run_id)

    # --- schedules ---------------------------------------------------------------------------------------------------
    async def create_schedule(self, agent: str, name: str, goal: str, when: When, *, key: str) -> ScheduledGoal:
        await self._offices.need(self._check(check_name(agent), "schedule"))
        request = goal_request(agent, name, check_text("goal", goal), when, f"{OFFICE_KEYS}{key}")
        schedules = self._has.triggers.schedules
        return scheduled_goal(shown(schedules, await schedules.create(request, self._principal)))

    async def list_schedules(self, agent: str) -> list[ScheduledGoal]:
        schedules = self._has.triggers.schedules
        found = await schedules.list(self._check(agent, "schedule"))
        return [scheduled_goal(shown(schedules, one)) for one in found]

    async def delete_schedule(self, agent: str, name: str, *, key: str) -> bool:
        try:
            found = await self._has.triggers.schedules.get(name, self._check(agent, "schedule"))
        except NotFound:
            return False
        await self._has.triggers.schedules.delete(found, self._principal)
        return True

    async def probe(self, agent: str) -> bool:
        return await self._offices.probe(self._check(agent, "agent"))

    # --- of runs alone -----------------------------------------------------------------------------------------------
    async def open_signals(self, agent: str, key: str, checkpoint: JsonValue = None) -> None:
        self._refuse()

    async def signals(self, agent: str, key: str) -> Signals:
        self._refuse()

    async def open_program(
        self, agent: str, argv: tuple[str, ...], *, env: dict[str, str] | None = None, cwd: str | None = None
    ) -> OpenProgram:
        self._refuse()

    async def take_snapshot(
        self, agent: str, key: str, *, run_id: str, node: str, before: bool, verified: bool, seq: int
    ) -> TakenSnapshot:
        self._refuse()

    async def reconnect(self, agent: str) -> None:
        self._refuse()

    async def restart(self, agent: str) -> None:
        self._refuse()

    async def restore(self, agent: str, snapshot: str, *, key: str, run_id: str) -> str:
        self._refuse()

    async def rebuild(self, agent: str) -> str:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise Forbidden(f"{self._principal} may not do this: it is a run's.")


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _described(info: Any) -> dict[str, Any]:
    return {"bucket": info.bucket, "name": info.name, "size_bytes": info.size_bytes, "sha256": info.sha256}
