"""Volumes as btrfs subvolumes: clone and snapshot in milliseconds, limits by quota groups."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from tenure.errors import AlreadyExists, DiskFull, NotFound, VolumeError
from tenure.offices.tools import ToolResult, run_tool
from tenure.offices.volumes.base import Origin, VolumeDriver, VolumeUsage
from tenure.offices.volumes.btrfs_calls import (
    count_again,
    counting_is_lost,
    create_subvolume,
    limit_referenced,
    snapshot_subvolume,
    subvolume_id,
)
from tenure.offices.volumes.btrfs_changes import all_changed_inodes, origin_of_snapshot

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
COMMAND_TIMEOUT_S = 60.0
SUBVOLUME_INODE = 256
"""The inode number of every subvolume's top directory (BTRFS_FIRST_FREE_OBJECTID)."""
QUOTA_HINT = "`tenure setup` turns quotas on in the pool."
FULL_WORDS = ("No space left", "quota exceeded", "Quota exceeded")


class BtrfsDriver(VolumeDriver):
    """Needs a btrfs with quotas on (`btrfs quota enable`), which set-up sees to."""

    name = "btrfs"
    holds_limits = True
    instant_snapshots = True

    async def create(self, source: Path, target: Path) -> None:
        source = source.resolve()  # `images/current` is a link
        self._need(source)
        self._need_free(target)
        await _call(f"Creating {target.name}", snapshot_subvolume, source, target, read_only=False)

    async def create_empty(self, target: Path) -> None:
        self._need_free(target)
        await _call(f"Creating {target.name}", create_subvolume, target)

    async def snapshot(self, volume: Path, target: Path) -> None:
        self._need(volume)
        self._need_free(target)
        await _call(f"The snapshot of {volume.name}", snapshot_subvolume, volume, target, read_only=True)

    async def move(self, volume: Path, target: Path) -> None:
        self._need(volume)
        self._need_free(target)
        await _call(f"Moving {volume.name}", os.rename, volume, target)

    async def delete(self, volume: Path) -> None:
        if not os.path.lexists(volume):
            await _call(f"Deleting {volume.name}", _need_btrfs, volume)
            return
        self._need(volume)
        result = await run_tool(_words("subvolume", "delete", volume), timeout_s=COMMAND_TIMEOUT_S, raises=VolumeError)
        if result.exit_code:  # the usual reason: subvolumes inside, which have to go first
            for nested in await _nested_ids(volume):
                await _btrfs("subvolume", "delete", "--subvolid", nested, volume, doing=f"Deleting {volume.name}")
            await _btrfs("subvolume", "delete", volume, doing=f"Deleting {volume.name}")

    async def exists(self, volume: Path) -> bool:
        return _is_subvolume(volume)

    async def set_limit(self, volume: Path, limit_bytes: int | None) -> None:
        self._need(volume)
        await _call(f"Limiting {volume.name}", limit_referenced, volume, limit_bytes)

    async def usage(self, volume: Path) -> VolumeUsage:
        self._need(volume)
        shown = await _btrfs(
            "qgroup", "show", "-r", "-e", "-f", "--raw", volume, doing=f"Reading the usage of {volume.name}"
        )
        return parse_usage(shown.stdout)

    async def exclusive(self, volumes: Sequence[Path]) -> dict[Path, int]:
        there = [volume for volume in volumes if _is_subvolume(volume)]
        if not there:
            return {}
        shown = await _btrfs("qgroup", "show", "-r", "-e", "--raw", there[0], doing="Reading the usage of volumes")
        counted = parse_exclusive(shown.stdout)
        found = await _call("Reading the ids of volumes", _ids, there)
        return {volume: counted[number] for volume, number in found.items() if number in counted}

    async def keep_limits(self, pool: Path) -> bool:
        try:
            lost = counting_is_lost(pool)
        except OSError:  # quotas are off: set-up and doctor say so
            return False
        if lost:
            logger.warning("the kernel lost count of what the volumes in %s take; counting anew", pool)
            await _call("Counting anew what volumes take", count_again, pool)
        return lost

    async def origin(self, snapshot: Path) -> Origin | None:
        self._need(snapshot)
        return await _call(f"Asking where {snapshot.name} is from", origin_of_snapshot, snapshot)

    async def changed_since(self, snapshot: Path, generation: int) -> frozenset[int]:
        self._need(snapshot)
        return await _call(f"Finding what changed in {snapshot.name}", all_changed_inodes, snapshot, generation)

    def _need(self, volume: Path) -> None:
        if not os.path.lexists(volume):
            raise NotFound(f"There is no volume at {volume}.")
        if not _is_subvolume(volume):
            raise VolumeError(f"{volume} is not a btrfs volume.", hint="Was it copied there by hand?")

    def _need_free(self, target: Path) -> None:
        if os.path.lexists(target):
            raise AlreadyExists(f"There is something at {target} already.")
        target.parent.mkdir(parents=True, exist_ok=True)


