"""Every volume driver keeps the `Volume` contract; and what btrfs says is read right."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tenure.errors import DiskFull, VolumeError
from tenure.offices.tools import run_tool
from tenure.offices.volumes import BtrfsDriver, DirectoryDriver, VolumeDriver, VolumeUsage, detect_driver
from tenure.offices.volumes.btrfs import SUBVOLUME_INODE, nested_ids, parse_usage
from tenure.settings import Settings
from tenure.testing.volume_conformance import VOLUME_CONTRACTS, Contract


@pytest.fixture(params=[BtrfsDriver, DirectoryDriver], ids=lambda driver: driver.name)
def driver(request: pytest.FixtureRequest) -> VolumeDriver:
    made: VolumeDriver = request.param()
    return made


@pytest.fixture
async def pool(settings: Settings, unique_name: Callable[[str], str]) -> AsyncIterator[Path]:
    pool = settings.volumes_dir / unique_name("kit")
    pool.mkdir()
    yield pool
    for _ in range(3):  # volumes in volumes
        for path in sorted(pool.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink() and path.stat().st_ino == SUBVOLUME_INODE:
                await BtrfsDriver().delete(path)
    shutil.rmtree(pool)


@pytest.mark.parametrize("contract", VOLUME_CONTRACTS, ids=lambda contract: contract.__name__)
async def test_volume_contract(driver: VolumeDriver, pool: Path, contract: Contract) -> None:
    await contract(driver, pool)


def test_the_driver_follows_the_filesystem(settings: Settings) -> None:
    assert isinstance(detect_driver(settings.pool_dir), BtrfsDriver)
    assert isinstance(detect_driver(Path("/proc")), DirectoryDriver)


async def test_an_interrupted_copy_leaves_nothing(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = DirectoryDriver()
    await driver.create_empty(pool / "source")
    monkeypatch.setattr("tenure.offices.volumes.directory.COPY_TIMEOUT_S", 0.0)
    with pytest.raises(VolumeError, match="was not done"):
        await driver.create(pool / "source", pool / "target")
    assert [entry.name for entry in pool.iterdir()] == ["source"]


@pytest.fixture
def own_pool(tmp_path: Path) -> Iterator[Path]:
    """A pool that nobody else counts on."""
    image, mount = tmp_path / "pool.btrfs", tmp_path / "pool"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(256 * 1024**2)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


async def test_counting_that_went_stale_is_repaired(own_pool: Path) -> None:
    """btrfs only says that its numbers are wrong; somebody has to make it read the pool again."""
    driver = BtrfsDriver()
    await driver.create_empty(own_pool / "v")
    with pytest.raises(VolumeError, match="counts no usage"):
        await driver.set_limit(own_pool / "v", 1024**2)
    await _btrfs("quota", "enable", own_pool)
    await _btrfs("quota", "rescan", "-w", own_pool)
    volume_id = (await _btrfs("inspect-internal", "rootid", own_pool / "v")).strip()
    await _btrfs("qgroup", "create", "1/1", own_pool)
    (own_pool / "v" / "file").write_bytes(b"x" * 1024**2)
    await driver.create(own_pool / "v", own_pool / "clone")
    await _btrfs("qgroup", "assign", "--no-rescan", f"0/{volume_id}", "1/1", own_pool)
    assert "inconsistent" in await _btrfs("qgroup", "show", own_pool)
    assert await driver.keep_limits(own_pool / "v")
    assert "inconsistent" not in await _btrfs("qgroup", "show", own_pool)
    assert (await driver.usage(own_pool / "v")).used_bytes >= 1024**2
    assert not await driver.keep_limits(own_pool)


async def test_the_limit_of_an_overfull_volume_can_be_changed(own_pool: Path) -> None:
    """A volume is more than full when its limit was set too late, or the kernel had lost count."""
    driver = BtrfsDriver()
    await _btrfs("quota", "enable", own_pool)
    await driver.create_empty(own_pool / "v")
    (own_pool / "v" / "file").write_bytes(os.urandom(8 * 1024**2))
    os.sync()
    await driver.set_limit(own_pool / "v", 1024**2)
    with pytest.raises(OSError, match="quota"):
        (own_pool / "v" / "another").write_bytes(b"x")
    await driver.set_limit(own_pool / "v", 16 * 1024**2)
    (own_pool / "v" / "another").write_bytes(b"x")


async def test_a_pool_without_room_is_disk_full(own_pool: Path) -> None:
    driver = BtrfsDriver()
    await driver.create_empty(own_pool / "v")
    with pytest.raises(OSError, match="No space left"):
        (own_pool / "v" / "file").write_bytes(bytes(512 * 1024**2))
    with pytest.raises(DiskFull):
        await DirectoryDriver().create(own_pool / "v", own_pool / "copy")
    with pytest.raises(DiskFull):
        await DirectoryDriver().create_empty(own_pool / "empty")
    assert os.listdir(own_pool) == ["v"]


async def _btrfs(*words: str | Path) -> str:
    result = await run_tool(["btrfs", *words], timeout_s=60, raises=VolumeError)
    assert result.exit_code == 0, result.stderr
    return result.stdout + result.stderr


def test_usage_is_read_from_what_btrfs_prints() -> None:
    table = (
        "Qgroupid    Referenced    Exclusive  Max referenced  Max exclusive   Path \n"
        "--------    ----------    ---------  --------------  -------------   ---- \n"
        "0/258        625385472       196608      5368709120           none   volumes/a \n"
    )
    assert parse_usage(table) == VolumeUsage(625385472, 5368709120, 196608)
    assert parse_usage(table.replace("5368709120", "none")).limit_bytes is None
    with pytest.raises(VolumeError, match="counts nothing"):
        parse_usage("")


def test_nested_volumes_are_deleted_from_the_deepest() -> None:
    listing = "\n".join(
        f"ID {number} gen 9 top level {parent} path some/where with blanks"
        for number, parent in ((256, 5), (257, 256), (258, 257), (259, 256), (300, 5), (301, 300))
    )
    order = nested_ids(listing, "256")
    assert sorted(order) == ["257", "258", "259"]
    assert order.index("258") < order.index("257")
    assert nested_ids(listing, "301") == []
