"""Offices that lie in S3 only: what is here of them goes, and they come back when somebody needs them.

The row decides. While it says that an office is archived, no volume of it here counts, and each may be deleted; it says so
only when the archive is whole in S3, and no longer only when the volume is whole here and on disk.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

from tenure.archive_head import new_id
from tenure.errors import ArchiveError, DiskFull, NotFound, StorageError, VolumeError
from tenure.export_keys import Key, read_key
from tenure.faultpoints import reach
from tenure.offices.archives import s3
from tenure.offices.archives.arrival import Arrival
from tenure.offices.archives.making import Places, ended
from tenure.offices.clones import Clones
from tenure.offices.models import Archived, OfficeRecord
from tenure.offices.snapshots import to_its_end
from tenure.offices.store import OfficeStore
from tenure.offices.volumes.base import VolumeDriver
from tenure.settings import Settings

FETCHES_AT_ONCE = 4
"""Each keeps a processor busy; others wait."""
_libc = ctypes.CDLL(None, use_errno=True)


class Depot:
    """Of one installation. What uses an office sees to it that nobody else does meanwhile."""

    def __init__(self, settings: Settings, volumes: VolumeDriver, store: OfficeStore, image: Path) -> None:
        """`image` is this machine's own: the configuration of databases is taken from it."""
        self._volumes, self._store, self._image = volumes, store, image
        self._places, self._clones = Places(settings), Clones(settings, volumes)
        self._turns = asyncio.Semaphore(FETCHES_AT_ONCE)

    async def keep(self, record: OfficeRecord, archived: Archived) -> None:
        """From now on the office is what lies there, and what is here is no part of it."""
        await self._store.set_archived(record.name, archived)

    async def free(self, record: OfficeRecord) -> None:
        """Deletes what is here of an archived office. Raises `VolumeError`."""
        await self._clones.forget(record.name)

    async def fetch(self, record: OfficeRecord) -> None:
        """Brings an archived office back: its volume is in place then, and the archive stays where it is. When it raises, the
        office is archived as before: `NotFound` when key or archive are gone, `StorageError`, `ArchiveError`, `DiskFull`."""
        archived = record.archived
        assert archived is not None
        try:
            async with self._turns:
                await self._fetch(record, archived)
        except (ArchiveError, DiskFull, NotFound, StorageError, VolumeError) as error:
            told = f"{record.name} is archived and could not be brought back: {error.message}"
            hint = error.hint or f"It lies in {archived.destination}, and is brought back by its next use."
            raise type(error)(told, hint=hint, details=error.details) from error

    async def _fetch(self, record: OfficeRecord, archived: Archived) -> None:
        key = None if archived.key_id is None else await asyncio.to_thread(self._key, archived.key_id)
        volume = self._places.arrivals / new_id()
        arrival = Arrival(volume, self._image, tuple)
        self._places.settings.snapshots_dir.mkdir(exist_ok=True)
        self._places.settings.snapshots_dir.chmod(0o700)
        try:
            await self._volumes.create_empty(volume)
            volume.chmod(0o700)
            unpacking = asyncio.ensure_future(asyncio.to_thread(_unpack, arrival, record, archived, key))
            try:
                await asyncio.shield(unpacking)
            except asyncio.CancelledError:
                await ended(unpacking)  # what it writes to is removed then
                raise
            reach("unarchive.fetched")
            await self._clones.bring_back(record, volume, archived.export)
        finally:
            await to_its_end(self._volumes.delete(volume))
        await asyncio.to_thread(_sync, self._places.settings.volumes_dir / record.name)
        reach("unarchive.placed")
        await self._store.set_archived(record.name, None)

    def _key(self, key_id: str) -> Key:
        path = self._places.keys / key_id
        try:
            return read_key(path)
        except NotFound:
            raise NotFound(f"Its key {key_id} is gone.", hint=f"Put your copy of the key file at {path}.") from None


def _unpack(arrival: Arrival, record: OfficeRecord, archived: Archived, key: Key | None) -> None:
    manifest = arrival.unpack([s3.Reader(s3.parse_place(archived.destination)).read], key)
    if (manifest.id, manifest.agent) != (archived.export, record.name):
        raise ArchiveError(
            f"What lies in {archived.destination} is {manifest.id} of {manifest.agent}, another archive."
        )


def _sync(volume: Path) -> None:
    """Returns when all of the file system that the volume is in is on disk."""
    descriptor = os.open(volume, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor):
            raise VolumeError(f"{volume.name} cannot be written to disk: {os.strerror(ctypes.get_errno())}.")
    finally:
        os.close(descriptor)
