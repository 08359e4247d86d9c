"""Objects as files of a volume.

    objects/<bucket>/<sha256 of the key>                      the version "null": all there is where no versions are kept
    objects/.versions/<bucket>/<sha256 of the key>/<id>       versions and delete markers; ids sort by time
    objects/.uploads/<bucket>/<id>/                           uploads in parts
    objects/.buckets/<bucket>.json                            settings of a bucket that has any
    objects/.incoming/                                        what is being written

A file carries the object's key and all that is known of it (`files`), so every change is one rename or one removal, and there is
nothing that could disagree: the latest version is the one with the highest number. Keys are never used as paths. One
process changes a volume at a time; `_commit` orders what its threads do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

from tenure.data.gate import Gate
from tenure.data.s3.checksums import Digest, digest_of, text_of
from tenure.data.s3.errors import S3Error, no_such_bucket, no_such_key, no_such_version
from tenure.data.s3.store import files
from tenure.data.s3.store.base import (
    ANY,
    NULL_VERSION,
    OBJECT_BYTES_MAX,
    Condition,
    Deleted,
    NewObject,
    Page,
    Settings,
    Uploads,
    Version,
    Wanted,
)
from tenure.data.s3.store.conditions import check, check_deletion
from tenure.data.s3.store.index import Keys
from tenure.data.s3.store.paging import page_of
from tenure.errors import DiskFull, InvalidArgument, VolumeError
from tenure.names import check_bucket

CHUNK_BYTES = 1024 * 1024
THREADS_MAX = 3
"""At once for one volume's objects: the threads are all volumes', and a listing of a full bucket keeps one busy."""
INCOMING, VERSIONS, UPLOADS, SETTINGS = ".incoming", ".versions", ".uploads", ".buckets"
INCOMING_AGE_MAX_S = 3600.0
"""Writes touch their file all the time; an older one was left by a killed server."""
LOOKS_MAX = 16
"""How often a version is looked for that others replace meanwhile."""
_CREATED = "user.tenure.created"
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """A version's file."""

    path: Path
    version_id: str
    meta: dict[str, Any]


