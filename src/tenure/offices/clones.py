"""Volumes made of snapshots: cloned and prepared where nobody looks, then put in place by a rename.

Whoever dies in between leaves the office's old volume or the new one, whole; `settle` puts it in place.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tenure.faultpoints import reach
from tenure.offices import furnish
from tenure.offices.models import OfficeRecord
from tenure.offices.volumes.base import VolumeDriver
from tenure.settings import Settings

OFFICE_FILE = "office.json"
OFFICE_FILE_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class Clones:
    """Of one installation."""

    settings: Settings
    volumes: VolumeDriver

    # No agent can have a name that begins with a dot.
    def staged(self, agent: str) -> Path:
        """Where a clone is prepared."""
        return self.settings.snapshots_dir / ".staged" / agent

    def replaced(self, agent: str) -> Path:
        """Where the volume goes that a clone took the place of."""
        return self.settings.snapshots_dir / ".replaced" / agent

    async def stage(self, record: OfficeRecord, snapshot: Path, *, fork: bool) -> None:
        """Makes and prepares a clone of `snapshot` for the office; for a `fork`, one that is another machine."""
        staged = self.staged(record.name)
        await self.volumes.delete(staged)
        await self.volumes.create(snapshot, staged)
        reach("restore.staged")
        await self.volumes.set_limit(staged, record.limits.disk_bytes)
        await asyncio.to_thread(_prepare, staged, record, snapshot.name, fork)

    async def take_in(self, record: OfficeRecord, volume: Path) -> None:
        """A volume that came from another machine becomes the office's, which has none yet."""
        await self.volumes.set_limit(volume, record.limits.disk_bytes)
        await asyncio.to_thread(_prepare, volume, record, record.origin or "", True)
        reach("import.prepared")
        await self.volumes.move(volume, self.settings.volumes_dir / record.name)

    async def bring_back(self, record: OfficeRecord, volume: Path, origin: str) -> None:
        """A volume that was away, as the export `origin`, becomes the office's again, with the identity that it had. When that
        fails, the volume that was there is in its place."""
        try:
            await self.volumes.set_limit(volume, record.limits.disk_bytes)
            await asyncio.to_thread(_prepare, volume, record, origin, False)
            await self.volumes.delete(self.staged(record.name))
            await self.volumes.move(volume, self.staged(record.name))
            await self.place(record)
        except BaseException:
            await self.settle(record.name)
            raise

    async def forget(self, agent: str) -> None:
        """Deletes the office's volume and whatever a dead server left beside it."""
        for volume in (self.staged(agent), self.replaced(agent), self.settings.volumes_dir / agent):
            await self.volumes.delete(volume)

    async def place(self, record: OfficeRecord) -> None:
        """The staged clone becomes the office's volume; what was there goes."""
        volume, replaced = self.settings.volumes_dir / record.name, self.replaced(record.name)
        reach("restore.prepared")
        if await self.volumes.exists(volume):
            await self.volumes.delete(replaced)
            await self.volumes.move(volume, replaced)
            reach("restore.moved-away")
        await self.volumes.move(self.staged(record.name), volume)
        reach("restore.placed")
        await self.volumes.delete(replaced)

    async def replace(self, record: OfficeRecord, snapshot: Path) -> None:
        """A clone of `snapshot` becomes the office's volume. When that fails, the old one is in its place."""
        try:
            await self.stage(record, snapshot, fork=False)
            await self.place(record)
        except BaseException:
            await self.settle(record.name)
            raise

    async def settle(self, agent: str) -> None:
        """Ends what a dead server left in the middle: afterwards the office has one volume, the old or the new one. Does
        nothing when nothing was left. No clone may be in the making."""
        volume = self.settings.volumes_dir / agent
        # The old one was moved away only when the new one was prepared.
        for candidate in (self.staged(agent), self.replaced(agent)):
            if await self.volumes.exists(candidate):
                if await self.volumes.exists(volume):
                    await self.volumes.delete(candidate)
                else:
                    await self.volumes.move(candidate, volume)


def _prepare(volume: Path, record: OfficeRecord, origin: str, fork: bool) -> None:
    if fork:
        # The origin's database user must not get in, as it could until the fork's own database starts.
        if os.geteuid() == 0:
            os.chown(volume, 0, 0)
        volume.chmod(0o700)
        furnish.forget_identity(volume)
    write_office_file(volume, record, origin)


def write_office_file(volume: Path, record: OfficeRecord, origin: str | None) -> None:
    """Says in the volume itself whose it is and what it was made of. It is a new generation."""
    _write(volume, {"agent": record.name, "image": record.image, "origin": origin, "generation": _new_generation()})


def origin_of(volume: Path) -> str | None:
    """The snapshot that the volume was made of; None for one made of an image."""
    return _read(volume).get("origin")


def generation_of(volume: Path) -> str | None:
    """What tells this state of the root from those before something else than its processes changed it, or they were
    started again."""
    return _read(volume).get("generation")


def renew_generation(volume: Path) -> str:
    """Gives the volume another generation, which is on disk then. Raises `OSError`."""
    facts = _read(volume) | {"generation": _new_generation()}
    _write(volume, facts)
    return facts["generation"]


def _new_generation() -> str:
    return secrets.token_hex(8)


def _read(volume: Path) -> dict[str, Any]:
    try:
        with (volume / OFFICE_FILE).open("rb") as file:
            facts: Any = json.loads(file.read(OFFICE_FILE_BYTES_MAX))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", facts) if isinstance(facts, dict) else {}


def _write(volume: Path, facts: dict[str, Any]) -> None:
    fresh = volume / f"{OFFICE_FILE}.new"
    with fresh.open("w") as file:
        file.write(json.dumps(facts))
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(volume / OFFICE_FILE)
    directory = os.open(volume, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
