"""Every request of the HTTP API, once: what is sent, how long it may take, what the answer is parsed into.

Both SDKs and `HttpHands` are built from these. A builder checks names before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar
from urllib.parse import quote

from tenure import wire
from tenure.errors import InvalidArgument, TooLarge
from tenure.names import check_bucket, check_name

T = TypeVar("T")
M = TypeVar("M", bound=wire.Answer)

_QUESTION = re.compile(r"[A-Za-z0-9_.:~-]{1,200}\Z")
_SNAPSHOT = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
ANSWER_S = 30.0
"""A request that touches no office."""
OFFICE_S = 180.0
"""A request that may have to wake an office first."""
CREATE_S = 300.0
IMPORT_S = 600.0
"""Longest silence while an office is made of archives."""
FETCH_S = 24 * 3600.0
"""An import that the server fetches by itself: nothing comes before its end."""
MARGIN_S = 30.0
"""What a client waits beyond the time that it allowed the server."""
TRANSFER_S = 120.0
"""Longest silence in a stream of bytes."""
CHUNK_BYTES = 256 * 1024
EVENT_SILENCE_S = 30.0
"""Longest silence in a stream of events, after which the client asks anew."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. `timeout_s` bounds each wait for bytes, not the whole transfer. `repeatable`: the server treats a
    second one like the first, so it may be sent again when its answer was lost."""

    method: str
    path: str
    parse: Callable[[bytes], T]
    params: dict[str, str | int | float] = field(default_factory=dict[str, "str | int | float"])
    body: wire.Request | None = None
    content: bytes | Iterable[bytes] | AsyncIterable[bytes] | None = None
    content_type: str | None = None
    timeout_s: float = ANSWER_S
    repeatable: bool = False

    def within(self, timeout_s: float) -> Call[T]:
        return replace(self, timeout_s=timeout_s)


def _model(cls: type[M]) -> Callable[[bytes], M]:
    return cls.model_validate_json


parsed = _model


def _nothing(_: bytes) -> None:
    return None


nothing = _nothing


def _raw(body: bytes) -> bytes:
    return body


def _agent(name: str, *rest: str) -> str:
    parts = [quote(part, safe="") for part in rest]
    return "/".join(["/v1/agents", check_name(name), *parts])


def _object(agent: str, bucket: str, name: str) -> str:
    check_bucket(bucket)
    parts = name.split("/")  # an empty first one is a leading '/'
    if any(part in ("", ".", "..") for part in parts) or any(char < " " or char == "\x7f" for char in name):
        raise InvalidArgument(
            f"{name!r} is not a valid object name.",
            hint="Object names look like paths: report.md, charts/2014.png; no leading '/', no '..', no control characters.",
        )
    return f"{_agent(agent, 'objects', bucket)}/{quote(name)}"


def _run(run_id: str, *rest: str) -> str:
    if not run_id or not run_id.replace("_", "").isalnum():
        raise InvalidArgument(f"{run_id!r} is not a run id.", hint="`tenure runs list` shows them: run_…")
    return "/".join(["/v1/runs", run_id, *rest])


# --- server ----------------------------------------------------------------------------------------------------------
def health() -> Call[wire.Health]:
    return Call("GET", "/v1/health", _model(wire.Health), timeout_s=5.0, repeatable=True)


# --- agents ----------------------------------------------------------------------------------------------------------
def create_agent(request: wire.AgentRequest) -> Call[wire.Agent]:
    check_name(request.name)
    return Call("POST", "/v1/agents", _model(wire.Agent), body=request, timeout_s=CREATE_S)


def list_agents() -> Call[wire.AgentList]:
    return Call("GET", "/v1/agents", _model(wire.AgentList), repeatable=True)


def get_agent(name: str) -> Call[wire.Agent]:
    return Call("GET", _agent(name), _model(wire.Agent), repeatable=True)


def delete_agent(name: str) -> Call[None]:
    return Call("DELETE", _agent(name), _nothing, timeout_s=OFFICE_S)


def wake(name: str) -> Call[wire.Agent]:
    return Call("POST", _agent(name, "wake"), _model(wire.Agent), timeout_s=OFFICE_S, repeatable=True)


def sleep(name: str, tier: wire.Tier) -> Call[wire.Agent]:
    request = wire.SleepRequest(tier=tier)
    return Call("POST", _agent(name, "sleep"), _model(wire.Agent), body=request, timeout_s=OFFICE_S, repeatable=True)


def set_rest(name: str, request: wire.RestRequest) -> Call[wire.Agent]:
    return Call("PUT", _agent(name, "rest"), _model(wire.Agent), body=request, repeatable=True)


def get_brain(name: str) -> Call[wire.Brain]:
    return Call("GET", _agent(name, "brain"), _model(wire.Brain), repeatable=True)


def set_brain(name: str, request: wire.BrainRequest) -> Call[wire.Brain]:
    return Call("PUT", _agent(name, "brain"), _model(wire.Brain), body=request, repeatable=True)


def set_lease(name: str, request: wire.LeaseRequest) -> Call[wire.Agent]:
    return Call("PUT", _agent(name, "lease"), _model(wire.Agent), body=request, repeatable=True)


def end_lease(name: str) -> Call[wire.Agent]:
    return Call("DELETE", _agent(name, "lease"), _model(wire.Agent), repeatable=True)


def reconnect(name: str) -> Call[wire.Agent]:
    return Call("POST", _agent(name, "reconnect"), _model(wire.Agent), timeout_s=OFFICE_S)


def restart(name: str) -> Call[wire.Agent]:
    return Call("POST", _agent(name, "restart"), _model(wire.Agent), timeout_s=OFFICE_S)


def rebuild(name: str) -> Call[wire.Rebuilt]:
    return Call("POST", _agent(name, "rebuild"), _model(wire.Rebuilt), timeout_s=CREATE_S)


def probe(name: str) -> Call[wire.Probe]:
    return Call("GET", _agent(name, "probe"), _model(wire.Probe), timeout_s=ANSWER_S, repeatable=True)


def history(name: str, limit: int) -> Call[wire.OfficeHistory]:
    return Call("GET", _agent(name, "history"), _model(wire.OfficeHistory), {"limit": limit}, repeatable=True)


def office_log(name: str, lines: int, *, follow: bool) -> Call[bytes]:
    params: dict[str, str | int | float] = {"lines": lines, "follow": "true" if follow else "false"}
    return Call("GET", _agent(name, "logs"), _raw, params, timeout_s=ANSWER_S, repeatable=True)


# --- snapshots -------------------------------------------------------------------------------------------------------
def _snapshot(agent: str, snapshot: str, *rest: str) -> str:
    if not _SNAPSHOT.match(snapshot):
        raise InvalidArgument(
            f"{snapshot!r} is neither the id nor the name of a snapshot.",
            hint=f"`tenure snapshot list {agent}` shows both.",
        )
    return _agent(agent, "snapshots", snapshot, *rest)


def take_snapshot(agent: str, request: wire.SnapshotRequest) -> Call[wire.Snapshot]:
    if request.name is not None:
        check_name(request.name, "snapshot")
    path, repeatable = _agent(agent, "snapshots"), request.key is not None
    return Call("POST", path, _model(wire.Snapshot), body=request, timeout_s=OFFICE_S, repeatable=repeatable)


def list_snapshots(agent: str) -> Call[wire.SnapshotList]:
    return Call("GET", _agent(agent, "snapshots"), _model(wire.SnapshotList), timeout_s=OFFICE_S, repeatable=True)


def delete_snapshot(agent: str, snapshot: str) -> Call[None]:
    return Call("DELETE", _snapshot(agent, snapshot), _nothing, timeout_s=OFFICE_S)


def restore_snapshot(agent: str, snapshot: str, request: wire.RestoreRequest | None = None) -> Call[wire.Restored]:
    path, repeatable = _snapshot(agent, snapshot, "restore"), request is not None and request.key is not None
    return Call("POST", path, _model(wire.Restored), body=request, timeout_s=CREATE_S, repeatable=repeatable)


def diff_snapshot(agent: str, snapshot: str, to: str | None, tables: bool) -> Call[wire.Diff]:
    params: dict[str, str | int | float] = {"tables": "true" if tables else "false"}
    if to is not None:
        _snapshot(agent, to)
        params["to"] = to
    path = _snapshot(agent, snapshot, "diff")
    return Call("GET", path, _model(wire.Diff), params, timeout_s=CREATE_S, repeatable=True)


def fork(agent: str, request: wire.ForkRequest) -> Call[wire.Agent]:
    check_name(request.new)
    if request.snapshot is not None:
        _snapshot(agent, request.snapshot)
    return Call("POST", _agent(agent, "fork"), _model(wire.Agent), body=request, timeout_s=CREATE_S)


# --- exports ---------------------------------------------------------------------------------------------------------
def export(agent: str, request: wire.ExportRequest) -> Call[bytes]:
    return Call("POST", _agent(agent, "export"), _raw, body=request, timeout_s=CREATE_S)


def start_export(agent: str, request: wire.ExportToRequest) -> Call[wire.Export]:
    return Call("POST", _agent(agent, "exports"), _model(wire.Export), body=request)


def archive(agent: str, request: wire.ArchiveRequest) -> Call[wire.Export]:
    return Call("POST", _agent(agent, "archive"), _model(wire.Export), body=request, timeout_s=OFFICE_S)


def list_exports(agent: str) -> Call[wire.ExportList]:
    return Call("GET", _agent(agent, "exports"), _model(wire.ExportList), repeatable=True)


def get_export(agent: str, export_id: str) -> Call[wire.Export]:
    return Call("GET", _agent(agent, "exports", export_id), _model(wire.Export), repeatable=True)


def keep_exporting(agent: str, request: wire.ExportScheduleRequest) -> Call[wire.ExportSchedule]:
    path = _agent(agent, "exports", "schedule")
    return Call("PUT", path, _model(wire.ExportSchedule), body=request, timeout_s=OFFICE_S, repeatable=True)


def stop_exporting(agent: str) -> Call[None]:
    return Call("DELETE", _agent(agent, "exports", "schedule"), _nothing)


def import_archives(name: str, body: Iterable[bytes]) -> Call[wire.Imported]:
    return Call(
        "POST",
        "/v1/imports",
        _model(wire.Imported),
        {"name": check_name(name)},
        content=body,
        content_type="application/vnd.tenure.office",
        timeout_s=IMPORT_S,
    )


def fetch_archives(request: wire.FetchRequest) -> Call[wire.Imported]:
    if request.name is not None:
        check_name(request.name)
    return Call("POST", "/v1/imports/s3", _model(wire.Imported), body=request, timeout_s=FETCH_S)


# --- commands --------------------------------------------------------------------------------------------------------
def execute(agent: str, request: wire.ExecRequest) -> Call[wire.ExecResult]:
    timeout_s = request.timeout_s + OFFICE_S + MARGIN_S
    return Call("POST", _agent(agent, "exec"), _model(wire.ExecResult), body=request, timeout_s=timeout_s)


def start_command(agent: str, key: str, request: wire.CommandRequest) -> Call[wire.CommandStatus]:
    path = _agent(agent, "commands", key)
    return Call("PUT", path, _model(wire.CommandStatus), body=request, timeout_s=OFFICE_S, repeatable=True)


def command_status(agent: str, key: str, wait_s: float) -> Call[wire.CommandStatus]:
    wait_s = min(max(wait_s, 0.0), wire.COMMAND_WAIT_S_MAX)
    path, timeout_s = _agent(agent, "commands", key), OFFICE_S + wait_s
    return Call("GET", path, _model(wire.CommandStatus), {"wait_s": wait_s}, timeout_s=timeout_s, repeatable=True)


def stop_command(agent: str, key: str) -> Call[None]:
    return Call("POST", _agent(agent, "commands", key, "stop"), _nothing, timeout_s=OFFICE_S, repeatable=True)


def forget_command(agent: str, key: str) -> Call[None]:
    return Call("DELETE", _agent(agent, "commands", key), _nothing, timeout_s=OFFICE_S, repeatable=True)


# --- what programs tell of themselves ----------------------------------------------------------------------------------
def open_signals(agent: str, key: str, request: wire.SignalsRequest) -> Call[None]:
    return Call("PUT", _agent(agent, "work", key), _nothing, body=request, repeatable=True)


def signals(agent: str, key: str) -> Call[wire.Signals]:
    return Call("GET", _agent(agent, "work", key), _model(wire.Signals), repeatable=True)


# --- files -----------------------------------------------------------------------------------------------------------
def download(agent: str, path: str, user: str) -> Call[bytes]:
    params: dict[str, str | int | float] = {"path": path, "user": user}
    return Call("GET", _agent(agent, "archive"), _raw, params, timeout_s=OFFICE_S)


def upload(agent: str, directory: str, user: str, tar: Iterable[bytes]) -> Call[None]:
    return Call(
        "PUT",
        _agent(agent, "archive"),
        _nothing,
        {"path": directory, "user": user},
        content=tar,
        content_type="application/x-tar",
        timeout_s=OFFICE_S,
    )


def read_file(agent: str, path: str, bytes_max: int) -> Call[bytes]:
    params: dict[str, str | int | float] = {"path": path, "bytes_max": bytes_max}
    return Call("GET", _agent(agent, "file"), _raw, params, timeout_s=OFFICE_S, repeatable=True)


# --- data ------------------------------------------------------------------------------------------------------------
def sql(agent: str, request: wire.SqlRequest, timeout_s: float = 600.0) -> Call[wire.SqlResult]:
    return Call(
        "POST",
        _agent(agent, "sql"),
        _model(wire.SqlResult),
        body=request,
        timeout_s=timeout_s,
        repeatable=request.key is not None,
    )


def sql_csv(agent: str, request: wire.CsvRequest, timeout_s: float = 600.0) -> Call[bytes]:
    return Call("POST", _agent(agent, "sql", "csv"), _raw, body=request, timeout_s=timeout_s)


def list_objects(agent: str, bucket: str | None, prefix: str | None, limit: int | None = None) -> Call[wire.ObjectList]:
    params: dict[str, str | int | float] = {} if limit is None else {"limit": limit}
    if bucket:
        params["bucket"] = check_bucket(bucket)
    if prefix:
        params["prefix"] = prefix
    return Call("GET", _agent(agent, "objects"), _model(wire.ObjectList), params, repeatable=True)


def put_object(
    agent: str,
    bucket: str,
    name: str,
    content: bytes | Iterable[bytes] | AsyncIterable[bytes],
    content_type: str | None,
) -> Call[wire.ObjectInfo]:
    path, kind = _object(agent, bucket, name), content_type or "application/octet-stream"
    return Call("PUT", path, _model(wire.ObjectInfo), content=content, content_type=kind, timeout_s=TRANSFER_S)


def get_object(agent: str, bucket: str, name: str) -> Call[bytes]:
    return Call("GET", _object(agent, bucket, name), _raw, timeout_s=TRANSFER_S, repeatable=True)


def delete_object(agent: str, bucket: str, name: str) -> Call[None]:
    return Call("DELETE", _object(agent, bucket, name), _nothing)


def object_from_file(agent: str, request: wire.ObjectFromFileRequest) -> Call[wire.ObjectInfo]:
    path = _agent(agent, "objects-from-file")
    return Call("POST", path, _model(wire.ObjectInfo), body=request, timeout_s=OFFICE_S, repeatable=True)


def file_from_object(agent: str, request: wire.FileFromObjectRequest) -> Call[wire.ObjectInfo]:
    path = _agent(agent, "file-from-object")
    return Call("POST", path, _model(wire.ObjectInfo), body=request, timeout_s=OFFICE_S, repeatable=True)


# --- runs ------------------------------------------------------------------------------------------------------------
def create_run(request: wire.RunRequest) -> Call[wire.Run]:
    check_name(request.agent)
    if len(request.playbook or "") > wire.PLAYBOOK_CHARS_MAX:
        raise TooLarge(f"The playbook is longer than {wire.PLAYBOOK_CHARS_MAX} characters.")
    return Call("POST", "/v1/runs", _model(wire.Run), body=request)


def start_subgoal(request: wire.SubgoalRequest) -> Call[wire.Run]:
    check_name(request.agent)
    return Call("POST", "/v1/runs/subgoals", _model(wire.Run), body=request, repeatable=True)


def list_runs(agent: str | None, state: str | None) -> Call[wire.RunList]:
    params: dict[str, str | int | float] = {}
    if agent:
        params["agent"] = check_name(agent)
    if state:
        params["state"] = state
    return Call("GET", "/v1/runs", _model(wire.RunList), params, repeatable=True)


def get_run(run_id: str) -> Call[wire.Run]:
    return Call("GET", _run(run_id), _model(wire.Run), repeatable=True)


def cancel_run(run_id: str) -> Call[wire.Run]:
    return Call("POST", _run(run_id, "cancel"), _model(wire.Run))


def resume_run(run_id: str, answer: str | None) -> Call[wire.Run]:
    return Call("POST", _run(run_id, "resume"), _model(wire.Run), body=wire.ResumeRequest(answer=answer))


def fork_run(run_id: str, request: wire.RunForkRequest) -> Call[wire.Run]:
    check_name(request.new)
    return Call("POST", _run(run_id, "fork"), _model(wire.Run), body=request, timeout_s=CREATE_S)


def run_events(run_id: str, after: int) -> Call[wire.EventList]:
    return Call("GET", _run(run_id, "events"), _model(wire.EventList), {"after": after}, repeatable=True)


def run_event_stream(run_id: str, after: int) -> Call[bytes]:
    path = _run(run_id, "events", "stream")
    return Call("GET", path, _raw, {"after": after}, timeout_s=EVENT_SILENCE_S, repeatable=True)


# --- questions and costs ---------------------------------------------------------------------------------------------
def list_questions(agent: str | None) -> Call[wire.QuestionList]:
    params: dict[str, str | int | float] = {"agent": check_name(agent)} if agent else {}
    return Call("GET", "/v1/questions", _model(wire.QuestionList), params, repeatable=True)


def answer_question(question: str, request: wire.AnswerRequest) -> Call[wire.Run]:
    if not _QUESTION.match(question):
        raise InvalidArgument(f"{question!r} is not the id of a question.", hint="`tenure questions` shows them.")
    return Call("POST", f"/v1/questions/{quote(question, safe='')}/answer", _model(wire.Run), body=request)


def list_costs(agent: str | None, by: wire.CostsBy, limit: int) -> Call[wire.CostList]:
    params: dict[str, str | int | float] = {"by": by.value, "limit": limit}
    if agent:
        params["agent"] = check_name(agent)
    return Call("GET", "/v1/costs", _model(wire.CostList), params, repeatable=True)


# --- inbox -----------------------------------------------------------------------------------------------------------
def list_messages(*, unread: bool) -> Call[wire.MessageList]:
    params: dict[str, str | int | float] = {"unread": "true"} if unread else {}
    return Call("GET", "/v1/inbox", _model(wire.MessageList), params, repeatable=True)


def leave_message(request: wire.MessageRequest) -> Call[wire.Message]:
    return Call("POST", "/v1/inbox", _model(wire.Message), body=request, repeatable=request.key is not None)


def read_message(message_id: str) -> Call[wire.Message]:
    path = f"/v1/inbox/{quote(message_id, safe='')}/read"
    return Call("POST", path, _model(wire.Message), repeatable=True)


# --- SSH keys and previews -------------------------------------------------------------------------------------------
def ssh_gateway() -> Call[wire.SshGateway]:
    return Call("GET", "/v1/ssh-gateway", _model(wire.SshGateway), repeatable=True)


def add_ssh_key(request: wire.SshKeyRequest) -> Call[wire.SshKey]:
    return Call("POST", "/v1/ssh-keys", _model(wire.SshKey), body=request)


def list_ssh_keys() -> Call[wire.SshKeyList]:
    return Call("GET", "/v1/ssh-keys", _model(wire.SshKeyList), repeatable=True)


def remove_ssh_key(key: str) -> Call[None]:
    return Call("DELETE", f"/v1/ssh-keys/{quote(key, safe='')}", _nothing)


def preview(agent: str, request: wire.PreviewRequest) -> Call[wire.Preview]:
    return Call("POST", _agent(agent, "preview"), _model(wire.Preview), body=request)
