"""Shared databases, in both SDKs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal

from tenure import wire as sql
from tenure.client import database_calls as calls
from tenure.client import views
from tenure.client.transport import AsyncTransport, Transport
from tenure.names import check_name
from tenure.wire import databases as wire

EVERY_S_DEFAULT = 86_400.0


def _sql(statement: str, key: str | None, rows_max: int, read_only: bool) -> sql.SqlRequest:
    with views.refusing():
        return sql.SqlRequest(statement=statement, key=key, rows_max=rows_max, read_only=read_only)


def _csv(statement: str) -> sql.CsvRequest:
    with views.refusing():
        return sql.CsvRequest(statement=statement)


def _new(
    name: str,
    disk_gb: float | None,
    connections: int | None,
    statement_timeout_s: float | None,
    temp_gb: float | None,
) -> wire.SharedDatabaseRequest:
    with views.refusing():
        return wire.SharedDatabaseRequest(
            name=name,
            disk_gb=disk_gb,
            connections=connections,
            statement_timeout_s=statement_timeout_s,
            temp_gb=temp_gb,
        )


def _limits(
    disk_gb: float | None, connections: int | None, statement_timeout_s: float | None, temp_gb: float | None
) -> wire.SharedLimitsRequest:
    with views.refusing():
        return wire.SharedLimitsRequest(
            disk_gb=disk_gb, connections=connections, statement_timeout_s=statement_timeout_s, temp_gb=temp_gb
        )


def _grant(
    level: Literal["read", "write"],
    tables: Mapping[str, str | None] | Sequence[str] | None,
    expires_at: datetime | None,
) -> wire.DatabaseGrantRequest:
    if tables is not None and not isinstance(tables, Mapping):
        tables = dict.fromkeys(tables)
    with views.refusing():
        scopes = None if tables is None else {name: wire.TableScope(rows=rows) for name, rows in tables.items()}
        return wire.DatabaseGrantRequest(level=level, tables=scopes, expires_at=expires_at)


def _snapshot(name: str | None) -> wire.SharedSnapshotRequest:
    with views.refusing():
        return wire.SharedSnapshotRequest(name=name)


def _fork(new: str, snapshot: str | None) -> wire.SharedForkRequest:
    with views.refusing():
        return wire.SharedForkRequest(new=new, snapshot=snapshot)


def _backup(to: str, every_s: float) -> wire.SharedBackupRequest:
    with views.refusing():
        return wire.SharedBackupRequest(to=to, every_s=every_s)


def _moment(to: datetime, new: str, source: str | None) -> wire.MomentRequest:
    with views.refusing():
        return wire.MomentRequest(to=to, new=new, source=source)


class Databases:
    """Databases that nobody owns, and agents are granted."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __call__(self, name: str) -> Database:
        """A database by name, without asking the server."""
        return Database(self._transport, check_name(name, "database"))

    def create(
        self,
        name: str,
        *,
        disk_gb: float | None = None,
        connections: int | None = None,
        statement_timeout_s: float | None = None,
        temp_gb: float | None = None,
    ) -> Database:
        """A new, empty one. `disk_gb` is of all of it; the rest of each agent that it is granted to. Raises `AlreadyExists`,
        `InvalidName`, `InvalidArgument`, `DiskFull`."""
        request = _new(name, disk_gb, connections, statement_timeout_s, temp_gb)
        return Database(self._transport, name, self._transport.send(calls.create(request)))

    def get(self, name: str) -> Database:
        """Raises `NotFound`."""
        return Database(self._transport, name, self._transport.send(calls.get(name)))

    def list(self) -> Sequence[Database]:
        """By name."""
        found = self._transport.send(calls.list_all()).databases
        return [Database(self._transport, one.name, one) for one in found]

    def restore(self, name: str, to: datetime, new: str, *, source: str | None = None) -> Database:
        """A new database as `name` was at a moment (with a time zone), from its backups. Without `source` they are where `name`
        sends them; with it `name` need not be there any more. Raises `InvalidArgument` for a moment that they do not cover,
        `NotFound`, `ArchiveError`, `StorageError`."""
        made = self._transport.send(calls.restore_to(name, _moment(to, new, source)))
        return Database(self._transport, made.name, made)


