"""Access keys of S3, and addresses signed with one."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from tenure.wire import Answer, Request

EXPIRES_S_MAX = 10 * 366 * 24 * 3600.0
ADDRESS_S_MAX = 7 * 24 * 3600

BucketLevel = Literal["read", "write"]


class AccessKeyRequest(Request):
    """`POST /v1/access-keys`."""

    agent: str | None = None
    """Whom the key acts as; None: the owner."""
    expires_s: float | None = Field(default=None, gt=0, le=EXPIRES_S_MAX)
    """How long it holds; None: until it is revoked."""
    buckets: dict[str, BucketLevel] = Field(default_factory=dict[str, BucketLevel], max_length=50)
    """What it is for; empty: all that its principal may."""
    comment: str = Field(default="", max_length=200)


class AccessKey(Answer):
    id: str
    principal: str
    """Whom it acts as: "owner", "office:NAME"."""
    buckets: dict[str, str]
    comment: str = ""
    created_by: str
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None


class NewAccessKey(AccessKey):
    secret: str
    """Told once: it is shown nowhere else, ever."""
    endpoint_url: str
    """Where clients outside find the S3 API; empty when it does not listen there."""


class AccessKeyList(Answer):
    keys: list[AccessKey]


class PresignRequest(Request):
    """`POST /v1/agents/{name}/addresses`."""

    bucket: str
    name: str
    method: Literal["GET", "PUT"] = "GET"
    expires_s: int = Field(default=3600, ge=1, le=ADDRESS_S_MAX)


class Address(Answer):
    """Whoever has `url` may do `method` at it, until `expires_at`."""

    url: str
    method: str
    expires_at: datetime
