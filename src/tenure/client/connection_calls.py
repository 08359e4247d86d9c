"""Requests about named connections. See `tenure.client.calls`."""

from __future__ import annotations

from tenure.client.calls import OFFICE_S, Call
from tenure.names import check_name
from tenure.wire import connections as wire

CHECK_S = 90.0
"""The server gives up before."""


def create(request: wire.ConnectionRequest) -> Call[wire.Connection]:
    check_name(request.name, "connection")
    return Call("POST", "/v1/connections", wire.Connection.model_validate_json, body=request)


def every() -> Call[wire.ConnectionList]:
    return Call("GET", "/v1/connections", wire.ConnectionList.model_validate_json, repeatable=True)


def get(name: str) -> Call[wire.Connection]:
    return Call("GET", _path(name), wire.Connection.model_validate_json, repeatable=True)


def check(name: str) -> Call[wire.ConnectionCheck]:
    parse = wire.ConnectionCheck.model_validate_json
    return Call("POST", f"{_path(name)}/check", parse, timeout_s=CHECK_S, repeatable=True)


def delete(name: str) -> Call[None]:
    return Call("DELETE", _path(name), _nothing, timeout_s=OFFICE_S)


def grant(name: str, agent: str) -> Call[None]:
    return Call("PUT", _grant(name, agent), _nothing, timeout_s=OFFICE_S, repeatable=True)


def revoke(name: str, agent: str) -> Call[None]:
    return Call("DELETE", _grant(name, agent), _nothing, timeout_s=OFFICE_S)


def _path(name: str) -> str:
    return f"/v1/connections/{check_name(name, 'connection')}"


def _grant(name: str, agent: str) -> str:
    return f"{_path(name)}/grants/{check_name(agent)}"


def _nothing(_: bytes) -> None:
    return None
