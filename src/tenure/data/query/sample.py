"""Some rows of a table, by chance but the same ones for the same seed, as long as the table does not change."""

from __future__ import annotations

from collections.abc import Sequence

from tenure.data.query.source import TIMEOUT_S, Relation, Source, condition, find
from tenure.data.tables import quoted
from tenure.errors import InvalidArgument
from tenure.work.hands import SqlResult

ROWS_DEFAULT, ROWS_MAX = 20, 1000
COLUMNS_MAX = 100
SEED_MAX = 2**31 - 1
WHOLE_PAGES_MAX = 4000
"""Up to this size (32 MB) all rows are looked at; of a larger table, pages by chance."""
PAGES_WANTED = 400
"""Of a larger one: enough that rows of all its places come."""
NOWHERE = ("view", "foreign table")
VIEW_ROWS_MAX = 10_000
"""Of a view, which has no place that a row is at, the first so many are drawn from."""


async def sample(
    source: Source,
    table: str,
    *,
    rows: int = ROWS_DEFAULT,
    seed: int = 0,
    columns: Sequence[str] = (),
    where: str | None = None,
) -> SqlResult:
    """At most `rows` rows, of those that `where` holds for; of all columns, or those named. Raises `NotFound`,
    `InvalidArgument`, `DatabaseError`, `CommandTimeout`."""
    if not 1 <= rows <= ROWS_MAX:
        raise InvalidArgument(f"A sample has 1 to {ROWS_MAX} rows.")
    if not 0 <= seed <= SEED_MAX:
        raise InvalidArgument(f"A seed is between 0 and {SEED_MAX}.")
    if len(columns) > COLUMNS_MAX:
        raise InvalidArgument(f"At most {COLUMNS_MAX} columns can be named.")
    found = await find(source, table)
    names = ", ".join(f"s.{quoted(name)}" for name in columns) if columns else "s.*"
    where = condition(where)
    draw = "" if found.kind in NOWHERE else drawn(found, seed)
    result = await source.execute(
        _statement(found, names, where, rows, seed, draw), rows_max=rows, timeout_s=TIMEOUT_S, read_only=True
    )
    if draw and where and len(result.rows) < rows:  # too few of those pages have such rows: all are looked at
        all_of_it = _statement(found, names, where, rows, seed, "")
        return await source.execute(all_of_it, rows_max=rows, timeout_s=TIMEOUT_S, read_only=True)
    return result


def _statement(found: Relation, names: str, where: str, rows: int, seed: int, draw: str) -> str:
    if found.kind in NOWHERE:
        some = f"(SELECT * FROM {found.quoted}{where} LIMIT {VIEW_ROWS_MAX}) s"
        return f"SELECT {names} FROM {some} ORDER BY hashtextextended(s::text, {seed}) LIMIT {rows}"
    order = f"hashtextextended(s.tableoid::text || s.ctid::text, {seed})"
    return f"SELECT {names} FROM {found.quoted} s{draw}{where} ORDER BY {order} LIMIT {rows}"


def drawn(found: Relation, seed: int) -> str:
    """` TABLESAMPLE …` for a table too large to be looked at whole; else nothing."""
    if found.pages <= WHOLE_PAGES_MAX:
        return ""
    return f" TABLESAMPLE SYSTEM ({PAGES_WANTED * 100 / found.pages:.6f}) REPEATABLE ({seed})"
