"""Homes for tests: each test session gets homes of its own inside the shared test pool, and leaves none behind.

The base image takes half a minute to build, so it is built once under `TENURE_TEST_HOME` and shared: a session's home
is a directory *inside* that pool, whose image, officed, PostgreSQL tree and keys are links to the shared ones. So two
sessions on one machine do not meet, and an office is still one clone of the image.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tenure.offices.sandboxes.gvisor import GvisorDriver
from tenure.settings import Settings

SHARED_PARTS = ("officed", "postgresql", "keys")
COMMAND_TIMEOUT_S = 60
SUBVOLUME_INODE = 256
STOP_WAIT_S = 10.0
OWN_POOLS = Path("/var/tmp")
OWN_POOL_PREFIX = "tenure-own-pool-"


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def own_pool(pool_bytes: int) -> Iterator[Settings]:
    """A home with room for a pool file of its own, for tests of set-up itself; unmounted and removed at the end."""
    for abandoned in OWN_POOLS.glob(f"{OWN_POOL_PREFIX}*"):
        with contextlib.suppress(BlockingIOError), (abandoned / ".in-use").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_own_pool(abandoned)
    home = Path(tempfile.mkdtemp(prefix=OWN_POOL_PREFIX, dir=OWN_POOLS))
    with (home / ".in-use").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        home.chmod(0o711)
        try:
            yield Settings(home=home, port=free_port(), pool_bytes=pool_bytes)
        finally:
            _remove_own_pool(home)


def unmount_pool(home: Path) -> None:
    """What a reboot does to the pool of `home`."""
    while os.path.ismount(home / "pool"):
        subprocess.run(["umount", str(home / "pool")], check=True, timeout=COMMAND_TIMEOUT_S)


def _remove_own_pool(home: Path) -> None:
    _stop_processes(Settings(home=home))  # a server and sandboxes of a test that was killed
    unmount_pool(home)
    shutil.rmtree(home)


def make_home(shared: Settings, home: Path) -> tuple[Settings, IO[str]]:
    """A new home at `home` (inside the shared pool) and its lock, to be held as long as the home is in use."""
    home.mkdir(parents=True)
    lock = (home / ".in-use").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    settings = Settings(home=home, port=free_port(), ssh_port=free_port(), s3_port=free_port())
    share_parts(shared.home, settings)
    for directory in (settings.volumes_dir, settings.snapshots_dir, settings.run_dir, settings.logs_dir):
        directory.mkdir(parents=True)
    settings.images_dir.symlink_to(shared.images_dir)
    return settings, lock


def share_parts(shared_home: Path, settings: Settings) -> None:
    """Gives a home what the shared one has outside of its pool."""
    for part in SHARED_PARTS:
        (settings.home / part).symlink_to(shared_home / part)


def remove_abandoned_homes(homes: Path) -> None:
    """Removes the homes of sessions that were killed: nobody holds their lock any more."""
    for home in sorted(homes.iterdir()) if homes.exists() else []:
        lock_file = home / ".in-use"
        if not lock_file.exists():
            if time.time() - home.stat().st_mtime > COMMAND_TIMEOUT_S:  # else: just being made by another session
                remove_home(home)
            continue
        with lock_file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            remove_home(home)


def remove_home(home: Path) -> None:
    """Ends every process that belongs to `home` and deletes all that is in it."""
    settings = Settings(home=home)
    _stop_processes(settings)
    for pattern in ("*", "*/*"):
        for parent in (settings.volumes_dir, settings.snapshots_dir):
            for path in parent.glob(pattern):
                if path.is_dir() and not path.is_symlink() and path.stat().st_ino == SUBVOLUME_INODE:
                    _delete_subvolume(path)
    shutil.rmtree(home, ignore_errors=True)


def _stop_processes(settings: Settings) -> None:
    for pid in _pids_of(settings.home):  # servers and workers first, so that nobody starts a sandbox again
        _kill(pid)
    asyncio.run(_stop_sandboxes(settings))
    deadline = time.monotonic() + STOP_WAIT_S
    while (pids := _pids_of(settings.home)) and time.monotonic() < deadline:
        for pid in pids:
            _kill(pid)
        time.sleep(0.05)


async def _stop_sandboxes(settings: Settings) -> None:
    driver = GvisorDriver(settings.runsc_root)
    for sandbox in await driver.ids():
        await driver.stop(sandbox, grace_s=0)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _pids_of(home: Path) -> list[int]:
    """Processes whose command line or environment names `home` (never this process or those above it)."""
    needle = re.compile(re.escape(os.fsencode(home)) + rb"[/\0\s:]")  # …/t12-1 is not …/t12-10
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if any(needle.search((entry / part).read_bytes() + b"\0") for part in ("cmdline", "environ")):
                found.append(int(entry.name))
    return found


def _delete_subvolume(path: Path) -> None:
    # A read-only snapshot may have read-only subvolumes below it: none of ours has, so one call is enough.
    subprocess.run(
        ["btrfs", "subvolume", "delete", str(path)], capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
    )
