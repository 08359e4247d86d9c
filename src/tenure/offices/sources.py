"""What offices are cloned from: the image, or full copies of it, so that few volumes share any block.

Quotas make the kernel look up, for each change of a shared block, all volumes that share it. So what creating, first
writing and deleting cost grows with the number of clones of one volume (docs/decisions/0011). While there are few offices they
are cloned from the image; later from *sources*, full copies of the image which share nothing with it, each of which
gives a limited number of clones. The last of them is the source itself, so none is left over.

A source is a volume named `.source-IMAGE.N`, N being the clones that it has given: it is counted by a rename before each, so
that the count outlives the server. One in the making is `.source-IMAGE.new`, and becomes a source when it is whole and on disk.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tenure.errors import DiskFull, VolumeError
from tenure.faultpoints import reach
from tenure.offices.tools import run_tool
from tenure.offices.volumes.base import VolumeDriver

CLONES_PER_SOURCE = 32
CLONES_PER_SOURCE_MAX = 2 * CLONES_PER_SOURCE
"""While the next source is not ready."""
CLONES_LEFT_MIN = 16
"""With so many left, the next source is made: copying takes seconds, and a burst of new offices must not wait for it."""
ROOM_LEFT_BYTES_MIN = 2 * 1024**3
"""What a copy must leave in the pool: offices come before it."""
COPY_TIMEOUT_S = 600.0
COPY_AGAIN_S = 60.0
"""How long a copy that failed is not tried again."""
PREFIX = ".source-"
IN_THE_MAKING = "new"


class Sources:
    """The sources in `directory`, which holds the offices' volumes, too. At most one `clone` at a time, and one `make`."""

    def __init__(self, volumes: VolumeDriver, directory: Path, prepare: Callable[[Path], None]) -> None:
        self._volumes, self._directory, self._prepare = volumes, directory, prepare
        self._failed_at: float | None = None

    async def clone(self, image: Path, target: Path) -> None:
        """Makes `target` a clone of a source, or of `image` where none is ready. Raises as `VolumeDriver.create`."""
        ready = self._ready(image)
        if not ready:
            await self._volumes.create(image, target)
            return
        given = max(ready) + 1
        source = ready[given - 1]
        if given >= CLONES_PER_SOURCE_MAX or (given >= CLONES_PER_SOURCE and len(ready) > 1):
            await self._volumes.move(source, target)
            return
        counted = self._path(image, given)
        await self._volumes.move(source, counted)
        reach("source.counted")
        await self._volumes.create(counted, target)

    def is_due(self, image: Path) -> bool:
        """Whether a source should be made now."""
        if not self._volumes.instant_snapshots:
            return False
        if self._failed_at is not None and time.monotonic() < self._failed_at + COPY_AGAIN_S:
            return False
        left = sum(max(CLONES_PER_SOURCE - given, 0) for given in self._ready(image))
        # The image has given at most as many clones as there are volumes, and may give as many as a source.
        return left <= CLONES_LEFT_MIN and len(os.listdir(self._directory)) >= CLONES_PER_SOURCE - CLONES_LEFT_MIN

    async def make(self, image: Path) -> None:
        """Makes a source; takes seconds. Raises `DiskFull` when there is no room for it, `VolumeError`. A failed or cancelled one
        leaves nothing, a killed one what `tidy` deletes."""
        fresh = self._path(image, IN_THE_MAKING)
        try:
            await self._volumes.delete(fresh)
            await self._need_room(image)
            await self._volumes.create_empty(fresh)
            fresh.chmod(0o700)
            reach("source.begun")
            # Of an image as of a source: neither has volumes inside, nor more than one file system.
            await _tool("cp", "--archive", "--reflink=never", "--", f"{image.resolve()}/.", str(fresh))
            fresh.chmod(0o700)  # an image made by an earlier version lets others pass
            reach("source.copied")
            await asyncio.to_thread(self._prepare, fresh)
            await _tool("sync", "--file-system", "--", str(fresh))  # else a machine that dies leaves half a source
            reach("source.whole")
            await self._volumes.move(fresh, self._path(image, 0))
        except BaseException:
            self._failed_at = time.monotonic()
            await asyncio.shield(self._volumes.delete(fresh))
            raise

    async def tidy(self, image: Path) -> None:
        """Deletes what a dead server left in the making, and sources of other images. Nothing may be in the making."""
        for path in self._directory.glob(f"{PREFIX}*"):
            # By its name, not by a list of what is ready: a clone may be taken meanwhile, which renames its source.
            if _given(path.name, image) is None:
                await self._volumes.delete(path)

    def _path(self, image: Path, ending: int | str) -> Path:
        return self._directory / f"{PREFIX}{image.resolve().name}.{ending}"  # no agent can have this name

    def _ready(self, image: Path) -> dict[int, Path]:
        """By how many clones each has given."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return {}
        return {given: self._path(image, given) for name in names if (given := _given(name, image)) is not None}

    async def _need_room(self, image: Path) -> None:
        wanted = (await self._volumes.usage(image.resolve())).used_bytes
        if shutil.disk_usage(self._directory).free < wanted + ROOM_LEFT_BYTES_MIN:
            raise DiskFull(
                f"The pool has no room for another copy of the image ({wanted / 1024**2:.0f} MB).",
                hint="Delete offices or snapshots that nobody needs; until then new offices are made more slowly.",
            )


def _given(name: str, image: Path) -> int | None:
    """How many clones the source of this name has given; None when it is no source of `image`."""
    prefix = f"{PREFIX}{image.resolve().name}."
    ending = name.removeprefix(prefix)
    return int(ending) if name.startswith(prefix) and ending.isascii() and ending.isdigit() else None


async def _tool(*words: str) -> None:
    done = await run_tool(words, timeout_s=COPY_TIMEOUT_S, raises=VolumeError)
    if done.exit_code:
        failure = DiskFull if "No space left" in done.last_words else VolumeError
        raise failure(f"Copying the image failed: {done.last_words}")
