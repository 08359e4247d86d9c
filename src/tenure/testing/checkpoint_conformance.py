"""What every `Sandbox` driver must do about memory images, clause by clause; part of `sandbox_conformance`."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import stat
from dataclasses import replace
from pathlib import Path

from tenure.errors import Conflict, ImageUnusable, SandboxError
from tenure.offices.sandboxes.base import SandboxDriver, SandboxState
from tenure.testing.office_probe import OfficeProbe
from tenure.testing.sandbox_bench import EVENT_TIMEOUT_S, STILLNESS_S, Contract, SandboxBench, eventually, refused

BINDING = "generation 7"
LARGE_BYTES, SMALL_BYTES = 50_000_000, 1000
CYCLES = 20
REMEMBER = r"""
import hashlib, os, secrets, socket, sys, threading, time

def keep(name, value):
    with open(name + ".new", "w") as file:
        file.write(str(value))
    os.replace(name + ".new", name)

def echo(listener):
    line, _ = listener.accept()
    while data := line.recv(100):
        line.sendall(data)

os.chdir(os.environ["PROBE_NOTES"])
me, block = secrets.token_hex(8), os.urandom(int(sys.argv[1]))
listener = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    echo(listener)
    os._exit(0)
line = socket.create_connection(listener.getsockname())
keep("sum", hashlib.sha1(block).hexdigest())
count = 0
while True:
    count += 1
    line.sendall(b"%d" % count)
    if int(line.recv(100)) != count:
        break
    if os.path.exists("sum-up"):
        os.remove("sum-up")
        keep("sum", hashlib.sha1(block).hexdigest())
    keep("count", "%s %d" % (me, count))
    time.sleep(0.01)
