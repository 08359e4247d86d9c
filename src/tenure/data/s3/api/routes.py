"""Which operation a request means: by method, by what it names, and by the first parameter that is a subresource."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import Response

from tenure.data.s3.api import buckets, copy, cors, deletion, listing, lock, multipart, objects, settings
from tenure.data.s3.api.call import Call
from tenure.data.s3.api.settings import absent, deleted_already, refused
from tenure.data.s3.errors import S3Error
from tenure.data.s3.request import S3Request

Operation = Callable[[Call], Awaitable[Response]]

SERVICE: Mapping[str, Operation] = {"GET": listing.list_buckets}

BUCKET: Mapping[str, Mapping[str, Operation]] = {
    "GET": {
        "acl": settings.get_bucket_acl,
        "cors": cors.get,
        "encryption": absent("ServerSideEncryptionConfigurationNotFoundError"),
        "lifecycle": absent("NoSuchLifecycleConfiguration"),
        "location": settings.get_location,
        "object-lock": lock.get_configuration,
        "ownershipControls": settings.get_ownership,
        "policy": absent("NoSuchBucketPolicy"),
        "policyStatus": settings.get_policy_status,
        "publicAccessBlock": absent("NoSuchPublicAccessBlockConfiguration"),
        "requestPayment": settings.get_payment,
        "tagging": settings.get_bucket_tags,
        "uploads": multipart.list_uploads,
        "versioning": settings.get_versioning,
        "versions": listing.list_versions,
        "website": absent("NoSuchWebsiteConfiguration"),
        "list-type": listing.list_objects_v2,
        "": listing.list_objects,
    },
    "HEAD": {"": buckets.head},
    "PUT": {
        "acl": settings.put_bucket_acl,
        "cors": cors.put,
        "object-lock": lock.put_configuration,
        "ownershipControls": settings.put_ownership,
        "tagging": settings.put_bucket_tags,
        "versioning": settings.put_versioning,
        "": buckets.create,
    },
    "POST": {"delete": deletion.delete_many},
    "DELETE": {
        "cors": cors.delete,
        "encryption": deleted_already,
        "lifecycle": deleted_already,
        "ownershipControls": settings.delete_ownership,
        "policy": deleted_already,
        "publicAccessBlock": deleted_already,
        "tagging": settings.delete_bucket_tags,
        "website": deleted_already,
        "": buckets.delete,
    },
}

KEY: Mapping[str, Mapping[str, Operation]] = {
    "GET": {
        "acl": settings.get_acl,
        "attributes": objects.attributes,
        "legal-hold": lock.get_hold,
        "retention": lock.get_retention,
        "tagging": settings.get_tags,
        "uploadId": multipart.list_parts,
        "": objects.get,
    },
    "HEAD": {"": objects.get},
    "PUT": {
        "acl": settings.put_acl,
        "legal-hold": lock.put_hold,
        "retention": lock.put_retention,
        "tagging": settings.put_tags,
        "uploadId": multipart.put_part,
        "": objects.put,
    },
    "POST": {"uploadId": multipart.complete, "uploads": multipart.create},
    "DELETE": {"tagging": settings.delete_tags, "uploadId": multipart.abort, "": objects.delete},
}

UNKNOWN = frozenset(
    {
        "accelerate",
        "analytics",
        "intelligent-tiering",
        "inventory",
        "logging",
        "metadataTable",
        "metrics",
        "notification",
        "replication",
        "restore",
        "select",
        "torrent",
        "renameObject",
        "append",
    }
)
"""Subresources that S3 has and that nothing here answers."""
_SUBRESOURCES = (
    frozenset(name for table in (BUCKET, KEY) for operations in table.values() for name in operations if name) | UNKNOWN
)


def operation_of(request: S3Request) -> Operation:
    """Raises `S3Error` NotImplemented, MethodNotAllowed."""
    if not request.bucket:
        found = SERVICE.get(request.method)
        if found is None or request.key:
            raise S3Error("MethodNotAllowed")
        return found
    table = KEY if request.key else BUCKET
    operations = table.get(request.method)
    if operations is None:
        raise S3Error("MethodNotAllowed")
    named = [name for name, _ in request.query if name in _SUBRESOURCES]
    if len(set(named) - {"uploadId"}) > 1 and table is KEY:
        raise S3Error("InvalidRequest", f"A request has one subresource: {', '.join(named)}.")
    if named and named[0] not in operations:
        return refused(f"{request.method} ?{named[0]}")
    operation = operations.get(named[0] if named else "")
    if operation is None:
        raise S3Error("MethodNotAllowed")
    if "x-amz-copy-source" in request.headers and request.method == "PUT" and request.key:
        if operation is objects.put:
            return copy.copy
        if operation is multipart.put_part:
            return copy.copy_part
    return operation
