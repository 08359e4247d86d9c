"""Whoever dies in the middle of a put, an upload in parts or its completion leaves the old or the new, whole; what older servers
stored is read as before; what is known of a bucket can always be worked out of its files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenure.data.objects import ObjectStore
from tenure.data.s3.store.base import Wanted
from tenure.data.s3.store.volume import VolumeStore
from tenure.offices.diff import compare
from tenure.testing.object_conformance import PART_BYTES, PLAIN, listed, read, stream

WRITER = """
import asyncio, hashlib, sys
from pathlib import Path
from tenure.data.s3.store.volume import VolumeStore
from tenure.testing.object_conformance import PART_BYTES, PLAIN, stream

async def main():
    store = VolumeStore(Path(sys.argv[1]) / "objects")
    await store.create("b")
    bucket = store.bucket("b")
    if sys.argv[2] == "versions":
        await bucket.change("versioning", "Enabled")
    number = 0
    while True:
        number += 1
        data = bytes([number % 251]) * (300_000 + number)
        if sys.argv[2] == "parts":
            upload = await bucket.uploads.begin("x", PLAIN)
            first = await bucket.uploads.put("x", upload, 1, stream(data[:1] * PART_BYTES))
            last = await bucket.uploads.put("x", upload, 2, stream(data))
            await bucket.uploads.complete("x", upload, [first, last])
        else:
            await bucket.put("x", stream(data[:100_000], data[100_000:]), PLAIN)
        if sys.argv[2] == "versions" and number % 3 == 0:
            await bucket.delete("x")
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["put", "parts", "versions"])
async def test_kill_9_leaves_the_old_or_the_new_whole(how: str, tmp_path: Path) -> None:
    killed_in_the_middle = 0
    for _ in range(4):
        writer = await asyncio.to_thread(
            subprocess.Popen, [sys.executable, "-c", WRITER, str(tmp_path), how], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        for _ in range(3):
            confirmed = int(writer.stdout.readline())
        while not any((tmp_path / "objects" / ".incoming").glob("*")):  # noqa: ASYNC110
            await asyncio.sleep(0)
        writer.send_signal(signal.SIGKILL)
        confirmed = int(([b"%d" % confirmed, *writer.stdout.read().split()])[-1])
        writer.wait()
        killed_in_the_middle += any((tmp_path / "objects" / ".incoming").glob("*"))
        bucket = VolumeStore(tmp_path / "objects").bucket("b")
        page = await bucket.page(Wanted(prefix="x", versions=True))
        latest = next(version for version in page.versions if not version.is_marker)
        data = b"".join([chunk async for chunk in (await bucket.open("x", latest.version_id)).read()])
        assert len(data) == latest.size_bytes
        assert set(data) == {data[0]}
        number = len(data) - 300_000 - (PART_BYTES if how == "parts" else 0)
        assert number >= confirmed
        if how != "parts":
            assert latest.etag == hashlib.md5(data, usedforsecurity=False).hexdigest()
        # What it was at is gone or goes on: nothing is in the way of the next.
        for upload in await bucket.uploads.list():
            await bucket.uploads.abort(upload.key, upload.upload_id)
        await bucket.put("after", stream(b"more"), PLAIN)
        assert await read(bucket, "after") == b"more"
    assert killed_in_the_middle, "no writer was killed in the middle of a write"


async def test_what_older_servers_stored_is_read_as_before(tmp_path: Path) -> None:
    directory = tmp_path / "objects" / "reports"
    directory.mkdir(parents=True)
    for name in ("a/1.txt", "é"):
        file = directory / hashlib.sha256(name.encode()).hexdigest()
        file.write_bytes(name.encode())
        meta = {
            "sha256": hashlib.sha256(name.encode()).hexdigest(),
            "content_type": "text/x",
            "modified_at": time.time(),
        }
        os.setxattr(file, "user.tenure.name", name.encode())
        os.setxattr(file, "user.tenure.object", json.dumps(meta).encode())
    store = ObjectStore(tmp_path / "objects")
    found = await store.list("reports")
    assert [(one.name, one.content_type, one.size_bytes) for one in found] == [
        ("a/1.txt", "text/x", 7),
        ("é", "text/x", 2),
    ]
    bucket = store.volume.bucket("reports")
    opened = await bucket.open("a/1.txt")
    assert opened.version.etag.endswith("-1")  # no MD5, and nobody takes it for one
    assert b"".join([chunk async for chunk in opened.read()]) == b"a/1.txt"
    await bucket.change("versioning", "Enabled")
    await bucket.put("a/1.txt", stream(b"new"), PLAIN)
    versions = (await bucket.page(Wanted(prefix="a/", versions=True))).versions
    assert [(one.version_id == "null", one.is_latest) for one in versions] == [(False, True), (True, False)]
    await bucket.set_tags("é", {"a": "b"})
    assert await read(bucket, "é") == "é".encode()


async def test_a_diff_tells_of_versions(tmp_path: Path) -> None:
    before, after = VolumeStore(tmp_path / "before" / "objects"), VolumeStore(tmp_path / "after" / "objects")
    for store in (before, after):
        store.root.parent.mkdir()
        await store.create("b")
    bucket = after.bucket("b")
    await bucket.change("versioning", "Enabled")
    version = await bucket.put("x/y", stream(b"1"), PLAIN)
    found = compare(tmp_path / "before", tmp_path / "after")
    assert [(one.kind, one.path, one.change) for one in found.entries] == [
        ("object", f"b/x/y?versionId={version.version_id}", "added")
    ]


async def test_the_index_is_worked_out_anew_of_the_files(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path / "objects")
    await store.create("b")
    names = [f"{number % 7}/{number}" for number in range(200)]
    for name in names[:100]:
        await store.bucket("b").put(name, stream(b""), PLAIN)
    assert await store.bucket("b").count() == 100
    for name in names[100:]:
        await store.bucket("b").put(name, stream(b""), PLAIN)
    await store.bucket("b").delete(names[0])
    kept = [one.key for one in (await store.bucket("b").page(Wanted())).versions]
    anew = [one.key for one in (await VolumeStore(tmp_path / "objects").bucket("b").page(Wanted())).versions]
    assert kept == anew == sorted(names[1:])


KEYS = st.lists(st.text(alphabet="ab/é\U0010ffff\ud7ff", min_size=1, max_size=5), max_size=12, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    KEYS,
    st.sampled_from(["", "a", "a/", "b"]),
    st.sampled_from(["", "/", "a", "ab"]),
    st.text("ab/", max_size=3),
    st.integers(1, 4),
)
def test_pages_are_those_of_a_plain_list(keys: list[str], prefix: str, delimiter: str, after: str, limit: int) -> None:
    async def walk() -> None:
        with tempfile.TemporaryDirectory() as place:
            store = VolumeStore(Path(place) / "objects")
            await store.create("b")
            for key in keys:
                await store.bucket("b").put(key, stream(b""), PLAIN)
            found, prefixes, at = list[str](), list[str](), after
            while True:
                page = await store.bucket("b").page(Wanted(prefix, delimiter, at, limit=limit))
                found += [version.key for version in page.versions]
                prefixes += page.prefixes
                if not page.is_truncated:
                    break
                assert page.next_after > at
                at = page.next_after
            assert (found, prefixes) == listed(keys, prefix, delimiter, after)

    asyncio.run(walk())
