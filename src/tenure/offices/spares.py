"""A clone of the image, made before an office needs it.

A btrfs clone takes effect with the next commit of the filesystem, so it waits for the disk (27–110 ms measured beside
other work, docs/decisions/0003); a rename does not. So one clone of the current image, or of a copy of it
(`tenure.offices.sources`), lies ready, and taking it is a rename. It costs no space: all of its blocks are its source's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from tenure.errors import TenureError
from tenure.offices.sources import Sources
from tenure.offices.volumes.base import VolumeDriver

REPLENISH_DELAY_S = 0.3
"""The office that took the spare boots first."""

logger = logging.getLogger(__name__)


class SpareVolumes:
    """At most one spare, in `directory`. Drivers whose clones are copies get none."""

    def __init__(self, volumes: VolumeDriver, directory: Path, prepare: Callable[[Path], None]) -> None:
        """`prepare` is called with each new spare and source, in a thread, for what all offices get before they boot."""
        self._volumes = volumes
        self._directory = directory
        self._prepare = prepare
        self._sources = Sources(volumes, directory, prepare)
        self._replenishing: asyncio.Task[None] | None = None
        self._copying: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    def _spare(self, image: Path) -> Path:
        return self._directory / f".spare-{image.resolve().name}"  # no agent can have this name

    async def clone(self, image: Path, target: Path) -> None:
        """Makes `target` a clone of `image`: the spare, where there is one. Raises as `VolumeDriver.create`."""
        async with self._lock:
            spare = self._spare(image)
            if await self._volumes.exists(spare):
                await self._volumes.move(spare, target)
            else:
                await self._sources.clone(image, target)
        self.replenish(image)

    def replenish(self, image: Path) -> None:
        """Has a spare made soon, unless one is being made; and a source, when it is time for one."""
        if not self._volumes.instant_snapshots:
            return
        if self._replenishing is None or self._replenishing.done():
            self._replenishing = asyncio.create_task(self._make(image))

    async def _make(self, image: Path) -> None:
        await asyncio.sleep(REPLENISH_DELAY_S)
        try:
            if self._copying is None or self._copying.done():
                await self._sources.tidy(image)
                self._copying = asyncio.create_task(self._copy(image)) if self._sources.is_due(image) else None
            async with self._lock:
                for old in self._directory.glob(".spare-*"):
                    if old != self._spare(image):
                        await self._volumes.delete(old)
                if not await self._volumes.exists(self._spare(image)):
                    await self._sources.clone(image, self._spare(image))
                    self._spare(image).chmod(0o700)  # an image made by an earlier version lets others pass
                    await asyncio.to_thread(self._prepare, self._spare(image))
                    await asyncio.to_thread(_part, self._spare(image))
        except (TenureError, OSError) as error:
            logger.warning("no spare volume: %s", error)

    async def _copy(self, image: Path) -> None:
        try:
            await self._sources.make(image)
        except (TenureError, OSError) as error:
            logger.warning("no copy of the image was made, offices are cloned from the image itself: %s", error)

    async def close(self) -> None:
        """Ends what is being made; what is there stays for the next server."""
        tasks = [task for task in (self._replenishing, self._copying) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _part(spare: Path) -> None:
    """Parts the spare from what it is a clone of where every new office is written first: that takes the longer the more clones
    there are (docs/decisions/0011), and the office that takes the spare should not wait for it. Raises `OSError`."""
    file = spare / ".parted"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        file.unlink(missing_ok=True)
