"""Shared buckets, in both SDKs. What is in them goes by S3's protocol: any client of S3 with a key of `access_keys`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tenure.client import bucket_calls as calls
from tenure.client import views
from tenure.client.transport import AsyncTransport, Transport
from tenure.wire import buckets as wire


def _new(name: str, quota_gb: float | None, backend: str) -> wire.BucketRequest:
    with views.refusing():
        return wire.BucketRequest(name=name, quota_gb=quota_gb, backend=backend)


def _quota(quota_gb: float) -> wire.BucketQuotaRequest:
    with views.refusing():
        return wire.BucketQuotaRequest(quota_gb=quota_gb)


def _grant(level: wire.BucketLevel, prefix: str, expires_at: datetime | None) -> wire.BucketGrantRequest:
    with views.refusing():
        return wire.BucketGrantRequest(level=level, prefix=prefix, expires_at=expires_at)


class Buckets:
    """Buckets that are no agent's own. Whatever names one raises `NotFound` when there is none."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, *, quota_gb: float | None = None, backend: str = "") -> wire.Bucket:
        """Empty, on this machine; or with a `backend` (`s3://…`, `gs://…`, `az://…`, `file://…`) what lies there. Raises
        `InvalidArgument`, `AlreadyExists`, `StorageError`."""
        return self._transport.send(calls.create_bucket(_new(name, quota_gb, backend)))

    def list(self) -> Sequence[wire.Bucket]:
        """By name, without sizes."""
        return self._transport.send(calls.list_buckets()).buckets

    def get(self, name: str) -> wire.Bucket:
        """With its size."""
        return self._transport.send(calls.get_bucket(name))

    def delete(self, name: str, *, force: bool = False) -> None:
        """Raises `Conflict` when it holds anything, unless forced. Cannot be undone."""
        self._transport.send(calls.delete_bucket(name, force=force))

    def limit(self, name: str, quota_gb: float) -> wire.Bucket:
        """Sets the quota."""
        return self._transport.send(calls.limit_bucket(name, _quota(quota_gb)))

    def grants(self, name: str) -> Sequence[wire.BucketGrant]:
        """By agent."""
        return self._transport.send(calls.list_bucket_grants(name)).grants

    def grant(
        self,
        name: str,
        agent: str,
        level: wire.BucketLevel = "read",
        *,
        prefix: str = "",
        expires_at: datetime | None = None,
    ) -> wire.BucketGrant:
        """Takes the place of an earlier one. With a `prefix` only for keys that begin so. Raises `Conflict` when the agent has a
        bucket of its own of that name."""
        return self._transport.send(calls.grant_bucket(name, agent, _grant(level, prefix, expires_at)))

    def revoke(self, name: str, agent: str) -> None:
        """From the agent's next request on."""
        self._transport.send(calls.revoke_bucket(name, agent))


class AsyncBuckets:
    """See `Buckets`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, name: str, *, quota_gb: float | None = None, backend: str = "") -> wire.Bucket:
        return await self._transport.send(calls.create_bucket(_new(name, quota_gb, backend)))

    async def list(self) -> Sequence[wire.Bucket]:
        return (await self._transport.send(calls.list_buckets())).buckets

    async def get(self, name: str) -> wire.Bucket:
        return await self._transport.send(calls.get_bucket(name))

    async def delete(self, name: str, *, force: bool = False) -> None:
        await self._transport.send(calls.delete_bucket(name, force=force))

    async def limit(self, name: str, quota_gb: float) -> wire.Bucket:
        return await self._transport.send(calls.limit_bucket(name, _quota(quota_gb)))

    async def grants(self, name: str) -> Sequence[wire.BucketGrant]:
        return (await self._transport.send(calls.list_bucket_grants(name))).grants

    async def grant(
        self,
        name: str,
        agent: str,
        level: wire.BucketLevel = "read",
        *,
        prefix: str = "",
        expires_at: datetime | None = None,
    ) -> wire.BucketGrant:
        return await self._transport.send(calls.grant_bucket(name, agent, _grant(level, prefix, expires_at)))

    async def revoke(self, name: str, agent: str) -> None:
        await self._transport.send(calls.revoke_bucket(name, agent))
