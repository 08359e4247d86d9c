"""What an office is, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from tenure.offices.rest import Lease, RestPolicy
from tenure.offices.sandboxes.base import SandboxLimits

CPUS_DEFAULT = 1.0
MEMORY_MB_DEFAULT = 1024
DISK_GB_DEFAULT = 10.0
PROCESSES_DEFAULT = 512
OFFICE_UID_FIRST = 210_000
"""Host user ids of the offices' PostgreSQLs begin here, one per office."""


@dataclass(frozen=True)
class Limits:
    """What an office may use at most. `disk_gb` counts the image too."""

    cpus: float = CPUS_DEFAULT
    memory_mb: int = MEMORY_MB_DEFAULT
    disk_gb: float = DISK_GB_DEFAULT
    processes: int = PROCESSES_DEFAULT

    @property
    def disk_bytes(self) -> int:
        return int(self.disk_gb * 1024**3)

    def for_sandbox(self) -> SandboxLimits:
        return SandboxLimits(self.cpus, self.memory_mb * 1024**2, self.processes)


@dataclass(frozen=True)
class Usage:
    """What an office takes now; None where nothing runs to be measured."""

    disk_bytes: int | None = None
    memory_bytes: int | None = None
    processes: int | None = None


@dataclass(frozen=True)
class Archived:
    """Where an office lies that is not on this machine: an export of it, whole, and since when."""

    export: str
    destination: str
    """An s3:// address."""
    key_id: str | None
    """Of the key that opens it, which lies under TENURE_HOME."""
    size_bytes: int
    at: datetime


@dataclass(frozen=True)
class OfficeRecord:
    """An office's row in the control database."""

    name: str
    number: int
    """Unique in the installation and never used again; its PostgreSQL's host user id comes from it."""
    image: str
    limits: Limits
    egress: tuple[str, ...]
    stage: str
    """ "creating" until the volume is whole, "deleting" at the end, "asleep" between: whether it is awake now, the system
    is asked."""
    created_at: datetime
    rest: Mapping[str, float] = field(default_factory=dict[str, float])
    """What of the rest policy is its own: seconds by field of `RestPolicy`, 0 for never."""
    lease: Lease | None = None
    origin: str | None = None
    """For a fork: the id of the snapshot of which it is a clone."""
    archived: Archived | None = None
    """None: its volume is here. Else what is here of a volume is no part of it, and is to go."""

    @property
    def uid(self) -> int:
        return OFFICE_UID_FIRST + self.number


@dataclass(frozen=True)
class OfficeView:
    """An office as the API shows it: the row, and what is true now."""

    record: OfficeRecord
    state: str
    rest: RestPolicy = field(default_factory=RestPolicy)
    idle_s: float | None = None
    """How long nobody has used it; None when nothing of it is in memory."""
    usage: Usage | None = field(default=None)

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def hostname(self) -> str:
        return self.record.name

    @property
    def lease(self) -> Lease | None:
        return self.record.lease

    @property
    def archived(self) -> Archived | None:
        return self.record.archived

    @property
    def created_at(self) -> datetime:
        return self.record.created_at

    @property
    def image(self) -> str:
        return self.record.image

    @property
    def limits(self) -> Limits:
        return self.record.limits

    @property
    def egress(self) -> tuple[str, ...]:
        return self.record.egress

    def with_usage(self, usage: Usage) -> OfficeView:
        return replace(self, usage=usage)


class SnapshotKind(StrEnum):
    MANUAL = "manual"
    """Somebody asked for it: stays until somebody deletes it."""
    BEFORE_RESTORE = "before-restore"
    FORK = "fork"
    """Of an office as it was when it was forked."""
    BEFORE_STEP = "before-step"
    AFTER_STEP = "after-step"

    @property
    def is_automatic(self) -> bool:
        """Whether it goes by itself when newer ones came."""
        return self is not SnapshotKind.MANUAL

    @property
    def is_of_step(self) -> bool:
        return self in (SnapshotKind.BEFORE_STEP, SnapshotKind.AFTER_STEP)


@dataclass(frozen=True)
class StepMark:
    """The step of a run around which a snapshot is taken. `verified`: every step that is in it is done and holds, and none was
    under way, so the run may go back to it."""

    run: str
    node: str
    verified: bool = False


@dataclass(frozen=True)
class SnapshotRecord:
    """A snapshot's row in the control database. Its volume is `Settings.snapshots_dir`/agent/id."""

    id: str
    agent: str
    name: str | None
    kind: SnapshotKind
    stage: str
    """ "taking", "whole" or "deleting"."""
    image: str
    parent: str | None
    """The snapshot that the office was last restored from or forked of."""
    runs: dict[str, int]
    """How far the journal of each run of the agent that was not over had come. What the journal says by then to be done is
    in the snapshot; the snapshot may have more."""
    created_at: datetime
    step: StepMark | None = None
    """Of the kinds before-step and after-step; how far the journal of its run had come stands in `runs`."""
    exclusive_bytes: int | None = None
    """What deleting it would free; None when that was not asked for, or the volume driver cannot tell."""


@dataclass(frozen=True)
class Restored:
    """What `restore` did: `before` brings back what was there."""

    agent: OfficeView
    snapshot: SnapshotRecord
    before: SnapshotRecord
