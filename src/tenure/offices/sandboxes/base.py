"""The `Sandbox` contract: an isolated machine that runs on a root directory and has no network but loopback.

What every driver guarantees of a running sandbox:

- its processes see only `spec.root` (writable, persistent), `/proc`, `/dev`, a small tmpfs at `/dev/shm`, and the two
  mounts below; they have their own process space, host name and users, and a network of loopback only;
- `/.tenure/bin` is `spec.officed_dir`, read-only; `/.tenure/door` is `spec.doorway`, in which a process may *connect* to
  the UNIX sockets that the server listens on, and do nothing else;
- PID 1 reaps orphans and starts `officed` (the office's end of the door), which dials `/.tenure/door/door.sock`;
- the limits hold for the sandbox as a whole: reaching one harms this sandbox only.

A sandbox is named by `spec.id`, and a driver finds it again by this id after the server restarts: sandboxes outlive the
server. Conformance kit: `tenure.testing.sandbox_conformance`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class SandboxState(StrEnum):
    ABSENT = "absent"
    """Never started, or stopped and cleaned up."""
    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"
    """It ended by itself (crash, out of memory, PID 1 left); `stop` cleans up, then `start` may be called again."""


@dataclass(frozen=True)
class SandboxLimits:
    """What a sandbox may use at most."""

    cpus: float = 1.0
    memory_bytes: int = 1024**3
    processes_max: int = 512


@dataclass(frozen=True)
class SandboxSpec:
    """All that is needed to start one."""

    id: str
    """Unique per host among all Tenure homes: `[a-z0-9-]{1,80}`."""
    root: Path
    doorway: Path
    officed_dir: Path
    hostname: str
    limits: SandboxLimits = field(default_factory=SandboxLimits)
    forwards: tuple[tuple[str, str], ...] = ()
    """(`address:port` on the office's loopback, socket name in the doorway): where `officed` listens and what it dials."""


@dataclass(frozen=True)
class SandboxUsage:
    """`cpu_s` is processor time since start, in seconds; `processes` counts host tasks where guests' cannot be counted."""

    memory_bytes: int
    cpu_s: float
    processes: int


class SandboxDriver(ABC):
    """Starts and stops sandboxes. All methods raise `SandboxError` (with the tool's own last words) on failure, and
    `SetupError` when the tool itself is missing."""

    name: str
    isolates: bool
    """False only for the fake, which exists for speed and must never run untrusted code."""

    @abstractmethod
    async def start(self, spec: SandboxSpec) -> None:
        """Boots; returns when PID 1 runs (the door opens moments later). Raises `Conflict` when the id is already running or
        paused. A sandbox of the same id that is DEAD is cleaned up first."""

    @abstractmethod
    async def stop(self, sandbox_id: str, *, grace_s: float = 2.0) -> None:
        """Ends every process: SIGTERM to PID 1, SIGKILL after `grace_s`; then cleans up cgroups and state. Returns when nothing
        of it runs. Calling it for an ABSENT sandbox does nothing."""

    @abstractmethod
    async def state(self, sandbox_id: str) -> SandboxState:
        """What it is now; asks the system, not a memory of it."""

    @abstractmethod
    async def pause(self, sandbox_id: str) -> None:
        """Freezes all processes. Raises `Conflict` unless RUNNING."""

    @abstractmethod
    async def resume(self, sandbox_id: str) -> None:
        """Thaws. Raises `Conflict` unless PAUSED."""

    @abstractmethod
    async def usage(self, sandbox_id: str) -> SandboxUsage:
        """Raises `NotFound` unless RUNNING or PAUSED."""

    @abstractmethod
    async def ids(self) -> list[str]:
        """Ids of every sandbox of this driver (of this home) that is not ABSENT."""
