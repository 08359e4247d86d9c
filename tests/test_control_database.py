"""The control database: migrations that may meet, and tables that keep their own rules."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from fixtures.database import dsn_of
from tenure.channels.inbox import Inbox
from tenure.database import ControlDatabase, migrate
from tenure.database.migrate import head
from tenure.errors import NotFound, ServerUnreachable, SetupError

TABLES = {"agents", "runs", "journal", "inbox"}


@pytest.fixture
def empty_dsn(postgres_dsn: str) -> str:
    name = "empty"
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    return dsn_of(postgres_dsn, name)


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        found = connection.execute("select tablename from pg_tables where schemaname in ('public', 'absurd')")
        return {row[0] for row in found}


def test_processes_that_start_at_once_migrate_once(empty_dsn: str) -> None:
    script = f"from tenure.database import migrate; migrate({empty_dsn!r})"
    with ThreadPoolExecutor(3) as threads:
        done = list(
            threads.map(lambda _: subprocess.run([sys.executable, "-c", script], capture_output=True), range(3))
        )
    assert [process.returncode for process in done] == [0, 0, 0], done[0].stderr.decode()[-2000:]
    assert {*TABLES, "r_work", "t_work"} <= tables(empty_dsn)
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("select version_num from alembic_version").fetchall() == [(head(),)]


def test_a_failed_migration_leaves_nothing_behind(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("create table inbox (in_the_way int)")  # the second migration stumbles over it
    with pytest.raises(Exception, match="already exists"):
        migrate(empty_dsn)
    assert "agents" not in tables(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("drop table inbox")
    migrate(empty_dsn)
    assert tables(empty_dsn) >= TABLES


def test_a_database_of_a_newer_tenure_is_refused(empty_dsn: str) -> None:
    migrate(empty_dsn)
    migrate(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    with pytest.raises(SetupError, match="newer version"):
        migrate(empty_dsn)


async def test_the_journal_is_append_only(control_database: ControlDatabase) -> None:
    await control_database.execute("insert into runs (id, agent, goal, brain) values ('r', 'a', 'g', 'b')")
    await control_database.execute("insert into journal (run_id, seq, kind, body) values ('r', 1, 'k', '{}')")
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        await control_database.execute("update journal set kind = 'other'")
    with pytest.raises(psycopg.errors.UniqueViolation):
        await control_database.execute("insert into journal (run_id, seq, kind, body) values ('r', 1, 'k', '{}')")


async def test_agents_are_numbered_once(control_database: ControlDatabase) -> None:
    """The number becomes the agent's user id on the host: one that was used is not used again."""
    await control_database.execute(
        "insert into agents (name, image, stage) values ('a', 'i', 'asleep'), ('b', 'i', 'asleep')"
    )
    await control_database.execute("delete from agents where name = 'b'")
    await control_database.execute("insert into agents (name, image, stage) values ('b', 'i', 'asleep')")
    rows = await control_database.fetch("select number from agents order by number")
    assert [row["number"] for row in rows] == [1, 3]


async def test_a_message_is_left_once_per_key(control_database: ControlDatabase) -> None:
    inbox = Inbox(control_database)
    both = [inbox.create(agent="a", subject=f"s{n}", body="b", key="k", run_id="r") for n in range(8)]
    left = await asyncio.gather(*both)
    assert len({message.id for message in left}) == 1
    await inbox.create(agent="b", subject="s", body="b", key="k")
    await inbox.create(agent=None, subject="s\x00", body="no key")
    await inbox.create(agent=None, subject="s", body="no key")
    assert [message.agent for message in await inbox.list()] == [None, None, "b", "a"]
    assert [message.agent for message in await inbox.list(agent="b")] == ["b"]


async def test_a_message_is_read_once(control_database: ControlDatabase) -> None:
    inbox = Inbox(control_database)
    message = await inbox.create(agent="a", subject="s", body="b")
    first = await inbox.mark_read(message.id)
    assert first.read_at is not None
    assert (await inbox.mark_read(message.id)).read_at == first.read_at
    assert await inbox.list(unread=True) == []
    for unknown in ("99999999999999999999", "x", "-1", ""):
        with pytest.raises(NotFound):
            await inbox.get(unknown)


async def test_a_database_that_is_away_is_one_clear_error(postgres_dsn: str) -> None:
    nowhere = psycopg.conninfo.make_conninfo(postgres_dsn, host="/nonexistent")
    async with ControlDatabase(nowhere, wait_s=0.2) as database:
        with pytest.raises(ServerUnreachable, match="control database"):
            await database.fetch("select 1")


async def test_a_connection_that_broke_is_replaced(control_database: ControlDatabase) -> None:
    """PostgreSQL restarted between two calls: the second does not notice."""
    row = await control_database.fetch_one("select pg_backend_pid() as pid")
    assert row is not None
    with psycopg.connect(control_database.dsn, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s, 5000)", (row["pid"],))
    again = await control_database.fetch_one("select pg_backend_pid() as pid")
    assert again is not None
    assert again["pid"] != row["pid"]
