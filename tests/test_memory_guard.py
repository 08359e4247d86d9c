"""Who fills an office's memory is ended in time, alone, and nobody else. (With real memory: test_isolation.py.)"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.offices.sandboxes.memory_guard import (
    GROWTH_BYTES_PER_S,
    LEAST_BYTES,
    LOOK_S_MAX,
    LOOK_S_MIN,
    PAGE_BYTES,
    SETTLE_S,
    MemoryGuard,
    next_look_s,
)
from tenure.testing.process_sandbox import ProcessSandbox

MIB = 1024**2


class Offices(ProcessSandbox):
    """What each has left is said by the test."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.left: dict[str, int | None] = {}
        self.killed: list[str] = []
        self.looks: list[str] = []
        self.largest = 300 * MIB

    def limited(self) -> list[str]:
        return list(self.left)

    def memory_left(self, sandbox_id: str) -> int | None:
        self.looks.append(sandbox_id)
        return self.left[sandbox_id]

    async def run_inside(self, sandbox_id: str, script: str) -> str:
        """The script is tried in test_isolation.py."""
        assert str(LEAST_BYTES // PAGE_BYTES) in script
        self.killed.append(sandbox_id)
        return f"{self.largest}\n" if self.largest >= LEAST_BYTES else ""


class Stage:
    def __init__(self, directory: Path) -> None:
        self.offices, self.now_s = Offices(directory), 1000.0
        self.told: list[tuple[str, int]] = []
        self.guard = MemoryGuard(self.offices, self.offices.run_inside, self._note, clock=lambda: self.now_s)

    async def _note(self, sandbox_id: str, held_bytes: int) -> None:
        self.told.append((sandbox_id, held_bytes))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@given(st.integers(-(2**40), 2**40))
def test_nobody_can_use_up_what_is_left_between_two_looks(left_bytes: int) -> None:
    look_s = next_look_s(left_bytes)
    assert LOOK_S_MIN <= look_s <= LOOK_S_MAX
    assert look_s == LOOK_S_MIN or look_s * GROWTH_BYTES_PER_S <= left_bytes


async def test_a_full_office_loses_its_largest_process_and_is_left_time(stage: Stage) -> None:
    stage.offices.left = {"full": 0, "other": 400 * MIB}
    await stage.guard.look()
    assert stage.told == [("full", 300 * MIB)]
    stage.now_s += SETTLE_S / 2
    await stage.guard.look()
    assert stage.offices.killed == ["full"], "the memory of the first one was not given back yet"
    stage.now_s += SETTLE_S
    await stage.guard.look()
    assert stage.offices.killed == ["full", "full"]
    stage.offices.left["full"] = 1
    stage.now_s += SETTLE_S
    await stage.guard.look()
    assert stage.offices.killed == ["full", "full"]


async def test_nobody_is_ended_who_holds_next_to_nothing(stage: Stage) -> None:
    stage.offices.left, stage.offices.largest = {"full": 0}, 2 * MIB
    assert await stage.guard.look() == SETTLE_S
    assert stage.told == []


async def test_each_office_is_looked_at_as_often_as_it_has_to_be(stage: Stage) -> None:
    stage.offices.left = {"nearly": 50 * MIB, "empty": 8 * 1024 * MIB}
    for _ in range(100):
        stage.now_s += await stage.guard.look()
    looks = stage.offices.looks
    assert looks.count("nearly") > 10 * looks.count("empty") > 10
    stage.offices.left = {"empty": None}
    stage.now_s += LOOK_S_MAX
    assert await stage.guard.look() == LOOK_S_MAX


async def test_it_goes_on_after_a_failure(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenure.offices.sandboxes.memory_guard.FAILURE_PAUSE_S", 0.0)
    stage.offices.left = {"full": 0}
    failed = asyncio.Event()

    def fail() -> list[str]:
        failed.set()
        monkeypatch.undo()
        raise OSError("no control groups")

    monkeypatch.setattr(stage.offices, "limited", fail)
    guarding = asyncio.create_task(stage.guard.run())
    await failed.wait()
    async with asyncio.timeout(30):
        while not stage.told:  # noqa: ASYNC110 - it tells nobody when it begins again
            await asyncio.sleep(0.01)
    guarding.cancel()
