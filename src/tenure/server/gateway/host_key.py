"""The gateway's own key: made once, kept in TENURE_HOME/keys, so that clients know the gateway again."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import asyncssh

from tenure.errors import SetupError
from tenure.settings import Settings

NAME = "ssh_gateway_ed25519"


def ensure_host_key(settings: Settings) -> asyncssh.SSHKey:
    """The key, made when there is none; two servers that make it at once end up with the same. Raises `SetupError` when the
    file is there and holds no key: replacing it in silence would look like an attack to every client."""
    path = settings.keys_dir / NAME
    settings.keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        _make(path)
    try:
        return asyncssh.read_private_key(path)
    except (asyncssh.KeyImportError, OSError) as error:
        raise SetupError(
            f"The SSH gateway's key {path} cannot be read: {error}.",
            hint="Restore it from a backup; or delete it, and the next `tenure up` makes a new one, which every client has to "
            "be told (`tenure ssh-config`).",
        ) from error


def _make(path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519", comment="tenure gateway")  # pyright: ignore[reportUnknownMemberType]
    fresh = path.with_name(f".{NAME}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.export_private_key())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another server was faster
            os.link(fresh, path)
    finally:
        fresh.unlink()


def public_text(key: asyncssh.SSHKey) -> str:
    """The public half as known_hosts has it: "algorithm base64"."""
    return " ".join(key.export_public_key().decode().split()[:2])
