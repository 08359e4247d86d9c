"""Statements are read as PostgreSQL reads them, and values lose nothing on their way to JSON. Pure."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.data.statements import transaction_control
from tenure.data.values import to_json


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("select 1; commit", "COMMIT"),
        ("-- x\n begin", "BEGIN"),
        ("/* a /* b */ commit; */ select 1", None),
        ("select $$;commit;$$; select 'a;commit'; select $x$ $$; end; $x$", None),
        (
            "create function f() returns int begin atomic select case when true then 1 end; select 2; end; abort",
            "ABORT",
        ),
        ("create function f() returns int language sql begin atomic select 1; end", None),
        ("prepare x as select 1", None),
        ("prepare transaction 'a'", "PREPARE"),
        (r"select e'\'; commit'; select 2", None),
        (";;(select 1);  END", "END"),
        ("do $x$ begin commit; end $x$", None),
        ('select "commit"; "begin"', None),
        ("create table begin(x int); start transaction", "START"),
        ("rollback to a", "ROLLBACK"),
        ("select 'unterminated; commit", None),
        ("select $tag$ unterminated; commit", None),
    ],
)
def test_transaction_control_is_found_where_postgresql_would_see_it(text: str, found: str | None) -> None:
    assert transaction_control(text) == found


@given(st.text(alphabet="abcdeginmort;'\"$/*-\\ \nE", max_size=200))
def test_reading_statements_always_ends(text: str) -> None:
    transaction_control(text)


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_numbers_lose_nothing(value: object) -> None:
    shown = to_json(value)
    assert Decimal(repr(shown) if isinstance(shown, float) else shown) == value
