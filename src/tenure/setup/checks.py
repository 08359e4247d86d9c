"""`tenure doctor`: every prerequisite, whether it holds, what is wrong, and how to mend it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tenure.errors import SetupError
from tenure.postgres.tree import PostgresTree
from tenure.settings import Settings
from tenure.setup import image, installer, keys, officed, packages, pool, steps
from tenure.setup.commands import run
from tenure.setup.progress import ConsoleProgress, SilentProgress
from tenure.setup.system import free_bytes, may_mount, release, require_root

PYTHON_MIN = (3, 11)
CONTROLLERS = ("cpu", "memory", "pids")
MACHINES = ("x86_64", "aarch64")
FREE_BYTES_MIN = 2 * 1024**3
SMOKE_COMMAND = ("runsc", "--platform=systrap", "--network=none", "--ignore-cgroups", "do", "/bin/true")
SMOKE_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 2.0
SETUP_MENDS = "`tenure setup` (or `tenure doctor --fix`) does it."


@dataclass(frozen=True)
class Check:
    """One prerequisite. `problem` and `mend` are empty when `ok`; `found` says what was seen; `fixable`: by `fix`."""

    name: str
    ok: bool
    found: str = ""
    problem: str = ""
    mend: str = ""
    fixable: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


SEEN_BY_ROOT = ("kernel", "sandbox", "pool", "keys")


def doctor(settings: Settings) -> list[Check]:
    """Looks at everything; changes nothing, raises nothing, and takes about a second (a sandbox is really started)."""
    return [_safely(name, check, settings) for name, check in CHECKS.items()]


def fix(settings: Settings, console: Console | None = None) -> list[Check]:
    """Mends what set-up can mend, going on past what it cannot, and looks again. Raises `SetupError` without root."""
    require_root("Mending")
    with ConsoleProgress(console) if console else SilentProgress() as progress:
        installer.mend(settings, progress=progress)
    return doctor(settings)


def _safely(name: str, check: Callable[[Settings], Check], settings: Settings) -> Check:
    if name in SEEN_BY_ROOT and os.geteuid() != 0:
        return Check(name, ok=False, problem="This can be seen by root only.", mend="Run `tenure doctor` with sudo.")
    try:
        return check(settings)
    except SetupError as error:
        return Check(name, ok=False, problem=error.message, mend=error.hint)
    except OSError as error:
        return Check(name, ok=False, problem=f"cannot be checked: {error}", mend="Run `tenure doctor` as root.")


def _system(_: Settings) -> Check:
    machine = os.uname().machine
    found = f"{release().pretty_name}, {machine}, Linux {os.uname().release}"
    if machine not in MACHINES:
        return Check("system", False, found, f"gVisor does not run on {machine}.", f"Use {' or '.join(MACHINES)}.")
    return Check("system", True, found)


def _root(_: Settings) -> Check:
    if os.geteuid() == 0:
        return Check("root", True, "root")
    return Check("root", False, f"uid {os.geteuid()}", "Tenure starts sandboxes and needs root.", "Run it with sudo.")


def _python(_: Settings) -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info >= PYTHON_MIN:
        return Check("python", True, found)
    return Check("python", False, found, "Tenure needs Python 3.11 or newer.", "Install a newer python3.")


def _kernel(_: Settings) -> Check:
    controllers = cgroup_controllers()
    missing = [name for name in CONTROLLERS if name not in controllers]
    if missing:
        return Check(
            "kernel",
            False,
            f"cgroups: {', '.join(sorted(controllers)) or 'none'}",
            f"The kernel cannot limit an office's {', '.join(missing)}: cgroup controllers are missing.",
            "Boot with `cgroup_enable=memory` and without `cgroup_disable=`; in a container, mount /sys/fs/cgroup.",
        )
    if not may_mount():
        return Check(
            "kernel",
            False,
            problem="This process may not mount filesystems, which sandboxes need.",
            mend="Run as root on the machine itself, or in a privileged container.",
        )
    return Check("kernel", True, f"cgroups: {', '.join(CONTROLLERS)}")


def cgroup_controllers(root: Path = Path("/sys/fs/cgroup")) -> set[str]:
    """The cgroup controllers in use, of version 2 (one tree) and version 1 (a directory each)."""
    unified = root / "cgroup.controllers"
    if unified.exists():
        return set(unified.read_text().split())
    return {name for path in root.glob("*") if (path / "tasks").exists() for name in path.name.split(",")}


def _packages(_: Settings) -> Check:
    missing = packages.missing()
    if missing:
        problem = f"Debian packages are missing or too old: {', '.join(missing)}."
        return Check("packages", False, problem=problem, mend=SETUP_MENDS, fixable=True)
    return Check("packages", True, ", ".join(need.package for need in packages.NEEDS))


def _sandbox(_: Settings) -> Check:
    version = packages.runsc_version()
    if version is None:
        return Check("sandbox", False, "", "runsc is missing or does not run.", SETUP_MENDS, fixable=True)
    try:
        run(
            SMOKE_COMMAND,
            doing="Starting a sandbox",
            timeout_s=SMOKE_TIMEOUT_S,
        )
    except SetupError as error:
        hint = "See what `runsc --platform=systrap --network=none --debug do true` says; a privileged host is needed."
        return Check("sandbox", False, f"runsc {version}", error.message, hint)
    return Check("sandbox", True, f"runsc {version} starts a sandbox")


def _pool(settings: Settings) -> Check:
    if pool.is_plain_directory(settings):
        return Check("pool", True, "a plain directory: no disk limits, and creating an office copies the image")
    problem = ""
    if not pool.is_mounted(settings):
        problem = "The pool is not mounted." if settings.pool_file.exists() else "There is no pool yet."
    elif not pool.quota_on(settings):
        problem = "Disk limits (btrfs quotas) are off in the pool."
    if problem:
        return Check("pool", False, str(settings.pool_file), problem, SETUP_MENDS, fixable=True)
    return Check("pool", True, f"btrfs, {free_bytes(settings.pool_dir) / 1024**3:.1f} GB free")


def _disk(settings: Settings) -> Check:
    free = free_bytes(settings.home)
    found = f"{free / 1024**3:.1f} GB free at {settings.home}"
    if free < FREE_BYTES_MIN:
        problem = "The disk is nearly full; the pool's file could not grow, and every office would stop."
        return Check("disk", False, found, problem, "Free some disk, or move TENURE_HOME to a larger one.")
    return Check("disk", True, found)


def _postgresql(settings: Settings) -> Check:
    wanted = steps.plan_postgres(settings)
    if wanted:
        problem = f"PostgreSQL is missing from {settings.postgres_tree} or of another version."
        return Check("postgresql", False, problem=problem, mend=SETUP_MENDS, fixable=True)
    return Check("postgresql", True, str(PostgresTree(settings.postgres_tree).version))


def _image(settings: Settings) -> Check:
    try:
        found = image.current_image(settings)
    except SetupError as error:
        return Check("image", False, problem=error.message, mend=SETUP_MENDS, fixable=True)
    if found.id != image.expected_id():
        problem = f"The base image {found.id} is not the one this version builds ({image.expected_id()})."
        return Check("image", False, found.id, problem, SETUP_MENDS, fixable=True)
    return Check("image", True, f"{found.id}, built {found.built_at}")


def _officed(settings: Settings) -> Check:
    if officed.is_current(settings):
        return Check("officed", True, str(settings.officed_dir / officed.PROGRAM))
    problem = "officed, the office's end of the door, is missing or older than its source."
    return Check("officed", False, problem=problem, mend=SETUP_MENDS, fixable=True)


def _keys(settings: Settings) -> Check:
    key = keys.private_key(settings)
    if not keys.exist(settings):
        problem = f"The owner's SSH key is missing from {settings.keys_dir}."
        return Check("keys", False, problem=problem, mend=SETUP_MENDS, fixable=True)
    return Check("keys", True, str(key))


def _server(settings: Settings) -> Check:
    """A server that is not running is no fault; one that runs and does not answer is."""
    if _answers(settings.api_socket):
        return Check("server", True, f"answers at {settings.api_socket}")
    pid = _live_pid(settings.pid_file)
    if pid is not None:
        problem = f"The server (pid {pid}) runs, and does not answer at {settings.api_socket}."
        return Check(
            "server", False, problem=problem, mend="`tenure down`, then `tenure up`; see its log in TENURE_HOME."
        )
    return Check("server", True, "not running; `tenure up` starts it")


def _port(settings: Settings) -> Check:
    if _answers(settings.api_socket):
        return Check("port", True, f"{settings.port} is the server's")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", settings.port))
        except OSError as error:
            problem = f"Port {settings.port} of the loopback cannot be used ({error.strerror})."
            return Check("port", False, problem=problem, mend="Stop what uses it, or choose another by TENURE_PORT.")
    return Check("port", True, f"{settings.port} is free")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _live_pid(pid_file: Path) -> int | None:
    try:
        pid = int(pid_file.read_text().split()[0])
        os.kill(pid, 0)
    except (OSError, ValueError, IndexError):
        return None
    return pid


CHECKS: dict[str, Callable[[Settings], Check]] = {
    "system": _system,
    "root": _root,
    "python": _python,
    "kernel": _kernel,
    "packages": _packages,
    "sandbox": _sandbox,
    "disk": _disk,
    "pool": _pool,
    "postgresql": _postgresql,
    "image": _image,
    "officed": _officed,
    "keys": _keys,
    "server": _server,
    "port": _port,
}
"""In the order in which a person should mend them."""
