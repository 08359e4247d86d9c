"""An office can harm itself only: whatever it does with memory, processes, disk, processor or its own root, its neighbour's
commands keep answering, and it reaches nothing of the host. Real gVisor, real limits; two sandboxes side by side."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from tenure.errors import NotFound, SandboxError
from tenure.offices.sandboxes.base import SandboxLimits, SandboxState
from tenure.offices.sandboxes.cgroups import CGROUP_MOUNT
from tenure.offices.sandboxes.gvisor import GvisorDriver
from tenure.offices.sandboxes.memory_guard import MemoryGuard
from tenure.offices.volumes import BtrfsDriver
from tenure.settings import Settings
from tenure.setup import Image
from tenure.testing.office_probe import OfficeProbe
from tenure.testing.sandbox_conformance import SandboxBench
from tenure.testing.volume_conformance import COUNT_LOST_MAX

MIB = 1024**2
LIMITS = SandboxLimits(cpus=1.0, memory_bytes=512 * MIB, processes_max=64)
ABUSE_S = 6.0
"""How long abuse that has no end of its own is let go on."""
SPIN = "import os\nfor _ in range(4): os.fork()\nwhile True: pass"
FORK_BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
EAT = "a = []\nfor _ in range(40): a.append(b'x' * 50_000_000)\nprint('ate it all')"
LEAK_SLOWLY = "import time\na = []\nwhile True:\n    a.append(b'x' * 10_000_000)\n    time.sleep(0.05)"


class Pair:
    """An office that misbehaves and its neighbour, both running."""

    def __init__(self, bad: OfficeProbe, neighbour: OfficeProbe, driver: GvisorDriver) -> None:
        self.bad, self.neighbour, self.driver = bad, neighbour, driver

    async def neighbour_answers_during(self, abuse: Awaitable[object]) -> None:
        """Asks the neighbour again and again until `abuse` is over: it must answer every time."""
        running = asyncio.ensure_future(abuse)
        answers = 0
        while not running.done() or answers == 0:
            assert await self.neighbour.output(f"echo {answers}") == str(answers)
            answers += 1
        with suppress(ConnectionError, TimeoutError):  # the abuser may have ended its own sandbox
            await running

    async def abuse(self, program: str, *, uid: int | None = None) -> None:
        """Runs an endless Python program in the bad office for a while."""
        with suppress(ConnectionError):
            await self.bad.run(f'timeout -s KILL {ABUSE_S} python3 -c "{program}" > /dev/null 2>&1', uid=uid)


@pytest.fixture
async def bench(settings: Settings, image: Image, unique_name: Callable[[str], str]) -> AsyncIterator[SandboxBench]:
    directory, volumes, made = Path(tempfile.mkdtemp(prefix="tenure-")), BtrfsDriver(), list[Path]()

    async def clone(name: str) -> Path:
        made.append(settings.volumes_dir / name)
        await volumes.create(image.path, made[-1])
        return made[-1] / "rootfs"

    yield SandboxBench(
        lambda: GvisorDriver(settings.runsc_root), clone, unique_name, directory, settings.officed_dir / "officed"
    )
    names = [volume.name for volume in made]
    for volume in made:
        await volumes.delete(volume)
    shutil.rmtree(directory)
    assert _leftovers(names) == []


@pytest.fixture
async def pair(bench: SandboxBench, settings: Settings) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        offices = [await bench.office(label, limits=LIMITS) for label in ("bad", "neighbour")]
        bad, neighbour = [await stack.enter_async_context(office) for office in offices]
        await bad.start()
        await neighbour.start()
        await bad.has_dialled()
        await neighbour.has_dialled()
        yield Pair(bad, neighbour, GvisorDriver(settings.runsc_root))


@pytest.fixture
async def ended(pair: Pair) -> AsyncIterator[list[tuple[str, int]]]:
    """What a memory guard ended meanwhile."""
    found: list[tuple[str, int]] = []

    async def note(sandbox_id: str, held_bytes: int) -> None:
        found.append((sandbox_id, held_bytes))

    async def run_inside(sandbox_id: str, script: str) -> str:
        return await pair.bad.output(script)

    guarding = asyncio.create_task(MemoryGuard(pair.driver, run_inside, note).run())
    yield found
    guarding.cancel()


# --- what it may take ------------------------------------------------------------------------------------------------------
async def test_eating_all_memory_harms_nobody_else(pair: Pair) -> None:
    outputs: list[str] = []

    async def eat() -> None:
        outputs.append((await pair.bad.run(f'python3 -c "{EAT}"')).output)

    await pair.neighbour_answers_during(eat())
    assert "ate it all" not in "".join(outputs)


async def test_a_leaking_process_ends_before_its_office(pair: Pair, ended: list[tuple[str, int]]) -> None:
    """The process that holds most is ended, not gVisor: officed and the rest of the office go on."""
    for times in range(1, 4):
        answer = await pair.bad.run(f'python3 -c "{LEAK_SLOWLY}"')
        assert answer.exit_code != 0
        assert [name for name, _ in ended] == [pair.bad.id] * times
        assert all(held > LIMITS.memory_bytes / 2 for _, held in ended)
    assert await pair.bad.output("echo the office is there") == "the office is there"
    assert await pair.driver.state(pair.bad.id) is SandboxState.RUNNING


@pytest.mark.parametrize("uid", [None, 1000], ids=["root", "agent"])
async def test_forking_without_end_harms_nobody_else(pair: Pair, uid: int | None) -> None:
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            with suppress(NotFound):
                most = max(most, (await pair.driver.usage(pair.bad.id)).processes)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    await pair.neighbour_answers_during(pair.abuse(FORK_BOMB, uid=uid))
    watching.cancel()
    # The host sees two tasks for each process inside, and those of gVisor itself.
    assert LIMITS.processes_max < most <= 3 * LIMITS.processes_max + 64


async def test_filling_its_disk_harms_nobody_else(pair: Pair) -> None:
    volumes = BtrfsDriver()
    volume = pair.bad.spec.root.parent
    for _ in range(COUNT_LOST_MAX):
        await asyncio.to_thread(os.sync)
        used_bytes = (await volumes.usage(volume)).used_bytes
        await volumes.set_limit(volume, used_bytes + 64 * MIB)
        fill = pair.bad.run("head -c 1000000000 /dev/zero > /root/big; echo more > /root/more", uid=None)
        await pair.neighbour_answers_during(fill)
        answer = await pair.bad.run("wc -c < /root/big; head -c 1000000 /dev/zero > /root/last")
        # As a server does: for what others delete in the same pool, the kernel may lose count, and with it the limit.
        if not await volumes.keep_limits(volume):
            break
        await pair.bad.run("rm -f /root/big /root/more /root/last")
    assert "quota" in answer.output.lower()
    assert 32 * MIB < int(answer.output.split()[0]) <= 64 * MIB
    assert await pair.neighbour.output("head -c 100000000 /dev/zero > /root/big && wc -c < /root/big") == "100000000"
    assert await pair.bad.output("rm /root/big && echo again > /root/file && cat /root/file") == "again"


async def test_spinning_on_all_processors_harms_nobody_else(pair: Pair) -> None:
    begun, before = time.monotonic(), (await pair.driver.usage(pair.bad.id)).cpu_s
    await pair.neighbour_answers_during(pair.abuse(SPIN))
    used_s, passed_s = (await pair.driver.usage(pair.bad.id)).cpu_s - before, time.monotonic() - begun
    # An upper bound that the kernel keeps however slow the machine is: a quota every 0.1 s, and one more at each end.
    assert used_s <= LIMITS.cpus * (passed_s + 0.3)


async def test_deleting_its_root_harms_nobody_else(pair: Pair, image: Image) -> None:
    await pair.neighbour_answers_during(pair.bad.run("rm -rf --no-preserve-root / 2> /dev/null; echo done"))
    assert not (pair.bad.spec.root / "usr/bin/env").exists()
    assert (image.rootfs / "usr/bin/env").exists()
    assert await pair.neighbour.output("test -x /usr/bin/env && echo there") == "there"
    assert (pair.bad.spec.officed_dir / "officed").stat().st_size > 0
    assert (pair.bad.spec.doorway / "door.sock").is_socket()


# --- what it may reach -----------------------------------------------------------------------------------------------------
CONNECT = """import socket, sys
s = socket.socket(socket.{family}, socket.{kind}); s.settimeout(5)
try: s.connect({address}); s.send(b'x'); print('reached')
except OSError as error: print('refused', error)
"""


async def test_there_is_no_network_but_loopback(pair: Pair) -> None:
    assert await pair.bad.output("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '") == "lo"
    for kind in ("SOCK_STREAM", "SOCK_DGRAM"):
        program = CONNECT.format(family="AF_INET", kind=kind, address=("192.0.2.1", 53))
        assert (await pair.bad.output(f'python3 -c "{program}"')).startswith("refused")


async def test_services_of_the_host_are_out_of_reach(pair: Pair) -> None:
    reached = 0

    def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal reached
        reached += 1
        writer.close()

    tcp = await asyncio.start_server(count, "0.0.0.0", 0)
    port = tcp.sockets[0].getsockname()[1]
    abstract = await asyncio.start_unix_server(count, f"\0tenure-test-{os.getpid()}")
    own_addresses = {"127.0.0.1", *_addresses()}
    async with tcp, abstract:
        for host in own_addresses:  # the listener can be reached where it may be
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            program = CONNECT.format(family="AF_INET", kind="SOCK_STREAM", address=(host, port))
            assert (await pair.bad.output(f'python3 -c "{program}"')).startswith("refused")
        address = f"'\\\\0tenure-test-{os.getpid()}'"
        program = CONNECT.format(family="AF_UNIX", kind="SOCK_STREAM", address=address)
        assert (await pair.bad.output(f'python3 -c "{program}"')).startswith("refused")
    assert reached == len(own_addresses)


async def test_a_neighbour_and_its_files_are_out_of_sight(pair: Pair) -> None:
    everyone = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    await pair.neighbour.output("echo secret > /root/secret; sleep 600.0725 > /dev/null 2>&1 &")
    assert "600.0725" in await pair.neighbour.output(everyone)
    assert (await pair.bad.run("cat /root/secret")).exit_code != 0
    host = await asyncio.create_subprocess_exec("sleep", "600.0625")
    try:
        seen = await pair.bad.output(everyone)
        assert "officed" in seen
        assert "600.0625" not in seen
        assert "600.0725" not in seen
        assert (await pair.bad.run(f"kill -9 {host.pid}")).exit_code != 0
        assert host.returncode is None
    finally:
        host.kill()
        await host.wait()


async def test_devices_and_mounts_of_the_host_are_out_of_reach(pair: Pair) -> None:
    for number in {os.major(os.stat("/").st_dev) << 8, os.stat(pair.bad.spec.root.parent.parent).st_dev, 7 << 8}:
        major, minor = os.major(number), os.minor(number)
        script = f"rm -f /root/disk; mknod /root/disk b {major} {minor} && head -c 1 /root/disk"
        assert (await pair.bad.run(script)).exit_code != 0
    for script in ("mount -t tmpfs none /mnt", "mount --bind / /mnt", "unshare -m true"):
        assert (await pair.bad.run(script)).exit_code != 0, script


async def test_links_in_the_root_do_not_lead_the_server_out(bench: SandboxBench) -> None:
    """What an office leaves where the server or runsc will write at the next start, it chooses; the host it does not."""
    for link in ("tmp", ".tenure", ".tenure/door", "proc", "dev", "var/lib/tenure"):
        target = bench.directory / f"target-{link.replace('/', '-')}"
        target.mkdir()
        async with await bench.office("bad", limits=LIMITS) as office:
            place = office.spec.root / link
            if place.is_dir():
                shutil.rmtree(place)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(target)
            try:
                await office.start()
                await asyncio.wait_for(office.has_dialled(), 2)
            except (SandboxError, TimeoutError):
                pass  # its own fault; but nothing may have happened outside
            assert os.listdir(target) == [], link


def _addresses() -> set[str]:
    """The machine's own addresses other than loopback."""
    with suppress(OSError):
        return {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    return set()


def _leftovers(names: list[str]) -> list[str]:
    """Processes and control groups of sandboxes that should be gone."""
    found = [str(path) for name in names for path in CGROUP_MOUNT.glob(f"**/tenure/*/{name}")]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = entry.read_bytes()
            found += [
                f"{entry}: {command!r}" for name in names if command.startswith(b"runsc") and name.encode() in command
            ]
    return found
