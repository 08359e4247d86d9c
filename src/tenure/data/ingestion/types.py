"""Which type the texts of a column have, and whether a text is of a type. Pure.

A type takes a text only when PostgreSQL reads it back as the same value: `007` is no number, `1e400` no double. So what passes
here never fails a COPY, and nothing that was loaded differs from what the file says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Final

NULLS: Final = frozenset({"", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None"})
"""What stands for no value in a column that is not text. In a text column only an empty field does."""

BOOLEAN, BIGINT, DOUBLE, NUMERIC = "boolean", "bigint", "double precision", "numeric"
DATE, TIMESTAMP, TIMESTAMPTZ, UUID, TEXT = "date", "timestamp", "timestamptz", "uuid", "text"
JSONB, BYTEA, INTERVAL, TIME = "jsonb", "bytea", "interval", "time"

INFERRED: Final = (BOOLEAN, BIGINT, DOUBLE, NUMERIC, DATE, TIMESTAMP, TIMESTAMPTZ, UUID, TEXT)
"""The first that takes all values of a column is its type."""
FROM_STRINGS: Final = (DATE, TIMESTAMP, TIMESTAMPTZ, UUID, TEXT)
"""The same for what a file itself calls a string: its digits are no number."""
_WIDER: Final[dict[str, tuple[str, ...]]] = {
    BIGINT: (DOUBLE, NUMERIC, TEXT),
    DOUBLE: (NUMERIC, TEXT),
    DATE: (TIMESTAMP, TEXT),
    TEXT: (),
}

_NULL = "|".join(re.escape(word) for word in sorted(NULLS - {""}))
_DATE = r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,6})?)?"
_ZONE = r"(?:Z|[+-](?:0[0-9]|1[0-4])(?::?[0-5][0-9])?)"
_SHAPES: Final = {
    BOOLEAN: "true|false|True|False|TRUE|FALSE",
    BIGINT: "-?(?:0|[1-9][0-9]{0,17})",
    DOUBLE: r"-?(?=[0-9.]{1,16}(?:[eE]|$))(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?<![0-9]{16})(?:[eE][+-]?[0-9]{1,2})?",
    NUMERIC: r"-?(?:(?:0|[1-9][0-9]{0,400})(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,2})?",
    DATE: _DATE,
    TIMESTAMP: f"{_DATE}(?:[T ]{_CLOCK})?",
    TIMESTAMPTZ: f"{_DATE}[T ]{_CLOCK} ?{_ZONE}",
    UUID: "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
_COLUMNS: Final = {
    name: re.compile(f"(?: *+(?:{shape}|{_NULL})? *+\n)*+", re.ASCII).fullmatch
    for name, shape in ((name, shape.replace("|$)", r"|\s)")) for name, shape in _SHAPES.items())
}
_SINGLE: Final = {name: re.compile(f"(?:{shape})", re.ASCII).fullmatch for name, shape in _SHAPES.items()}
_NUMBER: Final = re.compile(
    r"-?(?:(?:0|[1-9][0-9]{0,400})(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,3})?", re.ASCII
).fullmatch


def _real_date(text: str) -> bool:
    try:
        return date.fromisoformat(text[:10]).year > 0
    except ValueError:
        return False


def _same_double(text: str) -> bool:
    """Whether the double nearest to `text` is written as the same number: then nothing is lost."""
    try:
        value = float(text)
        return math.isfinite(value) and Decimal(repr(value)) == Decimal(text)
    except (ValueError, InvalidOperation, OverflowError):
        return False


def takes(name: str, text: str) -> bool:
    """Whether one text, without spaces around it, is a value of the type."""
    if name not in _SINGLE:
        return True
    if name == DOUBLE:
        return bool(_NUMBER(text)) and _same_double(text)
    if not _SINGLE[name](text):
        return False
    return name not in (DATE, TIMESTAMP, TIMESTAMPTZ) or _real_date(text)


def misfits(name: str, values: Sequence[str | None]) -> list[int]:
    """Places of the values that are not of the type; what stands for no value is of each. Fast when there are none."""
    if name not in _COLUMNS:
        return []
    texts: Sequence[str] = values if None not in values else [value or "" for value in values]  # type: ignore[assignment]
    joined = "\n".join(texts) + "\n"
    if joined.count("\n") == len(texts) and _all_fit(name, joined, texts):
        return []
    return [
        place
        for place, text in enumerate(texts)
        if text not in NULLS and (stripped := text.strip(" ")) not in NULLS and not takes(name, stripped)
    ]


def _all_fit(name: str, joined: str, texts: Iterable[str]) -> bool:
    if not _COLUMNS[name](joined):
        return False
    return name not in (DATE, TIMESTAMP, TIMESTAMPTZ) or all(map(_date_or_null, texts))


def _date_or_null(text: str) -> bool:
    text = text.strip(" ")
    return text in NULLS or _real_date(text)


def infer(values: Sequence[str | None], candidates: Sequence[str] = INFERRED) -> str:
    """The first of the candidates that takes all of them; text when there are no values to tell by."""
    if all(value is None or value.strip(" ") in NULLS for value in values):
        return TEXT
    return next(name for name in candidates if not misfits(name, values))


def wider(name: str) -> tuple[str, ...]:
    """Types that take all that `name` takes, and more; the narrowest first."""
    return _WIDER.get(name, (TEXT,))


def widened(name: str, other: str) -> str:
    """The narrowest type for values of both."""
    if name == other:
        return name
    for candidate in (name, *wider(name)):
        if candidate in (other, *wider(other)):
            return candidate
    return TEXT


def cleaner(name: str, *, empty_is_null: bool) -> Callable[[Sequence[str | None]], Sequence[str]]:
    """Turns a column's values into fields of COPY's text format."""
    if name == TEXT or name not in _SINGLE:
        return _text_or_null if empty_is_null else _text
    return _plain


def _plain(values: Sequence[str | None]) -> Sequence[str]:
    return ["\\N" if value is None or value in NULLS or value.strip(" ") in NULLS else value for value in values]


def _text_or_null(values: Sequence[str | None]) -> Sequence[str]:
    return [value or "\\N" for value in _escaped(values)]


def _text(values: Sequence[str | None]) -> Sequence[str]:
    return ["\\N" if value is None else value for value in _escaped(values)]


def _escaped(values: Sequence[str | None]) -> Sequence[str | None]:
    if _SPECIAL.search("".join([value for value in values if value])) is None:
        return values
    return [value and _SPECIAL.sub(_escape, value) for value in values]


_SPECIAL = re.compile(r"[\\\t\n\r]")
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def _escape(found: re.Match[str]) -> str:
    return _ESCAPES[found[0]]
