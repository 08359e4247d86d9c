"""An office can be written to disk with its memory and go on later, and what fails on the way loses nothing: killed at any
stage, a checkpoint leaves the sandbox or its image, and never an image of processes that ran on. Real gVisor and officed; what
every driver must do is in `checkpoint_conformance`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tenure.errors import ImageUnusable, SandboxError
from tenure.offices.door.door import Door, Drained
from tenure.offices.sandboxes import images
from tenure.offices.sandboxes.base import SandboxLimits, SandboxSpec, SandboxState
from tenure.offices.sandboxes.cgroups import CGROUP_MOUNT
from tenure.offices.sandboxes.gvisor import GvisorDriver
from tenure.offices.sandboxes.memory_guard import MemoryGuard
from tenure.offices.volumes import BtrfsDriver
from tenure.settings import Settings
from tenure.setup import Image
from tenure.testing.office_probe import OfficeProbe
from tenure.work.hands import CommandState

EVENT_TIMEOUT_S = 60.0
BINDING = "generation 7"
READY = "while [ ! -e /root/ready ]; do sleep 0.02; done"
LEAK = "import time\na = []\nwhile True:\n    a.append(b'x' * 10_000_000)\n    time.sleep(0.05)"
SERVER = """
import asyncio, os, signal, subprocess, sys
from pathlib import Path
from tenure.offices.sandboxes import gvisor, images
from tenure.offices.sandboxes.gvisor import GvisorDriver as Driver

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def dying(call):
    async def called(*arguments):
        asyncio.get_running_loop().call_later(0.01, die)
        await call(*arguments)
    return called

async def late(words, *, pass_fds, **_):
    subprocess.Popen(["sh", "-c", 'sleep 0.3; exec "$@"', "-", *words], pass_fds=pass_fds)
    die()

def killed(stage):
    match stage:
        case "late": gvisor.run_tool = late
        case "pausing": Driver._hold = dying(Driver._hold)
        case "paused": images.begin = die
        case "saving": Driver._save = dying(Driver._save)
        case "saved": images.seal = die
        case "sealed": Driver._end_all = die
        case "ended": images.publish = die
        case "published": Driver._clean_up = die

killed(sys.argv[5])
asyncio.run(Driver(Path(sys.argv[1])).checkpoint(sys.argv[2], Path(sys.argv[3]), binding=sys.argv[4]))
"""
"""A server that is killed at a stage of a checkpoint; "late": runsc pauses when the server has been dead for a while."""
LATE_S = 1.0
COUNT = "cd $PROBE_NOTES; n=0; while :; do n=$((n+1)); echo $n > next; mv next count; sleep 0.02; done"


@dataclass
class Bed:
    """A sandbox with a process that counts, and the place of its image."""

    office: OfficeProbe
    image: Path
    runsc_root: Path

    @property
    def directory(self) -> Path:
        return self.runsc_root / self.office.id

    @property
    def beside(self) -> Path:
        return self.image.with_name(f".{self.image.name}.partial")

    def count(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return int((self.office.notes / "count").read_text())
        return 0

    async def counts_on(self, beyond: int) -> None:
        await eventually(lambda: self.count() > beyond)

    async def checkpoint(self) -> None:
        await self.office.driver.checkpoint(self.office.id, self.image, binding=BINDING)

    async def kill(self, verb: str) -> None:
        """SIGKILL to `runsc VERB`, once it runs."""

        def killed() -> bool:
            pids = self.runsc(verb)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return bool(pids)

        await eventually(killed, every_s=0)

    def runsc(self, verb: str) -> list[int]:
        """Host processes of `runsc VERB` for this sandbox."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0] == b"runsc" and verb.encode() in words and os.fsencode(self.directory / "runsc") in words:
                    found.append(int(entry.name))
        return found


async def eventually(holds: Callable[[], bool], every_s: float = 0.005) -> None:
    deadline = time.monotonic() + EVENT_TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, f"{holds} did not come to hold"
        await asyncio.sleep(every_s)


@pytest.fixture
async def spec(settings: Settings, image: Image, unique_name: Callable[[str], str]) -> AsyncIterator[SandboxSpec]:
    """Of a sandbox with the real `officed`, on a volume of its own."""
    directory, volumes, name = Path(tempfile.mkdtemp(prefix="tenure-")), BtrfsDriver(), unique_name("sleeper")
    volume = settings.volumes_dir / name
    await volumes.create(image.path, volume)
    yield SandboxSpec(
        id=name,
        root=volume / "rootfs",
        doorway=directory / "door",
        officed_dir=settings.officed_dir,
        hostname="sleeper",
        limits=SandboxLimits(cpus=1.0, memory_bytes=512 * 1024**2, processes_max=96),
        forwards=(("127.0.0.2:5432", "db.sock"),),
    )
    await volumes.delete(volume)
    shutil.rmtree(directory)


