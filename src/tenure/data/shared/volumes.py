"""Where shared databases lie, and how one volume takes another's place: prepared out of sight, put there by renames.

Whoever dies in between leaves the old volume or the new one, whole; `settle` puts it in place.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from tenure.data.shared.models import DatabaseRecord
from tenure.data.shared.template import ensure_template
from tenure.faultpoints import reach
from tenure.offices.volumes.base import VolumeDriver
from tenure.settings import Settings


@dataclass(frozen=True)
class SharedVolumes:
    """Of one installation. No database can have a name that begins with a dot."""

    settings: Settings
    driver: VolumeDriver

    def of(self, name: str) -> Path:
        return self.settings.shared_dir / name

    def snapshot_of(self, name: str, snapshot_id: str) -> Path:
        return self.settings.shared_dir / ".snapshots" / name / snapshot_id

    def base_of(self, name: str) -> Path:
        """A copy of the volume while it is sent to where its backups are."""
        return self.settings.shared_dir / ".bases" / name

    def _staged(self, name: str) -> Path:
        return self.settings.shared_dir / ".staged" / name

    def _replaced(self, name: str) -> Path:
        return self.settings.shared_dir / ".replaced" / name

    async def make(self, record: DatabaseRecord) -> None:
        """A new database's volume, with an empty cluster."""
        template = await ensure_template(self.settings, self.driver)
        await self.clone(record, template)

    async def make_empty(self, record: DatabaseRecord) -> None:
        """A new database's volume for a cluster that comes from elsewhere. It has no limit yet."""
        await self.driver.delete(self.of(record.name))
        await self.driver.create_empty(self.of(record.name))
        await asyncio.to_thread(_take_over, self.of(record.name))

    async def clone(self, record: DatabaseRecord, source: Path) -> None:
        """A new database's volume, which is a clone of `source`. What a killed attempt left is replaced."""
        await self._close_ways()
        await self.stage(record, source)
        await self.driver.delete(self.of(record.name))
        await self.driver.move(self._staged(record.name), self.of(record.name))

    async def stage(self, record: DatabaseRecord, source: Path) -> None:
        """Prepares a clone."""
        staged = self._staged(record.name)
        await self.driver.delete(staged)
        await self.driver.create(source, staged)
        reach("db.staged")
        await self.driver.set_limit(staged, record.limits.disk_bytes)
        await asyncio.to_thread(_take_over, staged)

    async def replace(self, record: DatabaseRecord, source: Path) -> None:
        """A clone of `source` becomes the database's volume. When that fails, the old one is in its place."""
        name = record.name
        try:
            await self.stage(record, source)
            reach("db.prepared")
            await self.driver.delete(self._replaced(name))
            await self.driver.move(self.of(name), self._replaced(name))
            reach("db.moved-away")
            await self.driver.move(self._staged(name), self.of(name))
            reach("db.placed")
            await self.driver.delete(self._replaced(name))
        except BaseException:
            await self.settle(name)
            raise

    async def settle(self, name: str) -> None:
        """Ends what a dead server left in the middle: afterwards the database has one volume, the old or the new one."""
        for candidate in (self._staged(name), self._replaced(name)):
            if await self.driver.exists(candidate):
                # The old one was moved away only when the new one was prepared.
                if await self.driver.exists(self.of(name)):
                    await self.driver.delete(candidate)
                else:
                    await self.driver.move(candidate, self.of(name))
        await self.driver.delete(self.base_of(name))

    async def snapshot(self, name: str, target: Path) -> None:
        await self._close_ways()
        await self.driver.snapshot(self.of(name), target)

    async def forget(self, name: str) -> None:
        """Deletes all of a database but its snapshots."""
        for volume in (self._staged(name), self._replaced(name), self.base_of(name), self.of(name)):
            await self.driver.delete(volume)

    async def _close_ways(self) -> None:
        """Into what is prepared or kept no server's user may pass; into the volumes themselves each its own."""
        for place in (self.settings.shared_dir / part for part in (".snapshots", ".staged", ".replaced", ".bases")):
            await asyncio.to_thread(place.mkdir, parents=True, exist_ok=True)
            await asyncio.to_thread(place.chmod, 0o700)


def _take_over(volume: Path) -> None:
    """The user of the database that it was cloned of must not get in; its first start gives it to its own."""
    if os.geteuid() == 0:
        os.chown(volume, 0, 0)
    volume.chmod(0o700)
