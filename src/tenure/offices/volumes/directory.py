"""Volumes as plain directories, for machines without btrfs: every clone is a copy (a reflink where the filesystem can),
limits are recorded only, and a snapshot is as of *about* one instant. Fine for trying things; not for guests you doubt.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenure.errors import AlreadyExists, DiskFull, NotFound, TenureError, VolumeError
from tenure.offices.tools import ToolResult, run_tool
from tenure.offices.volumes.base import VolumeDriver, VolumeUsage

COPY_TIMEOUT_S = 1800.0
DELETE_TIMEOUT_S = 600.0
USAGE_TIMEOUT_S = 300.0
RECORD = ".volume.json"
"""In each volume, beside `rootfs/`, where the office cannot see it: `{"limit_bytes": …, "read_only": …}`."""


class DirectoryDriver(VolumeDriver):
    """Read-only volumes (snapshots) are marked so in their record; nothing but the mark protects them."""

    name = "directory"
    holds_limits = False
    instant_snapshots = False

    async def create(self, source: Path, target: Path) -> None:
        source = source.resolve()  # `images/current` is a link; set-up makes images without a record
        if not source.is_dir():
            raise NotFound(f"There is no volume at {source}.")
        await self._copy(source, target, read_only=False)

    async def create_empty(self, target: Path) -> None:
        _need_free(target)
        with _put_in_place(target) as fresh:
            fresh.mkdir(mode=0o755)
            _write_record(fresh, {"read_only": False})

    async def snapshot(self, volume: Path, target: Path) -> None:
        _need(volume)
        await self._copy(volume, target, read_only=True)

    async def move(self, volume: Path, target: Path) -> None:
        _need(volume)
        _need_free(target)
        try:
            volume.rename(target)
        except OSError as error:
            raise _explained(error, f"Moving {volume.name}") from error

    async def delete(self, volume: Path) -> None:
        if not os.path.lexists(volume):
            return
        _need(volume)
        doomed = _fresh(volume)
        volume.rename(doomed)  # so that a delete which is interrupted leaves nothing under the volume's name
        await _tool("rm", "-rf", "--one-file-system", "--", doomed, timeout_s=DELETE_TIMEOUT_S, doing="Deleting")

    async def exists(self, volume: Path) -> bool:
        return not volume.is_symlink() and (volume / RECORD).is_file()

    async def set_limit(self, volume: Path, limit_bytes: int | None) -> None:
        _need(volume)
        try:
            _write_record(volume, _read_record(volume) | {"limit_bytes": limit_bytes})
        except OSError as error:
            raise _explained(error, f"Limiting {volume.name}") from error

    async def usage(self, volume: Path) -> VolumeUsage:
        """Walks the whole tree: seconds for a large one."""
        _need(volume)
        shown = await _tool("du", "-s", "-B1", "--", volume, timeout_s=USAGE_TIMEOUT_S, doing="Measuring")
        return VolumeUsage(used_bytes=int(shown.stdout.split()[0]), limit_bytes=_read_record(volume).get("limit_bytes"))

    async def _copy(self, source: Path, target: Path, *, read_only: bool) -> None:
        _need_free(target)
        with _put_in_place(target) as fresh:
            await _tool(
                "cp", "-a", "--reflink=auto", "--one-file-system", "--", source, fresh,
                timeout_s=COPY_TIMEOUT_S, doing=f"Copying {source.name}",
            )  # fmt: skip
            _write_record(fresh, {"read_only": read_only})


def _need(volume: Path) -> None:
    if not os.path.lexists(volume):
        raise NotFound(f"There is no volume at {volume}.")
    if volume.is_symlink() or not (volume / RECORD).is_file():
        raise VolumeError(f"{volume} is not a volume: it has no {RECORD}.", hint="Was it put there by hand?")


def _need_free(target: Path) -> None:
    if os.path.lexists(target):
        raise AlreadyExists(f"There is something at {target} already.")
    target.parent.mkdir(parents=True, exist_ok=True)


def _fresh(target: Path) -> Path:
    """A hidden neighbour of `target`, on the same filesystem, for what is not finished."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}")


@contextmanager
def _put_in_place(target: Path) -> Generator[Path]:
    """A path to make the volume at; it becomes `target` when all went well, and goes away when not."""
    fresh = _fresh(target)
    try:
        yield fresh
        fresh.rename(target)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OSError):
            raise _explained(error, f"Creating {target.name}") from error
        raise


def _explained(error: OSError, doing: str) -> TenureError:
    reason = f"{doing} failed: {error.strerror}."
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return AlreadyExists(reason)
    return DiskFull(reason) if error.errno in (errno.ENOSPC, errno.EDQUOT) else VolumeError(reason)


def _read_record(volume: Path) -> dict[str, Any]:
    return dict(json.loads((volume / RECORD).read_text()))


def _write_record(volume: Path, record: dict[str, Any]) -> None:
    fresh = volume / f"{RECORD}.new"
    fresh.write_text(json.dumps(record))
    fresh.replace(volume / RECORD)


async def _tool(*words: str | Path, timeout_s: float, doing: str) -> ToolResult:
    result = await run_tool(words, timeout_s=timeout_s, raises=VolumeError)
    if result.exit_code:
        failure: type[TenureError] = DiskFull if "No space left" in result.last_words else VolumeError
        raise failure(f"{doing} failed: {result.last_words}")
    return result
