"""Continuous backups of shared databases: with real WAL, what was committed before a moment is there, and nothing after."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from databases import needs_root
from fixtures.api import eventually
from fixtures.s3 import serve_s3
from shared_databases import Shop, killed_at, shop
from tenure import faultpoints
from tenure.data.shared import backups as backups_module
from tenure.data.shared import moments
from tenure.data.shared.backups import Backups
from tenure.data.shared.places import Place, place_of
from tenure.database import ControlDatabase
from tenure.errors import ArchiveError, InvalidArgument, NotFound, StorageError

pytestmark = needs_root


@pytest.fixture
async def sales(control_database: ControlDatabase) -> AsyncIterator[Shop]:
    """A shared database `sales` with an empty table, backed up to a directory, with a base."""
    async with shop(control_database) as made:
        await made.databases.create("sales", {})
        await made.owner("CREATE TABLE orders (n int)")
        await made.databases.back_up("sales", str(made.settings.home / "backups"), 86_400.0)
        await made.databases.back_up_now("sales")
        yield made


def place(sales: Shop) -> Path:
    return sales.settings.home / "backups"


async def insert(sales: Shop, n: int) -> datetime:
    """A moment after the row was committed and before anything that comes later."""
    await sales.owner(f"INSERT INTO orders VALUES ({n})")
    ((moment,),) = await sales.owner("SELECT clock_timestamp()")
    return datetime.fromisoformat(str(moment))


async def rows(sales: Shop, name: str) -> list[object]:
    return [row[0] for row in await sales.owner("SELECT n FROM orders ORDER BY n", name)]


async def test_a_moment_has_what_was_committed_before_it_and_nothing_after(sales: Shop) -> None:
    await sales.grant("analyst", "write")
    found = [await insert(sales, n) for n in range(3)]
    await sales.databases.back_up_now("sales")
    later = await insert(sales, 3)
    for n, moment in enumerate((*found, later)):
        await sales.databases.restore_to("sales", moment, f"at-{n}")
        assert await rows(sales, f"at-{n}") == list(range(n + 1))
    assert await rows(sales, "sales") == [0, 1, 2, 3], "what it was restored from is as it was"
    assert await sales.databases.grants("at-1") == []
    roles = await sales.owner("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'office:%'", "at-1")
    assert roles == [[0]]
    assert (await sales.databases.get("at-1")).backup is None
    assert (await sales.databases.get("at-1")).origin.startswith("sales@")  # type: ignore[union-attr]
    await sales.owner("INSERT INTO orders VALUES (9)", "at-1")
    assert not list((sales.settings.shared_dir / "at-1").glob("log*"))


async def test_now_can_be_restored_though_nothing_happened_since(sales: Shop) -> None:
    await insert(sales, 1)
    await asyncio.sleep(0)
    await sales.databases.restore_to("sales", datetime.now(UTC), "again")
    assert await rows(sales, "again") == [1]


async def test_a_moment_that_is_not_covered_is_refused_and_nothing_is_left(sales: Shop) -> None:
    with pytest.raises(InvalidArgument, match="There is no backup from which"):
        await sales.databases.restore_to("sales", datetime.now(UTC) - timedelta(days=1), "early")
    plan = (await sales.databases.get("sales")).backup
    assert plan is not None
    with pytest.raises(InvalidArgument, match="There is no backup from which"):  # a moment before the base was copied
        await sales.databases.restore_to("sales", moments.read(plan.line) + timedelta(milliseconds=1), "early")
    with pytest.raises(InvalidArgument, match="not come yet"):
        await sales.databases.restore_to("sales", datetime.now(UTC) + timedelta(days=1), "late")
    await sales.databases.create("plain", {})
    with pytest.raises(NotFound, match="not backed up"):
        await sales.databases.restore_to("plain", datetime.now(UTC), "new")
    assert {one.name for one in await sales.databases.list()} == {"sales", "plain"}


async def test_what_was_archived_survives_the_database_itself(sales: Shop) -> None:
    moment = await insert(sales, 1)
    await insert(sales, 2)
    await sales.databases.back_up_now("sales")
    to = str(place(sales))
    await sales.databases.delete("sales")
    await sales.databases.restore_to("sales", moment, "sales", to)
    assert await rows(sales, "sales") == [1]


async def test_kill_9_of_postgres_and_of_the_server_loses_nothing_that_was_archived(sales: Shop) -> None:
    moments_of: list[datetime] = []
    for n in range(4):
        moments_of.append(await insert(sales, n))
        if n % 2:
            pid = int(
                (sales.settings.shared_dir / "sales" / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0]
            )
            os.kill(pid, signal.SIGKILL)
        else:
            await sales.databases.let_go()
            await sales.again().adopt_all()
    await sales.databases.restore_to("sales", moments_of[2], "then")
    assert await rows(sales, "then") == [0, 1, 2]


async def test_a_segment_that_was_sent_but_not_marked_is_sent_again(sales: Shop) -> None:
    moment = await insert(sales, 1)
    faultpoints.arm("db.segment-sent", 1, faultpoints.Action.RAISE)
    try:
        with pytest.raises(faultpoints.Broken):
            await sales.databases.back_up_now("sales")
    finally:
        faultpoints.disarm()
    await insert(sales, 2)
    await sales.databases.restore_to("sales", moment, "then")
    assert await rows(sales, "then") == [1]


async def test_a_sleeping_databases_last_log_is_shipped_without_waking_it(sales: Shop) -> None:
    await insert(sales, 1)
    await sales.databases.sleep("sales")
    before = len(list(place(sales).rglob("wal/*.gz")))
    await sales.databases.ship()
    await eventually(lambda: len(list(place(sales).rglob("wal/*.gz"))) > before)
    assert (await sales.databases.get("sales")).state == "asleep"


async def test_a_restore_in_place_begins_a_new_line_and_both_pasts_can_be_had(sales: Shop) -> None:
    await insert(sales, 1)
    await sales.databases.take_snapshot("sales", "one")
    before = await insert(sales, 2)
    await sales.databases.back_up_now("sales")
    restored = await sales.databases.restore_snapshot("sales", "one")
    assert restored.database.backup is not None
    with pytest.raises(InvalidArgument, match="There is no backup"):
        await sales.databases.restore_to("sales", datetime.now(UTC), "gap")
    await sales.databases.back_up_now("sales")
    after = await insert(sales, 7)
    for moment, name, expected in ((before, "old", [1, 2]), (after, "new", [1, 7])):
        await sales.databases.restore_to("sales", moment, name)
        assert await rows(sales, name) == expected


async def test_the_log_is_replayed_across_bases_and_a_later_base_is_taken_when_due(sales: Shop) -> None:
    early = await insert(sales, 1)
    await sales.databases.back_up_now("sales")
    await sales.databases.back_up("sales", str(place(sales)), 60.0)
    await sales.databases.ship()
    await eventually(lambda: len(list(place(sales).rglob("base-*"))) == 2)
    await eventually(lambda: not sales.databases._backups._working)  # pyright: ignore[reportPrivateUsage]
    late = await insert(sales, 2)
    await sales.databases.restore_to("sales", early, "early")
    await sales.databases.restore_to("sales", late, "late")
    assert (await rows(sales, "early"), await rows(sales, "late")) == ([1], [1, 2])


async def test_a_damaged_base_or_segment_is_said_so_and_leaves_nothing(sales: Shop) -> None:
    moment = await insert(sales, 1)
    await sales.databases.back_up_now("sales")
    for pattern in ("wal/*.gz", "base-*"):
        victim = sorted(place(sales).rglob(pattern))[-1]
        whole = victim.read_bytes()
        victim.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ArchiveError):
            await sales.databases.restore_to("sales", moment, "broken")
        victim.write_bytes(whole)
        assert {one.name for one in await sales.databases.list()} == {"sales"}
        assert not (sales.settings.shared_dir / "broken").exists()
    await sales.databases.restore_to("sales", moment, "whole")
    assert await rows(sales, "whole") == [1]


class Away(Place):
    """A place that does not answer."""

    def put(self, key: str, pieces: object) -> None:
        raise StorageError("It does not answer.")

    def get(self, key: str) -> Iterator[bytes]:
        raise StorageError("It does not answer.")

    def list(self, prefix: str) -> list[str]:
        raise StorageError("It does not answer.")


async def test_a_place_that_does_not_answer_is_told_and_does_not_fill_the_disk(
    sales: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups: Backups = sales.databases._backups  # pyright: ignore[reportPrivateUsage]
    await insert(sales, 1)
    await sales.databases.sleep("sales")
    monkeypatch.setattr(backups_module, "place_of", lambda to: Away())
    held = sales.databases._held["sales"]  # pyright: ignore[reportPrivateUsage]
    await backups._go_on(held)  # pyright: ignore[reportPrivateUsage]
    plan = (await sales.databases.get("sales")).backup
    assert plan is not None
    assert (plan.problem, plan.base_at is None) == ("It does not answer.", False)
    monkeypatch.setattr(backups_module, "UNSHIPPED_PART_MAX", 0.0)
    await backups._go_on(held)  # pyright: ignore[reportPrivateUsage]
    plan = (await sales.databases.get("sales")).backup
    assert plan is not None
    assert "given up" in plan.problem
    assert plan.base_at is None
    assert not list((sales.settings.shared_dir / "sales" / "postgres" / "pg_wal" / "archive_status").glob("*.ready"))
    monkeypatch.setattr(backups_module, "place_of", place_of)
    await sales.databases.back_up_now("sales")
    plan = (await sales.databases.get("sales")).backup
    assert plan is not None
    assert plan.problem == ""


async def test_places_are_checked(sales: Shop) -> None:
    for to in ("relative/dir", "/a/../b", "s3://", "s3://Bad_Bucket/x", "ftp://x"):
        with pytest.raises(InvalidArgument):
            await sales.databases.back_up("sales", to, 3600.0)
    await sales.databases.back_up_no_more("sales")
    with pytest.raises(NotFound):
        await sales.databases.back_up_now("sales")
    assert list(place(sales).rglob("base-*")), "what was sent stays"


async def test_backups_lie_in_s3_as_well(sales: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_s3() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        await back_up_to_s3(sales, "s3://copies/databases")
        assert all(key.startswith("databases/sales/") for key in s3.copies)


async def back_up_to_s3(sales: Shop, to: str) -> None:
    await sales.databases.back_up("sales", to, 86_400.0)
    await sales.databases.back_up_now("sales")
    moment = await insert(sales, 1)
    await insert(sales, 2)
    await sales.databases.back_up_now("sales")
    await sales.databases.restore_to("sales", moment, "then")
    assert await rows(sales, "then") == [1]


@pytest.mark.parametrize("point", ["db.added", "db.unpacked", "db.replayed", "db.made"])
async def test_a_restore_to_a_moment_that_was_killed_is_undone_and_can_be_had_again(sales: Shop, point: str) -> None:
    moment = await insert(sales, 1)
    await insert(sales, 2)
    await killed_at(sales, point, 1, lambda made: made.databases.restore_to("sales", moment, "then"))
    databases = sales.again()
    await databases.adopt_all()
    assert {one.name for one in await databases.list()} == {"sales"}
    assert not (sales.settings.shared_dir / "then").exists()
    await databases.restore_to("sales", moment, "then")
    assert await rows(sales, "then") == [1]


@pytest.mark.parametrize("point", ["db.base-copied", "db.base-sent", "db.segment-sent"])
async def test_a_server_killed_while_it_backs_up_leaves_no_gap(sales: Shop, point: str) -> None:
    before = await insert(sales, 1)
    await sales.databases.take_snapshot("sales", "one")

    async def back_up(made: Shop) -> None:
        if point != "db.segment-sent":
            await made.databases.restore_snapshot("sales", "one")  # of another line a base is due
        await made.databases.back_up_now("sales")

    await killed_at(sales, point, 1, back_up)
    await sales.again().adopt_all()
    assert not (sales.settings.shared_dir / ".bases" / "sales").exists()
    await sales.databases.back_up_now("sales")
    after = await insert(sales, 2)
    await sales.databases.restore_to("sales", after, "after")
    assert await rows(sales, "after") == [1, 2]
    if point == "db.segment-sent":
        await sales.databases.restore_to("sales", before, "before")
        assert await rows(sales, "before") == [1]


# --- what a moment needs: pure --------------------------------------------------------------------------------------------
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return T0 + timedelta(minutes=minutes)


KEYS = [
    moments.base_key("sales", moments.written(at(0)), at(1)),
    moments.base_key("sales", moments.written(at(0)), at(20)),
    *(moments.segment_key("sales", moments.written(at(0)), f"{n:024X}", at(n)) for n in range(2, 40)),
    moments.base_key("sales", moments.written(at(60)), at(61)),
    moments.segment_key("sales", moments.written(at(60)), f"{3:024X}", at(62)),
    "sales/else/what", "other/x/base-y.tar.gz",
]  # fmt: skip


@pytest.mark.parametrize(
    ("to", "is_all", "base", "first", "last"),
    [
        (1.5, False, 1, 2, 2),
        (10.5, False, 1, 2, 11),
        (20.5, False, 20, 20, 21),
        (39, False, 20, 20, 39),
        (61.5, False, 61, 62, 62),
    ],
)
def test_a_moment_needs_the_base_before_it_and_the_log_from_there(
    to: float, is_all: bool, base: float, first: float, last: float
) -> None:
    found = moments.needed("sales", moments.lines_of("sales", KEYS), at(to), is_all=is_all)
    assert found.base.moment == at(base)
    assert (found.segments[0].moment, found.segments[-1].moment) == (at(first), at(last))


@pytest.mark.parametrize(("to", "is_all"), [(-1, True), (0.5, True), (60.5, True), (39.5, False), (63, False)])
def test_a_moment_without_a_base_or_without_its_log_is_refused(to: float, is_all: bool) -> None:
    with pytest.raises(InvalidArgument):
        moments.needed("sales", moments.lines_of("sales", KEYS), at(to), is_all=is_all)
