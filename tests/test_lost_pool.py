"""An office survives that everything below it is lost at once, at any stage of what is done with it: the pool's mount, its
sandbox, its database and its server. What was confirmed is there, and what was under way is done wholly or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.live import Live, is_running
from homes import own_pool, share_parts, unmount_pool
from tenure import Tenure
from tenure.client import Agent
from tenure.data.objects import ObjectStore
from tenure.errors import TenureError, VolumeError
from tenure.offices.sandboxes import images
from tenure.offices.volumes import BtrfsDriver
from tenure.server import daemon
from tenure.settings import Settings
from tenure.setup import Image, ensure_pool_mounted
from tenure.setup.pool import ensure_pool

POOL_BYTES = 4 * 1024**3
WAIT_S = 90.0
COMMAND_TIMEOUT_S = 60
NOT_NEEDED = (
    "usr/share",
    "usr/include",
    "usr/libexec",
    "usr/lib/git-core",
    "usr/lib/python3*",
    "usr/lib/gcc*",
    "usr/lib/*/perl*",
    "var/lib/apt",
    "var/cache",
)
"""Parts of the image's root that no shell needs: they would only be moved about."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def lines_of(*command: str | Path) -> list[str]:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    return done.stdout.splitlines()


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@dataclass
class Counted:
    """An agent whose file, table and bucket hold the numbers from 1 to `confirmed`, all written by that order."""

    agent: Agent
    confirmed: int = 0

    def count(self) -> None:
        n = self.confirmed + 1
        assert self.agent.exec(f"echo {n} >> ~/numbers && sync ~/numbers").exit_code == 0
        self.agent.sql(f"create table if not exists numbers (n int); insert into numbers values ({n})")
        self.agent.objects.put("numbers", f"{n:04}", str(n))
        self.confirmed = n


def numbers(agent: Agent) -> int:
    """How far its file, rows and objects have come; fails when they do not agree."""
    file = [int(line) for line in agent.exec("cat ~/numbers").stdout.split()]
    rows = [row[0] for row in agent.sql("select n from numbers order by n").rows]
    objects = [int(item.name) for item in agent.objects.list("numbers")]
    assert file == rows == objects == list(range(1, len(file) + 1))
    assert agent.objects.get("numbers", f"{len(file):04}").decode() == str(len(file))
    return len(file)


