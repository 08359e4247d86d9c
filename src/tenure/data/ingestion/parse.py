"""The parser's process: `python -m tenure.data.ingestion.parse`. It is given a file and orders, and trusts the file with nothing.

0   the file
1   rows, as COPY takes them
2   what it has to tell, a JSON object a line: {"read": bytes}, then {"plan"}, {"outcome"} or {"error"}
3   the order: a JSON object
4   what was rejected, as COPY takes it
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from tenure.data.ingestion import streams
from tenure.data.ingestion.batches import Batch, Rejects
from tenure.data.ingestion.delimited import Delimited, Dialect
from tenure.data.ingestion.emit import Emitter
from tenure.data.ingestion.jail import enter, jail_from
from tenure.data.ingestion.plan import Column, Hints, Outcome, Plan, plan_from
from tenure.data.ingestion.types import JSONB
from tenure.errors import InternalError, InvalidArgument, TenureError, TooLarge

FILE, ROWS, TOLD, ORDER, REJECTS = range(5)
ORDER_BYTES_MAX = 16 * 1024 * 1024
WRITE_BYTES = 1024 * 1024
TELL_EVERY_S = 0.25
NAME_OF_FILE = "file"
ENCODINGS = ("utf_8", "utf_8_sig", "utf_16", "utf_16_le", "utf_16_be", "utf_32", "cp1252", "latin_1", "ascii", "cp437")
_ROOM = "tenure.data.ingestion"


def main() -> int:
    with open(ORDER, "rb") as file:
        order: dict[str, Any] = json.loads(file.read(ORDER_BYTES_MAX))
    jail = jail_from(order["jail"])
    _load(order)
    os.chdir(order["work"])
    enter(jail)
    if jail.uid:
        order["work"] = "/"
    try:
        _obey(order)
    except TenureError as error:
        _tell(error.to_payload())
    except MemoryError:
        _tell(TooLarge("The file needs more memory than a parser may have.").to_payload())
    except BrokenPipeError:
        return 1
    except OSError as error:
        _tell(InvalidArgument(f"The file cannot be read: {error.strerror or error}.").to_payload())
    except Exception as error:  # noqa: BLE001 - whatever a file brings about, it is told in one form
        _tell(InternalError(f"The parser failed: {type(error).__name__}: {str(error)[:300]}").to_payload())
    return 0


def _load(order: dict[str, Any]) -> None:
    """All that may be needed: there is no file system afterwards."""
    plan = order["plan"]
    kind = "" if plan is None else plan["format"]
    needed = ["heapq", "zstandard", *(f"encodings.{name}" for name in ENCODINGS)]
    if kind in ("", "parquet"):
        needed += ["duckdb", f"{_ROOM}.survey"]
    if kind in ("", "excel"):
        needed += ["python_calamine", f"{_ROOM}.sheets"]
    if kind in ("json", "ndjson"):
        needed += [f"{_ROOM}.records"]
    if kind in ("json", "ndjson", "excel") and plan is not None:
        needed += [f"{_ROOM}.survey"]
    for name in needed:
        importlib.import_module(name)
    with contextlib.suppress(LookupError):
        codecs.lookup(str((plan or order["hints"])["encoding"]) or "utf-8")


def _obey(order: dict[str, Any]) -> None:
    file = os.fdopen(FILE, "rb", buffering=streams.READ_BYTES)
    size = os.fstat(FILE).st_size
    work = Path(order["work"])
    if order["plan"] is None:
        from tenure.data.ingestion.survey import survey

        hints = Hints(**order["hints"])
        _tell({"plan": asdict(survey(file, size, order["name"], hints, work, work / NAME_OF_FILE))})
        return
    plan = plan_from(json.dumps(order["plan"]))
    with os.fdopen(REJECTS, "wb", buffering=WRITE_BYTES) as kept, os.fdopen(ROWS, "wb", buffering=WRITE_BYTES) as rows:
        outcome = read(file, size, plan, rows, Rejects(kept.write), work, order["needed"], numbered=order["numbered"])
    _tell({"outcome": asdict(outcome)})


def read(
    file: IO[bytes],
    size: int,
    plan: Plan,
    rows: IO[bytes],
    rejects: Rejects,
    work: Path,
    needed: list[int],
    *,
    numbered: bool,
) -> Outcome:
    """Writes all rows of a file as `plan` says it is."""
    source = _Source(file, size, plan, rejects, work)
    emitter = Emitter(
        plan.columns,
        rows.write,
        rejects,
        trusted=plan.format == "parquet",
        empty_is_null=plan.format in ("csv", "tsv", "excel"),
        needed=needed,
        numbered=numbered,
    )
    told_s = time.monotonic()
    for batch in source.batches():
        emitter.take(batch)
        if time.monotonic() > told_s + TELL_EVERY_S:
            told_s = time.monotonic()
            _tell({"read": min(size, source.at())})
    return Outcome(emitter.rows, rejects.count, source.again(emitter.widened()))


class _Source:
    def __init__(self, file: IO[bytes], size: int, plan: Plan, rejects: Rejects, work: Path) -> None:
        self._file, self._size, self._plan, self._rejects, self._work = file, size, plan, rejects, work
        self._strangers: dict[str, list[Any]] = {}

    def at(self) -> int:
        return os.lseek(FILE, 0, os.SEEK_CUR)

    def batches(self) -> Iterator[Batch]:
        plan = self._plan
        match plan.format:
            case "parquet":
                from tenure.data.ingestion.columnar import Columnar
                from tenure.data.ingestion.engine import open_engine

                path = self._work / NAME_OF_FILE if plan.compression is None else self._unpacked()
                yield from Columnar(open_engine([path], self._work), str(path)).batches()
            case "excel":
                from tenure.data.ingestion.sheets import Sheet

                whole = self._file if plan.compression is None else self._unpacked().open("rb")
                sheet = Sheet(whole, plan.sheet or None)
                yield from sheet.batches(len(plan.columns), self._rejects, skip=plan.skip + plan.header)
            case "json" | "ndjson":
                yield from self._records()
            case _:
                dialect = Dialect(plan.delimiter, plan.quote, plan.escape)
                width = len(plan.columns)
                reader = Delimited(
                    self._texts(), dialect, self._rejects, width=width, skip=plan.skip, header=plan.header
                )
                yield from reader.batches()

    def again(self, widened: list[Column] | None) -> Plan | None:
        """A plan that fits better, when this one does not."""
        columns = tuple(widened or self._plan.columns)
        if self._strangers:
            from tenure.data.ingestion.survey import record_columns

            columns = record_columns(self._strangers, columns)
        return None if columns == self._plan.columns else replace(self._plan, columns=columns)

    def _records(self) -> Iterator[Batch]:
        from tenure.data.ingestion.records import Records

        columns = self._plan.columns
        nested = [column.source for column in columns if column.type == JSONB]
        names = [column.source for column in columns]
        reader = Records(self._texts(), self._rejects, names, array=self._plan.format == "json", nested=nested)
        yield from reader.batches()
        self._strangers = reader.strangers

    def _texts(self) -> Iterator[str]:
        content = streams.decompressed(self._file, self._plan.compression, self._size)
        return streams.texts(content, self._plan.encoding)

    def _unpacked(self) -> Path:
        from tenure.data.ingestion.survey import unpacked

        return unpacked(self._file, self._plan.compression, self._size, self._work)


def _tell(what: dict[str, Any]) -> None:
    data = (json.dumps(what) + "\n").encode()
    while data:
        data = data[os.write(TOLD, data) :]


if __name__ == "__main__":
    sys.exit(main())
