"""The owner's SSH key: what opens every office's door to its owner."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh

from tenure.settings import Settings

PRIVATE_KEY = "id_ed25519"


def private_key(settings: Settings) -> Path:
    """Where the key is; its public half has `.pub` appended."""
    return settings.keys_dir / PRIVATE_KEY


def exist(settings: Settings) -> bool:
    """Whether both halves are there."""
    key = private_key(settings)
    return key.is_file() and key.with_suffix(".pub").is_file()


def make(settings: Settings) -> None:
    """Makes the key pair; an existing private key is kept and its public half written again."""
    settings.keys_dir.mkdir(parents=True, exist_ok=True)
    settings.keys_dir.chmod(0o700)
    target = private_key(settings)
    if target.is_file():
        key = asyncssh.read_private_key(target)
    else:
        key = asyncssh.generate_private_key("ssh-ed25519", comment="tenure owner")  # pyright: ignore[reportUnknownMemberType]
        fresh = target.with_name(f".{PRIVATE_KEY}.new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.export_private_key())
        fresh.rename(target)
    target.with_suffix(".pub").write_bytes(key.export_public_key())
