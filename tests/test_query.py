"""What brains and people ask a database: schema, samples, profiles, results. Against a real PostgreSQL, with real names."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from databases import needs_root, office_database
from tenure.data.database import OfficeDatabase
from tenure.data.query import results, sample
from tenure.data.query.describe import TABLES_MAX, describe
from tenure.data.query.profile import BUCKETS, distinct_of_all, profile
from tenure.data.query.results import check_result_name
from tenure.data.query.source import condition, find, literal, query_of
from tenure.data.statements import flaw_of_part
from tenure.errors import DatabaseError, InvalidArgument, InvalidName, NotFound

pytestmark = needs_root
in_module = pytest.mark.asyncio(loop_scope="module")

ODD = '"; drop table people; --'
"""A table's name, as somebody who means harm gives it."""
ODD_QUOTED = '"' + ODD.replace('"', '""') + '"'
SETUP = f"""
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE TABLE people (id serial PRIMARY KEY, name text NOT NULL UNIQUE, mood mood, born date, paid numeric(10,2), facts jsonb,
    twice numeric GENERATED ALWAYS AS (paid * 2) STORED, CHECK (paid IS NULL OR paid >= 0));
COMMENT ON TABLE people IS 'Who there is';
COMMENT ON COLUMN people.paid IS 'in euros';
CREATE INDEX people_born ON people (born);
INSERT INTO people (name, mood, born, paid, facts)
    SELECT 'n' || i, CASE WHEN i % 3 = 0 THEN 'glad' END::mood, DATE '2020-01-01' + i, nullif(i % 10, 0), '{{"a": 1}}'
    FROM generate_series(1, 1000) i;
CREATE TABLE {ODD_QUOTED} (id int REFERENCES people (id), "a""b; --" float8);
INSERT INTO {ODD_QUOTED} SELECT i, i FROM generate_series(1, 20) i;
CREATE SCHEMA other;
CREATE TABLE other.people (lonely int);
CREATE TABLE other.things (n int);
CREATE VIEW glad AS SELECT name FROM people WHERE mood = 'glad';
CREATE TABLE parts (n int, t text) PARTITION BY RANGE (n);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
INSERT INTO parts SELECT i, 'x' FROM generate_series(0, 99) i;
CREATE EXTENSION pg_stat_statements;
ANALYZE
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def db() -> AsyncIterator[OfficeDatabase]:
    async with office_database() as database:
        await database.execute(SETUP)
        yield database


async def one(database: OfficeDatabase, query: str) -> Any:
    return (await database.execute(query)).rows[0][0]


async def untouched(db: OfficeDatabase) -> bool:
    return await one(db, "SELECT count(*) FROM people") == 1000


@in_module
# --- schema -----------------------------------------------------------------------------------------------------------
async def test_a_schema_tells_columns_types_keys_indexes_comments_and_sizes(db: OfficeDatabase) -> None:
    found = await describe(db, table="people")
    (people,) = found.tables
    columns = {column.name: column for column in people.columns}
    assert list(columns) == ["id", "name", "mood", "born", "paid", "facts", "twice"]
    assert (columns["paid"].type, columns["paid"].comment, columns["paid"].nullable) == (
        "numeric(10,2)",
        "in euros",
        True,
    )
    assert columns["mood"].values == ["glad", "sad"]
    assert columns["twice"].generated == "always"
    assert "nextval" in (columns["id"].default or "")
    assert (people.primary_key, people.unique_keys) == (["id"], [["name"]])
    assert (people.kind, people.comment, people.rows_estimate) == ("table", "Who there is", 1000)
    assert {index.name for index in people.indexes} == {"people_pkey", "people_name_key", "people_born"}
    assert people.size_bytes > 50_000
    assert len(people.checks) == 1
    assert found.size_bytes > people.size_bytes
    assert {one.name for one in found.extensions if one.installed} == {"plpgsql", "pg_stat_statements"}


@in_module
async def test_a_schema_has_all_of_the_users_tables_and_nobody_elses(db: OfficeDatabase) -> None:
    await db.execute("SELECT 1", key="makes tenure.effects")
    found = await describe(db)
    names = [(table.in_schema, table.name) for table in found.tables]
    assert names == [
        ("other", "people"),
        ("other", "things"),
        ("public", ODD),
        ("public", "glad"),
        ("public", "parts"),
        ("public", "people"),
    ]
    odd = found.tables[2]
    assert [(key.columns, key.table, key.references) for key in odd.foreign_keys] == [(["id"], "public.people", ["id"])]
    assert found.tables[3].definition is not None
    assert (found.tables[4].kind, found.tables[4].size_bytes > 0) == ("partitioned table", True)


@in_module
async def test_a_schema_is_bounded_and_can_be_narrowed(db: OfficeDatabase) -> None:
    found = await describe(db, limit=2)
    assert (len(found.tables), found.more) == (2, True)
    assert [table.name for table in (await describe(db, like="GLA")).tables] == ["glad"]
    assert (await describe(db, like="' OR true --")).tables == []
    with pytest.raises(InvalidArgument):
        await describe(db, limit=TABLES_MAX + 1)


@in_module
async def test_names_are_found_as_sql_would_and_errors_name_those_there_are(db: OfficeDatabase) -> None:
    assert (await find(db, "people")).schema == "public"
    assert (await find(db, "other.people")).schema == "other"
    assert (await find(db, "things")).schema == "other"
    assert (await find(db, ODD)).name == ODD
    with pytest.raises(NotFound, match="Did you mean people") as raised:
        await find(db, "peoples")
    assert "glad" in raised.value.hint
    for name in ("pg_class", "pg_catalog.pg_authid", "information_schema.tables", "tenure.effects", '"people"'):
        with pytest.raises(NotFound):
            await find(db, name)


# --- what somebody wrote ----------------------------------------------------------------------------------------------
OUT_OF_PLACE = [
    "true; DROP TABLE people",
    "true); DROP TABLE people; --",
    "true) UNION SELECT 1 --",
    "true /* and",
    "name = 'x",
    'name = "x',
    "name = $$ x",
    "name = E'x\\'",
    "true) OR (true",
    "n[1",
    "true; COMMIT; DROP TABLE people; SELECT (true",
]


@in_module
@pytest.mark.parametrize("text", OUT_OF_PLACE)
async def test_a_condition_does_not_get_out_of_its_place(text: str, db: OfficeDatabase) -> None:
    for ask in (
        sample.sample(db, "people", where=text),
        profile(db, "people", where=text),
    ):
        with pytest.raises(InvalidArgument):
            await ask
    assert await untouched(db)


@in_module
@pytest.mark.parametrize(
    "text",
    [
        "name = 'it''s; --' OR true",
        "name = E'\\'; --' OR true",
        "true -- a remark; with a semicolon",
        "true /* a /* nested */ ; remark */",
        "name = $x$ ; $x$ OR (array[1,2])[1] = 1",
        "\"name\" IS NOT NULL AND (facts ->> 'a') = '1'",
        "id IN (SELECT id FROM people)",
    ],
)
async def test_a_condition_may_be_any_expression(text: str, db: OfficeDatabase) -> None:
    assert len((await sample.sample(db, "people", where=text, rows=3)).rows) == 3


@in_module
@pytest.mark.parametrize(
    "text",
    [
        "(SELECT set_config('transaction_read_only', 'off', true)) = 'off'",
        "nextval('people_id_seq') > 0",
        "lo_creat(-1) > 0",
        "pg_read_file('/etc/passwd') = ''",
    ],
)
async def test_a_condition_changes_nothing_and_reaches_no_file(text: str, db: OfficeDatabase) -> None:
    with pytest.raises(DatabaseError):
        await sample.sample(db, "people", where=text)
    assert await untouched(db)


PIECES = st.lists(
    st.sampled_from(
        [
            "'",
            "''",
            '"',
            "(",
            ")",
            "[",
            "]",
            ";",
            "--",
            "\n",
            "/*",
            "*/",
            "$$",
            "$a$",
            "E'",
            "\\",
            "a",
            " ",
            "1",
            ",",
            "U&'",
        ]
    ),
    max_size=14,
).map("".join)


@in_module
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PIECES)
async def test_what_is_taken_for_a_part_of_a_statement_is_one_to_postgresql(db: OfficeDatabase, text: str) -> None:
    """Whatever passes the check, PostgreSQL reads what stands after it as it was meant."""
    if flaw_of_part(text) is not None:
        return
    try:
        found = await db.execute(f"SELECT 1 WHERE (\n{text}\n) IS NULL OR true UNION ALL SELECT 2", read_only=True)
    except DatabaseError:
        return  # no expression, but nothing else either
    assert [row[0] for row in found.rows][-1:] == [2]


@in_module
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_text_is_a_value_and_nothing_else(db: OfficeDatabase, text: str) -> None:
    assert await one(db, f"SELECT {literal(text)}") == text


def test_text_that_postgresql_has_none_of_is_refused() -> None:
    for text in ("a\0b", "\ud800"):
        with pytest.raises(InvalidArgument):
            literal(text)


@in_module
# --- samples ----------------------------------------------------------------------------------------------------------
async def test_a_sample_is_the_same_for_the_same_seed_and_another_for_another(db: OfficeDatabase) -> None:
    first, again, other = [
        (await sample.sample(db, "people", rows=5, seed=seed, columns=["id"])).rows for seed in (7, 7, 8)
    ]
    assert first == again != other
    assert len({row[0] for row in first}) == 5


@in_module
async def test_a_sample_is_of_the_columns_and_rows_asked_for(db: OfficeDatabase) -> None:
    found = await sample.sample(db, ODD, columns=['a"b; --'], where='"a""b; --" > 15', rows=3)
    assert found.columns == ['a"b; --']
    assert len(found.rows) == 3
    assert all(row[0] > 15 for row in found.rows)
    assert len((await sample.sample(db, "glad", rows=4)).rows) == 4
    assert len((await sample.sample(db, "parts", rows=4)).rows) == 4
    with pytest.raises(DatabaseError):
        await sample.sample(db, "people", columns=['id", (select 1) as "x'])


@in_module
async def test_of_a_large_table_pages_are_drawn_and_a_rare_row_is_still_found(
    db: OfficeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "WHOLE_PAGES_MAX", 3)
    monkeypatch.setattr(sample, "PAGES_WANTED", 2)
    assert " TABLESAMPLE " in sample.drawn(await find(db, "people"), 0)
    first = await sample.sample(db, "people", rows=5, seed=3)
    assert first.rows == (await sample.sample(db, "people", rows=5, seed=3)).rows
    assert len((await sample.sample(db, "people", rows=5, where="id = 977")).rows) == 1


@in_module
# --- profiles ---------------------------------------------------------------------------------------------------------
async def test_a_profile_says_what_is_true_of_the_column(db: OfficeDatabase) -> None:
    found = await profile(db, "people")
    columns = {column.name: column for column in found.columns}
    assert (found.rows, found.rows_estimate, found.sampled) == (1000, 1000, False)
    paid = columns["paid"]
    numbers = [i % 10 for i in range(1, 1001) if i % 10]
    assert (paid.nulls, paid.distinct, paid.min, paid.max) == (100, 9, 1, 9)
    assert paid.mean == pytest.approx(statistics.mean(numbers))
    assert paid.stddev == pytest.approx(statistics.stdev(numbers))
    assert paid.quantiles["0.5"] == 5
    assert sum(bucket.count for bucket in paid.histogram) == 900
    assert (paid.histogram[0].low, paid.histogram[-1].high, len(paid.histogram)) == (1, 9, BUCKETS)
    assert [(top.value, top.count) for top in columns["mood"].top] == [("glad", 333)]
    assert columns["mood"].nulls == 667
    name = columns["name"]
    assert (name.distinct, name.length_min, name.length_max, name.empty) == (1000, 2, 5, 0)
    assert (columns["born"].min, columns["born"].max) == ("2020-01-02", "2022-09-27")
    assert columns["facts"].distinct == 1


@in_module
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("float8", "'NaN'), ('Infinity'), ('-Infinity'), ('1e308'), ('1'), ('2'), (NULL"),
        ("numeric", "'NaN'), (1e400::numeric), (1), (NULL"),
        ("timestamptz", "'infinity'), ('-infinity'), ('2020-01-01'), (NULL"),
        ("date", "'4713-01-01 BC'), ('294276-01-01'), (NULL"),
        ("int8", "9223372036854775807), (-9223372036854775808"),
        ("text", "''), (NULL), (repeat('x', 100000)), (E'\\\\t'"),
        ("bytea", "'\\x00'), (NULL"),
        ("json", """'{"a": null}'), (NULL"""),
        ("xid", "'1'), (NULL"),
        ("point", "'(1,2)'), (NULL"),
        ("int[]", "'{1,2}'), (NULL"),
        ("bool", "true), (false), (NULL"),
        ("interval", "'1 day'), (NULL"),
    ],
)
async def test_every_type_has_a_profile(kind: str, values: str, db: OfficeDatabase) -> None:
    await db.execute(f"DROP TABLE IF EXISTS typed; CREATE TABLE typed (c {kind}); INSERT INTO typed VALUES ({values})")
    rows = values.count("), (") + 1
    try:
        (column,) = (await profile(db, "typed")).columns
    finally:
        await db.execute("DROP TABLE typed")
    assert column.nulls == values.count("NULL")
    assert column.distinct == rows - column.nulls
    assert json.dumps(column.histogram, default=str, allow_nan=False)
    for value in (column.mean, column.stddev):
        assert value is None or math.isfinite(value)


@in_module
async def test_an_empty_table_and_one_without_columns_have_profiles(db: OfficeDatabase) -> None:
    await db.execute("CREATE TABLE empty (n int, t text); CREATE TABLE bare ()")
    try:
        found = await profile(db, "empty")
        assert (found.rows, [column.distinct for column in found.columns]) == (0, [0, 0])
        assert (await profile(db, "bare")).columns == []
        assert (await profile(db, "empty", where="false")).rows == 0
    finally:
        await db.execute("DROP TABLE empty, bare")


@in_module
async def test_a_large_table_is_not_looked_at_whole_and_the_estimate_is_near(
    db: OfficeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tenure.data.query.profile as module

    await db.execute(
        "CREATE TABLE large AS SELECT i AS unique_number, i % 50 AS few, md5(i::text) AS text FROM generate_series(1, 60000) i;"
        "ANALYZE large"
    )
    monkeypatch.setattr(module, "PAGES_MAX", 60)
    try:
        found = await profile(db, "large")
        assert found.sampled
        assert 1_000 < found.rows < 20_000
        assert found.rows_estimate == pytest.approx(60_000, rel=0.05)
        columns = {column.name: column for column in found.columns}
        assert columns["few"].distinct == 50
        assert columns["unique_number"].distinct == pytest.approx(60_000, rel=0.1)
        assert await profile(db, "large") == found
    finally:
        await db.execute("DROP TABLE large")


@in_module
async def test_of_a_table_named_by_somebody_who_means_harm_all_can_be_asked(db: OfficeDatabase) -> None:
    (column,) = (await profile(db, ODD, columns=['a"b; --'])).columns
    assert (column.min, column.max) == (1, 20)
    assert await untouched(db)
    with pytest.raises(InvalidArgument, match="no column"):
        await profile(db, ODD, columns=["x"])


@given(st.integers(1, 10_000), st.integers(1, 100), st.data())
def test_an_estimate_lies_between_what_was_seen_and_what_there_can_be(
    rows: int, factor: int, data: st.DataObject
) -> None:
    distinct = data.draw(st.integers(1, rows))
    once = data.draw(st.integers(0, distinct))
    estimate = distinct_of_all(distinct, once, rows, rows, rows * factor)
    assert distinct <= estimate <= rows * factor


@in_module
# --- results ----------------------------------------------------------------------------------------------------------
async def test_a_result_is_a_table_that_says_who_made_it_when_and_of_what(db: OfficeDatabase) -> None:
    saved = await results.save(db, "by_mood", "SELECT mood, count(*) AS n FROM people GROUP BY 1;", by="run_1")
    assert (saved.name, saved.table, saved.made_by, saved.columns) == (
        "by_mood",
        "results.by_mood",
        "run_1",
        ["mood", "n"],
    )
    assert saved.query == "SELECT mood, count(*) AS n FROM people GROUP BY 1"
    assert saved.rows_estimate == 2
    assert await one(db, "SELECT sum(n) FROM results.by_mood") == 1000
    assert [result.name for result in await results.list_results(db)] == ["by_mood"]
    assert (await results.read(db, "by_mood", where="mood = 'glad'")).rows == [["glad", 333]]
    await results.drop(db, "by_mood")
    with pytest.raises(NotFound):
        await results.read(db, "by_mood")
    assert await one(db, "SELECT to_regclass('results.by_mood') IS NULL") is True


@in_module
async def test_a_result_is_replaced_whole_or_not_at_all_and_may_read_the_one_before(db: OfficeDatabase) -> None:
    await results.save(db, "r", "SELECT 1 AS n", by="a")
    await results.save(db, "r", "SELECT n + 1 AS n FROM results.r", by="b")
    assert (await results.read(db, "r")).rows == [[2]]
    with pytest.raises(DatabaseError):
        await results.save(db, "r", "SELECT 1 / 0", by="c")
    assert (await results.read(db, "r")).rows == [[2]]
    assert (await results.get(db, "r")).made_by == "b"


@in_module
async def test_a_result_is_saved_once_per_key(db: OfficeDatabase) -> None:
    await db.execute("CREATE SEQUENCE IF NOT EXISTS counted")
    for _ in range(2):
        await results.save(db, "once", "SELECT nextval('counted') AS n", by="a", key="a key of a result")
    assert (await results.read(db, "once")).rows == [[1]]


@in_module
async def test_results_saved_at_the_same_time_do_not_meet(db: OfficeDatabase) -> None:
    await asyncio.gather(*(results.save(db, "same", f"SELECT {n} AS n", by=str(n)) for n in range(6)))
    saved = await results.get(db, "same")
    assert (await results.read(db, "same")).rows == [[int(saved.made_by)]]


@in_module
@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1; DROP TABLE people",
        "SELECT 1); DROP TABLE people; --",
        "DELETE FROM people",
        "WITH gone AS (DELETE FROM people RETURNING 1) SELECT * FROM gone",
        "COPY people TO PROGRAM 'id'",
        ";",
        "SELECT 1 INTO public.x",
    ],
)
async def test_only_a_query_is_saved(query: str, db: OfficeDatabase) -> None:
    with pytest.raises((InvalidArgument, DatabaseError)):
        await results.save(db, "never", query, by="a")
    assert await untouched(db)
    with pytest.raises(NotFound):
        await results.get(db, "never")


@pytest.mark.parametrize("name", ["", "A", "1a", 'a"; drop table people; --', "a" * 61, "~a", "a-b", "a.b", "a\n"])
def test_names_of_results_are_names(name: str) -> None:
    with pytest.raises(InvalidName):
        check_result_name(name)


@in_module
async def test_an_expired_result_is_gone_at_once_and_dropped_with_the_next(db: OfficeDatabase) -> None:
    await results.save(db, "short", "SELECT 1", by="a", expires_s=3600)
    assert (await results.get(db, "short")).expires_at is not None
    await db.execute("UPDATE tenure.results SET expires_at = now() - interval '1 second' WHERE name = 'short'")
    with pytest.raises(NotFound):
        await results.read(db, "short")
    assert "short" not in [one.name for one in await results.list_results(db)]
    assert await one(db, "SELECT to_regclass('results.short') IS NOT NULL") is True
    await results.save(db, "next", "SELECT 1", by="a")
    assert await one(db, "SELECT to_regclass('results.short') IS NULL") is True


def test_a_query_is_one() -> None:
    assert query_of(" SELECT ';' ; ") == "SELECT ';'"
    assert condition(None) == ""
    assert condition("  ") == ""
