"""Offices without machines, for tests of what stands on them: real semantics and errors, no sandbox, nothing executed."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tenure import wire
from tenure.errors import AlreadyExists, DatabaseError, DoorError, InvalidArgument, NotFound
from tenure.names import check_name
from tenure.offices.models import SnapshotKind, StepMark
from tenure.server import office_files
from tenure.server.services import STDERR, STDOUT, LimitsWanted
from tenure.testing.fake_session import PROGRAMS, FakeSession, host_program, not_found
from tenure.work.hands import Command, CommandState, CommandStatus, SqlResult

OFFICE_SCRIPTS = frozenset(
    {office_files.READ_SCRIPT, office_files.PACK_SCRIPT, office_files.UNPACK_SCRIPT, office_files.WRITE_SCRIPT}
)
PRESETS = frozenset({"pip", "npm", "apt"})


@dataclass(frozen=True)
class FakeOutcome:
    exit_code: int
    stdout: bytes
    stderr: bytes
    stdout_bytes: int
    stderr_bytes: int
    timed_out: bool = False
    duration_s: float = 0.0


class FakeDatabase:
    """Knows one statement, `select N`; refuses all others as PostgreSQL would. Keeps results by key."""

    def __init__(self) -> None:
        self._by_key: dict[str, SqlResult] = {}

    async def execute(
        self,
        statement: str,
        *,
        key: str | None = None,
        rows_max: int = 1000,
        timeout_s: float = 600.0,
        read_only: bool = False,
    ) -> SqlResult:
        del read_only, timeout_s  # it has nothing to write to, and is quick
        if key is not None and key in self._by_key:
            return replace(self._by_key[key], repeated=True)
        word, _, number = statement.strip().partition(" ")
        if word.lower() != "select" or not number.strip().isdigit():
            raise DatabaseError(f'syntax error at or near "{word[:20]}"')
        result = SqlResult(["?column?"], [[int(number)]][:rows_max], "SELECT 1", truncated=rows_max < 1)
        if key is not None:
            self._by_key[key] = result
        return result

    async def csv(self, statement: str) -> AsyncGenerator[bytes]:
        found = await self.execute(statement)

        async def lines() -> AsyncGenerator[bytes]:
            yield b"?column?\n"
            yield f"{found.rows[0][0]}\n".encode()

        return lines()


@dataclass(frozen=True)
class FakeObject:
    info: wire.ObjectInfo
    data: bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.data), 65536):
            yield self.data[start : start + 65536]


class FakeObjects:
    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], FakeObject] = {}

    async def list(self, bucket: str | None = None, prefix: str = "", *, limit: int = 1000) -> list[wire.ObjectInfo]:
        keys = sorted(key for key in self._objects if bucket in (None, key[0]) and key[1].startswith(prefix))
        return [self._objects[key].info for key in keys[:limit]]

    async def put(
        self, bucket: str, name: str, chunks: AsyncIterator[bytes], *, content_type: str | None = None
    ) -> wire.ObjectInfo:
        _check_object_name(name)
        data = b"".join([chunk async for chunk in chunks])
        info = wire.ObjectInfo(
            bucket=bucket,
            name=name,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            modified_at=datetime.now(UTC),
            content_type=content_type,
        )
        self._objects[bucket, name] = FakeObject(info, data)
        return info

    async def open(self, bucket: str, name: str) -> FakeObject:
        _check_object_name(name)
        if (bucket, name) not in self._objects:
            raise NotFound(f"There is no object {bucket}/{name}.")
        return self._objects[bucket, name]

    async def delete(self, bucket: str, name: str) -> None:
        await self.open(bucket, name)
        del self._objects[bucket, name]


def _check_object_name(name: str) -> None:
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InvalidArgument(f"{name[:60]!r} is not a valid object name.")


@dataclass
class FakeOffice:
    """See `tenure.server.services.Office`."""

    name: str
    limits: wire.Limits
    egress: Sequence[str]
    state: str = wire.AgentState.AWAKE
    image: str = "fake"
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    usage: wire.Usage | None = None
    rest: wire.RestPolicy = field(default_factory=wire.RestPolicy)
    idle_s: float | None = 0.0
    lease: wire.Lease | None = None
    commands: dict[str, CommandStatus] = field(default_factory=dict[str, CommandStatus])
    database: FakeDatabase = field(default_factory=FakeDatabase)
    objects: FakeObjects = field(default_factory=FakeObjects)
    log: list[bytes] = field(default_factory=lambda: [b"created\n"])
    history: list[wire.OfficeEvent] = field(default_factory=list[wire.OfficeEvent])

    def note(self, what: str, reason: str, **evidence: object) -> None:
        """An event of its history."""
        number = len(self.history) + 1
        self.history.append(
            wire.OfficeEvent(id=number, at=datetime.now(UTC), what=what, reason=reason, evidence=dict(evidence))
        )

    @property
    def hostname(self) -> str:
        return self.name


class FakeSnapshots:
    """See `tenure.server.services.Snapshots`. Keeps that there were some, and nothing of what was in the offices."""

    def __init__(self, find: Callable[[str], FakeOffice]) -> None:
        self._find = find
        self._taken: dict[str, list[wire.Snapshot]] = {}
        self._by_key: dict[tuple[str, str], str] = {}

    def _get(self, agent: str, wanted: str) -> wire.Snapshot:
        self._find(agent)
        for one in self._taken.get(agent, []):
            if wanted in (one.id, one.name):
                return one
        raise NotFound(f"{agent} has no snapshot {wanted[:60]!r}.", hint=f"`tenure snapshot list {agent}` shows them.")

    async def take(
        self,
        agent: str,
        name: str | None = None,
        kind: SnapshotKind = SnapshotKind.MANUAL,
        step: StepMark | None = None,
        key: str | None = None,
    ) -> wire.Snapshot:
        if kind.is_of_step is (step is None):
            raise InvalidArgument("A snapshot names a step when it is taken before or after one, and only then.")
        office, taken = self._find(agent), self._taken.setdefault(agent, [])
        if key is not None and (agent, key) in self._by_key:
            return self._get(agent, self._by_key[agent, key])
        if name is not None and check_name(name, "snapshot") in [one.name for one in taken]:
            raise AlreadyExists(f"{agent} has a snapshot named {name} already.")
        new_id = f"snap_{secrets.token_hex(6)}"
        now = datetime.now(UTC)
        mark = None if step is None else wire.StepMark(run=step.run, node=step.node, verified=step.verified)
        fields: dict[str, Any] = {"id": new_id, "agent": agent, "name": name, "created_at": now, "image": office.image}
        taken.append(wire.Snapshot(**fields, kind=kind.value, step=mark))
        if key is not None:
            self._by_key[agent, key] = new_id
        return taken[-1]

    async def list(self, agent: str) -> Sequence[wire.Snapshot]:
        self._find(agent)
        return self._taken.get(agent, [])

    async def get(self, agent: str, wanted: str) -> wire.Snapshot:
        return self._get(agent, wanted)

    async def delete(self, agent: str, wanted: str) -> None:
        found = self._get(agent, wanted)
        self._taken[agent].remove(found)
        self._by_key = {key: found_id for key, found_id in self._by_key.items() if found_id != found.id}

    def forget(self, agent: str) -> None:
        self._taken.pop(agent, None)
        self._by_key = {key: found_id for key, found_id in self._by_key.items() if key[0] != agent}

    async def restore(
        self, agent: str, wanted: str, *, by_run: str | None = None, key: str | None = None
    ) -> dict[str, Any]:
        del by_run
        snapshot = self._get(agent, wanted)
        before = await self.take(agent, kind=SnapshotKind.BEFORE_RESTORE, key=key)
        return {"agent": self._find(agent), "snapshot": snapshot, "before": before}

    async def diff(self, agent: str, wanted: str, to: str | None = None, *, tables: bool = True) -> wire.Diff:
        for one in (wanted, to):
            if one is not None:
                self._get(agent, one)
        entry = wire.DiffEntry(kind="file", path="/home/agent/a", change="added", size_bytes=1)
        rows = [wire.RowDiff(change="changed", before={"id": "1", "a": None}, after={"id": "1", "a": "\x1b[31m"})]
        table = wire.TableDiff(
            in_schema="public", name="t\x1b", change="changed", rows_added=0, rows_removed=0, rows_changed=1, rows=rows
        )
        database = wire.DatabaseDiff(tables=[table], compared=2, problem="There is a bound.")
        return wire.Diff(entries=[entry], added=1, database=database if tables else None)


class FakeOffices:
    """See `tenure.server.services.Offices`. `host_root` lets the file endpoints work on a directory of the host; without it
    no file exists, so that a fuzzer can do no harm. `sessions` are all that were attached; `dials` says which port of the
    host is behind which address of an office."""

    def __init__(self, host_root: Path | None = None) -> None:
        self._offices: dict[str, FakeOffice] = {}
        self._host_root = host_root
        self.sessions: list[FakeSession] = []
        self.dials: dict[str, int] = {}
        self.snapshots = FakeSnapshots(self._get)
        self.closed = False

    def _get(self, name: str) -> FakeOffice:
        if name not in self._offices:
            raise NotFound(f"There is no agent {name!r}.", hint="`tenure agent list` shows those there are.")
        return self._offices[name]

    def _woken(self, name: str) -> FakeOffice:
        office = self._get(name)
        office.state = wire.AgentState.AWAKE
        return office

    async def create(
        self, name: str, limits: LimitsWanted, egress: Sequence[str], *, asleep: bool = False
    ) -> FakeOffice:
        check_name(name)
        if name in self._offices:
            raise AlreadyExists(f"There is an agent {name!r} already.")
        for allowed in egress:
            if allowed not in PRESETS and ("." not in allowed or not allowed.isascii() or " " in allowed):
                raise InvalidArgument(f"egress: {allowed[:60]!r} is neither a preset nor a domain.")
        wanted = wire.Limits(
            cpus=limits.cpus or 1.0,
            memory_mb=limits.memory_mb or 1024,
            disk_gb=limits.disk_gb or 10.0,
            processes=limits.processes or 512,
        )
        state = wire.AgentState.STOPPED if asleep else wire.AgentState.AWAKE
        self._offices[name] = FakeOffice(name, wanted, tuple(egress), state)
        return self._offices[name]

    async def fork(self, name: str, new: str, snapshot: str | None = None) -> FakeOffice:
        source = self._get(name)
        if snapshot is not None:
            await self.snapshots.get(name, snapshot)
        check_name(new)
        if new in self._offices:
            raise AlreadyExists(f"There is an agent {new!r} already.")
        self._offices[new] = FakeOffice(new, source.limits, source.egress)
        return self._offices[new]

    async def need(self, name: str) -> None:
        self._get(name)

    async def get(self, name: str) -> FakeOffice:
        return self._get(name)

    async def list(self) -> list[FakeOffice]:
        return list(self._offices.values())

    async def delete(self, name: str) -> None:
        self._get(name)
        del self._offices[name]
        self.snapshots.forget(name)

    async def wake(self, name: str) -> FakeOffice:
        return self._woken(name)

    async def sleep(self, name: str, tier: str = wire.Tier.STOPPED) -> FakeOffice:
        office = self._get(name)
        tiers = list(wire.Tier)
        if office.state not in set(tiers) or tiers.index(wire.Tier(office.state)) < tiers.index(wire.Tier(tier)):
            office.state = wire.AgentState(tier)
        return office

    async def set_rest(self, name: str, rest: Mapping[str, float]) -> FakeOffice:
        office = self._get(name)
        office.rest = wire.RestPolicy(**{field: seconds or None for field, seconds in rest.items()})
        return office

    async def set_lease(self, name: str, seconds: float | None, reason: str = "") -> FakeOffice:
        office = self._get(name)
        office.lease = None
        if seconds is not None:
            office.lease = wire.Lease(until=datetime.now(UTC) + timedelta(seconds=seconds), reason=reason)
        return office

    async def reconnect(self, name: str) -> FakeOffice:
        return self._woken(name)

    async def restart(self, name: str) -> FakeOffice:
        office = self._woken(name)
        for key, status in office.commands.items():
            if status.state is CommandState.RUNNING:
                office.commands[key] = CommandStatus(CommandState.LOST)
        return office

    async def probe(self, name: str) -> bool:
        return self._get(name).state == wire.AgentState.AWAKE

    async def run(
        self,
        name: str,
        *,
        argv: Sequence[str] | None = None,
        script: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str = "agent",
        stdin: bytes = b"",
        timeout_s: float = 600.0,
    ) -> FakeOutcome:
        del timeout_s
        session = await self.attach(name, argv=argv, script=script, env=env, cwd=cwd, user=user)
        kept, seen = {STDOUT: bytearray(), STDERR: bytearray()}, {STDOUT: 0, STDERR: 0}
        try:
            if stdin:
                await session.send_stdin(stdin)
            await session.send_eof()
            async for channel, data in session:
                kept[channel] += data[: wire.OUTPUT_BYTES_MAX - len(kept[channel])]
                seen[channel] += len(data)
            return FakeOutcome(
                await session.wait(), bytes(kept[STDOUT]), bytes(kept[STDERR]), seen[STDOUT], seen[STDERR]
            )
        finally:
            await session.close()

    async def attach(
        self,
        name: str,
        *,
        argv: Sequence[str] | None = None,
        script: str | None = None,
        login: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str = "agent",
        tty: tuple[int, int] | None = None,
    ) -> FakeSession:
        del env, cwd, tty
        self._woken(name)
        if user not in ("agent", "root"):
            raise InvalidArgument(f"There is no user {user!r} in the office.")
        command = ["cat"] if login else list(argv or _words(script or ""))
        program = PROGRAMS.get(command[0], not_found)
        if len(command) > 2 and command[2] in OFFICE_SCRIPTS:
            if self._host_root is None:
                command, program = ["exit", str(office_files.EXIT_MISSING)], PROGRAMS["exit"]
            else:
                program = host_program(str(self._host_root))
        session = FakeSession(program, command)
        self.sessions.append(session)
        return session

    async def ssh(self, name: str) -> tuple[Any, Any]:
        self._woken(name)
        raise DoorError("A fake office has no sshd.")

    async def dial(self, name: str, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the host's port in `dials`, which stands for the office's."""
        self._woken(name)
        if address not in self.dials:
            raise DoorError(f"The office answered: nothing listens on {address} in the office (Connection refused).")
        return await asyncio.open_connection("127.0.0.1", self.dials[address])

    async def command_start(self, name: str, key: str, command: Command) -> CommandStatus:
        office = self._woken(name)
        if key not in office.commands:
            done = await self.run(name, script=command.script, user=command.user)
            output = (done.stdout + done.stderr).decode("utf-8", "replace")
            office.commands[key] = CommandStatus(
                CommandState.EXITED, done.exit_code, False, output, len(output), done.duration_s
            )
        return office.commands[key]

    async def command_status(self, name: str, key: str, *, wait_s: float = 0.0) -> CommandStatus:
        del wait_s
        return self._woken(name).commands.get(key, CommandStatus(CommandState.ABSENT))

    async def command_stop(self, name: str, key: str) -> None:
        del key
        self._woken(name)

    async def command_forget(self, name: str, key: str) -> None:
        self._woken(name).commands.pop(key, None)

    async def database(self, name: str) -> FakeDatabase:
        return self._woken(name).database

    async def objects(self, name: str) -> FakeObjects:
        return self._get(name).objects

    async def rebuild(self, name: str) -> dict[str, Any]:
        office = self._get(name)
        before = await self.snapshots.take(name, kind=SnapshotKind.BEFORE_RESTORE)
        office.note("rebuilt", f"what was there is snapshot {before.id}", before=before.id)
        return {"agent": office, "before": before, "set_up": {"packages": ["cowsay"], "pip": [], "script": False}}

    async def history(self, name: str, limit: int = 100) -> list[wire.OfficeEvent]:
        return self._get(name).history[::-1][:limit]

    async def logs(self, name: str, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
        office = self._get(name)

        async def read() -> AsyncIterator[bytes]:
            for line in office.log[-lines:] if lines else []:
                yield line

        del follow
        return read()

    async def close(self) -> None:
        self.closed = True
        for session in self.sessions:
            await session.close()


def _words(script: str) -> list[str]:
    try:
        return shlex.split(script) or ["exit", "0"]
    except ValueError:
        return ["exit", "2"]
