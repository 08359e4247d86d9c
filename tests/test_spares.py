"""Offices are cloned from copies of the image, none of which gives many clones; and nothing is left of those that failed."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure.errors import DiskFull, VolumeError
from tenure.offices import sources as sources_module
from tenure.offices import spares as spares_module
from tenure.offices.sources import CLONES_LEFT_MIN, CLONES_PER_SOURCE, CLONES_PER_SOURCE_MAX, Sources
from tenure.offices.spares import SpareVolumes
from tenure.offices.volumes import BtrfsDriver, DirectoryDriver

POOL_BYTES = 256 * 1024**2
KILL_TIMEOUT_S = 60
IMAGE = "debian-test-1"
CAPABILITY = bytes.fromhex("0100000200040000" + 24 * "0")
"""cap_net_bind_service, permitted."""
STAGES = ("source.begun", "source.copied", "source.whole")


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A btrfs of its own with quotas and an image, a link to which is current."""
    file, mount = tmp_path / "pool.btrfs", tmp_path / "pool"
    mount.mkdir()
    with file.open("wb") as opened:
        opened.truncate(POOL_BYTES)
    subprocess.run(["mkfs.btrfs", "-q", file], check=True)
    subprocess.run(["mount", "-o", "loop", file, mount], check=True)
    monkeypatch.setattr(sources_module, "ROOM_LEFT_BYTES_MIN", 16 * 1024**2)
    monkeypatch.setattr(spares_module, "REPLENISH_DELAY_S", 0.0)
    try:
        subprocess.run(["btrfs", "quota", "enable", mount], check=True)
        (mount / "images").mkdir()
        (mount / "volumes").mkdir()
        subprocess.run(["btrfs", "subvolume", "create", "-q", mount / "images" / IMAGE], check=False)
        if not (mount / "images" / IMAGE).exists():
            subprocess.run(["btrfs", "subvolume", "create", mount / "images" / IMAGE], check=True)
        _fill(mount / "images" / IMAGE)
        (mount / "images" / "current").symlink_to(IMAGE)
        subprocess.run(["btrfs", "quota", "rescan", "-w", mount], check=True)
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def _fill(image: Path) -> None:
    """One of each kind of thing that a root may hold."""
    root = image / "rootfs"
    (root / "var" / "tmp").mkdir(parents=True)
    (root / "var" / "tmp").chmod(0o1777)
    program = root / "program"
    program.write_bytes(os.urandom(300_000))
    os.chown(program, 1000, 2000)
    program.chmod(0o4751)
    os.setxattr(program, "user.note", b"kept")
    os.setxattr(
        program,
        "security.capability",
        b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    )
    os.utime(program, ns=(10**18, 10**18 + 1))
    os.link(program, root / "hard")
    (root / "soft").symlink_to("var/missing")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with (root / "sparse").open("wb") as file:
        file.truncate(1024**2)
    (root / "naïve\n-rf").write_text("x")
    (image / "objects").mkdir(mode=0o700)
    image.chmod(0o711)  # as an earlier version made them


