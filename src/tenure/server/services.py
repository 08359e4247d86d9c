"""What the API needs from the rest of Tenure: one Protocol per noun, and `Services`, which bundles them.

The real ones live in `tenure.offices.life`, `tenure.data`, `tenure.work.runs` and `tenure.channels.inbox`; the fake for
tests of the API is `tenure.testing.fake_offices`. What they return needs only the *attributes* of the wire model named
in each docstring (`tenure.wire`); the API turns it into JSON by them.

All methods may be called concurrently. They raise only `tenure.errors`; every method that names an agent raises
`NotFound` when there is none, and those that act in an office wake it, raising `SandboxError` when it cannot be started
and `DoorError` when it does not answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from tenure import wire
from tenure.data.connections.targets import Target as ConnectionTarget
from tenure.data.ingestion.pipeline import PipelineRecord
from tenure.data.ingestion.record import LoadRecord, Target, Wanted
from tenure.data.query.search.models import Models
from tenure.data.s3.access_keys import AccessKeys
from tenure.data.webhooks.hooks import Webhooks
from tenure.export_keys import Key
from tenure.identity.authorize import Principal
from tenure.identity.grants import Grant
from tenure.offices.models import SnapshotKind, StepMark
from tenure.postgres.client import Connection
from tenure.server.gateway.passes import Passes
from tenure.settings import Settings
from tenure.triggers.schedules import Schedules as GoalSchedules
from tenure.work.forks import ForkPoint
from tenure.work.hands import Command, CommandStatus, Signals, SqlResult
from tenure.work.plan import Check
from tenure.work.thoughts import BrainSettings

STDIN, STDOUT, STDERR, RESIZE, STDIN_EOF, SIGNAL = range(6)
"""Channels of an attached session, as on the wire (first byte of each binary frame)."""


class Office(Protocol):
    """An office as `wire.Agent` shows it."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str:
        """One of `wire.AgentState`."""
        ...

    @property
    def created_at(self) -> datetime: ...
    @property
    def image(self) -> str: ...
    @property
    def hostname(self) -> str: ...
    @property
    def limits(self) -> Any:
        """With the attributes of `wire.Limits`."""
        ...

    @property
    def egress(self) -> Sequence[str]: ...
    @property
    def usage(self) -> Any:
        """With the attributes of `wire.Usage`, or None where it is not known (a list need not measure)."""
        ...


@dataclass(frozen=True)
class LimitsWanted:
    """Limits that the caller asks for; None means the installation's default."""

    cpus: float | None = None
    memory_mb: int | None = None
    disk_gb: float | None = None
    processes: int | None = None


class ExecOutcome(Protocol):
    """What became of `Offices.run`: the first part of each stream (at most `wire.OUTPUT_BYTES_MAX`), and how much there
    was. `exit_code` is 128 + signal for a command ended by a signal; `timed_out` says that the time limit ended it."""

    @property
    def exit_code(self) -> int: ...
    @property
    def timed_out(self) -> bool: ...
    @property
    def stdout(self) -> bytes: ...
    @property
    def stderr(self) -> bytes: ...
    @property
    def stdout_bytes(self) -> int: ...
    @property
    def stderr_bytes(self) -> int: ...
    @property
    def duration_s(self) -> float: ...


class Session(Protocol):
    """An attached command. Iterate once for its output; both directions hold back the writer when the reader is slow,
    so that no amount of output grows this process."""

    def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        """(`STDOUT` or `STDERR`, data) as it comes; ends when the command has exited and all of it was read. With a
        terminal everything is `STDOUT`. Raises `DoorClosed` or `SandboxDead` when the office goes away."""
        ...

    async def send_stdin(self, data: bytes) -> None:
        """Returns when the office took it; data for a command that no longer reads is dropped."""

    async def send_eof(self) -> None: ...
    async def resize(self, rows: int, cols: int) -> None: ...
    async def signal(self, number: int) -> None:
        """Signals the command's process group."""

    async def wait(self) -> int:
        """The exit code, 128 + signal for a command ended by one. May be called again."""
        ...

    async def close(self) -> None:
        """Ends the command if it still runs (SIGHUP, then SIGKILL) and frees the connection. May be called again."""


