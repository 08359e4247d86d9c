"""The one rule for names of agents and buckets, so that a name is safe in a path, a host name and a URL."""

from __future__ import annotations

import re

from tenure.errors import InvalidName

NAME_CHARS_MAX = 40
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")


def check_name(name: str, what: str = "agent") -> str:
    """`name` itself when it is valid. Raises `InvalidName`."""
    if not _NAME.match(name):
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise InvalidName(f"{shown!r} is not a valid {what} name.")
    return name
