"""What a database server may take from the machine: it runs beside the sandboxes, so their limits do not cover it.

Memory, processes and processors are limited by a cgroup (version 1 or 2) where the machine has one that we may write;
the per-process limits hold everywhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_PARENT = "tenure-postgres"
CPU_PERIOD_US = 100_000
OPEN_FILES_MAX = 1024
FILE_BYTES_MAX = 1200 * 1024 * 1024
"""PostgreSQL splits its own files at 1 GiB; this bounds what an agent can make its server write into the log."""
OOM_SCORE_ADJUST = 300
"""When the machine itself runs out of memory, a database server (which recovers) goes before the Tenure server does."""

# Puts itself into the cgroups whose `cgroup.procs` come before "--", then becomes the rest of its arguments.
_ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 70; shift; done; shift; exec "$@"'


@dataclass(frozen=True)
class Confinement:
    """Limits of one cluster, all its processes together (memory, processes, processors) or each (address space)."""

    name: str
    """Of the cgroup; unique per cluster on this machine."""
    memory_bytes_max: int = 1 << 30
    process_memory_bytes_max: int = 1 << 30
    processes_max: int = 64
    cpus: float = 1.0


def command(argv: list[str], *, uid: int, gid: int, confinement: Confinement | None) -> list[str]:
    """`argv` as a command that gives up root for `uid`:`gid` with no other group, no capability and no way to gain any
    (a set-uid file included), and enters its limits. Unchanged when we are not root."""
    if os.geteuid() != 0:
        return argv
    drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    drop += ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", *argv]
    if confinement is None:
        return drop
    limits = ["prlimit", f"--as={confinement.process_memory_bytes_max}", f"--nofile={OPEN_FILES_MAX}", "--core=0"]
    limits += [f"--fsize={FILE_BYTES_MAX}"]
    score = ["choom", "-n", str(OOM_SCORE_ADJUST), "--"]
    procs = [str(path / "cgroup.procs") for path in make_cgroups(confinement)]
    return ["sh", "-c", _ENTER, "sh", *procs, "--", *score, *limits, *drop]


def make_cgroups(confinement: Confinement) -> list[Path]:
    """The cgroup directories that hold the limits, made and set; empty where the machine gives us none."""
    made: list[Path] = []
    for controller, limits in _wanted(confinement):
        directory = CGROUP_ROOT / controller / CGROUP_PARENT / confinement.name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name, value in limits.items():
                (directory / name).write_text(str(value))
        except OSError as error:
            log.warning("PostgreSQL %s runs without the cgroup %s: %s", confinement.name, directory, error)
            with contextlib.suppress(OSError):
                directory.rmdir()
        else:
            made.append(directory)
    return made


def end_strays(confinement: Confinement) -> None:
    """Ends what is left in the cgroups of a cluster that does not run: a server whose volume was deleted under it."""
    for path in _directories(confinement):
        with contextlib.suppress(OSError):
            for pid in (path / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


def remove_cgroups(confinement: Confinement) -> None:
    """Removes the (empty) cgroups of a stopped cluster; not an error when there are none."""
    for directory in _directories(confinement):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _directories(confinement: Confinement) -> list[Path]:
    return [
        CGROUP_ROOT / controller / CGROUP_PARENT / confinement.name  # joining "" adds nothing
        for controller, _ in _wanted(confinement)
    ]


def _wanted(confinement: Confinement) -> list[tuple[str, dict[str, int | str]]]:
    memory, processes = confinement.memory_bytes_max, confinement.processes_max
    quota_us = int(confinement.cpus * CPU_PERIOD_US)
    if (CGROUP_ROOT / "cgroup.controllers").exists():
        parent = CGROUP_ROOT / CGROUP_PARENT
        with contextlib.suppress(OSError):  # delegation may be there already, or not be ours: the limits tell
            parent.mkdir(exist_ok=True)
            (CGROUP_ROOT / "cgroup.subtree_control").write_text("+memory +pids +cpu")
            (parent / "cgroup.subtree_control").write_text("+memory +pids +cpu")
        cpu_max = f"{quota_us} {CPU_PERIOD_US}"
        return [("", {"memory.max": memory, "pids.max": processes, "memory.oom.group": 0, "cpu.max": cpu_max})]
    found: list[tuple[str, dict[str, int | str]]] = []
    if (CGROUP_ROOT / "memory").is_dir():
        found.append(("memory", {"memory.limit_in_bytes": memory}))
    if (CGROUP_ROOT / "pids").is_dir():
        found.append(("pids", {"pids.max": processes}))
    if (CGROUP_ROOT / "cpu").is_dir():
        found.append(("cpu", {"cpu.cfs_period_us": CPU_PERIOD_US, "cpu.cfs_quota_us": quota_us}))
    return found
