"""What the server does by itself goes on, whatever fails; and disk limits are among it."""

from __future__ import annotations

import asyncio

import pytest

from fixtures.live import Live
from fixtures.waiting import wait_until
from tenure.errors import VolumeError
from tenure.offices.tools import run_tool
from tenure.offices.volumes import BtrfsDriver
from tenure.offices.volumes.btrfs_calls import counting_is_lost, subvolume_id
from tenure.server.chores import Chore, doing
from tenure.server.home import log_file


async def test_a_failing_chore_comes_again_and_does_not_hinder_others(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    async def fails() -> None:
        calls.append("fails")
        raise RuntimeError("no luck")

    async def hangs() -> None:
        calls.append("hangs")
        await asyncio.sleep(3600)

    chores = [Chore("failing", 0.001, fails), Chore("hanging", 0.001, hangs, timeout_s=0.001)]
    async with asyncio.timeout(20), doing(chores):
        while calls.count("fails") < 3 or calls.count("hangs") < 3:  # noqa: ASYNC110 - it waits for other loops
            await asyncio.sleep(0.001)
    assert "failing failed (2 in a row)" in caplog.text
    seen = len(calls)
    await asyncio.sleep(0.05)
    assert len(calls) == seen, "a chore went on after its server"


async def test_a_server_counts_anew_when_the_kernel_lost_count_of_the_pool(live: Live) -> None:
    """Else no disk limit would hold from then on."""
    pool, volumes, driver = live.settings.pool_dir, live.settings.volumes_dir, BtrfsDriver()
    volume, clone = volumes / "spoiler", volumes / "spoiler-clone"
    await driver.create_empty(volume)
    try:
        (volume / "file").write_bytes(b"x" * 1024**2)
        await driver.create(volume, clone)
        member, group = f"0/{subvolume_id(volume)}", f"1/{subvolume_id(volume)}"
        await run_tool(["btrfs", "qgroup", "create", group, pool], timeout_s=20, raises=VolumeError)
        await run_tool(
            ["btrfs", "qgroup", "assign", "--no-rescan", member, group, pool], timeout_s=20, raises=VolumeError
        )
        assert counting_is_lost(pool) or "lost count" in log_file(live.settings).read_text()
        wait_until(lambda: not counting_is_lost(pool), "nobody counted the pool anew")
        await run_tool(
            ["btrfs", "qgroup", "remove", "--no-rescan", member, group, pool], timeout_s=20, raises=VolumeError
        )
        await run_tool(["btrfs", "qgroup", "destroy", group, pool], timeout_s=20, raises=VolumeError)
    finally:
        await driver.delete(clone)
        await driver.delete(volume)
