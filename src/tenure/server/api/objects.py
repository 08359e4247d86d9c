"""An office's object storage."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import StreamingResponse

from tenure import wire
from tenure.names import check_bucket
from tenure.server import office_files
from tenure.server.access import AgentName, Has, of_agent, of_object, requires
from tenure.server.checks import check_path, check_text

router = APIRouter(prefix="/v1/agents/{name}", tags=["objects"])

LIST_DEFAULT = 1000
LIST_MAX = 10_000
PREFIX_CHARS_MAX = 1024
CONTENT_TYPE_CHARS_MAX = 200
FILE_BYTES_MAX = 16 * 1024**3

ObjectName = Annotated[str, Path(description="Like a path: `charts/2014.png`")]


@router.get("/objects", response_model=wire.ObjectList, dependencies=[requires("object:list", of_agent("object"))])
async def list_objects(
    name: AgentName,
    has: Has,
    bucket: str | None = None,
    prefix: Annotated[str, Query(max_length=PREFIX_CHARS_MAX)] = "",
    limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = LIST_DEFAULT,
) -> Any:
    """By bucket and name."""
    if bucket is not None:
        check_bucket(bucket)
    store = await has.offices.objects(name)
    return {"objects": await store.list(bucket, check_text("prefix", prefix), limit=limit)}


@router.put(
    "/objects/{bucket}/{object_name:path}",
    response_model=wire.ObjectInfo,
    dependencies=[requires("object:write", of_object)],
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}}},
)
async def put_object(name: AgentName, bucket: str, object_name: ObjectName, request: Request, has: Has) -> Any:
    """Stores the body; an object of the same name is replaced, at once and as a whole."""
    store = await has.offices.objects(name)
    content_type = request.headers.get("content-type")
    return await store.put(
        check_bucket(bucket),
        check_text("name", object_name),
        request.stream(),
        content_type=content_type[:CONTENT_TYPE_CHARS_MAX] if content_type else None,
    )


@router.get(
    "/objects/{bucket}/{object_name:path}",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}}},
    dependencies=[requires("object:read", of_object)],
)
async def get_object(name: AgentName, bucket: str, object_name: ObjectName, has: Has) -> StreamingResponse:
    store = await has.offices.objects(name)
    found = await store.open(check_bucket(bucket), check_text("name", object_name))
    headers = {
        "content-length": str(found.info.size_bytes),
        "etag": f'"{found.info.sha256}"',
        # The owner's browser must not run what an agent stored.
        "content-disposition": "attachment",
        "x-content-type-options": "nosniff",
    }
    media_type = found.info.content_type or "application/octet-stream"
    return StreamingResponse(found.chunks(), headers=headers, media_type=media_type)


@router.delete(
    "/objects/{bucket}/{object_name:path}", status_code=204, dependencies=[requires("object:delete", of_object)]
)
async def delete_object(name: AgentName, bucket: str, object_name: ObjectName, has: Has) -> None:
    store = await has.offices.objects(name)
    await store.delete(check_bucket(bucket), check_text("name", object_name))


@router.post(
    "/objects-from-file",
    response_model=wire.ObjectInfo,
    dependencies=[requires("object:write", of_agent("object"))],
)
async def object_from_file(name: AgentName, body: wire.ObjectFromFileRequest, has: Has) -> Any:
    """Copies a file of the office into its object storage; a second call replaces the object by the same."""
    bucket, object_name = check_bucket(body.bucket), check_text("name", body.name)
    path = check_path(body.path)
    store = await has.offices.objects(name)
    chunks = await office_files.read_file(has.offices, name, "agent", path, FILE_BYTES_MAX)
    return await store.put(bucket, object_name, chunks)


@router.post(
    "/file-from-object", response_model=wire.ObjectInfo, dependencies=[requires("file:write", of_agent("file"))]
)
async def file_from_object(name: AgentName, body: wire.FileFromObjectRequest, has: Has) -> Any:
    """Copies an object of the office into a file of it, which is replaced as a whole."""
    bucket, object_name = check_bucket(body.bucket), check_text("name", body.name)
    path = check_path(body.path)
    found = await (await has.offices.objects(name)).open(bucket, object_name)
    await office_files.write_file(has.offices, name, "agent", path, found.chunks(), found.info.size_bytes)
    return found.info
