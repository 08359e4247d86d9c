"""S3's API as an ASGI app: who asks, which operation, and what became of it in S3's words."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tenure.data.s3.api import cors, post
from tenure.data.s3.api.call import XML_TYPE, Call
from tenure.data.s3.api.form import boundary_of, read_form
from tenure.data.s3.api.routes import operation_of
from tenure.data.s3.buckets import BucketSource
from tenure.data.s3.errors import S3Error, from_tenure
from tenure.data.s3.events import ObjectEvents
from tenure.data.s3.request import Authenticated, S3Request, new_request_id, request_of
from tenure.errors import TenureError

DRAINED_BYTES_MAX = 4 * 1024 * 1024
"""Of a body that is refused: so much is read, so that a client that is still sending gets to read the answer."""
_log = logging.getLogger(__name__)


class FormAllowed(Protocol):
    """What a form's policy lets its file be."""

    @property
    def bytes_min(self) -> int: ...
    @property
    def bytes_max(self) -> int | None: ...


class Authenticator(Protocol):
    """Says who asks. Both raise `S3Error`."""

    async def __call__(self, request: S3Request) -> Authenticated: ...

    async def form(self, request: S3Request, fields: Mapping[str, str]) -> tuple[Authenticated, FormAllowed]:
        """`fields` are named in lower case and `key` is final. What the policy does not allow is refused here."""
        ...


def s3_app(
    buckets: BucketSource,
    authenticate: Authenticator,
    *,
    events: ObjectEvents | None = None,
    hosts: Sequence[str] = (),
) -> ASGIApp:
    """`hosts` are the names of this server: in `BUCKET.NAME` the bucket is in the host."""
    told = events or ObjectEvents()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request: S3Request | None = None
        request_id = new_request_id()
        try:
            request = request_of(scope, receive, hosts, request_id)
            response = await _answer(request, buckets, authenticate, told)
        except Exception as error:  # noqa: BLE001
            response = _refusal(scope, _as_s3(error), request_id)
            if scope["method"] in ("PUT", "POST") and not await _drained(request):
                response.headers["connection"] = "close"  # what is still on its way is no request
        response.headers["x-amz-request-id"] = request_id
        if request is not None:
            for name, value in (await _cors_headers(request, buckets, authenticate)).items():
                response.headers[name] = value
        await response(scope, receive, send)

    return app


async def _answer(
    request: S3Request, buckets: BucketSource, authenticate: Authenticator, events: ObjectEvents
) -> Response:
    if request.method == "OPTIONS":
        return cors.preflight(request, await _cors_rules(request, buckets, authenticate))
    boundary = boundary_of(request.header("content-type"))
    if request.method == "POST" and boundary and request.bucket and not request.key and not request.query:
        form = await read_form(request.body, boundary)
        fields = post.final_fields(form)
        who, allowed = await authenticate.form(request, fields)
        _refuse_nobody(who)
        call = Call(replace(request, key=fields["key"]), who, buckets, events)
        return await post.store(call, form, allowed.bytes_min, allowed.bytes_max)
    who = await authenticate(request)
    _refuse_nobody(who)
    return await operation_of(request)(Call(request, who, buckets, events))


async def _cors_rules(
    request: S3Request, buckets: BucketSource, authenticate: Authenticator
) -> Sequence[cors.CorsRule]:
    """Of the bucket. A browser asks before it sends: at the address that it will use, presigned maybe, else for nobody."""
    if not request.bucket:
        return ()
    try:
        who = await authenticate(_as_it_will_be(request) if request.method == "OPTIONS" else request)
        if who.principal is None and "." in request.bucket:
            return ()  # a stranger brings no agent's volume here
        bucket = await buckets.find(who.principal, request.bucket)
        return (await bucket.backend.settings()).values.get("cors") or ()
    except (S3Error, TenureError):
        return ()


def _as_it_will_be(request: S3Request) -> S3Request:
    """The request that a preflight asks about, as far as it says."""
    method = request.header("access-control-request-method") or request.method
    host = [(name, value) for name, value in request.headers.raw if name == b"host"]
    return replace(request, method=method, headers=Headers(raw=host))


def _refuse_nobody(who: Authenticated) -> None:
    """Before anything is looked up: an agent's volume may have to be brought here for that."""
    if who.principal is None:
        raise S3Error("AccessDenied", "This needs a signature: nothing here is public.")


async def _cors_headers(request: S3Request, buckets: BucketSource, authenticate: Authenticator) -> Mapping[str, str]:
    origin = request.header("origin")
    if not origin or request.method == "OPTIONS":
        return {}
    method = request.header("access-control-request-method") or request.method
    rules = await _cors_rules(request, buckets, authenticate)
    return cors.headers_for(rules, origin, method) if origin.isascii() and origin.isprintable() else {}


def _as_s3(error: Exception) -> S3Error:
    if isinstance(error, S3Error):
        return error
    if isinstance(error, TenureError):
        return from_tenure(error)
    _log.error("an S3 request failed", exc_info=error)
    return S3Error("InternalError")


def _refusal(scope: Scope, error: S3Error, request_id: str) -> Response:
    headers = dict(error.headers)
    if scope["method"] == "HEAD" or error.status == 304:
        return Response(b"", error.status, headers, XML_TYPE if error.status != 304 else None)
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    body = error.to_xml(resource=raw_path.decode("latin-1"), request_id=request_id)
    return Response(body, error.status, headers, XML_TYPE)


async def _drained(request: S3Request | None) -> bool:
    """Whether the body has come to its end. One that the client has not begun to send is left unsent."""
    if request is None or request.header("expect"):
        return False
    left = DRAINED_BYTES_MAX
    try:
        async for chunk in request.body:
            left -= len(chunk)
            if left <= 0:
                return False
    except (S3Error, RuntimeError):
        return False
    return True
