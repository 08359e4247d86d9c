"""Shared databases: made, slept and woken, granted and revoked, limited; what dies in between is finished or undone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from databases import needs_root
from fixtures.api import eventually
from shared_databases import Shop, killed_at, shop
from tenure.data.shared import database as database_module
from tenure.data.shared.models import SHARED_UID_FIRST, Limits
from tenure.data.shared.watch import Act, Activity, acts
from tenure.data.throwaway import UID_OFFSET
from tenure.database import ControlDatabase
from tenure.errors import AlreadyExists, Conflict, DiskFull, Forbidden, InvalidArgument, InvalidName, NotFound
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.identity.endings import Endings
from tenure.offices.models import OFFICE_UID_FIRST
from tenure.offices.volumes.btrfs import BtrfsDriver
from tenure.settings import Settings

pytestmark = needs_root

ORDERS = (
    "CREATE TABLE orders (id serial PRIMARY KEY, region text, amount int);"
    "INSERT INTO orders (region, amount) SELECT (ARRAY['north','south'])[1 + n % 2], n FROM generate_series(1, 10) n;"
    "CREATE TABLE salaries (who text, amount int); INSERT INTO salaries VALUES ('boss', 1)"
)


@pytest.fixture
async def sales(control_database: ControlDatabase) -> AsyncIterator[Shop]:
    """A shared database `sales` with orders and salaries."""
    async with shop(control_database) as made:
        await made.databases.create("sales", {})
        await made.owner(ORDERS)
        yield made


def postmaster_pid(made: Shop, name: str = "sales") -> int:
    return int((made.settings.shared_dir / name / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])


async def state(made: Shop, name: str = "sales") -> str:
    return (await made.databases.get(name)).state


async def one(connection: psycopg.AsyncConnection[tuple[object, ...]], statement: str) -> object:
    row = await (await connection.execute(statement.encode())).fetchone()
    assert row is not None
    return row[0]


# --- life ---------------------------------------------------------------------------------------------------------------
async def test_a_database_sleeps_and_wakes_with_what_was_in_it(sales: Shop) -> None:
    await sales.grant("analyst")
    await sales.databases.sleep("sales")
    assert await state(sales) == "asleep"
    async with await sales.connect("analyst") as connection:
        assert await one(connection, "SELECT count(*) FROM orders") == 10
        assert await state(sales) == "awake"
        await sales.databases.rest_idle()
        assert await state(sales) == "awake", "it was used a moment ago"


async def test_what_nobody_uses_goes_to_sleep_by_itself(sales: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await sales.grant("analyst")
    monkeypatch.setattr(database_module, "SLEEP_AFTER_S", 0.0)
    async with await sales.connect("analyst") as connection:
        await sales.databases.rest_idle()
        assert await one(connection, "SELECT 1") == 1, "while somebody is connected it has longer"
    await eventually(lambda: sales.databases._held["sales"].connections == 0)  # pyright: ignore[reportPrivateUsage]
    await sales.databases.rest_idle()
    assert await state(sales) == "asleep"


async def test_each_has_a_process_of_a_user_that_no_office_can_have(sales: Shop) -> None:
    await sales.databases.create("other", {})
    uids = {Path(f"/proc/{postmaster_pid(sales, name)}").stat().st_uid for name in ("sales", "other")}
    assert len(uids) == 2
    assert all(uid > SHARED_UID_FIRST for uid in uids)
    assert SHARED_UID_FIRST - UID_OFFSET - OFFICE_UID_FIRST > 1_000_000, "so many offices fit below"


async def test_names_and_limits_are_checked(sales: Shop) -> None:
    with pytest.raises(AlreadyExists):
        await sales.databases.create("sales", {})
    for name in ("Sales", "a.b", ".templates", ""):
        with pytest.raises(InvalidName):
            await sales.databases.create(name, {})
    for limits in ({"connections": 0}, {"connections": 51}, {"disk_gb": 0.01}, {"statement_timeout_s": 1e9}):
        with pytest.raises(InvalidArgument):
            await sales.databases.create("new", limits)
    with pytest.raises(NotFound):
        await sales.databases.execute("new", "select 1")


async def test_a_deleted_database_leaves_nothing(sales: Shop) -> None:
    await sales.grant("analyst")
    await sales.databases.take_snapshot("sales", "before")
    connection = await sales.connect("analyst")
    await sales.databases.delete("sales")
    with pytest.raises(psycopg.OperationalError):
        await connection.execute("SELECT 1")
    assert not (sales.settings.shared_dir / "sales").exists()
    assert not (sales.settings.shared_dir / ".snapshots" / "sales").exists()
    assert await sales.databases.neighbours("analyst") == []
    await sales.databases.create("sales", {})
    assert await sales.databases.grants("sales") == []
    assert await sales.databases.snapshots("sales") == []


async def test_an_effect_with_a_key_happens_once_for_each_who_asks(sales: Shop) -> None:
    await sales.grant("analyst", "write")
    statement = "INSERT INTO orders (region) VALUES ('west') RETURNING region"
    for agent in (None, "analyst"):
        first = await sales.databases.execute("sales", statement, agent=agent, key="k")
        again = await sales.databases.execute("sales", statement, agent=agent, key="k")
        assert (first.repeated, again.repeated, again.rows) == (False, True, [["west"]])
    assert await sales.owner("SELECT count(*) FROM orders WHERE region = 'west'") == [[2]]


async def test_statements_over_the_api_have_the_rights_of_the_agent(sales: Shop) -> None:
    with pytest.raises(Forbidden):
        await sales.databases.execute("sales", "SELECT 1", agent="analyst")
    await sales.grant("analyst", tables={"orders": None})
    result = await sales.databases.execute("sales", "SELECT session_user, count(*) FROM orders", agent="analyst")
    assert result.rows == [["office:analyst", 10]]
    with pytest.raises(Exception, match="permission denied"):
        await sales.databases.execute("sales", "SELECT * FROM salaries", agent="analyst")


async def test_the_owner_loads_by_copy(sales: Shop) -> None:
    async def frames() -> AsyncIterator[bytes]:
        line = b"east\t7\n"
        yield b"d" + (len(line) + 4).to_bytes(4, "big") + line

    async with sales.databases.connection("sales") as connection:
        await connection.copy_in("COPY orders (region, amount) FROM STDIN", frames())
    assert await sales.owner("SELECT amount FROM orders WHERE region = 'east'") == [[7]]


# --- grants -------------------------------------------------------------------------------------------------------------
async def test_a_revoked_grant_ends_open_connections_and_the_role(sales: Shop) -> None:
    await sales.grant("analyst", "write")
    await sales.grant("clerk")
    other = await sales.connect("clerk")
    connection = await sales.connect("analyst")
    await connection.execute("CREATE TABLE mine AS SELECT 1 AS n")
    running = asyncio.create_task(connection.execute("SELECT pg_sleep(600)"))
    sales.changed.clear()
    await sales.databases.revoke("sales", "analyst")
    with pytest.raises(psycopg.OperationalError):
        await running
    assert sales.changed == ["analyst"]
    assert await sales.owner("SELECT count(*) FROM pg_roles WHERE rolname = 'office:analyst'") == [[0]]
    assert await sales.owner("SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'office:analyst'") == [[0]]
    with pytest.raises(NotFound):
        await sales.connect("analyst")
    assert await one(other, "SELECT 1") == 1, "the other agent's connection goes on"
    with pytest.raises(NotFound):
        await sales.databases.revoke("sales", "analyst")


async def test_a_door_that_was_opened_before_a_revoke_lets_nobody_in(sales: Shop) -> None:
    await sales.grant("analyst")
    place = await sales.door("analyst")
    (served,) = sales.databases._held["sales"]._doors["analyst"]  # pyright: ignore[reportPrivateUsage]
    await sales.databases.revoke("sales", "analyst")
    await served.serve(place / ".s.PGSQL.5432")  # as one that was not told
    for asleep in (False, True):
        if asleep:
            await sales.databases.sleep("sales")
        with pytest.raises(psycopg.OperationalError, match=r"does not exist|has no grant"):
            await psycopg.AsyncConnection.connect(host=str(place), user="agent", dbname="agent")
    await served.close()


async def test_a_grant_that_expires_is_ended(sales: Shop) -> None:
    with pytest.raises(InvalidArgument):
        await sales.grant("analyst", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await sales.grant("analyst", expires_at=datetime.now(UTC) + timedelta(hours=1))
    connection = await sales.connect("analyst")
    await sales.control.execute("UPDATE grants SET expires_at = now()")
    await Endings(sales.grants, {"database": sales.databases.end}).sweep()
    with pytest.raises(psycopg.OperationalError):
        await connection.execute("SELECT 1")
    assert await sales.databases.grants("sales") == []


async def test_a_deleted_agents_grants_are_nobodys(sales: Shop) -> None:
    await sales.grant("analyst")
    endings = Endings(sales.grants, {"database": sales.databases.end})
    await endings.forget(Principal(PrincipalKind.OFFICE, "analyst"))
    assert await sales.databases.neighbours("analyst") == []
    assert await sales.owner("SELECT count(*) FROM pg_roles WHERE rolname = 'office:analyst'") == [[0]]


async def test_a_lesser_grant_takes_the_place_of_a_greater_one_at_once(sales: Shop) -> None:
    await sales.grant("analyst", "write")
    connection = await sales.connect("analyst")
    await connection.execute("UPDATE orders SET amount = 0 WHERE id = 1")
    await sales.grant("analyst", "read")
    with pytest.raises(psycopg.OperationalError):
        await connection.execute("UPDATE orders SET amount = 1")
    async with await sales.connect("analyst") as again:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await again.execute("UPDATE orders SET amount = 1")
    await sales.grant("analyst", "read", tables={"salaries": None})
    async with await sales.connect("analyst") as again:
        assert await one(again, "SELECT who FROM salaries") == "boss"
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await again.execute("SELECT * FROM orders")


async def test_a_grant_to_all_covers_what_is_made_later(sales: Shop) -> None:
    await sales.grant("analyst", "read")
    await sales.grant("clerk", "write")
    await sales.owner(
        "CREATE SCHEMA later; CREATE TABLE later.things (n serial, t text); INSERT INTO later.things (t) VALUES ('x')"
    )
    async with await sales.connect("analyst") as reader, await sales.connect("clerk") as writer:
        await writer.execute("INSERT INTO later.things (t) VALUES ('y')")
        assert await one(reader, "SELECT count(*) FROM later.things") == 2


async def test_tables_and_conditions_that_are_none_are_refused_and_nothing_is_granted(sales: Shop) -> None:
    for tables in (
        {"nothing": None},
        {"orders; DROP TABLE orders": None},
        {"pg_authid": None},
        {"tenure.effects": None},
        {"orders": "nonsense ="},
        {"orders": "true); DROP TABLE salaries; --"},
        {"orders": "no_column = 1"},
    ):
        with pytest.raises(InvalidArgument):
            await sales.grant("analyst", tables=tables)
    assert await sales.databases.grants("sales") == []
    assert await sales.owner("SELECT count(*) FROM salaries") == [[1]]
    with pytest.raises(NotFound):
        await sales.grant("nobody")


async def test_a_table_that_is_made_anew_is_granted_anew(sales: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a load does that replaces a table."""
    await sales.grant("analyst", tables={"orders": "region = 'north'", "salaries": None})
    await sales.owner(
        "BEGIN; CREATE TABLE fresh AS SELECT * FROM orders; DROP TABLE orders; ALTER TABLE fresh RENAME TO orders; COMMIT"
    )
    async with await sales.connect("analyst") as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("SELECT * FROM orders")
        monkeypatch.setattr(database_module, "MATCH_EVERY_S", 0.0)
        await sales.databases.look()
        assert await one(connection, "SELECT count(*) FROM orders") == 5


