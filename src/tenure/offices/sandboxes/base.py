"""The `Sandbox` contract: an isolated machine that runs on a root directory and has no network but loopback.

What every driver guarantees of a running sandbox:

- its processes see only `spec.root` (writable, persistent), `/proc`, `/dev`, a small tmpfs at `/dev/shm`, and the two
  mounts below; they have their own process space, host name and users, and a network of loopback only;
- `/.tenure/bin` is `spec.officed_dir`, read-only; `/.tenure/door` is `spec.doorway`, in which a process may *connect* to
  the UNIX sockets that the server listens on, and do nothing else;
- PID 1 reaps orphans and starts `officed` (the office's end of the door), which dials `/.tenure/door/door.sock`, and knows by
  `--hosts` where the sandbox's hosts file lies (`etc/hosts` of `spec.root`), which it keeps for its neighbours;
- a socket that the server makes in the doorway later can be connected to, and one that it removed cannot;
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
    """Its processes stand still: `pause` was called, or a checkpoint is being made of it."""
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
    processes_max: int | None = None
    """Of what `processes` counts; None where the driver holds no limit."""
    oom_kills: int = 0
    """How many processes the host's kernel ended at the memory limit since start."""


class SandboxDriver(ABC):
    """Starts and stops sandboxes. All methods raise `SandboxError` (with the tool's own last words) on failure, and
    `SetupError` when the tool itself is missing."""

    name: str
    isolates: bool
    """False only for the fake, which exists for speed and must never run untrusted code."""
    cannot_checkpoint: str = ""
    """Why this driver has no memory images, for a person to read; empty when it has them."""

    @property
    def can_checkpoint(self) -> bool:
        return not self.cannot_checkpoint

    @abstractmethod
    async def start(self, spec: SandboxSpec, *, image: Path | None = None, binding: str = "") -> None:
        """Boots; returns when PID 1 runs (the door opens moments later). Raises `Conflict` when the id is already running or
        paused. A sandbox of the same id that is DEAD is cleaned up first.

        With `image`, a directory that `checkpoint` made, its processes go on where they were. Raises `ImageUnusable`, and
        leaves nothing running, when it was made with another `binding`, runtime, processor or specification, when it is
        damaged or incomplete, or when restoring it fails; the caller then boots without. The image stays: the caller deletes
        it, in any case before it is used again, for the root moves on as soon as the processes do."""

    @abstractmethod
    async def checkpoint(self, sandbox_id: str, image: Path, *, binding: str) -> None:
        """Writes the processes with their memory to the directory `image` and ends them; the sandbox is ABSENT then. `binding`
        is the caller's word for the root as the processes left it: whoever changes the root must change the binding.

        `image` appears last of all, complete and on disk (0700: it holds every secret that was in memory), or not at all,
        whatever is killed meanwhile; until it appears the processes stand still, so nothing happens after its instant.
        Nobody inside may hold a socket of the doorway: have `officed` drain first. Raises `Conflict` unless RUNNING, or when
        there is something at `image`; `SandboxError` when it cannot be done (with the reason, e.g. a deleted file that is
        still open): the sandbox runs on then, or is DEAD if it died of it, as `details["state"]` says. Cancelling undoes it
        likewise, unless the image was complete already. A server that dies over it leaves the sandbox PAUSED, which `resume`
        and `stop` end, or DEAD; then the image, if it is there, is whole."""

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

    async def kill_largest(self, sandbox_id: str, *, least_bytes: int) -> int | None:
        """SIGKILL to the process inside that holds most memory, whether or not anybody inside answers; how many bytes that
        were. None where the driver cannot, or none holds as much as `least_bytes`."""
        del sandbox_id, least_bytes
        return None

    def limited(self) -> list[str]:
        """Ids of the sandboxes that may use up their memory. Costs next to nothing: it is asked many times a second."""
        return []

    def memory_left(self, sandbox_id: str) -> int | None:
        """Bytes until `limits.memory_bytes`, 0 or less past it, of one of `limited`; None when it just ended. As cheap."""
        del sandbox_id
        return None

    @abstractmethod
    async def ids(self) -> list[str]:
        """Ids of every sandbox of this driver (of this home) that is not ABSENT."""
