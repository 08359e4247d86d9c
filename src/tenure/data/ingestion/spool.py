"""Where files lie while they are loaded: a directory for each load, gone with its end, whatever that is."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tenure.errors import DiskFull, TooLarge
from tenure.settings import Settings

FILE_BYTES_MAX = 16 * 1024**3
SPOOL_BYTES_MAX = 64 * 1024**3
"""Of all files that are here."""
FREE_BYTES_MIN = 1024**3
"""What is left free of the disk: the control database is on it."""
PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Spooled:
    digest: str
    size_bytes: int


class Spool:
    def __init__(self, settings: Settings, *, file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self._root = settings.home / "loads"
        self._settings, self._file_bytes_max = settings, file_bytes_max

    def directory(self, load_id: str) -> Path:
        return self._root / load_id

    def is_here(self, load_id: str) -> bool:
        return (self.directory(load_id) / "file").is_file()

    async def fill(self, load_id: str, chunks: AsyncIterator[bytes]) -> Spooled:
        """Writes all of `chunks` to the load's file. Raises `TooLarge`, `DiskFull`, and what `chunks` raises; then there is
        nothing."""
        try:
            file = await asyncio.to_thread(self._new, load_id)
            with file:
                return await self._write(file, chunks)
        except OSError as error:
            await self.drop(load_id)
            raise DiskFull(f"The file cannot be kept while it is loaded: {error.strerror}.", hint=_HINT) from error
        except BaseException:
            await asyncio.shield(self.drop(load_id))
            raise

    async def _write(self, file: BinaryIO, chunks: AsyncIterator[bytes]) -> Spooled:
        digest, size, gathered = hashlib.sha256(), 0, bytearray()

        def flush(piece: bytes) -> None:
            digest.update(piece)
            file.write(piece)

        async for chunk in chunks:
            gathered += chunk
            size += len(chunk)
            if size > self._file_bytes_max:
                raise TooLarge(f"A file to load has at most {self._file_bytes_max >> 20} MiB.", hint="Split it.")
            if len(gathered) >= PIECE_BYTES:
                await asyncio.to_thread(flush, bytes(gathered))
                gathered.clear()
                await asyncio.to_thread(self._refuse_when_full)
        await asyncio.to_thread(flush, bytes(gathered))
        await asyncio.to_thread(lambda: (file.flush(), os.fsync(file.fileno())))
        return Spooled(digest.hexdigest(), size)

    def _new(self, load_id: str) -> BinaryIO:
        directory = self.directory(load_id)
        directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        self._root.chmod(0o700)
        self._refuse_when_full()
        return (directory / "file").open("wb")

    def _refuse_when_full(self) -> None:
        facts = os.statvfs(self._root)
        if facts.f_bavail * facts.f_frsize < FREE_BYTES_MIN:
            raise DiskFull("The disk of the server has no room for files to load.", hint=_HINT)
        if self._size_bytes() > SPOOL_BYTES_MAX:
            raise DiskFull(
                "Too much is being loaded at the same time.", hint="Wait, or answer loads that ask something."
            )

    def _size_bytes(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self._root.glob("*/file"))

    async def drop(self, load_id: str) -> None:
        """Not an error when there is nothing."""
        await asyncio.to_thread(shutil.rmtree, self.directory(load_id), ignore_errors=True)

    async def sweep(self, kept: Collection[str]) -> None:
        """Removes what belongs to no load of `kept`."""

        def remove() -> None:
            for path in self._root.iterdir() if self._root.is_dir() else ():
                if path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True)

        await asyncio.to_thread(remove)


_HINT = "Free some of it; a load takes as much as its file has."
