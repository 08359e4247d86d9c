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
from pathlib import Path
from typing import Any

from tenure.errors import DatabaseError, DoorClosed, NotFound, SandboxDead
from tenure.work.hands import Command, CommandState, CommandStatus, Hands, SqlResult, TakenSnapshot

OUTPUT_BYTES_MAX = 65536
POLL_S = 0.02
WAIT_S_MAX = 30.0
STOP_GRACE_S = 5.0
START_S = 2.0
_PARTS = ("home", "jobs", "objects")
_DATABASE = "database.sqlite"
_RUNNER = Path(__file__).with_name("fake_command.py")


class FakeHands(Hands):
    """Every agent that has a directory below `root` exists; `add_agent` makes one. Several processes may share a root."""

    def __init__(self, root: Path) -> None:
        self._root = root

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
        for office in self._root.iterdir():
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
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "USER": command.user, **command.env}
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

    # --- data --------------------------------------------------------------------------------------------------------
    async def sql(self, agent: str, statement: str, *, key: str | None = None, rows_max: int = 1000) -> SqlResult:
        office = self._reach(agent)
        with contextlib.closing(_connect(office)) as connection:
            connection.execute("pragma synchronous = off")
            connection.execute("create table if not exists tenure_keys (key text primary key, result text)")
            connection.execute("begin immediate")
            if key is not None:
                known = connection.execute("select result from tenure_keys where key = ?", (key,)).fetchone()
                if known:
                    connection.execute("rollback")
                    return SqlResult(**json.loads(known[0]), repeated=True)
            try:
                result = _execute(connection, statement, rows_max)
            except sqlite3.Error as error:
                connection.execute("rollback")
                raise DatabaseError(str(error)) from None
            if key is not None:
                kept = {"columns": result.columns, "rows": result.rows, "status": result.status}
                stored = json.dumps(kept | {"truncated": result.truncated})
                connection.execute("insert into tenure_keys values (?, ?)", (key, stored))
            connection.execute("commit")
            return result

    async def put_object(self, agent: str, path: str, bucket: str, name: str, *, key: str) -> dict[str, Any]:
        office = self._reach(agent)
        source, target = office / "home" / path, office / "objects" / bucket / name
        if not source.is_file():
            raise NotFound(f"There is no file {path}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}")
        shutil.copyfile(source, fresh)
        fresh.rename(target)
        data = target.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return {"bucket": bucket, "name": name, "size_bytes": len(data), "sha256": digest}

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
