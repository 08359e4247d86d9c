"""Access keys of S3, in both SDKs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tenure.client import key_calls as calls
from tenure.client import views
from tenure.client.transport import AsyncTransport, Transport
from tenure.wire import keys as wire


def _wanted(
    agent: str | None, expires_s: float | None, buckets: Mapping[str, wire.BucketLevel] | None, comment: str
) -> wire.AccessKeyRequest:
    with views.refusing():
        return wire.AccessKeyRequest(agent=agent, expires_s=expires_s, buckets=dict(buckets or {}), comment=comment)


def address_wanted(bucket: str, name: str, put: bool, expires_s: int) -> wire.PresignRequest:
    with views.refusing():
        return wire.PresignRequest(bucket=bucket, name=name, method="PUT" if put else "GET", expires_s=expires_s)


class AccessKeys:
    """Keys for programs that speak S3."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        agent: str | None = None,
        *,
        expires_s: float | None = None,
        buckets: Mapping[str, wire.BucketLevel] | None = None,
        comment: str = "",
    ) -> wire.NewAccessKey:
        """A key that acts as the agent, or as you; for all that they may, or for some `buckets` ("read" or "write"). Its
        `secret` is told now and never again. Raises `NotFound`, `InvalidArgument`, `Conflict`."""
        return self._transport.send(calls.create_access_key(_wanted(agent, expires_s, buckets, comment)))

    def list(self, agent: str | None = None) -> Sequence[wire.AccessKey]:
        """The oldest first."""
        return self._transport.send(calls.list_access_keys(agent)).keys

    def revoke(self, key: str) -> None:
        """By id, at once: what is being sent with it is not stored. Raises `NotFound`."""
        self._transport.send(calls.revoke_access_key(key))

    def revoke_lent(self, agent: str) -> None:
        """Ends the key that the agent's office was lent, and every address that was made for the agent. Raises `NotFound`."""
        self._transport.send(calls.revoke_lent_keys(agent))


class AsyncAccessKeys:
    """See `AccessKeys`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        agent: str | None = None,
        *,
        expires_s: float | None = None,
        buckets: Mapping[str, wire.BucketLevel] | None = None,
        comment: str = "",
    ) -> wire.NewAccessKey:
        return await self._transport.send(calls.create_access_key(_wanted(agent, expires_s, buckets, comment)))

    async def list(self, agent: str | None = None) -> Sequence[wire.AccessKey]:
        return (await self._transport.send(calls.list_access_keys(agent))).keys

    async def revoke(self, key: str) -> None:
        await self._transport.send(calls.revoke_access_key(key))

    async def revoke_lent(self, agent: str) -> None:
        await self._transport.send(calls.revoke_lent_keys(agent))
