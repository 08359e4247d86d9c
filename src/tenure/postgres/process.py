"""Telling whether a data directory's server runs, and signalling exactly it.

A pid file may be stale, copied (a fork of an office holds its origin's), or name a pid that the kernel has given to
another process since. So a pid counts only when that process is a `postgres` whose working directory *is* the data
directory, and it is signalled through a pidfd taken before that check, so that no reuse can come in between.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path

PID_FILE = "postmaster.pid"
PID_FILE_BYTES_MAX = 4096


class Postmaster:
    """A verified, running server. Use as a context manager, or `close()`: it holds a file descriptor."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    def __enter__(self) -> Postmaster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._pidfd)

    def signal(self, number: signal.Signals) -> None:
        """Not an error when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, timeout_s: float) -> bool:
        """Blocks until the process has ended, or for `timeout_s`. Whether it has."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        ended = bool(poll.poll(timeout_s * 1000))
        if ended:
            _reap(self.pid)
        return ended


def find_postmaster(data_dir: Path) -> Postmaster | None:
    """The server that runs on `data_dir`; None when there is none."""
    pid = read_pid(data_dir)
    if pid is None:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if _is_postmaster(pid, data_dir):
        return Postmaster(pid, pidfd)
    os.close(pidfd)
    return None


def read_pid(data_dir: Path) -> int | None:
    """What `postmaster.pid` says, unverified."""
    try:
        with (data_dir / PID_FILE).open("rb") as file:
            pid = int(file.read(PID_FILE_BYTES_MAX).split(b"\n", 1)[0])
    except (OSError, ValueError):
        return None
    return pid if pid > 1 else None


def says_ready(data_dir: Path) -> bool:
    """Whether the server has written that it accepts connections (it is not asked, so nothing lands in its log)."""
    try:
        with (data_dir / PID_FILE).open("rb") as file:
            return file.read(PID_FILE_BYTES_MAX).split(b"\n")[7].strip() == b"ready"
    except (OSError, IndexError):
        return False


def remove_stale_pid_file(data_dir: Path) -> bool:
    """Removes `postmaster.pid` when no server runs on `data_dir`, so that an unrelated process with that pid cannot
    keep the server from starting. Whether there was one."""
    postmaster = find_postmaster(data_dir)
    if postmaster is not None:
        postmaster.close()
        return False
    try:
        (data_dir / PID_FILE).unlink()
    except FileNotFoundError:
        return False
    return True


def wait_for_orphans(data_dir: Path, timeout_s: float) -> bool:
    """Waits for the processes of a killed server to leave `data_dir`: a new one refuses to start beside them. They see
    their postmaster's end by themselves, within milliseconds when idle. Whether they are gone."""
    deadline = time.monotonic() + timeout_s
    while any(_is_postmaster(int(entry), data_dir) for entry in os.listdir("/proc") if entry.isdecimal()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _is_postmaster(pid: int, data_dir: Path) -> bool:
    try:
        program = os.readlink(f"/proc/{pid}/exe")  # a zombie has none
        here, there = os.stat(f"/proc/{pid}/cwd"), data_dir.stat()
    except OSError:
        return False
    name = program.removesuffix(" (deleted)").rsplit("/", 1)[-1]
    return name == "postgres" and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _reap(pid: int) -> None:
    """Collects the exit when the process was our own child."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
