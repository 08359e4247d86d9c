"""An office's own database: what the office reaches as `db:5432` and Tenure by statements.

Both come in as the role `agent`, which owns one database and can do nothing to the host. The server behind is started
by the first of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from tenure.data import effects
from tenure.data.office_server import OfficeServer
from tenure.data.pump import Pump
from tenure.data.statements import transaction_control
from tenure.data.values import JsonValues
from tenure.errors import (
    CommandTimeout,
    Conflict,
    ConnectionLost,
    DatabaseError,
    DiskFull,
    InvalidArgument,
    TenureError,
)
from tenure.postgres.client import QUERY_CANCELED, Connection, Result
from tenure.postgres.cluster import ClusterState
from tenure.postgres.files import log_since, log_size, says_disk_full, trim_log
from tenure.postgres.template import AGENT_DATABASE, AGENT_ROLE
from tenure.settings import Settings
from tenure.use import Use
from tenure.work.hands import SqlResult

STATEMENT_TIMEOUT_S = 600.0
CANCEL_GRACE_S = 5.0
ROWS_MAX = 10_000
RESULT_BYTES_MAX = 4 * 1024 * 1024
COPY_TIMEOUT_S = 3600.0
TRIM_LOG_EVERY = 100
"""Connections between looks at the log's size: each refused one may leave a line in it."""

OFFICE_ENVIRONMENT = {
    "PGHOST": "db",
    "PGPORT": "5432",
    "PGUSER": AGENT_ROLE,
    "PGDATABASE": AGENT_DATABASE,
    "PGSSLMODE": "disable",
    "PGGSSENCMODE": "disable",
}
"""With these in the office, `psql` connects without arguments, and without asking for an encryption that is not there."""


class StatementServer(Protocol):
    """What statements are run by: an `OfficeServer`."""

    async def connect(self, timeout_s: float, role: str | None = None) -> Connection: ...
    async def relieve(self) -> None: ...
    def panic(self) -> str:
        """Why the server ended itself, in its own words; empty when it did not."""
        ...


class Statements:
    """Runs statements for who is not inside an office. As `role`, or the server's own when it is None."""

    def __init__(self, server: StatementServer, log_file: Path, use: Use, role: str | None = None) -> None:
        self._by, self._log, self._use, self._role = server, log_file, use, role

    async def execute(
        self,
        statement: str,
        *,
        key: str | None = None,
        rows_max: int = 1000,
        timeout_s: float = STATEMENT_TIMEOUT_S,
        read_only: bool = False,
    ) -> SqlResult:
        """Runs statements in one transaction; the result of the last one, with at most `rows_max` rows and 4 MiB.

        With a `key` the effect happens exactly once: a repeated key returns the stored result, `repeated`; a lost
        connection is tried again. Then statements may not control transactions themselves (`InvalidArgument`). Without,
        statements that cannot run in a transaction, such as VACUUM, work alone. `read_only` goes without a key; what would
        write is a `DatabaseError`.

        Raises `DatabaseError` with PostgreSQL's message and hint, and sqlstate, detail and position in `details`;
        `ConnectionLost` when it is not known whether the statement took effect; `CommandTimeout`; `DiskFull`;
        `Conflict`, see `effects`; `TooLarge`.
        """
        if not 0 <= rows_max <= ROWS_MAX:
            raise InvalidArgument(f"rows_max is between 0 and {ROWS_MAX}.")
        if read_only and key is not None:
            raise InvalidArgument("A statement that only reads has no effect to keep by a key.")
        if key is None and not read_only:
            return await self._told(statement, None, rows_max, timeout_s)
        control = transaction_control(statement)
        if control is not None:
            raise InvalidArgument(
                f"The statement has {control} in it, but is one transaction already.",
                hint="Take BEGIN, COMMIT and ROLLBACK out of it.",
            )
        if key is None:
            return await self._told(statement, None, rows_max, timeout_s, read_only=True)
        effects.check_key(key)
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

    def session(self, timeout_s: float) -> contextlib.AbstractAsyncContextManager[Connection]:
        """A connection for work of more than one statement, each of which may take `timeout_s`. What is not committed when the
        block ends never was."""
        return self._connection(timeout_s)

    async def _copy(self, text: str) -> AsyncGenerator[bytes]:
        async with self._connection(COPY_TIMEOUT_S) as connection:
            async for chunk in connection.copy_out(text):
                yield chunk

    async def _told(
        self, statement: str, key: str | None, rows_max: int, timeout_s: float, *, read_only: bool = False
    ) -> SqlResult:
        """As `_once` or `_looked_up`; a server that died of a full disk is reported as that."""
        offset = log_size(self._log)
        try:
            if read_only:
                return await self._looked_up(statement, rows_max, timeout_s)
            return await self._once(statement, key, rows_max, timeout_s)
        except DiskFull:
            await self._by.relieve()
            raise
        except ConnectionLost as error:
            # It may have ended itself before the statement began, and told its connections only now.
            if says_disk_full(log_since(self._log, offset)) or says_disk_full(self._by.panic()):
                raise DiskFull("The disk is full: the database on it stopped, and the statement with it.") from error
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

    async def _looked_up(self, statement: str, rows_max: int, timeout_s: float) -> SqlResult:
        async with self._connection(timeout_s) as connection, _within(timeout_s):
            await connection.query("BEGIN READ ONLY")
            await connection.query("SELECT 1")  # from here on PostgreSQL does not let it become one that writes
            result = await connection.query(statement, rows_max=rows_max, bytes_max=RESULT_BYTES_MAX)
            await connection.query("ROLLBACK")
            return _shape(result)

    @contextlib.asynccontextmanager
    async def _connection(self, timeout_s: float) -> AsyncGenerator[Connection]:
        """A connection as the agent, whose statements the server ends after `timeout_s`. The office is in use meanwhile, the
        start of a server that is down included."""
        with self._use.during():
            connection = await self._by.connect(timeout_s, self._role)
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


