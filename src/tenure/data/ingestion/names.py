"""Names of tables and columns, of whatever a file or a person calls them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tenure.errors import InvalidArgument

NAME_BYTES_MAX = 63
"""PostgreSQL's own limit; it cuts longer ones without a word, and two columns may become one."""
COLUMNS_MAX = 1500
REJECTS_SUFFIX = "_rejects"
_SYSTEM = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})
"""Columns that every table has."""


def quoted(name: str) -> str:
    """As an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class Table:
    """`schema` is empty for the first of the search path."""

    schema: str
    name: str

    @property
    def sql(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}" if self.schema else quoted(self.name)

    @property
    def rejects(self) -> Table:
        return Table(self.schema, _cut(self.name, NAME_BYTES_MAX - len(REJECTS_SUFFIX)) + REJECTS_SUFFIX)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


def parse_table(text: str) -> Table:
    """Of `table` or `schema.table`, each written as it is, without quotes. Raises `InvalidArgument`."""
    schema, dot, name = text.rpartition(".")
    for part in (schema, name) if dot else (name,):
        if not part or not part.isprintable() or '"' in part or len(_bytes(part)) > NAME_BYTES_MAX:
            raise InvalidArgument(
                f"{text[:100]!r} is not the name of a table.",
                hint=f"Write table or schema.table: 1 to {NAME_BYTES_MAX} bytes each, no quotes, no control characters.",
            )
    if schema.startswith("pg_") or schema in ("information_schema", "tenure"):
        raise InvalidArgument(f"The schema {schema} is not for tables of one's own.")
    return Table(schema, name)


def table_of(source: str) -> str:
    """A table's name for what comes from a file or address: `…/Cars 2014.csv.gz` becomes `cars_2014`."""
    last = re.split(r"[?#]", source, maxsplit=1)[0].rstrip("/").rpartition("/")[2]
    stem = last.lstrip(".").split(".", 1)[0]
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    if name[:1].isdigit():
        name = f"t_{name}"
    return _cut(name, NAME_BYTES_MAX) or "loaded"


def column_names(given: Sequence[str | None]) -> list[str]:
    """Each once, none empty, none too long: as the file has them, as far as PostgreSQL can. Raises `InvalidArgument` for too
    many."""
    if len(given) > COLUMNS_MAX:
        raise InvalidArgument(
            f"The file has {len(given)} columns; a table can have {COLUMNS_MAX}.",
            hint="Is the delimiter the right one?",
        )
    wanted = [_clean(name or "") for name in given]
    taken = set(_SYSTEM)
    made: list[str] = []
    for place, name in enumerate(wanted, 1):
        made.append(_free(name or f"column_{place}", taken))
        taken.add(made[-1])
    return made


def _clean(name: str) -> str:
    plain = "".join(char if char.isprintable() else " " for char in name)
    return _cut(" ".join(plain.split()), NAME_BYTES_MAX)


def _free(name: str, taken: Iterable[str]) -> str:
    found, number = name, 1
    while found in taken:
        number += 1
        ending = f"_{number}"
        found = _cut(name, NAME_BYTES_MAX - len(ending)) + ending
    return found


def _cut(text: str, bytes_max: int) -> str:
    return _bytes(text)[:bytes_max].decode("utf-8", "ignore").rstrip()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
