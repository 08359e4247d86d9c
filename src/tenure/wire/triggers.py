"""Schedules and webhooks, as they travel."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, SecretStr, field_serializer, model_validator

from tenure.wire import CHECKS_MAX, GOAL_CHARS_MAX, PLAYBOOK_CHARS_MAX, Answer, Request, RunCheck

JITTER_S_MAX = 86_400
FAILURES_DEFAULT, FAILURES_MAX = 5, 100


class GoalWhat(Request):
    """`what` of a schedule of the kind "goal"."""

    goal: str = Field(min_length=1, max_length=GOAL_CHARS_MAX)
    playbook: str | None = Field(default=None, max_length=PLAYBOOK_CHARS_MAX)
    """The playbook's text (YAML). None: the agent's brain finds the way."""
    playbook_name: str | None = Field(default=None, max_length=200)
    inputs: dict[str, Any] = Field(default_factory=dict[str, Any])
    accept: list[RunCheck] = Field(default_factory=list[RunCheck], max_length=CHECKS_MAX)
    """What has to hold in the end. Not for a playbook, which has checks of its own."""


class ScheduleRequest(Request):
    """`POST /v1/schedules`. Exactly one of `cron`, `every_s` and `at` says when."""

    name: str
    agent: str
    cron: str | None = Field(default=None, max_length=200)
    """Five fields: minute, hour, day of month, month, day of week."""
    every_s: int | None = None
    at: datetime | None = None
    tz: str = Field(default="UTC", max_length=64)
    """Of `cron`: an IANA name."""
    kind: str = Field(default="goal", max_length=40)
    """What it begins: "goal" a run."""
    what: dict[str, Any] = Field(default_factory=dict[str, Any])
    """For a goal: `goal`, and `playbook`, `playbook_name`, `inputs`, `accept` as for `POST /v1/runs`."""
    missed: Literal["one", "all", "none"] = "one"
    """Due times at which no server ran: the last is fired for all, each is, none is."""
    overlap: Literal["skip", "queue", "allow"] = "skip"
    """At a due time while what the last one began is not over."""
    jitter_s: int = Field(default=0, ge=0, le=JITTER_S_MAX)
    """Each is begun up to so many seconds after its due time."""
    failures_max: int = Field(default=FAILURES_DEFAULT, ge=1, le=FAILURES_MAX)
    """So many in a row that do not begin pause it."""
    key: str | None = Field(default=None, min_length=1, max_length=200)
    """Made once per agent and key: asked for again, it is the schedule of the first time."""

    @model_validator(mode="after")
    def _one(self) -> ScheduleRequest:
        if sum(when is not None for when in (self.cron, self.every_s, self.at)) != 1:
            raise ValueError("give exactly one of cron, every_s, at")
        return self


class Schedule(Answer):
    id: str
    name: str
    agent: str
    kind: str
    what: dict[str, Any]
    cron: str | None = None
    every_s: int | None = None
    at: datetime | None = None
    tz: str = "UTC"
    missed: str
    overlap: str
    jitter_s: int
    failures_max: int
    state: Literal["active", "paused", "over"]
    reason: str = ""
    """Why it is paused."""
    failures: int = 0
    """Firings in a row that did not begin."""
    next_at: datetime | None = None
    next_times: list[datetime] = Field(default_factory=list[datetime])
    """The next five, without jitter."""
    created_by: str
    created_at: datetime


class ScheduleList(Answer):
    schedules: list[Schedule]


class Firing(Answer):
    """One due time. `began` is the id of what it began: of a goal the run."""

    schedule: str
    due_at: datetime
    state: Literal["due", "starting", "begun", "skipped", "failed"]
    began: str = ""
    told: str = ""
    """Why it was skipped, or did not begin."""
    missed_since: datetime | None = None
    """It stands for all due times since then, at which no server ran."""
    manual: bool = False
    attempts: int = 0
    settled_at: datetime | None = None


class FiringList(Answer):
    firings: list[Firing]


# --- webhooks ------------------------------------------------------------------------------------------------------------
class WebhookRequest(Request):
    """`POST /v1/webhooks`"""

    name: str
    agent: str
    signature: str = Field(default="standard", max_length=120)
    """standard, github, stripe, slack, shopify, none, or hmac:HEADER:sha1|sha256|sha512:hex|base64."""
    keep_s: int = Field(default=30 * 86_400, ge=1, le=10**9)
    """Deliveries that are older are deleted when new ones come."""
    secret: SecretStr | None = Field(default=None, max_length=1024)
    """What the sender signs with, where it made that itself. Without, one is made."""

    @field_serializer("secret", when_used="json")
    def _shown(self, secret: SecretStr | None) -> str | None:
        return None if secret is None else secret.get_secret_value()


class WebhookRotateRequest(Request):
    secret: SecretStr | None = Field(default=None, max_length=1024)
    address: bool = False
    """A new address as well; the old one is nobody's at once."""

    @field_serializer("secret", when_used="json")
    def _shown(self, secret: SecretStr | None) -> str | None:
        return None if secret is None else secret.get_secret_value()


class Webhook(Answer):
    id: str
    name: str
    agent: str
    path: str
    """Of its address, on the server's web port: nobody should know it but who sends."""
    signature: str
    keep_s: int
    created_at: datetime
    rotated_at: datetime | None = None
    received: int = 0
    repeated: int = 0
    """Of those, how many were known already."""
    refused: int = 0
    """Without a good signature; nothing of them was stored."""
    last_received_at: datetime | None = None
    last_refused_at: datetime | None = None
    last_refusal: str = ""
    waiting: int = 0
    """Deliveries for the agent that wait on the server's disk for its database."""
    secret: str | None = None
    """Only in the answer that made it."""


class WebhookList(Answer):
    webhooks: list[Webhook]


class WebhookTest(Answer):
    outcome: Literal["stored", "repeated", "spooled", "refused", "full"]


class Delivery(Answer):
    id: str
    hook: str
    received_at: datetime
    size_bytes: int
    content_type: str | None = None
    signature: str
    """`valid`, or `none` when the webhook asks for none."""
    dedupe: str | None = None
    """What the sender calls it."""
    headers: dict[str, Any] | None = None
    body: str | None = None
    """In base64. Lists have neither headers nor bodies."""


class DeliveryList(Answer):
    deliveries: list[Delivery]
