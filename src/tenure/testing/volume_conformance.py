"""What every `Volume` driver must do, clause by clause.

For the author of a driver: parametrise one test over `VOLUME_CONTRACTS`, each with a fresh, empty pool directory, or call
`check_volume_driver`. Where a driver declares `holds_limits` or `instant_snapshots` False, the clauses assert the weaker
behaviour that it then promises, and skip nothing.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from tenure.errors import AlreadyExists, NotFound, TenureError, VolumeError
from tenure.offices.volumes.base import VolumeDriver

MIB = 1024**2
LIMIT_BYTES = 24 * MIB
COUNT_LOST_MAX = 3
ONE_GO_BYTES = MIB

Contract = Callable[[VolumeDriver, Path], Awaitable[None]]


async def check_volume_driver(driver: VolumeDriver, make_pool: Callable[[], Path]) -> None:
    """Runs every clause, each in a fresh pool. Raises `AssertionError` at the first that does not hold."""
    for contract in VOLUME_CONTRACTS:
        await contract(driver, make_pool())


async def an_empty_volume_is_a_writable_volume(driver: VolumeDriver, pool: Path) -> None:
    volume = pool / "new" / "parent" / "v"
    assert not await driver.exists(volume)
    await driver.create_empty(volume)
    assert await driver.exists(volume)
    (volume / "file").write_text("x")
    await _refused(driver.create_empty(volume), AlreadyExists)
    assert (volume / "file").read_text() == "x"


async def a_directory_is_not_a_volume(driver: VolumeDriver, pool: Path) -> None:
    (pool / "plain").mkdir()
    (pool / "file").touch()
    (pool / "link").symlink_to(pool)
    for name in ("plain", "file", "link", "missing"):
        assert not await driver.exists(pool / name)
    await _refused(driver.delete(pool / "plain"), VolumeError)
    assert (pool / "plain").is_dir()


async def a_moved_volume_keeps_content_and_limit(driver: VolumeDriver, pool: Path) -> None:
    volume, target = await _volume(driver, pool / "v"), pool / "deep" / "moved"
    (volume / "file").write_text("x")
    await driver.set_limit(volume, LIMIT_BYTES)
    await driver.move(volume, target)
    assert not await driver.exists(volume)
    assert await driver.exists(target)
    assert (target / "file").read_text() == "x"
    assert (await driver.usage(target)).limit_bytes == LIMIT_BYTES
    other = await _volume(driver, pool / "other")
    await _refused(driver.move(other, target), AlreadyExists)
    await _refused(driver.move(volume, pool / "w"), NotFound)
    assert (target / "file").read_text() == "x"


async def a_clone_keeps_everything(driver: VolumeDriver, pool: Path) -> None:
    source = await _volume(driver, pool / "source")
    (source / "rootfs").mkdir()
    file = source / "rootfs" / "naïve file\n-rf"
    file.write_bytes(b"content")
    os.chown(file, 1000, 2000)
    os.chmod(file, 0o4751)
    os.setxattr(file, "user.note", b"kept")
    os.link(file, source / "hard")
    (source / "soft").symlink_to("rootfs/missing")
    os.mkfifo(source / "fifo")
    os.chmod(source / "rootfs", 0o1777)
    os.utime(file, ns=(10**18, 10**18 + 1))
    await driver.create(source, pool / "deep" / "clone")
    clone = pool / "deep" / "clone"
    assert await driver.exists(clone)
    copied = clone / "rootfs" / "naïve file\n-rf"
    status = copied.stat()
    assert copied.read_bytes() == b"content"
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4751, 1000, 2000)
    assert status.st_mtime_ns == 10**18 + 1
    assert os.getxattr(copied, "user.note") == b"kept"
    assert (clone / "hard").stat().st_ino == status.st_ino
    assert os.readlink(clone / "soft") == "rootfs/missing"
    assert stat.S_ISFIFO((clone / "fifo").stat().st_mode)
    assert stat.S_IMODE((clone / "rootfs").stat().st_mode) == 0o1777


async def a_clone_and_its_source_do_not_meet(driver: VolumeDriver, pool: Path) -> None:
    source = await _volume(driver, pool / "source", file="before")
    await driver.create(source, pool / "clone")
    (source / "file").write_text("source's")
    (pool / "clone" / "file").write_text("clone's")
    (pool / "clone" / "more").touch()
    assert (source / "file").read_text() == "source's"
    assert not (source / "more").exists()
    await driver.delete(source)
    assert (pool / "clone" / "file").read_text() == "clone's"


async def what_is_missing_is_not_found(driver: VolumeDriver, pool: Path) -> None:
    missing, target = pool / "missing", pool / "target"
    await _refused(driver.create(missing, target), NotFound)
    await _refused(driver.snapshot(missing, target), NotFound)
    await _refused(driver.set_limit(missing, MIB), NotFound)
    await _refused(driver.usage(missing), NotFound)
    await driver.delete(missing)
    assert list(pool.iterdir()) == []


async def what_is_there_is_not_overwritten(driver: VolumeDriver, pool: Path) -> None:
    source = await _volume(driver, pool / "source", file="source's")
    target = await _volume(driver, pool / "target", file="target's")
    (pool / "plain").mkdir()
    for taken in (target, pool / "plain"):
        await _refused(driver.create(source, taken), AlreadyExists)
        await _refused(driver.snapshot(source, taken), AlreadyExists)
    assert (target / "file").read_text() == "target's"
    assert sorted(entry.name for entry in pool.iterdir()) == ["plain", "source", "target"]


async def of_many_creates_of_one_name_one_succeeds(driver: VolumeDriver, pool: Path) -> None:
    source = await _volume(driver, pool / "source", file="x")
    calls = [driver.create(source, pool / "same") for _ in range(4)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [result for result in results if result is None] == [None], results
    assert all(result is None or isinstance(result, (AlreadyExists, VolumeError)) for result in results), results
    assert sorted(os.listdir(pool)) == ["same", "source"]
    assert (pool / "same" / "file").read_text() == "x"


async def many_clones_at_once_all_succeed(driver: VolumeDriver, pool: Path) -> None:
    source = await _volume(driver, pool / "source", file="x")
    names = [f"clone-{number}" for number in range(12)]
    await asyncio.gather(*(driver.create(source, pool / name) for name in names))
    assert all((pool / name / "file").read_text() == "x" for name in names)
    await asyncio.gather(*(driver.delete(pool / name) for name in names))
    assert os.listdir(pool) == ["source"]


async def a_snapshot_stays_as_it_was(driver: VolumeDriver, pool: Path) -> None:
    volume = await _volume(driver, pool / "v", file="then")
    await driver.snapshot(volume, pool / "snap")
    (volume / "file").write_text("now")
    assert await driver.exists(pool / "snap")
    assert (pool / "snap" / "file").read_text() == "then"
    if driver.instant_snapshots:  # then the filesystem keeps it, too, and no one can write to it
        assert await asyncio.to_thread(_refusal, pool / "snap" / "file") == errno.EROFS
        assert (pool / "snap" / "file").read_text() == "then"
    await driver.create(pool / "snap", pool / "restored")
    (pool / "restored" / "file").write_text("writable")
    assert (pool / "snap" / "file").read_text() == "then"


async def a_snapshot_is_of_one_instant(driver: VolumeDriver, pool: Path) -> None:
    """A writer counts in two files, the first ahead: at every instant the second equals it or is one behind."""
    volume = await _volume(driver, pool / "v", first="0", second="0")
    stop = threading.Event()

    def count() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for name in ("first", "second"):
                fresh = volume / f"{name}.new"
                fresh.write_text(str(number))
                fresh.replace(volume / name)

    writer = threading.Thread(target=count)
    writer.start()
    try:
        if driver.instant_snapshots:
            for turn in range(10):
                await driver.snapshot(volume, pool / f"snap-{turn}")
    finally:
        stop.set()
        writer.join()
    if not driver.instant_snapshots:  # it promises the files of a volume at rest only
        await driver.snapshot(volume, pool / "snap-0")
    for turn in range(10 if driver.instant_snapshots else 1):
        first, second = (int((pool / f"snap-{turn}" / name).read_text()) for name in ("first", "second"))
        assert 0 <= first - second <= 1, f"the snapshot saw {first} and {second}"


async def delete_removes_whatever_is_inside(driver: VolumeDriver, pool: Path) -> None:
    volume = await _volume(driver, pool / "v", file="x")
    (volume / "directory").mkdir(mode=0o500)
    await driver.create_empty(volume / "directory" / "nested")
    await driver.create_empty(volume / "directory" / "nested" / "deeper")
    await driver.snapshot(volume / "directory" / "nested", volume / "read-only")
    await driver.snapshot(volume, pool / "snap")
    await driver.delete(pool / "snap")
    await driver.delete(volume)
    assert os.listdir(pool) == []
    assert not await driver.exists(volume)
    await driver.delete(volume)


async def a_limit_stops_writers(driver: VolumeDriver, pool: Path) -> None:
    volume, neighbour = await _volume(driver, pool / "v"), await _volume(driver, pool / "neighbour")
    await driver.set_limit(volume, LIMIT_BYTES)
    assert (await driver.usage(volume)).limit_bytes == LIMIT_BYTES
    if not driver.holds_limits:
        assert await asyncio.to_thread(_fill, volume / "file", 2 * LIMIT_BYTES) == 2 * LIMIT_BYTES
        return
    assert LIMIT_BYTES // 2 <= await _filled(driver, volume / "file") <= LIMIT_BYTES
    assert await asyncio.to_thread(_fill, neighbour / "file", LIMIT_BYTES) == LIMIT_BYTES


async def a_full_volume_can_be_emptied(driver: VolumeDriver, pool: Path) -> None:
    volume = await _volume(driver, pool / "v")
    await driver.set_limit(volume, LIMIT_BYTES)
    if driver.holds_limits:
        assert await _filled(driver, volume / "file") < 2 * LIMIT_BYTES
    (volume / "file").unlink(missing_ok=True)
    await asyncio.to_thread(os.sync)
    assert await asyncio.to_thread(_fill, volume / "file", LIMIT_BYTES // 2) == LIMIT_BYTES // 2


async def a_limit_can_be_raised_and_lifted(driver: VolumeDriver, pool: Path) -> None:
    volume = await _volume(driver, pool / "v")
    await driver.set_limit(volume, LIMIT_BYTES)
    await asyncio.to_thread(_fill, volume / "file", 2 * LIMIT_BYTES)
    await driver.set_limit(volume, 4 * LIMIT_BYTES)
    assert await asyncio.to_thread(_fill, volume / "more", LIMIT_BYTES) == LIMIT_BYTES
    await driver.set_limit(volume, None)
    assert (await driver.usage(volume)).limit_bytes is None
    assert await asyncio.to_thread(_fill, volume / "most", 4 * LIMIT_BYTES) == 4 * LIMIT_BYTES


async def a_clone_counts_for_itself(driver: VolumeDriver, pool: Path) -> None:
    """The limit counts what a volume refers to, its image included; and a clone does not inherit its source's limit."""
    source = await _volume(driver, pool / "source")
    await asyncio.to_thread(_fill, source / "file", LIMIT_BYTES // 2)
    await driver.set_limit(source, LIMIT_BYTES)
    await asyncio.to_thread(os.sync)
    await driver.create(source, pool / "clone")
    usage = await driver.usage(pool / "clone")
    assert usage.used_bytes >= LIMIT_BYTES // 2
    await driver.set_limit(pool / "clone", LIMIT_BYTES)
    if driver.holds_limits:
        assert await _filled(driver, pool / "clone" / "more") < LIMIT_BYTES


async def usage_follows_what_is_written(driver: VolumeDriver, pool: Path) -> None:
    volume = await _volume(driver, pool / "v")
    before = await driver.usage(volume)
    assert before.limit_bytes is None
    await asyncio.to_thread(_fill, volume / "file", 8 * MIB)
    await asyncio.to_thread(os.sync)  # "may be some seconds old"
    after = await driver.usage(volume)
    assert 8 * MIB <= after.used_bytes - before.used_bytes <= 10 * MIB
    if after.exclusive_bytes is not None:
        assert after.exclusive_bytes <= after.used_bytes
    alone = await driver.exclusive([volume, pool / "missing"])
    assert alone == ({} if after.exclusive_bytes is None else {volume: after.exclusive_bytes})


VOLUME_CONTRACTS: list[Contract] = [
    an_empty_volume_is_a_writable_volume,
    a_directory_is_not_a_volume,
    a_moved_volume_keeps_content_and_limit,
    a_clone_keeps_everything,
    a_clone_and_its_source_do_not_meet,
    what_is_missing_is_not_found,
    what_is_there_is_not_overwritten,
    of_many_creates_of_one_name_one_succeeds,
    many_clones_at_once_all_succeed,
    a_snapshot_stays_as_it_was,
    a_snapshot_is_of_one_instant,
    delete_removes_whatever_is_inside,
    a_limit_stops_writers,
    a_full_volume_can_be_emptied,
    a_limit_can_be_raised_and_lifted,
    a_clone_counts_for_itself,
    usage_follows_what_is_written,
]


# --- helpers -----------------------------------------------------------------------------------------------------------
async def _volume(driver: VolumeDriver, path: Path, **files: str) -> Path:
    await driver.create_empty(path)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def _fill(file: Path, wanted_bytes: int) -> int:
    """Writes noise until the kernel refuses; returns how many bytes it took."""
    written = 0
    with file.open("wb", buffering=0) as stream:
        try:
            while written < wanted_bytes:
                written += stream.write(os.urandom(ONE_GO_BYTES))
                os.fsync(stream.fileno())
        except OSError as error:
            assert error.errno in (errno.EDQUOT, errno.ENOSPC), error  # noqa: PT017 - any other error is a failure
    return written


async def _filled(driver: VolumeDriver, file: Path) -> int:
    """Bytes that fit when the limit holds. The kernel may lose count meanwhile, for what others delete in the same pool: then
    it has to hold again once the driver has seen to it."""
    written = await asyncio.to_thread(_fill, file, 2 * LIMIT_BYTES)
    for _ in range(COUNT_LOST_MAX):
        if written < 2 * LIMIT_BYTES or not await driver.keep_limits(file.parent):
            break
        file.unlink()
        await asyncio.to_thread(os.sync)
        written = await asyncio.to_thread(_fill, file, 2 * LIMIT_BYTES)
    return written


def _refusal(file: Path) -> int | None:
    """The error number of an attempt to write."""
    try:
        file.write_text("forged")
    except OSError as error:
        return error.errno
    return None


async def _refused(call: Awaitable[object], error: type[TenureError]) -> None:
    try:
        await call
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")
