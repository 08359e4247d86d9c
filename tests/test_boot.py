"""A boot says at which stage it failed and what was seen, leaves nothing running, and finds a pool that is not mounted."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from homes import own_pool
from tenure.errors import DoorClosed, NotFound, SandboxError, SetupError, TenureError, VolumeError
from tenure.offices.boot import Boot, Failure, Stage
from tenure.offices.history import What
from tenure.offices.models import Limits, OfficeRecord
from tenure.offices.office import Office, OfficeParts
from tenure.offices.rest import Tier
from tenure.offices.sandboxes.base import SandboxDriver, SandboxSpec, SandboxState
from tenure.offices.sandboxes.gvisor import GvisorDriver
from tenure.offices.spares import SpareVolumes
from tenure.offices.volumes import VolumeDriver, detect_driver
from tenure.settings import Settings
from tenure.setup import Image, ensure_pool_mounted
from tenure.setup.pool import ensure_pool
from test_supervisor import Healthy

RECORD = OfficeRecord("analyst", 78, "image", Limits(), (), "asleep", datetime.now(UTC))


class Result:
    def __init__(self, exit_code: int, stderr: bytes = b"") -> None:
        self.exit_code, self.stderr = exit_code, stderr


class FakeDoor:
    """`opens` and `result` are what it does next; an error is raised."""

    def __init__(self) -> None:
        self.opens: Exception | None = None
        self.result: Result | Exception = Result(0)
        self.pinged = 0

    async def wait_open(self, timeout_s: float) -> None:
        del timeout_s
        if self.opens is not None:
            raise self.opens

    async def run(self, argv: object, **_: object) -> Result:
        del argv
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    async def ping(self) -> None:
        self.pinged += 1

    def hang_up(self) -> None: ...


class FakeDriver:
    def __init__(self) -> None:
        self.running, self.fails = False, cast("Exception | None", None)

    async def start(self, spec: SandboxSpec) -> None:
        del spec
        if self.fails:
            raise self.fails
        self.running = True

    async def stop(self, sandbox_id: str, *, grace_s: float = 2.0) -> None:
        del sandbox_id, grace_s
        self.running = False

    async def state(self, sandbox_id: str) -> SandboxState:
        del sandbox_id
        return SandboxState.RUNNING if self.running else SandboxState.DEAD


class FakeVolumes:
    async def exists(self, volume: Path) -> bool:
        return volume.is_dir()


class FakeOffice:
    def __init__(self, settings: Settings) -> None:
        self.record, self.volume = RECORD, settings.volumes_dir / RECORD.name
        self.door, self.environment = FakeDoor(), dict[str, str]()
        self.settings, self.lines = settings, list[str]()
        self.log = self

    def write(self, source: str, text: str) -> None:
        self.lines.append(f"{source}: {text}")

    def spec(self) -> SandboxSpec:
        path = self.settings.home
        return SandboxSpec(id=RECORD.name, root=self.volume / "rootfs", doorway=path, officed_dir=path, hostname="x")

    hosts = "127.0.0.1 localhost\n"

    async def listen(self) -> None: ...
    async def introduce(self) -> None: ...


class Bench:
    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.office, self.driver = FakeOffice(self.settings), FakeDriver()
        self.mounts = 0
        self.mount: Callable[[], None] = lambda: None
        volume = self.office.volume
        for path in ("rootfs/etc", "postgres/global", "objects"):
            (volume / path).mkdir(parents=True)
        (volume / "postgres/global/pg_control").write_bytes(bytes(8192))
        (volume / "office.json").write_text('{"agent": "analyst"}')

    def _mount(self) -> None:
        self.mounts += 1
        self.mount()

    def boot(self) -> Boot:
        office, driver = cast("Any", self.office), cast("SandboxDriver", self.driver)
        return Boot(office, self.settings, driver, cast("VolumeDriver", FakeVolumes()), self._mount)

    async def failure(self, **how: Any) -> Failure:
        with pytest.raises(TenureError) as caught:
            await self.boot().run(SandboxState.ABSENT, **how)
        assert not self.driver.running, "something of a failed boot runs"
        assert caught.value.details["evidence"]["after_s"] >= 0
        assert f"did not wake ({caught.value.details['stage']})" in self.office.lines[-1]
        return Failure.of(caught.value)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_a_failed_boot_names_its_stage_and_what_was_seen(bench: Bench) -> None:
    bench.office.door.result = Result(127, b"bash: libc.so.6: no")
    probed = await bench.failure()
    assert (probed.stage, probed.evidence["stderr"]) == (Stage.PROBE, "bash: libc.so.6: no")
    bench.office.door.opens = DoorClosed("silent")
    assert (await bench.failure()).stage is Stage.DOOR
    bench.driver.fails = SandboxError("runsc said no")
    assert (await bench.failure()).message == "runsc said no"
    bench.driver.fails = OSError(28, "No space left on device", "config.json")
    full = await bench.failure()
    assert (full.stage, full.code) == (Stage.SANDBOX, VolumeError.code)
    (bench.office.volume / "postgres/global/pg_control").unlink()
    assert (await bench.failure()).stage is Stage.DATABASE
    (bench.office.volume / "objects").rmdir()
    checked = await bench.failure()
    assert (checked.stage, checked.evidence["damage"]) == (Stage.CHECK, ["objects/ is missing"])
    shutil.rmtree(bench.office.volume)
    gone = await bench.failure()
    assert (gone.stage, gone.code, bench.mounts) == (Stage.LOCATE, NotFound.code, 1)


async def test_a_pool_that_is_not_mounted_is_mounted_and_one_that_cannot_be_says_so(bench: Bench) -> None:
    away = bench.office.volume.with_name("elsewhere")
    bench.office.volume.rename(away)
    bench.mount = lambda: void(away.rename(bench.office.volume))
    await bench.boot().run(SandboxState.ABSENT)
    assert bench.mounts == 1
    bench.office.volume.rename(away)
    bench.mount = partial(refuse, SetupError("Mounting the pool failed."))
    failed = await bench.failure()
    assert (failed.stage, failed.code) == (Stage.LOCATE, SetupError.code)


def void(_: object) -> None: ...


def refuse(error: Exception) -> None:
    raise error


async def test_memory_that_does_not_come_back_costs_only_the_memory(bench: Bench) -> None:
    async def unusable(spec: SandboxSpec) -> None:
        raise SandboxError(f"the image of {spec.id} is damaged")

    boot = bench.boot()
    await boot.run(SandboxState.ABSENT, unusable)
    assert bench.driver.running
    assert [(note.what, "damaged" in note.reason) for note in boot.notes] == [(What.COLD, True)]


async def test_memory_that_comes_back_is_asked_at_its_door_only(bench: Bench) -> None:
    async def restored(spec: SandboxSpec) -> None:
        await bench.driver.start(spec)

    bench.office.door.result = SandboxError("no room for another command")
    boot = bench.boot()
    await boot.run(SandboxState.ABSENT, restored)
    assert (bench.office.door.pinged, boot.notes) == (1, [])


# --- a real pool -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def pool(image: Image, test_home: Path) -> Iterator[Settings]:
    """A pool of its own, with as much of an image as a shell needs."""
    with own_pool(1024**3) as settings:
        ensure_pool(settings)
        (settings.home / "officed").symlink_to(test_home / "officed")
        for directory in (settings.run_dir, settings.logs_dir):
            directory.mkdir(parents=True)
        small = settings.images_dir / "small"
        subprocess.run(["btrfs", "subvolume", "create", small], check=True, capture_output=True)
        wanted = [
            "etc",
            "home",
            "tmp",
            "bin",
            "lib",
            "lib64",
            "sbin",
            "usr/bin/bash",
            "usr/bin/cat",
            "usr/bin/tini-static",
            "usr/lib64",
        ]
        wanted += [
            str(path.relative_to(image.rootfs)) for path in (image.rootfs / "usr/lib").glob("*-linux-gnu/lib[ct]*.so.*")
        ]
        wanted += [str(path.relative_to(image.rootfs)) for path in (image.rootfs / "usr/lib").glob("*-linux-gnu/ld-*")]
        (small / "rootfs").mkdir()
        subprocess.run(["cp", "--archive", "--parents", *wanted, small / "rootfs"], check=True, cwd=image.rootfs)
        (small / "postgres/global").mkdir(parents=True)
        (small / "postgres/global/pg_control").write_bytes(bytes(8192))
        (small / "objects").mkdir()
        yield settings


@asynccontextmanager
async def office_in(settings: Settings, name: str) -> AsyncGenerator[Office]:
    volumes, driver = detect_driver(settings.pool_dir), GvisorDriver(settings.runsc_root)
    spares = SpareVolumes(volumes, settings.volumes_dir, lambda _: None)
    mount = partial(ensure_pool_mounted, settings)
    parts = OfficeParts(settings, driver, volumes, spares, {}, {"PATH": "/usr/bin:/bin"}, mount)
    office = Office(OfficeRecord(name, 79, "small", Limits(), (), "asleep", datetime.now(UTC)), parts, Healthy())
    try:
        yield office
    finally:
        await office.rest(Tier.STOPPED)
        await spares.close()


async def say(office: Office, script: str) -> str:
    door = await office.ready()
    done = await door.run(("/bin/bash", "-c", script), env={}, user="agent", timeout_s=60)
    return done.stdout.decode()


async def test_an_office_whose_pool_was_unmounted_under_it_goes_on_and_wakes_again(
    pool: Settings, unique_name: Callable[[str], str]
) -> None:
    async with office_in(pool, unique_name("loop")) as office:
        await office.make_volume(pool.images_dir / "small")
        assert await say(office, "echo kept > ~/kept; cat ~/kept") == "kept\n"
        await asyncio.to_thread(subprocess.run, ["umount", "--lazy", pool.pool_dir], check=True)
        assert not office.volume.exists()
        assert await say(office, "cat ~/kept") == "kept\n", "what runs has its files open"
        await office.rest(Tier.STOPPED)
        assert await say(office, "cat ~/kept") == "kept\n"
        assert os.path.ismount(pool.pool_dir)
        await office.demolish()
