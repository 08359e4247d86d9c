"""The supervisor on real sandboxes: what hangs is restarted, what runs away is ended, what is busy is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tenure.errors import DoorClosed, OfficeBroken, TenureError
from tenure.offices.boot import Note
from tenure.offices.history import History, What
from tenure.offices.models import Limits, OfficeRecord
from tenure.offices.office import Office, OfficeParts
from tenure.offices.rest import Tier
from tenure.offices.sandboxes.base import SandboxDriver, SandboxState, SandboxUsage
from tenure.offices.sandboxes.gvisor import GvisorDriver
from tenure.offices.spares import SpareVolumes
from tenure.offices.supervision import RESTARTS_MAX, Patience
from tenure.offices.supervisor import Supervisor
from tenure.offices.volumes import detect_driver
from tenure.settings import Settings
from tenure.setup import Image

SHORT = Patience(reconnect_s=0.5, kill_s=2.0, restart_s=2.0, busy_factor=1.0, answer_s=1.0)
WAIT_S = 150.0
EVERY_S = 0.3


class Told:
    """What would be in the history."""

    def __init__(self) -> None:
        self.events: list[tuple[What, str]] = []
        self.given_up: list[str] = []

    async def record(self, agent: str, what: What, reason: str, evidence: object = None) -> None:
        del agent, evidence
        self.events.append((what, reason))

    async def leave(self, *_: str) -> None: ...
    async def give_up(self, office: Office, reason: str) -> None:
        del office
        self.given_up.append(reason)

    @property
    def whats(self) -> list[What]:
        return [what for what, _ in self.events]


class Healthy:
    """Offices here boot, or the test fails."""

    async def permit(self, office: Office) -> None: ...
    async def permit_database(self, office: Office) -> None: ...
    async def heal(self, office: Office, error: TenureError) -> None:
        raise error

    def database_failed(self, office: Office, error: TenureError) -> None: ...
    async def noted(self, name: str, notes: Sequence[Note]) -> None: ...
    def is_given_up(self, name: str) -> bool:
        return False


def supervise(
    offices: Callable[[], Iterable[Any]],
    driver: Any,
    patience: Patience = SHORT,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Supervisor, Told]:
    told = Told()
    history = cast("History", told)
    return Supervisor(offices, driver, history, told.leave, told.give_up, patience=patience, clock=clock), told


@contextlib.asynccontextmanager
async def awake(
    settings: Settings, image: Image, name: str, limits: Limits
) -> AsyncGenerator[tuple[Office, GvisorDriver]]:
    """An office of nothing but a sandbox and its door."""
    volumes, driver = detect_driver(settings.pool_dir), GvisorDriver(settings.runsc_root)
    spares = SpareVolumes(volumes, settings.volumes_dir, lambda _: None)
    parts = OfficeParts(settings, driver, volumes, spares, {}, {"PATH": "/usr/bin:/bin"}, lambda: None)
    office = Office(OfficeRecord(name, 77, image.id, limits, (), "asleep", datetime.now(UTC)), parts, Healthy())
    try:
        await office.make_volume(image.path)
        await office.ready()
        yield office, driver
    finally:
        await office.rest(Tier.STOPPED)
        await office.demolish()
        await spares.close()


async def run(office: Office, script: str, user: str = "agent") -> str:
    done = await office.door.run(("/bin/bash", "-c", script), env={}, user=user, timeout_s=60)
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode()


async def look_until(supervisor: Supervisor, told: Told, what: What) -> None:
    deadline = time.monotonic() + WAIT_S
    while what not in told.whats:
        assert time.monotonic() < deadline, told.events
        await supervisor.look()
        await asyncio.sleep(EVERY_S)


async def test_an_office_whose_door_hangs_is_restarted_on_the_same_volume(
    settings: Settings, image: Image, unique_name: Callable[[str], str]
) -> None:
    async with awake(settings, image, unique_name("hung"), Limits()) as (office, driver):
        supervisor, told = supervise(lambda: [office], driver)
        await run(office, "echo kept > ~/kept; sync")
        await run(office, "(sleep 0.5; kill -STOP $(pgrep -o officed)) > /dev/null 2>&1 &", user="root")
        await look_until(supervisor, told, What.RESTARTED)
        deadline = time.monotonic() + WAIT_S
        while not await office.probe():
            assert time.monotonic() < deadline
            await asyncio.sleep(EVERY_S)
        assert told.whats == [What.RECONNECTED, What.RESTARTED]
        assert "stands still" in told.events[-1][1]
        assert await run(office, "cat ~/kept") == "kept\n"


async def test_a_busy_office_at_its_memory_limit_on_a_busy_host_is_left_alone(
    settings: Settings, image: Image, unique_name: Callable[[str], str]
) -> None:
    async with awake(settings, image, unique_name("busy"), Limits(cpus=0.5, memory_mb=256)) as (office, driver):
        supervisor, told = supervise(lambda: [office], driver)
        burn = "for n in 1 2 3 4; do (while :; do :; done) > /dev/null 2>&1 & done; cat"
        fill = "python3 -c 'import time; kept = bytearray(200 << 20); time.sleep(1000)' > /dev/null 2>&1 &"
        await run(office, f"nohup bash -c '{burn}' < <(sleep 1000) > /dev/null 2>&1 & {fill}")
        deadline = time.monotonic() + WAIT_S
        while (await driver.usage(office.record.name)).memory_bytes < 200 << 20:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        # The host has more to do than it can, too.
        host = [
            await asyncio.create_subprocess_exec("sh", "-c", "while :; do :; done") for _ in range(os.cpu_count() or 2)
        ]
        try:
            for _ in range(15):
                await supervisor.look()
                await asyncio.sleep(EVERY_S)
        finally:
            for process in host:
                process.kill()
                await process.wait()
        assert not {What.RESTARTED, What.KILLED, What.DIED} & set(told.whats), told.events
        assert await run(office, "pgrep -c python3") == "1\n"


async def test_a_fork_bomb_is_ended_and_the_office_lives_on(
    settings: Settings, image: Image, unique_name: Callable[[str], str]
) -> None:
    async with awake(settings, image, unique_name("bomb"), Limits(processes=150)) as (office, driver):
        supervisor, told = supervise(lambda: [office], driver, replace(SHORT, answer_s=2.0))
        await run(office, "nohup sleep 1000 > /dev/null 2>&1 & disown; true")
        await run(office, "setsid nohup bash -c 'bomb() { bomb | bomb & }; bomb; sleep 1000' > /dev/null 2>&1 &")
        await look_until(supervisor, told, What.KILLED)
        assert told.whats == [What.KILLED]
        assert "ended group" in told.events[0][1]
        assert await run(office, "(pgrep -cx sleep)") == "1\n", "more than the runaway was ended"


async def test_a_sandbox_that_died_is_cleaned_up_and_its_next_use_starts_it(
    settings: Settings, image: Image, unique_name: Callable[[str], str]
) -> None:
    async with awake(settings, image, unique_name("dead"), Limits()) as (office, driver):
        supervisor, told = supervise(lambda: [office], driver)
        await supervisor.look()
        os.kill(int((settings.runsc_root / office.record.name / "pid").read_text()), signal.SIGKILL)
        await look_until(supervisor, told, What.DIED)
        assert await driver.state(office.record.name) is SandboxState.ABSENT
        assert not office.is_watchable
        await office.ready()
        assert await run(office, "echo back") == "back\n"


async def test_the_largest_process_is_ended_from_outside(
    settings: Settings, image: Image, unique_name: Callable[[str], str]
) -> None:
    async with awake(settings, image, unique_name("large"), Limits(memory_mb=512)) as (office, driver):
        use = "kept = bytearray(%d << 20)\nwhile True:\n    kept[::4096] = kept[::4096]"
        for size in (150, 20):
            await run(office, f"nohup python3 -c $'{use % size}' > /dev/null 2>&1 &")
        deadline = time.monotonic() + WAIT_S
        name = office.record.name
        while await driver.kill_largest(name, least_bytes=140 << 20) is None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        while await run(office, "pgrep -c python3 || true") != "1\n":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)


# --- without a sandbox -----------------------------------------------------------------------------------------------------
class FakeDriver:
    """Says of every sandbox the same; counts how often it is asked."""

    def __init__(self, state: SandboxState) -> None:
        self.now, self.asked = state, 0

    async def state(self, sandbox_id: str) -> SandboxState:
        del sandbox_id
        self.asked += 1
        return self.now

    async def usage(self, sandbox_id: str) -> SandboxUsage:
        del sandbox_id
        return SandboxUsage(0, 1.0, 3)


class FakeDoor:
    lines = 0

    def __init__(self) -> None:
        self.asked = 0

    async def ping(self, timeout_s: float) -> None:
        del timeout_s
        self.asked += 1
        raise DoorClosed("silent")

    def drop_idle(self) -> None: ...


class FakeOffice:
    def __init__(self, name: str, *, watchable: bool) -> None:
        self.record = SimpleNamespace(name=name, limits=Limits())
        self.door, self.is_watchable, self.restarts = FakeDoor(), watchable, 0

    async def restart(self) -> None:
        self.restarts += 1


async def test_a_thousand_offices_asleep_are_not_looked_at() -> None:
    asleep = [FakeOffice(f"a{number}", watchable=False) for number in range(1000)]
    driver = FakeDriver(SandboxState.ABSENT)
    supervisor, told = supervise(lambda: asleep, cast("SandboxDriver", driver))
    for _ in range(3):
        await supervisor.look()
    assert (driver.asked, told.events) == (0, [])


@pytest.mark.parametrize("state", [SandboxState.PAUSED, SandboxState.ABSENT])
async def test_an_office_at_rest_is_not_asked_at_its_door(state: SandboxState) -> None:
    office = FakeOffice("rests", watchable=True)
    supervisor, told = supervise(lambda: [office], cast("SandboxDriver", FakeDriver(state)))
    for _ in range(5):
        await supervisor.look()
    assert (office.door.asked, told.events) == (0, [])


async def test_an_office_that_no_restart_helps_is_given_up() -> None:
    office = FakeOffice("hopeless", watchable=True)
    now = 0.0
    supervisor, told = supervise(
        lambda: [office],
        cast("SandboxDriver", FakeDriver(SandboxState.RUNNING)),
        Patience(busy_factor=1.0),
        lambda: now,
    )
    while not told.given_up:
        assert now < 3600
        now += 5.0
        await supervisor.look()
        await asyncio.sleep(0)
    assert office.restarts == RESTARTS_MAX
    assert "3 times in 30 minutes" in told.given_up[0]
    assert OfficeBroken.retryable is False
