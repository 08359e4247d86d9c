"""An office's database: the agent gets its own database and nothing else; effects happen exactly once; limits hold."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from databases import (
    behind,
    data_dir,
    door,
    home_of,
    needs_root,
    new_home,
    office_database,
    postmaster_pid,
    second,
    template_home,
)
from tenure.data import pump as pump_module
from tenure.data.database import OfficeDatabase
from tenure.errors import CommandTimeout, Conflict, ConnectionLost, DatabaseError, DiskFull, InvalidArgument, TooLarge
from tenure.offices.volumes.btrfs import BtrfsDriver
from tenure.postgres import wire
from tenure.postgres.client import STATEMENT_BYTES_MAX, Connection
from tenure.postgres.cluster import ClusterState
from tenure.postgres.template import SECRET_NAME
from tenure.settings import Settings

pytestmark = [needs_root, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[OfficeDatabase]:
    """One office for the tests that leave nothing behind."""
    async with office_database() as database:
        yield database


async def connect(database: OfficeDatabase, **changes: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(door(database, **changes), autocommit=True)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Looks again and again; the test's own timeout ends it."""
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def one(database: OfficeDatabase, query: str) -> object:
    return (await database.execute(query)).rows[0][0]


async def answer(value: bool) -> bool:
    return value


async def runs(database: OfficeDatabase, text: str) -> bool:
    query = f"SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{text}%' AND pid <> pg_backend_pid()"
    return await one(database, query + " AND state = 'active'") == 1


def kill_postgres(database: OfficeDatabase) -> None:
    os.kill(postmaster_pid(database), signal.SIGKILL)


# --- life -------------------------------------------------------------------------------------------------------------
async def test_the_first_connection_starts_it_and_stop_ends_it() -> None:
    async with office_database() as database:
        assert await database.state() is ClusterState.STOPPED
        async with await connect(database) as connection:
            row = await (await connection.execute("SELECT current_user, current_database()")).fetchone()
            assert row == ("agent", "agent")
            assert database.connections == 1
        assert await database.state() is ClusterState.RUNNING
        await database.stop()
        assert await database.state() is ClusterState.STOPPED
        assert await one(database, "SELECT 1") == 1


async def test_many_first_connections_share_one_start() -> None:
    async with office_database() as database:
        connections = await asyncio.gather(*(connect(database) for _ in range(20)))
        pids = set()
        for connection in connections:
            async with connection:
                await connection.execute("SELECT 1")
                pids.add(postmaster_pid(database))
        assert len(pids) == 1
        assert "lock file" not in database.log_file.read_text()


async def test_rows_survive_kill_9_and_a_new_server_adopts_what_runs() -> None:
    async with office_database() as database:
        await database.execute("CREATE TABLE t AS SELECT generate_series(1, 500) AS n")
        kill_postgres(database)
        assert await one(database, "SELECT count(*) FROM t") == 500
        pid = postmaster_pid(database)
        again = second(database)
        await again.ensure_started()
        assert await again.state() is ClusterState.RUNNING
        assert postmaster_pid(database) == pid
        await again.stop()
        assert await database.state() is ClusterState.STOPPED


async def test_a_killed_postgres_is_started_again_by_the_next_connection_through_the_door() -> None:
    async with office_database() as database:
        async with await connect(database) as connection:
            await connection.execute("CREATE TABLE t AS SELECT 1 AS n")
            kill_postgres(database)
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT pg_sleep(5)")
        for _ in range(100):  # the kernel takes a moment to take the killed server's socket down
            try:
                async with await connect(database) as connection:
                    assert await (await connection.execute("SELECT n FROM t")).fetchone() == (1,)
                return
            except psycopg.OperationalError:
                await asyncio.sleep(0.05)
        pytest.fail("the database did not come back")


async def test_two_offices_have_databases_of_their_own() -> None:
    async with office_database("one") as first, office_database("two") as second:
        await first.execute("CREATE TABLE mine (n int)")
        with pytest.raises(DatabaseError):
            await second.execute("SELECT * FROM mine")
        owners = {Path(f"/proc/{postmaster_pid(database)}").stat().st_uid for database in (first, second)}
        assert len(owners) == 2
        assert 0 not in owners