@dataclass
class Ground:
    """A server on a pool of its own."""

    live: Live
    fired: Path
    pids: tuple[int, ...] = ()

    @property
    def settings(self) -> Settings:
        return self.live.settings

    def up(self, fault: str | None = None) -> None:
        """Starts a server that stands still at `fault` ("POINT:NTH")."""
        self.fired.unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TENURE_FAULT", f"{fault}:stop" if fault else "")
            patch.setenv("TENURE_FAULT_LOG", str(self.fired))
            self.live.up()
        self.pids = tuple(self.live.pids())
        devices, mounts = self.devices(), self.mounts()
        assert (len(devices), mounts) == (1, 1), (devices, mounts)
        if fault is None:
            assert self.leftovers() == []

    def devices(self) -> list[str]:
        """Loop devices of the pool file: two would ruin it."""
        return lines_of("losetup", "--noheadings", "--output", "NAME", "--associated", self.settings.pool_file)

    def mounts(self) -> int:
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return points.count(str(self.settings.pool_dir))

    def stands(self, fault: str) -> None:
        def stopped() -> bool:
            state = Path(f"/proc/{self.pids[0]}/stat").read_text().rpartition(")")[2].split()[0]
            return self.fired.exists() and f"{fault}:stop" in self.fired.read_text().splitlines() and state == "T"

        wait_until(stopped, f"the server does not come to {fault}")

    def lose_mount(self) -> None:
        """The pool's mount goes away, whoever uses it, and its loop device as soon as nobody does."""
        (device,) = self.devices()
        subprocess.run(["umount", "--lazy", self.settings.pool_dir], check=True, timeout=COMMAND_TIMEOUT_S)
        subprocess.run(["losetup", "--detach", device], check=False, timeout=COMMAND_TIMEOUT_S, capture_output=True)
        assert self.mounts() == 0

    def kill_below(self) -> None:
        """SIGKILL to all sandboxes and databases of offices."""
        databases: list[int] = []
        for file in self.settings.volumes_dir.glob("*/postgres/postmaster.pid"):
            databases.append(int(file.read_text().split()[0]))
        for pid in (*self.sandboxes(), *databases):
            kill(pid)

    def sandboxes(self) -> list[int]:
        root, found = os.fsencode(f"{self.settings.runsc_root}/"), list[int]()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(ValueError, OSError):  # no process, or one that has just ended
                pid, command = int(entry.name), (entry / "cmdline").read_bytes()
                if root in command:
                    found.append(pid)
        return found

    def kill_server(self) -> None:
        for pid in self.pids:
            kill(pid)
        wait_until(lambda: not any(map(is_running, self.pids)), "the server does not end")

    def leftovers(self) -> list[Path]:
        """What is neither an office nor a snapshot that somebody was told of."""
        settings, known = self.settings, list[Path]()
        for agent in self.live.tenure.agents.list():
            known.append(settings.volumes_dir / agent.name)
            known += [settings.snapshots_dir / agent.name / one.id for one in agent.snapshots.list()]
        there = [path for path in settings.volumes_dir.iterdir() if not path.name.startswith(".spare")]
        there += list(settings.snapshots_dir.glob("*/*"))
        there += [path for path in settings.memory_dir.glob(".*") if not path.name.endswith("-spent")]
        return [path for path in there if path not in known]


