"""CSV and its kin as batches of rows.

Python's own reader does the work, a batch of lines at a time. Where something in a batch is not as it should be, the batch is
read again record by record: a record that is wrong costs its first line, which is told, and reading goes on with the next
line. So no stray quote swallows what comes after it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tenure.data.ingestion.batches import Batch, Rejects, Row
from tenure.data.ingestion.lines import LINE_CHARS_MAX, line_lists
from tenure.errors import TooLarge

RECORD_CHARS_MAX = LINE_CHARS_MAX
AGAIN_CHARS_MAX = 1024**3
"""How much may be read again after quotes that were wrong: a hostile file could have all of it read for each line."""
_UNCLOSED = "unexpected end of data"


@dataclass(frozen=True)
class Dialect:
    delimiter: str = ","
    quote: str = '"'
    escape: str = ""
    """Empty: a quote within quotes is written twice."""

    def options(self) -> dict[str, Any]:
        given: dict[str, Any] = {"delimiter": self.delimiter, "strict": True}
        if not self.quote:
            return given | {"quoting": csv.QUOTE_NONE, "quotechar": None}
        given["quotechar"] = self.quote
        if self.escape and self.escape != self.quote:
            given |= {"escapechar": self.escape, "doublequote": False}
        return given


class Delimited:
    """`skip` lines are no rows (they are told as rejects), then comes the header, if there is one; `width` values make a row."""

    def __init__(
        self, texts: Iterable[str], dialect: Dialect, rejects: Rejects, *, width: int, skip: int = 0, header: bool
    ) -> None:
        csv.field_size_limit(RECORD_CHARS_MAX * 2)
        self._texts, self._options, self._rejects = texts, dialect.options(), rejects
        self._width, self._skip, self._header = width, skip, header
        self._again_chars = 0
        self._next = 1

    def batches(self) -> Iterator[Batch]:
        kept: list[str] = []
        for number, lines in self._lines():
            first = number - len(kept)
            lines = kept + lines
            batch, used = self._batch(first, lines, last=False)
            kept = lines[used:]
            self._next = first + len(lines)
            if batch.rows:
                yield batch
        if kept:
            batch, _ = self._batch(self._next - len(kept), kept, last=True)
            if batch.rows:
                yield batch

    def records(self) -> Iterator[list[str]]:
        """The records of the first list of lines that are well, of any width."""
        for _, lines in self._lines():
            for _, _, found in self._records(lines):
                if not isinstance(found, str):
                    yield found

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Without what comes before the first row."""
        for number, lines in line_lists(self._texts, self._too_long):
            while self._skip and lines:
                if lines[0].strip():
                    self._rejects.add(number, "It comes before the first row.", lines[0])
                lines, number, self._skip = lines[1:], number + 1, self._skip - 1
            if lines:
                yield number, lines

    def _too_long(self, number: int, beginning: str) -> None:
        self._rejects.add(number, f"The line is longer than {LINE_CHARS_MAX} characters.", beginning)

    def _batch(self, first: int, lines: list[str], *, last: bool) -> tuple[Batch, int]:
        """Of the records of `lines`, whose first is line `first`; and how many of the lines they are."""
        if not self._header:
            try:
                rows = list(csv.reader(lines, **self._options))
            except csv.Error:
                rows = []
            if rows and set(map(len, rows)) == {self._width}:
                return Batch(rows, self._located(first, lines)), len(lines)
        return self._one_by_one(first, lines, last=last)

    def _one_by_one(self, first: int, lines: list[str], *, last: bool) -> tuple[Batch, int]:
        rows: list[Row] = []
        spans: list[tuple[int, int]] = []
        used = len(lines)
        for begin, end, found in self._records(lines):
            if isinstance(found, str):
                chars = sum(map(len, lines[begin:end]))
                if found == _UNCLOSED and not last and chars < RECORD_CHARS_MAX:
                    used = begin  # the rest of it is to come
                    break
                self._count_again(chars - len(lines[begin]))
                self._rejects.add(first + begin, _reason(found), lines[begin])
            elif self._header:
                self._header = False
            elif len(found) == self._width:
                rows.append(found)
                spans.append((begin, end))
            elif found:
                reason = f"It has {len(found)} values; {self._width} make a row."
                self._rejects.add(first + begin, reason, "".join(lines[begin:end]))
        return Batch(rows, lambda place: (first + spans[place][0], "".join(lines[slice(*spans[place])]))), used

    def _records(self, lines: list[str]) -> Iterator[tuple[int, int, list[str] | str]]:
        """(begin, end, row or what is wrong) of each record; after a wrong one it goes on with the line after its first."""
        at = 0
        while at < len(lines):
            source = iter(lines)
            source.__setstate__(at)  # type: ignore[attr-defined]
            reader, base = csv.reader(source, **self._options), at
            while True:
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    end = base + reader.line_num
                    yield at, end, str(error)
                    at += 1
                    break
                yield at, base + reader.line_num, row
                at = base + reader.line_num

    def _count_again(self, chars: int) -> None:
        self._again_chars += chars
        if self._again_chars > AGAIN_CHARS_MAX:
            raise TooLarge(
                "The quotes of the file are in no order; nothing was loaded.", hint="Say which they are: --quote."
            )

    def _located(self, first: int, lines: list[str]) -> Callable[[int], tuple[int, str]]:
        """Finds rows of lines that are all well: counted when the first one is asked for."""
        ends: list[int] = []

        def where(place: int) -> tuple[int, str]:
            if not ends:
                reader = csv.reader(lines, **self._options)
                ends.extend(reader.line_num for _ in reader)
            begin = ends[place - 1] if place else 0
            return first + begin, "".join(lines[begin : ends[place]])

        return where


def _reason(error: str) -> str:
    if error == _UNCLOSED:
        return "A quote is opened in it and not closed."
    if "expected after" in error:
        return "Something follows a quoted value before the next delimiter."
    return f"It cannot be read: {error}."
