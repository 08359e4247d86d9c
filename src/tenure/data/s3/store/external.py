"""A bucket that lies in somebody else's object storage: `s3://BUCKET/PREFIX/`, `gs://…`, `az://…`, `file:///DIRECTORY`.

What that storage has no one way to do is not done here: versions, tags, settings. Everything that is stored is spooled on our
disk first and checked as a whole, so nothing half or wrong is ever sent on. Credentials come from the environment of the
server, and stand in no row and no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from tenure.data.s3.checksums import digest_of
from tenure.data.s3.errors import S3Error, from_tenure, no_such_key, not_implemented
from tenure.data.s3.store import conditions
from tenure.data.s3.store.base import (
    ANY,
    NULL_VERSION,
    OBJECT_BYTES_MAX,
    Condition,
    Deleted,
    NewObject,
    Page,
    Part,
    Settings,
    Upload,
    Version,
    Wanted,
)
from tenure.data.s3.store.paging import page_of
from tenure.data.s3.store.volume import VolumeStore
from tenure.errors import InvalidArgument, StorageError

SCHEMES = ("s3", "gs", "az", "file")
CONDITIONAL_BYTES_MAX = 128 * 1024 * 1024
"""A conditional put goes in one piece, which is held in memory."""
CONNECT_S, REQUEST_S, RETRY_S, RETRIES_MAX = 10, 300, 60, 3
PIECE_BYTES = 1024 * 1024
UNSORTED_MAX = 1_000_000
"""Keys of a storage that lists in no order (a directory), which are sorted here."""
_KEPT = {
    "content-type": "Content-Type",
    "cache-control": "Cache-Control",
    "content-disposition": "Content-Disposition",
    "content-encoding": "Content-Encoding",
    "content-language": "Content-Language",
}
_ADDRESS = re.compile(r"(s3|gs|az|file)://(.*)\Z", re.DOTALL)
_SPOOL = "spool"


def open_external(address: str, created_at: datetime, spool: Path | None = None) -> ExternalBucket:
    """Does not ask the storage anything. `spool` is a directory of ours. Raises `InvalidArgument` for an address that is none."""
    match = _ADDRESS.match(address)
    if match is None or not address.isprintable() or any(part in (".", "..") for part in match[2].split("/")):
        raise InvalidArgument(
            f"{address[:200]!r} is not the address of a bucket.",
            hint="Write s3://BUCKET/PREFIX/, gs://BUCKET/, az://CONTAINER/ or file:///DIRECTORY.",
        )
    scheme, rest = match[1], match[2]
    if scheme == "file":
        if not rest.startswith("/") or not Path(rest).is_dir():
            raise InvalidArgument(f"There is no directory {rest[:200]}.", hint="Make it first: file:///DIRECTORY")
        return ExternalBucket(_local(rest), address, "", created_at, spool, is_sorted=False, has_attributes=False)
    container, _, prefix = rest.partition("/")
    if not container:
        raise InvalidArgument(f"{address[:200]!r} names no bucket.")
    prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
    return ExternalBucket(_remote(scheme, container), address, prefix, created_at, spool)


def _local(path: str) -> Any:
    from obstore.store import LocalStore

    return LocalStore(path)


def _remote(scheme: str, container: str) -> Any:
    from obstore.store import AzureStore, GCSStore, S3Store

    from tenure.offices.archives.s3 import configuration

    config: dict[str, Any] = configuration(os.environ) if scheme == "s3" else {}
    options: Any = {
        "allow_http": str(config.get("endpoint", "")).startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "timeout": timedelta(seconds=REQUEST_S),
    }
    retry: Any = {"max_retries": RETRIES_MAX, "retry_timeout": timedelta(seconds=RETRY_S)}
    if scheme == "s3":
        return S3Store(container, config=cast(Any, config), client_options=options, retry_config=retry)
    if scheme == "gs":
        return GCSStore(container, client_options=options, retry_config=retry)
    return AzureStore(container, client_options=options, retry_config=retry)


class ExternalObject:
    """An `OpenObject`. The storage answers as of the moment when it was asked."""

    def __init__(self, bucket: ExternalBucket, version: Version, raw_etag: str | None) -> None:
        self.version = version
        self._bucket, self._etag = bucket, raw_etag

    async def read(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        import obstore

        stop = self.version.size_bytes if end is None else end
        if stop <= start:
            return
        options: Any = {"range": (start, stop)}
        if self._etag:
            options["if_match"] = self._etag  # no mixture of two objects
        with self._bucket.told(self.version.key):
            path = self._bucket.path(self.version.key)
            found = await obstore.get_async(self._bucket.store, path, options=options)
            async for chunk in found.stream(min_chunk_size=PIECE_BYTES):
                view = memoryview(chunk)
                for place in range(0, len(view), PIECE_BYTES):
                    yield bytes(view[place : place + PIECE_BYTES])

    def close(self) -> None:
        return


class ExternalBucket:
    """An `ObjectBackend`."""

    def __init__(
        self,
        store: Any,
        address: str,
        prefix: str,
        created_at: datetime,
        spool: Path | None,
        *,
        is_sorted: bool = True,
        has_attributes: bool = True,
    ) -> None:
        self.store = store
        self._address, self._prefix, self._created_at = address, prefix, created_at
        self._is_sorted, self._has_attributes = is_sorted, has_attributes
        self.spool = VolumeStore(spool) if spool is not None else None
        self.uploads = ExternalUploads(self)

    async def put(
        self, key: str, chunks: AsyncIterable[bytes], about: NewObject, condition: Condition = ANY
    ) -> Version:
        path = self.path(key)
        if about.tags:
            raise not_implemented("Tags on objects of this bucket")
        if not condition.is_empty:
            conditions.check(condition, key, await self._latest(key))
        with tempfile.TemporaryFile(dir=self._room()) as file:
            size, md5 = 0, digest_of("MD5")
            async for chunk in chunks:
                size += len(chunk)
                if size > OBJECT_BYTES_MAX:
                    raise S3Error("EntityTooLarge")
                md5.update(chunk)
                await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(file.seek, 0)
            return await self.send(key, path, file, size, about, condition)

    async def send(self, key: str, path: str, file: Any, size: int, about: NewObject, condition: Condition) -> Version:
        """Stores a whole file."""
        import obstore

        mode: Any = "overwrite"
        if not condition.is_empty:
            if size > CONDITIONAL_BYTES_MAX:
                raise not_implemented(f"A conditional put of more than {CONDITIONAL_BYTES_MAX // 1024**2} MiB")
            mode = "create" if condition.if_none_match == "*" else await self._update(key, condition)
        attributes: Any = {name: about.headers[one] for one, name in _KEPT.items() if one in about.headers}
        attributes |= dict(about.user)
        with self.told(key):
            await obstore.put_async(
                self.store,
                path,
                file,
                attributes=attributes if self._has_attributes else None,
                mode=mode,
                use_multipart=None if condition.is_empty else False,
            )
        return (await self.open(key)).version

    async def _update(self, key: str, condition: Condition) -> Any:
        found = await self._head(key)
        latest = None if found is None else found[0]
        conditions.check(condition, key, latest)
        return "create" if found is None else {"e_tag": found[1], "version": None}

    async def open(self, key: str, version_id: str | None = None) -> ExternalObject:
        if version_id not in (None, NULL_VERSION):
            raise not_implemented("A version of an object of this bucket")
        found = await self._head(key)
        if found is None:
            raise no_such_key(key)
        return ExternalObject(self, *found)

    async def delete(self, key: str, version_id: str | None = None, condition: Condition = ANY) -> Deleted:
        import obstore

        if version_id not in (None, NULL_VERSION):
            raise not_implemented("A version of an object of this bucket")
        if not condition.is_empty:
            raise not_implemented("A conditional deletion in this bucket")
        with self.told(key), contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self.store, self.path(key))
        return Deleted(version_id)

    async def page(self, wanted: Wanted) -> Page:
        return await asyncio.to_thread(self._page, wanted)

    async def set_tags(self, key: str, tags: Mapping[str, str], version_id: str | None = None) -> Version:
        raise not_implemented("Tags on objects of this bucket")

    async def set_extra(self, key: str, name: str, value: Any, version_id: str | None = None) -> Version:
        raise not_implemented("Locks on objects of this bucket")

    async def settings(self) -> Settings:
        return Settings(self._created_at)

    async def change(self, name: str, value: Any) -> None:
        if value is not None:
            raise not_implemented(f"Setting {name} of a bucket that lies elsewhere")

    # --- the storage ----------------------------------------------------------------------------------------------------
    def path(self, key: str) -> str:
        """As the storage's client names it, which cannot name all: it takes keys for paths. Raises `S3Error`."""
        if any(part in ("", ".", "..") for part in key.split("/")) or not key.isprintable():
            raise S3Error("InvalidArgument", f"{key[:100]!r} cannot be a key in this bucket, which lies elsewhere.")
        if len(key.encode()) > 1024:
            raise S3Error("KeyTooLongError")
        return self._prefix + key

    @contextlib.contextmanager
    def told(self, key: str) -> Generator[None]:
        """Errors of the storage in S3's words."""
        from obstore import exceptions as told

        try:
            yield
        except FileNotFoundError:
            raise no_such_key(key) from None
        except (told.AlreadyExistsError, told.PreconditionError):
            raise S3Error("PreconditionFailed") from None
        except NotImplementedError as error:
            raise not_implemented(str(error)[:100]) from None
        except told.BaseError as error:
            place = self._address
            raise from_tenure(StorageError(f"{place} does not answer as it should: {type(error).__name__}.")) from error

    async def _latest(self, key: str) -> Version | None:
        found = await self._head(key)
        return None if found is None else found[0]

    async def _head(self, key: str) -> tuple[Version, str | None] | None:
        import obstore

        try:
            with self.told(key):
                found = await obstore.get_async(self.store, self.path(key), options=cast(Any, {"head": True}))
        except S3Error as error:
            if error.code == "NoSuchKey":
                return None
            raise
        given: dict[str, str] = {str(name): str(value) for name, value in found.attributes.items()}
        headers = {one: given.pop(name) for one, name in _KEPT.items() if name in given}
        meta = found.meta
        return self._version(key, meta, NewObject(headers, given)), meta.get("e_tag")

    def _version(self, key: str, meta: Any, about: NewObject) -> Version:
        etag = str(meta.get("e_tag") or "").removeprefix("W/").strip('"')
        return Version(key, NULL_VERSION, int(meta["size"]), etag or "-", meta["last_modified"], about=about)

    def _room(self) -> Path | None:
        if self.spool is None:
            return None
        self.spool.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.spool.root

    def _page(self, wanted: Wanted) -> Page:
        metas: dict[str, Any] = {}

        def keys_after(start: str, inclusive: bool) -> Iterator[str]:
            beginning = wanted.keys_prefix or ""
            for meta in self._listed(beginning, start, inclusive):
                key = str(meta["path"])[len(self._prefix) :]
                if key < start or (key == start and not inclusive):
                    continue
                if not key.startswith(beginning):
                    if key > beginning:
                        return
                    continue
                metas.clear()
                metas[key] = meta
                yield key

        def versions_of(key: str) -> Sequence[Version]:
            return [self._version(key, metas[key], NewObject())]

        with self.told(""):
            return page_of(wanted, keys_after, versions_of)

    def _listed(self, beginning: str, start: str, inclusive: bool) -> Iterator[Any]:
        """In the order of keys, from about `start` on."""
        import obstore

        # The storage's client takes prefixes for paths: what begins like the last part of one is found among its neighbours.
        directory = (self._prefix + beginning).rpartition("/")[0]
        offset = None
        if self._is_sorted and max(start, beginning):
            at = max(start, beginning)
            offset = self._prefix + (at if at == start and not inclusive else _before(at))
        pages: Any = obstore.list(  # pyright: ignore[reportUnknownMemberType]
            self.store, directory or None, offset=offset, chunk_size=1000
        )
        found = (meta for page in pages for meta in page)
        if self._is_sorted:
            return found
        return iter(heapq.nsmallest(UNSORTED_MAX, found, key=lambda meta: str(meta["path"])))


