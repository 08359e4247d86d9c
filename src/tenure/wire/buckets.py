"""Shared buckets: `/v1/buckets…`. What is in them goes by S3's protocol."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from tenure.wire import Answer, Request

QUOTA_GB_MAX = 100_000.0
BACKEND_CHARS_MAX = 1000
PREFIX_CHARS_MAX = 1024

BucketLevel = Literal["read", "write"]


class BucketRequest(Request):
    """`POST /v1/buckets`."""

    name: str = Field(max_length=100)
    quota_gb: float | None = Field(default=None, gt=0, le=QUOTA_GB_MAX, allow_inf_nan=False)
    """What it may take; as `tenure bucket create --help` says when it is left out."""
    backend: str = Field(default="", max_length=BACKEND_CHARS_MAX)
    """`s3://…`, `gs://…`, `az://…` or `file://…` for a bucket that lies elsewhere; empty: a volume of Tenure's."""


class BucketQuotaRequest(Request):
    """`PUT …/quota`."""

    quota_gb: float = Field(gt=0, le=QUOTA_GB_MAX, allow_inf_nan=False)


class Bucket(Answer):
    """Sizes are null in lists, and where the backend does not tell."""

    name: str
    created_at: datetime
    backend: str
    """ "volume", or the address that it lies at."""
    quota_bytes: int | None = None
    used_bytes: int | None = None
    objects: int | None = None
    level: BucketLevel | None = None
    """For an office: what was granted to it."""
    prefix: str | None = None


class BucketList(Answer):
    buckets: list[Bucket]


class BucketGrantRequest(Request):
    """`PUT …/grants/{agent}`."""

    level: BucketLevel = "read"
    prefix: str = Field(default="", max_length=PREFIX_CHARS_MAX)
    """Only keys that begin so; empty: all."""
    expires_at: datetime | None = None


class BucketGrant(Answer):
    bucket: str
    agent: str
    level: BucketLevel
    prefix: str = ""
    created_by: str
    created_at: datetime
    expires_at: datetime | None = None


class BucketGrantList(Answer):
    grants: list[BucketGrant]
