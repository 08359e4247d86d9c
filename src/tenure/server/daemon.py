"""`tenure up`, `down` and `status`: the server as a background process. Blocking functions, for the command line."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tenure import wire
from tenure.errors import CommandTimeout, InternalError, SetupError, TenureError, from_payload
from tenure.server.home import holder, log_file, prepare_home, start_failure_file, stderr_file
from tenure.server.logs import tail
from tenure.server.main import environment_of
from tenure.settings import Settings

START_WAIT_S = 180.0
"""Recovery of a large control database takes a while; a server that failed is noticed at once."""
STOP_WAIT_S = 180.0
POLL_S = 0.05
HEALTH_TIMEOUT_S = 5.0
SERVER_ARGV = (sys.executable, "-m", "tenure.server")

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""Servers that this process started, to reap them."""


@dataclass(frozen=True)
class Status:
    """Whether a server holds the home, and what it says of itself (None while it starts, stops or hangs)."""

    running: bool
    pid: int | None = None
    health: wire.Health | None = None


def is_running(settings: Settings) -> bool:
    """Whether a server holds the home now, ready or not."""
    return holder(settings) is not None


def status(settings: Settings) -> Status:
    """Asks the kernel and the server itself; never raises for a server that is not there."""
    pid = holder(settings)
    return Status(False) if pid is None else Status(True, pid, _health(settings))


def up(settings: Settings, foreground: bool = False, argv: Sequence[str] = SERVER_ARGV) -> Status:
    """Starts the server and returns when it answers; not an error when it runs already. With `foreground` this process
    becomes the server. Raises what kept it from starting: `SetupError` and others, or `InternalError` with the end of its
    log."""
    prepare_home(settings)
    if foreground:
        # In our place, so that signals and the exit code are the server's own.
        os.execve(argv[0], [*argv, "--foreground"], environment_of(settings, os.environ))
    start_failure_file(settings).unlink(missing_ok=True)
    log_began = log_file(settings).stat().st_size if log_file(settings).exists() else 0
    child = None if is_running(settings) else _spawn(settings, argv)
    deadline = time.monotonic() + START_WAIT_S
    while True:
        pid = holder(settings)
        health = _health(settings) if pid is not None else None
        if health is not None and health.pid == pid:
            return Status(True, pid, health)
        if child is not None and child.poll() is not None:
            if pid is not None and pid != child.pid:
                child = None  # somebody else was faster
                continue
            raise _start_failure(settings, log_began, f"It ended with exit code {child.returncode}.")
        if time.monotonic() > deadline:
            if child is not None:
                child.terminate()
            raise _start_failure(settings, log_began, f"It does not answer after {START_WAIT_S:g} s.")
        if child is None and pid is None:  # the one that ran when we came was about to end
            child = _spawn(settings, argv)
        time.sleep(POLL_S)


def _spawn(settings: Settings, argv: Sequence[str]) -> subprocess.Popen[bytes]:
    with stderr_file(settings).open("wb") as output:
        child = subprocess.Popen(
            argv,
            env=environment_of(settings, os.environ),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # no terminal's hang-up or ^C reaches it
        )
    _children[settings.home] = child
    return child


def _health(settings: Settings) -> wire.Health | None:
    try:
        token = settings.token_file.read_text().strip()
        transport = httpx.HTTPTransport(uds=str(settings.api_socket))
        with httpx.Client(transport=transport, base_url="http://tenure", timeout=HEALTH_TIMEOUT_S) as client:
            answer = client.get("/v1/health", headers={"Authorization": f"Bearer {token}"})
            return wire.Health.model_validate_json(answer.content) if answer.status_code == 200 else None
    except (httpx.HTTPError, OSError):
        return None


def _start_failure(settings: Settings, log_began: int, what: str) -> TenureError:
    """What the server said itself, or else what can be told from outside."""
    with contextlib.suppress(OSError, ValueError):
        return from_payload(json.loads(start_failure_file(settings).read_text()))
    said = "\n".join(
        part for part in (tail(log_file(settings), since_byte=log_began), tail(stderr_file(settings))) if part
    )
    return InternalError(
        f"The server did not start. {what}" + (f" Its last words:\n{said}" if said else ""),
        hint=f"{log_file(settings)} has the whole story; `tenure doctor` checks the machine.",
    )


# --- stopping ----------------------------------------------------------------------------------------------------------------
def down(settings: Settings, argv: Sequence[str] = SERVER_ARGV) -> bool:
    """Stops server and worker, puts the offices to sleep, stops the databases; returns when all is done: False when nothing
    ran. What a killed server left running is stopped too. Raises `CommandTimeout` when the server does not end."""
    pid = holder(settings)
    if pid is not None:
        _end(settings, pid)
        return True
    if has_leftovers(settings):
        _sweep(settings, argv)
        return True
    return False


def _end(settings: Settings, pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError as error:
        raise InternalError(f"The server (pid {pid}) cannot be watched: {error.strerror}.") from error
    try:
        if holder(settings) != pid:
            return  # it ended, and its number may be another's by now
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(STOP_WAIT_S * 1000):
            raise CommandTimeout(
                f"The server (pid {pid}) did not end within {STOP_WAIT_S:g} s.",
                hint=f"`tenure logs --server` may say why. `kill -9 {pid}` ends it; then `tenure down` stops the rest.",
            )
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise SetupError(
            f"This user may not stop the server (pid {pid}).", hint="Run it as root (`sudo tenure down`)."
        ) from error
    finally:
        os.close(pidfd)
        child = _children.pop(settings.home, None)
        if child is not None and child.pid == pid:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=POLL_S)


def has_leftovers(settings: Settings) -> bool:
    """Whether sandboxes or the control database of a killed server may still run."""
    control = settings.control_dir / "postmaster.pid"
    return control.exists() or (settings.runsc_root.exists() and any(settings.runsc_root.iterdir()))


def _sweep(settings: Settings, argv: Sequence[str]) -> None:
    """Starts a server that adopts what is left and stops at once."""
    start_failure_file(settings).unlink(missing_ok=True)
    log_began = log_file(settings).stat().st_size if log_file(settings).exists() else 0
    prepare_home(settings)
    with stderr_file(settings).open("wb") as output:
        try:
            done = subprocess.run(
                [*argv, "--stop-at-once"],
                env=environment_of(settings, os.environ),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=START_WAIT_S + STOP_WAIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandTimeout("What the last server left running could not be stopped in time.") from error
    if done.returncode != 0:
        raise _start_failure(settings, log_began, "What the last server left running could not be stopped.")
