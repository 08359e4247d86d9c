"""Requests of the API about schedules, see `calls`."""

from __future__ import annotations

from urllib.parse import quote

from tenure.client.calls import OFFICE_S, Call, nothing, parsed
from tenure.names import check_name
from tenure.wire import triggers as wire


def _schedule(schedule: str, *rest: str) -> str:
    return "/".join(["/v1/schedules", quote(schedule, safe=""), *rest])


def _of(agent: str | None) -> dict[str, str | int | float]:
    return {} if agent is None else {"agent": check_name(agent)}


def create_schedule(request: wire.ScheduleRequest) -> Call[wire.Schedule]:
    check_name(request.name, "schedule")
    check_name(request.agent)
    return Call("POST", "/v1/schedules", parsed(wire.Schedule), body=request, repeatable=request.key is not None)


def list_schedules(agent: str | None) -> Call[wire.ScheduleList]:
    return Call("GET", "/v1/schedules", parsed(wire.ScheduleList), _of(agent), repeatable=True)


def get_schedule(schedule: str, agent: str | None = None) -> Call[wire.Schedule]:
    return Call("GET", _schedule(schedule), parsed(wire.Schedule), _of(agent), repeatable=True)


def list_firings(schedule: str, agent: str | None = None, limit: int = 50) -> Call[wire.FiringList]:
    params = {**_of(agent), "limit": limit}
    return Call("GET", _schedule(schedule, "firings"), parsed(wire.FiringList), params, repeatable=True)


def pause_schedule(schedule: str, agent: str | None = None) -> Call[wire.Schedule]:
    return Call("POST", _schedule(schedule, "pause"), parsed(wire.Schedule), _of(agent), repeatable=True)


def resume_schedule(schedule: str, agent: str | None = None) -> Call[wire.Schedule]:
    return Call("POST", _schedule(schedule, "resume"), parsed(wire.Schedule), _of(agent), repeatable=True)


def run_schedule(schedule: str, agent: str | None = None) -> Call[wire.Firing]:
    return Call("POST", _schedule(schedule, "run"), parsed(wire.Firing), _of(agent), timeout_s=OFFICE_S)


def delete_schedule(schedule: str, agent: str | None = None) -> Call[None]:
    return Call("DELETE", _schedule(schedule), nothing, _of(agent))


# --- webhooks ------------------------------------------------------------------------------------------------------------
def _webhook(webhook: str, *rest: str) -> str:
    return "/".join(["/v1/webhooks", quote(webhook, safe=""), *(quote(part, safe="") for part in rest)])


def create_webhook(request: wire.WebhookRequest) -> Call[wire.Webhook]:
    check_name(request.name, "webhook")
    check_name(request.agent)
    return Call("POST", "/v1/webhooks", parsed(wire.Webhook), body=request, timeout_s=OFFICE_S)


def list_webhooks(agent: str | None) -> Call[wire.WebhookList]:
    return Call("GET", "/v1/webhooks", parsed(wire.WebhookList), _of(agent), repeatable=True)


def get_webhook(webhook: str, agent: str | None = None) -> Call[wire.Webhook]:
    return Call("GET", _webhook(webhook), parsed(wire.Webhook), _of(agent), repeatable=True)


def rotate_webhook(webhook: str, agent: str | None, request: wire.WebhookRotateRequest) -> Call[wire.Webhook]:
    return Call("POST", _webhook(webhook, "rotate"), parsed(wire.Webhook), _of(agent), body=request)


def try_webhook(webhook: str, agent: str | None = None) -> Call[wire.WebhookTest]:
    return Call("POST", _webhook(webhook, "test"), parsed(wire.WebhookTest), _of(agent), timeout_s=OFFICE_S)


def delete_webhook(webhook: str, agent: str | None = None) -> Call[None]:
    return Call("DELETE", _webhook(webhook), nothing, _of(agent))


def list_deliveries(webhook: str, agent: str | None = None, limit: int = 50) -> Call[wire.DeliveryList]:
    params = {**_of(agent), "limit": limit}
    path = _webhook(webhook, "deliveries")
    return Call("GET", path, parsed(wire.DeliveryList), params, timeout_s=OFFICE_S, repeatable=True)


def get_delivery(webhook: str, delivery: str, agent: str | None = None) -> Call[wire.Delivery]:
    path = _webhook(webhook, "deliveries", delivery)
    return Call("GET", path, parsed(wire.Delivery), _of(agent), timeout_s=OFFICE_S, repeatable=True)
