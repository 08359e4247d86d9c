"""Plain HTTP for an office's own objects, at `s3:9000` inside it. Who calls is known by the door.

    GET    /                          names of buckets
    PUT    /{bucket}                  makes a bucket (a put of an object does too)
    DELETE /{bucket}                  an empty one
    GET    /{bucket}?prefix=&after=&limit=    objects by name
    PUT, GET, HEAD, DELETE /{bucket}/{name}   an object; GET and HEAD know `Range: bytes=a-b`

Objects are named by the path after the bucket, decoded once; errors are Tenure's own JSON.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tenure.data.objects import LIST_DEFAULT, ObjectInfo, ObjectStore, check_object_name
from tenure.errors import InvalidArgument, TenureError
from tenure.identity.authorize import Principal, Resource, authorize
from tenure.names import check_bucket

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")


def object_app(store: ObjectStore, principal: Principal) -> Starlette:
    """The API over the objects of the office `principal.name`, for that office alone."""
    api = _ObjectApi(store, principal)
    routes = [
        Route("/", api.buckets, methods=["GET"]),
        Route("/{bucket}", api.bucket, methods=["GET", "PUT", "DELETE"]),
        Route("/{bucket}/{name:path}", api.object, methods=["GET", "HEAD", "PUT", "DELETE"]),
    ]
    return Starlette(routes=routes, exception_handlers={TenureError: _tell, HTTPException: _tell_http})


class _ObjectApi:
    def __init__(self, store: ObjectStore, principal: Principal) -> None:
        self._store = store
        self._principal = principal

    def _authorize(self, action: str, kind: str, name: str) -> None:
        authorize(self._principal, action, Resource(kind, owner=self._principal.name, name=name))

    async def buckets(self, request: Request) -> Response:
        self._authorize("object:list", "bucket", "")
        return JSONResponse({"buckets": await self._store.buckets()})

    async def bucket(self, request: Request) -> Response:
        bucket = check_bucket(request.path_params["bucket"])
        if request.method == "PUT":
            self._authorize("object:write", "bucket", bucket)
            await self._store.create_bucket(bucket)
            return JSONResponse({"bucket": bucket}, status_code=201)
        if request.method == "DELETE":
            self._authorize("object:delete", "bucket", bucket)
            await self._store.delete_bucket(bucket)
            return Response(status_code=204)
        self._authorize("object:list", "bucket", bucket)
        query = request.query_params
        limit = query.get("limit", str(LIST_DEFAULT))
        if not (limit.isascii() and limit.isdecimal() and len(limit) <= 9):
            raise InvalidArgument("limit is a number.")
        after = (bucket, query["after"]) if "after" in query else None
        found = await self._store.list(bucket, query.get("prefix", ""), after=after, limit=int(limit))
        return JSONResponse({"objects": [describe(info) for info in found]})

    async def object(self, request: Request) -> Response:
        bucket = check_bucket(request.path_params["bucket"])
        name: str = request.path_params["name"]
        if name == "" and request.method == "GET":  # `/{bucket}/`
            return await self.bucket(request)
        check_object_name(name)
        full = f"{bucket}/{name}"
        if request.method == "PUT":
            self._authorize("object:write", "object", full)
            content_type = request.headers.get("content-type")
            info = await self._store.put(bucket, name, request.stream(), content_type=content_type)
            return JSONResponse(describe(info), status_code=201, headers={"etag": f'"{info.sha256}"'})
        if request.method == "DELETE":
            self._authorize("object:delete", "object", full)
            await self._store.delete(bucket, name)
            return Response(status_code=204)
        self._authorize("object:read", "object", full)
        return await self._get(request, bucket, name)

    async def _get(self, request: Request, bucket: str, name: str) -> Response:
        info = await self._store.info(bucket, name)
        asked = parse_range(request.headers.get("range"), info.size_bytes)
        headers = {"accept-ranges": "bytes", "x-content-type-options": "nosniff"}
        if asked == ():
            return Response(status_code=416, headers=headers | {"content-range": f"bytes */{info.size_bytes}"})
        start, end = asked or (0, None)
        found = await self._store.open(bucket, name, start=start, end=end)
        headers |= {
            "content-length": str(found.end - found.start),
            "etag": f'"{found.info.sha256}"',
            "last-modified": found.info.modified_at.strftime("%a, %d %b %Y %H:%M:%S GMT"),
        }
        if asked:
            headers["content-range"] = f"bytes {found.start}-{found.end - 1}/{found.info.size_bytes}"
        media_type = found.info.content_type or "application/octet-stream"
        status = 206 if asked else 200
        if request.method == "HEAD":
            found.close()
            return Response(status_code=status, headers=headers, media_type=media_type)
        return StreamingResponse(found.chunks(), status_code=status, headers=headers, media_type=media_type)


def describe(info: ObjectInfo) -> dict[str, Any]:
    """`info` in JSON's types."""
    return dataclasses.asdict(info) | {"modified_at": info.modified_at.isoformat()}


def parse_range(header: str | None, size: int) -> tuple[int, int] | tuple[()] | None:
    """(start, end exclusive) of a `Range` header that asks for one range; () when it lies outside of the object; None
    for no header, or one that a server may ignore."""
    match = _RANGE.match(header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
        return (start, end) if int(last) > 0 and size > 0 else ()
    start = int(first)
    end = size if last == "" else min(int(last) + 1, size)
    if last != "" and int(last) < start:
        return None
    return (start, end) if start < size else ()


async def _tell(request: Request, error: Exception) -> Response:
    assert isinstance(error, TenureError)
    return JSONResponse(error.to_payload(), status_code=error.http_status)


async def _tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    shaped = InvalidArgument(f"{request.method} {request.url.path[:200]}: {error.detail}.")
    return JSONResponse(shaped.to_payload(), status_code=error.status_code)
