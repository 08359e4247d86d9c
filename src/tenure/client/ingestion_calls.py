"""Requests of ingestion: loads and pipelines."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TypeVar
from urllib.parse import quote

from tenure.client.calls import ANSWER_S, OFFICE_S, Call
from tenure.errors import NotFound
from tenure.names import check_name
from tenure.wire import Answer
from tenure.wire import ingestion as wire

M = TypeVar("M", bound=Answer)
_LOAD = re.compile(r"load_[0-9a-f]{1,60}\Z")
SPOOL_S = 600.0
"""Longest silence after the last byte of a file: the server writes it to its disk."""


def _model(cls: type[M]) -> Callable[[bytes], M]:
    return cls.model_validate_json


def _nothing(_: bytes) -> None:
    return None


def _target(agent: str | None, database: str | None) -> str:
    return f"/v1/agents/{check_name(agent)}" if agent else f"/v1/databases/{check_name(database or '', 'database')}"


def _load(load_id: str, *rest: str) -> str:
    if not _LOAD.match(load_id):
        raise NotFound(f"{load_id[:60]!r} is not the id of a load.", hint="`tenure loads list` shows them: load_…")
    return "/".join(["/v1/loads", load_id, *rest])


def _pipeline(name: str, *rest: str) -> str:
    return "/".join(["/v1/pipelines", quote(check_name(name, "pipeline"), safe=""), *rest])


def send_file(
    agent: str | None,
    database: str | None,
    name: str,
    options: wire.LoadOptions,
    content: Iterable[bytes] | AsyncIterable[bytes],
) -> Call[wire.Load]:
    said = options.model_dump(exclude_none=True, exclude_defaults=True)
    params: dict[str, str | int | float] = {"file": name}
    for field, value in said.items():
        params[field] = json.dumps(value) if isinstance(value, (list, bool)) else value
    return Call(
        "POST",
        f"{_target(agent, database)}/loads",
        _model(wire.Load),
        params=params,
        content=content,
        content_type="application/octet-stream",
        timeout_s=SPOOL_S,
    )


def load_from(agent: str | None, database: str | None, request: wire.LoadRequest) -> Call[wire.Load]:
    path = f"{_target(agent, database)}/loads/from"
    repeatable = request.key is not None
    return Call("POST", path, _model(wire.Load), body=request, timeout_s=OFFICE_S, repeatable=repeatable)


def list_loads(agent: str | None, database: str | None, limit: int) -> Call[wire.LoadList]:
    params: dict[str, str | int | float] = {"limit": limit}
    if agent is not None:
        params["agent"] = check_name(agent)
    if database is not None:
        params["database"] = check_name(database, "database")
    return Call("GET", "/v1/loads", _model(wire.LoadList), params=params, repeatable=True)


def get_load(load_id: str) -> Call[wire.Load]:
    return Call("GET", _load(load_id), _model(wire.Load), repeatable=True)


def answer_load(load_id: str, allow: bool) -> Call[wire.Load]:
    return Call(
        "POST", _load(load_id, "answer"), _model(wire.Load), body=wire.LoadAnswer(allow=allow), timeout_s=OFFICE_S
    )


def cancel_load(load_id: str) -> Call[wire.Load]:
    return Call("POST", _load(load_id, "cancel"), _model(wire.Load), timeout_s=OFFICE_S)


def create_pipeline(request: wire.PipelineRequest) -> Call[wire.Pipeline]:
    check_name(request.name, "pipeline")
    return Call("POST", "/v1/pipelines", _model(wire.Pipeline), body=request, timeout_s=OFFICE_S)


def list_pipelines(agent: str | None) -> Call[wire.PipelineList]:
    params: dict[str, str | int | float] = {} if agent is None else {"agent": check_name(agent)}
    return Call("GET", "/v1/pipelines", _model(wire.PipelineList), params=params, repeatable=True)


def get_pipeline(name: str) -> Call[wire.Pipeline]:
    return Call("GET", _pipeline(name), _model(wire.Pipeline), repeatable=True)


def pipeline_loads(name: str, limit: int) -> Call[wire.LoadList]:
    return Call("GET", _pipeline(name, "loads"), _model(wire.LoadList), params={"limit": limit}, repeatable=True)


def pause_pipeline(name: str) -> Call[wire.Pipeline]:
    return Call("POST", _pipeline(name, "pause"), _model(wire.Pipeline), timeout_s=ANSWER_S, repeatable=True)


def resume_pipeline(name: str) -> Call[wire.Pipeline]:
    return Call("POST", _pipeline(name, "resume"), _model(wire.Pipeline), timeout_s=ANSWER_S, repeatable=True)


def run_pipeline(name: str) -> Call[wire.Pipeline]:
    return Call("POST", _pipeline(name, "run"), _model(wire.Pipeline), timeout_s=OFFICE_S)


def delete_pipeline(name: str) -> Call[None]:
    return Call("DELETE", _pipeline(name), _nothing)
