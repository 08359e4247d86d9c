"""What S3's protocol answers when it refuses: a code that clients compare, an HTTP status, XML.

Clients know S3's codes and none of ours, so errors of this package are `S3Error`; `from_tenure` says ours in S3's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tenure.errors import (
    AlreadyExists,
    Conflict,
    DiskFull,
    Forbidden,
    NotFound,
    ServerUnreachable,
    StorageError,
    TenureError,
    TooLarge,
    Unauthenticated,
    UsageError,
)

_STANDARD: Mapping[str, tuple[int, str]] = {
    "AccessDenied": (403, "Access denied."),
    "AccessControlListNotSupported": (400, "The bucket does not allow ACLs: access is by grants."),
    "AuthorizationHeaderMalformed": (400, "The Authorization header is malformed."),
    "AuthorizationQueryParametersError": (400, "The query parameters of the signature are wrong."),
    "BadDigest": (400, "The digest that was given does not match what was received."),
    "BucketAlreadyExists": (409, "There is a bucket of this name already, and it is not yours."),
    "BucketAlreadyOwnedByYou": (409, "There is a bucket of this name already, and it is yours."),
    "BucketNotEmpty": (409, "The bucket is not empty: delete its objects and their versions first."),
    "EntityTooLarge": (400, "The object is larger than an object may be."),
    "EntityTooSmall": (400, "Every part but the last has 5 MiB or more."),
    "ExpiredToken": (400, "The security token has expired."),
    "IllegalVersioningConfigurationException": (400, "Versioning is Enabled or Suspended."),
    "IncompleteBody": (400, "The body ended before its announced length."),
    "InternalError": (500, "Something broke in the server; its log says what. Try again."),
    "InvalidAccessKeyId": (403, "There is no such access key."),
    "InvalidArgument": (400, "An argument is wrong."),
    "InvalidBucketName": (
        400,
        "A bucket's name is 1 to 40 of a-z, 0-9 and '-', begins with a letter and ends with none of '-'.",
    ),
    "InvalidBucketState": (409, "The state of the bucket does not allow this."),
    "InvalidDigest": (400, "The Content-MD5 is not an MD5."),
    "InvalidLocationConstraint": (400, "There is no such location."),
    "InvalidObjectState": (403, "The state of the object does not allow this."),
    "InvalidPart": (400, "A part was not uploaded, or its ETag is another."),
    "InvalidPartNumber": (416, "The object has no such part."),
    "InvalidPartOrder": (400, "Parts are listed by ascending number."),
    "InvalidPolicyDocument": (400, "The form's policy document is not valid."),
    "InvalidRange": (416, "The object has no such range."),
    "InvalidRequest": (400, "The request is wrong."),
    "InvalidTag": (400, "A tag is not valid."),
    "InvalidTargetBucketForLogging": (400, "There is no such target for logs."),
    "InvalidToken": (400, "The token is not valid."),
    "InvalidURI": (400, "The path is not valid."),
    "KeyTooLongError": (400, "A key is at most 1024 bytes of UTF-8."),
    "MalformedACLError": (400, "The ACL is not valid."),
    "MalformedPOSTRequest": (400, "The form is not valid multipart/form-data."),
    "MalformedXML": (400, "The XML is not valid, or not what this operation takes."),
    "MaxPostPreDataLengthExceeded": (400, "The fields of the form are too long."),
    "MetadataTooLarge": (400, "User metadata is at most 2 KiB."),
    "MethodNotAllowed": (405, "The method is not allowed here."),
    "MissingContentLength": (411, "Content-Length is missing."),
    "MissingSecurityHeader": (400, "A header is missing that the signature needs."),
    "NoSuchBucket": (404, "There is no such bucket."),
    "NoSuchBucketPolicy": (404, "The bucket has no policy: access is by grants."),
    "NoSuchCORSConfiguration": (404, "The bucket has no CORS configuration."),
    "NoSuchKey": (404, "There is no such key."),
    "NoSuchLifecycleConfiguration": (404, "The bucket has no lifecycle configuration."),
    "NoSuchObjectLockConfiguration": (404, "The object has no lock."),
    "NoSuchPublicAccessBlockConfiguration": (404, "The bucket has no public access block."),
    "NoSuchTagSet": (404, "There are no tags."),
    "NoSuchUpload": (404, "There is no such upload: it may have been completed or aborted."),
    "NoSuchVersion": (404, "There is no such version."),
    "NoSuchWebsiteConfiguration": (404, "The bucket is no website."),
    "NotImplemented": (501, "This is not implemented here."),
    "ObjectLockConfigurationNotFoundError": (404, "The bucket has no lock configuration."),
    "OperationAborted": (409, "Another operation on the same thing was faster. Try again."),
    "OwnershipControlsNotFoundError": (404, "The bucket has no ownership controls."),
    "PreconditionFailed": (412, "A precondition did not hold."),
    "QuotaExceeded": (403, "The bucket's quota is used up."),
    "RequestTimeTooSkewed": (403, "The request's time and the server's differ by too much."),
    "RequestTimeout": (400, "The body did not come in time."),
    "ServerSideEncryptionConfigurationNotFoundError": (404, "The bucket has no encryption configuration."),
    "ServiceUnavailable": (503, "The service does not answer now. Try again."),
    "SignatureDoesNotMatch": (
        403,
        "The signature does not match: check the secret key and how the request was signed.",
    ),
    "SlowDown": (503, "Too many requests at once. Try again later."),
    "TooManyBuckets": (400, "There are too many buckets."),
    "XAmzContentChecksumMismatch": (400, "The checksum that was given does not match what was received."),
    "XAmzContentSHA256Mismatch": (400, "The x-amz-content-sha256 does not match what was received."),
}
"""Status and message of S3's codes, those that are answered here."""

