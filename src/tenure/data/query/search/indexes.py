"""Search indexes: what is kept of a table's text in the schema `search`, and how it follows the table.

Of each index there is a table of vectors, keyed by the source's primary key, and triggers that write the keys of changed rows
into `search.pending` in the transaction that changes them: nothing is lost, and writing costs one row, no model. Who searches,
or refreshes, has what is pending embedded first (`refreshing.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tenure.data.query.search.embedder import Embedder
from tenure.data.query.source import Relation, Source, find, literal, values
from tenure.data.tables import quoted
from tenure.errors import AlreadyExists, DatabaseError, InvalidArgument, InvalidName, NotFound

INDEXES_MAX = 100
COLUMNS_MAX = 16
CREATE_TIMEOUT_S = 600.0
LOCK = 7310579
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")

_ENSURE = f"""\
SELECT pg_catalog.pg_advisory_xact_lock({LOCK});
CREATE EXTENSION IF NOT EXISTS vector;
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE SCHEMA IF NOT EXISTS search;
COMMENT ON SCHEMA search IS 'Search indexes. Kept by Tenure.';
CREATE TABLE IF NOT EXISTS search.indexes (
    name text PRIMARY KEY,
    source regclass NOT NULL,
    columns text[] NOT NULL,
    keys text[] NOT NULL,
    key_types text[] NOT NULL,
    model text NOT NULL,
    dimension integer NOT NULL,
    made_by text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now()
);
CREATE SEQUENCE IF NOT EXISTS search.changes;
CREATE TABLE IF NOT EXISTS search.pending (
    name text NOT NULL REFERENCES search.indexes ON DELETE CASCADE,
    key jsonb NOT NULL,
    change bigint NOT NULL DEFAULT nextval('search.changes'),
    PRIMARY KEY (name, key)
)"""
_IS_THERE = "SELECT to_regclass('search.indexes') IS NOT NULL AND to_regclass('search.pending') IS NOT NULL"
_KINDS = ("table", "partitioned table")


@dataclass(frozen=True)
class Index:
    """A search index, as its row says."""

    name: str
    source: int
    """The source's oid."""
    table: str
    """The source as SQL calls it; empty when it is gone."""
    columns: list[str]
    keys: list[str]
    key_types: list[str]
    model: str
    dimension: int
    made_by: str
    made_at: datetime
    vectors: str
    """The schema of pgvector, quoted, and that of pg_trgm: an agent may have put them anywhere."""
    trigrams: str
    rows: int = 0
    pending: int = 0

    @property
    def data(self) -> str:
        """Its own table, quoted: (key jsonb, content text, embedding vector)."""
        return data_table(self.name)

    @property
    def key_of_source(self) -> str:
        """The key of a row `t` of the source."""
        return key_of("t", self.keys)

    def joined(self, key: str) -> str:
        """That a row `t` of the source is the one that the jsonb `key` names; the source's index serves it."""
        parts = [
            f"t.{quoted(name)} = ({key} ->> {at})::{kind}"
            for at, (name, kind) in enumerate(zip(self.keys, self.key_types, strict=True))
        ]
        return " AND ".join(parts)

    @property
    def content(self) -> str:
        """The text of a row `t` of the source."""
        return f"concat_ws(E'\\n', {', '.join(f't.{quoted(name)}::text' for name in self.columns)})"


def key_of(row: str, keys: Sequence[str]) -> str:
    return f"jsonb_build_array({', '.join(f'{row}.{quoted(name)}::text' for name in keys)})"


def data_table(name: str) -> str:
    return f"search.{quoted('rows_' + name)}"


def check_index_name(name: str) -> str:
    """Raises `InvalidName`."""
    if not _NAME.match(name):
        raise InvalidName(
            f"{name[:80]!r} is not a valid name of a search index.",
            hint="a-z, 0-9 and '_', beginning with a letter, at most 40 characters.",
        )
    return name


