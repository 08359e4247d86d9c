"""Memory images: directories that hold what the processes of one sandbox had in memory, and what they can be restored with.

    IMAGE/manifest.json    what it fits (`Fit`), and size and checksums of the other files; its first line is its own checksum
    IMAGE/...              the runtime's files, opaque here

An image is written beside its place and moved there when all of it is on disk, so it is complete or not there. It holds
whatever was in memory, keys and passwords too: only root can enter it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tenure.errors import ImageUnusable

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 1024 * 1024
CHUNK_BYTES = 32 * 1024**2
"""One checksum each: so several threads can sum up one file."""
READ_BYTES = 1024 * 1024
SUMMING_THREADS = 2
"""Of each image; zlib's CRC-32 takes 4 GB/s on each (measured), which is faster than what is restored from it."""


@dataclass(frozen=True)
class Fit:
    """What an image was made with, and is to be restored with: each must be the same."""

    binding: str
    """The caller's word for the root that belongs to it."""
    runtime: str
    cpu: str
    sandbox: str
    """Fingerprint of the specification: root, mounts, limits, names, and the program that the sandbox starts."""


MISFITS = {
    "binding": "it belongs to another state of the root",
    "runtime": "another version of the sandbox's runtime made it",
    "cpu": "it was made on a processor with other features",
    "sandbox": "the sandbox is set up differently now",
}


@dataclass(frozen=True)
class Manifest:
    fit: Fit
    tini: bool
    """Whether the sandbox was started with an init of its own (`oci.config`)."""
    made_at: float
    """Seconds since the epoch."""
    files: dict[str, list[int]]
    """By name: the size in bytes, then the CRC-32 of each `CHUNK_BYTES`."""

    @property
    def size_bytes(self) -> int:
        return sum(sizes[0] for sizes in self.files.values())


# --- making --------------------------------------------------------------------------------------------------------------
def begin(image: Path) -> Path:
    """An empty directory beside `image` for the runtime to write to; what a killed attempt left there is replaced. Raises
    `FileNotFoundError` where there is no place for images: their pool is not mounted, and what would be written below its mount
    point nobody would find."""
    beside = _beside(image)
    _remove(beside)
    beside.mkdir(mode=0o700)
    return beside


def seal(image: Path, fit: Fit, *, tini: bool) -> None:
    """Writes the manifest of what the runtime has written; all of it is on disk then, and still beside its place."""
    beside = _beside(image)
    names = sorted(entry.name for entry in beside.iterdir())
    with ThreadPoolExecutor(1) as disk, ThreadPoolExecutor(SUMMING_THREADS) as threads:
        synced = disk.map(_sync, (beside / name for name in names))
        files = {name: _sum_up(beside / name, threads) for name in names}
        list(synced)
    body = json.dumps({"format": FORMAT, **asdict(Manifest(fit, tini, time.time(), files))}).encode()
    manifest = beside / MANIFEST
    manifest.write_bytes(b"%08x\n" % zlib.crc32(body) + body)
    _sync(manifest)
    for name in (*names, MANIFEST):
        (beside / name).chmod(0o600)
    _sync(beside)


def publish(image: Path) -> None:
    """Moves the sealed image to its place."""
    _beside(image).rename(image)
    _sync(image.parent)


def discard(image: Path) -> None:
    """Removes an image, complete or not; does nothing when there is none. What is cut short leaves none that can be used."""
    _remove(_beside(image))
    _remove(image)


# --- using ---------------------------------------------------------------------------------------------------------------
def read_manifest(image: Path) -> Manifest:
    """Raises `ImageUnusable` when there is none, or none that this version of Tenure wrote."""
    try:
        with (image / MANIFEST).open("rb") as file:
            sum_, _, body = file.read(MANIFEST_BYTES_MAX).partition(b"\n")
        if sum_ != b"%08x" % zlib.crc32(body):
            raise ValueError("its manifest is damaged")
        found: dict[str, Any] = json.loads(body)
        if found["format"] != FORMAT:
            raise ValueError("another version of Tenure made it")
        return Manifest(Fit(**found["fit"]), found["tini"], found["made_at"], found["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(image, str(error)) from error


def check(image: Path, manifest: Manifest, fit: Fit) -> None:
    """Raises `ImageUnusable` unless `image` fits and is what was written."""
    for part, words in MISFITS.items():
        if getattr(manifest.fit, part) != getattr(fit, part):
            raise _unusable(image, words)
    try:
        if sorted(manifest.files) != sorted(entry.name for entry in image.iterdir() if entry.name != MANIFEST):
            raise ValueError("a file is missing or too many")
        with ThreadPoolExecutor(SUMMING_THREADS) as threads:
            for name, expected in manifest.files.items():
                if (image / name).stat().st_size != expected[0] or _sum_up(image / name, threads) != expected:
                    raise ValueError(f"{name} is damaged")
    except (OSError, ValueError) as error:
        raise _unusable(image, str(error)) from error


def _unusable(image: Path, why: str) -> ImageUnusable:
    return ImageUnusable(f"The memory image {image.name} cannot be used: {why}.")


# --- files ---------------------------------------------------------------------------------------------------------------
def _beside(image: Path) -> Path:
    return image.with_name(f".{image.name}.partial")


def _remove(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (directory / MANIFEST).unlink()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sum_up(path: Path, threads: ThreadPoolExecutor) -> list[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is no file")
        return [status.st_size, *threads.map(partial(_sum_chunk, fd), range(0, status.st_size, CHUNK_BYTES))]
    finally:
        os.close(fd)


def _sum_chunk(fd: int, at: int) -> int:
    buffer, checksum, end = memoryview(bytearray(READ_BYTES)), 0, at + CHUNK_BYTES
    while at < end and (read := os.preadv(fd, [buffer[: end - at]], at)):
        checksum = zlib.crc32(buffer[:read], checksum)
        at += read
    return checksum
