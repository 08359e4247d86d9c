"""`FakeHands`: the `Hands` contract on a plain directory of this machine, for tests of the work engine and of brains.

Commands are real shells, started detached, so that they outlive the process that started them, as in an office; keys,
output and exit codes are files, and the database is SQLite, so that everything outlives a `kill -9` too. Nothing is
isolated: never give it a script that you would not run yourself. A sandbox that dies is played by `restart`, which ends
all commands, and by `break_door` and `break_sandbox`, which make calls fail until the recovery that helps. A snapshot is a
copy of the directory; commands go on while it is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from tenure.errors import AlreadyExists, DatabaseError, DoorClosed, InvalidArgument, NotFound, SandboxDead
from tenure.names import check_bucket, check_name
from tenure.postgres.client import UNDEFINED_TABLE
from tenure.testing.fake_data import fake_answer
from tenure.testing.fake_program import FakeProgram, open_fake_program
from tenure.testing.fake_signals import FileSignals, SignalServer
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

OUTPUT_BYTES_MAX = 65536
EVERY_S_MIN = 300
POLL_S = 0.02
WAIT_S_MAX = 30.0
STOP_GRACE_S = 5.0
START_S = 2.0
_PARTS = ("home", "jobs", "objects")
_DATABASE = "database.sqlite"
_RUNNER = Path(__file__).with_name("fake_command.py")


class FakeHands(Hands):
    """Every agent that has a directory below `root` exists; `add_agent` makes one. Several processes may share a root."""

    def __init__(self, root: Path, *, signals_url: str | None = None) -> None:
        """`signals_url`: where programs tell of themselves, of another one that serves this root and outlives this one."""
        self._root, self._signals_url = root, signals_url
        self._signals = FileSignals(root)
        self._server: SignalServer | None = None
        self.programs: list[FakeProgram] = []
        """All that were opened, in order."""

    # --- the stage ---------------------------------------------------------------------------------------------------
    def add_agent(self, agent: str) -> Path:
        """Makes the agent's office; returns its home."""
        for part in (*_PARTS, "snapshots"):
            (self._root / agent / part).mkdir(parents=True, exist_ok=True)
        return self._root / agent / "home"

    def break_door(self, agent: str) -> None:
        """From now on calls raise `DoorClosed`, until `reconnect` or `restart`."""
        (self._office(agent) / "door-is-broken").touch()

    def break_sandbox(self, agent: str, least: int = 5) -> None:
        """From now on calls raise `SandboxDead`, until `restart`, or with another `least` the recovery of that rung; what ran is
        lost."""
        (self._office(agent) / "sandbox-is-broken").write_text(str(least))
        self._end_commands(agent)

    def messages(self, agent: str) -> list[dict[str, Any]]:
        return self._lines(agent, "inbox")

    def snapshots(self, agent: str) -> list[str]:
        """The ids of those there are."""
        return sorted(path.name for path in (self._office(agent) / "snapshots").iterdir() if path.name[0] != ".")

    def drop_snapshot(self, agent: str, snapshot: str) -> None:
        """As when it was pruned."""
        shutil.rmtree(self._office(agent) / "snapshots" / snapshot)

    def fork(self, agent: str, new: str, snapshot: str) -> None:
        """Makes the agent `new`, with what is in the snapshot."""
        self.add_agent(new)
        self._put_back(self._office(agent) / "snapshots" / snapshot, self._office(new))

    def calls(self, agent: str) -> list[dict[str, Any]]:
        """Every recovery that was asked for, in order."""
        return self._lines(agent, "recoveries")

    def close(self) -> None:
        """Ends all commands of all agents."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for office in self._root.iterdir():
            if office.is_dir():
                self._end_commands(office.name)

    # --- commands ----------------------------------------------------------------------------------------------------
    async def start_command(self, agent: str, key: str, command: Command) -> CommandStatus:
        office = self._reach(agent)
        job = office / "jobs" / key
        try:
            job.mkdir()  # this is what claims the key
        except FileExistsError:
            return self._status(job)
        home = office / "home"
        (job / "command.json").write_text(
            json.dumps({"script": command.script, "timeout_s": command.timeout_s, "cwd": command.cwd or str(home)})
        )
        env = self._environment(agent, command.user) | command.env
        with (job / "output").open("wb") as output:
            runner = subprocess.Popen(  # noqa: ASYNC220 - it must outlive this process
                [sys.executable, "-S", "-E", str(_RUNNER), str(job)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=home,
                start_new_session=True,
            )
        _children.append(runner)
        (job / "pid.new").write_text(str(runner.pid))
        (job / "pid.new").rename(job / "pid")
        return self._status(job)

    async def command_status(self, agent: str, key: str, *, wait_s: float = 0.0) -> CommandStatus:
        until = time.monotonic() + min(wait_s, WAIT_S_MAX)
        while True:
            status = self._status(self._reach(agent) / "jobs" / key)
            if status.state is not CommandState.RUNNING or time.monotonic() >= until:
                return status
            await asyncio.sleep(POLL_S)

    async def stop_command(self, agent: str, key: str) -> None:
        job = self._reach(agent) / "jobs" / key
        if self._status(job).state is CommandState.RUNNING:
            while not (job / "command.pid").exists() and self._status(job).state is CommandState.RUNNING:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
            # The runner passes SIGTERM on, and SIGKILL after a while; it writes down how the command ended.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((job / "pid").read_text()), signal.SIGTERM)
            until = time.monotonic() + STOP_GRACE_S + 1
            while self._status(job).state is CommandState.RUNNING and time.monotonic() < until:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)

    async def forget_command(self, agent: str, key: str) -> None:
        job = self._reach(agent) / "jobs" / key
        if self._status(job).state is not CommandState.RUNNING:
            (job / "output").unlink(missing_ok=True)

    # --- programs ----------------------------------------------------------------------------------------------------
    async def open_signals(self, agent: str, key: str, checkpoint: JsonValue = None) -> None:
        self._office(agent)
        await self._signals.open(agent, key, checkpoint)

    async def signals(self, agent: str, key: str) -> Signals:
        self._office(agent)
        return await self._signals.read(agent, key)

    async def open_program(
        self, agent: str, argv: tuple[str, ...], *, env: dict[str, str] | None = None, cwd: str | None = None
    ) -> OpenProgram:
        home = self._reach(agent) / "home"
        directory = home / (cwd or "")
        if not directory.is_dir():
            raise InvalidArgument(f"The office cannot start this: {cwd}: No such file or directory.")
        program = await open_fake_program(argv, self._environment(agent, "agent") | (env or {}), directory)
        self.programs.append(program)
        return program

    def _environment(self, agent: str, user: str) -> dict[str, str]:
        home = str(self._office(agent) / "home")
        return {"PATH": os.environ["PATH"], "HOME": home, "USER": user, "TENURE_URL": f"{self.serve()}/{agent}"}

    def serve(self) -> str:
        """The address at which programs tell of themselves. Unless it was given, it is of this process, and of those forked from
        it after this."""
        if self._signals_url is not None:
            return self._signals_url
        if self._server is None:
            self._server = SignalServer(self._signals)
        return self._server.url

    # --- data --------------------------------------------------------------------------------------------------------
    async def sql(
        self, agent: str, statement: str, *, key: str | None = None, rows_max: int = 1000, read_only: bool = False
    ) -> SqlResult:
        office = self._reach(agent)
        with contextlib.closing(_connect(office)) as connection:
            connection.execute("pragma synchronous = off")
            connection.execute("create table if not exists tenure_keys (key text primary key, result text)")
            connection.execute(f"pragma query_only = {int(read_only)}")
            connection.execute("begin" if read_only else "begin immediate")
            if key is not None:
                known = connection.execute("select result from tenure_keys where key = ?", (key,)).fetchone()
                if known:
                    connection.execute("rollback")
                    return SqlResult(**json.loads(known[0]), repeated=True)
            try:
                result = _execute(connection, statement, rows_max)
            except sqlite3.Error as error:
                connection.execute("rollback")
                details = {"sqlstate": UNDEFINED_TABLE} if "no such table" in str(error) else {}
                raise DatabaseError(str(error), details=details) from None
            if key is not None:
                kept = {"columns": result.columns, "rows": result.rows, "status": result.status}
                stored = json.dumps(kept | {"truncated": result.truncated})
                connection.execute("insert into tenure_keys values (?, ?)", (key, stored))
            connection.execute("commit")
            return result

    async def ask_data(
        self, agent: str, question: str, arguments: Mapping[str, JsonValue], *, key: str | None = None
    ) -> dict[str, Any]:
        return await fake_answer(self, agent, question, arguments, key)

    async def put_object(self, agent: str, path: str, bucket: str, name: str, *, key: str) -> dict[str, Any]:
        office = self._reach(agent)
        source = office / "home" / path
        if not source.is_file():
            raise NotFound(f"There is no file {path}.")
        return await self.write_object(agent, bucket, name, source.read_bytes(), key=key)

    async def write_object(self, agent: str, bucket: str, name: str, data: bytes, *, key: str) -> dict[str, Any]:
        _replace(self._object(agent, bucket, name), data)
        digest = hashlib.sha256(data).hexdigest()
        return {"bucket": bucket, "name": name, "size_bytes": len(data), "sha256": digest}

    async def read_object(self, agent: str, bucket: str, name: str, *, bytes_max: int = 65536) -> bytes | None:
        found = self._object(agent, bucket, name)
        return found.read_bytes()[:bytes_max] if found.is_file() else None

    async def object_to_file(self, agent: str, bucket: str, name: str, path: str, *, key: str) -> int:
        data, target = self._object(agent, bucket, name), self._office(agent) / "home" / path
        if not data.is_file():
            raise NotFound(f"There is no object {bucket}/{name}.")
        if not target.parent.is_dir():
            raise NotFound(f"There is no directory for {path}.")
        _replace(target, data.read_bytes())
        return data.stat().st_size

    async def list_objects(
        self, agent: str, bucket: str | None = None, prefix: str = "", *, limit: int = 1000
    ) -> list[dict[str, Any]]:
        objects, found = self._reach(agent) / "objects", list[dict[str, Any]]()
        for file in sorted(path for path in objects.rglob("*") if path.is_file()):
            inside, _, name = str(file.relative_to(objects)).partition("/")
            if bucket in (None, inside) and name.startswith(prefix):
                found.append({"bucket": inside, "name": name, "size_bytes": file.stat().st_size})
        return found[:limit]

    async def delete_object(self, agent: str, bucket: str, name: str, *, key: str) -> bool:
        found = self._object(agent, bucket, name)
        was_there = found.is_file()
        found.unlink(missing_ok=True)
        return was_there

    def _object(self, agent: str, bucket: str, name: str) -> Path:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise InvalidArgument(f"{name!r} is not a valid object name.")
        return self._reach(agent) / "objects" / check_bucket(bucket) / name

    async def notify(self, agent: str, subject: str, body: str, *, key: str, run_id: str | None = None) -> None:
        self._office(agent)
        if not any(message["key"] == key for message in self.messages(agent)):
            self._write_line(agent, "inbox", {"key": key, "subject": subject, "body": body, "run_id": run_id})

    async def read_file(self, agent: str, path: str, *, bytes_max: int = 65536) -> bytes | None:
        file = self._reach(agent) / "home" / path
        if not file.is_file():
            return None
        with file.open("rb") as opened:
            return opened.read(bytes_max)

    # --- snapshots ---------------------------------------------------------------------------------------------------
    async def take_snapshot(
        self, agent: str, key: str, *, run_id: str, node: str, before: bool, verified: bool, seq: int
    ) -> TakenSnapshot:
        said = {"seq": seq, "verified": verified, "run": run_id, "node": node, "before": before}
        snapshot = self._take(self._office(agent), key, said)
        kept = json.loads((snapshot / "said.json").read_text())
        return TakenSnapshot(snapshot.name, kept["seq"], kept["verified"])

    async def keep_snapshot(self, agent: str, name: str, *, key: str) -> str:
        office, kept = self._office(agent), {line["key"]: line for line in self._lines(agent, "kept")}
        if key not in kept:
            if check_name(name, "snapshot") in [line["name"] for line in kept.values()]:
                raise AlreadyExists(f"{agent} has a snapshot named {name} already.")
            snapshot = self._take(office, key, {"name": name, "seq": 0, "verified": False}).name
            self._write_line(agent, "kept", {"key": key, "name": name, "id": snapshot})
            return snapshot
        return kept[key]["id"]

    def _take(self, office: Path, key: str, said: dict[str, Any]) -> Path:
        taken = office / "snapshots" / f"snap_{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        if not taken.exists():
            fresh = taken.with_name(f".{taken.name}.{os.getpid()}.{time.monotonic_ns()}")
            fresh.mkdir()
            with contextlib.closing(_connect(office)) as connection:
                connection.execute("begin immediate")  # nobody writes meanwhile
                shutil.copyfile(office / _DATABASE, fresh / _DATABASE)
            for part in _PARTS:
                with contextlib.suppress(shutil.Error):  # what went away while it was copied
                    shutil.copytree(office / part, fresh / part, symlinks=True)
            (fresh / "said.json").write_text(json.dumps(said))
            with contextlib.suppress(OSError):  # somebody else was faster
                fresh.rename(taken)
        return taken

    def _put_back(self, snapshot: Path, office: Path) -> None:
        for part in _PARTS:
            shutil.rmtree(office / part, ignore_errors=True)
            shutil.copytree(snapshot / part, office / part, symlinks=True)
        fresh = office / f"{_DATABASE}.new"
        shutil.copyfile(snapshot / _DATABASE, fresh)
        fresh.rename(office / _DATABASE)

    # --- runs --------------------------------------------------------------------------------------------------------
    async def start_run(self, agent: str, goal: str, *, key: str, parent: str | None = None) -> RunStatus:
        self._office(agent)
        if not goal.strip():
            raise InvalidArgument("A run needs a goal.")
        run_id = f"run_{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        if run_id not in self._runs():
            self._write_run(run_id, agent=agent, goal=goal, state="queued", parent=parent)
        return await self.run_status(run_id)

    async def run_status(self, run_id: str) -> RunStatus:
        found = self._runs().get(run_id)
        if found is None:
            raise NotFound(f"There is no run {run_id!r}.")
        over = found["state"] in ("succeeded", "failed", "cancelled")
        return RunStatus(
            run_id, found["agent"], found["goal"], found["state"], over, found.get("told", ""), found.get("parent")
        )

    async def cancel_run(self, run_id: str) -> RunStatus:
        if not (await self.run_status(run_id)).over:
            self._write_run(run_id, state="cancelled")
        return await self.run_status(run_id)

    async def create_schedule(self, agent: str, name: str, goal: str, when: When, *, key: str) -> ScheduledGoal:
        kept = self._schedules(agent)
        known = next((one for one in kept.values() if one["key"] == key), None)
        if known is None:
            if check_name(name, "schedule") in kept:
                raise AlreadyExists(f"{agent} has a schedule {name!r} already.")
            if when.every_s is not None and when.every_s < EVERY_S_MIN:
                raise InvalidArgument(f"An agent's own schedules are due every {EVERY_S_MIN // 60} minutes at most.")
            known = kept[name] = {"name": name, "goal": goal, "when": str(when), "key": key}
            self._schedules_file(agent).write_text(json.dumps(kept))
        return _scheduled(known)

    async def list_schedules(self, agent: str) -> list[ScheduledGoal]:
        return [_scheduled(one) for _, one in sorted(self._schedules(agent).items())]

    async def delete_schedule(self, agent: str, name: str, *, key: str) -> bool:
        kept = self._schedules(agent)
        found = kept.pop(name, None)
        self._schedules_file(agent).write_text(json.dumps(kept))
        return found is not None

    def _schedules_file(self, agent: str) -> Path:
        return self._office(agent) / "schedules"

    def _schedules(self, agent: str) -> dict[str, dict[str, str]]:
        file = self._schedules_file(agent)
        return json.loads(file.read_text()) if file.exists() else {}

    def runs(self) -> dict[str, dict[str, Any]]:
        """Those that were started here, by id, the oldest first. Nobody carries them: `end_run` does."""
        return self._runs()

    def end_run(self, run_id: str, state: str, told: str = "") -> None:
        self._write_run(run_id, state=state, told=told)

    def _runs(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for line in _read(self._root / ".runs").decode().splitlines():
            entry = json.loads(line)
            found[entry["id"]] = found.get(entry["id"], {}) | entry
        return found

    def _write_run(self, run_id: str, **fields: Any) -> None:
        with (self._root / ".runs").open("a") as file:
            file.write(json.dumps({"id": run_id, **fields}) + "\n")

    # --- recovery ----------------------------------------------------------------------------------------------------
    async def restore(self, agent: str, snapshot: str, *, key: str, run_id: str) -> str:
        office = self._office(agent)
        wanted = office / "snapshots" / snapshot
        if not wanted.is_dir():
            raise NotFound(f"{agent} has no snapshot {snapshot!r}.")
        self._write_line(agent, "recoveries", {"rung": 6, "snapshot": snapshot})
        self._end_commands(agent)
        before = self._take(office, key, {"run": run_id})
        self._put_back(wanted, office)
        self._mend_sandbox(office, 6)
        return before.name

    async def rebuild(self, agent: str) -> str:
        self._write_line(agent, "recoveries", {"rung": 7})
        self._end_commands(agent)
        before = self._take(self._office(agent), f"rebuild.{time.monotonic_ns()}", {})
        self._mend_sandbox(self._office(agent), 7)
        return before.name

    async def reconnect(self, agent: str) -> None:
        self._write_line(agent, "recoveries", {"rung": 4})
        (self._office(agent) / "door-is-broken").unlink(missing_ok=True)

    async def restart(self, agent: str) -> None:
        self._write_line(agent, "recoveries", {"rung": 5})
        self._end_commands(agent)
        self._mend_sandbox(self._office(agent), 5)

    async def probe(self, agent: str) -> bool:
        try:
            self._reach(agent)
        except (DoorClosed, SandboxDead, NotFound):
            return False
        return True

    # --- inside ------------------------------------------------------------------------------------------------------
    def _office(self, agent: str) -> Path:
        office = self._root / agent
        if not office.is_dir():
            raise NotFound(f"There is no agent {agent!r}.")
        return office

    def _reach(self, agent: str) -> Path:
        office = self._office(agent)
        if (office / "sandbox-is-broken").exists():
            raise SandboxDead(f"The sandbox of {agent!r} is dead.")
        if (office / "door-is-broken").exists():
            raise DoorClosed(f"The door of {agent!r} is closed.")
        return office

    def _mend_sandbox(self, office: Path, rung: int) -> None:
        (office / "door-is-broken").unlink(missing_ok=True)
        if int(_read(office / "sandbox-is-broken") or 0) <= rung:
            (office / "sandbox-is-broken").unlink(missing_ok=True)

    def _status(self, job: Path) -> CommandStatus:
        if not job.is_dir():
            return CommandStatus(CommandState.ABSENT)
        for last in (False, True):
            if (job / "exit.json").exists():
                return _told(job, CommandState.EXITED, **json.loads((job / "exit.json").read_text()))
            if not last and _is_running(job):
                return _told(job, CommandState.RUNNING)
        # (Looked at twice: it may have ended between the two questions.)
        return _told(job, CommandState.LOST)

    def _end_commands(self, agent: str) -> None:
        for job in (self._office(agent) / "jobs").iterdir():
            if not (job / "exit.json").exists() and _is_running(job):
                runner = int((job / "pid").read_text())
                command = _read(job / "command.pid")
                for group in (runner, int(command or 0)):
                    if group:
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(group, signal.SIGKILL)
                while Path(f"/proc/{runner}").exists() and _is_running(job):
                    time.sleep(POLL_S / 10)

    def _lines(self, agent: str, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in _read(self._office(agent) / name).decode().splitlines()]

    def _write_line(self, agent: str, name: str, entry: dict[str, Any]) -> None:
        with (self._office(agent) / name).open("a") as file:
            file.write(json.dumps(entry) + "\n")


_children: list[subprocess.Popen[bytes]] = []
"""So that the ended ones are reaped: a zombie looks alive to who asks by pid."""


def _told(job: Path, state: CommandState, **more: Any) -> CommandStatus:
    # The output is read after the state: that of a command that ended is whole only then.
    output = _read(job / "output")
    text = output[-OUTPUT_BYTES_MAX:].decode("utf-8", "replace")
    return CommandStatus(state, **more, output=text, output_bytes=len(output))


def _is_running(job: Path) -> bool:
    for child in [child for child in _children if child.poll() is not None]:
        _children.remove(child)
    pid = _read(job / "pid").decode()
    if not pid:  # somebody is just starting it, or was killed at that
        return time.time() - job.stat().st_mtime < START_S
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _replace(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}")
    fresh.write_bytes(data)
    fresh.rename(target)


def _connect(office: Path) -> sqlite3.Connection:
    return sqlite3.connect(office / _DATABASE, timeout=30, isolation_level=None)


def _execute(connection: sqlite3.Connection, statements: str, rows_max: int) -> SqlResult:
    """Runs one or more statements, in the open transaction; the last one's result."""
    cursor, rest = connection.cursor(), ""
    for piece in statements.split(";"):
        rest += piece + ";"
        if sqlite3.complete_statement(rest):
            if rest.strip(" \n\t;"):
                cursor.execute(rest)
            rest = ""
    columns = [column[0] for column in cursor.description or ()]
    rows = [list(row) for row in cursor.fetchmany(rows_max)] if columns else []
    truncated = bool(columns) and cursor.fetchone() is not None
    return SqlResult(columns, rows, f"OK {max(cursor.rowcount, 0)}", truncated)


def _scheduled(one: dict[str, str]) -> ScheduledGoal:
    return ScheduledGoal(f"sch_{one['name']}", one["name"], one["goal"], one["when"], "active")