# --- who may do what --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("user", ["tenure", "postgres", "root", "Agent", "agent ", "pg_monitor"])
async def test_only_the_agent_gets_through_the_door(user: str) -> None:
    async with office_database() as database:
        await database.ensure_started()
        with pytest.raises(psycopg.OperationalError, match="may not connect"):
            await psycopg.AsyncConnection.connect(
                host=str(home_of(database) / "door"), user=user, dbname="agent", password="x"
            )


async def test_behind_the_door_the_superuser_needs_the_password_that_lies_on_the_host_only() -> None:
    async with office_database() as database:
        await database.ensure_started()
        secret = data_dir(database).parent / SECRET_NAME
        assert secret.stat().st_mode & 0o777 == 0o600
        assert secret.stat().st_uid == 0
        with pytest.raises(psycopg.OperationalError):
            await psycopg.AsyncConnection.connect(behind(database, user="tenure", password="wrong"))
        dsn = behind(database, user="tenure", password=secret.read_text().strip())
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            assert await (await connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = 'tenure'")).fetchone()


@pytest.mark.parametrize("name", ["postgres", "template1", "template0"])
async def test_no_other_database_is_open_to_the_agent(name: str) -> None:
    async with office_database() as database:
        with pytest.raises(psycopg.OperationalError):
            await connect(database, dbname=name)


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO PROGRAM 'id > /tmp/x'",
        "CREATE TEMP TABLE x (t text); COPY x FROM PROGRAM 'id'",
        "CREATE TEMP TABLE x (t text); COPY x FROM '/etc/passwd'",
        "COPY (SELECT 1) TO '/tmp/tenure-escape'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT pg_read_binary_file('/etc/passwd')",
        "SELECT pg_ls_dir('/')",
        "SELECT pg_stat_file('/etc/passwd')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT lo_export(lo_creat(-1), '/tmp/tenure-escape')",
        "ALTER ROLE agent SUPERUSER",
        "SET ROLE tenure",
        "SET SESSION AUTHORIZATION tenure",
        "CREATE ROLE other SUPERUSER",
        "CREATE ROLE other",
        "CREATE DATABASE other",
        "GRANT pg_execute_server_program TO agent",
        "GRANT tenure TO agent",
        "ALTER SYSTEM SET archive_command = 'id'",
        "SET log_min_messages = debug5",
        "SET session_preload_libraries = '/tmp/x'",
        "LOAD '/tmp/x.so'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS '/tmp/x', 'f'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE internal AS 'pg_read_file'",
        "CREATE EXTENSION dblink",
        "CREATE EXTENSION postgres_fdw",
        "CREATE EXTENSION file_fdw",
        "CREATE FOREIGN DATA WRAPPER w",
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1' PUBLICATION p",
        "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE TABLESPACE t LOCATION '/tmp'",
        "SELECT * FROM pg_authid",
        "SELECT * FROM pg_hba_file_rules",
        "SELECT pg_reload_conf()",
        "DROP EXTENSION plpgsql",
        "ALTER DATABASE agent RENAME TO other",
    ],
)
async def test_the_agent_cannot_leave_its_database(statement: str, shared: OfficeDatabase) -> None:
    with pytest.raises(DatabaseError) as raised:
        await shared.execute(statement)
    assert raised.value.details["sqlstate"][:2] in ("42", "22", "55", "58", "0A", "25", "2B", "28"), raised.value
    assert not Path("/tmp/tenure-escape").exists()
    assert await one(shared, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False


async def test_the_agent_owns_what_it_needs(shared: OfficeDatabase) -> None:
    await shared.execute(
        "CREATE EXTENSION IF NOT EXISTS vector; CREATE EXTENSION IF NOT EXISTS pg_trgm;"
        "CREATE SCHEMA own; CREATE TABLE own.v (id int, e vector(3)); INSERT INTO own.v VALUES (1, '[1,2,3]');"
        "CREATE INDEX ON own.v USING hnsw (e vector_l2_ops)"
    )
    assert await one(shared, "SELECT id FROM own.v ORDER BY e <-> '[1,2,4]' LIMIT 1") == 1
    assert await one(shared, "SELECT similarity('tenure', 'tenur') > 0.5") is True
    await shared.execute("VACUUM own.v")
    await shared.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm; DROP SCHEMA own CASCADE")


# --- the door's manners -----------------------------------------------------------------------------------------------
async def raw(database: OfficeDatabase) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(home_of(database) / "door" / ".s.PGSQL.5432"))


