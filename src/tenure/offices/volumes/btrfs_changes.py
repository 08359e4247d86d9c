"""What btrfs knows of changes: every inode carries the number of the transaction that changed it last, and so does every block
of the tree that inodes are in. So what changed since a snapshot is found without looking at the rest. All calls block and
raise `OSError`; they need root.
"""

from __future__ import annotations

import fcntl
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

from tenure.offices.volumes.base import Origin

_MAGIC = 0x94
_SUBVOLUME_INFO_BYTES = 504
"""struct btrfs_ioctl_get_subvol_info_args: treeid u64, name[256], parent_id, dirid, generation, flags u64, uuid[16],
parent_uuid[16], received_uuid[16], ctransid, otransid u64, …"""
_AT_PARENT_UUID, _AT_OTRANSID = 312, 352
_GET_SUBVOL_INFO = 2 << 30 | _SUBVOLUME_INFO_BYTES << 16 | _MAGIC << 8 | 60
_KEY = struct.Struct("=QQQQQQQIIII4Q")
"""struct btrfs_ioctl_search_key: tree_id, min/max objectid, min/max offset, min/max transid, min/max type, nr_items."""
_HEADER = struct.Struct("=QQQII")
"""struct btrfs_ioctl_search_header: transid, objectid, offset, type, len."""
_BUFFER_BYTES = 256 * 1024
_SEARCH_V2 = 3 << 30 | (_KEY.size + 8) << 16 | _MAGIC << 8 | 17
_INODE_ITEM = 1
_INODE_TRANSID = struct.Struct("<8xQ")
"""struct btrfs_inode_item: generation u64, transid u64, …"""
_MOST = 2**64 - 1


def origin_of_snapshot(snapshot: Path) -> Origin:
    info = bytearray(_SUBVOLUME_INFO_BYTES)
    descriptor = os.open(snapshot, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _GET_SUBVOL_INFO, info)
    finally:
        os.close(descriptor)
    parent = uuid.UUID(bytes=bytes(info[_AT_PARENT_UUID : _AT_PARENT_UUID + 16]))
    (generation,) = struct.unpack_from("=Q", info, _AT_OTRANSID)
    return Origin(parent.hex, generation)


def all_changed_inodes(snapshot: Path, generation: int) -> frozenset[int]:
    return frozenset(changed_inodes(snapshot, generation))


def changed_inodes(snapshot: Path, generation: int) -> Iterator[int]:
    """The numbers of the inodes in `snapshot` that were made or changed, in content or metadata, in the transaction
    `generation` or later."""
    descriptor = os.open(snapshot, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        first = (0, 0, 0)
        while True:
            last: tuple[int, int, int] | None = None
            for objectid, kind, offset, item in _search(descriptor, first, generation):
                last = (objectid, kind, offset)
                if kind == _INODE_ITEM and _INODE_TRANSID.unpack_from(item)[0] >= generation:
                    yield objectid
            if last is None:
                return
            first = _following(last)
    finally:
        os.close(descriptor)


def _following(key: tuple[int, int, int]) -> tuple[int, int, int]:
    objectid, kind, offset = key
    if offset < _MOST:
        return objectid, kind, offset + 1
    return (objectid, kind + 1, 0) if kind < 255 else (objectid + 1, 0, 0)


def _search(descriptor: int, first: tuple[int, int, int], generation: int) -> Iterator[tuple[int, int, int, bytes]]:
    """(objectid, type, offset, item) from the key `first` on, of blocks that changed since; as many as fit."""
    objectid, kind, offset = first
    # The bounds are of whole keys: objectid, type, offset as one number.
    key = _KEY.pack(0, objectid, _MOST, offset, _MOST, generation, _MOST, kind, 255, 2**32 - 1, 0, 0, 0, 0, 0)
    buffer = bytearray(key + struct.pack("=Q", _BUFFER_BYTES) + bytes(_BUFFER_BYTES))
    fcntl.ioctl(descriptor, _SEARCH_V2, buffer)
    count = _KEY.unpack_from(buffer)[9]
    at = _KEY.size + 8
    for _ in range(count):
        _, found_id, found_offset, found_kind, length = _HEADER.unpack_from(buffer, at)
        at += _HEADER.size
        yield found_id, found_kind, found_offset, bytes(buffer[at : at + length])
        at += length
