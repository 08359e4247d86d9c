"""One export in the making: the copy of the office, what is read of it, and what is left when it ends either way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tenure
from tenure.archive_head import Head
from tenure.errors import Conflict, NotFound, TenureError
from tenure.export_keys import Key
from tenure.faultpoints import reach
from tenure.offices.archives.frames import write_frames
from tenure.offices.archives.index import IndexWriter, Stand, read_stand
from tenure.offices.archives.manifest import Manifest
from tenure.offices.archives.pack import Base, Packer
from tenure.offices.office import Office
from tenure.offices.snapshots import to_its_end
from tenure.offices.volumes.base import VolumeDriver
from tenure.settings import Settings

PG_VERSION_BYTES_MAX = 32
ERROR_CHARS_MAX = 500


@dataclass(frozen=True)
class Places:
    """Where what belongs to exports lies on this machine."""

    settings: Settings

    @property
    def copies(self) -> Path:
        """Copies of offices that are being read. No agent can have a name that begins with a dot."""
        return self.settings.snapshots_dir / ".exported"

    @property
    def arrivals(self) -> Path:
        """Volumes that are being made of archives."""
        return self.settings.snapshots_dir / ".imported"

    @property
    def indexes(self) -> Path:
        return self.settings.home / "exports" / "index"

    @property
    def keys(self) -> Path:
        """Keys of schedules."""
        return self.settings.home / "exports" / "keys"

    def index(self, export_id: str) -> Path:
        return self.indexes / f"{export_id}.index"


@dataclass
class Making:
    """`pieces` are the bytes of the archive, made as they are read, which blocks. `stop` has them end with an error."""

    id: str
    packer: Packer
    index: IndexWriter
    pieces: Iterator[bytes]
    sent_bytes: int = 0
    whole: bool = False
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if self._stopped.is_set():
                raise Conflict("The export was broken off.")
            self.sent_bytes += len(piece)
            reach("export.piece")
            yield piece
        self.index.commit()
        self.whole = True

    def stop(self) -> None:
        self._stopped.set()


@contextlib.asynccontextmanager
async def making(
    places: Places,
    volumes: VolumeDriver,
    office: Office,
    head: Head,
    runs: dict[str, int],
    journal: list[bytes],
    key: Key | None,
    *,
    vacated: bool = False,
) -> AsyncGenerator[Making]:
    """An export of the office as of one instant in between; the caller may have `vacated` it. Afterwards its index is there if
    all of it was read, and nothing else is. Raises `NotFound` when the base's index is not here any more."""
    base_stand = None if head.base is None else await asyncio.to_thread(_stand, places, head)
    copy = places.copies / head.id
    places.settings.snapshots_dir.mkdir(exist_ok=True)
    places.settings.snapshots_dir.chmod(0o700)  # below lie set-uid files of an agent's making
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(lambda: to_its_end(volumes.delete(copy)))
        async with contextlib.nullcontext() if vacated else office.still():
            await volumes.snapshot(office.volume, copy)
        reach("export.copied")
        origin = await volumes.origin(copy)
        stand = Stand(head.id, origin.volume, origin.generation) if origin else Stand(head.id)
        base = None
        if base_stand is not None and head.base is not None:
            base = Base(places.index(head.base), await changed_since(volumes, copy, base_stand))
        manifest = await _manifest(volumes, office, head, copy, runs)
        index = stack.enter_context(IndexWriter(places.index(head.id), stand))
        packer = Packer(copy, manifest, journal, index, base)
        pieces = write_frames(packer.stream(), head, key)
        yield Making(head.id, packer, index, pieces)


async def changed_since(volumes: VolumeDriver, copy: Path, base: Stand) -> frozenset[int] | None:
    """The numbers of the inodes in a copy that changed since an export; None where nobody can tell: for another driver, and for
    an office that was put back meanwhile, whose volume is another one."""
    origin = await volumes.origin(copy)
    if origin is None or origin.volume != base.volume:
        return None
    return await volumes.changed_since(copy, base.generation)


def _stand(places: Places, head: Head) -> Stand:
    assert head.base is not None
    try:
        return read_stand(places.index(head.base))
    except FileNotFoundError:
        raise NotFound(
            f"What the export {head.base} had is not known here any more, so nothing can be exported since then.",
            hint="Make a whole export: leave --since out.",
        ) from None


async def _manifest(volumes: VolumeDriver, office: Office, head: Head, copy: Path, runs: dict[str, int]) -> Manifest:
    record = office.record
    return Manifest(
        id=head.id,
        base=head.base,
        agent=record.name,
        created_at=head.created_at.isoformat(),
        version=tenure.__version__,
        driver=volumes.name,
        image=record.image,
        limits=record.limits,
        egress=list(record.egress),
        postgres=postgres_version(copy / "postgres"),
        volume_bytes=(await volumes.usage(copy)).used_bytes,
        runs=runs,
    )


def postgres_version(data_dir: Path) -> str:
    """The major version of a database's files; empty where there are none. For directories that no agent writes to."""
    try:
        descriptor = os.open(data_dir / "PG_VERSION", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        return file.read(PG_VERSION_BYTES_MAX).decode("ascii", "replace").strip()


async def ended(task: asyncio.Future[Any]) -> None:
    """Returns when it is over, however often the caller is cancelled meanwhile (a server does so again and again)."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    with contextlib.suppress(Exception, asyncio.CancelledError):
        task.result()


def reason_of(error: BaseException) -> str:
    """What a row says of an export that failed."""
    if isinstance(error, TenureError):
        return error.message[:ERROR_CHARS_MAX]
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "It was broken off."
    return f"{type(error).__name__}: {error}"[:ERROR_CHARS_MAX]


async def sweep(volumes: VolumeDriver, directory: Path) -> None:
    """Removes what a dead server left in a directory of volumes in the making."""
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if await volumes.exists(path):
            await volumes.delete(path)
        elif path.is_dir() and not path.is_symlink():
            await asyncio.to_thread(shutil.rmtree, path)
        else:
            path.unlink()
