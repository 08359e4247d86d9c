"""How programs inside are given their arguments, and tell what came of them."""

from __future__ import annotations

import base64
import difflib
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

EXIT_REFUSED, EXIT_UNKNOWN = 65, 67
CHARS_MAX, BYTES_MAX = 30_000, 56_000
"""Of an output: what is kept of one, and less than what a brain is given."""
NEAR_MAX = 3


def given() -> dict[str, Any]:
    pieces: list[str] = []
    while (piece := os.environ.pop(f"TENURE_ARGUMENTS_{len(pieces)}", None)) is not None:
        pieces.append(piece)
    return json.loads(zlib.decompress(base64.b64decode("".join(pieces))))


def say(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def refuse(text: str, code: int = EXIT_REFUSED) -> NoReturn:
    say(text)
    sys.exit(code)


def size_of(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def bounded(lines: Iterable[str], lines_max: int, more: str) -> str:
    """As many of the lines as there is room for, and then `more`."""
    kept: list[str] = []
    chars, size = CHARS_MAX, BYTES_MAX
    for line in lines:
        chars, size = chars - len(line) - 1, size - size_of(line) - 1
        if len(kept) == lines_max or chars < 0 or size < 0:
            kept.append(more)
            break
        kept.append(line)
    return "\n".join(kept)


def near(name: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(names), n=NEAR_MAX, cutoff=0.5)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def path_of(text: str) -> str:
    """Absolute; a relative one begins in the home, which is where programs are started."""
    return os.path.abspath(os.path.expanduser(text))


def missing(path: str) -> NoReturn:
    """Says how far the path goes, and what is there that has a name alike."""
    there = os.path.dirname(path)
    name = os.path.basename(path)
    while not os.path.isdir(there):
        there, name = os.path.dirname(there), os.path.basename(there)
    try:
        names = os.listdir(there)
    except OSError:
        names = []
    whole = [os.path.join(there, one) for one in names]
    wanted = os.path.join(there, name)
    refuse(f"There is no {path} ({there} has no {name}).{near(wanted, whole)}")


def main(what: Callable[[dict[str, Any]], None]) -> None:
    try:
        what(given())
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        refuse(f"{named}{error.strerror or error}.")
