"""Losing the machine loses at most the interval: what is due is made, what a chain needs is kept, and failures are told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fixtures.s3 import S3, serve_s3
from tenure.archive_head import put_in_order, read_head
from tenure.channels.inbox import Inbox
from tenure.database import ControlDatabase
from tenure.errors import InvalidArgument, NotFound, StorageError, TenureError
from tenure.export_keys import new_key
from tenure.offices.archives import s3 as s3_places
from tenure.offices.archives import schedule
from tenure.offices.archives.exports import Exports
from tenure.offices.archives.schedule import ExportRecord, ScheduleRecord, after_failure, after_success
from tenure.offices.archives.schedules import Wanted
from tenure.offices.archives.store import ExportStore
from tenure.offices.archives.unpack import Unpacker
from tenure.offices.models import Limits, OfficeRecord
from tenure.offices.store import OfficeStore
from tenure.offices.volumes import DirectoryDriver
from tenure.settings import Settings
from tenure.work.carried import CarriedRuns
from tenure.work.runs import Runs

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR_S = 3600.0
PLAYBOOK = "name: look\nsteps:\n  - id: look\n    run: echo hello\n"


# --- the rules -----------------------------------------------------------------------------------------------------------
def a_schedule(**changes: Any) -> ScheduleRecord:
    record = ScheduleRecord("analyst", "s3://copies/kept/", HOUR_S, 4, 2, None, NOON, 0, None, NOON)
    return replace(record, **changes)


def made(number: int, base: int | None, **changes: Any) -> ExportRecord:
    record = ExportRecord(
        id=str(number),
        agent="analyst",
        base=None if base is None else str(base),
        destination=f"s3://copies/kept/{number}",
        state="done",
        key_id=None,
        scheduled=True,
        size_bytes=1,
        error=None,
        created_at=NOON + timedelta(hours=number),
        finished_at=None,
    )
    return replace(record, **changes)


@given(st.floats(60, 10**7), st.floats(0, 10**9))
def test_the_next_time_is_ahead_and_in_the_rhythm(every_s: float, late_s: float) -> None:
    now = NOON + timedelta(seconds=late_s)
    following = after_success(NOON, now, every_s)
    assert now < following <= now + timedelta(seconds=every_s * 1.001 + 1)


def test_failures_are_tried_again_ever_later_but_within_the_interval() -> None:
    pauses = [(after_failure(NOON, count, 1000.0) - NOON).total_seconds() for count in range(1, 10)]
    assert pauses == [60, 120, 240, 480, 960, 1000, 1000, 1000, 1000]
    assert (after_failure(NOON, 10**6, 10**9) - NOON).total_seconds() == schedule.RETRY_MAX_S


def test_every_fourth_is_whole_and_the_others_continue_the_one_before() -> None:
    exports: list[ExportRecord] = []
    for number in range(9):
        base = schedule.base_for_next(exports, a_schedule())
        exports.append(made(number, None if base is None else int(base)))
    assert [one.base for one in exports] == [None, "0", "1", "2", None, "4", "5", "6", None]


def test_another_key_or_place_begins_a_new_chain() -> None:
    exports = [made(0, None)]
    assert schedule.base_for_next(exports, a_schedule()) == "0"
    assert schedule.base_for_next(exports, a_schedule(key_id="k")) is None
    assert schedule.base_for_next(exports, a_schedule(destination="s3://copies/other/")) is None
    assert schedule.base_for_next([made(1, 0)], a_schedule()) is None  # the whole one is gone


@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 4))
@hypothesis_settings(deadline=None)
def test_what_is_kept_can_always_be_brought_back(count: int, full_every: int, chains_kept: int) -> None:
    """After each deletion, whenever it is broken off, each export that is left has all that it continues."""
    wanted = a_schedule(full_every=full_every, chains_kept=chains_kept)
    there: list[ExportRecord] = []
    for number in range(count):
        base = schedule.base_for_next(there, wanted)
        there.append(made(number, None if base is None else int(base)))
        for old in schedule.outdated(there, wanted):
            there.remove(old)
            ids = {one.id for one in there}
            assert all(one.base is None or one.base in ids for one in there)
        assert len(schedule.chains(there)) <= chains_kept
        assert there[-1].id == str(number)


# --- carried out -----------------------------------------------------------------------------------------------------------
@dataclass
class StubOffice:
    """What an export needs of an office: a volume that holds still."""

    record: OfficeRecord
    volume: Path
    log: Any = field(default_factory=lambda: SimpleNamespace(write=lambda *_: None))

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncGenerator[None]:
        yield


@dataclass
class Stage:
    """One machine with one office, an S3 and a clock."""

    exports: Exports
    store: ExportStore
    inbox: Inbox
    office: StubOffice
    s3: S3
    now: list[datetime]
    home: Path

    async def pass_(self, **period: float) -> None:
        self.now[0] += timedelta(**period)
        await self.exports.schedules.run_due()
        await self.exports.settled()

    async def states(self) -> list[str]:
        return [one.state for one in await self.store.of_agent("analyst")]

    def chain_of_last(self, name: str) -> Path:
        """Unpacks the newest in S3 with all that it continues."""
        heads = {read_head(_reader(data)).id: data for data in self.s3.copies.values()}
        wanted, chain = read_head(_reader(self.s3.copies[max(self.s3.copies)])), []
        while True:
            chain.append(wanted)
            if wanted.base is None:
                break
            wanted = read_head(_reader(heads[wanted.base]))
        order = put_in_order([(head.id, head.base) for head in chain])
        volume = self.home / name
        volume.mkdir()
        unpacker = Unpacker(volume, lambda _: 2**30)
        for place in order:
            unpacker.apply(_reader(heads[chain[place].id]), None)
        unpacker.close()
        return volume


def _reader(data: bytes) -> Callable[[int], bytes]:
    import io

    return io.BytesIO(data).read


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with serve_s3() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(s3_places, "RETRIES_MAX", 0)
        yield s3


@pytest.fixture
async def stage(control_database: ControlDatabase, s3: S3, tmp_path: Path) -> AsyncIterator[Stage]:
    settings = Settings(home=tmp_path)
    driver = DirectoryDriver()
    record = await OfficeStore(control_database).add("analyst", "image", Limits(), [])
    office = StubOffice(record, settings.volumes_dir / "analyst")
    await driver.create_empty(office.volume)
    (office.volume / "rootfs").mkdir()
    (office.volume / "objects").mkdir()
    (office.volume / "rootfs/word").write_text("first")

    async def find(name: str) -> StubOffice:
        if name != "analyst":
            raise NotFound("There is no such agent.")
        return office

    now = [NOON]

    def make() -> Exports:
        parts: Any = SimpleNamespace(settings=settings, volumes=driver)
        offices: Any = SimpleNamespace(office=find)
        store, inbox = ExportStore(control_database), Inbox(control_database)
        history = CarriedRuns(control_database)
        return Exports(store, parts, offices, history, inbox, now=lambda: now[0])

    made_ = Stage(make(), ExportStore(control_database), Inbox(control_database), office, s3, now, tmp_path)
    made_.restart = make  # type: ignore[attr-defined]
    yield made_
    await made_.exports.close()


async def test_a_copy_is_made_at_once_and_then_whenever_it_is_due(stage: Stage) -> None:
    await stage.exports.schedules.keep("analyst", Wanted("s3://copies/kept", HOUR_S))
    await stage.pass_()
    assert len(stage.s3.copies) == 1
    await stage.pass_(minutes=59)
    assert len(stage.s3.copies) == 1
    (stage.office.volume / "rootfs/word").write_text("second")
    await stage.pass_(minutes=1)
    assert len(stage.s3.copies) == 2
    assert (stage.chain_of_last("lost") / "rootfs/word").read_text() == "second"
    await stage.pass_(hours=10)  # the machine slept: one is made, not ten
    assert len(stage.s3.copies) == 3
    await stage.exports.schedules.stop("analyst")
    await stage.pass_(hours=10)
    assert len(stage.s3.copies) == 3


async def test_chains_are_whole_and_old_ones_go(stage: Stage) -> None:
    await stage.exports.schedules.keep("analyst", Wanted("s3://copies/kept/", HOUR_S, None, 3, 2))
    for number in range(10):
        (stage.office.volume / f"rootfs/{number}").write_text("x")
        await stage.pass_(hours=1)
    bases = [one.base for one in await stage.store.scheduled_of("analyst")]
    assert [base is None for base in bases] == [True, False, False, True]
    assert len(stage.s3.copies) == 4
    arrived = stage.chain_of_last("arrived")
    assert {f"{number}" for number in range(10)} <= {path.name for path in (arrived / "rootfs").iterdir()}
    assert len(list((stage.home / "exports/index").iterdir())) == 1  # only the last one is continued


async def test_a_schedule_survives_its_server(stage: Stage) -> None:
    await stage.exports.schedules.keep("analyst", Wanted("s3://copies/kept", HOUR_S))
    await stage.pass_()
    stage.exports = stage.restart()  # type: ignore[attr-defined]
    await stage.exports.tidy()
    await stage.pass_(hours=1)
    made_ = await stage.store.scheduled_of("analyst")
    assert [one.base for one in made_] == [None, made_[0].id]


async def test_an_s3_that_is_away_is_tried_again_and_a_person_is_told_once(stage: Stage) -> None:
    await stage.exports.schedules.keep("analyst", Wanted("s3://copies/kept", HOUR_S))
    await stage.pass_()
    stage.s3.broken = True
    await stage.pass_(hours=1)
    for minutes in (1, 2, 4, 8):
        await stage.pass_(minutes=minutes - 0.1)
        await stage.pass_(minutes=0.1)
    assert await stage.states() == ["done", *["failed"] * 5]
    kept = await stage.exports.schedules.of("analyst")
    assert kept is not None
    assert (kept.failures, "503" in str(kept.last_error)) == (5, True)
    [message] = await stage.inbox.list()
    assert "analyst" in message.subject
    assert "503" in message.body
    assert stage.s3.environment["AWS_SECRET_ACCESS_KEY"] not in message.body
    stage.s3.broken = False
    await stage.pass_(hours=1)
    kept = await stage.exports.schedules.of("analyst")
    assert kept is not None
    assert (kept.failures, kept.last_error) == (0, None)
    assert (await stage.store.scheduled_of("analyst"))[-1].base is not None  # the chain goes on
    assert len(stage.s3.copies) == 2


async def test_what_a_dead_server_was_making_is_no_copy(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    await stage.exports.schedules.keep("analyst", Wanted("s3://copies/kept", HOUR_S))
    real_done = ExportStore.done

    async def never(*_: object) -> None:
        raise StorageError("died")

    monkeypatch.setattr(ExportStore, "done", never)
    monkeypatch.setattr(ExportStore, "failed", never)
    await stage.pass_()
    assert len(stage.s3.copies) == 1  # it came whole, and nobody knows
    monkeypatch.undo()
    for name, value in stage.s3.environment.items():
        monkeypatch.setenv(name, value)
    assert ExportStore.done is real_done
    stage.exports = stage.restart()  # type: ignore[attr-defined]
    await stage.exports.tidy()
    await stage.exports.settled()
    assert await stage.states() == ["failed"]
    assert stage.s3.copies == {}
    await stage.pass_(hours=1)
    assert len(stage.s3.copies) == 1


async def test_with_a_key_the_copies_are_encrypted_and_the_key_is_in_no_row(stage: Stage) -> None:
    key = new_key()
    await stage.exports.schedules.keep("analyst", Wanted("s3://copies/kept", HOUR_S, key))
    await stage.pass_()
    [data] = stage.s3.copies.values()
    assert read_head(_reader(data)).key_id == key.id
    assert b"rootfs" not in data
    shown = json.dumps([vars(await stage.exports.schedules.of("analyst"))], default=str)
    assert key.text not in shown


async def test_a_place_that_cannot_be_reached_is_refused_at_once(stage: Stage) -> None:
    for bad in ("/var/backups", "s3://", "s3://UPPER/x", "s3://copies/../x"):
        with pytest.raises(InvalidArgument):
            await stage.exports.schedules.keep("analyst", Wanted(bad, HOUR_S))
    with pytest.raises(InvalidArgument):
        await stage.exports.schedules.keep("analyst", Wanted("s3://copies/x", 1.0))
    with pytest.raises(TenureError):
        await stage.exports.schedules.keep("analyst", Wanted("s3://nobucket/x", HOUR_S))
    with pytest.raises(NotFound):
        await stage.exports.schedules.keep("nobody", Wanted("s3://copies/x", HOUR_S))
    assert await stage.exports.schedules.of("analyst") is None


def test_credentials_come_of_the_environment_or_of_a_profile(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = d\naws_secret_access_key = ds\n[backup]\naws_access_key_id = b\n"
        "aws_secret_access_key = bs\naws_session_token = bt\n"
    )
    (tmp_path / "config").write_text("[profile backup]\nregion = eu-north-1\nendpoint_url = https://s3.example.org\n")
    files = {
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
    }
    assert s3_places.configuration(files) == {"access_key_id": "d", "secret_access_key": "ds", "region": "us-east-1"}
    of_profile = s3_places.configuration({**files, "AWS_PROFILE": "backup"})
    assert of_profile == {
        "access_key_id": "b",
        "secret_access_key": "bs",
        "session_token": "bt",
        "region": "eu-north-1",
        "endpoint": "https://s3.example.org",
    }
    said = {"AWS_ACCESS_KEY_ID": "e", "AWS_SECRET_ACCESS_KEY": "es", "AWS_REGION": "eu-west-1"}
    both = s3_places.configuration({**files, "AWS_PROFILE": "backup", **said})
    assert (both["access_key_id"], both["region"], "session_token" in both) == ("e", "eu-west-1", False)


async def test_runs_that_are_over_are_known_where_the_office_comes_to(control_database: ControlDatabase) -> None:
    runs, carried = Runs(control_database), CarriedRuns(control_database)
    over = await runs.create(agent="analyst", goal="é", playbook=PLAYBOOK, playbook_name="p", inputs={})
    await runs.cancel(over.id)
    open_ = await runs.create(agent="analyst", goal="on", playbook=PLAYBOOK, playbook_name="p", inputs={})
    shown, journal = await runs.get(over.id), await runs.events(over.id)
    lines = await carried.lines_of("analyst")
    assert await carried.take_in("copy", b"".join(lines)) == 0  # both are known here
    await control_database.execute("delete from runs")  # another machine
    assert await carried.take_in("copy", b"".join(lines)) == 1
    assert await runs.get(over.id) == shown.model_copy(update={"agent": "copy"})
    assert await runs.events(over.id) == journal
    with pytest.raises(NotFound):
        await runs.get(open_.id)


@pytest.mark.parametrize(
    "change",
    [
        {"journal": []},
        {"journal": [{"seq": 1, "at": "2026-01-01T00:00:00+00:00", "kind": "unknown", "body": {}}]},
        {"id": "../x"},
        {"state": "running"},
        {"created_at": "yesterday"},
        {"goal": 5},
    ],
    ids=str,
)
async def test_a_journal_that_makes_no_sense_is_left_out(
    control_database: ControlDatabase, change: dict[str, Any]
) -> None:
    runs, carried = Runs(control_database), CarriedRuns(control_database)
    over = await runs.create(agent="analyst", goal="x", playbook=PLAYBOOK, playbook_name="p", inputs={})
    await runs.cancel(over.id)
    [line] = await carried.lines_of("analyst")
    await control_database.execute("delete from runs")
    wrong = json.dumps({**json.loads(line), **change}).encode()
    assert await carried.take_in("copy", wrong + b"\nnot json\n[]\n") == 0
    assert await runs.list() == []
