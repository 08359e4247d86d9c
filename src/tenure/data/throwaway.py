"""A PostgreSQL of a few seconds on a clone of an office's volume, for reading what is in it and nothing else.

What lies in the database was made by an agent, and nothing of it may run while we read: not as a superuser, and not as
anybody. So the superuser enters only the database `postgres`, which the agent cannot, and makes a role that may read
and nothing more. That role passes row-level policies over, and reads tables by `COPY … TO STDOUT`, which knows no
planner: no index expression, no default, no policy and no view is evaluated, only the output functions of types, which
an agent cannot make. Settings that the agent left for its database are dropped, and event triggers are off.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from tenure.data.office_server import OFFICE_PARAMETERS, SESSION_PARAMETERS, VOLUME_MODE
from tenure.postgres.client import Connection
from tenure.postgres.cluster import SUPERUSER, Cluster
from tenure.postgres.confine import Confinement
from tenure.postgres.files import own_tree
from tenure.postgres.template import AGENT_DATABASE
from tenure.postgres.tree import PostgresTree, ensure_tree, open_way
from tenure.settings import Settings

UID_OFFSET = 1_000_000
"""Beyond the host user of the office's own database, so that neither can do anything to the other."""
MEMORY_BYTES_MAX = 512 * 1024 * 1024
PROCESSES_MAX = 32
ROLES_TIMEOUT_S = 60.0
HBA_NAME = "throwaway.hba"
LOG_NAME = "throwaway.log"
HBA = "local all all trust\n"
"""Who can enter the socket's directory is who started it."""
READER, JUDGE = "tenure_reader", "tenure_judge"

PARAMETERS = OFFICE_PARAMETERS | {
    "max_connections": "16",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "event_triggers": "off",
    "shared_preload_libraries": "",
    "synchronize_seqscans": "off",  # rows come in the order in which they lie, so that equal tables read the same
    "constraint_exclusion": "off",
    "work_mem": "48MB",
    "temp_file_limit": "2GB",
    "max_parallel_workers_per_gather": "0",
}
READING = {"search_path": "", "row_security": "off", "default_transaction_read_only": "on", "role": "none"}
_ROLES = f"""
CREATE ROLE {READER} LOGIN BYPASSRLS IN ROLE pg_read_all_data;
ALTER DATABASE {AGENT_DATABASE} WITH ALLOW_CONNECTIONS true CONNECTION LIMIT -1;
ALTER DATABASE {AGENT_DATABASE} RESET ALL;
GRANT CONNECT ON DATABASE {AGENT_DATABASE} TO {READER};
CREATE ROLE {JUDGE} LOGIN;
GRANT CONNECT ON DATABASE postgres TO {JUDGE};
CREATE SCHEMA judge AUTHORIZATION {JUDGE};
"""


class ThrowAway:
    """One server, on a writable clone that nobody else uses. `uid` is that of the office whose volume was cloned. Call `stop`
    before the volume goes."""

    def __init__(self, settings: Settings, volume: Path, uid: int) -> None:
        self._settings, self._volume = settings, volume
        self._uid = uid + UID_OFFSET
        self._starting: asyncio.Task[None] | None = None
        self._cluster = Cluster(
            tree=PostgresTree(settings.postgres_tree),
            data_dir=volume / "postgres",
            socket_dir=settings.run_dir / "pg" / volume.name,
            log_file=volume / LOG_NAME,
            uid=self._uid,
            gid=self._uid,
            parameters=PARAMETERS | {"hba_file": str(volume / HBA_NAME)},
            confinement=Confinement(
                name=f"{self._uid}-{hashlib.sha256(str(volume).encode()).hexdigest()[:12]}",
                memory_bytes_max=MEMORY_BYTES_MAX,
                processes_max=PROCESSES_MAX,
            ),
        )

    async def start(self) -> None:
        """Returns when it can be read. Raises `DiskFull`, `InternalError` when it does not start, `DatabaseError` when the
        agent's database is not there."""
        self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        await asyncio.to_thread(self._prepare)
        await self._cluster.start()
        connection = await self._connect(SUPERUSER, "postgres", ROLES_TIMEOUT_S, {"search_path": ""})
        try:
            await connection.query(_ROLES)
        finally:
            connection.close()

    def _prepare(self) -> None:
        ensure_tree(self._settings)
        sockets = self._cluster.socket_dir.parent
        sockets.mkdir(parents=True, exist_ok=True)
        for directory in (sockets, self._volume.parent):
            open_way(self._settings, directory)
        hba = self._volume / HBA_NAME
        hba.write_text(HBA)
        hba.chmod(0o640)
        if os.geteuid() == 0:
            os.chown(hba, 0, self._uid)
            os.chown(self._volume, 0, self._uid)
        self._volume.chmod(VOLUME_MODE)
        own_tree(self._cluster.data_dir, self._uid, self._uid)

    async def stop(self) -> None:
        """Idempotent; also for a server that a dead Tenure left behind."""
        if self._starting is not None:
            await asyncio.wait([self._starting])
        await self._cluster.stop()
        await asyncio.to_thread(_remove_sockets, self._cluster.socket_dir)

    async def read(self, timeout_s: float) -> Connection:
        """A connection to the agent's database that can only read; its statements end after `timeout_s`."""
        return await self._connect(READER, AGENT_DATABASE, timeout_s, READING)

    async def judge(self, timeout_s: float) -> Connection:
        """A connection to a database in which nothing of the agent's is, with the schema `judge` to fill."""
        return await self._connect(JUDGE, "postgres", timeout_s, {"search_path": ""})

    async def _connect(self, user: str, database: str, timeout_s: float, more: dict[str, str]) -> Connection:
        parameters = SESSION_PARAMETERS | {"statement_timeout": str(max(1, int(timeout_s * 1000)))} | more
        return await Connection.open(self._cluster.socket, user=user, database=database, parameters=parameters)


def _remove_sockets(directory: Path) -> None:
    if directory.exists():
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
