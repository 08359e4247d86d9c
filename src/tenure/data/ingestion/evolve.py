"""How a file's columns fit a table that is there: what would have to change, and who may decide that. Pure.

A table never loses a column, and no column becomes narrower. What a file does not have stays as it is, null in new rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from tenure.data.ingestion import types
from tenure.data.ingestion.plan import Column, Plan

Policy = Literal["ask", "allow", "strict"]
POLICIES: Final = ("ask", "allow", "strict")

_KNOWN: Final = {
    "boolean": types.BOOLEAN,
    "bigint": types.BIGINT,
    "double precision": types.DOUBLE,
    "numeric": types.NUMERIC,
    "date": types.DATE,
    "timestamp without time zone": types.TIMESTAMP,
    "timestamp with time zone": types.TIMESTAMPTZ,
    "uuid": types.UUID,
    "text": types.TEXT,
    "jsonb": types.JSONB,
    "bytea": types.BYTEA,
    "interval": types.INTERVAL,
    "time without time zone": types.TIME,
}
"""PostgreSQL's names for the types that are ours. Of others, PostgreSQL itself says which texts are theirs."""
_NARROWER: Final = {
    "integer": (types.BIGINT,),
    "smallint": (types.BIGINT,),
    "real": (types.BIGINT, types.DOUBLE, types.NUMERIC),
    "json": (types.JSONB, types.TEXT),
}
_TAKES: Final = {
    types.DOUBLE: (types.BIGINT,),
    types.NUMERIC: (types.BIGINT, types.DOUBLE),
    types.TIMESTAMP: (types.DATE,),
    types.JSONB: (),
}


@dataclass(frozen=True)
class TableColumn:
    """`type` as PostgreSQL formats it."""

    name: str
    type: str
    generated: bool = False


@dataclass(frozen=True)
class Change:
    """`before` is empty for a column that there is not."""

    column: str
    before: str
    after: str

    def __str__(self) -> str:
        if not self.before:
            return f"a new column {self.column} ({self.after})"
        return f"{self.column} becomes {self.after}, it is {self.before}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Fit:
    """`plan` with the table's names and types for its columns. `through_text`: columns whose values PostgreSQL has to judge
    one by one, with their type there."""

    plan: Plan
    changes: tuple[Change, ...]
    through_text: dict[str, str]


def fit(plan: Plan, table: Sequence[TableColumn]) -> Fit:
    """How the file goes into the table once all changes are made."""
    there = {column.name: column for column in table}
    loosely = {column.name.lower(): column for column in reversed(table)}
    taken: set[str] = set()
    changes: list[Change] = []
    through: dict[str, str] = {}
    columns: list[Column] = []
    for column in plan.columns:
        found = there.get(column.name)
        if found is None:
            found = loosely.get(column.name.lower())
            found = None if found is None or any(one.name == found.name for one in plan.columns) else found
        if found is None or found.name in taken:
            changes.append(Change(column.name, "", column.type))
            columns.append(column)
            continue
        taken.add(found.name)
        kind, change = _type(column, found)
        if change is not None:
            changes.append(Change(found.name, found.type, change))
        elif kind is None:
            through[found.name] = found.type
        columns.append(Column(column.source, found.name, change or kind or column.type, column.seen))
    moved = replace(plan, columns=tuple(columns))
    return Fit(moved, tuple(changes), through)


def _type(column: Column, there: TableColumn) -> tuple[str | None, str | None]:
    """(the type by which values are checked, None: PostgreSQL checks them; the type that the column has to become, if any)"""
    known = _KNOWN.get(there.type)
    if not column.seen:
        return known, None
    if known is not None:
        if known in (column.type, types.TEXT) or column.type in _TAKES.get(known, ()):
            return known, None
        if column.type == types.TEXT and known in (types.JSONB, types.BYTEA, types.INTERVAL, types.TIME):
            return None, None
        return None, _wide_enough(known, column.type)
    allowed = _NARROWER.get(there.type)
    if allowed is None or column.type in allowed:
        return None, None
    return None, _wide_enough(types.BIGINT if types.BIGINT in allowed else types.TEXT, column.type)


def _wide_enough(known: str, wanted: str) -> str:
    return types.widened(known, wanted) if types.widened(known, wanted) != known else types.TEXT


def question(table: str, changes: Sequence[Change]) -> str:
    """For a person."""
    return f"Loading this would change the table {table}: {'; '.join(map(str, changes))}. Allow it?"
