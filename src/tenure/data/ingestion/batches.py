"""What readers of all formats yield: rows of texts, and where in the file each of them is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tenure.errors import TooLarge

BATCH_ROWS = 5000
BATCH_CHARS = 1024 * 1024
REJECTS_MAX = 100_000
"""More, and it is not the rows that are bad: what the file was taken for is wrong."""
RAW_CHARS_MAX = 1000
REASON_CHARS_MAX = 300

Row = Sequence[str | None]


@dataclass(frozen=True)
class Batch:
    """`rows` have the same number of values each. `where(place)` is the line (or the number of the row, where there are no lines)
    and the text of one of them; it may be slow."""

    rows: Sequence[Row]
    where: Callable[[int], tuple[int, str]]


@dataclass
class Rejects:
    """What is not loaded, in the format of COPY: line, reason, raw text."""

    write: Callable[[bytes], object]
    count: int = 0

    def add(self, line: int, reason: str, raw: str) -> None:
        """Raises `TooLarge` when there are too many."""
        self.count += 1
        if self.count > REJECTS_MAX:
            raise TooLarge(
                f"More than {REJECTS_MAX} rows are not what the first ones are; nothing was loaded. "
                f"The last one: line {line}: {reason[:200]}",
                hint="Say what the file is: --format, --delimiter, --encoding.",
            )
        self.write(f"{line}\t{_field(reason, REASON_CHARS_MAX)}\t{_field(raw, RAW_CHARS_MAX)}\n".encode())


def _field(text: str, chars_max: int) -> str:
    """As COPY reads it: bytes that are of no character, and zeros, are written as `\\xNN`."""
    cut = text[:chars_max] + ("…" if len(text) > chars_max else "")
    plain = "".join(char if char != "\0" and not "\ud800" <= char <= "\udfff" else _shown(char) for char in cut)
    return plain.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _shown(char: str) -> str:
    code = ord(char)
    return f"\\x{code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code:02x}"
