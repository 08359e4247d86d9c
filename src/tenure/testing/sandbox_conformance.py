"""What every `Sandbox` driver must do, clause by clause.

For the author of a driver: parametrise one test over `SANDBOX_CONTRACTS`, each with a fresh `SandboxBench`, or call
`check_sandbox_driver`. Where a driver declares `isolates = False`, the clauses assert that this is so, and skip nothing.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tenure.errors import Conflict, InvalidArgument, NotFound
from tenure.offices.sandboxes.base import SandboxState
from tenure.testing.checkpoint_conformance import CHECKPOINT_CONTRACTS
from tenure.testing.office_probe import OFFICED, OfficeProbe
from tenure.testing.sandbox_bench import (
    EVENT_TIMEOUT_S,
    LIMITS,
    STILLNESS_S,
    Contract,
    SandboxBench,
    eventually,
    refused,
)

BEAT = "(while :; do date +%s%N > $PROBE_NOTES/beat; sleep 0.02; done) > /dev/null 2>&1 < /dev/null & echo beating"


async def check_sandbox_driver(make_bench: Callable[[], SandboxBench]) -> None:
    """Runs every clause, each on a fresh bench. Raises `AssertionError` at the first that does not hold."""
    for contract in SANDBOX_CONTRACTS:
        await contract(make_bench())


async def a_sandbox_never_started_is_absent(bench: SandboxBench) -> None:
    driver, name = bench.make_driver(), bench.unique_name("none")
    assert await driver.state(name) is SandboxState.ABSENT
    assert name not in await driver.ids()
    await driver.stop(name)
    await refused(driver.usage(name), NotFound)
    await refused(driver.pause(name), Conflict)
    await refused(driver.resume(name), Conflict)


async def an_id_cannot_lead_elsewhere(bench: SandboxBench) -> None:
    for bad in ("", "..", "../x", "a/b", "A", "a b", "x" * 81):
        await refused(bench.make_driver().state(bad), InvalidArgument)


async def a_started_sandbox_runs_officed_which_dials_the_door(bench: SandboxBench) -> None:
    async with await bench.office(forwards=(("127.0.0.2:5432", "db.sock"),)) as office:
        await office.start()
        assert await office.driver.state(office.id) is SandboxState.RUNNING
        assert office.id in await office.driver.ids()
        assert await office.output("echo hello") == "hello"
        argv = json.loads(await office.output("echo $PROBE_ARGV"))
        door = await office.output("dirname $PROBE_DOOR")
        assert argv[argv.index("--forward") + 1] == f"127.0.0.2:5432={door}/db.sock"


async def officed_finds_the_hosts_file_and_sockets_that_come_and_go(bench: SandboxBench) -> None:
    """As neighbours of an office do: it need not be started anew for them."""
    hears = (
        "import os, socket; s = socket.socket(socket.AF_UNIX); s.connect(os.environ['S']); print(s.recv(9).decode())"
    )
    async with await bench.office() as office:
        await office.start()
        argv = json.loads(await office.output("echo $PROBE_ARGV"))
        hosts = argv[argv.index("--hosts") + 1]
        await office.output(f"mkdir -p $(dirname {hosts}); echo 127.0.1.1 sales.db > {hosts}")
        assert (office.spec.root / "etc/hosts").read_text() == "127.0.1.1 sales.db\n"
        connect = f'S=$(dirname $PROBE_DOOR)/later.sock python3 -c "{hears}"'
        for word in ("first", "second"):
            server = await asyncio.start_unix_server(_says(word), office.spec.doorway / "later.sock")
            assert await office.output(connect) == word
            server.close()
            (office.spec.doorway / "later.sock").unlink(missing_ok=True)
            assert (await office.run(connect)).exit_code != 0


async def starting_twice_is_a_conflict_and_harms_nothing(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        await office.start()
        await refused(office.start(), Conflict)
        assert await office.output("echo still here") == "still here"


async def two_starts_at_once_give_one_sandbox(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        results = await asyncio.gather(office.start(), office.start(), return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["Conflict", "NoneType"], results
        assert await office.output("echo one") == "one"


async def the_root_outlives_the_sandbox(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        await office.start()
        await office.output("echo kept > $PROBE_NOTES/file")
        await office.driver.stop(office.id)
        assert (office.notes / "file").read_text() == "kept\n"
        await office.start()
        assert await office.output("cat $PROBE_NOTES/file") == "kept"


async def stop_asks_before_it_kills(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        await office.start()
        await office.has_dialled()
        await office.driver.stop(office.id, grace_s=EVENT_TIMEOUT_S)
        assert (office.notes / "terminated").read_text() == "yes"


async def stop_ends_what_will_not_end(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        office.notes.mkdir(parents=True, exist_ok=True)
        (office.notes / "ignore-sigterm").touch()
        await office.start()
        await office.output(f"trap '' TERM; {BEAT}")
        await office.driver.stop(office.id, grace_s=0.2)
        assert await office.driver.state(office.id) is SandboxState.ABSENT
        assert office.id not in await office.driver.ids()
        assert not await _beats(office, STILLNESS_S)
        assert not (office.notes / "terminated").exists()
        await office.driver.stop(office.id)


async def a_sandbox_that_ends_by_itself_is_dead_and_starts_again(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        await office.start()
        await _dies(office)
        assert office.id in await office.driver.ids()
        await refused(office.driver.usage(office.id), NotFound)
        await office.start()
        assert await office.output("echo again") == "again"
        await _dies(office)
        await office.driver.stop(office.id)
        assert await office.driver.state(office.id) is SandboxState.ABSENT


async def an_officed_that_fails_leaves_a_dead_sandbox(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        office.notes.mkdir(parents=True, exist_ok=True)
        (office.notes / "exit-at-start").touch()
        await office.start()
        await _becomes(office, SandboxState.DEAD)


async def pause_freezes_and_resume_thaws(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        driver = office.driver
        await office.start()
        await office.output(BEAT)
        assert await _beats(office, EVENT_TIMEOUT_S)
        await driver.pause(office.id)
        assert await driver.state(office.id) is SandboxState.PAUSED
        assert office.id in await driver.ids()
        assert not await _beats(office, STILLNESS_S)
        await refused(driver.pause(office.id), Conflict)
        await refused(office.start(), Conflict)
        await driver.resume(office.id)
        assert await driver.state(office.id) is SandboxState.RUNNING
        assert await _beats(office, EVENT_TIMEOUT_S)
        await refused(driver.resume(office.id), Conflict)


async def a_paused_sandbox_can_be_stopped(bench: SandboxBench) -> None:
    for grace_s in (0.0, EVENT_TIMEOUT_S):
        async with await bench.office() as office:
            await office.start()
            await office.has_dialled()
            await office.driver.pause(office.id)
            await office.driver.stop(office.id, grace_s=grace_s)
            assert await office.driver.state(office.id) is SandboxState.ABSENT


async def usage_counts_memory_time_and_processes(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        await office.start()
        await office.has_dialled()
        before = await office.driver.usage(office.id)
        assert before.memory_bytes > 0
        assert before.processes > 0
        await office.output("(python3 -c 'a = b\"x\" * 100_000_000\nimport time; time.sleep(600)') > /dev/null 2>&1 &")
        # A fixed amount of work: the guest's own clock of processor time runs on while the host lets it wait.
        await office.output("python3 -c 'for _ in range(60_000_000): pass'")
        await eventually(lambda: _memory_grew(office, before.memory_bytes + 80_000_000))
        assert (await office.driver.usage(office.id)).cpu_s >= before.cpu_s + 0.4


async def sandboxes_outlive_the_server(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        await office.start()
        other = bench.make_driver()
        assert await other.state(office.id) is SandboxState.RUNNING
        assert office.id in await other.ids()
        await other.pause(office.id)
        await other.resume(office.id)
        assert await office.output("echo here") == "here"
        await other.stop(office.id)
        assert await office.driver.state(office.id) is SandboxState.ABSENT


async def it_is_a_machine_of_its_own(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        await office.start()
        hostname, first = (
            await office.output("cat /proc/sys/kernel/hostname"),
            await office.output("cat /proc/1/cmdline"),
        )
        interfaces = await office.output("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '")
        (bench.directory / "host-file").touch()
        sees_host = await office.run(f"test -e {bench.directory / 'host-file'}")
        assert "officed" in first
        if office.driver.isolates:
            assert hostname == "host-a"
            assert interfaces == "lo"
            assert sees_host.exit_code == 1
        else:
            assert hostname == Path("/proc/sys/kernel/hostname").read_text().strip()
            assert sees_host.exit_code == 0


async def the_doorway_is_for_connecting_only(bench: SandboxBench) -> None:
    async with await bench.office() as office:
        await office.start()
        (office.spec.doorway / "plain").write_text("host's")
        attempts = {
            "make a file": "touch $D/new",
            "make a directory": "mkdir $D/new",
            "make a socket": 'python3 -c \'import os, socket; socket.socket(socket.AF_UNIX).bind(os.environ["D"] + "/new")\'',
            "replace the door": "echo x > $D/other && mv $D/other $D/door.sock",
            "rename the door": "mv $D/door.sock $D/elsewhere",
            "remove the door": "rm -f $D/door.sock",
            "write a file": "echo office > $D/plain",
            "change modes": "chmod 777 $D/plain",
            "mount it anew": "mount -o remount,rw $D",
            "change officed": "echo x >> /.tenure/bin/officed",
            "empty officed": "echo x > /.tenure/bin/officed",
        }
        script = "D=$(dirname $PROBE_DOOR); export D; "
        if not office.driver.isolates:
            await office.output(script + "touch $D/new")
            assert (office.spec.doorway / "new").exists()
            return
        for what, attempt in attempts.items():
            assert (await office.run(script + attempt)).exit_code != 0, f"the office could {what}"
        assert sorted(entry.name for entry in office.spec.doorway.iterdir()) == ["door.sock", "plain"]
        assert (office.spec.doorway / "plain").read_text() == "host's"
        assert (office.spec.officed_dir / "officed").read_text() == OFFICED


async def processes_are_limited(bench: SandboxBench) -> None:
    fork = (
        "python3 -c 'import os, time\nn = 0\ntry:\n    while n < 300:\n"
        "        if os.fork() == 0: os.close(1); time.sleep(600)\n        n += 1\nexcept OSError: pass\nprint(n, flush=True)'"
    )
    async with await bench.office() as office:
        await office.start()
        for uid in (None, 1000) if office.driver.isolates else (None,):
            forked = int(await office.output(fork + " 2> /dev/null < /dev/null", uid=uid))
            if office.driver.isolates:
                assert LIMITS.processes_max // 2 <= forked <= LIMITS.processes_max
            else:
                assert forked == 300
            await office.driver.stop(office.id, grace_s=0)
            await office.start()


async def memory_is_limited(bench: SandboxBench) -> None:
    wanted_bytes = 3 * LIMITS.memory_bytes
    eat = f"python3 -c 'a = bytearray({wanted_bytes})\nfor i in range(0, len(a), 4096): a[i] = 1\nprint(len(a))'"
    async with await bench.office("eater") as eater, await bench.office("neighbour") as neighbour:
        await eater.start()
        await neighbour.start()
        try:
            answer = await eater.run(eat)
        except ConnectionError:  # the sandbox ended with its process, as it may
            answer = None
        if eater.driver.isolates:
            assert answer is None or answer.exit_code != 0
        else:
            assert answer is not None
            assert answer.output.strip() == str(wanted_bytes)
        assert await neighbour.output("echo untouched") == "untouched"


async def a_ruined_root_still_boots(bench: SandboxBench) -> None:
    """`officed` is static and comes from outside the root: whatever an office deletes, its door opens."""
    async with await bench.office() as office:
        await office.start()
        if office.driver.isolates:
            answer = await office.run("rm -rf --one-file-system --no-preserve-root / 2> /dev/null; echo done")
            assert "done" in answer.output
        await office.driver.stop(office.id)
        if not office.driver.isolates:  # inside, / is the host's
            shutil.rmtree(office.spec.root)
        shutil.copy(bench.officed, office.spec.officed_dir / "officed")
        await office.start()
        await office.has_dialled()
        assert await office.driver.state(office.id) is SandboxState.RUNNING


SANDBOX_CONTRACTS: list[Contract] = [
    a_sandbox_never_started_is_absent,
    an_id_cannot_lead_elsewhere,
    a_started_sandbox_runs_officed_which_dials_the_door,
    officed_finds_the_hosts_file_and_sockets_that_come_and_go,
    starting_twice_is_a_conflict_and_harms_nothing,
    two_starts_at_once_give_one_sandbox,
    the_root_outlives_the_sandbox,
    stop_asks_before_it_kills,
    stop_ends_what_will_not_end,
    a_sandbox_that_ends_by_itself_is_dead_and_starts_again,
    an_officed_that_fails_leaves_a_dead_sandbox,
    pause_freezes_and_resume_thaws,
    a_paused_sandbox_can_be_stopped,
    usage_counts_memory_time_and_processes,
    sandboxes_outlive_the_server,
    it_is_a_machine_of_its_own,
    the_doorway_is_for_connecting_only,
    processes_are_limited,
    memory_is_limited,
    a_ruined_root_still_boots,
    *CHECKPOINT_CONTRACTS,
]


# --- helpers -----------------------------------------------------------------------------------------------------------
def _says(word: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
    def arrived(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(word.encode())
        writer.close()

    return arrived


async def _becomes(office: OfficeProbe, state: SandboxState) -> None:
    async def reached() -> bool:
        return await office.driver.state(office.id) is state

    await eventually(reached)


async def _dies(office: OfficeProbe) -> None:
    """`officed` leaves, and PID 1 with it."""
    await office.output("(sleep 0.1; kill -KILL $PROBE_PID; kill -TERM $PROBE_PID) > /dev/null 2>&1 &")
    await _becomes(office, SandboxState.DEAD)


async def _memory_grew(office: OfficeProbe, memory_bytes: int) -> bool:
    return (await office.driver.usage(office.id)).memory_bytes >= memory_bytes


async def _beats(office: OfficeProbe, within_s: float) -> bool:
    """Whether the office's heart-beat file changes within that time."""
    beat = office.notes / "beat"
    deadline, first = time.monotonic() + within_s, beat.read_bytes() if beat.exists() else b""
    while time.monotonic() < deadline:
        if beat.exists() and beat.read_bytes() not in (first, b""):
            return True
        await asyncio.sleep(0.02)
    return False
