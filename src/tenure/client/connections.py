"""Named connections, in both SDKs."""

from __future__ import annotations

from tenure.client import connection_calls as calls
from tenure.client import views
from tenure.client.transport import AsyncTransport, Transport
from tenure.wire import connections as wire


class Connections:
    """Databases and APIs elsewhere that offices reach under a name, without having the credential."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        name: str,
        url: str,
        *,
        secret: str | None = None,
        auth: str | None = None,
        private: bool = False,
        ca: str | None = None,
    ) -> wire.Connection:
        """`url` has no password: that is `secret`. `auth` is "bearer", "basic" or "header:NAME" for an HTTP API. `private`
        allows addresses of this machine and its networks; `ca` are certificates in PEM. Raises `InvalidArgument`,
        `AlreadyExists`."""
        with views.refusing():
            request = wire.ConnectionRequest.model_validate(
                {"name": name, "url": url, "secret": secret, "auth": auth, "private": private, "ca": ca}
            )
        return self._transport.send(calls.create(request))

    def list(self) -> list[wire.Connection]:
        """By name."""
        return (self._transport.send(calls.every())).connections

    def get(self, name: str) -> wire.Connection:
        """With the agents to whom it is granted. Raises `NotFound`."""
        return self._transport.send(calls.get(name))

    def check(self, name: str) -> wire.ConnectionCheck:
        """Tries it from the server. What is wrong over there is in the answer. Raises `NotFound`."""
        return self._transport.send(calls.check(name))

    def delete(self, name: str) -> None:
        """With its credential and grants. Raises `NotFound`."""
        self._transport.send(calls.delete(name))

    def grant(self, name: str, agent: str) -> None:
        """Lets the agent's office use it. Raises `NotFound`."""
        self._transport.send(calls.grant(name, agent))

    def revoke(self, name: str, agent: str) -> None:
        """What the office has open is broken. Raises `NotFound`."""
        self._transport.send(calls.revoke(name, agent))


class AsyncConnections:
    """Databases and APIs elsewhere that offices reach under a name, without having the credential."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        url: str,
        *,
        secret: str | None = None,
        auth: str | None = None,
        private: bool = False,
        ca: str | None = None,
    ) -> wire.Connection:
        """`url` has no password: that is `secret`. `auth` is "bearer", "basic" or "header:NAME" for an HTTP API. `private`
        allows addresses of this machine and its networks; `ca` are certificates in PEM. Raises `InvalidArgument`,
        `AlreadyExists`."""
        with views.refusing():
            request = wire.ConnectionRequest.model_validate(
                {"name": name, "url": url, "secret": secret, "auth": auth, "private": private, "ca": ca}
            )
        return await self._transport.send(calls.create(request))

    async def list(self) -> list[wire.Connection]:
        """By name."""
        return (await self._transport.send(calls.every())).connections

    async def get(self, name: str) -> wire.Connection:
        """With the agents to whom it is granted. Raises `NotFound`."""
        return await self._transport.send(calls.get(name))

    async def check(self, name: str) -> wire.ConnectionCheck:
        """Tries it from the server. What is wrong over there is in the answer. Raises `NotFound`."""
        return await self._transport.send(calls.check(name))

    async def delete(self, name: str) -> None:
        """With its credential and grants. Raises `NotFound`."""
        await self._transport.send(calls.delete(name))

    async def grant(self, name: str, agent: str) -> None:
        """Lets the agent's office use it. Raises `NotFound`."""
        await self._transport.send(calls.grant(name, agent))

    async def revoke(self, name: str, agent: str) -> None:
        """What the office has open is broken. Raises `NotFound`."""
        await self._transport.send(calls.revoke(name, agent))
