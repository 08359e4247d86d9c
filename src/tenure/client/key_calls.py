"""Requests of the API about access keys of S3."""

from __future__ import annotations

from urllib.parse import quote

from tenure.client.calls import Call
from tenure.names import check_name
from tenure.wire import keys as wire


def create_access_key(request: wire.AccessKeyRequest) -> Call[wire.NewAccessKey]:
    return Call("POST", "/v1/access-keys", wire.NewAccessKey.model_validate_json, body=request)


def list_access_keys(agent: str | None) -> Call[wire.AccessKeyList]:
    params: dict[str, str | int | float] = {} if agent is None else {"agent": check_name(agent)}
    return Call("GET", "/v1/access-keys", wire.AccessKeyList.model_validate_json, params, repeatable=True)


def revoke_access_key(key: str) -> Call[None]:
    return Call("DELETE", f"/v1/access-keys/{quote(key, safe='')}", _nothing)


def revoke_lent_keys(agent: str) -> Call[None]:
    return Call("DELETE", f"/v1/agents/{check_name(agent)}/lent-keys", _nothing)


def presign(agent: str, request: wire.PresignRequest) -> Call[wire.Address]:
    return Call("POST", f"/v1/agents/{check_name(agent)}/addresses", wire.Address.model_validate_json, body=request)


def _nothing(_: bytes) -> None:
    return None
