"""Clients that nobody here wrote, unmodified, on an office's own database: inside the office, and at its doorway's socket."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import foreign_clients
from databases import home_of, needs_root, office_database, template_home
from fixtures.live import Live
from tenure.client import Agent
from tenure.data.database import OfficeDatabase
from tenure.postgres.tree import LIBRARIES, PostgresTree

pytestmark = needs_root
in_module = pytest.mark.asyncio(loop_scope="module")
CLIENT_S_MAX = 120


def library() -> Path:
    (found,) = (PostgresTree(template_home() / "postgresql").root / LIBRARIES).glob("libpq-*.so*")
    return found


def program(name: str) -> Path:
    return PostgresTree(template_home() / "postgresql").program(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def db() -> AsyncIterator[OfficeDatabase]:
    async with office_database() as database:
        yield database


async def run(argv: list[str], db: OfficeDatabase, stdin: str = "") -> str:
    env = {
        "PGHOST": str(home_of(db) / "door"),
        "PGUSER": "agent",
        "PGDATABASE": "agent",
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
    }
    done = await asyncio.to_thread(
        subprocess.run, argv, input=stdin, capture_output=True, text=True, env=env, timeout=CLIENT_S_MAX, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


async def in_clients(script: str, db: OfficeDatabase) -> object:
    """What a script of the clients' environment prints as JSON."""
    python = await asyncio.to_thread(foreign_clients.environment)
    return json.loads((await run([str(python / "python"), "-"], db, script)).strip().splitlines()[-1])


# --- at the doorway's socket ------------------------------------------------------------------------------------------
@in_module
async def test_psql_describes_copies_and_runs_scripts(db: OfficeDatabase) -> None:
    said = await run(
        [str(program("psql")), "-X", "-v", "ON_ERROR_STOP=1"],
        db,
        "CREATE TABLE copied (n int, t text);\n\\copy copied FROM STDIN CSV\n1,one\n2,two\n\\.\n"
        "\\d copied\n\\dt\n\\l\n\\du\nBEGIN; SELECT count(*) AS counted FROM copied; ROLLBACK;\n\\copy copied TO STDOUT CSV\n",
    )
    for expected in ("COPY 2", 'Table "public.copied"', "counted", "1,one"):
        assert expected in said


@in_module
@pytest.mark.parametrize("protocol", ["simple", "extended", "prepared"])
async def test_pgbench_initialises_and_runs_every_protocol(protocol: str, db: OfficeDatabase) -> None:
    await run([str(program("pgbench")), "-i", "-s", "1", "-q"], db)
    said = await run([str(program("pgbench")), "-n", "-c", "4", "-t", "25", "-M", protocol], db)
    assert "number of transactions actually processed: 100/100" in said
    assert "number of failed transactions: 0" in said


@in_module
async def test_pg_dump_and_restore(db: OfficeDatabase) -> None:
    await db.execute("CREATE EXTENSION IF NOT EXISTS vector; CREATE TABLE kept (id serial PRIMARY KEY, v vector(2))")
    await db.execute("INSERT INTO kept (v) VALUES ('[1,2]'), ('[3,4]')")
    dump = await run([str(program("pg_dump")), "-t", "kept"], db)
    await db.execute("DROP TABLE kept")
    await run([str(program("psql")), "-X", "-v", "ON_ERROR_STOP=1"], db, dump)
    assert (await db.execute("SELECT id, v::text FROM kept ORDER BY id")).rows == [[1, "[1,2]"], [2, "[3,4]"]]
    await db.execute("DROP TABLE kept")


@in_module
async def test_psycopg_pipelines_copies_and_listens(db: OfficeDatabase) -> None:
    script = """
import json, psycopg
with psycopg.connect("", autocommit=True) as c:
    c.execute("CREATE TABLE IF NOT EXISTS p (n int, t text)")
    with c.pipeline():
        cursors = [c.execute("INSERT INTO p VALUES (%s, %s) RETURNING n", (n, "x")) for n in range(10)]
    with c.cursor().copy("COPY p FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "text"])
        for n in range(1000):
            copy.write_row((n, "y"))
    c.execute("LISTEN told")
    c.execute("NOTIFY told, 'hello'")
    heard = [n.payload for n in c.notifies(timeout=5, stop_after=1)]
    with c.transaction():
        named = c.cursor("named"); named.execute("SELECT n FROM p ORDER BY n"); some = len(named.fetchmany(50))
    print(json.dumps([c.execute("SELECT count(*) FROM p").fetchone()[0], heard, some]))
    c.execute("DROP TABLE p")
"""
    assert await in_clients(script, db) == [1010, ["hello"], 50]


