"""Continuous backups: bases, which are copies of the whole cluster, and the log between them, shipped as its segments close.

PostgreSQL closes a segment at most a minute after something was written (`archive_timeout`), marks it as ready in
`pg_wal/archive_status`, and keeps it until it is marked as done. We are the archiver: a segment is shipped, and then marked. So
whoever dies in between ships one again, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from tenure.data.shared import moments
from tenure.data.shared.database import SharedDatabase
from tenure.data.shared.models import BackupPlan
from tenure.data.shared.places import Place, place_of
from tenure.data.shared.server import parameters
from tenure.data.shared.snapshots import Snapshots
from tenure.data.shared.store import DatabaseStore
from tenure.data.shared.volumes import SharedVolumes
from tenure.errors import ConnectionLost, NotFound, StorageError, TenureError
from tenure.faultpoints import reach
from tenure.postgres.cluster import SUPERUSER

READ_BYTES = 1024 * 1024
COMPRESSION = 1
GZIP = 31
UNSHIPPED_PART_MAX = 0.25
"""Of the disk: a place that does not answer must not fill the database's disk. Beyond, log is given up and a new base taken."""
SEGMENT_BYTES = 4 * 1024 * 1024
AGAIN_S = 30.0
"""After a failure."""
AT_ONCE_MAX = 2

log = logging.getLogger(__name__)


class Backups:
    """Of all databases of an installation."""

    def __init__(self, store: DatabaseStore, volumes: SharedVolumes, snapshots: Snapshots) -> None:
        self._store, self._volumes, self._snapshots = store, volumes, snapshots
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One thing at a time with the log of a database."""
        self._working: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, float] = {}
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)

    # --- plans ---------------------------------------------------------------------------------------------------------
    async def plan(self, database: SharedDatabase, to: str, every_s: float) -> None:
        """From its first base on, which is due at once and disconnects who is connected, its log is kept and goes to `to`.
        Raises `InvalidArgument`."""
        await asyncio.to_thread(place_of, to)
        now = datetime.now(UTC)
        async with self._turns[database.record.name]:
            await self._keep(database, BackupPlan(to, every_s, now, _new_line(now)))

    async def stop(self, database: SharedDatabase) -> None:
        """What was sent stays where it is."""
        async with self._turns[database.record.name]:
            if database.record.backup is None:
                raise NotFound(
                    f"{database.record.name} is not backed up.", hint="`tenure db backup NAME --to PLACE` begins."
                )
            await self._keep(database, None)
            await self._restart(database, archives=False)

    async def begin_line(self, database: SharedDatabase) -> None:
        """Its past is about to become another: from now on its log continues nothing. The caller holds `turn`."""
        plan = database.record.backup
        if plan is not None:
            await self._keep(database, replace(plan, line=_new_line(datetime.now(UTC)), base_at=None))

    def turn(self, name: str) -> asyncio.Lock:
        """Nothing of a database's log is shipped meanwhile."""
        return self._turns[name]

    async def _restart(self, database: SharedDatabase, *, archives: bool) -> None:
        database.server.set_parameters(parameters(database.volume, archives=archives))
        await database.watch.close()
        await database.stop()

    async def _keep(self, database: SharedDatabase, plan: BackupPlan | None) -> None:
        await self._store.set_backup(database.record.name, plan)
        database.record = replace(database.record, backup=plan)

    # --- going on ------------------------------------------------------------------------------------------------------
    def go_on(self, database: SharedDatabase) -> None:
        """Ships what is ready, and takes a base when one is due, in the background; to be called every second or so."""
        name = database.record.name
        loop = asyncio.get_running_loop()
        if database.record.backup is None or name in self._working or loop.time() < self._again.get(name, 0.0):
            return
        task = self._working[name] = asyncio.create_task(self._go_on(database))
        task.add_done_callback(lambda _: self._working.pop(name, None))

    async def _go_on(self, database: SharedDatabase) -> None:
        name = database.record.name
        try:
            async with self._slots:
                await self.ship(database)
                if _is_due(database.record.backup, datetime.now(UTC)):
                    await self.base(database)
            self._again.pop(name, None)
        except (TenureError, OSError) as error:
            log.warning("the backup of %s: %s", name, error)
            self._again[name] = asyncio.get_running_loop().time() + AGAIN_S
            with contextlib.suppress(TenureError):
                await self._failed(database, str(error))

    async def _failed(self, database: SharedDatabase, problem: str) -> None:
        async with self._turns[database.record.name]:
            plan = database.record.backup
            if plan is None:
                return
            unshipped = len(await asyncio.to_thread(_ready, database.volume)) * SEGMENT_BYTES
            if unshipped > database.record.limits.disk_bytes * UNSHIPPED_PART_MAX:
                problem = f"{problem} (Log had to be given up: a new base is taken when the place answers.)"
                plan = replace(plan, line=_new_line(datetime.now(UTC)), base_at=None)
                await self._keep(database, replace(plan, problem=problem))
                await asyncio.to_thread(_mark_all, database.volume)
            elif plan.problem != problem:
                await self._keep(database, replace(plan, problem=problem))

    async def ship(self, database: SharedDatabase) -> None:
        """Every segment that is ready. Does nothing before there is a base: they would be of no use. Raises `StorageError`,
        `DiskFull`."""
        name = database.record.name
        async with self._turns[name]:
            plan = database.record.backup
            if plan is None or plan.base_at is None:
                return
            place, until = await asyncio.to_thread(place_of, plan.to), None
            for segment in await asyncio.to_thread(_ready, database.volume):
                until = await asyncio.to_thread(_ship, place, name, plan.line, database.volume, segment)
            if until is not None or plan.problem:
                await self._keep(database, replace(plan, archived_until=until or plan.archived_until, problem=""))

    async def flush(self, database: SharedDatabase) -> None:
        """Whatever was committed before is archived afterwards. Raises as `ship`, `ConnectionLost`."""
        await database.server.ensure_started()
        try:
            async with await database.server.session(SUPERUSER, search_path="") as superuser:
                await superuser.execute("SELECT pg_switch_wal()")
        except psycopg.Error as error:
            raise ConnectionLost(f"The database did not close its log: {error}") from error
        await self.ship(database)

    async def base(self, database: SharedDatabase) -> None:
        """A copy of the whole cluster goes to where its backups are. Raises `StorageError`, `DiskFull`, `VolumeError`."""
        name = database.record.name
        async with self._turns[name]:
            plan = database.record.backup
            if plan is None:
                return
            copy = self._volumes.base_of(name)
            await self._volumes.driver.delete(copy)
            if plan.base_at is None:
                # The log until now belongs to another line, or to none; and it may run as it did before there was a plan.
                await self._restart(database, archives=True)
                await asyncio.to_thread(_mark_all, database.volume)
                await database.server.ensure_started()
            async with self._snapshots.still(database):
                await self._volumes.snapshot(name, copy)
            at = datetime.now(UTC)
        try:
            place = await asyncio.to_thread(place_of, plan.to)
            reach("db.base-copied")
            await asyncio.to_thread(place.put, moments.base_key(name, plan.line, at), _packed(copy))
            reach("db.base-sent")
        finally:
            await self._volumes.driver.delete(copy)
        async with self._turns[name]:
            now = database.record.backup
            if now is not None and now.line == plan.line:
                until = max(at, now.archived_until or at)
                await self._keep(database, replace(now, base_at=at, archived_until=until, problem=""))

    async def close(self) -> None:
        """Ends what is under way: it is done again."""
        working = list(self._working.values())
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


