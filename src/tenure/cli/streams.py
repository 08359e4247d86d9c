"""This terminal's streams ↔ a command in an office: stdin, stdout and stderr byte for byte, signals, window size.

The main thread receives; one more thread sends, because a wait for stdin must not hold up output. Signals are written
to a pipe by the interpreter (`set_wakeup_fd`) and read by the sending thread: a handler that sent by itself could
interrupt a send half-way.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator

from tenure.client.attach import CHUNK_BYTES, Attachment, Channel, timed_out
from tenure.errors import ServerUnreachable

KILL_AFTER_S = 5.0
ROOM_WAIT_S = 0.1
"""How long a command that reads no input may keep signals and the time limit waiting."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

Write = Callable[[bytes], None]


def write_to(fd: int) -> Write:
    """Writes everything to `fd`, also where it is non-blocking (a terminal shared with such a program)."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                select.select([], [fd], [])

    return write


def carry(
    attachment: Attachment,
    *,
    stdin_fd: int | None,
    stdout: Write,
    stderr: Write,
    tty: bool = False,
    timeout_s: float | None = None,
) -> int:
    """Carries the streams until the command ends; returns its exit code. Call it in the main thread. Ctrl-C goes to the
    command; a second one ends the wait. Raises `CommandTimeout`, `KeyboardInterrupt`, `ServerUnreachable`, and what the
    server reports."""
    with _signals(tty) as signals_fd:
        sender = _Sender(attachment, stdin_fd, signals_fd, timeout_s)
        sender.start()
        try:
            while (piece := attachment.receive()) is not None:
                channel, data = piece
                (stderr if channel is Channel.STDERR else stdout)(data)
        except ServerUnreachable:
            if sender.interrupted:
                raise KeyboardInterrupt from None
            if sender.timed_out and timeout_s is not None:
                raise timed_out(timeout_s) from None
            raise
        finally:
            sender.end()
    if sender.timed_out and timeout_s is not None:
        raise timed_out(timeout_s)
    assert attachment.exit_code is not None
    return attachment.exit_code


class _Sender(threading.Thread):
    """Sends stdin, signals and window sizes, and ends the command when its time is over."""

    def __init__(self, attachment: Attachment, stdin_fd: int | None, signals_fd: int, timeout_s: float | None) -> None:
        super().__init__(daemon=True, name="stdin")
        self.interrupted = False
        self.timed_out = False
        self._attachment = attachment
        self._stdin_fd = stdin_fd
        self._signals_fd = signals_fd
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._last_resorts = [signal.SIGKILL, signal.SIGTERM]
        self._ended = False
        self._end_read, self._end_write = os.pipe()

    def end(self) -> None:
        """Ends the thread, unless it is held up in a send (then the closing of the connection does)."""
        self._ended = True
        os.close(self._end_write)
        self.join(timeout=1.0)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._signals_fd, select.POLLIN)
        poll.register(self._end_read, select.POLLIN)
        if self._stdin_fd is None:
            self._attachment.end_stdin()
        else:
            poll.register(self._stdin_fd, select.POLLIN)
        while not self._ended:
            ready = [fd for fd, _ in poll.poll(self._wait_ms())]
            if self._end_read in ready:
                break
            if self._signals_fd in ready:
                for number in os.read(self._signals_fd, 64):
                    self._signalled(number)
            if (
                self._stdin_fd is not None
                and self._stdin_fd in ready
                and self._attachment.has_room(ROOM_WAIT_S)
                and not self._forward_stdin()
            ):
                poll.unregister(self._stdin_fd)
                self._stdin_fd = None
            self._watch_time()
        os.close(self._end_read)

    def _forward_stdin(self) -> bool:
        """Whether more may come."""
        assert self._stdin_fd is not None
        try:
            data = os.read(self._stdin_fd, CHUNK_BYTES)
        except OSError:
            data = b""  # stdin is closed, or a terminal that hung up
        if data:
            self._attachment.send_stdin(data)
        else:
            self._attachment.end_stdin()
        return bool(data)

    def _signalled(self, number: int) -> None:
        if number == signal.SIGWINCH:
            self._attachment.resize(*window())
        elif number == signal.SIGINT and self.interrupted:
            self._attachment.close()
        elif number in FORWARDED:
            self.interrupted = self.interrupted or number == signal.SIGINT
            self._attachment.signal(number)

    def _wait_ms(self) -> int | None:
        return None if self._deadline_s is None else max(0, int((self._deadline_s - time.monotonic()) * 1000) + 1)

    def _watch_time(self) -> None:
        if self._deadline_s is None or time.monotonic() < self._deadline_s:
            return
        self.timed_out = True
        if self._last_resorts:
            self._attachment.signal(self._last_resorts.pop())
            self._deadline_s = time.monotonic() + KILL_AFTER_S
        else:  # signals do not arrive: they are behind input that the command does not read
            self._deadline_s = None
            self._attachment.close()


def window() -> tuple[int, int]:
    """(rows, columns) of this terminal."""
    size = shutil.get_terminal_size((80, 24))
    return max(size.lines, 1), max(size.columns, 1)


def _woken(number: int, frame: object) -> None:
    """Nothing: the number is in the pipe by now. Without a handler the signal would end us."""


@contextlib.contextmanager
def _signals(tty: bool) -> Generator[int]:
    """A descriptor from which the numbers of arriving signals can be read."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    numbers = [*FORWARDED, signal.SIGWINCH] if tty else list(FORWARDED)
    before = {number: signal.signal(number, _woken) for number in numbers}
    wakeup_before = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    try:
        yield read_fd
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write_fd)
        os.close(read_fd)


@contextlib.contextmanager
def raw_terminal(fd: int) -> Generator[None]:
    """Every key goes to the other side, Ctrl-C as well; the terminal is put back whatever happens."""
    import termios
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