async def test_requests_for_encryption_are_declined_and_the_connection_goes_on(shared: OfficeDatabase) -> None:
    reader, writer = await raw(shared)
    writer.write(struct.pack("!II", 8, wire.SSL_REQUEST))
    assert await reader.readexactly(1) == b"N"
    writer.write(struct.pack("!II", 8, wire.GSSENC_REQUEST))
    assert await reader.readexactly(1) == b"N"
    writer.write(wire.startup({"user": "agent", "database": "agent"}))
    assert await reader.readexactly(1) == b"R"
    writer.close()


@pytest.mark.parametrize(
    ("packet", "sqlstate"),
    [
        (wire.startup({"user": "agent", "replication": "true"}), "28000"),
        (wire.startup({"user": "agent", "replication": "database"}), "28000"),
        (wire.startup({"database": "agent"}), "28000"),
        (b"GET / HTTP/1.1\r\nHost: db\r\n\r\n", "08P01"),
        (struct.pack("!II", 8, wire.SSL_REQUEST) * 3, "08P01"),
    ],
    ids=["replication", "replication-database", "no-user", "http", "ssl-again-and-again"],
)
async def test_a_wrong_start_gets_an_error_that_drivers_understand(
    shared: OfficeDatabase, packet: bytes, sqlstate: str
) -> None:
    reader, writer = await raw(shared)
    writer.write(packet)
    answer = (await reader.read()).lstrip(b"N")
    assert answer[:1] == b"E"
    fields = wire.parse_error(answer[5:])
    assert (fields["severity"], fields["sqlstate"]) == ("FATAL", sqlstate)
    writer.close()


async def test_cancel_requests_reach_the_server(shared: OfficeDatabase) -> None:
    async with await connect(shared) as connection:
        running = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
        await until(lambda: runs(shared, "pg_sleep(60)"))
        await connection.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            await running


async def test_connections_are_limited_and_tenure_itself_still_gets_in(shared: OfficeDatabase) -> None:
    held = await asyncio.gather(*(connect(shared) for _ in range(pump_module.CONNECTIONS_MAX)))
    with pytest.raises(psycopg.OperationalError, match="which is the limit"):
        await connect(shared)
    assert await one(shared, "SELECT 1") == 1
    await asyncio.gather(*(connection.close() for connection in held))


