"""Secrets that the server keeps for somebody, each a file that only its user may read. Never in the control database."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from tenure.errors import InvalidArgument, NotFound, TooLarge

SECRET_BYTES_MAX = 64 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,79}\Z")


class KeptSecrets:
    """Secrets by name, in `directory` (0700). Raises `InvalidArgument` for what can be no name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, name: str, secret: bytes) -> None:
        """It is on disk when this returns; whoever reads meanwhile gets the old one or the new one. Raises `TooLarge`."""
        path = self._path(name)
        if len(secret) > SECRET_BYTES_MAX:
            raise TooLarge(f"A secret may have {SECRET_BYTES_MAX} bytes.")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        fresh = path.with_name(f".{name}.{secrets.token_hex(6)}")
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(secret)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def get(self, name: str) -> bytes:
        """Raises `NotFound`."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            raise NotFound("This secret is not kept here.", hint="Give it again to what it belongs to.") from None

    def delete(self, name: str) -> None:
        """Does nothing when there is none."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if not _NAME.match(name):
            raise InvalidArgument("This cannot be the name of a secret.")
        return self._directory / name
