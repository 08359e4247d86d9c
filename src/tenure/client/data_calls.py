"""What can be asked about the data of one database. `of` is where: `of_agent`, `of_database`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pydantic import JsonValue

from tenure import wire
from tenure.client.calls import ANSWER_S, Call
from tenure.client.views import refusing
from tenure.errors import InvalidArgument, InvalidName
from tenure.names import check_name
from tenure.wire import data

QUESTION_S = 200.0
"""Longer than the server lets a question take."""
SAVE_S = 700.0
INDEX_S = 900.0


def of_agent(name: str) -> str:
    """An office's own database."""
    return f"/v1/agents/{check_name(name)}"


def of_database(name: str) -> str:
    """A shared database."""
    return f"/v1/databases/{check_name(name, 'database')}"


def _named(of: str, *rest: str) -> str:
    if not all(rest):
        raise InvalidName("A name is missing.")
    return "/".join([of, "data", *(quote(part, safe="") for part in rest)])


def _nothing(_: bytes) -> None:
    return None


def sql(of: str, request: wire.SqlRequest) -> Call[wire.SqlResult]:
    return Call(
        "POST",
        f"{of}/sql",
        wire.SqlResult.model_validate_json,
        body=request,
        timeout_s=request.timeout_s + ANSWER_S,
        repeatable=request.key is not None,
    )


def sql_csv(of: str, request: wire.CsvRequest) -> Call[bytes]:
    return Call("POST", f"{of}/sql/csv", bytes, body=request, timeout_s=SAVE_S)


def describe(of: str, table: str | None, like: str | None, limit: int) -> Call[data.DataSchema]:
    params: dict[str, str | int | float] = {"limit": limit}
    params |= {name: value for name, value in (("table", table), ("like", like)) if value is not None}
    path, read = _named(of, "schema"), data.DataSchema.model_validate_json
    return Call("GET", path, read, params, timeout_s=QUESTION_S, repeatable=True)


def sample(of: str, request: data.SampleRequest) -> Call[wire.SqlResult]:
    path, read = _named(of, "sample"), wire.SqlResult.model_validate_json
    return Call("POST", path, read, body=request, timeout_s=QUESTION_S, repeatable=True)


def profile(of: str, request: data.ProfileRequest) -> Call[data.DataProfile]:
    path, read = _named(of, "profile"), data.DataProfile.model_validate_json
    return Call("POST", path, read, body=request, timeout_s=QUESTION_S, repeatable=True)


def save_result(of: str, name: str, request: data.ResultRequest) -> Call[data.SavedResult]:
    path, read = _named(of, "results", name), data.SavedResult.model_validate_json
    return Call("PUT", path, read, body=request, timeout_s=SAVE_S, repeatable=request.key is not None)


def list_results(of: str) -> Call[data.SavedResultList]:
    read = data.SavedResultList.model_validate_json
    return Call("GET", _named(of, "results"), read, timeout_s=QUESTION_S, repeatable=True)


def read_result(of: str, name: str, request: data.ResultReadRequest) -> Call[wire.SqlResult]:
    path, read = _named(of, "results", name, "rows"), wire.SqlResult.model_validate_json
    return Call("POST", path, read, body=request, timeout_s=SAVE_S, repeatable=True)


def drop_result(of: str, name: str) -> Call[None]:
    return Call("DELETE", _named(of, "results", name), _nothing, timeout_s=QUESTION_S)


def search(of: str, request: data.SearchRequest) -> Call[data.SearchFound]:
    path, read = _named(of, "search"), data.SearchFound.model_validate_json
    return Call("POST", path, read, body=request, timeout_s=QUESTION_S, repeatable=True)


def list_indexes(of: str) -> Call[data.SearchIndexList]:
    read = data.SearchIndexList.model_validate_json
    return Call("GET", _named(of, "search"), read, timeout_s=QUESTION_S, repeatable=True)


def create_index(of: str, name: str, request: data.SearchIndexRequest) -> Call[data.SearchIndex]:
    read = data.SearchIndex.model_validate_json
    return Call("PUT", _named(of, "search", name), read, body=request, timeout_s=INDEX_S)


def refresh_index(of: str, name: str) -> Call[data.SearchIndex]:
    read = data.SearchIndex.model_validate_json
    return Call("POST", _named(of, "search", name, "refresh"), read, timeout_s=INDEX_S, repeatable=True)


def drop_index(of: str, name: str) -> Call[None]:
    return Call("DELETE", _named(of, "search", name), _nothing, timeout_s=QUESTION_S)


def question(of: str, name: str, arguments: Mapping[str, JsonValue], key: str | None = None) -> Call[Any]:
    """One of `wire.data.QUESTIONS`, with its arguments. Raises `InvalidArgument`."""
    if name not in data.QUESTIONS:
        raise InvalidArgument(f"There is no question {name[:40]!r}.", hint=", ".join(data.QUESTIONS))
    with refusing():
        wanted: Any = data.QUESTIONS[name][0].model_validate(dict(arguments))
    match name:
        case "describe":
            return describe(of, wanted.table, wanted.like, wanted.limit)
        case "sample":
            return sample(of, wanted)
        case "profile":
            return profile(of, wanted)
        case "save_result":
            request = data.ResultRequest(query=wanted.query, expires_s=wanted.expires_s, key=key)
            return save_result(of, wanted.name, request)
        case "list_results":
            return list_results(of)
        case "read_result":
            request = data.ResultReadRequest(rows=wanted.rows, offset=wanted.offset, where=wanted.where)
            return read_result(of, wanted.name, request)
        case "create_index":
            request = data.SearchIndexRequest(table=wanted.table, columns=wanted.columns, model=wanted.model)
            return create_index(of, wanted.name, request)
        case "list_indexes":
            return list_indexes(of)
        case _:
            return search(of, wanted)
