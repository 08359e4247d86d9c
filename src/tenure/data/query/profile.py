"""What is in the columns of a table: how many are empty or different, least and most, means, quantiles, the most frequent.

One statement that reads the table once; of a large table, pages by chance, always the same ones while it does not change.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tenure.data.query.source import Relation, Source, condition, find, values
from tenure.data.tables import quoted
from tenure.errors import InvalidArgument

PROFILE_TIMEOUT_S = 120.0
PAGES_MAX = 2000
"""Looked at (16 MB, and the large values of their rows). Of a larger table, about so many by chance."""
VIEW_ROWS_MAX = 100_000
COLUMNS_MAX = 60
TOP = 5
BUCKETS = 12
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
VALUE_CHARS_MAX = 120
FINITE_MAX = "1e100"
"""Numbers beyond have no part in means and histograms: their squares would be none."""

_NUMBERS = frozenset({"int2", "int4", "int8", "float4", "float8", "numeric"})
_TIMES = frozenset({"date", "timestamp", "timestamptz"})
_TEXTS = frozenset({"text", "varchar", "bpchar", "name"})


@dataclass(frozen=True)
class ColumnProfile:
    """Of the rows looked at. What a type has no sense of is None or empty."""

    name: str
    type: str
    nulls: int
    distinct: int
    """Different values, NULL apart; estimated for the whole table where only some of it was looked at."""
    min: Any = None
    max: Any = None
    mean: float | None = None
    stddev: float | None = None
    quantiles: dict[str, Any] = field(default_factory=dict[str, Any])
    """By "0.05", "0.25", …"""
    histogram: list[Bucket] = field(default_factory=list["Bucket"])
    top: list[TopValue] = field(default_factory=list["TopValue"])
    """The most frequent first."""
    length_min: int | None = None
    """Of text, in characters, as the two below."""
    length_max: int | None = None
    length_mean: float | None = None
    empty: int | None = None
    """Texts without a character."""


@dataclass(frozen=True)
class Bucket:
    low: Any
    high: Any
    count: int


@dataclass(frozen=True)
class TopValue:
    value: str
    """As text, cut."""
    count: int


@dataclass(frozen=True)
class Profile:
    in_schema: str
    table: str
    rows: int
    """Looked at."""
    rows_estimate: int | None
    """Of the whole table, when only some of it was looked at; else as `rows`. None: nobody knows."""
    sampled: bool
    columns: list[ColumnProfile]
    columns_left_out: list[str]


async def profile(
    source: Source, table: str, *, columns: Sequence[str] = (), where: str | None = None, seed: int = 0
) -> Profile:
    """Of all columns (at most `COLUMNS_MAX`; more are named as left out) or those named, over the rows that `where` holds for.
    Raises `NotFound`, `InvalidArgument`, `DatabaseError`, `CommandTimeout`."""
    found = await find(source, table)
    there = [_Seen(*one) for one in await _columns(source, found)]
    if unknown := set(columns) - {one.name for one in there}:
        raise InvalidArgument(
            f"{found} has no column {sorted(unknown)[0]!r}.",
            hint="Columns: " + ", ".join(one.name for one in there[:100]),
        )
    wanted = [one for one in there if not columns or one.name in columns]
    looked_at, left_out = wanted[:COLUMNS_MAX], [one.name for one in wanted[COLUMNS_MAX:]]
    told = condition(where)
    statement = _statement(found, looked_at, told, seed)
    answers = await values(source, statement, rows_max=len(looked_at) + 1, timeout_s=PROFILE_TIMEOUT_S)
    rows: int = answers[0]
    sampled = _share(found) < 1 or (rows >= VIEW_ROWS_MAX and found.kind in ("view", "foreign table"))
    whole = rows if not sampled else (found.rows_estimate if not told else None)
    shaped = [_shaped(one, answer, rows, whole) for one, answer in zip(looked_at, answers[1:], strict=True)]
    return Profile(found.schema, found.name, rows, whole, sampled, shaped, left_out)


@dataclass(frozen=True)
class _Seen:
    name: str
    type: str
    base: str
    """Name of the type that it is, or that its domain is of."""

    @property
    def is_number(self) -> bool:
        return self.base in _NUMBERS

    @property
    def is_time(self) -> bool:
        return self.base in _TIMES

    @property
    def is_text(self) -> bool:
        return self.base in _TEXTS

    def float(self, value: str) -> str:
        """`value` of this column as a float8, or NULL when it is none that can be counted with."""
        if self.is_time:
            return f"CASE WHEN isfinite({value}) THEN extract(epoch FROM {value})::float8 END"
        return f"CASE WHEN {value} > -{FINITE_MAX} AND {value} < {FINITE_MAX} THEN {value}::float8 END"


async def _columns(source: Source, found: Relation) -> list[Any]:
    return await values(
        source,
        "SELECT json_build_array(a.attname, format_type(a.atttypid, a.atttypmod), coalesce(b.typname, t.typname)) "
        "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
        "LEFT JOIN pg_type b ON t.typtype = 'd' AND b.oid = t.typbasetype "
        f"WHERE a.attrelid = {found.oid} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        rows_max=1600,
    )


def _share(found: Relation) -> float:
    return 1.0 if found.pages <= PAGES_MAX else PAGES_MAX / found.pages


def _statement(found: Relation, columns: Sequence[_Seen], where: str, seed: int) -> str:
    names = "".join(f", t.{quoted(one.name)} AS c{number}" for number, one in enumerate(columns))
    draw = limit = ""
    if found.kind in ("view", "foreign table"):
        limit = f" LIMIT {VIEW_ROWS_MAX}"
    elif (share := _share(found)) < 1:
        draw = f" TABLESAMPLE SYSTEM ({share * 100:.6f}) REPEATABLE ({seed})"
    arms = [f"SELECT {number + 1}, {_arm(one, f'c{number}')}" for number, one in enumerate(columns)]
    every = "\nUNION ALL ".join(["SELECT 0 AS place, to_json(count(*)) AS said FROM seen", *arms])
    return (
        f"WITH seen AS MATERIALIZED (SELECT true AS here{names} FROM {found.quoted} t{draw}{where}{limit})\n"
        f"SELECT said FROM (\n{every}) every ORDER BY place"
    )


def _arm(one: _Seen, name: str) -> str:
    """One JSON object about one column, as a scalar subquery."""
    value = name if one.is_number or one.is_time or one.is_text or one.base == "bool" else f"{name}::text"
    parts = ["'groups'", _groups(value, name)]
    if one.is_number or one.is_time:
        parts += ["'numbers'", _numbers(one, name)]
    if one.is_text:
        parts += ["'lengths'", _lengths(name)]
    return f"json_build_object({', '.join(parts)})"


def _groups(value: str, name: str) -> str:
    return (
        f"(WITH g AS MATERIALIZED (SELECT {value} AS v, count(*) AS n FROM seen WHERE {name} IS NOT NULL GROUP BY 1) "
        "SELECT json_build_object('distinct', count(*), 'once', count(*) FILTER (WHERE n = 1), 'there', coalesce(sum(n), 0), "
        f"'top', (SELECT json_agg(json_build_array(left(v::text, {VALUE_CHARS_MAX}), n) ORDER BY n DESC, v) "
        f"FROM (SELECT v, n FROM g ORDER BY n DESC, v LIMIT {TOP}) t)) FROM g)"
    )


def _numbers(one: _Seen, name: str) -> str:
    quantiles = ", ".join(map(str, QUANTILES))
    return (
        f"(WITH f AS MATERIALIZED (SELECT {name} AS c, {one.float(name)} AS f FROM seen WHERE {name} IS NOT NULL), "
        "m AS (SELECT min(f) AS lo, max(f) AS hi FROM f), "
        f"b AS (SELECT CASE WHEN lo = hi THEN 1 ELSE least(width_bucket(f, lo, hi, {BUCKETS}), {BUCKETS}) END AS b, "
        "count(*) AS n FROM f, m WHERE f IS NOT NULL GROUP BY 1) "
        "SELECT json_build_object('min', min(c)::text, 'max', max(c)::text, 'mean', avg(f), 'stddev', stddev_samp(f), "
        f"'quantiles', percentile_cont(ARRAY[{quantiles}]::float8[]) WITHIN GROUP (ORDER BY f), "
        "'lo', (SELECT lo FROM m), 'hi', (SELECT hi FROM m), "
        "'buckets', (SELECT json_agg(json_build_array(b, n) ORDER BY b) FROM b)) FROM f)"
    )


def _lengths(name: str) -> str:
    return (
        f"(SELECT json_build_array(min(length({name})), max(length({name})), avg(length({name}))::float8, "
        f"count(*) FILTER (WHERE {name} = ''), left(min({name})::text, {VALUE_CHARS_MAX}), "
        f"left(max({name})::text, {VALUE_CHARS_MAX})) FROM seen)"
    )


def _shaped(one: _Seen, answer: dict[str, Any], rows: int, whole: int | None) -> ColumnProfile:
    groups: dict[str, Any] = answer["groups"]
    numbers: dict[str, Any] | None = answer.get("numbers")
    top: list[tuple[str, int]] = groups["top"] or []
    there = int(groups["there"])
    said: dict[str, Any] = {
        "nulls": rows - there,
        "distinct": distinct_of_all(groups["distinct"], groups["once"], there, rows, whole),
        "top": [TopValue(value, count) for value, count in top],
    }
    if numbers:
        shown = _moment if one.is_time else _plain
        said["min"], said["max"] = (_number(numbers[name], one) for name in ("min", "max"))
        if one.is_number:
            said["mean"], said["stddev"] = numbers["mean"], numbers["stddev"]
        given: list[float] = numbers["quantiles"] or []
        said["quantiles"] = {str(share): shown(value) for share, value in zip(QUANTILES, given, strict=False)}
        said["histogram"] = _histogram(numbers, shown)
    if "lengths" in answer:
        said["length_min"], said["length_max"], said["length_mean"], said["empty"], said["min"], said["max"] = answer[
            "lengths"
        ]
    return ColumnProfile(one.name, one.type, **said)


def distinct_of_all(distinct: int, once: int, there: int, rows: int, whole: int | None) -> int:
    """How many different values all rows have, when `there` of the `rows` looked at have `distinct` ones, `once` of them only
    once: as `ANALYZE` estimates it (Haas and Stokes). Pure."""
    if whole is None or whole <= rows or not there:
        return distinct
    of_all = whole * there / rows
    estimate = there * distinct / (there - once + once * there / of_all)
    return round(min(max(estimate, distinct), of_all))


def _histogram(numbers: dict[str, Any], shown: Any) -> list[Bucket]:
    """Without a gap from least to most."""
    low, high = numbers["lo"], numbers["hi"]
    if low is None:
        return []
    counts = dict[int, int](numbers["buckets"])
    if low == high:
        return [Bucket(shown(low), shown(high), counts[1])]
    edges = [low + (high - low) * at / BUCKETS for at in range(BUCKETS)] + [high]
    return [Bucket(shown(edges[at]), shown(edges[at + 1]), counts.get(at + 1, 0)) for at in range(BUCKETS)]


def _number(text: str | None, one: _Seen) -> Any:
    if text is None or one.is_time:
        return text
    with contextlib.suppress(ValueError):
        return _exact(text)
    return text  # NaN, Infinity


def _exact(text: str) -> int | float | str:
    number = json.loads(text)
    if isinstance(number, int):
        return number if abs(number) <= 2**53 else text
    return number if isinstance(number, float) and abs(number) < 1e300 else text


def _plain(value: Any) -> Any:
    return value


def _moment(value: float | None) -> Any:
    if value is None:
        return None
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds")
    return value
