"""Buckets: made, looked at, deleted."""

from __future__ import annotations

from starlette.responses import Response

from tenure.data.s3.api.call import Call, empty
from tenure.data.s3.api.settings import REGION, check_acl_headers, check_ownership
from tenure.data.s3.buckets import CONFIGURE
from tenure.data.s3.errors import S3Error
from tenure.data.s3.xml import parse, text_of

NAME_CHARS_MIN = 3
"""Of what S3's clients make. Buckets with shorter names are there from plain HTTP."""


async def create(call: Call) -> Response:
    request = call.request
    principal = call.principal
    check_acl_headers(call)
    if not call.who.allows(CONFIGURE, request.bucket):
        raise S3Error("AccessDenied", "The access key is not for making buckets.")
    if len(request.bucket) < NAME_CHARS_MIN and not call.is_plain:
        raise S3Error("InvalidBucketName")
    if body := await call.body():
        location = text_of(parse(body, "CreateBucketConfiguration"), "LocationConstraint")
        if location not in (None, "", REGION, "local", "default", "EU"):
            raise S3Error("InvalidLocationConstraint")
    settings: dict[str, object] = {}
    if ownership := request.header("x-amz-object-ownership"):
        settings["ownership"] = check_ownership(ownership)
    if request.header("x-amz-bucket-object-lock-enabled").lower() == "true":
        settings |= {"versioning": "Enabled", "lock": {"enabled": True}}
    try:
        await call.buckets.create(principal, request.bucket, settings)
    except S3Error as error:
        if error.code != "BucketAlreadyOwnedByYou":  # which is as good as made
            raise
    return empty(200, {"location": f"/{request.bucket}"})


async def head(call: Call) -> Response:
    await call.bucket("object:list", key=False)
    return empty(200, {"x-amz-bucket-region": REGION, "content-type": "application/xml"})


async def delete(call: Call) -> Response:
    bucket = await call.bucket(CONFIGURE, key=False)
    await call.buckets.delete(call.principal, bucket)
    return empty(204)