@pytest.fixture
async def bed(settings: Settings, spec: SandboxSpec) -> AsyncIterator[Bed]:
    directory = spec.doorway.parent
    async with OfficeProbe(GvisorDriver(settings.runsc_root), replace(spec, officed_dir=directory / "bin")) as office:
        await office.start()
        await office.output(f"setsid sh -c '{COUNT}' > /dev/null 2>&1 < /dev/null & echo counting")
        bed = Bed(office, directory / "image", settings.runsc_root)
        await bed.counts_on(0)
        yield bed


class Sleeper:
    """A sandbox with the real `officed` and the real door."""

    def __init__(self, spec: SandboxSpec, driver: GvisorDriver) -> None:
        self.spec, self.driver, self.image = spec, driver, spec.doorway.parent / "image"
        self.door = Door(spec.id, spec.doorway)

    async def boot(self) -> None:
        await self.door.open()
        await self.driver.start(self.spec)
        await self.door.wait_open()

    async def sleep(self) -> None:
        assert await self.door.drain() == Drained(done=True)
        await self.driver.checkpoint(self.spec.id, self.image, binding=BINDING)

    async def wake(self) -> None:
        await self.door.open()
        await self.driver.start(self.spec, image=self.image, binding=BINDING)
        images.discard(self.image)
        await self.door.wait_open()

    async def run(self, script: str) -> str:
        result = await self.door.run(("/bin/sh", "-c", script), env={}, user="root", timeout_s=EVENT_TIMEOUT_S)
        assert result.exit_code == 0, (result.stdout + result.stderr).decode()
        return result.stdout.decode().strip()


@pytest.fixture
async def sleeper(settings: Settings, spec: SandboxSpec) -> AsyncIterator[Sleeper]:
    sleeper = Sleeper(spec, GvisorDriver(settings.runsc_root))
    try:
        await sleeper.boot()
        yield sleeper
    finally:
        await sleeper.driver.stop(spec.id, grace_s=0)
        await sleeper.door.close()


# --- killed at every stage -----------------------------------------------------------------------------------------------


async def killed_over_a_checkpoint(bed: Bed, stage: str) -> None:
    await bed.office.drain()
    words = [str(bed.runsc_root), bed.office.id, str(bed.image), BINDING, stage]
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, *words)
    assert await server.wait() == -signal.SIGKILL
    await bed.office.listen()


async def test_a_server_killed_over_a_checkpoint_leaves_the_sandbox_or_its_image(bed: Bed) -> None:
    """Never both, so that no image is of processes that ran on; and what it left is no obstacle to the next."""
    office, driver = bed.office, bed.office.driver
    for stage in ("late", "pausing", "paused", "saving", "saved", "sealed", "published"):
        await killed_over_a_checkpoint(bed, stage)
        last = bed.count()
        assert bed.image.exists() == (stage == "published")
        if stage == "published":
            assert await driver.state(office.id) is SandboxState.DEAD
            await office.start(image=bed.image, binding=BINDING)
            images.discard(bed.image)
        else:
            assert await driver.state(office.id) is SandboxState.PAUSED, stage
            await driver.resume(office.id)
        if stage == "late":
            await asyncio.sleep(LATE_S)
        assert await driver.state(office.id) is SandboxState.RUNNING, stage
        await bed.counts_on(max(last, bed.count()))
    await office.drain()
    await bed.checkpoint()
    assert not bed.beside.exists()
    await office.listen()
    await office.start(image=bed.image, binding=BINDING)
    await bed.counts_on(bed.count())


async def test_a_server_killed_between_the_end_and_the_image_leaves_neither(bed: Bed) -> None:
    """The one moment in which the memory is lost; the root is as the processes left it, and boots."""
    await killed_over_a_checkpoint(bed, "ended")
    assert not bed.image.exists()
    assert await bed.office.driver.state(bed.office.id) is SandboxState.DEAD
    await bed.office.start()
    assert await bed.office.output("echo booted") == "booted"


async def test_what_a_server_that_died_over_a_checkpoint_left_can_be_stopped(bed: Bed) -> None:
    await killed_over_a_checkpoint(bed, "saving")
    await bed.office.driver.stop(bed.office.id, grace_s=EVENT_TIMEOUT_S)
    assert await bed.office.driver.state(bed.office.id) is SandboxState.ABSENT
    assert (bed.office.notes / "terminated").exists(), "it was let go, and asked before it was killed"