class OfficeDatabase(Statements):
    """The database of one agent. One per office and server process. See `OfficeServer` for `grant_room`, `before_start` and
    `on_failure`."""

    def __init__(
        self,
        settings: Settings,
        agent: str,
        volume: Path,
        uid: int,
        *,
        grant_room: Callable[[int], Awaitable[None]] | None = None,
        use: Use | None = None,
        before_start: Callable[[], Awaitable[None]] | None = None,
        on_failure: Callable[[TenureError], None] | None = None,
    ) -> None:
        self.agent = agent
        self._server = OfficeServer(settings, agent, volume, uid, grant_room, before_start, on_failure)
        super().__init__(self._server, self._server.cluster.log_file, Use() if use is None else use)
        self._opened = 0
        self._pump = Pump(self._server.cluster.socket, self.ensure_started, on_open=self._count, use=self._use)

    # --- life -----------------------------------------------------------------------------------------------------
    @property
    def log_file(self) -> Path:
        """PostgreSQL's log, on the host."""
        return self._server.cluster.log_file

    @property
    def connections(self) -> int:
        """Connections from inside the office now."""
        return self._pump.connections

    async def state(self) -> ClusterState:
        return ClusterState.RUNNING if await self._server.cluster.is_running() else ClusterState.STOPPED

    async def serve(self, path: Path) -> None:
        """Listens at `path`, the doorway's `db.sock`; the server behind is started by the first connection."""
        await self._pump.serve(path)

    async def ensure_started(self) -> None:
        """Returns when PostgreSQL accepts connections. Callers at the same time share one start, which goes on when they
        are cancelled. Raises `DiskFull` when the office's disk has no room for it to start, `InternalError`."""
        await self._server.ensure_started()

    async def stop(self) -> None:
        """Stops PostgreSQL, disconnecting everyone; the next connection starts it again. Idempotent."""
        await self._server.stop()

    def at_rest(self) -> contextlib.AbstractAsyncContextManager[None]:
        """A block in which PostgreSQL is stopped and nobody can start it, for work on its files."""
        return self._server.at_rest()

    async def close(self) -> None:
        """Stops listening and breaks the office's connections; PostgreSQL runs on (it may be adopted). Idempotent."""
        await self._pump.close()

    def _count(self) -> None:
        self._opened += 1
        if self._opened % TRIM_LOG_EVERY == 0:
            trim_log(self.log_file)


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
