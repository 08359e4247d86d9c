"""Shared buckets: what there is, how large, and who may do what with it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from tenure.names import check_name
from tenure.server.access import BucketName, Caller, Has, of_bucket, of_buckets, requires
from tenure.server.checks import check_text
from tenure.wire import buckets as shapes

router = APIRouter(prefix="/v1/buckets", tags=["buckets"])
ONE = "/{name}"


@router.post("", status_code=201, response_model=shapes.Bucket, dependencies=[requires("buckets:create", of_buckets)])
async def create_bucket(body: shapes.BucketRequest, has: Has) -> Any:
    """Makes a shared bucket, which no office can reach yet; or takes in one that lies elsewhere, with what is in it."""
    return await has.buckets.create(body.name, body.quota_gb, check_text("backend", body.backend))


@router.get("", response_model=shapes.BucketList, dependencies=[requires("buckets:list", of_buckets)])
async def list_buckets(caller: Caller, has: Has) -> Any:
    """By name; for an office those that were granted to it."""
    return {"buckets": await has.buckets.list(caller)}


@router.get(ONE, response_model=shapes.Bucket, dependencies=[requires("bucket:read", of_bucket)])
async def get_bucket(name: BucketName, has: Has) -> Any:
    """With its size."""
    return await has.buckets.get(name)


@router.delete(ONE, status_code=204, dependencies=[requires("bucket:delete", of_bucket)])
async def delete_bucket(
    name: BucketName,
    has: Has,
    force: Annotated[bool, Query(description="Also when it is not empty; cannot be undone")] = False,
) -> None:
    """With its grants. What lies in somebody else's storage stays there."""
    await has.buckets.delete(name, force=force)


@router.put(f"{ONE}/quota", response_model=shapes.Bucket, dependencies=[requires("bucket:limit", of_bucket)])
async def limit_bucket(name: BucketName, body: shapes.BucketQuotaRequest, has: Has) -> Any:
    """Takes effect at once."""
    return await has.buckets.limit(name, body.quota_gb)


@router.get(f"{ONE}/grants", response_model=shapes.BucketGrantList, dependencies=[requires("bucket:grants", of_bucket)])
async def list_bucket_grants(name: BucketName, has: Has) -> Any:
    """By agent."""
    return {"grants": await has.buckets.grants(name)}


@router.put(
    f"{ONE}/grants/{{agent}}", response_model=shapes.BucketGrant, dependencies=[requires("bucket:grant", of_bucket)]
)
async def grant_bucket(name: BucketName, agent: str, body: shapes.BucketGrantRequest, caller: Caller, has: Has) -> Any:
    """Lets an agent use the bucket at `s3:9000`, from its next request on. Takes the place of an earlier grant."""
    return await has.buckets.grant(
        name,
        check_name(agent),
        body.level,
        by=caller,
        prefix=check_text("prefix", body.prefix),
        expires_at=body.expires_at,
    )


@router.delete(f"{ONE}/grants/{{agent}}", status_code=204, dependencies=[requires("bucket:grant", of_bucket)])
async def revoke_bucket(name: BucketName, agent: str, has: Has) -> None:
    """From the agent's next request on."""
    await has.buckets.revoke(name, check_name(agent))