async def test_who_may_read_all_still_does_when_another_gets_some_rows(sales: Shop) -> None:
    await sales.grant("analyst", tables={"orders": "region = 'north'"})
    await sales.grant("clerk", "write")
    await sales.grant("intruder", tables={"orders": None})
    counts = []
    for agent in ("analyst", "clerk", "intruder"):
        async with await sales.connect(agent) as connection:
            counts.append(await one(connection, "SELECT count(*) FROM orders"))
    assert counts == [5, 10, 10]
    await sales.databases.revoke("sales", "analyst")
    assert await sales.owner("SELECT relrowsecurity FROM pg_class WHERE relname = 'orders'") == [[False]]
    async with await sales.connect("intruder") as connection:
        assert await one(connection, "SELECT count(*) FROM orders") == 10


async def test_the_owners_own_policies_are_not_widened(sales: Shop) -> None:
    await sales.owner(
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY mine ON orders USING (region = CASE session_user WHEN 'office:clerk' THEN 'south' ELSE 'north' END)"
    )
    await sales.grant("clerk")
    await sales.grant("analyst", tables={"orders": "amount > 4"})
    async with await sales.connect("clerk") as clerk, await sales.connect("analyst") as analyst:
        assert await one(clerk, "SELECT count(*) FROM orders") == 5
        assert await one(analyst, "SELECT min(amount) FROM orders") == 5


