"""The contract of what holds one bucket's objects.

Two backends: `volume.VolumeBucket` on files of a volume, which can do everything, and `external.ExternalBucket` on somebody
else's object storage, which cannot keep versions or tags. Both pass `tenure.testing.object_conformance`.

Refusals are `S3Error`s of the codes that a method's docstring names; what a backend cannot do is `NotImplemented`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

KEY_BYTES_MAX = 1024
OBJECT_BYTES_MAX = 5 * 1024**3
"""In one put, and of one part. What is uploaded in parts may be larger."""
MULTIPART_BYTES_MAX = 5 * 1024**4
PART_BYTES_MIN = 5 * 1024**2
"""Of every part but the last."""
PARTS_MAX = 10_000
PAGE_MAX = 1000
NULL_VERSION = "null"
"""The version of what was stored while the bucket kept no versions."""


@dataclass(frozen=True)
class NewObject:
    """What is told of an object when it is stored."""

    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Those that come back with it, in lower case: content-type, cache-control, content-disposition, …"""
    user: Mapping[str, str] = field(default_factory=dict[str, str])
    """User metadata, without `x-amz-meta-`."""
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    checksum: str = ""
    """Algorithm of the checksum to be kept with it ("CRC32", …); empty for none."""
    checksum_type: str = ""
    """Of an upload in parts: "COMPOSITE" (of the parts' checksums) or "FULL_OBJECT"."""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the gateway keeps with it beside, in JSON's types."""


@dataclass(frozen=True)
class Part:
    """One part of an upload, or of an object that was uploaded in parts. `etag` is the MD5 in hex."""

    number: int
    size_bytes: int
    etag: str
    modified_at: datetime | None = None
    checksum: str = ""
    """In base64, of the upload's algorithm."""


@dataclass(frozen=True)
class Version:
    """One version of an object, or a delete marker."""

    key: str
    version_id: str
    size_bytes: int
    etag: str
    """Without quotes: the MD5 in hex, or that of the parts' MD5s with their number after a "-"."""
    modified_at: datetime
    is_latest: bool = True
    is_marker: bool = False
    about: NewObject = field(default_factory=NewObject)
    sha256: str = ""
    """In hex; empty where it is not known."""
    checksum: str = ""
    parts: Sequence[Part] = ()
    upload_id: str = ""


class OpenObject(Protocol):
    """An object opened for reading, as of one instant: what happens meanwhile does not change what is read."""

    @property
    def version(self) -> Version: ...

    def read(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """The bytes from `start` to `end` (exclusive), in pieces of at most 1 MiB. Once. Closes when it ends or is closed."""
        ...

    def close(self) -> None:
        """When nothing is read. Idempotent."""
        ...


@dataclass(frozen=True)
class Condition:
    """What has to hold of the latest version for a change to happen. ETags are without quotes; "*" is any."""

    if_match: str | None = None
    if_none_match: str | None = None
    size_bytes: int | None = None
    """Of deletions only, as is `modified_at`."""
    modified_at: datetime | None = None

    @property
    def is_empty(self) -> bool:
        return self == ANY


ANY = Condition()


@dataclass(frozen=True)
class Deleted:
    version_id: str | None = None
    """Of what is gone, or of the new delete marker; None where no versions are kept."""
    is_marker: bool = False
    """What is gone, or was put, is a delete marker."""


@dataclass(frozen=True)
class Wanted:
    """Which page of a listing. `after` is a key, and with `versions` a version of it, past which it begins (exclusive)."""

    prefix: str = ""
    delimiter: str = ""
    after: str = ""
    after_version: str = ""
    limit: int = PAGE_MAX
    versions: bool = False
    within: str = ""
    """Only keys that begin so are there: what is listed tells nothing of others."""

    @property
    def keys_prefix(self) -> str | None:
        """What all keys of the listing begin with; None when there can be none."""
        longer, shorter = sorted((self.prefix, self.within), key=len, reverse=True)
        return longer if longer.startswith(shorter) else None


@dataclass(frozen=True)
class Page:
    """`versions` by key, the newest of a key first; `prefixes` are the common ones, sorted."""

    versions: Sequence[Version]
    prefixes: Sequence[str]
    is_truncated: bool
    next_after: str = ""
    """Key or common prefix with which the page ended: the next begins past it."""
    next_version: str = ""


@dataclass(frozen=True)
class Upload:
    """An upload in parts that is not over."""

    upload_id: str
    key: str
    begun_at: datetime
    about: NewObject


@dataclass(frozen=True)
class Settings:
    """What a bucket is told of itself, in JSON's types by name: "versioning", "tags", "cors", "acl", "ownership"."""

    created_at: datetime
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def versioning(self) -> str:
        """ "", "Enabled" or "Suspended"."""
        return str(self.values.get("versioning", ""))


class Uploads(Protocol):
    """Uploads in parts. What is uploaded is no object before `complete`, and then at once. All raise NoSuchUpload."""

    async def begin(self, key: str, about: NewObject) -> str:
        """The upload's id."""
        ...

    async def get(self, key: str, upload_id: str) -> Upload: ...

    async def put(self, key: str, upload_id: str, number: int, chunks: AsyncIterable[bytes]) -> Part:
        """Takes the place of an earlier part of the number."""
        ...

    async def parts(self, key: str, upload_id: str) -> Sequence[Part]:
        """By number."""
        ...

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
        """The object of these parts; others are dropped. `parts` have number and etag, and checksum where it is to be compared.
        May be called again with the same parts, and then changes nothing. Raises InvalidPart, InvalidPartOrder, EntityTooSmall,
        PreconditionFailed, BadDigest for a `checksum` or `size_bytes` that is another."""
        ...

    async def abort(self, key: str, upload_id: str) -> None: ...

    async def list(self) -> Sequence[Upload]:
        """By key, and by beginning."""
        ...


class ObjectBackend(Protocol):
    """One bucket. A change is whole or has not happened, also after kill -9 at any point, and survives a power cut when it has
    returned."""

    @property
    def uploads(self) -> Uploads: ...

    async def put(
        self, key: str, chunks: AsyncIterable[bytes], about: NewObject, condition: Condition = ANY
    ) -> Version:
        """Stores all of `chunks`; when that raises, nothing changes. Raises PreconditionFailed, NoSuchKey (for `if_match` of
        what is not there), EntityTooLarge, `tenure.errors.DiskFull`."""
        ...

    async def open(self, key: str, version_id: str | None = None) -> OpenObject:
        """The latest version, or the one asked for. A delete marker that is asked for by its id opens as `is_marker`, to be
        closed. Raises NoSuchKey, NoSuchVersion. The NoSuchKey of a delete marker has the headers that say so."""
        ...

    async def delete(self, key: str, version_id: str | None = None, condition: Condition = ANY) -> Deleted:
        """Of what is not there, too. Where versions are kept, and none is named, a delete marker is put. Raises
        PreconditionFailed."""
        ...

    async def page(self, wanted: Wanted) -> Page: ...

    async def set_tags(self, key: str, tags: Mapping[str, str], version_id: str | None = None) -> Version:
        """Raises as `open`, and MethodNotAllowed for a delete marker."""
        ...

    async def set_extra(self, key: str, name: str, value: Any, version_id: str | None = None) -> Version:
        """One of what the gateway keeps with the version. Raises as `set_tags`."""
        ...

    async def settings(self) -> Settings: ...

    async def change(self, name: str, value: Any) -> None:
        """One of the settings; None takes it away. Raises NotImplemented for what cannot be here."""
        ...
