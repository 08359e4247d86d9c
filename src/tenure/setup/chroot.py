"""Runs a script inside an image's root without leaving a trace in it, even when the image is read-only.

The mounts live in a mount namespace that ends with the script: a killed set-up leaves no mount behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tenure.setup.commands import run

DEVICES = ("null", "zero", "urandom")
"""The pool is mounted without devices; these are lent by the host."""
_ENTER = """\
set -eu
root=$1 script=$2
shift 2
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
for device in null zero urandom; do mount --bind "/dev/$device" "$root/dev/$device"; done
while [ "$1" != -- ]; do cp -- "$1" "$root/tmp/$2"; shift 2; done
shift
chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 TMPDIR=/tmp /bin/sh -euc "$script"
while [ $# -gt 0 ]; do cp -- "$root/tmp/$2" "$1"; shift 2; done
"""


def prepare_devices(rootfs: Path) -> None:
    """Makes the files that the host's devices are mounted on; call it while the image is writable."""
    for device in DEVICES:
        target = rootfs / "dev" / device
        if not target.exists():
            target.touch()


def run_inside(
    rootfs: Path,
    script: str,
    *,
    doing: str,
    timeout_s: float,
    bring: Mapping[str, Path] | None = None,
    take: Mapping[str, Path] | None = None,
) -> str:
    """Runs the shell script with `rootfs` as `/` and an empty `/tmp`; returns its output. Raises `SetupError`.

    `bring` copies host files to `/tmp/<name>` before; `take` copies `/tmp/<name>` out to host files after.
    """
    brought = [word for name, path in (bring or {}).items() for word in (str(path), name)]
    taken = [word for name, path in (take or {}).items() for word in (str(path), name)]
    enter = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", _ENTER, "enter"]
    return run(
        [*enter, str(rootfs), script, *brought, "--", *taken],
        doing=doing,
        timeout_s=timeout_s,
    )
