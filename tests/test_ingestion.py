"""Files become tables: all of a file or nothing, each content once, and no column is ever lost."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from databases import home_of, needs_root, office_database, postmaster_pid
from ingesting import OWNER, TARGET, Shelf, chunks_of, loaded, loads_over, run_server
from tenure.data.database import OfficeDatabase
from tenure.data.ingestion.loads import Loads
from tenure.data.ingestion.record import Target, Wanted
from tenure.database import ControlDatabase
from tenure.errors import Conflict, InvalidArgument, NotFound
from tenure.faultpoints import Action, arm, disarm

pytest_plugins = ("fixtures.database",)
pytestmark = needs_root

CARS = b'name,mpg,year\nford,18.5,1970-01-01\n"mazda, rx",21,1971-01-01\nfiat,,1972-01-01\n'
KILLED = -signal.SIGKILL


@pytest.fixture
async def database() -> AsyncIterator[OfficeDatabase]:
    async with office_database() as made:
        yield made


@pytest.fixture
async def control(control_database: ControlDatabase) -> ControlDatabase:
    await control_database.execute("insert into agents (name, image, stage) values ('analyst', 'i', 'asleep')")
    return control_database


@pytest.fixture
async def loads(control: ControlDatabase, database: OfficeDatabase) -> AsyncIterator[Loads]:
    async with loads_over(control, database, home_of(database)) as made:
        yield made


async def rows_of(database: OfficeDatabase, statement: str) -> list[list[Any]]:
    return (await database.execute(statement, rows_max=1000)).rows


def spooled(database: OfficeDatabase) -> list[Path]:
    return list((home_of(database) / "loads").glob("*"))


# --- modes ------------------------------------------------------------------------------------------------------------------
async def test_a_file_becomes_a_table_with_sensible_types(loads: Loads, database: OfficeDatabase) -> None:
    done = await loaded(loads, CARS, "My Cars.csv")
    assert (done.state, done.into_table, done.rows_loaded, done.rows_rejected) == ("done", "my_cars", 3, 0)
    assert done.columns == (("name", "text"), ("mpg", "double precision"), ("year", "date"))
    assert await rows_of(database, "select * from my_cars order by year") == [
        ["ford", 18.5, "1970-01-01"],
        ["mazda, rx", 21, "1971-01-01"],
        ["fiat", None, "1972-01-01"],
    ]
    assert spooled(database) == []


async def test_the_same_content_is_loaded_once_and_again_when_that_is_wanted(
    loads: Loads, database: OfficeDatabase
) -> None:
    first = await loaded(loads, CARS)
    second = await loaded(loads, CARS)
    assert (second.state, second.repeats, second.rows_loaded) == ("done", first.id, 3)
    assert await rows_of(database, "select count(*) from data") == [[3]]
    third = await loaded(loads, CARS, wanted=Wanted(again=True))
    assert (third.state, third.repeats) == ("done", None)
    assert await rows_of(database, "select count(*) from data") == [[6]]
    await database.execute("drop table data")
    assert (await loaded(loads, CARS)).repeats is None
    assert await rows_of(database, "select count(*) from data") == [[3]]


async def test_replace_keeps_the_table_and_what_depends_on_it(loads: Loads, database: OfficeDatabase) -> None:
    await loaded(loads, CARS, wanted=Wanted(into="cars"))
    await database.execute(
        "create index by_name on cars (name); create view fords as select * from cars where name = 'ford'"
    )
    await loaded(loads, b"name,mpg,year\nford,1,2000-01-01\n", wanted=Wanted(into="cars", mode="replace"))
    assert await rows_of(database, "select mpg from fords") == [[1]]
    assert await rows_of(database, "select count(*) from pg_indexes where indexname = 'by_name'") == [[1]]
    back = await loaded(loads, CARS, wanted=Wanted(into="cars"))
    assert back.repeats is None, "what was loaded before was replaced since"


async def test_upsert_changes_rows_by_key_and_the_last_one_of_a_file_counts(
    loads: Loads, database: OfficeDatabase
) -> None:
    wanted = Wanted(into="t", mode="upsert", keys=("id",))
    await loaded(loads, b"id,v\n1,a\n2,b\n1,c\n", wanted=wanted)
    done = await loaded(loads, b"id,v\n2,B\n3,d\n,lost\n", wanted=wanted)
    assert await rows_of(database, "select * from t order by id") == [[1, "c"], [2, "B"], [3, "d"]]
    assert (done.rows_loaded, done.rows_rejected) == (2, 1)
    assert await rows_of(database, "select line, raw from t_rejects") == [[4, ",lost\n"]]


async def test_bad_rows_are_kept_with_line_and_reason(loads: Loads, database: OfficeDatabase) -> None:
    body = b"".join(b"%d,x\n" % at for at in range(500))
    done = await loaded(loads, b"n,t\n" + body + b"1,2,3\nwhat,x\n7,\0\n", wanted=Wanted(into="t"))
    assert (done.rows_loaded, done.rows_rejected) == (500, 3)
    found = await rows_of(database, "select load, line, reason from t_rejects order by line")
    assert [row[:2] for row in found] == [[done.id, 502], [done.id, 503], [done.id, 504]]
    assert [row[2] for row in found] == [
        "It has 3 values; 2 make a row.",
        "'what' in the column n is not bigint.",
        "It has a zero character, or bytes that are no character of the file's encoding.",
    ]


async def test_rows_that_only_postgresql_can_judge_are_judged_by_it(loads: Loads, database: OfficeDatabase) -> None:
    await database.execute(
        "create type mood as enum ('good', 'bad'); create table t (n smallint, m mood, code varchar(3), at int[])"
    )
    data = b"n|m|code|at\n1|good|abc|{1,2}\n99999|good|abc|{}\n2|ugly|abc|{}\n3|bad|abcd|{}\n4|bad|x|{\n"
    done = await loaded(loads, data, wanted=Wanted(into="t"))
    assert await rows_of(database, "select n, m, code from t") == [[1, "good", "abc"]]
    assert (done.rows_loaded, done.rows_rejected) == (1, 4)
    assert await rows_of(database, "select line from t_rejects order by line") == [[3], [4], [5], [6]]


@pytest.mark.parametrize("name", ["select", 'we"ird', "xmin", "ä" * 40, "a'; drop table keep; --"])
async def test_names_of_columns_are_names_and_no_sql(loads: Loads, database: OfficeDatabase, name: str) -> None:
    await database.execute("create table keep (x int)")
    quoted = name.replace('"', '""')
    done = await loaded(loads, f'"{quoted}","b"\n1,2\n'.encode(), wanted=Wanted(into="t"))
    assert done.state == "done", done.error
    assert await rows_of(database, "select count(*) from t") == [[1]]
    assert await rows_of(database, "select count(*) from keep") == [[0]]


# --- schema -----------------------------------------------------------------------------------------------------------------
async def test_a_changed_schema_is_asked_about_and_nothing_happens_before_the_answer(
    loads: Loads, database: OfficeDatabase
) -> None:
    await loaded(loads, b"id,v\n1,2\n", wanted=Wanted(into="t"))
    asks = await loaded(loads, b"id,v,extra\nx1,2.5,new\n", wanted=Wanted(into="t"))
    assert asks.state == "waiting"
    assert asks.question == (
        "Loading this would change the table t: id becomes text, it is bigint; v becomes double precision, it is bigint; "
        "a new column extra (text). Allow it?"
    )
    assert await rows_of(database, "select * from t") == [[1, 2]]
    await loads.answer(TARGET, asks.id, allow=True)
    await loads.settled()
    done = await loads.get(TARGET, asks.id)
    assert (done.state, done.rows_loaded) == ("done", 1)
    assert await rows_of(database, "select * from t order by id") == [["1", 2, None], ["x1", 2.5, "new"]]
    assert spooled(database) == []


async def test_a_rejected_answer_ends_the_load_and_leaves_the_table(loads: Loads, database: OfficeDatabase) -> None:
    await loaded(loads, b"id\n1\n", wanted=Wanted(into="t"))
    asks = await loaded(loads, b"id\nx\n", wanted=Wanted(into="t"))
    assert (await loads.answer(TARGET, asks.id, allow=False)).state == "cancelled"
    assert await rows_of(database, "select * from t") == [[1]]
    assert spooled(database) == []
    with pytest.raises(Conflict, match="asks nothing"):
        await loads.answer(TARGET, asks.id, allow=True)


async def test_strict_fails_and_allow_changes(loads: Loads, database: OfficeDatabase) -> None:
    await loaded(loads, b"id\n1\n", wanted=Wanted(into="t"))
    strict = await loaded(loads, b"id,more\n2,x\n", wanted=Wanted(into="t", policy="strict"))
    assert (strict.state, (strict.error or {})["code"]) == ("failed", "conflict")
    done = await loaded(loads, b"id,more\n2,x\n", wanted=Wanted(into="t", policy="allow"))
    assert done.state == "done"
    fewer = await loaded(loads, b"more\ny\n", wanted=Wanted(into="t", policy="strict"))
    assert fewer.state == "done", "a column that the file has not is no change"
    assert await rows_of(database, "select * from t order by more nulls first") == [[1, None], [2, "x"], [None, "y"]]


# --- formats ----------------------------------------------------------------------------------------------------------------
async def test_parquet_excel_and_json_come_with_their_types(
    loads: Loads, database: OfficeDatabase, tmp_path: Path
) -> None:
    import duckdb

    duckdb.sql(
        "copy (select 1 as n, 1.25::decimal(5,2) as d, 'x' as t, date '2020-01-02' as day, [1,2] as l, 'ab'::blob as b, "
        f"timestamptz '2020-01-01 00:00:00+00' as z, 'nan'::double as f) to '{tmp_path}/p.parquet'"
    )
    done = await loaded(loads, (tmp_path / "p.parquet").read_bytes(), "p.parquet")
    assert done.columns is not None, done.error
    assert [kind for _, kind in done.columns] == [
        "bigint", "numeric", "text", "date", "jsonb", "bytea", "timestamptz", "double precision",
    ]  # fmt: skip
    assert await rows_of(database, "select n, d::text, l::text, encode(b, 'escape'), f::text from p") == [
        [1, "1.25", "[1, 2]", "ab", "NaN"]
    ]
    await loaded(loads, b'{"a": 12345678901234567890, "b": {"c": 1.10}}\n', "j.ndjson")
    assert await rows_of(database, "select a::text, b::text from j") == [["12345678901234567890", '{"c": 1.10}']]
    await loaded(loads, _workbook([["name", "n"], ["x", 1], ["y", 2.5]]), "book.xlsx")
    assert await rows_of(database, "select * from book order by n") == [["x", 1], ["y", 2.5]]


def _workbook(rows: list[list[Any]]) -> bytes:
    """The least that a spreadsheet is."""

    def cell(value: Any) -> str:
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{value}</t></is></c>'
        return f"<c><v>{value}</v></c>"

    sheet = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    rel = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="xml" ContentType="application/xml"/>'
        "</Types>",
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{rel}/officeDocument" '
        'Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{rel}"><sheets><sheet name="S" sheetId="1" r:id="r1"/></sheets>'
        "</workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{rel}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{sheet}</sheetData></worksheet>',
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return out.getvalue()


# --- what fails -------------------------------------------------------------------------------------------------------------
async def test_a_body_that_breaks_off_leaves_nothing(loads: Loads, database: OfficeDatabase) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a\n1\n"
        raise ConnectionResetError("the client went away")

    with pytest.raises(Exception, match=r"client went away|cannot be kept"):
        await loads.receive(TARGET, Wanted(into="t"), "data.csv", broken(), by=OWNER)
    assert [one.state for one in await loads.list(TARGET)] == ["failed"]
    assert spooled(database) == []
    assert await rows_of(database, "select to_regclass('t')") == [[None]]


@pytest.mark.parametrize(
    ("data", "name"), [(b"", "x.csv"), (b"PAR1 no", "x.parquet"), (b"[1, 2", "x.json"), (b"PK\3\4zz", "x.xlsx")]
)
async def test_files_that_are_none_fail_with_a_reason(
    loads: Loads, database: OfficeDatabase, data: bytes, name: str
) -> None:
    failed = await loaded(loads, data, name)
    assert failed.state == "failed"
    assert (failed.error or {})["code"] in ("invalid_argument", "too_large"), failed.error
    assert spooled(database) == []


async def test_what_the_table_itself_forbids_fails_as_a_whole(loads: Loads, database: OfficeDatabase) -> None:
    await database.execute("create table t (id bigint primary key)")
    await loaded(loads, b"id\n1\n2\n", wanted=Wanted(into="t"))
    failed = await loaded(loads, b"id\n3\n2\n", wanted=Wanted(into="t"))
    assert (failed.state, (failed.error or {})["code"]) == ("failed", "database")
    assert await rows_of(database, "select * from t order by id") == [[1], [2]]


async def test_unknown_targets_and_wrong_wishes_are_refused_before_anything_is_read(loads: Loads) -> None:
    with pytest.raises(NotFound):
        await loads.receive(Target(agent="nobody"), Wanted(), "x.csv", chunks_of(CARS), by=OWNER)
    for wanted in (
        Wanted(mode="upsert"),
        Wanted(keys=("a",)),
        Wanted(mode="merge"),
        Wanted(into='x"y'),
        Wanted(policy="no"),
    ):
        with pytest.raises(InvalidArgument):
            await loads.receive(TARGET, wanted, "x.csv", chunks_of(CARS), by=OWNER)
    assert await loads.list(TARGET) == []


async def test_by_the_same_key_there_is_one_load_and_a_cut_one_may_be_sent_again(
    loads: Loads, control: ControlDatabase, database: OfficeDatabase
) -> None:
    first = await loaded(loads, CARS, wanted=Wanted(key="k"))
    assert (await loaded(loads, b"other\n1\n", wanted=Wanted(key="k"))).id == first.id
    await control.execute("update loads set state = 'receiving', digest = null where id = %s", (first.id,))
    await loads.tidy()
    cut = await loads.get(TARGET, first.id)
    assert (cut.state, (cut.error or {})["retryable"]) == ("failed", True)
    second = await loaded(loads, CARS, wanted=Wanted(key="k"))
    assert (second.id != first.id, second.state) == (True, "done")


async def test_a_cancelled_load_leaves_nothing(loads: Loads, database: OfficeDatabase) -> None:
    await database.execute("create table t (id bigint)")
    async with database.session(60) as blocker:
        await blocker.query("BEGIN")
        await blocker.query("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        made = await loads.receive(TARGET, Wanted(into="t"), "x.csv", chunks_of(b"id\n1\n"), by=OWNER)
        while (await loads.get(TARGET, made.id)).state != "running":  # noqa: ASYNC110 - it says so in its row only
            await asyncio.sleep(0.01)
        assert (await loads.cancel(TARGET, made.id)).state == "cancelled"
    assert await rows_of(database, "select * from t") == []
    assert spooled(database) == []
    with pytest.raises(Conflict, match="is over"):
        await loads.cancel(TARGET, made.id)


# --- death at any point -------------------------------------------------------------------------------------------------------
BIG = b"id,v\n" + b"".join(b"%d,value %d\n" % (at, at) for at in range(50_000))
BEFORE = [[1, "one"], [60_000, "old"]]
POINTS = ("received", "surveyed", "copy", "move", "commit", "committed")


@pytest.mark.parametrize(
    ("mode", "point"),
    [
        *(("append", point) for point in POINTS if point != "move"),
        ("replace", "move"),
        ("upsert", "move"),
        ("replace", "commit"),
    ],
)
async def test_a_server_killed_at_any_point_leaves_all_or_nothing_and_the_next_one_finishes(
    control: ControlDatabase, database: OfficeDatabase, tmp_path: Path, mode: str, point: str
) -> None:
    await database.execute("create table t (id bigint, v text); insert into t values (1, 'one'), (60000, 'old')")
    (tmp_path / "file.csv").write_bytes(BIG)
    log, home = tmp_path / "fault.log", home_of(database)
    wanted = Wanted(into="t", mode=mode, keys=("id",) if mode == "upsert" else ())
    status = await run_server(control, database, home, tmp_path / "file.csv", f"ingest.{point}/t:1:kill", log, wanted)
    assert status == KILLED
    assert log.read_text().startswith(f"ingest.{point}/t")
    after = await rows_of(database, "select count(*) from t")
    full = {"append": 50_002, "replace": 50_000, "upsert": 50_001}[mode]
    assert after == ([[full]] if point == "committed" else [[2]])
    async with loads_over(control, database, home) as next_server:
        await next_server.tidy()
        await next_server.settled()
        (record,) = await next_server.list(TARGET)
    assert (record.state == "done") is (point != "received"), record.error
    if point == "received":
        assert (record.error or {})["retryable"]
    else:
        assert await rows_of(database, "select count(*) from t") == [[full]]
        assert record.rows_loaded == 50_000
    assert spooled(database) == []


@pytest.mark.parametrize("what", ["parser", "postgresql"])
async def test_a_parser_or_postgresql_killed_in_the_middle_leaves_all_or_nothing(
    loads: Loads, database: OfficeDatabase, what: str
) -> None:
    await database.execute("create table t (id bigint, v text); insert into t values (1, 'one')")
    slow = _Gate()
    real = loads._parsers.read  # pyright: ignore[reportPrivateUsage]

    def read(*args: Any, **kwargs: Any) -> Any:
        return slow.held(real(*args, **kwargs))

    loads._parsers.read = read  # type: ignore[method-assign]
    made = await loads.receive(TARGET, Wanted(into="t"), "x.csv", chunks_of(BIG * 8), by=OWNER)
    await slow.reached.wait()
    if what == "parser":
        victims = [pid for pid in _children(os.getpid()) if "tenure.data.ingestion.parse" in _command(pid)]
        assert len(victims) == 1
        os.kill(victims[0], signal.SIGKILL)
    else:
        os.kill(postmaster_pid(database), signal.SIGKILL)
    slow.go_on.set()
    await loads.settled()
    failed = await loads.get(TARGET, made.id)
    assert failed.state == "failed", failed
    assert await rows_of(database, "select * from t") == [[1, "one"]]
    assert spooled(database) == []
    loads._parsers.read = real  # type: ignore[method-assign]
    assert (await loaded(loads, BIG, wanted=Wanted(into="t"))).state == "done"


class _Gate:
    """Holds a reading after its first piece."""

    def __init__(self) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    def held(self, reading: Any) -> Any:
        gate = self

        class Held:
            async def __aenter__(self) -> Any:
                found = await reading.__aenter__()
                return replace(found, rows=gate._rows(found.rows))

            async def __aexit__(self, *args: Any) -> Any:
                return await reading.__aexit__(*args)

        return Held()

    async def _rows(self, rows: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        first = True
        async for piece in rows:
            yield piece
            if first:
                first = False
                self.reached.set()
                await self.go_on.wait()


def _children(parent: int) -> list[int]:
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat[1]) == parent:
            found.append(int(entry))
    return found


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")


async def test_a_bug_in_the_middle_is_told_and_leaves_nothing(
    loads: Loads, database: OfficeDatabase, tmp_path: Path
) -> None:
    arm("ingest.commit/t", 1, Action.RAISE, log=tmp_path / "log")
    try:
        failed = await loaded(loads, CARS, wanted=Wanted(into="t"))
    finally:
        disarm()
    assert (failed.state, (failed.error or {})["code"]) == ("failed", "internal")
    assert (tmp_path / "log").exists()
    assert await rows_of(database, "select to_regclass('t')") == [[None]]


# --- from addresses -----------------------------------------------------------------------------------------------------------
async def test_what_is_at_an_address_is_fetched_and_what_is_not_fails(
    control: ControlDatabase, database: OfficeDatabase
) -> None:
    shelf = Shelf({"s3://in/cars.csv": CARS})
    async with loads_over(control, database, home_of(database), shelf) as loads:
        made = await loads.fetch(TARGET, Wanted(), "s3://in/cars.csv", by=OWNER)
        lost = await loads.fetch(TARGET, Wanted(), "s3://in/none.csv", by=OWNER)
        await loads.settled()
        assert (await loads.get(TARGET, made.id)).rows_loaded == 3
        assert ((await loads.get(TARGET, lost.id)).error or {})["code"] == "not_found"