async def create(
    source: Source, name: str, table: str, columns: Sequence[str], embedder: Embedder, *, by: str
) -> Index:
    """An index of the named columns' text, together one text of each row. All rows are pending in it; see `refreshing.refresh`.
    Raises `NotFound` without the table, `AlreadyExists`, `InvalidArgument` for a table without a primary key, `ModelError`."""
    check_index_name(name)
    found = await find(source, table)
    keys, types, there = await _key(source, found)
    if not 1 <= len(columns) <= COLUMNS_MAX:
        raise InvalidArgument(f"A search index is of 1 to {COLUMNS_MAX} columns.")
    if unknown := [column for column in columns if column not in there]:
        raise InvalidArgument(f"{found} has no column {unknown[0]!r}.", hint="Columns: " + ", ".join(there[:100]))
    dimension = await embedder.dimension()
    if not (await values(source, _IS_THERE))[0]:
        await source.execute(_ENSURE)
    if any(one.name == name for one in await list_indexes(source)):
        raise AlreadyExists(f"There is a search index {name} already.", hint="Drop it first, or choose another name.")
    vectors, trigrams = await _extensions(source)
    wanted = Index(
        name=name,
        source=found.oid,
        table=found.quoted,
        columns=list(columns),
        keys=keys,
        key_types=types,
        model=embedder.name,
        dimension=dimension,
        made_by=by,
        made_at=datetime.now(UTC),
        vectors=vectors,
        trigrams=trigrams,
    )
    await source.execute(_create(wanted), timeout_s=CREATE_TIMEOUT_S)
    return await get(source, name)


def _create(index: Index) -> str:
    lists = [f"ARRAY[{', '.join(map(literal, many))}]" for many in (index.columns, index.keys, index.key_types)]
    changed = f"search.{quoted('changed_' + index.name)}"
    trigger = f"CREATE TRIGGER {{}} AFTER {{}} ON {index.table} {{}} FOR EACH STATEMENT EXECUTE FUNCTION {changed}()"
    return ";\n".join(
        [
            "INSERT INTO search.indexes (name, source, columns, keys, key_types, model, dimension, made_by) VALUES "
            f"({literal(index.name)}, {index.source}, {', '.join(lists)}, {literal(index.model)}, {index.dimension}, "
            f"{literal(index.made_by)})",
            f"CREATE TABLE {index.data} (key jsonb PRIMARY KEY, content text NOT NULL, "
            f"embedding {index.vectors}.vector({index.dimension}) NOT NULL)",
            f"CREATE INDEX ON {index.data} USING hnsw (embedding {index.vectors}.vector_cosine_ops)",
            f"CREATE INDEX ON {index.data} USING gin (to_tsvector('simple', content))",
            f"CREATE INDEX ON {index.data} USING gin (content {index.trigrams}.gin_trgm_ops)",
            # As its maker: whoever may write the table need not be able to write here.
            f"CREATE FUNCTION {changed}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER "
            f"SET search_path = pg_catalog, pg_temp AS {_text(_noting(index))}",
            *(
                trigger.format(quoted(f"tenure_search_{kind}_{index.name}"), kind.upper(), rows)
                for kind, rows in _TRIGGERS.items()
            ),
            f"INSERT INTO search.pending (name, key) SELECT {literal(index.name)}, {key_of('t', index.keys)} "
            f"FROM {index.table} t",
        ]
    )


_TRIGGERS = {
    "insert": "REFERENCING NEW TABLE AS rows_now",
    "update": "REFERENCING OLD TABLE AS rows_before NEW TABLE AS rows_now",
    "delete": "REFERENCING OLD TABLE AS rows_before",
    "truncate": "",
}
"""By what happens to the source: the rows that a trigger sees, all of a statement's at once."""


def _noting(index: Index) -> str:
    """Body of the function that notes which rows a statement changed."""
    note = (
        f"INSERT INTO search.pending (name, key) SELECT DISTINCT {_text(index.name)}, {key_of('t', index.keys)} FROM {{}} t "
        "ON CONFLICT (name, key) DO UPDATE SET change = nextval('search.changes');"
    )
    return (
        "BEGIN "
        f"IF TG_OP = 'TRUNCATE' THEN DELETE FROM {index.data}; "
        f"DELETE FROM search.pending p WHERE p.name = {_text(index.name)}; END IF; "
        f"IF TG_OP IN ('UPDATE', 'DELETE') THEN {note.format('rows_before')} END IF; "
        f"IF TG_OP IN ('UPDATE', 'INSERT') THEN {note.format('rows_now')} END IF; "
        "RETURN NULL; END"
    )


def _text(text: str) -> str:
    """A plain SQL string, where no expression may stand."""
    return "'" + text.replace("'", "''") + "'"


