"""What travels between server and clients: the JSON shapes of the HTTP API, one model each.

Server, SDK and CLI share these, so that a field has one spelling. Requests refuse unknown fields (a typing mistake must
not pass in silence); answers ignore them (a newer server may say more than an older client knows). Times are aware
`datetime`s in UTC. Sizes end in `_bytes`, durations in `_s`. Errors are `tenure.errors.TenureError.to_payload`.
Validators are built at first use (`defer_build`): a command line tool needs two or three of these models, and pays for
no more.
"""

from __future__ import annotations

import base64
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer, model_validator

GOAL_CHARS_MAX = 10_000
CHECKS_MAX = 50
PLAYBOOK_CHARS_MAX = 512 * 1024
SCRIPT_CHARS_MAX = 1024 * 1024
ARGV_BYTES_MAX = 1024 * 1024
"""All arguments of a command together; longer data belongs into a file or into stdin."""
ENV_ENTRIES_MAX = 1000
STDIN_BYTES_MAX = 16 * 1024 * 1024
OUTPUT_BYTES_MAX = 1024 * 1024
"""Per stream, of an `exec` that is answered in one piece; attached commands stream without a limit."""
STATEMENT_CHARS_MAX = 1024 * 1024
STATEMENT_TIMEOUT_S_MAX = 600.0
ROWS_MAX = 100_000
COMMAND_WAIT_S_MAX = 30.0
EXEC_TIMEOUT_S_DEFAULT = 600.0
EXEC_TIMEOUT_S_MAX = 24 * 3600.0


class Request(BaseModel):
    """A body that a client sends."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class Answer(BaseModel):
    """A body that the server returns."""

    model_config = ConfigDict(extra="ignore", from_attributes=True, defer_build=True)


# --- health --------------------------------------------------------------------------------------------------------
class WorkerInfo(Answer):
    pid: int


class OfficeCounts(Answer):
    awake: int = 0
    asleep: int = 0


class Health(Answer):
    """Without a token only `status` is filled."""

    status: str = "ok"
    version: str | None = None
    pid: int | None = None
    started_at: datetime | None = None
    database: str | None = None
    """Where the control database is: "embedded", or the host of a DSN, never a password."""
    ssh: str | None = None
    """Address of the SSH gateway, "off", or why there is none."""
    s3: str | None = None
    """Address of the S3 API for clients outside, "off", or why there is none."""
    workers: list[WorkerInfo] = Field(default_factory=list[WorkerInfo])
    offices: OfficeCounts = Field(default_factory=OfficeCounts)


# --- agents --------------------------------------------------------------------------------------------------------
class AgentState(StrEnum):
    AWAKE = "awake"
    PAUSED = "paused"
    HIBERNATED = "hibernated"
    STOPPED = "stopped"
    ARCHIVED = "archived"
    WAKING = "waking"
    BROKEN = "broken"


class Tier(StrEnum):
    """How deeply an office sleeps."""

    PAUSED = "paused"
    """Its processes are frozen in memory."""
    HIBERNATED = "hibernated"
    """Its processes lie on disk, memory and all."""
    STOPPED = "stopped"
    """Its processes are gone."""


class SleepRequest(Request):
    """`POST /v1/agents/{name}/sleep`."""

    tier: Tier = Tier.STOPPED


PERIOD_S_MAX = 10 * 365 * 86_400.0


class RestRequest(Request):
    """`PUT /v1/agents/{name}/rest`: after how many idle seconds the office sinks to each tier. 0: never; None: as the server
    is set up."""

    pause_after_s: float | None = Field(default=None, ge=0, le=PERIOD_S_MAX)
    hibernate_after_s: float | None = Field(default=None, ge=0, le=PERIOD_S_MAX)
    stop_after_s: float | None = Field(default=None, ge=0, le=PERIOD_S_MAX)


class LeaseRequest(Request):
    """`PUT /v1/agents/{name}/lease`: the office stays awake for so long, used or not."""

    seconds: float = Field(gt=0, le=7 * 86_400)
    reason: str = Field(default="", max_length=200)


class AgentRequest(Request):
    """`POST /v1/agents`. What is None takes the server's default."""

    name: str
    cpus: float | None = Field(default=None, gt=0, le=256)
    memory_mb: int | None = Field(default=None, ge=128, le=1024 * 1024)
    disk_gb: float | None = Field(default=None, gt=0, le=64 * 1024)
    processes: int | None = Field(default=None, ge=32, le=1_000_000)
    egress: list[str] = Field(default_factory=list[str], max_length=200)
    """Presets ("pip", "npm", "apt") or domains ("example.org", "*.example.org"). Empty: nothing leaves the office."""
    asleep: bool = False
    """Its office is not woken; its first use does so."""


