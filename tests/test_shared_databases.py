"""Shared databases: made, slept and woken, granted and revoked; a grant is what an agent can do, and nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest

from databases import needs_root
from shared_databases import Shop, shop
from tenure.database import ControlDatabase

pytestmark = needs_root


@pytest.fixture
async def sales(control_database: ControlDatabase) -> AsyncIterator[Shop]:
    """A shared database `sales` with a table of orders."""
    async with shop(control_database) as made:
        await made.databases.create("sales", {})
        await made.owner(
            "CREATE TABLE orders (id serial PRIMARY KEY, region text, amount int);"
            "INSERT INTO orders (region, amount) SELECT (ARRAY['north','south'])[1 + n % 2], n FROM generate_series(1, 10) n;"
            "CREATE TABLE salaries (who text, amount int); INSERT INTO salaries VALUES ('boss', 1)"
        )
        yield made


async def test_a_granted_agent_is_logged_in_as_its_own_role_whatever_it_says(sales: Shop) -> None:
    await sales.grant("analyst")
    for how in ({}, {"user": "owner"}, {"user": "tenure", "dbname": "postgres"}, {"user": "office:clerk"}):
        async with await sales.connect("analyst", **how) as connection:
            row = await (await connection.execute("SELECT session_user::text, current_database()::text")).fetchone()
            assert row == ("office:analyst", "shared")
            assert await (await connection.execute("SELECT count(*) FROM orders")).fetchone() == (10,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute("INSERT INTO orders (region) VALUES ('west')")
