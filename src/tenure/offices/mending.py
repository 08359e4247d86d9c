"""What an office's volume has to hold, and what its image can lend where that is lost.

Lending gives back only what is missing, or what is not as its own package made it: nothing of the agent's is touched, so it
needs nobody's consent. The volume's office must not run: a sandbox does not see what changes under it.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tenure.errors import VolumeError
from tenure.offices.clones import OFFICE_FILE, OFFICE_FILE_BYTES_MAX, renew_generation, write_office_file
from tenure.offices.models import OfficeRecord
from tenure.offices.rootfs import facts_of, lend_file, make_directory, read_file, remove_file
from tenure.offices.tools import tool_environment
from tenure.postgres.process import PID_FILE, find_postmaster
from tenure.settings import Settings

PARTS = ("rootfs", "postgres", "objects")
LINKS = ("bin", "lib", "lib64", "sbin")
"""In the root, links into /usr: without them nothing is where it is looked for."""
ESSENTIAL = (
    "etc/passwd",
    "etc/group",
    "usr/bin/bash",
    "usr/bin/sh",
    "usr/bin/env",
    "usr/bin/dpkg",
    "usr/bin/tini-static",
    "usr/sbin/sshd",
)
"""Looked at before each boot, so few. Of users, `agent` is looked for, too."""
DIRECTORIES = ("home/agent", "root", "run", "tmp", "var/lib/tenure", "var/tmp")
"""Of the agent's own content nothing is lent, but where it goes is."""
SPOOL = "var/lib/tenure"
LOST_MANY = 3
"""So many of `ESSENTIAL` are not lost by one mistake: then every file of the image is looked at."""
LENT = ("usr", "etc", "var/lib/dpkg")
"""Where the image's files are the system's, not the agent's."""
KEPT = ("etc/ssh/", "etc/hostname", "etc/hosts", "etc/machine-id", "etc/resolv.conf", "usr/local/")
"""Which every office has for itself."""
DPKG_STATUS = "var/lib/dpkg/status"
COPY_TIMEOUT_S = 600.0
CONTROL_FILE_BYTES = 8192
DATABASE_FILES = ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf", "PG_VERSION")
"""Configuration that an office cannot change by any statement that it may make: the image's is right."""
DATABASE_DIRECTORIES = (
    "base", "global", "pg_wal", "pg_xact", "pg_multixact", "pg_subtrans", "pg_tblspc", "pg_notify", "pg_serial", "pg_snapshots",
    "pg_stat", "pg_stat_tmp", "pg_replslot", "pg_twophase", "pg_dynshmem", "pg_commit_ts", "pg_logical",
    "pg_logical/snapshots", "pg_logical/mappings",
)  # fmt: skip


def image_of(settings: Settings, record: OfficeRecord) -> Path:
    """The image that the office was made of, or where that is gone the current one."""
    own = settings.images_dir / record.image
    return own if own.exists() else settings.images_dir / "current"


# --- before each boot ------------------------------------------------------------------------------------------------
def lend(settings: Settings, record: OfficeRecord, volume: Path) -> tuple[list[str], list[str]]:
    """What was lent, and the damage that lending cannot mend. Takes a millisecond when nothing is lost."""
    damage = [f"{part}/ is missing" for part in PARTS if not _is_directory(volume / part)]
    owner = _owner(volume)
    if owner is not None and owner != record.name:
        damage.append(f"it is the volume of {owner}")
    if damage:
        return [], damage
    lent: list[str] = []
    if owner is None:
        write_office_file(volume, record, None)
        lent.append(f"{OFFICE_FILE} was not readable")
    image, root = image_of(settings, record) / "rootfs", volume / "rootfs"
    try:
        lost = [path for path in (*LINKS, *ESSENTIAL) if _is_lost(root, image, path)]
        if len(lost) >= LOST_MANY:
            lent += lend_missing(root, image)
        for path in DIRECTORIES:
            found = facts_of(root, path)
            if path == SPOOL and found is not None and not stat.S_ISDIR(found.st_mode):
                remove_file(root, path)  # nobody's but ours, and jobs cannot run without
                found = None
            if found is None and (image / path).is_dir():
                _make_directory(root, image, path)
                lent.append(f"{path}/ was missing")
        for path in lost:
            if _is_lost(root, image, path):
                lend_file(root, path, image / path)
                lent.append(f"{path} was missing")
    except VolumeError as error:  # a full disk, or a root made to be hard to mend: the probe tells whether it matters
        lent.append(f"not all: {error.message}")
    if lent:
        renew_generation(volume)  # a memory image knows the root as it was
    return lent, []


