"""An office's object storage: named bytes in buckets, on the office's volume.

    objects/<bucket>/<sha256 of the name>    one file per object
    objects/.incoming/                       what is being written

An object's name, type and digest are extended attributes of its file, so that object and metadata appear, change and
are cloned together: a put is one rename. Names are never used as paths, so any name is safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import heapq
import json
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

from tenure.data.gate import Gate
from tenure.errors import Conflict, DiskFull, InvalidArgument, NotFound, TooLarge, VolumeError
from tenure.names import check_name

OBJECT_BYTES_MAX = 5 * 1024**3
NAME_BYTES_MAX = 1024
CONTENT_TYPE_CHARS_MAX = 200
LIST_MAX = 10_000
LIST_DEFAULT = 1000
CHUNK_BYTES = 1024 * 1024
THREADS_MAX = 3
"""At once for one office's objects: the threads are all offices', and a listing of a full bucket keeps one busy."""
INCOMING = ".incoming"
INCOMING_AGE_MAX_S = 3600.0
"""Writes touch their file all the time; an older one was left by a killed server."""
P = ParamSpec("P")
T = TypeVar("T")

_NAME = "user.tenure.name"
_META = "user.tenure.object"


@dataclass(frozen=True)
class ObjectInfo:
    """What an object is; `sha256` in hex."""

    bucket: str
    name: str
    size_bytes: int
    sha256: str
    modified_at: datetime
    content_type: str | None = None


class StoredObject:
    """An object opened for reading, as of one instant: a put or delete meanwhile does not change what is read."""

    def __init__(self, info: ObjectInfo, file: BinaryIO, start: int, end: int) -> None:
        self.info = info
        self.start, self.end = start, end
        self._file = file

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Bytes `start` to `end` (exclusive) in pieces of at most 1 MiB; closes the file when exhausted or closed."""
        try:
            self._file.seek(self.start)
            left = self.end - self.start
            while left > 0:
                chunk = await asyncio.to_thread(self._file.read, min(left, CHUNK_BYTES))
                if not chunk:
                    raise VolumeError(f"The object {self.info.bucket}/{self.info.name} is shorter than it was.")
                left -= len(chunk)
                yield chunk
        finally:
            self._file.close()

    def close(self) -> None:
        """For an object whose chunks are not read. Idempotent."""
        self._file.close()