async def test_a_checkpoint_whose_tool_is_killed_fails_and_the_sandbox_runs_on(bed: Bed) -> None:
    await bed.office.drain()
    checkpoint = asyncio.create_task(bed.checkpoint())
    await bed.kill("checkpoint")
    with pytest.raises(SandboxError):
        await checkpoint
    assert not bed.image.exists()
    assert not bed.beside.exists()
    assert await bed.office.driver.state(bed.office.id) is SandboxState.RUNNING
    await bed.office.listen()
    await bed.counts_on(bed.count())


async def test_a_sandbox_that_dies_over_its_checkpoint_leaves_no_image(bed: Bed) -> None:
    await bed.office.drain()
    checkpoint = asyncio.create_task(bed.checkpoint())
    await eventually(lambda: (bed.beside / "pages.img").exists(), every_s=0)
    os.kill(int((bed.directory / "pid").read_text()), signal.SIGKILL)
    with pytest.raises(SandboxError) as failure:
        await checkpoint
    assert failure.value.details["state"] == SandboxState.DEAD
    assert not bed.image.exists()
    await bed.office.listen()
    await bed.office.start()
    assert await bed.office.output("echo booted") == "booted"


async def test_a_restore_that_is_killed_leaves_nothing_running_and_the_image_whole(bed: Bed) -> None:
    await bed.office.drain()
    await bed.checkpoint()
    last = bed.count()
    start = asyncio.create_task(bed.office.start(image=bed.image, binding=BINDING))
    await bed.kill("restore")
    with pytest.raises(ImageUnusable):
        await start
    assert await bed.office.driver.state(bed.office.id) is SandboxState.ABSENT
    assert bed.count() == last
    await bed.office.listen()
    await bed.office.start(image=bed.image, binding=BINDING)
    await bed.counts_on(last)


async def test_a_file_deleted_under_a_process_is_named_and_the_sandbox_runs_on(bed: Bed) -> None:
    await bed.office.output("exec 9> /root/gone; rm /root/gone; sleep 600 > /dev/null 2>&1 < /dev/null &")
    await bed.office.drain()
    with pytest.raises(SandboxError, match="root/gone"):
        await bed.checkpoint()
    await bed.office.listen()
    assert await bed.office.output("echo runs on") == "runs on"
    await bed.counts_on(bed.count())


async def test_a_connection_to_the_host_is_named_and_the_sandbox_runs_on(bed: Bed) -> None:
    with pytest.raises(SandboxError, match="holds a connection to the host"):
        await bed.checkpoint()
    assert await bed.office.output("echo runs on") == "runs on"
    await bed.counts_on(bed.count())


# --- the real door -------------------------------------------------------------------------------------------------------
CLIENT = """
import socket, time
log = open("/root/answers", "w", buffering=1)
while True:
    try:
        with socket.create_connection(("127.0.0.2", 5432)) as line:
            while True:
                line.sendall(b"ask")
                if not (answer := line.recv(100)):
                    break
                print("answered", file=log)
                time.sleep(0.05)
    except OSError as error:
        print(error, file=log)
"""
"""Dials again as soon as its connection is cut, so it waits at the forward while the office goes to sleep."""


async def test_all_that_officed_does_works_on_after_sleep(sleeper: Sleeper) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    answers = sleeper.spec.root / "root/answers"
    database = await asyncio.start_unix_server(serve, sleeper.spec.doorway / "db.sock")
    (sleeper.spec.root / "root/client.py").write_text(CLIENT)
    await sleeper.run("setsid python3 /root/client.py > /dev/null 2>&1 < /dev/null &")
    await sleeper.door.start_job("before", ("echo", "from before"), env={}, user="root")
    await eventually(lambda: answers.exists() and answers.read_text().count("answered") > 3)
    for _ in range(2):
        await sleeper.sleep()
        asked = answers.read_text().count("answered")
        await sleeper.wake()
        await eventually(lambda: answers.read_text().count("answered") > asked + 3)  # noqa: B023 - awaited here
        assert "refused" not in answers.read_text()

        assert (await sleeper.door.job_status("before", wait_s=10)).output == "from before\n"
        await sleeper.door.start_job("timed", ("sleep", "600"), env={}, user="root", timeout_s=0.3)
        timed = await sleeper.door.job_status("timed", wait_s=30)
        assert (timed.state, timed.timed_out) == (CommandState.EXITED, True)
        assert (await sleeper.door.run(("sleep", "600"), env={}, user="root", timeout_s=0.3)).timed_out
        assert await sleeper.run("/.tenure/bin/officed sudo id -u") == "0"
        await sleeper.run("(setsid sh -c 'sleep 0.1 & exec true' &); sleep 0.5")
        assert "Z" not in await sleeper.run("cat /proc/[0-9]*/stat | sed 's/.*) \\(.\\).*/\\1/'")
        await sleeper.door.forget_job("timed")
        await sleeper.run("rm -r /var/lib/tenure/jobs/timed")
    database.close()