@in_module
async def test_sqlalchemy_makes_reads_and_inspects_tables(db: OfficeDatabase) -> None:
    script = """
import json
from sqlalchemy import *
from sqlalchemy.dialects.postgresql import JSONB, ARRAY, insert
engine = create_engine("postgresql+psycopg://")
m = MetaData()
t = Table("alchemy", m, Column("id", Integer, Identity(), primary_key=True), Column("name", Text, unique=True),
          Column("facts", JSONB), Column("tags", ARRAY(Text)))
m.create_all(engine)
with engine.begin() as c:
    c.execute(t.insert(), [{"name": f"n{i}", "facts": {"i": i}, "tags": ["a", "b"]} for i in range(20)])
    up = insert(t).values(name="n1", facts={"i": 100}, tags=[])
    c.execute(up.on_conflict_do_update(index_elements=["name"], set_={"facts": up.excluded.facts}))
with engine.connect() as c:
    total = c.execute(select(func.sum(t.c.facts["i"].as_integer()))).scalar()
seen = inspect(engine)
(unique,) = seen.get_unique_constraints("alchemy")
print(json.dumps([total, [c["name"] for c in seen.get_columns("alchemy")], unique["column_names"]]))
m.drop_all(engine)
"""
    assert await in_clients(script, db) == [189 + 100, ["id", "name", "facts", "tags"], ["name"]]


@in_module
async def test_pandas_writes_and_reads_frames(db: OfficeDatabase) -> None:
    script = """
import json, pandas
from sqlalchemy import create_engine
engine = create_engine("postgresql+psycopg://")
frame = pandas.DataFrame({"day": pandas.date_range("2020-01-01", periods=300), "n": range(300), "t": ["ü☃"] * 300})
frame.to_sql("frame", engine, if_exists="replace", index=False, method="multi", chunksize=100)
back = pandas.concat(pandas.read_sql("SELECT * FROM frame ORDER BY day", engine, chunksize=70))
print(json.dumps([len(back), int(back.n.sum()), str(back.day.max().date()), back.t.iloc[0]]))
"""
    assert await in_clients(script, db) == [300, 44850, "2020-10-26", "ü☃"]
    await db.execute("DROP TABLE frame")


@in_module
async def test_duckdb_reads_tables_where_its_reader_can_be_had(db: OfficeDatabase) -> None:
    await db.execute("CREATE TABLE ducks AS SELECT generate_series(1, 5000) AS n")
    script = """
import duckdb, json
c = duckdb.connect()
try:
    c.execute("INSTALL postgres; LOAD postgres")
except duckdb.Error as error:
    print(json.dumps(None))
else:
    c.execute("ATTACH '' AS office (TYPE postgres, READ_ONLY)")
    print(json.dumps(c.execute("SELECT sum(n) FROM office.public.ducks").fetchone()[0]))
"""
    try:
        found = await in_clients(script, db)
    finally:
        await db.execute("DROP TABLE ducks")
    if found is None:
        pytest.skip("DuckDB's postgres extension is downloaded at run time, and cannot be had here")
    assert found == 12_502_500


# --- inside an office -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def agent(live: Live) -> Agent:
    return live.agent("clients")


def test_psql_of_the_office_connects_without_arguments(agent: Agent) -> None:
    done = agent.exec("psql -X -c 'CREATE EXTENSION vector' && psql -X -Atc \"SELECT '[3,4]'::vector <-> '[0,0]'\"")
    assert (done.exit_code, done.stdout.splitlines()[-1:]) == (0, ["5"]), done.stderr
    refused = agent.exec("psql -X -c 'CREATE EXTENSION dblink'")
    assert (refused.exit_code, "is not available" in refused.stderr) == (1, True)


def test_pgbench_in_an_office_through_its_door(agent: Agent) -> None:
    """Debian has it in the server's package only, so the office gets ours, with the library that it needs."""
    agent.upload(program("pgbench"), "pgbench")
    agent.upload(library(), library().name)
    bench = "chmod +x pgbench; export LD_LIBRARY_PATH=$PWD; ./pgbench"
    made = agent.exec(f"{bench} -i -s 1 -q", timeout_s=CLIENT_S_MAX)
    assert made.exit_code == 0, made.stderr
    done = agent.exec(f"{bench} -n -c 4 -t 25", timeout_s=CLIENT_S_MAX)
    assert "transactions actually processed: 100/100" in done.stdout, done.stderr
    assert re.search(r"failed transactions: 0", done.stdout)
    rows = agent.sql("SELECT count(*) FROM pgbench_history").rows
    assert rows == [[100]]


def test_what_a_client_wrote_can_be_looked_into(agent: Agent) -> None:
    """All the way: the server, its API, the SDK, a database that psql filled."""
    agent.exec(
        "psql -X -c \"CREATE TABLE notes AS SELECT i AS id, 'note ' || i AS text FROM generate_series(1, 50) i\""
    )
    agent.exec("psql -X -c 'ALTER TABLE notes ADD PRIMARY KEY (id)'")
    assert agent.data.describe("notes").tables[0].primary_key == ["id"]
    assert agent.data.profile("notes").rows == 50
    assert len(agent.data.sample("notes", 5).rows) == 5
    assert agent.data.save_result("kept", "SELECT count(*) AS n FROM notes").made_by == "owner"
    assert agent.data.read_result("kept").rows == [[50]]
    agent.data.create_index("notes", "notes", ["text"])
    assert agent.data.search("note 17", limit=1).hits[0].key == {"id": "17"}
    assert [one.name for one in agent.data.results()] == ["kept"]
    agent.data.drop_result("kept")
    agent.data.drop_index("notes")
