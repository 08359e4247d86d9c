"""The home directory of a server: its shape, its rights, and the lock that keeps it to one server."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from tenure.errors import Conflict, SetupError
from tenure.settings import Settings

LOCK_WAIT_S = 3.0
"""A look at the lock (`holder`) takes it for an instant; a server that just ended needs a moment to let go."""
LOCK_POLL_S = 0.05
PASS_THROUGH = 0o711
"""Users that databases run as must reach what is theirs below; nobody else lists anything."""


def prepare_home(settings: Settings) -> None:
    """Makes the directories with their rights. May be called again. Raises `SetupError` when this user may not."""
    try:
        for directory, mode in (
            (settings.home, PASS_THROUGH),
            (settings.run_dir, PASS_THROUGH),
            (settings.run_dir / "doors", 0o700),
            (settings.logs_dir, 0o700),
        ):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(mode)
    except PermissionError as error:
        raise SetupError(
            f"This user may not write to {settings.home}.",
            hint="Run it as root (`sudo tenure up`), or choose another directory with TENURE_HOME.",
        ) from error
    except (NotADirectoryError, FileExistsError) as error:
        raise SetupError(
            f"{error.filename} is not a directory.", hint="Choose another directory with TENURE_HOME."
        ) from error


class HomeLock:
    """Held by a server as long as it lives, by the kernel's account: a killed server holds nothing."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.pid_file
        self._descriptor: int | None = None

    def __enter__(self) -> HomeLock:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                pid = _read_pid(descriptor)
                os.close(descriptor)
                raise Conflict(
                    f"A server runs on {self._path.parent.parent} already (pid {pid or 'unknown'}).",
                    hint="`tenure status` shows it, `tenure down` stops it.",
                )
            time.sleep(LOCK_POLL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)  # the file stays: removing it would let two lock two files
            os.close(self._descriptor)
            self._descriptor = None


def holder(settings: Settings) -> int | None:
    """The pid of the server that holds the home; None when there is none."""
    try:
        descriptor = os.open(settings.pid_file, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise SetupError(
            f"This user may not read {settings.pid_file}.", hint="Run it as the user who started the server."
        ) from error
    with contextlib.closing(os.fdopen(descriptor)) as file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _try_lock(descriptor, fcntl.LOCK_SH):
            if (pid := _read_pid(descriptor)) is not None or time.monotonic() > deadline:
                return pid
            time.sleep(LOCK_POLL_S)  # it is being taken: the pid follows
        del file
    return None


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None


def log_file(settings: Settings) -> Path:
    return settings.logs_dir / "server.log"


def stderr_file(settings: Settings) -> Path:
    """What a server printed outside of its log: a crash of the interpreter itself."""
    return settings.logs_dir / "server.stderr"


def start_failure_file(settings: Settings) -> Path:
    """Payload of the error that a server could not start for, for the one who started it."""
    return settings.run_dir / "start-failure.json"
