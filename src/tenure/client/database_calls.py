"""Requests of the API about shared databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote

from tenure import wire as sql
from tenure.client.calls import CREATE_S, FETCH_S, OFFICE_S, Call
from tenure.names import check_name
from tenure.wire import Answer
from tenure.wire import databases as wire

M = TypeVar("M", bound=Answer)
STATEMENT_S = 600.0


def _model(cls: type[M]) -> Callable[[bytes], M]:
    return cls.model_validate_json


def _nothing(_: bytes) -> None:
    return None


def _raw(body: bytes) -> bytes:
    return body


def _database(name: str, *rest: str) -> str:
    return "/".join(["/v1/databases", check_name(name, "database"), *(quote(part, safe="") for part in rest)])


def create(request: wire.SharedDatabaseRequest) -> Call[wire.SharedDatabase]:
    check_name(request.name, "database")
    return Call("POST", "/v1/databases", _model(wire.SharedDatabase), body=request, timeout_s=CREATE_S)


def list_all() -> Call[wire.SharedDatabaseList]:
    return Call("GET", "/v1/databases", _model(wire.SharedDatabaseList), repeatable=True)


def get(name: str) -> Call[wire.SharedDatabase]:
    return Call("GET", _database(name), _model(wire.SharedDatabase), repeatable=True)


def delete(name: str) -> Call[None]:
    return Call("DELETE", _database(name), _nothing, timeout_s=OFFICE_S)


def wake(name: str) -> Call[wire.SharedDatabase]:
    return Call("POST", _database(name, "wake"), _model(wire.SharedDatabase), timeout_s=OFFICE_S, repeatable=True)


def sleep(name: str) -> Call[wire.SharedDatabase]:
    return Call("POST", _database(name, "sleep"), _model(wire.SharedDatabase), timeout_s=OFFICE_S, repeatable=True)


def limit(name: str, request: wire.SharedLimitsRequest) -> Call[wire.SharedDatabase]:
    path = _database(name, "limits")
    return Call("PUT", path, _model(wire.SharedDatabase), body=request, timeout_s=OFFICE_S, repeatable=True)


# --- statements ---------------------------------------------------------------------------------------------------------
def _as(agent: str | None) -> dict[str, str | int | float]:
    return {} if agent is None else {"agent": check_name(agent)}


def run(
    name: str, request: sql.SqlRequest, agent: str | None = None, timeout_s: float = STATEMENT_S
) -> Call[sql.SqlResult]:
    return Call(
        "POST",
        _database(name, "sql"),
        _model(sql.SqlResult),
        _as(agent),
        body=request,
        timeout_s=timeout_s,
        repeatable=request.key is not None,
    )


def csv(name: str, request: sql.CsvRequest, agent: str | None = None, timeout_s: float = STATEMENT_S) -> Call[bytes]:
    return Call("POST", _database(name, "sql", "csv"), _raw, _as(agent), body=request, timeout_s=timeout_s)


# --- grants -------------------------------------------------------------------------------------------------------------
def grant(name: str, agent: str, request: wire.DatabaseGrantRequest) -> Call[wire.DatabaseGrant]:
    path = _database(name, "grants", check_name(agent))
    return Call("PUT", path, _model(wire.DatabaseGrant), body=request, timeout_s=OFFICE_S, repeatable=True)


def revoke(name: str, agent: str) -> Call[None]:
    return Call("DELETE", _database(name, "grants", check_name(agent)), _nothing, timeout_s=OFFICE_S)


def grants(name: str) -> Call[wire.DatabaseGrantList]:
    return Call("GET", _database(name, "grants"), _model(wire.DatabaseGrantList), repeatable=True)


# --- its past -----------------------------------------------------------------------------------------------------------
def take_snapshot(name: str, request: wire.SharedSnapshotRequest) -> Call[wire.SharedSnapshot]:
    return Call("POST", _database(name, "snapshots"), _model(wire.SharedSnapshot), body=request, timeout_s=CREATE_S)


def snapshots(name: str) -> Call[wire.SharedSnapshotList]:
    return Call("GET", _database(name, "snapshots"), _model(wire.SharedSnapshotList), repeatable=True)


def delete_snapshot(name: str, snapshot: str) -> Call[None]:
    return Call("DELETE", _database(name, "snapshots", snapshot), _nothing, timeout_s=OFFICE_S)


def restore_snapshot(name: str, snapshot: str) -> Call[wire.SharedRestored]:
    path = _database(name, "snapshots", snapshot, "restore")
    return Call("POST", path, _model(wire.SharedRestored), timeout_s=CREATE_S)


def fork(name: str, request: wire.SharedForkRequest) -> Call[wire.SharedDatabase]:
    check_name(request.new, "database")
    return Call("POST", _database(name, "fork"), _model(wire.SharedDatabase), body=request, timeout_s=CREATE_S)


def back_up(name: str, request: wire.SharedBackupRequest) -> Call[wire.SharedDatabase]:
    return Call("PUT", _database(name, "backup"), _model(wire.SharedDatabase), body=request, timeout_s=OFFICE_S)


def back_up_now(name: str) -> Call[wire.SharedDatabase]:
    return Call("POST", _database(name, "backup"), _model(wire.SharedDatabase), timeout_s=FETCH_S)


def back_up_no_more(name: str) -> Call[None]:
    return Call("DELETE", _database(name, "backup"), _nothing, timeout_s=OFFICE_S)


def restore_to(name: str, request: wire.MomentRequest) -> Call[wire.SharedDatabase]:
    check_name(request.new, "database")
    return Call("POST", _database(name, "restore"), _model(wire.SharedDatabase), body=request, timeout_s=FETCH_S)