class Database:
    """`info` is what the server said last; `show()` asks anew."""

    def __init__(self, transport: Transport, name: str, info: wire.SharedDatabase | None = None) -> None:
        self._transport, self.name, self.info = transport, name, info

    def show(self) -> wire.SharedDatabase:
        self.info = self._transport.send(calls.get(self.name))
        return self.info

    def delete(self) -> None:
        """With its snapshots and grants."""
        self._transport.send(calls.delete(self.name))

    def wake(self) -> wire.SharedDatabase:
        return self._transport.send(calls.wake(self.name))

    def sleep(self) -> wire.SharedDatabase:
        """Whoever is connected is disconnected."""
        return self._transport.send(calls.sleep(self.name))

    def limit(
        self,
        *,
        disk_gb: float | None = None,
        connections: int | None = None,
        statement_timeout_s: float | None = None,
        temp_gb: float | None = None,
    ) -> wire.SharedDatabase:
        """Other limits; None: stays."""
        return self._transport.send(calls.limit(self.name, _limits(disk_gb, connections, statement_timeout_s, temp_gb)))

    def sql(
        self,
        statement: str,
        *,
        agent: str | None = None,
        key: str | None = None,
        rows_max: int = 1000,
        read_only: bool = False,
    ) -> sql.SqlResult:
        """Runs statements in one transaction; as the owner, or with what was granted to an `agent`. With `key` at most
        once, ever. Raises `DatabaseError`, `Forbidden`."""
        return self._transport.send(calls.run(self.name, _sql(statement, key, rows_max, read_only), agent))

    def sql_csv(self, statement: str, *, agent: str | None = None) -> Iterator[bytes]:
        """All rows of one query as CSV with a line of headers, in pieces as they come."""
        with self._transport.stream(calls.csv(self.name, _csv(statement), agent)) as response:
            yield from response.iter_bytes()

    def grant(
        self,
        agent: str,
        level: Literal["read", "write"],
        *,
        tables: Mapping[str, str | None] | Sequence[str] | None = None,
        expires_at: datetime | None = None,
    ) -> wire.DatabaseGrant:
        """Lets an agent's office in, as NAME.db. `tables` are names, or conditions on rows by name (None for all rows); without
        it all of the database, and what will be made in it. Takes the place of an earlier grant. Raises `InvalidArgument`,
        `NotFound`, `Conflict`."""
        return self._transport.send(calls.grant(self.name, agent, _grant(level, tables, expires_at)))

    def revoke(self, agent: str) -> None:
        """Its connections end at once. Raises `NotFound`."""
        self._transport.send(calls.revoke(self.name, agent))

    def grants(self) -> Sequence[wire.DatabaseGrant]:
        return self._transport.send(calls.grants(self.name)).grants

    def snapshot(self, name: str | None = None) -> wire.SharedSnapshot:
        """As of one instant."""
        return self._transport.send(calls.take_snapshot(self.name, _snapshot(name)))

    def snapshots(self) -> Sequence[wire.SharedSnapshot]:
        """The oldest first."""
        return self._transport.send(calls.snapshots(self.name)).snapshots

    def delete_snapshot(self, snapshot: str) -> None:
        self._transport.send(calls.delete_snapshot(self.name, snapshot))

    def restore(self, snapshot: str) -> wire.SharedRestored:
        """Puts it back to a snapshot; what was there is a snapshot then. To a moment: `Databases.restore`."""
        return self._transport.send(calls.restore_snapshot(self.name, snapshot))

    def fork(self, new: str, *, snapshot: str | None = None) -> Database:
        """A new database that is a clone of this one, granted to nobody."""
        made = self._transport.send(calls.fork(self.name, _fork(new, snapshot)))
        return Database(self._transport, made.name, made)

    def back_up(self, to: str, *, every_s: float = EVERY_S_DEFAULT) -> wire.SharedDatabase:
        """From now on it is backed up continuously: a base every `every_s`, and its log. `to` is an s3:// address or a directory
        of the server's machine. Raises `InvalidArgument`."""
        return self._transport.send(calls.back_up(self.name, _backup(to, every_s)))

    def back_up_now(self) -> wire.SharedDatabase:
        """Returns when whatever was committed until now can be restored. Raises `NotFound`, `StorageError`, `DiskFull`."""
        return self._transport.send(calls.back_up_now(self.name))

    def back_up_no_more(self) -> None:
        """What was sent stays where it is."""
        self._transport.send(calls.back_up_no_more(self.name))