async def test_a_client_that_does_not_read_does_not_grow_the_server(shared: OfficeDatabase) -> None:
    """200 MB are on their way; what the pump holds of them stays small."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(home_of(shared) / "door" / ".s.PGSQL.5432"))
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, wire.startup({"user": "agent", "database": "agent"}))
    await loop.sock_recv(client, 1)
    await loop.sock_sendall(client, wire.query("SELECT repeat('x', 1000000) FROM generate_series(1, 200)"))
    (held,) = shared._pump.clients  # pyright: ignore[reportPrivateUsage]
    await until(lambda: answer(held.transport.get_write_buffer_size() > 0))
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert held.transport.get_write_buffer_size() < 4_000_000
    client.close()
    await until(lambda: answer(shared.connections == 0))


async def test_large_answers_come_through_whole(shared: OfficeDatabase) -> None:
    async with await connect(shared) as connection:
        rows = await (
            await connection.execute("SELECT repeat(n::text, 3000000) FROM generate_series(1, 5) n")
        ).fetchall()
        assert [(row[0][0], len(row[0])) for row in rows] == [(str(n), 3_000_000) for n in range(1, 6)]  # type: ignore[index, arg-type]
        cursor = await connection.execute("SELECT length(%s)", ["y" * 5_000_000])
        assert await cursor.fetchone() == (5_000_000,)


async def test_a_database_that_cannot_start_says_why_to_the_client() -> None:
    async with office_database() as database:
        (data_dir(database) / "global" / "pg_control").unlink()
        with pytest.raises(psycopg.OperationalError, match="PostgreSQL did not start"):
            await connect(database)


# --- statements -------------------------------------------------------------------------------------------------------
async def test_values_come_as_json(shared: OfficeDatabase) -> None:
    await shared.execute("CREATE EXTENSION IF NOT EXISTS vector")
    result = await shared.execute(
        "SELECT 1 AS i, 9007199254740993 AS big, 12.50 AS n, 0.1::numeric(30,25) AS exact, 'NaN'::float8 AS nan, true AS b,"
        " NULL AS nothing, DATE '2024-02-29' AS d, TIMESTAMPTZ '2024-02-29 12:00+02' AS ts, 'infinity'::date AS forever,"
        " '{\"a\": [1, 2.5]}'::jsonb AS j, '\\x00ff'::bytea AS bytes, ARRAY[[1,2],[3,NULL]] AS a, 'é☃' AS text,"
        " ARRAY['a,b', '\"'] AS texts, '[1,2,3]'::vector AS v"
    )
    assert dict(zip(result.columns, result.rows[0], strict=True)) == {
        "i": 1,
        "big": "9007199254740993",
        "n": 12.5,
        "exact": 0.1,
        "nan": "NaN",
        "b": True,
        "nothing": None,
        "d": "2024-02-29",
        "ts": "2024-02-29T10:00:00+00:00",
        "forever": "infinity",
        "j": {"a": [1, 2.5]},
        "bytes": "AP8=",
        "a": [[1, 2], [3, None]],
        "text": "é☃",
        "texts": ["a,b", '"'],
        "v": "[1,2,3]",
    }
    assert result.status == "SELECT 1"


async def test_several_statements_are_one_transaction(shared: OfficeDatabase) -> None:
    with pytest.raises(DatabaseError) as raised:
        await shared.execute("CREATE TABLE half (n int); INSERT INTO half VALUES (1); SELECT 1/0")
    assert raised.value.message == "division by zero"
    assert await one(shared, "SELECT to_regclass('half')") is None


async def test_a_statement_that_only_reads_cannot_be_made_to_write(shared: OfficeDatabase) -> None:
    await shared.execute("create table looked_at as select 7 as n")
    assert (await shared.execute("select n from looked_at", read_only=True)).rows == [[7]]
    for sly in (
        "delete from looked_at",
        "select 1; drop table looked_at",
        "with gone as (delete from looked_at returning n) select n from gone",
        "set transaction read write; delete from looked_at",
        "set transaction_read_only = off; delete from looked_at",
        "commit; delete from looked_at",
        "/* */ rollback; delete from looked_at",
        "do $$ begin perform set_config('transaction_read_only', 'off', true); delete from looked_at; end $$",
    ):
        with pytest.raises((DatabaseError, InvalidArgument)):
            await shared.execute(sly, read_only=True)
    with pytest.raises(InvalidArgument):
        await shared.execute("select 1", key="k", read_only=True)
    assert (await shared.execute("select n from looked_at")).rows == [[7]]
    await shared.execute("drop table looked_at")


async def test_errors_carry_position_and_hint(shared: OfficeDatabase) -> None:
    with pytest.raises(DatabaseError) as raised:
        await shared.execute("SELECT lenght('x')")
    assert raised.value.details == {"sqlstate": "42883", "position": "8"}
    assert raised.value.hint.startswith("No function matches")


async def test_rows_and_bytes_are_limited(shared: OfficeDatabase) -> None:
    result = await shared.execute("SELECT generate_series(1, 50000)", rows_max=10)
    assert (result.rows, result.truncated, result.status) == ([[n] for n in range(1, 11)], True, "SELECT 50000")
    result = await shared.execute("SELECT repeat('x', 1000000) FROM generate_series(1, 100)")
    assert (len(result.rows), result.truncated) == (4, True)
    result = await shared.execute("SELECT 1, repeat('x', 150000000)")
    assert (result.rows, result.truncated) == ([], True)
    with pytest.raises(InvalidArgument):
        await shared.execute("SELECT 1", rows_max=10_000_000)
    with pytest.raises(TooLarge):
        await shared.execute(f"SELECT '{'x' * STATEMENT_BYTES_MAX}'")


async def test_a_statement_cannot_take_the_hosts_memory(shared: OfficeDatabase) -> None:
    with pytest.raises(DatabaseError) as raised:
        await shared.execute("SELECT length(repeat('x', 1000000000)) + length(repeat('y', 1000000000))")
    assert raised.value.details["sqlstate"] == "53200"
    assert await one(shared, "SELECT 1") == 1


async def test_a_huge_error_is_cut(shared: OfficeDatabase) -> None:
    with pytest.raises(DatabaseError) as raised:
        await shared.execute("DO $$ BEGIN RAISE EXCEPTION '%', repeat('e', 50000000); END $$")
    assert len(raised.value.message) < 100_000


async def test_a_statement_ends_at_its_time_limit(shared: OfficeDatabase) -> None:
    with pytest.raises(CommandTimeout):
        await shared.execute("SELECT pg_sleep(100)", timeout_s=0.2)
    assert not await runs(shared, "pg_sleep(100)")


async def test_a_transaction_left_open_is_rolled_back_and_reported(shared: OfficeDatabase) -> None:
    with pytest.raises(Conflict):
        await shared.execute("BEGIN; CREATE TABLE open_end (n int)")
    assert await one(shared, "SELECT to_regclass('open_end')") is None


async def test_copy_from_stdin_is_refused_without_hanging(shared: OfficeDatabase) -> None:
    with pytest.raises(DatabaseError, match="needs a client"):
        await shared.execute("CREATE TEMP TABLE c (n int); COPY c FROM STDIN")


async def test_csv_streams_all_rows_with_a_header(shared: OfficeDatabase) -> None:
    query = "SELECT n, 'a,\"b\"' AS t FROM generate_series(1, 200000) n; -- the end"
    data = b"".join([chunk async for chunk in await shared.csv(query.removesuffix(" -- the end"))])
    lines = data.decode().splitlines()
    assert lines[:2] == ["n,t", '1,"a,""b"""']
    assert len(lines) == 200_001
    with pytest.raises(DatabaseError):
        await shared.csv("SELECT nothing")
    with pytest.raises(DatabaseError):
        await shared.csv("CREATE TABLE x (n int)")
    left = await shared.csv("SELECT repeat('x', 1000) FROM generate_series(1, 1000000)")
    await anext(left)
    await left.aclose()