def parse_usage(table: str) -> VolumeUsage:
    """Reads the one line of `btrfs qgroup show -re -f --raw` (id, referenced, exclusive, limit, exclusive limit, path)."""
    for line in table.splitlines():
        fields = line.split()
        if len(fields) >= 4 and fields[0].startswith("0/"):
            limit = None if fields[3] == "none" else int(fields[3])
            return VolumeUsage(used_bytes=int(fields[1]), limit_bytes=limit, exclusive_bytes=int(fields[2]))
    raise VolumeError("btrfs counts nothing for this volume.", hint=QUOTA_HINT)


def _ids(volumes: Sequence[Path]) -> dict[Path, int]:
    """Without those that went meanwhile."""
    found: dict[Path, int] = {}
    for volume in volumes:
        with contextlib.suppress(FileNotFoundError):
            found[volume] = subvolume_id(volume)
    return found


def parse_exclusive(table: str) -> dict[int, int]:
    """Exclusive bytes by the volume's id, of a table of all volumes as `parse_usage` reads one line of."""
    lines = (line.split() for line in table.splitlines())
    return {int(fields[0][2:]): int(fields[2]) for fields in lines if len(fields) >= 3 and fields[0].startswith("0/")}


def _is_subvolume(path: Path) -> bool:
    try:
        status = path.lstat()
        return (
            stat.S_ISDIR(status.st_mode)
            and status.st_ino == SUBVOLUME_INODE
            and status.st_dev != path.parent.stat().st_dev  # each subvolume has a device number of its own
        )
    except OSError:
        return False


def _need_btrfs(path: Path) -> None:
    """Raises `OSError` unless the place of `path` is in a btrfs: what is missing because a pool is not mounted is not gone."""
    subvolume_id(next(parent for parent in path.parents if parent.exists()))


async def _nested_ids(volume: Path) -> list[str]:
    """Ids of all subvolumes below `volume`, the deepest first."""
    shown = await _btrfs("inspect-internal", "rootid", volume, doing="Finding nested volumes")
    listed = await _btrfs("subvolume", "list", volume, doing="Finding nested volumes")
    return nested_ids(listed.stdout, shown.stdout.strip())


def nested_ids(listing: str, top: str) -> list[str]:
    """From lines of `btrfs subvolume list` ("ID 258 gen 9 top level 5 path …"): what lies below `top`, deepest first."""
    children: dict[str, list[str]] = {}
    for line in listing.splitlines():
        fields = line.split()
        if len(fields) > 6 and fields[0] == "ID":
            children.setdefault(fields[6], []).append(fields[1])
    found = [top]
    for parent in found:
        found.extend(children.get(parent, []))
    return found[:0:-1]


async def _call(doing: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Makes a call to the kernel off the event loop, in a thread that cannot be interrupted: it takes milliseconds."""
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except OSError as error:
        reason = f"{doing} failed: {error.strerror}"
        if error.errno == errno.EEXIST:
            raise AlreadyExists(f"{reason}.") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{reason}.") from error
        if error.errno == errno.ENOTCONN:
            raise VolumeError(f"{doing} failed: the pool counts no usage.", hint=QUOTA_HINT) from error
        raise VolumeError(f"{reason}.") from error


def _words(*words: str | int | Path) -> list[str]:
    return ["btrfs", *map(str, words)]


async def _btrfs(*words: str | int | Path, doing: str) -> ToolResult:
    result = await run_tool(_words(*words), timeout_s=COMMAND_TIMEOUT_S, raises=VolumeError)
    if result.exit_code:
        failure = DiskFull if any(word in result.last_words for word in FULL_WORDS) else VolumeError
        raise failure(f"{doing} failed: {result.last_words}")
    return result
