"""An office's memory image: where it lies, and that it is used once, with the volume that its processes left.

The volume has a *generation* in its `office.json`. An image is made with it, fits no other, and the volume gets a new one
before the processes of an image run: from then on they change the volume, and the image is a thing of the past, whatever
dies in between.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tenure.errors import DiskFull
from tenure.faultpoints import reach
from tenure.offices.boot import StartFromImage
from tenure.offices.clones import generation_of, renew_generation
from tenure.offices.sandboxes import images
from tenure.offices.sandboxes.base import SandboxDriver, SandboxSpec
from tenure.settings import Settings

POOL_SPARE_BYTES = 1024**3
"""What a memory image leaves free in the pool: offices that run need it more."""


@dataclass(frozen=True)
class MemoryImage:
    """Of the office `agent` with the volume `volume`."""

    settings: Settings
    sandboxes: SandboxDriver
    agent: str
    volume: Path

    @property
    def path(self) -> Path:
        return self.settings.memory_dir / self.agent

    @property
    def exists(self) -> bool:
        return self.path.is_dir()

    async def make(self, memory_bytes: int) -> None:
        """Ends the sandbox, which has drained. Raises as `SandboxDriver.checkpoint`, and `DiskFull` before it begins when the
        pool has no room for about `memory_bytes`."""
        directory = self.settings.memory_dir
        directory.mkdir(mode=0o700, exist_ok=True)
        free_bytes = shutil.disk_usage(directory).free
        if free_bytes < memory_bytes + POOL_SPARE_BYTES:
            raise DiskFull(
                f"The pool has {free_bytes / 1024**3:.1f} GB free, which is too little for a memory image of {self.agent}."
            )
        await self.discard()
        binding = await asyncio.to_thread(generation_of, self.volume)
        if binding is None:
            binding = await asyncio.to_thread(renew_generation, self.volume)
        reach("hibernate.drained")
        await self.sandboxes.checkpoint(self.agent, self.path, binding=binding)
        reach("hibernate.imaged")

    def for_boot(self) -> StartFromImage | None:
        """Starts a sandbox of this image, once. None when there is no image."""
        return self._start if self.exists else None

    async def _start(self, spec: SandboxSpec) -> None:
        binding = await asyncio.to_thread(generation_of, self.volume)
        await asyncio.to_thread(renew_generation, self.volume)
        reach("wake.image-spent")
        try:
            await self.sandboxes.start(spec, image=self.path, binding=binding or "none")
            reach("wake.restored")
        finally:
            _away(self.path)

    async def discard(self) -> None:
        """Removes the image, if there is one."""
        await asyncio.to_thread(images.discard, self.path)


def _away(image: Path) -> None:
    """Removes a spent image without making anybody wait: it may be large."""
    spent = image.with_name(f".{image.name}-spent")
    try:
        shutil.rmtree(spent, ignore_errors=True)
        os.rename(image, spent)
    except OSError:
        return
    task = asyncio.ensure_future(asyncio.to_thread(shutil.rmtree, spent, ignore_errors=True))
    _removing.add(task)
    task.add_done_callback(_removing.discard)


_removing: set[asyncio.Future[None]] = set()
