"""Rebuilding an office: a new root from the image, with the agent's work of the old one, and what was installed installed again.

The work is what lies in `CARRIED`, the database and the objects; users with a home of their own stay, and so does the key by
which people know the machine. The rest of the old root, configuration below /etc included, is in the snapshot that is taken
first: restoring that undoes it all. The new volume is made and tried beside the office and put in place by a rename, so
whoever dies in between leaves the old volume or the new one, whole.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tenure.errors import SandboxError, VolumeError
from tenure.faultpoints import reach
from tenure.offices.clones import Clones, write_office_file
from tenure.offices.mending import image_of, installed
from tenure.offices.models import OfficeRecord, OfficeView, SnapshotRecord
from tenure.offices.office import OfficeParts
from tenure.offices.rootfs import exists_in, names_in, read_file, write_file
from tenure.offices.tools import run_tool
from tenure.offices.trials import Trials

CARRIED = ("home", "root", "srv", "opt", "usr/local", "var/lib/tenure", "var/spool/cron", "var/www", "var/local")
"""Directories of the old root that are the agent's work."""
HOST_KEYS = ("etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_ed25519_key.pub")
SETUP_SCRIPT = "home/agent/.config/tenure/setup.sh"
COPY_TIMEOUT_S = 600.0
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,100}\Z")
PIP_PACKAGE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,100})-([0-9][A-Za-z0-9.!+]{0,60})\.dist-info\Z")
PACKAGES_MAX = 2000
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
USER_IDS = range(1000, 60_000)
OLD_ROOT = "rootfs.old"


@dataclass(frozen=True)
class SetUp:
    """What was installed in an office beyond its image, as its own records say, and is installed again after a rebuild."""

    packages: tuple[str, ...] = ()
    """Of Debian, those that were asked for; what they need comes with them."""
    pip: tuple[str, ...] = ()
    """NAME==VERSION, in the system's directories; those of the agent's own lie in its home."""
    script: bool = False
    """Whether the agent has a script of its own, `~/.config/tenure/setup.sh`, which runs last, as the agent."""

    def __bool__(self) -> bool:
        return bool(self.packages or self.pip or self.script)


@dataclass(frozen=True)
class Rebuilt:
    """What `rebuild` did: `before` brings back what was there. `set_up` goes on in the office."""

    agent: OfficeView
    before: SnapshotRecord
    set_up: SetUp


def recorded_set_up(root: Path, image: Path) -> SetUp:
    """What the records in `root` say was installed beyond `image`. The agent may have written anything there: only what can
    be a package's name comes through."""
    added = set(installed(root)) - set(installed(image))
    automatic = _automatic(root)
    asked_for = sorted(name for name in added - automatic if PACKAGE.match(name))
    pip = {f"{found[1]}=={found[2]}" for name in _dist_infos(root) if (found := PIP_PACKAGE.match(name))}
    return SetUp(tuple(asked_for[:PACKAGES_MAX]), tuple(sorted(pip)[:PACKAGES_MAX]), exists_in(root, SETUP_SCRIPT))


def _automatic(root: Path) -> set[str]:
    """Packages that came only because others need them."""
    text = (read_file(root, "var/lib/apt/extended_states") or b"").decode("utf-8", "replace")
    return {
        found[1]
        for stanza in text.split("\n\n")
        if "Auto-Installed: 1" in stanza and (found := re.search(r"^Package: (\S+)", stanza, re.MULTILINE))
    }


def _dist_infos(root: Path) -> Iterable[str]:
    for python in names_in(root, "usr/local/lib"):
        if re.fullmatch(r"python3\.[0-9]{1,3}", python):
            yield from names_in(root, f"usr/local/lib/{python}/dist-packages")


