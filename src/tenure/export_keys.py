"""Keys of encrypted exports: where they come from, and how they are called without being told."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from tenure.errors import AlreadyExists, InvalidArgument, NotFound

KEY_BYTES = 32
KEY_ENVIRONMENT = "TENURE_EXPORT_KEY"
KEY_FILE_BYTES_MAX = 4096
_PREFIX = "tenure-export-key-1:"


@dataclass(frozen=True, repr=False)
class Key:
    """A secret; its `id` is none."""

    secret: bytes

    @property
    def id(self) -> str:
        return hashlib.sha256(b"tenure export key id" + self.secret).hexdigest()[:16]

    @property
    def text(self) -> str:
        """As it stands in a file or in the environment."""
        return _PREFIX + base64.b64encode(self.secret).decode()

    def __repr__(self) -> str:
        return f"<Key {self.id}>"


def new_key() -> Key:
    return Key(secrets.token_bytes(KEY_BYTES))


def parse_key(text: str) -> Key:
    """Raises `InvalidArgument`, which does not quote the text."""
    try:
        head, prefix, body = text.strip().partition(_PREFIX)
        secret = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        head, prefix, secret = "", "", b""
    if head or not prefix or len(secret) != KEY_BYTES:
        raise InvalidArgument(
            "What was given is not a key for exports.", hint="`tenure agent export-key FILE` makes one."
        )
    return Key(secret)


def read_key(path: Path) -> Key:
    """Of a file. Raises `NotFound`, `InvalidArgument`."""
    try:
        with path.open("rb") as file:
            return parse_key(file.read(KEY_FILE_BYTES_MAX).decode("ascii", "replace"))
    except FileNotFoundError:
        raise NotFound(f"There is no key file {path}.", hint="`tenure agent export-key FILE` makes one.") from None
    except OSError as error:
        raise InvalidArgument(f"The key file {path} cannot be read: {error.strerror}.") from None


def write_key(path: Path, key: Key) -> None:
    """A new file that only its owner reads. Raises `AlreadyExists`: a key that is overwritten is lost."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExists(f"There is a file {path} already.", hint="Choose another name.") from None
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror}.") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
