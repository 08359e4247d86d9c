"""The `Volume` contract: one copy-on-write directory tree that holds everything an agent owns.

A volume is a directory with

    rootfs/        the sandbox's root
    postgres/      data directory of the agent's own PostgreSQL
    objects/       the agent's object storage
    office.json    image id, generation, what a cold start needs

An *image* is a read-only volume of the same shape; creating an office clones it. Paths are host paths. All methods
may block on the kernel for up to seconds, and are coroutines so that drivers can run them off the event loop.
Conformance kit: `tenure.testing.volume_conformance`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class VolumeUsage:
    """Bytes that the volume refers to (what the limit counts), its limit (None: no limit held by this driver), and
    the bytes that would be freed by deleting it (None where the driver cannot tell)."""

    used_bytes: int
    limit_bytes: int | None
    exclusive_bytes: int | None = None


@dataclass(frozen=True)
class Origin:
    """Of a snapshot: the volume that it was taken of, by a name that no other volume ever has, and the generation up to which
    it shows it."""

    volume: str
    generation: int


class VolumeDriver(ABC):
    """Creates, clones, snapshots, limits and deletes volumes under one pool directory.

    Every method raises `VolumeError` when the underlying tool fails, with that tool's message, and `DiskFull` when
    the pool has no room. A failed `create` or `snapshot` leaves nothing behind under the target's name.
    """

    name: str
    """Short name as in `office.json` and `tenure doctor`: "btrfs", "directory"."""
    holds_limits: bool
    """Whether `set_limit` is enforced by the kernel. False means that it is recorded only."""
    instant_snapshots: bool
    """Whether `snapshot` is atomic at one instant while the volume is being written."""

    @abstractmethod
    async def create(self, source: Path, target: Path) -> None:
        """Clones `source` (an image, a snapshot or another volume) into the new writable volume `target`, keeping owners,
        modes, times, links and extended attributes. Raises `NotFound` without source, `AlreadyExists` when target exists.
        `target`'s parent is made when missing."""

    @abstractmethod
    async def create_empty(self, target: Path) -> None:
        """A new empty writable volume. Raises `AlreadyExists`."""

    @abstractmethod
    async def snapshot(self, volume: Path, target: Path) -> None:
        """A read-only copy of `volume` as of one instant (see `instant_snapshots`). Raises `NotFound`, `AlreadyExists`."""

    @abstractmethod
    async def move(self, volume: Path, target: Path) -> None:
        """Renames a volume inside its pool, with its limit. Instant; whole or not at all. Raises `NotFound`, `AlreadyExists`."""

    @abstractmethod
    async def delete(self, volume: Path) -> None:
        """Deletes a volume, image or snapshot with all that is in it. A missing one is not an error."""

    @abstractmethod
    async def exists(self, volume: Path) -> bool:
        """Whether `volume` is a volume of this driver (a plain directory inside a btrfs pool is not)."""

    @abstractmethod
    async def set_limit(self, volume: Path, limit_bytes: int | None) -> None:
        """Limits what the volume may refer to, image included; takes effect at once. Writers past it get EDQUOT or ENOSPC.
        Raises `NotFound`."""

    @abstractmethod
    async def usage(self, volume: Path) -> VolumeUsage:
        """What the volume takes now; may be some seconds old. Raises `NotFound`."""

    async def exclusive(self, volumes: Sequence[Path]) -> dict[Path, int]:
        """`VolumeUsage.exclusive_bytes` of many volumes at the price of one; without those that are not there, and without any
        where the driver cannot tell."""
        del volumes
        return {}

    async def origin(self, snapshot: Path) -> Origin | None:
        """Of a snapshot: which volume it shows, and up to when. None where the driver cannot tell what changed since."""
        return None

    async def changed_since(self, snapshot: Path, generation: int) -> frozenset[int]:
        """The numbers of the inodes in `snapshot` that were made or changed since another snapshot of the same volume, of whose
        `origin` the generation is; with some that did not. For drivers that tell an `origin`."""
        raise NotImplementedError

    async def keep_limits(self, pool: Path) -> bool:
        """Mends what the limits of all volumes under `pool` stand on, and says whether it had to. To be called every few
        seconds: a kernel may lose count of what volumes take (btrfs does so now and then when one is deleted), and no limit
        holds until it has counted again."""
        return False
