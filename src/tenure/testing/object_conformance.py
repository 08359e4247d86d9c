"""Conformance kit of `ObjectBackend`: one function, numbered contracts, a fresh bucket for each.

    for contract in contracts():
        await contract(await make_backend())

A backend that has no versions, tags or settings refuses them with NotImplemented; `full=False` asks for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable

from tenure.data.s3.errors import S3Error
from tenure.data.s3.store.base import Condition, NewObject, ObjectBackend, Part, Wanted

Contract = Callable[[ObjectBackend], Awaitable[None]]
PLAIN = NewObject()
PART_BYTES = 5 * 1024**2


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def read(backend: ObjectBackend, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in (await backend.open(key)).read(start, end)])


async def refused(code: str, awaited: Awaitable[object]) -> None:
    found = await code_of(awaited)
    assert found == code, f"{found or 'nothing'} was raised instead of {code}"


async def code_of(awaited: Awaitable[object]) -> str:
    """Of the refusal; empty when there was none."""
    try:
        await awaited
    except S3Error as error:
        return error.code
    return ""


async def c01_an_object_comes_back_as_it_was_put(backend: ObjectBackend) -> None:
    data = os.urandom(2_500_000)
    version = await backend.put("a/b.bin", stream(data[:7], b"", data[7:1_000_000], data[1_000_000:]), PLAIN)
    assert (version.key, version.size_bytes) == ("a/b.bin", len(data))
    assert await read(backend, "a/b.bin") == data
    found = await backend.open("a/b.bin")
    found.close()
    found.close()
    assert found.version.etag == version.etag
    for start, end in ((0, 1), (10, 20), (len(data) - 1, len(data)), (1_048_575, 1_048_577)):
        assert await read(backend, "a/b.bin", start, end) == data[start:end]


async def c02_what_is_not_there_is_not_found_and_deleted_in_any_case(backend: ObjectBackend) -> None:
    await refused("NoSuchKey", backend.open("none"))
    await backend.delete("none")
    await backend.put("x", stream(b"1"), PLAIN)
    await backend.delete("x")
    await refused("NoSuchKey", backend.open("x"))


async def c03_a_put_that_breaks_off_changes_nothing(backend: ObjectBackend) -> None:
    await backend.put("x", stream(b"old"), PLAIN)

    async def breaking() -> AsyncIterator[bytes]:
        yield b"new" * 1_000_000
        raise S3Error("BadDigest")

    await refused("BadDigest", backend.put("x", breaking(), PLAIN))
    assert await read(backend, "x") == b"old"
    await refused("BadDigest", backend.put("y", breaking(), PLAIN))
    await refused("NoSuchKey", backend.open("y"))


async def c04_conditions_hold_when_it_becomes_visible(backend: ObjectBackend) -> None:
    first = await backend.put("x", stream(b"1"), PLAIN, Condition(if_none_match="*"))
    await refused("PreconditionFailed", backend.put("x", stream(b"2"), PLAIN, Condition(if_none_match="*")))
    await refused("PreconditionFailed", backend.put("x", stream(b"2"), PLAIN, Condition(if_match="0" * 32)))
    await refused("NoSuchKey", backend.put("y", stream(b"2"), PLAIN, Condition(if_match=first.etag)))
    assert await read(backend, "x") == b"1"


async def c05_of_many_who_create_one_succeeds(backend: ObjectBackend) -> None:
    async def create(number: int) -> bytes | None:
        code = await code_of(backend.put("x", stream(b"%d" % number), PLAIN, Condition(if_none_match="*")))
        assert code in ("", "PreconditionFailed")
        return None if code else b"%d" % number

    won = [one for one in await asyncio.gather(*(create(number) for number in range(8))) if one is not None]
    assert won == [await read(backend, "x")]


async def c06_lists_are_in_order_and_go_on_where_they_ended(backend: ObjectBackend) -> None:
    keys = sorted(["a/1", "a/2", "a/b/1", "a/b/2", "ab", "b", "c/1", "c/2", "é", "zz/1"])
    for key in keys:
        await backend.put(key, stream(b"x"), PLAIN)
    for prefix, delimiter, start in (
        ("", "", ""),
        ("a", "", ""),
        ("a/", "/", ""),
        ("", "/", ""),
        ("", "", "b"),
        ("c/", "/", ""),
    ):
        want_keys, want_prefixes = listed(keys, prefix, delimiter, start)
        for limit in (1, 2, 1000):
            found, prefixes, after = list[str](), list[str](), start
            while True:
                page = await backend.page(Wanted(prefix, delimiter, after, limit=limit))
                assert len(page.versions) + len(page.prefixes) <= limit
                found += [version.key for version in page.versions]
                prefixes += page.prefixes
                if not page.is_truncated:
                    break
                after = page.next_after
            assert (found, prefixes) == (want_keys, want_prefixes), (prefix, delimiter, start, limit)
    assert not (await backend.page(Wanted(limit=0))).versions
    within = await backend.page(Wanted(prefix="", delimiter="/", within="a/b/"))
    assert (list(within.versions), list(within.prefixes)) == ([], ["a/"])
    assert not (await backend.page(Wanted(prefix="c/", within="a/"))).versions


def listed(keys: list[str], prefix: str, delimiter: str, after: str) -> tuple[list[str], list[str]]:
    """What a listing shows, worked out the long way."""
    found, prefixes = list[str](), list[str]()
    for key in sorted(keys):
        if not key.startswith(prefix):
            continue
        place = key.find(delimiter, len(prefix)) if delimiter else -1
        if place < 0:
            found += [key] if key > after else []
            continue
        common = key[: place + len(delimiter)]
        if key > after and not after.startswith(common) and common not in prefixes:
            prefixes.append(common)
    return found, prefixes


async def c07_an_upload_in_parts_is_an_object_at_its_end_and_not_before(backend: ObjectBackend) -> None:
    uploads = backend.uploads
    upload_id = await uploads.begin("big", PLAIN)
    first, last = os.urandom(PART_BYTES), b"the end"
    two = await uploads.put("big", upload_id, 2, stream(last))
    await uploads.put("big", upload_id, 1, stream(b"in the wrong"))
    one = await uploads.put("big", upload_id, 1, stream(first))
    assert [(part.number, part.size_bytes, part.etag) for part in await uploads.parts("big", upload_id)] == [
        (1, PART_BYTES, hashlib.md5(first, usedforsecurity=False).hexdigest()),
        (2, len(last), two.etag),
    ]
    await refused("NoSuchKey", backend.open("big"))
    assert [upload.upload_id for upload in await uploads.list()] == [upload_id]
    await refused("InvalidPartOrder", uploads.complete("big", upload_id, [two, one]))
    await refused("InvalidPart", uploads.complete("big", upload_id, [Part(1, 0, "0" * 32), two]))
    await refused("InvalidPart", uploads.complete("big", upload_id, [one, two, Part(3, 0, two.etag)]))
    await refused("NoSuchUpload", uploads.complete("other", upload_id, [one, two]))
    version = await uploads.complete("big", upload_id, [one, two])
    assert version.size_bytes == PART_BYTES + len(last)
    assert await read(backend, "big") == first + last
    assert list(await uploads.list()) == []
    await refused("NoSuchUpload", uploads.put("big", upload_id, 3, stream(b"late")))


async def c08_parts_that_are_too_small_are_refused(backend: ObjectBackend) -> None:
    uploads = backend.uploads
    upload_id = await uploads.begin("small", PLAIN)
    parts = [await uploads.put("small", upload_id, number, stream(b"x")) for number in (1, 2)]
    await refused("EntityTooSmall", uploads.complete("small", upload_id, parts))
    assert (await uploads.complete("small", upload_id, parts[1:])).size_bytes == 1


async def c09_an_upload_that_is_aborted_is_gone(backend: ObjectBackend) -> None:
    uploads = backend.uploads
    upload_id = await uploads.begin("x", PLAIN)
    part = await uploads.put("x", upload_id, 1, stream(b"x"))
    await refused("NoSuchUpload", uploads.abort("x", "../../etc"))
    await uploads.abort("x", upload_id)
    await refused("NoSuchUpload", uploads.abort("x", upload_id))
    await refused("NoSuchUpload", uploads.complete("x", upload_id, [part]))
    await refused("NoSuchKey", backend.open("x"))


async def c10_readers_see_one_object_whole(backend: ObjectBackend) -> None:
    contents = [bytes([letter]) * 300_000 for letter in b"abc"]
    await backend.put("x", stream(contents[0]), PLAIN)

    async def reader() -> None:
        for _ in range(5):
            with contextlib.suppress(S3Error):  # it was another by the time it was read, and that is said
                assert await read(backend, "x") in contents

    writers = [backend.put("x", stream(data), PLAIN) for data in contents]
    await asyncio.gather(reader(), reader(), *writers)
    assert await read(backend, "x") in contents


# --- what not every backend can do -----------------------------------------------------------------------------------------
TOLD = NewObject({"content-type": "text/x", "cache-control": "no-store"}, {"colour": "red"}, {"team": "a"})


async def c20_what_is_told_of_an_object_comes_back(backend: ObjectBackend) -> None:
    long = NewObject(TOLD.headers, {"long": "x" * 2000}, {str(number): "v" * 250 for number in range(10)})
    for key, told in (("short", TOLD), ("long", long)):
        await backend.put(key, stream(b"content"), told)
        found = (await backend.open(key)).version.about
        assert (found.headers, found.user, found.tags) == (told.headers, told.user, told.tags)
        assert await read(backend, key) == b"content"
        changed = await backend.set_tags(key, {"other": "b"})
        assert (changed.about.tags, changed.about.user) == ({"other": "b"}, told.user)
        assert (await backend.open(key)).version.about.tags == {"other": "b"}
        assert await read(backend, key) == b"content"


async def c21_versions_are_kept_and_marked(backend: ObjectBackend) -> None:
    null = await backend.put("x", stream(b"0"), PLAIN)
    await backend.change("versioning", "Enabled")
    one = await backend.put("x", stream(b"1"), PLAIN)
    two = await backend.put("x", stream(b"2"), PLAIN)
    assert null.version_id == "null"
    assert await read(backend, "x") == b"2"
    marker = await backend.delete("x")
    assert marker.is_marker
    await refused("NoSuchKey", backend.open("x"))
    assert not (await backend.page(Wanted())).versions
    page = await backend.page(Wanted(versions=True))
    ids = [version.version_id for version in page.versions]
    assert ids == [marker.version_id, two.version_id, one.version_id, "null"]
    assert [version.is_latest for version in page.versions] == [True, False, False, False]
    after, walked = Wanted(versions=True, limit=1), list[str]()
    while True:
        page = await backend.page(after)
        walked += [version.version_id for version in page.versions]
        if not page.is_truncated:
            break
        after = Wanted(versions=True, limit=1, after=page.next_after, after_version=page.next_version)
    assert walked == ids
    await backend.delete("x", marker.version_id)
    assert await read(backend, "x") == b"2"
    await backend.delete("x", two.version_id)
    assert await read(backend, "x") == b"1"
    await refused("NoSuchVersion", backend.open("x", two.version_id))
    await refused("InvalidArgument", backend.open("x", "../../x"))
    await backend.change("versioning", "Suspended")
    await backend.put("x", stream(b"3"), PLAIN)
    assert await read(backend, "x") == b"3"
    suspended = await backend.delete("x")
    assert (suspended.version_id, suspended.is_marker) == ("null", True)
    await backend.delete("x", "null")
    assert await read(backend, "x") == b"1"
    await backend.delete("x", one.version_id)
    assert not (await backend.page(Wanted(versions=True))).versions


async def c22_etags_are_md5_as_s3_has_them(backend: ObjectBackend) -> None:
    version = await backend.put("x", stream(b"abc"), PLAIN)
    assert version.etag == hashlib.md5(b"abc", usedforsecurity=False).hexdigest()
    upload_id = await backend.uploads.begin("y", PLAIN)
    part = await backend.uploads.put("y", upload_id, 7, stream(b"abc"))
    done = await backend.uploads.complete("y", upload_id, [part])
    inner = hashlib.md5(b"abc", usedforsecurity=False).digest()
    assert done.etag == f"{hashlib.md5(inner, usedforsecurity=False).hexdigest()}-1"
    assert await backend.uploads.complete("y", upload_id, [part]) == done  # as if the answer had been lost


async def c23_deletions_may_have_conditions(backend: ObjectBackend) -> None:
    version = await backend.put("x", stream(b"1"), PLAIN)
    await refused("PreconditionFailed", backend.delete("x", None, Condition(if_match="0" * 32)))
    await refused("PreconditionFailed", backend.delete("x", None, Condition(size_bytes=2)))
    await backend.delete("x", None, Condition(if_match=version.etag, size_bytes=1))
    await refused("NoSuchKey", backend.open("x"))


async def c24_any_key_is_a_key(backend: ObjectBackend) -> None:
    keys = [
        "..",
        "../../etc/passwd",
        "/",
        "//",
        "a//b",
        ".",
        "new\nline",
        "nul\0byte",
        "%2e",
        " ",
        "x" * 1024,
        ".versions",
    ]
    for key in keys:
        await backend.put(key, stream(key.encode()), PLAIN)
    assert [version.key for version in (await backend.page(Wanted())).versions] == sorted(keys)
    for key in keys:
        assert await read(backend, key) == key.encode()
    await refused("KeyTooLongError", backend.put("x" * 1025, stream(b""), PLAIN))


async def c30_what_cannot_be_is_refused(backend: ObjectBackend) -> None:
    await backend.put("x", stream(b"1"), PLAIN)
    await refused("NotImplemented", backend.set_tags("x", {"a": "b"}))
    await refused("NotImplemented", backend.change("versioning", "Enabled"))
    await refused("NotImplemented", backend.put("y", stream(b""), TOLD))
    await refused("NotImplemented", backend.open("x", "0" * 32))
    await refused("InvalidArgument", backend.put("../x", stream(b""), PLAIN))
    assert (await backend.settings()).versioning == ""


COMMON: tuple[Contract, ...] = (
    c01_an_object_comes_back_as_it_was_put,
    c02_what_is_not_there_is_not_found_and_deleted_in_any_case,
    c03_a_put_that_breaks_off_changes_nothing,
    c04_conditions_hold_when_it_becomes_visible,
    c05_of_many_who_create_one_succeeds,
    c06_lists_are_in_order_and_go_on_where_they_ended,
    c07_an_upload_in_parts_is_an_object_at_its_end_and_not_before,
    c08_parts_that_are_too_small_are_refused,
    c09_an_upload_that_is_aborted_is_gone,
    c10_readers_see_one_object_whole,
)
FULL: tuple[Contract, ...] = (
    c20_what_is_told_of_an_object_comes_back,
    c21_versions_are_kept_and_marked,
    c22_etags_are_md5_as_s3_has_them,
    c23_deletions_may_have_conditions,
    c24_any_key_is_a_key,
)


def contracts(*, full: bool = True) -> tuple[Contract, ...]:
    """Those of a backend that can do everything, or of one that has no versions, tags and settings."""
    return (*COMMON, *FULL) if full else (*COMMON, c30_what_cannot_be_is_refused)
