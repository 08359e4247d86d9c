"""Spreadsheets (xlsx, xls, xlsb, ods) as rows of texts. All of a sheet is in memory: the parser's limit is the sheet's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from typing import IO, Any

from tenure.data.ingestion.batches import BATCH_ROWS, Batch, Rejects, Row
from tenure.errors import InvalidArgument


class Sheet:
    def __init__(self, file: IO[bytes], name: str | None = None) -> None:
        """`name` None: the first one. Raises `InvalidArgument`."""
        import python_calamine

        try:
            book = python_calamine.CalamineWorkbook.from_filelike(file)  # type: ignore[arg-type]
            names = book.sheet_names
            if not names or (name is not None and name not in names):
                raise InvalidArgument(f"There is no sheet {name!r}.", hint=f"There are: {', '.join(names[:20])}.")
            self._rows = book.get_sheet_by_name(name or names[0]).iter_rows()
        except python_calamine.CalamineError as error:
            raise InvalidArgument(f"The spreadsheet cannot be read: {str(error)[:200]}.") from error

    def rows(self) -> Iterator[Row]:
        for row in self._rows:
            yield [text_of(value) for value in row]

    def batches(self, width: int, rejects: Rejects, *, skip: int) -> Iterator[Batch]:
        """Without the first `skip` rows (the header), and those in which nothing is."""
        rows: list[Row] = []
        numbers: list[int] = []
        for number, row in enumerate(self.rows(), 1):
            if number <= skip or not any(row):
                continue
            row = fitted(row, width)
            if row is None:
                rejects.add(number, f"It has more than {width} values.", "")
                continue
            rows.append(row)
            numbers.append(number)
            if len(rows) >= BATCH_ROWS:
                yield _batch(rows, numbers)
                rows, numbers = [], []
        if rows:
            yield _batch(rows, numbers)


def fitted(row: Row, width: int) -> Row | None:
    """With `width` values; None when there are more."""
    if len(row) > width and any(row[width:]):
        return None
    return [*row[:width], *[None] * (width - len(row))]


def _batch(rows: Sequence[Row], numbers: Sequence[int]) -> Batch:
    return Batch(rows, lambda place: (numbers[place], "\t".join(value or "" for value in rows[place])))


def text_of(value: Any) -> str | None:
    """A cell. Numbers are all the same to a spreadsheet: a whole one is written as such."""
    match value:
        case None | "":
            return None
        case bool():
            return "true" if value else "false"
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
        case datetime():
            return value.isoformat(" ") if value.time() != time() else value.date().isoformat()
        case date() | time():
            return value.isoformat()
        case timedelta():
            return str(value)
        case _:
            return str(value)
