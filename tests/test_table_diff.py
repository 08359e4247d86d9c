"""Tables of two databases are compared row by row; nothing that an agent made runs meanwhile, and bounds are told."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from databases import data_dir, home_of, needs_root, office_database
from tenure.data.database import OfficeDatabase
from tenure.data.table_diff import Bounds, compare_databases
from tenure.data.tables import ROWS_SHOWN_MAX, VALUE_CHARS_MAX, DatabaseDiff, RowDiff, TableDiff
from tenure.data.throwaway import ThrowAway
from tenure.errors import DatabaseError
from tenure.postgres import process
from tenure.settings import Settings

pytestmark = [needs_root, pytest.mark.asyncio(loop_scope="module")]
UID = 250_000

TRAP = """
CREATE SCHEMA evil;
CREATE FUNCTION evil.trap(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
    IF current_user <> 'agent' THEN RAISE EXCEPTION 'code of the agent ran as %', current_user; END IF;
    RETURN n;
END $$;
CREATE FUNCTION evil.trap(t text) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT evil.trap(length(t))::text $$;
CREATE FUNCTION evil."left"(t text, n int) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT evil.trap(t) $$;
CREATE FUNCTION evil.json_agg(t text) RETURNS json IMMUTABLE LANGUAGE sql AS $$ SELECT to_json(evil.trap(t)) $$;
CREATE FUNCTION evil.same(a text, b text) RETURNS bool IMMUTABLE LANGUAGE sql AS $$ SELECT evil.trap(a) = evil.trap(b) $$;
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.same);
CREATE TYPE evil.colour AS ENUM ('red', 'blue');
CREATE FUNCTION evil.told(c evil.colour) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT evil.trap('x') $$;
CREATE CAST (evil.colour AS text) WITH FUNCTION evil.told(evil.colour) AS IMPLICIT;
CREATE DOMAIN evil.even AS int CHECK (evil.trap(VALUE) % 2 = 0);
CREATE TYPE evil.pair AS (a evil.colour, b evil.even);
CREATE FUNCTION evil.apart(a float8, b float8) RETURNS float8 IMMUTABLE LANGUAGE sql AS $$ SELECT evil.trap(1)::float8 $$;
CREATE TYPE evil.span AS RANGE (subtype = float8, subtype_diff = evil.apart);

CREATE TABLE prey (
    n int PRIMARY KEY CHECK (evil.trap(n) = n),
    c evil.colour DEFAULT 'red',
    e evil.even,
    p evil.pair,
    s evil.span,
    d int DEFAULT evil.trap(1),
    g int GENERATED ALWAYS AS (evil.trap(n) + 1) STORED
);
CREATE INDEX ON prey ((evil.trap(7) + n));
CREATE INDEX ON prey (n) WHERE evil.trap(3) = 3 AND n > 0;
CREATE STATISTICS evil.known ON (evil.trap(n)), c FROM prey;
CREATE VIEW seen AS SELECT evil.trap(n) FROM prey;
CREATE MATERIALIZED VIEW stored AS SELECT evil.trap(n) FROM prey;
ALTER TABLE prey ENABLE ROW LEVEL SECURITY;
ALTER TABLE prey FORCE ROW LEVEL SECURITY;
CREATE POLICY only_mine ON prey USING (evil.trap(n) > 1 OR current_user = 'agent');
INSERT INTO prey (n, e, p, s) SELECT i, 2, '(blue,4)'::evil.pair, evil.span(1, 2) FROM generate_series(1, 3) i;
"""
LOCKED = """
REVOKE ALL ON prey FROM agent;
REVOKE ALL ON SCHEMA evil, public FROM agent, PUBLIC;
REVOKE ALL ON DATABASE agent FROM agent, PUBLIC;
ALTER DATABASE agent SET search_path = evil, pg_catalog;
ALTER DATABASE agent SET statement_timeout = 1;
ALTER DATABASE agent SET DateStyle = 'German';
ALTER DATABASE agent CONNECTION LIMIT 0;
"""


class Office:
    """An agent's database, and copies of it as it was."""

    def __init__(self, database: OfficeDatabase) -> None:
        self.database = database
        self.settings = Settings(home=home_of(database))
        self._copies = 0

    async def run(self, statements: str) -> None:
        await self.database.execute(statements)

    async def kept(self) -> Path:
        """A copy of the volume as it is now."""
        await self.database.stop()
        self._copies += 1
        copy = self.settings.volumes_dir / f".copy-{self._copies}"
        _copy(data_dir(self.database).parent, copy)
        return copy

    async def compare(self, before: Path, after: Path, bounds: Bounds = Bounds()) -> DatabaseDiff:  # noqa: B008
        """Of copies of copies: a server changes what it runs on."""
        clones: list[Path] = []
        for name, volume in ((".then", before), (".now", after)):
            clones.append(volume.with_name(name))
            shutil.rmtree(clones[-1], ignore_errors=True)
            _copy(volume, clones[-1])
        then, now = (ThrowAway(self.settings, clone, UID) for clone in clones)
        found = await compare_databases(then, now, bounds)
        assert all(process.find_postmaster(clone / "postgres") is None for clone in clones)
        return found


