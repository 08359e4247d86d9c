"""Uploads in parts on a volume: a directory per upload, a file per part. One without `upload.json` is none."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from weakref import WeakValueDictionary

from tenure.data.s3 import checksums
from tenure.data.s3.errors import S3Error, no_such_upload
from tenure.data.s3.store import files
from tenure.data.s3.store.base import (
    ANY,
    MULTIPART_BYTES_MAX,
    OBJECT_BYTES_MAX,
    PART_BYTES_MIN,
    PARTS_MAX,
    Condition,
    NewObject,
    Part,
    Upload,
    Version,
)

if TYPE_CHECKING:
    from tenure.data.s3.store.volume import VolumeBucket

UPLOADS_MAX = 1000
"""Of one bucket that are not over."""
_TOLD = "upload.json"


class VolumeUploads:
    """`Uploads` of one bucket."""

    def __init__(self, bucket: VolumeBucket) -> None:
        self._bucket, self._store = bucket, bucket.store
        self._directory = bucket.store.root / ".uploads" / bucket.name
        self._ending = _ENDING.setdefault(bucket.store.root, WeakValueDictionary())

    async def begin(self, key: str, about: NewObject) -> str:
        async with self._store.gate.passing():
            return await self._store.run(self._begin, key, about)

    async def get(self, key: str, upload_id: str) -> Upload:
        return await self._store.run(self._get, key, upload_id)

    async def put(self, key: str, upload_id: str, number: int, chunks: AsyncIterable[bytes]) -> Part:
        store = self._store
        if not 1 <= number <= PARTS_MAX:
            raise S3Error("InvalidArgument", f"Part number must be an integer between 1 and {PARTS_MAX}, inclusive")
        passage = await store.gate.enter()
        upload = await self.get(key, upload_id)
        async with store.writing() as (path, file):
            md5 = checksums.digest_of("MD5")
            checksum = checksums.digest_of(upload.about.checksum) if upload.about.checksum else None
            size = await store.pour(file, chunks, [md5, *([checksum] if checksum else [])], passage, OBJECT_BYTES_MAX)
            meta: dict[str, Any] = {"etag": md5.digest().hex(), "modified_at": time.time()}
            if checksum:
                meta["checksum"] = checksums.text_of(checksum.digest())
            await store.run(files.seal, file, key, meta, size)
            async with store.gate.passing(passage):
                await store.run(self._publish, path, upload_id, number)
        return _part(number, meta | {"size": size})

    async def parts(self, key: str, upload_id: str) -> Sequence[Part]:
        return await self._store.run(self._parts, key, upload_id)

    async def complete(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        condition: Condition = ANY,
        *,
        checksum: str = "",
        size_bytes: int | None = None,
    ) -> Version:
        lock = self._ending.get(upload_id) or self._ending.setdefault(upload_id, asyncio.Lock())
        async with lock:
            store = self._store
            passage = await store.gate.enter()
            done = await store.run(self._completed, key, upload_id)
            if done is not None:
                await store.run(self._drop, upload_id)
                return done
            upload, there = await self.get(key, upload_id), await self.parts(key, upload_id)
            used = _chosen(parts, there)
            meta, size = _measured(upload, used, checksum, size_bytes)
            async with store.writing() as (path, file):
                for part in used:
                    store.gate.check(passage)
                    await store.run(self._append, file, upload_id, part)
                version = await self._bucket.publish(path, file, key, meta, size, condition, passage)
            await store.run(self._drop, upload_id)
            return version

    async def abort(self, key: str, upload_id: str) -> None:
        async with self._store.gate.passing():
            await self.get(key, upload_id)
            await self._store.run(self._drop, upload_id)

    async def list(self) -> Sequence[Upload]:
        return await self._store.run(self._list)

    # --- files: all of these run in threads -----------------------------------------------------------------------------
    def _begin(self, key: str, about: NewObject) -> str:
        self._store.settings(self._bucket.name)
        if len(self._ids()) >= UPLOADS_MAX:
            raise S3Error("SlowDown", f"{UPLOADS_MAX} uploads of this bucket are not over: complete or abort some.")
        upload_id = secrets.token_hex(16)
        directory = self._directory / upload_id
        directory.mkdir(parents=True)
        told = {"key": key, "begun_at": time.time()} | {"about": files.meta_of(about)}
        with (directory / f"{_TOLD}.new").open("x") as file:
            json.dump(told, file)
            file.flush()
            os.fsync(file.fileno())
        (directory / f"{_TOLD}.new").rename(directory / _TOLD)
        for changed in (directory, directory.parent, directory.parent.parent, self._store.root):
            files.sync_directory(changed)
        return upload_id

    def _get(self, key: str, upload_id: str) -> Upload:
        upload = self._read(upload_id)
        if upload is None or upload.key != key:
            self._store.settings(self._bucket.name)
            raise no_such_upload(upload_id[:100])
        return upload

    def _read(self, upload_id: str) -> Upload | None:
        try:
            told = json.loads(self._place(upload_id, _TOLD).read_text())
        except FileNotFoundError:
            return None
        begun_at = datetime.fromtimestamp(told["begun_at"], UTC)
        meta = told["about"] | {"modified_at": told["begun_at"], "size": 0}
        return Upload(upload_id, told["key"], begun_at, files.version_of("", "", meta, is_latest=False).about)

    def _place(self, upload_id: str, name: str) -> Path:
        if not files.is_version_id(upload_id):  # it is the name of a directory
            raise no_such_upload(upload_id[:100])
        return self._directory / upload_id / name

    def _publish(self, incoming: Path, upload_id: str, number: int) -> None:
        target = self._place(upload_id, f"{number:05d}")
        try:
            incoming.rename(target)
            files.sync_directory(target.parent)
        except FileNotFoundError:
            raise no_such_upload(upload_id) from None

    def _parts(self, key: str, upload_id: str) -> list[Part]:
        self._get(key, upload_id)
        found: list[Part] = []
        directory = self._place(upload_id, "")
        for name in sorted(name for name in os.listdir(directory) if name.isdigit()):
            with (directory / name).open("rb") as file:
                found.append(_part(int(name), files.read_meta(file.fileno())))
        return found

    def _completed(self, key: str, upload_id: str) -> Version | None:
        """The object, when this upload has become it already."""
        latest = self._bucket.latest(key)
        if latest is None or latest.meta.get("upload") != upload_id:
            return None
        return files.version_of(key, latest.version_id, latest.meta, is_latest=True)

    def _append(self, file: BinaryIO, upload_id: str, part: Part) -> None:
        with self._place(upload_id, f"{part.number:05d}").open("rb") as source:
            if files.read_meta(source.fileno())["etag"] != part.etag:
                raise S3Error("InvalidPart", f"Part {part.number} was uploaded again meanwhile.")
            files.append_file(file, source.fileno(), part.size_bytes)

    def _drop(self, upload_id: str) -> None:
        # Out of sight by one rename; what is left of it there is swept.
        gone = self._store.root / ".incoming" / secrets.token_hex(16)
        self._store.make(gone.parent)
        with contextlib.suppress(FileNotFoundError):
            self._place(upload_id, "").rename(gone)
            files.sync_directory(self._directory)
        shutil.rmtree(gone, ignore_errors=True)

    def _ids(self) -> list[str]:
        try:
            return os.listdir(self._directory)
        except FileNotFoundError:
            return []

    def _list(self) -> list[Upload]:
        self._store.settings(self._bucket.name)
        found = [self._read(upload_id) for upload_id in self._ids()]
        return sorted((one for one in found if one is not None), key=lambda one: (one.key, one.begun_at, one.upload_id))


_ENDING: dict[Path, WeakValueDictionary[str, asyncio.Lock]] = {}
"""Uploads that are being completed: one at a time of each."""


def _part(number: int, meta: dict[str, Any]) -> Part:
    at = datetime.fromtimestamp(meta["modified_at"], UTC)
    return Part(number, int(meta["size"]), meta["etag"], at, str(meta.get("checksum") or ""))


def _chosen(wanted: Sequence[Part], there: Sequence[Part]) -> list[Part]:
    """Those of `there` that are wanted. Raises `S3Error`."""
    if not wanted:
        raise S3Error("MalformedXML", "An upload has at least one part.")
    numbers = [part.number for part in wanted]
    if any(left >= right for left, right in pairwise(numbers)):
        raise S3Error("InvalidPartOrder")
    known = {part.number: part for part in there}
    found: list[Part] = []
    for part in wanted:
        one = known.get(part.number)
        if one is None or one.etag != part.etag or (part.checksum and one.checksum and part.checksum != one.checksum):
            raise S3Error("InvalidPart", fields={"PartNumber": str(part.number)})
        found.append(one)
    for part in found[:-1]:
        if part.size_bytes < PART_BYTES_MIN:
            raise S3Error(
                "EntityTooSmall",
                fields={"PartNumber": str(part.number), "ProposedSize": str(part.size_bytes)},
            )
    if sum(part.size_bytes for part in found) > MULTIPART_BYTES_MAX:
        raise S3Error("EntityTooLarge")
    return found


def _measured(
    upload: Upload, parts: Sequence[Part], checksum: str, size_bytes: int | None
) -> tuple[dict[str, Any], int]:
    """What is known of the object of these parts, and its size. Raises `S3Error` where that is not what was said."""
    size = sum(part.size_bytes for part in parts)
    if size_bytes is not None and size_bytes != size:
        raise S3Error("InvalidRequest", f"The parts have {size} bytes, not {size_bytes}.")
    md5 = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts), usedforsecurity=False).hexdigest()
    meta = files.meta_of(upload.about) | {
        "etag": f"{md5}-{len(parts)}",
        "upload": upload.upload_id,
        "parts": [[part.number, part.size_bytes, part.checksum] for part in parts],
    }
    if algorithm := upload.about.checksum:
        if upload.about.checksum_type == checksums.FULL_OBJECT:
            meta["checksum"] = checksums.full_of_parts(algorithm, [(part.checksum, part.size_bytes) for part in parts])
        else:
            meta["checksum"] = checksums.composite(algorithm, [part.checksum for part in parts])
        if checksum and checksum not in (meta["checksum"], meta["checksum"].partition("-")[0]):
            raise S3Error("BadDigest", f"The {algorithm} you specified did not match the calculated checksum.")
    return meta, size
