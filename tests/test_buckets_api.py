"""Shared buckets over the API and in both SDKs: who may see and do what."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from fixtures.api import TOKENS, Api, error_of
from tenure.client import AsyncTenure, Tenure
from tenure.client.endpoint import Endpoint
from tenure.errors import AlreadyExists, InvalidArgument, NotFound

pytest_plugins = ("fixtures.server",)


async def test_both_sdks_make_grant_and_delete_buckets(api: Api) -> None:
    def blocking() -> None:
        with Tenure(endpoint=endpoint(api)) as tenure:
            assert tenure.buckets.create("sales", quota_gb=2).quota_bytes == 2 * 1024**3
            with pytest.raises(AlreadyExists):
                tenure.buckets.create("sales")
            with pytest.raises(InvalidArgument):
                tenure.buckets.create("far", backend="ftp://x")
            assert tenure.buckets.grant("sales", "analyst", "write", prefix="a/").prefix == "a/"
            assert [(one.agent, one.level) for one in tenure.buckets.grants("sales")] == [("analyst", "write")]
            with pytest.raises(NotFound):
                tenure.buckets.grant("sales", "nobody")

    await asyncio.to_thread(blocking)
    async with AsyncTenure(endpoint=endpoint(api)) as tenure:
        assert [one.name for one in await tenure.buckets.list()] == ["sales"]
        assert (await tenure.buckets.limit("sales", 3)).quota_bytes == 3 * 1024**3
        await tenure.buckets.revoke("sales", "analyst")
        assert list(await tenure.buckets.grants("sales")) == []
        await tenure.buckets.delete("sales", force=True)
        with pytest.raises(NotFound):
            await tenure.buckets.get("sales")


def endpoint(api: Api) -> Endpoint:
    return Endpoint("http://tenure", api.socket, TOKENS.owner)


async def test_what_is_wrong_is_refused(owner: httpx.AsyncClient) -> None:
    for body in ({"name": "A"}, {"name": "a.b"}, {"name": "x", "quota_gb": 0}, {"name": "x", "quota_gb": "inf"}, {}):
        assert (await owner.post("/v1/buckets", json=body)).status_code == 422
    await owner.post("/v1/buckets", json={"name": "sales"})
    refused = await owner.put("/v1/buckets/sales/grants/analyst", json={"level": "own"})
    assert (refused.status_code, bool(error_of(refused)["message"])) == (422, True)
