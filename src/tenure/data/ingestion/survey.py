"""Finds out what a file is: packed how, which format, encoding and dialect, which columns of which types.

DuckDB's sniffer tells delimiter, quotes and header of the beginning of a text; what it says is checked against what our own
reader makes of it.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from tenure.data.ingestion import streams, types
from tenure.data.ingestion.batches import Rejects, Row
from tenure.data.ingestion.columnar import Columnar
from tenure.data.ingestion.delimited import Delimited, Dialect
from tenure.data.ingestion.emit import MISFITS_SHARE_MAX
from tenure.data.ingestion.engine import open_engine
from tenure.data.ingestion.names import column_names
from tenure.data.ingestion.plan import Column, Hints, Plan
from tenure.data.ingestion.records import Records, type_of
from tenure.data.ingestion.sheets import Sheet, fitted
from tenure.errors import InvalidArgument

SAMPLE_ROWS = 20_000
SAMPLE_CHARS = 2 * 1024 * 1024
SHARE_VALUES_MIN = 200
"""So many values must there be before some of them may be taken for mistakes."""
EVEN_SHARE_MIN = 0.9
"""Of rows with the same number of values, for a character to be taken for the delimiter."""
_SHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_PARQUET = b"PAR1"
_DELIMITERS = ",;\t| "
_ENDINGS = {
    "tsv": "tsv",
    "tab": "tsv",
    "json": "json",
    "ndjson": "ndjson",
    "jsonl": "ndjson",
    "csv": "csv",
}


def survey(file: IO[bytes], packed_bytes: int, name: str, hints: Hints, work: Path, path: Path) -> Plan:
    """`path` leads to the same file, `name` is what it was called; `work` is a directory of one's own. Raises `InvalidArgument`,
    `TooLarge`."""
    packed = streams.compression_of(file)
    content = streams.decompressed(file, packed, packed_bytes)
    head = content.read(streams.HEAD_BYTES)
    if not head:
        raise InvalidArgument("The file is empty.", hint="There has to be a header, or a row.")
    kind = hints.format or _format(head, name)
    if kind == "parquet" or head.startswith(_PARQUET):
        target = path if packed is None else _unpacked(head, content, work)
        return _of_parquet(target, packed, work)
    if kind == "excel":
        whole = file if packed is None else _unpacked(head, content, work).open("rb")
        whole.seek(0)
        return _of_sheet(whole, packed, hints)
    encoding = streams.check_encoding(hints.encoding) if hints.encoding else ""
    sample = head + content.read(streams.SAMPLE_BYTES)
    encoding = encoding or streams.encoding_of(sample)
    whole = len(sample) < streams.HEAD_BYTES + streams.SAMPLE_BYTES
    text = "".join(streams.texts(io.BytesIO(sample), encoding)) if whole else _decoded(sample, encoding)
    plan = Plan(kind, (), packed, encoding)
    if not kind:
        plan = replace(plan, format=_format_of_text(text))
    if plan.format in ("json", "ndjson"):
        return _of_records(plan, text, whole=whole)
    return _of_delimited(plan, text, hints, work, whole=whole)


def _format(head: bytes, name: str) -> str:
    """By the first bytes and the name; empty where the text has to tell."""
    if head.startswith(_SHEETS):
        return "excel"
    if head.startswith(_PARQUET):
        return "parquet"
    endings = [part for part in name.lower().split(".")[1:] if part in _ENDINGS]
    return _ENDINGS[endings[-1]] if endings else ""


def _format_of_text(text: str) -> str:
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith("["):
        return "json"
    if not start.startswith("{"):
        return "csv"
    first = start.splitlines()[0]
    try:
        json.loads(first)
    except ValueError:
        return "json"
    return "ndjson"


def _decoded(sample: bytes, encoding: str) -> str:
    """Of a sample that may end within a character."""
    try:
        return codecs.getincrementaldecoder(encoding)(streams.errors_of(encoding)).decode(sample)
    except UnicodeError as error:
        raise InvalidArgument(
            f"The file is not {encoding}: {str(error)[:200]}.", hint="Say what it is with --encoding."
        ) from error


def _unpacked(head: bytes, content: IO[bytes], work: Path) -> Path:
    """A packed file that has to be read from the middle, too."""
    target = work / "content"
    with target.open("wb") as out:
        out.write(head)
        while piece := content.read(streams.READ_BYTES):
            out.write(piece)
    return target


def unpacked(file: IO[bytes], packed: str | None, packed_bytes: int, work: Path) -> Path:
    return _unpacked(b"", streams.decompressed(file, packed, packed_bytes), work)


# --- by format ----------------------------------------------------------------------------------------------------------
def _of_parquet(path: Path, packed: str | None, work: Path) -> Plan:
    found = Columnar(open_engine([path], work), str(path)).columns
    names = column_names([name for name, _ in found])
    columns = tuple(Column(source, name, kind) for (source, kind), name in zip(found, names, strict=True))
    return Plan("parquet", columns, packed)


def _of_sheet(file: IO[bytes], packed: str | None, hints: Hints) -> Plan:
    rows = list(itertools.islice(Sheet(file, hints.sheet or None).rows(), SAMPLE_ROWS))
    skip = next((number for number, row in enumerate(rows) if any(row)), None)
    if skip is None:
        raise InvalidArgument("The sheet is empty.", hint="Name another one with --sheet.")
    rows = rows[skip:]
    header = _looks_like_header(rows) if hints.header is None else hints.header
    width = _width([row for row in rows if any(row)])
    body = [row for row in (fitted(row, width) for row in rows[1 if header else 0 :]) if row is not None and any(row)]
    columns = _columns(rows[0] if header else [], body, width, types.INFERRED)
    return Plan("excel", columns, packed, header=header, skip=skip, sheet=hints.sheet)


def _of_records(plan: Plan, text: str, *, whole: bool) -> Plan:
    reader = Records(_complete(text, plan.format, whole=whole), _nowhere(), [], array=plan.format == "json")
    found: dict[str, list[Any]] = {}
    try:
        for _, one, _ in itertools.islice(reader.objects(), SAMPLE_ROWS):
            for name, value in one.items():
                found.setdefault(name, []).append(value)
    except InvalidArgument:
        if whole or not found:
            raise
    if not found:
        raise InvalidArgument("There is no JSON object in the file.", hint="For CSV, say --format csv.")
    return replace(plan, columns=record_columns(found))


def record_columns(found: dict[str, list[Any]], before: Sequence[Column] = ()) -> tuple[Column, ...]:
    """Those of fields with these values, after `before`."""
    names = column_names([*(column.name for column in before), *found])[len(before) :]
    made: list[Column] = list(before)
    for (source, values), name in zip(found.items(), names, strict=True):
        kind = type_of(values)
        made.append(Column(source, name, kind or types.TEXT, seen=kind is not None))
    return tuple(made)


def _complete(text: str, kind: str, *, whole: bool) -> list[str]:
    if whole or kind == "json":
        return [text]
    return [text[: text.rfind("\n") + 1] or text]


def _of_delimited(plan: Plan, text: str, hints: Hints, work: Path, *, whole: bool) -> Plan:
    text = text[:SAMPLE_CHARS]
    if not whole:
        text = text[: text.rfind("\n") + 1] or text
    sniffed = _sniffed(text, plan, hints, work)
    if not hints.delimiter and plan.format != "tsv" and _columns_of(sniffed) < 2:
        # One row of another width is enough for it to see a single column.
        better = _splitting(text, hints.quote or '"')
        if better is not None:
            hints = replace(hints, delimiter=better)
            sniffed = _sniffed(text, plan, hints, work)
    skip = int(sniffed.get("SkipRows") or 0)
    dialect = Dialect(
        hints.delimiter or ("\t" if plan.format == "tsv" else "") or _one(sniffed.get("Delimiter"), ","),
        hints.quote or _one(sniffed.get("Quote"), '"'),
        "\\" if sniffed.get("Escape") == "\\" else "",
    )
    raw = _rows(text, dialect, skip)
    if not raw and skip:
        skip, raw = 0, _rows(text, dialect, 0)
    if not raw and not hints.delimiter and (better := _splitting(text, dialect.quote)) is not None:
        dialect = Dialect(better, dialect.quote, dialect.escape)
        raw = _rows(text, dialect, 0)
    if not raw:
        raise InvalidArgument("There is no row in the file.", hint="There has to be a header, or a row.")
    header = hints.header
    if header is None:
        header = bool(sniffed["HasHeader"]) if "HasHeader" in sniffed and len(raw) > 1 else _looks_like_header(raw)
        header = header or _looks_like_header(raw)
    width = _width(raw)
    if header and len(raw) == 1:
        width = len(raw[0])
    body = [row for row in raw[1 if header else 0 :] if len(row) == width]
    columns = _columns(raw[0] if header else [], body, width, types.INFERRED)
    return replace(
        plan,
        format=plan.format or "csv",
        columns=columns,
        delimiter=dialect.delimiter,
        quote=dialect.quote,
        escape=dialect.escape,
        header=header,
        skip=skip,
    )


def _sniffed(text: str, plan: Plan, hints: Hints, work: Path) -> dict[str, Any]:
    """What DuckDB makes of it; nothing when it makes nothing of it."""
    import duckdb

    sample = work / "sample.csv"
    sample.write_text(text.replace("\0", " ").encode("utf-8", "replace").decode(), encoding="utf-8", newline="")
    options = ", sample_size=-1, max_line_size=4194304"
    if hints.delimiter or plan.format == "tsv":
        options += ", delim=" + _literal(hints.delimiter or "\t")
    if hints.quote:
        options += ", quote=" + _literal(hints.quote)
    engine = open_engine([sample], work)
    try:
        result = engine.execute(f"SELECT * FROM sniff_csv({_literal(str(sample))}{options})")
        names = [str(one[0]) for one in result.description]
        row = result.fetchone()
    except duckdb.Error:
        return {}
    finally:
        engine.close()
        sample.unlink(missing_ok=True)
    return {} if row is None else dict(zip(names, row, strict=True))


def _columns_of(sniffed: dict[str, Any]) -> int:
    return len(sniffed.get("Columns") or ())


def _splitting(text: str, quote: str) -> str | None:
    """The delimiter that makes the same number of values of nearly all rows, and more than one."""
    best: tuple[float, int, str] | None = None
    for delimiter in _DELIMITERS:
        rows = _rows(text, Dialect(delimiter, quote), 0)
        if not rows:
            continue
        (width, count) = Counter(map(len, rows)).most_common(1)[0]
        found = (count / len(rows), width, delimiter)
        if width > 1 and found[0] >= EVEN_SHARE_MIN and (best is None or found > best):
            best = found
    return None if best is None else best[2]


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _one(found: Any, otherwise: str) -> str:
    text = str(found or "")
    return text if len(text) == 1 and text not in "\r\n\0" else otherwise


def _rows(text: str, dialect: Dialect, skip: int) -> list[Row]:
    """All of the sample, of any width."""
    rows: list[Row] = []
    reader = Delimited([text], dialect, _nowhere(), width=-1, skip=skip, header=False)
    for row in reader.records():
        if row:
            rows.append(row)
        if len(rows) >= SAMPLE_ROWS:
            break
    return rows


# --- columns ------------------------------------------------------------------------------------------------------------
def _width(rows: Sequence[Row]) -> int:
    """How many values most of them have."""
    return Counter(len(row) for row in rows[:SAMPLE_ROWS]).most_common(1)[0][0]


def _columns(header: Row, rows: Sequence[Row], width: int, candidates: Sequence[str]) -> tuple[Column, ...]:
    given = [*header[:width], *[None] * (width - len(header))]
    names = column_names(given)
    values = list(zip(*rows, strict=True)) if rows else [()] * width
    return tuple(
        Column(source or "", name, _type(column, candidates), seen=_has_values(column))
        for source, name, column in zip(given, names, values, strict=True)
    )


def _has_values(values: Sequence[str | None]) -> bool:
    return any(value is not None and value.strip(" ") not in types.NULLS for value in values)


def _type(values: Sequence[str | None], candidates: Sequence[str]) -> str:
    """The narrowest type for nearly all of them: what is not of it then are mistakes."""
    if not _has_values(values):
        return types.TEXT
    there = sum(1 for value in values if value)
    allowed = int(MISFITS_SHARE_MAX * there) if there >= SHARE_VALUES_MIN else 0
    if not allowed:
        return types.infer(values, candidates)
    return next(name for name in candidates if len(types.misfits(name, values)) <= allowed)


def _looks_like_header(rows: Sequence[Row]) -> bool:
    """Names in the first row, and in the others something that is no name; or names that nothing else there is."""
    first = rows[0]
    if not all(first) or len(set(first)) < len(first) or any(_typed(value) for value in first):
        return False
    body = rows[1:200]
    if not body:
        return True
    if any(_typed(value) for row in body for value in row):
        return True
    return all(first[at] not in {row[at] for row in body if len(row) > at} for at in range(len(first)))


def _typed(value: str | None) -> bool:
    return bool(value) and types.infer([value]) != types.TEXT


def _nowhere() -> Rejects:
    ignore: Callable[[bytes], object] = len
    return Rejects(ignore)