class AsyncDatabases:
    """See `Databases`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def __call__(self, name: str) -> AsyncDatabase:
        return AsyncDatabase(self._transport, check_name(name, "database"))

    async def create(
        self,
        name: str,
        *,
        disk_gb: float | None = None,
        connections: int | None = None,
        statement_timeout_s: float | None = None,
        temp_gb: float | None = None,
    ) -> AsyncDatabase:
        request = _new(name, disk_gb, connections, statement_timeout_s, temp_gb)
        return AsyncDatabase(self._transport, name, await self._transport.send(calls.create(request)))

    async def get(self, name: str) -> AsyncDatabase:
        return AsyncDatabase(self._transport, name, await self._transport.send(calls.get(name)))

    async def list(self) -> Sequence[AsyncDatabase]:
        found = (await self._transport.send(calls.list_all())).databases
        return [AsyncDatabase(self._transport, one.name, one) for one in found]

    async def restore(self, name: str, to: datetime, new: str, *, source: str | None = None) -> AsyncDatabase:
        made = await self._transport.send(calls.restore_to(name, _moment(to, new, source)))
        return AsyncDatabase(self._transport, made.name, made)


class AsyncDatabase:
    """See `Database`."""

    def __init__(self, transport: AsyncTransport, name: str, info: wire.SharedDatabase | None = None) -> None:
        self._transport, self.name, self.info = transport, name, info

    async def show(self) -> wire.SharedDatabase:
        self.info = await self._transport.send(calls.get(self.name))
        return self.info

    async def delete(self) -> None:
        await self._transport.send(calls.delete(self.name))

    async def wake(self) -> wire.SharedDatabase:
        return await self._transport.send(calls.wake(self.name))

    async def sleep(self) -> wire.SharedDatabase:
        return await self._transport.send(calls.sleep(self.name))

    async def limit(
        self,
        *,
        disk_gb: float | None = None,
        connections: int | None = None,
        statement_timeout_s: float | None = None,
        temp_gb: float | None = None,
    ) -> wire.SharedDatabase:
        return await self._transport.send(
            calls.limit(self.name, _limits(disk_gb, connections, statement_timeout_s, temp_gb))
        )

    async def sql(
        self,
        statement: str,
        *,
        agent: str | None = None,
        key: str | None = None,
        rows_max: int = 1000,
        read_only: bool = False,
    ) -> sql.SqlResult:
        return await self._transport.send(calls.run(self.name, _sql(statement, key, rows_max, read_only), agent))

    async def sql_csv(self, statement: str, *, agent: str | None = None) -> AsyncIterator[bytes]:
        async with self._transport.stream(calls.csv(self.name, _csv(statement), agent)) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def grant(
        self,
        agent: str,
        level: Literal["read", "write"],
        *,
        tables: Mapping[str, str | None] | Sequence[str] | None = None,
        expires_at: datetime | None = None,
    ) -> wire.DatabaseGrant:
        return await self._transport.send(calls.grant(self.name, agent, _grant(level, tables, expires_at)))

    async def revoke(self, agent: str) -> None:
        await self._transport.send(calls.revoke(self.name, agent))

    async def grants(self) -> Sequence[wire.DatabaseGrant]:
        return (await self._transport.send(calls.grants(self.name))).grants

    async def snapshot(self, name: str | None = None) -> wire.SharedSnapshot:
        return await self._transport.send(calls.take_snapshot(self.name, _snapshot(name)))

    async def snapshots(self) -> Sequence[wire.SharedSnapshot]:
        return (await self._transport.send(calls.snapshots(self.name))).snapshots

    async def delete_snapshot(self, snapshot: str) -> None:
        await self._transport.send(calls.delete_snapshot(self.name, snapshot))

    async def restore(self, snapshot: str) -> wire.SharedRestored:
        return await self._transport.send(calls.restore_snapshot(self.name, snapshot))

    async def fork(self, new: str, *, snapshot: str | None = None) -> AsyncDatabase:
        made = await self._transport.send(calls.fork(self.name, _fork(new, snapshot)))
        return AsyncDatabase(self._transport, made.name, made)

    async def back_up(self, to: str, *, every_s: float = EVERY_S_DEFAULT) -> wire.SharedDatabase:
        return await self._transport.send(calls.back_up(self.name, _backup(to, every_s)))

    async def back_up_now(self) -> wire.SharedDatabase:
        return await self._transport.send(calls.back_up_now(self.name))

    async def back_up_no_more(self) -> None:
        await self._transport.send(calls.back_up_no_more(self.name))
