"""Webhooks in, in both SDKs."""

from __future__ import annotations

from pydantic import SecretStr

from tenure.client import trigger_calls as calls
from tenure.client.transport import AsyncTransport, Transport
from tenure.client.views import refusing
from tenure.wire import triggers
from tenure.wire.intervals import seconds_of

KEEP_DEFAULT = "30d"


def webhook_request(name: str, agent: str, signature: str, secret: str | None, keep: str) -> triggers.WebhookRequest:
    """`keep` is an interval as "30d". Raises `InvalidArgument`."""
    with refusing():
        return triggers.WebhookRequest(
            name=name, agent=agent, signature=signature, secret=_hidden(secret), keep_s=seconds_of(keep)
        )


def rotate_request(secret: str | None, address: bool) -> triggers.WebhookRotateRequest:
    with refusing():
        return triggers.WebhookRotateRequest(secret=_hidden(secret), address=address)


def _hidden(secret: str | None) -> SecretStr | None:
    return None if secret is None else SecretStr(secret)


class Webhooks:
    """Addresses at which agents receive what others send. They are named by id, or by name where only one agent has one of it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        name: str,
        agent: str,
        *,
        signature: str = "standard",
        secret: str | None = None,
        keep: str = KEEP_DEFAULT,
    ) -> triggers.Webhook:
        """With its secret, which is shown here only. `signature` is how its sender signs: standard, github, stripe, slack,
        shopify, none, or hmac:HEADER:ALGORITHM:ENCODING. Raises `InvalidArgument`, `AlreadyExists`, `NotFound`."""
        request = webhook_request(name, agent, signature, secret, keep)
        return self._transport.send(calls.create_webhook(request))

    def list(self, agent: str | None = None) -> list[triggers.Webhook]:
        return self._transport.send(calls.list_webhooks(agent)).webhooks

    def get(self, webhook: str, agent: str | None = None) -> triggers.Webhook:
        """Raises `NotFound`, and `Conflict` when several agents have one of that name."""
        return self._transport.send(calls.get_webhook(webhook, agent))

    def rotate(
        self, webhook: str, agent: str | None = None, *, secret: str | None = None, address: bool = False
    ) -> triggers.Webhook:
        """A new secret, shown here only; the old one is good for a day more. `address`: a new address, too."""
        return self._transport.send(calls.rotate_webhook(webhook, agent, rotate_request(secret, address)))

    def test(self, webhook: str, agent: str | None = None) -> triggers.WebhookTest:
        """Sends it a delivery, signed as its sender would."""
        return self._transport.send(calls.try_webhook(webhook, agent))

    def deliveries(self, webhook: str, agent: str | None = None, *, limit: int = 50) -> list[triggers.Delivery]:
        """What came, the latest first, without bodies."""
        return self._transport.send(calls.list_deliveries(webhook, agent, limit)).deliveries

    def delivery(self, webhook: str, delivery: str, agent: str | None = None) -> triggers.Delivery:
        """With its headers, and its body in base64."""
        return self._transport.send(calls.get_delivery(webhook, delivery, agent))

    def delete(self, webhook: str, agent: str | None = None) -> None:
        """Its address is nobody's at once; what came stays in the agent's database."""
        self._transport.send(calls.delete_webhook(webhook, agent))


class AsyncWebhooks:
    """See `Webhooks`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        agent: str,
        *,
        signature: str = "standard",
        secret: str | None = None,
        keep: str = KEEP_DEFAULT,
    ) -> triggers.Webhook:
        request = webhook_request(name, agent, signature, secret, keep)
        return await self._transport.send(calls.create_webhook(request))

    async def list(self, agent: str | None = None) -> list[triggers.Webhook]:
        return (await self._transport.send(calls.list_webhooks(agent))).webhooks

    async def get(self, webhook: str, agent: str | None = None) -> triggers.Webhook:
        return await self._transport.send(calls.get_webhook(webhook, agent))

    async def rotate(
        self, webhook: str, agent: str | None = None, *, secret: str | None = None, address: bool = False
    ) -> triggers.Webhook:
        return await self._transport.send(calls.rotate_webhook(webhook, agent, rotate_request(secret, address)))

    async def test(self, webhook: str, agent: str | None = None) -> triggers.WebhookTest:
        return await self._transport.send(calls.try_webhook(webhook, agent))

    async def deliveries(self, webhook: str, agent: str | None = None, *, limit: int = 50) -> list[triggers.Delivery]:
        return (await self._transport.send(calls.list_deliveries(webhook, agent, limit))).deliveries

    async def delivery(self, webhook: str, delivery: str, agent: str | None = None) -> triggers.Delivery:
        return await self._transport.send(calls.get_delivery(webhook, delivery, agent))

    async def delete(self, webhook: str, agent: str | None = None) -> None:
        await self._transport.send(calls.delete_webhook(webhook, agent))
