"""Objects come back as they were put, under any name; readers see old or new, never a mixture; limits hold."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tenure.data.objects import ObjectStore
from tenure.data.s3.store import volume
from tenure.errors import Conflict, DiskFull, InvalidArgument, InvalidName, NotFound, TooLarge

ODD_NAMES = [
    "..",
    "../../../etc/passwd",
    "/",
    "//",
    "/etc/passwd",
    ".incoming",
    ".",
    "a/../b",
    "a//b",
    "a/",
    "é☃\U0001f600",
    "e\u0301",
    "new\nline",
    "nul\0byte",
    "%2e%2e/%00",
    "name?query#fragment&x=1",
    " ",
    "x" * 1024,
    "☃" * 341,
    "-rf *",
    "con",
    "\u202egnp.exe",
]


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def read(store: ObjectStore, bucket: str, name: str, **part: int) -> bytes:
    return b"".join([chunk async for chunk in (await store.open(bucket, name, **part)).chunks()])


def everything_in(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


async def test_an_object_comes_back_as_it_was_put(store: ObjectStore) -> None:
    data = os.urandom(3_000_000)
    info = await store.put(
        "reports", "a/b.bin", stream(data[:5], b"", data[5:2_000_000], data[2_000_000:]), content_type="x/y"
    )
    assert (info.size_bytes, info.sha256, info.content_type) == (len(data), hashlib.sha256(data).hexdigest(), "x/y")
    found = await store.open("reports", "a/b.bin")
    assert found.info == info
    assert b"".join([chunk async for chunk in found.chunks()]) == data
    assert await read(store, "reports", "a/b.bin", start=10, end=20) == data[10:20]
    assert await read(store, "reports", "a/b.bin", start=2_999_999) == data[-1:]
    assert await store.info("reports", "a/b.bin") == info
    with pytest.raises(InvalidArgument):
        await store.open("reports", "a/b.bin", start=3_000_000)


async def test_every_odd_name_is_an_object_of_its_own(store: ObjectStore, tmp_path: Path) -> None:
    for name in ODD_NAMES:
        await store.put("odd", name, stream(name.encode()))
    for name in ODD_NAMES:
        assert await read(store, "odd", name) == name.encode()
    assert [info.name for info in await store.list("odd")] == sorted(ODD_NAMES)
    assert all(path.is_relative_to(tmp_path / "objects" / "odd") for path in everything_in(tmp_path))
    for name in ODD_NAMES:
        await store.delete("odd", name)
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("name", ["", "x" * 1025, "☃" * 342, "\ud800"])
async def test_names_that_cannot_be_are_refused(store: ObjectStore, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await store.put("odd", name, stream(b""))


@pytest.mark.parametrize("bucket", ["", "..", ".incoming", "a/b", "A", "a" * 64, "-a", "a-", "a.b", "a\n"])
async def test_bucket_names_follow_the_rule_for_names(store: ObjectStore, bucket: str) -> None:
    for attempt in (store.put(bucket, "x", stream(b"")), store.open(bucket, "x"), store.create_bucket(bucket)):
        with pytest.raises(InvalidName):
            await attempt


@pytest.mark.parametrize("content_type", ["a\r\nset-cookie: x", "é", "x" * 201, "\0"])
async def test_content_types_cannot_carry_headers(store: ObjectStore, content_type: str) -> None:
    with pytest.raises(InvalidArgument):
        await store.put("odd", "x", stream(b""), content_type=content_type)


async def test_missing_things_are_not_found(store: ObjectStore) -> None:
    for attempt in (store.open("none", "x"), store.delete("none", "x"), store.info("none", "x")):
        with pytest.raises(NotFound):
            await attempt
    with pytest.raises(NotFound):
        await store.delete_bucket("none")
    assert await store.list("none") == []
    assert await store.buckets() == []


async def test_a_put_that_breaks_off_changes_nothing_and_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    await store.put("b", "x", stream(b"old"))

    async def breaking() -> AsyncIterator[bytes]:
        yield b"new" * 1_000_000
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError):
        await store.put("b", "x", breaking())
    assert await read(store, "b", "x") == b"old"
    assert len(everything_in(tmp_path)) == 1

    async def hanging() -> AsyncIterator[bytes]:
        yield b"new"
        await asyncio.Event().wait()

    task = asyncio.create_task(store.put("b", "x", hanging()))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(everything_in(tmp_path)) == 1


async def test_readers_see_old_or_new_whole(store: ObjectStore) -> None:
    """Writers replace one object while readers read it: every read is of one writer, and agrees with its digest."""
    contents = [bytes([letter]) * 400_000 for letter in b"abcd"]
    await store.put("b", "x", stream(contents[0]))
    writing = True

    async def reader() -> int:
        seen = 0
        while writing:
            found = await store.open("b", "x")
            data = b"".join([chunk async for chunk in found.chunks()])
            assert data in contents
            assert hashlib.sha256(data).hexdigest() == found.info.sha256
            seen += 1
        return seen

    readers = [asyncio.create_task(reader()) for _ in range(3)]
    for _ in range(5):
        await asyncio.gather(*(store.put("b", "x", stream(data[:100_000], data[100_000:])) for data in contents))
    writing = False
    assert all(await asyncio.gather(*readers))


async def test_an_opened_object_outlives_its_deletion(store: ObjectStore) -> None:
    await store.put("b", "x", stream(b"kept"))
    found = await store.open("b", "x")
    await store.delete("b", "x")
    assert b"".join([chunk async for chunk in found.chunks()]) == b"kept"


async def test_lists_are_sorted_filtered_and_paged(store: ObjectStore) -> None:
    names = [f"{letter}/{number:02}" for letter in "abc" for number in range(20)]
    for bucket in ("two", "one"):
        await asyncio.gather(*(store.put(bucket, name, stream(b"")) for name in names))
    assert [info.name for info in await store.list("one", "b/")] == names[20:40]
    paged: list[tuple[str, str]] = []
    after = None
    while page := await store.list(after=after, limit=7):
        paged += [(info.bucket, info.name) for info in page]
        after = paged[-1]
    assert paged == [(bucket, name) for bucket in ("one", "two") for name in names]
    with pytest.raises(InvalidArgument):
        await store.list("one", limit=0)


async def test_buckets_are_made_kept_and_deleted_when_empty(store: ObjectStore) -> None:
    await store.create_bucket("b")
    await store.create_bucket("b")
    await store.put("a", "x", stream(b""))
    assert await store.buckets() == ["a", "b"]
    with pytest.raises(Conflict):
        await store.delete_bucket("a")
    await store.delete_bucket("b")
    assert await store.buckets() == ["a"]


async def test_an_object_too_large_is_refused(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "OBJECT_BYTES_MAX", 1000)
    with pytest.raises(TooLarge):
        await store.put("b", "x", stream(b"x" * 600, b"x" * 600))
    assert everything_in(tmp_path) == []


async def test_leftovers_of_a_killed_server_go_away(store: ObjectStore, tmp_path: Path) -> None:
    incoming = tmp_path / "objects" / ".incoming"
    incoming.mkdir(parents=True)
    (incoming / "old").write_bytes(b"")
    os.utime(incoming / "old", (time.time() - 7200,) * 2)
    (incoming / "being-written").write_bytes(b"")
    await store.put("b", "x", stream(b""))
    assert [path.name for path in incoming.iterdir()] == ["being-written"]


async def test_a_put_while_the_directory_is_replaced_is_in_the_old_or_the_new_one_or_refused(tmp_path: Path) -> None:
    root = tmp_path / "objects"
    store = ObjectStore(root)
    slow = asyncio.Event()

    async def halting() -> AsyncIterator[bytes]:
        yield b"begun before"
        await slow.wait()
        yield b"ended after"

    straddling = asyncio.create_task(store.put("b", "straddling", halting()))
    while not any((root / ".incoming").glob("*")):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    confirmed: list[str] = []
    done = False

    async def put_on(worker: int) -> None:
        number = 0
        while not done:
            number += 1
            try:
                await store.put("b", f"{worker}-{number}", stream(b"x"))
            except Conflict:
                continue
            confirmed.append(f"{worker}-{number}")

    workers = [asyncio.create_task(put_on(worker)) for worker in range(8)]
    for turn in range(5):
        goal = len(confirmed) + 20
        while len(confirmed) < goal:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        async with store.at_rest():
            before = {info.name for info in await store.list("b")}
            await asyncio.sleep(0.02)
            assert {info.name for info in await store.list("b")} == before
            assert before == set(confirmed)
            root.rename(tmp_path / f"gone-{turn}")
            root.mkdir()
            confirmed.clear()
    done = True
    await asyncio.gather(*workers)
    assert {info.name for info in await store.list("b")} == set(confirmed)
    slow.set()
    with pytest.raises(Conflict, match="restored meanwhile"):
        await straddling
    assert not any((root / ".incoming").glob("*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_full_disk_is_reported_and_nothing_is_lost(small_disk: Path) -> None:
    store = ObjectStore(small_disk / "objects")
    await store.put("b", "x", stream(b"old"))
    with pytest.raises(DiskFull):
        await store.put("b", "x", stream(*[b"x" * 600_000] * 3))
    assert await read(store, "b", "x") == b"old"
    await store.put("b", "y", stream(b"fits"))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=200), st.binary(max_size=200), max_size=12), st.text(max_size=3))
@example(dict.fromkeys(ODD_NAMES, b""), ".")
def test_any_names_and_contents(content: dict[str, bytes], prefix: str) -> None:
    async def check() -> None:
        with tempfile.TemporaryDirectory() as place:
            store = ObjectStore(Path(place))
            for name, data in content.items():
                await store.put("b", name, stream(data))
            for name, data in content.items():
                assert await read(store, "b", name) == data
            listed = [info.name for info in await store.list("b", prefix)]
            assert listed == sorted(name for name in content if name.startswith(prefix))

    content = {name: data for name, data in content.items() if len(name.encode("utf-8", "replace")) <= 1024}
    if not any(0xD800 <= ord(char) <= 0xDFFF for char in "".join(content) + prefix):
        asyncio.run(check())


class AgainstADictionary(RuleBasedStateMachine):
    """Puts and deletes in any order do what they do to a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.store = ObjectStore(Path(self.place.name))
        self.model: dict[str, bytes] = {}

    names = st.sampled_from(["a", "a/", "a/b", "..", "é"])

    @rule(name=names, data=st.binary(max_size=10))
    def put(self, name: str, data: bytes) -> None:
        asyncio.run(self.store.put("b", name, stream(data)))
        self.model[name] = data

    @rule(name=names)
    def delete(self, name: str) -> None:
        if name in self.model:
            del self.model[name]
            asyncio.run(self.store.delete("b", name))
        else:
            with pytest.raises(NotFound):
                asyncio.run(self.store.delete("b", name))

    @invariant()
    def same(self) -> None:
        listed = asyncio.run(self.store.list("b"))
        assert [info.name for info in listed] == sorted(self.model)
        assert all(info.size_bytes == len(self.model[info.name]) for info in listed)

    def teardown(self) -> None:
        self.place.cleanup()


TestAgainstADictionary = AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
