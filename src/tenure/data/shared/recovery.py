"""A new volume with a database as it was at one moment: a base unpacked, and the log replayed up to there by PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shlex
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tenure.data.shared.moments import Needed, Segment
from tenure.data.shared.places import Place
from tenure.data.shared.server import SharedServer, parameters
from tenure.errors import ArchiveError, InternalError
from tenure.faultpoints import reach
from tenure.postgres.files import own_tree

LOG_DIRECTORY = "log-to-replay"
REPLAY_TIMEOUT_S = 24 * 3600.0
SEGMENT_BYTES_MAX = 64 * 1024 * 1024
NOT_REACHED = "recovery ended before configured recovery target was reached"
GZIP = 31


@dataclass(frozen=True)
class Recovery:
    """`volume` is empty and nobody else's; `server` is the one that will serve it."""

    server: SharedServer
    volume: Path
    uid: int

    async def run(self, place: Place, what: Needed, to: datetime) -> None:
        """Afterwards the volume holds a stopped cluster with what was committed up to `to`. Raises `ArchiveError` for a base or a
        log that is damaged, `StorageError`, `DiskFull`, `InternalError`."""
        await asyncio.to_thread(_unpack, place, what.base.key, self.volume)
        reach("db.unpacked")
        await asyncio.to_thread(_fetch, place, what.segments, self.volume / LOG_DIRECTORY, self.uid)
        (self.volume / "postgres" / "recovery.signal").touch()
        try:
            target = {"recovery_target_time": f"{to.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00"}
            try:
                await self.server.replay(self._replaying() | target, REPLAY_TIMEOUT_S)
            except InternalError as error:
                if NOT_REACHED not in str(error.details.get("log", "")):
                    raise ArchiveError(f"The log cannot be replayed: {error.message}", details=error.details) from error
                # Nothing was committed between the moment and the end of the log: the end is the moment.
                await self.server.replay(self._replaying(), REPLAY_TIMEOUT_S)
            reach("db.replayed")
        finally:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(shutil.rmtree, self.volume / LOG_DIRECTORY)
        self.server.set_parameters(parameters(self.volume, archives=False))

    def _replaying(self) -> dict[str, str]:
        log = shlex.quote(str(self.volume / LOG_DIRECTORY))
        return parameters(self.volume, archives=False) | {
            "restore_command": f"cp {log}/%f %p",
            "recovery_target_action": "promote",
            "recovery_target_timeline": "latest",
            "hot_standby": "off",
            "wal_level": "replica",
        }


class _Stream(io.RawIOBase):
    """Pieces as a file that is read once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest += piece
        size = len(self._rest) if size < 0 else size
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def _unpack(place: Place, key: str, volume: Path) -> None:
    """What it says of owners and of places outside is not believed."""
    try:
        with tarfile.open(fileobj=_Stream(place.get(key)), mode="r|gz") as archive:
            archive.extractall(volume, filter=_only_the_cluster)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise ArchiveError(f"The base {key} is damaged: {error}.") from error
    data = volume / "postgres"
    if not (data / "PG_VERSION").is_file():
        raise ArchiveError(f"The base {key} holds no database.")
    for directory in (data, *(path for path in data.rglob("*") if path.is_dir())):
        directory.chmod(0o700)


def _only_the_cluster(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    if member.name.split("/", 1)[0] != "postgres" or not (member.isdir() or member.isreg()):
        raise tarfile.FilterError(f"{member.name[:200]} does not belong in it")
    return tarfile.data_filter(member, path)


def _fetch(place: Place, segments: Sequence[Segment], target: Path, uid: int) -> None:
    target.mkdir(mode=0o700)
    for segment in segments:
        unpacker, size = zlib.decompressobj(wbits=GZIP), 0
        with (target / segment.name).open("wb") as file:
            try:
                for piece in place.get(segment.key):
                    plain = unpacker.decompress(piece, SEGMENT_BYTES_MAX + 1)
                    size += len(plain)
                    file.write(plain)
                    if size > SEGMENT_BYTES_MAX:
                        raise ArchiveError(f"The segment {segment.name} of the log is too large.")
            except zlib.error as error:
                raise ArchiveError(f"The segment {segment.name} of the log is damaged: {error}.") from error
        if not unpacker.eof:
            raise ArchiveError(f"The segment {segment.name} of the log is cut off.")
    own_tree(target, uid, uid)
