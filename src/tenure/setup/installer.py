"""`tenure setup`: says what it will do, does it, and does nothing when everything is in place."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from tenure.errors import SetupError
from tenure.settings import Settings
from tenure.setup.commands import find_tool, succeeds
from tenure.setup.progress import ConsoleProgress, SetupProgress, SilentProgress
from tenure.setup.steps import STEPS, Step
from tenure.setup.system import release

LOCK_FILE = "setup.lock"
LOCK_WAIT_S = 1_800
LOCK_POLL_S = 0.2
SUDO_PROBE_TIMEOUT_S = 10
KEPT_VARIABLES = (
    "TENURE_HOME",
    "TENURE_PORT",
    "TENURE_SSH_PORT",
    "TENURE_S3_PORT",
    "TENURE_SSH_HOST",
    "TENURE_DATABASE_URL",
    "TENURE_POOL_GB",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "NO_COLOR",
)
"""What goes along when set-up becomes root by sudo."""


def install(settings: Settings, console: Console | None = None) -> list[str]:
    """Sets the machine up, telling a person on `console`; returns the names of the steps that had something to do.

    Without root it starts itself again with `sudo -n`, and never returns from that. Raises `SetupError`.
    """
    if os.geteuid() != 0:
        become_root(["-m", "tenure.setup"])
    with ConsoleProgress(console) if console else SilentProgress() as progress:
        return run(settings, progress=progress)


def run(settings: Settings, *, progress: SetupProgress) -> list[str]:
    """The steps of `install`. Only one set-up of a home runs at a time; a second one waits for it."""
    release()  # not Debian: say so before anything is touched
    with _locked(settings, progress):
        done = [step.name for step in STEPS if step.name == "pool" and _mounts_again(settings, progress, step)]
        plans = [plan for step in STEPS if (plan := step.plan(settings))]
        if len(plans) > 1:
            progress.notice("\n    ".join(("set-up will", *plans)))
        done += [step.name for step in STEPS if _take(step, settings, progress)]
        if not done:
            progress.notice(f"everything is in place in {settings.home}")
    return done


def mend(settings: Settings, *, progress: SetupProgress) -> list[SetupError]:
    """Takes every step that it can, going on past those that fail; returns what failed."""
    failures: list[SetupError] = []
    with _locked(settings, progress):
        for step in STEPS:
            try:
                _take(step, settings, progress)
            except SetupError as error:
                failures.append(error)
                progress.notice(error.message)
    return failures


def become_root(arguments: list[str]) -> None:
    """Replaces this process by `sudo -n python ARGUMENTS`. Raises `SetupError` where sudo would ask for a password."""
    sudo = find_tool("sudo")
    if sudo is None or not succeeds([sudo, "-n", "true"], timeout_s=SUDO_PROBE_TIMEOUT_S):
        raise SetupError(
            "Set-up needs root, and sudo is missing here or asks for a password.",
            hint="Run it as root, or `sudo -v` first, for example `sudo -v && make setup`.",
        )
    os.execv(sudo, [str(sudo), "-n", f"--preserve-env={','.join(KEPT_VARIABLES)}", sys.executable, *arguments])


def _mounts_again(settings: Settings, progress: SetupProgress, step: Step) -> bool:
    """After a reboot the pool comes first: only then can it be seen what is in it."""
    return settings.pool_file.exists() and _take(step, settings, progress)


def _take(step: Step, settings: Settings, progress: SetupProgress) -> bool:
    plan = step.plan(settings)
    if plan is None:
        return False
    progress.start(plan)
    step.apply(settings, progress)
    progress.done()
    return True


@contextmanager
def _locked(settings: Settings, progress: SetupProgress) -> Generator[None]:
    settings.home.mkdir(parents=True, exist_ok=True)
    path = Path(settings.home, LOCK_FILE)
    with path.open("w") as lock:
        deadline = time.monotonic() + LOCK_WAIT_S
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SetupError(f"Another set-up holds {path} for too long.") from None
            if not told:
                progress.notice("another set-up is running; waiting for it")
                told = True
            time.sleep(LOCK_POLL_S)
        yield
