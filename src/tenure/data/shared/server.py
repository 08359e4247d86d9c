"""The PostgreSQL server of one shared database: as an office's, but it belongs to nobody, and nobody enters before its roles are
what the grants say."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from tenure.data.office_server import OFFICE_PARAMETERS, OfficeServer, extensions_of
from tenure.data.shared.models import AGENTS_CONNECTIONS_MAX, DatabaseRecord
from tenure.data.shared.roles import Cluster as Roles
from tenure.data.shared.roles import RoleWanted, applied, digest_of
from tenure.data.shared.template import DATABASE, HBA_NAME, IDENT_NAME, OWNER, write_access_files
from tenure.errors import ConnectionLost, DatabaseError
from tenure.postgres.client import Connection
from tenure.postgres.cluster import SUPERUSER, Cluster
from tenure.postgres.confine import Confinement
from tenure.postgres.tree import PostgresTree
from tenure.settings import Settings

log = logging.getLogger(__name__)

OWNER_CONNECTIONS = 24
"""Beside those of agents: of people, ingestion and Tenure itself."""
SUPERUSER_CONNECTIONS = 6
MEMORY_BYTES_MAX = 2 * 1024**3
PROCESS_MEMORY_BYTES_MAX = 768 * 1024**2
"""Address space of one connection's process: a sort that was allowed too much memory ends alone."""
PROCESSES_MAX = AGENTS_CONNECTIONS_MAX + OWNER_CONNECTIONS + 40
WORK_TIMEOUT_S = 60.0
"""Of what Tenure itself does in it."""

PARAMETERS = OFFICE_PARAMETERS | {
    "max_connections": str(AGENTS_CONNECTIONS_MAX + OWNER_CONNECTIONS + SUPERUSER_CONNECTIONS),
    "superuser_reserved_connections": str(SUPERUSER_CONNECTIONS),
    "reserved_connections": str(OWNER_CONNECTIONS),
    "max_locks_per_transaction": "128",
}
ARCHIVING = {
    "wal_level": "replica",
    "archive_mode": "on",
    # Empty: segments wait in the volume, marked as ready, until they were shipped (`backups`).
    "archive_command": "",
    "archive_timeout": "60s",
}

GrantsOf = Callable[[], Awaitable[Sequence[RoleWanted]]]


class SharedServer(OfficeServer):
    """`connect` is as the owner unless another role is named. `grants` says what the roles are to be."""

    def __init__(
        self,
        settings: Settings,
        record: DatabaseRecord,
        volume: Path,
        grants: GrantsOf,
        grant_room: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self.limits = record.limits
        self._grants, self._place = grants, volume
        self._open_to_all = False
        self.is_scoped = False
        """Whether something is granted by the names of tables, which may be made anew."""
        super().__init__(
            settings,
            record.name,
            volume,
            record.uid,
            grant_room,
            cluster=Cluster(
                tree=(tree := PostgresTree(settings.postgres_tree)),
                data_dir=volume / "postgres",
                socket_dir=settings.run_dir / "pg" / f"{record.name}.db",  # no agent has a dot in its name
                log_file=settings.logs_dir / f"{record.name}.db-postgresql.log",
                uid=record.uid,
                gid=record.uid,
                parameters=parameters(volume, archives=record.backup is not None) | extensions_of(tree),
                confinement=Confinement(
                    name=f"{record.uid}-{hashlib.sha256(str(volume).encode()).hexdigest()[:12]}",
                    memory_bytes_max=MEMORY_BYTES_MAX,
                    process_memory_bytes_max=PROCESS_MEMORY_BYTES_MAX,
                    processes_max=PROCESSES_MAX,
                ),
            ),
            role=OWNER,
            database=DATABASE,
        )

    @property
    def is_open(self) -> bool:
        """Whether it was started, or adopted, and its roles are what the grants say. It may have been killed since."""
        return self._open_to_all

    def set_parameters(self, wanted: Mapping[str, str]) -> None:
        """From its next start on."""
        self.cluster = dataclasses.replace(self.cluster, parameters=dict(wanted) | extensions_of(self.cluster.tree))

    async def connect(self, timeout_s: float, role: str | None = None) -> Connection:
        if not self.is_open:
            await self.ensure_started()
        return await super().connect(timeout_s, role)

    def _prepare(self) -> None:
        super()._prepare()
        write_access_files(self._place, self.cluster.gid)

    async def _started(self) -> None:
        await self._match()
        self._open_to_all = True

    async def _stop(self) -> None:
        self._open_to_all = False
        await super()._stop()

    async def replay(self, wanted: Mapping[str, str], timeout_s: float) -> None:
        """Starts with other parameters, and stops when it accepts connections: it has replayed what it was given by then."""
        async with self._lock:
            await asyncio.to_thread(self._prepare)
            replaying = dataclasses.replace(self.cluster, parameters=dict(wanted))
            try:
                await replaying.start(timeout_s)
            finally:
                await replaying.stop()

    async def match(self) -> Sequence[str]:
        """Makes its roles what the grants say now; does not start it. Returns what could not be done, see `Cluster.apply`.
        Raises `DatabaseError`, `ConnectionLost`."""
        async with self._lock:
            return await self._match() if await self.cluster.is_running() else ()

    async def _match(self) -> Sequence[str]:
        try:
            wanted = await self._grants()
            self.is_scoped = any(one.tables is not None for one in wanted)
            if not self.is_scoped:  # the usual way to wake, with one connection
                async with await self.session(SUPERUSER, search_path="") as superuser:
                    if await applied(superuser) == digest_of(wanted, self.limits, {}):
                        return ()
            async with self.roles() as roles:
                if await roles.applied() != await roles.wanted(wanted, self.limits):
                    problems = await roles.apply(wanted, self.limits)
                    for problem in problems:
                        log.warning("a grant to %s cannot be carried out: %s", self._place.name, problem)
                    return problems
                return ()
        except psycopg.OperationalError as error:
            raise ConnectionLost(f"The database does not take its roles: {error}") from error
        except psycopg.Error as error:
            raise DatabaseError(f"The database does not take its roles: {error}") from error

    @contextlib.asynccontextmanager
    async def roles(self) -> AsyncGenerator[Roles]:
        """Two connections to the running server. Raises `psycopg.Error`."""
        async with (
            await self.session(SUPERUSER, search_path="") as superuser,
            await self.session(OWNER, search_path="public") as owner,
        ):
            yield Roles(superuser, owner)

    async def session(self, role: str, *, search_path: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
        """A connection of Tenure's own, in autocommit mode. Raises `psycopg.Error`."""
        return await psycopg.AsyncConnection.connect(
            make_conninfo(
                host=str(self.cluster.socket_dir),
                user=role,
                dbname=DATABASE,
                connect_timeout=10,
                application_name="tenure",
                options=f"-c statement_timeout={int(WORK_TIMEOUT_S * 1000)} -c search_path={search_path}",
            ),
            autocommit=True,
            prepare_threshold=None,
        )


def parameters(volume: Path, *, archives: bool) -> dict[str, str]:
    """What its PostgreSQL is started with."""
    access = {"hba_file": str(volume / HBA_NAME), "ident_file": str(volume / IDENT_NAME)}
    return PARAMETERS | access | (ARCHIVING if archives else {})