class BrainBudget(Request):
    """Of one run; None: as much as it takes."""

    tokens: int | None = Field(default=None, gt=0)
    cost_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    requests: int | None = Field(default=None, gt=0)
    agent_day_cost_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of all runs of the agent, per day in UTC."""
    turns_without_progress: int = Field(default=60, gt=0)
    """How often it may be asked since a step's checks last held."""


class BrainRequest(Request):
    """`PUT /v1/agents/{name}/brain`: how an agent thinks. Never a key."""

    brain: str = "pydantic_ai"
    """"pydantic_ai" asks a model; "acp" and "process" are programs of the office."""
    models: list[str] = Field(default_factory=list[str], max_length=10)
    """`provider:model`; the first is asked, the next ones where it fails."""
    base_url: str | None = Field(default=None, max_length=2000)
    """Of a server that speaks OpenAI's protocol, for models of `openai:`."""
    key_env: str | None = None
    """Variable of the server's environment with the provider's key; None: the provider's usual one."""
    model_settings: dict[str, Any] = Field(default_factory=dict[str, Any], max_length=50)
    """Such as `max_tokens`, `temperature`."""
    context_tokens_max: int = Field(default=100_000, ge=2_000, le=100_000_000)
    command: list[str] = Field(default_factory=list[str], max_length=200)
    """Of a brain that is a program."""
    env: dict[str, str] = Field(default_factory=dict[str, str], max_length=ENV_ENTRIES_MAX)
    budget: BrainBudget = Field(default_factory=BrainBudget)
    approve: list[str] = Field(default_factory=list[str], max_length=100)
    """Tools (patterns such as `shell` or `http_*`) that a person has to allow, each call."""


class BrainBudgetInfo(Answer):
    tokens: int | None = None
    cost_usd: float | None = None
    requests: int | None = None
    agent_day_cost_usd: float | None = None
    turns_without_progress: int = 60


class Brain(Answer):
    """How an agent thinks, as in `BrainRequest`."""

    brain: str
    models: list[str] = Field(default_factory=list[str])
    base_url: str | None = None
    key_env: str | None = None
    model_settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    context_tokens_max: int = 100_000
    command: list[str] = Field(default_factory=list[str])
    env: dict[str, str] = Field(default_factory=dict[str, str])
    budget: BrainBudgetInfo = Field(default_factory=BrainBudgetInfo)
    approve: list[str] = Field(default_factory=list[str])


class Limits(Answer):
    cpus: float
    memory_mb: int
    disk_gb: float
    processes: int


class Usage(Answer):
    disk_bytes: int | None = None
    memory_bytes: int | None = None
    processes: int | None = None


class RestPolicy(Answer):
    """None: never."""

    pause_after_s: float | None = None
    hibernate_after_s: float | None = None
    stop_after_s: float | None = None


class Lease(Answer):
    until: datetime
    reason: str


class Archived(Answer):
    """Where an office lies of which nothing is on the server's machine: its next use brings it back."""

    export: str
    destination: str
    key_id: str | None = None
    size_bytes: int
    at: datetime


class Agent(Answer):
    name: str
    state: AgentState
    created_at: datetime
    image: str
    limits: Limits
    egress: list[str] = Field(default_factory=list[str])
    usage: Usage | None = None
    rest: RestPolicy | None = None
    idle_s: float | None = None
    """How long nobody has used it; None when nothing of it is in memory."""
    lease: Lease | None = None
    archived: Archived | None = None
    """None while its volume is on the server's machine."""
    hostname: str