class VolumeObject:
    """An `OpenObject`: a file that stays what it is when its name goes to another."""

    def __init__(self, version: Version, file: BinaryIO | None) -> None:
        self.version = version
        self.file = file

    async def read(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        file, left = self.file, (self.version.size_bytes if end is None else end) - start
        try:
            while file is not None and left > 0:
                chunk = await asyncio.to_thread(os.pread, file.fileno(), min(left, CHUNK_BYTES), start)
                if not chunk:
                    raise VolumeError(f"The object {self.version.key} is shorter than it was.")
                left, start = left - len(chunk), start + len(chunk)
                yield chunk
        finally:
            self.close()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class VolumeStore:
    """The buckets below one directory. Raises `VolumeError` when the file system fails, `DiskFull`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gate = Gate()
        self.keys = Keys()
        self.commit = threading.RLock()
        """Held while something becomes visible, and while it is decided whether it may."""
        self._threads = asyncio.Semaphore(THREADS_MAX)
        self._settings: dict[str, Settings] = {}
        self._swept = False
        self._last = 0

    def bucket(self, name: str) -> VolumeBucket:
        """Whether it exists is found out by using it. Raises `InvalidName`."""
        return VolumeBucket(self, check_bucket(name))

    @contextlib.asynccontextmanager
    async def at_rest(self) -> AsyncGenerator[None]:
        """A block in which nothing changes, for whoever replaces the directory. What is stored or deleted ends first or waits; a
        put that had begun before raises `Conflict`: it never says to have stored what is not in the new directory."""
        async with self.gate.closed():
            try:
                yield
            finally:
                with self.commit:
                    self.keys.forget()
                    self._settings.clear()

    async def buckets(self) -> Sequence[tuple[str, datetime]]:
        """Name and time of creation, by name."""
        return await self.run(lambda: [(name, self.settings(name).created_at) for name in self._names()])

    async def exists(self, name: str) -> bool:
        return await self.run((self.root / check_bucket(name)).is_dir)

    async def create(self, name: str) -> bool:
        """False when it was there already."""
        check_bucket(name)
        async with self.gate.passing():
            return await self.run(self._create, name)

    async def delete(self, name: str) -> None:
        """Raises `S3Error` NoSuchBucket, BucketNotEmpty. Uploads that are not over go with it."""
        check_bucket(name)
        async with self.gate.passing():
            await self.run(self._delete, name)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Blocking work in a thread, errors of the file system as ours."""
        async with self._threads:
            try:
                return await asyncio.to_thread(work, *args, **kwargs)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise DiskFull("The disk is full; nothing was stored.") from error
                raise VolumeError(f"The object storage failed: {error.strerror or error}.") from error

    # --- writing --------------------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncGenerator[tuple[Path, BinaryIO]]:
        """A new file that nobody sees. Gone at the end of the block, unless it was renamed."""
        path = await self.run(self._incoming)
        try:
            with await self.run(path.open, "x+b") as file:
                yield path, file
        finally:
            path.unlink(missing_ok=True)

    async def pour(
        self, file: BinaryIO, chunks: AsyncIterable[bytes], digests: Sequence[Digest], passage: int, bytes_max: int
    ) -> int:
        """Writes all chunks; how many bytes. Small ones are gathered, so that a thread is not asked for each."""
        size, pending = 0, bytearray()

        def flush(data: bytes) -> None:
            for digest in digests:
                digest.update(data)
            file.write(data)

        async for chunk in chunks:
            size += len(chunk)
            self.gate.check(passage)  # what is left of it need not come
            if size > bytes_max:
                raise S3Error("EntityTooLarge", f"It is larger than {bytes_max // 1024**3} GiB.")
            pending += chunk
            if len(pending) >= CHUNK_BYTES:
                await self.run(flush, bytes(pending))
                pending.clear()
        await self.run(flush, bytes(pending))
        return size

    def next_sequence(self) -> int:
        with self.commit:
            self._last = max(time.time_ns(), self._last + 1)
            return self._last

    # --- files ----------------------------------------------------------------------------------------------------------
    def make(self, directory: Path) -> None:
        """Of `root`, which may be missing, but never what that lies in: below the mount point of a pool that is not mounted
        nobody would find what is stored. Raises `VolumeError`."""
        try:
            self.root.mkdir(mode=0o755, exist_ok=True)
        except FileNotFoundError:
            raise VolumeError(
                f"There is no volume at {self.root.parent} now.", hint="Is the pool mounted? `tenure doctor` says."
            ) from None
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)

    def settings(self, bucket: str) -> Settings:
        """Raises `S3Error` NoSuchBucket."""
        found = self._settings.get(bucket)
        if found is None:
            with self.commit:
                found = self._settings[bucket] = self._read_settings(bucket)
        return found

    def ensure(self, bucket: str) -> None:
        """Makes it when it is missing."""
        if not (self.root / bucket).is_dir():
            self._create(bucket)

    def check(self, bucket: str) -> None:
        """Raises `S3Error` NoSuchBucket."""
        self.settings(bucket)

    def change(self, bucket: str, name: str, value: Any) -> None:
        with self.commit:
            now = self._read_settings(bucket)
            values = {key: one for key, one in now.values.items() if key != name}
            if value is not None:
                values[name] = value
            stamp = now.created_at.isoformat()
            os.setxattr(self.root / bucket, _CREATED, stamp.encode())
            incoming, target = self._incoming(), self.root / SETTINGS / f"{bucket}.json"
            self.make(target.parent)
            with incoming.open("x") as file:
                json.dump({"created_at": stamp, "values": values}, file)
                file.flush()
                os.fsync(file.fileno())
            incoming.rename(target)
            self._settings[bucket] = Settings(now.created_at, values)
        files.sync_directory(target.parent)
        files.sync_directory(self.root)

    def _read_settings(self, bucket: str) -> Settings:
        directory = self.root / bucket
        try:
            stamp = os.getxattr(directory, _CREATED).decode()
        except FileNotFoundError:
            raise no_such_bucket(bucket) from None
        except OSError:  # it was made before buckets had settings
            return Settings(datetime.fromtimestamp(directory.stat().st_mtime, UTC))
        values: Mapping[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            told = json.loads((self.root / SETTINGS / f"{bucket}.json").read_text())
            if told["created_at"] == stamp:  # else of a bucket of the same name that is gone
                values = told["values"]
        return Settings(datetime.fromisoformat(stamp), values)

    def _names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.root) if entry.name[0] != "." and entry.is_dir())
        except FileNotFoundError:
            return []

    def _create(self, name: str) -> bool:
        directory = self.root / name
        self.make(self.root)
        with self.commit:
            try:
                directory.mkdir(mode=0o755)
            except FileExistsError:
                return False
            os.setxattr(directory, _CREATED, datetime.now(UTC).isoformat().encode())
        files.sync_directory(directory)
        files.sync_directory(self.root)
        return True

    def _delete(self, name: str) -> None:
        with self.commit:
            try:
                with contextlib.suppress(FileNotFoundError):
                    _remove_empty(self.root / VERSIONS / name)
                (self.root / name).rmdir()
            except FileNotFoundError:
                raise no_such_bucket(name) from None
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:
                    raise S3Error("BucketNotEmpty") from None
                raise
            (self.root / SETTINGS / f"{name}.json").unlink(missing_ok=True)
            shutil.rmtree(self.root / UPLOADS / name, ignore_errors=True)
            self.keys.forget(name)
            self._settings.pop(name, None)
        files.sync_directory(self.root)

    def _incoming(self) -> Path:
        directory = self.root / INCOMING
        self.make(directory)
        if not self._swept:
            self._swept = True
            old = time.time() - INCOMING_AGE_MAX_S
            for left in directory.iterdir():
                if left.stat().st_mtime >= old:
                    continue
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
        return directory / secrets.token_hex(16)


