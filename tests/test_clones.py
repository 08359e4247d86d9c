"""Whoever dies while a volume takes the place of another leaves one of them there, whole."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tenure import faultpoints
from tenure.offices.clones import Clones, origin_of
from tenure.offices.models import Limits, OfficeRecord
from tenure.offices.volumes.btrfs import BtrfsDriver
from tenure.settings import Settings

STAGES = {"staged": "old", "prepared": "old", "moved-away": "new", "placed": "new"}
"""Points of a restore, and which volume is there after a death at each."""


def killed(work: Callable[[], None], point: str) -> None:
    """Does `work` in a process that ends by SIGKILL when it reaches `point`; fails when it does not."""
    child = os.fork()
    if child == 0:
        faultpoints.arm(point, 1, faultpoints.Action.KILL)
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture
def office(settings: Settings, unique_name: Callable[[str], str]) -> Iterator[tuple[Clones, OfficeRecord, Path]]:
    """An office whose volume says "old", and a snapshot that says "new"."""
    clones = Clones(settings, BtrfsDriver())
    record = OfficeRecord(unique_name("clone"), 1, "image", Limits(), (), "asleep", datetime.now(UTC))
    volume, snapshot = settings.volumes_dir / record.name, settings.snapshots_dir / record.name / "snap_1"

    async def make() -> None:
        for word, path in (("old", volume), ("new", volume.with_name(f".source-{record.name}"))):
            await clones.volumes.create_empty(path)
            (path / "rootfs" / "etc" / "ssh").mkdir(parents=True)
            (path / "word").write_text(word)
        await clones.volumes.snapshot(path, snapshot)
        await clones.volumes.delete(path)

    async def remove() -> None:
        for path in (volume, snapshot, clones.staged(record.name), clones.replaced(record.name)):
            await clones.volumes.delete(path)

    asyncio.run(make())
    yield clones, record, snapshot
    asyncio.run(remove())


@pytest.mark.parametrize("stage", STAGES)
def test_a_restore_killed_at_any_stage_leaves_the_old_or_the_new_volume(
    office: tuple[Clones, OfficeRecord, Path], stage: str
) -> None:
    clones, record, snapshot = office
    volume = clones.settings.volumes_dir / record.name
    killed(lambda: asyncio.run(clones.replace(record, snapshot)), f"restore.{stage}")
    for _ in range(2):  # who is killed while it settles settles again
        asyncio.run(clones.settle(record.name))
        assert (volume / "word").read_text() == STAGES[stage]
        assert origin_of(volume) == (snapshot.name if STAGES[stage] == "new" else None)
        assert not clones.staged(record.name).exists()
        assert not clones.replaced(record.name).exists()
    asyncio.run(clones.replace(record, snapshot))
    assert (volume / "word").read_text() == "new"
    assert asyncio.run(clones.volumes.usage(volume)).limit_bytes == record.limits.disk_bytes


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "moved-away"])
def test_a_fork_killed_at_any_stage_is_made_anew(office: tuple[Clones, OfficeRecord, Path], stage: str) -> None:
    clones, record, snapshot = office
    volume = clones.settings.volumes_dir / record.name
    asyncio.run(clones.volumes.delete(volume))

    async def make() -> None:
        await clones.stage(record, snapshot, fork=True)
        await clones.place(record)

    killed(lambda: asyncio.run(make()), f"restore.{stage}")
    asyncio.run(make())
    assert (volume / "word").read_text() == "new"
    assert volume.stat().st_mode & 0o077 == 0
    assert not clones.staged(record.name).exists()
    assert not clones.replaced(record.name).exists()