class AgentList(Answer):
    agents: list[Agent]


class Probe(Answer):
    ok: bool


class OfficeEvent(Answer):
    """Something that was decided about an office, or found: `what` in a word or two, `reason` in a sentence."""

    id: int
    at: datetime
    what: str
    reason: str
    evidence: dict[str, Any] = Field(default_factory=dict[str, Any])


class OfficeHistory(Answer):
    """`GET …/history`: the newest first."""

    events: list[OfficeEvent]


# --- snapshots -----------------------------------------------------------------------------------------------------
class StepMark(BaseModel):
    """The step of a run before or after which a snapshot is taken; see `tenure.offices.models.StepMark`."""

    model_config = ConfigDict(extra="forbid", from_attributes=True, defer_build=True)

    run: str = Field(max_length=100)
    node: str = Field(max_length=300)
    verified: bool = False


class SnapshotRequest(Request):
    """`POST …/snapshots`. A name is unique among the agent's snapshots and follows the rule for agents' names. A `step` goes
    with the kinds "before-step" and "after-step". Asked for again with the same `key`, it is the one of the first time."""

    name: str | None = None
    kind: Literal["manual", "before-step", "after-step"] = "manual"
    step: StepMark | None = None
    key: str | None = Field(default=None, max_length=200)


class RestoreRequest(Request):
    """`POST …/snapshots/…/restore`. `by_run`: the run that asks for it, which does not count as being at work."""

    by_run: str | None = Field(default=None, max_length=100)
    key: str | None = Field(default=None, max_length=200)
    """Asked for again with the same key, `before` is the one of the first time."""


class Snapshot(Answer):
    id: str
    agent: str
    name: str | None = None
    kind: str
    """ "manual" (stays until deleted), or automatic, of which the newest are kept: "before-restore", "fork", "before-step",
    "after-step"."""
    created_at: datetime
    image: str
    parent: str | None = None
    """The snapshot that the office was last restored from or forked of."""
    runs: dict[str, int] = Field(default_factory=dict[str, int])
    """How far the journal (seq) of each run that was not over had come."""
    step: StepMark | None = None
    exclusive_bytes: int | None = None
    """In lists: what deleting it would free, as of some seconds ago; null where the volume driver cannot tell."""


class SnapshotList(Answer):
    snapshots: list[Snapshot]


class Restored(Answer):
    """`POST …/restore`: restoring `before` undoes it."""

    agent: Agent
    snapshot: Snapshot
    before: Snapshot


class SetUp(Answer):
    """What was installed beyond the image and is installed again now."""

    packages: list[str] = Field(default_factory=list[str])
    pip: list[str] = Field(default_factory=list[str])
    script: bool = False
    """Whether `~/.config/tenure/setup.sh` runs."""


class Rebuilt(Answer):
    """`POST …/rebuild`: restoring `before` undoes it. How `set_up` ended the history says."""

    agent: Agent
    before: Snapshot
    set_up: SetUp


class DiffEntry(Answer):
    kind: str
    """ "file" (also a directory or a link) or "object"."""
    path: str
    change: str
    """ "added", "removed" or "changed"."""
    size_bytes: int


class RowDiff(Answer):
    """A row that differs: its values as PostgreSQL writes them, long ones cut. Of a changed row the key and what differs."""

    change: str
    """ "added", "removed" or "changed"."""
    before: dict[str, str | None] | None = None
    after: dict[str, str | None] | None = None
    times: int = 1
    """Of a table without a primary key: so many more, or fewer, of equal rows."""


class TableDiff(Answer):
    """What became of a table. Counts are null where rows were not compared, and `problem` says why; `rows` are some of them.
    `rows_changed` is 0 without a primary key to tell that two rows are the same one."""

    in_schema: str
    name: str
    change: str
    """ "created", "dropped" or "changed"."""
    columns_added: list[str] = Field(default_factory=list[str])
    columns_removed: list[str] = Field(default_factory=list[str])
    columns_changed: list[str] = Field(default_factory=list[str])
    """Of another type than before."""
    rows_added: int | None = None
    rows_removed: int | None = None
    rows_changed: int | None = None
    rows: list[RowDiff] = Field(default_factory=list[RowDiff])
    problem: str | None = None