class VolumeBucket:
    """An `ObjectBackend`: one bucket of a `VolumeStore`."""

    def __init__(self, store: VolumeStore, name: str) -> None:
        from tenure.data.s3.store.volume_uploads import VolumeUploads

        self.store, self.name = store, name
        self._directory = store.root / name
        self._versions = store.root / VERSIONS / name
        self.uploads: Uploads = VolumeUploads(self)

    async def put(
        self,
        key: str,
        chunks: AsyncIterable[bytes],
        about: NewObject,
        condition: Condition = ANY,
        *,
        make_bucket: bool = False,
    ) -> Version:
        """With `make_bucket` there is no NoSuchBucket: the bucket is made when it is missing."""
        check_key(key)
        store = self.store
        passage = await store.gate.enter()
        await store.run(store.ensure if make_bucket else store.check, self.name)
        if not condition.is_empty:
            await store.run(self._precheck, key, condition)
        async with store.writing() as (path, file):
            md5, sha256 = digest_of("MD5"), digest_of("SHA256")
            checksum = digest_of(about.checksum) if about.checksum else None
            digests = [md5, sha256, *([checksum] if checksum else [])]
            size = await store.pour(file, chunks, digests, passage, OBJECT_BYTES_MAX)
            meta = files.meta_of(about) | {"sha256": sha256.digest().hex(), "etag": md5.digest().hex()}
            if checksum:
                meta["checksum"] = text_of(checksum.digest())
            return await self.publish(path, file, key, meta, size, condition, passage, make_bucket=make_bucket)

    async def publish(
        self,
        path: Path,
        file: BinaryIO,
        key: str,
        meta: dict[str, Any],
        size: int,
        condition: Condition,
        passage: int,
        *,
        make_bucket: bool = False,
    ) -> Version:
        """Seals a written file and makes it the latest version."""
        meta |= {"modified_at": time.time(), "seq": self.store.next_sequence()}
        await self.store.run(files.seal, file, key, meta, size)
        async with self.store.gate.passing(passage):
            if make_bucket:
                await self.store.run(self.store.ensure, self.name)
            version_id = await self.store.run(self._publish, path, file, key, meta, size, condition)
        return files.version_of(key, version_id, meta | {"size": size}, is_latest=True)

    async def open(self, key: str, version_id: str | None = None) -> VolumeObject:
        check_key(key)
        return await self.store.run(self._open, key, version_id)

    async def delete(self, key: str, version_id: str | None = None, condition: Condition = ANY) -> Deleted:
        check_key(key)
        async with self.store.gate.passing():
            return await self.store.run(self._delete, key, version_id, condition)

    async def page(self, wanted: Wanted) -> Page:
        return await self.store.run(self._page, wanted)

    async def set_tags(self, key: str, tags: Mapping[str, str], version_id: str | None = None) -> Version:
        return await self._amend(key, version_id, lambda meta: meta | {"tags": dict(tags)})

    async def set_extra(self, key: str, name: str, value: Any, version_id: str | None = None) -> Version:
        return await self._amend(
            key, version_id, lambda meta: meta | {"extra": dict(meta.get("extra") or {}) | {name: value}}
        )

    async def _amend(
        self, key: str, version_id: str | None, change: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> Version:
        """Puts a copy of the version's file, of which other things are known, in its place."""
        store = self.store
        for _ in range(LOOKS_MAX):
            passage = await store.gate.enter()
            found = await self.open(key, version_id)
            if found.file is None:
                raise S3Error("MethodNotAllowed", headers={"x-amz-delete-marker": "true"})
            version = found.version
            with found.file as source:
                async with store.writing() as (path, file):
                    meta = await store.run(_copy_changed, source, file, key, change)
                    async with store.gate.passing(passage):
                        if await store.run(self._replace, path, source, key, version.version_id):
                            return files.version_of(key, version.version_id, meta, is_latest=version.is_latest)
        raise S3Error("OperationAborted")

    async def settings(self) -> Settings:
        return await self.store.run(self.store.settings, self.name)

    async def change(self, name: str, value: Any) -> None:
        async with self.store.gate.passing():
            await self.store.run(self.store.change, self.name, name, value)

    # --- files: all of these run in threads -----------------------------------------------------------------------------
    def latest(self, key: str) -> Found | None:
        """The newest file of the key, be it a delete marker."""
        return next(self._all(key), None)

    def _all(self, key: str) -> Generator[Found]:
        """All versions, the newest first. What others remove meanwhile is left out."""
        digest = _digest(key)
        null = self._read(self._directory / digest, NULL_VERSION)
        directory = self._versions / digest
        try:
            ids = sorted(os.listdir(directory), reverse=True)
        except FileNotFoundError:
            ids = []
        for version_id in ids:
            if null is not None and files.sequence_of(null.meta) > files.sequence_of_id(version_id):
                yield null
                null = None
            if (found := self._read(directory / version_id, version_id)) is not None:
                yield found
        if null is not None:
            yield null

    def _read(self, path: Path, version_id: str) -> Found | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return Found(path, version_id, files.read_meta(descriptor))
        finally:
            os.close(descriptor)

    def _path(self, key: str, version_id: str) -> Path:
        if not files.is_version_id(version_id):
            raise S3Error(
                "InvalidArgument", "Invalid version id specified.", fields={"ArgumentValue": version_id[:100]}
            )
        digest = _digest(key)
        return self._directory / digest if version_id == NULL_VERSION else self._versions / digest / version_id

    def _open(self, key: str, version_id: str | None) -> VolumeObject:
        for _ in range(LOOKS_MAX):
            latest = self.latest(key)
            if version_id is None:
                found = latest
                if found is None:
                    self.store.settings(self.name)
                    raise no_such_key(key)
                if found.meta.get("marker"):
                    raise S3Error(
                        "NoSuchKey",
                        fields={"Key": key},
                        headers={"x-amz-delete-marker": "true", "x-amz-version-id": found.version_id},
                    )
            else:
                found = self._read(self._path(key, version_id), version_id)
                if found is None:
                    self.store.settings(self.name)
                    raise no_such_version(key, version_id) if latest else no_such_key(key)
            try:
                file = found.path.open("rb")
            except FileNotFoundError:
                continue
            meta = files.read_meta(file.fileno())
            version = files.version_of(
                key, found.version_id, meta, is_latest=latest is not None and latest.version_id == found.version_id
            )
            if version.is_marker:
                file.close()
                return VolumeObject(version, None)
            return VolumeObject(version, file)
        raise S3Error("OperationAborted")

    def _precheck(self, key: str, condition: Condition) -> None:
        """Before all of it is sent; what counts is the check when it becomes visible."""
        with self.store.commit:
            self._check(key, condition)

    def _check(self, key: str, condition: Condition) -> Found | None:
        latest = self.latest(key)
        if not condition.is_empty:
            version = latest and files.version_of(key, latest.version_id, latest.meta, is_latest=True)
            check(condition, key, version)
        return latest

    def _publish(
        self, incoming: Path, file: BinaryIO, key: str, meta: dict[str, Any], size: int, condition: Condition
    ) -> str:
        store = self.store
        with store.commit:
            versioning = store.settings(self.name).versioning
            latest = self._check(key, condition)
            if (
                latest is not None and files.sequence_of(latest.meta) >= meta["seq"]
            ):  # others were faster; or the clock went back
                meta["seq"] = max(store.next_sequence(), files.sequence_of(latest.meta) + 1)
                file.truncate(size)
                files.seal(file, key, meta, size)
            version_id = (
                files.version_id_of(meta["seq"], secrets.token_hex(8)) if versioning == "Enabled" else NULL_VERSION
            )
            target = self._path(key, version_id)
            if version_id != NULL_VERSION:
                target.parent.mkdir(parents=True, exist_ok=True)
            try:
                incoming.rename(target)
            except FileNotFoundError:
                if incoming.exists():
                    raise no_such_bucket(self.name) from None
                raise
            self.store.keys.add(self.name, key)
        self._sync(target)
        return version_id

    def _sync(self, changed: Path) -> None:
        directory = changed.parent
        while directory != self.store.root.parent:
            with contextlib.suppress(FileNotFoundError):  # removed as empty meanwhile
                files.sync_directory(directory)
            directory = directory.parent

    def _delete(self, key: str, version_id: str | None, condition: Condition) -> Deleted:
        store = self.store
        with store.commit:
            versioning = store.settings(self.name).versioning
            if version_id is None and versioning:
                latest = self.latest(key)
                self._check_deletion(key, condition, latest)
                if latest is None and not condition.is_empty:
                    return Deleted()  # what was meant is not there
                return self._mark(key, versioning)
            target = self._path(key, version_id or NULL_VERSION)
            found = self._read(target, version_id or NULL_VERSION)
            self._check_deletion(key, condition, found)
            if found is None:
                return Deleted(version_id)
            target.unlink(missing_ok=True)
            if version_id is not None and version_id != NULL_VERSION:
                with contextlib.suppress(OSError):  # others are left
                    target.parent.rmdir()
            if self.latest(key) is None:
                store.keys.remove(self.name, key)
        self._sync(target)
        return Deleted(version_id, bool(found.meta.get("marker")))

    def _check_deletion(self, key: str, condition: Condition, found: Found | None) -> None:
        check_deletion(condition, found and files.version_of(key, found.version_id, found.meta, is_latest=True))

    def _mark(self, key: str, versioning: str) -> Deleted:
        """Puts a delete marker."""
        store, incoming = self.store, self.store._incoming()  # pyright: ignore[reportPrivateUsage]
        latest = self.latest(key)
        sequence = max(store.next_sequence(), files.sequence_of(latest.meta) + 1 if latest else 0)
        meta = {"marker": True, "modified_at": time.time(), "seq": sequence, "content_type": None, "etag": "-"}
        with incoming.open("xb") as file:
            files.seal(file, key, meta, 0)
        version_id = files.version_id_of(sequence, secrets.token_hex(8)) if versioning == "Enabled" else NULL_VERSION
        target = self._path(key, version_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        incoming.rename(target)
        store.keys.add(self.name, key)
        self._sync(target)
        return Deleted(version_id, is_marker=True)

    def _replace(self, incoming: Path, old: BinaryIO, key: str, version_id: str) -> bool:
        """False when the version's file is not `old` any more."""
        target = self._path(key, version_id)
        with self.store.commit:
            try:
                if target.stat().st_ino != os.fstat(old.fileno()).st_ino:
                    return False
            except FileNotFoundError:
                return False
            incoming.rename(target)
        self._sync(target)
        return True

    async def count(self) -> int:
        """How many keys there are, also those of which only older versions are left."""
        return await self.store.run(self._count)

    # --- listing --------------------------------------------------------------------------------------------------------
    def _page(self, wanted: Wanted) -> Page:
        store = self.store
        self._load_keys()

        def versions_of(key: str) -> list[Version]:
            if wanted.versions:
                return [
                    files.version_of(key, found.version_id, found.meta, is_latest=place == 0)
                    for place, found in enumerate(self._all(key))
                ]
            latest = self.latest(key)
            if latest is None or latest.meta.get("marker"):
                return []
            return [files.version_of(key, latest.version_id, latest.meta, is_latest=True)]

        def keys_after(key: str, inclusive: bool) -> Iterator[str]:
            return store.keys.after(self.name, key, wanted.keys_prefix or "", inclusive=inclusive)

        return page_of(wanted, keys_after, versions_of)

    def _count(self) -> int:
        self._load_keys()
        return self.store.keys.count(self.name)

    def _load_keys(self) -> None:
        self.store.settings(self.name)
        if not self.store.keys.has(self.name):
            with self.store.commit:
                self.store.keys.load(self.name, self._keys)

    def _keys(self) -> Generator[str]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.inode()):  # as they lie on the disk
                with contextlib.suppress(FileNotFoundError):
                    yield files.read_key(entry.path)
        with contextlib.suppress(FileNotFoundError), os.scandir(self._versions) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    for version in os.listdir(entry.path)[:1]:
                        yield files.read_key(os.path.join(entry.path, version))


def check_key(key: str) -> bytes:
    """`key` in UTF-8. Raises `InvalidArgument`, `S3Error` KeyTooLongError."""
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        encoded = b""
    if not encoded:
        raise InvalidArgument(
            f"{key[:60]!r} is not a valid object name.", hint="Names are 1 to 1024 bytes of Unicode text."
        )
    if len(encoded) > 1024:
        raise S3Error("KeyTooLongError")
    return encoded


def _copy_changed(
    source: BinaryIO, file: BinaryIO, key: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    meta = files.read_meta(source.fileno())
    size = int(meta.pop("size"))
    files.append_file(file, source.fileno(), size)
    meta = change(meta)
    files.seal(file, key, meta, size)
    return meta | {"size": size}


def _digest(key: str) -> str:
    return hashlib.sha256(check_key(key)).hexdigest()


def _remove_empty(directory: Path) -> None:
    """With empty directories in it, which killed servers leave. Raises `OSError` ENOTEMPTY."""
    for inside in directory.iterdir():
        inside.rmdir()
    directory.rmdir()
