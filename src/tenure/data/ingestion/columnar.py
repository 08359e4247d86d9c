"""Parquet as batches of rows, read by DuckDB."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from tenure.data.ingestion.batches import BATCH_ROWS, Batch
from tenure.data.ingestion.names import quoted
from tenure.data.ingestion.types import (
    BIGINT,
    BOOLEAN,
    BYTEA,
    DATE,
    DOUBLE,
    INTERVAL,
    JSONB,
    NUMERIC,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    UUID,
)
from tenure.errors import InvalidArgument

_TYPES: Final = {
    "BOOLEAN": BOOLEAN,
    "TINYINT": BIGINT,
    "SMALLINT": BIGINT,
    "INTEGER": BIGINT,
    "BIGINT": BIGINT,
    "UTINYINT": BIGINT,
    "USMALLINT": BIGINT,
    "UINTEGER": BIGINT,
    "UBIGINT": NUMERIC,
    "HUGEINT": NUMERIC,
    "UHUGEINT": NUMERIC,
    "FLOAT": DOUBLE,
    "DOUBLE": DOUBLE,
    "DATE": DATE,
    "TIME": TIME,
    "TIMESTAMP": TIMESTAMP,
    "TIMESTAMP_S": TIMESTAMP,
    "TIMESTAMP_MS": TIMESTAMP,
    "TIMESTAMP_NS": TIMESTAMP,
    "TIMESTAMP WITH TIME ZONE": TIMESTAMPTZ,
    "INTERVAL": INTERVAL,
    "UUID": UUID,
    "BLOB": BYTEA,
    "VARCHAR": TEXT,
}


class Columnar:
    """Every value comes as the text that PostgreSQL reads as the same value; a list, struct or map as JSON."""

    def __init__(self, engine: Any, path: str) -> None:
        """Raises `InvalidArgument`."""
        import duckdb

        self._engine, self._source, self._error = engine, "'" + path.replace("'", "''") + "'", duckdb.Error
        try:
            found = engine.execute(f"DESCRIBE SELECT * FROM read_parquet({self._source})").fetchall()
        except duckdb.Error as error:
            raise _unreadable(error) from error
        self._kinds = [(str(row[0]), str(row[1])) for row in found]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(name, type)"""
        return [(name, _type(kind)) for name, kind in self._kinds]

    def batches(self) -> Iterator[Batch]:
        fields = ", ".join(_text(name, kind) for name, kind in self._kinds)
        done = 0
        try:
            self._engine.execute(f"SELECT {fields} FROM read_parquet({self._source})")
            while rows := self._engine.fetchmany(BATCH_ROWS):
                yield Batch(rows, lambda place, first=done, rows=rows: (first + place + 1, _raw(rows[place])))
                done += len(rows)
        except self._error as error:
            raise _unreadable(error) from error


def _type(kind: str) -> str:
    if kind.startswith("DECIMAL"):
        return NUMERIC
    if kind.startswith("ENUM"):
        return TEXT
    return _TYPES.get(kind, JSONB)


def _text(name: str, kind: str) -> str:
    column = quoted(name)
    match _type(kind):
        case "bytea":
            return f"'\\x' || lower(hex({column}))"
        case "jsonb":
            return f"to_json({column})::VARCHAR"
        case "double precision":
            return f"CASE WHEN isfinite({column}) THEN {column}::VARCHAR ELSE {_infinite(column)} END"
        case _:
            return f"{column}::VARCHAR"


def _infinite(column: str) -> str:
    return f"CASE WHEN isnan({column}) THEN 'NaN' WHEN {column} > 0 THEN 'Infinity' ELSE '-Infinity' END"


def _raw(row: tuple[str | None, ...]) -> str:
    return "\t".join(value or "" for value in row)


def _unreadable(error: Exception) -> InvalidArgument:
    text = re.sub(r"'?/[^\s'\"]*'?", "the file", str(error).splitlines()[0] if str(error) else type(error).__name__)
    return InvalidArgument(f"The Parquet file cannot be read: {text[:300]}.")