class DatabaseDiff(Answer):
    """`tables` are those in which something differs; `compared` counts all whose rows were compared. `problem` says why the
    rest was not."""

    tables: list[TableDiff] = Field(default_factory=list[TableDiff])
    compared: int = 0
    problem: str | None = None


class Diff(Answer):
    """What became of files and objects, by names and metadata. `entries` are cut when `truncated`; the counts are of all.
    `database` is null when tables were not asked for."""

    entries: list[DiffEntry] = Field(default_factory=list[DiffEntry])
    added: int = 0
    removed: int = 0
    changed: int = 0
    truncated: bool = False
    database: DatabaseDiff | None = None


class ForkRequest(Request):
    """`POST …/fork`: of a snapshot (id or name), or of the office as it is now."""

    new: str
    snapshot: str | None = Field(default=None, max_length=64)


# --- exports -------------------------------------------------------------------------------------------------------
class ExportRequest(Request):
    """`POST …/export`: the answer is the archive."""

    since: str | None = Field(default=None, max_length=64)
    """Id of an earlier export: only what changed since."""
    key: SecretStr | None = Field(default=None, max_length=200)
    """With it the archive is encrypted: the text of a key file."""

    @field_serializer("key", when_used="json-unless-none")
    def _told(self, key: SecretStr) -> str:
        return key.get_secret_value()


class ExportToRequest(ExportRequest):
    """`POST …/exports`: the server writes the archive to S3."""

    to: str = Field(max_length=2000)
    """s3://BUCKET/KEY, or s3://BUCKET/PREFIX/ to have it named."""


class ArchiveRequest(Request):
    """`POST …/archive`: the office is put away in S3, and what is here of it is deleted."""

    to: str | None = Field(default=None, max_length=2000)
    """s3://BUCKET/PREFIX/; None: where its schedule of exports keeps copies, with the key of that."""
    key: SecretStr | None = Field(default=None, max_length=200)
    """With it the archive is encrypted; the server keeps it."""

    @field_serializer("key", when_used="json-unless-none")
    def _told(self, key: SecretStr) -> str:
        return key.get_secret_value()


class Export(Answer):
    id: str
    agent: str
    base: str | None = None
    """The export that it continues; None for one that is whole by itself."""
    destination: str = ""
    """Empty for one that went to a client."""
    state: str
    """ "running", "done" or "failed"."""
    key_id: str | None = None
    """Of the key that opens it; None for one that is not encrypted."""
    scheduled: bool = False
    size_bytes: int | None = None
    """While it runs: how much of it there is."""
    error: str | None = None
    created_at: datetime
    finished_at: datetime | None = None


class ExportScheduleRequest(Request):
    """`PUT …/exports/schedule`: a copy of the office is kept in S3 from now on, made anew every so often."""

    to: str = Field(max_length=2000)
    """s3://BUCKET/PREFIX/"""
    every_s: float = Field(ge=60, le=366 * 86400)
    key: SecretStr | None = Field(default=None, max_length=200)
    """The server keeps it."""
    full_every: int = Field(default=24, ge=1, le=1000)
    """So many make a chain, of which the first is whole."""
    chains_kept: int = Field(default=3, ge=1, le=1000)

    @field_serializer("key", when_used="json-unless-none")
    def _told(self, key: SecretStr) -> str:
        return key.get_secret_value()


class ExportSchedule(Answer):
    agent: str
    destination: str
    every_s: float
    full_every: int
    chains_kept: int
    key_id: str | None = None
    next_at: datetime
    failures: int = 0
    """In a row."""
    last_error: str | None = None


class ExportList(Answer):
    exports: list[Export]
    schedule: ExportSchedule | None = None


