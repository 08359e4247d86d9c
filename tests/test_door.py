"""Guarantees of the door: what goes through it arrives whole, jobs belong to their key, and nonsense from an office is
refused. `officed` runs as a plain process here; `test_survives_kill.py` has it inside gVisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from homes import free_port
from tenure.errors import DoorClosed, DoorError, InvalidArgument, SetupError, TooLarge
from tenure.offices.door import frames
from tenure.offices.door.door import Door, Drained, parse_drained, parse_job_status
from tenure.settings import Settings
from tenure.work.hands import CommandState

NOTICE_S = 10.0
Start = Callable[[], "asyncio.Future[asyncio.subprocess.Process]"]


class Bench:
    """A door with an `officed` on the other side that a test can end and start again."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.directory = directory
        self.door = Door("bench", directory / "doorway")
        self._officed = settings.officed_dir / "officed"
        self._process: asyncio.subprocess.Process | None = None

    async def boot(self, *more: str) -> None:
        self._process = await asyncio.create_subprocess_exec(
            self._officed, "--door", self.directory / "doorway" / "door.sock", "--jobs", self.directory / "jobs", *more
        )
        await self.door.wait_open()

    async def crash(self) -> None:
        """SIGKILL; returns when the door knows, which hears of it by its connections and not by the process's end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        async with asyncio.timeout(NOTICE_S):
            while self.door.is_open:  # noqa: ASYNC110 - a door tells only of arrivals
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        await self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def is_gone(self, pid: int) -> None:
        async with asyncio.timeout(NOTICE_S):
            while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110 - processes of others send no event
                await asyncio.sleep(0.02)

    async def run(self, script: str, **more: object) -> tuple[int, bytes, bytes]:
        result = await self.door.run(("/bin/sh", "-c", script), env={}, user="root", **more)  # type: ignore[arg-type]
        return result.exit_code, result.stdout, result.stderr

    async def job(self, key: str, script: str, timeout_s: float | None = None):
        return await self.door.start_job(key, ("/bin/sh", "-c", script), env={}, user="root", timeout_s=timeout_s)


@pytest.fixture
async def bench(settings: Settings, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(settings, tmp_path)
    await bench.door.open()
    await bench.boot()
    yield bench
    await bench.door.close()
    await bench.crash()


async def test_exit_codes_and_both_streams_arrive(bench: Bench) -> None:
    assert await bench.run("echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert (await bench.run("kill -9 $$"))[0] == 128 + 9


async def test_binary_data_goes_through_unchanged(bench: Bench) -> None:
    data = bytes(range(256)) * 8000
    code, out, _ = await bench.run("cat", stdin=data, output_bytes_max=len(data) + 1)
    assert (code, out) == (0, data)


async def test_a_flood_of_output_is_counted_and_not_kept(bench: Bench) -> None:
    result = await bench.door.run(("head", "-c", "200000000", "/dev/zero"), env={}, user="root")
    assert result.stdout_bytes == 200_000_000
    assert len(result.stdout) == 1024 * 1024


async def test_a_program_that_does_not_exist_is_127_as_in_a_shell(bench: Bench) -> None:
    result = await bench.door.run(("no-such-program",), env={}, user="root")
    assert (result.exit_code, result.stderr) == (127, b"no-such-program: No such file or directory\n")


@pytest.mark.parametrize("wrong", [{"user": "no-such-user"}, {"user": "root", "cwd": "/no/such/dir"}])
async def test_what_cannot_be_started_is_a_clear_error(bench: Bench, wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match=r"no user|No such file"):
        await bench.door.run(("true",), env={}, **wrong)


async def test_a_time_limit_ends_the_whole_process_group(bench: Bench) -> None:
    marker = bench.directory / "alive"
    script = f"(trap '' TERM; while :; do touch {marker}; sleep 0.05; done) & sleep 100"
    result = await bench.door.run(("/bin/sh", "-c", script), env={}, user="root", timeout_s=0.3)
    assert result.timed_out
    marker.unlink(missing_ok=True)
    await asyncio.sleep(0.3)
    assert not marker.exists()


async def test_leaving_a_session_ends_its_command(bench: Bench) -> None:
    session = await bench.door.attach(("/bin/sh", "-c", "echo $$; sleep 100"), env={}, user="root")
    async for _channel, data in session:
        pid = int(data)
        break
    await session.close()
    await bench.is_gone(pid)


@pytest.mark.parametrize("tty", [None, (24, 80)], ids=["pipe", "terminal"])
async def test_leaving_ends_a_command_that_reads_no_input(bench: Bench, tty: tuple[int, int] | None) -> None:
    """More input than all buffers hold is on its way to it, which must not keep the connection open."""
    session = await bench.door.attach(("/bin/sh", "-c", "echo $$; exec sleep 100"), env={}, user="root", tty=tty)
    async for _channel, data in session:
        pid = int(data)
        break
    feeding = asyncio.create_task(session.send_stdin(b"x" * 8_000_000))
    done, _ = await asyncio.wait([feeding], timeout=0.3)
    assert not done, "there is no limit to what waits for a command"
    feeding.cancel()
    await session.close()
    await bench.is_gone(pid)


async def test_a_terminal_is_a_terminal(bench: Bench) -> None:
    session = await bench.door.attach(("/bin/sh",), env={"PS1": ""}, user="root", tty=(30, 100))
    await session.resize(40, 120)
    await session.send_stdin(b"stty size; exit 3\n")
    seen = b"".join([data async for _, data in session])
    assert b"40 120" in seen
    assert await session.wait() == 3


async def test_more_sessions_at_once_than_idle_connections(bench: Bench) -> None:
    results = await asyncio.gather(*(bench.run(f"sleep 0.1; echo {n}") for n in range(40)))
    assert [out for _, out, _ in results] == [f"{n}\n".encode() for n in range(40)]


async def test_a_job_of_a_known_key_never_runs_twice(bench: Bench) -> None:
    log = bench.directory / "log"
    starts = [bench.job("once", f"echo ran >> {log}; sleep 0.2") for _ in range(8)]
    await asyncio.gather(*starts)
    assert (await bench.door.job_status("once", wait_s=10)).state is CommandState.EXITED
    again = await bench.job("once", f"echo ran >> {log}")
    assert again.state is CommandState.EXITED
    assert log.read_text() == "ran\n"


async def test_a_job_outlives_every_connection(bench: Bench) -> None:
    await bench.job("long", "sleep 0.5; echo done; exit 4")
    await bench.door.close()
    await asyncio.sleep(0.2)
    await bench.door.open()
    status = await bench.door.job_status("long", wait_s=10)
    assert (status.state, status.exit_code, status.output) == (CommandState.EXITED, 4, "done\n")


async def test_a_job_whose_office_died_is_lost_not_absent(bench: Bench) -> None:
    await bench.job("cut", "echo begun; sleep 0.2; sleep 100")
    await bench.job("whole", "echo whole")
    await bench.door.job_status("whole", wait_s=10)
    await bench.crash()
    await bench.boot()
    assert (await bench.door.job_status("cut")).state is CommandState.LOST
    whole = await bench.door.job_status("whole")
    assert (whole.state, whole.output) == (CommandState.EXITED, "whole\n")
    assert (await bench.door.job_status("never")).state is CommandState.ABSENT


async def test_a_job_ended_by_the_offices_own_end_is_lost_too(bench: Bench) -> None:
    await bench.job("cut", "sleep 100")
    await bench.end()
    await bench.boot()
    assert (await bench.door.job_status("cut")).state is CommandState.LOST


async def test_a_job_keeps_the_end_of_its_output(bench: Bench) -> None:
    await bench.job("loud", "seq 1 400000")
    status = await bench.door.job_status("loud", wait_s=20)
    assert status.output.endswith("399999\n400000\n")
    assert len(status.output) == 65536
    assert status.output_bytes == sum(len(str(n)) + 1 for n in range(1, 400001))


async def test_stopping_and_forgetting_a_job(bench: Bench) -> None:
    await bench.job("stop", "sleep 100")
    stopped = await bench.door.stop_job("stop")
    assert (stopped.state, stopped.exit_code) == (CommandState.EXITED, 128 + 15)
    forgotten = await bench.door.forget_job("stop")
    assert (forgotten.state, forgotten.output) == (CommandState.EXITED, "")
    assert (await bench.job("stop", "echo again")).output == "", "a forgotten key is still known"
    timed = await bench.job("timed", "sleep 100", timeout_s=0.2)
    assert timed.state is CommandState.RUNNING
    assert (await bench.door.job_status("timed", wait_s=10)).timed_out


async def test_a_silent_office_is_an_error_not_a_wait(bench: Bench) -> None:
    await bench.crash()
    with pytest.raises(DoorClosed, match="did not answer"):
        await bench.door.wait_open(0.2)
    await bench.boot()
    assert (await bench.run("echo back"))[1] == b"back\n"


async def test_hanging_up_is_followed_by_a_new_dial(bench: Bench) -> None:
    bench.door.hang_up()
    await bench.door.wait_open()
    await bench.door.ping()


@pytest.mark.parametrize(
    "answer",
    [
        frames.HEADER.pack(b"1", frames.FRAME_BYTES_MAX + 1),
        frames.frame(b"x", b"not a number"),
        frames.frame(b"j", b"\xff\xfe"),
        b"\0",
    ],
)
async def test_nonsense_from_an_office_is_refused(tmp_path: Path, answer: bytes) -> None:
    door = Door("liar", tmp_path)
    await door.open()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "door.sock")

    async def lie() -> None:
        size = struct.unpack(">I", await reader.readexactly(4))[0]
        await reader.readexactly(size)
        writer.write(frames.frame(frames.STARTED) + answer)
        writer.close()

    lying = asyncio.create_task(lie())
    with pytest.raises(DoorError):
        await door.run(("true",), env={}, user="root")
    await lying
    await door.close()


# --- draining ----------------------------------------------------------------------------------------------------------
def host_sockets(pid: int) -> int:
    """How many connections the process holds that are no listeners."""
    listening = {
        line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:] if line.split()[3] == "00010000"
    }
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            kind, _, inode = os.readlink(entry).partition(":")
            found += kind == "socket" and inode.strip("[]") not in listening
    return found


async def all_dialled(bench: Bench) -> None:
    async with asyncio.timeout(NOTICE_S):
        while host_sockets(bench.pid) < 4:  # noqa: ASYNC110 - processes of others send no event
            await asyncio.sleep(0.01)


async def test_a_drained_office_holds_no_connection_until_the_door_opens_again(bench: Bench) -> None:
    await all_dialled(bench)
    drained = await bench.door.drain()
    assert drained == Drained(done=True)
    assert host_sockets(bench.pid) == 0
    assert not bench.door.is_open
    await asyncio.sleep(0.1)
    assert host_sockets(bench.pid) == 0
    await bench.door.open()
    assert (await bench.run("echo back"))[1] == b"back\n"
    await all_dialled(bench)


async def test_a_command_that_is_known_to_have_ended_is_in_no_drains_way(bench: Bench) -> None:
    for n in range(200):
        assert (await bench.run(f"echo {n}"))[0] == 0
        assert await bench.door.drain() == Drained(done=True)
        await bench.door.open()


async def test_a_drain_is_refused_while_commands_or_jobs_run(bench: Bench) -> None:
    session = await bench.door.attach(("sleep", "100"), env={}, user="root")
    assert await bench.door.drain() == Drained(done=False, commands=1)
    await session.close()
    async with asyncio.timeout(NOTICE_S):
        await bench.job("long", "sleep 100")
        while (refused := await bench.door.drain()).commands:  # noqa: ASYNC110 - it ends soon
            await asyncio.sleep(0.05)
    assert refused == Drained(done=False, jobs=("long",))
    assert (await bench.run("echo open"))[1] == b"open\n", "a refusal changes nothing"
    await bench.door.stop_job("long")
    assert (await bench.door.drain()).done
    await bench.door.open()


async def test_a_drain_ends_streams_and_forwards_and_those_that_wait_go_on_after_it(
    tmp_path: Path, settings: Settings
) -> None:
    """A program whose connection was cut dials again at once: it waits inside, and holds nothing of the host."""
    port = free_port()
    bench = Bench(settings, tmp_path)
    served: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while data := await reader.read(100):
                served.append(data)
                writer.write(data)
        writer.close()

    await bench.door.open()
    upstream = await asyncio.start_unix_server(serve, tmp_path / "db.sock")
    await bench.boot("--forward", f"127.0.0.1:{port}={tmp_path / 'db.sock'}")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    inside = await asyncio.start_server(serve, "127.0.0.1", 0)
    dialled, dialled_writer = await bench.door.dial(f"127.0.0.1:{inside.sockets[0].getsockname()[1]}")
    dialled_writer.write(b"stream")
    assert await dialled.readexactly(6) == b"stream"

    assert (await bench.door.drain()).done
    assert await reader.read() == b""
    assert await dialled.read() == b""
    again, again_writer = await asyncio.open_connection("127.0.0.1", port)
    again_writer.write(b"after")
    await asyncio.sleep(0.1)
    assert served == [b"before", b"stream"]
    await bench.door.open()
    assert await again.readexactly(5) == b"after"
    for end in (writer, dialled_writer, again_writer):
        end.close()
    inside.close()
    upstream.close()
    await bench.door.close()
    await bench.crash()


async def test_an_office_whose_server_died_over_a_drain_dials_the_next(bench: Bench) -> None:
    assert (await bench.door.drain()).done
    another = Door("bench", bench.directory / "doorway")
    await another.open()
    await another.wait_open()
    await another.close()


async def test_an_office_that_does_not_know_the_drain_keeps_its_door(tmp_path: Path) -> None:
    """One that runs an older officed, or an impostor."""
    door = Door("old", tmp_path / "doorway")
    await door.open()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = struct.unpack(">I", await reader.readexactly(4))[0]
        await reader.readexactly(size)
        writer.write(frames.frame(frames.ERROR, b"op: this office's door does not know drain"))

    connections = [await asyncio.open_unix_connection(tmp_path / "doorway" / "door.sock") for _ in range(2)]
    answers = [asyncio.create_task(answer(*connection)) for connection in connections]
    await door.wait_open()
    with pytest.raises(DoorError, match="does not know drain"):
        await door.drain()
    assert (tmp_path / "doorway" / "door.sock").exists()
    for task, (_, writer) in zip(answers, connections, strict=True):
        task.cancel()
        writer.close()
    await door.close()


def test_malformed_answers_to_a_drain_are_refused() -> None:
    for payload in (b"", b"drained\njob x\n", b"refused\n", b"refused\nnonsense\n", b"refused\ncommands -1\n"):
        with pytest.raises(DoorError):
            parse_drained(payload)
    many = b"refused\n" + b"job " + b"k" * 10_000 + b"\n" + b"obstacle \xff\n" * 10_000
    assert len(parse_drained(many).obstacles) < 1000
    assert len(parse_drained(many).jobs[0]) < 1000


def test_malformed_job_statuses_are_refused() -> None:
    for payload in (b"", b"running", b"unknown 0 0 0 0\n", b"exited x 0 0 0\n"):
        with pytest.raises(DoorError):
            parse_job_status(payload)


def test_oversized_requests_are_refused_before_they_are_sent() -> None:
    with pytest.raises(TooLarge):
        frames.DoorRequest("run", argv=("x" * (frames.REQUEST_BYTES_MAX + 1),)).encode()


async def test_a_home_too_deep_for_sockets_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="too long"):
        await Door("deep", tmp_path / ("d" * 120)).open()