def _is_due(plan: BackupPlan | None, now: datetime) -> bool:
    if plan is None:
        return False
    if plan.base_at is None:
        return True
    changed = plan.archived_until is not None and plan.archived_until > plan.base_at
    return changed and now >= plan.base_at + timedelta(seconds=plan.every_s)


def _new_line(now: datetime) -> str:
    return moments.written(now)


# --- the log's files ------------------------------------------------------------------------------------------------------
def _status(volume: Path) -> Path:
    return volume / "postgres" / "pg_wal" / "archive_status"


def _ready(volume: Path) -> list[str]:
    """Names of segments that wait, the oldest first."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path.name.removesuffix(".ready") for path in _status(volume).glob("*.ready"))
    return []


def _ship(place: Place, name: str, line: str, volume: Path, segment: str) -> datetime:
    """The moment up to which the log is archived with it."""
    path = volume / "postgres" / "pg_wal" / segment
    try:
        moment = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        place.put(moments.segment_key(name, line, segment, moment), _compressed(path))
    except FileNotFoundError as error:
        raise StorageError(f"The segment {segment} of the log is gone.", hint="A new base will be taken.") from error
    reach("db.segment-sent")
    _mark(volume, segment)
    return moment


def _mark(volume: Path, segment: str) -> None:
    ready = _status(volume) / f"{segment}.ready"
    with contextlib.suppress(FileNotFoundError):
        ready.rename(ready.with_suffix(".done"))


def _mark_all(volume: Path) -> None:
    for segment in _ready(volume):
        _mark(volume, segment)


def _compressed(path: Path) -> Iterator[bytes]:
    packer = zlib.compressobj(COMPRESSION, wbits=GZIP)
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            yield packer.compress(piece)
    yield packer.flush()


def _packed(copy: Path) -> Iterator[bytes]:
    """The cluster of a copy as a compressed tar stream."""
    argv = ["tar", "-C", str(copy), "--sort=name", "--exclude=postgres/postmaster.pid", "-c", "postgres"]
    packer = zlib.compressobj(COMPRESSION, wbits=GZIP)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        assert tar.stderr is not None
        try:
            while piece := tar.stdout.read(READ_BYTES):
                yield packer.compress(piece)
            said = tar.stderr.read().decode("utf-8", "replace").strip()
        except BaseException:
            tar.kill()
            raise
    if tar.returncode:
        raise StorageError(f"Packing the database failed: {said[-300:]}")
    yield packer.flush()
