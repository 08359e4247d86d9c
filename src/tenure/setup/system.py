"""Facts about the machine that set-up and doctor ask for: release, kernel, memory of mounts. Reads, changes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tenure.errors import SetupError

CAP_SYS_ADMIN = 21
OLDEST_DEBIAN = 12


@dataclass(frozen=True)
class Release:
    """The Debian release: `codename` as in apt suites; `version` is None for testing and unstable."""

    codename: str
    version: int | None
    pretty_name: str


def parse_os_release(text: str) -> Release:
    """Reads `/etc/os-release`. Raises `SetupError` for other distributions and releases that are too old."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        fields[name.strip()] = value.strip().strip("\"'")
    pretty = fields.get("PRETTY_NAME", "an unknown system")
    version = int(fields["VERSION_ID"]) if fields.get("VERSION_ID", "").isdigit() else None
    codename = fields.get("VERSION_CODENAME", "")
    if fields.get("ID") != "debian" or not codename or (version is not None and version < OLDEST_DEBIAN):
        raise SetupError(
            f"This machine runs {pretty}; Tenure sets itself up on Debian {OLDEST_DEBIAN} or newer.",
            hint="Use a Debian 12 or 13 machine (a virtual machine will do).",
        )
    return Release(codename, version, pretty)


def release(os_release: Path = Path("/etc/os-release")) -> Release:
    """The release of this machine. Raises `SetupError` as `parse_os_release` does."""
    try:
        text = os_release.read_text()
    except OSError:
        text = ""
    return parse_os_release(text)


def filesystem_at(path: Path, mountinfo: str | None = None) -> tuple[str, Path]:
    """Type and mount point of the filesystem that holds `path`, from the kernel's own table."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    resolved = path.resolve() if mountinfo is None else path
    best: tuple[str, Path] = ("", Path("/"))
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        mount_point = Path(_unescape(before.split()[4]))
        if resolved.is_relative_to(mount_point) and len(mount_point.parts) >= len(best[1].parts):
            best = (after.split()[0], mount_point)  # later lines hide earlier ones at the same place
    return best


def _unescape(text: str) -> str:
    """The kernel writes blanks in paths as octal escapes."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def may_mount() -> bool:
    """Whether this process may mount filesystems: root in most containers may not."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    return False


def free_bytes(path: Path) -> int:
    """What an unprivileged writer could still write at `path` (or its nearest existing parent)."""
    while not path.exists():
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def require_root(doing: str) -> None:
    """Raises `SetupError` unless this process is root."""
    if os.geteuid() != 0:
        raise SetupError(f"{doing} needs root.", hint="Run it with sudo, for example `sudo .venv/bin/tenure setup`.")