class ObjectStore:
    """The objects below one directory, which is made at the first put. Methods raise `InvalidName` for a bad bucket name,
    `InvalidArgument` for a bad object name, `VolumeError` when the file system fails."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._swept = False
        self._threads = asyncio.Semaphore(THREADS_MAX)
        self._gate = Gate()

    def at_rest(self) -> contextlib.AbstractAsyncContextManager[None]:
        """A block in which nothing changes, for whoever replaces the directory. What is stored or deleted ends first or waits; a
        put that had begun before raises `Conflict`: it never says to have stored what is not in the new directory."""
        return self._gate.closed()

    async def put(
        self, bucket: str, name: str, chunks: AsyncIterable[bytes], *, content_type: str | None = None
    ) -> ObjectInfo:
        """Stores all of `chunks` under `name`, making the bucket when it is missing. Readers see the old object or the new
        one, whole; when this returns, the new one survives a power cut. When `chunks` raises, nothing changes.
        Raises `TooLarge` (5 GiB), `DiskFull`, `Conflict` when the office is restored meanwhile."""
        target = self._target(bucket, name)
        _check_content_type(content_type)
        passage = await self._gate.enter()
        incoming = await self._run(self._incoming)
        try:
            with await self._run(incoming.open, "xb") as file:
                size, digest = await self._write(file, chunks, passage)
                meta = {"sha256": digest, "content_type": content_type, "modified_at": time.time()}
                await self._run(_seal, file, name, meta)
            async with self._gate.passing(passage):
                await self._run(_publish, incoming, target)
        except BaseException:
            incoming.unlink(missing_ok=True)
            raise
        return _info(bucket, name, size, meta)

    async def open(self, bucket: str, name: str, *, start: int = 0, end: int | None = None) -> StoredObject:
        """The object, to be read from `start` up to `end` (exclusive, at most its size). Raises `NotFound`,
        `InvalidArgument` when it does not reach as far as `start`."""
        target = self._target(bucket, name)
        try:
            file = await self._run(target.open, "rb")
        except FileNotFoundError:
            raise _missing(bucket, name) from None
        try:
            info = _read_info(bucket, file.fileno())
            stop = info.size_bytes if end is None else min(end, info.size_bytes)
            if start < 0 or stop < start or (start and start >= info.size_bytes):
                raise InvalidArgument(f"{bucket}/{name} has {info.size_bytes} bytes: there is no range {start}-{stop}.")
        except BaseException:
            file.close()
            raise
        return StoredObject(info, file, start, stop)

    async def info(self, bucket: str, name: str) -> ObjectInfo:
        """Raises `NotFound`."""
        found = await self.open(bucket, name)
        found.close()
        return found.info

    async def delete(self, bucket: str, name: str) -> None:
        """Raises `NotFound`."""
        target = self._target(bucket, name)
        try:
            async with self._gate.passing():
                await self._run(target.unlink)
        except FileNotFoundError:
            raise _missing(bucket, name) from None

    async def list(
        self,
        bucket: str | None = None,
        prefix: str = "",
        *,
        after: tuple[str, str] | None = None,
        limit: int = LIST_DEFAULT,
    ) -> list[ObjectInfo]:
        """Objects whose name begins with `prefix`, of one bucket or all, by bucket and name; at most `limit`, from the
        first one past `after`, a (bucket, name). A bucket that does not exist is empty. Reads the name of every object
        in the bucket."""
        if not 1 <= limit <= LIST_MAX:
            raise InvalidArgument(f"limit is between 1 and {LIST_MAX}.")
        if bucket is not None:
            check_name(bucket, "bucket")
        return await self._run(self._list, bucket, prefix, after, limit)

    async def buckets(self) -> list[str]:
        return await self._run(self._buckets)

    async def create_bucket(self, bucket: str) -> None:
        """Not an error when it exists."""
        directory = self._root / check_name(bucket, "bucket")
        async with self._gate.passing():
            await self._run(self._make, directory)

    async def delete_bucket(self, bucket: str) -> None:
        """Raises `NotFound`, `Conflict` when it holds objects."""
        directory = self._root / check_name(bucket, "bucket")
        try:
            async with self._gate.passing():
                emptied = await self._run(_remove_directory, directory)
        except FileNotFoundError:
            raise NotFound(f"There is no bucket {bucket}.") from None
        if not emptied:
            raise Conflict(f"The bucket {bucket} is not empty.", hint="Delete its objects first.")

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._threads:
            return await _run(work, *args, **kwargs)

    async def _write(self, file: BinaryIO, chunks: AsyncIterable[bytes], passage: int) -> tuple[int, str]:
        """Size and digest. Small chunks are gathered, so that a thread is not asked for each."""
        digest = hashlib.sha256()
        size, pending = 0, bytearray()

        def flush(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        async for chunk in chunks:
            size += len(chunk)
            self._gate.check(passage)  # what is left of it need not come
            if size > OBJECT_BYTES_MAX:
                raise TooLarge(f"The object is larger than {OBJECT_BYTES_MAX // 1024**3} GiB.")
            pending += chunk
            if len(pending) >= CHUNK_BYTES:
                await self._run(flush, bytes(pending))
                pending.clear()
        await self._run(flush, bytes(pending))
        return size, digest.hexdigest()

    # --- files ------------------------------------------------------------------------------------------------------
    def _make(self, directory: Path) -> None:
        """Of `_root`, which may be missing, but never what that lies in: below the mount point of a pool that is not mounted
        nobody would find what is stored. Raises `VolumeError`."""
        try:
            self._root.mkdir(mode=0o755, exist_ok=True)
        except FileNotFoundError:
            raise VolumeError(
                f"There is no office at {self._root.parent} now.", hint="Is the pool mounted? `tenure doctor` says."
            ) from None
        directory.mkdir(mode=0o755, exist_ok=True)

    def _target(self, bucket: str, name: str) -> Path:
        return self._root / check_name(bucket, "bucket") / hashlib.sha256(check_object_name(name)).hexdigest()

    def _incoming(self) -> Path:
        directory = self._root / INCOMING
        self._make(directory)
        if not self._swept:
            self._swept = True
            old = time.time() - INCOMING_AGE_MAX_S
            for left in directory.iterdir():
                if left.stat().st_mtime < old:
                    left.unlink(missing_ok=True)
        return directory / secrets.token_hex(16)

    def _buckets(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self._root) if entry.name != INCOMING and entry.is_dir())
        except FileNotFoundError:
            return []

    def _list(self, bucket: str | None, prefix: str, after: tuple[str, str] | None, limit: int) -> list[ObjectInfo]:
        wanted = self._buckets() if bucket is None else [bucket]
        named = (
            (place, name, path)
            for place in wanted
            for name, path in self._named(place)
            if name.startswith(prefix) and (after is None or (place, name) > after)
        )
        found: list[ObjectInfo] = []
        for place, _, path in heapq.nsmallest(limit, named):
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # deleted meanwhile
                found.append(_read_info(place, file.fileno()))
        return found

    def _named(self, bucket: str) -> Iterator[tuple[str, str]]:
        try:
            entries = os.scandir(self._root / bucket)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    yield os.getxattr(entry.path, _NAME).decode(), entry.path


def check_object_name(name: str) -> bytes:
    """`name` in UTF-8. Raises `InvalidArgument`."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        encoded = b""
    if not 1 <= len(encoded) <= NAME_BYTES_MAX:
        raise InvalidArgument(
            f"{name[:60]!r} is not a valid object name.", hint=f"Names are 1 to {NAME_BYTES_MAX} bytes of Unicode text."
        )
    return encoded