class ExternalUploads:
    """`Uploads` into a bucket that lies elsewhere: the parts lie here until they are whole."""

    def __init__(self, bucket: ExternalBucket) -> None:
        self._bucket = bucket

    async def begin(self, key: str, about: NewObject) -> str:
        self._bucket.path(key)
        if about.tags:
            raise not_implemented("Tags on objects of this bucket")
        store = self._store()
        await store.create(_SPOOL)
        return await store.bucket(_SPOOL).uploads.begin(key, about)

    async def get(self, key: str, upload_id: str) -> Upload:
        return await self._store().bucket(_SPOOL).uploads.get(key, upload_id)

    async def put(self, key: str, upload_id: str, number: int, chunks: AsyncIterable[bytes]) -> Part:
        return await self._store().bucket(_SPOOL).uploads.put(key, upload_id, number, chunks)

    async def parts(self, key: str, upload_id: str) -> Sequence[Part]:
        return await self._store().bucket(_SPOOL).uploads.parts(key, upload_id)

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
        spooled = self._store().bucket(_SPOOL)
        whole = await spooled.uploads.complete(key, upload_id, parts, checksum=checksum, size_bytes=size_bytes)
        found = await spooled.open(key)
        assert found.file is not None
        with found.file as file:
            version = await self._bucket.send(
                key, self._bucket.path(key), file, whole.size_bytes, whole.about, condition
            )
        await spooled.delete(key)
        return version

    async def abort(self, key: str, upload_id: str) -> None:
        await self._store().bucket(_SPOOL).uploads.abort(key, upload_id)

    async def list(self) -> Sequence[Upload]:
        store = self._store()
        return await store.bucket(_SPOOL).uploads.list() if await store.exists(_SPOOL) else []

    def _store(self) -> VolumeStore:
        if self._bucket.spool is None:
            raise not_implemented("An upload in parts to this bucket")
        return self._bucket.spool


def _before(key: str) -> str:
    """Something less than `key`, with little between."""
    last = ord(key[-1]) - 1
    if last < 0:
        return key[:-1]
    return key[:-1] + chr(0xD7FF if 0xD800 <= last <= 0xDFFF else last) + "\U0010ffff"