def _is_lost(root: Path, image: Path, path: str) -> bool:
    try:
        wanted = (image / path).lstat()
    except OSError:
        return False
    found = facts_of(root, path)
    if found is None:
        return True
    if path == "etc/passwd":
        users = read_file(root, path) or b""
        return not any(line.startswith(b"agent:") for line in users.splitlines())
    # An agent may have put a link or a newer version in its place, but not nothing, and not what cannot run.
    return stat.S_ISREG(found.st_mode) and bool(
        found.st_size == 0 or stat.S_IMODE(wanted.st_mode) & 0o111 & ~stat.S_IMODE(found.st_mode)
    )


def _make_directory(root: Path, image: Path, path: str) -> None:
    facts = (image / path).stat()
    make_directory(root, path, stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid)


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _owner(volume: Path) -> str | None:
    """Whose volume it says that it is; None when it says nothing that can be read."""
    try:
        with (volume / OFFICE_FILE).open("rb") as file:
            facts = json.loads(file.read(OFFICE_FILE_BYTES_MAX))
        return str(facts["agent"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def database_damage(volume: Path) -> list[str]:
    """What is seen from outside. Most damage is found by PostgreSQL only, when it is started."""
    data = volume / "postgres"
    control = data / "global/pg_control"
    try:
        if control.stat().st_size != CONTROL_FILE_BYTES:
            return ["pg_control has been cut"]
    except OSError as error:
        return [f"pg_control: {error.strerror}"]
    return []


# --- when something is wrong -----------------------------------------------------------------------------------------
def lend_missing(root: Path, image: Path, *, changed: bool = False) -> list[str]:
    """Gives back the system files that are missing; with `changed` also those that are not as the image has them, of packages
    in the same version. Packages that the office removed stay removed. Takes seconds. Returns what was lent, in short."""
    lent = 0
    examples: list[str] = []
    skipped = _files_of_removed(root, image)
    whole = _lend_whole_trees(root, image, skipped)
    theirs, ours = installed(root), installed(image)
    newer = _files_of({name for name, version in ours.items() if theirs.get(name, version) != version}, image)
    for path in _tree(image):
        if path in skipped or path.startswith(KEPT):
            continue
        source = image / path
        if source.is_dir() and not source.is_symlink():
            if facts_of(root, path) is None:
                _make_directory(root, image, path)
            continue
        found = facts_of(root, path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            continue
        if found is None or (
            changed and path not in newer and not path.startswith("etc/") and _differs(root, path, source, found)
        ):
            lend_file(root, path, source)
            lent += 1
            examples.append(path)
    if lent:
        whole.append(f"{lent} files of the system ({', '.join(examples[:5])}{', …' if lent > 5 else ''})")
    return whole


def _lend_whole_trees(root: Path, image: Path, skipped: set[str]) -> list[str]:
    """Those that are missing as a whole, by `cp`, which takes a tenth of the time. Nothing of the agent's is on their way."""
    lent: list[str] = []
    for top in (top for top in LENT if "/" not in top):
        if facts_of(root, top) is None and not (image / top).is_symlink():
            words = ["cp", "--archive", "--reflink=auto", "--", str(image / top), str(root / top)]
            done = subprocess.run(
                words, capture_output=True, timeout=COPY_TIMEOUT_S, env=tool_environment(), check=False
            )
            if done.returncode:
                raise VolumeError(f"/{top} could not be lent: {done.stderr.decode('utf-8', 'replace')[-300:]}")
            for path in skipped:
                if path.startswith(f"{top}/"):
                    (root / path).unlink(missing_ok=True)
            lent.append(f"/{top} as a whole")
    return lent


def _tree(image: Path) -> Iterator[str]:
    """Paths of the image's system files and directories, directories first."""
    for top in (*LINKS, *LENT):
        if (image / top).is_symlink():
            yield top
            continue
        for directory, names, files in os.walk(image / top):
            here = Path(directory)
            yield str(here.relative_to(image))
            for name in (*files, *(name for name in names if (here / name).is_symlink())):
                yield str((here / name).relative_to(image))


def _differs(root: Path, path: str, source: Path, found: os.stat_result) -> bool:
    wanted = source.lstat()
    if stat.S_IFMT(wanted.st_mode) != stat.S_IFMT(found.st_mode):
        return True
    if stat.S_ISLNK(wanted.st_mode):
        return False  # where a link leads is chosen (alternatives), and seldom lost
    if (found.st_size, stat.S_IMODE(found.st_mode)) != (wanted.st_size, stat.S_IMODE(wanted.st_mode)):
        return True
    if (found.st_ino, found.st_mtime_ns) == (wanted.st_ino, wanted.st_mtime_ns):
        return False  # a clone keeps both
    return read_file(root, path) != source.read_bytes()


def installed(root: Path) -> dict[str, str]:
    """Installed packages and their versions by dpkg's own record; empty when that cannot be read."""
    text = (read_file(root, DPKG_STATUS) or b"").decode("utf-8", "replace")
    found: dict[str, str] = {}
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] not in " \t")
        if fields.get("Status", "").endswith(" installed"):
            found[fields.get("Package", "")] = fields.get("Version", "")
    return found


def _files_of_removed(root: Path, image: Path) -> set[str]:
    """Files of packages that the image has and the office no longer."""
    theirs, ours = installed(root), installed(image)
    return _files_of(set(ours) - set(theirs), image) if theirs else set()


def _files_of(packages: set[str], image: Path) -> set[str]:
    files: set[str] = set()
    for listing in (image / "var/lib/dpkg/info").glob("*.list"):
        if listing.stem.partition(":")[0] in packages:
            for line in listing.read_text().splitlines():
                path = line.lstrip("/")
                files.add(f"usr/{path}" if path.startswith(tuple(f"{link}/" for link in LINKS)) else path)
    return {path for path in files if not (image / path).is_dir()}


def mend_database(data: Path, template: Path) -> list[str]:
    """Gives back what PostgreSQL needs beside the data itself. Nothing runs on `data`."""
    mended: list[str] = []
    owner = data.stat()
    if (running := find_postmaster(data)) is not None:
        running.close()
        return []
    if os.path.lexists(data / PID_FILE):
        (data / PID_FILE).unlink()
        mended.append(f"{PID_FILE} removed")
    for name in DATABASE_DIRECTORIES:
        if not _is_directory(data / name) and name not in ("base", "global", "pg_wal", "pg_xact", "pg_multixact"):
            (data / name).mkdir(mode=0o700, parents=True)
            os.chown(data / name, owner.st_uid, owner.st_gid)
            mended.append(f"{name}/ made")
    for name in DATABASE_FILES:
        content = (template / name).read_bytes()
        found = data / name
        if found.is_symlink() or not found.is_file() or found.read_bytes() != content:
            fresh = data / f".{name}.new"
            fresh.write_bytes(content)
            fresh.chmod(0o600)
            os.chown(fresh, owner.st_uid, owner.st_gid)
            fresh.replace(found)
            mended.append(f"{name} as in the image")
    return mended
