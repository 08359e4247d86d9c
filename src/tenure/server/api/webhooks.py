"""Webhooks in: addresses at which an agent receives what others send. The receiving itself is `tenure.server.gateway.hooks`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query

from tenure.data.webhooks.delivery import LIST_MAX
from tenure.data.webhooks.hooks import Webhooks
from tenure.data.webhooks.store import Hook
from tenure.identity.authorize import Resource
from tenure.names import check_name
from tenure.server.access import Caller, Has, of_own, owned_by, requires
from tenure.server.api.schedules import OfAgent
from tenure.server.checks import check_id, check_text
from tenure.server.gateway.hooks import PREFIX
from tenure.wire import triggers as wire

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

DELIVERIES_DEFAULT = 50


async def of_new_webhook(body: wire.WebhookRequest) -> Resource:
    return Resource("webhook", owner=check_name(body.agent))


async def named_webhook(webhook: str, has: Has, agent: OfAgent = None) -> Hook:
    """By id or name. Raises `NotFound`, `Conflict`."""
    wanted = check_id(webhook, "webhook")
    return await has.triggers.webhooks.get(wanted, None if agent is None else check_name(agent))


Named = Annotated[Hook, Depends(named_webhook)]


async def of_webhook(found: Named) -> Resource:
    return Resource("webhook", owner=found.agent, name=found.id)


def shown(webhooks: Webhooks, hook: Hook, secret: str | None = None) -> wire.Webhook:
    return wire.Webhook(
        id=hook.id,
        name=hook.name,
        agent=hook.agent,
        path=PREFIX + hook.address,
        signature=hook.signature,
        keep_s=int(hook.keep.total_seconds()),
        created_at=hook.created_at,
        rotated_at=hook.rotated_at,
        received=hook.received,
        repeated=hook.repeated,
        refused=hook.refused,
        last_received_at=hook.last_received_at,
        last_refused_at=hook.last_refused_at,
        last_refusal=hook.last_refusal,
        waiting=webhooks.receiver.spool.waiting(hook.agent),
        secret=secret,
    )


@router.post(
    "", status_code=201, response_model=wire.Webhook, dependencies=[requires("webhook:create", of_new_webhook)]
)
async def create_webhook(body: wire.WebhookRequest, has: Has) -> Any:
    """Makes an address at which the agent receives what others send. The answer, and no other, has the secret."""
    check_text("signature", body.signature)
    secret = None if body.secret is None else check_text("secret", body.secret.get_secret_value())
    check_name(body.name, "webhook")
    await has.offices.need(body.agent)
    webhooks = has.triggers.webhooks
    hook, made = await webhooks.create(
        body.name, body.agent, signature=body.signature, keep=timedelta(seconds=body.keep_s), secret=secret
    )
    return shown(webhooks, hook, made)


@router.get("", response_model=wire.WebhookList, dependencies=[requires("webhook:list", of_own("webhook"))])
async def list_webhooks(has: Has, caller: Caller, agent: str | None = None) -> Any:
    """By agent and name."""
    if agent is not None:
        check_name(agent)
    webhooks = has.triggers.webhooks
    return {"webhooks": [shown(webhooks, one) for one in await webhooks.list(owned_by(caller) or agent)]}


@router.get("/{webhook}", response_model=wire.Webhook, dependencies=[requires("webhook:read", of_webhook)])
async def get_webhook(found: Named, has: Has) -> Any:
    return shown(has.triggers.webhooks, found)


@router.post("/{webhook}/rotate", response_model=wire.Webhook, dependencies=[requires("webhook:update", of_webhook)])
async def rotate_webhook(
    found: Named,
    has: Has,
    body: Annotated[wire.WebhookRotateRequest, Body(default_factory=wire.WebhookRotateRequest)],
) -> Any:
    """A new secret; the old one is good for a day more."""
    secret = None if body.secret is None else check_text("secret", body.secret.get_secret_value())
    webhooks = has.triggers.webhooks
    hook, made = await webhooks.rotate(found, secret=secret, address=body.address)
    return shown(webhooks, hook, made)


@router.post("/{webhook}/test", response_model=wire.WebhookTest, dependencies=[requires("webhook:test", of_webhook)])
async def test_webhook(found: Named, has: Has) -> Any:
    """Sends it a delivery, signed as its sender would."""
    return {"outcome": await has.triggers.webhooks.test(found)}


@router.delete("/{webhook}", status_code=204, dependencies=[requires("webhook:delete", of_webhook)])
async def delete_webhook(found: Named, has: Has) -> None:
    """Its address is nobody's at once; what came stays in the agent's database."""
    await has.triggers.webhooks.delete(found)


@router.get(
    "/{webhook}/deliveries", response_model=wire.DeliveryList, dependencies=[requires("webhook:read", of_webhook)]
)
async def list_deliveries(
    found: Named, has: Has, limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = DELIVERIES_DEFAULT
) -> Any:
    """What came, the latest first. Starts the agent's database."""
    return {"deliveries": await has.triggers.webhooks.deliveries(found, limit)}


@router.get(
    "/{webhook}/deliveries/{delivery}",
    response_model=wire.Delivery,
    dependencies=[requires("webhook:read", of_webhook)],
)
async def get_delivery(found: Named, delivery: str, has: Has) -> Any:
    """With its headers and its body."""
    return await has.triggers.webhooks.delivery(found, check_id(delivery, "delivery"))
