"""An office is put away in S3, its disk is free then, and any use brings it back whole; whoever dies, nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.killer import Killer
from fixtures.live import Live
from fixtures.s3 import S3, serve_s3
from tenure import AsyncTenure, Tenure
from tenure.client import Agent
from tenure.errors import Conflict, InvalidArgument, NotFound, ServerUnreachable, StorageError
from tenure.export_keys import Key, new_key, write_key
from tenure.offices.archives import s3 as s3_module
from tenure.offices.archives.archiving import Archiving
from tenure.offices.archives.making import Places
from tenure.offices.archives.schedule import ScheduleRecord
from tenure.offices.archives.schedules import keep_key
from tenure.server import daemon
from tenure.settings import Settings
from test_exports import SLIM, fill, leftovers, tenure, words

AWAY = "s3://copies/away/"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serve_s3() as s3:
        yield s3


@pytest.fixture(scope="module")
def live(s3: S3, new_settings: Callable[[], Settings]) -> Iterator[Live]:
    """A server that has credentials for the S3."""
    settings = new_settings()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        daemon.up(settings, foreground=False)
        try:
            with Tenure(settings) as tenure:
                yield Live(settings, tenure, lambda label: label)
        finally:
            daemon.down(settings)


@pytest.fixture(scope="module")
def agent(live: Live) -> Agent:
    agent = live.tenure.agents.create("recluse", memory_mb=768)
    assert agent.exec(SLIM, user="root").exit_code == 0
    fill(agent, "kept")
    return agent


def host_key(agent: Agent) -> str:
    return agent.exec("cat /etc/ssh/ssh_host_ed25519_key.pub", user="root").stdout


def volume(live: Live, agent: Agent) -> Path:
    return live.settings.volumes_dir / agent.name


def objects(s3: S3) -> list[str]:
    return [f"s3://copies/{name}" for name in s3.copies]


def is_away(live: Live, agent: Agent) -> bool:
    """Archived, and nothing of it takes any disk here."""
    shown = agent.show()
    here = [volume(live, agent), live.settings.memory_dir / agent.name]
    here += [live.settings.snapshots_dir / name / agent.name for name in (".staged", ".replaced")]
    return shown.state == "archived" and not any(path.exists() for path in here) and not leftovers(live)


def test_it_goes_and_any_use_brings_it_back_as_it_was(
    live: Live, agent: Agent, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key()
    write_key(tmp_path / "key", key)
    owner, host = volume(live, agent).joinpath("postgres").stat().st_uid, host_key(agent)
    made = agent.archive("s3://copies/away", key=tmp_path / "key")
    assert is_away(live, agent)
    shown = agent.show().archived
    assert shown is not None
    assert (shown.export, shown.destination, shown.key_id) == (made.id, made.destination, key.id)
    assert made.destination.startswith(f"{AWAY}recluse-")
    assert len(s3.copies[made.destination.removeprefix("s3://copies/")]) == made.size_bytes == shown.size_bytes
    assert made.base is None
    with pytest.raises(Conflict, match="archived already"):
        agent.archive(AWAY)
    assert agent.sleep().state == "archived"  # deeper than what was asked for
    assert agent.exec("hostname").stdout == "recluse\n"
    assert words(agent) == {"kept"}
    assert host_key(agent) == host
    assert volume(live, agent).joinpath("postgres").stat().st_uid == owner
    assert agent.show().archived is None
    assert made.destination in objects(s3)  # stays
    assert leftovers(live) == []

    again = tenure(live, "agent", "archive", "recluse", "--to", AWAY)
    assert (again.returncode, again.stdout.strip() in objects(s3)) == (0, True), again.stderr
    assert is_away(live, agent)
    assert agent.sql("select word from word").rows == [["kept"]]
    assert agent.show().state == "stopped"


async def test_who_needs_it_while_it_is_put_away_waits_and_gets_it(live: Live, agent: Agent, s3: S3) -> None:
    async with AsyncTenure(live.settings) as tenure:
        same = tenure.agents("recluse")
        first = await same.snapshots.create("first")
        s3.requests.clear()
        archiving = asyncio.create_task(same.archive(AWAY))
        while not any(request.startswith(("POST", "PUT")) for request in s3.requests):
            assert not archiving.done()
            await asyncio.sleep(0.01)
        await same.objects.put("words", "word", "kept")
        made = await archiving
        assert made.destination in objects(s3)
        assert (await same.show()).state == "stopped"
        assert [one.id for one in await same.snapshots.list()] == [first.id]
        await same.archive(AWAY, drop_snapshots=True)
        assert await same.snapshots.list() == []
        assert (await same.show()).state == "archived"
        second = await same.snapshots.create("second")
        assert (await same.show()).state == "stopped"
        await same.snapshots.delete(second.id)
    assert words(agent) == {"kept"}


class Lossy(dict[str, bytes]):
    """Loses the end of what is stored."""

    def __setitem__(self, name: str, data: bytes) -> None:
        super().__setitem__(name, data[:-1])


def test_what_cannot_be_put_away_stays_here(live: Live, agent: Agent, s3: S3) -> None:
    agent.wake()
    before = dict(s3.copies)
    with pytest.raises(InvalidArgument, match="no schedule"):
        agent.archive()
    with pytest.raises(NotFound, match="nobucket"):
        agent.archive("s3://nobucket/x/")
    assert agent.show().state == "awake"
    assert s3.copies == before
    s3.buckets["lossy"] = Lossy()
    with pytest.raises(StorageError, match="were sent"):
        agent.archive("s3://lossy/x/")
    assert agent.show().state == "stopped"
    assert volume(live, agent).is_dir()
    assert agent.exports().exports[-1].state == "failed"
    assert leftovers(live) == []


async def test_an_agent_at_work_is_not_put_away_and_the_schedule_says_where_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, key, now = Settings(home=tmp_path), new_key(), datetime.now(UTC)
    keep_key(Places(settings), key)
    kept = ScheduleRecord("recluse", "s3://copies/kept/", 3600, 24, 3, key.id, now, 0, None, now)
    begun: list[Any] = []

    async def begin(agent: str, place: s3_module.Place, *, since: str | None, key: Key | None) -> None:
        begun.append((agent, str(place), since, key))

    async def of(_: str) -> ScheduleRecord:
        return kept

    async def office(_: str) -> Any:
        return SimpleNamespace(record=SimpleNamespace(archived=None))

    async def open_runs(_: str) -> list[tuple[str, str, int]]:
        return runs

    def listed(_: s3_module.Place) -> list[s3_module.Place]:
        return []

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        work.close()

    monkeypatch.setattr(s3_module, "listed", listed)
    exports: Any = SimpleNamespace(schedules=SimpleNamespace(of=of), begin=begin, spawn=spawn)
    offices: Any = SimpleNamespace(office=office)
    depot: Any = None
    archiving = Archiving(settings, exports, depot, offices, open_runs)
    runs = [("run_1", "parked", 3), ("run_2", "running", 1)]
    with pytest.raises(Conflict, match="at work on run_2"):
        await archiving.start("recluse")
    assert begun == []
    runs = [("run_1", "parked", 3)]
    await archiving.start("recluse")
    assert begun == [("recluse", "s3://copies/kept/", None, key)]


def test_without_s3_or_key_it_stays_archived_and_says_why(live: Live, agent: Agent, s3: S3) -> None:
    key = new_key()
    agent.archive(AWAY, key=key)
    kept = live.settings.home / "exports" / "keys" / key.id
    hidden = kept.rename(kept.with_name("hidden"))
    with pytest.raises(NotFound, match=f"key {key.id} is gone"):
        agent.exec("true")
    assert is_away(live, agent)
    hidden.rename(kept)
    gone = {name: s3.copies.pop(name) for name in list(s3.copies)}
    with pytest.raises(NotFound, match="nothing at"):
        agent.sql("select 1")
    s3.copies.update({name: data[: len(data) // 2] for name, data in gone.items()})
    with pytest.raises(Exception, match="could not be brought back"):
        agent.exec("true")
    assert is_away(live, agent)
    s3.copies.update(gone)
    s3.broken = True
    try:
        with pytest.raises(StorageError, match="could not be brought back"):
            agent.exec("true")
        assert is_away(live, agent)
    finally:
        s3.broken = False
    assert words(agent) == {"kept"}


# --- dying in the middle ----------------------------------------------------------------------------------------------
def test_killed_at_any_point_while_it_is_put_away(live: Live, agent: Agent, killer: Killer, s3: S3) -> None:
    for point in ("export.copied", "archive.sent", "archive.marked"):
        killer.up(point)
        if point != "export.copied":  # how the one before ended
            assert agent.show().state == "stopped"
            assert agent.exports().exports[-1].state == "failed"
            assert volume(live, agent).exists()
            assert leftovers(live) == []
        with pytest.raises(ServerUnreachable):
            agent.archive(AWAY)
        killer.died()
    killer.up()
    assert is_away(live, agent)
    last = agent.exports().exports[-1]
    assert (last.state, last.size_bytes) == ("done", len(s3.copies[last.destination.removeprefix("s3://copies/")]))
    assert words(agent) == {"kept"}


def test_killed_at_any_point_while_it_is_brought_back(live: Live, agent: Agent, killer: Killer) -> None:
    agent.archive(AWAY)
    for point in ("unarchive.fetched", "restore.prepared", "unarchive.placed"):
        killer.up(point)
        assert is_away(live, agent)  # what the one before had done is gone
        with pytest.raises(ServerUnreachable):
            agent.exec("true")
        killer.died()
    killer.up()
    assert is_away(live, agent)
    assert words(agent) == {"kept"}
    assert leftovers(live) == []
