"""What a bucket, or an object, is told of itself: tags, versioning, ownership, location; and what is not to be had here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.responses import Response

from tenure.data.s3.api.call import VERSION_ID, Call, empty, owner_element, xml
from tenure.data.s3.api.described import BUCKET_TAGS_MAX, TAGS_MAX, check_tags
from tenure.data.s3.api.objects import open_version
from tenure.data.s3.buckets import CONFIGURE
from tenure.data.s3.errors import S3Error, not_implemented
from tenure.data.s3.store.base import NULL_VERSION, Version
from tenure.data.s3.xml import Element, children, element, parse, text_of

REGION = "us-east-1"
OWNERSHIPS = ("BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter")
CANNED = frozenset({"private", "bucket-owner-full-control", "bucket-owner-read"})
"""ACLs that say what is so anyway."""


# --- versions -----------------------------------------------------------------------------------------------------------
async def get_versioning(call: Call) -> Response:
    bucket = await call.bucket("object:list", key=False)
    versioning = (await bucket.backend.settings()).versioning
    return xml(element("VersioningConfiguration", element("Status", versioning) if versioning else None))


async def put_versioning(call: Call) -> Response:
    bucket = await call.bucket(CONFIGURE, key=False)
    root = parse(await call.body(), "VersioningConfiguration")
    status = text_of(root, "Status")
    if status not in ("Enabled", "Suspended"):
        raise S3Error("IllegalVersioningConfigurationException")
    if text_of(root, "MfaDelete") == "Enabled":
        raise not_implemented("MfaDelete")
    if status == "Suspended" and (await bucket.backend.settings()).values.get("lock"):
        raise S3Error("InvalidBucketState", "The bucket has locks: it keeps versions.")
    await bucket.backend.change("versioning", status)
    return empty()


# --- tags ---------------------------------------------------------------------------------------------------------------
async def get_bucket_tags(call: Call) -> Response:
    bucket = await call.bucket("object:list", key=False)
    tags = (await bucket.backend.settings()).values.get("tags")
    if not tags:
        raise S3Error("NoSuchTagSet")
    return xml(_tagging(tags))


async def put_bucket_tags(call: Call) -> Response:
    bucket = await call.bucket(CONFIGURE, key=False)
    await bucket.backend.change("tags", _read_tags(await call.body(), BUCKET_TAGS_MAX))
    return empty(204)


async def delete_bucket_tags(call: Call) -> Response:
    bucket = await call.bucket(CONFIGURE, key=False)
    await bucket.backend.change("tags", None)
    return empty(204)


async def get_tags(call: Call) -> Response:
    bucket = await call.bucket("object:read")
    found = await open_version(call, bucket, call.request.key, call.request.param("versionId") or None)
    found.close()
    return xml(_tagging(dict(found.version.about.tags)), headers=_version(found.version))


async def put_tags(call: Call) -> Response:
    bucket = await call.bucket("object:write")
    tags = _read_tags(await call.body(), TAGS_MAX)
    version = await bucket.backend.set_tags(call.request.key, tags, call.request.param("versionId") or None)
    return empty(200, _version(version))


async def delete_tags(call: Call) -> Response:
    bucket = await call.bucket("object:write")
    version = await bucket.backend.set_tags(call.request.key, {}, call.request.param("versionId") or None)
    return empty(204, _version(version))


def _tagging(tags: dict[str, str]) -> Element:
    rows = (element("Tag", element("Key", key), element("Value", value)) for key, value in sorted(tags.items()))
    return element("Tagging", element("TagSet", *rows))


def _read_tags(body: bytes, count_max: int) -> dict[str, str]:
    tag_set = parse(body, "Tagging").find("TagSet")
    if tag_set is None:
        raise S3Error("MalformedXML")
    rows = [(one.findtext("Key") or "", one.findtext("Value") or "") for one in children(tag_set, "Tag")]
    return check_tags(rows, count_max)


def _version(version: Version) -> dict[str, str]:
    return {} if version.version_id == NULL_VERSION else {VERSION_ID: version.version_id}


# --- who may what: said by grants, and told in S3's words ---------------------------------------------------------------
async def get_bucket_acl(call: Call) -> Response:
    bucket = await call.bucket("object:list", key=False)
    return xml(_acl(bucket.owner_id))


async def get_acl(call: Call) -> Response:
    bucket = await call.bucket("object:read")
    found = await open_version(call, bucket, call.request.key, call.request.param("versionId") or None)
    found.close()
    return xml(_acl(bucket.owner_id))


async def put_bucket_acl(call: Call) -> Response:
    bucket = await call.bucket(CONFIGURE, key=False)
    await _check_acl(call, bucket.owner_id)
    return empty()


async def put_acl(call: Call) -> Response:
    bucket = await call.bucket("object:write")
    found = await open_version(call, bucket, call.request.key, call.request.param("versionId") or None)
    found.close()
    await _check_acl(call, bucket.owner_id)
    return empty()


def check_acl_headers(call: Call) -> None:
    """Raises `S3Error` for an ACL that would let in others."""
    headers = call.request.headers
    canned = call.request.header("x-amz-acl")
    if canned and canned not in CANNED | {
        "public-read",
        "public-read-write",
        "authenticated-read",
        "log-delivery-write",
    }:
        raise S3Error("InvalidArgument", "There is no such canned ACL.")
    if (canned and canned not in CANNED) or any(name.lower().startswith("x-amz-grant-") for name in headers):
        raise S3Error("AccessControlListNotSupported")


async def _check_acl(call: Call, owner_id: str) -> None:
    check_acl_headers(call)
    if call.request.header("x-amz-acl"):
        return
    root = parse(await call.body(), "AccessControlPolicy")
    for grant in root.iter("Grant"):
        grantee = grant.find("Grantee")
        if grantee is None or text_of(grant, "Permission") is None:
            raise S3Error("MalformedACLError")
        if text_of(grantee, "ID") != owner_id:
            raise S3Error("AccessControlListNotSupported")


def _acl(owner_id: str) -> Element:
    grantee = element(
        "Grantee",
        element("ID", owner_id),
        element("DisplayName", owner_id),
        xmlns_xsi="http://www.w3.org/2001/XMLSchema-instance",
        xsi_type="CanonicalUser",
    )
    grant = element("Grant", grantee, element("Permission", "FULL_CONTROL"))
    return element("AccessControlPolicy", owner_element(owner_id), element("AccessControlList", grant))


async def get_ownership(call: Call) -> Response:
    bucket = await call.bucket("object:list", key=False)
    ownership = (await bucket.backend.settings()).values.get("ownership")
    if not ownership:
        raise S3Error("OwnershipControlsNotFoundError")
    rule = element("Rule", element("ObjectOwnership", ownership))
    return xml(element("OwnershipControls", rule))


async def put_ownership(call: Call) -> Response:
    bucket = await call.bucket(CONFIGURE, key=False)
    root = parse(await call.body(), "OwnershipControls")
    ownership = next((text_of(rule, "ObjectOwnership") for rule in children(root, "Rule")), None)
    await bucket.backend.change("ownership", check_ownership(ownership))
    return empty()


def check_ownership(text: str | None) -> str:
    if text not in OWNERSHIPS:
        raise S3Error("MalformedXML", "There is no such ownership.")
    return text


async def delete_ownership(call: Call) -> Response:
    bucket = await call.bucket(CONFIGURE, key=False)
    await bucket.backend.change("ownership", None)
    return empty(204)


# --- what is the same everywhere ----------------------------------------------------------------------------------------
async def get_location(call: Call) -> Response:
    await call.bucket("object:list", key=False)
    return xml(element("LocationConstraint"))


async def get_payment(call: Call) -> Response:
    await call.bucket("object:list", key=False)
    return xml(element("RequestPaymentConfiguration", element("Payer", "BucketOwner")))


async def get_policy_status(call: Call) -> Response:
    await call.bucket("object:list", key=False)
    return xml(element("PolicyStatus", element("IsPublic", False)))


def absent(code: str) -> Callable[[Call], Awaitable[Response]]:
    """For settings that no bucket has here."""

    async def answer(call: Call) -> Response:
        await call.bucket("object:list", key=False)
        raise S3Error(code)

    return answer


def refused(what: str) -> Callable[[Call], Awaitable[Response]]:
    async def answer(call: Call) -> Response:
        await call.bucket("object:list", key=False)
        raise not_implemented(what)

    return answer


async def deleted_already(call: Call) -> Response:
    """For the removal of settings that no bucket has here."""
    await call.bucket(CONFIGURE, key=False)
    return empty(204)
