"""The `Hands` contract: how a worker acts inside an agent's office.

Every effect carries an *idempotency key*, chosen before the intent is written to the journal. Repeating a call with
the same key never repeats the effect: it returns what the first call did, so that after a crash a worker *asks* what
became of an effect instead of doing it again. Where the answer is lost (the sandbox died while the command ran), the
state is `LOST`, and the step is reported unverified.

All methods raise `NotFound` for an unknown agent, `ServerUnreachable` while the server is away, `DoorError` when the
office does not answer, `SandboxError` when it cannot be started. They wake a sleeping office.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import JsonValue

from tenure.wire.intervals import interval_of


class CommandState(StrEnum):
    ABSENT = "absent"
    """No command of this key was ever started: starting it is safe."""
    RUNNING = "running"
    EXITED = "exited"
    LOST = "lost"
    """It was started and did not report an exit: the sandbox died under it. Whether it took effect is unknown."""


@dataclass(frozen=True)
class Command:
    """A shell script to run in the office as its user, in its home unless `cwd` says otherwise."""

    script: str
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str = "agent"
    timeout_s: float | None = None
    """After this long the command's process group is ended (SIGTERM, SIGKILL 5 s later); it then reports `timed_out`."""


@dataclass(frozen=True)
class CommandStatus:
    """`output` is the last part of stdout and stderr together as they came, decoded with replacement, at most 64 KiB;
    `output_bytes` counts all that was written. `exit_code` is 128 + signal for a command ended by a signal."""

    state: CommandState
    exit_code: int | None = None
    timed_out: bool = False
    output: str = ""
    output_bytes: int = 0
    duration_s: float | None = None


@dataclass(frozen=True)
class SqlResult:
    """`rows` are JSON-ready values, at most `rows_max` of them (`truncated` says so); `status` is PostgreSQL's command tag."""

    columns: list[str]
    rows: list[list[Any]]
    status: str
    truncated: bool = False
    repeated: bool = False
    """True when the key was known: the stored result of the first time."""


@dataclass(frozen=True)
class TakenSnapshot:
    """A snapshot of an office. `seq`: what the run's journal up to there says to be done is in it. `verified` as it was said
    when it was taken."""

    id: str
    seq: int
    verified: bool = False


@dataclass(frozen=True)
class Signals:
    """What a program of the office told of itself under its key, over the office's own API. Of checkpoint and progress the
    latest; `checkpoints` and `progresses` count how many there were, `beats` all that it ever told."""

    checkpoint: JsonValue = None
    checkpoints: int = 0
    progress: str = ""
    progresses: int = 0
    beats: int = 0
    heartbeats: int = 0
    """How many of them were heartbeats: one that sent any has promised to go on with it."""
    heartbeat_s: float | None = None
    """How often it promised one, where it said so."""
    question: dict[str, JsonValue] | None = None
    """For a person: `name`, `text`, `options`, `approval`, `evidence`."""
    usage: dict[str, JsonValue] | None = None
    """What it took since it was started: `input_tokens`, `output_tokens`, `cost_usd`, as far as it knows."""


@dataclass(frozen=True)
class Piece:
    """Of what an attached program printed."""

    stream: Literal["stdout", "stderr"]
    data: bytes


class OpenProgram(ABC):
    """A program of the office with its streams. It depends on the caller: it is ended (SIGHUP to its process group, SIGKILL
    5 s later) when `close` is called, or the worker, the server or the connection dies. Nothing is buffered without a bound:
    who reads slowly slows the program."""

    exit_code: int | None = None
    """Set when `receive` has given None: 128 + signal for one ended by a signal, 127 for one that is not there."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @abstractmethod
    async def receive(self) -> Piece | None:
        """The next piece of output, at most 1 MiB; None when the program has ended and all of it was read. For one reader at a
        time. Raises `ServerUnreachable` or `DoorError` when the connection broke: then the program has ended or ends."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Writes to its standard input; waits while it does not read. For a program that has ended, `data` is dropped."""

    @abstractmethod
    async def signal(self, number: int) -> None:
        """Signals its process group; not an error when it has ended."""

    @abstractmethod
    async def close(self) -> None:
        """Ends it if it still runs. May be called twice."""


@dataclass(frozen=True)
class RunStatus:
    """Another run, as one that asked for it sees it. `state` is one of `wire.RunState`; `over`: it will not change any more;
    `told` what it said in the end, asks for, or failed of."""

    id: str
    agent: str
    goal: str
    state: str
    over: bool = False
    told: str = ""
    parent: str | None = None


