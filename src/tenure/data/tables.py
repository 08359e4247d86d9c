"""What became of tables and their rows between two databases, as data; and what to ask a database for it. Pure.

Names in here were chosen by an agent: `quoted` makes them safe in a statement.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tenure.postgres.client import Result

TABLES_MAX = 500
CATALOG_BYTES_MAX = 8 * 1024 * 1024
ROWS_SHOWN_MAX = 20
"""Of each table: added, removed and changed ones each."""
COLUMNS_SHOWN_MAX = 30
VALUE_CHARS_MAX = 200


@dataclass(frozen=True)
class RowDiff:
    """A row that differs. Values as PostgreSQL writes them, at most `VALUE_CHARS_MAX` characters of each and
    `COLUMNS_SHOWN_MAX` columns, those of the key first; of a changed row the key and what is different."""

    change: str
    """ "added", "removed" or "changed"."""
    before: dict[str, str | None] | None
    after: dict[str, str | None] | None
    times: int = 1
    """Of a table without a primary key: so many more, or fewer, of equal rows."""


@dataclass
class TableDiff:
    """Counts are None where rows were not compared; `problem` says why."""

    in_schema: str
    name: str
    change: str
    """ "created", "dropped" or "changed"."""
    columns_added: list[str] = field(default_factory=list[str])
    columns_removed: list[str] = field(default_factory=list[str])
    columns_changed: list[str] = field(default_factory=list[str])
    """Of another type than before."""
    rows_added: int | None = None
    rows_removed: int | None = None
    rows_changed: int | None = None
    """Always 0 without a primary key to tell that two rows are the same one."""
    rows: list[RowDiff] = field(default_factory=list[RowDiff])
    """Some of them, at most `ROWS_SHOWN_MAX` of each kind."""
    problem: str | None = None

    @property
    def is_unchanged(self) -> bool:
        """Whether there is nothing to tell about it."""
        return (
            self.change == "changed"
            and not (self.columns_added or self.columns_removed or self.columns_changed or self.problem)
            and (self.rows_added, self.rows_removed, self.rows_changed) == (0, 0, 0)
        )


@dataclass
class DatabaseDiff:
    tables: list[TableDiff] = field(default_factory=list[TableDiff])
    """In order of schema and name; without those in which nothing differs."""
    compared: int = 0
    """Tables whose rows were compared, unchanged ones included."""
    problem: str | None = None
    """Why not all of the database was compared."""


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    is_generated: bool


@dataclass(frozen=True)
class Table:
    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    """Columns of the primary key, in its order."""
    has_rows: bool
    """False for a partitioned table, whose rows are its partitions'."""

    @property
    def order(self) -> tuple[bytes, bytes]:
        """As PostgreSQL sorts by `CATALOG`."""
        return self.schema.encode(), self.name.encode()


CATALOG = f"""\
SELECT n.nspname, c.relname, c.relkind,
    (SELECT json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod), a.attgenerated <> '')
                     ORDER BY a.attnum)
     FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
    (SELECT json_agg(a.attname ORDER BY k.place)
     FROM pg_index i
     CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place)
     JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
     WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
    AND n.nspname <> 'information_schema' AND left(n.nspname, 3) <> 'pg_'
    AND n.nspname NOT IN ('tenure', 'search')
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C" LIMIT {TABLES_MAX}"""
"""What tables there are, without those that Tenure keeps itself. Reads the system's own tables only."""


def read_catalog(result: Result) -> list[Table]:
    """The answer to `CATALOG`."""
    return [_table(row) for row in result.rows]


def _table(row: Sequence[bytes | None]) -> Table:
    schema, name, kind, columns, key = ((value or b"").decode() for value in row)
    facts: list[Any] = json.loads(columns) if columns else []
    return Table(
        schema,
        name,
        tuple(Column(*fact) for fact in facts),
        tuple(json.loads(key)) if key else (),
        has_rows=kind == "r",
    )


def paired(before: Sequence[Table], after: Sequence[Table]) -> list[tuple[Table | None, Table | None]]:
    """The same table then and now; None where it was not there."""
    then, now = {one.order: one for one in before}, {one.order: one for one in after}
    return [(then.get(order), now.get(order)) for order in sorted(then.keys() | now.keys())]


def begin(before: Table | None, after: Table | None) -> TableDiff:
    """What the catalogs alone tell."""
    one = after or before
    assert one is not None
    if before is None or after is None:
        return TableDiff(one.schema, one.name, "created" if before is None else "dropped")
    then, now = ({column.name: column.type for column in table.columns} for table in (before, after))
    return TableDiff(
        one.schema,
        one.name,
        "changed",
        columns_added=[name for name in now if name not in then],
        columns_removed=[name for name in then if name not in now],
        columns_changed=[name for name in now if name in then and now[name] != then[name]],
    )


@dataclass(frozen=True)
class Reading:
    """How the rows of a table are compared: by which columns, of which the first `key` tell one row from another."""

    columns: tuple[str, ...]
    key: int

    @classmethod
    def of(cls, before: Table | None, after: Table | None) -> Reading:
        """By the columns that it has in common; not by generated ones, which follow from others."""
        tables = [table for table in (before, after) if table is not None]
        names = [{column.name for column in table.columns if not column.is_generated} for table in tables]
        common = set[str].intersection(*names)
        keys = {table.key for table in tables}
        key = keys.pop() if len(keys) == 1 else ()
        if not common.issuperset(key):
            key = ()
        rest = [column.name for column in tables[-1].columns if column.name in common and column.name not in key]
        return cls((*key, *rest), len(key))

    def copy_out(self, table: Table) -> str:
        columns = ", ".join(map(quoted, self.columns))
        return f"COPY {quoted(table.schema)}.{quoted(table.name)} ({columns}) TO STDOUT"


def quoted(name: str) -> str:
    """A name as PostgreSQL takes it in a statement, whatever it is."""
    return '"' + name.replace('"', '""') + '"'