NOTHING: Mapping[str, str] = MappingProxyType({})


class S3Error(Exception):
    """A refusal. `message` and `status` are the code's own unless given; a code that is not S3's has to give both. `fields` are
    elements beside the message, `headers` go with the answer."""

    def __init__(
        self,
        code: str,
        message: str = "",
        status: int | None = None,
        *,
        fields: Mapping[str, str] = NOTHING,
        headers: Mapping[str, str] = NOTHING,
    ) -> None:
        standard = _STANDARD.get(code)
        if standard is None and (status is None or not message):
            raise ValueError(f"{code} is no standard code: say message and status.")
        self.code = code
        self.message = message or (standard[1] if standard else "")
        self.status = status if status is not None else (standard[0] if standard else 500)
        self.fields = fields
        self.headers = headers
        super().__init__(f"{code}: {self.message}")

    def to_xml(self, *, resource: str, request_id: str) -> bytes:
        """The body of the answer. `resource` is the path that was asked for."""
        from tenure.data.s3.xml import element, render

        return render(
            element(
                "Error",
                element("Code", self.code),
                element("Message", self.message),
                *(element(name, value) for name, value in self.fields.items()),
                element("Resource", resource),
                element("RequestId", request_id),
            ),
            namespace="",
        )


def no_such_bucket(bucket: str) -> S3Error:
    return S3Error("NoSuchBucket", fields={"BucketName": bucket})


def no_such_key(key: str) -> S3Error:
    return S3Error("NoSuchKey", fields={"Key": key})


def no_such_version(key: str, version_id: str) -> S3Error:
    return S3Error("NoSuchVersion", fields={"Key": key, "VersionId": version_id})


def no_such_upload(upload_id: str) -> S3Error:
    return S3Error("NoSuchUpload", fields={"UploadId": upload_id})


def invalid_argument(name: str, value: str, message: str = "") -> S3Error:
    return S3Error("InvalidArgument", message, fields={"ArgumentName": name, "ArgumentValue": value[:200]})


def not_implemented(what: str) -> S3Error:
    return S3Error("NotImplemented", f"{what} is not implemented here.")


_TENURE: tuple[tuple[type[TenureError], str], ...] = (
    (TooLarge, "EntityTooLarge"),
    (UsageError, "InvalidArgument"),
    (NotFound, "NoSuchKey"),
    (AlreadyExists, "BucketAlreadyExists"),
    (Conflict, "OperationAborted"),
    (Unauthenticated, "AccessDenied"),
    (Forbidden, "AccessDenied"),
    (DiskFull, "QuotaExceeded"),
    (ServerUnreachable, "ServiceUnavailable"),
    (StorageError, "ServiceUnavailable"),
)


def from_tenure(error: TenureError) -> S3Error:
    """The same refusal in S3's words, with our message and hint."""
    for kind, code in _TENURE:
        if isinstance(error, kind):
            return S3Error(code, " ".join(part for part in (error.message, error.hint) if part))
    return S3Error("ServiceUnavailable" if error.retryable else "InternalError", error.message)
