"""What the questions of this room are asked of, and how names and values get into their statements."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tenure.data.statements import flaw_of_part
from tenure.data.tables import quoted
from tenure.errors import InvalidArgument, NotFound
from tenure.work.hands import SqlResult

TIMEOUT_S = 60.0
"""Of one question."""
CONDITION_CHARS_MAX = 10_000
NAME_CHARS_MAX = 200
NAMES_SHOWN_MAX = 40

HIDDEN_SCHEMAS = ("information_schema", "tenure", "search")
"""Not the agent's tables: PostgreSQL's, and what Tenure keeps in its database."""
USERS = (
    "n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ("
    + ", ".join(f"'{name}'" for name in HIDDEN_SCHEMAS)
    + ") AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT EXISTS (SELECT 1 FROM pg_depend d"
    " WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')"
)
"""Of `pg_class c` and `pg_namespace n`: tables and views of the database's user, not of an extension."""
PAGES = (
    "(CASE c.relkind WHEN 'p' THEN (SELECT coalesce(sum(pg_relation_size(t.relid)), 0) FROM pg_partition_tree(c.oid) t)"
    " WHEN 'r' THEN pg_relation_size(c.oid) WHEN 'm' THEN pg_relation_size(c.oid) ELSE 0 END / 8192)::int8"
)
"""Of `pg_class c`: how large its rows are now, without indexes and large values."""
KINDS = {"r": "table", "p": "partitioned table", "v": "view", "m": "materialized view", "f": "foreign table"}


class Source(Protocol):
    """A database, as its owner. See `tenure.data.database.OfficeDatabase.execute`."""

    async def execute(
        self,
        statement: str,
        *,
        key: str | None = None,
        rows_max: int = 1000,
        timeout_s: float = 600.0,
        read_only: bool = False,
    ) -> SqlResult: ...


@dataclass(frozen=True)
class Relation:
    """A table or view that is there."""

    oid: int
    schema: str
    name: str
    kind: str
    """One of `KINDS`."""
    rows_estimate: int | None
    """From when it was last analyzed, by how it has grown since; None when nobody knows."""
    pages: int
    """Of 8 KiB."""

    @property
    def quoted(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    def __str__(self) -> str:
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"


def literal(value: str | None) -> str:
    """`value` as an SQL expression of type text in which nothing can be quoted wrongly. Raises `InvalidArgument` for a zero
    character, which PostgreSQL has no text with."""
    if value is None:
        return "NULL::pg_catalog.text"
    if "\0" in value:
        raise InvalidArgument("Text for a database cannot have zero characters in it.")
    try:
        data = value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument("Text for a database must be valid Unicode.") from None
    return f"pg_catalog.convert_from('\\x{data.hex()}'::pg_catalog.bytea, 'UTF8')"


def condition(text: str | None) -> str:
    """` WHERE …` of a condition somebody wrote, which cannot get out of its place; empty without one. What it may read, and that
    it changes nothing, is PostgreSQL's to say: it runs as the database's owner in a transaction that only reads. Raises
    `InvalidArgument`."""
    if text is None or not text.strip():
        return ""
    if len(text) > CONDITION_CHARS_MAX:
        raise InvalidArgument(f"A condition has at most {CONDITION_CHARS_MAX} characters.")
    flaw = flaw_of_part(text)
    if flaw is not None:
        raise InvalidArgument(f"This is not one condition: {flaw}.", hint="Write what comes after WHERE: amount > 100")
    return f" WHERE (\n{text}\n)"


def query_of(text: str) -> str:
    """One query that somebody wrote, without its end, to stand in brackets. Raises `InvalidArgument`."""
    query = text.strip().rstrip(";").strip()
    if not query:
        raise InvalidArgument("The query is empty.")
    flaw = flaw_of_part(query)
    if flaw is not None:
        raise InvalidArgument(f"This is not one query: {flaw}.", hint="Give one SELECT, WITH, VALUES or TABLE.")
    return query


async def values(source: Source, statement: str, *, rows_max: int = 1, timeout_s: float = TIMEOUT_S) -> list[Any]:
    """First values of the rows of a query that only reads; json columns come as what they say."""
    found = await source.execute(statement, rows_max=rows_max, timeout_s=timeout_s, read_only=True)
    return [row[0] for row in found.rows]


async def find(source: Source, wanted: str) -> Relation:
    """The table or view called `wanted`, as it is, without quotes: its name, found along the search path, or SCHEMA.NAME. Raises
    `NotFound` with names like it, `InvalidArgument` when there are several."""
    if not wanted or len(wanted) > NAME_CHARS_MAX:
        raise InvalidArgument(f"A table's name is 1 to {NAME_CHARS_MAX} characters.")
    name = literal(wanted)
    seen = f"c.relname = {name}"
    rank = f"CASE WHEN {seen} AND pg_table_is_visible(c.oid) THEN 0 WHEN {seen} THEN 2 ELSE 1 END"
    found = await values(
        source,
        "SELECT json_build_array(c.oid::int8, n.nspname, c.relname, c.relkind, "
        f"CASE WHEN c.relpages > 0 AND c.reltuples >= 0 THEN (c.reltuples * ({PAGES}) / c.relpages)::int8 "
        f"WHEN c.reltuples > 0 THEN c.reltuples::int8 END, {PAGES}, {rank}) "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE ({USERS}) AND ({seen} OR n.nspname || '.' || c.relname = {name}) ORDER BY {rank}, 1::text LIMIT 3",
        rows_max=3,
    )
    if not found:
        raise await _missing(source, wanted)
    if len(found) > 1 and found[0][6] == found[1][6]:
        both = ", ".join(f"{one[1]}.{one[2]}" for one in found)
        raise InvalidArgument(f"There are several tables {wanted!r}: {both}.", hint="Write SCHEMA.TABLE.")
    oid, schema, table, kind, rows, pages, _ = found[0]
    return Relation(oid, schema, table, KINDS[kind], rows, pages)


def alike(wanted: str, there: Sequence[str]) -> str:
    """A sentence that names the ones alike, or nothing."""
    found = difflib.get_close_matches(wanted.lower(), list(there), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(found)}?" if found else ""


async def _missing(source: Source, wanted: str) -> NotFound:
    there = await values(
        source,
        "SELECT CASE n.nspname WHEN 'public' THEN c.relname ELSE n.nspname || '.' || c.relname END "
        f"FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {USERS} ORDER BY 1 LIMIT 500",
        rows_max=500,
    )
    if not there:
        return NotFound(f"There is no table {wanted!r}: the database has none yet.")
    return NotFound(
        f"There is no table {wanted!r}.{alike(wanted, there)}", hint="Tables: " + ", ".join(there[:NAMES_SHOWN_MAX])
    )