# --- exactly once -----------------------------------------------------------------------------------------------------
async def test_a_repeated_key_returns_the_first_result_and_does_nothing(shared: OfficeDatabase) -> None:
    await shared.execute("CREATE TABLE once (n int)")
    statement = "INSERT INTO once VALUES (1); SELECT count(*) AS n FROM once"
    first = await shared.execute(statement, key="k1")
    second = await shared.execute(statement, key="k1")
    assert (first.rows, first.repeated, second.rows, second.repeated) == ([[1]], False, [[1]], True)
    assert (second.columns, second.status) == (first.columns, first.status)
    assert (await shared.execute(statement, key="k1' OR true; --\\")).rows == [[2]]
    await shared.execute("DROP TABLE once")


async def test_the_same_key_at_the_same_time_takes_effect_once(shared: OfficeDatabase) -> None:
    await shared.execute("CREATE TABLE racing (n int)")
    statement = "INSERT INTO racing VALUES (1); SELECT pg_sleep(0.05); SELECT count(*) FROM racing"
    results = await asyncio.gather(*(shared.execute(statement, key="race") for _ in range(8)))
    assert sorted(result.repeated for result in results) == [False] + [True] * 7
    assert {tuple(result.rows[0]) for result in results} == {(1,)}
    await shared.execute("DROP TABLE racing")


