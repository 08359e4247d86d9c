"""One version of an object is one file, which carries what is known of it: written elsewhere, sealed, then renamed into place.

What is known is JSON in an extended attribute. File systems bound those (ext4: one block for all of a file), so what is longer
stands behind the object's bytes in the same file, and the attribute says only where.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from tenure.data.s3.store.base import NULL_VERSION, NewObject, Part, Version

NAME = "user.tenure.name"
META = "user.tenure.object"
META_INLINE_BYTES_MAX = 1500
META_BYTES_MAX = 4 * 1024**2
"""Ten thousand parts take less than one."""
COPY_BYTES = 64 * 1024 * 1024
OLD_DIGEST_CHARS = 32


def seal(file: BinaryIO, key: str, meta: Mapping[str, Any], size_bytes: int) -> None:
    """Ends the writing of a file, which holds `size_bytes` of the object: everything of it is on the disk afterwards."""
    encoded = json.dumps(meta, separators=(",", ":")).encode()
    if len(encoded) > META_INLINE_BYTES_MAX:
        file.seek(size_bytes)
        file.write(encoded)
        encoded = json.dumps({"size": size_bytes, "tail": len(encoded)}).encode()
    os.setxattr(file.fileno(), NAME, key.encode())
    os.setxattr(file.fileno(), META, encoded)
    file.flush()
    os.fsync(file.fileno())


def read_meta(descriptor: int) -> dict[str, Any]:
    """Has "size" in any case. Raises `OSError` for a file that was never sealed."""
    meta: dict[str, Any] = json.loads(os.getxattr(descriptor, META))
    if tail := int(meta.get("tail", 0)):
        size = int(meta["size"])
        meta = json.loads(os.pread(descriptor, min(tail, META_BYTES_MAX), size)) | {"size": size}
    else:
        meta["size"] = os.fstat(descriptor).st_size
    return meta


def read_key(path: str | Path) -> str:
    return os.getxattr(path, NAME).decode()


def sequence_of(meta: Mapping[str, Any]) -> int:
    """Orders the versions of a key: of what was stored before there were versions, by its time."""
    return int(meta.get("seq") or float(meta["modified_at"]) * 10**9)


def version_of(key: str, version_id: str, meta: Mapping[str, Any], *, is_latest: bool) -> Version:
    headers = dict(meta.get("headers") or {})
    if meta.get("content_type"):
        headers["content-type"] = meta["content_type"]
    sha256 = str(meta.get("sha256") or "")
    return Version(
        key,
        version_id,
        int(meta["size"]),
        # What was stored before S3's protocol was spoken has no MD5. Nobody takes an ETag with a "-" for one.
        str(meta.get("etag") or f"{sha256[:OLD_DIGEST_CHARS]}-1"),
        datetime.fromtimestamp(meta["modified_at"], UTC),
        is_latest,
        bool(meta.get("marker")),
        NewObject(
            headers,
            meta.get("user") or {},
            meta.get("tags") or {},
            str(meta.get("algorithm") or ""),
            str(meta.get("checksum_type") or ""),
            meta.get("extra") or {},
        ),
        sha256,
        str(meta.get("checksum") or ""),
        tuple(Part(number, size, "", None, checksum) for number, size, checksum in meta.get("parts") or ()),
        str(meta.get("upload") or ""),
    )


def meta_of(about: NewObject) -> dict[str, Any]:
    """The JSON of what was told; what was measured is added to it."""
    headers = dict(about.headers)
    found: dict[str, Any] = {"content_type": headers.pop("content-type", None)}
    for name, value in (
        ("headers", headers),
        ("user", dict(about.user)),
        ("tags", dict(about.tags)),
        ("algorithm", about.checksum),
        ("checksum_type", about.checksum_type),
        ("extra", dict(about.extra)),
    ):
        if value:
            found[name] = value
    return found


def version_id_of(sequence: int, random: str) -> str:
    """Sorts as the sequence does."""
    return f"{sequence:016x}{random}"


def sequence_of_id(version_id: str) -> int:
    return int(version_id[:16], 16)


def is_version_id(text: str) -> bool:
    """Whether it may be one: it becomes the name of a file."""
    return text == NULL_VERSION or (len(text) == 32 and all(char in "0123456789abcdef" for char in text))


def append_file(target: BinaryIO, source: int, size_bytes: int) -> None:
    """Copies the first bytes of `source` to where `target` stands; the file system shares blocks where it can. The kernel copies:
    nothing of it is held in memory."""
    target.flush()
    done, start = 0, target.tell()
    while done < size_bytes:
        count = os.copy_file_range(source, target.fileno(), min(COPY_BYTES, size_bytes - done), done, start + done)
        if not count:
            raise OSError("a file is shorter than it was")
        done += count
    target.seek(start + size_bytes)


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
