"""The pool: a btrfs filesystem on a sparse loop file, where images and offices live; a plain directory without btrfs.

The pool is mounted `nosuid,nodev`: set-user-id programs inside an office are its own business (the sandbox's kernel
honours them), and must mean nothing to the host.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from tenure.errors import SetupError
from tenure.settings import Settings
from tenure.setup.commands import run, succeeds
from tenure.setup.progress import SetupProgress, SilentProgress
from tenure.setup.system import filesystem_at, free_bytes, may_mount

MOUNT_OPTIONS = "noatime,nosuid,nodev"
MOUNT_TIMEOUT_S = 60
MKFS_TIMEOUT_S = 120
PROBE_TIMEOUT_S = 20
POOL_BYTES_MIN = 4 * 1024**3
"""Below this the image and a few offices do not fit; a smaller pool is made only when it is asked for."""
RESERVE_BYTES = 2 * 1024**3
"""What a full pool leaves to the machine: a sparse file that cannot grow would break every office at once."""
LOOP_CONTROL = Path("/dev/loop-control")
LOOP_CTL_GET_FREE = 0x4C82
LOOP_MAJOR = 7
LOOP_CONTROL_DEVICE = (10, 237)
POOL_MARK = ".tenure-pool"
"""At the top of every pool: a home on somebody's own btrfs must not be taken for one."""
MOUNT_LOCK = "pool.lock"
DIRECTORY_MARK = ".plain-directory"


def is_mounted(settings: Settings) -> bool:
    """Whether the pool directory is (or lies in) a mounted pool now."""
    if not settings.pool_dir.exists():
        return False
    filesystem, mount_point = filesystem_at(settings.pool_dir)
    return filesystem == "btrfs" and (mount_point / POOL_MARK).exists()


def is_plain_directory(settings: Settings) -> bool:
    """Whether set-up had to do without btrfs here."""
    return not settings.pool_file.exists() and (settings.pool_dir / DIRECTORY_MARK).exists()


def is_ready(settings: Settings) -> bool:
    """Whether nothing is left to do: mounted with quotas on, or a plain directory."""
    return is_plain_directory(settings) or (is_mounted(settings) and quota_on(settings))


def quota_on(settings: Settings) -> bool:
    """Whether disk limits are counted in the pool."""
    return succeeds(["btrfs", "qgroup", "show", settings.pool_dir], timeout_s=PROBE_TIMEOUT_S)


