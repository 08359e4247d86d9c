"""Volumes: see `tenure.offices.volumes.base` for the contract."""

from __future__ import annotations

from pathlib import Path

from tenure.offices.volumes.base import VolumeDriver, VolumeUsage
from tenure.offices.volumes.btrfs import BtrfsDriver
from tenure.offices.volumes.directory import DirectoryDriver
from tenure.setup.system import filesystem_at

__all__ = ["BtrfsDriver", "DirectoryDriver", "VolumeDriver", "VolumeUsage", "detect_driver"]


def detect_driver(pool_dir: Path) -> VolumeDriver:
    """The driver for volumes under `pool_dir`, by the filesystem that it lies on."""
    filesystem, _ = filesystem_at(pool_dir)
    return BtrfsDriver() if filesystem == "btrfs" else DirectoryDriver()