"""
"""A program that lives on what it remembers: who it is, how far it has counted, a block of bytes, a connection to its child."""


async def a_driver_without_memory_images_says_so(bench: SandboxBench) -> None:
    image = bench.directory / "image"
    async with await bench.office() as office:
        assert office.driver.can_checkpoint == (not office.driver.cannot_checkpoint)
        if office.driver.can_checkpoint:
            return
        await refused(office.start(image=image, binding=BINDING), ImageUnusable)
        assert await office.driver.state(office.id) is SandboxState.ABSENT
        await office.start()
        await refused(office.driver.checkpoint(office.id, image, binding=BINDING), SandboxError)
        assert not image.exists()
        assert await office.output("echo runs on") == "runs on"


async def processes_survive_a_checkpoint_with_their_memory(bench: SandboxBench) -> None:
    image = bench.directory / "image"
    async with await bench.office() as office:
        if not await _remembers(office, LARGE_BYTES):
            return
        total = await office.output("cat $PROBE_NOTES/sum")
        me, last = await _counts_on(office)
        await office.drain()
        await office.driver.checkpoint(office.id, image, binding=BINDING)
        assert await office.driver.state(office.id) is SandboxState.ABSENT
        assert office.id not in await office.driver.ids()
        assert await bench.make_driver().state(office.id) is SandboxState.ABSENT
        assert stat.S_IMODE(image.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in image.iterdir()), "it holds secrets"
        frozen = _count(office)
        await asyncio.sleep(STILLNESS_S)
        assert _count(office) == frozen

        before = _tree(image)
        await office.listen()
        office.driver = bench.make_driver()  # as after a restart of the server
        await office.start(image=image, binding=BINDING)
        assert await office.driver.state(office.id) is SandboxState.RUNNING
        assert await _counts_on(office, frozen[1]) >= (me, last), "it began anew"
        await office.output("touch $PROBE_NOTES/sum-up; while [ -e $PROBE_NOTES/sum-up ]; do sleep 0.05; done")
        await eventually(lambda: _says(office, "cat $PROBE_NOTES/sum", total))
        assert _tree(image) == before, "an image is the caller's to delete"
        assert (await office.run("echo x > /.tenure/bin/officed")).exit_code != 0, "writable after a restore"
        await office.output("(exit 3) & wait $!; [ $? = 3 ]")


async def until_the_image_is_there_nothing_runs_on(bench: SandboxBench) -> None:
    """The root belongs to the image: no process writes after its instant, and whoever asks meanwhile is told PAUSED."""
    image = bench.directory / "image"
    async with await bench.office() as office:
        if not await _remembers(office):
            return
        await office.drain()
        driver, other = office.driver, bench.make_driver()
        checkpoint = asyncio.create_task(driver.checkpoint(office.id, image, binding=BINDING))
        await eventually(lambda: _is(other, office.id, SandboxState.PAUSED))
        await refused(driver.resume(office.id), Conflict)
        await refused(driver.pause(office.id), Conflict)
        await refused(driver.checkpoint(office.id, bench.directory / "second", binding=BINDING), Conflict)
        await refused(driver.start(office.spec), Conflict)
        await checkpoint
        count = _count(office)
        await office.listen()
        await office.start(image=image, binding=BINDING)
        assert (await _counts_on(office, count[1]))[0] == count[0]
        await refused(driver.checkpoint(office.id, image, binding=BINDING), Conflict)


async def a_checkpoint_that_cannot_be_written_leaves_the_sandbox_running(bench: SandboxBench) -> None:
    (bench.directory / "file").touch()
    async with await bench.office() as office:
        if not await _remembers(office):
            return
        await office.drain()
        checkpoint = office.driver.checkpoint(office.id, bench.directory / "file" / "image", binding=BINDING)
        assert (await refused(checkpoint, SandboxError)).details["state"] == SandboxState.RUNNING
        assert await office.driver.state(office.id) is SandboxState.RUNNING
        await office.listen()
        assert await office.output("echo runs on") == "runs on"


async def what_no_image_can_hold_leaves_no_image(bench: SandboxBench) -> None:
    """A deleted file that is open may be too much for a driver. Its error then says what became of the sandbox."""
    image = bench.directory / "image"
    async with await bench.office() as office:
        if not await _remembers(office):
            return
        await office.output("exec 9> /root/gone; rm /root/gone; sleep 600 > /dev/null 2>&1 < /dev/null &")
        await office.drain()
        try:
            await office.driver.checkpoint(office.id, image, binding=BINDING)
        except SandboxError as error:
            said = error.details["state"]
        else:
            return
        state = await office.driver.state(office.id)
        assert state in (SandboxState.RUNNING, SandboxState.DEAD)
        assert said == state
        assert not _left_behind(bench)
        await office.listen()
        if state is SandboxState.RUNNING:
            await _counts_on(office)
            assert await office.output("echo runs on") == "runs on"


async def a_cancelled_checkpoint_changes_nothing_or_is_done(bench: SandboxBench) -> None:
    image = bench.directory / "image"
    async with await bench.office() as office:
        if not await _remembers(office):
            return
        for delay_s in (0.0, 0.01, 0.05, 0.1):
            me, _ = await _counts_on(office)
            await office.drain()
            checkpoint = asyncio.create_task(office.driver.checkpoint(office.id, image, binding=BINDING))
            await asyncio.sleep(delay_s)
            checkpoint.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await checkpoint
            await office.listen()
            if image.exists():
                assert await office.driver.state(office.id) is SandboxState.ABSENT
                await office.start(image=image, binding=BINDING)
                shutil.rmtree(image)
            assert await office.driver.state(office.id) is SandboxState.RUNNING
            assert (await _counts_on(office))[0] == me
            assert not _left_behind(bench)


async def a_sandbox_can_be_stopped_while_it_is_checkpointed(bench: SandboxBench) -> None:
    image = bench.directory / "image"
    async with await bench.office() as office:
        if not await _remembers(office):
            return
        await office.drain()
        checkpoint = asyncio.create_task(office.driver.checkpoint(office.id, image, binding=BINDING))
        await eventually(lambda: _is(office.driver, office.id, SandboxState.PAUSED))
        await office.driver.stop(office.id, grace_s=EVENT_TIMEOUT_S)
        await refused(checkpoint, SandboxError)
        assert not image.exists()
        assert await office.driver.state(office.id) is SandboxState.ABSENT


async def an_image_fits_only_what_it_was_made_of(bench: SandboxBench) -> None:
    image = bench.directory / "image"
    async with await bench.office() as office:
        if not await _remembers(office):
            return
        await office.drain()
        await office.driver.checkpoint(office.id, image, binding=BINDING)
        count = _count(office)
        await office.listen()
        spec = office.spec
        others = {
            "memory": replace(spec, limits=replace(spec.limits, memory_bytes=2 * spec.limits.memory_bytes)),
            "processors": replace(spec, limits=replace(spec.limits, cpus=0.5)),
            "name": replace(spec, hostname="other"),
            "forwards": replace(spec, forwards=(("127.0.0.2:1", "db.sock"),)),
            "root": replace(spec, root=await bench.make_root(bench.unique_name("other"))),
        }
        for what, other in others.items():
            await refused(office.driver.start(other, image=image, binding=BINDING), ImageUnusable)
            assert await office.driver.state(office.id) is SandboxState.ABSENT, what
        for binding in ("", "generation 6", BINDING + "0"):
            await refused(office.start(image=image, binding=binding), ImageUnusable)
        program = spec.officed_dir / "officed"
        was = program.read_text()
        program.write_text(was + "# newer\n")
        await refused(office.start(image=image, binding=BINDING), ImageUnusable)
        program.write_text(was)
        assert await office.driver.state(office.id) is SandboxState.ABSENT
        assert _count(office) == count, "something of it ran"
        await office.start(image=image, binding=BINDING)
        assert (await _counts_on(office, count[1]))[0] == count[0]


async def a_damaged_image_is_refused(bench: SandboxBench) -> None:
    image, damaged = bench.directory / "image", bench.directory / "damaged"
    async with await bench.office() as office:
        if not await _remembers(office):
            return
        await office.drain()
        await office.driver.checkpoint(office.id, image, binding=BINDING)
        count = _count(office)
        await office.listen()

        async def refuses(what: str) -> None:
            await refused(office.start(image=damaged, binding=BINDING), ImageUnusable)
            assert await office.driver.state(office.id) is SandboxState.ABSENT, what
            assert office.id not in await office.driver.ids()

        await refuses("missing")
        damaged.mkdir()
        await refuses("empty")
        for name in _names(image):
            for harm in (_flip_first, _flip_middle, _flip_last, _truncate, _empty, Path.unlink):
                shutil.rmtree(damaged)
                shutil.copytree(image, damaged)
                harm(damaged / name)
                await refuses(f"{name}: {harm.__name__}")
        assert _count(office) == count, "something of it ran"
        await office.start(image=image, binding=BINDING)
        assert (await _counts_on(office, count[1]))[0] == count[0]


async def a_sandbox_sleeps_and_wakes_many_times(bench: SandboxBench) -> None:
    image = bench.directory / "image"
    async with await bench.office() as office:
        if not await _remembers(office):
            return
        me, last = await _counts_on(office)
        for _ in range(CYCLES):
            await office.drain()
            await office.driver.checkpoint(office.id, image, binding=BINDING)
            await office.listen()
            await office.start(image=image, binding=BINDING)
            shutil.rmtree(image)
            who, count = await _counts_on(office, last)
            assert who == me
            assert count > last
            last = count
        assert await office.output("echo here") == "here"


CHECKPOINT_CONTRACTS: list[Contract] = [
    a_driver_without_memory_images_says_so,
    processes_survive_a_checkpoint_with_their_memory,
    until_the_image_is_there_nothing_runs_on,
    a_checkpoint_that_cannot_be_written_leaves_the_sandbox_running,
    what_no_image_can_hold_leaves_no_image,
    a_cancelled_checkpoint_changes_nothing_or_is_done,
    a_sandbox_can_be_stopped_while_it_is_checkpointed,
    an_image_fits_only_what_it_was_made_of,
    a_damaged_image_is_refused,
    a_sandbox_sleeps_and_wakes_many_times,
]


# --- helpers -----------------------------------------------------------------------------------------------------------
async def _is(driver: SandboxDriver, sandbox_id: str, state: SandboxState) -> bool:
    return await driver.state(sandbox_id) is state


async def _says(office: OfficeProbe, script: str, output: str) -> bool:
    return await office.output(script) == output


async def _remembers(office: OfficeProbe, block_bytes: int = SMALL_BYTES) -> bool:
    """Starts the sandbox with `REMEMBER` in it; False for a driver without memory images, which another clause is about."""
    if not office.driver.can_checkpoint:
        return False
    await office.start()
    office.notes.mkdir(parents=True, exist_ok=True)
    (office.notes / "remember.py").write_text(REMEMBER)
    await office.output(
        f"setsid python3 $PROBE_NOTES/remember.py {block_bytes} > $PROBE_NOTES/complaints 2>&1 < /dev/null & echo runs"
    )
    await _counts_on(office)
    return True


def _count(office: OfficeProbe) -> tuple[str, int]:
    """Who counts inside, and how far."""
    try:
        who, count = (office.notes / "count").read_text().split()
        return who, int(count)
    except FileNotFoundError:
        return "", 0


async def _counts_on(office: OfficeProbe, beyond: int | None = None) -> tuple[str, int]:
    """Returns when it has counted beyond `beyond` (or beyond now)."""
    last = _count(office)[1] if beyond is None else beyond

    async def further() -> bool:
        return _count(office)[1] > last

    await eventually(further)
    return _count(office)


def _left_behind(bench: SandboxBench) -> list[str]:
    return [name for name in _names(bench.directory) if "image" in name]


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def _tree(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        name: ((directory / name).stat().st_size, (directory / name).stat().st_mtime_ns) for name in _names(directory)
    }


def _flip_at(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def _flip_first(path: Path) -> None:
    _flip_at(path, 0)


def _flip_middle(path: Path) -> None:
    _flip_at(path, path.stat().st_size // 2)


def _flip_last(path: Path) -> None:
    _flip_at(path, path.stat().st_size - 1)


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def _empty(path: Path) -> None:
    path.write_bytes(b"")
