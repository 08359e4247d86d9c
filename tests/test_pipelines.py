"""A pipeline loads each content once, by its times and as it arrives, and nothing that came while no server ran is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from databases import home_of, needs_root, office_database
from ingesting import OWNER, TARGET, Shelf, loads_over
from tenure.data.database import OfficeDatabase
from tenure.data.ingestion.pipeline import PipelineStore
from tenure.data.ingestion.pipelines import Pipelines
from tenure.data.ingestion.record import Wanted
from tenure.data.ingestion.store import LoadStore
from tenure.database import ControlDatabase
from tenure.errors import AlreadyExists, InvalidArgument

pytest_plugins = ("fixtures.database",)
pytestmark = needs_root

START = datetime(2026, 1, 1, tzinfo=UTC)


class Desk:
    """Pipelines over a shelf, with a clock that stands."""

    def __init__(self, control: ControlDatabase, database: OfficeDatabase) -> None:
        self._control, self.database = control, database
        self.shelf, self.now = Shelf(), START

    async def look(self, wake: str | None = None) -> list[str]:
        """What a server of its own loads when its time has come; the sources of all loads."""
        home: Path = home_of(self.database)
        async with loads_over(self._control, self.database, home, self.shelf) as loads:
            await loads.tidy()
            made = self.over(loads)
            if wake:
                made.wake(wake)
            await made.run_due()
            await loads.settled()
            return sorted(f"{one.source} {one.state}" for one in await loads.list(TARGET))

    def over(self, loads: object) -> Pipelines:
        rows = LoadStore(self._control)
        return Pipelines(PipelineStore(self._control), rows, loads, self.shelf, now=lambda: self.now)  # type: ignore[arg-type]

    async def create(self, name: str = "p", source: str = "s3://in/", **how: object) -> None:
        home = home_of(self.database)
        async with loads_over(self._control, self.database, home, self.shelf) as loads:
            await self.over(loads).create(name, TARGET, source, Wanted(into="t"), by=OWNER, **how)  # type: ignore[arg-type]

    async def rows(self) -> int:
        return (await self.database.execute("select count(*) from t")).rows[0][0]


@pytest.fixture
async def desk(control_database: ControlDatabase) -> AsyncIterator[Desk]:
    await control_database.execute("insert into agents (name, image, stage) values ('analyst', 'i', 'asleep')")
    async with office_database() as database:
        yield Desk(control_database, database)


async def test_what_is_there_is_loaded_at_once_and_what_is_new_at_its_time(desk: Desk) -> None:
    desk.shelf.files["s3://in/a.csv"] = b"id\n1\n"
    await desk.create(every_s=3600)
    assert await desk.look() == ["s3://in/a.csv done"]
    desk.shelf.files["s3://in/b.csv"] = b"id\n2\n3\n"
    assert len(await desk.look()) == 1, "its time has not come"
    desk.now += timedelta(seconds=3601)
    assert await desk.look() == ["s3://in/a.csv done", "s3://in/b.csv done"]
    assert await desk.rows() == 3


async def test_an_arrival_is_loaded_when_it_is_told_and_also_when_nobody_was_there_to_hear(desk: Desk) -> None:
    await desk.create(on_arrival=True)
    assert await desk.look() == []
    desk.shelf.files["s3://in/a.csv"] = b"id\n1\n"
    assert await desk.look(wake="other") == []
    assert await desk.look(wake="in") == ["s3://in/a.csv done"]
    desk.shelf.files["s3://in/b.csv"] = b"id\n2\n"
    desk.now += timedelta(seconds=61)
    assert len(await desk.look()) == 2, "no event was needed"


async def test_the_same_content_under_another_name_or_version_is_in_the_table_once(desk: Desk) -> None:
    desk.shelf.files["s3://in/a.csv"] = desk.shelf.files["s3://in/copy.csv"] = b"id\n1\n"
    await desk.create(every_s=60)
    await desk.look()
    assert await desk.rows() == 1
    desk.shelf.files["s3://in/a.csv"] = b"id\n7\n"
    desk.now += timedelta(seconds=61)
    assert len(await desk.look()) == 3
    assert await desk.rows() == 2


async def test_a_file_that_failed_for_good_is_not_tried_again_until_it_changes(desk: Desk) -> None:
    desk.shelf.files["s3://in/a.csv"] = b""
    await desk.create(every_s=60)
    assert await desk.look() == ["s3://in/a.csv failed"]
    desk.now += timedelta(seconds=61)
    assert await desk.look() == ["s3://in/a.csv failed"]
    desk.shelf.files["s3://in/a.csv"] = b"id\n1\n"
    desk.now += timedelta(seconds=61)
    assert await desk.look() == ["s3://in/a.csv done", "s3://in/a.csv failed"]


async def test_a_paused_pipeline_rests_and_a_resumed_one_catches_up(
    desk: Desk, control_database: ControlDatabase
) -> None:
    await desk.create(every_s=60)
    store = PipelineStore(control_database)
    await store.set_paused("p", True, None)
    desk.shelf.files["s3://in/a.csv"] = b"id\n1\n"
    desk.now += timedelta(days=1)
    assert await desk.look(wake="in") == []
    await store.set_paused("p", False, desk.now)
    assert await desk.look() == ["s3://in/a.csv done"]


async def test_wrong_pipelines_are_refused(desk: Desk) -> None:
    await desk.create()
    with pytest.raises(AlreadyExists):
        await desk.create()
    with pytest.raises(InvalidArgument, match="one time"):
        await desk.create("q", every_s=60, cron="* * * * *")
    with pytest.raises(InvalidArgument, match="cron"):
        await desk.create("q", cron="every day")
    with pytest.raises(InvalidArgument, match="interval"):
        await desk.create("q", every_s=1)
    with pytest.raises(InvalidArgument, match="arrive"):
        await desk.create("q", source="https://example.org/x.csv", on_arrival=True)