class FetchRequest(Request):
    """`POST /v1/imports/s3`: a new agent of archives in S3. What the last of them continues is looked for beside it."""

    sources: list[str] = Field(min_length=1, max_length=1000)
    name: str | None = None
    """Without, the name that the agent had."""
    key: SecretStr | None = Field(default=None, max_length=200)

    @field_serializer("key", when_used="json-unless-none")
    def _told(self, key: SecretStr) -> str:
        return key.get_secret_value()


class Imported(Answer):
    agent: Agent
    origin: str
    """Id of the last archive."""
    written_bytes: int
    runs: int
    """Of its runs those that were over, and are known here now."""


# --- commands in an office -----------------------------------------------------------------------------------------
class ExecRequest(Request):
    """`POST …/exec`: exactly one of `argv` and `script` (a shell script, run by `bash -c`)."""

    argv: list[str] | None = None
    script: str | None = Field(default=None, max_length=SCRIPT_CHARS_MAX)
    env: dict[str, str] = Field(default_factory=dict[str, str], max_length=ENV_ENTRIES_MAX)
    cwd: str | None = None
    user: str = "agent"
    stdin_b64: str | None = None
    timeout_s: float = Field(default=EXEC_TIMEOUT_S_DEFAULT, gt=0, le=EXEC_TIMEOUT_S_MAX)

    @model_validator(mode="after")
    def _one_command(self) -> ExecRequest:
        if (self.argv is None) == (self.script is None):
            raise ValueError("give exactly one of argv and script")
        if self.argv is not None:
            if not self.argv or not self.argv[0]:
                raise ValueError("argv must name a command")
            if sum(len(arg.encode("utf-8", "surrogateescape")) + 1 for arg in self.argv) > ARGV_BYTES_MAX:
                raise ValueError(f"argv is longer than {ARGV_BYTES_MAX} bytes")
        return self


class ExecResult(Answer):
    """`stdout_b64` and `stderr_b64` hold at most `OUTPUT_BYTES_MAX` each (the first part); `*_bytes` count all that
    was written. `exit_code` is 128 + signal for a command ended by a signal."""

    exit_code: int
    timed_out: bool = False
    stdout_b64: str = ""
    stderr_b64: str = ""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    truncated: bool = False
    duration_s: float | None = None

    @property
    def stdout_data(self) -> bytes:
        return base64.b64decode(self.stdout_b64)

    @property
    def stderr_data(self) -> bytes:
        return base64.b64decode(self.stderr_b64)

    @property
    def stdout(self) -> str:
        """Decoded as UTF-8, with replacement of what is not; `stdout_data` has the bytes."""
        return self.stdout_data.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self.stderr_data.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and not self.timed_out


class TerminalSize(Request):
    rows: int = Field(ge=1, le=10_000)
    cols: int = Field(ge=1, le=10_000)


class AttachRequest(Request):
    """First text frame of the `attach` WebSocket: exactly one of `argv`, `script` and `login` (the user's shell)."""

    argv: list[str] | None = None
    script: str | None = Field(default=None, max_length=SCRIPT_CHARS_MAX)
    login: bool = False
    env: dict[str, str] = Field(default_factory=dict[str, str], max_length=ENV_ENTRIES_MAX)
    cwd: str | None = None
    user: str = "agent"
    tty: TerminalSize | None = None

    @model_validator(mode="after")
    def _one_command(self) -> AttachRequest:
        if (self.argv is not None) + (self.script is not None) + self.login != 1:
            raise ValueError("give exactly one of argv, script and login")
        if self.argv is not None and (not self.argv or not self.argv[0]):
            raise ValueError("argv must name a command")
        return self


class CommandRequest(Request):
    """`PUT …/commands/{key}`: see `tenure.work.hands.Command`."""

    script: str = Field(max_length=SCRIPT_CHARS_MAX)
    env: dict[str, str] = Field(default_factory=dict[str, str], max_length=ENV_ENTRIES_MAX)
    cwd: str | None = None
    user: str = "agent"
    timeout_s: float | None = Field(default=None, gt=0)


class CommandStatus(Answer):
    """See `tenure.work.hands.CommandStatus`. `state` is one of absent, running, exited, lost."""

    state: str
    exit_code: int | None = None
    timed_out: bool = False
    output: str = ""
    output_bytes: int = 0
    duration_s: float | None = None


