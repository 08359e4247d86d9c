"""How a comparison of two snapshots looks: a line for each thing that differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenure import wire

SIGNS = {
    **dict.fromkeys(("added", "created"), ("+", "green")),
    **dict.fromkeys(("removed", "dropped"), ("-", "red")),
    "changed": ("~", "yellow"),
}
ROWS_SHOWN = 5
"""Of each table, and of each kind of change."""


def lines_of(found: wire.Diff) -> Iterator[tuple[str, str]]:
    """(text, style) of each line. What an office named is in them as it is: print them `printable`."""
    for entry in found.entries:
        sign, style = SIGNS[entry.change]
        yield f"{sign} {_one_line(entry.path if entry.kind == 'file' else f'object {entry.path}')}", style
    for table in found.database.tables if found.database is not None else []:
        yield from _of_table(table)


def summary(found: wire.Diff) -> str:
    text = f"{found.added} added, {found.removed} removed, {found.changed} changed"
    if found.database is None:
        return f"{text}; tables were not compared."
    return f"{text}; rows of {found.database.compared} tables compared."


def _of_table(table: wire.TableDiff) -> Iterator[tuple[str, str]]:
    sign, style = SIGNS[table.change]
    counts = {"added": table.rows_added, "removed": table.rows_removed, "changed": table.rows_changed}
    told = [f"{count} {change}" for change, count in counts.items() if count]
    about = f"rows: {', '.join(told)}" if told else ""
    yield f"{sign} table {_one_line(f'{table.in_schema}.{table.name}')}{': ' * bool(about)}{about}", style
    if table.problem is not None:
        yield f"    {_one_line(table.problem)}", "yellow"
    for change, names in (
        ("added", table.columns_added),
        ("removed", table.columns_removed),
        ("changed", table.columns_changed),
    ):
        for name in names:
            yield f"    {SIGNS[change][0]} column {_one_line(name)}", SIGNS[change][1]
    for change, count in counts.items():
        rows = [row for row in table.rows if row.change == change][:ROWS_SHOWN]
        for row in rows:
            yield f"    {SIGNS[change][0]} {_of_row(row)}", SIGNS[change][1]
        if count and (more := count - sum(row.times for row in rows)) > 0:
            yield f"    {SIGNS[change][0]} … and {more} more", "dim"


def _of_row(row: wire.RowDiff) -> str:
    if row.before is None or row.after is None:
        values = row.before or row.after or {}
        times = f" ({row.times} times)" if row.times > 1 else ""
        return ", ".join(f"{_one_line(name)}={_value(value)}" for name, value in values.items()) + times
    same = {name: value for name, value in row.before.items() if row.after.get(name) == value}
    key = ", ".join(f"{_one_line(name)}={_value(value)}" for name, value in same.items())
    changes = [
        f"{_one_line(name)} {_value(value)} → {_value(row.after.get(name))}"
        for name, value in row.before.items()
        if name not in same
    ]
    return f"{key}: {', '.join(changes) or 'differs beyond what is shown'}"


def _value(value: str | None) -> str:
    return "null" if value is None else repr(value)


def _one_line(text: str) -> str:
    """So that no name looks like a line of ours."""
    return text.replace("\n", "\ufffd").replace("\t", "\ufffd")