@pytest.fixture(scope="module")
def ground(image: Image, test_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with own_pool(POOL_BYTES) as settings:
        ensure_pool(settings)
        share_parts(test_home, settings)
        copy = settings.images_dir / image.id
        subprocess.run(["btrfs", "subvolume", "create", copy], check=True, capture_output=True)
        excluded = [f"--exclude=./rootfs/{part}/*" for part in NOT_NEEDED]
        with subprocess.Popen(["tar", "--create", *excluded, "."], cwd=image.path, stdout=subprocess.PIPE) as packing:
            subprocess.run(["tar", "--extract", "--numeric-owner", "-p", "-C", copy], check=True, stdin=packing.stdout)
        (settings.images_dir / "current").symlink_to(image.id)
        daemon.up(settings, foreground=False)
        try:
            with Tenure(settings) as tenure:
                live = Live(settings, tenure, lambda label: label)
                yield Ground(live, tmp_path_factory.mktemp("fired") / "fired", tuple(live.pids()))
        finally:
            daemon.down(settings)


@pytest.fixture(scope="module")
def counted(ground: Ground) -> Counted:
    return Counted(ground.live.agent("counted", memory_mb=512))


# --- below the mount point ------------------------------------------------------------------------------------------------
async def test_nothing_is_stored_where_nobody_would_find_it(tmp_path: Path) -> None:
    """`tmp_path` is what the mount point of a pool is when the pool is not mounted: an empty directory of the machine's disk."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    objects = ObjectStore(tmp_path / "volumes/analyst/objects")
    with pytest.raises(VolumeError, match="There is no volume"):
        await objects.put("bucket", "name", chunks())
    with pytest.raises(VolumeError, match="There is no volume"):
        await objects.create_bucket("bucket")
    with pytest.raises(FileNotFoundError):
        images.begin(tmp_path / "memory/analyst")
    assert list(tmp_path.iterdir()) == []


async def test_what_is_out_of_sight_does_not_count_as_deleted(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="Deleting analyst failed"):
        await BtrfsDriver().delete(tmp_path / "volumes/analyst")


def test_a_pool_is_mounted_once_however_many_ask_for_it() -> None:
    with own_pool(256 * 1024**2) as settings:
        ensure_pool(settings)
        unmount_pool(settings.home)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ensure_pool_mounted, [settings] * 8))
        assert Path("/proc/self/mountinfo").read_text().count(f" {settings.pool_dir} ") == 1


# --- everything at once --------------------------------------------------------------------------------------------------
def lost_over(ground: Ground, fault: str, ask: Callable[[], object]) -> None:
    """Loses everything while what `ask` asks for stands at `fault`; then another server has started."""
    ground.kill_server()
    ground.up(fault)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        ground.stands(fault)
        ground.kill_below()
        ground.lose_mount()
        ground.kill_server()
        with pytest.raises(TenureError):
            asked.result(WAIT_S)
    ground.up()


def test_a_snapshot(ground: Ground, counted: Counted) -> None:
    counted.count()
    lost_over(ground, "snapshot.copied:1", lambda: counted.agent.snapshots.create("whole"))
    assert numbers(counted.agent) == counted.confirmed
    assert counted.agent.snapshots.list() == []
    counted.agent.snapshots.create("whole")
    fork = counted.agent.fork("of-whole", snapshot="whole")
    assert numbers(fork) == counted.confirmed
    fork.delete()


@pytest.mark.parametrize("point", ["hibernate.drained", "hibernate.imaged"])
def test_hibernating(ground: Ground, counted: Counted, point: str) -> None:
    counted.count()
    counted.agent.exec("setsid nohup sleep 12345 > /dev/null 2>&1 &")
    lost_over(ground, f"{point}:1", lambda: counted.agent.sleep("hibernated"))
    imaged = point == "hibernate.imaged"
    assert counted.agent.show().state == ("hibernated" if imaged else "stopped")
    assert (counted.agent.exec("pgrep -fx 'sleep 12345'").exit_code == 0) == imaged
    assert numbers(counted.agent) == counted.confirmed
    assert counted.agent.sleep("hibernated").state == "hibernated"
    counted.count()


@pytest.mark.parametrize("point", ["wake.image-spent", "wake.restored"])
def test_waking(ground: Ground, counted: Counted, point: str) -> None:
    """Memory whose generation is spent is never used again: what ran is lost, and nothing that was written."""
    counted.count()
    counted.agent.exec("setsid nohup sleep 12345 > /dev/null 2>&1 &")
    counted.agent.sleep("hibernated")
    lost_over(ground, f"{point}:1", lambda: counted.agent.exec("true"))
    assert counted.agent.exec("pgrep -fx 'sleep 12345'").exit_code != 0
    assert numbers(counted.agent) == counted.confirmed
    counted.agent.sleep("hibernated")
    counted.count()
    assert not list(ground.settings.memory_dir.glob("counted*"))


@pytest.mark.parametrize("point", ["restore.staged", "restore.placed"])
def test_a_fork(ground: Ground, counted: Counted, point: str) -> None:
    """The server that comes next makes it to its end."""
    counted.count()
    name = f"fork-{point.rpartition('.')[2]}"
    lost_over(ground, f"{point}:1", lambda: counted.agent.fork(name))
    fork = ground.live.tenure.agents.get(name)
    assert numbers(fork) == numbers(counted.agent) == counted.confirmed
    fork.delete()
    counted.agent.fork(name).delete()


@pytest.mark.parametrize("point", ["restore.begun", "restore.prepared", "restore.moved-away"])
def test_a_restore(ground: Ground, counted: Counted, point: str) -> None:
    counted.count()
    then, target = counted.confirmed, counted.agent.snapshots.create()
    counted.count()
    lost_over(ground, f"{point}:1", lambda: counted.agent.snapshots.restore(target.id))
    assert numbers(counted.agent) == (then if point == "restore.moved-away" else counted.confirmed)
    counted.agent.snapshots.restore(target.id)
    assert numbers(counted.agent) == then
    counted.confirmed = then
    counted.count()


@pytest.mark.parametrize("point", ["export.copied", "export.piece"])
def test_an_export(ground: Ground, counted: Counted, point: str, tmp_path: Path) -> None:
    counted.count()
    lost_over(ground, f"{point}:1", lambda: counted.agent.export(tmp_path / "a.tenure"))
    assert list(tmp_path.iterdir()) == []
    assert numbers(counted.agent) == counted.confirmed
    if point == "export.piece":
        again = counted.agent.export(tmp_path / "a.tenure")
        assert (tmp_path / "a.tenure").stat().st_size == again.size_bytes


# --- only the mount ------------------------------------------------------------------------------------------------------
def test_an_office_that_goes_on_is_adopted_on_the_same_filesystem(ground: Ground, counted: Counted) -> None:
    """It holds the old mount, and its loop device: another one of the same file would ruin the pool."""
    counted.count()
    ticks = ground.settings.volumes_dir / "counted/rootfs/home/agent/ticks"
    counted.agent.exec("setsid nohup sh -c 'while :; do echo >> ~/ticks; sleep 0.05; done' > /dev/null 2>&1 &")
    wait_until(ticks.exists, "it does not tick")
    devices = ground.devices()
    ground.lose_mount()
    ground.kill_server()
    assert ground.devices() == devices, "nothing holds the old mount"
    ground.up()
    before = ticks.stat().st_size
    wait_until(lambda: ticks.stat().st_size > before, "what it writes is not in the pool")
    assert counted.agent.show().state == "awake"
    assert numbers(counted.agent) == counted.confirmed
    counted.count()


@pytest.mark.parametrize("fault", ["hibernate.drained:1", "restore.prepared:1"])
def test_a_server_that_goes_on_mounts_it_again(ground: Ground, counted: Counted, fault: str, tmp_path: Path) -> None:
    """Meanwhile nothing is confirmed that would lie below the mount point."""
    agent = counted.agent
    counted.count()
    before, target = counted.confirmed, agent.snapshots.create("target")
    counted.count()
    operations: dict[str, Callable[[], object]] = {
        "hibernate": lambda: agent.sleep("hibernated"),
        "restore": lambda: agent.snapshots.restore(target.id),
    }
    operation = operations[fault.partition(".")[0]]
    ground.kill_server()
    ground.up(fault)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(operation)
        ground.stands(fault)
        ground.lose_mount()
        os.kill(ground.pids[0], signal.SIGCONT)
        stored = succeeds(lambda: agent.objects.put("straddling", fault.partition(".")[0], "x"))
        succeeds(lambda: asked.result(WAIT_S))
    wait_until(lambda: ground.mounts() == 1, "the pool is not mounted again")
    assert len(ground.devices()) == 1, "two loop devices of one file would ruin it"
    assert files_below(ground.settings, tmp_path / "below") == []
    restored = numbers(agent) == before and counted.confirmed != before
    if stored and not restored:
        assert agent.objects.get("straddling", fault.partition(".")[0]) == b"x"
    operation()
    assert numbers(agent) == (before if "restore" in fault else counted.confirmed)
    counted.confirmed = numbers(agent)
    ground.kill_server()
    ground.up()
    agent.snapshots.delete(target.id)


def succeeds(work: Callable[[], object]) -> bool:
    try:
        work()
    except TenureError:
        return False
    return True


def files_below(settings: Settings, view: Path) -> list[Path]:
    """What lies below the pool's mount point, on the machine's own disk."""
    view.mkdir()
    subprocess.run(["mount", "--bind", settings.home, view], check=True, timeout=COMMAND_TIMEOUT_S)
    try:
        return [path for path in (view / "pool").rglob("*") if not path.is_dir()]
    finally:
        subprocess.run(["umount", view], check=True, timeout=COMMAND_TIMEOUT_S)