# --- what programs of an office tell of themselves --------------------------------------------------------------------
CHECKPOINT_BYTES_MAX = 64 * 1024
PROGRESS_CHARS_MAX = 2000
HEARTBEAT_S_MAX = 24 * 3600.0


class SignalsRequest(Request):
    """`PUT …/work/{key}`: lets programs of the office tell of themselves under the key."""

    checkpoint: Any = None


class HeartbeatRequest(Request):
    """`POST /work/{key}/heartbeat`; the body may be left out. `every_s`: how often there will be one from now on."""

    every_s: float | None = Field(default=None, gt=0, le=HEARTBEAT_S_MAX)


class ProgressRequest(Request):
    text: str = Field(max_length=PROGRESS_CHARS_MAX)


class UsageRequest(Request):
    """`PUT /work/{key}/usage`: what the program took since it was started, all of it, each time."""

    input_tokens: int = Field(default=0, ge=0, lt=2**53)
    output_tokens: int = Field(default=0, ge=0, lt=2**53)
    cost_usd: float | None = Field(default=None, ge=0, le=1e9)


class ProgramQuestion(Request):
    """`POST /work/{key}/ask`: a question for a person. The answer comes back under its `name`."""

    name: str = Field(default="question", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    text: str = Field(min_length=1, max_length=10_000)
    options: tuple[str, ...] = Field(default=(), max_length=20)
    approval: bool = False
    """Yes or no."""
    evidence: str = Field(default="", max_length=8192)


class Signals(Answer):
    """See `tenure.work.hands.Signals`."""

    checkpoint: Any = None
    checkpoints: int = 0
    progress: str = ""
    progresses: int = 0
    beats: int = 0
    heartbeats: int = 0
    heartbeat_s: float | None = None
    usage: dict[str, Any] | None = None
    question: dict[str, Any] | None = None


# --- data of an office -----------------------------------------------------------------------------------------------
class SqlRequest(Request):
    statement: str = Field(min_length=1, max_length=STATEMENT_CHARS_MAX)
    key: str | None = Field(default=None, max_length=200)
    rows_max: int = Field(default=1000, ge=0, le=ROWS_MAX)
    read_only: bool = False
    """Refuses what would write; not with a key."""
    timeout_s: float = Field(default=STATEMENT_TIMEOUT_S_MAX, gt=0, le=STATEMENT_TIMEOUT_S_MAX)
    """After which the statement is cancelled, and nothing of it has happened."""


class CsvRequest(Request):
    """`POST …/sql/csv`: one query, of whose rows there is no limit."""

    statement: str = Field(min_length=1, max_length=STATEMENT_CHARS_MAX)


class SqlResult(Answer):
    """See `tenure.work.hands.SqlResult`. `rows` hold JSON-ready values in the order of `columns`."""

    columns: list[str] = Field(default_factory=list[str])
    rows: list[list[Any]] = Field(default_factory=list[list[Any]])
    status: str = ""
    truncated: bool = False
    repeated: bool = False


class ObjectInfo(Answer):
    bucket: str
    name: str
    size_bytes: int
    sha256: str = ""
    modified_at: datetime | None = None
    content_type: str | None = None


class ObjectList(Answer):
    objects: list[ObjectInfo]


class ObjectFromFileRequest(Request):
    """`POST …/objects-from-file`: copies the office's own file `path` into its object storage."""

    path: str
    bucket: str
    name: str
    key: str | None = Field(default=None, max_length=200)


class FileFromObjectRequest(Request):
    """`POST …/file-from-object`: copies an object of the office into its file `path`."""

    bucket: str
    name: str
    path: str


# --- runs ------------------------------------------------------------------------------------------------------------
class RunState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PARKED = "parked"
    """Waits for a person's answer, at no cost."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def at_rest(self) -> bool:
        """Whether nothing will happen without a person."""
        return self not in (RunState.QUEUED, RunState.RUNNING)


class StepState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    WAITING = "waiting"
    """For an answer, a time, or another run."""
    UNVERIFIED = "unverified"
    """It was started, and whether it took effect is unknown."""


class RunCheck(Request):
    """What has to hold in the end. Exactly one of `run` (a script that exits with 0), `sql` (a query whose value is true, or
    `equals`), `file` (it exists and is not empty), `http` (a GET from the office is answered with `status`, and with `contains`
    in the body)."""

    run: str | None = Field(default=None, min_length=1, max_length=SCRIPT_CHARS_MAX)
    sql: str | None = Field(default=None, min_length=1, max_length=STATEMENT_CHARS_MAX)
    equals: Any = None
    file: str | None = Field(default=None, min_length=1, max_length=4096)
    http: str | None = Field(default=None, pattern=r"^https?://", max_length=4096)
    status: int = Field(default=200, ge=100, le=599)
    contains: str = Field(default="", max_length=10_000)

    @model_validator(mode="after")
    def _one(self) -> RunCheck:
        if sum(kind is not None for kind in (self.run, self.sql, self.file, self.http)) != 1:
            raise ValueError("give exactly one of run, sql, file, http")
        if self.equals is not None and self.sql is None:
            raise ValueError("equals belongs to sql")
        return self


class RunRequest(Request):
    agent: str
    goal: str = Field(min_length=1, max_length=GOAL_CHARS_MAX)
    playbook: str | None = Field(default=None, max_length=PLAYBOOK_CHARS_MAX)
    """The playbook's text (YAML). None: the agent's brain finds the way."""
    playbook_name: str | None = None
    """What errors call it: usually the file's name."""
    inputs: dict[str, Any] = Field(default_factory=dict[str, Any])
    accept: list[RunCheck] = Field(default_factory=list[RunCheck], max_length=CHECKS_MAX)
    """What has to hold in the end, whatever the brain says. Not for a playbook, which has checks of its own."""


class SubgoalRequest(Request):
    """`POST /v1/runs/subgoals`: a run of the agent's brain, once per `key`."""

    agent: str
    goal: str = Field(min_length=1, max_length=GOAL_CHARS_MAX)
    key: str = Field(min_length=1, max_length=200)
    parent: str | None = None
    """The run whose sub-goal it is."""


class StepSnapshot(Answer):
    """One that the run took `before` or after a step; it may have been deleted since. `verified`: the run can go back to it.
    `seq`: how far its journal had come."""

    id: str
    before: bool
    verified: bool
    seq: int


class Spent(Answer):
    """What a brain took. `cost_usd` is the known part of it; None: nothing of it is known."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None


class Question(Answer):
    """One that a run has for a person; `approval`: whether something may go on. Answered once, by whoever is first."""

    id: str
    run: str = ""
    agent: str = ""
    step: str = ""
    text: str
    options: list[str] = Field(default_factory=list[str])
    evidence: str = ""
    approval: bool = False
    expires_at: datetime | None = None
    to: str = ""


class QuestionList(Answer):
    questions: list[Question]


class AnswerRequest(Request):
    """`POST /v1/questions/{id}/answer`."""

    answer: str = Field(min_length=1, max_length=GOAL_CHARS_MAX)


class CostsBy(StrEnum):
    """What costs are summed by."""

    AGENT = "agent"
    RUN = "run"
    STEP = "step"
    MODEL = "model"
    DAY = "day"


class Cost(Answer):
    """What brains took. Of `agent`, `run`, `step`, `model` and `day` (UTC) those are filled that it is summed by. `cost_usd` is
    the known part of it, and `unpriced` counts the thoughts whose price nobody knows."""

    agent: str | None = None
    run: str | None = None
    step: str | None = None
    model: str | None = None
    day: date | None = None
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    unpriced: int = 0
    duration_s: float = 0.0


class CostList(Answer):
    by: CostsBy
    costs: list[Cost]


class RunStep(Answer):
    id: str
    state: StepState
    attempts: int = 0
    rungs: list[int] = Field(default_factory=list[int])
    """Rungs of the recovery ladder that the step went through, in order (0 retry … 8 ask a person)."""
    snapshots: list[StepSnapshot] = Field(default_factory=list[StepSnapshot])
    started_at: datetime | None = None
    finished_at: datetime | None = None
    duration_s: float | None = None
    error: str | None = None
    spent: Spent | None = None
    """None: no brain thought about it."""


class RunOrigin(Answer):
    """Of which run, and at the moment before or after which of its steps, a run was forked. `seq`: how far that journal was."""

    run: str
    step: str
    before: bool
    snapshot: str
    seq: int


class Run(Answer):
    id: str
    agent: str
    goal: str
    brain: str = "playbook"
    state: RunState
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    question: str | None = None
    """What the person is asked, while parked."""
    error: str | None = None
    origin: RunOrigin | None = None
    parent: str | None = None
    """The run of which it is a sub-goal."""
    summary: str = ""
    """What it said when it had succeeded."""
    spent: Spent | None = None
    questions: list[Question] = Field(default_factory=list[Question])
    """Those that are open."""
    """For a fork."""
    steps: list[RunStep] = Field(default_factory=list[RunStep])


class RunList(Answer):
    runs: list[Run]


class ResumeRequest(Request):
    answer: str | None = Field(default=None, max_length=GOAL_CHARS_MAX)


class RunForkRequest(Request):
    """`POST …/fork`: the agent `new` goes on with the run from the moment of the step `at`; `before` it, or after it, or (None)
    after it if there is a snapshot of that, else before it. A `playbook` replaces the plan of what is left; it keeps the
    run's inputs where `inputs` has no others."""

    new: str
    at: str = Field(min_length=1, max_length=300)
    before: bool | None = None
    playbook: str | None = Field(default=None, max_length=PLAYBOOK_CHARS_MAX)
    playbook_name: str | None = None
    inputs: dict[str, Any] = Field(default_factory=dict[str, Any])


class RunEvent(Answer):
    """One entry of the run's journal. `seq` grows by one, from 1; `data` depends on `kind`."""

    seq: int
    kind: str
    at: datetime
    step: str | None = None
    data: dict[str, Any] = Field(default_factory=dict[str, Any])


class EventList(Answer):
    events: list[RunEvent]


# --- inbox -----------------------------------------------------------------------------------------------------------
class MessageRequest(Request):
    subject: str = Field(min_length=1, max_length=500)
    body: str = Field(default="", max_length=256 * 1024)
    key: str | None = Field(default=None, max_length=200)
    """A message of a known key is not left again."""
    agent: str | None = None
    """For the owner and the worker: whose message it is. An office can only write its own."""
    run_id: str | None = None


class Message(Answer):
    id: str
    agent: str | None = None
    run_id: str | None = None
    subject: str
    body: str = ""
    created_at: datetime
    read_at: datetime | None = None


class MessageList(Answer):
    messages: list[Message]


# --- SSH keys and previews -----------------------------------------------------------------------------------------
class SshKeyRequest(Request):
    """`POST /v1/ssh-keys`: the line of a `.pub` file."""

    public_key: str = Field(max_length=16 * 1024)
    comment: str | None = Field(default=None, max_length=200)
    """Instead of the one in `public_key`."""


class SshKey(Answer):
    id: str
    fingerprint: str
    algorithm: str
    comment: str
    principal: str
    """Whom the key stands for: "owner"."""
    created_at: datetime
    last_used_at: datetime | None = None


class SshKeyList(Answer):
    keys: list[SshKey]


class SshGateway(Answer):
    """Where the SSH gateway is, and by what a client knows it."""

    enabled: bool
    problem: str = ""
    """Why it is not enabled though it is wanted."""
    host: str
    port: int
    host_key: str
    """As in known_hosts: "ssh-ed25519 AAAA…"."""


class PreviewRequest(Request):
    port: int = Field(ge=1, le=65535)
    path: str = Field(default="/", max_length=2000, pattern="^/")


class Preview(Answer):
    """`url` lets a browser in once, until `expires_at`; then it has a cookie for `origin`."""

    url: str
    origin: str
    expires_at: datetime
