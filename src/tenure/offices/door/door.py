"""The server's end of an office's door: a pool of connections that the office dialled, and what can be done with one.

The office dials the UNIX socket `door.sock` in its doorway and keeps a few connections idle there. To do something the
server takes an idle one and writes a request; so there is nothing to connect first, and every session has a kernel
socket, with its flow control, to itself. See docs/decisions/0001 for what was measured against SSH.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

from tenure.errors import DoorClosed, DoorError, SetupError
from tenure.offices.door import frames
from tenure.offices.door.frames import DoorRequest
from tenure.offices.door.session import (
    EXIT_CODE_MAX,
    STDOUT_CHANNEL,
    DialledReader,
    Session,
    Stream,
    error_of,
    read_frame,
)
from tenure.use import Use
from tenure.work.hands import CommandState, CommandStatus

IDLE_CONNECTIONS_MAX = 16
"""More than `officed` ever keeps; what an office dials beyond it is closed at once."""
ACQUIRE_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 20.0
JOB_WAIT_S_MAX = 30.0
END_GRACE_S = 20.0
"""How long after a command's time limit, which `officed` keeps, an office is believed to be at it still."""
NUMBER_MAX = 2**53
OUTPUT_BYTES_MAX = 1024 * 1024
"""Per stream of `run`, which collects; `attach` streams without a limit."""
STREAM_BUFFER_BYTES = 256 * 1024
SOCKET_PATH_BYTES_MAX = 107
REASONS_MAX = 256
REASON_CHARS_MAX = 400


@dataclass(frozen=True)
class RunResult:
    """What `Door.run` collected: the first `OUTPUT_BYTES_MAX` of each stream, and how much there was in all."""

    exit_code: int
    timed_out: bool
    stdout: bytes
    stderr: bytes
    stdout_bytes: int
    stderr_bytes: int
    duration_s: float


@dataclass(frozen=True)
class Drained:
    """What an office answered to `Door.drain`: `done`, or what is in the way."""

    done: bool
    commands: int = 0
    """Attached commands that run."""
    jobs: tuple[str, ...] = ()
    """Keys of the jobs that run; the first `REASONS_MAX` of them."""
    obstacles: tuple[str, ...] = ()
    """What a memory image cannot hold: "PID /path (deleted)" for a deleted file in use."""