class Rebuilding:
    """Of one installation: makes the new volume; `Rebuilder` is what asks for it."""

    def __init__(self, parts: OfficeParts, trials: Trials) -> None:
        self._parts, self._trials = parts, trials
        self._clones = Clones(parts.settings, parts.volumes)

    async def replace(self, record: OfficeRecord, volume: Path, origin: str) -> None:
        """A rebuilt copy of `volume` becomes the office's volume, made of the snapshot `origin`. Nothing of the office runs.
        When that fails, or the copy does not boot, the old one is in its place. Raises `SandboxError`, `VolumeError`."""
        try:
            await self._stage(record, volume, origin)
            failure = await self._trials.of(record, self._clones.staged(record.name))
            if failure is not None:
                raise SandboxError(
                    f"The rebuilt office of {record.name} would not boot ({failure.stage}): {failure.message}",
                    hint="The office is as it was. `tenure agent history AGENT` has the evidence.",
                    details={"stage": failure.stage.value, "evidence": failure.evidence},
                )
            await self._clones.place(record)
        except BaseException:
            await asyncio.shield(self._clones.settle(record.name))
            raise

    async def _stage(self, record: OfficeRecord, volume: Path, origin: str) -> None:
        volumes, staged = self._parts.volumes, self._clones.staged(record.name)
        image = image_of(self._parts.settings, record)
        await volumes.delete(staged)
        # A clone of the old volume: so the work, however large, need not be copied.
        await volumes.create(volume, staged)
        reach("rebuild.cloned")
        await volumes.set_limit(staged, None)  # for a moment there are two roots
        staged.chmod(0o700)
        await asyncio.to_thread(_put_aside, staged)
        await _tool("cp", "--archive", "--reflink=auto", str(image / "rootfs"), str(staged / "rootfs"))
        reach("rebuild.root")
        await asyncio.to_thread(carry, staged)
        reach("rebuild.carried")
        await _tool("rm", "--recursive", "--force", "--one-file-system", str(staged / OLD_ROOT))
        await volumes.set_limit(staged, record.limits.disk_bytes)
        write_office_file(staged, record, origin)


def _put_aside(staged: Path) -> None:
    if os.path.lexists(staged / "rootfs"):
        (staged / "rootfs").rename(staged / OLD_ROOT)


def carry(staged: Path) -> None:
    """Moves the work from the old root of a staged volume to its new one."""
    old, new = staged / OLD_ROOT, staged / "rootfs"
    for path in CARRIED:
        if _leads_straight(old, path) and _leads_straight(new, str(Path(path).parent)):
            if (new / path).exists():
                shutil.rmtree(new / path)
            (old / path).rename(new / path)
    for path in HOST_KEYS:
        _carry_file(old, new, path)
    _carry_users(old, new)


def _leads_straight(root: Path, path: str) -> bool:
    """Whether each part of `path` is a directory itself: a link could lead to the host's."""
    try:
        return all(stat.S_ISDIR((root / part).lstat().st_mode) for part in (Path(path), *Path(path).parents))
    except OSError:
        return False


def _carry_file(old: Path, new: Path, path: str) -> None:
    try:
        content = read_file(old, path)
    except VolumeError:  # something else has its name; the boot makes a key
        return
    if content:
        write_file(new, path, content, mode=0o644 if path.endswith(".pub") else 0o600)


def _carry_users(old: Path, new: Path) -> None:
    for path, mode, identity in (("etc/passwd", 0o644, 2), ("etc/group", 0o644, 2), ("etc/shadow", 0o640, None)):
        try:
            theirs = (read_file(old, path) or b"").decode("utf-8", "replace").splitlines()
        except VolumeError:
            continue
        ours = (read_file(new, path) or b"").decode().splitlines()
        known = {line.split(":")[0] for line in ours}
        if identity is None:
            users = {line.split(":")[0] for line in (read_file(new, "etc/passwd") or b"").decode().splitlines()}
            added = [line for line in theirs if line.split(":")[0] in users - known]
        else:
            added = [line for line in theirs if _is_person(line, identity) and line.split(":")[0] not in known]
        if added:
            gid = (new / path).stat().st_gid
            write_file(new, path, "\n".join([*ours, *added]) + "\n", mode=mode, gid=gid)


def _is_person(line: str, identity: int) -> bool:
    fields = line.split(":")
    number = fields[identity] if len(fields) > identity else ""
    return bool(USER.match(fields[0])) and number.isascii() and number.isdigit() and int(number) in USER_IDS


async def _tool(*words: str) -> None:
    done = await run_tool(list(words), timeout_s=COPY_TIMEOUT_S, raises=VolumeError)
    if done.exit_code:
        raise VolumeError(f"Rebuilding the root failed: {done.last_words}")