def _check_content_type(content_type: str | None) -> None:
    if content_type is not None and not (
        len(content_type) <= CONTENT_TYPE_CHARS_MAX and content_type.isascii() and content_type.isprintable()
    ):
        raise InvalidArgument(f"A content type is at most {CONTENT_TYPE_CHARS_MAX} printable ASCII characters.")


def _seal(file: BinaryIO, name: str, meta: dict[str, Any]) -> None:
    os.setxattr(file.fileno(), _NAME, name.encode())
    os.setxattr(file.fileno(), _META, json.dumps(meta).encode())
    file.flush()
    os.fsync(file.fileno())


def _publish(incoming: Path, target: Path) -> None:
    while True:
        try:
            incoming.rename(target)
            break
        except FileNotFoundError:
            if not incoming.exists():
                raise
            target.parent.mkdir(exist_ok=True)
    for directory in (target.parent, target.parent.parent):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_info(bucket: str, descriptor: int) -> ObjectInfo:
    meta = json.loads(os.getxattr(descriptor, _META))
    name = os.getxattr(descriptor, _NAME).decode()
    return _info(bucket, name, os.fstat(descriptor).st_size, meta)


def _info(bucket: str, name: str, size: int, meta: dict[str, Any]) -> ObjectInfo:
    modified_at = datetime.fromtimestamp(meta["modified_at"], UTC)
    return ObjectInfo(bucket, name, size, meta["sha256"], modified_at, meta["content_type"])


def _missing(bucket: str, name: str) -> NotFound:
    return NotFound(f"There is no object {bucket}/{name}.", hint="`tenure objects list AGENT` shows those there are.")


def _remove_directory(directory: Path) -> bool:
    """False when it is not empty."""
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            return False
        raise
    return True


async def _run(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Blocking work in a thread, its errors as ours; only `FileNotFoundError` stays itself."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("The office's disk is full; the object was not stored.") from error
        raise VolumeError(f"The office's object storage failed: {error.strerror or error}.") from error
