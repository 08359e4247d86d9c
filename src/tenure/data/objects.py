"""An office's object storage: named bytes in buckets, on the office's volume, as the rest of Tenure sees it.

What S3's protocol needs beside (versions, conditions, uploads in parts) is the same files (`tenure.data.s3.store.volume`).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Generator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tenure.data.s3.errors import S3Error
from tenure.data.s3.events import ObjectEvent, ObjectEvents
from tenure.data.s3.store import base
from tenure.data.s3.store.base import NewObject, OpenObject, Version, Wanted
from tenure.data.s3.store.volume import VolumeStore
from tenure.errors import Conflict, InvalidArgument, NotFound, TooLarge
from tenure.names import check_bucket

NAME_BYTES_MAX = base.KEY_BYTES_MAX
CONTENT_TYPE_CHARS_MAX = 200
LIST_MAX = 10_000
LIST_DEFAULT = 1000


@dataclass(frozen=True)
class ObjectInfo:
    """What an object is; `sha256` in hex, empty for what was uploaded in parts."""

    bucket: str
    name: str
    size_bytes: int
    sha256: str
    modified_at: datetime
    content_type: str | None = None


class StoredObject:
    """An object opened for reading, as of one instant: a put or delete meanwhile does not change what is read."""

    def __init__(self, info: ObjectInfo, found: OpenObject, start: int, end: int) -> None:
        self.info = info
        self.start, self.end = start, end
        self._found = found

    def chunks(self) -> AsyncGenerator[bytes]:
        """Bytes `start` to `end` (exclusive) in pieces of at most 1 MiB; closes the file when exhausted or closed."""
        return self._found.read(self.start, self.end)

    def close(self) -> None:
        """For an object whose chunks are not read. Idempotent."""
        self._found.close()


class ObjectStore:
    """The objects below one directory, which is made at the first put. Methods raise `InvalidName` for a bad bucket name,
    `InvalidArgument` for a bad object name, `VolumeError` when the file system fails."""

    def __init__(self, root: Path, owner: str = "", events: ObjectEvents | None = None) -> None:
        """`owner` is the agent whose objects they are, for whoever listens to `events`."""
        self.volume = VolumeStore(root)
        self._owner, self._events = owner, events or ObjectEvents()

    def at_rest(self) -> contextlib.AbstractAsyncContextManager[None]:
        """A block in which nothing changes, for whoever replaces the directory. What is stored or deleted ends first or waits; a
        put that had begun before raises `Conflict`: it never says to have stored what is not in the new directory."""
        return self.volume.at_rest()

    async def put(
        self, bucket: str, name: str, chunks: AsyncIterable[bytes], *, content_type: str | None = None
    ) -> ObjectInfo:
        """Stores all of `chunks` under `name`, making the bucket when it is missing. Readers see the old object or the new
        one, whole; when this returns, the new one survives a power cut. When `chunks` raises, nothing changes.
        Raises `TooLarge` (5 GiB), `DiskFull`, `Conflict` when the office is restored meanwhile."""
        check_object_name(name)
        _check_content_type(content_type)
        check_bucket(bucket)
        about = NewObject({"content-type": content_type} if content_type else {})
        with _as_ours(bucket, name):
            version = await self.volume.bucket(bucket).put(name, chunks, about, make_bucket=True)
        self._events.tell(ObjectEvent("put", self._owner, bucket, name, version.etag, version.size_bytes))
        return _info(bucket, version)

    async def open(self, bucket: str, name: str, *, start: int = 0, end: int | None = None) -> StoredObject:
        """The object, to be read from `start` up to `end` (exclusive, at most its size). Raises `NotFound`,
        `InvalidArgument` when it does not reach as far as `start`."""
        check_object_name(name)
        with _as_ours(bucket, name):
            found = await self.volume.bucket(bucket).open(name)
        info = _info(bucket, found.version)
        stop = info.size_bytes if end is None else min(end, info.size_bytes)
        if start < 0 or stop < start or (start and start >= info.size_bytes):
            found.close()
            raise InvalidArgument(f"{bucket}/{name} has {info.size_bytes} bytes: there is no range {start}-{stop}.")
        return StoredObject(info, found, start, stop)

    async def info(self, bucket: str, name: str) -> ObjectInfo:
        """Raises `NotFound`."""
        found = await self.open(bucket, name)
        found.close()
        return found.info

    async def delete(self, bucket: str, name: str) -> None:
        """Raises `NotFound`."""
        await self.info(bucket, name)
        with _as_ours(bucket, name):
            await self.volume.bucket(bucket).delete(name)
        self._events.tell(ObjectEvent("delete", self._owner, bucket, name))

    async def list(
        self,
        bucket: str | None = None,
        prefix: str = "",
        *,
        after: tuple[str, str] | None = None,
        limit: int = LIST_DEFAULT,
    ) -> list[ObjectInfo]:
        """Objects whose name begins with `prefix`, of one bucket or all, by bucket and name; at most `limit`, from the
        first one past `after`, a (bucket, name). A bucket that does not exist is empty."""
        if not 1 <= limit <= LIST_MAX:
            raise InvalidArgument(f"limit is between 1 and {LIST_MAX}.")
        if bucket is not None:
            check_bucket(bucket)
        found: list[ObjectInfo] = []
        for place in await self.buckets() if bucket is None else [bucket]:
            if after is not None and place < after[0]:
                continue
            past = after[1] if after is not None and place == after[0] else ""
            with contextlib.suppress(S3Error):  # there is no such bucket
                wanted = Wanted(prefix, after=past, limit=limit - len(found))
                found += [_info(place, one) for one in (await self.volume.bucket(place).page(wanted)).versions]
            if len(found) >= limit:
                break
        return found

    async def buckets(self) -> list[str]:
        return [name for name, _ in await self.volume.buckets()]

    async def create_bucket(self, bucket: str) -> None:
        """Not an error when it exists."""
        await self.volume.create(bucket)

    async def delete_bucket(self, bucket: str) -> None:
        """Raises `NotFound`, `Conflict` when it holds objects."""
        with _as_ours(bucket, ""):
            await self.volume.delete(bucket)


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


@contextlib.contextmanager
def _as_ours(bucket: str, name: str) -> Generator[None]:
    try:
        yield
    except S3Error as error:
        if error.code == "NoSuchBucket" and not name:
            raise NotFound(f"There is no bucket {bucket}.") from None
        if error.status == 404:
            raise NotFound(
                f"There is no object {bucket}/{name}.", hint="`tenure objects list AGENT` shows those there are."
            ) from None
        if error.code == "BucketNotEmpty":
            raise Conflict(f"The bucket {bucket} is not empty.", hint="Delete its objects first.") from None
        if error.code == "EntityTooLarge":
            raise TooLarge(f"The object is larger than {base.OBJECT_BYTES_MAX // 1024**3} GiB.") from None
        raise Conflict(f"{bucket}/{name}: {error.message}") from None


def _info(bucket: str, version: Version) -> ObjectInfo:
    content_type = version.about.headers.get("content-type")
    return ObjectInfo(bucket, version.key, version.size_bytes, version.sha256, version.modified_at, content_type)
