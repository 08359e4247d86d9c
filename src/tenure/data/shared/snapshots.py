"""Snapshots of shared databases: a read-only copy of the volume and a row, written first and removed last."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

from tenure.data.shared.database import SharedDatabase
from tenure.data.shared.models import SnapshotKind, SnapshotRecord
from tenure.data.shared.store import DatabaseStore
from tenure.data.shared.volumes import SharedVolumes
from tenure.errors import Conflict, VolumeError
from tenure.faultpoints import reach
from tenure.names import check_name

SNAPSHOTS_MAX = 200
"""Of one database."""
AUTOMATIC_KEPT = 10
"""Of those that nobody asked for by name: the newest stay."""
_ID_BYTES = 6


class Snapshots:
    """The caller sees to it that one thing at a time is done with a database."""

    def __init__(self, store: DatabaseStore, volumes: SharedVolumes) -> None:
        self._store, self._volumes = store, volumes

    async def list(self, name: str) -> Sequence[SnapshotRecord]:
        """The oldest first, with what each takes alone."""
        taken = await self._store.snapshots(name)
        paths = {one.id: self._volumes.snapshot_of(name, one.id) for one in taken}
        alone: dict[Path, int] = {}
        with contextlib.suppress(VolumeError):  # a list without sizes is better than none
            alone = dict(await self._volumes.driver.exclusive(list(paths.values())))
        return [replace(one, exclusive_bytes=alone.get(paths[one.id])) for one in taken]

    async def take(
        self, database: SharedDatabase, name: str | None = None, kind: SnapshotKind = SnapshotKind.MANUAL
    ) -> SnapshotRecord:
        """As of one instant; the database goes on, unless copying takes longer than an instant. Raises `InvalidName`,
        `AlreadyExists`, `Conflict`, `DiskFull`."""
        if name is not None:
            check_name(name, "snapshot")
        return await self._take(database, name, kind, self.still(database))

    async def take_at_rest(self, database: SharedDatabase, kind: SnapshotKind) -> SnapshotRecord:
        """The same of a database that is stopped, and that nobody starts meanwhile."""
        return await self._take(database, None, kind, contextlib.nullcontext())

    async def _take(
        self,
        database: SharedDatabase,
        name: str | None,
        kind: SnapshotKind,
        still: contextlib.AbstractAsyncContextManager[None],
    ) -> SnapshotRecord:
        owner = database.record.name
        if kind is SnapshotKind.MANUAL and len(await self._store.snapshots(owner, unfinished=True)) >= SNAPSHOTS_MAX:
            raise Conflict(
                f"{owner} has {SNAPSHOTS_MAX} snapshots, which is the most there can be.",
                hint=f"Delete some: `tenure db snapshots {owner}`, `tenure db delete-snapshot {owner} SNAPSHOT`.",
            )
        snapshot_id = f"snap_{secrets.token_hex(_ID_BYTES)}"
        await self._store.add_snapshot(snapshot_id, owner, name, kind)
        try:
            async with still:
                await self._volumes.snapshot(owner, self._volumes.snapshot_of(owner, snapshot_id))
            reach("db.snapshot-copied")
            taken = await self._store.complete_snapshot(snapshot_id)
        except BaseException:
            await self._delete(owner, snapshot_id)
            raise
        await self._prune(owner, taken.id)
        return taken

    @contextlib.asynccontextmanager
    async def still(self, database: SharedDatabase) -> AsyncGenerator[None]:
        """Its volume can be copied: what PostgreSQL confirmed is in the copy, which starts as after a crash."""
        if self._volumes.driver.instant_snapshots:
            yield
        else:
            async with database.server.at_rest():
                yield

    async def delete(self, name: str, wanted: str) -> None:
        """Raises `NotFound`."""
        await self._delete(name, (await self._store.snapshot(name, wanted)).id)

    async def _delete(self, name: str, snapshot_id: str) -> None:
        await self._store.set_snapshot_deleting(snapshot_id)
        await self._volumes.driver.delete(self._volumes.snapshot_of(name, snapshot_id))
        await self._store.remove_snapshot(snapshot_id)

    async def _prune(self, name: str, keep: str) -> None:
        automatic = [one for one in await self._store.snapshots(name) if one.kind is not SnapshotKind.MANUAL]
        for one in automatic[:-AUTOMATIC_KEPT]:
            if one.id != keep:
                await self._delete(name, one.id)

    async def tidy(self, name: str) -> None:
        """For a server that starts: removes what a dead one had not finished taking or deleting."""
        for one in await self._store.snapshots(name, unfinished=True):
            if one.stage != "whole":
                await self._delete(name, one.id)

    async def remove_all(self, name: str) -> None:
        for one in await self._store.snapshots(name, unfinished=True):
            await self._delete(name, one.id)
        with contextlib.suppress(OSError):
            self._volumes.snapshot_of(name, "any").parent.rmdir()