@dataclass(frozen=True)
class When:
    """Exactly one of `cron` (in the time zone `tz`), `every_s` and `at`."""

    cron: str | None = None
    tz: str = "UTC"
    every_s: int | None = None
    at: datetime | None = None

    def __str__(self) -> str:
        if self.cron is not None:
            return f"{self.cron} ({self.tz})"
        if self.every_s is not None:
            return f"every {interval_of(self.every_s)}"
        return f"at {self.at:%Y-%m-%dT%H:%MZ}" if self.at else "never"


@dataclass(frozen=True)
class ScheduledGoal:
    """A schedule of an agent. `when` in words; `state` is "active", "paused" or "over"."""

    id: str
    name: str
    goal: str
    when: str
    state: str
    next_at: datetime | None = None


class Hands(ABC):
    @abstractmethod
    async def start_command(self, agent: str, key: str, command: Command) -> CommandStatus:
        """Starts `command` unless `key` is known; returns its status. The command does not depend on the caller: it goes on
        when worker, server or connection die, and its exit is kept in the office for good, its output until
        `forget_command`."""

    @abstractmethod
    async def command_status(self, agent: str, key: str, *, wait_s: float = 0.0) -> CommandStatus:
        """What became of `key`; waits up to `wait_s` (at most 30) for it to leave RUNNING."""

    @abstractmethod
    async def stop_command(self, agent: str, key: str) -> None:
        """Ends the command's process group; not an error when it has ended or never was."""

    @abstractmethod
    async def forget_command(self, agent: str, key: str) -> None:
        """Drops the output of an ended command, after its result is in the journal. The key stays known for good, with its exit
        code: a worker that was stopped for hours before its `start_command` must not start the command again. Does nothing to a
        running or unknown one."""

    @abstractmethod
    async def open_signals(self, agent: str, key: str, checkpoint: JsonValue = None) -> None:
        """Lets programs of the office tell of themselves under `key`, beginning with the checkpoint if there is one: it is what
        they find then. Does nothing when they can already. Does not wake the office. Raises `TooLarge`."""

    @abstractmethod
    async def signals(self, agent: str, key: str) -> Signals:
        """What was told under `key`. Does not wake the office. Raises `NotFound` unless it was opened (only the last
        thousand keys of an agent are kept)."""

    @abstractmethod
    async def open_program(
        self, agent: str, argv: tuple[str, ...], *, env: dict[str, str] | None = None, cwd: str | None = None
    ) -> OpenProgram:
        """Starts a program with its streams attached, as the office's user in its home unless `cwd` says otherwise. It is not
        keyed: each call starts one. What keeps it from starting, such as a directory that does not exist, may also be raised
        by its first `receive`."""

    @abstractmethod
    async def sql(
        self, agent: str, statement: str, *, key: str | None = None, rows_max: int = 1000, read_only: bool = False
    ) -> SqlResult:
        """Runs statements in the office's database in one transaction. With a `key` the effect happens exactly once: key and
        result are stored in the same transaction. `read_only` (without a key) refuses what would write. Raises
        `DatabaseError`."""

    @abstractmethod
    async def ask_data(
        self, agent: str, question: str, arguments: Mapping[str, JsonValue], *, key: str | None = None
    ) -> dict[str, Any]:
        """One of the questions of `tenure.wire.data.QUESTIONS` about the office's database, with the arguments of its request;
        answers as its model says. A `key` is for what is kept: it is kept once. Raises `UsageError`, `NotFound`,
        `DatabaseError`, `ModelError`."""

    @abstractmethod
    async def put_object(self, agent: str, path: str, bucket: str, name: str, *, key: str) -> dict[str, Any]:
        """Copies the office's file `path` into its object storage; returns `{bucket, name, size_bytes, sha256}`. Idempotent by
        nature: the object replaces one of the same name. Raises `NotFound` when the file does not exist."""

    @abstractmethod
    async def write_object(self, agent: str, bucket: str, name: str, data: bytes, *, key: str) -> dict[str, Any]:
        """As `put_object`, with the bytes themselves: at most 1 MiB."""

    @abstractmethod
    async def read_object(self, agent: str, bucket: str, name: str, *, bytes_max: int = 65536) -> bytes | None:
        """The first `bytes_max` bytes of an object; None when there is none."""

    @abstractmethod
    async def object_to_file(self, agent: str, bucket: str, name: str, path: str, *, key: str) -> int:
        """Copies an object into the office's file `path`, which is replaced as a whole; returns its size in bytes. Idempotent by
        nature. Raises `NotFound` when there is no such object, or no directory for the file."""

    @abstractmethod
    async def list_objects(
        self, agent: str, bucket: str | None = None, prefix: str = "", *, limit: int = 1000
    ) -> list[dict[str, Any]]:
        """At most `limit` of `{bucket, name, size_bytes}`, by bucket and name."""

    @abstractmethod
    async def delete_object(self, agent: str, bucket: str, name: str, *, key: str) -> bool:
        """Whether there was one. Idempotent by nature: asked again, it says no."""

    @abstractmethod
    async def notify(self, agent: str, subject: str, body: str, *, key: str, run_id: str | None = None) -> None:
        """Leaves a message in the owner's inbox, once per `key`."""

    @abstractmethod
    async def read_file(self, agent: str, path: str, *, bytes_max: int = 65536) -> bytes | None:
        """The first `bytes_max` bytes of a file in the office; None when there is none."""

    @abstractmethod
    async def take_snapshot(
        self, agent: str, key: str, *, run_id: str, node: str, before: bool, verified: bool, seq: int
    ) -> TakenSnapshot:
        """Keeps the whole office as of one instant after the call began, as the snapshot `before` or after the step `node` of the
        run, whose journal has `seq` entries. Once per `key`: then it returns what it returned the first time. Does not wake
        the office. Raises `DiskFull`, `Conflict` when there can be no more."""

    @abstractmethod
    async def keep_snapshot(self, agent: str, name: str, *, key: str) -> str:
        """Keeps the whole office under `name`, until somebody deletes it; returns the snapshot's id. Once per `key`. Does not
        wake the office. Raises `InvalidName`, `AlreadyExists`, `DiskFull`, `Conflict` when there can be no more."""

    @abstractmethod
    async def start_run(self, agent: str, goal: str, *, key: str, parent: str | None = None) -> RunStatus:
        """Queues a run of the agent's brain towards `goal`, once per `key`; `parent` is the run whose sub-goal it is. Raises
        `UsageError` for a goal that cannot be one, `Conflict` when there are too many."""

    @abstractmethod
    async def run_status(self, run_id: str) -> RunStatus:
        """Raises `NotFound` when there is no such run."""

    @abstractmethod
    async def cancel_run(self, run_id: str) -> RunStatus:
        """Ends a run that is not over; one that is stays as it is. May be asked again. Raises `NotFound`."""

    @abstractmethod
    async def create_schedule(self, agent: str, name: str, goal: str, when: When, *, key: str) -> ScheduledGoal:
        """From now on a run of the agent's brain towards `goal` begins whenever it is due. Once per `key`. Raises `UsageError`,
        `AlreadyExists` for the name, `Conflict` when there are too many."""

    @abstractmethod
    async def list_schedules(self, agent: str) -> list[ScheduledGoal]:
        """By name."""

    @abstractmethod
    async def delete_schedule(self, agent: str, name: str, *, key: str) -> bool:
        """False when there is none (any more). Raises `Forbidden` when it was not the agent that made it."""

    @abstractmethod
    async def reconnect(self, agent: str) -> None:
        """Rung 4: close the office's door and open it anew."""

    @abstractmethod
    async def restart(self, agent: str) -> None:
        """Rung 5: stop the sandbox and start it again on the same volume; running commands become LOST."""

    @abstractmethod
    async def restore(self, agent: str, snapshot: str, *, key: str, run_id: str) -> str:
        """Rung 6: puts the whole office back to a snapshot, and returns the id of another one of what was there. By the same
        `key` it may be asked again, until it answers, as long as nothing else is done in the office: the returned one is
        still that of the first time. What ran in the office is LOST or ABSENT, as of the snapshot. Raises `NotFound` when
        there is no such snapshot any more, `Conflict` while another run is at work in the office."""

    @abstractmethod
    async def rebuild(self, agent: str) -> str:
        """Rung 7: the office's system is made anew of its image, with what it recorded of its set-up; home, database and objects
        stay. Running commands become LOST. Returns the id of a snapshot of what was there."""

    @abstractmethod
    async def probe(self, agent: str) -> bool:
        """Whether the office answers a trivial command within a few seconds. Does not raise."""
