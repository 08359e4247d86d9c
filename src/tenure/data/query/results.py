"""Results kept by name: a table in the schema `results`, and who made it when of what, in `tenure.results`.

They are the database's own tables: SQL joins them, snapshots, forks and exports have them. A result that has expired is not
there any more for these functions, and is dropped when the next one is saved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tenure.data.query.source import Source, condition, literal, query_of, values
from tenure.data.tables import quoted
from tenure.errors import InvalidArgument, InvalidName, NotFound
from tenure.work.hands import SqlResult

RESULTS_MAX = 500
ROWS_DEFAULT, ROWS_MAX = 100, 10_000
QUERY_KEPT_CHARS = 20_000
EXPIRED_DROPPED_MAX = 50
EXPIRY_S_MAX = 10 * 365 * 86400.0
SAVE_TIMEOUT_S = 600.0
LOCK = 7310578
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}\Z")

_ENSURE = f"""\
SELECT pg_catalog.pg_advisory_xact_lock({LOCK});
CREATE SCHEMA IF NOT EXISTS tenure;
CREATE SCHEMA IF NOT EXISTS results;
CREATE TABLE IF NOT EXISTS tenure.results (
    name text PRIMARY KEY,
    query text NOT NULL,
    made_by text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);
COMMENT ON SCHEMA results IS 'Results saved by name. Tenure keeps in tenure.results who made them.'"""
_IS_THERE = "to_regclass('tenure.results') IS NOT NULL"
_ALIVE = "(k.expires_at IS NULL OR k.expires_at > now())"
_DROP_IF_EXPIRED = f"""\
DO $tenure$ BEGIN
    DELETE FROM tenure.results k WHERE k.name = '{{name}}' AND NOT {_ALIVE};
    IF FOUND THEN DROP TABLE IF EXISTS results."{{name}}"; END IF;
