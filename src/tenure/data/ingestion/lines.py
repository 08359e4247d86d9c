"""Text in pieces as lines, each with its end (`\\n`, `\\r\\n` or `\\r`), in lists of about a megabyte."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator

LINE_CHARS_MAX = 4 * 1024 * 1024

TooLong = Callable[[int, str], None]
"""Told the number of a line past that limit, and how it begins: it is not among the lines."""


def line_lists(texts: Iterable[str], too_long: TooLong) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines), numbered from 1. Never keeps more than the longest line that there may be."""
    tail, number, skipping = "", 1, False
    for text in texts:
        if skipping:
            end = _end_of_line(text)
            if end is None:
                continue
            skipping, text, number = False, text[end:], number + 1
        lines = io.StringIO(tail + text, newline="").readlines()
        # "\r" may be the half of an end.
        tail = lines.pop() if lines and not lines[-1].endswith("\n") else ""
        yield number, lines
        number += len(lines)
        if len(tail) > LINE_CHARS_MAX:
            too_long(number, tail[:LINE_CHARS_MAX])
            skipping, tail = True, ""
    if tail:
        yield number, [tail]


def _end_of_line(text: str) -> int | None:
    found = [place for place in (text.find("\n"), text.find("\r")) if place >= 0]
    if not found:
        return None
    end = min(found)
    return end + 2 if text[end : end + 2] == "\r\n" else end + 1
