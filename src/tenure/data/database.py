"""An office's own PostgreSQL: started at the first connection, stopped with the office.

The cluster lies in the office's volume and runs on the host as a user of its own, beside the sandbox. The office reaches
it through the pump, Tenure through `execute` and `csv`; both as the role `agent`, which owns one database and can do
nothing to the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

from tenure.data import effects
from tenure.data.pump import Pump
from tenure.data.statements import transaction_control
from tenure.data.values import JsonValues
from tenure.errors import CommandTimeout, Conflict, DatabaseError, DiskFull, InternalError, InvalidArgument, TenureError
from tenure.postgres.client import QUERY_CANCELED, Connection, ConnectionLost, Result
from tenure.postgres.cluster import TINY, Cluster, ClusterState
from tenure.postgres.confine import Confinement
from tenure.postgres.files import log_since, log_size, own_tree, says_disk_full, trim_log
from tenure.postgres.template import AGENT_DATABASE, AGENT_ROLE
from tenure.postgres.tree import PostgresTree, ensure_tree, open_way
from tenure.settings import Settings
from tenure.work.hands import SqlResult

STATEMENT_TIMEOUT_S = 600.0
CANCEL_GRACE_S = 5.0
CONNECT_TIMEOUT_S = 60.0
ROWS_MAX = 10_000
RESULT_BYTES_MAX = 4 * 1024 * 1024
COPY_TIMEOUT_S = 3600.0
RELIEF_EVERY_S = 2.0
RELIEF_TIMEOUT_S = 60.0
GRANT_TRIES = 5
GRANT_PAUSE_S = 0.5
RECOVERY_BYTES = 512 * 1024 * 1024
"""More than a server's log and the pages that it touches while replaying it."""
TRIM_LOG_EVERY = 100
"""Connections between looks at the log's size: each refused one may leave a line in it."""

OFFICE_PARAMETERS = TINY | {
    "max_connections": "32",
    "superuser_reserved_connections": "3",
    # An agent can make its server log as much as it likes at lower levels, and the log lies on the host.
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
    "client_connection_check_interval": "5s",
    # After a crash the next connection starts it, through us: on a full disk it would crash again and again by itself.
    "restart_after_crash": "off",
}
SESSION_PARAMETERS = {
    "application_name": "tenure",
    "standard_conforming_strings": "on",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
}
OFFICE_ENVIRONMENT = {
    "PGHOST": "db",
    "PGPORT": "5432",
    "PGUSER": AGENT_ROLE,
    "PGDATABASE": AGENT_DATABASE,
    "PGSSLMODE": "disable",
    "PGGSSENCMODE": "disable",
}
"""With these in the office, `psql` connects without arguments, and without asking for an encryption that is not there."""


