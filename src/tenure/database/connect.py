"""Connections to the control database: one pool per process, and one error for "it does not answer"."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from tenure.errors import ServerUnreachable

POOL_CONNECTIONS_MAX = 10
CONNECTION_WAIT_S = 10.0
"""How long a caller waits for a free connection, or for a database that is starting, before it is told so."""
RECONNECT_S = 2.0
"""After so long the pool begins its attempts anew: its own pauses would grow to minutes while PostgreSQL is away."""
STATEMENT_TIMEOUT_MS = 60_000
CONNECT_TIMEOUT_S = 5

Params = Sequence[Any] | Mapping[str, Any] | None
Connection = AsyncConnection[DictRow]


class ControlDatabase:
    """A pool of connections whose rows are dicts. Every method raises `ServerUnreachable` when PostgreSQL is away: callers
    that can wait do so, the rest pass it on."""

    def __init__(
        self,
        dsn: str,
        *,
        connections_max: int = POOL_CONNECTIONS_MAX,
        checked: bool = True,
        wait_s: float = CONNECTION_WAIT_S,
    ) -> None:
        """`checked`: a connection that broke while it lay idle is replaced instead of handed out, for a round trip each time. A
        worker does without: it repeats what failed."""
        self.dsn = dsn
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            dsn,
            connection_class=AsyncConnection[DictRow],
            kwargs={
                "row_factory": dict_row,
                "autocommit": True,
                "connect_timeout": CONNECT_TIMEOUT_S,
                "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
            },
            min_size=1,
            max_size=connections_max,
            timeout=wait_s,
            reconnect_timeout=RECONNECT_S,
            check=_check if checked else None,
            open=False,
        )

    async def open(self) -> None:
        """Does not wait for PostgreSQL to answer."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A connection in autocommit mode, given back at the end."""
        with _unreachable():
            async with self._pool.connection() as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """A connection inside one transaction: committed at the end, rolled back on any exception."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def fetch(self, statement: LiteralString, params: Params = None) -> list[DictRow]:
        """All rows of one statement, in a transaction of its own."""
        async with self.connection() as connection:
            return await (await connection.execute(statement, params)).fetchall()

    async def fetch_one(self, statement: LiteralString, params: Params = None) -> DictRow | None:
        async with self.connection() as connection:
            return await (await connection.execute(statement, params)).fetchone()

    async def execute(self, statement: LiteralString, params: Params = None) -> int:
        """The number of rows that the statement touched."""
        async with self.connection() as connection:
            return (await connection.execute(statement, params)).rowcount


async def _check(connection: Connection) -> None:
    await connection.execute("")


class _unreachable:
    """Turns "no connection" and "the connection broke" into `ServerUnreachable`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        broken = isinstance(error, (PoolTimeout, PoolClosed, psycopg.OperationalError))
        # A statement that PostgreSQL itself refused (deadlock, timeout) has an SQLSTATE outside the classes below.
        if broken and (getattr(error, "sqlstate", None) or "08")[:2] in ("08", "57", "53", "58"):
            raise ServerUnreachable(
                f"The control database does not answer: {str(error).strip() or kind}",
                hint="`tenure status` says whether it runs; with TENURE_DATABASE_URL, check that address.",
            ) from error