def ensure_pool_mounted(settings: Settings) -> None:
    """Mounts the pool again after a reboot; the server calls it at every start, and now and then. Does nothing when it is there.
    Where an old mount of it is still held, unmounted lazily, its loop device is used again: a second one of the same file
    would ruin it.

    Raises `SetupError` when there is no pool yet, or when it cannot be mounted: never falls back to an empty directory,
    in which the offices would seem to be lost.
    """
    if is_mounted(settings) or is_plain_directory(settings):
        return
    if not settings.pool_file.exists():
        raise SetupError(f"There is no pool at {settings.home} yet.", hint="`tenure setup` makes it.")
    with settings.home.joinpath(MOUNT_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_mounted(settings):  # else somebody else was faster
            _mount(settings)


def plan(settings: Settings) -> str:
    """What `ensure_pool` will do, in words."""
    if settings.pool_file.exists():
        return f"mount the pool {settings.pool_file} at {settings.pool_dir}"
    size = pool_size(settings.pool_bytes, free_bytes(settings.home))
    return f"make a btrfs pool of {size / 1024**3:.0f} GB in the sparse file {settings.pool_file}"


def ensure_pool(settings: Settings, progress: SetupProgress | None = None) -> None:
    """Makes the pool if there is none, mounts it, turns quotas on. May be called at any time."""
    progress = progress or SilentProgress()
    settings.pool_dir.mkdir(parents=True, exist_ok=True)
    if not settings.pool_file.exists() and not is_mounted(settings):
        obstacle = _obstacle()
        if obstacle is None:
            obstacle = _create(settings, progress)
        if obstacle is not None:
            _use_plain_directory(settings, obstacle, progress)
    if not is_plain_directory(settings):
        ensure_pool_mounted(settings)
        if not quota_on(settings):
            run(
                ["btrfs", "quota", "enable", settings.pool_dir],
                doing="Turning on disk limits",
                timeout_s=MOUNT_TIMEOUT_S,
            )
    for directory in (settings.pool_dir, settings.images_dir, settings.volumes_dir, settings.snapshots_dir):
        directory.mkdir(parents=True, exist_ok=True)
        if not directory.is_symlink():
            directory.chmod(0o711)  # users of office databases pass through; nobody lists


def pool_size(wanted_bytes: int, disk_free_bytes: int) -> int:
    """The size to make the pool: as wanted, or what the disk can bear. Raises `SetupError` when that is too little."""
    size = min(wanted_bytes, disk_free_bytes - RESERVE_BYTES)
    needed = min(wanted_bytes, POOL_BYTES_MIN)
    if size < needed:
        raise SetupError(
            f"The disk has {disk_free_bytes / 1024**3:.1f} GB free; the pool needs {needed / 1024**3:.1f} GB "
            f"and leaves {RESERVE_BYTES / 1024**3:.0f} GB to the machine.",
            hint="Free some disk, or set TENURE_HOME to a directory on a larger one.",
        )
    return size


def _obstacle() -> str | None:
    """Why a btrfs pool cannot work here, or None."""
    if not may_mount():
        return "this process may not mount filesystems (a container without CAP_SYS_ADMIN?)"
    if not kernel_has_btrfs():
        return "the kernel has no btrfs"
    if not loop_devices_work():
        return "the kernel offers no loop devices"
    return None


def kernel_has_btrfs() -> bool:
    """Whether btrfs can be mounted, loading its module if need be."""
    return _listed_btrfs() or (succeeds(["modprobe", "btrfs"], timeout_s=PROBE_TIMEOUT_S) and _listed_btrfs())


def _listed_btrfs() -> bool:
    return "btrfs" in Path("/proc/filesystems").read_text().split()


def loop_devices_work() -> bool:
    """Whether there is a free loop device, making its node where nothing populates `/dev` (containers)."""
    if not LOOP_CONTROL.exists():
        succeeds(["modprobe", "loop"], timeout_s=PROBE_TIMEOUT_S)
        if "loop" not in Path("/proc/devices").read_text().split():
            return False
        with contextlib.suppress(OSError):
            os.mknod(LOOP_CONTROL, 0o600 | stat.S_IFCHR, os.makedev(*LOOP_CONTROL_DEVICE))
    try:
        with LOOP_CONTROL.open("rb") as control:
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
        node = Path(f"/dev/loop{number}")
        if not node.exists():
            os.mknod(node, 0o660 | stat.S_IFBLK, os.makedev(LOOP_MAJOR, number))
    except OSError:
        return False
    return True


def _create(settings: Settings, progress: SetupProgress) -> str | None:
    """Makes and mounts a new pool; returns the obstacle when the kernel refuses to mount it."""
    size = pool_size(settings.pool_bytes, free_bytes(settings.home))
    if size < settings.pool_bytes:
        progress.notice(
            f"the pool gets {size / 1024**3:.0f} GB instead of {settings.pool_bytes / 1024**3:.0f} GB: "
            "that is what the disk can bear"
        )
    fresh = settings.pool_file.with_name(settings.pool_file.name + ".new")
    with fresh.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(size)
    run(["mkfs.btrfs", "--quiet", "--label", "tenure", fresh], doing="Making the pool", timeout_s=MKFS_TIMEOUT_S)
    fresh.rename(settings.pool_file)
    try:
        _mount(settings)
    except SetupError as error:
        settings.pool_file.unlink()
        return error.message
    (settings.pool_dir / POOL_MARK).write_text("A pool of Tenure: `tenure setup` made it.\n")
    return None


def _mount(settings: Settings) -> None:
    settings.pool_dir.mkdir(parents=True, exist_ok=True)
    loop_devices_work()
    run(
        ["mount", "-t", "btrfs", "-o", f"loop,{MOUNT_OPTIONS}", settings.pool_file, settings.pool_dir],
        doing="Mounting the pool",
        timeout_s=MOUNT_TIMEOUT_S,
        hint="`dmesg | tail` may say more; the pool is checked with `btrfs check` on the pool file.",
    )


def _use_plain_directory(settings: Settings, obstacle: str, progress: SetupProgress) -> None:
    progress.notice(
        f"no btrfs pool: {obstacle}. Offices become plain directories: creating one copies the whole image, "
        "disk limits are recorded but not enforced, and snapshots are not atomic."
    )
    (settings.pool_dir / DIRECTORY_MARK).write_text(f"{obstacle}\n")