async def test_the_very_first_keys_may_race_too() -> None:
    """The table of keys itself is made by whoever comes first."""
    async with office_database() as database:
        await database.execute("CREATE TABLE t (n int)")
        await asyncio.gather(*(database.execute("INSERT INTO t VALUES (1)", key=f"k{n % 4}") for n in range(12)))
        assert await one(database, "SELECT count(*) FROM t") == 4


async def test_a_failed_effect_leaves_its_key_free(shared: OfficeDatabase) -> None:
    await shared.execute("CREATE TABLE parts (n int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(DatabaseError):
        await shared.execute("INSERT INTO parts VALUES (1), (1)", key="deferred")  # refused by COMMIT only
    assert (await shared.execute("INSERT INTO parts VALUES (1)", key="deferred")).repeated is False
    await shared.execute("DROP TABLE parts")


async def test_a_client_killed_between_effect_and_commit_leaves_nothing_and_the_next_does_it(
    shared: OfficeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shared.execute("CREATE TABLE crash (n int)")
    query, died = Connection.query, []

    async def dying(self: Connection, text: str, **limits: int) -> object:
        if text == "COMMIT" and len(died) < 2:
            died.append(text)
            self.close()
        return await query(self, text, **limits)

    monkeypatch.setattr(Connection, "query", dying)
    with pytest.raises(DatabaseError):  # the first try and the one that `execute` adds
        await shared.execute("INSERT INTO crash VALUES (1)", key="crash")
    assert len(died) == 2
    assert (await shared.execute("INSERT INTO crash VALUES (1)", key="crash")).repeated is False
    assert await one(shared, "SELECT count(*) FROM crash") == 1
    await shared.execute("DROP TABLE crash")


async def test_a_commit_whose_answer_was_lost_is_not_repeated(
    shared: OfficeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shared.execute("CREATE TABLE lost (n int)")
    query, lost = Connection.query, []

    async def deaf(self: Connection, text: str, **limits: int) -> object:
        result = await query(self, text, **limits)
        if text == "COMMIT" and not lost:
            lost.append(text)
            self.close()
            return await query(self, "SELECT 1")  # raises as a lost connection does
        return result

    monkeypatch.setattr(Connection, "query", deaf)
    result = await shared.execute("INSERT INTO lost VALUES (1)", key="lost")
    assert (result.repeated, result.status, len(lost)) == (True, "INSERT 0 1", 1)
    assert await one(shared, "SELECT count(*) FROM lost") == 1
    await shared.execute("DROP TABLE lost")


async def test_kill_9_of_postgres_during_an_effect_neither_loses_nor_doubles_it() -> None:
    async with office_database() as database:
        await database.execute("CREATE TABLE t (n int)")
        await database.execute("SELECT 1", key="warm")
        running = asyncio.create_task(
            database.execute("INSERT INTO t VALUES (1); SELECT pg_sleep(0.5); SELECT count(*) FROM t", key="killed")
        )
        await until(lambda: runs(database, "pg_sleep(0.5)"))
        kill_postgres(database)
        assert (await running).rows == [[1]]
        assert await one(database, "SELECT count(*) FROM t") == 1


async def test_transaction_control_is_refused_before_anything_happens(shared: OfficeDatabase) -> None:
    with pytest.raises(InvalidArgument, match="COMMIT"):
        await shared.execute("CREATE TABLE never (n int); commit; SELECT 1", key="control")
    assert await one(shared, "SELECT to_regclass('never')") is None


async def test_a_commit_that_evades_the_check_is_still_not_repeated(
    shared: OfficeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenure.data.database.transaction_control", lambda _: None)
    for _ in range(2):
        with pytest.raises(Conflict):
            await shared.execute("CREATE TABLE sneaky (n int); COMMIT; SELECT 1", key="sneaky")
    assert await one(shared, "SELECT count(*) FROM sneaky") == 0
    await shared.execute("DROP TABLE sneaky")


@pytest.fixture
def limited_volume() -> Iterator[tuple[Settings, Path, Callable[[int], Awaitable[None]]]]:
    """A real btrfs subvolume with a quota of 150 MB, and what grants it more."""

    def run(*words: str | Path) -> None:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"

    home = new_home()
    disk, pool, volume = home.home / "disk", home.pool_dir, home.volumes_dir / "analyst"
    with disk.open("wb") as file:
        file.truncate(2 << 30)
    pool.mkdir()
    run("mkfs.btrfs", "-q", disk)
    run("mount", "-o", "loop,nosuid,nodev", disk, pool)
    try:
        run("btrfs", "quota", "enable", pool)
        driver = BtrfsDriver()
        asyncio.run(driver.create_empty(volume))
        for name in ("postgres", "postgres.secret"):
            run("cp", "-a", template_home() / "image" / name, volume / name)

        async def grant(size: int) -> None:
            await driver.set_limit(volume, (150 << 20) + size)

        asyncio.run(grant(0))
        yield home, volume, grant
    finally:
        run("umount", pool)
        shutil.rmtree(home.home)


async def test_a_full_disk_stops_no_database_for_good(
    limited_volume: tuple[Settings, Path, Callable[[int], Awaitable[None]]],
) -> None:
    """PostgreSQL ends itself when its log cannot be written, and needs room to come up again. What was committed stays,
    every failure says that the disk is full, and then there is a way out: to delete something."""
    settings, volume, grant = limited_volume
    database = OfficeDatabase(settings, "analyst", volume, 210_777, grant_room=grant)
    try:
        await database.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7); CREATE TABLE filler (t text)")
        full = 0
        for _ in range(40):
            await BtrfsDriver().keep_limits(volume)  # as a server does: the kernel may lose count meanwhile
            try:
                await database.execute(
                    "INSERT INTO filler SELECT repeat(md5(n::text), 20) FROM generate_series(1, 20000) n"
                )
            except DiskFull:
                full += 1
            if full == 4:
                break
        assert full == 4, "the quota must be reached"
        for _ in range(20):
            with contextlib.suppress(DiskFull):
                await database.execute("DROP TABLE IF EXISTS filler")
                break
            await asyncio.sleep(1)
        assert await one(database, "SELECT to_regclass('filler')") is None
        assert (await database.execute("INSERT INTO kept VALUES (8); SELECT array_agg(n) FROM kept")).rows == [[[7, 8]]]
    finally:
        await database.stop()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('PANIC:  could not write to file "pg_wal/xlogtemp.42": Disk quota exceeded', DiskFull),
        ("FATAL:  could not open file: Disk quota exceeded", ConnectionLost),
        ("PANIC:  could not locate a valid checkpoint record", ConnectionLost),
    ],
)
async def test_a_server_that_had_ended_itself_before_the_statement_is_told_apart(
    said: str, expected: type[Exception]
) -> None:
    """It says why, and only then do its connections hear of it: one may be made in between."""
    async with office_database() as database:
        await database.execute("SELECT 1")
        with database.log_file.open("a") as log:
            log.write(
                f"2026-11-22 12:00:00.000 UTC [42] {said}\n2026-11-22 12:00:00.000 UTC [42] STATEMENT:  {'x' * 9000}\n"
            )
        running = asyncio.create_task(database.execute("SELECT pg_sleep(0.5)"))
        await until(lambda: runs(database, "pg_sleep(0.5)"))
        kill_postgres(database)
        with pytest.raises(expected):
            await running


async def test_a_full_disk_is_told_apart(shared: OfficeDatabase) -> None:
    with pytest.raises(DiskFull):
        await shared.execute("DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'; END $$")