async def test_an_agent_is_promised_its_connections_so_not_too_many_are_granted(
    sales: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenure.data.shared.models.AGENTS_CONNECTIONS_MAX", 100)
    await sales.databases.limit("sales", {"connections": 50})
    await sales.grant("analyst")
    await sales.grant("clerk")
    with pytest.raises(Conflict):
        await sales.grant("intruder")
    await sales.grant("clerk", "write")
    await sales.databases.limit("sales", {"connections": 20})
    await sales.grant("intruder")
    with pytest.raises(InvalidArgument):
        await sales.databases.limit("sales", {"connections": 50})


async def test_a_database_that_slept_matches_the_grants_before_it_lets_anybody_in(sales: Shop) -> None:
    await sales.grant("analyst", "write")
    await sales.databases.sleep("sales")
    await sales.control.execute("UPDATE grants SET level = 'read'")  # as a server that died before it said so
    async with await sales.connect("analyst") as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("DELETE FROM orders")


# --- limits -------------------------------------------------------------------------------------------------------------
def test_what_takes_too_long_is_cancelled_and_then_ended() -> None:
    found = [
        Activity(1, 61.0, None, 61.0),
        Activity(2, 63.0, None, 63.0),
        Activity(3, 65.0, None, 65.0),
        Activity(4, None, 59.0, 100.0),
        Activity(5, None, 61.0, 100.0),
        Activity(6, 1.0, None, 603.0),
        Activity(7, None, None, None),
    ]
    assert acts(found, 60.0) == {2: Act.CANCEL, 3: Act.END, 5: Act.END, 6: Act.END}


async def test_a_statement_timeout_that_a_session_lifted_holds_all_the_same(sales: Shop) -> None:
    await sales.databases.limit("sales", {"statement_timeout_s": 0.2})
    await sales.grant("analyst")
    async with await sales.connect("analyst") as connection:
        with pytest.raises(psycopg.errors.QueryCanceled):
            await connection.execute("SELECT pg_sleep(60)")
        await connection.execute("SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0")
        running = asyncio.create_task(connection.execute("SELECT pg_sleep(600)"))
        while not running.done():
            await sales.databases.look()
            await asyncio.sleep(0.05)
        with pytest.raises((psycopg.errors.QueryCanceled, psycopg.errors.AdminShutdown)):
            await running
    assert await sales.owner("SELECT 1 FROM pg_sleep(0.3)") == [[1]], "the owner has no such limit"


async def test_connections_of_one_agent_are_limited_and_others_have_theirs(sales: Shop) -> None:
    await sales.databases.limit("sales", {"connections": 2})
    await sales.grant("analyst")
    await sales.grant("clerk")
    first, second = await sales.connect("analyst"), await sales.connect("clerk")
    place = sales.settings.home / "doors" / "analyst-sales"
    held = [first, await psycopg.AsyncConnection.connect(host=str(place), user="agent", dbname="x")]
    with pytest.raises(psycopg.OperationalError, match="limit"):
        await psycopg.AsyncConnection.connect(host=str(place), user="agent", dbname="x")
    behind = sales.settings.run_dir / "pg" / "sales.db"
    with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
        await psycopg.AsyncConnection.connect(host=str(behind), user="office:analyst", dbname="shared")
    assert await one(second, "SELECT 1") == 1
    for connection in (*held, second):
        await connection.close()


async def test_temporary_files_are_limited_and_the_agent_cannot_lift_that(sales: Shop) -> None:
    await sales.databases.limit("sales", {"temp_gb": 0.001})
    await sales.grant("analyst")
    async with await sales.connect("analyst") as connection:
        await connection.execute("SET work_mem = '64kB'")
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
            await connection.execute(
                "SELECT count(*) FROM (SELECT n, repeat('x', 99) FROM generate_series(1, 99999) n ORDER BY 2, 1 DESC) t"
            )
        for statement in ("SET temp_file_limit = -1", "ALTER ROLE CURRENT_USER SET temp_file_limit = -1"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute(statement.encode())


@pytest.fixture
async def pool(
    settings: Settings, control_database: ControlDatabase, request: pytest.FixtureRequest
) -> AsyncIterator[Shop]:
    """On btrfs, whose limits the kernel holds."""
    async with shop(control_database, settings, BtrfsDriver()) as made:
        yield made


async def fill(pool: Shop, name: str) -> None:
    for n in range(100):
        await pool.owner(
            f"INSERT INTO heap SELECT {n}, string_agg(md5(random()::text), '') FROM generate_series(1, 30000) g, "
            "generate_series(1, 10) h GROUP BY g % 3000",
            name,
        )


async def test_over_the_quota_reads_go_on_writes_fail_and_deletes_recover(pool: Shop) -> None:
    name = f"full-{secrets.token_hex(3)}"
    await pool.databases.create(name, {"disk_gb": 0.25})
    await pool.grant("analyst", "write", name)
    await pool.owner("CREATE TABLE heap (n int, t text)", name)
    with pytest.raises(DiskFull) as failed:
        await fill(pool, name)
    assert "disk" in failed.value.message.lower()
    # Who connects while PostgreSQL ends itself for its full disk is cut off; the next one starts it.
    for _ in range(20):
        with contextlib.suppress(psycopg.OperationalError):
            connected = await pool.connect("analyst", name)
            break
        await asyncio.sleep(0.5)
    async with connected as connection:
        assert int(str(await one(connection, "SELECT count(*) FROM heap"))) >= 0
    await pool.databases.execute(name, "TRUNCATE heap")
    await pool.databases.execute(name, "INSERT INTO heap VALUES (1, 'again')")
    assert await pool.owner("SELECT t FROM heap", name) == [["again"]]
    await pool.databases.delete(name)


# --- snapshots ----------------------------------------------------------------------------------------------------------
async def test_a_restore_brings_rows_back_and_can_be_undone_and_grants_are_those_of_now(sales: Shop) -> None:
    await sales.grant("analyst", "write")
    taken = await sales.databases.take_snapshot("sales", "before")
    await sales.owner("DROP TABLE orders")
    await sales.grant("analyst", "read")
    await sales.grant("clerk", "read")
    restored = await sales.databases.restore_snapshot("sales", "before")
    assert restored.snapshot.id == taken.id
    async with await sales.connect("analyst") as connection, await sales.connect("clerk") as other:
        assert await one(connection, "SELECT count(*) FROM orders") == 10
        assert await one(other, "SELECT count(*) FROM orders") == 10
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("DELETE FROM orders")
    await sales.databases.revoke("sales", "analyst")
    await sales.databases.restore_snapshot("sales", "before")
    assert await sales.owner("SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'office:%'") == [["office:clerk"]]
    await sales.databases.restore_snapshot("sales", restored.before.id)
    assert await sales.owner("SELECT to_regclass('orders')") == [[None]]
    with pytest.raises(NotFound):
        await sales.databases.restore_snapshot("sales", "never")


async def test_a_fork_is_another_database_that_nobody_was_granted(sales: Shop) -> None:
    await sales.grant("analyst", "write")
    await sales.databases.fork("sales", "copy")
    await sales.owner("DELETE FROM orders", "copy")
    assert await sales.owner("SELECT count(*) FROM orders") == [[10]]
    assert await sales.databases.grants("copy") == []
    assert await sales.owner("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'office:%'", "copy") == [[0]]
    assert [one.host for one in await sales.databases.neighbours("analyst")] == ["sales.db"]
    uids = {Path(f"/proc/{postmaster_pid(sales, name)}").stat().st_uid for name in ("sales", "copy")}
    assert len(uids) == 2
    with pytest.raises(AlreadyExists):
        await sales.databases.fork("sales", "copy")
    assert await sales.owner("SELECT 1", "copy") == [[1]], "what was there is still there"


# --- whatever dies ------------------------------------------------------------------------------------------------------
async def test_rows_survive_kill_9_of_postgres_and_its_roles_are_matched_again(sales: Shop) -> None:
    await sales.grant("analyst", "write")
    async with await sales.connect("analyst") as connection:
        await connection.execute("INSERT INTO orders (region) VALUES ('west')")
        os.kill(postmaster_pid(sales), signal.SIGKILL)
    assert await sales.owner("SELECT count(*) FROM orders") == [[11]]
    async with await sales.connect("analyst") as connection:
        assert await one(connection, "SELECT count(*) FROM orders") == 11


CREATE: Callable[[Shop], Awaitable[object]] = lambda made: made.databases.create("new", {})  # noqa: E731
FORK: Callable[[Shop], Awaitable[object]] = lambda made: made.databases.fork("sales", "new")  # noqa: E731
RESTORE: Callable[[Shop], Awaitable[object]] = lambda made: made.databases.restore_snapshot("sales", "before")  # noqa: E731
GRANT: Callable[[Shop], Awaitable[object]] = lambda made: made.grant("analyst")  # noqa: E731
REVOKE: Callable[[Shop], Awaitable[object]] = lambda made: made.databases.revoke("sales", "clerk")  # noqa: E731
DELETE: Callable[[Shop], Awaitable[object]] = lambda made: made.databases.delete("sales")  # noqa: E731


@pytest.mark.parametrize(
    ("act", "point", "nth"),
    [
        (CREATE, "db.added", 1),
        (CREATE, "db.staged", 1),
        (CREATE, "db.made", 1),
        (FORK, "db.snapshot-copied", 1),
        (FORK, "db.added", 1),
        (FORK, "db.staged", 1),
        (FORK, "db.made", 1),
        (RESTORE, "db.snapshot-copied", 1),
        (RESTORE, "db.staged", 1),
        (RESTORE, "db.prepared", 1),
        (RESTORE, "db.moved-away", 1),
        (RESTORE, "db.placed", 1),
        (GRANT, "db.granted", 1),
        (REVOKE, "db.revoked", 1),
        (DELETE, "db.deleting", 1),
    ],
)
async def test_a_server_that_starts_finishes_or_undoes_what_a_killed_one_began(
    sales: Shop, act: Callable[[Shop], Awaitable[object]], point: str, nth: int
) -> None:
    """In a process of its own, which is killed at the point."""
    await sales.databases.take_snapshot("sales", "before")
    await sales.owner("DELETE FROM orders WHERE id > 5")
    await sales.grant("clerk")
    await killed_at(sales, point, nth, act)
    databases = sales.again()
    await databases.adopt_all()
    names = {one.name for one in await databases.list()}
    assert names <= {"sales"}
    if act is DELETE:
        assert names == set()
        assert not (sales.settings.shared_dir / "sales").exists()
        return
    rows = await sales.owner("SELECT count(*) FROM orders")
    assert rows in ([[5]], [[10]])
    if act is not RESTORE:
        assert rows == [[5]]
    left = {path.name for path in sales.settings.shared_dir.glob("[!.]*")}
    left |= {path.name for part in (".staged", ".replaced") for path in (sales.settings.shared_dir / part).glob("*")}
    assert left == {"sales"}
    granted = {one.agent for one in await databases.grants("sales")}
    roles = {row[0] for row in await sales.owner("SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'office:%'")}
    assert roles == {f"office:{agent}" for agent in granted}
    await sales.databases.create("new", {})


def test_defaults_promise_connections_to_dozens_of_agents() -> None:
    assert Limits().agents_max >= 40