async def get(source: Source, name: str) -> Index:
    """Raises `NotFound`."""
    indexes = await list_indexes(source)
    for one in indexes:
        if one.name == name:
            return one
    there = ", ".join(one.name for one in indexes)
    raise NotFound(
        f"There is no search index {name[:80]!r}.", hint=f"There are: {there}." if there else "None was made yet."
    )


async def list_indexes(source: Source) -> list[Index]:
    """By name."""
    if not (await values(source, _IS_THERE))[0]:
        return []
    said = await values(
        source,
        "SELECT json_build_object('name', i.name, 'source', i.source::oid::int8, 'table', CASE WHEN c.oid IS NULL THEN '' "
        "ELSE quote_ident(n.nspname) || '.' || quote_ident(c.relname) END, 'columns', i.columns, 'keys', i.keys, "
        "'key_types', i.key_types, 'model', i.model, 'dimension', i.dimension, 'made_by', i.made_by, 'made_at', i.made_at, "
        "'pending', (SELECT count(*) FROM search.pending p WHERE p.name = i.name)) FROM search.indexes i "
        "LEFT JOIN pg_class c ON c.oid = i.source::oid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"ORDER BY i.name LIMIT {INDEXES_MAX}",
        rows_max=INDEXES_MAX,
    )
    vectors, trigrams = await _extensions(source)
    return [await _index(source, one, vectors, trigrams) for one in said if _NAME.match(one["name"])]


async def _index(source: Source, said: dict[str, Any], vectors: str, trigrams: str) -> Index:
    try:
        rows: int = (await values(source, f"SELECT count(*) FROM {data_table(said['name'])}"))[0]
    except DatabaseError:  # somebody dropped it
        rows = 0
    fields: dict[str, Any] = said | {"made_at": datetime.fromisoformat(said["made_at"])}
    return Index(**fields, vectors=vectors, trigrams=trigrams, rows=rows)


async def drop(source: Source, name: str) -> None:
    """With everything of it. Raises `NotFound`."""
    found = await get(source, name)
    triggers = ""
    if found.table:
        triggers = "".join(
            f"DROP TRIGGER IF EXISTS {quoted(f'tenure_search_{kind}_{name}')} ON {found.table}; " for kind in _TRIGGERS
        )
    await source.execute(
        f"{triggers}DROP FUNCTION IF EXISTS search.{quoted('changed_' + name)}(); DROP TABLE IF EXISTS {found.data}; "
        f"DELETE FROM search.indexes WHERE name = {literal(name)}"
    )


async def _key(source: Source, found: Relation) -> tuple[list[str], list[str], list[str]]:
    """Names and types of the primary key's columns, and the names of all columns."""
    if found.kind not in _KINDS:
        raise InvalidArgument(f"{found} is a {found.kind}: only a table can have a search index.")
    said = await values(
        source,
        "SELECT json_build_array((SELECT json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod)) "
        "ORDER BY k.place) FROM pg_index i CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY k(number, place) "
        "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number "
        f"WHERE i.indrelid = {found.oid} AND i.indisprimary AND k.place <= i.indnkeyatts), "
        "(SELECT json_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a "
        f"WHERE a.attrelid = {found.oid} AND a.attnum > 0 AND NOT a.attisdropped))",
    )
    key, there = said[0]
    if not key:
        raise InvalidArgument(
            f"{found} has no primary key to tell its rows by.",
            hint=f"ALTER TABLE {found.quoted} ADD PRIMARY KEY (…), or ADD COLUMN id bigserial PRIMARY KEY.",
        )
    return [name for name, _ in key], [kind for _, kind in key], there or []


async def _extensions(source: Source) -> tuple[str, str]:
    """The schemas of pgvector and pg_trgm, quoted."""
    found = dict(
        await values(
            source,
            "SELECT json_build_array(e.extname, n.nspname) FROM pg_extension e JOIN pg_namespace n "
            "ON n.oid = e.extnamespace WHERE e.extname IN ('vector', 'pg_trgm')",
            rows_max=2,
        )
    )
    if missing := {"vector", "pg_trgm"} - found.keys():
        raise NotFound(
            f"The extension {sorted(missing)[0]}, which search stands on, was dropped.",
            hint="CREATE EXTENSION vector; CREATE EXTENSION pg_trgm; and make the index again.",
        )
    return quoted(found["vector"]), quoted(found["pg_trgm"])