def _facts(volume: Path) -> dict[str, object]:
    """All that a clone must keep of a volume, by path; of the top, only who may enter is another matter."""
    found: dict[str, object] = {}
    for path in sorted(volume.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        found[str(path.relative_to(volume))] = (
            (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_rdev, status.st_mtime_ns),
            content,
            attributes,
        )
    assert found["rootfs/hard"] == found["rootfs/program"]
    assert (volume / "rootfs/hard").stat().st_ino == (volume / "rootfs/program").stat().st_ino
    return found


@pytest.fixture
def image(pool: Path) -> Path:
    return pool / "images" / "current"


@pytest.fixture
def offices(pool: Path) -> Path:
    return pool / "volumes"


def _sources(offices: Path) -> list[str]:
    return sorted(path.name for path in offices.glob(".source-*"))


async def _mount_full_of(driver: BtrfsDriver, offices: Path, count: int) -> None:
    """Offices that are there already."""
    for number in range(count):
        await driver.create_empty(offices / f"old-{number}")


async def _settled(spares: SpareVolumes) -> None:
    """Returns when nothing is being made in the background."""
    while running := [task for task in (spares._replenishing, spares._copying) if task is not None and not task.done()]:
        await asyncio.wait(running)


# --- what is cloned ------------------------------------------------------------------------------------------------------
async def test_a_clone_of_a_source_equals_the_image(image: Path, offices: Path) -> None:
    sources = Sources(BtrfsDriver(), offices, lambda _: None)
    await sources.make(image)
    await sources.clone(image, offices / "a")
    assert _sources(offices) == [f".source-{IMAGE}.1"]
    assert _facts(offices / "a") == _facts(image.resolve())
    assert stat.S_IMODE((offices / "a").stat().st_mode) == 0o700


async def test_a_source_shares_nothing_with_the_image(image: Path, offices: Path) -> None:
    driver = BtrfsDriver()
    await driver.create(image, offices / "shares")
    os.sync()
    assert ((await driver.usage(offices / "shares")).exclusive_bytes or 0) < 100_000
    await Sources(driver, offices, lambda _: None).make(image)
    os.sync()
    usage = await driver.usage(offices / f".source-{IMAGE}.0")
    assert usage.exclusive_bytes == usage.used_bytes > 300_000


async def test_what_all_offices_get_is_in_the_source_before_it_gives_any(image: Path, offices: Path) -> None:
    def prepare(volume: Path) -> None:
        assert volume.name == f".source-{IMAGE}.new"
        (volume / "rootfs" / "common").write_text("x")

    sources = Sources(BtrfsDriver(), offices, prepare)
    await sources.make(image)
    await sources.clone(image, offices / "a")
    assert (offices / "a" / "rootfs" / "common").read_text() == "x"


# --- how many ------------------------------------------------------------------------------------------------------------
async def test_no_source_gives_more_clones_than_it_may(image: Path, offices: Path) -> None:
    """With the next one ready it ends at the aim; without, at the limit. The last clone is the source itself."""
    driver = BtrfsDriver()
    sources = Sources(driver, offices, lambda _: None)
    await sources.make(image)
    for number in range(CLONES_PER_SOURCE - 1):
        await sources.clone(image, offices / f"a-{number}")
    assert _sources(offices) == [f".source-{IMAGE}.{CLONES_PER_SOURCE - 1}"]
    await sources.make(image)
    await sources.clone(image, offices / "last")
    assert _sources(offices) == [f".source-{IMAGE}.0"]
    assert _facts(offices / "last") == _facts(image.resolve())
    for number in range(CLONES_PER_SOURCE_MAX):
        await sources.clone(image, offices / f"b-{number}")
    assert _sources(offices) == []
    assert len(os.listdir(offices)) == CLONES_PER_SOURCE + CLONES_PER_SOURCE_MAX


async def test_a_few_offices_are_cloned_from_the_image(image: Path, offices: Path) -> None:
    driver = BtrfsDriver()
    sources = Sources(driver, offices, lambda _: None)
    await _mount_full_of(driver, offices, CLONES_PER_SOURCE - CLONES_LEFT_MIN - 1)
    assert not sources.is_due(image)
    await sources.clone(image, offices / "another")
    assert _sources(offices) == []
    assert sources.is_due(image)
    await sources.make(image)
    assert not sources.is_due(image)


async def test_the_next_source_is_made_before_the_last_clone_is_given(image: Path, offices: Path) -> None:
    spares = SpareVolumes(BtrfsDriver(), offices, lambda _: None)
    seen: set[int] = set()
    for number in range(3 * CLONES_PER_SOURCE):
        await spares.clone(image, offices / f"a-{number}")
        await _settled(spares)
        seen.add(len(_sources(offices)))
        assert len(_sources(offices)) > 0 or number < CLONES_PER_SOURCE - CLONES_LEFT_MIN
        given = [int(name.rpartition(".")[2]) for name in _sources(offices)]
        assert max(given, default=0) < CLONES_PER_SOURCE, "the next one was not ready in time"
    assert seen == {0, 1, 2}
    await spares.close()


async def test_while_a_source_is_made_offices_are_given_out(
    image: Path, offices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = BtrfsDriver()
    await _mount_full_of(driver, offices, CLONES_PER_SOURCE)
    go_on, begun = asyncio.Event(), asyncio.Event()
    tool = sources_module._tool

    async def slow(*words: str) -> None:
        begun.set()
        await go_on.wait()
        await tool(*words)

    monkeypatch.setattr(sources_module, "_tool", slow)
    spares = SpareVolumes(driver, offices, lambda _: None)
    spares.replenish(image)
    await begun.wait()
    for number in range(4):  # a half copy is there, and none is cloned from it
        await spares.clone(image, offices / f"a-{number}")
        assert _facts(offices / f"a-{number}") == _facts(image.resolve())
    assert _sources(offices) == [f".source-{IMAGE}.new"]
    go_on.set()
    await _settled(spares)
    assert [name for name in _sources(offices) if name.endswith(".new")] == []
    assert _sources(offices) != []


# --- what fails ----------------------------------------------------------------------------------------------------------
KILLED = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from tenure.faultpoints import arm_from_environment
    from tenure.offices import sources
    from tenure.offices.volumes import BtrfsDriver
    arm_from_environment()
    sources.ROOM_LEFT_BYTES_MIN = 0
    image, offices = map(Path, sys.argv[1:])
    made = sources.Sources(BtrfsDriver(), offices, lambda volume: None)
    async def main():
        await made.make(image)
        await made.clone(image, offices / "a")
    asyncio.run(main())
    """
)


@pytest.mark.parametrize("stage", [*STAGES, "source.counted"])
async def test_a_kill_leaves_no_half_source(image: Path, offices: Path, tmp_path: Path, stage: str) -> None:
    fired = tmp_path / "fired"
    environment = {**os.environ, "TENURE_FAULT": f"{stage}:1:kill", "TENURE_FAULT_LOG": str(fired)}
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, image, offices],
        env=environment,
        timeout=KILL_TIMEOUT_S,
        check=False,
    )
    assert killed.returncode == -9
    assert fired.read_text() == f"{stage}:1:kill\n"
    left = _sources(offices)
    assert left == [f".source-{IMAGE}.{'1' if stage == 'source.counted' else 'new'}"]
    spares = SpareVolumes(BtrfsDriver(), offices, lambda _: None)  # the next server's
    await spares.clone(image, offices / "b")
    assert _facts(offices / "b") == _facts(image.resolve())
    await _settled(spares)
    assert _facts(offices / f".spare-{IMAGE}") == _facts(image.resolve())
    # One that was whole goes on counting: its first clone was never made, "b" and the spare were.
    assert _sources(offices) == ([f".source-{IMAGE}.3"] if stage == "source.counted" else [])
    await spares.close()


@pytest.mark.parametrize("words", ["cp", "sync"])
async def test_a_cancelled_copy_leaves_nothing(
    image: Path, offices: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    driver = BtrfsDriver()
    await _mount_full_of(driver, offices, CLONES_PER_SOURCE)
    begun, tool = asyncio.Event(), sources_module._tool

    async def hangs(*argv: str) -> None:
        if argv[0] != words:
            await tool(*argv)
            return
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(sources_module, "_tool", hangs)
    spares = SpareVolumes(driver, offices, lambda _: None)
    spares.replenish(image)
    await begun.wait()
    assert _sources(offices) == [f".source-{IMAGE}.new"]
    await spares.close()
    assert _sources(offices) == []


async def test_a_full_disk_falls_back_to_the_image(
    image: Path, offices: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = BtrfsDriver()
    await _mount_full_of(driver, offices, CLONES_PER_SOURCE)
    monkeypatch.setattr(sources_module, "ROOM_LEFT_BYTES_MIN", 2 * POOL_BYTES)
    spares = SpareVolumes(driver, offices, lambda _: None)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            await spares.clone(image, offices / f"a-{number}")
            await _settled(spares)
            assert _facts(offices / f"a-{number}") == _facts(image.resolve())
    said = [record.message for record in caplog.records if "no copy of the image was made" in record.message]
    assert len(said) == 1, "once, not for each office"
    assert "no room for another copy" in said[0]
    assert _sources(offices) == []
    await spares.close()


async def test_a_disk_that_fills_during_the_copy_is_disk_full_and_freed(
    pool: Path, image: Path, offices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="No space left"):
        (pool / "filler").write_bytes(bytes(2 * POOL_BYTES))
    os.sync()
    monkeypatch.setattr(sources_module, "ROOM_LEFT_BYTES_MIN", -POOL_BYTES)
    sources = Sources(BtrfsDriver(), offices, lambda _: None)
    with pytest.raises((DiskFull, VolumeError)):
        await sources.make(image)
    assert _sources(offices) == []
    assert not sources.is_due(image), "it is not tried again at once"


async def test_sources_of_another_image_go(image: Path, offices: Path) -> None:
    driver = BtrfsDriver()
    for name in (".source-debian-old-0.3", f".source-{IMAGE}.5", f".source-{IMAGE}.new", f".source-{IMAGE}2.5"):
        await driver.create_empty(offices / name)
    spares = SpareVolumes(driver, offices, lambda _: None)
    spares.replenish(image)
    await _settled(spares)
    assert _sources(offices) == [f".source-{IMAGE}.6"]
    await spares.close()


async def test_drivers_whose_clones_are_copies_have_no_sources(tmp_path: Path) -> None:
    driver, image, offices = DirectoryDriver(), tmp_path / "image", tmp_path / "offices"
    await driver.create_empty(image)
    await driver.create_empty(offices / "old")
    spares = SpareVolumes(driver, offices, lambda _: None)
    for number in range(CLONES_PER_SOURCE):
        await spares.clone(image, offices / f"a-{number}")
    assert spares._replenishing is spares._copying is None
    assert not Sources(driver, offices, lambda _: None).is_due(image)
    assert [path.name for path in offices.glob(".*")] == []
