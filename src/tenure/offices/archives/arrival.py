"""An office in the making, of archives: all of it, or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tenure.errors import ArchiveError, DiskFull
from tenure.export_keys import Key
from tenure.faultpoints import reach
from tenure.offices.archives.frames import RawRead
from tenure.offices.archives.making import postgres_version
from tenure.offices.archives.manifest import Manifest
from tenure.offices.archives.pack import LEFT_AT_HOME
from tenure.offices.archives.unpack import FREE_BYTES_MIN, Unpacker

SLACK_BYTES = 1024**3
"""What an archive may take beyond what it says, and a quarter: names and holes take differently on other disks."""


@dataclass
class Arrival:
    """`volume` is empty and nobody else's. `unpack` blocks."""

    volume: Path
    image: Path
    """This machine's own, for the configuration of its databases."""
    check_egress: Callable[[Sequence[str]], Sequence[str]]
    manifest: Manifest | None = None
    journal: bytes = b""
    written_bytes: int = 0
    _unpacker: Unpacker | None = field(default=None)

    def unpack(self, archives: Iterable[RawRead], key: Key | None) -> Manifest:
        """The whole archive first, then what continues it. Raises `ArchiveError`, `DiskFull`, `InvalidArgument`."""
        unpacker = Unpacker(self.volume, self._accept)
        try:
            for read in archives:
                unpacker.apply(read, key)
                reach("import.applied")
        finally:
            unpacker.close()
        if unpacker.manifest is None:
            raise ArchiveError("There is no archive.")
        self.manifest, self.journal, self.written_bytes = unpacker.manifest, unpacker.journal, unpacker.written_bytes
        for root in ("rootfs", "objects"):
            if not (self.volume / root).is_dir():
                raise ArchiveError(f"The archive has no {root}: it is no office.")
        self._configure()
        return unpacker.manifest

    def _accept(self, manifest: Manifest) -> int:
        here = postgres_version(self.image / "postgres")
        if manifest.postgres and here and manifest.postgres != here:
            raise ArchiveError(
                f"The office's database is one of PostgreSQL {manifest.postgres[:20]}, and here is PostgreSQL {here}.",
                hint="Import it with a Tenure of the same PostgreSQL, or export its tables with `tenure sql` there.",
            )
        self.check_egress(manifest.egress)
        room = os.statvfs(self.volume)
        free_bytes = room.f_bavail * room.f_frsize
        if manifest.base is None and manifest.volume_bytes + FREE_BYTES_MIN > free_bytes:
            raise DiskFull(
                f"The office takes {manifest.volume_bytes / 1024**3:.1f} GB, and here are {free_bytes / 1024**3:.1f} GB free.",
                hint="Free some, or import elsewhere.",
            )
        return max(manifest.limits.disk_bytes, manifest.volume_bytes) * 5 // 4 + SLACK_BYTES

    def _configure(self) -> None:
        """The database gets this machine's configuration: what it says is run on the host."""
        data_dir = self.volume / "postgres"
        if not data_dir.is_dir():
            return
        owner = data_dir.stat()
        for path in LEFT_AT_HOME:
            own = self.image / path
            if own.is_file() and not path.startswith("postgres/postmaster"):
                shutil.copyfile(own, self.volume / path)  # nothing has the name: archives cannot bring it
                os.chown(self.volume / path, owner.st_uid, owner.st_gid)
                (self.volume / path).chmod(0o600)