END $tenure$"""
"""Of a name that is a valid one. The row is held meanwhile, so that nothing saved just now is dropped."""
_DESCRIBED = (
    "json_build_object('name', k.name, 'query', k.query, 'made_by', k.made_by, 'made_at', k.made_at, "
    "'expires_at', k.expires_at, 'rows_estimate', CASE WHEN c.reltuples >= 0 THEN c.reltuples::int8 END, "
    "'size_bytes', pg_total_relation_size(c.oid), 'columns', (SELECT json_agg(a.attname ORDER BY a.attnum) "
    "FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))"
)
_THERE = (
    "tenure.results k JOIN pg_class c ON c.relname = k.name "
    f"JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'results' WHERE {_ALIVE}"
)


@dataclass(frozen=True)
class SavedResult:
    name: str
    query: str
    made_by: str
    made_at: datetime
    expires_at: datetime | None
    columns: list[str]
    rows_estimate: int | None
    size_bytes: int

    @property
    def table(self) -> str:
        """As SQL calls it."""
        return f"results.{self.name}"


def check_result_name(name: str) -> str:
    """Raises `InvalidName`."""
    if not _NAME.match(name):
        raise InvalidName(
            f"{name[:80]!r} is not a valid name of a result.",
            hint="a-z, 0-9 and '_', beginning with a letter, at most 60 characters.",
        )
    return name


async def save(
    source: Source,
    name: str,
    query: str,
    *,
    by: str,
    expires_s: float | None = None,
    key: str | None = None,
    timeout_s: float = SAVE_TIMEOUT_S,
) -> SavedResult:
    """Runs `query` and keeps its rows as `results.NAME`, in the place of an earlier result of that name, which the query may
    read. All or nothing; with a `key` once. Raises `InvalidName`, `InvalidArgument`, `DatabaseError`, `DiskFull`."""
    table, fresh = f"results.{quoted(check_result_name(name))}", f"results.{quoted('~' + name)}"
    select = query_of(query)
    if expires_s is not None and not 0 < expires_s <= EXPIRY_S_MAX:
        raise InvalidArgument("A result expires after more than 0 seconds, and within ten years.")
    await _ensure(source)
    await _drop_expired(source)
    expires = f"now() + interval '{float(expires_s):.3f} seconds'" if expires_s is not None else "NULL"
    statement = (
        f"SELECT pg_advisory_xact_lock({LOCK}, hashtext({literal(name)})); "
        f"DROP TABLE IF EXISTS {fresh}; CREATE TABLE {fresh} AS (\n{select}\n); DROP TABLE IF EXISTS {table}; "
        f"ALTER TABLE {fresh} RENAME TO {quoted(name)}; "
        "INSERT INTO tenure.results (name, query, made_by, expires_at) "
        f"VALUES ({literal(name)}, {literal(select[:QUERY_KEPT_CHARS])}, {literal(by)}, {expires}) "
        "ON CONFLICT (name) DO UPDATE SET query = excluded.query, made_by = excluded.made_by, made_at = now(), "
        "expires_at = excluded.expires_at"
    )
    await source.execute(statement, key=key, timeout_s=timeout_s)
    await source.execute(f"ANALYZE {table}", timeout_s=timeout_s)
    return await get(source, name)


async def get(source: Source, name: str) -> SavedResult:
    """Raises `NotFound` with the names of those there are."""
    if await _is_there(source):
        found = await values(
            source, f"SELECT {_DESCRIBED} FROM {_THERE} AND k.name = {literal(check_result_name(name))}"
        )
        if found:
            return _result(found[0])
    there = [one.name for one in await list_results(source)]
    raise NotFound(
        f"There is no result {name!r}.", hint=f"There are: {', '.join(there[:40])}." if there else "None was saved yet."
    )


async def list_results(source: Source) -> list[SavedResult]:
    """The newest first."""
    if not await _is_there(source):
        return []
    statement = f"SELECT {_DESCRIBED} FROM {_THERE} ORDER BY k.made_at DESC, k.name LIMIT {RESULTS_MAX}"
    return [_result(one) for one in await values(source, statement, rows_max=RESULTS_MAX)]


async def read(
    source: Source, name: str, *, rows: int = ROWS_DEFAULT, offset: int = 0, where: str | None = None
) -> SqlResult:
    """Rows of a result in the order in which they were saved, those that `where` holds for. Raises `NotFound`."""
    if not 0 <= rows <= ROWS_MAX or not 0 <= offset <= 2**53:
        raise InvalidArgument(f"At most {ROWS_MAX} rows are read at once, from an offset of 0 or more.")
    await get(source, name)
    statement = f"SELECT r.* FROM results.{quoted(name)} r{condition(where)} ORDER BY r.ctid OFFSET {offset}"
    return await source.execute(statement, rows_max=rows, read_only=True, timeout_s=SAVE_TIMEOUT_S)


async def drop(source: Source, name: str) -> None:
    """Raises `NotFound`, `DatabaseError` when something else stands on it."""
    await get(source, name)
    await source.execute(f"DROP TABLE results.{quoted(name)}; DELETE FROM tenure.results WHERE name = {literal(name)}")


async def _is_there(source: Source) -> bool:
    return (await values(source, f"SELECT {_IS_THERE}"))[0]


async def _ensure(source: Source) -> None:
    if not await _is_there(source):
        await source.execute(_ENSURE)


async def _drop_expired(source: Source) -> None:
    gone = await values(
        source,
        f"SELECT k.name FROM tenure.results k WHERE NOT {_ALIVE} ORDER BY k.expires_at LIMIT {EXPIRED_DROPPED_MAX}",
        rows_max=EXPIRED_DROPPED_MAX,
    )
    for name in gone:
        if _NAME.match(name):
            await source.execute(_DROP_IF_EXPIRED.format(name=name))


def _result(said: dict[str, Any]) -> SavedResult:
    expires = said["expires_at"]
    fields: dict[str, Any] = dict(said)
    fields["made_at"] = datetime.fromisoformat(said["made_at"])
    fields["expires_at"] = None if expires is None else datetime.fromisoformat(expires)
    fields["columns"] = said["columns"] or []
    return SavedResult(**fields)
