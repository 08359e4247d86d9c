"""Statements that compare two copies of a table's rows, in a database where nothing of the agent's is. Pure.

All columns are text and are called c1, c2, …: of what an agent named or typed nothing is left but text.
"""

from __future__ import annotations

from tenure.data.tables import COLUMNS_SHOWN_MAX, ROWS_SHOWN_MAX, VALUE_CHARS_MAX, Reading, RowDiff
from tenure.postgres.client import Result

SIDES = ("before", "after")
CLEAR = "DROP TABLE IF EXISTS judge.before, judge.after, judge.found"


def make(reading: Reading) -> str:
    """Two empty tables, to be filled by `fill`."""
    columns = ", ".join(f"c{number} text" for number in _numbers(reading))
    return "; ".join([CLEAR, *(f"CREATE UNLOGGED TABLE judge.{side} ({columns})" for side in SIDES)])


def fill(side: str) -> str:
    return f"COPY judge.{side} FROM STDIN"


def find(reading: Reading) -> str:
    """Makes `judge.found`: a line for each difference, with the places `b` and `a` of the row before and after, and how many
    more (or fewer) there are of it."""
    if reading.key:
        same = " AND ".join(f"b.c{n} = a.c{n}" for n in _numbers(reading)[: reading.key])
        rest = _numbers(reading)[reading.key :]
        changed = f" OR ({_list('b', rest)}) IS DISTINCT FROM ({_list('a', rest)})" if rest else ""
        return (
            "CREATE UNLOGGED TABLE judge.found AS SELECT b.ctid AS b, a.ctid AS a, 1::bigint AS n "
            f"FROM judge.before b FULL JOIN judge.after a ON {same} "
            f"WHERE b.ctid IS NULL OR a.ctid IS NULL{changed}"
        )
    every = ", ".join(f"c{n}" for n in _numbers(reading))
    return (
        "CREATE UNLOGGED TABLE judge.found AS "
        "SELECT CASE WHEN sum(side) < 0 THEN min(b) END AS b, CASE WHEN sum(side) > 0 THEN min(a) END AS a, "
        "abs(sum(side)) AS n FROM ("
        f"SELECT {every}, -1 AS side, ctid AS b, NULL::tid AS a FROM judge.before "
        f"UNION ALL SELECT {every}, 1, NULL, ctid FROM judge.after) both_sides "
        f"GROUP BY {every} HAVING sum(side) <> 0"
    )


COUNT = (
    "SELECT coalesce(sum(n) FILTER (WHERE b IS NULL), 0), coalesce(sum(n) FILTER (WHERE a IS NULL), 0), "
    "count(*) FILTER (WHERE a IS NOT NULL AND b IS NOT NULL) FROM judge.found"
)
"""How many rows were added, removed, changed."""


def show(reading: Reading) -> str:
    """Some of the differences: which change it is, how many times, then the values before, then those after."""
    numbers = _numbers(reading)[:COLUMNS_SHOWN_MAX]
    values = ", ".join(f"left({side}.c{n}, {VALUE_CHARS_MAX + 1})" for side in "ba" for n in numbers)
    kinds = {"added": "b IS NULL", "removed": "a IS NULL", "changed": "a IS NOT NULL AND b IS NOT NULL"}
    parts = [
        f"(SELECT '{kind}' AS kind, n, b, a FROM judge.found WHERE {which} ORDER BY b, a LIMIT {ROWS_SHOWN_MAX})"
        for kind, which in kinds.items()
    ]
    return (
        f"SELECT f.kind, f.n, {values} FROM ({' UNION ALL '.join(parts)}) f "
        "LEFT JOIN judge.before b ON b.ctid = f.b LEFT JOIN judge.after a ON a.ctid = f.a ORDER BY f.kind, f.b, f.a"
    )


def shown(reading: Reading, result: Result) -> list[RowDiff]:
    """The answer to `show`."""
    names = reading.columns[:COLUMNS_SHOWN_MAX]
    found: list[RowDiff] = []
    for kind, times, *values in result.rows:
        assert kind is not None
        assert times is not None
        before, after = (
            {name: _cut(value) for name, value in zip(names, side, strict=True)}
            for side in (values[: len(names)], values[len(names) :])
        )
        if kind == b"changed":
            same = {name for name in names[reading.key :] if before[name] == after[name]}
            before, after = (
                {name: value for name, value in side.items() if name not in same} for side in (before, after)
            )
        found.append(
            RowDiff(
                kind.decode(), None if kind == b"added" else before, None if kind == b"removed" else after, int(times)
            )
        )
    return found


def _cut(value: bytes | None) -> str | None:
    if value is None:
        return None
    text = value.decode("utf-8", "replace")
    return text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "…"


def _numbers(reading: Reading) -> list[int]:
    return list(range(1, len(reading.columns) + 1))


def _list(side: str, numbers: list[int]) -> str:
    return ", ".join(f"{side}.c{number}" for number in numbers)
