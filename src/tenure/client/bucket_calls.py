"""Requests of the API about shared buckets."""

from __future__ import annotations

from tenure.client.calls import Call
from tenure.names import check_bucket, check_name
from tenure.wire import buckets as wire

CREATE_S = 120.0


def create_bucket(request: wire.BucketRequest) -> Call[wire.Bucket]:
    return Call("POST", "/v1/buckets", wire.Bucket.model_validate_json, body=request, timeout_s=CREATE_S)


def list_buckets() -> Call[wire.BucketList]:
    return Call("GET", "/v1/buckets", wire.BucketList.model_validate_json, repeatable=True)


def get_bucket(name: str) -> Call[wire.Bucket]:
    return Call("GET", _bucket(name), wire.Bucket.model_validate_json, repeatable=True)


def delete_bucket(name: str, *, force: bool) -> Call[None]:
    params: dict[str, str | int | float] = {"force": "true"} if force else {}
    return Call("DELETE", _bucket(name), _nothing, params)


def limit_bucket(name: str, request: wire.BucketQuotaRequest) -> Call[wire.Bucket]:
    return Call("PUT", f"{_bucket(name)}/quota", wire.Bucket.model_validate_json, body=request, repeatable=True)


def list_bucket_grants(name: str) -> Call[wire.BucketGrantList]:
    return Call("GET", f"{_bucket(name)}/grants", wire.BucketGrantList.model_validate_json, repeatable=True)


def grant_bucket(name: str, agent: str, request: wire.BucketGrantRequest) -> Call[wire.BucketGrant]:
    path = f"{_bucket(name)}/grants/{check_name(agent)}"
    return Call("PUT", path, wire.BucketGrant.model_validate_json, body=request, repeatable=True)


def revoke_bucket(name: str, agent: str) -> Call[None]:
    return Call("DELETE", f"{_bucket(name)}/grants/{check_name(agent)}", _nothing)


def _bucket(name: str) -> str:
    return f"/v1/buckets/{check_bucket(name)}"


def _nothing(_: bytes) -> None:
    return None