class Door:
    """One office's door. `open` listens; connections appear when the office boots and vanish when it ends."""

    def __init__(self, agent: str, doorway: Path, use: Use | None = None) -> None:
        self.agent = agent
        self._use = use or Use()
        self._path = doorway / "door.sock"
        self._idle: deque[Stream] = deque()
        self._arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._in_use: set[asyncio.StreamWriter] = set()
        self._dialled: WeakSet[asyncio.StreamWriter] = WeakSet()

    # --- life ------------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        """Listens on the doorway's `door.sock` (0600). A socket left by a dead server is replaced. Raises `SetupError`."""
        if len(os.fsencode(self._path)) > SOCKET_PATH_BYTES_MAX:
            raise SetupError(
                f"{self._path} is too long for a UNIX socket ({SOCKET_PATH_BYTES_MAX} bytes at most).",
                hint="Choose a shorter TENURE_HOME or a shorter agent name.",
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(DialledReader(STREAM_BUFFER_BYTES, loop), self._on_dial, loop)

        self._server = await loop.create_unix_server(protocol, self._path)
        os.chmod(self._path, 0o600)

    @property
    def is_listening(self) -> bool:
        return self._server is not None

    async def close(self) -> None:
        """Stops listening and closes every connection: attached commands end, jobs go on."""
        self._stop_listening()
        self.hang_up()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._path.unlink(missing_ok=True)

    def hang_up(self) -> None:
        """Closes all connections; the office dials anew (rung 4 of the ladder)."""
        self.drop_idle()
        for writer in list(self._in_use):
            writer.transport.abort()

    async def drain(self) -> Drained:
        """Has the office let go of every connection to the host, streams and forwards too, as a checkpoint of its memory needs.
        When it did, this door is closed (its other sockets may stay) until `open`, after which the office dials within
        some milliseconds: restored, or never touched. It refuses, and nothing changes, while something is in the way.
        Raises `DoorClosed`, `DoorError`; the door is open then."""
        reader, writer = await self._take(ACQUIRE_TIMEOUT_S)
        self._stop_listening()  # first: what is let go of is not to be dialled again
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                self._ask(reader, writer, DoorRequest("drain").encode())
                kind, payload = await read_frame(reader)
                if kind == frames.ERROR:
                    raise error_of(payload)
                drained = parse_drained(payload)
                if drained.done:
                    await reader.read()
                    while self._idle:
                        idle, idle_writer = self._idle.popleft()
                        await idle.read()
                        idle_writer.close()
        except TimeoutError as error:
            await self.open()
            raise DoorClosed(f"The office of {self.agent} did not let go within {ANSWER_TIMEOUT_S:g} s.") from error
        except BaseException:
            await self.open()
            raise
        finally:
            self._in_use.discard(writer)
            writer.close()
        if not drained.done:
            await self.open()
        return drained

    async def _on_dial(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._dialled.add(writer)
        self._drop_dead()
        if len(self._idle) >= IDLE_CONNECTIONS_MAX:
            writer.close()
            return
        async with self._arrived:
            self._idle.append((reader, writer))
            self._arrived.notify_all()  # not one: it may be one that only wants to know

    @property
    def lines(self) -> int:
        """How many connections of the office are open, idle or in use."""
        return sum(not writer.is_closing() for writer in self._dialled)

    def drop_idle(self) -> None:
        """Closes the idle connections, so that the office dials anew; what is in use goes on."""
        while self._idle:
            self._idle.popleft()[1].close()

    def _drop_dead(self) -> None:
        for _ in range(len(self._idle)):
            reader, writer = self._idle.popleft()
            spoke = isinstance(reader, DialledReader) and reader.spoke_unasked
            if reader.at_eof() or spoke or writer.is_closing():
                writer.close()  # one that spoke unasked is not officed
            else:
                self._idle.append((reader, writer))

    @property
    def is_open(self) -> bool:
        """Whether the office has a connection ready now."""
        self._drop_dead()
        return bool(self._idle)

    async def wait_open(self, timeout_s: float = ACQUIRE_TIMEOUT_S) -> None:
        """Waits for the office to dial. Raises `DoorClosed` when it does not within `timeout_s`."""
        await self._take(timeout_s, keep=True)

    async def _take(self, timeout_s: float, *, keep: bool = False) -> Stream:
        try:
            async with asyncio.timeout(timeout_s), self._arrived:
                while not self.is_open:
                    await self._arrived.wait()
                return self._idle[0] if keep else self._idle.popleft()
        except TimeoutError as error:
            raise DoorClosed(
                f"The office of {self.agent} did not answer at its door within {timeout_s:g} s.",
                hint="Recovery will reconnect or restart it; `tenure sleep` and `tenure wake` do so by hand.",
            ) from error

    @contextlib.asynccontextmanager
    async def _connection(self, request: DoorRequest, *, counts: bool = True) -> AsyncGenerator[Stream]:
        stream = await self._begin(request, counts=counts)
        try:
            yield stream
        finally:
            self._in_use.discard(stream[1])
            stream[1].close()

    async def _begin(self, request: DoorRequest, *, counts: bool = True) -> Stream:
        data = request.encode()
        reader, writer = await self._take(ACQUIRE_TIMEOUT_S)
        if counts:
            self._use.while_open(writer)
        self._ask(reader, writer, data)
        return reader, writer

    def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
        self._in_use.add(writer)
        if isinstance(reader, DialledReader):
            reader.asked = True
        writer.write(data)

    # --- commands --------------------------------------------------------------------------------------------------
    async def ping(self, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Returns when `officed` answered. Raises `DoorClosed`."""
        try:
            async with asyncio.timeout(timeout_s), self._connection(DoorRequest("ping"), counts=False) as (reader, _):
                await read_frame(reader)
        except TimeoutError as error:
            raise DoorClosed(f"The office of {self.agent} did not answer within {timeout_s:g} s.") from error

    async def attach(
        self,
        argv: tuple[str, ...],
        *,
        env: dict[str, str],
        user: str,
        cwd: str | None = None,
        tty: tuple[int, int] | None = None,
        timeout_s: float | None = None,
        counts: bool = True,
    ) -> Session:
        """Starts `argv` (empty: a login shell) and returns its session. Raises as `Session.started` and `DoorClosed`. It
        keeps the office in use unless it does not count, as a probe of Tenure's own."""
        request = DoorRequest("run", argv=argv, env=env, user=user, cwd=cwd, tty=tty, timeout_s=timeout_s)
        reader, writer = await self._begin(request, counts=counts)
        session = Session(reader, writer)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await session.started()
        except TimeoutError as error:
            writer.close()
            raise DoorClosed(
                f"The office of {self.agent} did not start the command in {ANSWER_TIMEOUT_S:g} s."
            ) from error
        except DoorClosed as error:
            writer.close()
            error.details["begun"] = False
            raise
        except BaseException:
            writer.close()
            raise
        finally:
            self._in_use.discard(writer)
        return session

    async def run(
        self,
        argv: tuple[str, ...],
        *,
        env: dict[str, str],
        user: str,
        cwd: str | None = None,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        output_bytes_max: int = OUTPUT_BYTES_MAX,
        counts: bool = True,
    ) -> RunResult:
        """Runs a command to its end and collects its output, dropping what exceeds `output_bytes_max` per stream. Raises as
        `attach`, and `DoorClosed` when the office keeps silent long after `timeout_s`."""
        began = time.monotonic()
        session = await self.attach(argv, env=env, user=user, cwd=cwd, timeout_s=timeout_s, counts=counts)
        feeding = asyncio.create_task(_feed(session, stdin))
        kept = {STDOUT_CHANNEL: bytearray(), 2: bytearray()}
        seen = {STDOUT_CHANNEL: 0, 2: 0}
        try:
            async with asyncio.timeout(None if timeout_s is None else timeout_s + END_GRACE_S):
                async for channel, data in session:
                    room = output_bytes_max - len(kept[channel])
                    kept[channel] += data[: max(room, 0)]
                    seen[channel] += len(data)
        except TimeoutError as error:
            raise DoorClosed(f"The office of {self.agent} did not say how the command ended.") from error
        finally:
            feeding.cancel()
            await session.close()
        assert session.exit is not None
        return RunResult(
            exit_code=session.exit.code,
            timed_out=session.exit.timed_out,
            stdout=bytes(kept[1]),
            stderr=bytes(kept[2]),
            stdout_bytes=seen[1],
            stderr_bytes=seen[2],
            duration_s=time.monotonic() - began,
        )

    # --- jobs: commands that belong to a key -------------------------------------------------------------------------
    async def start_job(
        self,
        key: str,
        argv: tuple[str, ...],
        *,
        env: dict[str, str],
        user: str,
        cwd: str | None = None,
        timeout_s: float | None = None,
    ) -> CommandStatus:
        """Starts `argv` as the job `key` unless there is one; its status. Raises as `Session.started`."""
        request = DoorRequest("job-start", key=key, argv=argv, env=env, user=user, cwd=cwd, timeout_s=timeout_s)
        return await self._ask_job(request)

    async def job_status(self, key: str, wait_s: float = 0.0) -> CommandStatus:
        """What became of the job `key`; waits up to `wait_s` (at most 30) for its end."""
        return await self._ask_job(DoorRequest("job-status", key=key, wait_s=min(wait_s, JOB_WAIT_S_MAX)))

    async def stop_job(self, key: str) -> CommandStatus:
        """Ends the job: SIGTERM, five seconds later SIGKILL."""
        return await self._ask_job(DoorRequest("job-stop", key=key))

    async def forget_job(self, key: str) -> CommandStatus:
        """Drops the record of a job that ended; a running one stays."""
        return await self._ask_job(DoorRequest("job-forget", key=key))

    async def _ask_job(self, request: DoorRequest) -> CommandStatus:
        timeout_s = ANSWER_TIMEOUT_S + (request.wait_s or 0.0)
        try:
            async with asyncio.timeout(timeout_s), self._connection(request) as (reader, _):
                kind, payload = await read_frame(reader)
        except TimeoutError as error:
            raise DoorClosed(f"The office of {self.agent} did not answer within {timeout_s:g} s.") from error
        if kind == frames.ERROR:
            if payload.startswith(b"program: "):
                text = payload.removeprefix(b"program: ").decode("utf-8", "replace")
                return CommandStatus(CommandState.EXITED, exit_code=127, output=text, output_bytes=len(text))
            raise error_of(payload)
        return parse_job_status(payload)

    # --- neighbours --------------------------------------------------------------------------------------------------
    async def declare_forwards(self, forwards: Sequence[tuple[str, str]], hosts: str) -> tuple[str, ...]:
        """Tells the office all forwards (`address:port`, socket name in the doorway) that it has beside those it was started
        with, and its hosts file: what it had and is not declared ends, with its connections. Returns what could not be done,
        for a person. Raises `DoorClosed`, `DoorError`."""
        request = DoorRequest("forwards", argv=tuple(f"{address}={name}" for address, name in forwards), hosts=hosts)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._connection(request, counts=False) as (reader, _):
                kind, payload = await read_frame(reader)
        except TimeoutError as error:
            raise DoorClosed(f"The office of {self.agent} did not answer within {ANSWER_TIMEOUT_S:g} s.") from error
        if kind == frames.ERROR:
            raise error_of(payload)
        if kind != frames.FORWARDS:
            raise DoorError("The office's door sent a malformed answer.")
        lines = payload.decode("utf-8", "replace").splitlines()
        return tuple(line[:REASON_CHARS_MAX] for line in lines[:REASONS_MAX])

    # --- byte streams ------------------------------------------------------------------------------------------------
    async def ssh(self) -> Stream:
        """Bytes of an SSH connection to an `sshd -i` of the office; the caller closes the writer."""
        return await self._stream(DoorRequest("ssh"))

    async def dial(self, address: str) -> Stream:
        """Bytes to `address` ("127.0.0.1:8000") on the office's loopback. Raises `DoorError` when nothing listens there."""
        return await self._stream(DoorRequest("dial", argv=(address,)))

    async def _stream(self, request: DoorRequest) -> Stream:
        reader, writer = await self._begin(request)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                kind, payload = await read_frame(reader)
            if kind == frames.ERROR:
                raise error_of(payload)
        except TimeoutError as error:
            writer.close()
            raise DoorClosed(f"The office of {self.agent} did not answer within {ANSWER_TIMEOUT_S:g} s.") from error
        except BaseException:
            writer.close()
            raise
        finally:
            self._in_use.discard(writer)
        return reader, writer


async def _feed(session: Session, stdin: bytes) -> None:
    if stdin:
        await session.send_stdin(stdin)
    await session.send_eof()


def parse_job_status(payload: bytes) -> CommandStatus:
    """A `j` frame as a `CommandStatus`. Raises `DoorError` on nonsense."""
    head, _, tail = payload.partition(b"\n")
    try:
        state, code, timed_out, output_bytes, duration_ms = head.decode("ascii").split(" ")
        known = CommandState(state)
        exited = known is CommandState.EXITED
        return CommandStatus(
            state=known,
            exit_code=_number(code, EXIT_CODE_MAX) if exited else None,
            timed_out=timed_out == "1",
            output=tail.decode("utf-8", "replace"),
            output_bytes=_number(output_bytes, NUMBER_MAX) if exited else len(tail),
            duration_s=None
            if known in (CommandState.ABSENT, CommandState.LOST)
            else _number(duration_ms, NUMBER_MAX) / 1000,
        )
    except ValueError as error:
        raise DoorError("The office's door sent a malformed job status.") from error


def parse_drained(payload: bytes) -> Drained:
    """A `d` frame as `Drained`. Raises `DoorError` on nonsense."""
    verdict, *lines = payload.decode("utf-8", "replace").removesuffix("\n").split("\n")
    commands, jobs, obstacles = 0, list[str](), list[str]()
    try:
        for line in lines[:REASONS_MAX]:
            kind, _, text = line[:REASON_CHARS_MAX].partition(" ")
            match kind:
                case "commands":
                    commands = _number(text, NUMBER_MAX)
                case "job":
                    jobs.append(text)
                case "obstacle":
                    obstacles.append(text)
                case _:
                    raise ValueError(kind)
        if (verdict, not lines) not in (("drained", True), ("refused", False)):
            raise ValueError(verdict)
    except ValueError as error:
        raise DoorError("The office's door sent a malformed answer.") from error
    return Drained(verdict == "drained", commands, tuple(jobs), tuple(obstacles))


def _number(text: str, greatest: int) -> int:
    number = int(text)
    if not 0 <= number <= greatest:
        raise ValueError(f"{number} is out of bounds")
    return number