class OfficeDatabase:
    """The database of one agent. One per office and server process."""

    def __init__(
        self,
        settings: Settings,
        agent: str,
        volume: Path,
        uid: int,
        *,
        grant_room: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """`grant_room(bytes)` lets the volume hold that much more than its limit, 0 no more than it. A server that ran
        into the limit needs it to come up again: to replay its log it has to write."""
        self.agent = agent
        self._grant_room = grant_room
        self._relieved_at = -RELIEF_EVERY_S
        self._settings = settings
        self._volume = volume
        self._uid = uid
        self._starting: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._opened = 0
        # Not from `ensure_tree`, which may copy: that happens at the start.
        self._cluster = Cluster(
            tree=PostgresTree(settings.postgres_tree),
            data_dir=volume / "postgres",
            socket_dir=settings.run_dir / "pg" / agent,
            log_file=settings.logs_dir / f"{agent}-postgresql.log",
            uid=uid,
            gid=uid,
            parameters=OFFICE_PARAMETERS,
            confinement=Confinement(name=f"{uid}-{hashlib.sha256(str(volume).encode()).hexdigest()[:12]}"),
        )
        self._pump = Pump(self._cluster.socket, self.ensure_started, on_open=self._count)

    # --- life -----------------------------------------------------------------------------------------------------
    @property
    def log_file(self) -> Path:
        """PostgreSQL's log, on the host."""
        return self._cluster.log_file

    @property
    def connections(self) -> int:
        """Connections from inside the office now."""
        return self._pump.connections

    async def state(self) -> ClusterState:
        return ClusterState.RUNNING if await self._cluster.is_running() else ClusterState.STOPPED

    async def serve(self, path: Path) -> None:
        """Listens at `path`, the doorway's `db.sock`; the server behind is started by the first connection."""
        await self._pump.serve(path)

    async def ensure_started(self) -> None:
        """Returns when PostgreSQL accepts connections. Callers at the same time share one start, which goes on when they
        are cancelled. Raises `DiskFull` when the office's disk has no room for it to start, `InternalError`."""
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def stop(self) -> None:
        """Stops PostgreSQL, disconnecting everyone; the next connection starts it again. Idempotent."""
        async with self._lock:
            await self._cluster.stop()

    async def close(self) -> None:
        """Stops listening and breaks the office's connections; PostgreSQL runs on (it may be adopted). Idempotent."""
        await self._pump.close()

    def _count(self) -> None:
        self._opened += 1
        if self._opened % TRIM_LOG_EVERY == 0:
            trim_log(self._cluster.log_file)

    # --- statements -------------------------------------------------------------------------------------------------
    async def execute(
        self,
        statement: str,
        *,
        key: str | None = None,
        rows_max: int = 1000,
        timeout_s: float = STATEMENT_TIMEOUT_S,
    ) -> SqlResult:
        """Runs statements in one transaction; the result of the last one, with at most `rows_max` rows and 4 MiB.

        With a `key` the effect happens exactly once: a repeated key returns the stored result, `repeated`; a lost
        connection is tried again. Then statements may not control transactions themselves (`InvalidArgument`). Without,
        statements that cannot run in a transaction, such as VACUUM, work alone.

        Raises `DatabaseError` with PostgreSQL's message and hint, and sqlstate, detail and position in `details`;
        `ConnectionLost` when it is not known whether the statement took effect; `CommandTimeout`; `DiskFull`;
        `Conflict`, see `effects`; `TooLarge`.
        """
        if not 0 <= rows_max <= ROWS_MAX:
            raise InvalidArgument(f"rows_max is between 0 and {ROWS_MAX}.")
        if key is None:
            return await self._told(statement, None, rows_max, timeout_s)
        effects.check_key(key)
        control = transaction_control(statement)
        if control is not None:
            raise InvalidArgument(
                f"The statement has {control} in it, but is one transaction already.",
                hint="Take BEGIN, COMMIT and ROLLBACK out of it.",
            )
        try:
            return await self._told(statement, key, rows_max, timeout_s)
        except ConnectionLost:
            return await self._told(statement, key, rows_max, timeout_s)

    async def csv(self, statement: str) -> AsyncGenerator[bytes]:
        """The rows of one query as CSV with a header line, streamed. Raises as `execute`, before the first bytes for
        anything wrong with the query. Close the generator when it is not read to its end."""
        query = statement.strip().rstrip(";")
        chunks = self._copy(f"COPY (\n{query}\n) TO STDOUT (FORMAT csv, HEADER)")
        try:
            first = await anext(chunks, b"")
        except BaseException:
            await chunks.aclose()
            raise
        return _after(first, chunks)

    async def _copy(self, text: str) -> AsyncGenerator[bytes]:
        async with self._connection(COPY_TIMEOUT_S) as connection:
            async for chunk in connection.copy_out(text):
                yield chunk

    async def _told(self, statement: str, key: str | None, rows_max: int, timeout_s: float) -> SqlResult:
        """As `_once`; a server that died of a full disk is reported as that."""
        offset = log_size(self._cluster.log_file)
        try:
            return await self._once(statement, key, rows_max, timeout_s)
        except DiskFull:
            await self._relieve()
            raise
        except ConnectionLost as error:
            if says_disk_full(log_since(self._cluster.log_file, offset)):
                raise DiskFull("The office's disk is full: its database stopped, and the statement with it.") from error
            raise

    async def _once(self, statement: str, key: str | None, rows_max: int, timeout_s: float) -> SqlResult:
        async with self._connection(timeout_s) as connection, _within(timeout_s):
            if key is None:
                result = _shape(await connection.query(statement, rows_max=rows_max, bytes_max=RESULT_BYTES_MAX))
                if connection.transaction != "I":
                    raise Conflict(
                        "The statement opened a transaction and did not end it, so it was rolled back.",
                        hint="End it with COMMIT, or leave BEGIN out: the statements are one transaction anyway.",
                    )
                return result
            if not await effects.claim(connection, key):
                kept = await effects.stored(connection, key, bytes_max=4 * RESULT_BYTES_MAX)
                return dataclasses.replace(SqlResult(**kept), repeated=True)
            result = _shape(await connection.query(statement, rows_max=rows_max, bytes_max=RESULT_BYTES_MAX))
            await effects.settle(connection, key, dataclasses.asdict(result))
            return result

    @contextlib.asynccontextmanager
    async def _connection(self, timeout_s: float) -> AsyncGenerator[Connection]:
        """A connection as the agent, whose statements the server ends after `timeout_s`."""
        connection = await self._connect(timeout_s)
        try:
            yield connection
        except (CommandTimeout, asyncio.CancelledError):
            await asyncio.shield(connection.cancel())
            raise
        except DatabaseError as error:
            if error.details.get("sqlstate") == QUERY_CANCELED and "statement timeout" in error.message:
                raise _timed_out(timeout_s) from error
            raise
        finally:
            connection.close()

    async def _connect(self, timeout_s: float) -> Connection:
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            try:
                return await self._open(timeout_s)
            except OSError:
                if time.monotonic() > deadline:
                    raise InternalError("The office's database does not stay up.") from None
                await self.ensure_started()
            except ConnectionLost:  # it starts, recovers or stops
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def _open(self, timeout_s: float) -> Connection:
        parameters = SESSION_PARAMETERS | {"statement_timeout": str(max(1, int(timeout_s * 1000)))}
        return await Connection.open(
            self._pump.backend, user=AGENT_ROLE, database=AGENT_DATABASE, parameters=parameters
        )

    # --- start --------------------------------------------------------------------------------------------------------
    async def _start(self) -> None:
        async with self._lock:
            await asyncio.to_thread(self._prepare)
            try:
                await self._cluster.start()
            except DiskFull:
                if self._grant_room is None:
                    raise
                await self._recover()

    async def _recover(self) -> None:
        """Starts a server whose volume is full, for as long as it takes to replay its log and give back what the log took;
        then its office can delete things. Raises `DiskFull` when that is not enough."""
        async with self._granted_room():
            await self._cluster.start()
            await self._cluster.stop()  # writes a checkpoint, after which the log is cut
        await self._cluster.start()

    @contextlib.asynccontextmanager
    async def _granted_room(self) -> AsyncGenerator[None]:
        """More room for the volume meanwhile. Tries hard to take it back: the limit is what guards the neighbours."""
        assert self._grant_room is not None
        await self._grant_room(RECOVERY_BYTES)
        try:
            yield
        finally:
            for left in reversed(range(GRANT_TRIES)):
                try:
                    await self._grant_room(0)
                    break
                except TenureError:
                    if not left:
                        raise
                    await asyncio.sleep(GRANT_PAUSE_S)

    async def _relieve(self) -> None:
        """For a full disk under a running server: lets it write what it holds and cut its log, so that the next statement
        can delete something. At most every `RELIEF_EVERY_S`. Does not raise."""
        if self._grant_room is None or time.monotonic() < self._relieved_at + RELIEF_EVERY_S:
            return
        self._relieved_at = time.monotonic()
        with contextlib.suppress(TenureError, OSError, TimeoutError):
            async with self._lock, self._granted_room():
                connection = await self._open(RELIEF_TIMEOUT_S)  # not `_connect`: starting takes the lock we hold
                try:
                    async with asyncio.timeout(RELIEF_TIMEOUT_S):
                        await connection.query("CHECKPOINT")
                finally:
                    connection.close()

    def _prepare(self) -> None:
        """Owners and modes for the office's own database user; they differ in a volume just cloned."""
        ensure_tree(self._settings)
        sockets = self._cluster.socket_dir.parent
        sockets.mkdir(parents=True, exist_ok=True)
        open_way(self._settings, sockets)
        if os.geteuid() == 0:
            # Only this user passes: in the office's root lie set-uid files that an agent made.
            os.chown(self._volume, 0, self._uid)
            self._volume.chmod(0o710)
        open_way(self._settings, self._volume.parent)
        own_tree(self._cluster.data_dir, self._uid, self._uid)


def _shape(result: Result) -> SqlResult:
    values = JsonValues([oid for _, oid in result.columns])
    rows: list[list[Any]] = [values.row(row) for row in result.rows]
    return SqlResult([name for name, _ in result.columns], rows, result.status, truncated=result.truncated)


@contextlib.asynccontextmanager
async def _within(timeout_s: float) -> AsyncGenerator[None]:
    """Our own limit, a little after the server's, which a statement may have lifted."""
    try:
        async with asyncio.timeout(timeout_s + CANCEL_GRACE_S):
            yield
    except TimeoutError:
        raise _timed_out(timeout_s) from None


def _timed_out(timeout_s: float) -> CommandTimeout:
    return CommandTimeout(f"The statement did not end within {timeout_s:g} s and was cancelled.")


async def _after(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    try:
        yield first
        async for chunk in rest:
            yield chunk
    finally:
        await rest.aclose()
