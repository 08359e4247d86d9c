"""One sandbox's control group on the host: who runs in it, what it takes, freezing and ending it.

Control groups come in two shapes. v1: one hierarchy per controller, each with a directory of the same path. v2: one
directory for all. The kernel's own list of a group's processes is the truth about a sandbox: unlike a process id in a
file, it is never about somebody else's process, and a dead process that nobody has waited for is not in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

CGROUP_MOUNT = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
CPU_QUOTA_US_MIN = 1000
NO_LIMIT_BYTES = 1 << 60
"""v1 says none by a very large number."""


@dataclass(frozen=True)
class Cgroup:
    """The group of the absolute cgroup path `path`, e.g. `/tenure/1a2b3c4d/analyst`; it may or may not exist."""

    path: str
    mount: Path = CGROUP_MOUNT

    @property
    def is_v2(self) -> bool:
        return (self.mount / "cgroup.controllers").exists()

    def directory(self, controller: str) -> Path:
        """Where the files of `controller` are."""
        return Path(f"{self.mount if self.is_v2 else self.mount / controller}{self.path}")

    def directories(self) -> list[Path]:
        """All directories of this group that exist."""
        roots = [self.mount] if self.is_v2 else [entry for entry in self.mount.iterdir() if not entry.is_symlink()]
        return [found for root in roots if (found := Path(f"{root}{self.path}")).is_dir()]

    def pids(self) -> set[int]:
        """Host process ids in the group; empty when there is no such group."""
        return {int(pid) for pid in _read(self.directory("pids") / "cgroup.procs").split()}

    def children(self) -> list[str]:
        """Names of the groups directly below this one."""
        with contextlib.suppress(OSError):
            return sorted(entry.name for entry in self.directory("pids").iterdir() if entry.is_dir())
        return []

    def kill(self) -> None:
        """SIGKILL to all; returns before they are gone."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove(self) -> bool:
        """Removes the group's directories; False while one of them still holds a process or a child group."""
        removed = True
        for directory in self.directories():
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                removed = False
        return removed

    # --- freezing ------------------------------------------------------------------------------------------------------
    def freeze(self, *, frozen: bool) -> None:
        """Asks the kernel to freeze or thaw; `is_frozen` says when it has."""
        if self.is_v2:
            (self.directory("freezer") / "cgroup.freeze").write_text("1" if frozen else "0")
        else:
            (self.directory("freezer") / "freezer.state").write_text("FROZEN" if frozen else "THAWED")

    @property
    def is_frozen(self) -> bool:
        if self.is_v2:
            return _fields(self.directory("freezer") / "cgroup.events").get("frozen") == 1
        return _read(self.directory("freezer") / "freezer.state").strip() == "FROZEN"

    # --- processor -----------------------------------------------------------------------------------------------------
    def limit_cpu(self, cpus: float) -> None:
        """Holds the group to `cpus` processors from now on."""
        quota_us = max(int(cpus * CPU_PERIOD_US), CPU_QUOTA_US_MIN)
        cpu = self.directory("cpu")
        if self.is_v2:
            (cpu / "cpu.max").write_text(f"{quota_us} {CPU_PERIOD_US}")
        else:
            (cpu / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
            (cpu / "cpu.cfs_quota_us").write_text(str(quota_us))

    # --- usage ---------------------------------------------------------------------------------------------------------
    @property
    def memory_charged_bytes(self) -> int:
        return _number(self.directory("memory") / ("memory.current" if self.is_v2 else "memory.usage_in_bytes"))

    @property
    def memory_limit_bytes(self) -> int | None:
        """None without a limit, or when there is no such group."""
        text = _read(self.directory("memory") / ("memory.max" if self.is_v2 else "memory.limit_in_bytes")).strip()
        return int(text) if text.isdigit() and int(text) < NO_LIMIT_BYTES else None

    @property
    def memory_bytes(self) -> int:
        """What is charged to the group less cached file pages that the kernel can drop."""
        memory, used = self.directory("memory"), self.memory_charged_bytes
        cached = _fields(memory / "memory.stat").get("inactive_file" if self.is_v2 else "total_inactive_file", 0)
        return max(used - cached, 0)

    @property
    def cpu_s(self) -> float:
        if self.is_v2:
            return _fields(self.directory("cpu") / "cpu.stat").get("usage_usec", 0) / 1e6
        return _number(self.directory("cpuacct") / "cpuacct.usage") / 1e9

    @property
    def tasks(self) -> int:
        return _number(self.directory("pids") / "pids.current")

    @property
    def tasks_max(self) -> int | None:
        text = _read(self.directory("pids") / "pids.max").strip()
        return int(text) if text.isdigit() else None

    @property
    def oom_kills(self) -> int:
        name = "memory.events" if self.is_v2 else "memory.oom_control"
        return _fields(self.directory("memory") / name).get("oom_kill", 0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # ENOENT: no such group; ENODEV: it was removed while it was read
        return ""


def _number(path: Path) -> int:
    return int(_read(path) or 0)


def _fields(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
