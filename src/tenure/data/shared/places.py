"""Where backups lie: a directory of this machine, or S3. All calls block.

What is put is there, whole, when the call returns, and not before. Keys are relative: "sales/…/base-….tar.gz".
"""

from __future__ import annotations

import errno
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

from tenure.errors import DiskFull, InvalidArgument, NotFound, StorageError

READ_BYTES = 1024 * 1024
_SCHEME = "s3://"


class Place(ABC):
    """Raises `StorageError` (what it is may pass), `DiskFull`, `NotFound` for what is not there."""

    @abstractmethod
    def put(self, key: str, pieces: Iterable[bytes]) -> None:
        """Replaces what is there. An error of `pieces` is passed on, and nothing has changed then."""

    @abstractmethod
    def get(self, key: str) -> Iterator[bytes]: ...

    @abstractmethod
    def list(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`, which ends with "/", in no order."""


def place_of(to: str) -> Place:
    """Raises `InvalidArgument`."""
    if to.startswith(_SCHEME):
        return _S3(to if to.endswith("/") else f"{to}/")
    path = Path(to)
    if not path.is_absolute() or ".." in path.parts or "\0" in to:
        raise InvalidArgument(
            f"{to[:200]!r} is no place for backups.",
            hint="Write s3://BUCKET/PREFIX/, or a directory of the server's machine from its root on: /backups.",
        )
    return _Directory(path)


class _Directory(Place):
    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, pieces: Iterable[bytes]) -> None:
        target = self._root / key
        fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with fresh.open("xb") as file:
                    os.fchmod(file.fileno(), 0o600)
                    for piece in pieces:
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(target)
            finally:
                fresh.unlink(missing_ok=True)
            directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"There is no room for backups in {self._root}.") from error
            raise StorageError(f"Writing {target} failed: {error.strerror}.") from error

    def get(self, key: str) -> Iterator[bytes]:
        try:
            with (self._root / key).open("rb") as file:
                while piece := file.read(READ_BYTES):
                    yield piece
        except FileNotFoundError:
            raise NotFound(f"There is no {self._root / key}.") from None
        except OSError as error:
            raise StorageError(f"Reading {self._root / key} failed: {error.strerror}.") from error

    def list(self, prefix: str) -> list[str]:
        found = (self._root / prefix).rglob("*")
        return [str(path.relative_to(self._root)) for path in found if path.is_file() and not path.name.startswith(".")]


class _S3(Place):
    """What loads the client of S3 is imported when it is used."""

    def __init__(self, to: str) -> None:
        from tenure.offices.archives import s3

        self._s3 = s3
        self._at = s3.parse_place(to)

    def put(self, key: str, pieces: Iterable[bytes]) -> None:
        self._s3.upload(self._at.within(key), pieces)

    def get(self, key: str) -> Iterator[bytes]:
        reader = self._s3.Reader(self._at.within(key))
        while piece := reader.read(READ_BYTES):
            yield piece

    def list(self, prefix: str) -> list[str]:
        start = len(self._at.key)
        return [one.key[start:] for one in self._s3.listed(self._at.within(prefix))]
