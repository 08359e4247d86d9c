"""The Debian packages that Tenure stands on, and where runsc comes from on each release."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tenure.errors import SetupError
from tenure.setup import apt_sources
from tenure.setup.commands import find_tool, run, succeeds
from tenure.setup.progress import SetupProgress
from tenure.setup.system import release

APT_DIR = Path("/etc/apt")
BACKPORTS_FILE = "tenure-backports.sources"
RUNSC_DATE_MIN = 20240700
"""Releases before mid-2024 (bookworm's own) lack `--host-uds=open` as the door needs it."""
APT_UPDATE_TIMEOUT_S = 300
APT_INSTALL_TIMEOUT_S = 900
PROBE_TIMEOUT_S = 20
LOCK_WAIT_S = 120
"""How long apt waits for another apt (unattended upgrades on a fresh machine) before it gives up."""


@dataclass(frozen=True)
class Need:
    """A Debian package and the programs of it that Tenure calls."""

    package: str
    programs: tuple[str, ...]


NEEDS = (
    Need("runsc", ("runsc",)),
    Need("btrfs-progs", ("btrfs", "mkfs.btrfs")),
    Need("mmdebstrap", ("mmdebstrap",)),
    Need("mount", ("mount", "umount", "losetup")),
    Need("util-linux", ("unshare", "setpriv", "prlimit", "choom")),
    Need("openssh-client", ("ssh", "ssh-keygen")),
)


def missing() -> list[str]:
    """Packages that have to be installed: a program is absent, or runsc is too old."""
    found = [need.package for need in NEEDS if not all(find_tool(program) for program in need.programs)]
    if "runsc" not in found and (date := runsc_date()) is not None and date < RUNSC_DATE_MIN:
        found.insert(0, "runsc")
    return found


def runsc_version() -> str | None:
    """What `runsc --version` calls itself, or None when it does not run."""
    if find_tool("runsc") is None:
        return None
    try:
        output = run(["runsc", "--version"], doing="Asking runsc for its version", timeout_s=PROBE_TIMEOUT_S)
    except SetupError:
        return None
    match = re.search(r"runsc version (\S+)", output)
    return match[1] if match else None


def runsc_date() -> int | None:
    """The date in runsc's version, e.g. 20240729; None when runsc is missing or names no date."""
    match = re.search(r"(20\d{6})", runsc_version() or "")
    return int(match[1]) if match else None


def backports_needed(codename: str) -> bool:
    """Only bookworm's own runsc is too old; later releases have a good one in main."""
    return codename == "bookworm"


def install(packages: list[str], progress: SetupProgress, apt_dir: Path = APT_DIR) -> None:
    """Installs `packages`, adding backports of the machine's own mirror when runsc needs it.

    Raises `SetupError` when a package cannot be had, with apt's last words.
    """
    codename = release().codename
    from_backports = "runsc" in packages and backports_needed(codename)
    if from_backports:
        ensure_backports(codename, progress, apt_dir)
    progress.update(0.0, "reading the package lists")
    run(
        ["apt-get", "-q", "-o", f"DPkg::Lock::Timeout={LOCK_WAIT_S}", "update"],
        doing="Reading the package lists",
        timeout_s=APT_UPDATE_TIMEOUT_S,
        on_line=lambda line: progress.update(0.1, line),
        hint="Check the network and the apt sources with `apt-get update`.",
    )
    wanted = [f"{name}/{codename}-backports" if name == "runsc" and from_backports else name for name in packages]
    for name in packages:
        if not succeeds(["apt-cache", "show", "--no-all-versions", name], timeout_s=PROBE_TIMEOUT_S):
            raise SetupError(
                f"The apt sources of this machine have no package {name}.",
                hint=f"Add an entry for Debian {codename}, component main, to /etc/apt/sources.list.d and run it again.",
            )
    meter = AptMeter()
    options = ("-o", f"DPkg::Lock::Timeout={LOCK_WAIT_S}", "-o", "Dpkg::Options::=--force-confold")
    run(
        ["apt-get", "-q", "-y", *options, "install", "--no-install-recommends", *wanted],
        doing=f"Installing {', '.join(packages)}",
        timeout_s=APT_INSTALL_TIMEOUT_S,
        on_line=lambda line: progress.update(0.2 + 0.8 * meter.feed(line), line),
    )
    still = missing()
    if still:
        raise SetupError(f"apt installed everything, yet {', '.join(still)} cannot be used.")


def ensure_backports(codename: str, progress: SetupProgress, apt_dir: Path = APT_DIR) -> Path | None:
    """Makes the backports suite available; returns the file that was written, None when an entry exists already."""
    sources = apt_sources.read_sources(apt_dir)
    archive = require_archive(sources, codename)
    if apt_sources.find_suite(sources, f"{codename}-backports", archive):
        return None
    target = apt_dir / "sources.list.d" / BACKPORTS_FILE
    entry = apt_sources.backports_of(archive, codename)
    progress.notice(f"adding {target}: {codename}-backports from {entry.uris[0]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"# Added by `tenure setup`: runsc in {codename} itself is too old.\n{entry.render()}")
    return target


def require_archive(sources: Iterable[apt_sources.Source], codename: str) -> apt_sources.Source:
    """The entry for Debian's archive. Raises `SetupError` when the machine has none."""
    archive = apt_sources.find_archive(sources, codename)
    if archive is None:
        raise SetupError(
            f"The apt sources of this machine have no entry for Debian {codename}, component main.",
            hint="Restore /etc/apt/sources.list.d/debian.sources (or /etc/apt/sources.list), then run it again.",
        )
    return archive


class AptMeter:
    """Reads apt's and dpkg's output and says how far an installation is, as a fraction that never falls.

    Downloads count for 40 %, unpacking and setting up for 30 % each. `packages_expected` keeps an installation in several
    rounds (mmdebstrap's) from looking done after the first.
    """

    def __init__(self, packages_expected: int = 1) -> None:
        self._expected = packages_expected
        self._packages = 0
        self._seen = {"Get:": 0, "Unpacking": 0, "Setting up": 0}
        self._best = 0.0

    def feed(self, line: str) -> float:
        """Takes one line of output; returns the fraction done."""
        match = re.match(r"\d+ upgraded, (\d+) newly installed", line)
        if match:
            self._packages += int(match[1])
        for word in self._seen:
            if line.startswith(word):
                self._seen[word] += 1
        total = max(self._packages, self._expected)
        weights = {"Get:": 0.4, "Unpacking": 0.3, "Setting up": 0.3}
        now = sum(weight * min(self._seen[word] / total, 1.0) for word, weight in weights.items())
        self._best = max(self._best, now)
        return self._best
