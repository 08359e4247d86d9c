"""Intervals as people write them. Pure."""

from __future__ import annotations

import re

from tenure.errors import InvalidArgument

_INTERVAL = re.compile(r"([0-9]{1,9})\s*(s|min|m|h|d|w)\Z")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds_of(text: str) -> int:
    """Of "90s", "15m", "2h", "1d", "1w". Raises `InvalidArgument`."""
    found = _INTERVAL.match(text.strip())
    if found is None:
        raise InvalidArgument(f"{text[:40]!r} is no interval.", hint="Write it like 15m, 2h or 1d.")
    return int(found[1]) * _SECONDS[found[2]]


def interval_of(seconds: int) -> str:
    """The inverse, in the largest unit that fits."""
    for unit in ("w", "d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds // _SECONDS[unit]}{unit}"
    return f"{seconds}s"
