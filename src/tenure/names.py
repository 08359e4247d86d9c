"""The rules for names of agents and buckets, so that a name is safe in a path, a host name and a URL."""

from __future__ import annotations

import re

from tenure.errors import InvalidName

NAME_CHARS_MAX = 40
BUCKET_CHARS_MAX = 63
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")


def check_name(name: str, what: str = "agent") -> str:
    """`name` itself when it is valid. Raises `InvalidName`."""
    if not _NAME.match(name):
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise InvalidName(f"{shown!r} is not a valid {what} name.")
    return name


def check_bucket(name: str) -> str:
    """`name` itself when a bucket may have it: as S3 has it, without dots. Raises `InvalidName`."""
    if not _BUCKET.match(name):
        raise InvalidName(
            f"{name[:60]!r} is not a valid bucket name.",
            hint=f"Buckets have 1 to {BUCKET_CHARS_MAX} characters: a-z, 0-9 and '-', which is neither first nor last.",
        )
    return name