async def test_what_the_host_holds_against_a_sandbox_holds_after_sleep(sleeper: Sleeper) -> None:
    """The processor's quota is set, and officed is read-only, as after a boot; a leak ends its process and not its office."""
    ended: list[str] = []

    async def note(sandbox_id: str, held_bytes: int) -> None:
        ended.append(sandbox_id)

    async def run_inside(sandbox_id: str, script: str) -> str:
        return await sleeper.run(script)

    guarding = asyncio.create_task(MemoryGuard(sleeper.driver, run_inside, note).run())
    for sleeps in (False, True):
        if sleeps:
            await sleeper.sleep()
            await sleeper.wake()
        quota = Path(f"{CGROUP_MOUNT}/cpu{sleeper.driver._cgroup(sleeper.spec.id).path}/cpu.cfs_quota_us")  # pyright: ignore[reportPrivateUsage]
        if quota.exists():
            assert quota.read_text().strip() == "100000"
        before = (sleeper.spec.officed_dir / "officed").read_bytes()
        attack = await sleeper.door.run(("sh", "-c", "echo > /.tenure/bin/officed"), env={}, user="root")
        assert attack.exit_code != 0
        assert (sleeper.spec.officed_dir / "officed").read_bytes() == before
        leak = await sleeper.door.run(("python3", "-c", LEAK), env={}, user="root", timeout_s=EVENT_TIMEOUT_S)
        assert (leak.exit_code != 0, leak.timed_out) == (True, False)
        assert await sleeper.run("echo here") == "here"
    guarding.cancel()
    assert ended == [sleeper.spec.id] * 2


async def test_a_drain_names_deleted_files_that_are_in_use(sleeper: Sleeper) -> None:
    hold = (
        "import mmap, os, time\n"
        "def gone(path):\n    file = open(path, 'w+b'); file.write(b'x' * 8192); file.flush(); os.unlink(path); return file\n"
        "opened, kept, shared = gone('/root/opened'), gone('/root/mapped'), gone('/dev/shm/fine')\n"
        "mapped = mmap.mmap(kept.fileno(), 8192); kept.close()\n"
        "open('/root/ready', 'w').close(); time.sleep(600)"
    )
    (sleeper.spec.root / "root/hold.py").write_text(hold)
    await sleeper.run(f"setsid python3 /root/hold.py > /dev/null 2>&1 < /dev/null & {READY}")
    drained = await sleeper.door.drain()
    assert not drained.done
    named = {obstacle.partition(" ")[2] for obstacle in drained.obstacles}
    assert named == {"/root/opened (deleted)", "/root/mapped (deleted)"}
    assert await sleeper.run("echo open") == "open"


async def test_a_command_that_reads_no_input_ends_with_its_client(sleeper: Sleeper) -> None:
    """gVisor does not tell of the end of a connection in which there is something to read."""
    session = await sleeper.door.attach(("sleep", "600"), env={}, user="root")
    feeding = asyncio.create_task(session.send_stdin(b"x" * 8_000_000))
    done, _ = await asyncio.wait([feeding], timeout=0.3)
    assert not done
    feeding.cancel()
    await session.close()
    gone = "while cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q '[s]leep 600'; do sleep 0.05; done; echo gone"
    assert await sleeper.run(gone) == "gone"


async def test_an_office_that_uses_most_of_its_memory_sleeps_and_wakes(sleeper: Sleeper) -> None:
    size = sleeper.spec.limits.memory_bytes * 3 // 4
    program = f"import os, time; a = os.urandom({size}); open('/root/ready', 'w').close(); time.sleep(600)"
    await sleeper.run(f'setsid python3 -c "{program}" > /dev/null 2>&1 < /dev/null & {READY}')
    await sleeper.sleep()
    await sleeper.wake()
    assert (await sleeper.driver.usage(sleeper.spec.id)).memory_bytes > size
    assert await sleeper.run("echo here") == "here"
