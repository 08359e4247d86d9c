"""The OCI runtime configuration (`config.json`) of a sandbox: a pure function of its spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenure.offices.sandboxes.base import SandboxSpec

BIN = "/.tenure/bin"
DOOR = "/.tenure/door"
OFFICED = f"{BIN}/officed"
JOBS = "/var/lib/tenure/jobs"
HOSTS = "/etc/hosts"
TINI = "/usr/bin/tini-static"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""What root of a Docker container has, less raw sockets: enough for apt, sshd and servers. Not CAP_SYS_RESOURCE and not
CAP_SYS_ADMIN: without them root, too, is held by RLIMIT_NPROC (measured), and can mount nothing."""

FILES_MAX = 65_536
SHM_BYTES_MAX = 256 * 1024**2
HOST_TASKS_PER_PROCESS = 4
"""gVisor keeps about two host tasks for each process inside, and one more per thread that runs (measured: 742 for 512)."""
HOST_TASKS_BASE = 256
RUNTIME_BYTES = 64 * 1024**2
"""Beside the office's own memory, for gVisor: so that it can go on and give back what a process held that was ended for taking
too much (`memory_guard.py`)."""
GUEST_OOM_SCORE = 1000
"""Past the memory limit the kernel kills the process inside that holds most, before gVisor's own (see `gvisor.py`)."""


def config(spec: SandboxSpec, *, cgroup_path: str, tini: bool) -> dict[str, Any]:
    """`tini` says whether the root has it; without, `officed` itself is PID 1, so that a ruined root still boots."""
    limits = spec.limits
    forwards = [word for address, socket in spec.forwards for word in ("--forward", f"{address}={DOOR}/{socket}")]
    officed = [
        OFFICED, "--door", f"{DOOR}/door.sock", "--jobs", JOBS, "--hosts", HOSTS, "--own-process-space", "yes", *forwards,
    ]  # fmt: skip
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [TINI, "-s", "--", *officed] if tini else officed,
            "env": [f"PATH={PATH}", "LANG=C.UTF-8"],
            "cwd": "/",
            "capabilities": {
                kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted", "inheritable")
            },
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": FILES_MAX, "hard": FILES_MAX},
                {"type": "RLIMIT_NPROC", "soft": limits.processes_max, "hard": limits.processes_max},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
            "noNewPrivileges": False,
            "oomScoreAdj": GUEST_OOM_SCORE,
        },
        "root": {"path": str(spec.root), "readonly": False},
        "hostname": spec.hostname,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {
                "destination": "/dev/shm",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": [f"size={min(SHM_BYTES_MAX, limits.memory_bytes // 4)}"],
            },
            _bind(spec.officed_dir, BIN),
            _bind(spec.doorway, DOOR),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "cgroupsPath": cgroup_path,
            "resources": {
                # The quota comes after the boot (`gvisor.py`): runsc starts many threads at once and would be throttled.
                "cpu": {"shares": max(int(limits.cpus * 1024), 2)},
                "memory": {"limit": limits.memory_bytes + RUNTIME_BYTES},
                "pids": {"limit": limits.processes_max * HOST_TASKS_PER_PROCESS + HOST_TASKS_BASE},
            },
        },
    }


def _bind(source: Path, destination: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["ro", "rbind"]}
