"""JSON as batches of rows: an array of objects, or an object a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, cast

from tenure.data.ingestion.batches import BATCH_ROWS, Batch, Rejects, Row
from tenure.data.ingestion.lines import line_lists
from tenure.data.ingestion.names import COLUMNS_MAX
from tenure.data.ingestion.types import (
    BIGINT,
    BOOLEAN,
    DOUBLE,
    FROM_STRINGS,
    JSONB,
    NUMERIC,
    TEXT,
    infer,
    takes,
    widened,
)
from tenure.errors import InvalidArgument, TooLarge

ELEMENT_CHARS_MAX = 16 * 1024 * 1024
DEPTH_HINT = "It is nested too deeply."
_DECODER: Final = json.JSONDecoder(parse_int=lambda text: Number(text), parse_float=lambda text: Number(text))
_SPACE: Final = " \t\n\r"


class Number(str):
    """A number as it stands in the file: nothing of it is lost."""

    __slots__ = ()


def text_of(value: Any) -> str | None:
    """A value as the text of a field."""
    if value is None or type(value) is str:
        return value
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return written(value)


def written(value: Any) -> str:
    """JSON again, with its numbers as they were."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value).items()
        return "{" + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {written(one)}" for name, one in fields) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(written(one) for one in cast("list[Any]", value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def type_of(values: Iterable[Any]) -> str | None:
    """The type of a column by the values of its field; None when all are null."""
    found: str | None = None
    strings: list[str | None] = []
    for value in values:
        if value is None:
            continue
        if type(value) is str:
            strings.append(value)
            continue
        if isinstance(value, Number):
            one = next(name for name in (BIGINT, DOUBLE, NUMERIC, TEXT) if takes(name, value))
        elif isinstance(value, bool):
            one = BOOLEAN
        else:
            one = JSONB
        found = one if found is None else _both(found, one)
    if strings:
        of_strings = infer(strings, FROM_STRINGS) if any(strings) else TEXT
        found = of_strings if found is None else _both(found, of_strings)
    return found


def _both(one: str, other: str) -> str:
    return JSONB if JSONB in (one, other) and one != other and TEXT not in (one, other) else widened(one, other)


class Records:
    """`columns` are the names of the fields that become columns, in order, `nested` those of them that stay JSON. Others
    that turn up are kept in `strangers`, with values to tell their type by."""

    def __init__(
        self, texts: Iterable[str], rejects: Rejects, columns: list[str], *, array: bool, nested: Iterable[str] = ()
    ) -> None:
        self._nested = frozenset(nested)
        self._texts, self._rejects, self._array = texts, rejects, array
        self.columns, self._known = columns, frozenset(columns)
        self.strangers: dict[str, list[Any]] = {}

    def objects(self) -> Iterator[tuple[int, dict[str, Any], str | None]]:
        """(line or number, object, raw text where it is at hand)"""
        return self._elements() if self._array else self._of_lines()

    def batches(self) -> Iterator[Batch]:
        rows: list[Row] = []
        places: list[tuple[int, dict[str, Any]]] = []
        for number, found, _ in self.objects():
            if not found.keys() <= self._known:
                self._note(found)
            rows.append([self._text(name, found.get(name)) for name in self.columns])
            places.append((number, found))
            if len(rows) >= BATCH_ROWS:
                yield Batch(rows, _where(places))
                rows, places = [], []
        if rows:
            yield Batch(rows, _where(places))

    def _text(self, name: str, value: Any) -> str | None:
        return written(value) if name in self._nested and value is not None else text_of(value)

    def _note(self, found: dict[str, Any]) -> None:
        for name in found.keys() - self._known:
            if len(self.strangers) > COLUMNS_MAX:
                raise TooLarge(f"The objects have more than {COLUMNS_MAX} fields between them.")
            kept = self.strangers.setdefault(name, [])
            if len(kept) < BATCH_ROWS:
                kept.append(found[name])

    def _of_lines(self) -> Iterator[tuple[int, dict[str, Any], str | None]]:
        def too_long(number: int, beginning: str) -> None:
            self._rejects.add(number, "The line is too long.", beginning)

        for first, lines in line_lists(self._texts, too_long):
            for number, line in enumerate(lines, first):
                if not line.strip():
                    continue
                try:
                    found: Any = _DECODER.decode(line)
                except json.JSONDecodeError as error:
                    self._rejects.add(number, f"It is not JSON: {error.msg} at character {error.pos}.", line)
                except (RecursionError, ValueError):
                    self._rejects.add(number, DEPTH_HINT, line)
                else:
                    if isinstance(found, dict):
                        yield number, cast("dict[str, Any]", found), line
                    else:
                        self._rejects.add(number, "It is no object.", line)

    def _elements(self) -> Iterator[tuple[int, dict[str, Any], str | None]]:
        """Of one array, read as it comes. What is wrong with its structure is wrong with all of it. Raises `InvalidArgument`."""
        text = _Text(self._texts)
        opening = text.next_char()
        if opening == "{":  # an object alone is a row alone
            text.at -= 1
        elif opening != "[":
            raise InvalidArgument("The file is no JSON array.", hint="For an object a line, say --format ndjson.")
        number = 0
        while (char := text.next_char()) not in ("]", ""):
            number += 1
            if number > 1:
                if char != "," or opening == "{":
                    raise InvalidArgument(f"The JSON is broken after element {number - 1}.")
                char = text.next_char()
            text.at -= 1
            found = text.value(number)
            if isinstance(found, dict):
                yield number, cast("dict[str, Any]", found), None
            else:
                self._rejects.add(number, "It is no object.", written(found))
        if char == "" and opening == "[":
            raise InvalidArgument(f"The JSON array ends in the middle, after element {number}.")
        if text.next_char() != "":
            raise InvalidArgument("Something follows the end of the JSON array.")


class _Text:
    """Text that is read as far as it is needed."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = iter(texts)
        self._buffer = ""
        self.at = 0

    def next_char(self) -> str:
        """The next one that is no space; "" at the end."""
        while True:
            while self.at < len(self._buffer):
                char = self._buffer[self.at]
                self.at += 1
                if char not in _SPACE:
                    return char
            if not self._more():
                return ""

    def value(self, number: int) -> Any:
        while True:
            try:
                found, end = _DECODER.raw_decode(self._buffer, self.at)
                # A number may go on in the next piece.
                if end < len(self._buffer) or not self._more():
                    self.at = end
                    return found
            except json.JSONDecodeError as error:
                if len(self._buffer) - self.at > ELEMENT_CHARS_MAX or not self._more():
                    raise InvalidArgument(f"The JSON is broken at element {number}: {error.msg}.") from None
            except (RecursionError, ValueError):
                raise InvalidArgument(f"Element {number}: {DEPTH_HINT}") from None

    def _more(self) -> bool:
        text = next(self._texts, "")
        self._buffer, self.at = self._buffer[self.at :] + text, 0
        return bool(text)


def _where(places: list[tuple[int, dict[str, Any]]]) -> Callable[[int], tuple[int, str]]:
    return lambda place: (places[place][0], written(places[place][1]))
