"""One shell, command or sftp of an SSH connection: a session of the office's door."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import asyncssh

from tenure.errors import TenureError
from tenure.server.failures import shorten
from tenure.server.gateway.flow import Inflow, Room, to_the_end, whole
from tenure.server.services import STDERR, Offices, Session

log = logging.getLogger("tenure.ssh")

SUBSYSTEMS = {"sftp": ("/usr/lib/openssh/sftp-server",)}
"""Programs of the office itself: the gateway knows nothing of files."""
SIZE_DEFAULT = (24, 80)
SIZE_MAX = 10_000
EXIT_FAILED = 255
"""What `ssh` itself ends with when it could not do its work."""
STALL_PROBE_S = 10.0
"""How often a session whose input nobody reads looks whether its client is still there."""
ENV_VALUE_CHARS_MAX = 1024
_ENV_TAKEN = re.compile(r"LANG|LC_[A-Z]+|COLORTERM|NO_COLOR|GIT_PROTOCOL")
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")
_SIGNAL = re.compile(r"[A-Z0-9]{1,10}\Z")


@dataclass
class Wanted:
    """What the client asked for, as keyword arguments of `Offices.attach`."""

    argv: Sequence[str] | None = None
    script: str | None = None
    login: bool = False
    env: dict[str, str] = field(default_factory=dict[str, str])
    tty: tuple[int, int] | None = None


class EndOfInput:
    """In the place of data: no more comes."""


Input = bytes | EndOfInput | tuple[int, int] | signal.Signals


class OfficeSession(asyncssh.SSHServerSession[bytes]):
    """`agent` is the name of an agent, or what a client took for one. `refused` are notes for the person, shown first.
    `admit` raises what forbids the session; `ended` is called when the channel is gone."""

    def __init__(
        self,
        offices: Offices,
        agent: str,
        *,
        admit: Callable[[], Awaitable[None]],
        ended: Callable[[OfficeSession], None],
        link: Room,
        notes: Sequence[str] = (),
    ) -> None:
        self._offices, self._agent = offices, agent
        self._admit, self._ended, self._link, self._notes = admit, ended, link, notes
        self._room = Room()
        self._wanted = Wanted()
        self._term: str | None = None
        self._work: asyncio.Task[None] | None = None

    # --- what the client asks for ----------------------------------------------------------------------------------------
    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan
        self._inflow: Inflow[Input] = Inflow(chan)

    def pty_requested(
        self, term_type: str, term_size: tuple[int, int, int, int], term_modes: Mapping[int, int]
    ) -> bool:
        del term_modes  # the office's terminals begin with Linux's own
        self._wanted.tty = _size(term_size) or SIZE_DEFAULT
        self._term = term_type if _TERM.match(term_type) else None
        return True

    def shell_requested(self) -> bool:
        self._wanted.login = True
        return True

    def exec_requested(self, command: str) -> bool:
        self._wanted.script = command
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        self._wanted.argv = SUBSYSTEMS.get(subsystem)
        self._wanted.tty = None
        return self._wanted.argv is not None

    def session_started(self) -> None:
        self._wanted.env = taken_environment(self._channel.get_environment(), self._term)
        self._work = asyncio.create_task(self._run())

    # --- what it sends ---------------------------------------------------------------------------------------------------
    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._inflow.put(data, len(data))

    def eof_received(self) -> bool:
        self._inflow.put(EndOfInput())
        return True  # the output goes on

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        if (size := _size((width, height, pixwidth, pixheight))) is not None:
            self._inflow.put(size)

    def signal_received(self, signal: str) -> None:
        if (number := _number_of(signal)) is not None:
            self._inflow.put(number)

    def break_received(self, msec: int) -> bool:
        """A terminal's break key: as Ctrl-C."""
        self._inflow.put(signal.SIGINT)
        return True

    def pause_writing(self) -> None:
        self._room.pause_writing()

    def resume_writing(self) -> None:
        self._room.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._work is not None:
            self._work.cancel()
        self._ended(self)

    def end(self, reason: str) -> None:
        """Ends the command and tells the person why."""
        if self._work is not None:
            self._work.cancel()
            self._say(reason)
            if not self._channel.is_closing():
                self._channel.exit(EXIT_FAILED)

    # --- the work --------------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        code = EXIT_FAILED
        try:
            for note in self._notes:
                self._say(note)
            code = await self._carry()
        except TenureError as error:
            self._say(error.message, error.hint)
        except OSError:
            pass  # the client closed the channel: there is nobody to be told
        except Exception:
            log.exception("a session of %s broke", shorten(self._agent))
            self._say("Something in the gateway broke.", "The server's log (`tenure logs --server`) has the details.")
        if self._channel.is_closing():
            self._channel.abort()  # lets go of what nobody will read
        else:
            self._channel.exit(code)

    async def _carry(self) -> int:
        """From start to end; the exit code. Raises `TenureError`, and `OSError` when the client left."""
        await self._admit()
        wanted = self._wanted
        session = await whole(
            self._offices.attach(
                self._agent, argv=wanted.argv, script=wanted.script, login=wanted.login, env=wanted.env, tty=wanted.tty
            ),
            lambda unwanted: unwanted.close(),
        )
        feeding = asyncio.create_task(self._feed(session))
        reading = asyncio.create_task(self._read(session))
        try:
            # Feeding ends only by itself when the client left, or when the door broke, which reading tells better.
            await asyncio.wait([feeding, reading], return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and isinstance(feeding.exception(), OSError):
                raise BrokenPipeError
            await reading
            return await session.wait()
        finally:
            closing = to_the_end(session.close())  # first: we may be cancelled once more while we wait
            feeding.cancel()
            reading.cancel()
            await asyncio.gather(feeding, reading, asyncio.shield(closing), return_exceptions=True)

    async def _read(self, session: Session) -> None:
        async for stream, data in session:
            await self._room.wait()
            await self._link.wait()
            if stream == STDERR:
                self._channel.write_stderr(data)
            else:
                self._channel.write(data)  # pyright: ignore[reportUnknownMemberType]

    async def _feed(self, session: Session) -> None:
        while True:
            item = await self._inflow.get()
            match item:
                case bytes():
                    await self._send(session, item)
                case EndOfInput():
                    await session.send_eof()
                case signal.Signals():
                    await session.signal(item)
                case (rows, cols):
                    await session.resize(rows, cols)

    async def _send(self, session: Session, data: bytes) -> None:
        """Raises `BrokenPipeError` when the client left while its input waits for a command that does not read: the channel
        tells nothing before its data is taken."""
        sending = asyncio.ensure_future(session.send_stdin(data))
        try:
            while not (await asyncio.wait([sending], timeout=STALL_PROBE_S))[0]:
                if self._channel.is_closing():
                    raise BrokenPipeError
            sending.result()
        finally:
            sending.cancel()

    def _say(self, *lines: str) -> None:
        """To the person: the name of what speaks, a line each."""
        end = "\r\n" if self._wanted.tty else "\n"
        text = "".join(f"tenure: {part}{end}" for line in lines for part in line.splitlines() if part.strip())
        if not self._channel.is_closing():
            self._channel.write_stderr(text.encode("utf-8", "replace"))


def taken_environment(sent: Mapping[str, str], term: str | None) -> dict[str, str]:
    """What a command gets of the client's environment: language, colours, the terminal's kind, git's protocol. Nothing that says
    where programs and libraries are found."""
    taken = {
        name: value
        for name, value in sent.items()
        if _ENV_TAKEN.fullmatch(name) and value.isprintable() and len(value) <= ENV_VALUE_CHARS_MAX
    }
    return taken if term is None else {**taken, "TERM": term}


def _size(sent: tuple[int, int, int, int]) -> tuple[int, int] | None:
    """(rows, columns), when a terminal can have them."""
    cols, rows = sent[0], sent[1]
    return (rows, cols) if 0 < rows <= SIZE_MAX and 0 < cols <= SIZE_MAX else None


def _number_of(name: str) -> signal.Signals | None:
    return getattr(signal.Signals, f"SIG{name}", None) if _SIGNAL.match(name) else None
