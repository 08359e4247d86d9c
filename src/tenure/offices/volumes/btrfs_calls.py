"""The calls to the kernel's btrfs that volumes and their limits take.

Why not the `btrfs` program: `btrfs subvolume snapshot A B` puts the snapshot *inside* B when somebody made B a moment before,
where the kernel's own call refuses; and it is the hot path of creating an office (measured: snapshot and limit 2.2 ms,
with two programs 6.2 ms idle and up to 57 ms on a busy machine). All calls block, and raise `OSError`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

BTRFS_IOCTL_MAGIC = 0x94
VOL_ARGS_V2 = struct.Struct("=qQQ32x4040s")
"""struct btrfs_ioctl_vol_args_v2: source fd, transid, flags, unused, name."""
QGROUP_LIMIT_ARGS = struct.Struct("=QQQQQQ")
"""struct btrfs_ioctl_qgroup_limit_args: qgroup (0: of the volume itself), flags, max_rfer, max_excl, rsv_rfer, rsv_excl."""
INO_LOOKUP_ARGS = struct.Struct("=QQ4080s")
"""struct btrfs_ioctl_ino_lookup_args: tree (0: the one of the descriptor; answered), object, name (answered)."""
FS_INFO_ARGS = struct.Struct("=QQ16s992x")
"""struct btrfs_ioctl_fs_info_args: highest device, devices, fsid."""
RESCAN_ARGS = struct.Struct("=QQ48x")
"""struct btrfs_ioctl_quota_rescan_args: flags, progress."""
BTRFS_SUBVOL_RDONLY = 2
BTRFS_FIRST_FREE_OBJECTID = 256
BTRFS_QGROUP_LIMIT_MAX_RFER = 1
NO_LIMIT = (1 << 64) - 1


def _write(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | BTRFS_IOCTL_MAGIC << 8 | number  # _IOW of <linux/ioctl.h>


def _read(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | BTRFS_IOCTL_MAGIC << 8 | number  # _IOR


SNAP_CREATE_V2 = _write(23, VOL_ARGS_V2.size)
SUBVOL_CREATE_V2 = _write(24, VOL_ARGS_V2.size)
QGROUP_LIMIT = _read(43, QGROUP_LIMIT_ARGS.size)
INO_LOOKUP = _read(18, INO_LOOKUP_ARGS.size) | _write(18, INO_LOOKUP_ARGS.size)
FS_INFO = _read(31, FS_INFO_ARGS.size)
QUOTA_RESCAN = _write(44, RESCAN_ARGS.size)
QUOTA_RESCAN_WAIT = BTRFS_IOCTL_MAGIC << 8 | 46


def create_subvolume(target: Path) -> None:
    with _opened(target.parent) as parent:
        fcntl.ioctl(parent, SUBVOL_CREATE_V2, bytearray(VOL_ARGS_V2.pack(0, 0, 0, os.fsencode(target.name))))


def snapshot_subvolume(source: Path, target: Path, *, read_only: bool) -> None:
    flags = BTRFS_SUBVOL_RDONLY if read_only else 0
    with _opened(source) as origin, _opened(target.parent) as parent:
        fcntl.ioctl(parent, SNAP_CREATE_V2, bytearray(VOL_ARGS_V2.pack(origin, 0, flags, os.fsencode(target.name))))


def subvolume_id(subvolume: Path) -> int:
    with _opened(subvolume) as directory:
        answer = bytearray(INO_LOOKUP_ARGS.pack(0, BTRFS_FIRST_FREE_OBJECTID, b""))
        fcntl.ioctl(directory, INO_LOOKUP, answer)
    return int(INO_LOOKUP_ARGS.unpack(answer)[0])


def limit_referenced(subvolume: Path, limit_bytes: int | None) -> None:
    """Fails with ENOTCONN while quotas are off."""
    limit = NO_LIMIT if limit_bytes is None else limit_bytes
    arguments = QGROUP_LIMIT_ARGS.pack(subvolume_id(subvolume), BTRFS_QGROUP_LIMIT_MAX_RFER, limit, 0, 0, 0)
    # By way of its parent: a volume that holds more than its limit refuses even the call that raises it.
    with _opened(subvolume.parent) as directory:
        fcntl.ioctl(directory, QGROUP_LIMIT, bytearray(arguments))


def counting_is_lost(directory: Path) -> bool:
    """Whether the kernel has given up counting what the volumes of this filesystem refer to, and with it their limits, until
    somebody asks for a rescan."""
    with _opened(directory) as opened:
        answer = bytearray(FS_INFO_ARGS.size)
        fcntl.ioctl(opened, FS_INFO, answer)
    fsid = UUID(bytes=FS_INFO_ARGS.unpack(answer)[2])
    return Path(f"/sys/fs/btrfs/{fsid}/qgroups/inconsistent").read_text().strip() == "1"


def count_again(directory: Path) -> None:
    """Reads all metadata of the filesystem; returns when that is done. Nothing else waits for it."""
    with _opened(directory) as opened:
        try:
            fcntl.ioctl(opened, QUOTA_RESCAN, bytearray(RESCAN_ARGS.size))
        except OSError as error:
            if error.errno != errno.EINPROGRESS:
                raise
        fcntl.ioctl(opened, QUOTA_RESCAN_WAIT)


@contextmanager
def _opened(directory: Path) -> Generator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
