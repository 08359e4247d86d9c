"""The office's object storage: buckets of named, immutable-by-whole pieces of data that outlive the files."""

from __future__ import annotations

from pydantic import Field

from tenure.brains.tools.files import IN_HOME, PATH_CHARS_MAX, check_size
from tenure.brains.tools.tool import Arguments, Call, Refused, Tool, done
from tenure.brains.tools.words import near
from tenure.work.thoughts import CallResult

BUCKET_PATTERN = "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"
NAME_CHARS_MAX = 1024
TEXT_CHARS_MAX = 512 * 1024
READ_BYTES_MAX = 30_000
LIST_MAX = 500


class Named(Arguments):
    bucket: str = Field(pattern=BUCKET_PATTERN, description="a-z, 0-9, '-'; it is made when it is not there.")
    name: str = Field(min_length=1, max_length=NAME_CHARS_MAX, description="Like a path: charts/2014.png.")


class Put(Named):
    path: str = Field(
        default="", max_length=PATH_CHARS_MAX, description=f"Of a file of the office to store; or give text. {IN_HOME}"
    )
    text: str = Field(default="", max_length=TEXT_CHARS_MAX, description="Text to store, instead of a file.")


class ToFile(Named):
    path: str = Field(min_length=1, max_length=PATH_CHARS_MAX, description=f"Of the file to make or replace. {IN_HOME}")


class List(Arguments):
    bucket: str = Field(default="", max_length=40, description="Only in this one. Without it, in all.")
    prefix: str = Field(default="", max_length=NAME_CHARS_MAX, description="Only names that begin so.")


async def put(call: Call, wanted: Put) -> CallResult:
    if bool(wanted.path) == bool(wanted.text):
        raise Refused("Nothing was stored: give either path or text.")
    if wanted.path:
        stored = await call.hands.put_object(call.agent, wanted.path, wanted.bucket, wanted.name, key=call.key)
    else:
        check_size("text", wanted.text)
        data = wanted.text.encode("utf-8", "replace")
        stored = await call.hands.write_object(call.agent, wanted.bucket, wanted.name, data, key=call.key)
    return done(f"{wanted.bucket}/{wanted.name} has {stored['size_bytes']} bytes.")


async def read(call: Call, wanted: Named) -> CallResult:
    data = await call.hands.read_object(call.agent, wanted.bucket, wanted.name, bytes_max=READ_BYTES_MAX + 1)
    if data is None:
        raise await _missing(call, wanted)
    if b"\0" in data:
        raise Refused(f"{wanted.bucket}/{wanted.name} is not text: copy it with object_to_file and look at it there.")
    text = data[:READ_BYTES_MAX].decode("utf-8", "replace")
    more = "\n[… there is more: object_to_file copies the whole]" if len(data) > READ_BYTES_MAX else ""
    return done(text + more)


async def to_file(call: Call, wanted: ToFile) -> CallResult:
    size_bytes = await call.hands.object_to_file(call.agent, wanted.bucket, wanted.name, wanted.path, key=call.key)
    return done(f"{wanted.path} has {size_bytes} bytes.")


async def list_all(call: Call, wanted: List) -> CallResult:
    found = await call.hands.list_objects(call.agent, wanted.bucket or None, wanted.prefix, limit=LIST_MAX + 1)
    lines = [f"{one['size_bytes']:>12} {one['bucket']}/{one['name']}" for one in found[:LIST_MAX]]
    if len(found) > LIST_MAX:
        lines.append("[… there are more: give a bucket and a longer prefix]")
    return done("\n".join(lines) or "There are no such objects.")


async def delete(call: Call, wanted: Named) -> CallResult:
    if await call.hands.delete_object(call.agent, wanted.bucket, wanted.name, key=call.key) or not call.order.fresh:
        return done(f"{wanted.bucket}/{wanted.name} is not there any more.")
    raise await _missing(call, wanted)


async def _missing(call: Call, wanted: Named) -> Refused:
    there = [one["name"] for one in await call.hands.list_objects(call.agent, wanted.bucket, limit=LIST_MAX)]
    return Refused(f"There is no object {wanted.bucket}/{wanted.name}.{near(wanted.name, there)} See object_list.")


TOOLS = (
    Tool("object_put", "Store a file, or text, as an object; one of the same name is replaced.", Put, put),
    Tool("object_read", "The text of an object.", Named, read, reads=True),
    Tool("object_to_file", "Copy an object into a file of the office.", ToFile, to_file),
    Tool("object_list", "Objects with their sizes, by bucket and name.", List, list_all, reads=True),
    Tool("object_delete", "Delete an object.", Named, delete),
)