class OfficeDatabase(Protocol):
    async def execute(
        self,
        statement: str,
        *,
        key: str | None = None,
        rows_max: int = 1000,
        timeout_s: float = wire.STATEMENT_TIMEOUT_S_MAX,
        read_only: bool = False,
    ) -> SqlResult:
        """See `tenure.work.hands.Hands.sql`."""
        ...

    async def csv(self, statement: str) -> AsyncGenerator[bytes]:
        """The rows of one query as CSV with a header line, streamed. Raises before the first bytes for anything that is
        wrong with the query."""
        ...


class StoredObject(Protocol):
    """An object opened for reading: metadata with the attributes of `wire.ObjectInfo`, and its bytes."""

    @property
    def info(self) -> Any: ...
    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes in pieces of bounded size; closes the file when exhausted or closed."""
        ...


class Objects(Protocol):
    """One office's object storage. Raises `InvalidName`/`InvalidArgument` for a bad bucket or name, `NotFound`,
    `DiskFull`, `TooLarge`."""

    async def list(self, bucket: str | None = None, prefix: str = "", *, limit: int = 1000) -> Sequence[Any]: ...
    async def put(
        self, bucket: str, name: str, chunks: AsyncIterator[bytes], *, content_type: str | None = None
    ) -> Any:
        """Stores all of `chunks`; the attributes of `wire.ObjectInfo`. When `chunks` raises, nothing is stored."""
        ...

    async def open(self, bucket: str, name: str) -> StoredObject: ...
    async def delete(self, bucket: str, name: str) -> None:
        """Raises `NotFound`."""


class Snapshots(Protocol):
    """Values with the attributes of `wire.Snapshot`, `wire.Restored`, `wire.Diff`. A snapshot is named by its id or its name;
    raises `NotFound` when the agent has none such."""

    async def take(
        self,
        agent: str,
        name: str | None = None,
        kind: SnapshotKind = SnapshotKind.MANUAL,
        step: StepMark | None = None,
        key: str | None = None,
    ) -> Any:
        """Does not wake the office. Asked for again by the same `key`, it is the one of the first time. Raises `InvalidName`,
        `AlreadyExists`, `Conflict` when there are too many, `DiskFull`."""
        ...

    async def list(self, agent: str) -> Sequence[Any]:
        """The oldest first."""
        ...

    async def delete(self, agent: str, wanted: str) -> None: ...
    async def restore(self, agent: str, wanted: str, *, by_run: str | None = None, key: str | None = None) -> Any:
        """Raises `Conflict` while a run of the agent is at work, other than `by_run`."""
        ...

    async def diff(self, agent: str, wanted: str, to: str | None = None, *, tables: bool = True) -> Any:
        """To another snapshot, or to now. Raises `Conflict` while another comparison of the agent goes on."""
        ...


class Schedules(Protocol):
    """Values with the attributes of `wire.ExportSchedule`."""

    async def of(self, agent: str) -> Any:
        """None when there is none."""
        ...

    async def keep(self, agent: str, wanted: Any) -> Any:
        """`wanted` is a `tenure.offices.archives.schedules.Wanted`. Raises `InvalidArgument`, `StorageError`."""
        ...

    async def stop(self, agent: str) -> None:
        """Raises `NotFound` when there is no schedule."""


class Exports(Protocol):
    """Values with the attributes of `wire.Export`."""

    async def list(self, agent: str) -> Sequence[Any]:
        """The oldest first."""
        ...

    async def get(self, agent: str, export_id: str) -> Any: ...
    @property
    def schedules(self) -> Schedules: ...

    async def send(
        self, agent: str, *, since: str | None = None, key: Key | None = None
    ) -> tuple[Any, AsyncGenerator[bytes]]:
        """A new export and its bytes; with `since` only what changed since that one. Raises `NotFound`, `Conflict`."""
        ...

    async def start(self, agent: str, to: str, *, since: str | None = None, key: Key | None = None) -> Any:
        """Begins an export to S3. Raises `InvalidArgument` for an address that is none."""
        ...


class Archiving(Protocol):
    """Values with the attributes of `wire.Export`."""

    async def start(self, agent: str, to: str | None = None, *, key: Key | None = None) -> Any:
        """Begins to put an office away in S3. Raises `Conflict`, `InvalidArgument`, `NotFound`, `StorageError`."""
        ...


class Imports(Protocol):
    """Values with the attributes of `wire.Imported`."""

    async def receive(self, name: str, chunks: AsyncIterator[bytes]) -> Any:
        """A new agent of the archives in a body. Raises `InvalidName`, `AlreadyExists`, `ArchiveError`, `DiskFull`."""
        ...

    async def fetch(self, sources: Sequence[str], name: str | None = None, key: Key | None = None) -> Any:
        """A new agent of archives in S3."""
        ...


class Offices(Protocol):
    @property
    def snapshots(self) -> Snapshots: ...

    async def fork(self, name: str, new: str, snapshot: str | None = None) -> Office:
        """A new agent, awake: a clone of a snapshot, or of the office as it is now. Raises `InvalidName`, `AlreadyExists`,
        `DiskFull`, `SandboxError`."""
        ...

    async def create(self, name: str, limits: LimitsWanted, egress: Sequence[str], *, asleep: bool = False) -> Office:
        """A new office, awake unless it is to be asleep. Raises `InvalidName`, `InvalidArgument` (unknown preset, malformed
        domain), `AlreadyExists`, `DiskFull`, `SandboxError`."""
        ...

    async def need(self, name: str) -> None:
        """Raises `NotFound` when there is no such agent; cheaper than `get`, which measures its usage."""

    async def get(self, name: str) -> Office: ...
    async def list(self) -> Sequence[Office]: ...
    async def delete(self, name: str) -> None:
        """Everything of it: sandbox, database, volume."""

    async def wake(self, name: str) -> Office: ...
    async def sleep(self, name: str, tier: str = "stopped") -> Office:
        """Raises `Conflict` when it cannot be hibernated now, with the reason."""
        ...

    async def set_rest(self, name: str, rest: Mapping[str, float]) -> Office:
        """`rest` has seconds by field of `wire.RestRequest`; what is missing is as the server is set up."""
        ...

    async def set_lease(self, name: str, seconds: float | None, reason: str = "") -> Office: ...
    async def reconnect(self, name: str) -> Office: ...
    async def restart(self, name: str) -> Office: ...
    async def rebuild(self, name: str) -> Any:
        """With the attributes of `wire.Rebuilt`."""
        ...

    async def probe(self, name: str) -> bool: ...
    async def history(self, name: str, limit: int = 100) -> Sequence[Any]:
        """Values with the attributes of `wire.OfficeEvent`, the newest first."""
        ...

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
        timeout_s: float = wire.EXEC_TIMEOUT_S_DEFAULT,
    ) -> ExecOutcome:
        """Exactly one of `argv` and `script`. `cwd` None means the user's home. Raises `InvalidArgument` for an unknown
        user or a missing `cwd`; a command that is not found exits 127, as in a shell. Cancelling ends the command."""
        ...

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
    ) -> Session:
        """`tty` is (rows, columns). Errors as of `run`."""
        ...

    async def ssh(self, name: str) -> tuple[Any, Any]:
        """(`asyncio.StreamReader`, `asyncio.StreamWriter`) of a fresh connection to the office's sshd."""
        ...

    async def dial(self, name: str, address: str) -> tuple[Any, Any]:
        """As `ssh`, to `address` ("127.0.0.1:8000") on the office's loopback. Raises `DoorError` when nothing listens."""
        ...

    async def command_start(self, name: str, key: str, command: Command) -> CommandStatus: ...
    async def command_status(self, name: str, key: str, *, wait_s: float = 0.0) -> CommandStatus: ...
    async def command_stop(self, name: str, key: str) -> None: ...
    async def command_forget(self, name: str, key: str) -> None: ...

    async def database(self, name: str) -> OfficeDatabase: ...
    async def objects(self, name: str) -> Objects: ...
    async def logs(self, name: str, *, lines: int, follow: bool) -> AsyncIterator[bytes]:
        """The last `lines` lines of the office's log, then, with `follow`, what comes; raises before the first byte."""
        ...

    async def close(self) -> None:
        """For `tenure down`: every office is put to sleep, its listeners are closed."""


