"""Two states of an office side by side: copy-on-write clones that are compared and thrown away.

Clones, because nobody may move anything in a tree that is walked on the host, and because a database is read by starting
it; and because a snapshot may then be deleted, taken or restored meanwhile. They lie among the volumes, which the users
of databases can pass, as they cannot pass the snapshots.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

from tenure.data.table_diff import ROOM_BYTES, compare_databases
from tenure.data.throwaway import ThrowAway
from tenure.offices.diff import Diff, compare
from tenure.offices.models import OfficeRecord
from tenure.offices.volumes.base import VolumeDriver
from tenure.settings import Settings

AT_ONCE_MAX = 2
"""Comparisons of all agents together: each takes up to two processors, 1 GiB of memory and room on disk."""


class Comparisons:
    """Of one installation. One at a time of each office, which the caller sees to."""

    def __init__(self, settings: Settings, volumes: VolumeDriver) -> None:
        self._settings, self._volumes = settings, volumes
        self._room = asyncio.Semaphore(AT_ONCE_MAX)

    def places(self, agent: str) -> tuple[Path, Path]:
        """Where the clones are: of what was, of what is now."""
        # No agent's name begins with a dot.
        return self._settings.volumes_dir / f".then-{agent}", self._settings.volumes_dir / f".now-{agent}"

    @contextlib.asynccontextmanager
    async def cleared(self, record: OfficeRecord) -> AsyncGenerator[tuple[Path, Path]]:
        """The places, empty before and after."""
        await self.tidy(record)
        try:
            yield self.places(record.name)
        finally:
            await asyncio.shield(self.tidy(record))

    async def clone(self, record: OfficeRecord, source: Path, place: Path) -> None:
        await self._volumes.create(source, place)
        await self._volumes.set_limit(place, record.limits.disk_bytes + ROOM_BYTES)

    async def compare(self, record: OfficeRecord, *, tables: bool) -> Diff:
        """What became of files and objects, and with `tables` of rows, between the clones."""
        then, now = self.places(record.name)
        async with self._room:
            found = await asyncio.to_thread(compare, then, now)
            if tables:
                before, after = (ThrowAway(self._settings, place, record.uid) for place in (then, now))
                found.database = await compare_databases(before, after)
            return found

    async def tidy(self, record: OfficeRecord) -> None:
        """Ends and removes what is at the places, be it of a server that died. Idempotent."""
        for place in self.places(record.name):
            if await self._volumes.exists(place):
                await ThrowAway(self._settings, place, record.uid).stop()
                await self._volumes.delete(place)
