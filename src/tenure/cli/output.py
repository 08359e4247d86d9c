"""How answers look. stdout carries the answer and nothing else; stderr carries notes and progress, on a terminal only."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from typing import IO, Any, cast

_SGR = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def is_terminal(stream: IO[Any]) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False  # closed


def has_colour(stream: IO[Any]) -> bool:
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def sgr(style: str) -> str:
    """The terminal's numbers for "bold red"."""
    return ";".join(_SGR[word] for word in style.split())


def paint(text: str, style: str, stream: IO[Any] | None = None) -> str:
    """`text` in `style` ("bold red") where `stream` (stdout by default) shows colours."""
    if not text or not has_colour(sys.stdout if stream is None else stream):
        return text
    return f"\x1b[{sgr(style)}m{text}\x1b[0m"


def printable(text: str) -> str:
    """Without control characters: messages may quote what an office sent, and that must not steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def to_json(value: Any) -> Any:
    """JSON-ready: pydantic models (alone, in lists, in dictionaries) and plain values."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in cast("list[Any]", value)]
    return value


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(to_json(value), indent=2, ensure_ascii=False, default=str))


def print_json_line(value: Any) -> None:
    """One JSON document on a line of its own, at once: for streams."""
    print(json.dumps(to_json(value), ensure_ascii=False, default=str), flush=True)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Aligned columns; never cut, so that pipes get whole values. Headers in `right` mark columns of numbers."""
    cells = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max([len(headers[i]), *(len(row[i]) for row in cells)]) for i in range(len(headers))]
    print(paint(_line(headers, widths, headers, right), "bold"))
    for row in cells:
        print(_line(row, widths, headers, right))


def _line(row: Sequence[str], widths: list[int], headers: Sequence[str], right: Sequence[str]) -> str:
    cells = [
        cell.rjust(width) if name in right else cell.ljust(width)
        for cell, width, name in zip(row, widths, headers, strict=True)
    ]
    return "  ".join(cells).rstrip()


def print_fields(fields: dict[str, str]) -> None:
    """`name  value` lines of one thing."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        print(f"{paint(name.ljust(width), 'dim')}  {printable(value)}")


def note(text: str) -> None:
    """For a person who watches; nothing when stderr is not a terminal."""
    if is_terminal(sys.stderr):
        print(paint(printable(text), "dim", sys.stderr), file=sys.stderr)


def warn(text: str) -> None:
    """What must not be missed, even in a log."""
    print(f"{paint('warning:', 'yellow', sys.stderr)} {printable(text)}", file=sys.stderr)


@contextlib.contextmanager
def waiting(text: str) -> Generator[None]:
    """Says on a terminal what is waited for, and for how long already, once that is more than a second."""
    if not is_terminal(sys.stderr):
        yield
        return
    done = threading.Event()

    def tell() -> None:
        began, shown = time.monotonic(), False
        while not done.wait(1.0):
            shown = True
            print(f"\r{printable(text)} {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def human_bytes(count: float | None) -> str:
    if count is None:
        return "-"
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


def human_duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def human_age(moment: datetime | None, now: datetime | None = None) -> str:
    if moment is None:
        return "-"
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 2:
        return "now"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