class Runs(Protocol):
    """Values with the attributes of `wire.Run` and `wire.RunEvent`."""

    async def create(
        self,
        *,
        agent: str,
        goal: str,
        playbook: str,
        playbook_name: str | None,
        inputs: Mapping[str, Any],
        settings: BrainSettings | None = None,
    ) -> Any:
        """Raises `PlaybookError`, which names file, line and field. The brain of `settings` may mend steps that fail. The caller
        has checked that the agent exists."""
        ...

    async def create_thinking(
        self,
        *,
        agent: str,
        goal: str,
        settings: BrainSettings,
        inputs: Mapping[str, Any] | None = None,
        accept: tuple[Check, ...] = (),
    ) -> Any:
        """The agent's brain finds the way; the run is done when the checks of `accept`, and those of its plan, hold."""
        ...

    async def create_subgoal(
        self, *, agent: str, goal: str, key: str, settings: BrainSettings | None = None, parent: str | None = None
    ) -> Any:
        """A run of the agent's own brain, once per key. Raises `NotFound` for an unknown `parent`, `UsageError`, `Conflict` when
        the agent has too many runs that are not over."""
        ...

    async def list(self, *, agent: str | None = None, state: str | None = None, limit: int = 200) -> Sequence[Any]:
        """Newest first."""
        ...

    async def get(self, run_id: str) -> Any: ...
    async def cancel(self, run_id: str) -> Any:
        """Raises `Conflict` when it is over."""
        ...

    async def resume(self, run_id: str, answer: str | None) -> Any:
        """Raises `Conflict` unless parked or failed."""
        ...

    async def questions(self, *, agent: str | None = None, limit: int = 200) -> Sequence[Any]:
        """Those that are open, with the attributes of `wire.Question`."""
        ...

    async def answer(self, question: str, answer: str, *, by: str) -> Any:
        """The run, which goes on. Raises `NotFound`, `InvalidArgument`, and `Conflict` when somebody was faster, it expired, or
        its run is over or went on without it."""
        ...

    async def costs(self, by: wire.CostsBy, *, agent: str | None = None, limit: int = 200) -> Sequence[Any]:
        """With the attributes of `wire.Cost`; the one with the latest thought first."""
        ...

    async def fork_point(
        self,
        run_id: str,
        at: str,
        *,
        there: Collection[str],
        before: bool | None = None,
        playbook: str | None = None,
        playbook_name: str | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> ForkPoint:
        """Where the run can be forked, of the snapshots that are `there`. Raises `NotFound`, which says where it can be,
        `PlaybookError`, `InvalidArgument` for a playbook that does not go on from there."""
        ...

    async def fork(self, point: ForkPoint, new_agent: str) -> Any:
        """The run goes on from the point in the office of `new_agent`, a clone of its snapshot."""
        ...

    async def events(self, run_id: str, *, after: int = 0, limit: int = 500) -> Sequence[Any]:
        """In order of `seq`, those with `seq > after`."""
        ...


class Brains(Protocol):
    """How agents think. A fork of an agent thinks as it does."""

    async def get(self, agent: str) -> BrainSettings | None:
        """None when nobody has chosen that, and for an unknown agent."""
        ...

    async def set(self, agent: str, settings: BrainSettings) -> None:
        """`settings` were checked (`tenure.brains.registry.check_settings`). The agent exists."""


class Inbox(Protocol):
    """Values with the attributes of `wire.Message`."""

    async def list(self, *, unread: bool = False, agent: str | None = None, limit: int = 200) -> Sequence[Any]: ...
    async def create(
        self, *, agent: str | None, subject: str, body: str, key: str | None = None, run_id: str | None = None
    ) -> Any:
        """Once per (agent, key): the second call returns the first one's message."""
        ...

    async def count_unread(self, agent: str) -> int: ...

    async def get(self, message_id: str) -> Any: ...
    async def mark_read(self, message_id: str) -> Any: ...


class SignalsOf(Protocol):
    """What programs of an office tell of themselves, by agent and key. All raise `NotFound` for a key that was not opened."""

    async def open(self, agent: str, key: str, checkpoint: Any = None) -> None:
        """Makes room for it, beginning with the checkpoint; does nothing when there is. Raises `TooLarge`."""

    async def read(self, agent: str, key: str) -> Signals: ...
    async def beat(self, agent: str, key: str, every_s: float | None = None) -> None: ...
    async def keep(self, agent: str, key: str, checkpoint: Any) -> None:
        """Raises `TooLarge`."""

    async def progress(self, agent: str, key: str, text: str) -> None: ...
    async def spend(self, agent: str, key: str, usage: wire.UsageRequest) -> None: ...
    async def ask(self, agent: str, key: str, question: wire.ProgramQuestion) -> None: ...


class Databases(Protocol):
    """Shared databases: values with the attributes of the models in `tenure.wire.databases`. Whatever names one raises `NotFound`
    when there is none. With an `agent` statements run with what was granted to it, and raise `Forbidden` when nothing was;
    without as the owner."""

    async def create(self, name: str, limits: Mapping[str, float | None]) -> Any:
        """Raises `InvalidName`, `InvalidArgument`, `AlreadyExists`, `DiskFull`."""
        ...

    async def need(self, name: str) -> None: ...
    async def get(self, name: str) -> Any: ...
    async def list(self, principal: Principal | None = None) -> Sequence[Any]:
        """All, or those that were granted to an office."""
        ...

    async def delete(self, name: str) -> None: ...
    async def wake(self, name: str) -> Any: ...
    async def sleep(self, name: str) -> Any: ...
    async def limit(self, name: str, limits: Mapping[str, float | None]) -> Any: ...
    async def execute(
        self,
        name: str,
        statement: str,
        *,
        agent: str | None = None,
        key: str | None = None,
        rows_max: int = 1000,
        timeout_s: float = wire.STATEMENT_TIMEOUT_S_MAX,
        read_only: bool = False,
    ) -> SqlResult: ...
    async def csv(self, name: str, statement: str, *, agent: str | None = None) -> AsyncGenerator[bytes]: ...
    def connection(self, name: str, timeout_s: float = 3600.0) -> AbstractAsyncContextManager[Connection]:
        """As the owner, for COPY and transactions."""
        ...

    async def grant(
        self,
        name: str,
        agent: str,
        level: str,
        *,
        by: Principal,
        tables: Mapping[str, str | None] | None = None,
        expires_at: datetime | None = None,
    ) -> Any:
        """`tables` are conditions on rows by table, None for all rows; without it all of the database. Raises
        `InvalidArgument`, `Conflict`."""
        ...

    async def revoke(self, name: str, agent: str) -> None: ...
    async def grants(self, name: str) -> Sequence[Any]: ...
    async def find_grant(self, principal: Principal, name: str) -> Grant | None: ...
    async def take_snapshot(self, name: str, snapshot: str | None = None) -> Any: ...
    async def snapshots(self, name: str) -> Sequence[Any]: ...
    async def delete_snapshot(self, name: str, snapshot: str) -> None: ...
    async def restore_snapshot(self, name: str, snapshot: str) -> Any: ...
    async def fork(self, name: str, new: str, snapshot: str | None = None) -> Any: ...
    async def back_up(self, name: str, to: str, every_s: float) -> Any:
        """Raises `InvalidArgument`."""
        ...

    async def back_up_now(self, name: str) -> Any: ...
    async def back_up_no_more(self, name: str) -> None: ...
    async def restore_to(self, name: str, to: datetime, new: str, source: str | None = None) -> Any:
        """A new database. Raises `InvalidArgument` for a moment that the backups do not cover."""
        ...


class Loads(Protocol):
    """Files on their way into tables. Raises `NotFound` for a target or load that there is not."""

    async def receive(
        self, target: Target, wanted: Wanted, name: str, chunks: AsyncIterator[bytes], *, by: Principal
    ) -> LoadRecord:
        """Returns when all of `chunks` is here and the load goes on by itself. Raises `InvalidArgument`, `TooLarge`, `DiskFull`,
        `Conflict`."""
        ...

    async def fetch(self, target: Target, wanted: Wanted, source: str, *, by: Principal) -> LoadRecord: ...
    async def find(self, load_id: str) -> LoadRecord: ...
    async def list(self, target: Target | None = None, *, limit: int = 100) -> Sequence[LoadRecord]:
        """The newest first."""
        ...

    async def answer(self, target: Target, load_id: str, *, allow: bool) -> LoadRecord:
        """Raises `Conflict` when it asks nothing."""
        ...

    async def cancel(self, target: Target, load_id: str) -> LoadRecord:
        """Raises `Conflict` when it is over."""
        ...


class Pipelines(Protocol):
    """Raises `NotFound` for a pipeline that there is not."""

    async def create(
        self,
        name: str,
        target: Target,
        source: str,
        wanted: Wanted,
        *,
        by: Principal,
        every_s: int | None = None,
        cron: str | None = None,
        tz: str = "UTC",
        on_arrival: bool = False,
    ) -> PipelineRecord:
        """Raises `InvalidName`, `InvalidArgument`, `AlreadyExists`, `Conflict`."""
        ...

    async def get(self, name: str) -> PipelineRecord: ...
    async def list(self, agent: str | None = None) -> Sequence[PipelineRecord]: ...
    async def loads(self, name: str, *, limit: int = 100) -> Sequence[LoadRecord]: ...
    async def set_paused(self, name: str, paused: bool) -> PipelineRecord: ...
    async def run(self, name: str) -> PipelineRecord: ...
    async def delete(self, name: str) -> None: ...


class Buckets(Protocol):
    """Shared buckets: values with the attributes of the models in `tenure.wire.buckets`. Whatever names one raises `NotFound`
    when there is none."""

    async def create(self, name: str, quota_gb: float | None = None, backend: str = "") -> Any:
        """Raises `InvalidName`, `InvalidArgument`, `AlreadyExists`, `DiskFull`, `StorageError`."""
        ...

    async def get(self, name: str) -> Any: ...
    async def list(self, principal: Principal | None = None) -> Sequence[Any]:
        """All, or those that were granted to an office."""
        ...

    async def limit(self, name: str, quota_gb: float) -> Any: ...
    async def delete(self, name: str, *, force: bool = False) -> None:
        """Raises `Conflict` when it is not empty, unless forced."""
        ...

    async def grant(
        self,
        name: str,
        agent: str,
        level: str,
        *,
        by: Principal,
        prefix: str = "",
        expires_at: datetime | None = None,
    ) -> Any:
        """Raises `InvalidArgument`, `Conflict`."""
        ...

    async def revoke(self, name: str, agent: str) -> None: ...
    async def grants(self, name: str) -> Sequence[Any]: ...
    async def find_grant(self, principal: Principal, name: str) -> Grant | None: ...


class SshKey(Protocol):
    """With the attributes of `wire.SshKey`."""

    @property
    def id(self) -> str: ...
    @property
    def principal(self) -> str:
        """Whom it stands for, as `str(Principal)`."""
        ...

    @property
    def fingerprint(self) -> str: ...


class SshKeys(Protocol):
    """Public keys that the SSH gateway lets in."""

    async def add(self, principal: str, text: str, comment: str | None = None) -> Any:
        """Raises `InvalidArgument` for what is not one public key, `AlreadyExists`, `Conflict` when there are too many."""
        ...

    async def list(self, principal: str) -> Sequence[Any]:
        """The oldest first."""
        ...

    async def remove(self, principal: str, wanted: str) -> SshKey:
        """The one that was removed, by id or fingerprint. Raises `NotFound`."""
        ...

    async def find(self, fingerprint: str) -> SshKey | None:
        """None when it is nobody's."""
        ...

    async def used(self, key_id: str) -> bool:
        """Somebody came in with it just now. False when it was removed meanwhile."""
        ...


class NamedConnection(Protocol):
    """A row: see `tenure.data.connections.store.Connection`."""

    @property
    def name(self) -> str: ...
    @property
    def target(self) -> ConnectionTarget: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def private(self) -> bool: ...
    @property
    def created_at(self) -> datetime: ...


class GrantedConnection(Protocol):
    @property
    def connection(self) -> NamedConnection: ...
    @property
    def grants(self) -> Sequence[Grant]: ...


class Connections(Protocol):
    """Databases and APIs elsewhere; `tenure.data.connections.room.Connections`. All but `create` and `list` raise `NotFound`."""

    async def create(
        self, name: str, url: str, *, secret: str = "", auth: str | None = None, private: bool = False, ca: str = ""
    ) -> NamedConnection:
        """Raises `InvalidName`, `InvalidArgument`, `AlreadyExists`."""
        ...

    async def list(self) -> Sequence[NamedConnection]: ...
    async def get(self, name: str) -> GrantedConnection: ...
    async def check(self, name: str) -> Any:
        """As `wire.connections.ConnectionCheck`. What is wrong over there is in the answer."""
        ...

    async def delete(self, name: str) -> None: ...
    async def grant(self, name: str, agent: str, *, by: Principal) -> Grant: ...
    async def revoke(self, name: str, agent: str) -> None: ...


def _no_workers() -> list[int]:
    return []


def _nobody_to_hang_up(key_id: str) -> None:
    del key_id


@dataclass(frozen=True)
class Gateway:
    """What the API has to do with the ways into offices that are not the API."""

    ssh_keys: SshKeys
    passes: Passes
    ssh_host_key: str = ""
    """The SSH gateway's public key, "algorithm base64"."""
    ssh_problem: str = ""
    """Why there is no SSH gateway though one is wanted."""
    hang_up: Callable[[str], None] = _nobody_to_hang_up
    """Ends the SSH connections that came in with the key of this id."""


@dataclass(frozen=True)
class Triggers:
    """What begins work by itself."""

    schedules: GoalSchedules
    webhooks: Webhooks


@dataclass(frozen=True)
class Services:
    """Everything that the API's routes use."""

    settings: Settings
    offices: Offices
    runs: Runs
    inbox: Inbox
    started_at: datetime
    gateway: Gateway
    exports: Exports
    imports: Imports
    archiving: Archiving
    signals: SignalsOf
    brains: Brains
    databases: Databases
    buckets: Buckets
    triggers: Triggers
    access_keys: AccessKeys
    loads: Loads
    pipelines: Pipelines
    connections: Connections
    s3_problem: str = ""
    """Why the S3 API does not listen outside though it should."""
    models: Models = field(default_factory=Models)
    """What search in databases is done with."""
    database: str = "embedded"
    """Where the control database is, for `tenure status`: never a password."""
    worker_pids: Callable[[], list[int]] = field(default=_no_workers)