def _copy(volume: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--reflink=auto", str(volume), str(target)], check=True)


@pytest_asyncio.fixture(loop_scope="module")
async def office() -> AsyncIterator[Office]:
    async with office_database() as database:
        yield Office(database)


def by_name(found: DatabaseDiff) -> dict[str, TableDiff]:
    assert found.problem is None
    return {table.name: table for table in found.tables}


def counts(table: TableDiff) -> tuple[int | None, int | None, int | None]:
    return (table.rows_added, table.rows_removed, table.rows_changed)


async def test_rows_are_told_by_key_or_counted_and_tables_and_columns_by_name(office: Office) -> None:
    await office.run(
        """
        CREATE TABLE keyed (a int, b text, c text, PRIMARY KEY (b, a));
        INSERT INTO keyed SELECT n, 'k' || n % 3, 'value ' || n FROM generate_series(1, 1000) n;
        CREATE TABLE keyless (x int, y text);
        INSERT INTO keyless SELECT n / 10, NULL FROM generate_series(1, 100) n;
        CREATE TABLE gone (id int); INSERT INTO gone VALUES (1), (1), (2);
        CREATE TABLE same (id int PRIMARY KEY); INSERT INTO same SELECT generate_series(1, 1000);
        CREATE TABLE shuffled (id int PRIMARY KEY, n int); INSERT INTO shuffled SELECT n, 1 FROM generate_series(1, 99) n;
        CREATE TABLE shaped (id int PRIMARY KEY, old text, retyped int);
        INSERT INTO shaped VALUES (1, 'x', 5);
        CREATE TABLE parts (id int) PARTITION BY RANGE (id);
        CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE nothing ();
        """
    )
    before = await office.kept()
    await office.run(
        """
        DELETE FROM keyed WHERE a <= 2; UPDATE keyed SET c = NULL WHERE a = 10;
        INSERT INTO keyed VALUES (2000, E'tab\\t\\\\ and\\nline', 'new');
        DELETE FROM keyless WHERE x = 3; INSERT INTO keyless VALUES (1, NULL), (1, NULL), (77, 'seven');
        DROP TABLE gone; CREATE TABLE fresh (id int, word text); INSERT INTO fresh VALUES (1, 'one'), (2, NULL);
        UPDATE shuffled SET n = 2; UPDATE shuffled SET n = 1;
        ALTER TABLE shaped DROP COLUMN old, ADD COLUMN "new" int, ALTER COLUMN retyped TYPE bigint;
        INSERT INTO parts VALUES (5);
        """
    )
    found = by_name(await office.compare(before, await office.kept()))
    assert set(found) == {"keyed", "keyless", "gone", "fresh", "shaped", "parts_low", "nothing"}

    keyed = found["keyed"]
    assert counts(keyed) == (1, 2, 1)
    assert RowDiff("changed", {"b": "k1", "a": "10", "c": "value 10"}, {"b": "k1", "a": "10", "c": None}) in keyed.rows
    assert RowDiff("added", None, {"b": "tab\t\\ and\nline", "a": "2000", "c": "new"}) in keyed.rows
    assert {row.before["a"] for row in keyed.rows if row.change == "removed" and row.before} == {"1", "2"}

    keyless = found["keyless"]
    assert counts(keyless) == (3, 10, 0)
    assert RowDiff("removed", {"x": "3", "y": None}, None, 10) in keyless.rows
    assert RowDiff("added", None, {"x": "1", "y": None}, 2) in keyless.rows

    assert (found["gone"].change, counts(found["gone"])) == ("dropped", (0, 3, 0))
    assert (found["fresh"].change, counts(found["fresh"])) == ("created", (2, 0, 0))
    shaped = found["shaped"]
    assert (shaped.columns_added, shaped.columns_removed, shaped.columns_changed) == (["new"], ["old"], ["retyped"])
    assert counts(shaped) == (0, 0, 0)
    assert counts(found["parts_low"]) == (1, 0, 0)
    assert "no column" in (found["nothing"].problem or "")


async def test_code_of_the_agent_does_not_run_whatever_hangs_on_a_table(office: Office) -> None:
    await office.run(TRAP)
    before = await office.kept()
    await office.run("INSERT INTO prey (n, c) VALUES (4, 'blue'); UPDATE prey SET p = NULL WHERE n = 2")
    await office.run(LOCKED)
    after = await office.kept()
    found = by_name(await office.compare(before, after))
    assert set(found) == {"prey"}
    assert (found["prey"].problem, counts(found["prey"])) == (None, (1, 0, 1))
    changed = RowDiff("changed", {"n": "2", "p": "(blue,4)"}, {"n": "2", "p": None})
    assert changed in found["prey"].rows
    # The traps work: whoever reads in the usual way runs them.
    server = ThrowAway(office.settings, after, UID)
    try:
        await server.start()
        connection = await server.read(60)
        for usual in ("SELECT n FROM public.prey WHERE n > 0", "SELECT c::text FROM public.prey"):
            with pytest.raises(DatabaseError, match="code of the agent ran as tenure_reader"):
                await connection.query(usual)
        for harm in ("CREATE TABLE t ()", "DELETE FROM public.prey", "COPY public.prey TO '/tmp/x'", "SET ROLE agent"):
            with pytest.raises(DatabaseError):
                await connection.query(harm)
        connection.close()
    finally:
        await server.stop()


async def test_names_of_an_agent_are_only_names(office: Office) -> None:
    table, column = 'a"; DROP TABLE keep; --\n', "b' \x1b[31m\u202e; SELECT 1"
    quoted = '"' + table.replace('"', '""') + '"'
    await office.run(f'CREATE TABLE keep (id int); CREATE TABLE {quoted} ("{column}" int PRIMARY KEY)')
    before = await office.kept()
    await office.run(f"INSERT INTO {quoted} VALUES (1)")
    found = by_name(await office.compare(before, await office.kept()))
    assert set(found) == {table}
    assert found[table].rows == [RowDiff("added", None, {column: "1"})]


async def test_what_was_not_compared_is_said_and_the_rest_is_compared(office: Office) -> None:
    await office.run("CREATE TABLE big (t text); CREATE TABLE small (id int PRIMARY KEY, t text)")
    before = await office.kept()
    await office.run(
        "INSERT INTO big SELECT repeat('x', 1000) FROM generate_series(1, 5000);"
        f"INSERT INTO small SELECT n, repeat('y', {VALUE_CHARS_MAX + 1}) FROM generate_series(1, {ROWS_SHOWN_MAX + 5}) n"
    )
    after = await office.kept()
    found = by_name(await office.compare(before, after, Bounds(table_bytes_max=1 << 20)))
    assert counts(found["big"]) == (None, None, None)
    assert "more than 1 MiB" in (found["big"].problem or "")
    assert counts(found["small"]) == (ROWS_SHOWN_MAX + 5, 0, 0)
    assert len(found["small"].rows) == ROWS_SHOWN_MAX
    assert {(row.after or {})["t"] for row in found["small"].rows} == {"y" * VALUE_CHARS_MAX + "…"}
    hurried = await office.compare(before, after, Bounds(time_s=0.01))
    assert "0.01 s" in (hurried.problem or "")
    shutil.rmtree(after / "postgres" / "global")
    broken = await office.compare(before, after)
    assert "did not start" in (broken.problem or "")
    assert broken.tables == []


rows = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, "", "\\N", "\\", "a\tb", "é\n"])), max_size=12)


@settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # an example takes seconds
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
async def test_counts_are_those_of_multisets(office: Office, data: st.DataObject) -> None:
    pairs = [(data.draw(rows), data.draw(rows)) for _ in range(12)]
    kept: list[Path] = []
    for side in (0, 1):
        for number, pair in enumerate(pairs):
            values = ", ".join(f"({n}, {_literal(text)})" for n, text in pair[side])
            await office.run(f"CREATE TABLE IF NOT EXISTS t{number} (n int, t text); DELETE FROM t{number}")
            if values:
                await office.run(f"INSERT INTO t{number} VALUES {values}")
        kept.append(await office.kept())
    found = by_name(await office.compare(kept[0], kept[1]))
    for number, (before, after) in enumerate(pairs):
        added, removed = Counter(after) - Counter(before), Counter(before) - Counter(after)
        told = found.pop(f"t{number}", None)
        assert (counts(told) if told else (0, 0, 0)) == (added.total(), removed.total(), 0)
        shown = (
            [(row.change, tuple((row.before or row.after or {}).values()), row.times) for row in told.rows]
            if told
            else []
        )
        wanted = [("added", (str(n), t), times) for (n, t), times in added.items()]
        wanted += [("removed", (str(n), t), times) for (n, t), times in removed.items()]
        assert sorted(shown, key=repr) == sorted(wanted, key=repr)


def _literal(text: str | None) -> str:
    return "NULL" if text is None else f"convert_from('\\x{text.encode().hex()}', 'UTF8')"
