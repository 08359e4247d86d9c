"""The PostgreSQL server of one office: started on demand, stopped with the office, kept going when the disk is full.

Its cluster lies in the office's volume and runs on the host as a user of its own, beside the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

from tenure.errors import ConnectionLost, DiskFull, InternalError, TenureError
from tenure.postgres.client import Connection
from tenure.postgres.cluster import TINY, Cluster
from tenure.postgres.confine import Confinement
from tenure.postgres.files import own_tree
from tenure.postgres.template import AGENT_DATABASE, AGENT_ROLE
from tenure.postgres.tree import PostgresTree, ensure_tree, open_way
from tenure.settings import Settings

CONNECT_TIMEOUT_S = 60.0
RECOVERY_BYTES = 512 * 1024 * 1024
"""More than a server's log and the pages that it touches while replaying it."""
RELIEF_EVERY_S = 2.0
RELIEF_TIMEOUT_S = 60.0
GRANT_TRIES = 5
GRANT_PAUSE_S = 0.5
VOLUME_MODE = 0o710

OFFICE_PARAMETERS = TINY | {
    "max_connections": "32",
    "superuser_reserved_connections": "3",
    # An agent can make its server log as much as it likes at lower levels, and the log lies on the host.
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
    "client_connection_check_interval": "5s",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.max": "1000",
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


def extensions_of(tree: PostgresTree) -> dict[str, str]:
    """The parameter that lets a database's owner add what `tenure.postgres.extensions` offers, and nothing else."""
    return {"extension_control_path": str(tree.offered)}


class OfficeServer:
    """`grant_room(bytes)` lets the volume hold that much more than its limit, 0 no more than it. A server that ran into the
    limit needs it to come up again: to replay its log it has to write. `before_start` may forbid a start by raising; `on_failure`
    is told of a server that does not start though its disk is not full."""

    def __init__(
        self,
        settings: Settings,
        agent: str,
        volume: Path,
        uid: int,
        grant_room: Callable[[int], Awaitable[None]] | None = None,
        before_start: Callable[[], Awaitable[None]] | None = None,
        on_failure: Callable[[TenureError], None] | None = None,
        *,
        cluster: Cluster | None = None,
        role: str = AGENT_ROLE,
        database: str = AGENT_DATABASE,
    ) -> None:
        """`cluster` is for a server that is no office's; `role` and `database` are what `connect` connects as and to."""
        self._before_start, self._on_failure = before_start, on_failure
        self._settings = settings
        self._volume = volume
        self._uid = uid
        self._grant_room = grant_room
        self._relieved_at = -RELIEF_EVERY_S
        self._starting: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._role, self._database = role, database
        tree = PostgresTree(settings.postgres_tree)  # not from `ensure_tree`, which may copy: that happens at the start
        self.cluster = cluster or Cluster(
            tree=tree,
            data_dir=volume / "postgres",
            socket_dir=settings.run_dir / "pg" / agent,
            log_file=settings.logs_dir / f"{agent}-postgresql.log",
            uid=uid,
            gid=uid,
            parameters=OFFICE_PARAMETERS | extensions_of(tree),
            confinement=Confinement(name=f"{uid}-{hashlib.sha256(str(volume).encode()).hexdigest()[:12]}"),
        )

    async def ensure_started(self) -> None:
        """Returns when PostgreSQL accepts connections. Callers at the same time share one start, which goes on when they
        are cancelled. Raises `DiskFull` when the office's disk has no room for it to start, `InternalError`."""
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def stop(self) -> None:
        """Stops PostgreSQL, disconnecting everyone. Idempotent."""
        async with self._lock:
            await self._stop()

    async def _stop(self) -> None:
        """With the lock held."""
        await self.cluster.stop()

    async def _started(self) -> None:
        """It runs, started or adopted just now; the lock is held, and whoever waits for the start still waits."""

    @contextlib.asynccontextmanager
    async def at_rest(self) -> AsyncGenerator[None]:
        """Stopped, and not started by anybody meanwhile: who needs it waits."""
        async with self._lock:
            await self._stop()
            yield

    async def connect(self, timeout_s: float, role: str | None = None) -> Connection:
        """A connection as the agent (or another `role`), whose statements the server ends after `timeout_s`; starts the server
        when it is down, waits while it recovers. Raises `DiskFull`, `DatabaseError`, `InternalError`."""
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            try:
                return await self._open(timeout_s, role)
            except OSError:
                if time.monotonic() > deadline:
                    raise InternalError("The office's database does not stay up.") from None
                await self.ensure_started()
            except ConnectionLost:  # it starts, recovers or stops
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def _open(self, timeout_s: float, role: str | None = None) -> Connection:
        parameters = SESSION_PARAMETERS | {"statement_timeout": str(max(1, int(timeout_s * 1000)))}
        user = self._role if role is None else role
        return await Connection.open(self.cluster.socket, user=user, database=self._database, parameters=parameters)

    async def _start(self) -> None:
        async with self._lock:
            if self._before_start is not None:
                await self._before_start()
            try:
                await self._start_or_recover()
                await self._started()
            except InternalError as error:
                if self._on_failure is not None:
                    self._on_failure(error)
                raise

    async def _start_or_recover(self) -> None:
        try:
            await asyncio.to_thread(self._prepare)
            await self.cluster.start()
        except DiskFull:
            if self._grant_room is None:
                raise
            await self._recover()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InternalError(f"The office's database cannot start: {error.filename} is missing.") from error

    async def _recover(self) -> None:
        """Starts a server whose volume is full, for as long as it takes to replay its log and give back what the log took;
        then its office can delete things. Raises `DiskFull` when that is not enough."""
        async with self._granted_room():
            await asyncio.to_thread(self._prepare)
            await self.cluster.start()
            await self.cluster.stop()  # writes a checkpoint, after which the log is cut
        await self.cluster.start()

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

    def panic(self) -> str:
        """Why PostgreSQL ended itself, in its own words; empty when it did not."""
        return self.cluster.panic()

    async def relieve(self) -> None:
        """For a full disk under a running server: lets it write what it holds and cut its log, so that the next statement
        can delete something. At most every `RELIEF_EVERY_S`. Does not raise."""
        if self._grant_room is None or time.monotonic() < self._relieved_at + RELIEF_EVERY_S:
            return
        self._relieved_at = time.monotonic()
        with contextlib.suppress(TenureError, OSError, TimeoutError):
            async with self._lock, self._granted_room():
                connection = await self._open(RELIEF_TIMEOUT_S)  # not `connect`: starting takes the lock we hold
                try:
                    async with asyncio.timeout(RELIEF_TIMEOUT_S):
                        await connection.query("CHECKPOINT")
                finally:
                    connection.close()

    def _prepare(self) -> None:
        """Owners and modes for the office's own database user; they differ in a volume just cloned. Raises `DiskFull`."""
        ensure_tree(self._settings)
        sockets = self.cluster.socket_dir.parent
        sockets.mkdir(parents=True, exist_ok=True)
        open_way(self._settings, sockets)
        open_way(self._settings, self._volume.parent)
        try:
            self._own()
        except OSError as error:
            if error.errno not in (errno.EDQUOT, errno.ENOSPC):
                raise
            raise DiskFull("The disk is full: the database on it cannot start.") from error

    def _own(self) -> None:
        """Changes only what differs: on a full disk there is no room even for an owner that is written again."""
        if os.geteuid() == 0:
            # Only this user passes: in the office's root lie set-uid files that an agent made.
            now = self._volume.stat()
            if (now.st_uid, now.st_gid) != (0, self._uid):
                os.chown(self._volume, 0, self._uid)
            if stat.S_IMODE(now.st_mode) != VOLUME_MODE:
                self._volume.chmod(VOLUME_MODE)
        own_tree(self.cluster.data_dir, self._uid, self._uid)
