"""A comparison is a line for each thing that differs; what an agent named cannot pretend to be one."""

from __future__ import annotations

import io
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure import wire
from tenure.cli import differences, output

names = st.text(max_size=20)


def test_rows_columns_and_what_was_not_compared_are_told() -> None:
    table = wire.TableDiff(
        in_schema="public",
        name="t",
        change="changed",
        columns_added=["new"],
        columns_removed=["old"],
        rows_added=7,
        rows_removed=3,
        rows_changed=1,
        rows=[
            *(wire.RowDiff(change="added", after={"id": str(number)}) for number in range(7)),
            wire.RowDiff(change="removed", before={"id": None}, times=3),
            wire.RowDiff(change="changed", before={"id": "1", "a": "x"}, after={"id": "1", "a": "it's"}),
        ],
    )
    dropped = wire.TableDiff(in_schema="s", name="gone", change="dropped", problem="not compared: too large")
    found = wire.Diff(database=wire.DatabaseDiff(tables=[table, dropped], compared=4))
    assert [line for line, _ in differences.lines_of(found)] == [
        "~ table public.t: rows: 7 added, 3 removed, 1 changed",
        "    + column new",
        "    - column old",
        *(f"    + id='{number}'" for number in range(5)),
        "    + … and 2 more",
        "    - id=null (3 times)",
        """    ~ id='1': a 'x' → "it's\"""",
        "- table s.gone",
        "    not compared: too large",
    ]
    assert differences.summary(found).endswith("rows of 4 tables compared.")


@given(names, names, names, st.none() | names)
def test_whatever_an_agent_names_is_one_line_without_control_characters(
    schema: str, name: str, column: str, value: str | None
) -> None:
    table = wire.TableDiff(
        in_schema=schema,
        name=name,
        change="created",
        columns_added=[column],
        rows_added=1,
        rows=[wire.RowDiff(change="added", after={column: value})],
        problem=column,
    )
    entry = wire.DiffEntry(kind="file", path=name, change="added", size_bytes=1)
    found = wire.Diff(entries=[entry], added=1, database=wire.DatabaseDiff(tables=[table]))
    lines = [output.printable(line) for line, _ in differences.lines_of(found)]
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_takes_longer_than_a_second_says_so_on_a_terminal_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    deadline = time.monotonic() + 60
    with output.waiting("Comparing a\x1b …"):
        while "\rComparing a\ufffd … " not in shown.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert shown.getvalue().endswith("\r\x1b[K")  # and it is gone
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stderr", piped)
    with output.waiting("Comparing …"):
        time.sleep(1.2)
    assert piped.getvalue() == ""
