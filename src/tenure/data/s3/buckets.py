"""Which buckets there are for whoever asks, and what that principal may do in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from tenure.data.s3.errors import S3Error
from tenure.data.s3.request import Authenticated
from tenure.data.s3.store.base import ObjectBackend
from tenure.errors import Forbidden
from tenure.identity.authorize import Principal, Resource, authorize

CONFIGURE = "bucket:configure"
"""To make or delete a bucket, and to change what it is told of itself. No grant has it."""


@dataclass(frozen=True)
class Listed:
    name: str
    created_at: datetime


@dataclass(frozen=True)
class Bucket:
    """A bucket as one principal sees it. `owner` is the agent whose it is, empty for a shared one."""

    name: str
    backend: ObjectBackend
    owner: str = ""
    granted: frozenset[str] = frozenset()
    """Actions that were granted to whoever asks, on a bucket that is not theirs."""
    prefix: str = ""
    """The grant is for keys that begin so."""

    def resource(self, key: str = "") -> Resource:
        if not key:
            return Resource("bucket", self.owner, self.name, self.granted)
        return Resource("object", self.owner, f"{self.name}/{key}", self.granted)

    @property
    def owner_id(self) -> str:
        """As S3 names owners."""
        return f"office:{self.owner}" if self.owner else "owner"


class BucketSource(Protocol):
    """Finds buckets by name for a principal: an office's own ones, and shared ones. Methods raise `S3Error`."""

    async def list(self, principal: Principal) -> Sequence[Listed]:
        """Those it may see, by name."""
        ...

    async def find(self, principal: Principal | None, name: str) -> Bucket:
        """Raises NoSuchBucket, InvalidBucketName. That it is found says nothing of what the principal may do: `need` does."""
        ...

    async def create(self, principal: Principal, name: str, settings: Mapping[str, object]) -> None:
        """Raises BucketAlreadyExists, BucketAlreadyOwnedByYou, InvalidBucketName, AccessDenied."""
        ...

    async def delete(self, principal: Principal, bucket: Bucket) -> None:
        """Raises BucketNotEmpty."""
        ...


def need(who: Authenticated, action: str, bucket: Bucket, key: str = "") -> None:
    """Returns when whoever asks may do `action` to the bucket, or to a key in it. Raises `S3Error` AccessDenied."""
    if who.principal is None:
        raise S3Error("AccessDenied", "This needs a signature: nothing here is public.")
    try:
        authorize(who.principal, action, bucket.resource(key))
    except Forbidden as error:
        raise S3Error("AccessDenied", error.message) from None
    if not who.allows(action, bucket.name):
        raise S3Error("AccessDenied", "The access key is not for this.")
    if key and not key.startswith(bucket.prefix):
        raise S3Error("AccessDenied", f"What was granted is what begins with {bucket.prefix}.")
